"""The two pictures: what is raw on the left, the same denoised on the right.

Every number in them is counted by `training.demonstrations.measure`.  They are drawn with numpy and
matplotlib like those of `zoo.analysis.pictures`, so no display is needed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms
from scipy.spatial import cKDTree

from training.demonstrations.measure import FAMILIES, Lines, Pair, largest_cluster
from zoo.analysis.crystals import BCC, COLORS, FCC, HCP, OTHER, STRUCTURES, FloatArray, IntArray
from zoo.analysis.pictures import (
    _camera,
    _cell_edges,
    _draw,
    _shade_by_depth,
    _to_screen,
    new_figure,
)
from zoo.errors import ZooError

WIDTH = 1200
"""Pixels of a whole picture."""
_DPI = 100
_INK, _FAINT = "#222222", "#666666"
#: Colours of the lines, by the names of `FAMILIES`.
LINE_COLORS = {"111": "#0072b2", "100": "#d55e00", "110": "#cc79a7", "other": "#e69f00"}
#: Slices are seen along [110], where planes (111) of fcc are lines, and both lattices are columns of atoms.
ALONG = np.array([[-1.0, 1.0, 0.0], [0.0, 0.0, np.sqrt(2.0)], [1.0, 1.0, 0.0]]) / np.sqrt(2.0)
#: Å, of the slice: thick enough for two atoms on top of each other.
SLICE = 9.0


def nucleus(pairs: Sequence[Pair], path: Path, title: str) -> Path:
    """Slices through the last snapshot, the number of crystalline atoms along time, and earlier slices.

    Raises
    ------
    MissingExtraError : matplotlib is not installed.
    ZooError : the picture cannot be written.
    """
    last = pairs[-1]
    big, small, height = 584, 286, 1030
    page = new_figure(WIDTH / _DPI, height / _DPI, _DPI)
    _say(page, 0.5, height - 24, height, title, 19)
    shown = _crystals(pairs)
    for side, (atoms, labels, name) in enumerate(_sides(last)):
        left = 11 + side * (big + 10)
        _say(page, (left + big / 2) / WIDTH, height - 58, height, name, 16)
        image = slice_picture(atoms, labels, middle(last), big)
        _show(page, image, left, height - 74 - big, big, height)
        _legend(page, left, big, height - 74 - big - 20, height, labels, shown)
    earlier = _before(pairs)
    bottom = 18
    for k, found in enumerate(earlier):
        left = WIDTH - 11 - (len(earlier) - k) * (small + 8) + 8
        image = slice_picture(found.clean, found.labels, middle(found), small)
        _show(page, image, left, bottom, small, height)
        text = f"denoised, {found.time:g} ps"
        _say(page, (left + small / 2) / WIDTH, bottom + small + 14, height, text, 13)
    room = WIDTH - 11 - len(earlier) * (small + 8) - 40
    axes = page.add_axes((84 / WIDTH, (bottom + 50) / height, (room - 74) / WIDTH, (small - 50) / height))
    _say(page, (84 + (room - 74) / 2) / WIDTH, bottom + small + 14, height, "atoms in a crystal", 13)
    _curves(axes, pairs)
    return save(page, path)


def dislocations(found: Pair, path: Path, title: str) -> Path:
    """Above a slice through the middle of the cell, below the dislocation lines, raw and denoised.

    Raises
    ------
    MissingExtraError : matplotlib is not installed.
    ZooError : the picture cannot be written.
    """
    assert found.raw_lines is not None and found.lines is not None
    side, height = 584, 1356
    shown = _crystals([found])
    page = new_figure(WIDTH / _DPI, height / _DPI, _DPI)
    _say(page, 0.5, height - 24, height, title, 19)
    columns = zip(_sides(found), (found.raw_lines, found.lines), strict=True)
    for k, ((atoms, labels, name), lines) in enumerate(columns):
        left = 11 + k * (side + 10)
        centre = (left + side / 2) / WIDTH
        _say(page, centre, height - 58, height, name, 16)
        image = slice_picture(atoms, labels, 0.5 * atoms.cell.lengths(), side, disordered=0.8)
        _show(page, image, left, height - 74 - side, side, height)
        _legend(page, left, side, height - 74 - side - 20, height, labels, shown)
        _show(page, lines_picture(atoms, lines, side), left, 62, side, height)
        text = f"{lines.number} dislocation lines, {lines.length / 10:.0f} nm"
        _say(page, centre, 58, height, text, 15)
        parts = [
            (LINE_COLORS[key], f"{FAMILIES[key].lower()} {length / 10:.1f} nm")
            for key, (number, length) in lines.families.items()
            if number
        ]
        _handles(page, centre, 26, height, parts)
    return save(page, path)


# -- parts -----------------------------------------------------------------------------------


def slice_picture(
    atoms: Atoms, labels: IntArray, centre: FloatArray, pixels: int, *, disordered: float = 0.55
) -> FloatArray:
    """RGB (pixels, pixels, 3) of a slice through ``centre`` (Å), as wide as the shortest side of the cell.

    The cell must be orthogonal.  ``disordered`` is the size of such atoms, that of crystalline ones being 1.
    """
    lengths = atoms.cell.lengths()
    width = float(lengths.min())
    arrow = atoms.positions - centre
    arrow -= lengths * np.round(arrow / lengths)
    # The slice is turned against the cell, so its corners may be in the next image.
    shifts = np.array(list(np.ndindex(3, 3, 3))) - 1
    seen_points, seen_labels = [], []
    for shift in shifts:
        seen = (arrow + shift * lengths) @ ALONG.T
        inside = (np.abs(seen[:, :2]) < 0.5 * width).all(1) & (np.abs(seen[:, 2]) < 0.5 * SLICE)
        seen_points.append(seen[inside])
        seen_labels.append(labels[inside])
    points, kinds = np.concatenate(seen_points), np.concatenate(seen_labels)
    radii = _radius(atoms) * np.where(kinds == OTHER, disordered, 1.0)
    return _scene(points, kinds, radii, width, pixels)


def lines_picture(atoms: Atoms, lines: Lines, pixels: int) -> FloatArray:
    """RGB (pixels, pixels, 3) of dislocation lines as tubes in the cell of ``atoms``."""
    empty = atoms[:0]
    empty.set_cell(atoms.cell)
    empty.pbc = atoms.pbc
    tubes, colors = [], []
    for line in lines.lines:
        dense = _dense(line.points, 0.25) % atoms.cell.lengths()
        tubes.append(dense)
        colors.append(np.full(len(dense), list(LINE_COLORS).index(family(line.burgers_vector))))
    if tubes:
        empty += Atoms(np.zeros(sum(map(len, tubes))), np.concatenate(tubes))
    points, edges, width = _viewed(empty)
    kinds = np.concatenate(colors) if colors else np.zeros(0, dtype=np.int64)
    palette = list(LINE_COLORS.values())
    return _scene(points, kinds, np.full(len(points), 0.9), width, pixels, edges, palette)


def family(burgers: npt.ArrayLike) -> str:
    """Which of `FAMILIES` a Burgers vector of bcc (lattice parameters, crystal axes) belongs to."""
    size = np.sort(np.abs(np.asarray(burgers, dtype=np.float64)))
    for key, wanted in (("111", (0.5, 0.5, 0.5)), ("100", (0.0, 0.0, 1.0)), ("110", (0.0, 1.0, 1.0))):
        if np.allclose(size, wanted, atol=1e-3):
            return key
    return "other"


def middle(found: Pair) -> FloatArray:
    """Å, the centre (3,) of the largest crystal of the denoised snapshot, in its periodic cell."""
    index = largest_cluster(found.clean, found.labels)
    if not len(index):
        return np.asarray(0.5 * found.clean.cell.lengths())
    phase = np.exp(2j * np.pi * found.clean.get_scaled_positions()[index]).mean(0)
    return np.asarray((np.angle(phase) / (2 * np.pi)) % 1.0 * found.clean.cell.lengths())


def _scene(
    points: FloatArray,
    kinds: IntArray,
    radii: FloatArray,
    width: float,
    pixels: int,
    edges: FloatArray | None = None,
    palette: Sequence[str] = COLORS,
) -> FloatArray:
    """Shaded spheres around the origin of the view, which is ``width`` Å wide, and cell edges."""
    size = 2 * pixels
    scale = size / width
    image, depth = np.ones((size, size, 3)), np.full((size, size), -np.inf)
    colors = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in palette])
    screen = _to_screen(points, np.zeros(3), scale, size) if len(points) else np.zeros((0, 3))
    for radius in np.unique(radii):
        chosen = radii == radius
        _draw(image, depth, screen[chosen], radius * scale, kinds[chosen], colors)
    if edges is not None:
        line = _to_screen(edges, np.zeros(3), scale, size)
        grey = np.array([[0.35, 0.35, 0.35]])
        _draw(image, depth, line, max(1.5, 0.0018 * size), np.zeros(len(line), np.int64), grey, flat=True)
        image = _shade_by_depth(image, depth, scale)
    return np.asarray(image.reshape(pixels, 2, pixels, 2, 3).mean(axis=(1, 3)))


def _viewed(atoms: Atoms) -> tuple[FloatArray, FloatArray, float]:
    """Positions and cell edges as seen, around the origin, and the width of the view in Å."""
    axes = _camera()
    edges = _cell_edges(atoms) @ axes.T
    low, high = edges.min(0), edges.max(0)
    centre = 0.5 * (low + high)
    width = 1.04 * float((high - low)[:2].max())
    return (atoms.get_positions(wrap=True) @ axes.T - centre), edges - centre, width


def _dense(points: FloatArray, step: float) -> FloatArray:
    """The same line with a point at least every ``step`` Å."""
    parts = [points[:1]]
    for a, b in pairwise(points):
        n = max(1, int(np.ceil(np.linalg.norm(b - a) / step)))
        parts.append(a + (b - a) * (np.arange(1, n + 1) / n)[:, None])
    return np.concatenate(parts)


def _radius(atoms: Atoms) -> float:
    """Å, a little less than half the distance of neighbours in close packing."""
    return 0.46 * float(np.cbrt(np.sqrt(2.0) * atoms.get_volume() / len(atoms)))


def _sides(found: Pair) -> list[tuple[Atoms, IntArray, str]]:
    return [
        (found.raw, found.raw_labels, "raw (adaptive CNA)"),
        (found.clean, found.labels, f"denoised ({found.by})"),
    ]


def _crystals(pairs: Sequence[Pair]) -> list[int]:
    """The structures that occur, crystals first, disorder last."""
    there = {int(k) for found in pairs for k in np.unique(np.append(found.labels, found.raw_labels))}
    return [*sorted(there - {OTHER}), OTHER]


def _before(pairs: Sequence[Pair]) -> Sequence[Pair]:
    """Two snapshots from before the last: the first, and one half way."""
    return [pairs[0], pairs[len(pairs) // 2]] if len(pairs) > 2 else list(pairs[:-1])


def _curves(axes: Any, pairs: Sequence[Pair]) -> None:
    times = [found.time for found in pairs]
    for label in (FCC, HCP, BCC):
        for style, values in (
            ("--", [int((found.raw_labels == label).sum()) for found in pairs]),
            ("-", [int((found.labels == label).sum()) for found in pairs]),
        ):
            axes.plot(times, values, style, marker="o", markersize=4, linewidth=1.8, color=COLORS[label])
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=COLORS[k], linewidth=4, label=STRUCTURES[k]) for k in (FCC, HCP, BCC)]
    handles += [
        Line2D([], [], color=_FAINT, linestyle=style, label=label)
        for style, label in (("-", "denoised"), ("--", "raw"))
    ]
    axes.legend(handles=handles, fontsize=12, frameon=False, loc="upper left")
    axes.set_xlabel("ps", fontsize=12)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.03)
    axes.tick_params(labelsize=12)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _legend(
    page: Any, left: float, width: float, y: float, height: float, labels: IntArray, shown: Sequence[int]
) -> None:
    parts = []
    for k in shown:
        name = STRUCTURES[k] if k != OTHER else "disordered"
        parts.append((COLORS[k], f"{name} {int((labels == k).sum()):,}"))
    _handles(page, (left + width / 2) / WIDTH, y, height, parts)


def _handles(page: Any, x: float, y: float, height: float, parts: Sequence[tuple[str, str]]) -> None:
    """A centred row of coloured dots with text."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker="o",
            markersize=11,
            color=color,
            markeredgecolor=_FAINT,
            label=text,
        )
        for color, text in parts
    ]
    page.legend(
        handles=handles, loc="center", bbox_to_anchor=(x, y / height), ncols=max(1, len(handles)),
        frameon=False, fontsize=13, labelcolor=_INK, handletextpad=-0.2, columnspacing=0.8,
    )  # fmt: skip


