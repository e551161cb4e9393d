"""The stopwatch: what is compared with what, and its answer to mistakes.  No test looks at a speed."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from training.benchmarks.wallclock import __main__ as wallclock
from training.benchmarks.wallclock.__main__ import Case, break_even, cases, costs, main, measure, summary
from zoo.errors import ZooError

SPEEDS = {
    "md one": (1.0, 2.0, 1.5),
    "md all": (4.0, 4.0, 5.0),
    "large one": (0.1, 0.1, 0.1),
    "large all": (0.2, 0.2, 0.2),
    "one": (30.0, 10.0, 20.0),
    "all": (400.0, 500.0, 600.0),
}


def measured() -> list[tuple[Case, tuple[float, ...]]]:
    return [(Case(kind, kind, ()), speeds) for kind, speeds in SPEEDS.items()]


def row_of(kind: str) -> dict[str, Any]:
    return next(row for row in summary(measured()) if row["kind"] == kind)


def test_one_walker_is_compared_with_one_process_and_many_with_all_processes() -> None:
    assert row_of("one")["ps_per_second"] == 20
    assert row_of("one")["times_md"] == pytest.approx(20 / 1.5)
    assert row_of("one")["times_md_large_box"] == pytest.approx(200)
    assert row_of("all")["times_md"] == pytest.approx(125)
    assert row_of("all")["times_md_large_box"] == pytest.approx(2500)
    assert row_of("all")["ns_per_day"] == pytest.approx(500 * 86.4)
    assert (row_of("all")["lowest"], row_of("all")["highest"]) == (400, 600)
    assert "times_md" not in row_of("md one")


def test_the_faster_way_to_run_md_is_the_one_to_beat() -> None:
    faster = [*measured(), (Case("more threads", "md one", ()), (3.0, 3.0, 3.0))]
    row = next(row for row in summary(faster) if row["kind"] == "one")
    assert row["times_md"] == pytest.approx(20 / 3)


def test_all_cases_of_a_checkpoint_have_their_rivals() -> None:
    kinds = [case.kind for case in cases(["name"], 64, "CPU")]
    assert set(kinds) == set(SPEEDS)
    together = [case for case in cases(["name"], 64, "CPU") if case.kind == "md all"]
    assert [case.processes for case in together] == [2]


@pytest.mark.parametrize("speed", [300.0, 3.1])
def test_at_break_even_both_ways_take_equally_long(speed: float) -> None:
    md, cost = 3.0, 1000.0
    ns = break_even(speed, md, cost)
    assert ns is not None
    assert 1000 * ns / md == pytest.approx(1000 * ns / speed + cost)


def test_what_is_not_faster_never_breaks_even() -> None:
    assert break_even(3.0, 3.0, 1.0) is None


def folder_with_training(folder: Path, **more: float) -> Path:
    result = {"minutes": 10.0, "n_pairs": 50000, **more}
    (folder / "metrics.json").write_text(
        json.dumps({"format": 1, "checkpoint": "x", "sections": {"training": {"results": [result]}}})
    )
    return folder


def test_the_md_trained_on_counts_too(tmp_path: Path) -> None:
    found = costs(folder_with_training(tmp_path), summary(measured()))
    assert found["training_md_ns"] == pytest.approx(10.0)
    md = statistics.median(SPEEDS["md all"])
    assert found["break_even_ns"] == pytest.approx(break_even(500.0, md, 600.0))
    assert found["break_even_with_md_ns"] == pytest.approx(break_even(500.0, md, 600.0 + 10000 / md))


def test_md_over_a_barrier_counts_with_it(tmp_path: Path) -> None:
    found = costs(folder_with_training(tmp_path, released_md_ns=2.5), summary(measured()))
    assert found["training_md_ns"] == pytest.approx(12.5)


def test_without_a_record_of_training_there_are_no_costs(tmp_path: Path) -> None:
    assert costs(tmp_path, summary(measured())) == {}
    assert costs("a-name", summary(measured())) == {}


def test_a_failing_process_is_told_by_its_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    case = Case("rollout", "one", ("rollout", "no-such-checkpoint"))
    with pytest.raises(ZooError, match=r"^rollout: .*no-such-checkpoint.*$"):
        measure(case, 0.1)


@pytest.mark.parametrize("options", [["--walkers", "1"], ["--rounds", "0"], ["--seconds", "0"]])
def test_impossible_numbers(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sd-alanine-dipeptide-cg", *options]) == 1
    assert capsys.readouterr().err.startswith("error: give at least")


def test_recording_needs_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sd-alanine-dipeptide-cg", "--record"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "--record" in error


@pytest.mark.slow
def test_a_rollout_is_timed_in_a_process_of_its_own() -> None:
    arguments = ("rollout", "sd-alanine-dipeptide-cg", "--walkers", "2", "--threads", "1")
    found = measure(Case("rollout", "all", arguments), 0.2)
    assert found["ps_per_second"] > 0
    assert found["lag_time"] == 1.0


def test_every_round_measures_every_case(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def fake(case: Case, seconds: float) -> dict[str, Any]:
        asked.append(case.name)
        return {"ps_per_second": SPEEDS[case.kind][0], "n_atoms": 3}

    monkeypatch.setattr(wallclock, "measure", fake)
    assert main(["name", "other", "--rounds", "2", "--walkers", "5"]) == 0
    names = [case.name for case in cases(["name", "other"], 5, "CPU")]
    assert asked == names * 2
    assert sum(name.startswith("MD") for name in names) == 5  # once for all checkpoints
    assert "rollout, 5 walkers, 2 threads: 400 ps/s (400 to 400)  100 x MD" in capsys.readouterr().out
