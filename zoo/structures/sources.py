"""Opening a structure file, compressed or not, and knowing how much of it has been read."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
from pathlib import Path
from typing import Any, TextIO

from zoo.errors import StructureError

_HEAD_BYTES = 8192
_CHUNK_BYTES = 1 << 16


def one_line(exc: BaseException, limit: int = 160) -> str:
    """An exception as a single short line for a message."""
    text = " ".join(str(exc).split()) or type(exc).__name__
    if isinstance(exc, KeyError):
        text = f"unknown key or symbol {text}"
    return text if len(text) <= limit else text[: limit - 1] + "…"


class TextSource:
    """A text file read forwards once, decompressed on the fly.

    The compression is taken from the first bytes, not the name.  Undecodable bytes are kept as
    surrogates, so that a stray character in a comment does not stop a trajectory.

    Raises
    ------
    StructureError
        The file is missing, a folder, not a regular file, unreadable or empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                raise StructureError(f"{path} is a folder, not a structure file; name one file in it")
            if not stat.S_ISREG(mode):
                raise StructureError(f"{path} is not a regular file; save the structure to a file first")
            self._raw = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise StructureError(f"{path}: no such file") from None
        except OSError as exc:
            raise StructureError(f"{path} cannot be opened: {exc.strerror or exc}") from None
        self.size = path.stat().st_size
        magic = self._raw.read(6)
        self._raw.seek(0)
        self.compressed = True
        stream: Any
        if magic.startswith(b"\x1f\x8b"):
            stream = gzip.GzipFile(fileobj=self._raw, mode="rb")
        elif magic.startswith(b"BZh"):
            stream = bz2.BZ2File(self._raw)
        elif magic.startswith(b"\xfd7zXZ"):
            stream = lzma.LZMAFile(self._raw)  # noqa: SIM115
        else:
            self.compressed = False
            stream = self._raw
        self.binary = io.BufferedReader(stream, _CHUNK_BYTES)
        try:
            # not peek(): one call may stop early at a member boundary
            head = self.binary.read(_HEAD_BYTES)
            self.binary.seek(0)
        except (OSError, EOFError, lzma.LZMAError) as exc:
            self.close()
            raise StructureError(f"{path} cannot be decompressed: {one_line(exc)}") from None
        if not head.strip():
            self.close()
            raise StructureError(f"{path} is empty")
        self.looks_binary = b"\0" in head
        self.head = head.decode("utf-8", errors="replace")
        self.text: TextIO = io.TextIOWrapper(self.binary, encoding="utf-8", errors="surrogateescape")

    @property
    def consumed(self) -> int:
        """Bytes of the file on disk that have been read so far (the reader runs some 64 KiB ahead)."""
        return int(self._raw.tell()) if not self._raw.closed else self.size

    def close(self) -> None:
        """Close the file; safe to call twice."""
        text = getattr(self, "text", None)
        (text if text is not None else self.binary).close()
        self._raw.close()
