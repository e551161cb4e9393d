"""What atoms of reference MD are, told without any model: their mean positions beside the perfect crystal.

Vibration averages out over a few picoseconds, a change of phase does not.  Mean positions are compared with
the perfect structure stretched to the mean cell.  For silica also the turns of the tetrahedra away from the
phase of higher symmetry are told, which is what tells alpha from beta.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from ase import Atoms
from ase.build import make_supercell
from ase.spacegroup import crystal
from scipy.spatial.transform import Rotation

from training.polymorphs import SILICA, orthogonal

Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

#: An atom is on its site when its mean position is nearer to it than this part of the nearest distance.
NEAR = 0.25
#: Sites of the parent of high symmetry in the setting of the alpha phase: those of silicon and of oxygen.
_PARENTS = {
    "alpha-quartz": ((0.5, 0, 2 / 3), (0.4144, 0.2072, 5 / 6)),
    "alpha-cristobalite": ((0.25, 0.25, 0), (0.25, 0, 0.125)),
}


@dataclass(frozen=True)
class Mean:
    """Positions averaged over a time.

    Attributes
    ----------
    scaled : (n_atoms, 3) in parts of the cell, never wrapped.
    lengths : (3,) of the mean cell, Å.
    """

    scaled: Array
    lengths: Array


class Averager:
    """Collects frames of an orthogonal cell; atoms that drift together are not blamed for it."""

    def __init__(self) -> None:
        self._first: Array | None = None
        self._last = self._sum = self._lengths = np.zeros(0)
        self._n = 0

    def add(self, positions: Array, lengths: Array) -> None:
        """``positions`` (n_atoms, 3) and ``lengths`` (3,) in Å; wrapped or not."""
        scaled = positions / lengths
        if self._first is None:
            self._first = self._last = scaled
            self._sum, self._lengths = np.zeros_like(scaled), np.zeros(3)
        step = scaled - self._last
        self._last = self._last + step - np.round(step)
        moved = self._last - self._first
        self._sum = self._sum + moved - moved.mean(0)
        self._lengths = self._lengths + lengths
        self._n += 1

    def mean(self) -> Mean:
        """Of what was added since it was made.

        Raises
        ------
        ValueError : nothing was.
        """
        if self._first is None:
            raise ValueError("no frame to average")
        return Mean(self._first + self._sum / self._n, self._lengths / self._n)

    def distance(self) -> float:
        """Root mean square distance in Å from the first frame to the last, a common drift taken out."""
        if self._first is None:
            return 0.0
        moved = self._last - self._first
        moved = (moved - moved.mean(0)) * self._lengths / self._n
        return float(np.sqrt((moved**2).sum(1).mean()))


def averaged(advance: Callable[[], tuple[Array, Array]], n: int) -> Mean:
    """Mean of ``n`` frames; ``advance`` runs on and returns positions and cell lengths, Å."""
    averager = Averager()
    for _ in range(n):
        averager.add(*advance())
    return averager.mean()


def away(mean: Mean, sites: Atoms) -> Array:
    """(n_atoms, 3) Å from each atom's own site in ``sites``, stretched to the mean cell.

    A common translation is taken out, by the median first: a few atoms that left do not move the others.
    """
    d = mean.scaled - sites.get_scaled_positions(wrap=False)
    d -= np.round(d)
    for _ in range(2):
        d -= np.median(d, axis=0)  # an offset of half a cell would split around the cut
        d -= np.round(d)
    near = np.linalg.norm(d * mean.lengths, axis=1) < 1.5
    if near.any():
        d -= d[near].mean(0)
    moved: Array = d * mean.lengths
    return moved


def on_site(mean: Mean, sites: Atoms, nearest: float, near: float = NEAR) -> BoolArray:
    """(n_atoms,) whether the mean position is within ``near`` of ``nearest`` (Å) of the atom's own site."""
    return np.asarray(np.linalg.norm(away(mean, sites), axis=1) < near * nearest)


def nearest_distance(atoms: Atoms) -> float:
    """Shortest distance in Å between two atoms of a crystal whose atoms are all bonded."""
    block = atoms.repeat([max(1, int(np.ceil(7 / length))) for length in atoms.cell.lengths()])
    d = block.get_distances(0, range(1, len(block)), mic=True)
    return float(d.min())


