"""The length scale of a structure: the cube root of the volume that one atom takes up.

In a dense periodic cell that is the cell's volume over the number of atoms.  Where there is
vacuum (slab, cluster, void, wire, no cell at all) it comes from the density that the atoms
themselves see: a smooth count of neighbours in a sphere of about two spacings, which is nearly
the same for all common lattices, read off where the material is densest.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from zoo.errors import StructureError
from zoo.graph import neighbor_searches
from zoo.pairs import complete_cell

Array = npt.NDArray[np.float64]

#: Radius of the counting sphere in length scales.  With the weight (1 - (r/R)^2)^3 the count of
#: fcc, bcc, hcp, simple cubic and both diamonds then differs from that of a uniform density by
#: less than 1.5 %, that is 0.5 % in length.
RADIUS = 2.1
#: Share of the sphere's integral: 4 pi int_0^1 (1 - x^2)^3 x^2 dx.
_INTEGRAL = 4 * math.pi * 16 / 315
#: A typical atom that sees this much more than the mean density of its cell is next to vacuum.
DENSE = 1.10
#: Quantile of the local density that stands for the bulk where there are surfaces.
_QUANTILE = 0.8
#: No crystal's length scale is more than 1.155 nearest-neighbour distances (diamond), or 1.5 with
#: strong noise.  The bound is for molecules and clusters too small to have a density.
LARGEST_RATIO = 1.6


def length_scale(positions: Array, cell: Array, pbc: npt.ArrayLike) -> float:
    """The cube root of the atomic volume in Å, of the condensed part where there is vacuum.

    Parameters
    ----------
    positions : (n_atoms, 3) Å.
    cell : (3, 3) Å, rows are lattice vectors.
    pbc : three booleans.

    Raises
    ------
    StructureError : the cell has no volume.
    """
    periodic = np.broadcast_to(np.asarray(pbc, dtype=bool), (3,))
    volume = _occupied_volume(positions, cell, periodic)
    scale = float((volume / len(positions)) ** (1 / 3))
    if len(positions) < 2:
        return scale
    if not periodic.all():
        # Space between bodies, or to an atom that has flown off, is no volume of an atom: nearest neighbours
        # bound the first guess.  Without images they may be further away, which only loosens the bound.
        nearest = float(np.median(cKDTree(positions).query(positions, 2)[0][:, 1]))
        if nearest > 0:
            scale = min(scale, LARGEST_RATIO * nearest)
    dense: float | None = None
    if periodic.all():
        dense = float((abs(float(np.linalg.det(cell))) / len(positions)) ** (1 / 3))
    for _ in range(12):
        densities = local_density(positions, cell, periodic, scale)
        if dense is not None and np.median(densities) * dense**3 < DENSE:
            return dense
        new = float(np.quantile(densities, _QUANTILE) ** (-1 / 3))
        if new > scale and new > (most := LARGEST_RATIO * _nearest(positions, cell, periodic, scale)):
            return most
        if abs(new / scale - 1) < 1e-3:
            return new
        scale = new
    return scale


def local_density(positions: Array, cell: Array, pbc: npt.ArrayLike, scale: float) -> Array:
    """Atoms per Å³ around every atom, counted with a smooth weight in a sphere of ``RADIUS * scale``."""
    periodic = np.broadcast_to(np.asarray(pbc, dtype=bool), (3,)).copy()
    radius = RADIUS * scale
    counts = np.ones(len(positions))
    for core, i, _, d in neighbor_searches(positions, cell, periodic, radius):
        x2 = np.einsum("ij,ij->i", d, d) / radius**2
        counts[core] += np.bincount(i, weights=(1 - np.minimum(x2, 1)) ** 3, minlength=len(core))
    return counts / (_INTEGRAL * radius**3)


def _nearest(positions: Array, cell: Array, periodic: npt.NDArray[np.bool_], scale: float) -> float:
    """Median distance to the nearest neighbour in Å; infinite where most atoms see none."""
    nearest = np.full(len(positions), np.inf)
    for core, i, _, d in neighbor_searches(positions, cell, periodic.copy(), RADIUS * scale):
        found = np.full(len(core), np.inf)
        np.minimum.at(found, i, np.linalg.norm(d, axis=1))
        nearest[core] = found
    return float(np.median(nearest))


def _occupied_volume(positions: Array, cell: Array, periodic: npt.NDArray[np.bool_]) -> float:
    """A first guess: the cell (or the box around the atoms) less the largest gap along each axis."""
    if not periodic.any():
        box = np.sort([_extent(x) for x in positions.T])[::-1]
        # Flat or linear clusters have no thickness of their own.
        return float(np.prod(np.maximum(box, box[0] / len(positions) ** 0.5 + 1e-6)))
    full = complete_cell(cell, periodic)
    volume = abs(float(np.linalg.det(full)))
    if not math.isfinite(volume) or volume == 0:
        raise StructureError("the cell has no volume: give three independent lattice vectors")
    fractional = positions @ np.linalg.inv(full)
    for axis in range(3):
        x = fractional[:, axis]
        if periodic[axis]:
            x = np.sort(x - np.floor(x))
            gap = float(np.max(np.diff(np.append(x, x[0] + 1))))
            share = max(1 - gap, 1 / len(x))
        else:
            length = float(np.linalg.norm(full[axis]))
            share = max(_extent(x), 1.0 / length)
        volume *= share if share < 0.8 or not periodic[axis] else 1.0
    return volume


def _extent(x: Array) -> float:
    """From one end to the other; of most atoms, if a few have flown off."""
    whole = float(np.ptp(x))
    low, high = np.quantile(x, (0.05, 0.95))
    return whole if whole < 3 * (high - low) or high == low else float(high - low)
