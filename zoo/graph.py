"""Periodic neighbour lists as padded tables, the form in which the networks read them.

All periodic images within the cutoff are neighbours, so cells smaller than the cutoff,
oblique cells and mixed boundary conditions are right.  The search is `vesin`'s; large systems
are searched slab by slab with a halo, so that memory stays bounded while the edges found are
exactly those of one search over everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from zoo.pairs import complete_cell, pairs

Array = npt.NDArray[np.float64]

#: Above this many atoms the search runs slab by slab (bounds the size of vesin's own arrays).
ATOMS_PER_SEARCH = 200_000


@dataclass
class Graph:
    """Neighbours of every atom, in compressed rows.

    Attributes
    ----------
    offsets : (n_atoms + 1,) int64; row i is ``slice(offsets[i], offsets[i + 1])``.
    neighbors : (n_edges,) int32, index j of each edge i -> j.
    vectors : (n_edges, 3) float32, r_j + shift - r_i, in units of the length scale.
    species : (n_atoms,) int64 or None; equal where atoms are of the same species.
    """

    offsets: torch.Tensor
    neighbors: torch.Tensor
    vectors: torch.Tensor
    species: torch.Tensor | None = None

    @property
    def n_atoms(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_edges(self) -> int:
        return len(self.neighbors)

    def padded(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows [start, stop) as rectangles, for batched matrix products.

        Returns
        -------
        index : (n, k) int64 neighbour indices; padding points at some atom or other.
        vectors : (n, 3, k) float32; arbitrary for padding.
        mask : (n, k) bool; True for real edges.
        """
        offsets = self.offsets[start : stop + 1]
        degree = offsets[1:] - offsets[:-1]
        k = max(int(degree.max()), 1)
        slots = torch.arange(k)
        mask = slots < degree[:, None]
        # Padding reads the edges that follow; the last rows must not read past the end.
        edges = (offsets[:-1, None] + slots).clamp_max_(max(self.n_edges - 1, 0)).view(-1)
        if self.n_edges == 0:
            return (
                torch.zeros_like(mask, dtype=torch.int64),
                torch.zeros(stop - start, 3, k, dtype=torch.float32),
                mask,
            )
        index = self.neighbors.index_select(0, edges).long().view(-1, k)
        vectors = self.vectors.index_select(0, edges).view(-1, k, 3).transpose(1, 2).contiguous()
        return index, vectors, mask


def neighbor_graph(
    positions: Array,
    cell: Array,
    pbc: npt.ArrayLike,
    cutoff: float,
    scale: float = 1.0,
    species: npt.ArrayLike | None = None,
) -> Graph:
    """All pairs closer than ``cutoff * scale``, periodic images included.

    Parameters
    ----------
    positions : (n_atoms, 3) Å; may lie outside the cell.
    cell : (3, 3) Å, rows are lattice vectors; only those of periodic axes matter.
    pbc : three booleans.
    cutoff : in units of ``scale``.
    scale : Å.
    species : (n_atoms,) whole numbers, such as atomic numbers, for networks that see them.
    """
    kinds = None if species is None else torch.from_numpy(np.array(species, dtype=np.int64))
    positions = np.ascontiguousarray(positions, dtype=np.float64)
    periodic = np.broadcast_to(np.asarray(pbc, dtype=bool), (3,)).copy()
    radius = cutoff * scale
    n_atoms = len(positions)
    degrees = np.zeros(n_atoms, dtype=np.int64)
    parts = list(neighbor_searches(positions, cell, periodic, radius))
    for core, i, _, _ in parts:
        degrees[core] = np.bincount(i, minlength=len(core))
    offsets = np.zeros(n_atoms + 1, dtype=np.int64)
    np.cumsum(degrees, out=offsets[1:])
    if len(parts) == 1:
        _, _, j, d = parts[0]
        return Graph(
            torch.from_numpy(offsets),
            torch.from_numpy(j),
            torch.from_numpy(d).div_(scale),
            kinds,
        )
    neighbors = np.empty(offsets[-1], dtype=np.int32)
    vectors = np.empty((offsets[-1], 3), dtype=np.float32)
    while parts:
        core, i, j, d = parts.pop()
        row_start = np.concatenate([[0], np.cumsum(np.bincount(i, minlength=len(core)))[:-1]])
        slot = offsets[core][i] + np.arange(len(i)) - row_start[i]
        neighbors[slot] = j
        vectors[slot] = d / np.float32(scale)
    return Graph(torch.from_numpy(offsets), torch.from_numpy(neighbors), torch.from_numpy(vectors), kinds)


