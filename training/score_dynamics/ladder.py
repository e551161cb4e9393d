"""Noise levels of a sampler by which displacements of every size come out as wide as they are.

With few levels the usual ladders leave bonds, whose displacements are a few hundredths of Å, a sixth too
narrow and torsions 6 % too wide, for any network.  Of Gaussian data the error of a solver is known: each
component of standard deviation w is carried by ``D(x, sigma) = w**2 / (w**2 + sigma**2) x`` to a multiple
of its start.  So levels are chosen by least squares for that multiple to be w at all w of a range; the score
that a network learned is not needed.  (Levels fitted to the solver: Sabour, Fidler & Kreis,
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

#: Å; from a stiff bond to a methyl group that turns.
WIDTHS = tuple(float(w) for w in np.geomspace(0.02, 1.0, 15))


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


def fitted_levels(
    n_levels: int, sigma_max: float, solver: str, widths: Sequence[float] = WIDTHS
) -> tuple[float, ...]:
    """``n_levels`` descending levels from ``sigma_max``, Å, for `widths_of_samples` to be near 1 for all.

    Raises
    ------
    ValueError : a stochastic solver; less than two levels; widths that are not below ``sigma_max``.
    """
    from scipy.optimize import least_squares

    if solver in diffusion.STOCHASTIC_SOLVERS:
        raise ValueError(f"{solver} draws fresh noise at every level: levels are fitted to the ODE only")
    if n_levels < 2 or not 0 < min(widths) <= max(widths) < sigma_max:
        raise ValueError(f"{n_levels} levels from {sigma_max} Å: at least two, from above all widths")

    def levels(ratios: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        found: npt.NDArray[np.float64] = sigma_max * np.exp(-np.append(0.0, np.cumsum(np.exp(ratios))))
        return found

    def errors(ratios: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        sigmas = torch.from_numpy(np.append(levels(ratios), 0.0))
        found: npt.NDArray[np.float64] = widths_of_samples(sigmas, solver, widths).numpy()
        return found - 1.0

    # From even ratios down to several ends: the sum of squares has more than one minimum.
    ends = min(widths) * np.array([0.1, 0.2, 0.4])
    starts = [np.full(n_levels - 1, math.log(math.log(sigma_max / end) / (n_levels - 1))) for end in ends]
    limits = math.log(0.05), math.log(3.0)
    fits = [least_squares(errors, np.clip(e, -2.9, 1.0), bounds=limits, max_nfev=60) for e in starts]
    best = min(fits, key=lambda fit: float(fit.cost))
    return tuple(float(f"{level:.4g}") for level in levels(best.x))
