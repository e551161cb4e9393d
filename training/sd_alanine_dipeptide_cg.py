"""Recipe of the checkpoint ``sd-alanine-dipeptide-cg``: from segments of MD to a folder, on CPU cores.

    python -m training.reference_md alanine-dipeptide -o md --segments 40 --length 400
    python -m training.reference_md.shots alanine-dipeptide -o shots --series 24
    python -m training.sd_alanine_dipeptide_cg --data md shots --precision bf16 --threads 2

Prints progress and samples per second, draws a curve, saves its state every two minutes and continues
from it when run again; an interrupted run ends with bit for bit the same weights as an uninterrupted
one.  Whole segments are held out, never single frames.
"""

from __future__ import annotations

import sys
from functools import partial

from training.score_dynamics.alanine_dipeptide import molecule, recipe_of
from training.score_dynamics.recipe import main

RECIPE = recipe_of(
    module="training.sd_alanine_dipeptide_cg",
    name="sd-alanine-dipeptide-cg",
    version="1.5.0",
    molecule=partial(molecule, "heavy"),
    backbone="site-mlp",
    architecture={"n_sites": 10, "width": 256, "depth": 3, "n_frequencies": 8},
    n_steps=20000,
    # As with all atoms: eight levels do as well as twelve, and one walker pays for all slots.
    sampler={"n_levels": 8, "batch_slots": 16},
)


if __name__ == "__main__":
    sys.exit(main(RECIPE, __doc__))
