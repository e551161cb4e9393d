"""The declared record of each released checkpoint.

The records live in `registry.json` beside this file: one place that the loader, the command
line, the cards and the tests all read.  Nothing here imports torch or opens a connection.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from zoo.errors import UnknownCheckpointError

_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Record:
    """One released checkpoint; a fix is a new version, never a changed file."""

    name: str
    """What `from_pretrained` and the command line take, for instance `denoiser-elements`."""
    kind: str
    """`denoiser` or `score-dynamics`."""
    version: str
    """`X.Y.Z`; the Hub tag is `vX.Y.Z`."""
    summary: str
    """One sentence for `zoo list`."""
    sha256: str
    """Of `model.safetensors`, 64 hexadecimal digits."""
    license: str
    """Licence identifier of the weights, as the Hub spells it."""
    repo: str
    """Hub repository, `owner/name`."""
    card: str
    """File name of the card's template in `model_cards/`."""
    recipe: str
    """The command that trains this checkpoint from nothing."""
    bundled: bool
    """Whether the installed package carries the folder."""
    commit: str | None = None
    """The Hub commit that the tag names, 40 hexadecimal digits; None until it is published."""


@cache
def _all() -> tuple[Record, ...]:
    data = json.loads((_PACKAGE / "registry.json").read_text(encoding="utf-8"))
    return tuple(sorted((Record(**row) for row in data["checkpoints"]), key=lambda record: record.name))


def records() -> list[Record]:
    """Every released checkpoint, sorted by name."""
    return list(_all())


def bundled_folder(record: Record) -> Path:
    """Where the installed package keeps this checkpoint's folder (it may be absent)."""
    return _PACKAGE / "checkpoints" / record.name


def find(name: str) -> Record:
    """The record called `name`, or `name@version`.

    Only whole names match: a prefix that is unique today would become ambiguous, and change
    what an old script loads, with the next release.

    Raises:
        UnknownCheckpointError: no such name or version; the message offers close matches.
    """
    wanted, version = split(name)
    record = named(wanted)
    if version is not None and version != record.version:
        raise UnknownCheckpointError(
            f"checkpoint {wanted!r} has no version {version!r} in this release of score-zoo: "
            f"use {record.name}@{record.version}, or install the release that carries the other one"
        )
    return record


def split(name: str) -> tuple[str, str | None]:
    """`name@v1.2.3` as `("name", "1.2.3")`; the version is None if there is no `@`."""
    wanted, at, version = name.strip().partition("@")
    return wanted, version.removeprefix("v") if at else None


def named(name: str) -> Record:
    """The record of this name, whatever its version.

    Raises:
        UnknownCheckpointError: no such name; the message offers close matches.
    """
    known = {record.name: record for record in _all()}
    if name not in known:
        raise UnknownCheckpointError(_unknown(name, sorted(known)))
    return known[name]


def _unknown(wanted: str, names: list[str]) -> str:
    folded = wanted.casefold().replace("_", "-")
    starts = [name for name in names if folded and name.startswith(folded)]
    close = starts or get_close_matches(folded, names, n=3, cutoff=0.5)
    if len(starts) > 1:
        return f"checkpoint name {wanted!r} is ambiguous: write one of {', '.join(starts)} in full"
    if close:
        return f"no checkpoint or folder called {wanted!r}: did you mean {' or '.join(close)}?"
    return f"no checkpoint or folder called {wanted!r}: known checkpoints are {', '.join(names)}"
