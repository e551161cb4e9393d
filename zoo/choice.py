"""Which denoiser suits a structure: its composition says which to try, their own verdicts decide.

What a checkpoint is for is read from the lattices in its config, so a new one needs no line here if `KINDS`
has its lattices.  Only checkpoints that are on this machine are looked at; no connection is opened.

Composition puts the candidates in order.  Each denoises the structure, and its score is the mean over atoms
of the confidence where the verdict is a crystal.  A later candidate has to be better by `MARGIN`: rocksalt
has the sites of simple cubic, so a denoiser that does not see species knows it just as well, but knows less
of it.  Hence a candidate that leaves no room for a better one ends the search.

A denoiser of compounds has never seen species at random on a lattice, and is sure that a solid solution is a
compound.  So its score is multiplied by the order that there is: by how much unlike nearest neighbours are
more frequent than with species at random, beside what that is in the compound (the short-range order of
Cowley, Phys. Rev. 77, 669, 1950).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zoo import checkpoint, hub, registry
from zoo.errors import CheckpointError, ZooError
from zoo.verdict_names import DISORDERED

if TYPE_CHECKING:
    from ase import Atoms

    from zoo.denoiser import Denoiser

Callback = Callable[[int, npt.NDArray[np.float64], float], None]

#: What lattices are made of.
KINDS: dict[str, tuple[str, ...]] = {
    "element": ("fcc", "bcc", "hcp", "simple cubic", "cubic diamond", "hexagonal diamond"),
    "compound": ("L1_0", "L1_2", "B2", "zincblende", "rocksalt", "wurtzite"),
    "silica": ("alpha-quartz", "beta-quartz", "alpha-cristobalite", "beta-cristobalite"),
    "ice": ("ice Ih", "ice Ic", "ice II", "ice III", "ice VI", "ice VII", "clathrate sI"),
}
#: Unlike nearest neighbours of compounds, over those of the same atoms at random, less one.
EXCESS: dict[str, float] = {
    "L1_0": 1 / 3, "L1_2": 1 / 3, "B2": 1.0, "zincblende": 1.0, "rocksalt": 1.0, "wurtzite": 1.0,
}  # fmt: skip
#: Between the first and the second neighbours of every lattice of these, in length scales.
SHELL = 1.18
#: By how much a score has to be better than that of a candidate before it.
MARGIN = 0.1
#: Below this score a candidate that gives no verdict, if there is one, is the better guess.
FAINT = 0.5
#: Of a structure of more atoms a piece is judged.
LARGEST = 10_000
#: Atoms of a piece nearer to a cut than this, in length scales, do not count: the surface is none of theirs.
RIM = 3.0
#: Fewer atoms of a piece that count say nothing.
FEWEST = 100

_HYDROGEN, _CARBON, _OXYGEN, _SILICON = 1, 6, 8, 14
_NUMERALS = ("no", "one", "two", "three", "four", "five")


@dataclass(frozen=True)
class Choice:
    """A denoiser of the registry and why it was taken.

    ``clean`` is what it made of the structure, in so many ``seconds``, if it was tried on the whole of it.
    """

    name: str
    denoiser: Denoiser
    reason: str
    clean: Atoms | None = None
    seconds: float = 0.0


def choose_denoiser(atoms: Atoms, steps: int = 10) -> tuple[Denoiser, str]:
    """The denoiser on this machine that suits ``atoms`` best, and the reason in words.

    Parameters
    ----------
    atoms : any structure that can be denoised.
    steps : of the candidates that are tried, at most so many.

    Raises
    ------
    StructureError : no candidate can treat the structure; the error of the first one.
    CheckpointError : no denoiser for this composition is on this machine, or it is damaged.
    MissingExtraError : the only candidate needs what is not installed.
    """
    choice = choose(atoms, steps)
    return choice.denoiser, choice.reason


def choose(
    atoms: Atoms,
    steps: int = 10,
    callback: Callback | None = None,
    load: Callable[[str], Denoiser] | None = None,
) -> Choice:
    """As `choose_denoiser`, with the denoised structure where there is one.

    ``callback`` is called after every step of each candidate, as by `Denoiser.denoise`; ``load`` is for those
    who keep denoisers that they have loaded.
    """
    load = load or _load
    words, names = _candidates(atoms)
    if len(names) == 1:
        return Choice(names[0], load(names[0]), words)
    piece, counts = _piece(atoms)
    judgeable = len(piece) == len(atoms) or counts.sum() >= FEWEST
    judged: list[_Judged] = []
    best: _Judged | None = None
    blind: dict[str, Denoiser] = {}  # they give no verdict, or there is nothing to give it on
    failures: dict[str, ZooError] = {}
    for name in names:
        try:
            denoiser = load(name)
            if judgeable and getattr(denoiser, "head", None) is not None:
                judged.append(_judge(name, denoiser, piece, counts, steps, callback))
                best = _best(judged)
            else:
                blind[name] = denoiser
        except ZooError as error:
            failures[name] = error
        if best is not None and best.score >= 1 - MARGIN:
            break
    if not judged and not blind:
        raise failures[names[0]]
    others = [_short(one) for one in judged if one is not best]
    if judgeable:
        others += [f"{name} gives no verdict" for name in blind]
    others += [f"{name} cannot: {error}" for name, error in failures.items()]
    if best is not None and (best.score >= FAINT or not blind):
        reason = "; ".join([f"{words}, {_told(best, len(atoms))}", *others])
        if len(piece) < len(atoms):
            return Choice(best.name, best.denoiser, reason)
        return Choice(best.name, best.denoiser, reason, best.clean, best.seconds)
    said = [] if judgeable else [f"no piece of {len(atoms):,} atoms is thick enough to be tried"]
    said += [_short(best)] if best is not None else []
    name = next(iter(blind))
    return Choice(name, blind[name], "; ".join([words, *said, *others]))


def _candidates(atoms: Atoms) -> tuple[str, list[str]]:
    """The composition in words, and the names of the denoisers here that may suit it, the first one best.

    Raises
    ------
    CheckpointError : there is none.
    """
    here = _here()
    words, special, general = _composition(atoms)
    # Without the checkpoint made for it, water is a structure of two species like any other.
    kinds = special if special and special[0] in here.values() else general
    names = [name for kind in kinds for name in sorted(here) if here[name] == kind]
    if not names:
        raise CheckpointError(
            f"no denoiser for {words} is on this machine: run `zoo fetch denoiser-elements`, or name another"
        )
    return words, names


def _here() -> dict[str, str]:
    """Name and kind of the released denoisers that came with the package or are in the cache."""
    found: dict[str, str] = {}
    for record in registry.records():
        if record.kind != "denoiser":
            continue
        try:
            config = checkpoint.read_config(hub.locate(record.name, network=False).folder)
        except ZooError:
            continue
        lattices = set(map(str, config.get("lattices", ())))
        kind = next((kind for kind, names in KINDS.items() if lattices & set(names)), None)
        if kind is not None:
            found[record.name] = kind
    return found


def _composition(atoms: Atoms) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """In words; the kinds of checkpoints for exactly this composition; those for its number of species."""
    from ase.data import chemical_symbols

    numbers, counts = np.unique(atoms.numbers, return_counts=True)
    n = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    listed = ", ".join(chemical_symbols[number] for number in sorted(n))
    species = _NUMERALS[len(n)] if len(n) < len(_NUMERALS) else str(len(n))
    words = f"{species} species ({listed})"
    if len(n) == 1:
        (number,) = n
        types = len(np.unique(_species(atoms)))
        if types > 1:
            return f"{types} LAMMPS types (name them with --species)", (), _by_number(types)
        if number == 0:
            return "one unknown species", (), ("element", "ice")
        return words, (), ("ice", "element") if number == _OXYGEN else ("element",)
    special: tuple[str, ...] = ()
    if set(n) == {_OXYGEN, _SILICON} and 1.8 <= n[_OXYGEN] / n[_SILICON] <= 2.2:
        special = ("silica", "compound")
    elif _HYDROGEN in n and _OXYGEN in n:
        guests = len(atoms) - n[_HYDROGEN] - n[_OXYGEN]
        low, high = (1.8, 2.2) if not guests else (1.3, 3.5)  # methane brings hydrogen, CO2 oxygen
        if guests <= n[_OXYGEN] / 2 and low <= n[_HYDROGEN] / n[_OXYGEN] <= high:
            special = ("ice", "element")
    return words, special, _by_number(len(n))


def _by_number(species: int) -> tuple[str, str]:
    return ("compound", "element") if species == 2 else ("element", "compound")


def _species(atoms: Atoms) -> npt.NDArray[np.int64]:
    """(n_atoms,) atomic numbers, or LAMMPS types where these tell more."""
    numbers = np.asarray(atoms.numbers, dtype=np.int64)
    types = atoms.arrays.get("type")
    # LAMMPS writes C for every atom unless told otherwise, so that says as little as no element.
    unknown = bool(np.isin(numbers, (0, _CARBON)).all()) and len(np.unique(numbers)) == 1
    if unknown and types is not None and types.dtype.kind in "iu":
        return np.asarray(types, dtype=np.int64)
    return numbers


def _load(name: str) -> Denoiser:
    from zoo.denoiser import Denoiser

    return Denoiser.from_pretrained(name)


# -- the verdicts ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Judged:
    """What a candidate said of ``n`` atoms."""

    name: str
    denoiser: Denoiser
    clean: Atoms
    seconds: float
    n: int
    share: float
    """Of the atoms that are in a crystal."""
    confidence: float
    """Mean of these; 0 where there are none."""
    crystal: str
    """The commonest one, or nothing."""
    order: float = 1.0
    """From 0 for species at random to 1 for those of the compound."""

    @property
    def score(self) -> float:
        return self.share * self.confidence * self.order


def _judge(
    name: str,
    denoiser: Any,
    atoms: Atoms,
    counts: npt.NDArray[np.bool_],
    steps: int,
    callback: Callback | None,
) -> _Judged:
    started = time.perf_counter()
    clean = denoiser.denoise(atoms, steps=steps, callback=callback)
    seconds = time.perf_counter() - started
    names = clean.arrays["structure_type"].astype(str)
    # Guests in ice are "other".
    counts = counts & np.isin(names, denoiser.head.classes)
    crystal = counts & (names != DISORDERED)
    n, n_crystal = int(counts.sum()), int(crystal.sum())
    if not n_crystal:
        return _Judged(name, denoiser, clean, seconds, n, 0.0, 0.0, "")
    kinds, of_kind = np.unique(names[crystal], return_counts=True)
    confidence = float(clean.arrays["confidence"][crystal].mean())
    crystal_name = str(kinds[of_kind.argmax()])
    order = _order(clean, names, crystal)
    return _Judged(name, denoiser, clean, seconds, n, n_crystal / n, confidence, crystal_name, order)


def _order(clean: Atoms, names: npt.NDArray[np.str_], crystal: npt.NDArray[np.bool_]) -> float:
    """From 0 to 1, mean over the atoms in ``crystal``; those in no compound have all the order there is."""
    compound = crystal & np.isin(names, list(EXCESS))
    if not compound.any():
        return 1.0
    from zoo.graph import neighbor_searches
    from zoo.scale import length_scale

    pbc, cell = np.array(clean.pbc, dtype=bool), clean.cell[:]
    species, neighbors, unlike = _species(clean), np.zeros(len(clean)), np.zeros(len(clean))
    radius = SHELL * length_scale(clean.positions, cell, pbc)
    for core, i, j, _ in neighbor_searches(clean.positions, cell, pbc, radius):
        neighbors[core] = np.bincount(i, minlength=len(core))
        differ = species[core[i]] != species[j]
        unlike[core] = np.bincount(i, weights=differ, minlength=len(core))
    found = unlike[compound].sum() / max(neighbors[compound].sum(), 1)
    shares = np.unique(species[compound], return_counts=True)[1] / compound.sum()
    random = 1 - float((shares**2).sum())
    full = float(np.mean([EXCESS[name] for name in names[compound].tolist()]))
    order = float(np.clip((found / random - 1) / full, 0, 1)) if random else 0.0
    return 1 - (1 - order) * float(compound.sum() / crystal.sum())


def _best(judged: list[_Judged]) -> _Judged | None:
    """The first one, unless one after it is clearly better."""
    best: _Judged | None = None
    for one in judged:
        if best is None or one.score > best.score + MARGIN:
            best = one
    return best


def _told(one: _Judged, n_atoms: int) -> str:
    of = f"{one.n:,} atoms" if one.n == n_atoms else f"{one.n:,} of {n_atoms:,} atoms"
    if not one.crystal:
        return f"none of {of} in a crystal it knows"
    told = f"{_percent(one.share)} of {of} in a crystal it knows ({one.crystal})"
    return f"{told}, mean confidence {one.confidence:.3f}{_disorder(one)}"


def _short(one: _Judged) -> str:
    if not one.crystal:
        return f"{one.name} none"
    return f"{one.name} {_percent(one.share)} ({one.crystal}), {one.confidence:.3f}{_disorder(one)}"


def _disorder(one: _Judged) -> str:
    return f", order of its species {one.order:.2f}" if one.order < 0.95 else ""


def _percent(share: float) -> str:
    return f"{int(100 * share + 1e-9)} %"  # rounded down: all but one atom are not all


# -- a piece of a large structure ------------------------------------------------------------


def _piece(atoms: Atoms) -> tuple[Atoms, npt.NDArray[np.bool_]]:
    """At most `LARGEST` atoms that lie together, and which of them are far from the cuts, (n_piece,).

    The longest side is halved until they are few enough, so no side becomes thinner than need be, and short
    ones stay periodic.  Each cut keeps what is around the median atom: the middle may be empty.

    Raises
    ------
    StructureError : unusable structure.
    """
    from zoo.pairs import complete_cell
    from zoo.structures import check_structure

    if len(atoms) <= LARGEST:
        return atoms, np.ones(len(atoms), dtype=bool)
    check_structure(atoms)
    pbc = np.array(atoms.pbc, dtype=bool)
    to_fractional = np.linalg.inv(complete_cell(np.asarray(atoms.cell[:], dtype=np.float64), pbc))
    heights = 1 / np.linalg.norm(to_fractional, axis=0)
    x = atoms.positions @ to_fractional
    x[:, pbc] -= np.floor(x[:, pbc])
    low, high = np.where(pbc, 0.0, x.min(0)), np.where(pbc, 1.0, x.max(0))
    cut = np.zeros((2, 3), dtype=bool)  # below and above
    inside = np.arange(len(atoms))
    while len(inside) > LARGEST:
        axis = int(((high - low) * heights).argmax())
        middle, half = np.median(x[inside, axis]), (high[axis] - low[axis]) / 4
        below, above = max(low[axis], middle - half), min(high[axis], middle + half)
        # A periodic side that is cut in one place is open at both ends.
        cut[:, axis] |= np.array([below > low[axis], above < high[axis]]) | pbc[axis]
        low[axis], high[axis] = below, above
        inside = inside[(x[inside, axis] >= low[axis]) & (x[inside, axis] <= high[axis])]
    piece = atoms[inside]
    piece.positions = x[inside] @ np.linalg.inv(to_fractional)
    piece.pbc = pbc & ~cut.any(0)
    volume = float(np.prod(high - low)) / abs(np.linalg.det(to_fractional))
    rim = RIM * (volume / len(inside)) ** (1 / 3) / heights
    far = ~(cut[0] & (x[inside] < low + rim)) & ~(cut[1] & (x[inside] > high - rim))
    return piece, far.all(1)
