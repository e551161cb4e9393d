"""Give a denoiser a head that says what each atom is, and how sure that is; from geometry alone, in minutes.

    python -m training.verdict build/denoiser-binaries -o build/denoiser-binaries-verdict
    python -m training.verdict build/denoiser-binaries -o build/quick --structures 100

The denoiser stays as it is.  Structures are drawn as for its training, and more without order: packings,
and lattices displaced until nobody can tell the sites.  Each is noised and denoised; what the network's
layers then know of an atom is the head's input.  The truth is read before the noise: the sites are labelled
by common neighbour analysis and its relatives, which make no error there, and an atom on a site of its
lattice is of that lattice, whichever species it is; all others, at surfaces and in the cores of defects, are
disordered.  Of silica and ice, which those classifiers do not know, it is known from the making
(`training.polymorph_structures`).  A fifth of the structures is held out: it stops the training and sets the
temperature.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from ase import Atoms
from rich.console import Console
from rich.progress import track

from training import lattices, polymorph_structures
from training.command_line import command_line
from training.first_card import write_first_card
from training.metrics import carry, record
from training.polymorphs import ICE, POLYMORPHS, SILICA
from zoo.analysis.crystals import STRUCTURES, structure_types
from zoo.analysis.orderings import HOSTS
from zoo.checkpoint import save
from zoo.denoiser import Denoiser
from zoo.errors import CheckpointError, StructureError
from zoo.graph import neighbor_graph
from zoo.scale import length_scale
from zoo.verdict import LONGEST_REACH, VerdictConfig, VerdictHead, averaging, head_features

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: How often a structure has no order at all; liquids are many kinds of things, crystals few.
DISORDER = 0.3
#: And how often one of two species has ordered sites only.
SOLUTIONS = 0.08
#: As `training.polymorph_structures.MIX`, with as much disorder as elsewhere.
_POLYMORPH_MIX = {**polymorph_structures.MIX, "bulk": 0.40, "melt": 0.22, "half": 0.18}
_ICE_MIX = {**_POLYMORPH_MIX, "melt": 0.12, "network": 0.20}
_SILICA_MIX = {**_POLYMORPH_MIX, "melt": 0.08, "network": 0.14}
#: Drawn more often: those that are most like a melt, or like each other.
_HARD = ("ice II", "ice III", "ice III")
#: An alpha phase vibrates by less than this part of the way to its beta phase; beyond, it has become that.
_MOST_OF_THE_WAY = 0.7
#: Sections of the metrics that tell of training, or of where atoms are after denoising.
OF_THE_NETWORK = frozenset({"training", "dc3", "defects", "surfaces"})
_EPOCHS, _BATCH, _RATE = 60, 4096, 3e-3
_loss = torch.nn.functional.cross_entropy


def reach_of(classes: Sequence[str]) -> int:
    """Of the head for these crystals; some polymorphs differ by the mean of many atoms."""
    if set(classes) & set(SILICA):
        return 8  # how far a pattern of turned tetrahedra goes on tells alpha from beta
    return 4 if set(classes) & set(ICE) else 2


def molten_sample(lattice: str, rng: np.random.Generator) -> lattices.Sample:
    """A lattice displaced until no site can be told, atoms then kept apart as in a melt."""
    sample = lattices.bulk_sample(lattice, rng, 180)
    size = rng.uniform(0.3, 0.6) * sample.spacing
    positions = sample.positions + rng.normal(0, size, sample.positions.shape)
    apart = sample.spacing * rng.uniform(0.85, 1.0)
    pull = rng.uniform(1.0, 1.15)
    positions = lattices.spread(
        positions, sample.cell, sample.pbc, apart, int(rng.integers(8, 40)), pull=pull
    )
    return replace(sample, positions=positions, ordered=False)


def solid_solution(lattice: str, rng: np.random.Generator) -> lattices.Sample:
    """The sites of a compound with its two species at random on them: no compound any more."""
    sample = lattices.bulk_sample(lattice, rng)
    share = rng.uniform(0.2, 0.8)
    species = 1 + (rng.random(len(sample.positions)) < share).astype(np.int64)
    return replace(sample, species=species, ordered=False)


def draw(among: Sequence[str], rng: np.random.Generator) -> tuple[str, lattices.Sample]:
    """A structure and the lattice it is of."""
    if among[0] in POLYMORPHS:
        mix = _ICE_MIX if among[0] in ICE else _SILICA_MIX
        return polymorph_structures.draw(rng, (*among, *(name for name in _HARD if name in among)), mix)
    lattice = among[int(rng.integers(len(among)))]
    if rng.random() < DISORDER:
        if rng.random() < 0.6:
            return lattice, molten_sample(lattice, rng)
        packing = lattices.packing_sample(rng)
        compound = lattice in lattices.COMPOUNDS
        return lattice, lattices.with_two_species(packing, rng) if compound else packing
    if lattice in lattices.COMPOUNDS and rng.random() < SOLUTIONS:
        return lattice, solid_solution(lattice, rng)
    mix = lattices.COMPOUND_MIX if lattice in lattices.COMPOUNDS else lattices.MIX
    return lattice, lattices.draw(rng, (lattice,), {k: v for k, v in mix.items() if k != "packing"})


def truth(lattice: str, sample: lattices.Sample, classes: Sequence[str]) -> IntArray:
    """(n_atoms,) index into ``classes``; the number of classes where an atom is disordered."""
    if (known := sample.crystals(classes)) is not None:
        return known
    out = np.full(len(sample.positions), len(classes), dtype=np.int64)
    if not sample.ordered:
        return out
    # CNA needs no unit of length, but OVITO's search does not care for cells below one Å.
    sites = structure_types(
        Atoms(positions=3 * sample.positions, cell=3 * sample.cell, pbc=sample.pbc, numbers=sample.species)
    )
    host = HOSTS[lattice] if lattice in HOSTS else STRUCTURES.index(lattice)
    if lattice in HOSTS:
        out[sites == host] = classes.index(lattice)
    else:  # an fcc crystal has hcp planes at a twin
        for index, name in enumerate(classes):
            out[sites == STRUCTURES.index(name)] = index
    return out


def largest_noise(lattice: str, sample: lattices.Sample, largest: float) -> float:
    """In nearest-neighbour distances: ``largest``, but of an alpha phase no more than it survives."""
    if not sample.ordered:
        return largest
    return min(largest, _MOST_OF_THE_WAY * polymorph_structures.way_to_parent(lattice))


@dataclass(frozen=True)
class Example:
    """A structure as a head sees it: features (n, k), truth (n,), averages (n, n) if it has a reach."""

    features: torch.Tensor
    truth: torch.Tensor
    average: torch.Tensor | None = None


def joined(parts: Sequence[Example]) -> Example:
    """Several structures as one, side by side."""
    features, true = torch.cat([p.features for p in parts]), torch.cat([p.truth for p in parts])
    averages = [part.average for part in parts if part.average is not None]
    if not averages:
        return Example(features, true)
    assert len(averages) == len(parts)
    starts = np.cumsum([0, *(len(part.truth) for part in parts)]).tolist()
    where = torch.cat([a.indices() + start for a, start in zip(averages, starts, strict=False)], 1)
    values = torch.cat([a.values() for a in averages])
    n = len(true)
    average = torch.sparse_coo_tensor(where, values, (n, n), check_invariants=False, is_coalesced=True)
    return Example(features, true, average)


def examples(
    denoiser: Denoiser,
    classes: Sequence[str],
    n: int,
    seed: int,
    shown: Callable[[range], Sequence[int]],
    reach: int = 0,
    workers: int = 1,
) -> list[Example]:
    """``n`` noised and denoised structures; they do not depend on the number of ``workers``."""
    bare = Denoiser(denoiser.config, denoiser.network)

    def noised(index: int) -> tuple[Atoms, IntArray]:
        """In the calling thread: OVITO, which the truth is from, must not run in others."""
        rng = np.random.default_rng([seed, index])
        lattice, sample = draw(classes, rng)
        # Cold crystals are crystals, too.
        most = largest_noise(lattice, sample, denoiser.config.largest_noise)
        sigma = lattices.noise_level(sample, rng, most) * (rng.random() > 0.1)
        moved = sample.positions + lattices.noise(sample, sigma, rng)
        atoms = Atoms(positions=3 * moved, cell=3 * sample.cell, pbc=sample.pbc, numbers=sample.species)
        return atoms, truth(lattice, sample, classes)

    def seen(drawn: tuple[Atoms, IntArray]) -> Example | None:
        atoms, true = drawn
        try:
            clean = bare.denoise(atoms)
        except StructureError:  # atoms of one species, or on top of one another: none to learn from
            return None
        scale = length_scale(clean.positions, clean.cell[:], clean.pbc)
        graph = neighbor_graph(
            clean.positions, clean.cell[:], clean.pbc, denoiser.cutoff, scale, clean.numbers
        )
        with torch.no_grad():
            features = head_features(denoiser.network, graph)
        average = averaging(graph, denoiser.cutoff) if reach else None
        return Example(features, torch.from_numpy(true), average)

    with ThreadPoolExecutor(workers) as pool:
        made = pool.map(seen, map(noised, range(n)))
        return [example for _, example in zip(shown(range(n)), made, strict=True) if example is not None]


def _batches(training: Sequence[Example], x: torch.Tensor, y: torch.Tensor) -> Iterator[Example]:
    """One pass, in any order: atom by atom, or where they see one another by whole structures.

    ``x`` and ``y`` are the features and the truth of all of them.
    """
    if all(part.average is None for part in training):
        for part in torch.randperm(len(y)).split(_BATCH):
            yield Example(x[part], y[part])
        return
    waiting: list[Example] = []
    for index in torch.randperm(len(training)).tolist():
        waiting.append(training[index])
        if sum(len(each.truth) for each in waiting) >= _BATCH:
            yield joined(waiting)
            waiting = []
    if waiting:
        yield joined(waiting)


def fit(
    config: VerdictConfig,
    training: Sequence[Example],
    held_out: Sequence[Example],
    seed: int,
) -> VerdictHead:
    """The head that did best on what is held out, with its temperature."""
    x, y = torch.cat([part.features for part in training]), torch.cat([part.truth for part in training])
    unseen = joined(held_out)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = VerdictHead(x.shape[1], config)
        head.mean.copy_(x.mean(0))
        head.scale.copy_(x.std(0).clamp_min(1e-3))
        optimizer = torch.optim.AdamW(head.parameters(), lr=_RATE, weight_decay=1e-2)
        steps = _EPOCHS * -(-len(x) // _BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        best, lowest = {k: t.clone() for k, t in head.state_dict().items()}, float("inf")
        for _ in range(_EPOCHS):
            for part in _batches(training, x, y):
                optimizer.zero_grad()
                _loss(head(part.features, part.average), part.truth).backward()
                optimizer.step()
                schedule.step()
            with torch.no_grad():
                loss = float(_loss(head(unseen.features, unseen.average), unseen.truth))
            if loss < lowest:
                best, lowest = {k: t.clone() for k, t in head.state_dict().items()}, loss
    head.load_state_dict(best)
    with torch.no_grad():
        logits = head(unseen.features, unseen.average)
        grid = torch.logspace(-0.7, 0.7, 141)
        losses = [float(_loss(logits / t, unseen.truth)) for t in grid]
    calibrated = VerdictHead(
        x.shape[1], replace(config, temperature=round(float(grid[np.argmin(losses)]), 4))
    )
    calibrated.load_state_dict(best)
    return calibrated


def calibration_error(confidence: Array, right: npt.NDArray[np.bool_], bins: int = 15) -> float:
    """Expected calibration error: the gap between confidence and share of right verdicts, over equal bins.

    Naeini, Cooper & Hauskrecht, AAAI 2015; weighted by the atoms of each bin.
    """
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    total = 0.0
    for k in range(bins):
        here = index == k
        if here.any():
            total += abs(float(right[here].mean()) - float(confidence[here].mean())) * here.mean()
    return float(total)


@command_line()
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.verdict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="the denoiser: a name from `zoo list`, or a folder")
    parser.add_argument("-o", "--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--structures", type=int, default=1500, help="drawn in all (default %(default)s)")
    parser.add_argument(
        "--reach",
        type=int,
        help="how often features are averaged over neighbours; default: what the crystals need",
    )
    parser.add_argument("--workers", type=int, default=2, help="threads; the result does not depend on it")
    parser.add_argument("--version", help="of the new checkpoint; default: that of the old one")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.structures < 10 or args.workers < 1 or not 0 <= (args.reach or 0) <= LONGEST_REACH:
        parser.error(f"at least 10 structures and one worker, and a reach from 0 to {LONGEST_REACH}")
    return run(args, Console())


def run(args: argparse.Namespace, console: Console) -> int:
    """Draw, fit, measure on structures of another seed, write.

    Raises
    ------
    ZooError : the checkpoint cannot be read, or knows lattices that this recipe cannot draw.
    """
    torch.set_num_threads(1)
    old = Denoiser.from_pretrained(args.checkpoint)
    classes = old.config.lattices
    unknown = sorted(set(classes) - set(lattices.LATTICES) - set(lattices.COMPOUNDS) - set(POLYMORPHS))
    if unknown or not classes:
        raise CheckpointError(f"{old.name}: cannot draw {', '.join(unknown) or 'lattices, it names none'}")

    def shown(numbers: range) -> Sequence[int]:
        return track(numbers, "structures", console=console, disable=not console.is_terminal)  # type: ignore[return-value]

    n_held_out = max(args.structures // 5, 1)
    reach = reach_of(classes) if args.reach is None else args.reach
    more = (shown, reach, args.workers)
    training = examples(old, classes, args.structures - n_held_out, 2 * args.seed, *more)
    held_out = examples(old, classes, n_held_out, 2 * args.seed + 1, *more)
    head = fit(VerdictConfig(classes, reach=reach), training, held_out, args.seed)
    tested = joined(examples(old, classes, n_held_out, 2_000_003 + args.seed, *more))
    with torch.no_grad():
        verdict = head.verdict(tested.features, tested.average)
    chosen, true = verdict.probabilities.argmax(1), tested.truth.numpy()
    right = chosen == true
    rows = [
        {
            "class": name,
            "atoms": int((true == k).sum()),
            "right": float(right[true == k].mean()) if (true == k).any() else None,
        }
        for k, name in enumerate(head.classes)
    ]
    error = calibration_error(verdict.confidence, right)
    new = replace(old.config, version=args.version or old.config.version, verdict=head.config)
    weights = Denoiser(old.config, old.network, head=head).weights()
    save(args.out, new.to_dict(), weights)
    # What a head cannot change stays as it was measured; all else, speed for one, is measured anew.
    sections = old.metrics.get("sections", {})
    trained = "training" in sections
    for section in OF_THE_NETWORK & set(sections):
        carry(args.out, section, sections[section])
    record(
        args.out,
        "verdict",
        rows,
        command=(
            f"python -m training.verdict build/{old.name} -o build/{old.name}-judged "
            f"--structures {args.structures} --seed {args.seed}"
            f"{'' if args.reach is None else f' --reach {args.reach}'}"
        ),
        seed=args.seed,
        extra={
            "of": "noised and denoised structures of another seed",
            "right": float(right.mean()),
            "expected_calibration_error": error,
            "temperature": head.config.temperature,
        },
    )
    if trained:  # what a first card is made from
        write_first_card(args.out)
    for row in rows:
        share = "none drawn" if row["right"] is None else f"{row['right']:.2%} of {row['atoms']} atoms right"
        console.print(f"{row['class']}: {share}", highlight=False)
    console.print(
        f"{right.mean():.3%} right, expected calibration error {error:.4f}, temperature "
        f"{head.config.temperature:g}; wrote {args.out}",
        highlight=False,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
