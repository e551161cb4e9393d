"""The command line: what it answers, what it leaves behind, and that mistakes cost one line.

The network is replaced by an honest stand-in that moves every atom by a fixed amount, so that
everything around it can be tested without weights.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

import zoo
from zoo import cli
from zoo.errors import MissingExtraError, StructureError, UnknownCheckpointError
from zoo.structures import FrameWriter, read_frames

DATA = Path(__file__).parent / "data" / "io"
SHIFT = np.array([0.25, 0.0, -0.5])
#: With it nothing is chosen, and nothing told of that.
NAMED = ("-c", "denoiser-elements")


class ShiftDenoiser:
    """Moves every atom by SHIFT over two steps; can be told what to do before a frame."""

    before_frame: Callable[[int], None] = staticmethod(lambda k: None)
    loaded: list[str]

    def __init__(self) -> None:
        self.calls = 0

    @classmethod
    def from_pretrained(cls, name: str) -> ShiftDenoiser:
        if name == "denoiser-element":
            raise UnknownCheckpointError("no checkpoint 'denoiser-element': did you mean denoiser-elements?")
        cls.loaded.append(name)
        return cls()

    def denoise(self, atoms: Atoms, steps: int = 10, callback: Any = None) -> Atoms:
        type(self).before_frame(self.calls)
        self.calls += 1
        result = atoms.copy()
        taken = min(2, steps)
        for step in range(1, taken + 1):
            result.positions += SHIFT / taken
            if callback is not None:
                callback(step, result.positions, float(np.linalg.norm(SHIFT / taken)))
        result.info["denoise_steps"] = taken
        return result


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[ShiftDenoiser]:
    class Fake(ShiftDenoiser):
        loaded: list[str] = []  # noqa: RUF012

    module = types.ModuleType("zoo.denoiser")
    module.Denoiser = Fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "zoo.denoiser", module)
    monkeypatch.chdir(tmp_path)
    return Fake


def trajectory(path: Path, n_frames: int = 3) -> Path:
    with FrameWriter(path) as writer:
        for k in range(n_frames):
            atoms = bulk("Cu", cubic=True) * 2
            atoms.rattle(0.05, seed=k)
            atoms.set_array("id", np.arange(len(atoms))[::-1] + 1)
            atoms.info["timestep"] = 10 * k
            writer.write(atoms)
    return path


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in captured.err
    return lines[0]


# -- the main job ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["in.dump", "in.dump.gz", "in.extxyz", "in.xdatcar"])
def test_every_frame_comes_out_denoised(
    fake: type[ShiftDenoiser], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    source = trajectory(Path(name))
    assert run("denoise", source, "-o", "out.extxyz") == 0
    before, after = list(read_frames(source)), list(read_frames("out.extxyz"))
    assert len(after) == 3
    for one, two in zip(before, after, strict=True):
        assert np.allclose(two.positions - one.positions, SHIFT, atol=1e-7)
        assert np.allclose(two.cell.array, one.cell.array)
        assert two.arrays.keys() == one.arrays.keys()
    assert fake.loaded == ["denoiser-elements"]
    captured = capsys.readouterr()
    assert captured.out == ""
    chosen, summary = captured.err.splitlines()
    assert chosen == "chose denoiser-elements: one species (Cu)"
    assert summary.startswith("3 frames, 96 atoms, 2 steps:")
    assert summary.endswith("written to out.extxyz")


def test_default_output_name() -> None:
    names = {
        "a/run.dump": "run-denoised.extxyz",
        "run.extxyz.gz": "run-denoised.extxyz",
        "POSCAR": "POSCAR-denoised.extxyz",
        "dump.melt.1000": "dump.melt.1000-denoised.extxyz",
    }
    assert {name: cli.default_output(Path(name)).name for name in names} == names


def test_output_next_to_where_the_user_is(fake: type[ShiftDenoiser]) -> None:
    assert run("denoise", DATA / "triclinic.dump", "-q") == 0
    assert Path("triclinic-denoised.extxyz").exists()


def test_dump_in_dump_out_in_the_same_frame_of_reference(fake: type[ShiftDenoiser]) -> None:
    assert run("denoise", DATA / "triclinic.dump", "-o", "out.dump", "-q") == 0
    (before,), (after,) = read_frames(DATA / "triclinic.dump"), read_frames("out.dump")
    assert np.allclose(after.positions - before.positions, SHIFT)
    assert np.allclose(after.info["origin"], before.info["origin"])
    for name in ("id", "type", "ix", "mol", "c_pe", "c_s[1]"):
        assert after.arrays[name].tolist() == before.arrays[name].tolist()


def test_species_steps_checkpoint_and_formats(fake: type[ShiftDenoiser]) -> None:
    arguments = ["--species", "Ge", "-n", 1, "-c", "mine", "--format-out", "lammps-dump", "-o", "out", "-q"]
    assert run("denoise", DATA / "general-triclinic.dump", *arguments) == 0
    (atoms,) = read_frames("out")
    assert atoms.get_chemical_symbols() == ["Ge", "Ge"]
    assert fake.loaded == ["mine"]


@pytest.mark.parametrize(
    ("selection", "steps"),
    [(["--start", 1], [10, 20, 30, 40]), (["--stop", 2], [0, 10]), (["--start", 1, "--every", 2], [10, 30])],
)
def test_frame_selection(fake: type[ShiftDenoiser], selection: list[object], steps: list[int]) -> None:
    source = trajectory(Path("in.dump"), 5)
    assert run("denoise", source, "-o", "out.extxyz", "-q", *selection) == 0
    assert [atoms.info["timestep"] for atoms in read_frames("out.extxyz")] == steps


def test_existing_output_needs_overwrite(
    fake: type[ShiftDenoiser], capsys: pytest.CaptureFixture[str]
) -> None:
    source = trajectory(Path("in.dump"))
    Path("out.extxyz").write_text("mine")
    assert run("denoise", source, "-o", "out.extxyz") == 1
    assert "--overwrite" in one_error(capsys)
    assert Path("out.extxyz").read_text() == "mine"
    assert run("denoise", source, "-o", "out.extxyz", "--overwrite", "-q") == 0
    assert capsys.readouterr().err == ""


def test_threads_are_set_for_the_run_only_when_asked(
    fake: type[ShiftDenoiser], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = types.ModuleType("torch")
    asked: list[int] = []
    torch.set_num_threads = asked.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    source = trajectory(Path("in.dump"), 1)
    assert run("denoise", source, "-o", "a.extxyz", "-q") == 0
    assert asked == []
    assert run("denoise", source, "-o", "b.extxyz", "-q", "--threads", 2) == 0
    assert asked == [2]


def stub_analysis(monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.analysis.crystals import store_labels

    crystals = types.ModuleType("zoo.analysis.crystals")
    crystals.store_labels = store_labels  # type: ignore[attr-defined]
    crystals.STRUCTURES = ("other", "fcc", "hcp")  # type: ignore[attr-defined]

    # before the shift three quarters are "fcc", after it all of them
    def structure_types(atoms: Atoms) -> np.ndarray:
        labels = np.ones(len(atoms), dtype=np.int32)
        if "denoise_steps" not in atoms.info:
            labels[: len(atoms) // 4] = 0
        return labels

    def structure_fractions(labels: np.ndarray) -> dict[str, float]:
        return {name: float((labels == i).mean()) for i, name in enumerate(crystals.STRUCTURES)}

    crystals.structure_types = structure_types  # type: ignore[attr-defined]
    crystals.structure_fractions = structure_fractions  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "zoo.analysis.crystals", crystals)
    monkeypatch.setattr(cli, "require_ovito", lambda: None)


def test_analyze_prints_a_table_and_labels_atoms(
    fake: type[ShiftDenoiser], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub_analysis(monkeypatch)
    assert run("denoise", trajectory(Path("in.dump")), "-o", "out.extxyz", "--analyze") == 0
    table = capsys.readouterr().out
    assert "mean of 3 frames" in table
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines() if "%" in line}
    assert rows == {"fcc": ["75.00", "%", "100.00", "%"], "other": ["25.00", "%", "0.00", "%"]}
    for atoms in read_frames("out.extxyz"):
        assert atoms.arrays["structure_type"].tolist() == [1] * len(atoms)
        assert atoms.info["structure_type_legend"].startswith("0 other, 1 fcc, 2 hcp, ")


@pytest.mark.slow
def test_analyze_with_ovito(fake: type[ShiftDenoiser], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ovito")
    with FrameWriter("in.extxyz") as writer:
        writer.write(bulk("Cu", cubic=True) * 4)
    assert run("denoise", "in.extxyz", "-o", "out.extxyz", "--analyze", "-q") == 0
    assert "fcc" in capsys.readouterr().out
    (atoms,) = read_frames("out.extxyz")
    assert set(atoms.arrays["structure_type"]) == {1}


def test_missing_ovito_is_said_before_any_work(
    fake: type[ShiftDenoiser], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ovito", None)
    with pytest.raises(MissingExtraError):
        cli.require_ovito()
    assert run("denoise", trajectory(Path("in.dump")), "-o", "out.extxyz", "--analyze") == 1
    assert 'pip install "score-zoo[analysis]"' in one_error(capsys)
    assert fake.loaded == []
    assert not Path("out.extxyz").exists()


# -- interruptions -----------------------------------------------------------------------------


def raise_at(frame: int, what: BaseException) -> Callable[[int], None]:
    def before(k: int) -> None:
        if k == frame:
            raise what

    return staticmethod(before)  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["out.extxyz", "out.dump.gz"])
def test_interrupt_keeps_finished_frames(
    fake: type[ShiftDenoiser], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    fake.before_frame = raise_at(2, KeyboardInterrupt())
    assert run("denoise", trajectory(Path("in.dump"), 5), "-o", name, *NAMED) == 130
    assert capsys.readouterr().err == f"interrupted: 2 finished frames are kept in {name}\n"
    assert [atoms.info["timestep"] for atoms in read_frames(name)] == [0, 10]
    assert sorted(p.name for p in Path().iterdir()) == sorted(["in.dump", name])


def test_interrupt_in_the_first_frame_leaves_nothing(
    fake: type[ShiftDenoiser], capsys: pytest.CaptureFixture[str]
) -> None:
    fake.before_frame = raise_at(0, KeyboardInterrupt())
    assert run("denoise", trajectory(Path("in.dump")), "-o", "out.extxyz", *NAMED) == 130
    assert capsys.readouterr().err == "interrupted: no frame was finished, nothing was written\n"
    assert [p.name for p in Path().iterdir()] == ["in.dump"]


@pytest.mark.slow
def test_a_real_ctrl_c(tmp_path: Path) -> None:
    trajectory(tmp_path / "in.dump", 5)
    script = (
        "import sys, time, types\n"
        "class Denoiser:\n"
        "    n = 0\n"
        "    @classmethod\n"
        "    def from_pretrained(cls, name): return cls()\n"
        "    def denoise(self, atoms, steps, callback):\n"
        "        self.n += 1\n"
        "        if self.n == 3:\n"
        "            print('ready', flush=True); time.sleep(60)\n"
        "        return atoms.copy()\n"
        "module = types.ModuleType('zoo.denoiser'); module.Denoiser = Denoiser\n"
        "sys.modules['zoo.denoiser'] = module\n"
        "from zoo.cli import main\n"
        "sys.exit(main(['denoise', 'in.dump', '-c', 'mine', '-o', 'out.extxyz.gz']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(zoo.__file__).parents[1])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr == "interrupted: 2 finished frames are kept in out.extxyz.gz\n"
    assert len(list(read_frames(tmp_path / "out.extxyz.gz"))) == 2


def test_truncated_input_keeps_the_frames_before_it(
    fake: type[ShiftDenoiser], capsys: pytest.CaptureFixture[str]
) -> None:
    source = trajectory(Path("in.dump"))
    source.write_bytes(source.read_bytes()[:-100])
    assert run("denoise", source, "-o", "out.extxyz", *NAMED) == 1
    message = one_error(capsys)
    assert "in.dump, frame 3 is cut off: expected 32 atoms" in message
    assert message.endswith("2 finished frames are kept in out.extxyz")
    assert len(list(read_frames("out.extxyz"))) == 2


def test_full_disk(fake: type[ShiftDenoiser], capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    source = trajectory(Path("in.dump"))
    assert run("denoise", source, "-o", "/dev/full", "--format-out", "extxyz", *NAMED) == 1
    assert "cannot write /dev/full: No space left on device" in one_error(capsys)


def test_what_the_model_refuses_names_file_and_frame(
    fake: type[ShiftDenoiser], capsys: pytest.CaptureFixture[str]
) -> None:
    fake.before_frame = raise_at(0, StructureError("too exotic"))
    assert run("denoise", trajectory(Path("in.dump")), "-o", "out.extxyz", "--start", 1, *NAMED) == 1
    assert one_error(capsys) == "error: in.dump, frame 2: too exotic"


def test_bug_in_the_model_is_not_hidden(fake: type[ShiftDenoiser]) -> None:
    fake.before_frame = raise_at(1, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        run("denoise", trajectory(Path("in.dump")), "-o", "out.extxyz")
    assert len(list(read_frames("out.extxyz"))) == 1


# -- bad input ---------------------------------------------------------------------------------


def bad_atoms(what: str) -> Atoms:
    atoms = bulk("Cu", cubic=True) * 2
    if what == "NaN":
        atoms.positions[3] = np.nan
    elif what == "coincident":
        atoms.positions[3] = atoms.positions[9]
    elif what == "left-handed":
        atoms.set_cell(atoms.cell.array[[1, 0, 2]])
    elif what == "singular":
        atoms.set_cell(atoms.cell.array[[0, 0, 2]])
    elif what == "no cell":
        atoms.set_cell(np.zeros((3, 3)))
    else:
        atoms = bulk("Cu", cubic=True)[:1]
    return atoms


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("NaN", "NaN or infinite"),
        ("coincident", "same place"),
        ("left-handed", "left-handed"),
        ("singular", "singular cell"),
        ("no cell", "there is no cell"),
        ("one atom", "only one atom"),
    ],
)
def test_bad_structures(
    fake: type[ShiftDenoiser], capsys: pytest.CaptureFixture[str], what: str, message: str
) -> None:
    with FrameWriter("in.extxyz") as writer:
        writer.write(bad_atoms(what))
    assert run("denoise", "in.extxyz", "-o", "out.extxyz") == 1
    error = one_error(capsys)
    assert message in error
    assert "in.extxyz, frame 1" in error
    assert [p.name for p in Path().iterdir()] == ["in.extxyz"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.dump", "", "is empty"),
        ("a.xyz", "0\n\n", "has no atoms"),
        ("a.dump", "ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n9\n", "cut off"),
        ("a.abc", "what is this\n", "format not recognised"),
        ("a.xyz", "\0\1\2\3", "binary"),
    ],
)
def test_bad_files(
    fake: type[ShiftDenoiser], capsys: pytest.CaptureFixture[str], name: str, content: str, message: str
) -> None:
    Path(name).write_text(content)
    assert run("denoise", name, "-o", "out.extxyz") == 1
    assert message in one_error(capsys)
    assert [p.name for p in Path().iterdir()] == [name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.dump"], "missing.dump: no such file"),
        (["."], "is a folder"),
        (["in.dump", "-o", "in.dump"], "is the input file"),
        (["in.dump", "-o", "nowhere/out.extxyz"], "does not exist"),
        (["in.dump", "-o", "out.foo"], "cannot tell the output format"),
        (["in.dump", "-o", "out.vasp", *NAMED], "holds one frame only"),
        (["in.dump", "--start", "7"], "no frame selected: in.dump ends before frame 7"),
        (["in.dump", "--start", "2", "--stop", "2"], "no frame selected: --stop 2"),
        (["in.dump", "--species", "Foo"], "'Foo' is not an element"),
        (["in.dump", "--species", ""], "is not an element"),
        (["in.dump", "--format-in", "lamps-dump"], "did you mean"),
        (["in.dump", "--format-in", "cif"], "as cif"),
        (["in.dump", "-c", "denoiser-element"], "did you mean denoiser-elements"),
    ],
)
def test_bad_arguments(
    fake: type[ShiftDenoiser], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    trajectory(Path("in.dump"), 2)
    assert run("denoise", *arguments) == 1
    assert message in one_error(capsys)
    left = {p.name for p in Path().iterdir()} - {"in.dump"}
    assert left == ({"out.vasp"} if "out.vasp" in arguments else set())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["denois"], "denois"),
        (["denoise"], "see 'zoo denoise --help'"),
        (["denoise", "a", "--bogus"], "--bogus"),
        (["denoise", "a", "-n", "0"], "--steps"),
        (["denoise", "a", "-n", "two"], "integer"),
        (["info"], "see 'zoo info --help'"),
    ],
)
def test_wrong_usage_is_one_line_too(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(*arguments) == 2
    assert message in one_error(capsys)


def test_unwritable_folder(fake: type[ShiftDenoiser], capsys: pytest.CaptureFixture[str]) -> None:
    Path("in.extxyz").write_bytes(trajectory(Path("t.extxyz")).read_bytes())
    # a file where a folder is needed fails for every user, root included
    assert run("denoise", "in.extxyz", "-o", "t.extxyz/out.extxyz") == 1
    assert "cannot write t.extxyz/out.extxyz" in one_error(capsys)


# -- the other commands ------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["denoise", "-h"], ["list", "-h"], ["info", "-h"]])
def test_help_has_examples(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run(*arguments) == 0
    text = capsys.readouterr().out
    assert "Usage: zoo" in text
    assert "Example" in text
    assert "  zoo " in text


def test_no_arguments_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert "Usage: zoo" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"zoo {zoo.__version__}\n"


def test_list_has_every_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    from zoo.registry import records

    assert run("list") == 0
    text = capsys.readouterr().out
    for record in records():
        assert f"{record.name} {record.version} {record.kind}" in " ".join(text.split())


def checkpoint_folder(path: Path, **config: object) -> Path:
    path.mkdir()
    base = {
        "format_version": 1,
        "kind": "denoiser",
        "name": "mine",
        "version": "1.2.3",
        "weights_sha256": "0" * 64,
        "units": {"length": "angstrom"},
        "cutoff": 1.75,
    }
    (path / "config.json").write_text(json.dumps({**base, **config}))
    rows = [{"material": f"M{k}", "accuracy": 0.5} for k in range(20)]
    section = {"command": "python -m bench", "date": "2026-01-02", "results": rows}
    (path / "metrics.json").write_text(json.dumps({"format": 1, "sections": {"dc3": section}}))
    return path


def test_info_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkpoint_folder(tmp_path / "mine")
    assert run("info", folder) == 0
    text = capsys.readouterr().out
    for part in ("1.2.3", "cutoff", "1.75", "dc3", "python -m bench", "2026-01-02", "M0", "4 more rows"):
        assert part in text, part
    assert run("info", folder, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["config"]["name"] == "mine"
    assert len(data["metrics"]["sections"]["dc3"]["results"]) == 20
    assert data["record"] is None


def test_info_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", "denoiser-element") == 1
    assert "denoiser-elements" in one_error(capsys)
    assert run("info", checkpoint_folder(tmp_path / "newer", format_version=99)) == 1
    assert "99" in one_error(capsys)
    (checkpoint_folder(tmp_path / "damaged") / "metrics.json").write_text("{")
    assert run("info", tmp_path / "damaged") == 1
    assert "metrics.json" in one_error(capsys)


def test_demo_calls_the_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = types.ModuleType("zoo.demo")
    seen: list[Path] = []

    def demo(folder: Path, *, console: object) -> int:
        seen.append(folder)
        return 0

    module.run = demo  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "zoo.demo", module)
    monkeypatch.setattr(cli, "require_ovito", lambda: None)
    assert run("demo", "-o", tmp_path / "d") == 0
    assert seen == [tmp_path / "d"]


def test_broken_pipe_is_quiet(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(zoo.__file__).parents[1])}
    done = subprocess.run(
        f"{sys.executable} -m zoo.cli list | true; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.stderr == ""


def test_help_and_list_import_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import sys; from zoo.cli import main; main(['denoise', '--help']); main(['list']);"
        "heavy = {'torch', 'ase', 'numpy', 'ovito', 'huggingface_hub'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(zoo.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
