"""Rates from trajectories: exact on chains whose rates are known, and honest about what was not seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zoo.analysis.bootstrap import estimate, percentile_interval, resample, weighted_sums
from zoo.analysis.rates import (
    connected_sets,
    first_passage_times,
    markov_model,
    markov_resamples,
    milestones,
    passage_lower_bound,
    paths,
    significant,
    tally,
)

#: A reversible chain of three states: symmetric flows over populations.
POPULATIONS = np.array([0.6, 0.3, 0.1])
FLOWS = np.array([[0.0, 0.03, 0.0], [0.03, 0.0, 0.01], [0.0, 0.01, 0.0]])
MATRIX = FLOWS / POPULATIONS[:, None] + np.diag(1 - FLOWS.sum(1) / POPULATIONS)


def exact_mfpt(matrix: np.ndarray, target: int) -> np.ndarray:
    others = [k for k in range(len(matrix)) if k != target]
    result = np.zeros(len(matrix))
    result[others] = np.linalg.solve(
        np.eye(len(others)) - matrix[np.ix_(others, others)], np.ones(len(others))
    )
    return result


def walk(matrix: np.ndarray, n: int, rng: np.random.Generator, start: int = 0) -> np.ndarray:
    steps, sums = rng.random(n - 1), matrix.cumsum(1)
    states = [start]
    for u in steps:
        states.append(min(int(np.searchsorted(sums[states[-1]], u, side="right")), len(matrix) - 1))
    return np.array(states)


def counted(states: list[np.ndarray], n: int = 3, lags: tuple[int, ...] = (1,)) -> Any:
    units = [np.full(len(s), k) for k, s in enumerate(states)]
    return tally(states, states, units, n, lags)


# --- what is counted --------------------------------------------------------------------------------


def test_frames_between_cores_belong_to_the_core_visited_last() -> None:
    assert milestones([-1, -1, 0, -1, 1, -1, -1, 0]).tolist() == [-1, -1, 0, 0, 1, 1, 1, 0]
    assert milestones([]).tolist() == []


def test_a_path_is_from_the_last_frame_in_one_core_to_the_first_in_the_next() -> None:
    first, last = paths([0, -1, 0, -1, -1, 1, 1, -1, 1, 0])
    assert list(zip(first, last, strict=True)) == [(2, 5), (8, 9)]


def test_a_recrossing_is_not_a_passage() -> None:
    found = counted([np.array([0, 0, -1, 0, -1, 0, 1])], 2)
    assert found.arrivals[0, 0, 1] == 1
    assert found.at_risk[0, 0, 1] == 6
    assert found.visits[0].tolist() == [1, 1]
    assert found.path_steps[0, 0, 1] == 1


def test_the_clock_runs_on_through_other_basins_and_to_the_end() -> None:
    # 0 -> 2 -> 0 -> 1 and then a stay in 1 that ends with the trajectory
    found = counted([np.array([0, 2, 2, 0, 1, 1, 1])])
    assert (found.at_risk[0, 0, 1], found.arrivals[0, 0, 1]) == (4, 1)
    assert (found.at_risk[0, 1, 0], found.arrivals[0, 1, 0]) == (2, 0)


def test_what_begins_in_a_block_belongs_to_it() -> None:
    states = np.array([0, 0, 0, 1, 1, 1])
    whole = tally([states], [states], [np.zeros(6, int)], 2, (1, 2))
    cut = tally([states], [states], [np.array([0, 0, 0, 1, 1, 1])], 2, (1, 2))
    for key in ("frames", "at_risk", "arrivals", "paths", "path_steps"):
        np.testing.assert_array_equal(getattr(cut, key).sum(0), getattr(whole, key)[0])
    np.testing.assert_array_equal(cut.counts.sum(1), whole.counts[:, 0])


# --- exact rates ------------------------------------------------------------------------------------


def test_a_markov_model_of_exact_counts_is_exact() -> None:
    found = markov_model(1e6 * POPULATIONS[:, None] * MATRIX, 1)
    np.testing.assert_allclose(found.stationary, POPULATIONS, rtol=1e-5)
    values = np.sort(np.linalg.eigvals(MATRIX).real)[::-1]
    np.testing.assert_allclose(found.timescales, -1 / np.log(values[1:]), rtol=1e-4)
    for target in range(3):
        np.testing.assert_allclose(found.mfpt[:, target], exact_mfpt(MATRIX, target), rtol=1e-4)


def test_times_are_in_steps_whatever_the_lag() -> None:
    five = np.linalg.matrix_power(MATRIX, 5)
    found = markov_model(1e6 * POPULATIONS[:, None] * five, 5)
    values = np.sort(np.linalg.eigvals(MATRIX).real)[::-1]
    np.testing.assert_allclose(found.timescales, -1 / np.log(values[1:]), rtol=1e-4)


def test_resamples_are_the_models_of_each_matrix() -> None:
    rng = np.random.default_rng(1)
    counts = rng.poisson(300 * POPULATIONS[:, None] * MATRIX, size=(5, 3, 3)) + np.ones((3, 3))
    stationary, timescales, mfpt = markov_resamples(counts, 2)
    for k, each in enumerate(counts):
        one = markov_model(each, 2)
        np.testing.assert_allclose(stationary[k], one.stationary, rtol=1e-4)
        np.testing.assert_allclose(timescales[k], one.timescales, rtol=1e-4)
        np.testing.assert_allclose(mfpt[k], one.mfpt, rtol=1e-4)


def test_a_barrier_crossed_once_in_a_million_steps_does_not_spoil_the_rest() -> None:
    flows = np.array(
        [[0.0, 2e-3, 2e-6, 0.0], [2e-3, 0.0, 0.0, 0.0], [2e-6, 0.0, 0.0, 1e-3], [0.0, 0.0, 1e-3, 0.0]]
    )
    populations = np.array([0.6, 0.25, 0.13, 0.02])
    matrix = flows / populations[:, None] + np.diag(1 - flows.sum(1) / populations)
    counts = 640_000 * populations[:, None] * matrix
    found = markov_model(counts, 1)
    np.testing.assert_allclose(found.stationary, populations, rtol=1e-2)
    assert found.mfpt[3, 2] == pytest.approx(exact_mfpt(matrix, 2)[3], rel=1e-2)
    assert found.mfpt[1, 0] == pytest.approx(exact_mfpt(matrix, 0)[1], rel=1e-2)
    stationary, timescales, mfpt = markov_resamples(np.stack([counts, counts * 1.1]), 1)
    np.testing.assert_allclose(stationary[0], populations, rtol=1e-2)
    np.testing.assert_allclose(timescales[0], found.timescales, rtol=1e-2)
    np.testing.assert_allclose(mfpt[1], found.mfpt, rtol=1e-2)


def test_long_chains_give_their_rates_back() -> None:
    rng = np.random.default_rng(0)
    states = [walk(MATRIX, 4000, rng, rng.choice(3, p=POPULATIONS)) for _ in range(20)]
    found = counted(states)
    direct = first_passage_times(found.at_risk.sum(0), found.arrivals.sum(0))
    for a in range(3):
        for b in range(3):
            if a != b:
                assert direct[a, b] == pytest.approx(exact_mfpt(MATRIX, b)[a], rel=0.15)


def test_a_way_over_a_barrier_meanwhile_changes_no_rate_on_this_side_of_it() -> None:
    """Of long trajectories, which come back, and of short ones, which end there, alike."""
    flows = np.array(
        [[0.0, 6e-3, 4e-4, 0.0], [6e-3, 0.0, 0.0, 0.0], [4e-4, 0.0, 0.0, 2e-3], [0.0, 0.0, 2e-3, 0.0]]
    )
    populations = np.array([0.6, 0.25, 0.1, 0.05])
    matrix = flows / populations[:, None] + np.diag(1 - flows.sum(1) / populations)
    rng = np.random.default_rng(5)
    for n, length in ((10, 20_000), (1000, 200)):
        states = [walk(matrix, length, rng, rng.choice(4, p=populations)) for _ in range(n)]
        units = [np.full(len(s), k) for k, s in enumerate(states)]
        found = tally(states, states, units, 4, (1,), [0, 0, 1, 1])
        time = first_passage_times(found.at_risk.sum(0), found.arrivals.sum(0))
        assert time[3, 2] == pytest.approx(0.05 / 2e-3, rel=0.1)
        assert time[2, 3] == pytest.approx(0.1 / 2e-3, rel=0.1)
        assert time[0, 1] == pytest.approx(0.6 / 6e-3, rel=0.1)
        # between groups the clock runs on: whatever is visited on the way
    whole = first_passage_times(found.at_risk.sum(0), found.arrivals.sum(0))
    assert np.isfinite(whole[0, 2])


def test_processes_are_told_by_what_exchanges_and_not_by_their_rank() -> None:
    """Two exchanges, hardly connected, about as fast as each other: in resamples either is the slower one."""

    def counts(fast: float, other: float) -> np.ndarray:
        flows = np.zeros((4, 4))
        flows[0, 1] = flows[1, 0] = fast
        flows[2, 3] = flows[3, 2] = other
        flows[0, 2] = flows[2, 0] = 1.0
        return flows + np.diag(1e4 - flows.sum(1))

    plain = markov_model(counts(500.0, 400.0), 1)
    assert plain.timescales[1] > plain.timescales[2]
    assert set(np.flatnonzero(significant(plain.slow[1]))) == {2, 3}
    assert set(np.flatnonzero(significant(plain.slow[2]))) == {0, 1}
    assert set(np.flatnonzero(significant(plain.slow[0]))) == {0, 1, 2, 3}
    none, no_way = counts(500.0, 400.0), counts(500.0, 400.0)
    none[2:] = none[:, 2:] = 0.0
    no_way[2, 3] = no_way[3, 2] = 0.0
    several = np.stack([counts(500.0, 400.0), counts(400.0, 500.0), none, no_way])
    times = markov_resamples(several, 1, plain.slow)[1]
    np.testing.assert_allclose(times[0], plain.timescales, rtol=1e-4)
    np.testing.assert_allclose(times[1, 1:], plain.timescales[[2, 1]], rtol=1e-3)
    assert np.isnan(times[2, :2]).all() and times[2, 2] == pytest.approx(plain.timescales[2], rel=1e-2)
    assert np.isinf(times[3, 1]) and np.isfinite(times[3, [0, 2]]).all()


@pytest.mark.parametrize("length", [30, 100])
def test_trajectories_shorter_than_the_passage_do_not_bias_it(length: int) -> None:
    two = np.array([[0.99, 0.01], [0.02, 0.98]])  # a mean passage of 100 steps
    rng = np.random.default_rng(length)
    states = [walk(two, length, rng) for _ in range(3000)]
    found = counted(states, 2)
    time = first_passage_times(found.at_risk.sum(0), found.arrivals.sum(0))[0, 1]
    assert time == pytest.approx(100.0, rel=0.08)


def test_what_was_not_seen_is_not_invented() -> None:
    found = markov_model(np.array([[50.0, 3.0, 0.0], [3.0, 40.0, 0.0], [0.0, 0.0, 20.0]]), 1)
    assert np.isnan(found.stationary).all()  # how the two parts balance is not in the data
    assert np.isinf(found.timescales[0])
    assert np.isinf(found.mfpt[0, 2])
    assert np.isfinite(found.mfpt[0, 1])
    never = first_passage_times(np.array([[0.0, 7.0], [0.0, 0.0]]), np.zeros((2, 2)))
    assert np.isinf(never[0, 1]) and np.isnan(never[1, 0])


def test_connected_sets_need_ways_both_ways() -> None:
    counts = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 1, 1], [0, 0, 0, 1]])
    assert [each.tolist() for each in connected_sets(counts)] == [[0, 1, 2], [3]]


def test_a_bound_without_arrivals_is_the_time_over_three() -> None:
    assert passage_lower_bound(300.0, 0) == pytest.approx(300.0 / 2.9957, rel=1e-4)
    assert passage_lower_bound(300.0, 3) < 300.0 / 3


# --- intervals --------------------------------------------------------------------------------------


def test_resampling_keeps_the_number_of_units() -> None:
    weights = resample(7, 200, seed=3)
    assert weights.shape == (200, 7) and (weights.sum(1) == 7).all()
    np.testing.assert_array_equal(weights, resample(7, 200, seed=3))
    assert not np.array_equal(weights, resample(7, 200, seed=3, stream=1))


def test_few_events_have_no_interval() -> None:
    samples = np.linspace(1, 2, 100)
    assert not estimate(1.5, samples, 20, events=4).has_interval
    assert not estimate(1.5, samples, 20, events=50, units_with_events=2).has_interval
    assert not estimate(1.5, samples, 4, events=50).has_interval
    assert estimate(1.5, samples, 20, events=50, units_with_events=5).has_interval
    none = estimate(np.inf, samples, 20, events=0, lower_bound=7.0)
    assert (none.value, none.lower_bound, none.note) == (None, 7.0, "no events")


def test_an_interval_of_many_units_is_the_percentile_one() -> None:
    samples = np.random.default_rng(0).permutation(np.linspace(0, 1, 10001))
    low, high = percentile_interval(samples, 10000) or (0, 0)
    assert [low, high] == pytest.approx([0.025, 0.975], abs=1e-3)
    wide_low, wide_high = percentile_interval(samples, 10) or (0, 0)
    assert wide_low < low and wide_high > high
    assert percentile_interval(np.where(samples < 0.1, np.nan, samples), 100) is None


@pytest.mark.slow
def test_intervals_of_a_passage_time_cover_it_as_often_as_they_say() -> None:
    two = np.array([[0.97, 0.03], [0.05, 0.95]])
    rng = np.random.default_rng(11)
    covered, n = 0, 300
    for k in range(n):
        found = counted([walk(two, 400, rng) for _ in range(15)], 2)
        weights = resample(15, 400, seed=k)
        time, number = found.at_risk[:, 0, 1], found.arrivals[:, 0, 1]
        samples = weighted_sums(weights, time) / weighted_sums(weights, number)
        low, high = percentile_interval(samples, 15) or (0, 0)
        covered += low <= 1 / 0.03 <= high
    # three standard deviations of a fair 95 %, and a little for a skewed figure of 15 units
    assert 0.90 <= covered / n <= 0.99
