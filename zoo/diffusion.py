"""Diffusion models as pure functions of a denoiser ``D(x, sigma)``.

Nothing here knows of molecules or networks, draws a random number or keeps a state.  A clean sample
x0 is made noisy by ``x = x0 + sigma * noise`` with standard normal noise; ``D(x, sigma)`` is the mean
of all x0 that could have become x.  Everything else follows from it:

======================  ====================================================================
score                   ``(D(x, sigma) - x) / sigma**2``
probability-flow ODE    ``dx / dsigma = (x - D(x, sigma)) / sigma``
its log-density         ``d log p / dsigma = -(d - div D) / sigma`` along a solution
======================  ====================================================================

Symbols: ``x`` (batch, \\*dims), ``sigma`` (batch,) is the noise level in the units of x, ``sigmas``
(n + 1,) a descending ladder of them, ``denoised`` = D(x, sigma) the estimate of x0.

References: Karras, Aittala, Aila & Laine, arXiv:2206.00364 (EDM); Lu, Zhou, Bao, Chen, Li & Zhu,
arXiv:2211.01095 (DPM-Solver++); Song et al., arXiv:2011.13456 (score SDEs, likelihoods).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

#: ``D(x, sigma)``: x (batch, *dims), sigma (batch,) -> the denoised x0, shape and dtype of x.
Denoise = Callable[[Tensor, Tensor], Tensor]

#: ``callback(i, sigma, x, denoised)`` before interval i, with x (batch, *dims) at noise level sigma.
Callback = Callable[[int, float, Tensor, Tensor], None]

#: Levels of a geometric ladder over three decades of noise that make `log_prob` of a double well or of a
#: four-dimensional Gaussian good to a few hundredths; twice as many make the error a quarter.
LIKELIHOOD_LEVELS = 64

#: Vector-Jacobian products are taken together as long as they have no more numbers than this: for few small
#: items the time is that of the many calls, for others that of the products, and their memory.
_NUMBERS_AT_ONCE = 2**16


# ---------------------------------------------------------------------------------- noise levels


def broadcast(sigma: Tensor, x: Tensor) -> Tensor:
    """Give sigma (batch,), or a single one (), as many trailing axes as x (batch, \\*dims) has.

    Raises
    ------
    ValueError : sigma is neither one number nor one per item of the batch.
    """
    if sigma.ndim == 0:
        return sigma
    if x.ndim == 0 or sigma.shape != x.shape[:1]:
        raise ValueError(
            f"sigma has shape {tuple(sigma.shape)}, x has {tuple(x.shape)}: give one sigma per batch item"
        )
    return sigma.reshape(-1, *(1,) * (x.ndim - 1))


def log_normal_sigma(quantiles: Tensor, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """Noise levels for training with ln(sigma) ~ N(mean, std**2) (EDM, table 1).

    Parameters
    ----------
    quantiles : (n,), uniform in [0, 1); random or evenly spread, as the caller likes.
    mean, std : of ln(sigma).

    Returns
    -------
    (n,) sigma, of the dtype of the quantiles and always finite and positive.
    """
    if not std > 0:
        raise ValueError(f"std of ln(sigma) is {std}: it must be positive")
    # A generator does return an exact 0 once in some 10^7 draws; its normal quantile is minus infinity.
    eps = torch.finfo(quantiles.dtype).eps
    return torch.exp(mean + std * torch.special.ndtri(quantiles.clamp(eps / 4, 1 - eps / 2)))


def log_uniform_sigma(quantiles: Tensor, sigma_min: float, sigma_max: float) -> Tensor:
    """Noise levels for training with ln(sigma) uniform between two limits.

    Parameters
    ----------
    quantiles : (n,), uniform in [0, 1].
    sigma_min, sigma_max : the limits, in the units of x.

    Returns
    -------
    (n,) sigma, of the dtype of the quantiles.
    """
    _check_range(sigma_min, sigma_max)
    return sigma_min * (sigma_max / sigma_min) ** quantiles


def sigma_ladder(n: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """The descending noise levels of a sampler (EDM, eq. 5), with a final 0.

    Parameters
    ----------
    n : number of positive levels, which is also the number of intervals.
    sigma_min, sigma_max : smallest and largest positive level, in the units of x.
    rho : the levels are even in ``sigma**(1 / rho)``; `math.inf` makes them even in ln(sigma).

    Returns
    -------
    (n + 1,) float64 sigmas, from sigma_max down to sigma_min and then 0 (n = 1: sigma_max and 0).

    Raises
    ------
    ValueError : n < 1, rho <= 0, or not 0 < sigma_min < sigma_max.
    """
    _check_range(sigma_min, sigma_max)
    if n < 1:
        raise ValueError(f"a ladder of {n} noise levels: it needs at least one")
    if not rho > 0:
        raise ValueError(f"rho is {rho}: it must be positive")
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    if math.isinf(rho):
        sigmas = sigma_max * (sigma_min / sigma_max) ** ramp
    else:
        top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
        sigmas = (top + ramp * (bottom - top)) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def _check_range(sigma_min: float, sigma_max: float) -> None:
    if not (0 < sigma_min < sigma_max < math.inf):
        raise ValueError(f"noise levels from {sigma_min} to {sigma_max}: need 0 < sigma_min < sigma_max")


# ------------------------------------------------------------------------------- preconditioning


@dataclass(frozen=True)
class Preconditioning:
    """What makes a network F with unit inputs and targets a denoiser (EDM, section 5 and table 1).

    ``D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)``.  For data of zero mean and standard deviation
    sigma_data per component the network's input and its target have unit variance at every noise level,
    and c_out, which multiplies the network's error, is the smallest possible.

    Parameters
    ----------
    sigma_data : standard deviation of a component of the clean data, in the units of x.
    """

    sigma_data: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma_data < math.inf:
            raise ValueError(f"sigma_data is {self.sigma_data}: it must be positive and finite")

    def c_skip(self, sigma: Tensor) -> Tensor:
        """Weight of the noisy x in the denoised one; any shape in and out, as all methods here."""
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        """Scale of the network's output."""
        return sigma * self.sigma_data / (sigma**2 + self.sigma_data**2).sqrt()

    def c_in(self, sigma: Tensor) -> Tensor:
        """Scale of the network's input."""
        return 1 / (sigma**2 + self.sigma_data**2).sqrt()

    def c_noise(self, sigma: Tensor) -> Tensor:
        """How the network is told the noise level: ln(sigma) / 4."""
        return sigma.log() / 4

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Weight of ``(D - x0)**2`` that makes it the plain squared error of the network: 1 / c_out**2."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2

    def target(self, clean: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
        """What the network should answer: clean and noisy (batch, \\*dims), sigma (batch,)."""
        s = broadcast(sigma, noisy)
        return (clean - self.c_skip(s) * noisy) / self.c_out(s)

    def wrap(self, network: Callable[[Tensor, Tensor], Tensor]) -> Denoise:
        """The denoiser of a ``network(c_in * x, c_noise)``: x (batch, \\*dims), c_noise (batch,)."""

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            s = broadcast(sigma, x)
            return self.c_skip(s) * x + self.c_out(s) * network(self.c_in(s) * x, self.c_noise(sigma))

        return denoise


def score(denoise: Denoise, x: Tensor, sigma: Tensor | float) -> Tensor:
    """Gradient with respect to x of the log-density of noisy data (Tweedie's formula; EDM, eq. 3).

    That density is the density of clean data convolved with N(0, sigma**2 I); it approaches the density
    of the data itself when sigma is small beside every feature of it.  For a conditional denoiser it is
    the gradient of the log of the conditional, for a propagator of the transition, density.

    Parameters
    ----------
    x : (batch, \\*dims).
    sigma : (batch,), or one positive number for all.

    Returns
    -------
    (batch, \\*dims), in 1 / (units of x).

    Raises
    ------
    ValueError : a sigma that is not positive, or a denoiser that changes shape or dtype.
    """
    levels = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(x.shape[:1])
    if not bool((levels > 0).all()):
        raise ValueError("the score needs a positive noise level; use the smallest one trained on")
    return (_checked(denoise, x, levels) - x) / broadcast(levels, x) ** 2


# -------------------------------------------------------------------------------------- samplers
#
# All take x at sigmas[0], that is sigma_max times standard normal noise of the caller's, down to
# sigmas[-1], and may be differentiated through; callers who do not want that use torch.no_grad().
#
# Noisy data of mean m are centred on m, not on 0, at sigma_max too.  As the flow keeps quantiles, samples
# started around 0 are pulled towards 0 by about s m / sigma_max, s their standard deviation: a
# propagator would repeat that bias in every step.  D at sigma_max is m in very good approximation, so
# `centre` removes the bias at no cost.


def euler(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, centre: bool = False, callback: Callback | None = None
) -> Tensor:
    """First-order steps along the probability-flow ODE, one evaluation each (DDIM).

    Parameters
    ----------
    denoise : D(x, sigma), with whatever it is conditioned on inside.
    x : (batch, \\*dims) at noise level sigmas[0].
    sigmas : (n + 1,) strictly descending; see `sigma_ladder`.
    centre : x is noise around 0, move it to the mean of the data first: x + D(x, sigma_max), with the
        evaluation that the first interval needs anyway.
    callback : called as ``callback(i, sigma, x, denoised)`` at the start of each interval i.

    Returns
    -------
    (batch, \\*dims) at noise level sigmas[-1], dtype and device of x.

    Raises
    ------
    ValueError : sigmas that do not descend, or a denoiser that changes shape or dtype.
    """
    return _multistep(denoise, x, sigmas, order=1, centre=centre, callback=callback)


def dpm_multistep(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, centre: bool = False, callback: Callback | None = None
) -> Tensor:
    """DPM-Solver++(2M): second order, one evaluation per interval (arXiv:2211.01095, algorithm 2).

    Takes and gives what `euler` does.  The first interval and the one to zero noise are of first order:
    in the first there is no earlier evaluation, in the last no finite step of ln(sigma).

    The most accurate one for few evaluations: on the double well of the tests, whose noise levels span
    0.05 to 5, 8, 10 and 15 of them come within 4, 2.4 and 1.4 % (total variation) of the exact transition
    density with ``centre``; Heun's method is 1.8 % off at 19, ancestral sampling 9 % at 15.
    """
    return _multistep(denoise, x, sigmas, order=2, centre=centre, callback=callback)


def ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Tensor,
    centre: bool = False,
    callback: Callback | None = None,
) -> Tensor:
    """First-order steps of the reverse SDE, one evaluation each (ancestral sampling, DDPM).

    Takes and gives what `euler` does, and `noise` as in `stochastic`.
    """
    return _multistep(denoise, x, sigmas, order=1, eta=1.0, noise=noise, centre=centre, callback=callback)


