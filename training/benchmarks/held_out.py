"""MD that a checkpoint was not trained on, by what its metrics say: figures on training data are none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from training.reference_md.segments import Segment, read_segments
from zoo.errors import ZooError
from zoo.score_dynamics import ScoreDynamics


def trained_on(model: ScoreDynamics) -> set[str]:
    """Segments, shots and blocks that any training of a checkpoint used, by name; validation counts."""
    training = model.metrics.get("sections", {}).get("training", {})
    parts = [each.get("segments", {}) for each in (training, *training.get("earlier", []))]
    return {name for part in parts for key, names in part.items() if key != "held_out" for name in names}


def held_out_segments(model: ScoreDynamics, folders: Sequence[Path], names: Sequence[str]) -> list[Segment]:
    """Segments by name, from folders of MD.

    Raises
    ------
    ZooError : one is missing, or the checkpoint was trained on it or chosen by it.
    """
    segments = [s for folder in folders for s in read_segments(folder) if s.name in names]
    missing = sorted(set(names) - {s.name for s in segments})
    if missing:
        raise ZooError(f"no segment {', '.join(missing)} in {', '.join(map(str, folders))}")
    known = sorted(trained_on(model) & set(names))
    if known:
        these = ", ".join(known)
        raise ZooError(f"{model.name} was trained on segments of these names: {these}; leave them out")
    return segments
