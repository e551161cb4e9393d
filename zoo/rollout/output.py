"""The files of a rollout: their names, starting or continuing them, and saving as it goes.

For ``-o run.xtc``: ``run.xtc``, or ``run-00.xtc``, ``run-01.xtc``, ... for several walkers;
``run.pdb``, the sites with their bonds at the start of walker 0, which any viewer opens together with
the trajectories; ``run.json``, the report; ``run.state.npz``, from which the run is continued.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from dataclasses import replace as changed
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from zoo.errors import MissingExtraError
from zoo.rollout import state as state_file
from zoo.rollout.errors import RolloutError
from zoo.rollout.files import Lock, partial_of, replace
from zoo.rollout.formats import SUFFIXES, TrajectoryFile, nanometers, trajectory_file
from zoo.rollout.report import RolloutReport
from zoo.rollout.state import Saved, Settings, State

if TYPE_CHECKING:
    import mdtraj

FLUSH_SECONDS = 10.0
FLUSH_BYTES = 32 * 2**20


def check_output(output: str | os.PathLike[str]) -> Path:
    """The path of the trajectory, once it is clear that it can be written; looks, and writes nothing.

    Raises
    ------
    RolloutError
        Unknown suffix, or a folder that is missing or cannot be written.
    MissingExtraError
        HDF5 without PyTables.
    """
    path = Path(output)
    if path.suffix.lower() not in SUFFIXES:
        raise RolloutError(f"cannot write {path}: name a file that ends in {', '.join(SUFFIXES)}")
    if path.suffix.lower() in (".h5", ".hdf5") and find_spec("tables") is None:
        raise MissingExtraError(
            f'cannot write {path}: HDF5 needs PyTables: pip install "score-zoo[hdf5]", or write .xtc'
        )
    if path.is_dir():
        raise RolloutError(f"cannot write {path}: it is a folder; name a file in it")
    folder = path.parent
    if not folder.is_dir():
        raise RolloutError(f"cannot write {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RolloutError(f"cannot write {path}: folder {folder} is not writable")
    return path


class Names:
    """The names of a run's files, from the name of its trajectory and the number of walkers."""

    def __init__(self, output: Path, n_walkers: int) -> None:
        self.output = output
        self.suffix = output.suffix.lower()
        self.state = output.with_name(f"{output.stem}.state.npz")
        self.topology = output.with_name(f"{output.stem}.pdb")
        self.report = output.with_name(f"{output.stem}.json")
        self.lock = output.with_name(f".{output.stem}.lock")
        digits = max(2, len(str(n_walkers - 1)))
        self.trajectories = (
            [output]
            if n_walkers == 1
            else [output.with_name(f"{output.stem}-{w:0{digits}d}{output.suffix}") for w in range(n_walkers)]
        )

    def all(self) -> list[Path]:
        """Every file that a run leaves."""
        return [*self.trajectories, self.topology, self.report, self.state]


