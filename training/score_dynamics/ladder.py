"""Noise levels of a sampler: displacements about as wide, and rare ones about as often, as they should be.

Even with an exact denoiser, eight levels of the usual ladder from 3 Å make Gaussian displacements of 0.02 Å
(a stiff bond) 17 % too narrow and those of 0.05 to 0.6 Å (torsions within a basin) up to 8 % too wide; levels
that put widths right alone lose up to half of the rare displacements into another basin.  Fitted to both,
widths up to 0.5 Å are right to 3 % (1 Å: 8 % too wide) and rare shares to 12 %.  Of data whose denoiser is
known both errors of a solver are, too:

- a Gaussian component of standard deviation w is carried by ``D(x, sigma) = w**2 / (w**2 + sigma**2) x`` to
  a multiple of its start (`widths_of_samples`);
- two Gaussians a distance d apart, the farther one with a share p: its share of samples is that of the
  starts above the one that ends in the middle (`shares_of_samples`).

So levels are chosen by least squares for these, which needs no network; what errors of a network add to the
width is left to ``noise_scale``, see `calibration`.  (Levels fitted to the solver: Sabour, Fidler & Kreis,
arXiv:2404.14507, with another measure of the error.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zoo import diffusion

Array = npt.NDArray[np.float64]

#: Å; from a stiff bond to a methyl group that turns.
WIDTHS = tuple(float(w) for w in np.geomspace(0.02, 1.0, 15))

#: Å, Å and share: how far a torsion that turns over moves ten and twenty atoms (the norm over all of them),
#: the width along that line of what does not turn, and how often it does.
TWO_BASINS = tuple((d, w, p) for d, w in ((3.0, 0.4), (4.5, 0.55)) for p in (1e-3, 1e-2, 0.1))

#: What an error of a logarithm of a share counts beside one of a width.
_SHARE = 0.3

#: Least and largest logarithm of the ratio of two levels.  After levels that are nearer a second-order solver
#: extrapolates far, and an error of the network with it.
_RATIOS = 0.35, 3.0

#: More levels than this need no fit.
MOST_LEVELS = 16


def widths_of_samples(sigmas: Tensor, solver: str, widths: Sequence[float] = WIDTHS) -> Tensor:
    """What a deterministic sampler makes of Gaussian components, over what it should: (n_widths,).

    With ``centre``, as a propagator samples: what D at the first level makes of the start is added to it.

    Parameters
    ----------
    sigmas : (n + 1,) descending to 0, Å.
    widths : standard deviations of the data, Å.
    """
    w = torch.tensor(widths, dtype=torch.float64)
    start = sigmas[0].double().expand(1, len(w))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return w**2 / (w**2 + sigma[:, None] ** 2) * x

    return diffusion.SOLVERS[solver](denoise, start, sigmas.double(), centre=True)[0] / w


def shares_of_samples(
    sigmas: Tensor, solver: str, cases: Sequence[tuple[float, float, float]] = TWO_BASINS
) -> Tensor:
    """Share of samples that are nearer to the rare one of two Gaussians, over what it should be: (n_cases,).

    Parameters
    ----------
    sigmas : (n + 1,) descending to 0, Å.
    cases : distance (Å), width of both (Å) and share of the rare one.
    """
    d, w, p = torch.tensor(cases, dtype=torch.float64).T
    starts = torch.linspace(-1.5, 5.5, 401, dtype=torch.float64)  # in standard deviations

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        noise = sigma[:, None] ** 2
        total = w**2 + noise
        rare = torch.sigmoid(torch.log(p / (1 - p)) + (x - d / 2) * d / total)
        mean: Tensor = (w**2 * x + noise * rare * d) / total
        return mean

    x = (sigmas[0].double() * starts)[:, None].repeat(1, len(d))
    ends = diffusion.SOLVERS[solver](denoise, x, sigmas.double(), centre=True)
    # the exact flow keeps the order of starts; a solver with few levels may not quite
    ordered = np.maximum.accumulate(ends.numpy(), axis=0).T
    middle = [float(np.interp(half, end, starts)) for half, end in zip(d / 2, ordered, strict=True)]
    there = torch.special.ndtr(-torch.tensor(middle, dtype=torch.float64))
    wanted = (1 - p) * torch.special.ndtr(-d / (2 * w)) + p * torch.special.ndtr(d / (2 * w))
    found: Tensor = there / wanted
    return found


def _errors(sigmas: Tensor, solver: str) -> Array:
    widths, shares = widths_of_samples(sigmas, solver), shares_of_samples(sigmas, solver)
    return np.concatenate([widths - 1.0, _SHARE * shares.clamp_min(1e-3).log()])


def error(sigmas: Tensor, solver: str) -> float:
    """What `fitted_levels` makes small: the sum of squares of what widths and shares are off by."""
    return float(np.square(_errors(sigmas, solver)).sum())


def fitted_levels(n_levels: int, sigma_max: float, solver: str) -> tuple[float, ...]:
    """``n_levels`` descending levels from ``sigma_max``, Å, by which widths and shares are near to right.

    Raises
    ------
    ValueError : a stochastic solver; less than two levels or more than `MOST_LEVELS`; a ``sigma_max`` that
        is not above all `WIDTHS`.
    """
    from scipy.optimize import least_squares

    if solver in diffusion.STOCHASTIC_SOLVERS:
        raise ValueError(f"{solver} draws fresh noise at every level: levels are fitted to the ODE only")
    if not 2 <= n_levels <= MOST_LEVELS or not max(WIDTHS) < sigma_max:
        raise ValueError(
            f"{n_levels} levels from {sigma_max} Å: 2 to {MOST_LEVELS}, from above {max(WIDTHS):g} Å"
        )

    def levels(ratios: Array) -> Array:
        found: Array = sigma_max * np.exp(-np.append(0.0, np.cumsum(ratios)))
        return found

    def errors(ratios: Array) -> Array:
        return _errors(torch.from_numpy(np.append(levels(ratios), 0.0)), solver)

    # From even ratios down to several ends: the sum of squares has more than one minimum.
    ends = min(WIDTHS) * np.array([0.15, 0.3, 0.5])
    starts = [np.full(n_levels - 1, math.log(sigma_max / end) / (n_levels - 1)) for end in ends]
    low, high = _RATIOS
    fits = [
        least_squares(
            errors, np.clip(each, low + 0.01, high - 0.01), bounds=(low, high), max_nfev=40, diff_step=1e-4
        )
        for each in starts
    ]
    best = min(fits, key=lambda fit: float(fit.cost))
    return float(sigma_max), *(float(f"{level:.4g}") for level in levels(best.x)[1:])
