"""What a structure must be before a model may look at it."""

from __future__ import annotations

import numpy as np
from ase import Atoms

from zoo.errors import StructureError
from zoo.pairs import pairs

COINCIDENT = 1e-3
"""Two atoms closer than this (Å) are taken for one atom written twice."""

_SEARCH = 1.0
_THINNEST = 0.1
_SINGULAR = 1e-8


def check_structure(atoms: Atoms, where: str = "structure") -> None:
    """Refuse a structure that no model can treat; costs O(n_atoms).

    Parameters
    ----------
    atoms
        Positions (n_atoms, 3) in Å, cell (3, 3) with lattice vectors as rows, mixed pbc allowed.
    where
        Name used in the message, for example ``"melt.dump, frame 3"``.

    Raises
    ------
    StructureError
        No atoms or one atom; positions or cell not finite; a periodic direction without a lattice
        vector; a singular, left-handed or vanishingly thin cell; two atoms at one place, periodic
        images included.
    """
    n_atoms = len(atoms)
    if n_atoms == 0:
        raise StructureError(f"{where} has no atoms")
    if n_atoms == 1:
        raise StructureError(
            f"{where} has only one atom, so no surroundings; repeat the cell, for example 4x4x4"
        )
    bad = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
    if len(bad):
        raise StructureError(
            f"{where}: {len(bad)} of {n_atoms} atoms have NaN or infinite coordinates (first: index "
            f"{bad[0]}); the run that wrote them probably blew up"
        )
    _check_cell(atoms, where)
    _check_coincident(atoms, where)


def _check_cell(atoms: Atoms, where: str) -> None:
    cell = np.asarray(atoms.cell.array, dtype=float)
    pbc = np.asarray(atoms.pbc, dtype=bool)
    if not np.isfinite(cell).all():
        raise StructureError(f"{where}: the cell has NaN or infinite entries")
    if not pbc.any():
        return
    lengths = np.linalg.norm(cell, axis=1)
    for axis in np.flatnonzero(pbc):
        if lengths[axis] == 0.0:
            which = "there is no cell" if not cell.any() else f"lattice vector {'abc'[axis]} is zero"
            raise StructureError(
                f"{where}: periodic along {'abc'[axis]} but {which}; set the cell, or pbc=False along it"
            )
    given = cell[lengths > 0]
    units = given / np.linalg.norm(given, axis=1, keepdims=True)
    # Gram determinant: squared volume spanned by the unit vectors, whatever their number
    if np.linalg.det(units @ units.T) < _SINGULAR:
        raise StructureError(f"{where}: singular cell, its lattice vectors are not independent")
    if len(given) == 3:
        volume = float(np.linalg.det(cell))
        if volume < 0:
            raise StructureError(
                f"{where}: left-handed cell (volume {volume:.6g} Å^3); swap two lattice vectors, which "
                "leaves the crystal unchanged"
            )
    heights = 1.0 / np.linalg.norm(np.linalg.pinv(given), axis=0)
    heights = heights[pbc[lengths > 0]]
    if heights.min() < _THINNEST:
        raise StructureError(
            f"{where}: the cell is only {heights.min():.3g} Å thick; are its lengths in another unit than Å?"
        )


def _check_coincident(atoms: Atoms, where: str) -> None:
    # The search bins space by its radius: a tiny one means more bins than there is patience for.
    first, second, shifts, distances = pairs(
        atoms.positions, atoms.cell.array, atoms.pbc, _SEARCH, "ijSd", full=False
    )
    close = distances < COINCIDENT
    first, second, shifts, distances = first[close], second[close], shifts[close], distances[close]
    if len(first):
        worst = int(np.lexsort((second, first))[0])
        across = " across the periodic boundary" if shifts[worst].any() else ""
        more = f" ({len(first)} such pairs)" if len(first) > 1 else ""
        raise StructureError(
            f"{where}: atoms {int(first[worst])} and {int(second[worst])} (counted from 0) are at the same "
            f"place, {float(distances[worst]):.2g} Å apart{across}{more}; delete one of them"
        )
