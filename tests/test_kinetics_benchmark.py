"""The benchmark of long rollouts: thinning, agreement of two rollouts, and a run from end to end."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

import zoo
from training.benchmarks.kinetics.__main__ import agreement, conduct, interval, main, thinned
from training.reference_md.segments import Segment
from zoo.analysis.bootstrap import Estimate
from zoo.analysis.evaluation import Evaluation, Quantity
from zoo.errors import ZooError
from zoo.molecules.start import load_start
from zoo.rollout import roll_out
from zoo.rollout.report import RolloutReport, WalkerReport
from zoo.score_dynamics import ScoreDynamics

CG = Path(zoo.__file__).parent / "checkpoints" / "sd-alanine-dipeptide-cg"


def segment(n: int = 11, dt: float = 0.2) -> Segment:
    x = np.arange(n * 6, dtype=np.float32).reshape(n, 2, 3)
    return Segment("segment-000", x, dt, (0.0, 0.0), Path("segment-000.npz"))


def test_frames_are_taken_a_lag_time_apart() -> None:
    (x,) = thinned([segment()], [1], 1.0)
    np.testing.assert_array_equal(x, segment().positions[[0, 5, 10]][:, [1]])


def test_a_lag_time_between_frames_is_refused() -> None:
    with pytest.raises(ZooError, match=r"^segment-000.npz: frames every 0.2 ps do not give 0.5 ps$"):
        thinned([segment()], [0], 0.5)


def evaluation(first: Estimate, second: Estimate) -> Evaluation:
    return Evaluation((Quantity("mfpt", "a → b", "ps", first, second),), {}, {})


@pytest.mark.parametrize(
    ("second", "agree"),
    [
        (Estimate(11.0, 9.0, 13.0, 9), 1),
        (Estimate(12.8, 10.8, 14.8, 9), 1),  # outside of the first one's interval, not outside of both
        (Estimate(12.9, 10.9, 14.9, 9), 0),
        (Estimate(7.1, 5.1, 9.1, 9), 0),
        (Estimate(7.1, 5.1, None, 9), 1),  # its interval has no upper end
    ],
)
def test_two_rollouts_agree_within_both_intervals(second: Estimate, agree: int) -> None:
    found = agreement(evaluation(Estimate(10.0, 8.0, 12.0, 9), second))
    assert (found["figures"], found["agree"]) == (1, agree)
    assert found["apart"] == ([] if agree else ["mfpt: a → b"])


def test_figures_without_an_interval_do_not_count() -> None:
    without = Estimate(3.0, None, None, 2, "too few events")
    assert agreement(evaluation(Estimate(10.0, 8.0, 12.0, 9), without))["figures"] == 0


def test_independent_figures_agree_as_often_as_intervals_promise() -> None:
    rng = np.random.default_rng(0)
    half = 1.96

    def draw() -> Estimate:
        value = rng.normal()
        return Estimate(value, value - half, value + half, 9)

    agree = sum(agreement(evaluation(draw(), draw()))["agree"] for _ in range(2000))
    assert agree / 2000 == pytest.approx(0.95, abs=0.02)


def report(seed: int, seconds: float, *walkers: WalkerReport) -> RolloutReport:
    return RolloutReport("name@1.0.0", "", 2.0, seed, 30, 100, seconds, walkers)


def test_rollouts_are_told_of_together() -> None:
    one = report(0, 10.0, WalkerReport(30, {"bond": 3, "clash": 1}, None, 0.0))
    other = report(1, 5.0, WalkerReport(30, {"bond": 2}, None, 0.0), WalkerReport(4, {}, "lost", 0.0))
    assert conduct([one, other]) == {
        "steps": 64,
        "redrawn_fraction": 6 / 70,
        "redrawn_by_kind": {"bond": 5, "clash": 1},
        "walkers_stopped": 1,
        "ps_per_second": 128 / 15,
    }


def test_an_interval_in_words() -> None:
    assert interval(1.0, None, "") == "1 to ∞"
    assert interval(0.123456, 2.0, "") == "0.123 to 2"
    assert interval(None, None, "too few events") == "too few events"


def md_of(model: ScoreDynamics, folder: Path) -> Path:
    """Two 'segments of MD' made by the propagator itself; atoms that are no sites are at the origin."""
    folder.mkdir()
    x = load_start(Path(zoo.__file__).parent / "data" / "alanine-dipeptide.pdb", model.molecule)
    for k, each in enumerate(roll_out(model, x, 60, 2, 5).trajectories):
        whole = np.zeros((each.n_frames, len(model.molecule.names), 3), dtype=np.float32)
        whole[:, list(model.molecule.sites)] = each.xyz
        np.savez(
            folder / f"segment-{k:03d}.npz",
            pos_nm=whole,
            dt_ps=1.0,
            seed=np.zeros(2),
            box_nm=2.1,
            n_atoms_total=800,
            provenance=json.dumps({}),
            state_xml="",
        )
    return folder


@pytest.mark.slow
def test_several_rollouts_are_kept_and_go_on_where_they_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, kept = tmp_path / "checkpoint", tmp_path / "kept"
    shutil.copytree(CG, folder)
    data = md_of(ScoreDynamics.from_pretrained(str(folder)), tmp_path / "md")
    arguments = [str(folder), "--data", str(data), "--segments", "segment-000", "segment-001", "--record"]
    arguments += ["--walkers", "2", "--steps", "20", "--rollouts", "3"]

    def figures() -> object:
        sections = json.loads((folder / "metrics.json").read_text())["sections"]
        assert " --rollouts 3 " in sections["kinetics"]["command"]
        return sections["kinetics"]["results"], sections["stability"]["results"][0]["rollouts"]

    assert main(arguments) == 0
    in_memory = figures()
    assert main([*arguments, "--keep", str(kept)]) == 0
    assert figures() == in_memory
    states = [kept / f"rollout-{seed}.state.npz" for seed in range(3)]
    at = [path.stat().st_mtime_ns for path in states[:2]]
    # as a kill between the second and the third leaves it
    for path in kept.glob("rollout-2*"):
        path.unlink()
    assert main([*arguments, "--keep", str(kept)]) == 0
    assert figures() == in_memory
    assert [path.stat().st_mtime_ns for path in states[:2]] == at
    assert states[2].is_file()


def test_one_rollout_has_none_to_be_compared_with(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(CG), "--data", "md", "--segments", "segment-000", "--rollouts", "1"])
    assert stop.value.code == 2
    assert "--rollouts: at least 2" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_records_what_a_card_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(CG, folder)
    data = md_of(ScoreDynamics.from_pretrained(str(folder)), tmp_path / "md")
    arguments = [str(folder), "--data", str(data), "--segments", "segment-000", "segment-001"]
    options = ["--walkers", "4", "--steps", "40", "--out", str(tmp_path / "out"), "--record"]
    assert main([*arguments, *options]) == 0
    sections = json.loads((folder / "metrics.json").read_text())["sections"]
    kinds = {row["kind"] for row in sections["kinetics"]["results"]}
    assert {"markov population", "group mfpt", "timescale"} <= kinds
    assert sections["kinetics"]["rollout_ns"] == pytest.approx(2 * 4 * 40 / 1000)  # both rollouts
    told = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert told["sets"]["rollout"]["n_trajectories"] == 2 * 4
    assert sections["kinetics"]["md_ns"] == pytest.approx(2 * 60 / 1000)
    (stability,) = sections["stability"]["results"]
    assert (stability["rollouts"], stability["n_walkers"], stability["steps"]) == (2, 4, 320)
    assert all(math.isfinite(stability[f"{kind}_drift_in_sd"]) for kind in ("bonds", "angles"))
    assert (tmp_path / "out" / "evaluation.json").is_file()
    assert (tmp_path / "out" / "evaluation.png").is_file()
    assert "second half:" in capsys.readouterr().out


def test_segments_that_were_trained_on_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of an earlier training count, whose weights the last one began with, and those for validation."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(CG, folder)
    path = folder / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["sections"]["training"]["segments"] = {"training": ["segment-010"], "held_out": ["segment-001"]}
    metrics["sections"]["training"]["earlier"] = [{"segments": {"validation": ["segment-000"]}}]
    path.write_text(json.dumps(metrics))
    data = md_of(ScoreDynamics.from_pretrained(str(folder)), tmp_path / "md")
    assert main([str(folder), "--data", str(data), "--segments", "segment-000", "segment-001"]) == 1
    assert (
        "was trained on segments of these names: segment-000; leave them out, or rename"
        in capsys.readouterr().err
    )


def test_missing_segments_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(CG), "--data", str(tmp_path), "--segments", "segment-009"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
