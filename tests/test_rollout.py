"""The loop: who moves how, what is redrawn, who stops, and what the report says."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.rollout_model import SHAPE, FakeDynamics
from zoo.errors import StructureError, ZooError
from zoo.rollout import OutOfDistributionWarning, Progress, RolloutError, roll_out
from zoo.rollout.loop import batches
from zoo.rollout.report import percent

MIRROR = SHAPE * [-1, 1, 1]


def positions_of(rollout: Any, walker: int = 0) -> Any:
    return rollout.trajectories[walker].xyz


# -- trajectories ------------------------------------------------------------------------------


def test_start_frame_first_then_one_frame_per_lag_step() -> None:
    rollout = roll_out(FakeDynamics(), SHAPE, 5)
    (trajectory,) = rollout.trajectories
    assert rollout.lag_time == 2.0
    assert trajectory.n_frames == 6
    assert np.allclose(trajectory.xyz[0], SHAPE / 10, atol=1e-7)  # MDTraj is in nm
    assert np.array_equal(trajectory.time, [0, 2, 4, 6, 8, 10])
    assert trajectory.topology.n_bonds == 4
    # against the model's formula, by hand
    noise = np.random.default_rng([0, 0, 1, 0]).normal(size=SHAPE.shape)
    assert np.allclose(trajectory.xyz[1] * 10, SHAPE + 0.03 * noise, atol=1e-6)


def test_a_walker_goes_the_same_way_whoever_else_runs() -> None:
    bad = {(0, 2, 0): "bond", (2, 3, 0): "clash", (2, 3, 1): "bond", (9, 1, 0): "chirality"}
    alone = roll_out(FakeDynamics(bad), SHAPE, 6, 1, seed=7)
    three = roll_out(FakeDynamics(bad), SHAPE, 6, 3, seed=7)
    many = roll_out(FakeDynamics(bad, batch_slots=5), SHAPE, 6, 17, seed=7)
    assert np.array_equal(positions_of(alone), positions_of(three))
    for w in range(3):
        assert np.array_equal(positions_of(three, w), positions_of(many, w))
    assert len({positions_of(many, w).tobytes() for w in range(17)}) == 17
    other = roll_out(FakeDynamics(bad), SHAPE, 6, 1, seed=8)
    assert not np.array_equal(positions_of(alone)[1:], positions_of(other)[1:])


def test_calls_are_the_chunks_and_redraws_share_calls() -> None:
    bad = {(w, 1, 0): "bond" for w in (1, 6, 8)}
    model = FakeDynamics(bad)
    roll_out(model, SHAPE, 1, 10)
    chunks = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert model.calls == [*chunks, [1, 6, 8]]
    assert batches([1, 5, 9, 2], 4) == [[1, 2], [5], [9]]
    assert batches([], 4) == []


def test_several_start_frames_are_a_walker_each_or_taken_in_turn() -> None:
    starts = np.stack([SHAPE, MIRROR + 1.0])
    assert len(roll_out(FakeDynamics(), starts, 1).trajectories) == 2
    four = roll_out(FakeDynamics(), starts, 2, 4)
    for w in range(4):
        assert np.allclose(positions_of(four, w)[0] * 10, starts[w % 2], atol=1e-6)
    with pytest.raises(RolloutError, match="3 walkers cannot share 2 start frames"):
        roll_out(FakeDynamics(), starts, 1, 3)


# -- redraws -----------------------------------------------------------------------------------


def test_a_redraw_starts_from_the_same_state_with_fresh_noise() -> None:
    clean = roll_out(FakeDynamics(), SHAPE, 4)
    redrawn = roll_out(FakeDynamics({(0, 3, 0): "bond", (0, 3, 1): "not finite"}), SHAPE, 4)
    before, after = positions_of(clean) * 10.0, positions_of(redrawn) * 10.0
    assert np.array_equal(before[:3], after[:3])
    noise = np.random.default_rng([0, 0, 3, 2]).normal(size=SHAPE.shape)
    assert np.allclose(after[3], after[2] + 0.3 * (SHAPE - after[2]) + 0.03 * noise, atol=1e-5)
    assert len(after) == 5


def test_the_report_counts_every_proposal() -> None:
    bad = {
        (0, 1, 0): "bond",
        (0, 1, 1): "clash",
        (1, 2, 0): "chirality",
        (2, 3, 0): "not finite",
        (2, 4, 0): "bond",
    }
    report = roll_out(FakeDynamics(bad), SHAPE, 5, 3, seed=3).report
    assert (report.accepted, report.redrawn, report.proposed) == (15, 5, 20)
    assert report.redrawn_fraction == 0.25
    assert report.by_kind == {"bond": 2, "clash": 1, "chirality": 1, "not finite": 1}
    assert [walker.redrawn for walker in report.walkers] == [
        {"bond": 1, "clash": 1},
        {"chirality": 1},
        {"bond": 1, "not finite": 1},
    ]
    assert report.simulated_ps == 30.0
    assert report.seconds > 0
    assert report.ns_per_day == pytest.approx(30.0 / report.seconds * 86.4)
    assert (report.seed, report.checkpoint_id, report.lag_time) == (3, "sd-fake@1.0.0", 2.0)
    data = json.loads(json.dumps(report.to_json()))
    assert data["redrawn_by_kind"]["clash"] == 1
    assert data["walkers"][2]["steps"] == 5
    assert "5 of 20 proposals redrawn (25 %)" in report.summary()
    assert len(report.summary().splitlines()) == 3


def test_a_walker_that_keeps_failing_stops_and_the_others_go_on() -> None:
    bad = {(1, 3, attempt): "bond" for attempt in range(3)}
    stuck = roll_out(FakeDynamics(bad), SHAPE, 5, 3, max_redraws=2)
    free = roll_out(FakeDynamics(), SHAPE, 5, 3)
    assert [len(t) for t in stuck.trajectories] == [6, 3, 6]
    for w in (0, 2):
        assert np.array_equal(positions_of(stuck, w), positions_of(free, w))
    assert np.array_equal(positions_of(stuck, 1), positions_of(free, 1)[:3])
    (reason,) = stuck.report.stopped.values()
    assert reason.startswith("step 3: all 3 proposals were bad, the last: bond C2-F 2.7")
    assert stuck.report.accepted == 12
    assert stuck.report.walkers[1].redrawn == {"bond": 3}
    assert "1 of 3 walkers stopped early: walker 1 at step 3" in stuck.report.summary()
    # one redraw more would have been enough
    assert not roll_out(FakeDynamics(bad), SHAPE, 5, 3, max_redraws=3).report.stopped


def test_without_redraws_one_bad_proposal_stops_a_walker() -> None:
    rollout = roll_out(FakeDynamics({(0, 2, 0): "chirality"}), SHAPE, 5, max_redraws=0)
    assert len(rollout.trajectories[0]) == 2
    assert "the only proposal was bad, the last: chirality of C2" in rollout.report.stopped[0]


def test_when_all_have_stopped_the_rollout_ends() -> None:
    model = FakeDynamics({(w, 1, 0): "bond" for w in range(2)})
    rollout = roll_out(model, SHAPE, 10**6, 2, max_redraws=0)
    assert rollout.report.accepted == 0
    assert len(model.calls) == 1


def test_each_walker_keeps_the_handedness_of_its_own_start() -> None:
    starts = np.stack([SHAPE, MIRROR])
    report = roll_out(FakeDynamics({(1, 2, 0): "chirality"}), starts, 4, 2).report
    assert report.by_kind == {"chirality": 1}


# -- callbacks ---------------------------------------------------------------------------------


def test_progress_and_observers_see_every_step() -> None:
    told: list[Progress] = []
    seen: list[tuple[int, Any, list[int]]] = []
    bad = {(1, 2, attempt): "bond" for attempt in range(2)}
    rollout = roll_out(
        FakeDynamics(bad),
        SHAPE,
        3,
        2,
        max_redraws=1,
        progress=told.append,
        observers=[lambda step, positions, running: seen.append((step, positions, list(running)))],
    )
    assert [now.step for now in told] == [0, 1, 2, 3]
    assert [(now.running, now.accepted, now.redrawn) for now in told] == [
        (2, 0, 0),
        (2, 2, 0),
        (1, 3, 2),
        (1, 4, 2),
    ]
    assert told[-1].simulated_ps == 8.0
    assert [step for step, _, _ in seen] == [0, 1, 2, 3]
    assert [running for _, _, running in seen] == [[0, 1], [0, 1], [0], [0]]
    assert np.allclose(seen[3][1][0] / 10, positions_of(rollout)[3], atol=1e-7)
    with pytest.raises(ValueError, match="read-only"):
        seen[1][1][0] = 0


def test_trajectories_are_not_kept_where_they_are_not_wanted() -> None:
    rollout = roll_out(FakeDynamics(), SHAPE, 3, keep=False)
    assert rollout.trajectories == []
    assert rollout.report.accepted == 3


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_steps": 0}, "number of steps must be from 1 to .*, found 0"),
        ({"n_steps": -3}, "number of steps .* found -3"),
        ({"n_steps": 1.5}, "number of steps must be a whole number, found 1.5"),
        ({"n_steps": 2**31}, "number of steps"),
        ({"n_walkers": 0}, "number of walkers must be at least 1, found 0"),
        ({"n_walkers": -1}, "number of walkers"),
        ({"seed": -1}, "seed must be from 0"),
        ({"seed": 2**63}, "seed must be from 0"),
        ({"max_redraws": -1}, "number of redraws"),
    ],
)
def test_impossible_numbers(changes: dict[str, Any], message: str) -> None:
    model = FakeDynamics()
    with pytest.raises(ZooError, match=message):
        roll_out(model, SHAPE, **{"n_steps": 3, **changes})
    assert model.calls == []


@pytest.mark.parametrize("kind", ["bond", "clash", "not finite"])
def test_an_invalid_start_is_refused_before_anything_is_written(tmp_path: Any, kind: str) -> None:
    from tests.rollout_model import spoil

    broken = SHAPE.copy()
    spoil(broken, kind)
    with pytest.raises(StructureError, match=rf"start frame 2 is not a valid structure.*{kind}"):
        roll_out(FakeDynamics(), [SHAPE, broken], 3, output=tmp_path / "run.xtc")
    assert not list(tmp_path.iterdir())


def test_a_start_of_another_size_is_refused() -> None:
    with pytest.raises(StructureError, match=r"shape \(1, 4, 3\), the model needs \(n_frames, 5, 3\)"):
        roll_out(FakeDynamics(), SHAPE[:4], 3)


def test_a_start_far_from_the_training_data_warns_with_its_score() -> None:
    with pytest.warns(OutOfDistributionWarning, match="out-of-distribution score 3.25"):
        rollout = roll_out(FakeDynamics(strangeness=3.25), SHAPE, 1)
    assert rollout.report.out_of_distribution == 3.25
    assert rollout.report.to_json()["start_out_of_distribution"] == 3.25


def test_an_ordinary_start_does_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    roll_out(FakeDynamics(strangeness=1.2), SHAPE, 1)
    assert not [w for w in recwarn if issubclass(w.category, OutOfDistributionWarning)]


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (6.2e-6, "0.00062 %"), (0.013, "1.3 %"), (0.5, "50 %"), (0.994, "99 %"), (1.0, "100 %")],
)
def test_shares_in_per_cent(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_change_nothing(threads: int) -> None:
    bad = {(1, 2, 0): "bond", (3, 2, 0): "clash", (5, 3, 0): "bond"}
    alone = roll_out(FakeDynamics(dict(bad)), SHAPE, 6, n_walkers=9, seed=4)
    together = roll_out(FakeDynamics(dict(bad)), SHAPE, 6, n_walkers=9, seed=4, threads=threads)
    assert len(alone.trajectories) == 9 > FakeDynamics().batch_slots
    for a, b in zip(alone.trajectories, together.trajectories, strict=True):
        np.testing.assert_array_equal(a.xyz, b.xyz)
    assert alone.report.by_kind == together.report.by_kind == {"bond": 2, "clash": 1}


def test_at_least_one_thread() -> None:
    with pytest.raises(RolloutError, match="number of threads must be"):
        roll_out(FakeDynamics(), SHAPE, 1, threads=0)
