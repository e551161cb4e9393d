"""The propagation benchmark: the right frames after the right time, and an honest noise floor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.rollout_model import SHAPE, FakeDynamics
from training.benchmarks.propagation.__main__ import (
    TIMES,
    compare,
    main,
    propagate,
    starts,
    whole_steps,
)
from training.reference_md.segments import Record, Segment, segment_path, write_record
from zoo.analysis.kinetics import torsion_histogram
from zoo.errors import ZooError

DT = 0.2
N_ATOMS = 3


def segment(number: int, n_frames: int, dt: float = DT) -> Segment:
    """x = number of the frame, y = of the atom, z = of the segment."""
    positions = np.zeros((n_frames, N_ATOMS, 3), dtype=np.float32)
    positions[..., 0] = np.arange(n_frames)[:, None]
    positions[..., 1] = np.arange(N_ATOMS)
    positions[..., 2] = number
    return Segment(f"segment-{number:03d}", positions, dt, (0.0, 0.0), Path(f"segment-{number:03d}.npz"))


# --- starts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dt", "every"), [(0.2, 0.2), (0.2, 1.0), (0.2, 7.4), (1.0, 1.0), (1.0, 7.0)])
def test_later_frames_are_of_the_same_segment_and_of_the_right_time(dt: float, every: float) -> None:
    segments = [segment(k, round(n / dt) + 1, dt) for k, n in enumerate((150, 317, 101))]
    x, later, blocks = starts(segments, [2, 0], every)
    assert x.dtype == np.float64
    assert x.shape[1:] == (2, 3)
    assert len(blocks) == len(x)
    np.testing.assert_array_equal(x[..., 1], np.tile([2.0, 0.0], (len(x), 1)))  # the sites, in their order
    assert set(later) == set(TIMES)
    for t, frames in later.items():
        np.testing.assert_array_equal(frames[..., 0] - x[..., 0], round(t / dt))
        np.testing.assert_array_equal(frames[..., 1:], x[..., 1:])


def test_every_start_that_has_all_its_later_frames_is_taken() -> None:
    frames = round(max(TIMES) / DT)
    other = segment(1, frames + 1001)  # two blocks of its own
    for extra, expected in ((0, 0), (1, 1), (5, 1), (6, 2), (51, 11)):
        x, later, _ = starts([segment(0, frames + extra), other], [0], every=1.0)
        mine = x[:, 0, 2] == 0
        assert mine.sum() == (later[100.0][:, 0, 2] == 0).sum() == expected
        np.testing.assert_array_equal(x[mine, 0, 0], np.arange(0, extra, 5))


@pytest.mark.parametrize("lengths", [(), (90.0,), (90.0, 50.0), (150.0,), (199.0, 60.0)])
def test_less_than_two_blocks_are_no_comparison(lengths: tuple[float, ...]) -> None:
    with pytest.raises(ZooError, match="at least two are needed"):
        starts([segment(k, round(n / DT) + 1) for k, n in enumerate(lengths)], [0], every=1.0)


@pytest.mark.parametrize("every", [0.05, 0.1, 0.3, 0.0])
def test_frames_that_are_not_there_cannot_be_taken(every: float) -> None:
    with pytest.raises(ZooError, match=r"frames every 0\.2 ps cannot be taken every"):
        starts([segment(0, 2000)], [0], every=every)


@pytest.mark.parametrize(
    ("lag_time", "times"), [(1.0, TIMES), (0.2, TIMES), (10.0, TIMES[1:]), (100.0, (100.0,)), (7.0, ())]
)
def test_times_are_whole_steps_of_the_lag_time(lag_time: float, times: tuple[float, ...]) -> None:
    assert whole_steps(lag_time) == times


def test_longer_lag_times_take_fewer_steps() -> None:
    x = np.stack([SHAPE] * 2)
    moved, _ = propagate(Drifting(lag_time=10.0), x, seed=0, times=TIMES[1:])  # type: ignore[arg-type]
    for t, positions in moved.items():
        np.testing.assert_allclose(positions, x + [0.5 * t / 10, 0, 0], atol=1e-9)


def test_blocks_last_about_100_ps_and_never_cross_segments() -> None:
    lengths = (340.0, 50.0, 160.0, 1200.0)  # the second is shorter than the longest time: no start of it
    segments = [segment(k, round(n / DT) + 1) for k, n in enumerate(lengths)]
    x, _, blocks = starts(segments, [0], every=1.0)
    number, time = x[:, 0, 2].astype(int), x[:, 0, 0] * DT
    assert set(number) == {0, 2, 3}
    assert sorted(set(blocks)) == list(range(blocks.max() + 1))  # without gaps
    for block in set(blocks):
        inside = blocks == block
        assert len(set(number[inside])) == 1
        assert np.ptp(time[inside]) == inside.sum() - 1  # one after the other
    counts = np.bincount(blocks)
    assert counts[:2].tolist() == [121, 120]  # starts from 0 to 240 ps, and no small block of what is left
    assert counts[2] == 61
    assert counts[3:].tolist() == [101] + [100] * 10


# --- propagate --------------------------------------------------------------------------------------


class Drifting(FakeDynamics):
    """Every step takes every walker 0.5 Å along x, whatever the noise."""

    def propose(self, positions: Any, walkers: Sequence[int], noise: Any) -> Any:
        assert len({w % self.batch_slots for w in walkers}) == len(walkers)
        return positions + [0.5, 0.0, 0.0]


def test_structures_are_kept_after_the_right_number_of_steps() -> None:
    x = np.stack([SHAPE + [0, 10 * k, 0] for k in range(5)])
    moved, redrawn = propagate(Drifting(lag_time=1.0), x, seed=0)  # type: ignore[arg-type]
    assert list(moved) == list(TIMES)
    for t, positions in moved.items():
        np.testing.assert_allclose(positions, x + [0.5 * t, 0, 0], atol=1e-9)
    assert redrawn == 0.0


def test_redrawn_steps_are_counted_and_seeds_matter() -> None:
    x = np.stack([SHAPE] * 3)
    model = FakeDynamics({(1, 4, 0): "bond", (2, 50, 0): "clash"}, lag_time=1.0)
    first, redrawn = propagate(model, x, seed=1)  # type: ignore[arg-type]
    assert redrawn == pytest.approx(2 / 302)
    again, _ = propagate(FakeDynamics(dict(model.bad), lag_time=1.0), x, seed=1)  # type: ignore[arg-type]
    other, _ = propagate(FakeDynamics(dict(model.bad), lag_time=1.0), x, seed=2)  # type: ignore[arg-type]
    for t in TIMES:
        np.testing.assert_array_equal(first[t], again[t])
        assert np.abs(first[t] - other[t]).max() > 0.01


# --- compare ----------------------------------------------------------------------------------------


def corners(n: int, weights: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Angles in one of four bins; not with the generator of the swaps, which draws the same numbers."""
    places = np.array([[-135.0, -135.0], [-135.0, 45.0], [45.0, -135.0], [45.0, 45.0]])
    return places[rng.choice(4, size=n, p=weights)]


