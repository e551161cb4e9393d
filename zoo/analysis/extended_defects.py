"""What extends through a crystal: planes of stacking faults and twins, grains, dislocation lines.

All by OVITO: polyhedral template matching for orientations, its identification of planar faults in fcc, its
grain segmentation, and the dislocation extraction algorithm (DXA).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from zoo.analysis.crystals import FCC, HCP, FloatArray, IntArray, require_ovito, to_ovito
from zoo.pairs import pairs

#: What OVITO tells apart in fcc, by its number.
FAULTS = {2: "intrinsic stacking fault", 3: "coherent twin boundary", 4: "multilayer stacking fault"}
#: In hcp: layers of fcc.
BASAL = "basal stacking fault"
#: Fewer atoms are no plane, and fewer no grain of their own.
SMALLEST_PLANE, SMALLEST_GRAIN = 12, 50
#: Degrees; less between neighbouring grains is no boundary.
LOW_ANGLE = 3.0
#: How little the bonds of a plane have in the third direction: a single layer 0, two 0.57, a bulk crystal 1.
_FLAT = 0.85


@dataclass(frozen=True)
class Plane:
    """One planar fault: what it is, of how many atoms, and the unit vector normal to it, (3,)."""

    kind: str
    atoms: int
    normal: FloatArray


def planar_faults(atoms: Atoms, labels: IntArray, spacing: float) -> list[Plane]:
    """Planes of stacking faults and twin boundaries: in fcc those of hcp atoms, in hcp those of fcc atoms.

    Parameters
    ----------
    labels : (n_atoms,) as by `zoo.analysis.crystals.structure_types`.
    spacing : Å, nearest-neighbour distance.
    """
    n_fcc, n_hcp = int((labels == FCC).sum()), int((labels == HCP).sum())
    if not n_fcc or not n_hcp:
        return []
    if n_fcc < n_hcp:
        return _planes(atoms, labels == FCC, BASAL, spacing)
    require_ovito()
    from ovito.modifiers import IdentifyFCCPlanarFaultsModifier

    data = _oriented(atoms)
    identify: Any = IdentifyFCCPlanarFaultsModifier  # its type stubs call it abstract
    data.apply(identify())
    kinds = np.array(data.particles["Planar Fault Type"])
    # An atom that template matching alone calls hcp is more often a hot one than a fault.
    kinds[labels != HCP] = 0
    return [
        plane for number, name in FAULTS.items() for plane in _planes(atoms, kinds == number, name, spacing)
    ]


def grains(atoms: Atoms, spacing: float) -> IntArray:
    """Sizes of the grains, in atoms, the largest first.

    Neighbouring grains whose orientations differ by less than `LOW_ANGLE` count as one: a dislocation bends
    the crystal around it by as much.  Twins have orientations, and so grains, of their own.

    Parameters
    ----------
    spacing : Å, nearest-neighbour distance.
    """
    require_ovito()
    from ovito.modifiers import GrainSegmentationModifier
    from ovito.modifiers import PolyhedralTemplateMatchingModifier as Ptm

    data = _oriented(atoms)
    try:
        data.apply(GrainSegmentationModifier(min_grain_size=SMALLEST_GRAIN))
    except RuntimeError:  # a cell so small that atoms are neighbours of themselves
        return np.array([int((np.array(data.particles["Structure Type"]) != 0).sum())])
    table = data.tables["grains"]
    sizes, kinds = np.array(table["Grain Size"], dtype=np.int64), np.array(table["Structure Type"])
    if len(sizes) < 2:
        return sizes
    grain = np.array(data.particles["Grain"])
    i, j = (grain[k] for k in neighbors(atoms, np.arange(len(atoms)), 1.5 * spacing)[:2])
    touching = np.unique(np.column_stack([i, j])[(i >= 0) & (i < j)], axis=0)
    hexagonal = np.isin(kinds[touching[:, 0]], (int(Ptm.Type.HCP), int(Ptm.Type.HEX_DIAMOND)))
    same = kinds[touching[:, 0]] == kinds[touching[:, 1]]
    turned = np.array(table["Orientation"])[touching]
    for symmetry, chosen in (("hexagonal", hexagonal), ("cubic", ~hexagonal)):
        if chosen.any():
            angle = Ptm.calculate_misorientation(turned[chosen, 0], turned[chosen, 1], symmetry=symmetry)
            same[chosen] &= np.degrees(angle) < LOW_ANGLE
    merged = _groups(len(sizes), touching[same])
    return np.sort(np.bincount(merged, weights=sizes).astype(np.int64))[::-1]


def _oriented(atoms: Atoms) -> Any:
    """OVITO's data with structures and orientations by template matching."""
    from ovito.modifiers import PolyhedralTemplateMatchingModifier as Ptm

    modifier = Ptm(rmsd_cutoff=0.15, output_orientation=True, output_interatomic_distance=True)
    for kind in (Ptm.Type.FCC, Ptm.Type.HCP, Ptm.Type.BCC, Ptm.Type.CUBIC_DIAMOND, Ptm.Type.HEX_DIAMOND):
        modifier.structures[int(kind)].enabled = True
    modifier.structures[int(Ptm.Type.SC)].enabled = True
    data = to_ovito(atoms)
    data.apply(modifier)
    return data


def _planes(atoms: Atoms, chosen: Any, kind: str, spacing: float) -> list[Plane]:
    """Flat groups of neighbouring atoms."""
    index = np.flatnonzero(chosen)
    if len(index) < SMALLEST_PLANE:
        return []
    i, j, vectors = neighbors(atoms, index, 1.2 * spacing)
    group = _groups(len(index), np.column_stack([i, j]))
    planes = []
    for g in range(group.max() + 1):
        size = int((group == g).sum())
        if size < SMALLEST_PLANE:
            continue
        # Bonds lie in the plane, wherever its periodic images are; those between a few layers are fewer.
        inside = vectors[group[i] == g]
        weights, axes = np.linalg.eigh(inside.T @ inside / len(inside))
        if weights[0] < _FLAT * weights[1]:
            planes.append(Plane(kind, size, axes[:, 0]))
    return planes


def neighbors(atoms: Atoms, index: IntArray, cutoff: float) -> tuple[IntArray, IntArray, FloatArray]:
    """Pairs among some atoms (numbered within ``index``), and the vectors (n, 3) Å from first to second."""
    first, second, vectors = pairs(atoms.positions[index], atoms.cell[:], atoms.pbc, cutoff)
    return first, second, vectors


def _groups(n: int, pairs: IntArray) -> IntArray:
    """Which of the groups that pairs connect each of n things is in, (n,)."""
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)
