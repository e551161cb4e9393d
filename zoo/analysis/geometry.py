"""Bond lengths, angles and handedness along trajectories: do they stay what they are in MD?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.molecules.molecule import Molecule, handedness

Array = npt.NDArray[np.float64]

#: Frames that are measured at once: long trajectories need no more memory than short ones.
CHUNK = 20_000


@dataclass(frozen=True)
class Internals:
    """The bonds and angles between the sites of a molecule."""

    molecule: Molecule

    @property
    def bonds(self) -> tuple[tuple[int, int], ...]:
        return self.molecule.site_bonds

    @cached_property
    def angles(self) -> tuple[tuple[int, int, int], ...]:
        """(a, centre, b) for every pair of bonds that share a site."""
        near: dict[int, list[int]] = {}
        for i, j in self.bonds:
            near.setdefault(i, []).append(j)
            near.setdefault(j, []).append(i)
        return tuple(
            (a, centre, b)
            for centre, others in sorted(near.items())
            for k, a in enumerate(sorted(others))
            for b in sorted(others)[k + 1 :]
        )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Bonds, then angles, as CA-CB and N-CA-CB."""
        labels = self.molecule.site_labels
        return tuple("-".join(labels[i] for i in each) for each in (*self.bonds, *self.angles))

    @property
    def units(self) -> tuple[str, ...]:
        return ("Å",) * len(self.bonds) + ("°",) * len(self.angles)

    def measure(self, positions: Any) -> Array:
        """(n, n_bonds + n_angles) lengths in Å and angles in degrees of positions (n, n_sites, 3) Å."""
        x = np.asarray(positions, dtype=np.float64)
        parts = []
        if self.bonds:
            i, j = np.array(self.bonds).T
            parts.append(np.linalg.norm(x[:, i] - x[:, j], axis=-1))
        if self.angles:
            a, centre, b = np.array(self.angles).T
            u, v = x[:, a] - x[:, centre], x[:, b] - x[:, centre]
            with np.errstate(divide="ignore", invalid="ignore"):
                cosine = (u * v).sum(-1) / (np.linalg.norm(u, axis=-1) * np.linalg.norm(v, axis=-1))
            parts.append(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))
        return np.concatenate(parts, axis=1) if parts else np.zeros((len(x), 0))


@dataclass(frozen=True)
class Geometry:
    """Sums over one trajectory, from which means and standard deviations of any set of them follow.

    Attributes
    ----------
    n, total, squares : frames, and (n_internals,) sums and sums of squares, of the whole trajectory.
    first, last : (n_internals,) means over its first and its last quarter.
    inverted_stereocentres : frames in which a stereocentre has another handedness than it should have,
        summed over centres.
    inverted_centres : the same of all tetrahedral centres; of those that are no stereocentres the handedness
        is that of how equal atoms are numbered, and the first frame of the trajectory has the right one.
    flips : changes of handedness of stereocentres from one frame to the next.
    """

    n: int
    total: Array
    squares: Array
    first: Array
    last: Array
    inverted_stereocentres: int
    inverted_centres: int
    flips: int


def measure_geometry(
    positions: Any, internals: Internals, shift: Array | None = None, hands: Any = None
) -> Geometry:
    """The geometry of one trajectory (n_frames, n_sites, 3) Å.

    ``shift`` (n_internals,) is subtracted before summing, lest squares of large numbers eat the digits;
    use the same one for all trajectories that are put together.  ``hands`` (n_centres,) is the right
    handedness of the stereocentres; without it that of the first frame is.
    """
    molecule = internals.molecule
    n = len(positions)
    quarter = max(1, n // 4)
    size = len(internals.names)
    total, squares, first, last = (np.zeros(size) for _ in range(4))
    zero = np.zeros(size) if shift is None else shift
    stereo = {centre[0] for centre in molecule.stereocentres}
    is_stereo = np.array([centre[0] in stereo for centre in molecule.centres], dtype=bool)
    start = before = None
    inverted = np.zeros(len(molecule.centres), dtype=np.int64)
    flips = 0
    for begin in range(0, n, CHUNK):
        x = np.asarray(positions[begin : begin + CHUNK], dtype=np.float64)
        values = internals.measure(x) - zero
        total += values.sum(0)
        squares += (values**2).sum(0)
        number = np.arange(begin, begin + len(x))
        first += values[number < quarter].sum(0)
        last += values[number >= n - quarter].sum(0)
        if molecule.centres:
            now = np.asarray(handedness(x, molecule.centres))
            if start is None:
                start = now[0] if hands is None else np.where(is_stereo, hands, now[0])
            inverted += (now != start).sum(0)
            steps = now if before is None else np.concatenate([before[None], now])
            flips += int((steps[1:] != steps[:-1])[:, is_stereo].sum())
            before = now[-1]
    return Geometry(
        n, total, squares, first / quarter, last / quarter,
        int(inverted[is_stereo].sum()), int(inverted.sum()), flips,
    )  # fmt: skip
