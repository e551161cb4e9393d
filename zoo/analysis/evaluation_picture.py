"""The report of an evaluation as one PNG: free energies, populations, rates, paths, geometry."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

#: Of Okabe & Ito, distinct for every common form of colour blindness.
MD, ROLLOUT = "#0072b2", "#d55e00"
_COLUMNS = 3
_MOST_KT = 8.0
_TICKS = range(-180, 181, 60)

Panel = Callable[[Any], None]


def draw(report: dict[str, Any], path: Path) -> Path:
    """Draw what `Evaluation.to_json` gives.

    Raises
    ------
    MissingExtraError : matplotlib is not installed.
    ZooError : the picture cannot be written.
    """
    from zoo.analysis.pictures import new_figure, write_atomically

    panels = _panels(report)
    n_rows = -(-len(panels) // _COLUMNS)
    figure = new_figure(6.0 * _COLUMNS, 4.9 * n_rows + 0.9, 90)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    figure.suptitle(_title(report), fontsize=15)
    for k, panel in enumerate(panels):
        panel(figure.add_subplot(n_rows, _COLUMNS, k + 1))
    return write_atomically(figure, path, 90)


def _title(report: dict[str, Any]) -> str:
    def size(what: str) -> str:
        each = report["sets"][what]
        return f"{each['n_trajectories']} × {each['total_ps'] / 1000 / each['n_trajectories']:.3g} ns"

    return (
        f"{report.get('checkpoint', report['molecule'])}: rollout ({size('rollout')}) beside MD "
        f"({size('reference')}), frames {report['interval_ps']:g} ps apart\n"
        "blue MD, orange rollout, 95 % intervals; figures at the right: events; "
        "hollow: too few events for an interval; ▷ lower bound (95 %)"
    )


def _panels(report: dict[str, Any]) -> list[Panel]:
    panels: list[Panel] = []
    joint = [each for each in report["free_energy"] if len(each["dihedrals"]) == 2]
    for each in joint:
        panels += [
            partial(_map, data=each, what="reference", title="MD"),
            partial(_map, data=each, what="rollout", title="rollout"),
            partial(_difference, data=each, report=report),
        ]
    for each in report["free_energy"]:
        if len(each["dihedrals"]) == 1:
            panels.append(partial(_profile, data=each, report=report))
    panels.append(partial(_bars, report=report, kinds=("population",), title="populations", log=False))
    if joint:
        panels += [
            partial(_paths, report=report, what="reference", title="MD"),
            partial(_paths, report=report, what="rollout", title="rollout"),
        ]
    if any(q["kind"] == "mfpt" for q in report["quantities"]):
        passages, path_times = ("mfpt", "group mfpt"), ("path time",)
        panels += [
            partial(_bars, report=report, kinds=path_times, title="transition-path times (ps)", log=False),
            partial(_bars, report=report, kinds=passages, title="mean first-passage times (ps)", log=True),
            partial(_timescales, report=report),
        ]
    if report["geometry"]["bonds"]:
        panels.append(partial(_geometry, report=report))
    return panels


def _array(table: Any) -> npt.NDArray[np.float64]:
    return np.array(table, dtype=np.float64)  # None becomes NaN


def _torus(axes: Any, names: list[str]) -> None:
    axes.set(xlabel=f"{names[0]} (°)", ylabel=f"{names[1]} (°)", xlim=(-180, 180), ylim=(-180, 180))
    axes.set_xticks(_TICKS)
    axes.set_yticks(_TICKS)


def _image(axes: Any, values: Any, names: list[str], label: str, **options: Any) -> None:
    shown = axes.imshow(
        values.T,
        origin="lower",
        extent=(-180, 180, -180, 180),
        aspect="auto",
        interpolation="nearest",
        **options,
    )
    axes.figure.colorbar(shown, ax=axes, label=label)
    _torus(axes, names)


def _map(axes: Any, data: dict[str, Any], what: str, title: str) -> None:
    _image(
        axes, _array(data[what]["value"]), data["dihedrals"], "free energy (kT)",
        cmap="viridis", vmin=0.0, vmax=_MOST_KT,
    )  # fmt: skip
    axes.set_title(f"free energy, {title}", fontsize=11)


def _difference(axes: Any, data: dict[str, Any], report: dict[str, Any]) -> None:
    """Rollout minus MD; grey where the intervals overlap."""
    md, run = data["reference"], data["rollout"]
    values = _array(run["value"]) - _array(md["value"])
    low, high = _array(md["low"]), _array(md["high"])
    # An interval without an upper end: a resample may have no frame there.
    run_low, run_high = _array(run["low"]), np.nan_to_num(_array(run["high"]), nan=np.inf)
    apart = (run_low > np.nan_to_num(high, nan=np.inf)) | (run_high < low)
    both = np.isfinite(low) & np.isfinite(run_low)
    axes.imshow(
        np.where(both & ~apart, 0.85, np.nan).T, origin="lower", extent=(-180, 180, -180, 180), aspect="auto",
        cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest",
    )  # fmt: skip
    _image(
        axes, np.where(both & apart, values, np.nan), data["dihedrals"], "kT",
        cmap="RdBu_r", vmin=-2.0, vmax=2.0,
    )  # fmt: skip
    share = f"{apart[both].mean():.0%}" if both.any() else "-"
    title = f"rollout - MD: intervals apart in {share} of bins (grey: not; white: too few)"
    _headline(axes, title, report, " ".join(data["dihedrals"]))


def _headline(axes: Any, title: str, report: dict[str, Any], divergence: str) -> None:
    """The title of a panel, and under it how far both are apart."""
    found = report["divergences"][divergence]
    text = ""
    if found["value"] is not None:
        text = f"JS {found['value']:.4f} bits"
        if found["floor"] is not None:
            text += f"; by chance {found['floor']:.4f}, 95 % < {found['floor_95']:.4f}"
        if found["halves"] is not None:
            text += f"; MD halves {found['halves']:.4f}"
    axes.set_title(f"{title}\n{text}" if text else title, fontsize=10)


def _profile(axes: Any, data: dict[str, Any], report: dict[str, Any]) -> None:
    bins = data["bins"]
    centres = -180.0 + (np.arange(bins) + 0.5) * 360.0 / bins
    for what, colour, label in (("reference", MD, "MD"), ("rollout", ROLLOUT, "rollout")):
        low, high = _array(data[what]["low"]), _array(data[what]["high"])
        open_ended = np.isfinite(low) & ~np.isfinite(high)
        axes.fill_between(
            centres, low, np.where(open_ended, 99.0, high), color=colour, alpha=0.25, linewidth=0
        )
        axes.plot(centres, _array(data[what]["value"]), color=colour, label=label)
    (name,) = data["dihedrals"]
    axes.set(xlabel=f"{name} (°)", ylabel="free energy (kT)", xlim=(-180, 180), ylim=(-0.5, 10.0))
    axes.set_xticks(_TICKS)
    axes.legend(loc="upper right")
    _headline(axes, f"free energy of {name}", report, name)


def _paths(axes: Any, report: dict[str, Any], what: str, title: str) -> None:
    names = [each["name"] for each in report["dihedrals"]]
    density = report["path_density"]
    frames = _array(density[what]["frames"])
    shown = np.where(frames > 0, frames / max(frames.sum(), 1.0) * 100.0, np.nan)
    _image(axes, shown, names[:2], "% of the frames on paths", cmap="magma_r", vmin=0.0, vmax=_scale(density))
    between = density["between"]
    if between == "groups":
        between = " and ".join(each["name"] for each in report["basins"]["groups"])
    text = f"{title}: {density[what]['paths']} transition paths between {between}"
    _headline(axes, text, report, "paths")
    _boxes(axes, report)


def _scale(density: dict[str, Any]) -> float:
    parts = [_array(density[what]["frames"]) for what in ("reference", "rollout")]
    return max((float(p.max() / p.sum() * 100.0) for p in parts if p.sum()), default=1.0)


def _boxes(axes: Any, report: dict[str, Any]) -> None:
    """The cores, as outlines; a box across +-180 is drawn in pieces."""
    if len(report["dihedrals"]) != 2:
        return
    from matplotlib.patches import Rectangle

    for basin in report["basins"]["basins"]:
        for k, (first, second) in enumerate(basin["core"]):
            spans = [[(a, b)] if a < b else [(a, 180.0), (-180.0, b)] for a, b in (first, second)]
            for a, b in spans[0]:
                for c, d in spans[1]:
                    axes.add_patch(
                        Rectangle((a, c), b - a, d - c, fill=False, edgecolor="#555555", linewidth=0.8)
                    )
            if k == 0:
                (a, b), (c, d) = (max(span, key=lambda s: s[1] - s[0]) for span in spans)
                axes.text((a + b) / 2, (c + d) / 2, basin["name"], ha="center", va="center", fontsize=9)


def _bars(axes: Any, report: dict[str, Any], kinds: tuple[str, ...], title: str, *, log: bool) -> None:
    """Points with intervals, one row per quantity: MD above, rollout below; the events in small figures."""
    rows = [q for q in report["quantities"] if q["kind"] in kinds]
    rows = [q for q in rows if any(q[w]["value"] is not None or q[w].get("lower_bound_95") for w in _SETS)]
    if not rows:
        _nothing(axes, title)
        return
    if log:
        axes.set_xscale("log")
    for k, q in enumerate(rows):
        for what, colour, shift in (("reference", MD, 0.17), ("rollout", ROLLOUT, -0.17)):
            _point(axes, q[what], len(rows) - 1 - k + shift, colour)
    axes.set_yticks(range(len(rows)))
    axes.set_yticklabels([q["name"] for q in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    if not log:
        axes.set_xlim(left=0.0)
    low, high = axes.get_xlim()  # room for the number of events
    axes.set_xlim(low, high * (high / low) ** 0.18 if log else high * 1.15)
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(title, fontsize=11)
    for k, q in enumerate(rows):
        for what, colour, shift in (("reference", MD, 0.17), ("rollout", ROLLOUT, -0.17)):
            axes.text(
                0.99, len(rows) - 1 - k + shift, f"{q[what]['events']:,}",
                transform=axes.get_yaxis_transform(),
                ha="right", va="center", fontsize=7, color=colour,
            )  # fmt: skip


def _nothing(axes: Any, title: str) -> None:
    """A panel for which there is nothing to draw says so."""
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, "no events", transform=axes.transAxes, ha="center", va="center", color="0.4")
    axes.set_title(title, fontsize=11)


_SETS = ("reference", "rollout")


def _point(axes: Any, estimate: dict[str, Any], y: float, colour: str) -> None:
    value, interval = estimate["value"], estimate["interval_95"]
    if value is None or (interval is None and estimate.get("lower_bound_95") is not None):
        bound = estimate.get("lower_bound_95")
        if bound is not None:
            axes.plot([bound], [y], marker=">", color=colour, markerfacecolor="white", markersize=6)
        if value is None:
            return
    if interval is not None:
        low, high = interval
        axes.plot([low, value * 3 if high is None else high], [y, y], color=colour, linewidth=2)
    face = "white" if interval is None else colour
    axes.plot([value], [y], marker="o", color=colour, markerfacecolor=face, markersize=5)


def _timescales(axes: Any, report: dict[str, Any]) -> None:
    scan = report["implied_timescales"]
    values = [g["value"] for each in scan for what in _SETS for g in each[what] if g["value"] is not None]
    if not values:
        _nothing(axes, "implied timescales of the Markov model")
        return
    lags = np.array([each["lag_ps"] for each in scan])
    for what, colour, label in (("reference", MD, "MD"), ("rollout", ROLLOUT, "rollout")):
        for k in range(len(scan[0][what]) if scan else 0):
            given = [each[what][k] for each in scan]
            value = _array([g["value"] for g in given])
            low = _array([None if g["interval_95"] is None else g["interval_95"][0] for g in given])
            high = _array([None if g["interval_95"] is None else g["interval_95"][1] for g in given])
            high = np.where(np.isfinite(low) & ~np.isfinite(high), 1e6, high)
            axes.fill_between(lags, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(lags, value, "o-", color=colour, markersize=4, label=label if k == 0 else None)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(min([*lags, *values]) / 1.5, max(values) * 4)
    axes.fill_between(lags, 1e-9, lags, color="0.8", linewidth=0, zorder=0)
    axes.axvline(report["markov_lag_ps"], color="0.5", linestyle=":", linewidth=1)
    axes.set(xlabel="lag (ps)", ylabel="implied timescale (ps)")
    axes.set_title(
        "implied timescales of the Markov model\n(dotted: the lag used; grey: shorter than the lag)",
        fontsize=11,
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")


def _geometry(axes: Any, report: dict[str, Any]) -> None:
    """Where each bond and angle is, in standard deviations of MD; and how far it moves during a rollout."""
    geometry = report["geometry"]
    worst: list[tuple[float, str]] = []
    for kind, marker, size in (("bonds", "o", 28), ("angles", "^", 24)):
        rows = geometry[kind]
        x = [row["shift_in_sd"] for row in rows]
        y = [row["drift_in_sd"] for row in rows]
        label = f"{len(rows)} {kind}"
        axes.scatter(x, y, s=size, marker=marker, color=ROLLOUT, alpha=0.7, label=label, linewidths=0)
        for row, a, b in zip(rows, x, y, strict=True):
            worst.append((max(abs(a), abs(b)), row["name"]))
            if worst[-1][0] > 0.15:
                axes.annotate(row["name"], (a, b), fontsize=7, xytext=(3, 3), textcoords="offset points")
    limit = max(0.3, 1.3 * max(each for each, _ in worst))
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    hands = geometry["chirality"]["rollout"]
    axes.set(
        xlabel="mean of rollout - mean of MD, in standard deviations of MD",
        ylabel="last quarter of rollout - first quarter",
    )
    axes.set_title(
        f"bonds and angles; {hands['inversions']} inversions of {geometry['chirality']['n_stereocentres']} "
        "stereocentre(s)",
        fontsize=11,
    )
    axes.legend(loc="upper left")
