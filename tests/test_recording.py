"""What benchmarks write into metrics.json, and what they leave there."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.metrics import kept, record
from zoo.backbones.moments import MomentsConfig
from zoo.checkpoint import read_metrics
from zoo.denoiser import Denoiser, DenoiserConfig

SMALL = MomentsConfig(n_channels=4, n_radial=4, n_layers=1, l_density=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = DenoiserConfig(name="small", version="0.1.0", architecture=SMALL.to_dict())
    return Denoiser(config, config.build()).save_pretrained(tmp_path / "small")


def put(folder: Path, rows: list[dict[str, object]], add: bool) -> list[dict[str, object]]:
    if add:
        rows = rows + kept(folder, "md", rows, ("material", "temperature"))
    record(folder, "md", rows, command="python -m something", seed=1)
    stored: list[dict[str, object]] = read_metrics(folder)["sections"]["md"]["results"]
    return stored


def test_rows_of_other_materials_stay_and_say_when_they_were_measured(folder: Path) -> None:
    put(folder, [{"material": m, "temperature": 300, "right": 0.9} for m in ("Al", "Fe")], add=False)
    rows = put(folder, [{"material": "Fe", "temperature": 300, "right": 0.95}], add=True)
    assert [(row["material"], row["right"]) for row in rows] == [("Fe", 0.95), ("Al", 0.9)]
    assert "measured" not in rows[0]
    first = rows[1]["measured"]
    assert first == read_metrics(folder)["sections"]["md"]["date"]
    rows = put(folder, [{"material": "Fe", "temperature": 500, "right": 0.8}], add=True)
    assert [row.get("measured") for row in rows] == [None, first, first]
    assert len(put(folder, [{"material": "Fe", "temperature": 500}], add=False)) == 1


def test_rows_of_other_weights_do_not_stay(folder: Path) -> None:
    put(folder, [{"material": "Al", "temperature": 300}], add=False)
    old = read_metrics(folder)
    other = DenoiserConfig(name="small", version="0.2.0", architecture=SMALL.to_dict())
    denoiser = Denoiser(other, other.build(), metrics=old)
    denoiser.save_pretrained(folder)
    assert put(folder, [{"material": "Fe", "temperature": 300}], add=True) == [
        {"material": "Fe", "temperature": 300}
    ]
