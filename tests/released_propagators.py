"""What the released propagators are asked in tests, and where their golden outputs are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from zoo.molecules.start import load_start
from zoo.registry import records
from zoo.score_dynamics import ScoreDynamics

NAMES = [record.name for record in records() if record.kind == "score-dynamics"]
PDB = Path(__file__).parent / "data" / "molecules" / "alanine-dipeptide.pdb"


def golden_path(name: str) -> Path:
    return Path(__file__).parent / "data" / f"golden-{name}.json"


def start_positions(model: ScoreDynamics) -> np.ndarray:
    """(n_sites, 3) Å."""
    return load_start(PDB, model.molecule)[0]


def golden(model: ScoreDynamics) -> dict[str, Any]:
    """Positions after one and after five steps with keyed noise, and the score of the first step."""
    x = start_positions(model)
    states = [x]
    for step in range(1, 6):
        states.append(model.propose(states[-1][None], [0], model.noise(7, [0], step, 0))[0])
    return {
        "weights_sha256": model.weights_sha256,
        "after_1": np.round(states[1], 5).tolist(),
        "after_5": np.round(states[5], 5).tolist(),
        "score": np.round(model.score(states[1], x, 0.2), 4).tolist(),
    }
