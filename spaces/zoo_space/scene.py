"""What the viewer draws, packed for the way to the browser."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Panel:
    """Frames (n_atoms, 3) in Å, and for each the index of every atom into the palette."""

    title: str
    frames: list[Array]
    kinds: list[npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Scene:
    """Panels side by side with linked cameras; those of several frames follow one slider.

    Parameters
    ----------
    frame_names : of the frames of the longest panel.
    palette : (name, colour, whether it occurs) of each kind.
    cell : (3, 3) Å, rows are lattice vectors, zero where not periodic; None for no box.
    radius : of a sphere, Å.
    bonds : pairs of atoms; with bonds, sticks are drawn.
    note : told beside the picture, for instance that not all is shown.
    """

    panels: list[Panel]
    frame_names: list[str]
    palette: list[tuple[str, str, bool]]
    cell: Array | None
    radius: float
    bonds: list[tuple[int, int]] = field(default_factory=list)
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """For the component: positions as base64 of float32, kinds as base64 of bytes."""
        centre = np.concatenate([panel.frames[0] for panel in self.panels]).mean(0)
        return {
            "panels": [
                {
                    "title": panel.title,
                    "frames": [_packed((x - centre).astype("<f4")) for x in panel.frames],
                    "kinds": [_packed(k.astype(np.uint8)) for k in panel.kinds],
                }
                for panel in self.panels
            ],
            "frame_names": self.frame_names,
            "palette": [
                {"name": name, "color": color, "present": present} for name, color, present in self.palette
            ],
            "cell": None if self.cell is None else self.cell.round(4).tolist(),
            "origin": (-centre).round(4).tolist(),
            "radius": round(self.radius, 4),
            "bonds": [[int(a), int(b)] for a, b in self.bonds],
            "note": self.note,
        }


def _packed(values: npt.NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
