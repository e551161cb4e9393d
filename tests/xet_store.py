"""The part of Xet storage that a small upload and download need, for `hub_server`.

A client cuts files into chunks, sends them in "xorbs", and then a "shard" that says of which chunks of
which xorbs each file is made; to download, it asks for that list and fetches ranges of the xorbs.
Formats: the "xorb" and "shard" pages of the Xet protocol specification.  Chunks are expected to be
sent uncompressed, so that this store can put files together itself.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from typing import Any

_ENTRY = 48  # bytes of a header, and of each row of a shard
_WITH_VERIFICATION, _WITH_METADATA = 1 << 31, 1 << 30
_END = b"\xff" * 32


@dataclass
class Term:
    """Chunks [start, end) of a xorb, which hold `size` bytes of a file."""

    xorb: str
    start: int
    end: int
    size: int


@dataclass
class XetStore:
    """Xorbs and files in memory, by the names that the protocol gives them."""

    xorbs: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, list[Term]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """sha256 of a file -> its name here."""

    def add_shard(self, shard: bytes) -> dict[str, bytes]:
        """Take in a shard; returns the files that it completes, by sha256."""
        at, found = _ENTRY, {}
        while shard[at : at + 32] != _END:
            name = _text(shard[at : at + 32])
            flags, n_rows = struct.unpack_from("<II", shard, at + 32)
            at += _ENTRY
            terms = []
            for _ in range(n_rows):
                xorb = _text(shard[at : at + 32])
                _, size, start, end = struct.unpack_from("<IIII", shard, at + 32)
                terms.append(Term(xorb, start, end, size))
                at += _ENTRY
            at += _ENTRY * n_rows * bool(flags & _WITH_VERIFICATION)
            at += _ENTRY * bool(flags & _WITH_METADATA)
            content = b"".join(self._content(term) for term in terms)
            sha256 = hashlib.sha256(content).hexdigest()
            self.files[name], self.names[sha256], found[sha256] = terms, name, content
        return found

    def reconstruction(self, name: str, url: str) -> dict[str, Any]:
        """How to put a file together; xorbs are served at `url`/HASH."""
        terms, fetch = [], {}
        for term in self.files[name]:
            rows = self._chunks(term.xorb)[term.start : term.end]
            chunks = {"start": term.start, "end": term.end}
            terms.append({"hash": term.xorb, "unpacked_length": term.size, "range": chunks})
            place = {"start": rows[0][0], "end": rows[-1][2] - 1}
            fetch.setdefault(term.xorb, []).append(
                {"range": chunks, "url": f"{url}/{term.xorb}", "url_range": place}
            )
        return {"offset_into_first_range": 0, "terms": terms, "fetch_info": fetch}

    def _content(self, term: Term) -> bytes:
        xorb, rows = self.xorbs[term.xorb], self._chunks(term.xorb)
        return b"".join(xorb[begin:end] for _, begin, end in rows[term.start : term.end])

    def _chunks(self, xorb: str) -> list[tuple[int, int, int]]:
        """Where each chunk's header begins, its content begins, and it ends."""
        data, at, found = self.xorbs[xorb], 0, []
        while at + 8 <= len(data) and data[at] == 0:
            stored = int.from_bytes(data[at + 1 : at + 4], "little")
            assert data[at + 4] == 0, "the client compresses"
            found.append((at, at + 8, at + 8 + stored))
            at += 8 + stored
        return found


def _text(digest: bytes) -> str:
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", digest))
