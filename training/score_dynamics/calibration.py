"""The noise of a propagator's sampler: its levels, and how wide it starts, so that steps spread as in MD.

Levels are fitted to the solver, see `ladder`.  A network that was not fitted perfectly leaves a little of the
noise, and steps spread a few per cent too widely.  Within a basin that does not show, but tails decide how
often a barrier is crossed: 5 % more width made the relaxation of psi of alanine dipeptide a quarter too fast.
Of a Gaussian, samples spread in proportion to the noise that the sampler starts from, so one number,
``noise_scale`` of the config, puts the width right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.score_dynamics.ladder import MOST_LEVELS, WIDTHS, error, fitted_levels
from training.score_dynamics.transitions import Transitions, local_displacements
from zoo.score_dynamics import ConditionalDenoiser, ScoreDynamics, ScoreDynamicsConfig

#: ps; noise of longer steps is not fitted.  What is right for steps within a basin makes those into another
#: one too rare: a third too rare in alanine dipeptide at 10 ps, where one step in thirty is such a step.
LONGEST_LAG = 5.0

#: Two widths are tried, and what is between or near them is interpolated; nothing farther away is believed.
TRIED = (0.9, 1.0)
LIMITS = (0.8, 1.1)
N_PAIRS, N_DRAWS = 8000, 4
#: Fewer pairs than this do not tell a width to a few per cent.
LEAST_PAIRS = 1000


def calibrated(
    config: Mapping[str, Any], denoiser: ConditionalDenoiser, validation: Transitions, seed: int = 0
) -> dict[str, Any]:
    """The ``config`` of a propagator that was just trained, with its ``levels`` and its `noise_scale`."""
    found = ScoreDynamicsConfig.from_dict(dict(config))
    if 2 <= found.n_levels <= MOST_LEVELS and found.sigma_max > max(WIDTHS):
        fitted = replace(found, levels=fitted_levels(found.n_levels, found.sigma_max, found.solver))
        if error(fitted.sigmas(), found.solver) < error(found.sigmas(), found.solver):
            found = fitted
    found = replace(found, noise_scale=noise_scale(found, denoiser, validation, seed=seed))
    return {**config, "levels": list(found.levels), "noise_scale": found.noise_scale}


def noise_scale(
    config: ScoreDynamicsConfig,
    denoiser: ConditionalDenoiser,
    data: Transitions,
    n_pairs: int = N_PAIRS,
    seed: int = 0,
) -> float:
    """The factor with which a step is longer than that of MD from the same frame half of the time.

    The length of a step is the root-mean-square displacement, in the body frame, of the atoms other than
    hydrogen: methyl groups turn so often that they would decide alone.  Ranks, for a few crossings of
    barriers are rare and long, and frames differ in how far steps go.

    Parameters
    ----------
    denoiser : trained; it is left without gradients.
    data : pairs of frames of the model's sites that were not trained on, for of those that were, steps spread
        less; ``n_pairs`` of them are drawn.

    Returns
    -------
    Rounded to 0.001, within `LIMITS`; that of the config where pairs are fewer than `LEAST_PAIRS`, or wider
    noise does not make longer steps.
    """
    if len(data) < LEAST_PAIRS:
        return config.noise_scale
    rng = np.random.default_rng(seed)
    chosen = torch.from_numpy(rng.choice(len(data), min(n_pairs, len(data)), replace=False))
    before, after = (each.double() for each in data.pairs(chosen))
    models = [ScoreDynamics(replace(config, noise_scale=scale), denoiser) for scale in TRIED]
    wanted = _lengths(models[0], before, after).repeat(N_DRAWS)
    before = before.repeat(N_DRAWS, 1, 1)
    # of both from the same random numbers
    moved = (torch.from_numpy(each.step(before.numpy(), np.random.default_rng(seed))) for each in models)
    low, high = (
        float((_lengths(model, before, there) > wanted).double().mean())
        for model, there in zip(models, moved, strict=True)
    )
    if low == 1.0 or high == 0.0:  # all longer, or none
        return LIMITS[0] if low == 1.0 else LIMITS[1]
    if not low < high:
        return config.noise_scale
    found = TRIED[0] + (TRIED[1] - TRIED[0]) * (0.5 - low) / (high - low)
    return round(float(np.clip(found, *LIMITS)), 3)


def _lengths(model: ScoreDynamics, before: Tensor, after: Tensor) -> Tensor:
    """(n,) Å, root-mean-square displacement of the atoms other than hydrogen, in the body frame."""
    assert isinstance(model.denoiser, ConditionalDenoiser)
    heavy = [k for k, element in enumerate(model.molecule.site_elements) if element != "H"]
    _, y = local_displacements(model.denoiser, before, after)
    return y[:, heavy].square().sum(-1).mean(-1).sqrt()
