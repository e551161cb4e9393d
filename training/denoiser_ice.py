"""Recipe of the checkpoint ``denoiser-ice``: the oxygens of seven ices, on MACE blocks.

    python -m training.denoiser_ice                      # build/denoiser-ice
    python -m training.denoiser_ice --out my-folder --steps 300   # a quick look

Ih, Ic and their stackings, II, III, VI, VII and the empty clathrate sI, from the published crystals alone
(`training.polymorphs`); cut, joined and in part melted.  Prints progress, saves its state every two minutes
and continues from it when run again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from training.denoiser_recipe import DenoiserRecipe
from training.denoiser_recipe import main as run
from training.loop import LoopConfig
from training.polymorph_structures import MIX, draw_ice
from training.polymorphs import ICE

RECIPE = DenoiserRecipe(
    name="denoiser-ice",
    version="1.1.0",
    lattices=tuple(ICE),
    draw=draw_ice,
    mix=MIX,
    backbone="mace",
    acts_on="O",
    loop=LoopConfig(n_steps=1600),
)


def main(argv: Sequence[str] | None = None) -> int:
    return run(RECIPE, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
