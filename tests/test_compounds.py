"""Ordered compounds: their lattices, the labels of their atoms, and the network that sees species."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from training import lattices
from training.benchmarks.dc3.materials import COMPOUNDS, MATERIALS
from training.lattices import conventional, draw_compound, spacing_of
from zoo.analysis.crystals import STRUCTURES, structure_types
from zoo.analysis.orderings import HOSTS, ORDERINGS, orderings
from zoo.backbones.mace_network import MaceConfig, MaceNetwork
from zoo.graph import neighbor_graph

pytest.importorskip("ovito")

#: Neighbours in the first shell, and how many of them are of the other species, of an atom of each species.
SHELLS = {
    "L1_0": (12, 8, 8),
    "L1_2": (12, 12, 4),
    "B2": (8, 8, 8),
    "zincblende": (4, 4, 4),
    "rocksalt": (6, 6, 6),
    "wurtzite": (4, 4, 4),
}


def unlike(positions: np.ndarray, cell: np.ndarray, species: np.ndarray, spacing: float) -> tuple:
    graph = neighbor_graph(positions, cell, True, 1.08 * spacing)
    degree = graph.offsets.diff().numpy()
    i = np.repeat(np.arange(len(positions)), degree)
    other = species[i] != species[graph.neighbors.numpy()]
    return degree, np.bincount(i, weights=other, minlength=len(positions))


@pytest.mark.parametrize("name", lattices.COMPOUNDS)
def test_the_shells_of_a_compound_are_those_of_its_structure(name: str) -> None:
    atoms = conventional(name).repeat(3)
    assert atoms.cell.volume == pytest.approx(len(atoms))
    degree, other = unlike(atoms.positions, atoms.cell[:], atoms.numbers, spacing_of(name))
    n, first, second = SHELLS[name]
    assert (degree == n).all()
    assert set(other[atoms.numbers == 1]) == {first}
    assert set(other[atoms.numbers == 2]) == {second}


@pytest.mark.parametrize("name", lattices.COMPOUNDS)
def test_every_orientation_keeps_the_order(name: str) -> None:
    for unit in lattices._oriented(name):
        block = unit.repeat(np.maximum(1, np.ceil(4 / unit.cell.lengths()).astype(int)))
        block.positions *= 2.5
        block.cell *= 2.5
        assert (orderings(block) == ORDERINGS.index(name)).all()


@pytest.mark.parametrize("key", COMPOUNDS)
def test_crystals_of_the_benchmark_have_the_order_they_say(key: str) -> None:
    material = COMPOUNDS[key]
    crystal = material.perfect((4, 4, 4))
    assert len(material.elements) == 2
    assert (orderings(crystal) == ORDERINGS.index(material.ordering)).all()
    assert (structure_types(crystal) == STRUCTURES.index(material.structure)).all()
    assert HOSTS[material.ordering] == STRUCTURES.index(material.structure)


def test_there_are_six_compounds_of_six_kinds_with_the_protocol_s_sizes() -> None:
    assert {m.ordering for m in COMPOUNDS.values()} == set(ORDERINGS[1:])
    assert {key: len(m.perfect()) for key, m in COMPOUNDS.items()} == {
        "CuNi-L10": 2048,
        "CuNi-L12": 2048,
        "CoAl": 2000,
        "InP": 1728,
        "NaCl": 1728,
        "ZnO": 2160,
    }
    assert COMPOUNDS["NaCl"] is MATERIALS["NaCl"]


@pytest.mark.parametrize("name", ["B2", "rocksalt", "zincblende", "L1_2"])
def test_an_antisite_is_seen_where_it_is(name: str) -> None:
    atoms = conventional(name).repeat(4)
    atoms.positions *= 2.5
    atoms.cell *= 2.5
    atoms.numbers[100] = 3 - atoms.numbers[100]
    labels = orderings(atoms)
    assert labels[100] != ORDERINGS.index(name)
    far = atoms.get_distances(100, range(len(atoms)), mic=True) > 5.5
    assert (labels[far] == ORDERINGS.index(name)).all()
    assert far.sum() > 10


def test_one_species_on_a_lattice_is_no_compound() -> None:
    for name in lattices.COMPOUNDS:
        atoms = conventional(name).repeat(4)
        atoms.positions *= 2.5
        atoms.cell *= 2.5
        atoms.numbers[:] = 29
        assert not orderings(atoms).any()


def test_draws_of_compounds_keep_species_beside_positions() -> None:
    kinds = set()
    for seed in range(150):
        sample = draw_compound(np.random.default_rng(seed))
        assert sample.species.shape == (len(sample.positions),)
        assert sample.species.dtype == np.int64
        assert set(np.unique(sample.species)) <= {1, 2}
        kinds.add((sample.ordered, sample.calm, bool(sample.pbc.all())))
    assert len(kinds) >= 4


def test_antisites_change_species_only() -> None:
    rng = np.random.default_rng(0)
    before = lattices.bulk_sample("B2", rng)
    after = lattices.with_antisites(before, rng)
    assert after.positions is before.positions
    assert 0 < (after.species != before.species).mean() < 0.5


def test_an_ionic_packing_has_more_unlike_neighbours_than_chance() -> None:
    shares = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        sample = lattices.with_two_species(lattices.packing_sample(rng), rng)
        degree, other = unlike(sample.positions, sample.cell, sample.species, 1.2)
        shares.append(other.sum() / degree.sum())
    assert max(shares) > 0.6
    assert min(shares) < 0.5


@pytest.fixture(scope="module")
def network() -> MaceNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MaceNetwork(MaceConfig()).eval().requires_grad_(False)


def test_only_like_and_unlike_matter(network: MaceNetwork) -> None:
    rng = np.random.default_rng(0)
    crystal = conventional("rocksalt").repeat(2)
    positions = crystal.positions + rng.normal(0, 0.05, (len(crystal), 3))

    def predicted(species: np.ndarray | None) -> torch.Tensor:
        return network(neighbor_graph(positions, crystal.cell[:], True, network.cutoff, species=species))

    ordered = predicted(crystal.numbers)
    swapped = np.where(crystal.numbers == 1, 92, 7)
    assert torch.equal(predicted(swapped), ordered)
    alike = predicted(np.full(len(crystal), 5))
    assert torch.equal(alike, predicted(None))
    assert (alike - ordered).abs().max() > 1e-3 * ordered.abs().max()


def test_a_checkpoint_holds_what_was_learned_and_nothing_else(network: MaceNetwork) -> None:
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}
    other = MaceNetwork(MaceConfig())
    other.load_state_dict(network.state_dict())
    for (name, one), (_, two) in zip(network.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(one, two), name
    state = network.state_dict()
    state.pop("embed")
    with pytest.raises(RuntimeError, match="embed"):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    "wrong", [{"cutoff": 0}, {"l_max": 5}, {"correlation": 0}, {"n_channels": True}, {"n_layers": 1.0}]
)
def test_odd_architectures_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MaceConfig(**wrong)


@pytest.mark.slow
def test_building_it_changes_nothing_of_the_process_and_prints_nothing() -> None:
    code = """
import os, torch
before = dict(os.environ)
from zoo.backbones.mace_network import MaceConfig, MaceNetwork
MaceNetwork(MaceConfig())
assert dict(os.environ) == before
assert torch.get_default_dtype() == torch.float32
assert slice not in torch.serialization.get_safe_globals()
import io, pickle
class Harm:
    def __reduce__(self):
        return (print, ("harm",))
file = io.BytesIO()
torch.save({"x": Harm()}, file, pickle_protocol=2)
file.seek(0)
try:
    torch.load(file)
except pickle.UnpicklingError:
    pass
else:
    raise SystemExit("a pickle was opened")
"""
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        capture_output=True,
        text=True,
        env={**os.environ},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == ""


def test_runs_of_a_compound_are_found_in_the_order_of_their_temperatures(tmp_path: Path) -> None:
    from training.benchmarks.dc3.compounds import simulated

    for name in ("CuNi-L10-1.24", "CuNi-L10-1.00", "CuNi-L10-1.20", "CuNi-L12-1.60", "CuNi-L10", "NaCl-1.00"):
        (tmp_path / name).mkdir()
    assert simulated(tmp_path, "CuNi-L10") == [1.0, 1.2, 1.24]
    assert simulated(tmp_path, "ZnO") == []
