"""Recipe of the checkpoint ``denoiser-binaries``: ordered compounds of two species, on MACE blocks.

    python -m training.denoiser_binaries                      # build/denoiser-binaries
    python -m training.denoiser_binaries --out my-folder --steps 300   # a quick look
    python -m training.denoiser_binaries --mace-model 2023-12-03-mace-128-L1_epoch-199.model --elements Ni Al

L1_0, L1_2, B2, zincblende, rocksalt and wurtzite, with antisites, vacancies, surfaces, grain boundaries and
packings without order, from geometry alone.  Prints progress, saves its state every two minutes and continues
from it when run again; an interrupted run ends with bit for bit the same weights as an uninterrupted one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from training.denoiser_recipe import DenoiserRecipe
from training.denoiser_recipe import main as run
from training.lattices import COMPOUND_MIX, COMPOUNDS, draw_compound
from training.loop import LoopConfig

RECIPE = DenoiserRecipe(
    name="denoiser-binaries",
    version="1.2.0",
    lattices=tuple(COMPOUNDS),
    draw=draw_compound,
    mix=COMPOUND_MIX,
    backbone="mace",
    loop=LoopConfig(n_steps=1600),
)


def main(argv: Sequence[str] | None = None) -> int:
    return run(RECIPE, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
