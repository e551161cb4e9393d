"""Small pieces of the page as HTML; whatever comes from a visitor is escaped here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from html import escape

from zoo import verdict_names
from zoo.analysis.crystals import COLORS, STRUCTURES
from zoo.analysis.pictures import ink


def palette_of(names: Collection[str]) -> dict[str, str]:
    """Names and colours of the labels that these belong to: of the classifiers, or of verdicts.

    The first one is that of no crystal.
    """
    if set(names) <= set(STRUCTURES):
        return dict(zip(STRUCTURES, COLORS, strict=True))
    return verdict_names.COLORS


def _in_order(shares: Mapping[str, float]) -> list[tuple[str, str]]:
    """Names and colours, structures first, what has none last."""
    (first, grey), *others = palette_of(shares).items()
    return [(name, color) for name, color in (*others, (first, grey)) if name in shares]


def problem(message: str) -> str:
    """A visitor's mistake, or ours, in one line."""
    return f'<div class="zs-problem" role="alert"><strong>Not done.</strong> {escape(message)}</div>'


def notice(message: str) -> str:
    """Something worth knowing that is not a mistake."""
    return f'<div class="zs-notice" role="status">{escape(message)}</div>'


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """A table of two columns."""
    body = "".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in rows)
    return f'<table class="zs-table">{body}</table>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with a head; all but the first column are numbers."""
    top = "".join(f'<th scope="col">{escape(each)}</th>' for each in head)
    body = "".join(
        "<tr>" + f'<th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(x)}</td>" for x in row[1:])
        for row in rows
    )
    return f'<table class="zs-table zs-numbers"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def percent(share: float) -> str:
    """Rounded down: one atom in ten thousand must not disappear in a 100 %."""
    return f"{int(share * 1e4 + 1e-6) / 100:.2f} %"


def fraction_bars(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Two bars, before and after, each divided by structure."""
    return (
        '<div class="zs-bars">'
        + "".join(_bar(name, shares) for name, shares in (("before", before), ("after", after)))
        + "</div>"
    )


def _bar(name: str, shares: Mapping[str, float]) -> str:
    parts, told = [], []
    for structure, color in _in_order(shares):
        share = shares[structure]
        if share <= 0:
            continue
        told.append(f"{structure} {percent(share)}")
        text = f"{structure} {percent(share)}" if share > 0.3 else percent(share) if share > 0.12 else ""
        parts.append(
            f'<span style="flex:{share:.6f} 1 0;background:{color};color:{ink(color)}" '
            f'title="{escape(structure)} {percent(share)}">{escape(text)}</span>'
        )
    label = escape(f"{name}: {', '.join(told)}")
    return (
        f'<div class="zs-bar-row"><span class="zs-bar-name">{name}</span>'
        f'<div class="zs-bar" role="img" aria-label="{label}">{"".join(parts)}</div></div>'
    )


def fraction_table(before: Mapping[str, float], after: Mapping[str, float], n_atoms: int) -> str:
    """The same as numbers, in atoms and in percent."""
    rows = []
    for name, _ in _in_order(after):
        if before[name] or after[name]:
            rows.append(
                [
                    name,
                    f"{round(before[name] * n_atoms):,}",
                    percent(before[name]),
                    f"{round(after[name] * n_atoms):,}",
                    percent(after[name]),
                ]
            )
    return table(["structure", "atoms before", "before", "atoms after", "after"], rows)


def progress(share: float, text: str) -> str:
    """What is being done, and how much of it is done."""
    return (
        f'<div class="zs-progress" role="status"><progress max="1" value="{share:.3f}"></progress>'
        f"<span>{escape(text)}</span></div>"
    )


def text(plain: str) -> str:
    """Plain text, safe in a page."""
    return escape(plain)


def scroll_to(elem_id: str) -> str:
    """JavaScript for an event: on a narrow screen, where results are below the form, go there."""
    return (
        "(...inputs) => { if (window.innerWidth < 700) "
        f"document.getElementById('{elem_id}').scrollIntoView({{behavior: 'smooth'}}); return inputs; }}"
    )
