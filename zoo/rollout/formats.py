"""Trajectory files that can be continued exactly: XTC and DCD as bytes, HDF5 through a journal.

All three take positions in Å and are told, with every call, how much of the file counts: `frames`
and `size` are what the last saved state says, anything beyond was written by a process that did not
live to save its state, and is dropped.  Appending is therefore idempotent.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zoo.rollout.errors import RolloutError
from zoo.rollout.files import partial_of, patch, sync_folder, truncate, write_at

if TYPE_CHECKING:
    import mdtraj

ANGSTROM_PER_NM = 10.0
SUFFIXES = (".xtc", ".dcd", ".h5", ".hdf5")


def nanometers(positions: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """MDTraj's unit and precision, from Å."""
    return np.asarray(positions / ANGSTROM_PER_NM, dtype=np.float32)


class TrajectoryFile:
    """One walker's file; frame k is the state after k lag steps, at k times the lag time."""

    def __init__(self, path: Path, topology: mdtraj.Topology, lag_time: float) -> None:
        self.path = path
        self.topology = topology
        self.lag_time = lag_time
        self.n_sites = int(topology.n_atoms)

    def append(self, positions: npt.NDArray[np.float64], frames: int, size: int) -> int:
        """Put ``positions`` (n, n_sites, 3) Å after the first ``frames`` frames; the new size in bytes.

        Raises
        ------
        OSError
            Disk full or the like.  The first ``frames`` frames are still there.
        """
        raise NotImplementedError

    def cut(self, frames: int, size: int) -> None:
        """Keep exactly the first ``frames`` frames; without any, no file."""
        if frames:
            truncate(self.path, size)
        else:
            self.path.unlink(missing_ok=True)

    def missing(self, frames: int, size: int) -> str | None:
        """Why the file cannot be continued after ``frames`` frames; None if it can."""
        if not frames:
            return None
        if not self.path.is_file():
            return "is gone"
        found = self.path.stat().st_size
        return None if found >= size else f"has {found} bytes where {size} were written"

    def committed(self, frames: int) -> None:
        """The state that counts ``frames`` frames has been saved."""

    def finish(self, frames: int) -> None:
        """The writing ends for now: leave a file that any program opens."""

    def read(self) -> mdtraj.Trajectory:
        """The whole trajectory, with times."""
        trajectory = self._load()
        trajectory.time = self.lag_time * np.arange(len(trajectory))
        return trajectory

    def _load(self) -> mdtraj.Trajectory:
        import mdtraj

        return mdtraj.load(str(self.path), top=self.topology)


class XtcFile(TrajectoryFile):
    """GROMACS XTC, as MDTraj writes it: positions rounded to 0.01 Å, time in ps.

    Frames of an XTC file stand by themselves, so new ones are written to a file of their own and its
    bytes appended.
    """

    def append(self, positions: npt.NDArray[np.float64], frames: int, size: int) -> int:
        data = self._encode(positions, frames) if len(positions) else b""
        write_at(self.path, size, data)
        return size + len(data)

    def _encode(self, positions: npt.NDArray[np.float64], first: int) -> bytes:
        from mdtraj.formats import XTCTrajectoryFile

        steps = np.arange(first, first + len(positions))
        chunk = partial_of(self.path)
        try:
            with XTCTrajectoryFile(str(chunk), "w") as file:
                file.write(
                    nanometers(positions),
                    time=(steps * self.lag_time).astype(np.float32),
                    step=steps.astype(np.int32),
                )
            data = chunk.read_bytes()
        except RuntimeError as error:
            raise OSError(errno.EIO, str(error), str(chunk)) from None
        finally:
            with contextlib.suppress(OSError):
                chunk.unlink(missing_ok=True)
        # closing an XTC file does not tell of a full disk
        if count_xtc_frames(data) != len(positions):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        return data


def count_xtc_frames(data: bytes) -> int | None:
    """Frames in the bytes of an XTC file; None if they do not end where a frame does."""
    count = offset = 0
    while offset < len(data):
        if len(data) < offset + 56:
            return None
        magic, n_atoms = struct.unpack_from(">ii", data, offset)
        if magic != 1995:
            return None
        if n_atoms <= 9:  # too few to be worth compressing: plain floats
            offset += 56 + 12 * n_atoms
        else:
            if len(data) < offset + 92:
                return None
            (n_bytes,) = struct.unpack_from(">i", data, offset + 88)
            offset += 92 + (n_bytes + 3) // 4 * 4
        count += 1
    return count if offset == len(data) else None


