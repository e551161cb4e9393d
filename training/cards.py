"""Render a checkpoint's card, and the tables in the README, from its `metrics.json`.

    python -m training.cards denoiser-elements           # write zoo/checkpoints/<name>/README.md
    python -m training.cards denoiser-elements --check   # fail if it is not up to date

A template in `model_cards/` holds the prose and says where numbers go; it holds no number that was
measured.  Four directives, each between double braces:

`{{ PATH | FORMAT }}`
    One value, with an optional Python format.  A path starts at `record`, `config`, or the name of
    a section of the metrics.  `dc3.date` is a key of a section; `dc3[material=Al,state=Tm].denoised`
    is a column of the one row that matches.

`{{ table: SECTION where KEY=VALUE,...` and then, up to the closing braces, a line per column,
    `KEY | HEADER | FORMAT`.  The format may be left out.  Rows come in the order they were recorded.

`{{ model-index: SECTION where KEY=VALUE,...` and then lines `task: NAME`,
    `metric: KEY | TYPE | NAME | FACTOR` and `dataset: TYPE | NAME` (the name may use {column} fields):
    the evaluation results in the front matter that the Hub shows.  The factor scales the value, 100
    turning a fraction into per cent.

`{{ part: SECTION }}`
    The text of `model_cards/parts/SECTION.md`, itself a template, if the metrics have this section;
    otherwise nothing, not even the empty line after it.

In `README.md` a table stands between `<!-- NAME table: ...` (the same text as above, ended by `-->`)
and `<!-- end -->`; only what is between these is rewritten.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.command_line import command_line
from zoo import registry
from zoo.checkpoint import CARD, read_config, read_metrics, write_text
from zoo.errors import CheckpointError

ROOT = Path(__file__).resolve().parent.parent

_DIRECTIVE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_PART = re.compile(r"\{\{\s*part:\s*([\w-]+)\s*\}\}\n*")
_STEP = re.compile(r"\.?([^.\[\]]+)|\[([^\]]*)\]")
_README_TABLE = re.compile(r"(<!-- (?P<name>[\w.-]+) (?P<spec>table:.*?)-->\n).*?(<!-- end -->)", re.DOTALL)


class CardError(CheckpointError):
    """A template that asks for something that was not measured, or that cannot be read."""


def render(template: str, facts: Mapping[str, Any]) -> str:
    """Fill in a template.

    Args:
        template: text with directives.
        facts: `record`, `config` and the sections of the metrics by name.

    Raises:
        CardError: a directive that asks for what is not there.
    """
    return _DIRECTIVE.sub(lambda match: _directive(match[1].strip(), facts), template)


def render_readme(text: str, facts_of: Mapping[str, Mapping[str, Any]]) -> str:
    """Refresh the tables of a README; `facts_of` has the facts per checkpoint name.

    Raises:
        CardError: a table of an unknown checkpoint, or of what was not measured.
    """

    def refresh(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in facts_of:
            raise CardError(f"the README has a table of {name!r}, which is not a known checkpoint")
        return f"{match[1]}\n{_directive(match['spec'].strip(), facts_of[name])}\n\n{match[4]}"

    return _README_TABLE.sub(refresh, text)


def facts(name: str) -> dict[str, Any]:
    """What a card may speak of: the record, the config and every section of the metrics.

    Raises:
        zoo.CheckpointError: the checkpoint's folder is missing or unreadable.
    """
    record = registry.find(name)
    folder = registry.bundled_folder(record)
    sections = read_metrics(folder).get("sections", {})
    return {**sections, "record": asdict(record), "config": read_config(folder)}


def card(name: str) -> str:
    """The card of a released checkpoint, rendered now.

    Raises:
        CardError: the template asks for something that is not in the metrics.
        zoo.CheckpointError: the checkpoint's folder is missing or unreadable.
    """
    template = ROOT / "model_cards" / registry.find(name).card
    known = facts(name)
    return render(with_parts(template.read_text(encoding="utf-8"), known), known)


def with_parts(template: str, facts: Mapping[str, Any]) -> str:
    """Put in the parts of sections that were measured, and drop the others.

    Raises:
        CardError: a part without a template.
    """

    def part(match: re.Match[str]) -> str:
        if match[1] not in facts:
            return ""
        path = ROOT / "model_cards" / "parts" / f"{match[1]}.md"
        if not path.is_file():
            raise CardError(f"{{{{ part: {match[1]} }}}}: there is no {path.relative_to(ROOT)}")
        return path.read_text(encoding="utf-8").strip() + "\n\n"

    return _PART.sub(part, template)


def readme() -> str:
    """The project's README with fresh tables.

    Raises:
        CardError, zoo.CheckpointError: as `card`.
    """
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = {match["name"] for match in _README_TABLE.finditer(text)}
    return render_readme(text, {name: facts(name) for name in names})


def _directive(text: str, facts: Mapping[str, Any]) -> str:
    head, *lines = [line.strip() for line in text.splitlines() if line.strip()]
    if head.startswith("table:"):
        return _table(*_select(head.removeprefix("table:"), facts), lines)
    if head.startswith("model-index:"):
        return _model_index(*_select(head.removeprefix("model-index:"), facts), lines, facts)
    path, _, spec = head.partition("|")
    return _text(_lookup(path.strip(), facts), spec.strip(), path.strip())


def _text(value: Any, spec: str, where: str) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    try:
        if spec.endswith("%") and isinstance(value, int | float) and 0 < value < 1:
            return _percent(float(value), spec)
        return format(value, spec)
    except (TypeError, ValueError) as error:
        raise CardError(f"{{{{ {where} }}}}: {value!r} cannot be shown as {spec!r} ({error})") from None


def _percent(value: float, spec: str) -> str:
    # 0 % and 100 % say something of every single atom, so what is neither must not round to them.
    text = format(value, spec)
    step = 10.0 ** -(len(text.rstrip("%").partition(".")[2]) + 2)
    return format(min(max(value, step), 1 - step), spec)


def _select(head: str, facts: Mapping[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    section, _, condition = (part.strip() for part in head.partition(" where "))
    section = section.strip()
    if section not in facts:
        raise CardError(f"the metrics have no section {section!r}: run its benchmark, or change the template")
    rows = _matching(facts[section].get("results", []), condition)
    if not rows:
        raise CardError(f"no row of section {section!r} matches {condition!r}")
    return section, rows


def _matching(rows: Sequence[dict[str, Any]], condition: str) -> list[dict[str, Any]]:
    wanted = [
        tuple(part.strip() for part in pair.split("=", 1)) for pair in condition.split(",") if pair.strip()
    ]
    return [row for row in rows if all(str(row.get(pair[0])) == pair[-1] for pair in wanted)]


def _lookup(path: str, facts: Mapping[str, Any]) -> Any:
    value: Any = facts
    for match in _STEP.finditer(path):
        key, condition = match[1], match[2]
        if condition is not None:
            rows = _matching(value.get("results", []) if isinstance(value, Mapping) else [], condition)
            if len(rows) != 1:
                raise CardError(f"{{{{ {path} }}}}: {len(rows)} rows match [{condition}], not one")
            value = rows[0]
        elif isinstance(value, Mapping) and key in value:
            value = value[key]
        else:
            raise CardError(f"{{{{ {path} }}}}: there is no {key!r}")
    if isinstance(value, Mapping):
        raise CardError(f"{{{{ {path} }}}} is a group of values, not one value")
    return value


def _table(section: str, rows: Sequence[Mapping[str, Any]], lines: Sequence[str]) -> str:
    columns = []
    for line in lines:
        key, header, spec = [*(part.strip() for part in line.split("|")), "", ""][:3]
        if not any(key in row for row in rows):
            raise CardError(f"no row of section {section!r} has the column {key!r}")
        columns.append((key, header or key, spec))
    if not columns:
        raise CardError(f"the table of section {section!r} names no columns")
    numeric = [any(isinstance(row.get(key), int | float) for row in rows) for key, _, _ in columns]
    out = ["| " + " | ".join(header for _, header, _ in columns) + " |"]
    out.append("|" + "|".join("---:" if right else "---" for right in numeric) + "|")
    for row in rows:
        cells = (_text(row.get(key), spec, f"{section}.{key}") for key, _, spec in columns)
        out.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(out)


def _model_index(
    section: str, rows: Sequence[Mapping[str, Any]], lines: Sequence[str], facts: Mapping[str, Any]
) -> str:
    settings = dict(line.split(":", 1) for line in lines)
    if set(settings) != {"task", "metric", "dataset"}:
        raise CardError("a model-index needs exactly the lines 'task: ...', 'metric: ...' and 'dataset: ...'")
    key, kind, label, factor = (part.strip() for part in settings["metric"].split("|"))
    dataset, name = (part.strip() for part in settings["dataset"].split("|"))
    # Strings are written as JSON, which is YAML with all the quoting settled.
    out = ["model-index:", f"- name: {json.dumps(facts['record']['name'])}", "  results:"]
    for row in rows:
        value = row.get(key)
        if not isinstance(value, int | float):
            raise CardError(f"a row of section {section!r} has no number {key!r} for the model-index")
        shown = json.dumps(name.format_map(row), ensure_ascii=False)
        metric = f"type: {json.dumps(kind)}, name: {json.dumps(label)}"
        out += [
            f'  - task: {{type: "other", name: {json.dumps(settings["task"].strip())}}}',
            f"    dataset: {{type: {json.dumps(dataset)}, name: {shown}}}",
            f"    metrics: [{{{metric}, value: {round(value * float(factor), 6)}}}]",
        ]
    return "\n".join(out)


@command_line()
def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the card of a checkpoint and the README; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.cards", description=main.__doc__)
    parser.add_argument("name", help="a checkpoint of the registry")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if something is out of date"
    )
    options = parser.parse_args(arguments)
    folder = registry.bundled_folder(registry.find(options.name))
    stale = []
    for path, text in ((folder / CARD, card(options.name)), (ROOT / "README.md", readme())):
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path)
        if not options.check:
            write_text(path, text)
    for path in stale:
        print(f"{'out of date' if options.check else 'wrote'}: {path.relative_to(ROOT)}")
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
