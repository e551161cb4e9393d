"""The simulation box in LAMMPS' terms.

LAMMPS states a box either as *restricted* (lower triangular: a along x, b in the xy plane; written
with the tilts xy, xz, yz) or, since 2024, as *general* (any right-handed a, b, c and an origin).
"""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.geometry import complete_cell
from numpy.typing import NDArray

Array = NDArray[np.float64]

_PADDING = 1.0


def is_restricted(cell: Array) -> bool:
    """True when the (3, 3) cell (rows, Å) is lower triangular with a positive diagonal."""
    scale = float(np.abs(cell).max())
    above = np.abs(cell[np.triu_indices(3, 1)])
    return bool((above <= 1e-10 * scale).all() and (np.diag(cell) > 0).all())


def lattice_from_bounds(bounds: Array, tilts: Array) -> tuple[Array, Array]:
    """Cell (3, 3) and origin (3,), Å, from the bounding box of a restricted triclinic box.

    ``bounds`` (3, 2) encloses the tilted box, so the tilts (xy, xz, yz) have to come off it first.
    """
    xy, xz, yz = tilts
    low, high = bounds[:, 0].copy(), bounds[:, 1].copy()
    low[0] -= min(0.0, xy) + min(0.0, xz)
    high[0] -= max(0.0, xy) + max(0.0, xz)
    low[1] -= min(0.0, yz)
    high[1] -= max(0.0, yz)
    lx, ly, lz = high - low
    return np.array([[lx, 0.0, 0.0], [xy, ly, 0.0], [xz, yz, lz]]), low


def bounds_from_lattice(cell: Array, origin: Array) -> tuple[Array, Array]:
    """Inverse of `lattice_from_bounds` for a restricted cell: bounds (3, 2) and tilts (3,), Å."""
    xy, xz, yz = float(cell[1, 0]), float(cell[2, 0]), float(cell[2, 1])
    low = origin.astype(float)
    high = low + np.diag(cell)
    low[0] += min(0.0, xy) + min(0.0, xz)
    high[0] += max(0.0, xy) + max(0.0, xz)
    low[1] += min(0.0, yz)
    high[1] += max(0.0, yz)
    return np.column_stack([low, high]), np.array([xy, xz, yz])


def box_of(atoms: Atoms) -> tuple[Array, Array]:
    """Cell (3, 3) and origin (3,), Å, of a structure; vectors it lacks are filled to enclose the atoms.

    LAMMPS has no box without a volume, while a cluster or a slab in ASE may have zero vectors along
    directions that are not periodic.
    """
    cell = np.array(atoms.cell.array, dtype=float)
    origin = np.array(atoms.info.get("origin", np.zeros(3)), dtype=float).reshape(3).copy()
    missing = ~cell.any(axis=1)
    if not missing.any():
        return cell, origin
    full = np.array(complete_cell(cell), dtype=float)
    fractional = (atoms.positions - origin) @ np.linalg.inv(full)
    low = fractional.min(axis=0) if len(atoms) else np.zeros(3)
    high = fractional.max(axis=0) if len(atoms) else np.ones(3)
    for axis in np.flatnonzero(missing):
        unit = full[axis] / np.linalg.norm(full[axis])
        origin = origin + full[axis] * low[axis] - _PADDING * unit
        cell[axis] = full[axis] * (high[axis] - low[axis]) + 2 * _PADDING * unit
    return cell, origin
