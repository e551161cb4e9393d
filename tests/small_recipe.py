"""A recipe so small that a test can run it, and a structure for its MD."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mdtraj
import numpy as np

from training.loop import LoopConfig
from training.score_dynamics.packed import NoiseConfig
from training.sd_alanine_dipeptide_cg import RECIPE

MD = Path(__file__).parent.parent / "training" / "reference_md"
SMALL = replace(
    RECIPE,
    name="test-cg",
    version="0.0.1",
    architecture={"n_sites": 10, "width": 16, "depth": 1, "n_frequencies": 2},
    hold_out=(),
    validation=("segment-001",),
    noise=NoiseConfig(batch_size=32),
    settled=None,
    stays=None,
)
LOOP = LoopConfig(n_steps=6, warmup=2, log_every=2, learning_rate=1e-3)


def start() -> np.ndarray:
    """(22, 3) nm."""
    return mdtraj.load_pdb(str(MD / "ace-ala-nme.pdb")).xyz[0].astype(float)
