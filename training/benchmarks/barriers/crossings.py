"""Populations and rates over a barrier from walkers on a flattened surface and what they released.

**Populations.**  A walker on U + V is at x with the density exp(-(U + V) / kT), so the share of a region is
the sum of w = exp(V / kT) over its frames in it, over the sum of all.

**Rates.**  Frames are looked at as often as a propagator makes them, ``lag`` apart.  In equilibrium let J be
the number of transitions per time from A to B: of times at which the last frame in a core was in A and the
next one is in B.  Between these two frames the molecule goes over the ridge of the barrier, where walkers are
cloned.  Share one transition among the moments s between them at which it is on the ridge,
g_s = exp(-V_s / kT) / sum_s' exp(-V_s' / kT); then J dt is the mean, over all moments of equilibrium, of g
at those that belong to a transition, which for moments dt apart is

    J = (1 / dt) sum over releases within a transition of 1 / (sum over s of exp(-V_s / kT))
        / sum over all frames of walkers of w,

the mean over all frames from which one may begin to count lags.  This is exact for paths that are plain MD on
both sides of the release, which pairs of clones there and back are; any other g would do, but this one has no
rare and heavy terms (compare Hummer, J. Chem. Phys. 120, 516, 2004).  Paths there and back count alike, so J
is the mean of both directions.  The mean first-passage time from A to B, counted as in `zoo.analysis.rates`,
is the share of time since A was visited last over J; over a high barrier that share is the population of A.

Only transitions over the ridge are counted: for alanine dipeptide over phi = 0, where the other barrier, at
120 degrees, is some 20 kJ/mol higher.

**Intervals** resample stretches of walkers, those of `training.reference_md.walks`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.reference_md.releases import Bias
from training.reference_md.walks import Walks
from zoo.analysis.basins import Basins
from zoo.analysis.bootstrap import Estimate, estimate, resample
from zoo.errors import StructureError

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Key = tuple[str, str]


@dataclass(frozen=True)
class Crossing:
    """Transitions between two groups among the releases.

    Attributes
    ----------
    share : (n_paths,) 1 / sum of exp(-V / kT) over the moments of the transition on the ridge, the mean over
        all frames from which one may begin to count lags; 0 for releases that are on none.
    unresolved : releases whose path does not come to a core on both sides, from some of these frames.
    """

    share: Array
    unresolved: int

    @property
    def events(self) -> int:
        return int((self.share > 0).sum())


def crossings(data: Walks, bias: Bias, groups: IntArray, stride: int = 1) -> Crossing:
    """Transitions between two groups of cores.

    Parameters
    ----------
    groups : (n_paths, n_frames) group, 0 or 1, in a core of which each frame is; -1 outside of all cores.
    stride : frames of a path between those that are looked at.

    Raises
    ------
    StructureError : the number of frames is even, so there is none in the middle, or the stride is longer
        than half a path.
    """
    n, n_frames = groups.shape
    if n_frames % 2 == 0:
        raise StructureError(f"paths of {n_frames} frames have none in the middle")
    middle = n_frames // 2
    if not 1 <= stride <= max(middle, 1):
        raise StructureError(f"the released paths are too short to look at every {stride} frames of them")
    boost = bias.ridge_weight(data.paths, data.kt)
    # exp(-V_s / kT) by the same interpolation as at the release, so that its error cancels
    at_release = np.exp(-data.released)
    share, lost = np.zeros(n), np.zeros(n, dtype=bool)
    for k in np.flatnonzero(boost[:, middle] > 0):
        inside = np.flatnonzero(groups[k] >= 0)
        for offset in range(stride):
            seen = inside[(inside - middle - offset) % stride == 0]
            before, after = seen[seen <= middle], seen[seen > middle]
            if not len(before) or not len(after):
                lost[k] = True
            elif groups[k, before[-1]] != groups[k, after[0]]:
                between = boost[k, before[-1] : after[0]].sum()
                share[k] += boost[k, middle] / (between * at_release[k] * stride)
    return Crossing(share, int(lost.sum()))


def estimates(
    data: Walks, bias: Bias, basins: Basins, lag: float, n_resamples: int = 1000, seed: int = 0
) -> tuple[dict[Key, Estimate], Crossing]:
    """Populations of all basins and groups, and mean first-passage times between the two groups.

    Parameters
    ----------
    lag : ps between the frames in which an arrival is seen.

    Returns
    -------
    By kind ("population", "group population", "group mfpt", as in `zoo.analysis.evaluation`) and name (of
    the basin or group, "A within G", "A → B"; ps), and the crossings.  Events are frames of walkers in the
    basin or group, and releases on transition paths.

    Raises
    ------
    StructureError : the basins are not in two groups, the paths have no frame in the middle, or the lag is no
        multiple of the time between their frames or too long for them.
    """
    stride = round(lag / data.dt)
    if stride < 1 or abs(stride * data.dt - lag) > 1e-6 * lag:
        raise StructureError(f"a lag of {lag:g} ps is no multiple of the {data.dt:g} ps between frames")
    if len(basins.groups) != 2:
        raise StructureError("rates over a barrier need two groups of basins")
    flat = data.paths.reshape(-1, 2)
    groups = basins.grouped(basins.cores(flat)).reshape(data.paths.shape[:2])
    crossing = crossings(data, bias, groups, stride)
    region = basins.regions(data.visited)
    # scaled, for exp(V / kT) is large
    top = float(data.bias.max())
    w = np.exp(data.bias - top)
    per_unit = np.zeros((data.n_units, len(basins.names) + 2))
    one_hot = region[:, None] == np.arange(len(basins.names))
    np.add.at(per_unit[:, :-2], data.unit, w[:, None] * one_hot)
    np.add.at(per_unit[:, -2], data.unit, w)
    np.add.at(per_unit[:, -1], data.path_unit, 0.5 * crossing.share * np.exp(-top) / data.dt)
    weights = np.vstack([np.ones(data.n_units), resample(data.n_units, n_resamples, seed)])
    sums = weights @ per_unit

    def told(values: Array, events: IntArray) -> Estimate:
        return estimate(
            values[0],
            values[1:],
            data.n_units,
            events=len(events),
            units_with_events=len(np.unique(events)),
        )

    members = [[basins.names.index(each) for each in names] for _, names in basins.groups]
    found: dict[Key, Estimate] = {}
    with np.errstate(divide="ignore", invalid="ignore"):
        shares, rate = sums[:, :-2] / sums[:, -2:-1], sums[:, -1] / sums[:, -2]
        whole = [shares[:, ks].sum(1) for ks in members]
        for k, name in enumerate(basins.names):
            found["population", name] = told(shares[:, k], data.unit[region == k])
        for (name, _), ks, of_group in zip(basins.groups, members, whole, strict=True):
            found["group population", name] = told(of_group, data.unit[np.isin(region, ks)])
            for k in ks:
                found["group population", f"{basins.names[k]} within {name}"] = told(
                    shares[:, k] / of_group, data.unit[region == k]
                )
        for a, b in ((0, 1), (1, 0)):
            found["group mfpt", f"{basins.groups[a][0]} → {basins.groups[b][0]}"] = told(
                whole[a] / rate, data.path_unit[crossing.share > 0]
            )
    return found, crossing
