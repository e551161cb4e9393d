"""Files of a rollout: what other programs read in them, and that no kill loses or repeats a step."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import pytest

from tests.rollout_model import SHAPE, FakeDynamics
from zoo.errors import MissingExtraError, ZooError
from zoo.rollout import Rollout, RolloutError, roll_out
from zoo.rollout import output as output_module
from zoo.rollout.files import Lock
from zoo.rollout.formats import Hdf5File, XtcFile, count_xtc_frames, trajectory_file

SUFFIXES = [
    "xtc",
    "dcd",
    pytest.param("h5", marks=pytest.mark.skipif("not __import__('importlib.util').util.find_spec('tables')")),
]
BAD = {(0, 2, 0): "bond", (1, 3, 0): "clash", **{(2, 4, attempt): "bond" for attempt in range(3)}}


@pytest.fixture
def flush_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_module, "FLUSH_SECONDS", 0.0)


def go(path: Path, n_steps: int = 6, n_walkers: int = 3, **options: Any) -> Rollout:
    model = options.pop("model", None) or FakeDynamics(BAD)
    return roll_out(model, SHAPE, n_steps, n_walkers, 5, output=path, max_redraws=2, **options)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def opened(path: Path) -> mdtraj.Trajectory:
    """As a user would, with the PDB file beside it; HDF5 brings its own topology."""
    return mdtraj.load(str(path), **({} if path.suffix == ".h5" else {"top": str(path.parent / "run.pdb")}))


def contents(folder: Path) -> dict[str, Any]:
    """All that has to be the same after a kill: trajectories, positions, counters."""
    found: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".xtc", ".dcd"):
            found[path.name] = path.read_bytes()
        elif path.suffix == ".h5":
            trajectory = mdtraj.load(str(path))
            found[path.name] = (trajectory.xyz.tobytes(), trajectory.time.tobytes())
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as data:
                found |= {key: data[key].tobytes() for key in data.files if key != "about"}
        elif path.suffix == ".json":
            report = json.loads(path.read_text())
            found[path.name] = {
                key: value for key, value in report.items() if "second" not in key and "day" not in key
            } | {"files": None}
        else:
            assert path.suffix == ".pdb", f"left behind: {path.name}"
    return found


# -- what is written ---------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_walker_is_one_file_that_opens_with_its_topology(tmp_path: Path, suffix: str) -> None:
    memory = roll_out(FakeDynamics(BAD), SHAPE, 6, seed=5)
    rollout = go(tmp_path / f"run.{suffix}", n_walkers=1, keep=True)
    assert files_in(tmp_path) == sorted([f"run.{suffix}", "run.json", "run.pdb", "run.state.npz"])
    loaded = opened(tmp_path / f"run.{suffix}")
    precision = 5.1e-4 if suffix == "xtc" else 1e-6  # nm
    assert loaded.n_frames == 7
    assert np.abs(loaded.xyz - memory.trajectories[0].xyz).max() < precision
    assert loaded.unitcell_lengths is None
    if suffix != "dcd":  # MDTraj does not read the times of a DCD
        assert np.array_equal(loaded.time, 2.0 * np.arange(7))
    assert [atom.name for atom in loaded.topology.atoms] == ["C1", "C2", "F", "C3", "C4"]
    (kept,) = rollout.trajectories
    assert np.array_equal(kept.xyz, loaded.xyz)
    assert np.array_equal(kept.time, 2.0 * np.arange(7))
    assert rollout.files == (tmp_path / f"run.{suffix}",)


def test_several_walkers_are_numbered_files_with_one_topology_and_report(tmp_path: Path) -> None:
    rollout = go(tmp_path / "run.xtc")
    assert files_in(tmp_path) == [
        "run-00.xtc",
        "run-01.xtc",
        "run-02.xtc",
        "run.json",
        "run.pdb",
        "run.state.npz",
    ]
    assert rollout.trajectories == []  # in the files, not in memory
    topology = mdtraj.load(str(tmp_path / "run.pdb"))
    assert np.allclose(topology.xyz[0], SHAPE / 10, atol=1e-4)
    assert topology.topology.n_bonds == 4
    assert [len(mdtraj.load(str(f), top=topology.topology)) for f in rollout.files] == [7, 7, 4]
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["redrawn_by_kind"] == {"bond": 4, "clash": 1}
    assert report["files"] == [str(path) for path in rollout.files]
    assert report["walkers"][2]["stopped"].startswith("step 4: ")
    assert output_module.Names(Path("run.xtc"), 101).trajectories[7] == Path("run-007.xtc")


def test_dcd_says_the_lag_time_and_depends_on_nothing_else(tmp_path: Path) -> None:
    go(tmp_path / "run.dcd", n_walkers=1)
    data = (tmp_path / "run.dcd").read_bytes()
    frames, first, every = struct.unpack_from("<3i", data, 8)
    (delta,) = struct.unpack_from("<f", data, 44)
    assert (frames, first, every) == (7, 0, 1)
    assert delta * 0.0488882 == pytest.approx(2.0, rel=1e-5)  # AKMA unit of time in ps
    (tmp_path / "again").mkdir()
    go(tmp_path / "again" / "run.dcd", n_walkers=1)
    assert (tmp_path / "again" / "run.dcd").read_bytes() == data


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("n_sites", [1, 9, 10, 40])
def test_appending_is_idempotent_and_exact(tmp_path: Path, suffix: str, n_sites: int) -> None:
    topology = mdtraj.Topology()
    residue = topology.add_residue("X", topology.add_chain())
    for _ in range(n_sites):
        topology.add_atom("C", mdtraj.element.carbon, residue)
    frames = np.random.default_rng(0).normal(scale=5, size=(8, n_sites, 3))
    whole = trajectory_file(tmp_path / f"whole.{suffix}", topology, 0.5)
    whole.append(frames, 0, 0)
    whole.finish(8)
    parts = trajectory_file(tmp_path / f"parts.{suffix}", topology, 0.5)
    size = parts.append(frames[:3], 0, 0)
    parts.append(frames[5:], 3, size)  # never counted
    size = parts.append(frames[3:5], 3, size)
    assert suffix == "h5" or parts.path.stat().st_size == size
    parts.append(frames[:4], 5, size)  # never counted
    parts.cut(5, size)
    size = parts.append(frames[5:], 5, size)
    parts.finish(8)
    if suffix == "h5":
        assert np.array_equal(parts.read().xyz, whole.read().xyz)
    else:
        assert (tmp_path / f"parts.{suffix}").read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()
    assert np.abs(parts.read().xyz * 10 - frames).max() < (0.0051 if suffix == "xtc" else 1e-5)
    assert np.array_equal(parts.read().time, 0.5 * np.arange(8))
    assert len(files_in(tmp_path)) == 2


def test_xtc_frames_are_counted_only_if_whole(tmp_path: Path) -> None:
    go(tmp_path / "run.xtc", n_walkers=1)
    data = (tmp_path / "run.xtc").read_bytes()
    assert count_xtc_frames(data) == 7
    assert count_xtc_frames(b"") == 0
    for end in (1, 55, 60, len(data) - 1):
        assert count_xtc_frames(data[:end]) is None
    assert count_xtc_frames(b"x" * 200) is None


def test_memory_is_bounded_by_flushing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_module, "FLUSH_BYTES", 3 * 120)
    most = 0
    add = output_module.Output.add

    def spy(self: Any, state: Any) -> None:
        nonlocal most
        add(self, state)
        most = max(most, len(self._waiting))

    monkeypatch.setattr(output_module.Output, "add", spy)
    go(tmp_path / "run.xtc", n_steps=20, n_walkers=1, model=FakeDynamics())
    assert most == 3


# -- continuing --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_finished_run_is_extended(tmp_path: Path, suffix: str) -> None:
    for name in ("parts", "whole"):
        (tmp_path / name).mkdir()
    go(tmp_path / "parts" / f"run.{suffix}", n_steps=2)
    go(tmp_path / "parts" / f"run.{suffix}", n_steps=5)
    go(tmp_path / "parts" / f"run.{suffix}", n_steps=9)
    go(tmp_path / "whole" / f"run.{suffix}", n_steps=9)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.mark.parametrize("n_steps", [6, 3])
def test_a_complete_run_is_left_alone(tmp_path: Path, n_steps: int) -> None:
    go(tmp_path / "run.xtc")
    before = contents(tmp_path)
    model = FakeDynamics(BAD)
    rollout = go(tmp_path / "run.xtc", n_steps, model=model)
    assert model.calls == []
    assert rollout.report.accepted == 15
    assert contents(tmp_path) == before


def test_seconds_add_up_over_calls(tmp_path: Path) -> None:
    first = go(tmp_path / "run.xtc", n_steps=3).report.seconds
    assert go(tmp_path / "run.xtc", n_steps=6).report.seconds > first


KILLED_AT = (
    (os, "open"),
    (os, "pwrite"),
    (os, "ftruncate"),
    (os, "truncate"),
    (os, "fsync"),
    (os, "replace"),
    (os, "close"),
    (Path, "unlink"),
)


def killed(at: int, work: Callable[[], object]) -> bool:
    """Do the work in a child that is killed at its at-th file operation; whether it got that far."""
    child = os.fork()
    if child == 0:
        try:
            count = itertools.count(1)

            def wrapped(function: Callable[..., Any], name: str) -> Callable[..., Any]:
                def call(*args: Any, **kwargs: Any) -> Any:
                    if next(count) == at:
                        if name == "pwrite":  # half of it gets there
                            handle, data, offset = args
                            function(handle, bytes(data)[: len(data) // 2], offset)
                        os.kill(os.getpid(), signal.SIGKILL)
                    return function(*args, **kwargs)

                return call

            for owner, name in KILLED_AT:
                setattr(owner, name, wrapped(getattr(owner, name), name))
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def check_kills(folder: Path, suffix: str, points: Any, n_steps: int) -> int:
    (folder / "whole").mkdir()
    go(folder / "whole" / f"run.{suffix}", n_steps)
    expected = contents(folder / "whole")
    done = 0
    for at in points:
        where = folder / f"killed-{at}"
        where.mkdir()
        if not killed(at, lambda where=where: go(where / f"run.{suffix}", n_steps)):  # type: ignore[misc]
            break
        # what a viewer finds, if it finds anything, is a trajectory
        for path in where.glob("*.h5"):
            assert mdtraj.load(str(path)).n_frames >= 1
        # killed once more on the way, later each time
        killed(3 * at % 41 + 1, lambda where=where: go(where / f"run.{suffix}", n_steps))  # type: ignore[misc]
        go(where / f"run.{suffix}", n_steps)
        assert contents(where) == expected, f"killed at file operation {at}"
        done += 1
    return done


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.usefixtures("flush_always")
def test_a_killed_run_continues_exactly(tmp_path: Path, suffix: str) -> None:
    assert check_kills(tmp_path, suffix, (1, 4, 11, 29, 57, 83), 4) == 6


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.usefixtures("flush_always")
def test_a_run_killed_at_every_third_file_operation_continues_exactly(tmp_path: Path, suffix: str) -> None:
    """Every third one, for time; `pytest -k killed` with a step of 1 in `count` does all of them."""
    n_steps = 1 if suffix == "h5" else 2  # HDF5 takes longer
    assert check_kills(tmp_path, suffix, itertools.count(1, 3), n_steps) > 25


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_interrupt_keeps_the_steps_that_are_done(tmp_path: Path, suffix: str) -> None:
    class Interrupted(FakeDynamics):
        def propose(self, positions: Any, walkers: Any, noise: Any) -> Any:
            if self._now == (5, 0):
                raise KeyboardInterrupt
            return super().propose(positions, walkers, noise)

    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    go(tmp_path / "whole" / f"run.{suffix}")
    path = tmp_path / "parts" / f"run.{suffix}"
    with pytest.raises(KeyboardInterrupt):
        go(path, model=Interrupted(BAD))
    assert len(opened(path.with_stem("run-00"))) == 5
    assert json.loads(path.with_suffix(".json").read_text())["accepted"] == 11
    model = FakeDynamics(BAD)
    go(path, model=model)
    assert len(model.calls) == 2  # steps 5 and 6, of the walkers that have not stopped
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_bug_of_the_model_costs_no_finished_step(tmp_path: Path) -> None:
    class Broken(FakeDynamics):
        def propose(self, positions: Any, walkers: Any, noise: Any) -> Any:
            if self._now[0] == 4:
                raise ZeroDivisionError
            return super().propose(positions, walkers, noise)

    with pytest.raises(ZeroDivisionError):
        go(tmp_path / "run.xtc", model=Broken())
    assert json.loads((tmp_path / "run.json").read_text())["accepted"] == 9


# -- bad output --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("fails_at", [1, 5, 12, 20])
def test_a_full_disk_is_one_line_and_the_run_goes_on_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, fails_at: int, flush_always: None
) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    go(tmp_path / "whole" / f"run.{suffix}")
    count = itertools.count(1)
    pwrite = os.pwrite

    def full(handle: int, data: Any, offset: int) -> int:
        if next(count) >= fails_at:
            pwrite(handle, bytes(data)[:3], offset)
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(handle, data, offset)

    path = tmp_path / "parts" / f"run.{suffix}"
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(RolloutError, match=r"cannot write .*No space left on device") as told:
            go(path)
    assert "\n" not in str(told.value)
    for each in path.parent.glob(f"run-*.{suffix}"):  # readable as it is
        assert len(opened(each)) >= 1
    go(path)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"checkpoint_id": "sd-fake@2.0.0"}, "checkpoint sd-fake@1.0.0 there, sd-fake@2.0.0 now"),
        ({"weights_sha256": "1" * 64}, "sha256 of the weights 000000000000... there, 111111111111... now"),
        ({"lag_time": 10.0}, r"lag time \(ps\) 2 there, 10 now"),
        ({"seed": 6}, "seed 5 there, 6 now"),
        ({"n_walkers": 2}, "number of walkers 3 there, 2 now"),
        ({"start": SHAPE + 1.0}, "start positions"),
        ({"output": "run.dcd"}, "file format .xtc there, .dcd now"),
    ],
)
def test_another_run_is_not_continued(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    go(tmp_path / "run.xtc")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    model = FakeDynamics(
        BAD, **{k: v for k, v in change.items() if k in ("checkpoint_id", "weights_sha256", "lag_time")}
    )
    with pytest.raises(RolloutError, match=f"of another run: {told}.*-o.*--overwrite") as error:
        roll_out(
            model,
            change.get("start", SHAPE),
            9,
            change.get("n_walkers", 3),
            change.get("seed", 5),
            output=tmp_path / change.get("output", "run.xtc"),
        )
    assert str(error.value).count(" there") == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("present", ["run-01.xtc", "run.pdb", "run.json"])
def test_files_of_somebody_else_are_not_replaced(tmp_path: Path, present: str) -> None:
    (tmp_path / present).write_text("precious")
    with pytest.raises(RolloutError, match=f"{present} exists already, and there is no run.state.npz"):
        go(tmp_path / "run.xtc")
    assert files_in(tmp_path) == [present]
    assert (tmp_path / present).read_text() == "precious"
    go(tmp_path / "run.xtc", overwrite=True)
    assert len(files_in(tmp_path)) == 6


def test_overwriting_starts_over_and_leaves_no_walker_of_before(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "old").mkdir()
    go(tmp_path / "old" / "run.xtc", n_walkers=5)
    (tmp_path / "old" / "run-77.xtc").write_text("of no walker")
    go(tmp_path / "old" / "run.xtc", n_walkers=2, overwrite=True)
    go(tmp_path / "new" / "run.xtc", n_walkers=2)
    assert (tmp_path / "old" / "run-77.xtc").read_text() == "of no walker"
    (tmp_path / "old" / "run-77.xtc").unlink()
    assert contents(tmp_path / "old") == contents(tmp_path / "new")


@pytest.mark.parametrize("name", ["run.pdb", "run.xtc"])
def test_the_start_is_never_written_over(tmp_path: Path, name: str) -> None:
    start = tmp_path / name
    start.write_text("the start")
    with pytest.raises(RolloutError, match="would write over the input"):
        go(tmp_path / "run.xtc", n_walkers=1, inputs=[start], overwrite=True)
    assert start.read_text() == "the start"
    assert files_in(tmp_path) == [name]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.unlink(), "is gone"),
        (lambda path: os.truncate(path, 50), "has 50 bytes where"),
    ],
)
def test_a_trajectory_changed_since_is_noticed(
    tmp_path: Path, damage: Callable[[Path], None], told: str
) -> None:
    go(tmp_path / "run.xtc", n_steps=3)
    damage(tmp_path / "run-01.xtc")
    with pytest.raises(RolloutError, match=f"run-01.xtc {told}.*cannot be continued"):
        go(tmp_path / "run.xtc", n_steps=6)


def test_a_damaged_hdf5_file_is_noticed(tmp_path: Path) -> None:
    pytest.importorskip("tables")
    go(tmp_path / "run.h5", n_steps=3, n_walkers=1)
    (tmp_path / "run.h5").write_bytes(b"not HDF5")
    with pytest.raises(RolloutError, match=r"run.h5 cannot be read"):
        go(tmp_path / "run.h5", n_steps=6, n_walkers=1)


@pytest.mark.parametrize("damage", [b"", b"not a state", None])
def test_a_damaged_state_is_one_line(tmp_path: Path, damage: bytes | None) -> None:
    go(tmp_path / "run.xtc", n_steps=3)
    state = tmp_path / "run.state.npz"
    state.write_bytes(state.read_bytes()[:-200] if damage is None else damage)
    with pytest.raises(RolloutError, match=r"run.state.npz is damaged or not the state of a rollout"):
        go(tmp_path / "run.xtc")


def test_a_state_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    go(tmp_path / "run.xtc", n_steps=3)
    state = tmp_path / "run.state.npz"
    with np.load(state) as data:
        arrays = dict(data)
    about = json.loads(str(arrays["about"])) | {"format_version": 2}
    np.savez(state, **arrays | {"about": np.array(json.dumps(about))})
    with pytest.raises(RolloutError, match=r"another version of zoo \(format 2, this one reads 1\)"):
        go(tmp_path / "run.xtc")


def test_pickles_in_a_state_are_not_opened(tmp_path: Path) -> None:
    go(tmp_path / "run.xtc", n_steps=3)
    state = tmp_path / "run.state.npz"
    with np.load(state) as data:
        arrays = dict(data)
    np.savez(state, **arrays | {"positions": np.array([{"not": "numbers"}], dtype=object)})
    with pytest.raises(RolloutError, match="damaged"):
        go(tmp_path / "run.xtc")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("run.trr", r"run.trr: name a file that ends in .xtc, .dcd, .h5, .hdf5"),
        ("run", "name a file that ends in"),
        ("nowhere/run.xtc", "there is no folder .*nowhere"),
        ("folder.xtc", "it is a folder"),
        ("file/run.xtc", "there is no folder .*file"),
    ],
)
def test_output_that_cannot_be_written(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "folder.xtc").mkdir()
    (tmp_path / "file").write_text("")
    model = FakeDynamics()
    with pytest.raises(ZooError, match=f"cannot write .*{told}"):
        go(tmp_path / name, model=model)
    assert model.calls == []


def test_a_folder_without_permission_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(RolloutError, match="is not writable"):
        go(tmp_path / "run.xtc")


def test_hdf5_without_pytables_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_module, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"HDF5 needs PyTables: pip install \"score-zoo\[hdf5\]\""):
        go(tmp_path / "run.h5")
    assert not files_in(tmp_path)


def test_two_processes_do_not_write_the_same_run(tmp_path: Path) -> None:
    with Lock(tmp_path / ".run.lock"), pytest.raises(RolloutError, match="another process is writing"):
        go(tmp_path / "run.xtc")
    go(tmp_path / "run.xtc")


def test_an_hdf5_frame_is_copied_a_few_times_at_most(tmp_path: Path) -> None:
    pytest.importorskip("tables")
    topology = FakeDynamics().molecule.topology()
    file = Hdf5File(tmp_path / "run.h5", topology, 1.0)
    copied = []
    extend = file._extend
    file._extend = lambda path, base, done, frames: (copied.append(frames), extend(path, base, done, frames))[
        1
    ]  # type: ignore[method-assign,assignment,func-returns-value]
    for k in range(64):
        file.append(SHAPE[None] + k, k, 0)
        file.committed(k + 1)
    file.finish(64)
    assert copied == [1, 2, 4, 8, 16, 32, 64]
    assert np.allclose(file.read().xyz[:, 1, 0] * 10, np.arange(64))


def test_a_journal_that_outlived_its_hdf5_file_is_not_read_twice(tmp_path: Path) -> None:
    pytest.importorskip("tables")
    topology = FakeDynamics().molecule.topology()
    shapes = SHAPE + np.arange(6)[:, None, None]
    file = Hdf5File(tmp_path / "run.h5", topology, 1.0)
    file.append(shapes[:4], 0, 0)
    journal = file.journal.read_bytes()
    file.finish(4)
    file.journal.write_bytes(journal)  # killed between the last two lines of finish()
    again = Hdf5File(tmp_path / "run.h5", topology, 1.0)
    assert again.missing(4, 0) is None
    again.cut(4, 0)
    again.append(shapes[4:], 4, 0)
    again.finish(6)
    assert np.allclose(again.read().xyz * 10, shapes, atol=1e-5)
    assert files_in(tmp_path) == ["run.h5"]


def test_a_full_disk_under_pytables_is_an_oserror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = pytest.importorskip("tables")

    def full(*_: Any, **__: Any) -> None:
        raise tables.HDF5ExtError("HDF5 error back trace\n\nProblems appending the elements")

    monkeypatch.setattr(mdtraj.formats.HDF5TrajectoryFile, "write", full)
    with pytest.raises(
        RolloutError, match=r"cannot write .*run.h5: Problems appending the elements; .*safe up to"
    ):
        go(tmp_path / "run.h5", n_walkers=1)
    monkeypatch.undo()
    go(tmp_path / "run.h5", n_walkers=1)
    assert len(opened(tmp_path / "run.h5")) == 7


def test_an_xtc_chunk_that_did_not_fit_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read(self)[:-4])
    file = XtcFile(tmp_path / "run.xtc", FakeDynamics().molecule.topology(), 1.0)
    with pytest.raises(OSError, match="No space left"):
        file.append(SHAPE[None], 0, 0)
    assert not files_in(tmp_path)