def parent(name: str) -> Atoms:
    """`orthogonal` of a phase of silica with its atoms on the sites of its parent of high symmetry.

    Beta phases are their own parents.  Atoms are in the order of ``orthogonal(name)`` and near to it, so that
    both can be repeated.
    """
    atoms = orthogonal(name)
    if name not in _PARENTS:
        return atoms
    entry = SILICA[name]
    high = crystal(
        [symbol for symbol, _ in entry.sites], _PARENTS[name],
        spacegroup=entry.spacegroup[0], setting=entry.spacegroup[1], cellpar=list(entry.cell),
    )  # fmt: skip
    if entry.cell[5] == 120:
        high = make_supercell(high, np.array(((1, 0, 0), (1, 2, 0), (0, 0, 1))))
    d = atoms.get_scaled_positions()[:, None] - high.get_scaled_positions()
    d -= np.round(d)
    far = np.linalg.norm(d * atoms.cell.lengths(), axis=2) + 1e3 * (atoms.numbers[:, None] != high.numbers)
    chosen = d[np.arange(len(atoms)), far.argmin(1)]
    assert len(set(far.argmin(1).tolist())) == len(atoms)
    return Atoms(atoms.symbols, atoms.positions - chosen * atoms.cell.lengths(), cell=atoms.cell, pbc=True)


class Tetrahedra:
    """How the SiO4 tetrahedra of a repeated phase of silica turn from its parent of high symmetry.

    >>> Tetrahedra("alpha-quartz", (2, 1, 2)).turned(mean)  # doctest: +SKIP
    """

    def __init__(self, name: str, cells: tuple[int, int, int]) -> None:
        self.sites = orthogonal(name).repeat(cells)
        self._parent = parent(name).repeat(cells)
        scaled, lengths = self._parent.get_scaled_positions(wrap=False), self._parent.cell.lengths()
        self._silicon = np.flatnonzero(self._parent.numbers == 14)
        oxygen = np.flatnonzero(self._parent.numbers == 8)
        d = scaled[oxygen] - scaled[self._silicon][:, None]
        far = np.linalg.norm((d - np.round(d)) * lengths, axis=2)
        self._corners = oxygen[far.argsort(axis=1)[:, :4]]

    def _spokes(self, scaled: Array, lengths: Array) -> Array:
        d = scaled[self._corners] - scaled[self._silicon][:, None]
        spokes: Array = (d - np.round(d)) * lengths
        return spokes

    def turned(self, mean: Mean) -> Array:
        """(n_silicon, 3) rotation vectors in degrees, by least squares over the four corners."""
        before = self._spokes(self._parent.get_scaled_positions(wrap=False), mean.lengths)
        after = self._spokes(mean.scaled, mean.lengths)
        u, _, vt = np.linalg.svd(np.einsum("nki,nkj->nij", before, after))
        proper = np.broadcast_to(np.eye(3), u.shape).copy()
        proper[:, 2, 2] = np.sign(np.linalg.det(u @ vt))
        matrices = np.swapaxes(vt, 1, 2) @ proper @ np.swapaxes(u, 1, 2)
        vectors: Array = Rotation.from_matrix(matrices).as_rotvec(degrees=True)
        return vectors

    def tilt(self, mean: Mean) -> float:
        """Mean angle of the turns in degrees, 0 in the beta phases."""
        return float(np.linalg.norm(self.turned(mean), axis=1).mean())

    def sites_at(self, mean: Mean) -> Atoms:
        """The perfect structure, of an alpha phase with its tetrahedra turned as far as they are."""
        order = self.order(mean)
        if not np.isfinite(order):
            return self.sites
        atoms: Atoms = self.sites.copy()
        atoms.positions += (order - 1) * (self.sites.positions - self._parent.positions)
        return atoms

    def order(self, mean: Mean) -> float:
        """How far atoms are on the way from the parent (0) to the published alpha phase (1).

        -1 is the other twin of quartz.  NaN for a beta phase, which is its own parent.
        """
        way = self.sites.positions - self._parent.positions
        way = (way - way.mean(0)) / self.sites.cell.lengths() * mean.lengths
        size = float((way**2).sum())
        return float((away(mean, self._parent) * way).sum() / size) if size > 1e-3 else float("nan")