#: Core atoms, edges' i as index into them, j as atom index, r_ij in Å.
Search = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.float32]]


def neighbor_searches(
    positions: Array, cell: Array, periodic: npt.NDArray[np.bool_], radius: float
) -> Iterator[Search]:
    """All edges shorter than ``radius`` (Å), in one piece or slab by slab; rows sorted by i."""
    box = complete_cell(np.asarray(cell, dtype=np.float64), periodic)
    n_atoms = len(positions)
    n_slabs = -(-n_atoms // ATOMS_PER_SEARCH)
    if n_slabs > 1:
        plan = _slab_plan(positions, box, periodic, radius, n_slabs)
        if plan is not None:
            yield from plan
            return
    i, j, d = _vesin(positions, box, periodic, radius)
    yield np.arange(n_atoms), i, j.astype(np.int32), d.astype(np.float32)


def _vesin(
    positions: Array, box: Array, periodic: npt.NDArray[np.bool_], radius: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Array]:
    i, j, d = pairs(positions, box, periodic, radius, ordered=True, n_threads=torch.get_num_threads())
    return i, j, d


def _slab_plan(
    positions: Array, box: Array, periodic: npt.NDArray[np.bool_], radius: float, n_slabs: int
) -> Iterator[Search] | None:
    """Slabs of equal atom count along the direction in which the system is thickest."""
    inverse = np.linalg.inv(box)
    heights = 1.0 / np.linalg.norm(inverse, axis=0)  # distance between opposite faces, Å
    fractional = positions @ inverse
    # of 99 % of the atoms: one that has flown off does not make a plate thick
    low, high = np.quantile(fractional, [0.005, 0.995], axis=0)
    extent = np.where(periodic, heights, (high - low) * heights)
    axis = int(np.argmax(extent))
    x = fractional[:, axis]
    turns = np.floor(x) if periodic[axis] else np.zeros_like(x)
    x = x - turns
    halo = radius / heights[axis] * (1 + 1e-9)
    edges = np.quantile(x, np.linspace(0, 1, n_slabs + 1))
    edges[0], edges[-1] = -np.inf, np.inf
    if periodic[axis]:
        edges[0], edges[-1] = 0.0, 1.0
        # Each slab with both halos must fit into one period, else an atom would need two images.
        if np.max(np.diff(edges)) + 2 * halo > 1.0:
            return None
    shifted = positions - turns[:, None] * box[axis]
    images = (-1, 0, 1) if periodic[axis] else (0,)
    open_axes = periodic.copy()
    open_axes[axis] = False
    slab_box = complete_cell(box, open_axes)

    def slabs() -> Iterator[Search]:
        for s in range(n_slabs):
            low, high = edges[s], edges[s + 1]
            inside = (x >= low) & ((x < high) if s < n_slabs - 1 else (x <= high))
            core = np.flatnonzero(inside)
            members, points = [core], [shifted[core]]
            for image in images:
                y = x + image
                near = (y >= low - halo) & (y <= high + halo)
                if image == 0:
                    near &= ~inside
                halo_atoms = np.flatnonzero(near)
                members.append(halo_atoms)
                points.append(shifted[halo_atoms] + image * box[axis])
            who = np.concatenate(members)
            i, j, d = _vesin(np.concatenate(points), slab_box, open_axes, radius)
            keep = slice(0, int(np.searchsorted(i, len(core))))  # rows are sorted by i; the core comes first
            yield core, i[keep], who[j[keep]].astype(np.int32), d[keep].astype(np.float32)

    return slabs()
