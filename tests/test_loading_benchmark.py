"""The stopwatch of loading: it runs, and a wrong name is one line.  No test looks at a speed."""

from __future__ import annotations

import pytest

from training.benchmarks.loading import main


@pytest.mark.slow
def test_it_tells_three_times_of_each_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sd-alanine-dipeptide-cg", "--rounds", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("sd-alanine-dipeptide-cg: ") and out.count(" s ") >= 2


def test_an_unknown_name_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sd-alanine-dipeptid-cg"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
