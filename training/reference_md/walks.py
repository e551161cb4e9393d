"""Walkers on a flattened surface and the paths that they released, as angles and weights.

A walker on U + V is at x with the density exp(-(U + V) / kT): what it visits counts exp(V / kT) times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from training.reference_md.releases import Block
from zoo.analysis.kinetics import torsions
from zoo.errors import StructureError

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
#: ps; a walker forgets where it was within some hundreds.
STRETCH, BURN_IN = 300.0, 100.0


@dataclass(frozen=True)
class Walks:
    """Walkers and released paths in the first two torsions (degrees).

    Attributes
    ----------
    visited, bias, unit : (n, 2) torsions at equal times, (n,) V / kT there, and (n,) the stretch of a walker,
        from 0.
    paths, released, path_unit : (n_paths, n_frames, 2), released at the frame in the middle, (n_paths,)
        V / kT there, and (n_paths,) the stretch.
    dt : ps between the frames of a path.
    kt : kJ/mol.
    long_paths, long_of : (n_long, n_long_frames, 2), those that went on for longer, and (n_long,) which ones
        of ``paths`` they are.
    """

    visited: Array
    bias: Array
    unit: IntArray
    paths: Array
    released: Array
    path_unit: IntArray
    dt: float
    kt: float
    long_paths: Array = field(default_factory=lambda: np.zeros((0, 0, 2)))
    long_of: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def of_long(self) -> Walks:
        """The paths that went on in place of all paths."""
        return replace(
            self,
            paths=self.long_paths,
            released=self.released[self.long_of],
            path_unit=self.path_unit[self.long_of],
            long_of=np.arange(len(self.long_of)),
        )

    @property
    def n_units(self) -> int:
        return int(self.unit.max()) + 1


def counted(blocks: Sequence[Block]) -> tuple[list[Block], list[int]]:
    """The blocks that count, walker after walker, and the stretch of each, from 0.

    Consecutive blocks of a walker are together until they are `STRETCH` ps long; its first `BURN_IN` ps do
    not count.

    Raises
    ------
    StructureError : no walker is longer than that.
    """
    kept: list[Block] = []
    units: list[int] = []
    unit = -1
    for number in sorted({b.walker for b in blocks}):
        mine = sorted((b for b in blocks if b.walker == number), key=lambda b: b.name)
        age, length = 0.0, STRETCH
        for b in mine:
            age += b.every * len(b.visited)
            if age <= BURN_IN:
                continue
            if length >= STRETCH:
                unit, length = unit + 1, 0.0
            length += b.every * len(b.visited)
            kept.append(b)
            units.append(unit)
    if not kept:
        raise StructureError(f"no walker is longer than the first {BURN_IN:g} ps, which do not count")
    return kept, units


def walks(blocks: Sequence[Block], sites: Sequence[int], quadruples: Sequence[Any]) -> Walks:
    """Of blocks that were read; ``sites`` are the atoms to which ``quadruples`` of the torsions refer.

    Raises
    ------
    StructureError : the blocks are of another molecule, or no longer than the time that does not count.
    """
    if blocks[0].paths.shape[2] <= max(sites):
        raise StructureError(f"the released MD is of {blocks[0].paths.shape[2]} atoms: another molecule")
    kept, units = counted(blocks)
    before = np.cumsum([0, *(len(b.paths) for b in kept)])[:-1]
    long = [(start, b) for start, b in zip(before, kept, strict=True) if len(b.long_paths)]
    if len({b.long_paths.shape[1] for _, b in long}) > 1:
        raise StructureError("the released MD went on for longer in some blocks than in others")
    found = Walks(
        np.concatenate([b.visited for b in kept]),
        np.concatenate([b.bias for b in kept]),
        np.repeat(units, [len(b.visited) for b in kept]),
        np.concatenate([_angles(b.paths[:, :, list(sites)], quadruples) for b in kept]),
        np.concatenate([b.released for b in kept]),
        np.repeat(units, [len(b.paths) for b in kept]),
        kept[0].dt,
        kept[0].kt,
    )
    if not long:
        return found
    long_paths = np.concatenate([b.long_paths[:, :, list(sites)] for _, b in long])
    return replace(
        found,
        long_paths=_angles(long_paths, quadruples),
        long_of=np.concatenate([start + b.long_of for start, b in long if b.long_of is not None]),
    )


def _angles(paths: npt.NDArray[np.float32], quadruples: Sequence[Any]) -> Array:
    flat = paths.reshape(-1, *paths.shape[2:]).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        angles = torsions(flat, quadruples)
    if not np.isfinite(angles).all():
        raise StructureError("in the released MD there are atoms on top of each other")
    return angles.reshape(*paths.shape[:2], -1)
