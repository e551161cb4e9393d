"""What is measured: one function per case, each yields rows with a verdict.

A row has ``case``, ``system``, ``noise`` (standard deviation per coordinate in nearest-neighbour
distances, "nn"), ``metric``, ``value``, ``threshold``, ``ok``, and more where useful; ``raw`` is the
same measure without denoising.  Distances are in nn unless the name says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from ase import Atoms
from scipy.spatial import cKDTree

from training.benchmarks.defects import build
from training.benchmarks.defects.build import LATTICES, Lattice, noised
from training.benchmarks.defects.relax import relaxed
from zoo.analysis import crystals
from zoo.analysis.crystals import FloatArray, IntArray, adaptive_cna, displacements

Row = dict[str, Any]

NOISE = (0.0, 0.05, 0.075, 0.10)
STEPS = (1, 2, 4, 8, 16, 32)
STILL = 0.1  # nn; how far a noise-free surface or boundary may move
DROP = 0.001  # of the agreement between step counts that still counts as "no worse"
# nn; far below what a classifier notices.  Not stricter, because relaxed surfaces and boundaries are
# strained, and a denoiser takes a little of the strain for vibration.
RISE = 0.01


class Denoises(Protocol):
    """The part of `zoo.Denoiser` that the benchmark needs."""

    def denoise(self, atoms: Atoms, steps: int = 10) -> Atoms: ...


@dataclass(frozen=True)
class Settings:
    """What is the same for all cases: step count, noise samples per row, noise levels (nn)."""

    steps: int = 10
    seeds: int = 3
    noise: tuple[float, ...] = NOISE


Case = Callable[[Denoises, Settings], Iterator[Row]]


def _samples(settings: Settings) -> Iterator[tuple[float, int]]:
    for sigma in settings.noise:
        for seed in range(settings.seeds if sigma else 1):  # without noise all seeds are the same
            yield sigma, seed


def _row(
    case: str, system: str, noise: float, metric: str, value: Any, threshold: Any, ok: Any, **more: Any
) -> Row:
    row = {"case": case, "system": system, "noise": noise, "metric": metric}
    return row | {"value": value, "threshold": threshold, "ok": bool(ok)} | more


# --- point defects -------------------------------------------------------------------------


def vacancy(denoiser: Denoises, settings: Settings) -> Iterator[Row]:
    """One relaxed vacancy stays exactly one vacancy (Wigner-Seitz against the perfect lattice)."""
    for lattice in LATTICES.values():
        yield from _point_defect("vacancy", build.vacancy(lattice), lattice, (1, 0), denoiser, settings)


def interstitial(denoiser: Denoises, settings: Settings) -> Iterator[Row]:
    """One relaxed self-interstitial stays exactly one, and no vacancy appears."""
    for lattice in LATTICES.values():
        yield from _point_defect(
            "interstitial", build.interstitial(lattice), lattice, (0, 1), denoiser, settings
        )


def _point_defect(
    case: str,
    start: Atoms,
    lattice: Lattice,
    expected: tuple[int, int],
    denoiser: Denoises,
    settings: Settings,
) -> Iterator[Row]:
    perfect = lattice.perfect()
    clean, _ = relaxed(start)
    for sigma, seed in _samples(settings):
        noisy = noised(clean, sigma * lattice.nearest, seed)
        out = denoiser.denoise(noisy, steps=settings.steps)
        counts = crystals.wigner_seitz(out, perfect)
        yield _row(
            case,
            lattice.name,
            sigma,
            "vacancies, interstitials",
            list(counts),
            list(expected),
            counts == expected,
            seed=seed,
            raw=list(crystals.wigner_seitz(noisy, perfect)),
            defect_moved=_defect_distance(clean, out, perfect) / lattice.nearest,
        )


def _defect_distance(before: Atoms, after: Atoms, perfect: Atoms) -> float:
    """Distance (Å) between the first wrongly occupied site before and the nearest one after."""
    box = perfect.cell.lengths()
    tree = cKDTree(perfect.positions % box, boxsize=box)
    sites = []
    for atoms in (before, after):
        _, index = tree.query(atoms.positions % box)
        sites.append(perfect.positions[np.bincount(index, minlength=len(perfect)) != 1])
    if not len(sites[1]):
        return float(np.linalg.norm(box))
    difference = sites[1] - sites[0][0]
    difference -= np.round(difference / box) * box
    return float(np.linalg.norm(difference, axis=1).min())


# --- planar defects and dislocations -------------------------------------------------------


def stacking_fault(denoiser: Denoises, settings: Settings) -> Iterator[Row]:
    """An intrinsic stacking fault keeps its two hcp planes, everything else stays fcc."""
    yield from _planes("stacking fault", build.stacking_fault(LATTICES["fcc"]), denoiser, settings)


def twin(denoiser: Denoises, settings: Settings) -> Iterator[Row]:
    """Twin boundaries keep their single hcp planes, everything else stays fcc."""
    yield from _planes("twin", build.twin(LATTICES["fcc"]), denoiser, settings)


def _planes(case: str, clean: Atoms, denoiser: Denoises, settings: Settings) -> Iterator[Row]:
    lattice = LATTICES["fcc"]
    expected = adaptive_cna(clean)
    for sigma, seed in _samples(settings):
        noisy = noised(clean, sigma * lattice.nearest, seed)
        out = denoiser.denoise(noisy, steps=settings.steps)
        agreement = float((adaptive_cna(out) == expected).mean())
        yield _row(
            case,
            "fcc",
            sigma,
            "a-CNA agreement",
            agreement,
            1.0,
            agreement == 1.0,
            seed=seed,
            raw=float((adaptive_cna(noisy) == expected).mean()),
        )


def edge_dislocation(denoiser: Denoises, settings: Settings) -> Iterator[Row]:
    """A relaxed edge dislocation keeps its Burgers vector (DXA, sum over the partials)."""
    for lattice in LATTICES.values():
        edge = build.edge_dislocation(lattice)
        clean, _ = relaxed(edge.atoms)
        reference, lines_clean = burgers(clean, lattice)
        for sigma, seed in _samples(settings):
            noisy = noised(clean, sigma * lattice.nearest, seed)
            out = denoiser.denoise(noisy, steps=settings.steps)
            found, lines = burgers(out, lattice)
            error = float(np.linalg.norm(found - reference) / edge.burgers)
            raw, _ = burgers(noisy, lattice)
            yield _row(
                "edge dislocation",
                lattice.name,
                sigma,
                "error of the Burgers vector / b",
                error,
                0.02,
                error < 0.02,
                seed=seed,
                lines=lines,
                lines_noise_free=lines_clean,
                raw=float(np.linalg.norm(raw - reference) / edge.burgers),
            )


def burgers(atoms: Atoms, lattice: Lattice) -> tuple[FloatArray, int]:
    """Net Burgers vector (Å, made to point along +x) through the z plane, and the number of lines."""
    lines = crystals.dislocations(atoms, lattice.name)
    total = crystals.net_burgers_vector(lines, 2, float(atoms.cell[2, 2]))
    # Which end is the start is DXA's choice, the same for all lines of a structure.
    return (-total if total[0] < 0 else total), len(lines)


# --- surfaces and boundaries ---------------------------------------------------------------


def open_structures() -> Iterator[tuple[str, Lattice, Atoms]]:
    """Name, lattice and noise-free structure of every surface and boundary of the benchmark."""
    faces = (("fcc", "100"), ("fcc", "111"), ("bcc", "110"), ("hcp", "0001"))
    for name, face in faces:
        lattice = LATTICES[name]
        for vacuum, suffix in ((None, "open z"), (10.0, "vacuum, pbc")):
            ideal = build.slab(lattice, face, vacuum)
            yield f"{name} ({face}) slab, ideal, {suffix}", lattice, ideal
            yield f"{name} ({face}) slab, relaxed, {suffix}", lattice, relaxed(ideal)[0]
    for lattice in LATTICES.values():
        yield f"{lattice.name} void, ideal", lattice, build.void(lattice)
        yield f"{lattice.name} void, relaxed", lattice, relaxed(build.void(lattice))[0]
        yield f"{lattice.name} cluster, relaxed", lattice, relaxed(build.cluster(lattice))[0]
        yield f"{lattice.name} wire, relaxed", lattice, relaxed(build.wire(lattice))[0]
    fcc = LATTICES["fcc"]
    yield "fcc Sigma 5 (310) boundaries, relaxed", fcc, relaxed(build.grain_boundary(fcc))[0]
    yield "fcc polycrystal, annealed", fcc, relaxed(build.polycrystal(fcc), anneal=(600.0, 3.0))[0]


def still(denoiser: Denoises, settings: Settings) -> Iterator[Row]:
    """A noise-free surface, void or boundary hardly moves."""
    for name, lattice, clean in open_structures():
        out = denoiser.denoise(clean, steps=settings.steps)
        moved = np.linalg.norm(displacements(clean, out), axis=1) / lattice.nearest
        expected = adaptive_cna(clean)
        yield _row(
            "still",
            name,
            0.0,
            "largest displacement",
            float(moved.max()),
            STILL,
            moved.max() < STILL,
            mean=float(moved.mean()),
            above_threshold=int((moved >= STILL).sum()),
            atoms=len(clean),
            agreement=float((adaptive_cna(out) == expected).mean()),
        )


def more_steps(denoiser: Denoises, settings: Settings) -> Iterator[Row]:
    """With noise: agreement with the noise-free structure against the number of steps.

    Rows per structure and noise: the largest drop of the a-CNA agreement and the largest rise
    of the RMSD from one step count to a higher one, and the agreement at the highest step count,
    which must not be below that of the noisy structure; and how far (nn) from its noise-free place
    the furthest of the atoms ends that had the right label before and lost it, which tells an atom
    that went astray from a label that hangs by a hair.  ``largest`` is the distance (nn) of the atom
    that ends furthest from its noise-free place.
    """
    for name, lattice, clean in open_structures():
        # Bulk-terminated slabs and voids are the easier ones; vacuum instead of an open boundary
        # makes no difference, which "mixed pbc" shows.
        if "ideal" in name or "vacuum" in name:
            continue
        expected = adaptive_cna(clean)
        for sigma in settings.noise:
            noisy = noised(clean, sigma * lattice.nearest, 0)
            agreement, rmsd, far = [], [], []
            ever = np.zeros(len(clean), dtype=bool)
            for out in _by_steps(denoiser, noisy):
                right = adaptive_cna(out) == expected
                ever |= right
                agreement.append(float(right.mean()))
                distance = _distances(clean, out) / lattice.nearest
                rmsd.append(float(np.sqrt((distance**2).mean())))
                far.append(float(distance.max()))
            curve = {"steps": list(STEPS), "atoms": len(clean)}
            raw = float((adaptive_cna(noisy) == expected).mean())
            raw_rmsd = float(np.sqrt((_distances(clean, noisy) ** 2).mean()) / lattice.nearest)
            drop = float(np.max(np.maximum.accumulate(agreement) - agreement))
            rise = float(np.max(rmsd - np.minimum.accumulate(rmsd)))
            final = agreement[-1]
            row = partial(_row, "more steps", name, sigma)
            yield row(
                "drop of a-CNA agreement", drop, DROP, drop <= DROP, agreement=agreement, raw=raw, **curve
            )
            yield row("a-CNA agreement", final, raw, final >= raw)
            lost = distance[ever & ~right]
            astray = float(lost.max()) if len(lost) else 0.0
            yield row("way off of lost labels", astray, STILL, astray < STILL, lost=len(lost), **curve)
            if sigma:  # without noise any motion is a rise from zero: that is the case "still"
                yield row(
                    "rise of RMSD", rise, RISE, rise <= RISE, rmsd=rmsd, largest=far, raw=raw_rmsd, **curve
                )


def _by_steps(denoiser: Denoises, noisy: Atoms) -> Iterator[Atoms]:
    """Results for all of `STEPS`; those between convergence and the last are not computed again."""
    done: Atoms | None = None
    for steps in STEPS:
        if done is None or steps == STEPS[-1]:
            out = denoiser.denoise(noisy, steps=steps)
        if done is None and out.info.get("denoise_converged"):
            done = out
        yield out


def _distances(a: Atoms, b: Atoms) -> FloatArray:
    """Distance (n_atoms,) in Å of each atom from its place in ``a``, without the common translation."""
    moved = displacements(a, b)
    distances: FloatArray = np.linalg.norm(moved - moved.mean(axis=0), axis=1)
    return distances


# --- scale, cells, boundary conditions -----------------------------------------------------


def scale(denoiser: Denoises, settings: Settings) -> Iterator[Row]:
    """Crystals whose lattice is 20 % too wide or 10 % too narrow are still recognised."""
    for lattice in LATTICES.values():
        for factor in (0.9, 1.2):
            for sigma, seed in _samples(settings):
                clean = lattice.perfect()
                clean.set_cell(clean.cell.array * factor, scale_atoms=True)
                noisy = noised(clean, sigma * factor * lattice.nearest, seed)
                value, raw = (
                    float((adaptive_cna(atoms) == crystals.STRUCTURES.index(lattice.name)).mean())
                    for atoms in (denoiser.denoise(noisy, steps=settings.steps), noisy)
                )
                yield _row(
                    "scale",
                    f"{lattice.name} x {factor}",
                    sigma,
                    "correct labels",
                    value,
                    1.0,
                    value == 1.0,
                    seed=seed,
                    raw=raw,
                )


def small_cells() -> Iterator[tuple[str, Lattice, Atoms, tuple[int, int, int]]]:
    """Name, lattice, cell of 2 to 4 atoms (oblique where possible), and how often to repeat it."""
    skew = np.array([[1, 0, 0], [1, 1, 0], [0, -1, 1]])  # another basis of the same lattice
    for lattice in LATTICES.values():
        primitive = lattice.primitive()
        if len(primitive) == 1:  # a single atom has nothing to vibrate against
            primitive = primitive.repeat((2, 1, 1))
        yield f"{lattice.name} primitive", lattice, primitive, (5, 6, 6)
        conventional = lattice.unit_cell()
        yield f"{lattice.name} orthogonal", lattice, conventional, (4, 4, 4)
        skewed = conventional.copy()
        skewed.set_cell(skew @ conventional.cell.array)
        yield f"{lattice.name} skewed", lattice, skewed, (4, 4, 4)


def cells(denoiser: Denoises, settings: Settings) -> Iterator[Row]:
    """Denoising a cell of a few atoms and repeating it is the same as denoising the repeated cell."""
    for name, lattice, cell, repeat in small_cells():
        for sigma in settings.noise:
            noisy = noised(cell, sigma * lattice.nearest, 1)
            small = denoiser.denoise(noisy, steps=settings.steps).repeat(repeat)
            large = denoiser.denoise(noisy.repeat(repeat), steps=settings.steps)
            # The step in which a run stops may differ by rounding: compare shape, not bits.
            difference = float(np.linalg.norm(displacements(small, large), axis=1).max() / lattice.nearest)
            labels: IntArray = adaptive_cna(small)
            correct = float((labels == crystals.STRUCTURES.index(lattice.name)).mean())
            yield _row(
                "small cells",
                name,
                sigma,
                "difference to the supercell",
                difference,
                1e-3,
                difference < 1e-3,
                atoms=len(cell),
                correct=correct,
            )


def mixed_pbc(denoiser: Denoises, settings: Settings) -> Iterator[Row]:
    """What the boundary conditions are must not matter where they make no physical difference.

    A slab between open boundaries and the same slab with vacuum and pbc give the same result.
    """
    for name, face in (("fcc", "100"), ("fcc", "111"), ("bcc", "110"), ("hcp", "0001")):
        lattice = LATTICES[name]
        for sigma in settings.noise:
            results = []
            for vacuum in (None, 15.0):
                atoms = noised(build.slab(lattice, face, vacuum), sigma * lattice.nearest, 2)
                results.append(denoiser.denoise(atoms, steps=settings.steps).positions - atoms.positions)
            difference = float(np.linalg.norm(results[0] - results[1], axis=1).max() / lattice.nearest)
            yield _row(
                "mixed pbc",
                f"{name} ({face}) slab",
                sigma,
                "difference of open and vacuum",
                difference,
                1e-3,
                difference < 1e-3,
            )


CASES: dict[str, Case] = {
    "vacancy": vacancy,
    "interstitial": interstitial,
    "stacking-fault": stacking_fault,
    "twin": twin,
    "edge-dislocation": edge_dislocation,
    "still": still,
    "more-steps": more_steps,
    "scale": scale,
    "small-cells": cells,
    "mixed-pbc": mixed_pbc,
}
