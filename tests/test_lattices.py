"""Training structures: unit density, no overlaps, the boundaries they claim, nothing but the rng."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import vesin

from training import lattices
from training.lattices import LATTICES, Sample, conventional, spacing_of

SPACINGS = {
    "fcc": 2 ** (1 / 6),
    "bcc": 3**0.5 / 2 * 2 ** (1 / 3),
    "hcp": 2 ** (1 / 6),
    "simple cubic": 1.0,
    "cubic diamond": 3**0.5 / 4 * 2,
    "hexagonal diamond": 3**0.5 / 4 * 2,
}

MAKERS: dict[str, Callable[[str, np.random.Generator], Sample]] = {
    "bulk": lattices.bulk_sample,
    "vacancies": lambda name, rng: lattices.with_vacancies(lattices.bulk_sample(name, rng, 200), rng),
    "slab": lattices.slab_sample,
    "ball": lattices.ball_sample,
    "scrambled": lattices.scrambled_sample,
    "packing": lambda name, rng: lattices.packing_sample(rng),
}


def closest(sample: Sample) -> float:
    search = vesin.NeighborList(cutoff=1.3, full_list=False)
    return float(search.compute(sample.positions, sample.cell, sample.pbc, "d")[0].min())


@pytest.mark.parametrize("lattice", LATTICES)
def test_perfect_lattices_have_unit_density_and_the_known_spacing(lattice: str) -> None:
    atoms = conventional(lattice)
    assert atoms.cell.volume / len(atoms) == pytest.approx(1.0, rel=1e-12)
    assert spacing_of(lattice) == pytest.approx(SPACINGS[lattice], rel=1e-9)


@pytest.mark.parametrize("lattice", LATTICES)
def test_every_orientation_is_the_same_lattice(lattice: str) -> None:
    for unit in lattices._oriented(lattice):
        assert unit.cell.volume / len(unit) == pytest.approx(1.0, rel=1e-9)
        block = unit.repeat(np.ceil(2.5 / unit.cell.lengths()).astype(int))
        i, d = vesin.NeighborList(cutoff=1.05 * SPACINGS[lattice], full_list=True).compute(
            block.positions, block.cell[:], True, "id"
        )
        coordination = {"fcc": 12, "hcp": 12, "bcc": 8, "simple cubic": 6}.get(lattice, 4)
        assert set(np.bincount(i.astype(int), minlength=len(block))) == {coordination}
        np.testing.assert_allclose(d, SPACINGS[lattice], rtol=1e-9)


@pytest.mark.parametrize("lattice", LATTICES)
def test_bulk_samples_are_slightly_strained_crystals(lattice: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        s = lattices.bulk_sample(lattice, rng)
        assert s.pbc.all()
        assert s.ordered
        assert abs(np.linalg.det(s.cell)) / len(s.positions) == pytest.approx(1.0, abs=0.4)
        assert closest(s) == pytest.approx(s.spacing, rel=0.2)
        assert 60 < len(s.positions) < 500


def test_strain_is_small() -> None:
    rng = np.random.default_rng(1)
    all_of_them = np.array([lattices.strain(rng) for _ in range(300)])
    assert np.abs(all_of_them - np.eye(3)).max() < 0.25
    assert np.abs(all_of_them.mean(0) - np.eye(3)).max() < 0.01
    e = all_of_them[0]
    np.testing.assert_allclose(e, e.T)  # no rotation in it


@pytest.mark.parametrize("kind", MAKERS)
def test_no_two_atoms_overlap(kind: str) -> None:
    rng = np.random.default_rng(2)
    for lattice in LATTICES:
        s = MAKERS[kind](lattice, rng)
        assert closest(s) > (0.5 if kind in ("ball", "packing", "scrambled") else 0.75 * s.spacing)


def test_cuts_keep_cell_and_boundaries() -> None:
    rng = np.random.default_rng(3)
    for _ in range(6):
        s = lattices.bulk_sample("bcc", rng, 200)
        cut = lattices.with_vacancies(s, rng)
        assert cut.pbc.all()
        np.testing.assert_array_equal(cut.cell, s.cell)
        assert 0 < len(s.positions) - len(cut.positions) < 0.4 * len(s.positions)
        there = {tuple(x) for x in s.positions}
        assert all(tuple(x) in there for x in cut.positions)


def test_slabs_are_free_along_the_third_axis_and_sometimes_another() -> None:
    rng = np.random.default_rng(4)
    seen = {tuple(lattices.slab_sample("fcc", rng).pbc.tolist()) for _ in range(40)}
    assert seen == {(True, True, False), (False, True, False), (True, False, False)}


def test_balls_are_free_and_of_one_or_two_grains() -> None:
    rng = np.random.default_rng(5)
    for _ in range(4):
        s = lattices.ball_sample("fcc", rng)
        assert not s.pbc.any()
        assert np.linalg.norm(s.positions, axis=1).max() < 4.5


def test_packings_are_dense_and_disordered() -> None:
    s = lattices.packing_sample(np.random.default_rng(6))
    assert not s.ordered
    assert np.linalg.det(s.cell) / len(s.positions) == pytest.approx(1.0)


def test_draws_depend_on_the_rng_only() -> None:
    def several(seed: int) -> list[Sample]:
        rng = np.random.default_rng(seed)
        return [lattices.draw(rng) for _ in range(8)]

    np.random.seed(1)  # noqa: NPY002 - the global generator must not matter
    first = several(7)
    np.random.seed(2)  # noqa: NPY002
    for a, b in zip(first, several(7), strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
        np.testing.assert_array_equal(a.cell, b.cell)
    other = several(8)
    assert any(a.positions.shape != b.positions.shape for a, b in zip(first, other, strict=True))


def test_noise_levels_cover_their_range() -> None:
    rng = np.random.default_rng(8)
    s = lattices.bulk_sample("simple cubic", rng)
    levels = np.array([lattices.noise_level(s, rng, 0.17) for _ in range(2000)]) / s.spacing
    assert 0 <= levels.min() < 0.001
    assert 0.165 < levels.max() <= 0.17
    assert np.mean(levels < 0.02) == pytest.approx(1 / 8 + 7 / 8 * 0.02 / 0.17, abs=0.04)


def test_calm_structures_get_less_noise() -> None:
    rng = np.random.default_rng(9)
    s = lattices.scrambled_sample("fcc", rng)
    assert s.calm
    levels = np.array([lattices.noise_level(s, rng, 0.15) for _ in range(500)]) / s.spacing
    assert 0.09 < levels.max() <= 0.1


def test_noise_has_its_standard_deviation_even_where_it_is_uneven() -> None:
    rng = np.random.default_rng(10)
    s = lattices.bulk_sample("bcc", rng)
    drawn = [lattices.noise(s, 0.1, rng) for _ in range(60)]
    assert np.std(drawn) == pytest.approx(0.1, rel=0.03)
    # Even noise has the kurtosis of a normal variable, 3; uneven noise a larger one.
    kurtosis = np.array([np.mean(x**4) / np.mean(x**2) ** 2 for x in drawn])
    assert kurtosis.min() < 3.3 and kurtosis.max() > 3.6
    calm = lattices.scrambled_sample("bcc", rng)
    assert max(np.mean(x**4) / np.mean(x**2) ** 2 for x in [lattices.noise(calm, 0.1, rng)]) < 3.6


def test_springs_leave_a_perfect_lattice_alone() -> None:
    for name in LATTICES:
        atoms = conventional(name).repeat(3)
        moved = lattices.spread(
            atoms.positions, atoms.cell[:], np.ones(3, bool), spacing_of(name), 20, pull=1.12
        )
        np.testing.assert_allclose(moved, atoms.positions, atol=1e-9)


def test_springs_part_atoms_that_are_too_close() -> None:
    pair = np.array([[0.0, 0, 0], [0.4, 0, 0]])
    apart = lattices.spread(pair, np.eye(3), np.zeros(3, bool), 1.0, 60)
    assert np.linalg.norm(apart[1] - apart[0]) == pytest.approx(1.0, abs=0.01)
