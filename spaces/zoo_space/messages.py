"""What goes to the workers and comes back; light to import, so that the page is up before torch would be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo_space.limits import Limits
from zoo_space.scene import Scene

Array = npt.NDArray[np.float64]

#: In place of a checkpoint's name.
AUTOMATIC = "automatic"


@dataclass(frozen=True)
class Progress:
    """Share done, what is being done, and the counts over (phi, psi) so far where there are any."""

    share: float
    text: str
    counts: Array | None = None


@dataclass(frozen=True)
class DenoiseRequest:
    """``frame`` counts from 1, -1 is the last; ``out`` is where the files go."""

    path: Path
    checkpoint: str
    steps: int
    frame: int
    species: str
    out: Path
    limits: Limits


@dataclass(frozen=True)
class Denoised:
    """``summary`` is plain JSON; ``curve`` the mean displacement (Å) of each step."""

    summary: dict[str, Any]
    scene: Scene
    curve: list[float]
    structure: Path


@dataclass(frozen=True)
class RolloutRequest:
    """``out`` is where the files go."""

    path: Path
    checkpoint: str
    steps: int
    walkers: int
    seed: int
    out: Path
    limits: Limits


@dataclass(frozen=True)
class RolledOut:
    """``summary`` is plain JSON; ``angles`` (n_frames, 2) in degrees are of the walker that is shown."""

    summary: dict[str, Any]
    scene: Scene
    counts: Array | None
    angles: Array | None
    files: list[Path]
    checkpoint: str
    warning: str
