"""What `zoo info` prints: facts from the record and the config, measurements from metrics.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from zoo.verdict_names import DISORDERED

if TYPE_CHECKING:
    from rich.console import Console

_MOST_ROWS = 16
_MOST_COLUMNS = 8
#: Columns worth a place, in this order; the others follow as far as there is room.
_FIRST = (
    "material", "structure", "state", "case", "system", "metric", "atoms", "threads", "raw_combined",
    "denoised", "right_where_quench_is", "us_per_atom_step", "times_reference", "peak_memory_mib",
    "trials", "kept", "worst", "limit", "minutes", "n_steps", "n_parameters",
)  # fmt: skip


def show(name: str, *, as_json: bool, console: Console) -> None:
    """Print the facts of a checkpoint.

    Raises
    ------
    UnknownCheckpointError : neither a registry name nor a folder.
    CheckpointError : the folder is damaged, or is not on this machine.
    """
    from dataclasses import asdict

    from zoo import checkpoint, hub

    found = hub.locate(name, network=False)
    folder, record = found.folder, found.record
    config = checkpoint.read_config(folder)
    if (folder / checkpoint.WEIGHTS).exists():  # a config alone can be looked at
        checkpoint.check_weights_file(folder, config["weights_sha256"])
    metrics = checkpoint.read_metrics(folder)
    if as_json:
        everything = {
            "folder": str(folder),
            "commit": found.commit,
            "record": None if record is None else asdict(record),
            "config": config,
            "metrics": metrics,
        }
        print(json.dumps(everything, indent=2, ensure_ascii=False))
        return
    console.print(_facts(folder, record, config))
    for title, section in _sections(metrics):
        console.print()
        _show_section(title, section, console)
    if record is not None:
        loader = "ScoreDynamics" if record.kind == "score-dynamics" else "Denoiser"
        console.print(f"\nload it: {loader}.from_pretrained({record.name!r})", highlight=False)
    else:
        console.print(f"\ncard: {escape(str(folder / checkpoint.CARD))}", highlight=False, soft_wrap=True)


def _facts(folder: Path, record: Any, config: Mapping[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    facts: dict[str, Any] = {"name": config.get("name"), "version": config.get("version")}
    if record is not None:
        facts |= {"for": record.summary, "licence": record.license, "hub": record.repo}
        facts |= {"made by": record.recipe}
    skipped = {"name", "version", "format_version"}
    family = config.get("family")
    if isinstance(family, Mapping):  # of a family what it was trained on; the rest is for the model
        skipped = {*skipped, "family"}
        facts["trained on"] = ", ".join(map(str, family.get("molecules", ())))
        facts["knows"] = ", ".join(map(str, family.get("environments", ())))
    if config.get("kind") == "denoiser":
        skipped = {*skipped, "verdict"}
        facts["verdict"] = _verdict(config.get("verdict"))
    given = {key: value for key, value in config.items() if key not in skipped and value not in ([], {}, "")}
    facts |= {key.replace("_", " "): _text(value) for key, value in given.items()}
    facts["folder"] = folder
    for key, value in facts.items():
        if value is not None:
            table.add_row(key, escape(str(value)))
    return table


def _verdict(head: object) -> str:
    """What a denoiser's head may call an atom."""
    classes = head.get("classes") if isinstance(head, Mapping) else None
    if not isinstance(classes, list) or not classes:
        return "none: it only denoises"
    return f"per atom, with a confidence: {', '.join(map(str, classes))} or {DISORDERED}"


def _sections(metrics: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    sections = metrics.get("sections", {})
    if not isinstance(sections, Mapping):
        return []
    return [(str(title), body) for title, body in sections.items() if isinstance(body, Mapping)]


def _show_section(title: str, section: Mapping[str, Any], console: Console) -> None:
    rows = section.get("results", [])
    rows = [rows] if isinstance(rows, Mapping) else rows
    rows = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, Sequence) else []
    when = f", {section['date']}" if "date" in section else ""
    console.print(
        f"[bold]{escape(title)}[/bold] measured by: {escape(str(section.get('command', '?')))}{when}"
    )
    if not rows:
        return
    found = list(dict.fromkeys(key for row in rows for key in row if not isinstance(row[key], list)))
    found.sort(key=lambda key: _FIRST.index(key) if key in _FIRST else len(_FIRST))
    columns = found[:_MOST_COLUMNS]
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(escape(str(column).replace("_", " ")))
    for row in rows[:_MOST_ROWS]:
        table.add_row(*(escape(_text(row.get(column, ""))) for column in columns))
    console.print(table)
    more = [
        f"{n} more {what}"
        for n, what in ((len(rows) - _MOST_ROWS, "rows"), (len(found) - _MOST_COLUMNS, "columns"))
        if n > 0
    ]
    if more:
        console.print(f"... and {' and '.join(more)}: zoo info --json", highlight=False)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(inner) for inner in value)
    return str(value)
