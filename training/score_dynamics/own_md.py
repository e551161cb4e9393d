"""A user's own MD, read for training: found, checked, mended, and split into training and held-out parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.own_simulation import FEWEST_PAIRS
from training.reference_md.segments import Segment
from zoo.analysis.trajectories import frame_interval, read_reference, reference_molecule
from zoo.errors import StructureError
from zoo.molecules.bonds import default_bond_lengths
from zoo.molecules.molecule import Molecule

#: A bond so many times as long as usual is one across the periodic box, or broken.
_BROKEN = 1.6
#: Å; a small molecule diffuses less between two frames than this, and a box is wider.
JUMP = 8.0


@dataclass(frozen=True)
class Run:
    """One trajectory: ``positions`` (n_frames, n_atoms, 3) Å, every ``interval`` ps."""

    path: Path
    positions: npt.NDArray[np.float32]
    interval: float
    jumps: int
    """Places where the molecule was wrapped into the box; mended."""


def read_runs(
    paths: Sequence[Path],
    topology: Path | None,
    lag_time: float,
    interval: float | None = None,
    *,
    molecule: Molecule | None = None,
    labels_like: Any = None,
) -> tuple[Molecule, list[Run]]:
    """The molecule (all atoms, without solvent) of some trajectories, and where it went in each of them.

    Parameters
    ----------
    molecule, labels_like : look for this one, and take its sites only; see `read_reference`.

    Raises
    ------
    StructureError : one line: no such file, another topology, uneven or different intervals, an interval
        that does not divide the lag time, a molecule torn apart, too few frames.
    """
    given = molecule is not None
    runs: list[Run] = []
    for path in paths:
        here = molecule if given and molecule is not None else reference_molecule(path, topology)
        if molecule is not None and (here.elements, here.bonds) != (molecule.elements, molecule.bonds):
            raise StructureError(
                f"{path} is of {here.formula} and {paths[0]} of {molecule.formula}, or their atoms are in "
                "another order: give runs of one molecule and one topology"
            )
        molecule = molecule or here
        step = interval if interval is not None else frame_interval(path, topology, "--interval")
        if runs and not math.isclose(step, runs[0].interval, rel_tol=1e-3):
            raise StructureError(
                f"{path} has frames every {step:g} ps and {runs[0].path} every {runs[0].interval:g} ps: give "
                "runs of one spacing, or thin the finer one first"
            )
        lag = round(lag_time / step)
        if lag < 1 or not math.isclose(lag * step, lag_time, rel_tol=1e-3):
            raise StructureError(
                f"{path} has frames every {step:g} ps, which do not make a lag of {lag_time:g} ps: write "
                f"frames every {lag_time / max(lag, 1):g} ps, or train --from-nothing with "
                f"--lag {max(1, lag) * step:g}"
            )
        read = read_reference(
            path, molecule, step, topology=topology, interval=interval, labels_like=labels_like
        )
        positions, jumps = mended(read.positions)
        _check_bonds(path, molecule, positions)
        runs.append(Run(path, positions, step, jumps))
    if molecule is None:
        raise StructureError("no trajectory is given")
    pairs = sum(max(len(r.positions) - round(lag_time / r.interval), 0) for r in runs)
    if pairs < FEWEST_PAIRS:
        raise StructureError(
            f"{sum(len(r.positions) for r in runs)} frames in {len(runs)} "
            f"{'run' if len(runs) == 1 else 'runs'} make {pairs} pairs {lag_time:g} ps apart, and at least "
            f"{FEWEST_PAIRS} are needed: run on for {(FEWEST_PAIRS - pairs) * runs[0].interval:.3g} ps more, "
            "or write frames more often"
        )
    return molecule, runs


def mended(positions: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], int]:
    """Positions without the jumps of a molecule that was wrapped into the box as a whole, and their number.

    What is put in place of a jump is no motion at all: the box need not be known.
    """
    centre = positions.astype(np.float64).mean(1)
    moves = np.diff(centre, axis=0)
    jumped = np.linalg.norm(moves, axis=1) > JUMP
    if not jumped.any():
        return positions, 0
    shift = np.concatenate([np.zeros((1, 3)), np.cumsum(np.where(jumped[:, None], moves, 0.0), axis=0)])
    return (positions - shift[:, None]).astype(np.float32), int(jumped.sum())


def _check_bonds(path: Path, molecule: Molecule, positions: npt.NDArray[np.float32]) -> None:
    """Raise StructureError if some frame has a bond that is far too long."""
    ends = np.array(molecule.site_bonds)
    lengths = np.linalg.norm(positions[:, ends[:, 0]] - positions[:, ends[:, 1]], axis=-1)
    ratio = lengths / default_bond_lengths(molecule)
    if ratio.max() > _BROKEN:
        frame, bond = np.unravel_index(int(ratio.argmax()), ratio.shape)
        i, j = ends[bond]
        raise StructureError(
            f"{path}, frame {frame}: bond {molecule.site_labels[i]}-{molecule.site_labels[j]} is "
            f"{lengths[frame, bond]:.1f} Å long: the molecule jumps across the periodic box and the file "
            "has no box to mend it with; make it whole first (gmx trjconv -pbc whole); or the topology is of "
            "other atoms"
        )


def split(
    runs: Sequence[Run], lag_time: float, held_out: float
) -> tuple[list[Segment], list[Segment], list[Segment]]:
    """Training, validation and held-out parts: whole runs where there are five or more, else their ends.

    Validation, which says whether training helped, is half of what is held out.
    """
    if len(runs) >= 5:
        n = max(2, round(held_out * len(runs)))
        return (
            [_segment(r, 0, len(r.positions)) for r in runs[:-n]],
            [_segment(r, 0, len(r.positions)) for r in runs[-n : -n + n // 2]],
            [_segment(r, 0, len(r.positions)) for r in runs[-n + n // 2 :]],
        )
    parts: tuple[list[Segment], list[Segment], list[Segment]] = ([], [], [])
    for run in runs:
        n = len(run.positions)
        gap = round(lag_time / run.interval)  # no pair reaches from one part into the next
        cuts = [0, round(n * (1 - held_out)), round(n * (1 - held_out / 2)), n]
        for part, begin, end in zip(parts, cuts[:-1], cuts[1:], strict=True):
            first = begin + (gap if begin else 0)
            if end - first > gap:
                part.append(_segment(run, first, end))
    return parts


def _segment(run: Run, begin: int, end: int) -> Segment:
    return Segment(f"{run.path.name}[{begin}:{end}]", run.positions[begin:end], run.interval, (), run.path)