EVEN = (0.25, 0.25, 0.25, 0.25)


def test_exchangeable_data_are_at_the_floor() -> None:
    ratios, above = [], 0
    for seed in range(30):
        rng = np.random.default_rng(1000 + seed)
        blocks = np.repeat(np.arange(40), 10)
        row = compare(corners(400, EVEN, rng), corners(400, EVEN, rng), blocks, seed, n_swaps=100)
        assert row["ratio"] == pytest.approx(row["divergence"] / row["floor"])
        ratios.append(row["ratio"])
        above += row["divergence"] > row["floor_95"]
    assert 0.75 < np.mean(ratios) < 1.3  # the mean of 30; one has a relative spread of sqrt(2/3)
    assert above <= 5  # 5 % of 30 expected


@pytest.mark.parametrize("correlated", [1, 10])
def test_the_floor_is_what_chance_gives(correlated: int) -> None:
    """Two samples of N from one distribution over K bins: (K - 1) / (4 N ln 2) bits, N the independent ones.

    Frames within a block that are all alike count as one: blocks make the floor as high as that.
    """
    n = 200
    expected = 3 / (4 * n * math.log(2))
    floors, divergences = [], []
    for seed in range(20):
        rng = np.random.default_rng(1000 + seed)
        md, model = (np.repeat(corners(n, EVEN, rng), correlated, axis=0) for _ in range(2))
        row = compare(md, model, np.repeat(np.arange(n), correlated), seed, n_swaps=50)
        floors.append(row["floor"])
        divergences.append(row["divergence"])
        # the same frames taken as independent would give a floor that is too low
        if correlated > 1 and seed == 0:
            alone = compare(md, model, np.arange(n * correlated), seed, n_swaps=50)
            assert alone["floor"] < 0.2 * row["floor"]
            assert alone["divergence"] == pytest.approx(row["divergence"])
    assert np.mean(floors) == pytest.approx(expected, rel=0.1)
    assert np.mean(divergences) == pytest.approx(expected, rel=0.5)


