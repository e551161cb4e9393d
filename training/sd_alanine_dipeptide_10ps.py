"""Recipe of the checkpoint ``sd-alanine-dipeptide-10ps``: all atoms, ten picoseconds in one step.

    python -m training.reference_md alanine-dipeptide -o md --segments 40 --length 400
    python -m training.reference_md.shots alanine-dipeptide -o shots --series 24
    python -m training.sd_alanine_dipeptide_10ps --data md shots --precision bf16 --threads 2

Prints progress and samples per second, draws a curve, saves its state every two minutes and continues
from it when run again; an interrupted run ends with bit for bit the same weights as an uninterrupted
one.  Whole segments are held out, never single frames.
"""

from __future__ import annotations

import sys
from functools import partial

from training.score_dynamics.alanine_dipeptide import molecule, recipe_of
from training.score_dynamics.packed import NoiseConfig
from training.score_dynamics.recipe import main

RECIPE = recipe_of(
    module="training.sd_alanine_dipeptide_10ps",
    name="sd-alanine-dipeptide-10ps",
    version="1.2.0",
    molecule=partial(molecule, "all"),
    backbone="site-mlp",
    architecture={"n_sites": 22, "width": 384, "depth": 4, "n_frequencies": 8},
    n_steps=40000,
    lag_time=10.0,
    # Displacements are a fifth greater than those of 1 ps and more often lead to another basin.
    noise=NoiseConfig(sigma_mean=-1.6, sigma_std=1.4),
    # Not fitted (`calibration.LONGEST_LAG`): sixteen of the usual levels make as many jumps as forty.
    sampler={"sigma_max": 4.0, "n_levels": 16, "batch_slots": 16},
)


if __name__ == "__main__":
    sys.exit(main(RECIPE, __doc__))
