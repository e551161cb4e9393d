"""Vibrations of a framework of stiff units that turn about their corners, from its geometry.

In quartz and cristobalite the tetrahedra of silicon and its four oxygens hardly change their shape; heat
turns them (rigid unit modes: Dove, Heine & Hammonds, Mineral. Mag. 59, 629, 1995).  Neighbours turn together,
by as much as makes a beta phase look like patches of its alpha phase at any moment.  Noise of single atoms
knows nothing of that.

Here displacements u have the Boltzmann distribution of springs of one stiffness along the bonds and the edges
of tetrahedra, and of weak ones that hold every atom at its site; u = L^-T z, where L L^T is the matrix of
springs.  Such springs say nothing of how far tetrahedra turn alike; so a part of most displacements are the
patterns of `training.turns`, with amplitudes that are alike over shorter or longer ways.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import vesin
from scipy.linalg import cholesky, solve_triangular

from training.turns import amplitudes, turned

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: A bond of silicon and oxygen is shorter than this, in length scales.
_BONDED = 0.95
#: The stiffness that holds atoms at their sites, over that of bonds.
_LEAST, _MOST = 0.002, 0.2
#: How often displacements are along straight lines.
_LINEAR = 0.3
#: By so much, per size in length scales, displacements are larger before they are stiffened.
_SHORTENS = 2.2
#: How often there is no pattern.
_UNITS_ALONE = 0.25


@dataclass(frozen=True)
class RigidUnits:
    """A structure of two species, as `training.lattices.Sample`; called, it draws displacements.

    ``modes`` (n, k, 3) are the patterns, if there are any, which have a ``share`` of at least and at most so
    much of the mean square.
    """

    positions: Array
    cell: Array
    pbc: npt.NDArray[np.bool_]
    species: IntArray
    modes: Array | None = None
    share: tuple[float, float] = (0.1, 0.9)

    def __call__(self, rng: np.random.Generator, size: float) -> Array:
        """Displacements (n, 3) of about ``size`` per component."""
        u = size * self.linear(rng)
        if rng.random() < _LINEAR:
            return u
        stiff = self.stiffened((1 + _SHORTENS * size) * u, int(rng.integers(5, 30)))
        return stiff + size * rng.uniform(0.03, 0.25) * rng.normal(size=u.shape)

    def stiffened(self, u: Array, n_steps: int) -> Array:
        """``u`` until all bonds, and all edges, are longer than in the crystal by the same part.

        Along straight lines what turns far becomes longer.  An oxygen that swings about the line between its
        silicons is thus rather on a circle around it than anywhere, as in beta-cristobalite (Peacor 1973).
        """
        u = u.copy()
        n = len(u)
        bonds, edges = self._pairs
        counts = sum(np.bincount(np.concatenate([i, j]), minlength=n) for i, j, _ in (bonds, edges))
        for _ in range(n_steps):
            moved = np.zeros_like(u)
            for i, j, d in (bonds, edges):
                if not len(i):
                    continue
                way = d + u[j] - u[i]
                length, rest = (np.linalg.norm(x, axis=1, keepdims=True) for x in (way, d))
                pull = (1 - np.mean(length / rest) * rest / length) * way
                np.add.at(moved, i, pull)
                np.add.at(moved, j, -pull)
            u += moved / np.maximum(counts, 1)[:, None]
        return np.asarray(u - u.mean(0))

    def linear(self, rng: np.random.Generator) -> Array:
        """Displacements (n, 3) of mean square one per component."""
        units = self._units(rng)
        if self.modes is None or rng.random() < _UNITS_ALONE:
            return units
        wave = amplitudes(self.positions, self.cell, self.pbc, self.modes.shape[1], rng)
        share = rng.uniform(*self.share)
        u = np.sqrt(share) * turned(self.modes, wave, rng) + np.sqrt(1 - share) * units
        return np.asarray(u / np.sqrt(np.mean(u**2)))

    def _units(self, rng: np.random.Generator) -> Array:
        n = len(self.positions)
        held = float(np.exp(rng.uniform(np.log(_LEAST), np.log(_MOST))))
        matrix = self.springs() + held * np.eye(3 * n)
        lower = cholesky(matrix, lower=True, overwrite_a=True, check_finite=False)
        z = rng.normal(size=3 * n)
        u = solve_triangular(lower, z, lower=True, trans="T", check_finite=False).reshape(n, 3)
        u -= u.mean(0)
        return np.asarray(u / np.sqrt(np.mean(u**2)))

    def springs(self) -> Array:
        """The matrix (3 n, 3 n) of springs along bonds and edges, of stiffness one."""
        n = len(self.positions)
        matrix = np.zeros((n, 3, n, 3))
        for i, j, d in self._pairs:
            if len(i):
                _add(matrix, i, j, d)
        return matrix.reshape(3 * n, 3 * n)

    @cached_property
    def _pairs(self) -> tuple[tuple[IntArray, IntArray, Array], tuple[IntArray, IntArray, Array]]:
        """Bonds, and edges, as the two atoms and the way from one to the other."""
        i, j, d = vesin.NeighborList(cutoff=_BONDED, full_list=True).compute(
            self.positions, self.cell, list(map(bool, self.pbc)), "ijD"
        )
        i, j = i.astype(np.int64), j.astype(np.int64)
        unlike = self.species[i] != self.species[j]
        i, j, d = i[unlike], j[unlike], d[unlike]
        forward = i < j
        bonds = (i[forward], j[forward], d[forward])
        # The edges: pairs of oxygens on one silicon, which is the larger number.
        central = self.species[i] == self.species.max()
        order = np.argsort(i[central], kind="stable")
        i, j, d = i[central][order], j[central][order], d[central][order]
        ends = np.flatnonzero(np.diff(i, append=-1)) + 1
        first, second, way = [j[:0]], [j[:0]], [d[:0]]
        start = 0
        for end in ends.tolist():
            a, b = np.triu_indices(end - start, 1)
            first.append(j[start:end][a])
            second.append(j[start:end][b])
            way.append(d[start:end][b] - d[start:end][a])
            start = end
        return bonds, (np.concatenate(first), np.concatenate(second), np.concatenate(way))


def _add(matrix: Array, i: IntArray, j: IntArray, d: Array) -> None:
    unit = d / np.linalg.norm(d, axis=1, keepdims=True)
    block = unit[:, :, None] * unit[:, None, :]
    apart = i != j  # an atom and its own image move together
    i, j, block = i[apart], j[apart], block[apart]
    for a, b, sign in ((i, i, 1), (j, j, 1), (i, j, -1), (j, i, -1)):
        np.add.at(matrix.transpose(0, 2, 1, 3), (a, b), sign * block)
