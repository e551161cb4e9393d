"""Noise levels that are fitted to the solver: what they do to Gaussian data, and to a propagator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from training.score_dynamics.calibration import calibrated
from training.score_dynamics.ladder import (
    MOST_LEVELS,
    TWO_BASINS,
    WIDTHS,
    error,
    fitted_levels,
    shares_of_samples,
    widths_of_samples,
)
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


def test_many_levels_leave_widths_and_shares_as_they_are() -> None:
    sigmas = diffusion.sigma_ladder(400, 1e-4, 200.0)
    for of, far in ((widths_of_samples, 2e-3), (shares_of_samples, 2e-2)):
        found = of(sigmas, "dpm_multistep")
        torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=far)


@pytest.mark.parametrize(("n", "sigma_max"), [(6, 3.0), (8, 3.14159), (10, 4.0)])
def test_fitted_levels_keep_widths_and_shares_better_than_others(n: int, sigma_max: float) -> None:
    levels = fitted_levels(n, sigma_max, "dpm_multistep")
    assert len(levels) == n and levels[0] == sigma_max
    usual = diffusion.sigma_ladder(n, 0.01, sigma_max)
    assert error(ladder(levels), "dpm_multistep") < 0.5 * error(usual, "dpm_multistep")


def test_neither_widths_nor_shares_are_bought_with_the_other() -> None:
    def errors(sigmas: torch.Tensor) -> tuple[float, float]:
        widths, shares = (each(sigmas, "dpm_multistep") for each in (widths_of_samples, shares_of_samples))
        return float((widths - 1).abs().max()), float((shares - 1).abs().max())

    width, share = errors(ladder(fitted_levels(8, 3.0, "dpm_multistep")))
    assert width < 0.09 and share < 0.13
    assert errors(diffusion.sigma_ladder(8, 0.01, 3.0))[0] > 0.15
    # right for widths to 0.1 %, but half of what is rare is lost
    narrow = errors(ladder((3.0, 0.9396, 0.3076, 0.112, 0.04434, 0.01807, 0.01021, 0.002905)))
    assert narrow[0] < 0.002 and narrow[1] > 0.5


@pytest.mark.parametrize("case", [TWO_BASINS[2], TWO_BASINS[5]])
def test_samples_are_as_wide_and_as_often_far_away_as_is_told(case: tuple[float, float, float]) -> None:
    """Drawn, not computed; widths at a mean that is not zero."""
    levels = fitted_levels(8, 3.0, "dpm_multistep")
    w = torch.tensor([each for each in WIDTHS if each < 0.6], dtype=torch.float64)
    rng = np.random.default_rng(0)

    def gaussian(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        v = sigma[:, None] ** 2
        return (w**2 * x + v * 0.3) / (w**2 + v)

    start = 3.0 * torch.from_numpy(rng.standard_normal((20000, len(w))))
    x = diffusion.dpm_multistep(gaussian, start, ladder(levels), centre=True)
    torch.testing.assert_close(x.std(0) / w, torch.ones_like(w), rtol=0, atol=0.05)
    torch.testing.assert_close(x.mean(0), torch.full_like(w, 0.3), rtol=0, atol=0.05)

    distance, width, share = case

    def two(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        v = width**2 + sigma[:, None] ** 2
        near, far = (
            (1 - share) * torch.exp(-(x**2) / 2 / v),
            share * torch.exp(-((x - distance) ** 2) / 2 / v),
        )
        mean = distance * far / (near + far)
        return mean + width**2 / v * (x - mean)

    start = 3.0 * torch.from_numpy(rng.standard_normal((100000, 1)))
    x = diffusion.dpm_multistep(two, start, ladder(levels), centre=True)
    expected = float(shares_of_samples(ladder(levels), "dpm_multistep", [case])) * share
    assert float((x > distance / 2).double().mean()) == pytest.approx(expected, rel=0.05)
    assert expected == pytest.approx(share, rel=0.13)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 3.0, "ancestral"), "fresh noise"),
        ((1, 3.0, "dpm_multistep"), f"2 to {MOST_LEVELS}"),
        ((MOST_LEVELS + 1, 3.0, "dpm_multistep"), f"2 to {MOST_LEVELS}"),
        ((8, 0.9, "dpm_multistep"), "from above 1 Å"),
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


@pytest.mark.parametrize(
    "levels",
    [3, "three", "321", ["3.0", "2"], {"3.0": 1, "1": 2}, [[1.0]], [None], [True], [10**400], [3.0, 1e-60],
     [3.0, 2.9999999999], [3.0, float("inf")], [0.1] * 100_000],
)  # fmt: skip
def test_levels_that_are_no_levels_are_one_short_line(model: ScoreDynamics, levels: Any) -> None:
    n = len(levels) if isinstance(levels, list) else 2
    config = {**model.config.to_dict(), "levels": levels, "n_levels": n}
    with pytest.raises(CheckpointError, match=r"^config\.json") as caught:
        ScoreDynamicsConfig.from_dict(config)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_fresh_noise_at_every_level_is_nothing_a_step_has(model: ScoreDynamics) -> None:
    with pytest.raises(CheckpointError, match="fresh noise"):
        replace(model.config, solver="ancestral").check()


def test_calibration_fits_levels_without_pairs_too(model: ScoreDynamics) -> None:
    assert isinstance(model.denoiser, ConditionalDenoiser)
    x = torch.zeros(4, model.molecule.n_sites, 3)
    few = Transitions(x, torch.arange(2), 1, 1.0)
    known = {k: v for k, v in model.config.to_dict().items() if k != "levels"}
    found = calibrated({**known, "noise_scale": 0.97, "sigma_max": 3.14159}, model.denoiser, few)
    assert found["noise_scale"] == 0.97 and len(found["levels"]) == found["n_levels"]
    assert ScoreDynamicsConfig.from_dict(found).sigmas()[0] == 3.14159
    # two levels cannot be right, whatever they are; the better ones are taken
    two = ScoreDynamicsConfig.from_dict(calibrated({**known, "n_levels": 2}, model.denoiser, few))
    usual = replace(two, levels=())
    assert error(two.sigmas(), two.solver) <= error(usual.sigmas(), usual.solver)
