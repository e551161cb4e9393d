"""Pairs that go over a barrier, which plain MD has once in thousands or never, from released paths.

Of the pairs of frames one lag apart that begin on one side of a barrier a share p ends on the other side.
Where p is some 1e-4, plain MD of nanoseconds holds a handful of such pairs and a network learns them by heart
or not at all.  Walkers on a flattened surface release many (`training.reference_md.flattened`), and their
weights are known: a release k has the path x_k(s), plain MD on both sides of the release at s = 0, so with
the reasoning of `training.benchmarks.barriers.crossings` the probability, in equilibrium, of a pair that goes
over the barrier is

    P = sum over k, and over s with s <= 0 <= s + lag and x_k(s) and x_k(s + lag) on different sides,
        of 1 / (sum over moments between the two, on the ridge, of exp(-V / kT))
        / sum over all frames of walkers of exp(V / kT).

Equilibrium does not know the direction of time: each such pair counts half as it is and half reversed.
Divided by the population of the side on which a pair begins this is the share of that pair among all that
begin there, and times the number of plain pairs that begin there it is the number of plain pairs for which
it stands.  The pairs of plain MD that go over the barrier are left out in exchange.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from training.reference_md.releases import Bias, Block, read_blocks
from training.reference_md.walks import Walks, counted, walks
from training.score_dynamics.transitions import RarePairs, Transitions
from zoo.analysis.dihedrals import choose_dihedrals
from zoo.analysis.kinetics import torsions
from zoo.errors import StructureError
from zoo.molecules.molecule import Molecule

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def side_of(angle: npt.ArrayLike, bias: Bias) -> IntArray:
    """0 or 1: below or above the ridge, where the first torsion (degrees) is within half a turn of it."""
    return (_from_ridge(angle, bias) > 0).astype(np.int64)


def goes_over(before: npt.ArrayLike, after: npt.ArrayLike, bias: Bias) -> npt.NDArray[np.bool_]:
    """Whether the first torsion (degrees) goes over the ridge, and not the other way around the circle."""
    a, b = _from_ridge(before, bias), _from_ridge(after, bias)
    return np.asarray(((a > 0) != (b > 0)) & (np.abs(a - b) < 180.0))


def _from_ridge(angle: npt.ArrayLike, bias: Bias) -> Array:
    return np.asarray((np.asarray(angle, dtype=np.float64) - bias.ridge[0] + 180.0) % 360.0 - 180.0)


def exchanged(
    data: Transitions,
    is_plain: npt.NDArray[np.bool_],
    molecule: Molecule,
    folder: Path,
    names: Sequence[str] = ("flat-*",),
) -> tuple[Transitions, RarePairs]:
    """Pairs of plain MD without those over the barrier, and such pairs from blocks of flattened MD instead.

    Parameters
    ----------
    is_plain : (n_frames,) whether a frame of the data is of plain MD from equilibrium.
    folder, names : of the flattened MD, and patterns of its blocks.

    Raises
    ------
    StructureError : the folder holds no such blocks, or they are of another molecule or bias, too short for
        the lag, or hold no pair over the barrier; or no plain MD begins on one of its sides.
    """
    blocks, bias = read_blocks(folder, names), Bias.read(folder)
    if bias.sha256 != blocks[0].bias_sha256:
        raise StructureError(f"the blocks in {folder} were made with another bias than the one there")
    quadruples = choose_dihedrals(molecule, None).quadruples
    phi = np.asarray(torsions(data.frames.double().numpy(), quadruples)[:, 0])
    first = data.origins.numpy()
    plain = is_plain[first]
    over = goes_over(phi[first], phi[first + data.lag], bias) & plain
    n_plain = np.bincount(side_of(phi[first[plain]], bias), minlength=2)
    if not n_plain.all():
        raise StructureError(
            "the plain MD begins on one side of the barrier only: add segments from the other side"
        )
    kept = ~over
    rare = rare_pairs(
        blocks, bias, molecule.sites, quadruples, data.lag_time, (int(n_plain[0]), int(n_plain[1])),
        side_of(phi[first[kept]], bias),
    )  # fmt: skip
    return replace(data, origins=data.origins[torch.from_numpy(kept)]), rare


def rare_pairs(
    blocks: Sequence[Block],
    bias: Bias,
    sites: Sequence[int],
    quadruples: Sequence[Any],
    lag_time: float,
    n_plain: tuple[int, int],
    plain_side: IntArray,
) -> RarePairs:
    """All pairs over the barrier that contain the moment of a release, in both directions of time.

    Parameters
    ----------
    sites : atoms of the released MD which are the sites; ``quadruples`` of torsions refer to sites.
    lag_time : ps.
    n_plain : pairs of plain MD that begin on either side.
    plain_side : see `RarePairs`.

    Raises
    ------
    StructureError : the paths are shorter than two lags, or none goes over the barrier.
    """
    data = walks(blocks, sites, quadruples)
    positions = np.concatenate([b.paths[:, :, list(sites)] for b in counted(blocks)[0]])
    lag, middle = round(lag_time / data.dt), data.paths.shape[1] // 2
    if lag < 1 or abs(lag * data.dt - lag_time) > 1e-6 * lag_time or lag > middle:
        raise StructureError(
            f"released paths of {middle * data.dt:g} ps to either side, with frames every {data.dt:g} ps, "
            f"hold no pairs {lag_time:g} ps apart around their middle"
        )
    path, begin, end, side, share = over_the_barrier(data, bias, lag)
    if not len(path):
        raise StructureError("no released path goes over the barrier: let the walkers go on")
    return RarePairs(
        torch.from_numpy(positions[path, begin]),
        torch.from_numpy(positions[path, end]),
        torch.from_numpy(side),
        torch.from_numpy(share * np.array(n_plain)[side]),
        torch.from_numpy(plain_side),
    )


def over_the_barrier(
    data: Walks, bias: Bias, lag: int
) -> tuple[IntArray, IntArray, IntArray, IntArray, Array]:
    """Pairs over the barrier: path, first and last frame, side of the first, and share of those there.

    The shares of all pairs of a side add up to the probability that one that begins there goes over.
    """
    middle = data.paths.shape[1] // 2
    phi = data.paths[..., 0]
    on_ridge = np.where(bias.on_ridge(phi), np.exp(-bias.at(data.paths) / data.kt), 0.0)
    top = float(data.bias.max())  # exp(V / kT) is large
    weights = np.exp(data.bias - top)
    above = float(weights @ side_of(data.visited[:, 0], bias) / weights.sum())
    rows: list[tuple[int, int, int]] = []
    probability: list[float] = []
    for k in np.flatnonzero(on_ridge[:, middle] > 0):
        # by the same interpolation as along the path, so that its error cancels
        scale = on_ridge[k, middle] * np.exp(data.released[k] - top) / weights.sum()
        for s in range(middle - lag, middle + 1):
            if goes_over(phi[k, s], phi[k, s + lag], bias):
                rows += [(int(k), s, s + lag), (int(k), s + lag, s)]
                probability += 2 * [0.5 * scale / on_ridge[k, s : s + lag + 1].sum()]
    path, begin, end = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    side = side_of(phi[path, begin], bias)
    with np.errstate(divide="ignore"):
        return path, begin, end, side, np.array(probability) / np.array([1.0 - above, above])[side]
