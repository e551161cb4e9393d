"""Noise levels, samplers and likelihoods, on densities whose denoiser is known exactly.

Two targets: a correlated Gaussian, where every solver's exact answer has a closed form, and overdamped
Langevin dynamics in a tilted double well, whose transition density follows from the Fokker-Planck
operator on a grid.  The second is score dynamics in miniature: sample x(t + tau) given x(t), repeat.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo import diffusion
from zoo.diffusion import (
    LIKELIHOOD_LEVELS,
    SOLVERS,
    STOCHASTIC_SOLVERS,
    Denoise,
    Preconditioning,
    log_normal_sigma,
    log_prob,
    log_uniform_sigma,
    n_evaluations,
    score,
    sigma_ladder,
)

F64 = torch.float64
DETERMINISTIC = sorted(set(SOLVERS) - STOCHASTIC_SOLVERS)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def run(solver: str, denoise: Denoise, x: Tensor, sigmas: Tensor, seed: int = 1, **options: Any) -> Tensor:
    """Any solver by name, with noise for those that want it."""
    if solver in STOCHASTIC_SOLVERS:
        options["noise"] = normal(len(sigmas) - 1, *x.shape, seed=seed, dtype=x.dtype)
    return SOLVERS[solver](denoise, x, sigmas, **options)


# ------------------------------------------------------------------------------------- a Gaussian


class Gaussian:
    """Correlated, anisotropic, with its exact denoiser, flow map and log-density."""

    def __init__(self, mean: Tensor, variances: Tensor, seed: int = 3) -> None:
        self.mean, self.variances = mean, variances
        d = len(mean)
        self.axes = torch.linalg.qr(normal(d, d, seed=seed))[0].to(mean)  # columns
        self.covariance = (self.axes * variances) @ self.axes.T

    def _scaled(self, x: Tensor, factors: Tensor) -> Tensor:
        return ((x - self.mean) @ self.axes * factors) @ self.axes.T

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.mean + self._scaled(x, self.variances / (self.variances + sigma[:, None] ** 2))

    def flow(self, x: Tensor, start: float, end: float) -> Tensor:
        """Exact solution of the probability-flow ODE between two noise levels."""
        return self.mean + self._scaled(x, ((self.variances + end**2) / (self.variances + start**2)).sqrt())

    def log_prob(self, x: Tensor, sigma: float) -> Tensor:
        covariance = self.covariance + sigma**2 * torch.eye(len(self.mean), dtype=x.dtype)
        return torch.distributions.MultivariateNormal(self.mean, covariance).log_prob(x)


@pytest.fixture
def gaussian() -> Gaussian:
    return Gaussian(torch.tensor([0.5, -1.0, 0.2], dtype=F64), torch.tensor([0.04, 0.5, 2.0], dtype=F64))


@pytest.mark.parametrize(
    ("solver", "n", "tolerance"),
    [
        ("euler", 200, 0.06),
        ("heun", 60, 0.035),
        ("dpm_multistep", 60, 0.035),
        ("ancestral", 200, 0.08),
        ("stochastic", 100, 0.035),
    ],
)
def test_samplers_reproduce_mean_and_covariance_of_a_gaussian(
    gaussian: Gaussian, solver: str, n: int, tolerance: float
) -> None:
    walkers, sigma_max = 20_000, 20.0
    x = sigma_max * normal(walkers, 3)
    samples = run(solver, gaussian.denoise, x, sigma_ladder(n, 0.01, sigma_max), centre=True)

    error_of_mean = (gaussian.variances.max() / walkers).sqrt()
    assert (samples.mean(0) - gaussian.mean).abs().max() < 3 * error_of_mean
    found = gaussian.axes.T @ torch.cov(samples.T) @ gaussian.axes
    found /= gaussian.variances.outer(gaussian.variances).sqrt()
    # sqrt(2 / walkers) = 1 % is the sampling error of a variance; the rest is the solver's, of its order.
    assert (found - torch.eye(3)).abs().max() < tolerance


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("dpm_multistep", 2)])
def test_deterministic_solvers_converge_to_the_exact_flow_with_their_order(
    gaussian: Gaussian, solver: str, order: int
) -> None:
    sigma_min, sigma_max = 0.05, 10.0
    x = gaussian.mean + (gaussian.variances.max() + sigma_max**2) ** 0.5 * normal(50, 3)
    exact = gaussian.flow(x, sigma_max, sigma_min)
    errors = []
    for n in (80, 160, 320):
        ladder = sigma_ladder(n, sigma_min, sigma_max)[:-1]
        errors.append(float((run(solver, gaussian.denoise, x, ladder) - exact).abs().max()))
    ratios = [coarse / fine for coarse, fine in itertools.pairwise(errors)]
    assert ratios == pytest.approx([2**order] * 2, rel=0.15)
    assert errors[-1] < (0.05 if order == 1 else 0.002)


def test_stochastic_solvers_are_each_other_where_they_should_be(gaussian: Gaussian) -> None:
    x, ladder, noise = 10 * normal(8, 3), sigma_ladder(12, 0.05, 10.0), normal(12, 8, 3, seed=2)
    ode = diffusion.dpm_multistep(gaussian.denoise, x, ladder)
    torch.testing.assert_close(
        diffusion.stochastic(gaussian.denoise, x, ladder, noise=noise, eta=0.0), ode, rtol=0, atol=1e-12
    )

    # Ancestral sampling: the posterior of x at the next level, given x and x0 = D.
    expected = x
    for i, (s, t) in enumerate(itertools.pairwise(ladder.tolist())):
        denoised = gaussian.denoise(expected, torch.full((8,), s, dtype=F64))
        expected = (
            denoised + (t / s) ** 2 * (expected - denoised) + t * math.sqrt(1 - (t / s) ** 2) * noise[i]
        )
    found = diffusion.ancestral(gaussian.denoise, x, ladder, noise=noise)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_centred_samplers_have_no_bias_towards_zero() -> None:
    """The bias m s / sigma_max of a start around 0, gone without another evaluation."""
    mean, std, sigma_max = 0.8, 0.5, 5.0
    target = Gaussian(torch.tensor([mean], dtype=F64), torch.tensor([std**2], dtype=F64))
    x = torch.zeros(1, 1, dtype=F64)  # the middle of the noise goes to the middle of the samples
    ladder = sigma_ladder(200, 0.01, sigma_max)
    for solver in DETERMINISTIC:
        calls: list[Tensor] = []

        def counted(x: Tensor, s: Tensor, calls: list[Tensor] = calls) -> Tensor:
            calls.append(s)
            return target.denoise(x, s)

        bias = float(run(solver, counted, x, ladder)) - mean
        assert bias == pytest.approx(-mean * std / sigma_max, rel=0.05)
        bias_centred = float(run(solver, counted, x, ladder, centre=True)) - mean
        assert abs(bias_centred) < abs(bias) / 50
        assert len(calls) == 2 * n_evaluations(solver, 200)


@pytest.mark.parametrize("solver", SOLVERS)
def test_evaluations_and_callbacks_are_as_said(gaussian: Gaussian, solver: str) -> None:
    calls, seen = [], []

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(sigma)
        assert sigma.shape == (4,)
        assert bool((sigma == sigma[0]).all())
        return gaussian.denoise(x, sigma)

    ladder = sigma_ladder(7, 0.05, 10.0)
    last = run(
        solver, counted, normal(4, 3), ladder, callback=lambda i, s, x, d: seen.append((i, s, x.shape, d))
    )
    assert len(calls) == n_evaluations(solver, 7)
    assert [(i, s) for i, s, _, _ in seen] == list(enumerate(ladder[:-1].tolist()))
    assert all(shape == (4, 3) for _, _, shape, _ in seen)
    torch.testing.assert_close(last, seen[-1][3], rtol=0, atol=0)  # the step to zero noise ends on D


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_is_its_items_and_keeps_its_dtype(solver: str, dtype: torch.dtype) -> None:
    def denoise(x: Tensor, sigma: Tensor) -> Tensor:  # elementwise, so that it adds no rounding of its own
        return x.tanh() / (1 + diffusion.broadcast(sigma, x) ** 2)

    x, ladder = 5 * normal(3, 2, 2, dtype=dtype), sigma_ladder(6, 0.05, 5.0)
    noise = normal(6, 3, 2, 2, seed=1, dtype=dtype)

    def sampled(x: Tensor, noise: Tensor) -> Tensor:
        options = {"noise": noise} if solver in STOCHASTIC_SOLVERS else {}
        return SOLVERS[solver](denoise, x, ladder, **options)

    original, state = x.clone(), torch.get_rng_state()
    together = sampled(x, noise)
    assert together.dtype == dtype
    alone = torch.cat([sampled(x[i : i + 1], noise[:, i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=0)
    assert torch.equal(x, original)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32


# --------------------------------------------------------------------------- a tilted double well


class DoubleWell:
    """Overdamped Langevin dynamics, dx = -U'(x) dt + sqrt(2) dW with U = h (x^2 - 1)^2 + tilt x, in kT.

    The Fokker-Planck operator with detailed balance on a grid, symmetrised by exp(-U/2), is exponentiated
    by its eigenvectors: ``transitions[i, j]`` = P(x_i -> x_j) in the lag time.
    """

    def __init__(self, lag: float, height: float = 2.5, tilt: float = 0.4, n: int = 121) -> None:
        self.grid = torch.linspace(-2.2, 2.2, n, dtype=F64)
        self.dx = float(self.grid[1] - self.grid[0])
        energy = height * (self.grid**2 - 1) ** 2 + tilt * self.grid
        forward = torch.exp((energy[:-1] - energy[1:]) / 2) / self.dx**2
        generator = torch.diag(torch.full((n - 1,), self.dx**-2, dtype=F64), 1)
        generator = generator + generator.T
        generator -= torch.diag(torch.cat([forward, forward.new_zeros(1)]))
        generator -= torch.diag(torch.cat([forward.new_zeros(1), forward.pow(-1) / self.dx**4]))
        rates, modes = torch.linalg.eigh(generator)
        root = torch.exp(-energy / 2)
        self.transitions = ((modes * torch.exp(rates * lag)) @ modes.T * root / root[:, None]).clamp(min=0)
        self.equilibrium = torch.softmax(-energy, 0)

    def log_weights(self, x: Tensor) -> Tensor:
        """x (batch,) -> ln P(x -> x_j) (batch, n), rows in between those of the grid interpolated."""
        at = (x - self.grid[0]) / self.dx
        low = at.floor().long().clamp(0, len(self.grid) - 2)
        part = (at - low)[:, None]
        rows = (1 - part) * self.transitions[low] + part * self.transitions[low + 1]
        return torch.log(rows.clamp(min=1e-300))

    def denoiser(self, x: Tensor) -> Denoise:
        """Exact D of the displacement from x (batch,), by quadrature over the grid."""
        log_weights = self.log_weights(x)

        def denoise(displacement: Tensor, sigma: Tensor) -> Tensor:
            noise = displacement + x[:, None] - self.grid
            weights = torch.softmax(log_weights - noise**2 / (2 * sigma[:, None] ** 2), dim=1)
            return (weights @ self.grid - x)[:, None]

        return denoise

    def log_density(self, x_next: Tensor, x: Tensor, sigma: float) -> Tensor:
        """ln of the exact transition density convolved with N(0, sigma^2), each (batch,)."""
        kernel = -((x_next[:, None] - self.grid) ** 2) / (2 * sigma**2)
        return torch.logsumexp(self.log_weights(x) + kernel, 1) - math.log(sigma * math.sqrt(2 * math.pi))


@pytest.fixture(scope="module")
def well() -> DoubleWell:
    return DoubleWell(lag=0.4)


def test_the_reference_propagator_is_one(well: DoubleWell) -> None:
    """Rows sum to 1, the Boltzmann distribution is stationary, short-time drift and diffusion are right."""
    torch.testing.assert_close(well.transitions.sum(1), torch.ones(121, dtype=F64), rtol=0, atol=1e-3)
    torch.testing.assert_close(well.equilibrium @ well.transitions, well.equilibrium, rtol=0, atol=1e-6)
    short = DoubleWell(lag=1e-3)
    i = 40
    x = float(short.grid[i])
    displacement = short.grid - x
    force = -4 * 2.5 * x * (x**2 - 1) - 0.4
    assert float(short.transitions[i] @ displacement) == pytest.approx(1e-3 * force, rel=0.05)
    assert float(short.transitions[i] @ displacement**2) == pytest.approx(2e-3, rel=0.05)


# Total variation from the exact density, mean of four starting points; measured, plus some margin.
@pytest.mark.parametrize(
    ("solver", "n", "limit"),
    [
        ("euler", 20, 0.06),
        ("heun", 8, 0.05),
        ("heun", 10, 0.03),
        ("dpm_multistep", 8, 0.045),
        ("dpm_multistep", 10, 0.03),
        ("dpm_multistep", 20, 0.015),
        ("ancestral", 20, 0.1),
        ("stochastic", 20, 0.05),
    ],
)
def test_samplers_draw_from_the_exact_transition_density(
    well: DoubleWell, solver: str, n: int, limit: float
) -> None:
    assert n_evaluations(solver, n) <= 20
    walkers, sigma_max = 1200, 5.0
    # Evenly spread quantiles: a deterministic solver then has next to no sampling error.
    quantiles = (torch.arange(walkers, dtype=F64) + 0.5) / walkers
    noise = sigma_max * torch.special.ndtri(quantiles)[:, None]
    edges = torch.cat([well.grid - well.dx / 2, well.grid[-1:] + well.dx / 2])[::4]
    distances = []
    for start in (-1.1, -0.4, 0.1, 0.9):
        x = torch.full((walkers,), start, dtype=F64)
        moved = x + run(solver, well.denoiser(x), noise, sigma_ladder(n, 0.03, sigma_max), centre=True)[:, 0]
        found = torch.histogram(moved, edges).hist / walkers
        exact = well.log_weights(x[:1])[0].exp()[:120].reshape(-1, 4).sum(1)
        distances.append(float((found - exact).abs().sum() / 2))
    assert sum(distances) / 4 < limit


@pytest.mark.parametrize(("solver", "n"), [("dpm_multistep", 10), ("stochastic", 16)])
def test_repeated_steps_relax_as_the_dynamics_does(solver: str, n: int) -> None:
    """Score dynamics in miniature: rate of crossing on the way, Boltzmann at the end."""
    walkers, steps, sigma_max = 1500, 16, 5.0
    generator = torch.Generator().manual_seed(7)
    slow = DoubleWell(lag=1.5)
    x = torch.full((walkers,), 1.0, dtype=F64)  # all in the less populated well
    exact = slow.log_weights(x[:1])[0].exp()
    left = slow.grid < 0
    late = []
    for step in range(steps):
        noise = torch.randn(n + 1, walkers, 1, dtype=F64, generator=generator)
        options = {"noise": noise[1:]} if solver in STOCHASTIC_SOLVERS else {}
        ladder = sigma_ladder(n, 0.03, sigma_max)
        x = x + SOLVERS[solver](slow.denoiser(x), sigma_max * noise[0], ladder, centre=True, **options)[:, 0]
        if step in (0, 1, 3, 7):
            assert float((x < 0).double().mean()) == pytest.approx(float(exact[left].sum()), abs=0.04)
        exact = exact @ slow.transitions
        if step >= 8:
            late.append(x)
    edges = torch.cat([slow.grid - slow.dx / 2, slow.grid[-1:] + slow.dx / 2])[::5]
    found = torch.histogram(torch.cat(late), edges).hist / (walkers * len(late))
    boltzmann = slow.equilibrium[:120].reshape(-1, 5).sum(1)
    assert float(boltzmann[:12].sum()) > 0.6  # the test is of an asymmetric well
    assert float((found - boltzmann).abs().sum() / 2) < 0.05


# ------------------------------------------------------------------------------------- likelihood


def likelihood_ladder(sigma_min: float, sigma_max: float, n: int = LIKELIHOOD_LEVELS) -> Tensor:
    return sigma_ladder(n, sigma_min, sigma_max, rho=math.inf)


def test_log_prob_of_a_gaussian(gaussian: Gaussian) -> None:
    x = gaussian.mean + normal(16, 3) @ torch.linalg.cholesky(gaussian.covariance).T
    exact = gaussian.log_prob(x, 0.02)
    found = log_prob(gaussian.denoise, x, likelihood_ladder(0.02, 100.0), centre=True)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.03)

    errors = [
        float((log_prob(gaussian.denoise, x, likelihood_ladder(0.02, 1000.0, n)) - exact).abs().max())
        for n in (60, 120)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.25)


def test_log_prob_is_of_the_density_at_the_smallest_noise_level(gaussian: Gaussian) -> None:
    x = gaussian.mean + normal(8, 3) @ torch.linalg.cholesky(gaussian.covariance).T
    for sigma_min in (0.1, 0.5):
        found = log_prob(gaussian.denoise, x, likelihood_ladder(sigma_min, 300.0, 100))
        torch.testing.assert_close(found, gaussian.log_prob(x, sigma_min), rtol=0, atol=0.03)
    with_zero = likelihood_ladder(0.5, 300.0, 100)
    torch.testing.assert_close(log_prob(gaussian.denoise, x, with_zero[:-1]), found, rtol=0, atol=0)


def test_log_prob_takes_the_terminal_gaussian_as_told() -> None:
    """With one variance and the right sigma_data and centre, sigma_max may even be small."""
    target = Gaussian(torch.tensor([0.7, -0.3], dtype=F64), torch.full((2,), 0.81, dtype=F64))
    x = target.mean + normal(6, 2)
    ladder = likelihood_ladder(0.05, 2.0, 100)
    found = log_prob(target.denoise, x, ladder, sigma_data=0.9, centre=True)
    torch.testing.assert_close(found, target.log_prob(x, 0.05), rtol=0, atol=0.01)
    for options in ({"sigma_data": 0.9}, {"centre": True}):
        assert (log_prob(target.denoise, x, ladder, **options) - found).abs().max() > 0.05


def subspace_case() -> tuple[Gaussian, Tensor, Denoise, Tensor]:
    """Three atoms in the plane without their mean position: (k=4 Gaussian, basis, D, x (8, 3, 2))."""
    inner = Gaussian(normal(4, seed=5) / 2, torch.tensor([0.1, 0.3, 0.6, 1.5], dtype=F64))
    means = torch.eye(2, dtype=F64).repeat(1, 3) / math.sqrt(3)
    basis = torch.linalg.qr(torch.cat([means, normal(4, 6, seed=6)]).T)[0].T[2:]

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return (inner.denoise(x.flatten(1) @ basis.T, sigma) @ basis).reshape(x.shape)

    coordinates = inner.mean + normal(8, 4) @ torch.linalg.cholesky(inner.covariance).T
    return inner, basis, denoise, (coordinates @ basis).reshape(8, 3, 2)


def test_log_prob_in_a_subspace() -> None:
    inner, basis, denoise, x = subspace_case()
    torch.testing.assert_close(x.mean(1), torch.zeros(8, 2, dtype=F64), rtol=0, atol=1e-12)
    exact = inner.log_prob(x.flatten(1) @ basis.T, 0.05)
    ladder = likelihood_ladder(0.05, 100.0)
    found = log_prob(denoise, x, ladder, basis=basis)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.05)
    per_item = torch.stack([torch.linalg.qr(normal(4, 4, seed=i))[0] @ basis for i in range(8)])
    torch.testing.assert_close(log_prob(denoise, x, ladder, basis=per_item), found, rtol=0, atol=1e-9)
    # D ignores what is outside of the subspace, so the full trace is that of the subspace.
    torch.testing.assert_close(log_prob(denoise, x, ladder, dimension=4), found, rtol=0, atol=1e-9)


def test_log_prob_in_a_subspace_of_each_item() -> None:
    """As for a conditional model: another subspace per item, and a D that does not ignore the outside."""
    inner, _, _, _ = subspace_case()
    basis = torch.stack([torch.linalg.qr(normal(6, 6, seed=10 + i))[0][:4] for i in range(3)])

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        coordinates = torch.einsum("bkd,bd->bk", basis, x)
        outside = x - torch.einsum("bkd,bk->bd", basis, coordinates)
        return torch.einsum("bkd,bk->bd", basis, inner.denoise(coordinates, sigma)) + outside / 2

    coordinates = inner.mean + normal(3, 4) @ torch.linalg.cholesky(inner.covariance).T
    x, ladder = torch.einsum("bkd,bk->bd", basis, coordinates), likelihood_ladder(0.05, 100.0)
    found = log_prob(denoise, x, ladder, basis=basis)
    torch.testing.assert_close(found, inner.log_prob(coordinates, 0.05), rtol=0, atol=0.05)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=6)), dtype=F64)
    probes, ladder = signs[:, None].expand(-1, 3, -1), likelihood_ladder(0.1, 50.0, 8)
    torch.testing.assert_close(
        log_prob(denoise, x, ladder, basis=basis, divergence="hutchinson", probes=probes),
        log_prob(denoise, x, ladder, basis=basis),
    )


@pytest.mark.parametrize("in_subspace", [False, True])
def test_hutchinson_is_unbiased(gaussian: Gaussian, in_subspace: bool) -> None:
    """The mean over all vectors of signs is the exact trace; single ones scatter around it."""
    ladder = likelihood_ladder(0.1, 50.0, 12)
    if in_subspace:
        _, basis, denoise, x = subspace_case()
        exact = log_prob(denoise, x, ladder, basis=basis)
    else:
        denoise, basis, x = gaussian.denoise, None, normal(8, 3)
        exact = log_prob(denoise, x, ladder)
    d = x[0].numel()
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=d)), dtype=F64)
    probes = signs.reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
    options: dict[str, Any] = {"basis": basis, "divergence": "hutchinson"}
    torch.testing.assert_close(log_prob(denoise, x, ladder, probes=probes, **options), exact)
    single = log_prob(denoise, x, ladder, probes=probes[1:2], **options)
    assert (single - exact).abs().max() > 0.05


def test_log_prob_of_a_transition_in_the_double_well(well: DoubleWell) -> None:
    sigma_min = 0.05
    x_next = torch.linspace(-1.5, 1.5, 41, dtype=F64)
    for start in (-1.1, 0.1):
        x = torch.full_like(x_next, start)
        exact = well.log_density(x_next, x, sigma_min)
        ladder = likelihood_ladder(sigma_min, 30.0)
        found = log_prob(well.denoiser(x), (x_next - x)[:, None], ladder, centre=True)
        likely = exact > exact.max() - 6
        assert (found - exact)[likely].abs().max() < 0.05
        assert float(torch.trapezoid(found.exp(), x_next)) == pytest.approx(
            float(torch.trapezoid(exact.exp(), x_next)), abs=0.02
        )


def test_log_prob_runs_without_gradients_around_it_and_leaves_none(gaussian: Gaussian) -> None:
    weight = torch.nn.Parameter(torch.ones(3, dtype=F64))
    x, ladder = normal(4, 3), likelihood_ladder(0.1, 50.0, 8)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return weight * gaussian.denoise(x, sigma)

    state = torch.get_rng_state()
    plain = log_prob(denoise, x, ladder)
    with torch.no_grad():
        assert torch.equal(log_prob(denoise, x, ladder), plain)
    with torch.inference_mode():
        assert torch.equal(log_prob(denoise, x.clone(), ladder), plain)
    assert weight.grad is None
    assert not plain.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(log_prob(denoise, x[1:2], ladder), plain[1:2])

    def single(x: Tensor, sigma: Tensor) -> Tensor:
        return gaussian.denoise(x.double(), sigma.double()).to(x.dtype)

    found = log_prob(single, x.float(), ladder)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), plain, rtol=0, atol=1e-3)


class _OneAtATime(torch.autograd.Function):
    """Twice x, by an operation that goes backwards for one gradient at a time only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        assert gradient.abs().max() < math.inf  # a decision that depends on the values
        return 2 * gradient