def stochastic(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Tensor,
    eta: float = 1.0,
    centre: bool = False,
    callback: Callback | None = None,
) -> Tensor:
    """SDE-DPM-Solver++(2M): the reverse SDE, one evaluation per interval (arXiv:2211.01095).

    Takes and gives what `euler` does.  Fresh noise forgets the errors of earlier steps, which can help
    with an imperfect denoiser, but wants more levels than the ODE does with a good one.

    Parameters
    ----------
    noise : (n, batch, \\*dims) standard normal, one slice per interval; the last is not used where the
        ladder ends at 0.
    eta : 1 is the reverse SDE, 0 the ODE (then the same as `dpm_multistep`), in between a mixture.

    Raises
    ------
    ValueError : as `euler`; noise of another shape; a negative eta.
    """
    if not 0 <= eta < math.inf:
        raise ValueError(f"eta is {eta}: it must not be negative")
    return _multistep(denoise, x, sigmas, order=2, eta=eta, noise=noise, centre=centre, callback=callback)


def heun(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, centre: bool = False, callback: Callback | None = None
) -> Tensor:
    """Heun's second-order steps along the probability-flow ODE (EDM, algorithm 1), two evaluations each.

    Takes and gives what `euler` does.  An interval to zero noise takes one evaluation, as the slope has
    no finite difference quotient there.
    """
    levels = _levels(sigmas)
    for i, (sigma, after) in enumerate(itertools.pairwise(levels)):
        denoised = _checked(denoise, x, _fill(x, sigma))
        if centre and i == 0:
            x = x + denoised
        if callback is not None:
            callback(i, sigma, x, denoised)
        if after == 0:
            x = denoised
            continue
        slope = (x - denoised) / sigma
        guess = x + (after - sigma) * slope
        slope_after = (guess - _checked(denoise, guess, _fill(x, after))) / after
        x = x + (after - sigma) * (slope + slope_after) / 2
    return x


