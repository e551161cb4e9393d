"""Pictures of structures without a display, a GPU or a licence.

OVITO's own renderers need a Vulkan driver, which compute nodes rarely have.  Atoms are spheres, so
a depth buffer and a few lines of numpy draw them properly; matplotlib adds the text.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms

from zoo.analysis.crystals import COLORS, STRUCTURES, FloatArray, displacements
from zoo.errors import MissingExtraError, StructureError, ZooError

_LIGHT = np.array([-0.45, 0.55, 0.70]) / np.linalg.norm([-0.45, 0.55, 0.70])  # over the left shoulder
_VIEW = np.array([1.25, -4.0, 1.1])  # from the atoms to the eye
_INK = "#222222"


def before_after(
    before: Atoms,
    after: Atoms,
    labels_before: npt.ArrayLike,
    labels_after: npt.ArrayLike,
    path: str | os.PathLike[str],
    title: str = "",
    *,
    pixels: int = 760,
    palette: Mapping[str, str] | None = None,
) -> Path:
    """Write a PNG with both structures side by side, coloured by structure type.

    Parameters
    ----------
    before, after : structures of any size; both are seen from the same side.
    labels_before, labels_after : (n_atoms,) integer labels, see `zoo.analysis.crystals.STRUCTURES`; with a
        palette, places in it.
    path : the PNG to write; it appears under this name only when it is complete.
    title : one line above the panels.
    pixels : width and height of each panel.
    palette : names and colours (hex RGB), as `zoo.verdict_names.COLORS`; the first is that of no crystal.

    Raises
    ------
    MissingExtraError : matplotlib is not installed.
    StructureError : labels and atoms do not match.
    ZooError : the picture cannot be written.
    """
    panels = []
    for atoms, given in zip(_same_images(before, after), (labels_before, labels_after), strict=True):
        labels = np.asarray(given, dtype=np.int64)
        if labels.shape != (len(atoms),):
            raise StructureError(f"before_after: {len(atoms)} atoms but labels of shape {labels.shape}")
        panels.append((atoms, labels))
    dpi = 100
    width, height = 2 * pixels + 90, pixels + 250
    figure = new_figure(width / dpi, height / dpi, dpi)
    if title:
        figure.text(0.5, 1 - 34 / height, title, ha="center", va="center", fontsize=17, color=_INK)
    known = dict(zip(STRUCTURES, COLORS, strict=True)) if palette is None else dict(palette)
    if any(labels.size and not 0 <= labels.min() <= labels.max() < len(known) for _, labels in panels):
        raise StructureError(f"before_after: labels must lie in 0..{len(known) - 1}")
    shares = [np.bincount(labels, minlength=len(known)) / max(labels.size, 1) for _, labels in panels]
    fractions = [dict(zip(known, map(float, each), strict=True)) for each in shares]
    for i, (atoms, labels) in enumerate(panels):
        left = (30 + i * (pixels + 30)) / width
        axes = figure.add_axes((left, 165 / height, pixels / width, pixels / height))
        axes.imshow(spheres(atoms, labels, pixels, palette=known), interpolation="lanczos", aspect="auto")
        axes.set_axis_off()
        label = ("before", "after")[i]
        figure.text(left + 0.5 * pixels / width, 1 - 74 / height, label, ha="center", va="center",
                    fontsize=14, color=_INK)  # fmt: skip
        bar = figure.add_axes((left, 112 / height, pixels / width, 30 / height))
        _fraction_bar(bar, fractions[i], known)
    _legend(figure, fractions, known, width, height)
    return write_atomically(figure, Path(path), dpi)


def spheres(
    atoms: Atoms,
    labels: npt.ArrayLike,
    pixels: int = 760,
    *,
    oversampling: int = 2,
    palette: Mapping[str, str] | None = None,
) -> FloatArray:
    """RGB picture (pixels, pixels, 3) in 0..1 of shaded spheres and the cell edges, on white.

    Orthographic view of the positions as they are (nothing is wrapped).
    """
    size = pixels * oversampling
    axes = _camera()
    edges = _cell_edges(atoms) @ axes.T
    points = atoms.positions @ axes.T
    everything = np.concatenate([points, edges])
    image = np.ones((size, size, 3))
    if len(everything):
        radius = _radius(atoms)
        low, high = everything.min(axis=0), everything.max(axis=0)
        scale = 0.97 * size / (max(high[0] - low[0], high[1] - low[1]) + 2 * radius)
        middle = 0.5 * (low + high)
        depth = np.full((size, size), -np.inf)
        colors = COLORS if palette is None else palette.values()
        rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in colors])
        kinds = np.asarray(labels, dtype=np.int64)
        _draw(image, depth, _to_screen(points, middle, scale, size), radius * scale, kinds, rgb)
        line, ink = _to_screen(edges, middle, scale, size), np.array([[0.25, 0.25, 0.25]])
        _draw(image, depth, line, max(1.5, 0.0018 * size), np.zeros(len(line), np.int64), ink, flat=True)
        image = _shade_by_depth(image, depth, radius * scale)
    return np.asarray(image.reshape(pixels, oversampling, pixels, oversampling, 3).mean(axis=(1, 3)))


def _same_images(before: Atoms, after: Atoms) -> tuple[Atoms, Atoms]:
    """Copies that show the same periodic image of each atom, cut between lattice planes.

    Otherwise atoms on the boundary of the cell would appear on opposite sides of the two panels.
    """
    moved = displacements(before, after) if len(before) == len(after) else None
    before, after = before.copy(), after.copy()
    if after.pbc.any() and after.cell.rank == 3 and len(after):
        fractional = after.get_scaled_positions(wrap=True)
        for axis in np.flatnonzero(after.pbc):
            ordered = np.sort(fractional[:, axis])
            gaps = np.diff(ordered, append=ordered[0] + 1.0)
            widest = int(gaps.argmax())
            fractional[:, axis] = (fractional[:, axis] - ordered[widest] - 0.5 * gaps[widest]) % 1.0
        after.set_scaled_positions(fractional)
    if moved is not None:
        before.positions = after.positions - moved
    elif before.pbc.any() and before.cell.rank == 3:
        before.wrap()
    return before, after


def _camera() -> FloatArray:
    """Rows: to the right, up, and towards the eye."""
    toward = _VIEW / np.linalg.norm(_VIEW)
    right = np.cross([0.0, 0.0, 1.0], toward)
    right /= np.linalg.norm(right)
    return np.array([right, np.cross(toward, right), toward])


def _radius(atoms: Atoms) -> float:
    """A little less than half the nearest-neighbour distance of close packing, in Å."""
    from zoo.analysis.crystals import _bounding_cell

    volume = abs(float(np.linalg.det(_bounding_cell(atoms)))) / max(1, len(atoms))
    return 0.5 * 0.92 * float(np.cbrt(np.sqrt(2.0) * volume)) if len(atoms) > 1 else 1.0


def _cell_edges(atoms: Atoms) -> FloatArray:
    """Points along the edges of the cell, (n, 3) Å; none if the structure has no periodic cell."""
    if not atoms.pbc.any() or atoms.cell.rank < 3:
        return np.zeros((0, 3))
    t = np.linspace(0.0, 1.0, 700)
    lines = []
    for axis in range(3):
        for corner in np.ndindex(2, 2):
            fractional = np.insert(np.array(corner, dtype=float), axis, 0.0)
            line = np.tile(fractional, (len(t), 1))
            line[:, axis] = t
            lines.append(line)
    return np.asarray(np.concatenate(lines) @ atoms.cell.array)


def _to_screen(points: FloatArray, middle: FloatArray, scale: float, size: int) -> FloatArray:
    """Column, row and depth (towards the eye) in pixels."""
    centred = (points - middle) * scale
    return np.column_stack([size / 2 + centred[:, 0], size / 2 - centred[:, 1], centred[:, 2]])


def _draw(
    image: FloatArray,
    depth: FloatArray,
    centres: FloatArray,
    radius: float,
    kinds: npt.NDArray[Any],
    palette: FloatArray,
    *,
    flat: bool = False,
) -> None:
    """Draw spheres into ``image`` where they are in front of what ``depth`` already holds.

    Every sphere looks the same up to its colour, so each colour is shaded once and then stamped.
    """
    size = len(depth)
    reach = int(np.ceil(radius))
    window = np.arange(-reach, reach + 1) / radius
    dx, dy = window[None, :], -window[:, None]
    inside = dx**2 + dy**2 < 1.0
    nz = np.sqrt(np.where(inside, 1.0 - dx**2 - dy**2, 0.0))
    stamps = [color if flat else _shade(color, dx, dy, nz) for color in palette]
    stamps = [np.broadcast_to(stamp, (*inside.shape, 3)) for stamp in stamps]
    for index in np.argsort(-centres[:, 2]):  # front to back, so that hidden spheres are skipped cheaply
        x, y, z = centres[index]
        top, left = round(y) - reach, round(x) - reach
        rows = slice(max(0, -top), min(len(window), size - top))
        columns = slice(max(0, -left), min(len(window), size - left))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            continue
        patch = np.s_[top + rows.start : top + rows.stop, left + columns.start : left + columns.stop]
        cut = np.s_[rows, columns]
        behind = depth[patch]
        if behind.min() > z + radius:
            continue
        surface = z + radius * nz[cut]
        visible = inside[cut] & (surface > behind)
        image[patch][visible] = stamps[kinds[index]][cut][visible]
        behind[visible] = surface[visible]


def _shade(color: FloatArray, dx: FloatArray, dy: FloatArray, nz: FloatArray) -> FloatArray:
    """Matt sphere with a small highlight and a soft outline, which separates equal colours."""
    diffuse = np.clip(dx * _LIGHT[0] + dy * _LIGHT[1] + nz * _LIGHT[2], 0.0, 1.0)
    outline = 0.50 + 0.50 * np.minimum(1.0, nz / 0.50)
    shaded = color * (0.56 + 0.52 * diffuse)[..., None] + 0.20 * (diffuse**30)[..., None]
    return np.asarray(np.clip(shaded * outline[..., None], 0.0, 1.0))


def _shade_by_depth(image: FloatArray, depth: FloatArray, radius: float) -> FloatArray:
    """Let what is further away fade a little into the white background."""
    covered = np.isfinite(depth)
    if not covered.any():
        return image
    near, far = depth[covered].max(), depth[covered].min()
    fade = np.zeros_like(depth)
    fade[covered] = 0.30 * (near - depth[covered]) / max(near - far, 8 * radius)
    return np.asarray(image + fade[..., None] * (1.0 - image))


def _fraction_bar(axes: Any, fractions: Mapping[str, float], palette: Mapping[str, str]) -> None:
    start = 0.0
    first, *others = palette
    for name in (*others, first):
        share, color = fractions[name], palette[name]
        axes.barh(0, share, left=start, color=color, height=1.0, edgecolor="white", linewidth=0.8)
        if share >= 0.08:
            axes.text(start + share / 2, 0, _percent(share), ha="center", va="center", fontsize=12,
                      color=ink(color, _INK))  # fmt: skip
        start += share
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.5, 0.5)
    axes.set_axis_off()


def ink(color: str, dark: str = "#111111") -> str:
    """Of white and nearly black, what has more contrast with a colour ``#rrggbb``."""
    return "#ffffff" if luminance(color) < 0.19 else dark


