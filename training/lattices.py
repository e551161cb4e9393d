"""Perfect lattices, and what geometry alone can make of them: all the training data there is.

Everything here is in units of the length scale, the cube root of the atomic volume, so density is
one everywhere.  No potential, no simulation: lattices are strained, cut (slabs, voids, vacancies),
joined (two grains), or replaced by random packings, and then noised.  The target is always the
structure before the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt
import vesin
from ase import Atoms
from ase.build import bulk, make_supercell

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: How often `draw` takes each kind of structure.
MIX = {"bulk": 0.54, "vacancies": 0.08, "slab": 0.12, "ball": 0.13, "scrambled": 0.07, "packing": 0.06}

IDEAL_CA = float(np.sqrt(8 / 3))
LATTICES = ("fcc", "bcc", "hcp", "simple cubic", "cubic diamond", "hexagonal diamond")

#: Ordered compounds: the lattice whose sites they share, and which of the sites of its conventional cell are
#: of the second species.
COMPOUNDS: dict[str, tuple[str, tuple[int, ...]]] = {
    "L1_0": ("fcc", (1, 2)),
    "L1_2": ("fcc", (1, 2, 3)),
    "B2": ("bcc", (1,)),
    "zincblende": ("cubic diamond", (1, 3, 5, 7)),
    "rocksalt": ("simple cubic", ()),
    "wurtzite": ("hexagonal diamond", (4, 5, 6, 7)),
}
#: As `MIX`, for compounds.
COMPOUND_MIX = {
    "bulk": 0.48, "antisites": 0.10, "vacancies": 0.07, "slab": 0.10, "ball": 0.10, "scrambled": 0.05,
    "packing": 0.10,
}  # fmt: skip


@dataclass
class Sample:
    """A structure before its noise; ``positions`` (n, 3) and ``cell`` in units of the length scale.

    ``spacing`` is the nearest-neighbour distance; ``ordered`` is False for a random packing,
    ``calm`` True where noise is kept low, ``rehearsed`` where a teacher is asked for the answer.
    ``species`` (n,) are whole numbers, 0 throughout for elements.  ``names`` (n,), where they are known from
    the making, are those of the crystals that atoms are in, "" in none.  ``vibrates``, if there, draws
    displacements (n, 3) of about a given size per component, as the bonds of the structure allow.  ``modes``
    (n, k, 3), if there, are patterns of displacements that such a draw has in places.
    """

    positions: Array
    cell: Array
    pbc: npt.NDArray[np.bool_]
    spacing: float
    species: IntArray
    ordered: bool = True
    calm: bool = False
    rehearsed: bool = False
    names: npt.NDArray[np.str_] | None = None
    vibrates: Callable[[np.random.Generator, float], Array] | None = None
    modes: Array | None = None

    def crystals(self, classes: Sequence[str]) -> IntArray | None:
        """(n,) index into ``classes``, their number in none of them; None where no names are known."""
        if self.names is None:
            return None
        out = np.full(len(self.positions), len(classes), dtype=np.int64)
        for index, name in enumerate(classes):
            out[self.names == name] = index
        return out


def conventional(lattice: str) -> Atoms:
    """The conventional (orthogonal where possible) cell of a lattice with one Å³ per atom."""
    if lattice in COMPOUNDS:
        host, second = COMPOUNDS[lattice]
        atoms = conventional(host)
        if lattice == "rocksalt":
            atoms = atoms.repeat(2)
            second = tuple(np.flatnonzero(np.round(atoms.positions).sum(1) % 2))
        atoms.numbers[:] = 1
        atoms.numbers[list(second)] = 2
        return atoms
    if lattice == "hexagonal diamond":
        one = bulk("X", "hcp", a=1.0, c=IDEAL_CA, orthorhombic=True)
        two = one.copy()
        two.positions[:, 2] += 3 / 8 * one.cell[2, 2]
        atoms = one + two
    elif lattice == "hcp":
        atoms = bulk("X", "hcp", a=1.0, c=IDEAL_CA, orthorhombic=True)
    else:
        name = {"simple cubic": "sc", "cubic diamond": "diamond"}.get(lattice, lattice)
        atoms = bulk("X", name, a=1.0, cubic=True)
    atoms.set_cell(atoms.cell * (len(atoms) / atoms.cell.volume) ** (1 / 3), scale_atoms=True)
    return atoms


# Supercells of the conventional cell whose third axis is normal to the first two: (100), (110),
# (111), (210), (211) of the cubic lattices; basal and two prism planes of the hexagonal ones.
_CUBIC_FRAMES = (
    ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    ((1, -1, 0), (0, 0, 1), (1, 1, 0)),
    ((1, -1, 0), (1, 1, -2), (1, 1, 1)),
    ((0, 0, 1), (1, -2, 0), (2, 1, 0)),
    ((0, 1, -1), (-1, 1, 1), (2, 1, 1)),
)
# Tilt axes and the boundary normals (at zero angle) perpendicular to them.
_TILT_FRAMES = (
    ((1, 0, 0), (0, 0, 1)),
    ((1, 0, 0), (0, 1, 1)),
    ((1, 1, 0), (0, 0, 1)),
    ((1, 1, 0), (1, -1, 0)),
    ((1, 1, 1), (1, -1, 0)),
    ((1, 1, 1), (1, 1, -2)),
)
_HEXAGONAL_FRAMES = (
    ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    ((0, 1, 0), (0, 0, 1), (1, 0, 0)),
    ((0, 0, 1), (1, 0, 0), (0, 1, 0)),
)


_HEXAGONAL = ("hcp", "hexagonal diamond", "wurtzite")


@cache
def _oriented(lattice: str) -> list[Atoms]:
    """Unit cells of a lattice whose third axis stands on a low-index plane."""
    base = conventional(lattice)
    frames = _HEXAGONAL_FRAMES if lattice in _HEXAGONAL else _CUBIC_FRAMES
    return [make_supercell(base, np.array(frame)) for frame in frames]


@cache
def spacing_of(lattice: str) -> float:
    atoms = conventional(lattice).repeat(2)
    distance = vesin.NeighborList(cutoff=1.5, full_list=False).compute(
        atoms.positions, atoms.cell[:], True, "d"
    )[0]
    return float(distance.min())


def _repeats(cell: Array, n_unit: int, target: float, rng: np.random.Generator) -> tuple[int, int, int]:
    """Repeats of a unit cell that give a block of about ``target`` atoms, not too thin anywhere."""
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    side = (target) ** (1 / 3) * np.exp(rng.normal(0, 0.12, 3))
    n = np.maximum(np.round(side / heights), np.ceil(3.6 / heights)).astype(int)
    return int(n[0]), int(n[1]), int(n[2])


def strain(rng: np.random.Generator, size: float = 0.02, dilation: float = 0.03) -> Array:
    """A random deformation gradient close to one: symmetric strain and a change of scale."""
    e = rng.normal(0, size, (3, 3))
    e = (e + e.T) / 2
    return (np.eye(3) + e) * (1 + rng.normal(0, dilation))


def bulk_sample(lattice: str, rng: np.random.Generator, n_atoms: float = 160) -> Sample:
    cells = _oriented(lattice)
    unit = cells[rng.integers(len(cells))]
    n = _repeats(unit.cell[:], len(unit), n_atoms, rng)
    block = unit.repeat(n)
    f = stretched(lattice, block, strain(rng), rng)
    return Sample(
        block.positions @ f, block.cell[:] @ f, np.ones(3, bool), spacing_of(lattice), species_of(block)
    )


def species_of(block: Atoms) -> IntArray:
    return np.array(block.numbers, dtype=np.int64)


def stretched(lattice: str, block: Atoms, f: Array, rng: np.random.Generator) -> Array:
    """What symmetry leaves free: the c/a of L1_0 in ``f``, the height of wurtzite's anions in ``block``.

    The axis is that of the conventional cell, whatever plane the block's third axis stands on: the block has
    only been cut out differently, not turned.
    """
    if lattice == "L1_0":
        return np.asarray(np.diag([1, 1, 1 + rng.uniform(-0.06, 0.08)]) @ f)
    if lattice == "wurtzite":
        block.positions[block.numbers == 2, 2] += rng.normal(0, 0.02)
    return f


def _distances(sample: Sample, centre: Array) -> Array:
    """Distance of each atom of a periodic sample from a point, nearest image, (n,)."""
    fractional = (sample.positions - centre) @ np.linalg.inv(sample.cell)
    return np.asarray(np.linalg.norm((fractional - np.round(fractional)) @ sample.cell, axis=1))


def with_vacancies(sample: Sample, rng: np.random.Generator) -> Sample:
    """Remove single atoms (up to 3 %) or everything inside a sphere: vacancies and voids."""
    n = len(sample.positions)
    if rng.random() < 0.5:
        keep = rng.random(n) > rng.uniform(0.004, 0.03)
    else:
        centre = sample.positions[rng.integers(n)]
        keep = _distances(sample, centre) > rng.uniform(0.8, 2.0)
    return replace(sample, positions=sample.positions[keep], species=sample.species[keep])


def with_antisites(sample: Sample, rng: np.random.Generator) -> Sample:
    """The sample with some atoms of the wrong species, here and there or in half of the block."""
    n = len(sample.positions)
    if rng.random() < 0.7:
        flipped = rng.random(n) < rng.uniform(0.004, 0.05)
    else:  # an antiphase boundary, where the two species share the sites evenly
        flipped = _distances(sample, sample.positions[rng.integers(n)]) < rng.uniform(1.5, 2.5)
    return replace(sample, species=np.where(flipped, 3 - sample.species, sample.species))


def slab_sample(lattice: str, rng: np.random.Generator, n_atoms: float = 200) -> Sample:
    """A slab of a low-index orientation; sometimes free along a second axis too (a wire's edge)."""
    cells = _oriented(lattice)
    unit = cells[rng.integers(len(cells))]
    n = _repeats(unit.cell[:], len(unit), n_atoms, rng)
    block = unit.repeat(n)
    block.positions += rng.random(3) @ unit.cell[:]  # every termination occurs
    block.wrap()
    f = stretched(lattice, block, strain(rng), rng)
    pbc = np.array([True, True, False])
    if rng.random() < 0.25:
        pbc[rng.integers(2)] = False
    return Sample(block.positions @ f, block.cell[:] @ f, pbc, spacing_of(lattice), species_of(block))


def rotation(rng: np.random.Generator) -> Array:
    q = rng.normal(size=4)
    w, x, y, z = q / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _grain_frames(two: bool, rng: np.random.Generator) -> list[Array]:
    """Rotations of the grains of a ball: one, two at random, or two that form a symmetric tilt boundary."""
    if not two:
        return [rotation(rng)]
    if rng.random() < 0.4:
        return [rotation(rng), rotation(rng)]
    # A low-index axis in the boundary plane (normal z), the grains turned by half the angle each way.
    axis, normal = _TILT_FRAMES[rng.integers(len(_TILT_FRAMES))]
    frame = np.array([axis, np.cross(normal, axis), normal], dtype=np.float64)
    frame /= np.linalg.norm(frame, axis=1, keepdims=True)
    half = rng.uniform(0, np.pi / 4)
    c, s = np.cos(half), np.sin(half)
    turn = np.array([[1, 0, 0], [0, c, s], [0, -s, c]])
    return [frame.T @ turn, frame.T @ turn.T]


def ball_sample(lattice: str, rng: np.random.Generator, radius: float = 3.7) -> Sample:
    """A ball of one grain, or of two that meet in a plane and are relaxed by springs."""
    unit = conventional(lattice)
    n = np.ceil(2 * (radius + 1.5) / unit.cell.lengths()).astype(int)
    two = bool(rng.random() < 0.85)
    stretch = strain(rng, 0.01, 0.02)
    grains, kinds = [], []
    for frame, side in zip(_grain_frames(two, rng), (1, -1), strict=False):
        crystal = unit.repeat(n)
        block = crystal.positions
        block = (block - block.mean(0) + rng.normal(0, 0.5, 3)) @ frame @ stretch
        inside = np.linalg.norm(block, axis=1) < radius
        if two:
            inside &= side * block[:, 2] > 0
        grains.append(block[inside])
        kinds.append(species_of(crystal)[inside])
    positions, species = np.concatenate(grains), np.concatenate(kinds)
    d = spacing_of(lattice)
    if two:
        keep = _without_overlaps(positions, rng.uniform(0.65, 0.85) * d)
        positions, species = positions[keep], species[keep]
        positions = spread(positions, np.eye(3), np.zeros(3, bool), d, 25, pull=1.12)
    return Sample(positions, np.eye(3), np.zeros(3, bool), d, species, calm=True)


def scrambled_sample(lattice: str, rng: np.random.Generator) -> Sample:
    """A crystal with a spot that is no lattice: an atom too many or too few, or a glassy pocket.

    Stands for the cores of all kinds of defects: such a spot within a calm crystal is structure.
    """
    sample = bulk_sample(lattice, rng, 200)
    positions, d, species = sample.positions.copy(), sample.spacing, sample.species
    centre = positions[rng.integers(len(positions))] + rng.normal(0, 0.3, 3)
    away = _distances(sample, centre)
    kind = rng.random()
    near, size = away < rng.uniform(0.7, 1.4), rng.uniform(0, 0.2)
    if kind < 0.45:
        positions, near = np.vstack([positions, centre]), np.append(near, True)
        species = np.append(species, species[np.argmin(away)])
    elif kind < 0.75:
        keep = np.arange(len(positions)) != np.argmin(away)
        positions, near, species = positions[keep], near[keep], species[keep]
    else:  # far enough that nobody can tell the sites any more
        near, size = away < rng.uniform(1.2, 2.0), rng.uniform(0.4, 0.6)
    positions[near] += rng.normal(0, size * d, (int(near.sum()), 3))
    n = int(rng.integers(8, 25))
    positions = spread(positions, sample.cell, sample.pbc, d, n, pull=1.12)
    return Sample(positions, sample.cell, sample.pbc, d, species, calm=True)


def _without_overlaps(positions: Array, distance: float) -> npt.NDArray[np.bool_]:
    """Which atoms are left without the second one of every pair that is too close."""
    i, j = vesin.NeighborList(cutoff=distance, full_list=False).compute(positions, np.eye(3), False, "ij")
    keep = np.ones(len(positions), bool)
    for a, b in zip(i, j, strict=True):
        if keep[a] and keep[b]:
            keep[b] = False
    return keep


def spread(
    positions: Array, cell: Array, pbc: npt.NDArray[np.bool_], distance: float, n: int, pull: float = 1.0
) -> Array:
    """Relax by springs: pairs closer than ``distance`` push each other apart.

    With ``pull`` > 1 pairs up to ``pull * distance`` also draw together, at a third of the strength.
    A lattice of that nearest-neighbour distance, its next shell beyond, stays as it is.
    """
    search = vesin.NeighborList(cutoff=distance * pull, full_list=True)
    positions = positions.copy()
    for _ in range(n):
        i, d, r = search.compute(positions, cell, pbc, "iDd")
        if len(i) == 0:
            break
        excess = distance - r
        push = np.where(excess > 0, 0.5 * excess, excess / 6) / np.maximum(r, 1e-3)
        moved = np.zeros_like(positions)
        np.add.at(moved, i.astype(np.int64), -push[:, None] * d)
        # At most a tenth of the distance at once: crowded atoms would jump over each other.
        length = np.linalg.norm(moved, axis=1, keepdims=True)
        positions += 0.8 * moved * np.minimum(1, 0.1 * distance / np.maximum(length, 1e-9))
    return positions


def packing_sample(rng: np.random.Generator, n_atoms: int = 150) -> Sample:
    """A random packing at unit density: the geometric stand-in for a liquid."""
    side = n_atoms ** (1 / 3)
    cell = np.eye(3) * side
    distance = rng.uniform(0.8, 1.02)
    positions = spread(
        rng.random((n_atoms, 3)) * side, cell, np.ones(3, bool), distance, int(rng.integers(15, 50))
    )
    return Sample(positions, cell, np.ones(3, bool), 1.05, np.zeros(n_atoms, dtype=np.int64), ordered=False)


def with_two_species(sample: Sample, rng: np.random.Generator) -> Sample:
    """A packing of two species, in disorder or, as in an ionic melt, unlike ones beside each other."""
    n = len(sample.positions)
    species = 1 + (rng.random(n) < (0.5 if rng.random() < 0.7 else 0.75)).astype(np.int64)
    i, j = vesin.NeighborList(cutoff=1.3, full_list=True).compute(
        sample.positions, sample.cell, sample.pbc, "ij"
    )
    i, j = i.astype(np.int64), j.astype(np.int64)
    for _ in range(int(rng.integers(0, 6))):
        # Atoms with more like than unlike neighbours change, some of them at a time.
        excess = np.bincount(i, weights=np.where(species[i] == species[j], 1.0, -1.0), minlength=n)
        species = np.where((excess > 0) & (rng.random(n) < 0.3), 3 - species, species)
    return replace(sample, species=species)


def draw_compound(rng: np.random.Generator) -> Sample:
    """One training structure of two species, as `draw`, and antisites."""
    return draw(rng, tuple(COMPOUNDS), COMPOUND_MIX)


def draw(rng: np.random.Generator, among: Sequence[str] = LATTICES, mix: Mapping[str, float] = MIX) -> Sample:
    """One training structure: bulk, missing atoms, surfaces, grains, defect cores and packings."""
    lattice = among[int(rng.integers(len(among)))]
    index = int(np.searchsorted(np.cumsum(list(mix.values())), rng.random(), side="right"))
    kind = list(mix)[min(index, len(mix) - 1)]
    if kind == "bulk":
        return bulk_sample(lattice, rng)
    if kind == "antisites":
        return with_antisites(bulk_sample(lattice, rng), rng)
    if kind == "vacancies":
        return with_vacancies(bulk_sample(lattice, rng, 200), rng)
    if kind == "slab":
        return slab_sample(lattice, rng)
    if kind == "ball":
        return ball_sample(lattice, rng)
    if kind == "scrambled":
        return scrambled_sample(lattice, rng)
    packing = packing_sample(rng)
    return with_two_species(packing, rng) if lattice in COMPOUNDS else packing


def noise_level(sample: Sample, rng: np.random.Generator, largest: float) -> float:
    """Standard deviation per component: uniform up to ``largest`` spacings, one in eight nearly zero.

    Up to two thirds of that in calm structures, whose defects are lost at the highest levels anyway.
    """
    top = largest * 2 / 3 if sample.calm else largest
    fraction = rng.uniform(0, top) if rng.random() > 0.125 else rng.uniform(0, 0.02)
    return float(fraction * sample.spacing)


def noise(sample: Sample, sigma: float, rng: np.random.Generator) -> Array:
    """Gaussian noise (n, 3) of standard deviation ``sigma`` per component.

    For half of the structures its strength varies from place to place and atom to atom, as it does in
    a crystal close to melting: log-normal, smooth over neighbours in one part.  Where bonds are far stiffer
    than what turns about them (``sample.vibrates``), most displacements keep their lengths.
    """
    n = len(sample.positions)
    if sample.vibrates is not None and rng.random() < 0.7:
        return sample.vibrates(rng, sigma)
    if sample.calm or rng.random() < 0.5:
        return rng.normal(0, sigma, (n, 3))
    i, j = vesin.NeighborList(cutoff=1.65, full_list=True).compute(
        sample.positions, sample.cell, sample.pbc, "ij"
    )
    white = rng.normal(size=n)
    smooth = white + np.bincount(i.astype(np.int64), weights=white[j.astype(np.int64)], minlength=n)
    smooth /= np.sqrt(1 + np.bincount(i.astype(np.int64), minlength=n))
    strength = np.exp(0.3 * smooth + 0.2 * rng.normal(size=n))
    strength /= np.sqrt(np.mean(strength**2))
    return np.asarray(rng.normal(0, sigma, (n, 3)) * strength[:, None])
