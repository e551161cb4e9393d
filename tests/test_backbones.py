"""What every backbone must be: equivariant, smooth, indifferent to order, chunks and company."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from training.lattices import LATTICES, conventional
from zoo.backbones.moments import Moments, MomentsConfig, angular_moments
from zoo.denoiser import BACKBONES
from zoo.graph import neighbor_graph

Array = npt.NDArray[np.float64]
Predict = Callable[..., Array]
OPEN = np.zeros((3, 3))


def network(name: str) -> nn.Module:
    config_type, network_type = BACKBONES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return network_type(config_type()).eval()


@pytest.fixture(scope="module", params=sorted(BACKBONES))
def predict(request: pytest.FixtureRequest) -> Predict:
    """positions, cell, pbc -> (n_atoms, 3) by an untrained network of each kind."""
    net: Any = network(request.param)

    def call(positions: Array, cell: Array = OPEN, pbc: Any = False, **kwargs: Any) -> Array:
        with torch.no_grad():
            out: torch.Tensor = net(neighbor_graph(positions, cell, pbc, net.cutoff), **kwargs)
        assert out.dtype == torch.float32
        assert out.shape == (len(positions), 3)
        return out.numpy().astype(np.float64)

    return call


@pytest.fixture(scope="module")
def noised() -> tuple[Array, Array]:
    """fcc with noise in an oblique cell; unit density."""
    cell = np.array([[3.2, 0, 0], [1.6, 3.1, 0], [-1.1, 0.7, 3.3]])
    fractional = np.stack(np.meshgrid(*[np.arange(3) / 3] * 3, indexing="ij"), -1).reshape(-1, 3)
    return fractional @ cell + np.random.default_rng(0).normal(0, 0.12, (27, 3)), cell


def close(a: Array, b: Array, tolerance: float = 2e-5) -> None:
    size = np.abs(b).max()
    assert size > 1e-4, "nothing to compare"
    np.testing.assert_allclose(a, b, atol=tolerance * size + 1e-8, rtol=0)


def test_turns_and_reflects_with_the_structure(predict: Predict, noised: tuple[Array, Array]) -> None:
    x, cell = noised
    q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    before = predict(x, cell, True)
    close(predict(x @ q, cell @ q, True), before @ q)
    close(predict(-x, -cell, True), -before)
    close(predict(x @ q), predict(x) @ q)


def test_translation_and_images_change_nothing(predict: Predict, noised: tuple[Array, Array]) -> None:
    x, cell = noised
    turns = np.random.default_rng(2).integers(-2, 3, x.shape)
    close(predict(x + [0.3, -5.0, 2.0], cell, True), predict(x, cell, True))
    close(predict(x + turns @ cell, cell, True), predict(x, cell, True))


def test_order_does_not_matter(predict: Predict, noised: tuple[Array, Array]) -> None:
    x, cell = noised
    order = np.random.default_rng(3).permutation(len(x))
    close(predict(x[order], cell, True), predict(x, cell, True)[order])


def test_two_structures_at_once_are_two_structures(predict: Predict, noised: tuple[Array, Array]) -> None:
    a, b = noised[0], noised[0][:14] * [1.0, 0.9, 1.1]
    together = predict(np.concatenate([a, b + 100.0]))
    close(together[: len(a)], predict(a))
    close(together[len(a) :], predict(b))


def test_a_repeated_cell_gives_repeated_vectors(predict: Predict, noised: tuple[Array, Array]) -> None:
    x, cell = noised
    twice = predict(np.concatenate([x, x + cell[1]]), cell * [[1], [2], [1]], True)
    one = predict(x, cell, True)
    close(twice, np.concatenate([one, one]))


def test_chunks_change_nothing(predict: Predict, noised: tuple[Array, Array]) -> None:
    x, cell = noised
    whole = predict(x, cell, True, chunk=1000)
    for chunk in (1, 4, 26, 27):
        close(predict(x, cell, True, chunk=chunk), whole, 1e-5)


@pytest.mark.parametrize("lattice", [name for name in LATTICES if name in ("fcc", "bcc", "simple cubic")])
def test_centres_of_inversion_do_not_move(predict: Predict, lattice: str) -> None:
    atoms = conventional(lattice).repeat(3)
    assert np.abs(predict(atoms.positions, atoms.cell[:], True)).max() < 1e-5


@pytest.mark.parametrize("lattice", ["cubic diamond", "hcp"])
def test_sites_without_a_polar_direction_do_not_move(predict: Predict, lattice: str) -> None:
    # No centre of inversion, but the point groups -43m and -6m2 leave no vector alone either.
    atoms = conventional(lattice).repeat(3)
    assert np.abs(predict(atoms.positions, atoms.cell[:], True)).max() < 1e-5


def test_smooth_where_an_atom_crosses_the_cutoff(predict: Predict) -> None:
    rest = np.array([[0.0, 0, 0], [1.0, 0.1, 0], [0.1, 1.0, 0.2]])
    cutoff = BACKBONES["moments"][0]().cutoff

    def at(distance: float) -> Array:
        return predict(np.concatenate([rest, [[-distance, 0, 0]]]))[0]

    inside, outside = at(cutoff - 1e-4), at(cutoff + 1e-4)
    effect = np.abs(at(cutoff - 0.6) - outside).max()  # the atom matters once it is well inside
    assert effect > 1e-5
    assert np.abs(inside - outside).max() < 0.01 * effect


@pytest.mark.parametrize("n_atoms", [1, 2, 3])
def test_few_neighbors(predict: Predict, n_atoms: int) -> None:
    # One neighbour each is the narrowest table there is; none at all must work too.
    out = predict(np.arange(n_atoms)[:, None] * np.array([1.0, 0.2, 0.1]))
    assert np.isfinite(out).all()
    assert np.isfinite(predict(np.arange(n_atoms)[:, None] * np.array([50.0, 0, 0]))).all()


def test_coincident_atoms_stay_finite(predict: Predict) -> None:
    assert np.isfinite(predict(np.zeros((2, 3)) + [[0, 0, 0], [1e-7, 0, 0]])).all()


def test_gradients_reach_every_parameter(noised: tuple[Array, Array]) -> None:
    for name in BACKBONES:
        net = network(name)
        x, cell = noised
        graph = neighbor_graph(x, cell, True, float(net.cutoff))  # type: ignore[arg-type]
        known = {"context": (0.05, 0.02)} if "context" in inspect.signature(net.forward).parameters else {}
        net(graph, **known).square().sum().backward()
        idle = [key for key, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert idle == []


def sphere(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions and weights that integrate polynomials of the sphere up to degree 2 n - 1."""
    z, w = np.polynomial.legendre.leggauss(n)
    phi = 2 * np.pi * np.arange(2 * n) / (2 * n)
    r = np.sqrt(1 - z**2)
    xyz = np.stack(
        [np.outer(r, np.cos(phi)), np.outer(r, np.sin(phi)), np.outer(z, np.ones_like(phi))], -1
    ).reshape(-1, 3)
    return torch.from_numpy(xyz), torch.from_numpy(np.repeat(w, 2 * n) / (2 * 2 * n))