def test_log_prob_takes_products_together_or_one_by_one(
    gaussian: Gaussian, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, ladder = normal(5, 3), likelihood_ladder(0.1, 50.0, 8)
    calls = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **more: calls.append(more) or grad(*a, **more))
    together = log_prob(gaussian.denoise, x, ladder)
    assert len(calls) == 1 + 8 and all(each["is_grads_batched"] for each in calls)
    monkeypatch.setattr(diffusion, "_NUMBERS_AT_ONCE", 2 * 5 * 3)  # two of three directions, and then one
    torch.testing.assert_close(log_prob(gaussian.denoise, x, ladder), together)
    assert len(calls) == 9 + 17

    def stubborn(x: Tensor, sigma: Tensor) -> Tensor:
        return 0.5 * _OneAtATime.apply(gaussian.denoise(x, sigma))

    torch.testing.assert_close(log_prob(stubborn, x, ladder), together)
    assert len(calls) == 26 + 1 + 8 * 3  # tried once


# ------------------------------------------------------------------------------------------ score


def test_score_is_the_gradient_of_the_log_density(gaussian: Gaussian, well: DoubleWell) -> None:
    x = normal(6, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(gaussian.log_prob(x, 0.3).sum(), x)
    torch.testing.assert_close(score(gaussian.denoise, x.detach(), 0.3), gradient)

    start = torch.linspace(-1.2, 1.0, 5, dtype=F64)
    for sigma in (0.1, 1.0):
        x_next = (start + normal(5, seed=9) / 3).requires_grad_()
        (gradient,) = torch.autograd.grad(well.log_density(x_next, start, sigma).sum(), x_next)
        displacement = (x_next.detach() - start)[:, None]
        found = score(well.denoiser(start), displacement, torch.full((5,), sigma, dtype=F64))
        torch.testing.assert_close(found[:, 0], gradient)


# ------------------------------------------------------------------- preconditioning and noise levels


@pytest.mark.parametrize("sigma", [1e-3, 0.2, 0.7, 30.0])
def test_preconditioning_makes_inputs_and_targets_of_unit_variance(sigma: float) -> None:
    pre, s = Preconditioning(0.7), torch.tensor([sigma], dtype=F64)
    # Input and target are linear in the independent x0 and noise, both of which are normal:
    clean = torch.tensor([[0.7, 0.0]], dtype=F64)
    noisy = clean + sigma * torch.tensor([[0.0, 1.0]], dtype=F64)
    into, target = pre.c_in(s) * noisy, pre.target(clean, noisy, s)
    assert float((into**2).sum()) == pytest.approx(1, rel=1e-9)
    assert float((target**2).sum()) == pytest.approx(1, rel=1e-9)
    # ... and uncorrelated, which is what makes c_out, the weight of the network's errors, smallest.
    assert float((into * target).sum()) == pytest.approx(0, abs=1e-9)
    assert float(pre.c_noise(s)) == pytest.approx(math.log(sigma) / 4)

    def network(x: Tensor, c_noise: Tensor) -> Tensor:
        torch.testing.assert_close(x, into)
        torch.testing.assert_close(c_noise, s.log() / 4)
        return target + 0.01

    denoised = pre.wrap(network)(noisy, s)
    weighted = pre.loss_weight(s) * (denoised - clean) ** 2
    torch.testing.assert_close(weighted, torch.full_like(weighted, 0.01**2), rtol=1e-6, atol=0)


def test_a_wrapped_network_sees_one_sigma_per_item() -> None:
    """Each item by its own level, any number of axes, and the limits of EDM: D -> x as sigma -> 0."""
    denoise = Preconditioning(1.0).wrap(lambda x, c_noise: torch.zeros_like(x))
    x, sigma = normal(3, 4, 2, dtype=torch.float32), torch.tensor([1e-4, 1.0, 1e4])
    out = denoise(x, sigma)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, torch.stack([x[0], x[1] / 2, torch.zeros(4, 2)]), rtol=1e-6, atol=1e-6)


