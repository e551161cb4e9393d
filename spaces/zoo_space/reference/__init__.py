"""Maps of reference MD, to put beside a rollout; made by ``python -m training.space_reference``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

#: Of a map, along phi and along psi.
BINS = 45


@dataclass(frozen=True)
class Reference:
    """``counts`` (BINS, BINS) over (phi, psi) from -180 degrees; ``text`` says what was counted."""

    counts: npt.NDArray[np.float64]
    text: str


@cache
def _all() -> list[dict[str, Any]]:
    folder = files(__name__)
    return [
        json.loads(each.read_text(encoding="utf-8"))
        for each in sorted(folder.iterdir(), key=lambda f: f.name)
        if each.name.endswith(".json")
    ]


def reference_for(checkpoint: str) -> Reference | None:
    """MD of the molecule that a checkpoint moves, if there is any here."""
    for data in _all():
        if checkpoint in data["checkpoints"]:
            return Reference(np.array(data["counts"], dtype=np.float64), data["text"])
    return None