class DcdFile(TrajectoryFile):
    """CHARMM DCD without a unit cell: float32 Å, the lag time in the header.

    Written here because the header must depend on nothing but the run, and must say the lag time.
    """

    _AKMA_PS = 0.04888821290839616  # CHARMM's unit of time, sqrt(u Å² / (kcal/mol)), in ps
    _FRAMES_AT, _STEPS_AT = 8, 20
    _TITLE = b"positions in angstrom, one frame per lag step".ljust(80)

    def append(self, positions: npt.NDArray[np.float64], frames: int, size: int) -> int:
        total = frames + len(positions)
        data = self._frames(positions)
        if not frames:
            size, data = 0, self._header(total) + data
        write_at(self.path, size, data)
        self._set_count(total)
        return size + len(data)

    def cut(self, frames: int, size: int) -> None:
        super().cut(frames, size)
        if frames:
            self._set_count(frames)

    def _set_count(self, frames: int) -> None:
        patch(self.path, self._FRAMES_AT, struct.pack("<i", frames))
        patch(self.path, self._STEPS_AT, struct.pack("<i", frames))

    def _header(self, frames: int) -> bytes:
        control = [0] * 20
        control[0] = frames
        control[1] = 0  # step of the first frame
        control[2] = 1  # steps between frames
        control[3] = frames
        control[19] = 24  # pretends to be CHARMM 24, from which on the time step is a float32
        block = bytearray(struct.pack("<4s20i", b"CORD", *control))
        struct.pack_into("<f", block, 4 + 9 * 4, self.lag_time / self._AKMA_PS)
        titles = struct.pack("<i", 1) + self._TITLE
        return _record(bytes(block)) + _record(titles) + _record(struct.pack("<i", self.n_sites))

    def _frames(self, positions: npt.NDArray[np.float64]) -> bytes:
        n, marker = len(positions), np.int32(4 * self.n_sites)
        # one Fortran record per coordinate: length, floats, length
        record = np.dtype([("before", "<i4"), ("value", "<f4", (self.n_sites,)), ("after", "<i4")])
        records = np.empty((n, 3), dtype=record)
        records["before"] = records["after"] = marker
        records["value"] = positions.transpose(0, 2, 1)
        return records.tobytes()


def _record(data: bytes) -> bytes:
    length = struct.pack("<i", len(data))
    return length + data + length


