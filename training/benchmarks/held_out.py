"""MD that a checkpoint was not trained on, by what its metrics say: figures on training data are none."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Sequence
from pathlib import Path

from training.reference_md.segments import Segment, read_segments
from zoo.errors import ZooError
from zoo.score_dynamics import ScoreDynamics


def trained_on(model: ScoreDynamics) -> set[str]:
    """Segments, shots and blocks that any training of a checkpoint used; validation counts.

    Names; of series a pattern, ``shot-000??``, as recipes write them down.  Trainings that do not say what
    they used are told of on stderr.
    """
    training = model.metrics.get("sections", {}).get("training", {})
    parts = [each.get("segments", {}) for each in (training, *training.get("earlier", []))]
    silent = sum(not part for part in parts) if training else 0
    if silent:
        print(
            f"note: {silent} of {len(parts)} trainings of {model.name} do not say which segments they used",
            file=sys.stderr,
        )
    names = (name for part in parts for key, these in part.items() if key != "held_out" for name in these)
    return {name.partition(":")[0] for name in names}


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
    trained = trained_on(model)
    known = sorted(name for name in set(names) if any(fnmatch.fnmatch(name, one) for one in trained))
    if known:
        raise ZooError(
            f"{model.name} was trained on segments of these names: {', '.join(known)}; leave them out, or "
            "rename the files if this is other MD"
        )
    return segments