def _multistep(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    order: Literal[1, 2],
    eta: float = 0.0,
    noise: Tensor | None = None,
    centre: bool,
    callback: Callback | None,
) -> Tensor:
    """Exponential integrator in ln(sigma) that takes D as constant (order 1) or linear (2) in a step.

    With ratio = sigma_after / sigma = exp(-h), the exact solution for constant D of the reverse SDE whose
    noise is eta times the full one has mean ``ratio**(1 + eta) * (x - D) + D`` and standard deviation
    ``sigma_after * sqrt(1 - ratio**(2 * eta))``.  Order 1 is Euler's method in sigma for eta = 0 and
    ancestral sampling for eta = 1.
    """
    levels = _levels(sigmas)
    if noise is not None and noise.shape != (len(levels) - 1, *x.shape):
        raise ValueError(
            f"noise has shape {tuple(noise.shape)}: {len(levels) - 1} intervals of x {tuple(x.shape)} "
            f"need {(len(levels) - 1, *x.shape)}"
        )
    earlier: Tensor | None = None
    h_earlier = 0.0
    for i, (sigma, after) in enumerate(itertools.pairwise(levels)):
        denoised = _checked(denoise, x, _fill(x, sigma))
        if centre and i == 0:
            x = x + denoised
        if callback is not None:
            callback(i, sigma, x, denoised)
        if after == 0:
            x = denoised
            continue
        ratio, h = after / sigma, math.log(sigma / after)
        ahead = denoised
        if order == 2 and earlier is not None:  # D extrapolated to the middle of the step in ln(sigma)
            ahead = denoised + (h / (2 * h_earlier)) * (denoised - earlier)
        x = ahead + ratio ** (1 + eta) * (x - ahead)
        if noise is not None and eta > 0:
            x = x + after * math.sqrt(1 - ratio ** (2 * eta)) * noise[i].to(x)
        earlier, h_earlier = denoised, h
    return x


