"""What `zoo evaluate` refuses before it rolls out, and that it loses no file; files of rollouts."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import mdtraj
import numpy as np
import pytest

import zoo.rollout
from tests.one_line import one_error
from zoo import cli
from zoo.analysis.evaluation import Evaluation
from zoo.analysis.trajectories import read_reference, read_rollout
from zoo.errors import StructureError, ZooError
from zoo.evaluate_command import Job, _save, check_report
from zoo.molecules.start import load_start
from zoo.rollout import roll_out
from zoo.score_dynamics import ScoreDynamics

NAME = "sd-alanine-dipeptide-cg"
START = Path(zoo.__file__).parent / "data" / "alanine-dipeptide.pdb"
N_STEPS = 40


@pytest.fixture(scope="module")
def model() -> ScoreDynamics:
    return ScoreDynamics.from_pretrained(NAME)


@pytest.fixture(scope="module")
def moved(model: ScoreDynamics) -> mdtraj.Trajectory:
    return roll_out(model, load_start(START, model.molecule), N_STEPS).trajectories[0]


@pytest.fixture
def here(
    model: ScoreDynamics, moved: mdtraj.Trajectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """md.xtc and md.pdb hold all atoms: heavy ones of a rollout, and hydrogens where the start has them."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    whole = mdtraj.load(str(START))
    xyz = np.repeat(whole.xyz, len(moved), 0)
    xyz[:, list(model.molecule.sites)] = moved.xyz
    mdtraj.Trajectory(xyz, whole.topology, time=np.arange(len(moved))).save("md.xtc")
    whole.save("md.pdb")
    return folder


MD = ("--reference", "md.xtc", "--topology", "md.pdb")


def run(*arguments: str) -> int:
    return cli.main(["evaluate", NAME, *arguments])


# --- the command ------------------------------------------------------------------------------------


@pytest.fixture
def no_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("the walkers are on their way already")

    monkeypatch.setattr(zoo.rollout, "roll_out", refuse)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


EARLY: list[tuple[list[str], str]] = [
    (["--save-rollout", "new.xtc", "-o", "new.json"], "new.json is a file of the rollout"),
    (["--save-rollout", "new.xtc", "-o", "../here/new.json", "--overwrite"], "is a file of the rollout"),
    (["--save-rollout", "md.xtc"], "would write over md.pdb"),
    (["--save-rollout", "md.xtc", "-w", "1"], "would write over md.xtc"),
    (["--save-rollout", "md.dcd"], "would write over md.pdb"),
    (["--markov-lag", "2.5"], "2.5 ps is no multiple of the interval of 1 ps"),
    (["--markov-lag", "400"], "too long for trajectories of 40 ps"),
    (["--markov-lag", "30", "-n", "30"], "too long for trajectories of 30 ps"),
    (["--markov-lag", "-1"], "positive number of ps"),
    (["--block", "-5"], "length of a block"),
    (["--block", "nan"], "length of a block"),
    (["-w", "3", "-n", "5"], "3 walkers of 5 steps make 18 frames, and at least 20 are needed"),
    (["--reference", "few.h5"], "the reference is too short: 10 frames"),
    (["--reference", "nan.h5"], "nan.h5, frame 25: coordinates that are not finite"),
]


