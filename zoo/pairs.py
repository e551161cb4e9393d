"""Pairs of atoms within a distance, periodic images included, in any cell; `vesin` searches.

vesin divides the space between the atoms into bins as wide as the distance.  Along directions that are not
periodic there may be much of it and nothing inside: a dimer of 1 000 Å, or an atom that has flown off, takes
minutes, and a gap of a million Å ends the whole process.  No pair goes across a gap that is wider than the
distance, so such gaps are closed before the search.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def complete_cell(cell: Array, periodic: npt.NDArray[np.bool_]) -> Array:
    """The cell with the vectors of non-periodic axes replaced by unit vectors normal to the rest.

    A slab written with a zero third vector is as good as one written with a long one.
    """
    box = np.array(cell, dtype=np.float64)
    free = np.flatnonzero(~periodic)
    if len(free) == 3:
        return np.eye(3)
    if len(free) == 2:
        (axis,) = np.flatnonzero(periodic)
        # Any two directions spanning the plane normal to the periodic vector.
        _, _, vh = np.linalg.svd(box[[axis]])
        box[free] = vh[1:]
    elif len(free) == 1:
        normal = np.cross(box[(free[0] + 1) % 3], box[(free[0] + 2) % 3])
        box[free[0]] = normal / np.linalg.norm(normal)
    return box


def pairs(
    positions: Array,
    cell: npt.ArrayLike,
    pbc: npt.ArrayLike,
    radius: float,
    quantities: str = "ijD",
    *,
    full: bool = True,
    ordered: bool = False,
    n_threads: int = 0,
) -> tuple[Any, ...]:
    """All pairs closer than ``radius``, one array for each letter of ``quantities``.

    Parameters
    ----------
    positions : (n_atoms, 3) Å, finite; may lie outside the cell.
    cell : (3, 3) Å, rows are lattice vectors; only those of periodic axes matter.
    pbc : three booleans.
    radius : Å.
    quantities : "i", "j" the atoms, (n_pairs,) int64; "D" the vectors r_j + S cell - r_i, (n_pairs, 3) Å;
        "d" their lengths; "S" the images, (n_pairs, 3) int32.
    full : every pair as i -> j and as j -> i.
    ordered : by i; the order of j is any.
    n_threads : 0 for one per core.
    """
    from vesin import NeighborList

    periodic = np.broadcast_to(np.asarray(pbc, dtype=bool), (3,))
    box = complete_cell(np.asarray(cell, dtype=np.float64), periodic)
    points = np.ascontiguousarray(positions, dtype=np.float64)
    free = np.flatnonzero(~periodic)
    if len(free) and len(points):
        widest = 1.01 * radius
        points = _without_gaps(points, box[free], widest)
        # Beyond such a gap the next image may be: vesin takes more than twice as long where only some axes
        # are periodic, and for ever where a large radius meets a flat body.
        for axis in free:
            box[axis] *= np.ptp(points @ box[axis]) + widest
    found = NeighborList(cutoff=radius, full_list=full, sorted=ordered, n_threads=n_threads).compute(
        points=points, box=box, periodic=True, quantities=quantities
    )
    return tuple(x.view(np.int64) if q in "ij" else x for q, x in zip(quantities, found, strict=True))


def _without_gaps(positions: Array, directions: Array, widest: float) -> Array:
    """Positions whose gaps along each of some orthogonal unit vectors are at most ``widest`` (Å) wide."""
    for direction in directions:
        along = positions @ direction
        order = np.argsort(along)
        excess = np.maximum(np.diff(along[order]) - widest, 0)
        if excess.any():
            shift = np.zeros(len(positions))
            shift[order[1:]] = np.cumsum(excess)
            shift -= shift[order[len(order) // 2]]  # no digits are lost where most atoms are
            positions = positions - shift[:, None] * direction
    return positions
