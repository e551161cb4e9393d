"""Recipe of the checkpoint ``sd-alkanes``: one model of all alkanes, from the MD of five of them.

    for name in ethane propane pentane hexane heptane; do
        python -m training.reference_md $name -o md/$name --segments 4 --length 500
    done
    python -m training.sd_alkanes --data md/* --threads 2

Butane and octane are never looked at here: they are what the checkpoint is tested on.  Prints progress,
draws a curve, saves its state every two minutes and continues from it when run again.
"""

from __future__ import annotations

import sys

from training.score_dynamics.family_recipe import FamilyRecipe, main

RECIPE = FamilyRecipe(
    module="training.sd_alkanes",
    name="sd-alkanes",
    version="1.0.0",
    forcefield="OPLS-AA, TIP3P, 300 K, LangevinMiddle 0.1/ps, 4 fs",
    architecture={
        "elements": ["H", "C"],
        "width": 96,
        "depth": 3,
        "heads": 8,
        "vectors": 16,
        "separations": 6,
        "pair_width": 32,
        "n_frequencies": 8,
    },
    # Longer ones have more to teach, and cost more.
    batch_sizes={"ethane": 16, "propane": 32, "pentane": 64, "hexane": 64, "heptane": 80},
    segments=("segment-000", "segment-002", "segment-003"),
    validation=(("hexane", "segment-003"),),
    n_steps=24000,
    sampler={"n_levels": 8, "batch_slots": 16},
)


if __name__ == "__main__":
    sys.exit(main(RECIPE, __doc__))