def test_noise_levels_for_training() -> None:
    quantiles = (torch.arange(1000, dtype=F64) + 0.5) / 1000
    logs = log_normal_sigma(quantiles, mean=-1.0, std=0.8).log()
    assert float(logs.mean()) == pytest.approx(-1.0, abs=1e-6)
    assert float(logs.std()) == pytest.approx(0.8, rel=0.01)
    for dtype in (torch.float32, torch.float64):  # what torch.rand returns once in a long while
        ends = log_normal_sigma(torch.tensor([0.0, 1.0], dtype=dtype))
        assert ends.dtype == dtype
        assert bool(ends.isfinite().all())
        assert float(ends.min()) > 0

    levels = log_uniform_sigma(torch.tensor([0.0, 0.5, 1.0], dtype=F64), 0.01, 4.0)
    torch.testing.assert_close(levels, torch.tensor([0.01, 0.2, 4.0], dtype=F64))


@pytest.mark.parametrize("rho", [1.0, 7.0, math.inf])
def test_ladder_is_even_in_the_power_asked_for(rho: float) -> None:
    ladder = sigma_ladder(9, 0.02, 5.0, rho)
    assert ladder.shape == (10,)
    assert ladder.dtype == F64
    assert ladder[[0, 8, 9]].tolist() == pytest.approx([5.0, 0.02, 0.0])
    even = ladder[:-1].log() if math.isinf(rho) else ladder[:-1] ** (1 / rho)
    torch.testing.assert_close(even.diff(), even.diff()[:1].expand(8))
    assert sigma_ladder(1, 0.02, 5.0, rho).tolist() == pytest.approx([5.0, 0.0])


