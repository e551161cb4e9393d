"""One PNG of defect reports: a frame with its structure, or a trajectory along time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from zoo.analysis.crystals import COLORS, STRUCTURES, IntArray
from zoo.analysis.defect_report import DefectReport
from zoo.analysis.pictures import new_figure, spheres, write_atomically

#: Crystals first, what is none last.
_ORDER = [*range(1, len(STRUCTURES)), 0]


def draw(
    reports: Sequence[DefectReport],
    times: Sequence[float],
    time_label: str,
    path: str | os.PathLike[str],
    last: tuple[Atoms, IntArray],
) -> Path:
    """Write the picture: the last frame, and how structures and defects go along the frames.

    Parameters
    ----------
    times : one for each report, with ``time_label`` below the axis.
    last : the last frame and its structure labels.

    Raises
    ------
    MissingExtraError : matplotlib is not installed.
    ZooError : the picture cannot be written.
    """
    page = new_figure(13.5, 7.2, 110)
    page.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    grid = page.add_gridspec(2, 3, width_ratios=(1.25, 1, 1))
    view = page.add_subplot(grid[:, 0])
    view.imshow(spheres(*last, 620))
    view.set_axis_off()
    view.set_title("denoised" if len(reports) == 1 else f"last frame, {time_label} {times[-1]:g}")
    _fractions(page.add_subplot(grid[0, 1]), reports, times, time_label)
    points = [
        ("vacancies", [r.vacancies for r in reports]),
        ("interstitials", [r.interstitials for r in reports]),
    ]
    _counts(page.add_subplot(grid[0, 2]), "point defects", points, times, time_label)
    kinds = sorted({kind for r in reports for kind in r.planes})
    planes = [(kind, [r.planes.get(kind, 0) for r in reports]) for kind in kinds]
    extended = [*planes, ("grains", [len(r.grains) for r in reports])]
    _counts(page.add_subplot(grid[1, 1]), "planes and grains", extended, times, time_label)
    families = sorted({name for r in reports for name in r.dislocations})
    lengths = [(name, [r.dislocations.get(name, (0, 0.0))[1] for r in reports]) for name in families]
    _counts(page.add_subplot(grid[1, 2]), "dislocation lines, Å", lengths, times, time_label)
    return write_atomically(page, Path(path), 110)


def _fractions(axes: Any, reports: Sequence[DefectReport], times: Sequence[float], label: str) -> None:
    shown = [k for k in _ORDER if any(r.fractions[STRUCTURES[k]] > 0 for r in reports)]
    shares = np.array([[100 * r.fractions[STRUCTURES[k]] for r in reports] for k in shown])
    colors, names = [COLORS[k] for k in shown], [STRUCTURES[k] for k in shown]
    axes.set_title("structures, % of atoms")
    if len(reports) == 1:
        bars = axes.barh(range(len(shown)), shares[:, 0], color=colors, height=0.6)
        axes.bar_label(bars, labels=[f"{int(100 * s + 1e-4) / 100:.2f}" for s in shares[:, 0]], padding=3)
        axes.set_yticks(range(len(shown)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, 125)
        axes.set_xticks([])
        return
    axes.stackplot(times, shares, colors=colors, labels=names)
    if any(r.disordered for r in reports):
        line = [100 - 100 * r.disordered for r in reports]
        axes.plot(times, line, color="#222222", linewidth=1, label="disordered, above")
    axes.set(xlabel=label, ylim=(0, 100), xlim=(times[0], times[-1]))
    axes.legend(fontsize=8, loc="lower left")


def _counts(
    axes: Any, title: str, series: Sequence[tuple[str, Sequence[float]]], times: Sequence[float], label: str
) -> None:
    axes.set_title(title)
    if not series:
        axes.text(0.5, 0.5, "none", ha="center", va="center", transform=axes.transAxes, color="#666666")
        axes.set_axis_off()
        return
    if len(times) == 1:
        lengths = [value for _, (value,) in series]
        bars = axes.barh(range(len(series)), lengths, color="#0072b2", height=0.6)
        axes.bar_label(bars, fmt="%.4g", padding=3)
        axes.set_yticks(range(len(series)), [name for name, _ in series])
        axes.set_xlim(0, 1.25 * max(*lengths, 1))
        axes.set_xticks([])  # the numbers are at the bars
        axes.invert_yaxis()
        axes.margins(y=0.3)
        return
    for color, (name, values) in zip((*COLORS[1:], *COLORS[1:]), series, strict=False):
        axes.plot(times, values, "o-", markersize=3, color=color, label=name)
    axes.set(xlabel=label)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