def _say(page: Any, x: float, y: float, height: float, text: str, size: float) -> None:
    page.text(x, y / height, text, ha="center", va="center", fontsize=size, color=_INK)


def _show(page: Any, image: FloatArray, left: float, bottom: float, side: float, height: float) -> None:
    axes = page.add_axes((left / WIDTH, bottom / height, side / WIDTH, side / height))
    axes.imshow(image, interpolation="none", aspect="auto")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#dddddd")


def _palette() -> npt.NDArray[np.uint8]:
    """(256, 3): greys, and of every colour shades to black, tints to white and the highlights between."""
    colors = list(dict.fromkeys([*COLORS[1:4], *LINE_COLORS.values()]))
    full = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colors], dtype=np.float64)
    each = 192 // len(full)
    dark, light = each // 2, each - each // 2
    shades = np.linspace(0.25, 1.05, dark)[None, :, None] * full[:, None]
    tints = full[:, None] + np.linspace(0.07, 0.93, light)[None, :, None] * (255 - full[:, None])
    greys = np.repeat(np.linspace(20, 255, 256 - each * len(full))[:, None], 3, axis=1)
    mixed = np.concatenate([shades.reshape(-1, 3), tints.reshape(-1, 3), greys])
    return np.asarray(np.clip(np.round(mixed), 0, 255), dtype=np.uint8)


def save(page: Any, path: Path) -> Path:
    """Write a picture with a palette of 256 colours: a third of the bytes, and nobody sees it.

    The palette is made of what is drawn with, since one made from the picture drops colours that are rare.

    Raises
    ------
    ZooError : it cannot be written.
    """
    from PIL import Image

    page.canvas.draw()
    pixels = np.asarray(page.canvas.buffer_rgba())[..., :3].astype(np.int64)
    packed, index = np.unique(pixels @ [65536, 256, 1], return_inverse=True)
    colors = packed[:, None] // [65536, 256, 1] % 256
    palette = _palette()
    nearest = cKDTree(palette).query(colors)[1].astype(np.uint8)
    small = Image.fromarray(nearest[index.ravel()].reshape(pixels.shape[:2]))
    small.putpalette(palette.ravel().tolist())
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            small.save(partial, format="PNG", optimize=True)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ZooError(f"cannot write the picture {path}: {error.strerror or error}") from error
    return path
