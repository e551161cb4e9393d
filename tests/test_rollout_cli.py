"""`zoo rollout`: what it prints, what it leaves, how it is stopped and continued, and its one-line errors."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import pytest

from tests.rollout_model import FakeDynamics, write_start
from zoo import cli
from zoo.errors import UnknownCheckpointError


class Loaded:
    """Stands for `zoo.score_dynamics.ScoreDynamics`; a test changes the model it hands out."""

    model = FakeDynamics()
    names: list[str]

    @classmethod
    def from_pretrained(cls, name: str) -> FakeDynamics:
        if name == "sd-fak":
            raise UnknownCheckpointError("no checkpoint 'sd-fak': did you mean sd-fake?")
        cls.names.append(name)
        return cls.model


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Loaded]:
    class Here(Loaded):
        model = FakeDynamics()
        names: list[str] = []  # noqa: RUF012

    module = types.ModuleType("zoo.score_dynamics")
    module.ScoreDynamics = Here  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "zoo.score_dynamics", module)
    monkeypatch.chdir(tmp_path)
    write_start(Path("start.pdb"))
    return Here


def run(*arguments: object) -> int:
    return cli.main(["rollout", *(str(argument) for argument in arguments)])


def listing() -> list[str]:
    return sorted(path.name for path in Path.cwd().iterdir())


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    return lines[0]


def test_walkers_are_written_and_summed_up(loaded: type[Loaded], capsys: pytest.CaptureFixture[str]) -> None:
    loaded.model = FakeDynamics({(1, 2, 0): "bond"})
    assert run("sd-fake", "start.pdb", "-n", 5, "--walkers", 3, "-o", "run.xtc", "--seed", 4) == 0
    assert loaded.names == ["sd-fake"]
    assert len(mdtraj.load("run-02.xtc", top="run.pdb")) == 6
    assert json.loads(Path("run.json").read_text())["seed"] == 4
    captured = capsys.readouterr()
    assert captured.err == ""  # no bar where there is no terminal
    lines = captured.out.splitlines()
    assert lines[0] == "3 walkers, 15 steps of 2 ps, 0.03 ns (sd-fake@1.0.0, seed 4)"
    assert lines[1] == "1 of 16 proposals redrawn (6.2 %): bond 1"
    assert "ps/s" in lines[2]
    assert "ns/day" in lines[2]
    assert lines[3:] == ["written to run-00.xtc ... run-02.xtc"]


def test_output_is_named_after_the_start(loaded: type[Loaded], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sd-fake", "start.pdb", "-n", 2, "--quiet", "--lag-time", 2) == 0
    assert listing() == [
        "start-rollout.json",
        "start-rollout.pdb",
        "start-rollout.state.npz",
        "start-rollout.xtc",
        "start.pdb",
    ]
    assert capsys.readouterr() == ("", "")


def test_several_frames_are_a_walker_each(loaded: type[Loaded]) -> None:
    write_start(Path("frames.pdb"), 3)
    assert run("sd-fake", "frames.pdb", "-n", 2, "-o", "run.dcd") == 0
    starts = [mdtraj.load(f"run-0{w}.dcd", top="run.pdb").xyz[0, 0, 0] for w in range(3)]
    assert np.allclose(np.diff(starts), 0.005, atol=1e-4)


def test_the_same_command_continues_after_ctrl_c(
    loaded: type[Loaded], capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(FakeDynamics):
        def propose(self, positions: Any, walkers: Any, noise: Any) -> Any:
            if self._now == (4, 0):
                raise KeyboardInterrupt
            return super().propose(positions, walkers, noise)

    command = ("sd-fake", "start.pdb", "-n", 6, "-o", "run.xtc")
    assert run(*command[:-1], "whole.xtc") == 0
    loaded.model = Interrupted()
    capsys.readouterr()
    assert run(*command) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "interrupted after step 3 of 6, which is saved; give the same command again to continue\n"
    )
    loaded.model = FakeDynamics()
    assert run(*command) == 0
    assert capsys.readouterr().err == "continuing run.xtc after step 3\n"
    assert len(loaded.model.calls) == 3
    assert Path("run.xtc").read_bytes() == Path("whole.xtc").read_bytes()


def test_a_complete_run_says_so_and_a_larger_n_extends_it(
    loaded: type[Loaded], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("sd-fake", "start.pdb", "-o", "run.xtc", "-n")
    assert run(*command, 3) == 0
    capsys.readouterr()
    assert run(*command, 3) == 0
    assert capsys.readouterr() == (
        "run.xtc is complete: 3 steps were done before; a larger -n continues it\n",
        "",
    )
    assert run(*command, 5) == 0
    captured = capsys.readouterr()
    assert captured.err == "continuing run.xtc after step 3\n"
    assert captured.out.startswith("1 walker, 5 steps of 2 ps")
    assert len(mdtraj.load("run.xtc", top="run.pdb")) == 6


def test_stopped_walkers_are_told_one_by_one(
    loaded: type[Loaded], capsys: pytest.CaptureFixture[str]
) -> None:
    loaded.model = FakeDynamics({(1, 2, 0): "clash"})
    command = ("sd-fake", "start.pdb", "-n", 3, "-w", 2, "--max-redraws", 0, "-o", "run.xtc")
    assert run(*command) == 0
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("warning: walker 1 stopped at step 2: the only proposal was bad, the last: clash")
    assert "1 of 2 walkers stopped early" in captured.out


def test_when_every_walker_stops_that_is_an_error(
    loaded: type[Loaded], capsys: pytest.CaptureFixture[str]
) -> None:
    loaded.model = FakeDynamics({(w, 2, 0): "bond" for w in range(12)})
    command = ("sd-fake", "start.pdb", "-n", 3, "-w", 12, "--max-redraws", 0, "-o", "run.xtc")
    for _ in range(2):  # also when asked again
        assert run(*command) == 1
        lines = capsys.readouterr().err.splitlines()
        assert [line.split()[0] for line in lines[-12:]] == ["warning:"] * 11 + ["error:"]
        assert lines[-2] == "warning: 2 more walkers stopped, see run.json"
        assert lines[-1] == "error: every walker stopped before step 3"


def test_a_start_far_from_the_training_data_is_one_warning_line(
    loaded: type[Loaded], capsys: pytest.CaptureFixture[str]
) -> None:
    loaded.model = FakeDynamics(strangeness=2.5)
    assert run("sd-fake", "start.pdb", "-n", 1) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: start.pdb: the start is far outside the training data")
    assert "score 2.50" in line


def test_a_bar_on_a_terminal(
    loaded: type[Loaded], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "140")
    assert run("sd-fake", "start.pdb", "-n", 3, "-w", 2) == 0
    shown = capsys.readouterr().err
    for part in ("3/3", "2 walkers", "ps/s", "ns/day", "redrawn"):
        assert part in shown


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-n", "0"], "Invalid value for '-n'"),
        (["-n", "-5"], "Invalid value for '-n'"),
        (["-n", "3", "--walkers", "0"], "Invalid value for '-w'"),
        (["-n", "3", "--walkers", "-2"], "Invalid value for '-w'"),
        (["-n", "3", "--seed", "-1"], "Invalid value for '--seed'"),
        ([], "Missing option '-n'"),
    ],
)
def test_impossible_numbers_are_wrong_usage(
    loaded: type[Loaded], capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert run("sd-fake", "start.pdb", *arguments) == 2
    assert told in one_error(capsys)
    assert loaded.names == []
    assert listing() == ["start.pdb"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["sd-fak", "start.pdb"], "did you mean sd-fake?"),
        (["sd-fake", "nothing.pdb"], "nothing.pdb: there is no such file"),
        (["sd-fake", "start.pdb", "-o", "run.trr"], "name a file that ends in .xtc, .dcd, .h5"),
        (["sd-fake", "start.pdb", "-o", "nowhere/run.xtc"], "there is no folder nowhere"),
        (["sd-fake", "start.pdb", "-o", "start.xtc"], "would write over the input start.pdb"),
        (["sd-fake", "start.pdb", "--seed", str(2**63)], "seed must be from 0 to"),
        (
            ["sd-fake", "start.pdb", "--lag-time", "10"],
            "sd-fake takes steps of 2 ps and cannot take 10 ps: the lag time is part of a checkpoint",
        ),
        (["sd-fake", "other.pdb"], "other.pdb"),
    ],
)
def test_mistakes_cost_one_line_and_leave_nothing(
    loaded: type[Loaded], capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    mdtraj.load("start.pdb").atom_slice([0, 1, 2]).save("other.pdb")  # of another molecule
    assert run(*arguments, "-n", 3) == 1
    assert told in one_error(capsys)
    assert listing() == ["other.pdb", "start.pdb"]


@pytest.mark.parametrize(
    ("change", "arguments", "told"),
    [
        ({"weights_sha256": "f" * 64}, [], "sha256 of the weights 000000000000... there"),
        ({"lag_time": 10.0}, [], "lag time (ps) 2 there, 10 now"),
        ({}, ["--seed", "1"], "seed 0 there, 1 now"),
        ({}, ["-w", "2"], "number of walkers 1 there, 2 now"),
    ],
)
def test_another_run_is_not_continued_unless_overwritten(
    loaded: type[Loaded],
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    arguments: list[str],
    told: str,
) -> None:
    command = ("sd-fake", "start.pdb", "-n", 3, "-o", "run.xtc")
    assert run(*command) == 0
    before = {name: Path(name).read_bytes() for name in listing()}
    loaded.model = FakeDynamics(**change)
    capsys.readouterr()
    assert run(*command, *arguments) == 1
    error = one_error(capsys)
    assert told in error
    assert "--overwrite" in error
    assert {name: Path(name).read_bytes() for name in listing()} == before
    assert run(*command, *arguments, "--overwrite") == 0


def test_help_has_examples_and_needs_no_torch() -> None:
    import subprocess

    code = (
        "import sys; from zoo import cli; cli.main(['rollout', '--help']); "
        "assert not {'torch', 'mdtraj', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "zoo rollout sd-alanine-dipeptide-cg start.pdb -n 100000 --walkers 64 -o run.xtc" in done.stdout
