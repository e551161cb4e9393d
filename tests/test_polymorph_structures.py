"""Training structures of silica and ice: unit density, nothing too close, and the right atoms named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import vesin
from ase import Atoms

from training import polymorph_structures as structures
from training.lattices import Sample, noise
from training.polymorphs import ICE, POLYMORPHS, SILICA, orthogonal, variant
from training.rigid_units import RigidUnits
from training.verdict import truth
from zoo.analysis.crystals import STRUCTURES, structure_types

MAKERS: dict[str, Callable[[str, np.random.Generator], Sample]] = {
    "bulk": structures.bulk_sample,
    "vacancies": structures.vacancy_sample,
    "slab": structures.slab_sample,
    "cluster": structures.cluster_sample,
    "grains": lambda name, rng: structures.grains_sample((name, name), rng),
    "half": structures.half_sample,
    "melt": structures.melt_sample,
    "network": structures.network_sample,
}


def distances(sample: Sample, cutoff: float = 1.3) -> np.ndarray:
    search = vesin.NeighborList(cutoff=cutoff, full_list=False)
    return np.asarray(search.compute(sample.positions, sample.cell, sample.pbc, "d")[0])


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", ["alpha-quartz", "beta-cristobalite", "ice Ih", "ice II", "clathrate sI"])
def test_samples_are_sound(kind: str, name: str) -> None:
    rng = np.random.default_rng(3)
    for _ in range(3):
        sample = MAKERS[kind](name, rng)
        n = len(sample.positions)
        assert sample.names is not None
        assert sample.species.shape == sample.names.shape == (n,)
        assert np.isfinite(sample.positions).all()
        assert set(sample.names.tolist()) <= {name, ""}
        assert 60 < n < 800
        assert distances(sample).min() > 0.55 * sample.spacing
        share = float((sample.names == name).mean())
        expected = {"bulk": (1, 1), "melt": (0, 0), "network": (0, 0)}.get(kind, (0.02, 0.99))
        assert expected[0] <= share <= expected[1]
        if sample.pbc.all():
            assert abs(np.linalg.det(sample.cell)) / n == pytest.approx(1.0, abs=0.55)
        assert set(np.unique(sample.species).tolist()) <= ({8, 14} if name in SILICA else {0})


@pytest.mark.parametrize("name", POLYMORPHS)
def test_variants_keep_the_symmetry_and_what_it_fixes(name: str) -> None:
    published = orthogonal(name)
    for seed in range(4):
        other = variant(name, np.random.default_rng(seed))
        assert len(other) == len(published)
        np.testing.assert_allclose(other.cell.lengths(), published.cell.lengths(), rtol=0.05)
        assert other.symbols.get_chemical_formula() == published.symbols.get_chemical_formula()
        found = vesin.NeighborList(cutoff=3.2, full_list=False).compute(
            other.positions, other.cell[:], True, "d"
        )[0]
        assert found.min() > (1.4 if name in SILICA else 2.5)
    np.testing.assert_array_equal(variant(name).positions, published.positions)


def test_no_atom_of_a_complete_crystal_is_missed_at_a_surface() -> None:
    """The atoms named are those farther from the surface than their surroundings reach."""
    sample = structures.slab_sample("ice Ic", np.random.default_rng(8))
    assert sample.names is not None
    height = sample.positions @ np.linalg.inv(sample.cell)
    thickness = 1 / np.linalg.norm(np.linalg.inv(sample.cell)[:, 2])
    depth = np.minimum(height[:, 2], 1 - height[:, 2]) * thickness
    inside = sample.names == "ice Ic"
    if sample.pbc[:2].all():
        assert depth[inside].min() > 0.5
    assert depth[~inside].min() < 0.3


def test_melted_parts_leave_the_rest_where_it_was() -> None:
    rng = np.random.default_rng(1)
    state = rng.bit_generator.state
    sample = structures.half_sample("alpha-quartz", rng)
    rng.bit_generator.state = state
    block = structures.crystal_block("alpha-quartz", rng, 330, (0.85, 0.85, 1.6))
    rng.random(), rng.uniform()
    whole, _ = structures._strained(block, rng)
    assert sample.names is not None
    named = sample.names == "alpha-quartz"
    np.testing.assert_array_equal(sample.positions[named], whole[named])
    assert (np.linalg.norm(sample.positions - whole, axis=1) > 1e-9).mean() > 0.2


def test_stacked_ice_is_named_layer_by_layer() -> None:
    rng = np.random.default_rng(0)
    for _ in range(4):
        sample = structures.stacked_sample(rng)
        atoms = Atoms(positions=3 * sample.positions, cell=3 * sample.cell, pbc=True)
        kinds = structure_types(atoms)
        assert sample.names is not None
        assert ((kinds == STRUCTURES.index("hexagonal diamond")) == (sample.names == "ice Ih")).all()
        assert ((kinds == STRUCTURES.index("cubic diamond")) == (sample.names == "ice Ic")).all()
        assert "" not in sample.names


def test_the_truth_of_a_head_is_what_the_maker_knows() -> None:
    classes = tuple(ICE)
    sample = structures.grains_sample(("ice VI", "ice II"), np.random.default_rng(2))
    assert sample.names is not None
    found = truth("ice VI", sample, classes)
    for index, name in enumerate((*classes, "")):
        assert ((found == index) == (sample.names == name)).all()


@pytest.mark.parametrize("family", [SILICA, ICE], ids=["silica", "ice"])
def test_draw_depends_on_the_generator_alone(family: dict[str, object]) -> None:
    one, two = (structures.draw(np.random.default_rng(5), tuple(family)) for _ in range(2))
    assert one[0] == two[0]
    np.testing.assert_array_equal(one[1].positions, two[1].positions)
    drawn = {structures.draw(np.random.default_rng(k), tuple(family))[0] for k in range(60)}
    assert drawn == set(family)


def units_of(name: str) -> tuple[Sample, RigidUnits]:
    sample = structures.bulk_sample(name, np.random.default_rng(4))
    return sample, RigidUnits(sample.positions, sample.cell, sample.pbc, sample.species)


@pytest.mark.parametrize("name", SILICA)
def test_springs_hold_bonds_and_edges_and_nothing_else(name: str) -> None:
    sample, units = units_of(name)
    matrix = units.springs()
    n = len(sample.positions)
    np.testing.assert_allclose(matrix, matrix.T)
    shift = np.tile([0.3, -0.2, 0.5], n)
    np.testing.assert_allclose(matrix @ shift, 0, atol=1e-9)  # all of it together
    assert np.linalg.eigvalsh(matrix)[0] > -1e-9
    # Four bonds and six edges per silicon.
    assert np.trace(matrix) == pytest.approx(2 * (4 + 6) * (sample.species == 14).sum())


@pytest.mark.parametrize("name", SILICA)
def test_tetrahedra_turn_without_changing_their_shape(name: str) -> None:
    sample, units = units_of(name)
    assert (units(np.random.default_rng(1), 0.1) == units(np.random.default_rng(1), 0.1)).all()
    i, j = np.nonzero(
        (sample.species[:, None] == 14)
        & (np.linalg.norm(sample.positions[:, None] - sample.positions, axis=2) < 0.9)
    )
    bonds = sample.species[j] == 8
    i, j = i[bonds], j[bonds]
    way = sample.positions[j] - sample.positions[i]
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    stretched = []
    for seed in range(5):
        u = units.linear(np.random.default_rng(seed))
        assert np.mean(u**2) == pytest.approx(1.0)
        np.testing.assert_allclose(u.mean(0), 0, atol=1e-9)
        stretched.append(np.mean(np.sum((u[j] - u[i]) * way, axis=1) ** 2))
    assert np.mean(stretched) < 0.6  # two, if every atom went its own way


@pytest.mark.parametrize("name", SILICA)
def test_stiff_bonds_and_edges_are_alike_and_displacements_as_large_as_before(name: str) -> None:
    _, units = units_of(name)
    u = 0.1 * units.linear(np.random.default_rng(3))
    stiff = units.stiffened(u, 30)
    for i, j, way in units._pairs:
        rest = np.linalg.norm(way, axis=1)
        before, after = (np.linalg.norm(way + x[j] - x[i], axis=1) / rest for x in (u, stiff))
        assert after.mean() == pytest.approx(before.mean(), rel=0.02)
        assert after.std() < 0.5 * before.std()
    assert np.sqrt(np.mean(stiff**2)) == pytest.approx(0.1, rel=0.15)
    assert np.abs(units.stiffened(0 * u, 30)).max() < 1e-9


def test_noise_is_that_of_the_units_most_of_the_time() -> None:
    name, sample = structures.draw(np.random.default_rng(0), tuple(SILICA))
    assert name in SILICA
    assert sample.vibrates is not None
    spread = [noise(sample, 0.1, np.random.default_rng(seed)) for seed in range(20)]
    assert np.sqrt(np.mean(np.square(spread))) == pytest.approx(0.1, rel=0.1)
    _, ice = structures.draw(np.random.default_rng(0), tuple(ICE))
    assert ice.vibrates is None


def test_tetrahedral_melts_have_about_four_neighbors() -> None:
    counts = []
    for seed in range(6):
        sample = structures.network_sample("ice Ih", np.random.default_rng(seed))
        i = vesin.NeighborList(cutoff=1.12, full_list=True).compute(sample.positions, sample.cell, True, "i")[
            0
        ]
        counts.append(len(i) / len(sample.positions))
    assert 3.8 < np.mean(counts) < 5.6


def test_in_a_network_of_silica_silicon_has_four_oxygens_and_they_two_silicons() -> None:
    counts: dict[int, list[float]] = {8: [], 14: []}
    for seed in range(6):
        sample = structures.network_sample("beta-cristobalite", np.random.default_rng(seed))
        i, j = vesin.NeighborList(cutoff=0.85, full_list=True).compute(
            sample.positions, sample.cell, True, "ij"
        )
        unlike = sample.species[i.astype(int)] != sample.species[j.astype(int)]
        degree = np.bincount(i.astype(int)[unlike], minlength=len(sample.positions))
        for species in counts:
            counts[species].append(float(degree[sample.species == species].mean()))
    assert 3.6 < np.mean(counts[14]) < 4.4
    assert 1.8 < np.mean(counts[8]) < 2.2


def test_how_far_alpha_phases_are_from_their_parents() -> None:
    # Tetrahedra of cristobalite are turned by more than those of quartz, 23 and 16 degrees.
    quartz, cristobalite = (
        structures.way_to_parent("alpha-quartz"),
        structures.way_to_parent("alpha-cristobalite"),
    )
    assert 0.1 < quartz < 0.15 < cristobalite < 0.25
    assert structures.way_to_parent("beta-quartz") == structures.way_to_parent("ice II") == float("inf")
