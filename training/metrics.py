"""Write what was measured on a checkpoint into its `metrics.json`, with how it was measured.

Each section belongs to one command and says when, where, with which seed, releases and weights it
ran.  Cards take every number from here.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import zoo
from zoo.checkpoint import CONFIG, METRICS, read_config, read_metrics, to_json, write_text

FORMAT = 1


def record(
    folder: str | os.PathLike[str],
    section: str,
    results: Sequence[Mapping[str, Any]],
    *,
    command: str,
    seed: int | None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Replace one section of a checkpoint's `metrics.json`; the other sections stay as they are.

    Benchmarks that run at the same time may record into the same folder.

    Args:
        folder: the checkpoint folder.
        section: for instance `dc3`, `defects`, `surfaces`, `speed`, `training`.
        results: one dict per row; plain JSON values only.
        command: what to type to get these results again.
        seed: the seed it ran with, or None if nothing is random.
        extra: more facts for the section (settings, thread counts, notes).

    Returns:
        The section as written.

    Raises:
        zoo.CheckpointError: not a checkpoint, values that JSON cannot hold (NaN, arrays), or a
            folder that cannot be written.
    """
    entry: dict[str, Any] = {
        **(extra or {}),
        "command": command,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "package_version": zoo.__version__,
        "python_version": platform.python_version(),
        "results": [dict(row) for row in results],
        "seed": seed,
        "torch_version": version("torch"),
        **_stamp(folder),
    }
    _put(folder, section, entry)
    return entry


def kept(
    folder: str | os.PathLike[str], section: str, results: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows of a section that new ones leave as they are, those that differ from all of them in ``keys``.

    Each says when it was ``measured``.  None are left where the section is of other weights or config.
    """
    old = read_metrics(folder).get("sections", {}).get(section, {})
    if not is_current(folder, old):
        return []
    new = {tuple(row.get(key) for key in keys) for row in results}
    rows = [row for row in old["results"] if tuple(row.get(key) for key in keys) not in new]
    return [{"measured": old["date"], **row} for row in rows]


def is_current(folder: str | os.PathLike[str], entry: Mapping[str, Any]) -> bool:
    """Whether a section of the metrics was measured on the weights and config that are in the folder."""
    stamp = _stamp(folder)
    return {key: entry.get(key) for key in stamp} == stamp


def carry(folder: str | os.PathLike[str], section: str, entry: Mapping[str, Any]) -> None:
    """Keep a section of the checkpoint that this one was made from, where what it says is still so.

    What it was measured on stays in it, as ``made_from``.  Only for what an added head cannot change, such as
    how the network was trained.
    """
    before = {key: entry[key] for key in ("weights_sha256", "config_sha256")}
    _put(folder, section, {"made_from": before, **entry, **_stamp(folder)})


def _stamp(folder: str | os.PathLike[str]) -> dict[str, str]:
    """What a section was measured on; the constants of the process count as much as the weights."""
    return {
        "weights_sha256": read_config(folder)["weights_sha256"],
        "config_sha256": hashlib.sha256((Path(folder).expanduser() / CONFIG).read_bytes()).hexdigest(),
    }


def _put(folder: str | os.PathLike[str], section: str, entry: Mapping[str, Any]) -> None:
    config = read_config(folder)
    path = Path(folder).expanduser() / METRICS
    with _locked(path.parent):
        sections = read_metrics(folder).get("sections", {})
        metrics = {
            "format": FORMAT,
            "checkpoint": config["name"],
            "version": config["version"],
            "sections": {**sections, section: entry},
        }
        write_text(path, to_json(metrics, path))


def hardware() -> dict[str, Any]:
    """Processor model and the number of cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return {"cores": cores, "cpu": _cpu(), "machine": platform.machine(), "system": platform.system()}


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or "unknown"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    # The lock is on the folder itself, so it leaves no file in the checkpoint.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
