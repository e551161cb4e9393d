"""Recipe of the checkpoint ``denoiser-silica``: quartz and cristobalite, alpha and beta, on MACE blocks.

    python -m training.denoiser_silica                      # build/denoiser-silica
    python -m training.denoiser_silica --out my-folder --steps 300   # a quick look

From the published crystals alone (`training.polymorphs`), with the tetrahedra of the alpha phases turned by
any angle that they have below the transition; cut, joined and in part melted.  Prints progress, saves its
state every two minutes and continues from it when run again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from training.denoiser_recipe import DenoiserRecipe
from training.denoiser_recipe import main as run
from training.denoising import DenoisingConfig
from training.loop import LoopConfig
from training.polymorph_structures import SILICA_MIX, draw_silica
from training.polymorphs import SILICA

RECIPE = DenoiserRecipe(
    name="denoiser-silica",
    version="1.1.0",
    lattices=tuple(SILICA),
    draw=draw_silica,
    mix=SILICA_MIX,
    backbone="mace",
    # Which way a tetrahedron is turned for good, and not just for now, is known from many of them: three
    # layers see as far as 11 Å.
    architecture={"n_layers": 3, "n_channels": 24},
    naming=0.3,
    # In parts of the short bond of silicon and oxygen, across which oxygen moves far.
    data=DenoisingConfig(largest_noise=0.22),
    loop=LoopConfig(n_steps=1600),
)


def main(argv: Sequence[str] | None = None) -> int:
    return run(RECIPE, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
