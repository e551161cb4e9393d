"""The card that a recipe leaves: complete enough to be published, and drawn from the metrics alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from training.first_card import first_card, main, table, write_first_card
from zoo import publishing, registry
from zoo.checkpoint import CARD, METRICS, load
from zoo.errors import CheckpointError


@pytest.fixture(params=[record for record in registry.records() if record.bundled], ids=lambda r: r.name)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """As a recipe leaves it: weights, config, and how it was trained."""
    made: Path = tmp_path / request.param.name
    shutil.copytree(registry.bundled_folder(request.param), made)
    (made / CARD).unlink()
    metrics = json.loads((made / METRICS).read_text())
    metrics["sections"] = {"training": metrics["sections"]["training"]}
    (made / METRICS).write_text(json.dumps(metrics))
    return made


def test_it_can_be_published(folder: Path) -> None:
    with pytest.raises(publishing.PublishError, match="README"):
        publishing.plan(folder, "me/mine", load(folder).config["version"])
    write_first_card(folder)
    planned = publishing.plan(folder, "me/mine", load(folder).config["version"])
    assert CARD in planned.files
    assert "has not been measured" in (folder / CARD).read_text()


def test_it_says_how_the_checkpoint_was_made(folder: Path) -> None:
    training = json.loads((folder / METRICS).read_text())["sections"]["training"]
    card = first_card(folder)
    assert training["command"] in card and training["date"] in card
    assert f"| n_parameters | {training['results'][0]['n_parameters']} |" in card


def test_what_is_measured_later_gets_in(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = json.loads((folder / METRICS).read_text())
    rows = [{"case": "a|b", "value": 0.123456789, "parts": [1]}, {"case": "c", "value": None}]
    metrics["sections"]["bench"] = {"results": rows, "command": "python -m bench", "date": "2026-01-02"}
    (folder / METRICS).write_text(json.dumps(metrics))
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out == f"wrote {folder / CARD}\n"
    card = (folder / CARD).read_text()
    assert "| a\\|b | 0.12346 |" in card and "| c | – |" in card
    assert "has not been measured" not in card


def test_nothing_known_is_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / METRICS).unlink()
    with pytest.raises(CheckpointError, match="how it was trained"):
        first_card(folder)
    assert main([str(folder)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not (folder / CARD).exists()


def test_a_single_row_reads_downwards() -> None:
    assert table([{"a": 1, "b": "x", "c": {}}]) == "| | |\n|---|---|\n| a | 1 |\n| b | x |"
