"""Bonds from geometry: which atoms are bonded, how long a bond should be, and molecules made whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from ase.data import atomic_numbers, covalent_radii

from zoo.molecules.molecule import Molecule

Array = npt.NDArray[np.float64]

#: Two atoms nearer than this times the sum of their covalent radii are bonded: between the longest
#: bond at 300 K (1.15) and the shortest hydrogen bond (1.6).
BONDED = 1.25
#: Only these form molecules here; an ion next to a carbonyl oxygen is not bonded to it.
NONMETALS = frozenset(["H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Ge", "As", "Se", "Br", "Te", "I"])
#: Double-bond covalent radii (Pyykkö and Atsumi, Chem. Eur. J. 15, 12770 (2009)), Å.
_DOUBLE = {"C": 0.67, "N": 0.60, "O": 0.57, "S": 0.94, "P": 1.02}
_SATURATED = {"C": 4, "N": 3, "O": 2, "S": 2, "P": 3}


def radii(elements: Sequence[str]) -> Array:
    """(n,) covalent radii in Å (Cordero et al. 2008, from ASE)."""
    return np.array([covalent_radii[atomic_numbers[element]] for element in elements], dtype=float)


def inferred_bonds(
    elements: Sequence[str], positions: Array, cell: Array | None, also: Sequence[str] = ()
) -> npt.NDArray[np.int64]:
    """(n_bonds, 2) pairs of atoms nearer than 1.25 times the sum of their covalent radii.

    Parameters
    ----------
    positions : (n, 3) Å, finite.
    cell : (3, 3) Å, rows are lattice vectors, a zero row is no periodicity; or None.
    also : elements that form bonds besides the nonmetals.
    """
    able = np.array([element in NONMETALS or element in also for element in elements], dtype=bool)
    atoms = np.flatnonzero(able)
    if len(atoms) < 2:
        return np.empty((0, 2), dtype=np.int64)
    radius, points = radii([elements[int(i)] for i in atoms]), positions[atoms]
    cutoff = 2 * BONDED * float(radius.max())
    if cell is None:
        from scipy.spatial import cKDTree

        pairs = cKDTree(points).query_pairs(cutoff, output_type="ndarray")
        first, second = pairs[:, 0], pairs[:, 1]
        distances = np.linalg.norm(points[first] - points[second], axis=1)
    else:
        from zoo.pairs import pairs as close_pairs

        first, second, distances = close_pairs(points, cell, cell.any(1), cutoff, "ijd", full=False)
    near = (distances < BONDED * (radius[first] + radius[second])) & (first != second)
    bonds = np.sort(np.stack([atoms[first[near]], atoms[second[near]]], axis=1), axis=1)
    return np.unique(bonds, axis=0)


def default_bond_lengths(molecule: Molecule) -> Array:
    """(n_site_bonds,) Å estimated from covalent radii, for where no simulation has measured them.

    Between two atoms with fewer neighbours than a saturated one has, the double-bond radii are
    used, and half-way values beside them where a lone pair conjugates.  For alanine dipeptide all
    are within 0.04 Å of the simulated means.
    """
    unsaturated = [
        len(near) < _SATURATED.get(element, 0)
        for element, near in zip(molecule.elements, molecule.neighbors, strict=True)
    ]
    lengths = []
    for bond in molecule.site_bonds:
        i, j = (molecule.sites[site] for site in bond)
        elements = molecule.elements[i], molecule.elements[j]
        single = float(radii(elements).sum())
        double = sum(_DOUBLE.get(element, 0.0) for element in elements)
        if unsaturated[i] and unsaturated[j]:
            lengths.append(double)
        elif any(
            unsaturated[a] and molecule.elements[b] in ("N", "O") and molecule.elements[a] == "C"
            for a, b in ((i, j), (j, i))
        ):
            lengths.append((single + double) / 2)
        else:
            lengths.append(single)
    return np.array(lengths, dtype=float)


def made_whole(positions: Array, bonds: npt.NDArray[np.int64], cell: Array) -> Array:
    """(n, 3) Å: one molecule with every bond at its nearest image; the first atom stays where it is.

    Parameters
    ----------
    positions : (n, 3) Å of one connected molecule.
    bonds : (n_bonds, 2) indices into it.
    cell : (3, 3) Å, rows are lattice vectors; a zero row is no periodicity.
    """
    from ase.geometry import complete_cell, find_mic

    periodic = cell.any(axis=1)
    steps = positions[bonds[:, 1]] - positions[bonds[:, 0]]
    nearest = find_mic(steps, complete_cell(cell), pbc=periodic)[0]
    across: list[list[tuple[int, Array]]] = [[] for _ in positions]
    for (i, j), step in zip(bonds, nearest, strict=True):
        across[i].append((int(j), step))
        across[j].append((int(i), -step))
    whole = positions.copy()
    seen, queue = {0}, [0]
    for i in queue:  # grows while it is walked: breadth first
        for j, step in across[i]:
            if j not in seen:
                seen.add(j)
                queue.append(j)
                whole[j] = whole[i] + step
    return whole