class Output:
    """The open files of a run.  A context manager: holds the lock, and is of no use outside.

    Parameters
    ----------
    inputs
        Files that must not be written, such as the one the start was read from.

    Raises
    ------
    RolloutError
        Output of another run, or of none that can be continued, and not `overwrite`; a file that was
        changed or removed since; a second process writing the same run.
    """

    def __init__(
        self,
        path: Path,
        settings: Settings,
        topology: mdtraj.Topology,
        *,
        overwrite: bool = False,
        inputs: Iterable[str | os.PathLike[str]] = (),
    ) -> None:
        self.names = Names(path, settings.walkers)
        self.settings = settings
        self._overwrite = overwrite
        self._inputs = [Path(each) for each in inputs]
        self._topology = topology
        self._files = [trajectory_file(each, topology, settings.lag_time) for each in self.names.trajectories]
        self._lock = Lock(self.names.lock)
        self._saved: Saved | None = None
        self._waiting: list[State] = []
        self._flushed = time.monotonic()

    def __enter__(self) -> Output:
        with _told(self.names.output):
            self._lock.__enter__()
        try:
            self._refuse_folders()
            self._refuse_inputs()
            if not self._overwrite:
                self._saved = self._found()
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.__exit__(None, None, None)

    @property
    def saved(self) -> Saved | None:
        """What the run is continued from; None before `begin` if there is nothing to continue."""
        return self._saved

    # beginning and continuing

    def _refuse_folders(self) -> None:
        for path in self.names.all():
            if path.is_dir():
                raise RolloutError(
                    f"cannot write {path}: it is a folder; move it away, or choose another output (-o)"
                )

    def _refuse_inputs(self) -> None:
        for path in self.names.all():
            for source in self._inputs:
                if path.exists() and source.exists() and path.samefile(source):
                    raise RolloutError(
                        f"output {self.names.output} would write over the input {source}; "
                        "choose another output (-o)"
                    )

    def _found(self) -> Saved | None:
        if not self.names.state.exists():
            present = next((path for path in self.names.all() if path.exists()), None)
            if present is not None:
                raise RolloutError(
                    f"{present} exists already, and there is no {self.names.state.name} to continue from; "
                    "choose another output (-o), or --overwrite to start over"
                )
            return None
        saved = state_file.load(self.names.state)
        differences = self.settings.differences(saved.settings)
        if differences:
            raise RolloutError(
                f"{self.names.state} is of another run: {'; '.join(differences)}; "
                "choose another output (-o), or --overwrite to start over"
            )
        for file, frames, size in self._counted(saved):
            reason = file.missing(frames, size)
            if reason is not None:
                raise RolloutError(
                    f"{file.path} {reason}: the run cannot be continued; put the file back, "
                    "choose another output (-o), or --overwrite to start over"
                )
        with _told(self.names.output):
            for file, frames, size in self._counted(saved):
                file.cut(frames, size)
            if not self.names.topology.exists():
                self._write_topology(saved.state)
        return saved

    def begin(self, state: State, out_of_distribution: npt.NDArray[np.float64]) -> None:
        """Start over with this state, in place of whatever was there.

        The state comes first and counts no frame yet: from then on the run can be continued.
        """
        none = np.zeros(len(state.frames), dtype=np.int64)
        saved = Saved(asdict(self.settings), state, none, none, out_of_distribution, 0.0)
        with _told(self.names.output):
            self._remove_surplus()
            state_file.save(self.names.state, saved)
            self._saved = saved
            for file in self._files:
                file.cut(0, 0)
            self._write_topology(state)
        self.add(state)

    def _remove_surplus(self) -> None:
        """Walkers of the run being replaced that the new one has not; no viewer should find them."""
        with contextlib.suppress(RolloutError, OSError, TypeError, ValueError):
            old = state_file.load(self.names.state).settings
            if old.get("suffix") == self.names.suffix:
                surplus = set(Names(self.names.output, int(old["walkers"])).trajectories)
                for path in surplus - set(self.names.trajectories):
                    path.unlink(missing_ok=True)

    def _write_topology(self, state: State) -> None:
        import mdtraj

        partial = partial_of(self.names.topology)
        try:
            mdtraj.Trajectory(nanometers(state.positions[:1]), self._topology).save_pdb(str(partial))
            os.replace(partial, self.names.topology)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    # as it goes

    def _counted(self, saved: Saved) -> list[tuple[TrajectoryFile, int, int]]:
        return [
            (file, int(frames), int(size))
            for file, frames, size in zip(self._files, saved.frames, saved.sizes, strict=True)
        ]

    def add(self, state: State) -> None:
        """One more step to write."""
        self._waiting.append(state)

    def due(self) -> bool:
        """Whether it is time to flush."""
        if not self._waiting:
            return False
        size = len(self._waiting) * self._waiting[-1].positions.nbytes
        return size >= FLUSH_BYTES or time.monotonic() - self._flushed >= FLUSH_SECONDS

    def flush(self, report: RolloutReport) -> None:
        """Write all steps so far, then the state that counts them.

        Raises
        ------
        RolloutError
            Full disk or the like.  The last state that was saved, and the frames it counts, are good.
        """
        before = self._state()
        # an interrupt may have come between saving a state and forgetting its steps
        steps = [s for s in self._waiting if s.step > before.state.step or not before.frames.any()]
        try:
            if steps:
                self._save(before, steps, report.seconds)
            replace(self.names.report, (json.dumps(report.to_json(), indent=1) + "\n").encode())
        except OSError as error:
            for file, frames, size in self._counted(self._state()):
                with contextlib.suppress(OSError):
                    file.cut(frames, size)
            where = error.filename if isinstance(error.filename, str) else self.names.output
            raise RolloutError(
                f"cannot write {where}: {error.strerror or error}; the run is safe up to step "
                f"{self._state().state.step}: make room and give the same command again"
            ) from None
        self._waiting = []
        self._flushed = time.monotonic()

    def _save(self, before: Saved, steps: Sequence[State], seconds: float) -> None:
        last = steps[-1]
        positions = np.stack([state.positions for state in steps])
        sizes = before.sizes.copy()
        for w, (file, frames, size) in enumerate(self._counted(before)):
            # a walker that stops does so for good, so that its new frames are the first of these
            new = int(last.frames[w]) - frames
            if new:
                sizes[w] = file.append(positions[:new, w], frames, size)
        saved = changed(before, state=last, frames=last.frames, sizes=sizes, seconds=seconds)
        state_file.save(self.names.state, saved)
        self._saved = saved
        for file, frames, _ in self._counted(saved):
            file.committed(frames)

    def finish(self, report: RolloutReport) -> None:
        """Flush, and leave trajectories that any program opens; the state stays, to extend the run."""
        self.flush(report)
        with _told(self.names.output):
            for file, frames, _ in self._counted(self._state()):
                file.finish(frames)

    def _state(self) -> Saved:
        assert self._saved is not None
        return self._saved

    def read(self) -> list[mdtraj.Trajectory]:
        """The trajectories, from their files."""
        return [file.read() for file in self._files]


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns an OSError into one line that names the file."""
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        raise RolloutError(f"cannot write {where}: {error.strerror or error}") from None
