"""The stopwatch of loading: it runs, and a wrong name is one line.  No test looks at a speed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from training.benchmarks.loading import _FAILS, main, seconds
from zoo.errors import ZooError


@pytest.mark.slow
def test_each_time_is_told_beside_that_of_the_peer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sd-alanine-dipeptide-cg", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "sd-alanine-dipeptide-cg, loaded",
        "sd-alanine-dipeptide-cg, not here, HF_HUB_OFFLINE",
        "sd-alanine-dipeptide-cg, not here, no network",
    ]
    assert all(re.search(r"peer \d+\.\d{3} s \(.*\d times", line) for line in lines)


@pytest.mark.slow
def test_what_does_not_work_is_not_timed(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="KeyError"):
        seconds("raise KeyError", tmp_path, {})
    with pytest.raises(ZooError, match="did not fail"):
        seconds(_FAILS.format(code="    pass"), tmp_path, {})


def test_an_unknown_name_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sd-alanine-dipeptid-cg"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