def luminance(color: str) -> float:
    """Relative luminance of a colour ``#rrggbb`` by WCAG 2, from 0 (black) to 1."""
    rgb = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _percent(share: float) -> str:
    # 99.97 % must not read as 100 %.
    if share in (0.0, 1.0):
        return f"{100 * share:.0f} %"
    return (
        f"{np.floor(1e4 * share) / 100:.2f} %"
        if share > 0.999
        else f"{100 * share:.{1 if share > 0.001 else 2}f} %"
    )


def _legend(
    figure: Any, fractions: list[dict[str, float]], palette: Mapping[str, str], width: int, height: int
) -> None:
    """Every structure that occurs, with its colour and its two fractions, centred."""
    from matplotlib.lines import Line2D

    before, after = fractions
    first, *others = palette
    handles = []
    for name in (*others, first):
        if not before[name] and not after[name]:
            continue
        text = f"{name}   {_percent(before[name])} → {_percent(after[name])}"
        marker: dict[str, Any] = {
            "marker": "o",
            "markersize": 13,
            "color": palette[name],
            "markeredgecolor": "#666666",
        }
        handles.append(Line2D([], [], linestyle="none", label=text, **marker))
    figure.legend(
        handles=handles,
        loc="center",
        bbox_to_anchor=(0.5, 56 / height),
        ncols=4 if len(handles) > 4 else max(1, len(handles)),
        frameon=False,
        fontsize=13,
        labelcolor=_INK,
        handletextpad=0.3,
        columnspacing=2.6,
    )


def new_figure(width: float, height: float, dpi: int) -> Any:
    """A white page of so many inches that draws itself, whatever display there is or is not.

    Raises
    ------
    MissingExtraError : matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            f"pictures need matplotlib ({error}): pip install 'score-zoo[analysis]'"
        ) from error
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)  # type: ignore[no-untyped-call, unused-ignore]
    return figure


def write_atomically(figure: Any, path: Path, dpi: int) -> Path:
    """Save a figure as PNG under a temporary name, then give it its own.

    Raises
    ------
    ZooError : it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            figure.savefig(partial, dpi=dpi, format="png", metadata={"Software": None})
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ZooError(f"cannot write the picture {path}: {error.strerror or error}") from error
    return path
