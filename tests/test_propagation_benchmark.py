"""The comparison of propagator and MD: which frames are compared, and what its noise floor means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.benchmarks.propagation.__main__ import TIMES, compare, main, starts
from training.reference_md.segments import Record, Segment, write_record
from zoo.registry import bundled_folder, find


def numbered(n: int, first: int, dt: float = 1.0) -> Segment:
    """Every coordinate of a frame says the frame's number."""
    x = np.broadcast_to(first + np.arange(n, dtype=np.float32)[:, None, None], (n, 3, 3))
    return Segment(f"s{first}", x, dt, (), Path("s.npz"))


def test_the_frames_compared_are_so_much_later_and_of_the_same_segment() -> None:
    first, later, blocks = starts([numbered(251, 0), numbered(90, 1000), numbered(121, 2000)], [0, 2], 10.0)
    assert first.shape[1:] == (2, 3)
    assert first[:, 0, 0].tolist() == [*range(0, 151, 10), *range(2000, 2021, 10)]
    for t in TIMES:
        assert (later[t] - first == t).all()
    # Blocks of 100 ps within a segment, and never shared by two of them.
    assert blocks.tolist() == [0] * 10 + [1] * 6 + [2] * 3


def test_frames_every_fifth_of_a_picosecond() -> None:
    first, later, _ = starts([numbered(601, 0, 0.2)], [0], 2.0)
    assert (np.diff(first[:, 0, 0]) == 10).all() and (later[10.0] - first == 50).all()


def draw(rng: np.random.Generator, blocks: np.ndarray, spread: float, shift: float = 0.0) -> np.ndarray:
    """Angles around a centre that wanders from block to block by ``spread`` degrees."""
    centres = rng.normal(0, spread, (int(blocks.max()) + 1, 2)) + shift
    return centres[blocks] + rng.normal(0, 30, (len(blocks), 2))


def test_two_samples_of_one_distribution_are_at_the_floor() -> None:
    blocks = np.repeat(np.arange(30), 20)
    ratios = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        ratios.append(compare(draw(rng, blocks, 20), draw(rng, blocks, 20), blocks, seed)["ratio"])
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("shift", [40.0, 80.0])
def test_another_distribution_is_above_twice_the_floor(shift: float) -> None:
    blocks = np.repeat(np.arange(30), 20)
    rng = np.random.default_rng(0)
    found = compare(draw(rng, blocks, 20), draw(rng, blocks, 20, shift), blocks, 0)
    assert found["ratio"] > 2 and found["divergence"] > found["floor_95"]


def test_correlated_frames_raise_the_floor() -> None:
    rng = np.random.default_rng(3)
    blocks = np.repeat(np.arange(12), 50)
    a, b = draw(rng, blocks, 60), draw(rng, blocks, 60)
    together = compare(a, b, blocks, 0)["floor"]
    apart = compare(a, b, np.arange(len(a)), 0)["floor"]
    assert together > 1.5 * apart
    assert compare(a, b, blocks, 0) == compare(a, b, blocks, 0)


def test_segments_that_are_not_there_are_named(tmp_path: Path) -> None:
    x = np.zeros((3, 22, 3), dtype=np.float32)
    write_record(tmp_path / "segment-000.npz", Record(x, 0.2, (0.0, 0.0), 2.1, 800))
    folder = bundled_folder(find("sd-alanine-dipeptide-cg"))
    with pytest.raises(SystemExit, match="no segment segment-007"):
        main([str(folder), "--data", str(tmp_path), "--segments", "segment-000", "segment-007"])
