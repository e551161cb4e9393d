"""What `zoo fetch`, `zoo path` and `zoo list --hub` do: checkpoints, here and on the Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

_KILO = 1000.0


def fetch(name: str, *, force: bool, console: Console) -> None:
    """Bring a checkpoint here, check it, and say where it is.

    Raises
    ------
    HubError : the Hub, the network or the cache is in the way.
    CheckpointError : not a checkpoint of ours, or a damaged one.
    """
    from zoo import hub

    found = hub.locate(name, force=force)
    config = hub.check(found)
    said = f"{config['name']} {config['version']}, {size(total(found.folder))}"
    where = f"commit {found.commit}" if found.commit else "comes with the package" if found.record else "here"
    # One fact per line, so that a script can cut them out.
    for line in (said, where, str(found.folder)):
        console.print(escape(line), highlight=False, soft_wrap=True)


def path(name: str) -> None:
    """Print the folder of a checkpoint that is on this machine; opens no connection.

    Raises
    ------
    CheckpointError : it is not here; the message says how to get it.
    """
    from zoo import hub

    print(hub.locate(name, network=False).folder)


def list_hub(console: Console) -> None:
    """Print every released checkpoint as the Hub has it: versions, size, headline metrics.

    Raises
    ------
    HubError : the Hub cannot be asked.
    """
    from zoo import hub, registry
    from zoo.hub_errors import NotOnHubError

    table = Table(box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)
    for column in ("versions", "size", "measured"):
        table.add_column(column)
    for record in registry.records():
        try:
            found = hub.released(record.repo)
        except NotOnHubError:
            table.add_row(record.name, "not published", "", "")
            continue
        results = "; ".join(f"{name} {_range(values)}" for name, values in found.results.items())
        versions = ", ".join(found.versions) or "none yet"
        table.add_row(record.name, versions, size(found.size) if found.versions else "", escape(results))
    console.print(table)


def total(folder: Path) -> int:
    """Bytes of a checkpoint's four files, as far as they are there."""
    from zoo.hub import FILES

    paths = (folder / name for name in FILES)
    return sum(file.stat().st_size for file in paths if file.exists())


def size(n_bytes: int) -> str:
    """A number of bytes for people: `584.4 kB`."""
    value, unit = float(n_bytes), "B"
    for larger in ("kB", "MB", "GB"):
        if value < _KILO:
            break
        value, unit = value / _KILO, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _range(values: tuple[float, ...]) -> str:
    low, high = min(values), max(values)
    shown = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    return shown if len(values) == 1 else f"{shown} ({len(values)} results)"
