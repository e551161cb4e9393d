"""Vacancies and interstitials without a reference lattice: the crystal around says what should be there.

Wigner–Seitz analysis needs the perfect lattice in the frame of the snapshot, which nobody has of a
strained, rotated or polycrystalline one.  Here every intact atom near a defect expects around itself what
another intact atom near it, on the same sublattice, has around it, out to a few shells.  A place where more
than half of those who would see it expect an atom is a *site*.  Each site takes the nearest atom; sites that
get none are *empty*, and atoms that get no site are *off site*.  Empty sites and off-site atoms next to each
other are one defect: as many vacancies as there are sites in excess, or as many interstitials as there are
atoms in excess.  A displaced atom beside its own site is neither.

Counted is what lies within a crystal.  Grain boundaries, surfaces, liquid and the cores of dislocations,
where sites are a matter of opinion, are left out.

Made for denoised structures, in which neighbours are within a fraction of a bond of where they should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from ase import Atoms
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from zoo.analysis.crystals import OTHER, STRUCTURES, IntArray
from zoo.errors import StructureError
from zoo.pairs import complete_cell

FloatArray = npt.NDArray[np.float64]

#: Neighbours that an atom of each crystal has at least.
COORDINATION = {
    "fcc": 12, "hcp": 12, "bcc": 8, "simple cubic": 6, "cubic diamond": 4, "hexagonal diamond": 4,
}  # fmt: skip
# All lengths below are in units of the nearest-neighbour distance.
#: How far intact atoms see: in diamond a vacancy leaves no intact atom nearer than its third neighbours.
_SEEN = 2.6
#: Atoms nearer than this to a place are there; and a site takes an atom from so far.
_THERE, _TAKES = 0.3, 0.45
#: So many intact atoms, the nearest, are looked at for one on the same sublattice, where this share of what
#: it sees is there, too.  In hcp the other sublattice has half of it.
_CANDIDATES, _SAME = 100, 0.8
#: When so many of them, one after the other, see nothing new, there is nothing new to be seen.
_AGREE = 3
#: Share of those who would see a place that have to expect an atom there: for a site to be empty, and for an
#: atom to be on site; at a surface nobody can look down on it.
_MAJORITY, _ENOUGH = 0.5, 0.2
#: Share of the neighbours of an intact atom that must have its label; in a twin boundary half of them do.
_COMPANY = 0.25
_TOGETHER = 1.3
#: Within this distance of a defect this share of the atoms has to be crystalline; at a boundary half are.
_AROUND, _CRYSTALLINE = 3.0, 0.6
_FROM_LINES = 2.0


@dataclass(frozen=True)
class PointDefects:
    """Attributes
    ----------
    vacancies, interstitials : (n, 3) Å, where they are; an interstitial at the mean of its off-site atoms.
    """

    vacancies: FloatArray
    interstitials: FloatArray


def point_defects(
    atoms: Atoms, labels: IntArray, lines: Sequence[FloatArray] = (), lines_apart: float | None = None
) -> PointDefects:
    """Vacancies and interstitials in the crystalline parts of a denoised structure.

    Parameters
    ----------
    atoms : any cell and pbc.
    labels : (n_atoms,) as by `zoo.analysis.crystals.structure_types`.
    lines : points (n, 3) Å along dislocation lines; what is near one is part of its core.
    lines_apart : Å, how far from a line that is; by default two nearest-neighbour distances.

    Raises
    ------
    StructureError : labels of another number of atoms.
    """
    if len(labels) != len(atoms):
        raise StructureError(f"point defects: {len(atoms)} atoms and {len(labels)} labels")
    nothing = PointDefects(np.zeros((0, 3)), np.zeros((0, 3)))
    if not (labels != OTHER).any() or len(atoms) < 2:
        return nothing
    spacing = nearest_distance(atoms, np.flatnonzero(labels != OTHER))
    space = _Space(atoms, (_AROUND + 1.0) * spacing)
    labels = _in_company(space, labels)
    doubtful = np.flatnonzero(labels == OTHER)
    if not len(doubtful) or len(doubtful) == len(atoms):
        return nothing
    doubtful = doubtful[_inside(space, labels, space.positions[doubtful], spacing)]
    if not len(doubtful):
        return nothing
    empty, off = _settled(space, doubtful, *_sites(space, labels, doubtful, spacing), spacing)
    points = np.concatenate([empty, space.positions[off]])
    if not len(points):
        return nothing
    inside = _inside(space, labels, points, spacing)
    if len(lines):
        core = np.concatenate(list(lines))
        apart = _FROM_LINES * spacing if lines_apart is None else lines_apart
        for k, point in enumerate(points):
            inside[k] &= bool(np.linalg.norm(space.shortest(core - point), axis=1).min() > apart)
    return _counted(space, points, np.arange(len(points)) < len(empty), inside, spacing)


class _Space:
    """Positions with periodic images so far beyond the cell that nothing within ``margin`` (Å) is missed."""

    def __init__(self, atoms: Atoms, margin: float) -> None:
        self.cell = complete_cell(atoms.cell[:], np.asarray(atoms.pbc, dtype=bool))
        self.pbc = np.asarray(atoms.pbc, dtype=bool)
        self.positions = self.wrapped(atoms.get_positions())
        heights = 1 / np.linalg.norm(np.linalg.inv(self.cell), axis=0)
        fractional = self.positions @ np.linalg.inv(self.cell)
        index = np.arange(len(atoms))
        for axis in np.flatnonzero(self.pbc):
            reach = margin / heights[axis]
            shifts = range(-int(np.ceil(reach)), int(np.ceil(reach)) + 1)
            moved = [fractional + shift * np.eye(3)[axis] for shift in shifts]
            keep = [(x[:, axis] >= -reach) & (x[:, axis] < 1 + reach) for x in moved]
            fractional = np.concatenate([x[k] for x, k in zip(moved, keep, strict=True)])
            index = np.concatenate([index[k] for k in keep])
        self.images, self.index = fractional @ self.cell, index
        self.tree = cKDTree(self.images)

    def wrapped(self, positions: FloatArray) -> FloatArray:
        """The images of positions (n, 3) Å inside the cell."""
        fractional = positions @ np.linalg.inv(self.cell)
        fractional[:, self.pbc] %= 1.0
        return np.asarray(fractional @ self.cell, dtype=np.float64)

    def shortest(self, difference: FloatArray) -> FloatArray:
        """Minimum images of vectors (..., 3), right for those much shorter than the cell is wide."""
        fractional = difference @ np.linalg.inv(self.cell)
        fractional[..., self.pbc] -= np.round(fractional[..., self.pbc])
        return np.asarray(fractional @ self.cell, dtype=np.float64)


def nearest_distance(atoms: Atoms, intact: IntArray) -> float:
    """Å, median distance of some atoms (their indices) to the nearest one."""
    space = _Space(
        atoms, 1.5 * (max(atoms.get_volume(), 1e-3) / len(atoms)) ** (1 / 3) if atoms.pbc.all() else 6.0
    )
    distance, _ = space.tree.query(space.positions[intact], k=2)
    return float(np.median(distance[:, 1]))


def _in_company(space: _Space, labels: IntArray) -> IntArray:
    """Labels without those of lonely atoms: an octahedral interstitial looks like simple cubic."""
    result = labels.copy()
    for label in np.unique(labels[labels != OTHER]):
        here = np.flatnonzero(labels == label)
        k = min(COORDINATION[STRUCTURES[label]], len(space.images) - 1)
        _, near = space.tree.query(space.positions[here], k=range(2, k + 2))
        company = (labels[space.index[near]] == label).mean(1)
        result[here[company < _COMPANY]] = OTHER
    return result


def _inside(space: _Space, labels: IntArray, points: FloatArray, spacing: float) -> npt.NDArray[np.bool_]:
    """Which points (n, 3) Å have mostly crystal around them."""
    crystalline = labels[space.index] != OTHER
    near = space.tree.query_ball_point(space.wrapped(points), _AROUND * spacing)
    return np.array([bool(n) and crystalline[n].mean() >= _CRYSTALLINE for n in near], dtype=bool)


def _sites(
    space: _Space, labels: IntArray, doubtful: IntArray, spacing: float
) -> tuple[FloatArray, FloatArray]:
    """Places near doubtful atoms where intact ones expect an atom, (n, 3) Å, and by which share of them."""
    reach = _SEEN * spacing
    intact = np.flatnonzero(labels[space.index] != OTHER)  # of the images
    tree = cKDTree(space.images[intact])
    near = tree.query_ball_point(space.positions[doubtful], reach)
    voters = np.unique(space.index[intact[np.concatenate([np.array(n, dtype=int) for n in near])]])
    seen: dict[int, FloatArray] = {}

    def view(atom: int) -> FloatArray:
        """Vectors (n, 3) Å from an atom to the intact ones that it sees."""
        if atom not in seen:
            found = tree.query_ball_point(space.positions[atom], reach)
            vectors = space.images[intact[found]] - space.positions[atom]
            seen[atom] = vectors[np.linalg.norm(vectors, axis=1) > 0.1 * spacing]
        return seen[atom]

    places = []
    full = 1
    for voter in voters:
        distance, found = tree.query(space.positions[voter], k=range(1, min(_CANDIDATES, len(intact)) + 1))
        models = dict.fromkeys(space.index[intact[found[np.isfinite(distance)]]].tolist())
        # Those who see most first.  Where defects are so dense that everybody misses something, several
        # together know it all.
        views = [view(m) for m in models if labels[m] == labels[voter]]
        expected, nothing_new = np.zeros((0, 3)), 0
        for vectors in sorted(views, key=len, reverse=True):
            seen_there = space.positions[voter] + vectors
            away, _ = space.tree.query(seen_there, distance_upper_bound=_THERE * spacing)
            if np.isfinite(away).mean() < _SAME:
                continue
            if len(expected):
                away, _ = cKDTree(expected).query(seen_there, distance_upper_bound=_THERE * spacing)
                seen_there = seen_there[~np.isfinite(away)]
            expected = np.concatenate([expected, seen_there])
            nothing_new = 0 if len(seen_there) else nothing_new + 1
            if nothing_new == _AGREE:
                break
        full = max(full, len(expected))
        if len(expected):
            away, _ = tree.query(expected, distance_upper_bound=_THERE * spacing)
            places.append(expected[~np.isfinite(away)])  # the others are settled
    if not sum(map(len, places)):
        return np.zeros((0, 3)), np.zeros(0)
    return _agreed(space, space.wrapped(np.concatenate(places)), full, spacing)


def _agreed(space: _Space, places: FloatArray, full: int, spacing: float) -> tuple[FloatArray, FloatArray]:
    """Where expected places come together: means (n, 3) Å, and the share of ``full`` that expect each."""
    group = _components(space, places, _THERE * spacing)
    n = int(group.max()) + 1
    first = places[np.unique(group, return_index=True)[1]]
    shift = np.zeros((n, 3))
    np.add.at(shift, group, space.shortest(places - first[group]))
    votes = np.bincount(group, minlength=n)  # in a small cell several may be of one atom's images
    return space.wrapped(first + shift / votes[:, None]), votes / full


def _settled(
    space: _Space, doubtful: IntArray, sites: FloatArray, share: FloatArray, spacing: float
) -> tuple[FloatArray, IntArray]:
    """Empty sites (n, 3) Å, and the atoms that are off site.

    Each site takes the nearest atom that is free, sites that most agree on before others.
    """
    free = set(doubtful.tolist())
    near = space.tree.query_ball_point(sites, _TAKES * spacing) if len(sites) else []
    pairs = [
        (
            share[s] <= _MAJORITY,
            float(np.linalg.norm(space.images[image] - sites[s])),
            s,
            int(space.index[image]),
        )
        for s, images in enumerate(near)
        for image in images
        if share[s] >= _ENOUGH
    ]
    filled = np.zeros(len(sites), dtype=bool)
    for _, _, s, atom in sorted(pairs):
        if atom in free and not filled[s]:
            filled[s] = True
            free.discard(atom)
    return sites[(share > _MAJORITY) & ~filled], np.array(sorted(free), dtype=np.int64)


def _components(space: _Space, points: FloatArray, reach: float) -> IntArray:
    """Which of the groups that hang together, with steps of up to ``reach`` (Å), each point (n, 3) is in."""
    images = _Space(Atoms(positions=points, cell=space.cell, pbc=space.pbc), reach)
    pairs = images.index[images.tree.query_pairs(reach, output_type="ndarray")]
    graph = coo_matrix((np.ones(len(pairs)), tuple(pairs.T)), shape=(len(points), len(points)))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _counted(
    space: _Space,
    points: FloatArray,
    is_site: npt.NDArray[np.bool_],
    inside: npt.NDArray[np.bool_],
    spacing: float,
) -> PointDefects:
    """Empty sites and off-site atoms that belong together, against each other."""
    group = _components(space, points, _TOGETHER * spacing)
    vacancies, interstitials = [], []
    for g in range(group.max() + 1):
        mine = np.flatnonzero(group == g)
        if not inside[mine].all():
            continue
        empty, extra = mine[is_site[mine]], mine[~is_site[mine]]
        surplus = len(extra) - len(empty)
        if surplus < 0:
            vacancies += list(points[empty[:-surplus]])
        elif surplus > 0:
            first = points[extra[0]]
            middle = first + space.shortest(points[extra] - first).mean(0)
            interstitials += [middle] * surplus
    return PointDefects(np.array(vacancies).reshape(-1, 3), np.array(interstitials).reshape(-1, 3))
