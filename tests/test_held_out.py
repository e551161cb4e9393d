"""Which MD a checkpoint has seen, by its metrics."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from training.benchmarks.held_out import held_out_segments, trained_on
from training.finetune_dynamics import _earlier
from training.reference_md.segments import Record, segment_path, write_record
from zoo.errors import ZooError


def model(*trainings: dict[str, Any]) -> Any:
    last, *earlier = trainings
    section = {"command": "x", "results": [{}], **last, "earlier": list(earlier)}
    return SimpleNamespace(name="sd-x", metrics={"sections": {"training": section}})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    record = Record(np.zeros((3, 22, 3), dtype=np.float32), 0.2, (0.0, 0.0), 3.0, 22)
    for k in range(3):
        write_record(segment_path(tmp_path, k), record)
    write_record(tmp_path / "shot-00003.npz", record)
    return tmp_path


def test_all_trainings_count_and_what_was_held_out_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    seen = model(
        {"segments": {"training": ["segment-001"], "held_out": ["segment-002"]}},
        {"segments": {"validation": ["segment-000"], "releases": ["flat-00???: 3 blocks"]}},
    )
    assert trained_on(seen) == {"segment-001", "segment-000", "flat-00???"}
    assert capsys.readouterr().err == ""
    trained_on(model({"segments": {"training": ["a"]}}, {"command": "of old"}))
    assert "note: 1 of 2 trainings of sd-x do not say which segments" in capsys.readouterr().err


def test_what_was_seen_is_refused_also_as_one_of_a_series(data: Path) -> None:
    seen = model({"segments": {"training": ["segment-001", "shot-000??: 12 shots"]}})
    assert [s.name for s in held_out_segments(seen, [data], ["segment-000", "segment-002"])] == [
        "segment-000",
        "segment-002",
    ]
    for name in ("segment-001", "shot-00003"):
        with pytest.raises(ZooError, match=f"trained on segments of these names: {name}; leave them out"):
            held_out_segments(seen, [data], ["segment-000", name])
    with pytest.raises(ZooError, match="no segment segment-009 in "):
        held_out_segments(seen, [data], ["segment-009"])


def test_fine_tuning_remembers_what_its_base_has_seen() -> None:
    base = model({"segments": {"training": ["segment-001"]}}, {"segments": {"training": ["segment-000"]}})
    assert [each["segments"]["training"] for each in _earlier(base)] == [["segment-000"], ["segment-001"]]
