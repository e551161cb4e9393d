"""Populations and rates over a barrier from paths that a walker on a flattened surface released.

**Populations.**  A walker on U + V is at x with the density exp(-(U + V) / kT), so the share of a region is
the sum of w = exp(V / kT) over releases in it, over the sum of all.

**Rates.**  In equilibrium let J be the number of transitions per time from A to B.  Between the last frame
in A and the first one in B lies the transition path, a few frames long, all of them on the barrier, where
walkers are often and MD hardly ever.  Share one transition among the frames s of its path, g_s =
exp(-V_s / kT) / sum_s' exp(-V_s' / kT); then J dt is the mean, over the frames of equilibrium, of g at
those that are on transition paths:

    J = (1 / dt) sum over releases on a path from A to B of 1 / (sum over s of the path of exp(-V_s / kT))
        / sum over all releases of w.

This is exact for paths that are plain MD on both sides of the release, which pairs of clones with opposite
velocities are; any other g would do, but this one has no rare and heavy terms (compare Hummer, J. Chem.
Phys. 120, 516, 2004).  Paths there and back count alike, so J is the mean of both directions.  The mean
first-passage time from A to B, counted as in `zoo.analysis.rates`, is the share of time since A was
visited last over J, and over a high barrier that share is the population of A.

Intervals resample whole blocks of releases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.reference_md.releases import Bias
from zoo.analysis.basins import Basins
from zoo.analysis.bootstrap import Estimate, estimate, resample
from zoo.errors import StructureError

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Key = tuple[str, str]


@dataclass(frozen=True)
class Paths:
    """Released paths in the first two torsions.

    Attributes
    ----------
    angles : (n, n_frames, 2) degrees, released at the middle one.
    bias : (n,) V / kT there.
    blocks : (n,) block of each, from 0.
    dt : ps between frames.
    """

    angles: Array
    bias: Array
    blocks: IntArray
    dt: float

    @property
    def n_blocks(self) -> int:
        return int(self.blocks.max()) + 1


@dataclass(frozen=True)
class Crossing:
    """Transition paths between two groups among the releases.

    Attributes
    ----------
    share : (n,) 1 / sum of exp(-V / kT) over the frames of the path; 0 for releases that are on none.
    unresolved : releases outside both groups' cores whose path does not reach a core on both sides.
    """

    share: Array
    unresolved: int

    @property
    def events(self) -> int:
        return int((self.share > 0).sum())


def crossings(paths: Paths, bias: Bias, groups: IntArray) -> Crossing:
    """Transition paths between two groups of cores.

    Parameters
    ----------
    groups : (n, n_frames) group, 0 or 1, in a core of which each frame is; -1 outside of all cores.

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
        if groups[k, last] != groups[k, first]:
            path = paths.angles[k, last + 1 : first]
            share[k] = 1.0 / np.exp(-bias.at(path)).sum()
    return Crossing(share, unresolved)


def estimates(
    paths: Paths, bias: Bias, basins: Basins, n_resamples: int = 1000, seed: int = 0
) -> tuple[dict[Key, Estimate], Crossing]:
    """Populations of all basins and groups, and mean first-passage times between the two groups.

    Returns
    -------
    By kind ("population", "group population", "group mfpt", as in `zoo.analysis.evaluation`) and name (of
    the basin or group, "A within G", "A → B"; ps), and the crossings.  Events are releases in the basin or
    group, and on transition paths.

    Raises
    ------
    StructureError : the basins are not in two groups, or the paths have no frame in the middle.
    """
    if len(basins.groups) != 2:
        raise StructureError("rates over a barrier need two groups of basins")
    flat = paths.angles.reshape(-1, 2)
    crossing = crossings(paths, bias, basins.grouped(basins.cores(flat)).reshape(paths.angles.shape[:2]))
    region = basins.regions(paths.angles[:, paths.angles.shape[1] // 2])
    # scaled, for exp(V / kT) is large
    top = float(paths.bias.max())
    w = np.exp(paths.bias - top)
    one_hot = region[:, None] == np.arange(len(basins.names))
    columns = np.column_stack([w[:, None] * one_hot, w, 0.5 * crossing.share * np.exp(-top) / paths.dt])
    per_block = np.zeros((paths.n_blocks, columns.shape[1]))
    np.add.at(per_block, paths.blocks, columns)
    weights = np.vstack([np.ones(paths.n_blocks), resample(paths.n_blocks, n_resamples, seed)])
    sums = weights @ per_block
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = sums[:, :-2] / sums[:, -2:-1]
        rate = sums[:, -1] / sums[:, -2]

    def told(values: Array, chosen: npt.NDArray[np.bool_]) -> Estimate:
        return estimate(
            values[0],
            values[1:],
            paths.n_blocks,
            events=int(chosen.sum()),
            units_with_events=len(np.unique(paths.blocks[chosen])),
        )

    found: dict[Key, Estimate] = {}
    for k, name in enumerate(basins.names):
        found["population", name] = told(shares[:, k], region == k)
    members = [[basins.names.index(each) for each in names] for _, names in basins.groups]
    whole = [shares[:, ks].sum(1) for ks in members]
    for (name, _), ks, of_group in zip(basins.groups, members, whole, strict=True):
        found["group population", name] = told(of_group, np.isin(region, ks))
        for k in ks:
            with np.errstate(divide="ignore", invalid="ignore"):
                found["group population", f"{basins.names[k]} within {name}"] = told(
                    shares[:, k] / of_group, region == k
                )
    on_path = crossing.share > 0
    for a, b in ((0, 1), (1, 0)):
        with np.errstate(divide="ignore", invalid="ignore"):
            times = whole[a] / rate
        found["group mfpt", f"{basins.groups[a][0]} → {basins.groups[b][0]}"] = told(times, on_path)
    return found, crossing


def numbered(blocks: Sequence[str]) -> IntArray:
    """(n,) number of each name among the sorted names."""
    names = sorted(set(blocks))
    return np.array([names.index(each) for each in blocks], dtype=np.int64)