# -------------------------------------------------------------------------------------- bad input


def identity(x: Tensor, sigma: Tensor) -> Tensor:
    return x / 2


X, LADDER = torch.ones(2, 3), sigma_ladder(3, 0.1, 1.0)
PROBES: dict[str, Any] = {"divergence": "hutchinson"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sigma_ladder(0, 0.1, 1.0), "at least one"),
        (lambda: sigma_ladder(5, 1.0, 0.1), "sigma_min < sigma_max"),
        (lambda: sigma_ladder(5, 0.0, 1.0), "0 < sigma_min"),
        (lambda: sigma_ladder(5, 0.1, math.nan), "sigma_max"),
        (lambda: sigma_ladder(5, 0.1, 1.0, rho=0), "rho"),
        (lambda: log_uniform_sigma(X, 2.0, 1.0), "sigma_min < sigma_max"),
        (lambda: log_normal_sigma(X, std=0), "std"),
        (lambda: Preconditioning(0.0), "sigma_data"),
        (lambda: Preconditioning(1.0).wrap(identity)(X, torch.ones(3)), "one sigma per batch item"),
        (lambda: n_evaluations("rk45", 5), "choose one of euler, heun"),
        (lambda: n_evaluations("heun", 0), "at least one"),
        (lambda: diffusion.euler(identity, X, LADDER.flip(0)), "descend"),
        (lambda: diffusion.heun(identity, X, torch.tensor([1.0, math.nan, 0.0])), "descend"),
        (lambda: diffusion.heun(identity, X, torch.tensor([1.0, 0.0, -1.0])), "descend"),
        (lambda: diffusion.heun(identity, X, LADDER[:1]), "at least two"),
        (lambda: diffusion.euler(lambda x, s: x.double(), X, LADDER), "torch.float64"),
        (lambda: diffusion.heun(lambda x, s: x[:, :1], X, LADDER), r"\(2, 1\)"),
        (lambda: diffusion.ancestral(identity, X, LADDER, noise=torch.ones(2, 2, 3)), r"\(3, 2, 3\)"),
        (lambda: diffusion.stochastic(identity, X, LADDER, noise=torch.ones(3, 2, 3), eta=-1.0), "eta"),
        (lambda: score(identity, X, 0.0), "positive noise level"),
        (lambda: log_prob(identity, X, LADDER[-2:]), "two positive"),
        (lambda: log_prob(identity, X, LADDER, sigma_data=-1.0), "sigma_data"),
        (lambda: log_prob(identity, X, LADDER, dimension=4), "between 1 and 3"),
        (lambda: log_prob(identity, X, LADDER, basis=torch.eye(3), dimension=2), "does not agree"),
        (lambda: log_prob(identity, X, LADDER, basis=torch.eye(4)), r"\(k, 3\)"),
        (lambda: log_prob(identity, X, LADDER, basis=2 * torch.eye(3)), "orthonormal"),
        (lambda: log_prob(identity, X, LADDER, basis=torch.eye(3)[:2]), "x lies outside"),
        (
            lambda: log_prob(lambda x, s: x + 1, X * torch.eye(3)[0], LADDER, basis=torch.eye(3)[:1]),
            r"D\(x, sigma\) lies outside",
        ),
        (lambda: log_prob(identity, X, LADDER, divergence="none"), "exact"),  # type: ignore[arg-type]
        (lambda: log_prob(identity, X, LADDER, probes=torch.ones(1, 2, 3)), "hutchinson"),
        (lambda: log_prob(identity, X, LADDER, **PROBES), "got none"),
        (lambda: log_prob(identity, X, LADDER, probes=torch.ones(2, 3), **PROBES), r"\(2, 3\)"),
        (lambda: log_prob(lambda x, s: x.detach(), X, LADDER), "no_grad"),
    ],
)
def test_bad_input_is_one_clear_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
