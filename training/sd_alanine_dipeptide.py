"""Recipe of the checkpoint ``sd-alanine-dipeptide``: from segments of MD to a folder, on CPU cores.

    python -m training.reference_md alanine-dipeptide -o md --segments 40 --length 400
    python -m training.reference_md.shots alanine-dipeptide -o shots --series 24
    python -m training.sd_alanine_dipeptide --data md shots --precision bf16 --threads 2

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
    module="training.sd_alanine_dipeptide",
    name="sd-alanine-dipeptide",
    version="1.5.0",
    molecule=partial(molecule, "all"),
    backbone="site-mlp",
    architecture={"n_sites": 22, "width": 384, "depth": 4, "n_frequencies": 8},
    n_steps=40000,
    # With eight levels held-out torsions come out as well as with twelve; sixteen walkers at once are the
    # best compromise between one walker, which always pays for all slots, and many.
    sampler={"n_levels": 8, "batch_slots": 16},
)


if __name__ == "__main__":
    sys.exit(main(RECIPE, __doc__))
