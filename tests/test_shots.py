"""Shots from barriers: where they start, that they are free after it, and that a series is completed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.reference_md import read_segments
from training.reference_md.segments import read_record
from training.reference_md.systems import ALANINE_DIPEPTIDE
from zoo.errors import ZooError

pytest.importorskip("openmm")

from training.reference_md import shots, simulation


@pytest.fixture
def vacuum(tmp_path: Path) -> Iterator[Any]:
    system = replace(ALANINE_DIPEPTIDE, force_field=("amber14/protein.ff14SB.xml",), window_step=90)
    protocol = simulation.Protocol(solvated=False, equilibration=((0.4, 2.0),))
    yield simulation.Generator(system, tmp_path / "out", "Reference", protocol=protocol)


def test_targets_are_fixed_for_good_and_go_once_around(vacuum: Any) -> None:
    full = replace(vacuum, system=ALANINE_DIPEPTIDE)
    starts = shots.targets(full, 0)
    assert len(starts) == 12
    assert [start.angles for start in starts] == [start.angles for start in shots.targets(full, 0)]
    assert all(abs(start.angles[0] - 120) < 25 for start in starts)
    steps = np.diff([start.angles[1] for start in starts]) % 360
    assert (steps < 61).all()
    assert shots.targets(full, 12)[0].angles != starts[0].angles  # the same window, other numbers
    back = np.diff([start.angles[1] for start in shots.targets(full, 12)]) % 360
    assert (back > 299).all()


def test_a_series_leaves_segments_that_start_at_their_targets_and_then_move_freely(vacuum: Any) -> None:
    told: list[str] = []
    assert shots.shoot(vacuum, 2, 2.0, told.append) == 0
    assert len(told) == 4
    segments = read_segments(vacuum.folder)
    assert [each.name for each in segments] == [f"shot-002{k:02d}" for k in range(4)]
    assert all(each.positions.shape == (11, 22, 3) for each in segments)
    moved = []
    for each in segments:
        first, last = (np.array(vacuum.angles(each.positions[k])) for k in (0, -1))
        off = (first - each.seed + 180) % 360 - 180
        assert np.abs(off).max() < 25
        moved.append(np.abs((last - first + 180) % 360 - 180).max())
    assert max(moved) > 30  # held at the target it would stay within a few degrees
    assert read_record(segments[0].path).provenance["shot"] == {"series": 2, "number": 0, "held_ps": 2.0}


def test_only_what_is_missing_is_made(vacuum: Any) -> None:
    shots.shoot(vacuum, 2, 2.0)
    paths = sorted(vacuum.folder.glob("shot-*.npz"))
    before = {path: path.read_bytes() for path in paths}
    paths[2].unlink()
    told: list[str] = []
    assert shots.shoot(vacuum, 2, 2.0, told.append) == 0
    assert len(told) == 1 and "shot 3 of 4" in told[0]
    assert shots.shoot(vacuum, 2, 2.0, told.append) == 0
    assert len(told) == 1
    assert sorted(vacuum.folder.glob("shot-*.npz")) == paths
    assert all(path.read_bytes() == before[path] for path in paths if path != paths[2])


def test_a_shot_that_fails_is_left_out_and_told(vacuum: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: list[int] = []

    def check(positions: Any, segment: int, start: Any) -> None:
        wrong.append(len(wrong))
        if len(wrong) == 2:
            raise simulation.SegmentError("it lost its handedness")

    monkeypatch.setattr(vacuum, "_check_start", check)
    told: list[str] = []
    assert shots.shoot(vacuum, 2, 2.0, told.append) == 1
    assert [text for text in told if "left out" in text] == [
        "series 002, shot 2 of 4 is left out: it lost its handedness"
    ]
    assert len(list(vacuum.folder.glob("shot-*.npz"))) == 3


def test_a_molecule_without_windows_is_refused(vacuum: Any) -> None:
    with pytest.raises(ZooError, match="has no windows"):
        shots.targets(replace(vacuum, system=replace(vacuum.system, windows=())), 0)


@pytest.mark.parametrize("arguments", [["--series", "0"], ["--first", "-1"], ["--length", "0"]])
def test_bad_numbers(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        shots.main(["alanine-dipeptide", "-o", str(tmp_path / "x"), *arguments])
    assert stop.value.code == 2
    assert "must be at least" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
