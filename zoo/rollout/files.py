"""Changing files so that a kill at any point leaves something that can be continued."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from types import TracebackType

from zoo.rollout.errors import RolloutError


def write_at(path: Path, offset: int, data: bytes) -> None:
    """Make ``data`` the end of the file, from ``offset`` on, and see it to the disk.

    Whatever was after ``offset`` is dropped first, so doing it twice is the same as once.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if os.fstat(handle).st_size < offset:
            raise OSError(errno.EIO, "the file has become shorter", str(path))
        os.ftruncate(handle, offset)
        _write_all(handle, offset, data)
        os.fsync(handle)
    finally:
        os.close(handle)


def patch(path: Path, offset: int, data: bytes) -> None:
    """Overwrite bytes inside a file."""
    handle = os.open(path, os.O_RDWR)
    try:
        _write_all(handle, offset, data)
        os.fsync(handle)
    finally:
        os.close(handle)


def truncate(path: Path, size: int) -> None:
    """Drop everything from ``size`` on."""
    if path.stat().st_size != size:
        os.truncate(path, size)


def replace(path: Path, data: bytes) -> None:
    """Write a whole file: readers see the old one or the new one, never a part."""
    partial = partial_of(path)
    try:
        write_at(partial, 0, data)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def partial_of(path: Path) -> Path:
    """Temporary name in the same folder; keeps the suffix, by which some writers go."""
    return path.with_name(f".{path.stem}.partial{path.suffix}")


def sync_folder(folder: Path) -> None:
    """See a rename to the disk, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write_all(handle: int, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(handle, view, offset)
        view, offset = view[done:], offset + done


class Lock:
    """Keeps a second process from writing the same run; released by the system if this one is killed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None

    def __enter__(self) -> Lock:
        import fcntl

        while True:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                raise RolloutError(
                    f"another process is writing this rollout just now ({self._path} is locked); "
                    "wait for it, or choose another output (-o)"
                ) from None
            except OSError:
                pass  # a file system without locks: go on without
            # the holder before us removes the file when done: what we have locked must be what is there
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(handle), self._path.stat()):
                    self._handle = handle
                    return self
            os.close(handle)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = None