def test_angular_moments_are_orthonormal() -> None:
    points, weights = sphere(6)
    y = angular_moments(points, 4)
    assert y.shape == (len(points), 25)
    torch.testing.assert_close(y.T @ (weights[:, None] * y), torch.eye(25, dtype=torch.float64))


@pytest.mark.parametrize("degree", range(5))
def test_addition_theorem(degree: int) -> None:
    rng = np.random.default_rng(4)
    a, b = (
        torch.from_numpy(v / np.linalg.norm(v, axis=1, keepdims=True)) for v in rng.normal(size=(2, 20, 3))
    )
    part = slice(degree**2, (degree + 1) ** 2)
    products = (angular_moments(a, 4)[:, part] * angular_moments(b, 4)[:, part]).sum(1)
    coefficients = [0.0] * degree + [2 * degree + 1.0]
    legendre = np.polynomial.legendre.legval((a * b).sum(1).numpy(), coefficients)
    np.testing.assert_allclose(products, legendre, atol=1e-12)


@pytest.mark.parametrize("l_max", range(5))
def test_fewer_moments_are_the_first_ones(l_max: int) -> None:
    points, _ = sphere(2)
    assert torch.equal(angular_moments(points, l_max), angular_moments(points, 4)[:, : (l_max + 1) ** 2])


@pytest.mark.parametrize(
    "bad",
    [
        {"cutoff": 0.0}, {"cutoff": float("nan")}, {"cutoff": "1.65"}, {"n_channels": 0}, {"n_channels": 2.5},
        {"n_radial": 0}, {"n_layers": -1}, {"l_density": 1}, {"l_density": 5}, {"n_channels": 10**7},
    ],
)  # fmt: skip
def test_impossible_architectures_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        MomentsConfig(**bad)


@pytest.mark.parametrize("good", [{"n_layers": 0}, {"n_radial": 1}, {"l_density": 2}, {"n_channels": 1}])
def test_small_architectures_work(good: dict[str, Any], noised: tuple[Array, Array]) -> None:
    net = Moments(MomentsConfig(**{"n_channels": 4, "n_radial": 2, "n_layers": 1, **good}))
    x, cell = noised
    assert torch.isfinite(net(neighbor_graph(x, cell, True, net.cutoff))).all()