#: The samplers by the names that configs use.
SOLVERS: dict[str, Callable[..., Tensor]] = {
    "euler": euler,
    "heun": heun,
    "dpm_multistep": dpm_multistep,
    "ancestral": ancestral,
    "stochastic": stochastic,
}

#: Those that are called with ``noise=`` (n, batch, *dims).
STOCHASTIC_SOLVERS = frozenset({"ancestral", "stochastic"})


def n_evaluations(solver: str, n_levels: int) -> int:
    """Denoiser evaluations that a solver spends on ``sigma_ladder(n_levels, ...)``.

    Raises
    ------
    ValueError : an unknown solver, or fewer than one level.
    """
    if solver not in SOLVERS:
        raise ValueError(f"no solver {solver!r}: choose one of {', '.join(SOLVERS)}")
    if n_levels < 1:
        raise ValueError(f"a ladder of {n_levels} noise levels: it needs at least one")
    return 2 * n_levels - 1 if solver == "heun" else n_levels


# ------------------------------------------------------------------------------------ likelihood


def log_prob(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    sigma_data: float = 0.0,
    centre: bool = False,
    noise_scale: float = 1.0,
    dimension: int | None = None,
    basis: Tensor | None = None,
    divergence: Literal["exact", "hutchinson"] = "exact",
    probes: Tensor | None = None,
) -> Tensor:
    """Log-density of x by the probability-flow ODE (Song et al., arXiv:2011.13456, section 4.3, eq. 39).

    x is taken to be at the smallest positive noise level, sigma_min, and carried up to sigma_max, where
    its density is Gaussian; the divergence of the flow, collected on the way, gives the change of volume:

        log p(x) = log N(x_max; 0, sigma_max**2 + sigma_data**2) + integral of (k - div D) d ln(sigma)

    **What it is the density of**: clean data convolved with N(0, sigma_min**2 I).  A density with
    features no finer than sigma_min is given truly; of one concentrated on constraints (rigid bonds, a
    lower-dimensional subspace not named by `basis`) the result grows as -ln(sigma_min) per constrained
    direction, so compare only values at one sigma_min.  sigma_max must be large beside the data.

    Positions are advanced with Heun's rule in sigma and the divergence with the trapezoidal rule in
    ln(sigma), both of second order; the divergence is taken once per level, off the corrected path only.
    Use a geometric ladder, ``sigma_ladder(LIKELIHOOD_LEVELS, sigma_min, sigma_max, rho=math.inf)``.

    Parameters
    ----------
    denoise : D(x, sigma), differentiable with respect to x, each item of the batch on its own.
    x : (batch, \\*dims), d components per item.
    sigmas : strictly descending levels, at least two of them positive; a final 0 is left out.
    sigma_data : standard deviation of the clean data, in the Gaussian at sigma_max.  0 gives the density
        that samplers started from N(0, sigma_max**2) draw from.
    centre : put that Gaussian around the mean of the data that D(x_max, sigma_max) implies instead of 0:
        for the density that samplers with ``centre=True`` draw from, and closer to that of the data.
    noise_scale : of a sampler that starts from noise that is so many times as wide: the Gaussian at sigma_max
        is, too.
    dimension : k, where the density lives on a subspace and it is not told by `basis`: D must then not
        depend on components outside of the subspace, or have none there.
    basis : (k, d) or (batch, k, d) orthonormal rows that span the subspace of R^d in which x and D lie;
        density and divergence are of that subspace (in 1 / units of x to the power of k).
    divergence : "exact" takes k (without a basis d) vector-Jacobian products per level; "hutchinson" one
        per probe, unbiased but noisy.
    probes : (n_probes, batch, \\*dims), zero mean and unit covariance (signs or normal numbers), for
        "hutchinson"; with a basis they are projected onto it.

    Returns
    -------
    (batch,) log-density, dtype and device of x, without gradients.

    Raises
    ------
    ValueError : sigmas that do not descend, a basis that is not orthonormal or does not contain x or D,
        probes that are missing, superfluous or of another shape, a denoiser without gradients.
    """
    levels = _levels(sigmas)
    levels = [s for s in reversed(levels) if s > 0]
    if len(levels) < 2:
        raise ValueError("log_prob needs at least two positive noise levels")
    if not 0 <= sigma_data < math.inf:
        raise ValueError(f"sigma_data is {sigma_data}: it must be finite and not negative")
    if not 0 < noise_scale < math.inf:
        raise ValueError(f"noise_scale is {noise_scale}: it must be finite and positive")

    # Also from within torch.no_grad() or inference_mode(): the clone is an ordinary tensor there.
    with torch.inference_mode(mode=False), torch.enable_grad():
        x = x.detach().clone()
        subspace = None if basis is None else _Subspace(basis.detach().clone().to(x), x)
        if subspace is not None:
            subspace.check_contains(x, x.flatten(1).norm(dim=1), "x")
        k = _dimension(dimension, subspace, x)
        directions = _directions(x, subspace, divergence, probes)

        together = _go_together(denoise, x, levels[0])

        def flow(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
            """D (batch, *dims) and ``k - div D`` (batch,)."""
            denoised, trace = _trace(denoise, x, sigma, directions(), together)
            return denoised, k - trace

        integral = x.new_zeros(x.shape[0])
        denoised, expansion = flow(x, levels[0])
        if subspace is not None:
            size = denoised.flatten(1).norm(dim=1) + levels[0] * math.sqrt(k)
            subspace.check_contains(denoised, size, "D(x, sigma)")
        for sigma, after in itertools.pairwise(levels):
            slope = (x - denoised) / sigma
            guess = x + (after - sigma) * slope
            with torch.no_grad():
                slope_after = (guess - _checked(denoise, guess, _fill(x, after))) / after
            x = x + (after - sigma) * (slope + slope_after) / 2
            denoised, expansion_after = flow(x, after)
            integral = integral + math.log(after / sigma) * (expansion + expansion_after) / 2
            expansion = expansion_after

        variance = levels[-1] ** 2 + sigma_data**2
        if centre:  # x minus the mean of the Gaussian whose denoiser is D: (x - D) variance / sigma_max**2
            x = (x - denoised) * (variance / levels[-1] ** 2)
        variance *= noise_scale**2
        flat = x.flatten(1) if subspace is None else subspace.coordinates(x)
        terminal = -(flat**2).sum(1) / (2 * variance) - k / 2 * math.log(2 * math.pi * variance)
        return terminal + integral


class _Subspace:
    """Orthonormal rows (batch, k, d), or one set of them for all of the batch."""

    tolerance = 1e-3  # of rows and of vectors said to be in the subspace: float32 rounding is far below

    def __init__(self, rows: Tensor, x: Tensor) -> None:
        batch, d = x.shape[0], x[0].numel()
        rows = rows[None] if rows.ndim == 2 else rows
        if rows.ndim != 3 or rows.shape[0] not in (1, batch) or rows.shape[2] != d or rows.shape[1] > d:
            raise ValueError(
                f"basis must be (k, {d}) or ({batch}, k, {d}), k <= {d}, not {tuple(rows.shape)}"
            )
        eye = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
        if float((rows @ rows.mT - eye).abs().max()) > self.tolerance:
            raise ValueError("the rows of the basis are not orthonormal: use those of a QR decomposition")
        self.rows = rows
        self.k = int(rows.shape[1])

    def coordinates(self, x: Tensor) -> Tensor:
        """(batch, *dims) -> (batch, k)."""
        return (self.rows @ x.flatten(1)[:, :, None])[:, :, 0]

    def project(self, x: Tensor) -> Tensor:
        """(batch, *dims) -> (batch, *dims)."""
        return (self.rows.mT @ self.coordinates(x)[:, :, None])[:, :, 0].reshape(x.shape)

    def check_contains(self, x: Tensor, size: Tensor, what: str) -> None:
        outside = (x - self.project(x)).flatten(1).norm(dim=1)
        if bool((outside > self.tolerance * size).any()):
            raise ValueError(f"{what} lies outside of the subspace of the basis: project it onto the basis")


def _dimension(dimension: int | None, subspace: _Subspace | None, x: Tensor) -> int:
    d = x[0].numel()
    if subspace is not None:
        if dimension not in (None, subspace.k):
            raise ValueError(f"dimension {dimension} does not agree with a basis of {subspace.k} rows")
        return subspace.k
    if dimension is not None and not 1 <= dimension <= d:
        raise ValueError(f"dimension is {dimension}: it must be between 1 and {d}")
    return d if dimension is None else dimension


def _directions(
    x: Tensor, subspace: _Subspace | None, divergence: str, probes: Tensor | None
) -> Callable[[], Iterator[tuple[Tensor, float]]]:
    """Directions v (batch, *dims) and weights w with trace(J) = sum of w v·J v, anew for every level."""
    if divergence == "exact":
        if probes is not None:
            raise ValueError('probes are for divergence="hutchinson": leave them out, or ask for that')
        if subspace is None:
            d = x[0].numel()

            def units() -> Iterator[tuple[Tensor, float]]:
                for i in range(d):  # as they are asked for: all d would be d times the memory of x
                    v = torch.zeros_like(x)
                    v.flatten(1)[:, i] = 1
                    yield v, 1.0

            return units
        rows = subspace.rows
        return lambda: ((rows[:, i].expand(len(x), -1).reshape(x.shape), 1.0) for i in range(rows.shape[1]))
    if divergence != "hutchinson":
        raise ValueError(f'divergence is "exact" or "hutchinson", not {divergence!r}')
    if probes is None or probes.ndim != x.ndim + 1 or probes.shape[1:] != x.shape or len(probes) == 0:
        got = "none" if probes is None else str(tuple(probes.shape))
        raise ValueError(f"hutchinson needs probes of shape (n_probes, *{tuple(x.shape)}), got {got}")
    vectors = list(probes.detach().clone().to(x))
    if subspace is not None:
        vectors = [subspace.project(v) for v in vectors]
    return lambda: ((v, 1 / len(vectors)) for v in vectors)


def _trace(
    denoise: Denoise, x: Tensor, sigma: float, directions: Iterator[tuple[Tensor, float]], together: bool
) -> tuple[Tensor, Tensor]:
    """D (batch, *dims) and the trace (batch,) of its Jacobian, by a vector-Jacobian product a direction.

    Many of these ``together``, or one after the other.
    """
    at = x.detach().requires_grad_()
    denoised = _checked(denoise, at, _fill(x, sigma))
    if not denoised.requires_grad:
        raise ValueError("log_prob needs the gradient of the denoiser: it must not run under no_grad()")
    trace = x.new_zeros(x.shape[0])
    at_once = max(1, _NUMBERS_AT_ONCE // max(x.numel(), 1)) if together else 1
    while some := list(itertools.islice(directions, at_once)):
        v = torch.stack([each for each, _ in some])
        weights = torch.tensor([weight for _, weight in some], dtype=x.dtype, device=x.device)
        # The items of the batch do not see each other, so the gradient of the sum is that of each item.
        (vjp,) = torch.autograd.grad(
            denoised, at, v if together else v[0], retain_graph=True, is_grads_batched=together
        )
        trace = trace + weights @ (vjp.reshape(v.shape) * v).flatten(2).sum(2)
    return denoised.detach(), trace


def _go_together(denoise: Denoise, x: Tensor, sigma: float) -> bool:
    """Whether all of D goes backwards for several gradients at once: some operations do not."""
    at = x.detach().requires_grad_()
    denoised = _checked(denoise, at, _fill(x, sigma))
    two = torch.zeros_like(denoised).expand(2, *denoised.shape)
    try:
        torch.autograd.grad(denoised, at, two, is_grads_batched=True)
    except RuntimeError:
        return False
    return True


# --------------------------------------------------------------------------------------- helpers


def _levels(sigmas: Tensor) -> list[float]:
    levels: list[float] = sigmas.tolist() if sigmas.ndim == 1 else []
    if len(levels) < 2:
        raise ValueError(f"sigmas must be at least two noise levels in a row, not {tuple(sigmas.shape)}")
    descends = all(a > b for a, b in itertools.pairwise(levels))
    if not (descends and levels[-1] >= 0 and math.isfinite(levels[0])):
        raise ValueError("sigmas must be finite and descend strictly to a last level of 0 or above")
    return levels


def _fill(x: Tensor, sigma: float) -> Tensor:
    return torch.full(x.shape[:1], sigma, dtype=x.dtype, device=x.device)


def _checked(denoise: Denoise, x: Tensor, sigma: Tensor) -> Tensor:
    """D(x, sigma), which must not broadcast or change precision unnoticed."""
    denoised = denoise(x, sigma)
    if denoised.shape != x.shape or denoised.dtype != x.dtype:
        raise ValueError(
            f"the denoiser made {tuple(denoised.shape)} {denoised.dtype} "
            f"of x {tuple(x.shape)} {x.dtype}: both must agree"
        )
    return denoised