@pytest.mark.usefixtures("no_rollout")
@pytest.mark.parametrize(("arguments", "words"), EARLY, ids=[" ".join(each[0]) for each in EARLY])
def test_a_mistake_is_told_before_the_rollout(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    if "--reference" in arguments:
        whole = mdtraj.load("md.xtc", top="md.pdb")
        whole[:10].save("few.h5")
        whole.xyz[25] = np.nan
        whole.save("nan.h5")
    else:
        arguments = [*MD, *arguments]
    before = contents(here)
    assert run(*arguments) == 1
    assert words in one_error(capsys)
    assert contents(here) == before


def test_the_report_does_not_replace_that_of_the_rollout(
    here: Path, moved: mdtraj.Trajectory, capsys: pytest.CaptureFixture[str]
) -> None:
    moved.save("run-00.xtc")
    Path("run.json").write_text('{"lag_time_ps": 1.0, "files": ["run-00.xtc"]}')
    before = contents(here)
    assert run(*MD, "--rollout", "run.xtc", "-o", "run.json", "--overwrite") == 1
    assert "run.json is the report of the rollout run-00.xtc" in one_error(capsys)
    assert contents(here) == before


@pytest.mark.slow
def test_overwrite_keeps_the_saved_rollout(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evaluation, "save_png", lambda self, path: path.write_bytes(b"picture"))
    given = (*MD, "--save-rollout", "made.xtc", "-w", "2", "-q", "--resamples", "100")
    assert run(*given, "-n", "15") == 0

    def kept() -> dict[str, bytes]:  # run.json counts the seconds
        return {name: data for name, data in contents(here).items() if name.startswith(("made-", "made.pdb"))}

    made, first = kept(), Path("evaluation.json").read_text(encoding="utf-8")
    assert sorted(made) == ["made-00.xtc", "made-01.xtc", "made.pdb"]
    # fewer steps than are there, and a lag that only those that are there allow
    assert run(*given, "-n", "10", "--overwrite", "--markov-lag", "12", "--block", "5") == 0
    assert kept() == made
    again = json.loads(Path("evaluation.json").read_text(encoding="utf-8"))
    assert again["markov_lag_ps"] == 12 != json.loads(first)["markov_lag_ps"]
    assert again["sets"]["rollout"]["n_frames"] == 2 * 16
    capsys.readouterr()
    before = contents(here)
    assert run(*given, "-n", "15", "--overwrite", "--seed", "1") == 1
    line = one_error(capsys)
    assert "made.state.npz is of another run: seed 0 there, 1 now" in line
    assert line.endswith("choose another --save-rollout, or remove the files of made.xtc to start over")
    assert contents(here) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("failing", ["save_json", "save_png", "replace"])
def test_report_and_picture_are_written_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool, failing: str
) -> None:
    job = Job(NAME, (), tmp_path / "report.json", overwrite=overwrite)
    if overwrite:
        job.output.write_text("old report")
        job.picture.write_text("old picture")
    before = contents(tmp_path)
    replace = os.replace

    def fail(self: Evaluation, path: Path) -> Path:
        raise ZooError(f"cannot write {path}: No space left on device")

    def fail_at_the_end(source: Path, target: Path) -> None:
        if Path(target) == job.output:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(Evaluation, "save_png", lambda self, path: path.write_bytes(b"picture"))
    if failing == "replace":
        monkeypatch.setattr(os, "replace", fail_at_the_end)
    else:
        monkeypatch.setattr(Evaluation, failing, fail)
    wrong = job.picture if failing == "save_png" else job.output
    with pytest.raises(ZooError, match=f"cannot write {re.escape(str(wrong))}: No space left"):
        _save(Evaluation((), {}, {}), job)
    left = contents(tmp_path)
    if failing == "replace" and overwrite:
        assert left == {"report.json": b"old report", "report.png": b"picture"}
    else:
        assert left == before


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which not even root may write")
def test_a_folder_in_which_no_file_can_be_made_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--reference", "nothing.xtc", "-o", "/proc/x.json") == 1
    assert "cannot write /proc/x.json: no file can be made in folder /proc" in one_error(capsys)
    assert run("--reference", "nothing.xtc", "--save-rollout", "/proc/x.xtc") == 1
    assert "cannot write /proc/x.xtc: no file can be made in folder /proc" in one_error(capsys)


def test_a_name_that_is_too_long_is_told_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--reference", "nothing.xtc", "--save-rollout", str(tmp_path / f"{'x' * 300}.xtc")) == 1
    assert "File name too long" in one_error(capsys)
    for name in ("x" * 300 + ".json", "x" * 300 + "/x.json"):
        with pytest.raises(ZooError, match="File name too long"):
            check_report(tmp_path / name, tmp_path / "x.png", overwrite=False)
    check_report(tmp_path / "x.json", tmp_path / "x.png", overwrite=False)
    assert list(tmp_path.iterdir()) == []


# --- files of rollouts ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["xtc", "dcd"])
def test_a_rollout_of_other_atoms_is_told_by_their_number(
    model: ScoreDynamics, moved: mdtraj.Trajectory, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"run.{suffix}"
    moved.atom_slice(range(7)).save(path)
    with pytest.raises(StructureError, match=r"run.* holds 7 atoms that are not the 10 the checkpoint moves"):
        read_rollout(path, model.molecule, 1.0)
    with pytest.raises(StructureError, match=r"run.* has 7 atoms and its topology 22"):
        read_reference(path, model.molecule, 1.0, topology=START, interval=1.0)


@pytest.mark.parametrize(("name", "report"), [("run.dcd", "run.json"), ("run-03.dcd", "run.json")])
def test_a_dcd_of_another_lag_time_is_told_by_its_report(
    model: ScoreDynamics, moved: mdtraj.Trajectory, tmp_path: Path, name: str, report: str
) -> None:
    path, beside = tmp_path / name, tmp_path / report
    moved.save(path)
    beside.write_text(json.dumps({"lag_time_ps": 1.0, "files": [f"elsewhere/{name}"]}))
    assert len(read_rollout(path, model.molecule, 1.0).positions) == N_STEPS + 1
    with pytest.raises(StructureError, match=f"{name} has frames every 1 ps, says .*{report}, .* of 10 ps"):
        read_rollout(path, model.molecule, 10.0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "\udcff",
        "[1]",
        "3",
        "{}",
        '{"lag_time_ps": "1"}',
        '{"lag_time_ps": true}',
        '{"lag_time_ps": null}',
        '{"lag_time_ps": NaN}',
        '{"lag_time_ps": 1' + "0" * 400 + "}",
        '{"lag_time_ps": 1, "files": 5}',
        '{"lag_time_ps": 1, "files": [null]}',
        '{"lag_time_ps": 1, "files": ["run.xtc"]}',
        "[" * 100_000,
    ],
    ids=lambda text: text[:40],
)
def test_a_file_that_is_no_report_of_the_dcd_says_nothing(
    model: ScoreDynamics, moved: mdtraj.Trajectory, tmp_path: Path, text: str
) -> None:
    moved.save(tmp_path / "run.dcd")
    (tmp_path / "run.json").write_bytes(text.encode(errors="surrogateescape"))
    assert len(read_rollout(tmp_path / "run.dcd", model.molecule, 10.0).positions) == N_STEPS + 1
