"""Populations and rates over a barrier from walkers on a flattened surface and what they released.

**Populations.**  A walker on U + V is at x with the density exp(-(U + V) / kT), so the share of a region is
the sum of w = exp(V / kT) over its frames in it, over the sum of all.

**Rates.**  In equilibrium let J be the number of transitions per time from A to B.  Between the last frame
in A and the first one in B lies the transition path, a few frames long.  Walkers are cloned at every frame
on the ridge of the barrier, over which all paths lead.  Share one transition among the frames s of its path
on the ridge, g_s = exp(-V_s / kT) / sum_s' exp(-V_s' / kT); then J dt is the mean, over the frames of
equilibrium, of g at those that are on transition paths:

    J = (1 / dt) sum over releases on a path from A to B of 1 / (sum over s of the path of exp(-V_s / kT))
        / sum over all frames of walkers of w.

This is exact for paths that are plain MD on both sides of the release, which pairs of clones with opposite
velocities are; any other g would do, but this one has no rare and heavy terms (compare Hummer, J. Chem.
Phys. 120, 516, 2004).  Paths there and back count alike, so J is the mean of both directions.  The mean
first-passage time from A to B, counted as in `zoo.analysis.rates`, is the share of time since A was
visited last over J, and over a high barrier that share is the population of A.

Intervals resample whole blocks of walkers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.reference_md.releases import Bias, Block
from training.reference_md.segments import GAS_CONSTANT
from zoo.analysis.basins import Basins
from zoo.analysis.bootstrap import Estimate, estimate, resample
from zoo.analysis.kinetics import torsions
from zoo.errors import StructureError

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Key = tuple[str, str]
_TEMPERATURE = 300.0  # K


@dataclass(frozen=True)
class Walks:
    """Walkers and released paths in the first two torsions (degrees).

    Attributes
    ----------
    visited, bias, block : (n, 2) torsions at equal times, (n,) V / kT there, and (n,) the block, from 0.
    paths, path_block : (n_paths, n_frames, 2), released at the frame in the middle, and (n_paths,) the block.
    dt : ps between the frames of a path.
    """

    visited: Array
    bias: Array
    block: IntArray
    paths: Array
    path_block: IntArray
    dt: float

    @property
    def n_blocks(self) -> int:
        return int(self.block.max()) + 1


def walks(blocks: Sequence[Block], sites: Sequence[int], quadruples: Sequence[Any]) -> Walks:
    """Of blocks that were read; ``sites`` are the atoms to which ``quadruples`` of the torsions refer."""
    number = np.arange(len(blocks))
    return Walks(
        np.concatenate([b.visited for b in blocks]),
        np.concatenate([b.bias for b in blocks]),
        np.repeat(number, [len(b.visited) for b in blocks]),
        np.concatenate([_angles(b.paths[:, :, list(sites)], quadruples) for b in blocks]),
        np.repeat(number, [len(b.paths) for b in blocks]),
        blocks[0].dt,
    )


def _angles(paths: npt.NDArray[np.float32], quadruples: Sequence[Any]) -> Array:
    flat = paths.reshape(-1, *paths.shape[2:]).astype(np.float64)
    return torsions(flat, quadruples).reshape(*paths.shape[:2], -1)


@dataclass(frozen=True)
class Crossing:
    """Transition paths between two groups among the releases.

    Attributes
    ----------
    share : (n_paths,) 1 / sum of exp(-V / kT) over the frames of the path on the ridge; 0 for releases that
        are on none.
    unresolved : releases whose path does not come to a core on both sides.
    """

    share: Array
    unresolved: int

    @property
    def events(self) -> int:
        return int((self.share > 0).sum())


def crossings(paths: Array, bias: Bias, groups: IntArray, kt: float) -> Crossing:
    """Transition paths between two groups of cores.

    Parameters
    ----------
    paths : (n, n_frames, 2) degrees.
    groups : (n, n_frames) group, 0 or 1, in a core of which each frame is; -1 outside of all cores.
    kt : kJ/mol.

    Raises
    ------
    StructureError : the number of frames is even, so there is none in the middle.
    """
    n, n_frames = groups.shape
    if n_frames % 2 == 0:
        raise StructureError(f"paths of {n_frames} frames have none in the middle")
    middle = n_frames // 2
    share, unresolved = np.zeros(n), 0
    for k in np.flatnonzero(groups[:, middle] < 0):
        inside = np.flatnonzero(groups[k] >= 0)
        before, after = inside[inside < middle], inside[inside > middle]
        if not len(before) or not len(after):
            unresolved += 1
            continue
        last, first = before[-1], after[0]
        path = paths[k, last + 1 : first]
        ridge = bias.on_ridge(path[:, 0])
        if groups[k, last] != groups[k, first] and ridge[middle - last - 1]:
            share[k] = 1.0 / np.exp(-bias.at(path[ridge]) / kt).sum()
    return Crossing(share, unresolved)


def estimates(
    data: Walks, bias: Bias, basins: Basins, n_resamples: int = 1000, seed: int = 0
) -> tuple[dict[Key, Estimate], Crossing]:
    """Populations of all basins and groups, and mean first-passage times between the two groups.

    Returns
    -------
    By kind ("population", "group population", "group mfpt", as in `zoo.analysis.evaluation`) and name (of
    the basin or group, "A within G", "A → B"; ps), and the crossings.  Events are frames of walkers in the
    basin or group, and releases on transition paths.

    Raises
    ------
    StructureError : the basins are not in two groups, or the paths have no frame in the middle.
    """
    if len(basins.groups) != 2:
        raise StructureError("rates over a barrier need two groups of basins")
    flat = data.paths.reshape(-1, 2)
    groups = basins.grouped(basins.cores(flat)).reshape(data.paths.shape[:2])
    crossing = crossings(data.paths, bias, groups, GAS_CONSTANT * _TEMPERATURE)
    region = basins.regions(data.visited)
    # scaled, for exp(V / kT) is large
    top = float(data.bias.max())
    w = np.exp(data.bias - top)
    per_block = np.zeros((data.n_blocks, len(basins.names) + 2))
    one_hot = region[:, None] == np.arange(len(basins.names))
    np.add.at(per_block[:, :-2], data.block, w[:, None] * one_hot)
    np.add.at(per_block[:, -2], data.block, w)
    np.add.at(per_block[:, -1], data.path_block, 0.5 * crossing.share * np.exp(-top) / data.dt)
    weights = np.vstack([np.ones(data.n_blocks), resample(data.n_blocks, n_resamples, seed)])
    sums = weights @ per_block

    def told(values: Array, events: IntArray) -> Estimate:
        return estimate(
            values[0],
            values[1:],
            data.n_blocks,
            events=len(events),
            units_with_events=len(np.unique(events)),
        )

    members = [[basins.names.index(each) for each in names] for _, names in basins.groups]
    found: dict[Key, Estimate] = {}
    with np.errstate(divide="ignore", invalid="ignore"):
        shares, rate = sums[:, :-2] / sums[:, -2:-1], sums[:, -1] / sums[:, -2]
        whole = [shares[:, ks].sum(1) for ks in members]
        for k, name in enumerate(basins.names):
            found["population", name] = told(shares[:, k], data.block[region == k])
        for (name, _), ks, of_group in zip(basins.groups, members, whole, strict=True):
            found["group population", name] = told(of_group, data.block[np.isin(region, ks)])
            for k in ks:
                found["group population", f"{basins.names[k]} within {name}"] = told(
                    shares[:, k] / of_group, data.block[region == k]
                )
        for a, b in ((0, 1), (1, 0)):
            found["group mfpt", f"{basins.groups[a][0]} → {basins.groups[b][0]}"] = told(
                whole[a] / rate, data.path_block[crossing.share > 0]
            )
    return found, crossing
