"""Charts as SVG that takes its ink from the page, so that they are right on light and on dark.

Matplotlib draws; its one ink colour is replaced by CSS's ``currentColor``.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]

_INK = "#123457"  # a colour that nothing else has
PHI, PSI = "#0072b2", "#d55e00"  # of Okabe and Ito
_DEEPEST, _HIGHEST = 0.0, 7.0  # kT


def convergence(curve: Sequence[float]) -> str:
    """Mean displacement (Å) of each step, on a logarithmic axis."""
    figure, axes = _axes(4.6, 2.5)
    steps = np.arange(1, len(curve) + 1)
    axes.semilogy(steps, np.maximum(curve, 1e-6), "o-", color=PHI, markersize=5, linewidth=1.6)
    axes.set_xlabel("step")
    axes.set_ylabel("mean displacement (Å)")
    axes.set_xticks(steps if len(steps) <= 10 else steps[::2])
    axes.grid(True, which="major", alpha=0.25, color=_INK, linewidth=0.6)
    told = f"from {curve[0]:.3f} Å in the first step to {curve[-1]:.4f} Å in the last, number {len(curve)}"
    return _svg(figure, f"Mean displacement of each denoising step, {told}.")


def free_energy_maps(counts: Array, reference: Array | None, title: str = "this rollout") -> str:
    """Free energy -ln p in kT over (phi, psi), beside that of reference MD if there is any."""
    maps = [(counts, title)] + ([(reference, "reference MD")] if reference is not None else [])
    figure = Figure(figsize=(3.5 * len(maps) + 0.9, 3.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)  # type: ignore[no-untyped-call, unused-ignore]
    figure.patch.set_alpha(0.0)
    panels = np.atleast_1d(figure.subplots(1, len(maps), sharey=True))
    image: Any = None
    for axes, (values, name) in zip(panels, maps, strict=True):
        _inked(axes)
        energy = np.full(values.shape, np.nan)
        if values.any():
            energy[values > 0] = -np.log(values[values > 0] / values.max())
        image = axes.imshow(
            energy.T, origin="lower", extent=(-180, 180, -180, 180), cmap="viridis",
            vmin=_DEEPEST, vmax=_HIGHEST, aspect="equal", interpolation="nearest",
        )  # fmt: skip
        axes.set_title(name, fontsize=10, color=_INK)
        axes.set_xlabel("φ (degrees)")
        axes.set_xticks(range(-180, 181, 90))
        axes.set_yticks(range(-180, 181, 90))
    panels[0].set_ylabel("ψ (degrees)")
    bar = figure.colorbar(image, ax=list(panels), label="free energy (kT)", fraction=0.046, pad=0.02)
    bar.ax.yaxis.label.set_color(_INK)
    bar.ax.tick_params(colors=_INK, labelsize=8)
    bar.outline.set_visible(False)
    seen = f"{int(counts.sum()):,} frames"
    return _svg(figure, f"Free energy over phi and psi of {title} ({seen}); names of axes in degrees.")


def torsion_series(angles: Array, lag_time: float) -> str:
    """Phi and psi (n_frames, 2) in degrees over time, as dots: lines would cross the page at 180."""
    figure, axes = _axes(8.2, 2.4)
    time = np.arange(len(angles)) * lag_time
    unit = "ps"
    if time[-1] >= 2000:
        time, unit = time / 1000, "ns"
    for k, (name, color) in enumerate((("φ", PHI), ("ψ", PSI))):
        # As a picture within the chart: a hundred thousand dots as outlines would be megabytes.
        axes.plot(time, angles[:, k], ".", color=color, markersize=2.5, label=name, rasterized=True)
    axes.set_xlabel(f"time ({unit})")
    axes.set_ylabel("dihedral (degrees)")
    axes.set_ylim(-180, 180)
    axes.set_yticks(range(-180, 181, 90))
    axes.set_xlim(time[0], time[-1] or 1)
    axes.legend(loc="upper right", frameon=False, labelcolor=_INK, markerscale=4, fontsize=9, ncols=2,
                bbox_to_anchor=(1.0, 1.17))  # fmt: skip
    return _svg(figure, f"Dihedral angles phi and psi of walker 0 over {time[-1]:g} {unit}.")


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)  # type: ignore[no-untyped-call, unused-ignore]
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    _inked(axes)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _inked(axes: Any) -> None:
    axes.patch.set_alpha(0.0)
    axes.tick_params(colors=_INK, which="both", labelsize=8)
    for spine in axes.spines.values():
        spine.set_color(_INK)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    axes.xaxis.label.set_size(9)
    axes.yaxis.label.set_size(9)


def _svg(figure: Figure, description: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    # Scales with the page; Matplotlib's own description of itself is of no use here.
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'^<svg([^>]*?) height="[^"]*"([^>]*?) width="([\d.]+)pt"', r"<svg\1\2", text)
    text = re.sub(r'^<svg([^>]*?) width="[\d.]+pt"', r"<svg\1", text)
    text = re.sub(r'^<svg([^>]*?) height="[\d.]+pt"', r"<svg\1", text)
    width = float(figure.get_size_inches()[0]) * 100
    label = html.escape(description, quote=True)
    return (
        f'<div class="zs-chart" role="img" aria-label="{label}" style="max-width:{width:.0f}px">{text}</div>'
    )