def test_another_distribution_is_clearly_above_the_floor() -> None:
    rng = np.random.default_rng(1000)
    blocks = np.repeat(np.arange(40), 25)
    row = compare(corners(1000, EVEN, rng), corners(1000, (0.4, 0.3, 0.2, 0.1), rng), blocks, 0)
    assert row["ratio"] > 5
    assert row["divergence"] > 2 * row["floor_95"]
    assert row["md_halves"] < 0.3 * row["divergence"]


def test_a_shift_of_the_torsions_is_seen() -> None:
    rng = np.random.default_rng(1001)
    blocks = np.repeat(np.arange(50), 20)
    md, model = rng.normal((-80, 80), 15, (1000, 2)), rng.normal((-50, 80), 15, (1000, 2))
    assert compare(md, model, blocks, 0)["ratio"] > 5
    assert compare(md, rng.normal((-80 + 360, 80), 15, (1000, 2)), blocks, 0)["ratio"] < 2


def test_the_order_of_frames_within_blocks_is_free() -> None:
    rng = np.random.default_rng(1002)
    md, model, blocks = corners(300, EVEN, rng), corners(300, EVEN, rng), np.repeat(np.arange(30), 10)
    order = rng.permutation(300)
    assert compare(md, model, blocks, 3) == compare(md[order], model[order], blocks[order], 3)


def test_md_halves_compare_even_with_odd_blocks() -> None:
    blocks = np.repeat(np.arange(4), 5)
    md = np.where(blocks[:, None] % 2, 45.0, -135.0) * np.ones(2)
    assert compare(md, md[::-1], blocks, 0)["md_halves"] == 1.0


def test_the_seed_decides_everything() -> None:
    rng = np.random.default_rng(1003)
    md, model, blocks = corners(200, EVEN, rng), corners(200, EVEN, rng), np.repeat(np.arange(20), 10)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert compare(md, model, blocks, 5) == compare(md, model, blocks, 5)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    one, other = compare(md, model, blocks, 5), compare(md, model, blocks, 6)
    assert one["divergence"] == other["divergence"]
    assert one["floor"] != other["floor"]
    assert torsion_histogram(md).sum() == 200  # the input is left alone


# --- command line -----------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "md"
    folder.mkdir()
    for k in range(2):
        positions = np.zeros((3, 22, 3), dtype=np.float32)
        write_record(segment_path(folder, k), Record(positions, DT, (0.0, 0.0), 3.0, 22))
    return folder


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No checkpoint is needed to find out that the data are missing."""
    monkeypatch.setattr(
        "training.benchmarks.propagation.__main__.ScoreDynamics.from_pretrained", lambda name: FakeDynamics()
    )


@pytest.mark.usefixtures("loaded")
def test_missing_segments_are_named_in_one_line(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["segment-007", "segment-001", "segment-003"]
    assert main(["sd-fake", "--data", str(data), "--segments", *asked]) == 1
    assert capsys.readouterr().err == f"error: no segment segment-003, segment-007 in {data}\n"


@pytest.mark.usefixtures("loaded")
def test_short_segments_are_one_line(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sd-fake", "--data", str(data), "--segments", "segment-000"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: 1 segments hold 0 blocks") and error.count("\n") == 1


@pytest.mark.usefixtures("loaded")
def test_a_folder_without_data_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sd-fake", "--data", str(tmp_path), "--segments", "segment-000"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "training.reference_md" in error and error.count("\n") == 1
