"""Rates and paths between basins: what is counted along trajectories, and what follows from the counts.

Two estimates of the mean first-passage time from basin A to basin B stand side by side:

*Direct.*  A clock runs while A was visited more recently than B, and stops when B is entered; time in
other basins counts as long as A was the last of the two.  MFPT = total time on the clock / number of
arrivals.  A trajectory that ends with the clock running still adds its time, so trajectories shorter
than the MFPT do not bias it (the maximum-likelihood estimate for exponential waiting times under
right-censoring; in transition path theory it is the inverse rate per time spent in the ensemble of A).
That holds as long as other basins are left again soon.  Where a trajectory may go over a high barrier
meanwhile, and long ones come back while short ones end there, it does not: so for A and B of one group of
basins the clock is stopped, without an arrival, when a core of another group is entered.

*Markov model.*  A reversible maximum-likelihood transition matrix between basins (Prinz et al., J. Chem.
Phys. 134, 174105, 2011; by deeptime) at a stated lag, and the MFPT of that chain, which sees an arrival
only if it lasts to the next multiple of the lag: it is longer than the direct one, by a lag or more.  Of
two basins of a group it is that of the chain within the group.

Both see the trajectory through cores (`milestones`): a frame outside every core belongs to the core that
was visited last.  A trajectory that shivers on a dividing line would otherwise be counted as crossing
each time (Schuette et al., J. Chem. Phys. 134, 204105, 2011).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.errors import MissingExtraError

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def milestones(cores: Any) -> IntArray:
    """(n,) core visited last, from the core of each frame (-1 outside all); -1 before the first visit."""
    labels = np.asarray(cores, dtype=np.int64)
    last = np.maximum.accumulate(np.where(labels >= 0, np.arange(len(labels)), -1))
    return np.where(last >= 0, labels[np.maximum(last, 0)], -1)


@dataclass(frozen=True)
class Tally:
    """What was counted, the first axis being the unit (trajectory or block); times in steps.

    Attributes
    ----------
    frames : (U, B) frames in each basin's region.
    inside : (U, B, B + 1) of the frames with a core visited last, how many were in each region, or in none.
    visits : (U, B) separate stays, after removing recrossings.
    at_risk : (U, B, B) steps with the clock from A to B running.
    arrivals : (U, B, B) arrivals that stopped it.
    path_steps, paths : (U, B, B) steps on, and number of, direct paths from core A to core B.
    counts : (L, U, B, B) transitions between milestones at each of the lags.
    lags : (L,) steps.
    """

    frames: Array
    inside: Array
    visits: Array
    at_risk: Array
    arrivals: Array
    path_steps: Array
    paths: Array
    counts: Array
    lags: tuple[int, ...]

    @property
    def n_units(self) -> int:
        return len(self.frames)


def tally(
    cores: Sequence[Any],
    regions: Sequence[Any],
    units: Sequence[Any],
    n_basins: int,
    lags: Sequence[int] = (1,),
    groups: Sequence[int] | None = None,
) -> Tally:
    """Count along trajectories.

    Parameters
    ----------
    cores, regions : one integer array (n_frames,) per trajectory: core and region of each frame, -1 for
        none.
    units : the unit that each frame belongs to, numbered from 0 over all trajectories.  What happens
        across the boundary of two blocks belongs to the block in which it begins.
    lags : steps, for the Markov models.
    groups : (n_basins,) the group of each basin, -1 for none: first passages within a group end where it is
        left.
    """
    n_units = max((int(np.max(u)) for u in units if len(u)), default=-1) + 1
    shape = (n_units, n_basins, n_basins)
    result = Tally(
        np.zeros(shape[:2]), np.zeros((*shape[:2], n_basins + 1)), np.zeros(shape[:2]), np.zeros(shape),
        np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros((len(lags), *shape)),
        tuple(int(lag) for lag in lags),
    )  # fmt: skip
    of = np.full(n_basins, -1, dtype=np.int64) if groups is None else np.asarray(groups, dtype=np.int64)
    for core, region, unit in zip(cores, regions, units, strict=True):
        core, region, unit = (np.asarray(each, dtype=np.int64) for each in (core, region, unit))
        known = region >= 0
        np.add.at(result.frames, (unit[known], region[known]), 1.0)
        state = milestones(core)
        after = state >= 0
        np.add.at(result.inside, (unit[after], state[after], region[after]), 1.0)  # -1 is the last
        _stays(result, state, unit)
        _passages(result, core, unit, of)
        first, last = paths(core)
        at = (unit[first], core[first], core[last])
        np.add.at(result.paths, at, 1.0)
        np.add.at(result.path_steps, at, (last - first).astype(np.float64))
        for k, lag in enumerate(result.lags):
            _transitions(result.counts[k], state, unit, lag)
    return result


def paths(cores: Any) -> tuple[IntArray, IntArray]:
    """First and last frame of each direct path: the last frame in one core, the first in the next other.

    Within a path no core is visited, so a path of one step went from core to core in one lag time.
    """
    labels = np.asarray(cores, dtype=np.int64)
    inside = np.flatnonzero(labels >= 0)
    change = np.flatnonzero(labels[inside[1:]] != labels[inside[:-1]])
    return inside[change], inside[change + 1]


def _stays(result: Tally, state: IntArray, unit: IntArray) -> None:
    begins = np.flatnonzero((state >= 0) & (np.concatenate([[-2], state[:-1]]) != state))
    np.add.at(result.visits, (unit[begins], state[begins]), 1.0)


def _passages(result: Tally, core: IntArray, unit: IntArray, groups: IntArray) -> None:
    n_basins = len(groups)
    elsewhere = n_basins  # a core of another group, for basins that share one
    group = np.where(core >= 0, groups[core], -1)
    for a in range(n_basins):
        for b in range(a + 1, n_basins):
            seen = np.where((core == a) | (core == b), core, -1)
            if groups[a] == groups[b] >= 0:
                seen = np.where((group >= 0) & (group != groups[a]), elsewhere, seen)
            latest = milestones(seen)
            now, after, where = latest[:-1], latest[1:], unit[:-1]
            for source, target in ((a, b), (b, a)):
                running = now == source
                np.add.at(result.at_risk[:, source, target], where[running], 1.0)
                arrived = running & (after == target)
                np.add.at(result.arrivals[:, source, target], where[arrived], 1.0)


def _transitions(counts: Array, state: IntArray, unit: IntArray, lag: int) -> None:
    """Sliding counts at this lag by deeptime, block by block."""
    estimator = _deeptime().TransitionCountEstimator
    begin = int(np.argmax(state >= 0)) if (state >= 0).any() else len(state)
    for u in np.unique(unit[begin:]):
        mine = np.flatnonzero(unit == u)
        # the block, and the lag after it, in which its last transitions end
        piece = state[max(int(mine[0]), begin) : int(mine[-1]) + 1 + lag]
        if len(piece) > lag:
            fitted = estimator(lag, "sliding", n_states=counts.shape[-1]).fit_fetch(piece)
            counts[u] += np.asarray(fitted.count_matrix, dtype=np.float64)


def first_passage_times(at_risk: Any, arrivals: Any) -> Array:
    """(..., B, B) time at risk / arrivals; infinite without arrivals, NaN without time at risk."""
    time, number = np.asarray(at_risk, dtype=np.float64), np.asarray(arrivals, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(time / number)


def passage_lower_bound(at_risk: float, arrivals: float) -> float:
    """One-sided 95 % lower bound of a mean first-passage time from few arrivals, or none.

    Exact for exponential waiting times: twice the time at risk over the mean is a chi-squared
    variable of 2 (n + 1) degrees of freedom.  Without arrivals it is the time at risk / 3.0.
    """
    from scipy import stats

    return float(2.0 * at_risk / stats.chi2.ppf(0.95, 2 * (arrivals + 1)))


@dataclass(frozen=True)
class MarkovFigures:
    """Figures of one Markov model; times in steps.

    Attributes
    ----------
    stationary : (B,) equilibrium populations, 0 for basins never visited; NaN if the visited ones are not
        all connected, for then the data do not tell how they balance.
    timescales : (B - 1,) implied timescales, slowest first; infinite for exchange that was not seen.
    mfpt : (B, B) mean first-passage times; infinite between basins that are not connected.
    slow : (B - 1, B) right eigenvector of each process times the root of the populations, whose signs tell
        which basins exchange; 0 if not known.
    """

    stationary: Array
    timescales: Array
    mfpt: Array
    slow: Array


def markov_model(counts: Any, lag: int) -> MarkovFigures:
    """Reversible maximum-likelihood Markov model of a count matrix (B, B) at a lag in steps, by deeptime.

    Basins between which there were not transitions both ways are not connected; each connected
    set is a model of its own.

    Raises
    ------
    MissingExtraError : deeptime is not installed.
    """
    c = np.asarray(counts, dtype=np.float64)
    n = len(c)
    stationary, mfpt = np.full(n, np.nan), np.full((n, n), np.inf)
    np.fill_diagonal(mfpt, 0.0)
    processes: list[tuple[float, Array]] = []
    for inside in connected_sets(c):
        balanced = _holds_all(c, inside)
        if balanced:
            stationary[:] = 0.0
            stationary[inside] = 1.0
        if len(inside) < 2:
            continue
        model = _deeptime().msm.MarkovStateModel(_transition_matrix(c[np.ix_(inside, inside)]))
        if balanced:
            stationary[inside] = model.stationary_distribution
        # A bare matrix has no lag: deeptime answers in steps of the model.
        vectors = np.asarray(model.eigenvectors_right(), dtype=np.float64)
        for k, timescale in enumerate(model.timescales()):
            sides = np.zeros(n)
            sides[inside] = vectors[:, k + 1] * np.sqrt(model.stationary_distribution)
            processes.append((lag * float(timescale), sides))
        for i, a in enumerate(inside):
            for j, b in enumerate(inside):
                if a != b:
                    mfpt[a, b] = lag * float(model.mfpt([i], [j]))
    processes.sort(key=lambda each: -each[0])
    timescales, slow = np.full(max(n - 1, 0), np.inf), np.zeros((max(n - 1, 0), n))
    for k, (timescale, sides) in enumerate(processes, start=n - 1 - len(processes)):
        timescales[k], slow[k] = timescale, sides
    return MarkovFigures(stationary, timescales, mfpt, slow)


def markov_resamples(counts: Array, lag: int, slow: Array | None = None) -> tuple[Array, Array, Array]:
    """Stationary populations, timescales and mean first-passage times of (R, B, B) count matrices.

    The same as `markov_model` on each, with the linear algebra of all at once; shapes (R, B),
    (R, B - 1) and (R, B, B), steps.

    ``slow``: eigenvectors of a `MarkovFigures`.  Timescales are then those of the same processes, told by
    the overlap of their eigenvectors, and not those of the same rank, for which resamples in which two of
    them are in the other order would tell of both at once.  A process is NaN in a resample without basins
    of one of its sides, and infinite in one with both, which did not exchange.
    """
    r, n, _ = counts.shape
    stationary, timescales = np.full((r, n), np.nan), np.full((r, max(n - 1, 0)), np.inf)
    mfpt = np.full((r, n, n), np.inf)
    mfpt[:, np.arange(n), np.arange(n)] = 0.0
    alike: dict[tuple[bytes, ...], list[int]] = {}
    for k, matrix in enumerate(counts):
        alike.setdefault(tuple(inside.tobytes() for inside in connected_sets(matrix)), []).append(k)
    for members in alike.values():
        rows, some = np.array(members, dtype=np.int64), counts[members[0]]
        times, vectors = [np.zeros((len(rows), 0))], [np.zeros((len(rows), 0, n))]
        for inside in connected_sets(some):
            balanced = _holds_all(some, inside)
            if balanced:
                stationary[rows] = 0.0
                stationary[np.ix_(rows, inside)] = 1.0
            if len(inside) < 2:
                continue
            matrices = _reversible(counts[np.ix_(rows, inside, inside)])
            populations, found, exchanging = _spectrum(matrices, lag)
            times.append(found)
            vectors.append(np.zeros((*found.shape, n)))
            vectors[-1][:, :, inside] = exchanging
            if balanced:
                stationary[np.ix_(rows, inside)] = populations
            mfpt[np.ix_(rows, inside, inside)] = lag * _hitting_times(matrices)
        known = np.concatenate(times, axis=1)
        if slow is not None:
            seen = (some.sum(0) + some.sum(1)) > 0
            timescales[rows] = _matched(known, np.concatenate(vectors, axis=1), seen, slow)
        elif known.shape[1]:
            timescales[rows, n - 1 - known.shape[1] :] = -np.sort(-known, axis=1)
    return stationary, timescales, mfpt


def _matched(times: Array, vectors: Array, seen: Any, slow: Array) -> Array:
    """(R, B - 1) timescales in the order of the processes ``slow`` (B - 1, B).

    ``times`` (R, K) and ``vectors`` (R, K, B), as those of ``slow``, of the resamples; ``seen`` (B,) says
    which basins these visited.
    """
    from scipy.optimize import linear_sum_assignment

    sides = significant(slow)
    both = ((sides > 0) & seen).any(1) & ((sides < 0) & seen).any(1)
    known = (slow != 0).any(1)
    result = np.tile(np.where(both | ~known, np.inf, np.nan), (len(times), 1))
    processes = np.flatnonzero(known)
    like = slow[processes] / np.linalg.norm(slow[processes], axis=1, keepdims=True)
    for k, mine in enumerate(vectors):
        which, found = linear_sum_assignment(-np.abs(like @ mine.T))
        result[k, processes[which]] = times[k, found]
    return result


def significant(slow: Array) -> Array:
    """The vectors of `MarkovFigures.slow` (..., B) without the basins that hardly take part."""
    return np.where(np.abs(slow) > 0.05 * np.abs(slow).max(-1, keepdims=True), slow, 0.0)


def connected_sets(counts: Any) -> list[IntArray]:
    """Sorted indices of each strongly connected set of states, by their first state."""
    c = np.asarray(counts) > 0
    reach = c | np.eye(len(c), dtype=bool)
    for _ in range(max(1, int(np.ceil(np.log2(max(len(c), 2)))))):
        reach = (reach.astype(np.int64) @ reach.astype(np.int64)) > 0
    both = reach & reach.T
    return [np.flatnonzero(row) for k, row in enumerate(both) if int(np.argmax(row)) == k]


def _holds_all(counts: Any, inside: IntArray) -> bool:
    """Whether every state that was visited is inside."""
    c = np.asarray(counts)
    return bool(set(np.flatnonzero(c.sum(0) + c.sum(1) > 0)) <= set(inside.tolist())) and bool(c.sum())


def _transition_matrix(counts: Array) -> Array:
    """Reversible maximum-likelihood matrix of connected counts (n, n).

    Its iteration is as slow as the chain: where a barrier was crossed a few times in very many steps it does
    not arrive, and the matrix of plain frequencies is taken, which needs no iteration.
    """
    from deeptime.util.exceptions import NotConvergedWarning  # type: ignore[import-untyped, unused-ignore]

    with warnings.catch_warnings():
        warnings.simplefilter("error", NotConvergedWarning)
        try:
            found = _deeptime().tools.estimation.transition_matrix(counts, reversible=True)
        except NotConvergedWarning:
            found = counts / counts.sum(1, keepdims=True)
    return np.asarray(found, dtype=np.float64)


def _reversible(counts: Array) -> Array:
    return np.stack([_transition_matrix(c) for c in counts])


def _spectrum(matrices: Array, lag: int) -> tuple[Array, Array, Array]:
    """Stationary populations, timescales, slowest first, and vectors of these processes as in
    `MarkovFigures.slow`, of length 1, of reversible matrices (R, n, n): (R, n), (R, n - 1), (R, n - 1, n).
    """
    n = matrices.shape[-1]
    ones = np.ones((len(matrices), n, 1))
    # pi (I - T + 1 1^T) = 1^T
    left = (np.eye(n) - matrices + 1.0).transpose(0, 2, 1)
    populations: Array = np.asarray(np.linalg.solve(left, ones)[..., 0], dtype=np.float64)
    root = np.sqrt(np.maximum(populations, 1e-300))
    symmetric = root[:, :, None] * matrices / root[:, None, :]
    values, vectors = np.linalg.eigh(0.5 * (symmetric + symmetric.transpose(0, 2, 1)))  # ascending
    values, vectors = values[:, ::-1], vectors[:, :, ::-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        times: Array = np.asarray(-lag / np.log(np.minimum(np.abs(values[:, 1:]), 1.0)), dtype=np.float64)
    return populations, times, np.asarray(vectors[:, :, 1:].transpose(0, 2, 1))


def _hitting_times(matrices: Array) -> Array:
    """(R, n, n) mean first-passage times in steps of the chain."""
    r, n, _ = matrices.shape
    times = np.zeros((r, n, n))
    for target in range(n):
        others = [k for k in range(n) if k != target]
        left = np.eye(n - 1) - matrices[:, others][:, :, others]
        times[:, others, target] = np.linalg.solve(left, np.ones((r, n - 1, 1)))[..., 0]
    return times


def _deeptime() -> Any:
    try:
        from deeptime import markov  # type: ignore[import-untyped, unused-ignore]
        from deeptime.markov import msm, tools  # type: ignore[import-untyped, unused-ignore]  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"Markov models need deeptime ({error}): pip install 'score-zoo[analysis]'"
        ) from error
    return markov
