"""The patterns of turned tetrahedra: they lead to the alpha phases, and go on only so far."""

from __future__ import annotations

from itertools import combinations, permutations, product

import numpy as np
import pytest
import vesin

from training import polymorph_structures as structures
from training.lattices import noise
from training.polymorphs import PARENTS, SILICA, orthogonal
from training.turns import ALPHA_OF, amplitudes, turned, turns

CUBE = [
    np.eye(3)[list(order)] * np.array(signs)[:, None]
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]


@pytest.mark.parametrize("name", SILICA)
def test_patterns_are_as_large_as_in_the_alpha_phase_and_shift_nothing(name: str) -> None:
    patterns = turns(name)
    assert patterns.shape[::2] == (len(orthogonal(name)), 3)
    np.testing.assert_allclose(patterns.mean(0), 0, atol=1e-9)
    sizes = np.sqrt((patterns**2).sum((0, 2)) / len(patterns))
    alpha = turns(ALPHA_OF.get(name, name))[:, 0]
    np.testing.assert_allclose(sizes, np.sqrt((alpha**2).sum(1).mean()), rtol=1e-6)


@pytest.mark.parametrize("alpha", PARENTS)
def test_against_its_pattern_an_alpha_phase_has_the_sites_of_its_parent(alpha: str) -> None:
    """Bonds of silicon and oxygen are then all alike but for the cell, as in the beta phase."""
    atoms = orthogonal(alpha)
    atoms.set_cell(_parent_cell(alpha), scale_atoms=True)
    atoms.positions -= turns(alpha)[:, 0]
    beta = orthogonal(next(name for name, of in ALPHA_OF.items() if of == alpha))
    assert _shells(atoms) == pytest.approx(_shells(beta), abs=0.02)


def _parent_cell(alpha: str) -> list[float]:
    a, _, c, *_ = PARENTS[alpha][1]
    return [a, a * 3**0.5, c] if alpha == "alpha-quartz" else [a, a, c]


def _shells(atoms: object) -> list[float]:
    """Distances from the first silicon to its nearest twelve atoms."""
    from ase import Atoms

    assert isinstance(atoms, Atoms)
    large = atoms.repeat(3)
    of = 13 * len(atoms) + int(np.flatnonzero(atoms.numbers == 14)[0])
    distances = np.sort(np.linalg.norm(large.positions - large.positions[of], axis=1))
    return [float(x) for x in distances[1:13]]


def test_patterns_of_cristobalite_are_those_of_any_axis() -> None:
    """Each symmetry of the cubic crystal makes combinations of the patterns of each."""
    here, patterns = orthogonal("beta-cristobalite"), turns("beta-cristobalite")
    flat = patterns.transpose(1, 0, 2).reshape(patterns.shape[1], -1)
    flat = flat / np.linalg.norm(flat[0])
    np.testing.assert_allclose(flat @ flat.T, np.eye(len(flat)), atol=1e-9)
    lengths = here.cell.lengths()
    carried = 0
    for op in CUBE:
        for target in np.flatnonzero(here.numbers == 14):
            of = int(np.flatnonzero(here.numbers == 14)[0])
            moved = (here.positions - here.positions[of]) @ op + here.positions[target]
            away = here.positions[:, None] - moved
            distance = np.linalg.norm(away - np.round(away / lengths) * lengths, axis=2)
            nearest = distance.argmin(1)
            if distance[np.arange(len(here)), nearest].max() > 0.01:
                continue
            carried += 1
            new = (patterns[nearest] @ op).transpose(1, 0, 2).reshape(len(flat), -1)
            inside = new @ flat.T @ flat
            np.testing.assert_allclose(inside, new, atol=1e-6)
    assert carried >= 48


@pytest.mark.parametrize("name", ALPHA_OF)
def test_tetrahedra_keep_their_shape(name: str) -> None:
    """A small part of a pattern changes edges, oxygen to oxygen of one silicon, by little."""
    atoms, patterns = orthogonal(name).repeat(2), turns(name)
    i, j, way = vesin.NeighborList(cutoff=1.75, full_list=True).compute(
        atoms.positions, atoms.cell[:], True, "ijD"
    )
    i, j = i.astype(int), j.astype(int)
    keep = (atoms.numbers[i] == 14) & (atoms.numbers[j] == 8)
    i, j, way = i[keep], j[keep], way[keep]
    for k in range(patterns.shape[1]):
        u = 0.01 * np.tile(patterns[:, k], (8, 1))
        changes = []
        for silicon in np.flatnonzero(atoms.numbers == 14):
            mine = np.flatnonzero(i == silicon)
            assert len(mine) == 4
            for a, b in combinations(mine, 2):
                edge = way[b] - way[a]
                longer = np.linalg.norm(edge + u[j[b]] - u[j[a]]) - np.linalg.norm(edge)
                changes.append(longer)
        size = np.sqrt((u**2).sum(1).mean())
        assert np.sqrt(np.mean(np.square(changes))) < 0.12 * size


def test_amplitudes_are_smooth_fit_into_the_cell_and_have_no_mean() -> None:
    cell = np.diag([9.0, 8.0, 7.0])
    x = np.stack(np.meshgrid(*[np.arange(0, n, 0.5) for n in (9, 8, 7)], indexing="ij"), -1).reshape(-1, 3)
    for seed in range(5):
        a = amplitudes(x, cell, np.array([True] * 3), 3, np.random.default_rng(seed))
        np.testing.assert_allclose(np.mean(a**2, axis=0), 1)
        np.testing.assert_allclose(a.mean(0), 0, atol=0.01)
        again = amplitudes(x + [9.0, 0, -7.0], cell, np.array([True] * 3), 3, np.random.default_rng(seed))
        np.testing.assert_allclose(again, a, atol=1e-9)
        near = amplitudes(
            np.concatenate([x, x + [0.05, 0, 0]]), cell, np.array([True] * 3), 3, np.random.default_rng(seed)
        )
        assert np.abs(near[: len(x)] - near[len(x) :]).max() < 0.8


def test_displacements_have_the_size_that_is_asked_for() -> None:
    rng = np.random.default_rng(0)
    modes, wave = rng.normal(size=(50, 4, 3)), rng.normal(size=(50, 4))
    assert np.mean(turned(modes, wave, rng) ** 2) == pytest.approx(1)
    for name in SILICA:
        sample = structures.draw(np.random.default_rng(5), (name,), {"bulk": 1.0})[1]
        assert sample.modes is not None
        spread = [noise(sample, 0.1, np.random.default_rng(seed)) for seed in range(20)]
        assert np.sqrt(np.mean(np.square(spread))) == pytest.approx(0.1, rel=0.15)


def test_a_beta_phase_is_turned_in_places_but_not_as_a_whole() -> None:
    """The pattern in a cell is several times what it is on average over the structure."""
    whole, places = [], []
    rng = np.random.default_rng(2)
    for _ in range(12):
        sample = structures.bulk_sample("beta-quartz", rng, 430)
        assert sample.modes is not None
        wave = amplitudes(sample.positions, sample.cell, sample.pbc, 1, rng)
        u = turned(sample.modes, wave, rng)
        along = np.einsum("ia,ia->i", u, sample.modes[:, 0]) / np.mean(sample.modes[:, 0] ** 2)
        whole.append(along.mean() ** 2)
        places.append(np.mean(along.reshape(-1, 18).mean(1) ** 2))  # by cells
    assert np.mean(places) > 5 * np.mean(whole)
