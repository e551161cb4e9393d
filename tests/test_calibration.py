"""The width of the noise that steps start from: what it does, its density, and how it is found again."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import zoo
from training.score_dynamics.calibration import LEAST_PAIRS, LIMITS, noise_scale
from training.score_dynamics.transitions import Transitions
from zoo import diffusion
from zoo.errors import CheckpointError
from zoo.molecules.start import load_start
from zoo.score_dynamics import ConditionalDenoiser, ScoreDynamics, ScoreDynamicsConfig

NAME = "sd-alanine-dipeptide-cg"


@pytest.fixture(scope="module")
def model() -> ScoreDynamics:
    return ScoreDynamics.from_pretrained(NAME)


def scaled(model: ScoreDynamics, scale: float) -> ScoreDynamics:
    return ScoreDynamics(replace(model.config, noise_scale=scale), model.denoiser)


def steps_from(model: ScoreDynamics, x: np.ndarray, seed: int) -> np.ndarray:
    return model.step(x, np.random.default_rng(seed))


def frames(model: ScoreDynamics, n: int) -> np.ndarray:
    """(n, n_sites, 3) Å: where the model itself goes from one structure."""
    (x,) = load_start(Path(zoo.__file__).parent / "data" / "alanine-dipeptide.pdb", model.molecule)
    now = np.repeat(x[None], n, 0)
    for seed in range(3):
        now = steps_from(model, now, seed)
    return now


def pairs(before: np.ndarray, after: np.ndarray) -> Transitions:
    both = torch.from_numpy(np.stack([before, after], 1).reshape(-1, *before.shape[1:])).float()
    return Transitions(both, 2 * torch.arange(len(before)), 1, 1.0)


@pytest.mark.slow
def test_the_width_that_made_steps_is_found(model: ScoreDynamics) -> None:
    scale = 0.88  # neither that of the checkpoint nor in the middle of those that are tried
    before = frames(model, 1500)
    data = pairs(before, steps_from(scaled(model, scale), before, 9))
    assert isinstance(model.denoiser, ConditionalDenoiser)
    # ranks of 1500 steps among four of the model each: a standard deviation is about 0.01
    assert noise_scale(model.config, model.denoiser, data) == pytest.approx(scale, abs=0.05)


@pytest.mark.slow
def test_a_width_far_away_is_not_believed(model: ScoreDynamics) -> None:
    before = frames(model, LEAST_PAIRS)
    assert isinstance(model.denoiser, ConditionalDenoiser)
    still = pairs(before, before + 1e-3 * np.random.default_rng(0).standard_normal(before.shape))
    assert noise_scale(model.config, model.denoiser, still, n_pairs=100) == LIMITS[0]


def test_few_pairs_change_nothing(model: ScoreDynamics) -> None:
    x = np.zeros((LEAST_PAIRS - 1, model.molecule.n_sites, 3))
    assert isinstance(model.denoiser, ConditionalDenoiser)
    assert noise_scale(replace(model.config, noise_scale=0.97), model.denoiser, pairs(x, x)) == 0.97


def test_steps_spread_less_and_turn_as_before(model: ScoreDynamics) -> None:
    x = np.repeat(frames(model, 1), 128, 0)
    wide, narrow = (steps_from(scaled(model, scale), x, 5) for scale in (1.0, 0.8))

    def spread(moved: np.ndarray) -> float:
        inside = moved - moved.mean(1, keepdims=True)
        distances = np.linalg.norm(inside[:, :, None] - inside[:, None], axis=-1)
        return float(distances.std(0)[np.triu_indices(x.shape[1], 4)].mean())

    assert 0.6 < spread(narrow) / spread(wide) < 0.95
    # the motion of the whole molecule has its own numbers
    np.testing.assert_allclose(wide.mean(1), narrow.mean(1), atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 0.9])
@pytest.mark.parametrize("centre", [True, False])
def test_the_density_of_a_gaussian_is_that_of_its_samples(scale: float, centre: bool) -> None:
    """D of N(m, s^2) data is linear, so samples from noise k times as wide are N(m, (k s)^2)."""
    s, mean = 0.5, 0.3 if centre else 0.0

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        v = sigma.reshape(-1, 1) ** 2
        return (s**2 * x + v * mean) / (s**2 + v)

    low = 0.01
    sigmas = diffusion.sigma_ladder(200, low, 20.0, math.inf)[:-1]
    x = torch.tensor([[0.1, -0.4], [1.0, 0.2]], dtype=torch.float64)
    found = diffusion.log_prob(denoise, x, sigmas, sigma_data=s, centre=centre, noise_scale=scale)
    width = scale * math.sqrt(s**2 + low**2)
    expected = torch.distributions.Normal(mean, width).log_prob(x).sum(1)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_widths_that_are_none_are_refused(model: ScoreDynamics, scale: float) -> None:
    with pytest.raises(CheckpointError, match="noise_scale"):
        scaled(model, scale)
    with pytest.raises(ValueError, match="noise_scale"):
        diffusion.log_prob(lambda x, s: x, torch.zeros(1, 2), torch.tensor([2.0, 1.0]), noise_scale=scale)


def test_it_is_kept_and_left_out_where_it_is_one(model: ScoreDynamics) -> None:
    narrow = replace(model.config, noise_scale=0.94)
    assert ScoreDynamicsConfig.from_dict(narrow.to_dict()) == narrow
    assert "noise_scale" not in replace(model.config, noise_scale=1.0).to_dict()