class Hdf5File(TrajectoryFile):
    """MDTraj's HDF5: float32 nm, time in ps.

    A kill in the middle of a write can leave an HDF5 file that nothing opens, so the file itself is
    only ever replaced as a whole by a longer copy.  New frames go to a plain journal beside it first;
    the file catches up when the journal has as many frames as it, and at the end.  Each
    frame is thus copied a few times at most, however long the run.
    """

    _MAGIC = b"ZOOFRAME"
    _HEADER = 16  # magic, then the number of frames before the journal, int64

    def __init__(self, path: Path, topology: mdtraj.Topology, lag_time: float) -> None:
        super().__init__(path, topology, lag_time)
        self.journal = path.with_name(f".{path.name}.journal")
        self._frame_bytes = 12 * self.n_sites
        self._in_file: int | None = None

    def append(self, positions: npt.NDArray[np.float64], frames: int, size: int) -> int:
        base = self._base()
        if base is None:
            base = self._frames_in_file()
            write_at(self.journal, 0, self._MAGIC + struct.pack("<q", base))
        data = nanometers(positions).astype("<f4").tobytes()
        write_at(self.journal, self._HEADER + (frames - base) * self._frame_bytes, data)
        return 0  # nothing to remember: the journal says where it begins

    def cut(self, frames: int, size: int) -> None:
        if not frames:
            self.journal.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
            self._in_file = 0
            return
        base = self._base()
        if base is not None:
            truncate(self.journal, self._HEADER + (frames - base) * self._frame_bytes)

    def missing(self, frames: int, size: int) -> str | None:
        try:
            in_file, base = self._frames_in_file(), self._base()
        except OSError as error:
            return f"cannot be read ({error.strerror or error})"
        if in_file > frames:
            return f"has {in_file} frames where {frames} were written"
        if in_file == frames:
            return None
        have = in_file
        if base is not None and base <= in_file:
            have = base + (self.journal.stat().st_size - self._HEADER) // self._frame_bytes
        return None if have >= frames else f"has {have} frames where {frames} were written"

    def committed(self, frames: int) -> None:
        if frames >= 2 * self._frames_in_file():
            self._catch_up(frames)

    def finish(self, frames: int) -> None:
        self._catch_up(frames)

    def _load(self) -> mdtraj.Trajectory:
        import mdtraj

        return mdtraj.load(str(self.path))  # brings its own topology

    def _catch_up(self, frames: int) -> None:
        """Make the HDF5 file hold the first ``frames`` frames, then forget the journal."""
        base, done = self._base(), self._frames_in_file()
        if base is not None and done < frames:
            partial = self.path.with_name(f".{self.path.stem}.partial.h5")
            try:
                if done:
                    shutil.copyfile(self.path, partial)
                self._extend(partial, base, done, frames)
                with open(partial, "rb") as file:
                    os.fsync(file.fileno())
                self._in_file = None  # an interrupt after the next line must not leave the old count
                os.replace(partial, self.path)
            finally:
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)
            sync_folder(self.path.parent)
            self._in_file = frames
        self.journal.unlink(missing_ok=True)

    def _extend(self, path: Path, base: int, done: int, frames: int) -> None:
        import tables
        from mdtraj.formats import HDF5TrajectoryFile

        at_once = max(1, 2**22 // self._frame_bytes)
        try:
            with HDF5TrajectoryFile(str(path), "a" if done else "w") as file:
                if not done:
                    file.topology = self.topology
                for first in range(done, frames, at_once):
                    n = min(at_once, frames - first)
                    xyz = np.fromfile(
                        self.journal,
                        dtype="<f4",
                        count=n * 3 * self.n_sites,
                        offset=self._HEADER + (first - base) * self._frame_bytes,
                    ).reshape(n, self.n_sites, 3)
                    time = (np.arange(first, first + n) * self.lag_time).astype(np.float32)
                    file.write(xyz.astype(np.float32), time=time)
        except tables.HDF5ExtError as error:  # its way of telling of a full disk, among others
            raise OSError(errno.EIO, str(error).strip().splitlines()[-1], str(self.path)) from None

    def _base(self) -> int | None:
        """Frames before the journal; None without a journal."""
        try:
            with open(self.journal, "rb") as file:
                header = file.read(self._HEADER)
        except FileNotFoundError:
            return None
        # a shorter header was being written when the process was killed: nothing of it counts yet
        if len(header) < self._HEADER or header[:8] != self._MAGIC:
            return None
        return int(struct.unpack("<q", header[8:])[0])

    def _frames_in_file(self) -> int:
        if self._in_file is None:
            if not self.path.exists():
                self._in_file = 0
            else:
                import tables
                from mdtraj.formats import HDF5TrajectoryFile

                try:
                    with HDF5TrajectoryFile(str(self.path), "r") as file:
                        self._in_file = len(file.root.coordinates)
                except (tables.HDF5ExtError, tables.NoSuchNodeError):
                    raise OSError(errno.EIO, "not a trajectory", str(self.path)) from None
        return self._in_file


_CLASSES: dict[str, type[TrajectoryFile]] = {
    ".xtc": XtcFile,
    ".dcd": DcdFile,
    ".h5": Hdf5File,
    ".hdf5": Hdf5File,
}


def trajectory_file(path: Path, topology: mdtraj.Topology, lag_time: float) -> TrajectoryFile:
    """The writer for a path, by its suffix.

    Raises
    ------
    RolloutError
        Unknown suffix.
    """
    kind = _CLASSES.get(path.suffix.lower())
    if kind is None:
        raise RolloutError(f"cannot write {path}: name a file that ends in {', '.join(SUFFIXES)}")
    return kind(path, topology, lag_time)
