"""Writing trajectories so that whatever ends the run, the finished frames are a readable file."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from ase import Atoms

from zoo.errors import StructureError, ZooError
from zoo.structures import formats
from zoo.structures.lammps_data import encode_data
from zoo.structures.lammps_dump_writer import DumpEncoder
from zoo.structures.sources import one_line
from zoo.structures.text_frames import encode_extxyz, encode_xdatcar

MANY_FRAME_FORMATS = (formats.EXTXYZ, formats.DUMP, formats.XDATCAR)
"""Formats that take more than one frame."""

ARRAY_FORMATS = (formats.EXTXYZ, formats.DUMP)
"""Formats that take any array of the atoms; what ASE writes has a fixed set of them."""

Encoder = Callable[[Atoms, int], bytes]


class FrameWriter:
    """Context manager that writes frames one by one to a file that is never half-written.

    Frames go to ``<name>.<pid>.partial`` in the same folder, each flushed when finished, and the file
    gets its name when the ``with`` block ends.  If the block is left by an exception (Ctrl-C, a full
    disk, a broken input), the finished frames are kept under the final name; if there is none, nothing
    is left and a file that was there before is untouched.  Compressed output is one member per frame,
    which every decompressor reads as a single file.

    Parameters
    ----------
    path
        File to write; ``.gz``, ``.bz2``, ``.xz`` compress.  A device or pipe is written directly.
    format
        Name of the format; by default from the file name, extended XYZ when that has no suffix.
    source
        The file the frames come from; writing onto it is refused.
    overwrite
        Whether an existing file may be replaced.

    Raises
    ------
    StructureError
        Unknown format, unwritable folder, full disk, second frame in a format of one, a structure the
        format cannot hold.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        format: str | None = None,  # noqa: A002
        *,
        source: str | os.PathLike[str] | None = None,
        overwrite: bool = True,
    ) -> None:
        self.path = Path(path)
        self.format = formats.canonical(format) if format else formats.output_format(self.path.name)
        self.n_frames = 0
        self._encode = _encoder(self.format)
        self._compress = _compressor(self.path.name)
        self._partial: Path | None = None
        self._file: BinaryIO | None = None
        self._finished = 0
        if self.path.is_dir():
            raise StructureError(f"cannot write {self.path}: it is a folder; name a file in it")
        if source is not None and _same_file(self.path, Path(source)):
            raise StructureError(f"output {self.path} is the input file; choose another name")
        if not overwrite and _is_regular(self.path):
            raise StructureError(f"{self.path} exists already; choose another name or allow overwriting it")

    @property
    def keeps_arrays(self) -> bool:
        """Whether arrays that are not part of the format, such as a verdict, are written."""
        return self.format in ARRAY_FORMATS

    def __enter__(self) -> FrameWriter:
        direct = self.path.exists() and not _is_regular(self.path)
        # through a link the file it points to is replaced, not the link
        target = self.path if direct else Path(os.path.realpath(self.path))
        if not direct:
            self._partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
            self._target = target
        try:
            self._file = open(self._partial or target, "wb", buffering=0)
        except OSError as exc:
            hint = "" if target.parent.is_dir() else f" (folder {target.parent} does not exist)"
            raise StructureError(f"cannot write {self.path}: {exc.strerror or exc}{hint}") from None
        return self

    def write(self, atoms: Atoms) -> None:
        """Add one frame; when it returns the frame is in the file.

        Raises
        ------
        StructureError
            The format takes one frame only, cannot hold the structure, or the disk is full; frames
            finished before stay.
        """
        if self._file is None:
            raise RuntimeError("FrameWriter.write outside its with block")
        if self.n_frames and self.format not in MANY_FRAME_FORMATS:
            raise StructureError(
                f"{self.path}: {self.format} holds one frame only; write several to "
                f"{', '.join(MANY_FRAME_FORMATS)}, or select one"
            )
        payload = self._compress(self._encode(atoms, self.n_frames))
        try:
            view = memoryview(payload)
            while view:
                view = view[self._file.write(view) :]
        except BrokenPipeError:
            raise
        except OSError as exc:
            self._cut()
            raise StructureError(f"cannot write {self.path}: {exc.strerror or exc}") from None
        except BaseException:
            self._cut()
            raise
        self._finished += len(payload)
        self.n_frames += 1

    def _cut(self) -> None:
        """Drop what was written of an unfinished frame."""
        if self._partial is not None and self._file is not None:
            with contextlib.suppress(OSError):
                self._file.truncate(self._finished)
                self._file.seek(self._finished)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        partial = self._partial
        try:
            try:
                if partial is not None and self.n_frames:
                    os.fsync(file.fileno())
            finally:
                file.close()
            if partial is not None and self.n_frames:
                os.replace(partial, self._target)
        except OSError as exc:
            if kind is None:
                raise StructureError(f"cannot write {self.path}: {exc.strerror or exc}") from None
        finally:
            if partial is not None:
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _compressor(name: str) -> Callable[[bytes], bytes]:
    suffix = Path(name).suffix.lower()
    if suffix == ".gz":
        # no time stamp: the same frames give the same bytes
        return lambda data: gzip.compress(data, compresslevel=6, mtime=0)
    if suffix == ".bz2":
        return bz2.compress
    if suffix == ".xz":
        return lzma.compress
    return lambda data: data


def _encoder(name: str) -> Encoder:
    if name == formats.EXTXYZ:
        return lambda atoms, index: _guarded(name, lambda: encode_extxyz(atoms))
    if name == formats.DUMP:
        dump = DumpEncoder()
        return lambda atoms, index: _guarded(name, lambda: dump.encode(atoms, index))
    if name == formats.DATA:
        return lambda atoms, index: _guarded(name, lambda: encode_data(atoms))
    if name == formats.XDATCAR:
        return lambda atoms, index: _guarded(name, lambda: encode_xdatcar(atoms, index))
    from ase.io.formats import ioformats

    spec = ioformats[name]
    if not spec.can_write or not spec.acceptsfd:
        raise StructureError(f"{name} cannot be written; use extxyz, lammps-dump, lammps-data, vasp or cif")
    return lambda atoms, index: _guarded(name, lambda: _ase_encode(atoms, name, spec.isbinary))


def _guarded(name: str, build: Callable[[], str | bytes]) -> bytes:
    try:
        encoded = build()
    except (ZooError, MemoryError):
        raise
    except Exception as exc:  # ASE's writers raise whatever they stumble on
        raise StructureError(
            f"the structure cannot be written as {name} ({one_line(exc)}); use extxyz"
        ) from None
    return encoded if isinstance(encoded, bytes) else encoded.encode("utf-8", errors="surrogateescape")


def _ase_encode(atoms: Atoms, name: str, binary: bool) -> str | bytes:
    from ase.io import write

    if binary:
        raw = io.BytesIO()
        write(raw, atoms, format=name)
        return raw.getvalue()
    buffer = io.StringIO()
    write(buffer, atoms, format=name)
    return buffer.getvalue()
