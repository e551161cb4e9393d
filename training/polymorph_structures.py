"""Structures of silica and ice to train on: perfect crystals, cut, joined and in part melted, from geometry.

As `training.lattices`, whose units these are too: lengths in cube roots of the atomic volume.  What is
different is that sites are of several kinds, so that no classifier can say afterwards which atom is still in
its crystal.  It is known while a structure is made: an atom counts for its crystal as long as all that was
around it in the crystal still is, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt
import vesin
from ase import Atoms
from ase.build import make_supercell

from training.lattices import Sample, rotation, species_of, strain
from training.polymorphs import ICE, PARENTS, SILICA, variant
from training.rigid_units import RigidUnits
from training.turns import turns
from zoo.analysis.crystals import CUBIC_DIAMOND, HEXAGONAL_DIAMOND, structure_types

Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
Names = npt.NDArray[np.str_]

#: How often `draw` takes each kind of structure.
MIX: dict[str, float] = {
    "bulk": 0.48, "vacancies": 0.06, "slab": 0.10, "cluster": 0.04, "grains": 0.08, "half": 0.12,
    "melt": 0.12,
}  # fmt: skip
#: An atom's surroundings: the first shells of all of these crystals.
_AROUND = 1.35
#: How many variants of each crystal are drawn from.
_VARIANTS = 24
#: Least distances of pairs in a melt, by how many of the two are silicon, in length scales: O-O, Si-O, Si-Si.
_SILICA_APART = (1.05, 0.66, 1.20)
_SILICON = 14
#: And of like atoms in a network of tetrahedra.
_LIKE_APART = 1.05
#: From silicon to silicon across an oxygen, in bonds.
_BENT = 1.92
#: How much of the displacements patterns of turns make up, in phases that are turned anyway and in others.
_TURNED, _NOT_TURNED = (0.02, 0.3), (0.1, 0.9)


@cache
def _unit(name: str, index: int) -> Atoms:
    """A variant of the orthogonal cell with one Å³ per atom; the first one is as published."""
    atoms = variant(name, np.random.default_rng(index) if index else None)
    if name in SILICA:
        atoms.set_array("modes", turns(name) * (len(atoms) / atoms.cell.volume) ** (1 / 3))
    atoms.set_cell(atoms.cell[:] * (len(atoms) / atoms.cell.volume) ** (1 / 3), scale_atoms=True)
    if name in ICE:
        atoms.numbers[:] = 0  # one species, as in lattices of elements
    return atoms


@cache
def spacing_of(name: str) -> float:
    """The nearest-neighbour distance of the published crystal."""
    atoms = _unit(name, 0)
    search = vesin.NeighborList(cutoff=1.5, full_list=False)
    return float(search.compute(atoms.positions, atoms.cell[:], True, "d")[0].min())


@cache
def way_to_parent(name: str) -> float:
    """How far the sites of an alpha phase are from those of its beta phase: root mean square per component.

    In nearest-neighbour distances, as published; infinity for a crystal that is no alpha phase.
    """
    if name not in PARENTS:
        return float("inf")
    return float(np.sqrt(np.mean(_unit(name, 0).arrays["modes"] ** 2))) / spacing_of(name)


def crystal_block(name: str, rng: np.random.Generator, n_atoms: float, stretch: Sequence[float]) -> Atoms:
    """A block of about ``n_atoms``, ``stretch`` times as long along each axis as a cube, nowhere thin.

    The axes of the crystal are along those of the block in any order, the last one is that of surfaces.
    """
    unit = _unit(name, int(rng.integers(_VARIANTS)))
    turned = make_supercell(unit, np.roll(np.eye(3, dtype=int), int(rng.integers(3)), axis=0))
    side = n_atoms ** (1 / 3) * np.exp(rng.normal(0, 0.12, 3)) * stretch
    lengths = turned.cell.lengths()
    block = turned.repeat(np.maximum(np.round(side / lengths), np.ceil(3.6 / lengths)).astype(int))
    # All cells here are orthogonal: as axes of x, y and z.
    out = Atoms(
        numbers=block.numbers,
        positions=block.get_scaled_positions() * block.cell.lengths(),
        cell=block.cell.lengths(),
        pbc=True,
    )
    if "modes" in block.arrays:
        out.set_array("modes", block.arrays["modes"][..., np.abs(block.cell[:]).argmax(1)])
    return out


def surroundings(positions: Array, cell: Array, pbc: npt.ArrayLike) -> list[frozenset[tuple[int, ...]]]:
    """Who is around each atom, with the image it is in."""
    i, j, s = vesin.NeighborList(cutoff=_AROUND, full_list=True).compute(
        positions, np.asarray(cell), list(np.broadcast_to(np.asarray(pbc, dtype=bool), 3)), "ijS"
    )
    around: list[set[tuple[int, ...]]] = [set() for _ in positions]
    for a, b, shift in zip(i.tolist(), j.tolist(), s.tolist(), strict=True):
        around[a].add((b, *map(int, shift)))
    return [frozenset(each) for each in around]


def _strained(block: Atoms, rng: np.random.Generator) -> tuple[Array, Array]:
    f = strain(rng)
    return block.positions @ f, block.cell[:] @ f


def _sample(
    name: str, block: Atoms, positions: Array, cell: Array, pbc: BoolArray, within: BoolArray, *, calm: bool
) -> Sample:
    names = np.where(within, name, "")
    return Sample(
        positions, cell, pbc, spacing_of(name), species_of(block), calm=calm, names=names,
        modes=block.arrays.get("modes"),
    )  # fmt: skip


def bulk_sample(name: str, rng: np.random.Generator, n_atoms: float | None = None) -> Sample:
    """A whole crystal; larger ones of silica, since in small cells all tetrahedra turn together too often."""
    if n_atoms is None:
        n_atoms = rng.uniform(190, 450) if name in SILICA else 190
    block = crystal_block(name, rng, n_atoms, (1, 1, 1))
    positions, cell = _strained(block, rng)
    everywhere = np.ones(len(block), dtype=bool)
    return _sample(name, block, positions, cell, np.ones(3, dtype=bool), everywhere, calm=False)


def stacked_sample(rng: np.random.Generator) -> Sample:
    """Ice I of any stacking: layers of hexagonal and of cubic ice in one crystal."""
    n = int(rng.integers(6, 10))
    often = rng.uniform(0.2, 0.8)
    while (turns := rng.choice([1, -1], n, p=(often, 1 - often))).sum() % 3:
        pass  # the stack must close across the boundary
    height, flat = float(np.sqrt(2 / 3)), np.array([[0, 0, 0], [0.5, np.sqrt(3) / 2, 0]])
    double = np.concatenate([flat, flat + [0, 0, 0.75 * height]])
    across = np.concatenate([[0], np.cumsum(turns)[:-1]]) / np.sqrt(3)
    positions = np.concatenate([double + [0, y, k * height] for k, y in enumerate(across)])
    block = Atoms(f"X{len(positions)}", positions, cell=[1, np.sqrt(3), n * height], pbc=True)
    block.wrap()
    block.set_cell(block.cell[:] * (len(block) / block.cell.volume) ** (1 / 3), scale_atoms=True)
    block = block.repeat((*np.ceil(4.0 / block.cell.lengths()[:2]).astype(int), 1))
    kinds = structure_types(Atoms(positions=3 * block.positions, cell=3 * block.cell[:], pbc=True))
    names = np.full(len(block), "", dtype="<U32")
    names[kinds == HEXAGONAL_DIAMOND] = "ice Ih"
    names[kinds == CUBIC_DIAMOND] = "ice Ic"
    positions, cell = _strained(block, rng)
    return Sample(
        positions, cell, np.ones(3, dtype=bool), spacing_of("ice Ih"), species_of(block), names=names
    )


def vacancy_sample(name: str, rng: np.random.Generator) -> Sample:
    """Single atoms missing, or all within a sphere."""
    block = crystal_block(name, rng, 230, (1, 1, 1))
    around = surroundings(block.positions, block.cell[:], True)
    if rng.random() < 0.5:
        keep = rng.random(len(block)) > rng.uniform(0.004, 0.03)
    else:
        centre = block.positions[rng.integers(len(block))]
        lengths = block.cell.lengths()
        away = block.positions - centre
        away -= np.round(away / lengths) * lengths
        keep = np.linalg.norm(away, axis=1) > rng.uniform(0.8, 2.0)
    within = np.array([all(keep[b] for b, *_ in each) for each in around])
    positions, cell = _strained(block, rng)
    kept = block[keep]
    return _sample(
        name, kept, positions[keep], cell, np.ones(3, dtype=bool), within[keep], calm=False
    )  # fmt: skip


def slab_sample(name: str, rng: np.random.Generator) -> Sample:
    """Free surfaces across the last axis, at any height; at times across a second one too."""
    block = crystal_block(name, rng, 230, (1, 1, 1))
    block.positions += rng.random(3) * block.cell.lengths()
    block.wrap()
    pbc = np.array([True, True, False])
    if rng.random() < 0.25:
        pbc[rng.integers(2)] = False
    whole = surroundings(block.positions, block.cell[:], True)
    cut = surroundings(block.positions, block.cell[:], pbc)
    within = np.array([a == b for a, b in zip(whole, cut, strict=True)])
    positions, cell = _strained(block, rng)
    return _sample(name, block, positions, cell, pbc, within, calm=False)


def _ball(name: str, rng: np.random.Generator, radius: float) -> tuple[Array, IntArray]:
    """A large turned crystal around the origin: positions (n, 3) and species."""
    unit = _unit(name, int(rng.integers(_VARIANTS)))
    block = unit.repeat(np.ceil(2 * (radius + 2.5) / unit.cell.lengths()).astype(int))
    positions = block.positions - block.positions.mean(0) + rng.normal(0, 0.5, 3)
    positions = positions @ rotation(rng) @ strain(rng, 0.01, 0.02)
    return positions, species_of(block)


def cluster_sample(name: str, rng: np.random.Generator, radius: float = 3.6) -> Sample:
    """A ball of one grain in vacuum."""
    positions, species = _ball(name, rng, radius)
    return _cut(((name, positions, species, np.linalg.norm(positions, axis=1) < radius),), rng)


def grains_sample(names: Sequence[str], rng: np.random.Generator, radius: float = 3.7) -> Sample:
    """A ball of two grains that meet in a plane, of the same crystal or of two."""
    parts = []
    for name, side in zip(names, (1, -1), strict=True):
        positions, species = _ball(name, rng, radius)
        inside = (np.linalg.norm(positions, axis=1) < radius) & (side * positions[:, 2] > 0)
        parts.append((name, positions, species, inside))
    return _cut(parts, rng)


def _cut(parts: Sequence[tuple[str, Array, IntArray, BoolArray]], rng: np.random.Generator) -> Sample:
    """What is inside of each of some crystals, without atoms that are too close to one another."""
    where, species, names = [], [], []
    for name, positions, kinds, inside in parts:
        around = surroundings(positions, np.eye(3), False)
        complete = np.array([all(inside[b] for b, *_ in each) for each in around])
        where.append(positions[inside])
        species.append(kinds[inside])
        names.append(np.where(complete[inside], name, ""))
    positions, kinds, called = np.concatenate(where), np.concatenate(species), np.concatenate(names)
    spacing = min(spacing_of(name) for name, *_ in parts)
    i, j = vesin.NeighborList(cutoff=rng.uniform(0.7, 0.9) * spacing, full_list=False).compute(
        positions, np.eye(3), False, "ij"
    )
    keep = np.ones(len(positions), dtype=bool)
    for a, b in zip(i, j, strict=True):
        if keep[a] and keep[b]:
            keep[b] = False
            called[a] = ""
    # An atom near the plane has strangers around it.
    if len(parts) == 2:
        first = np.arange(len(positions)) < len(where[0])
        i, j = vesin.NeighborList(cutoff=_AROUND - 0.25, full_list=True).compute(
            positions, np.eye(3), False, "ij"
        )
        strange = first[i.astype(np.int64)] != first[j.astype(np.int64)]
        called[i.astype(np.int64)[strange]] = ""
    return Sample(
        positions[keep], np.eye(3), np.zeros(3, dtype=bool), spacing, kinds[keep], calm=True,
        names=called[keep],
    )  # fmt: skip


def half_sample(name: str, rng: np.random.Generator) -> Sample:
    """A crystal of which a part has melted, beside what is left of it."""
    block = crystal_block(name, rng, 330, (0.85, 0.85, 1.6))
    length = block.cell.lengths()[2]
    start, share = rng.random(), rng.uniform(0.3, 0.7)
    melted = (block.positions[:, 2] / length - start) % 1 < share
    around = surroundings(block.positions, block.cell[:], True)
    within = ~melted & np.array([not any(melted[b] for b, *_ in each) for each in around])
    positions, cell = _strained(block, rng)
    positions = _molten(positions, cell, name, species_of(block), melted, rng)
    if "modes" in block.arrays:
        block.arrays["modes"][melted] = 0
    return _sample(name, block, positions, cell, np.ones(3, dtype=bool), within, calm=True)


def melt_sample(name: str, rng: np.random.Generator, n_atoms: float = 190) -> Sample:
    """A crystal displaced until nobody can tell its sites, atoms then kept apart as in a melt."""
    block = crystal_block(name, rng, n_atoms, (1, 1, 1))
    positions, cell = _strained(block, rng)
    every = np.ones(len(block), dtype=bool)
    positions = _molten(positions, cell, name, species_of(block), every, rng)
    sample = _sample(name, block, positions, cell, np.ones(3, dtype=bool), ~every, calm=False)
    return replace(sample, ordered=False, modes=None)


def network_sample(name: str, rng: np.random.Generator) -> Sample:
    """A melt as of water or silica: random, but most atoms have four neighbours, about as in a tetrahedron.

    In silica these are the silicons; oxygens are drawn to two of them.
    """
    sample = melt_sample(name, rng, 220)
    silica = name in SILICA
    centres = sample.species == _SILICON if silica else np.ones(len(sample.positions), dtype=bool)
    d = spacing_of(name) * rng.uniform(0.95, 1.02)
    positions = sample.positions.copy()
    search = vesin.NeighborList(cutoff=1.5, full_list=True)
    first, second = np.triu_indices(4, 1)
    for _ in range(int(rng.integers(10, 60) if silica else rng.integers(3, 40))):
        i, j, way, r = search.compute(positions, sample.cell, True, "ijDd")
        i, j = i.astype(np.int64), j.astype(np.int64)
        if silica:  # bonds are between unlike atoms
            unlike = sample.species[i] != sample.species[j]
            rest = ~unlike & (r < _LIKE_APART)
            alike = (i[rest], j[rest], way[rest], _LIKE_APART)
            i, j, way, r = i[unlike], j[unlike], way[unlike], r[unlike]
        order = np.lexsort((r, i))
        i, j, way = i[order], j[order], way[order]
        degree = np.bincount(i, minlength=len(positions))
        starts = np.cumsum(degree) - degree
        full = np.flatnonzero((degree >= 4) & centres)
        nearest = starts[full, None] + np.arange(4)
        moved = np.zeros_like(positions)
        bonds = [(np.repeat(full, 4), j[nearest].ravel(), way[nearest].reshape(-1, 3), d)]
        a, b = nearest[:, first], nearest[:, second]  # edges of the tetrahedron around each atom
        edge = (way[b] - way[a]).reshape(-1, 3)
        bonds.append((j[a].ravel(), j[b].ravel(), edge, d * float(np.sqrt(8 / 3))))
        near = r[order] < d  # and nobody comes closer than a neighbour
        bonds.append((i[near], j[near], way[near], d))
        if silica:
            two = np.flatnonzero((degree >= 2) & ~centres)
            pairs = (starts[two, None] + np.arange(2)).ravel()
            bonds += [(np.repeat(two, 2), j[pairs], way[pairs], d), alike]
            a, b = pairs[::2], pairs[1::2]  # the two silicons, for an angle of about 147 degrees
            bonds.append((j[a], j[b], way[b] - way[a], _BENT * d))
        for one, other, between, wanted in bonds:
            length = np.maximum(np.linalg.norm(between, axis=1, keepdims=True), 1e-3)
            pull = 0.1 * (length - wanted) * between / length
            np.add.at(moved, one, pull)
            np.add.at(moved, other, -pull)
        size = np.linalg.norm(moved, axis=1, keepdims=True)
        positions += moved * np.minimum(1, 0.1 / np.maximum(size, 1e-9))
    return replace(sample, positions=positions)


def _molten(
    positions: Array, cell: Array, name: str, species: IntArray, moving: BoolArray, rng: np.random.Generator
) -> Array:
    """Displace the ``moving`` atoms at random, then let springs keep all pairs apart."""
    out = positions.copy()
    out[moving] += rng.normal(0, rng.uniform(0.3, 0.6) * spacing_of(name), (int(moving.sum()), 3))
    if name in SILICA:
        out[moving] += rng.normal(0, 0.15, (int(moving.sum()), 3))
        apart, pull = np.array(_SILICA_APART) * rng.uniform(0.92, 1.02), rng.uniform(1.0, 1.25)
    else:
        apart, pull = np.full(3, spacing_of(name) * rng.uniform(0.85, 1.0)), rng.uniform(1.0, 1.15)
    silicon = (species == _SILICON).astype(np.int64)
    search = vesin.NeighborList(cutoff=float(apart.max()) * pull, full_list=True)
    for _ in range(int(rng.integers(8, 40))):
        i, j, d, r = search.compute(out, cell, True, "ijDd")
        i, j = i.astype(np.int64), j.astype(np.int64)
        wanted = apart[silicon[i] + silicon[j]]
        excess = wanted - r
        # As springs that push; pairs just beyond draw together, silicon and oxygen more than others.
        bonded = (silicon[i] + silicon[j] == 1) | (name not in SILICA)
        draws = np.where(bonded & (r < wanted * pull), excess / 6, 0.0)
        force = np.where(excess > 0, 0.5 * excess, draws) / np.maximum(r, 1e-3)
        moved = np.zeros_like(out)
        np.add.at(moved, i, -force[:, None] * d)
        size = np.linalg.norm(moved, axis=1, keepdims=True)
        moved *= 0.8 * np.minimum(1, 0.1 / np.maximum(size, 1e-9))
        out[moving] += moved[moving]
    return out


def draw(
    rng: np.random.Generator, among: Sequence[str], mix: Mapping[str, float] = MIX
) -> tuple[str, Sample]:
    """One training structure and the crystal that it is of."""
    name, sample = _draw(rng, among, mix)
    if name in SILICA:
        units = RigidUnits(
            sample.positions,
            sample.cell,
            sample.pbc,
            sample.species,
            sample.modes,
            _TURNED if name in PARENTS else _NOT_TURNED,
        )
        sample = replace(sample, vibrates=units)
    return name, sample


def _draw(rng: np.random.Generator, among: Sequence[str], mix: Mapping[str, float]) -> tuple[str, Sample]:
    name = among[int(rng.integers(len(among)))]
    kinds = list(mix)
    edges = np.cumsum(list(mix.values())) / sum(mix.values())
    kind = kinds[min(int(np.searchsorted(edges, rng.random(), side="right")), len(kinds) - 1)]
    if kind == "bulk":
        if name in ("ice Ih", "ice Ic") and rng.random() < 0.3:
            return name, stacked_sample(rng)
        return name, bulk_sample(name, rng)
    if kind == "grains":
        other = name if rng.random() < 0.6 else among[int(rng.integers(len(among)))]
        return name, grains_sample((name, other), rng)
    makers = {
        "vacancies": vacancy_sample, "slab": slab_sample, "cluster": cluster_sample, "half": half_sample,
        "melt": melt_sample, "network": network_sample,
    }  # fmt: skip
    return name, makers[kind](name, rng)


#: Melts of silica are networks, as often as not.
SILICA_MIX: dict[str, float] = {**MIX, "melt": 0.06, "network": 0.06}


def draw_silica(rng: np.random.Generator) -> Sample:
    """One training structure of silica."""
    return draw(rng, tuple(SILICA), SILICA_MIX)[1]


def draw_ice(rng: np.random.Generator) -> Sample:
    """One training structure of ice, oxygens alone."""
    return draw(rng, tuple(ICE))[1]
