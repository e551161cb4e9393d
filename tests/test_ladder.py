"""Noise levels that are fitted to the solver: what they do to Gaussian data, and to a propagator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from training.score_dynamics.calibration import calibrated
from training.score_dynamics.ladder import WIDTHS, fitted_levels, widths_of_samples
from training.score_dynamics.transitions import Transitions
from zoo import diffusion
from zoo.errors import CheckpointError
from zoo.score_dynamics import ConditionalDenoiser, ScoreDynamics, ScoreDynamicsConfig


def ladder(levels: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor([*levels, 0.0], dtype=torch.float64)


@pytest.fixture(scope="module")
def model() -> ScoreDynamics:
    return ScoreDynamics.from_pretrained("sd-alanine-dipeptide-cg")


def test_two_levels_are_worked_out_by_hand() -> None:
    """D of the start is g x, so x goes to (1 + g) x; then Euler from 3 to s, with D as it was, then to D."""
    w, s = 0.5, 0.4
    g = w**2 / (w**2 + 9)
    at_s = 3.0 * (s / 3 * (1 + g) + (1 - s / 3) * g)
    expected = at_s * w**2 / (w**2 + s**2) / w
    found = widths_of_samples(ladder((3.0, s)), "dpm_multistep", [w])
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_many_levels_leave_widths_as_they_are() -> None:
    sigmas = diffusion.sigma_ladder(400, 1e-4, 200.0)
    found = widths_of_samples(sigmas, "dpm_multistep")
    torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=2e-3)


@pytest.mark.parametrize(("n", "sigma_max", "worst"), [(6, 3.0, 0.012), (8, 3.0, 0.002), (10, 4.0, 0.001)])
def test_fitted_levels_keep_widths_and_others_do_not(n: int, sigma_max: float, worst: float) -> None:
    levels = fitted_levels(n, sigma_max, "dpm_multistep")
    assert len(levels) == n and levels[0] == sigma_max
    assert (widths_of_samples(ladder(levels), "dpm_multistep") - 1).abs().max() < worst
    usual = widths_of_samples(diffusion.sigma_ladder(n, 0.01, sigma_max), "dpm_multistep")
    assert (usual - 1).abs().max() > 10 * worst


def test_samples_of_a_gaussian_are_as_wide_as_it_is() -> None:
    """Drawn, not computed; and at a mean that is not zero."""
    levels = fitted_levels(8, 3.0, "dpm_multistep")
    w = torch.tensor(WIDTHS, dtype=torch.float64)
    start = 3.0 * torch.from_numpy(np.random.default_rng(0).standard_normal((20000, len(w))))

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        v = sigma[:, None] ** 2
        return (w**2 * x + v * 0.3) / (w**2 + v)

    x = diffusion.dpm_multistep(denoise, start, ladder(levels), centre=True)
    torch.testing.assert_close(x.std(0) / w, torch.ones_like(w), rtol=0, atol=0.02)
    torch.testing.assert_close(x.mean(0), torch.full_like(w, 0.3), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 3.0, "ancestral"), "fresh noise"),
        ((1, 3.0, "dpm_multistep"), "at least two"),
        ((8, 0.9, "dpm_multistep"), "above all widths"),
    ],
)
def test_levels_that_cannot_be_fitted_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fitted_levels(*arguments)


def test_a_propagator_goes_down_its_levels(model: ScoreDynamics) -> None:
    config = model.config
    same = tuple(
        diffusion.sigma_ladder(config.n_levels, config.sigma_min, config.sigma_max, config.rho).tolist()
    )
    told = replace(config, levels=(config.sigma_max, *same[1:-1]))
    assert ScoreDynamicsConfig.from_dict(told.to_dict()) == told
    torch.testing.assert_close(told.sigmas(), replace(config, levels=()).sigmas(), rtol=1e-12, atol=0)
    fitted = replace(config, levels=fitted_levels(config.n_levels, config.sigma_max, config.solver))
    reference = model.reference()
    assert reference is not None

    def step(of: ScoreDynamicsConfig) -> np.ndarray:
        return ScoreDynamics(of, model.denoiser).step(reference, np.random.default_rng(0))

    plain = step(replace(config, levels=()))
    np.testing.assert_array_equal(step(told), plain)
    assert 1e-3 < np.abs(step(fitted) - plain).max() < 1.0


@pytest.mark.parametrize("levels", [(3.0, 0.1), (2.0, *[0.1 / k for k in range(1, 8)]),
                                    (3.0, 0.1, 0.2, 0.05, 0.04, 0.03, 0.02, 0.01),
                                    (3.0, 0.1, 0.09, 0.05, 0.04, 0.03, 0.02, 0.0),
                                    (3.0, 0.1, 0.09, 0.05, 0.04, 0.03, 0.02, float("nan"))])  # fmt: skip
def test_levels_that_do_not_fall_are_refused(model: ScoreDynamics, levels: tuple[float, ...]) -> None:
    with pytest.raises(CheckpointError, match="levels"):
        replace(model.config, n_levels=8, sigma_max=3.0, levels=levels).check()


@pytest.mark.parametrize("levels", [3, "three", [[1.0]], [None]])
def test_levels_that_are_no_numbers_are_one_line(model: ScoreDynamics, levels: Any) -> None:
    with pytest.raises(CheckpointError, match="not valid"):
        ScoreDynamicsConfig.from_dict({**model.config.to_dict(), "levels": levels})


def test_calibration_fits_levels_without_pairs_too(model: ScoreDynamics) -> None:
    assert isinstance(model.denoiser, ConditionalDenoiser)
    x = torch.zeros(4, model.molecule.n_sites, 3)
    few = Transitions(x, torch.arange(2), 1, 1.0)
    config = {**model.config.to_dict(), "noise_scale": 0.97}
    found = calibrated(config, model.denoiser, few)
    assert found["noise_scale"] == 0.97 and len(found["levels"]) == found["n_levels"]
    # noise that is fresh at every level has no levels to fit
    drawn = calibrated({**config, "levels": [], "solver": "ancestral"}, model.denoiser, few)
    assert drawn["levels"] == []
