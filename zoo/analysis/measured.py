"""One set of trajectories (MD, or a rollout) reduced to what an evaluation needs: angles and geometry."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.analysis.bootstrap import resample
from zoo.analysis.geometry import CHUNK, Geometry, Internals, measure_geometry
from zoo.analysis.kinetics import torsions
from zoo.errors import StructureError

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Quadruple = tuple[int, int, int, int]

#: With fewer trajectories than this, they are cut into about as many blocks as this for the bootstrap.
ENOUGH_UNITS = 10


@dataclass(frozen=True)
class Measured:
    """A set of trajectories.

    Attributes
    ----------
    angles : one (n_frames, n_dihedrals) array in degrees per trajectory.
    geometry : one per trajectory.
    units : the bootstrap unit of each frame, numbered over all trajectories.
    whole : whether each unit is a whole trajectory.
    """

    angles: list[Array]
    geometry: list[Geometry]
    units: list[IntArray]
    whole: bool

    @property
    def n_trajectories(self) -> int:
        return len(self.angles)

    @property
    def n_frames(self) -> int:
        return sum(map(len, self.angles))

    @property
    def n_steps(self) -> int:
        """Intervals between frames, summed over trajectories."""
        return self.n_frames - self.n_trajectories

    @property
    def n_units(self) -> int:
        return int(self.units[-1][-1]) + 1

    @property
    def longest(self) -> int:
        """Steps of the longest trajectory."""
        return max(map(len, self.angles)) - 1

    def weights(self, n_resamples: int, seed: int, stream: int) -> Array:
        """(n_resamples, n_units), see `zoo.analysis.bootstrap.resample`."""
        return resample(self.n_units, n_resamples, seed, stream)

    def no_longer_than(self, other: Measured) -> list[IntArray]:
        """Units like `units`, but cut to about the length of another set's where they are longer."""
        wanted = other.n_frames / other.n_units
        if self.n_frames / self.n_units <= 1.5 * wanted:
            return self.units
        return cut([len(each) for each in self.angles], max(1, round(wanted)))[0]

    def histograms(
        self,
        axes: Sequence[int],
        n_bins: int,
        chosen: Sequence[Any] | None = None,
        units: Sequence[IntArray] | None = None,
    ) -> Array:
        """(n_units, n_bins**len(axes)) counts of frames in periodic bins of these dihedrals.

        ``chosen``: one boolean array per trajectory, of the frames that count; ``units``: other ones than
        its own.
        """
        units = self.units if units is None else units
        result = np.zeros((int(units[-1][-1]) + 1, n_bins ** len(axes)))
        for k, (angles, unit) in enumerate(zip(self.angles, units, strict=True)):
            cell = np.zeros(len(angles), dtype=np.int64)
            for axis in axes:
                wrapped = (angles[:, axis] + 180.0) % 360.0
                cell = cell * n_bins + np.minimum((wrapped * (n_bins / 360.0)).astype(int), n_bins - 1)
            here = slice(None) if chosen is None else chosen[k]
            np.add.at(result, (unit[here], cell[here]), 1.0)
        return result


def measure(
    trajectories: Iterable[Any],
    internals: Internals,
    quadruples: Sequence[Quadruple],
    what: str,
    shift: Array | None = None,
    block_steps: int | None = None,
    hands: Any = None,
) -> Measured:
    """Dihedrals and geometry of trajectories (n_frames, n_sites, 3) Å, one at a time, in chunks of frames.

    Parameters
    ----------
    what : "reference" or "rollout", for messages.
    shift, hands : see `measure_geometry`.
    block_steps : see `cut`.

    Raises
    ------
    StructureError : no trajectory, one of another shape or with fewer than two frames, or not finite.
    """
    angles: list[Array] = []
    geometry: list[Geometry] = []
    n_sites = internals.molecule.n_sites
    for k, positions in enumerate(trajectories):
        shape = np.shape(positions)
        if len(shape) != 3 or shape[1:] != (n_sites, 3):
            raise StructureError(
                f"{what} trajectory {k} has the shape {shape}; the molecule needs (n_frames, {n_sites}, 3)"
            )
        if shape[0] < 2:
            raise StructureError(
                f"{what} trajectory {k} is too short: {shape[0]} frame{'s' * (shape[0] != 1)}, and a rate "
                "needs at least two"
            )
        pieces = []
        for begin in range(0, shape[0], CHUNK):
            chunk = np.asarray(positions[begin : begin + CHUNK], dtype=np.float64)
            with np.errstate(divide="ignore", invalid="ignore"):
                pieces.append(torsions(chunk, quadruples))
            if not np.isfinite(chunk).all() or not np.isfinite(pieces[-1]).all():
                bad = np.isfinite(chunk).all(axis=(1, 2)) & np.isfinite(pieces[-1]).all(axis=1)
                raise StructureError(
                    f"{what} trajectory {k}, frame {begin + int(np.argmin(bad))}: coordinates that are not "
                    "finite, or atoms on top of each other"
                )
        angles.append(np.concatenate(pieces))
        geometry.append(measure_geometry(positions, internals, shift, hands))
    if not angles:
        raise StructureError(f"no {what} trajectory")
    units, whole = cut([len(each) for each in angles], block_steps)
    return Measured(angles, geometry, units, whole)


def cut(lengths: Sequence[int], block_steps: int | None = None) -> tuple[list[IntArray], bool]:
    """Bootstrap units of trajectories with these numbers of frames, and whether these are the whole ones.

    Ten or more trajectories are units as they are.  Of fewer, each is cut into equal blocks, so that
    there are about ten; ``block_steps`` asks for blocks of that many frames instead (0: never cut).
    """
    if block_steps == 0 or (block_steps is None and len(lengths) >= ENOUGH_UNITS):
        pieces = [1] * len(lengths)
    else:
        size = sum(lengths) / ENOUGH_UNITS if block_steps is None else float(block_steps)
        up = math.ceil if block_steps is None else round
        pieces = [min(max(1, up(n / size - 1e-9)), n) for n in lengths]
    units, first = [], 0
    for n, parts in zip(lengths, pieces, strict=True):
        units.append(first + np.arange(n) * parts // n)
        first += parts
    return units, max(pieces, default=1) == 1
