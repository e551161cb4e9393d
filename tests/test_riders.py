"""Who is denoised when a checkpoint is for one element, and who goes along."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms

from zoo.backbones.moments import Moments, MomentsConfig
from zoo.denoiser import Denoiser, DenoiserConfig
from zoo.errors import CheckpointError, StructureError
from zoo.riders import riders
from zoo.verdict import VerdictConfig, VerdictHead
from zoo.verdict_names import CODES, OTHER


def waters(n: int = 3, cell: float = 3.2) -> Atoms:
    """A cubic lattice of water molecules."""
    one = molecule("H2O")
    one.positions -= one.positions[0]
    atoms = Atoms(pbc=True, cell=[n * cell] * 3)
    for index in np.ndindex(n, n, n):
        copy = one.copy()
        copy.rotate(37.0 * (index[0] + 2 * index[1]), (1, 1, 0), center=(0, 0, 0))
        copy.positions += np.array(index) * cell
        atoms += copy
    return atoms


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    """Untrained: moves atoms about and judges them somehow."""
    architecture = MomentsConfig(n_channels=4, n_layers=1, n_radial=3, l_density=2)
    config = DenoiserConfig("oxygens", "0.1.0", ("simple cubic",), "moments", architecture.to_dict())
    config = replace(config, acts_on="O", verdict=VerdictConfig(("simple cubic",), width=4))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = Moments(architecture)
        assert config.verdict is not None
        return Denoiser(config, network, head=VerdictHead.of(network, config.verdict))


def test_hydrogens_go_with_their_oxygen_across_the_boundary() -> None:
    atoms = waters()
    atoms.wrap()  # hydrogens and their oxygen are now on opposite sides of the cell
    part = riders(atoms, "O")
    assert atoms.symbols[part.acting].get_chemical_formula() == "O27"
    assert (part.acting[part.host] == np.arange(len(atoms)) // 3 * 3).all()


def test_what_is_bonded_to_nothing_stays() -> None:
    guest = Atoms("CH4", positions=molecule("CH4").positions + 1.6)
    atoms = waters() + guest
    part = riders(atoms, "O")
    assert (part.host[-5:] == -1).all()
    moved = part.carried(atoms.positions, atoms.positions[part.acting] + 0.5)
    np.testing.assert_allclose(moved[:-5], atoms.positions[:-5] + 0.5)
    np.testing.assert_array_equal(moved[-5:], atoms.positions[-5:])


def test_oxygens_of_other_molecules_stay() -> None:
    guest = Atoms("CO2", positions=[[1.6, 1.6, 1.6], [1.6, 1.6, 2.76], [1.6, 1.6, 0.44]])
    atoms = waters() + guest
    part = riders(atoms, "O")
    assert len(part.acting) == 27
    assert (part.host[-3:] == -1).all()
    with pytest.raises(StructureError, match="every O is bonded to another element"):
        riders(bulk("MgO", "rocksalt", a=2.6), "O")


def test_what_is_held_stays_even_where_its_oxygen_goes(denoiser: Denoiser) -> None:
    atoms = waters()
    atoms.set_constraint(FixAtoms([1, 3]))
    shift = denoiser.denoise(atoms, steps=2).positions - atoms.positions
    assert (shift[[1, 3]] == 0).all()
    assert np.abs(shift[[0, 2]]).min() > 0
    assert (shift[[4, 5]] == 0).all()  # they go with a held oxygen


def test_one_species_acts_whatever_it_is_called() -> None:
    crystal = bulk("X", "sc", a=3.0).repeat(3)
    part = riders(crystal, "O")
    assert (part.acting == np.arange(27)).all()


def test_structures_without_the_element_are_refused() -> None:
    with pytest.raises(StructureError, match=r"no O among the atoms.*--species"):
        riders(bulk("NaCl", "rocksalt", a=5.6), "O")
    dump = bulk("X", "sc", a=3.0).repeat(2)
    dump.set_array("type", np.array([1, 2] * 4))
    with pytest.raises(StructureError, match="--species"):
        riders(dump, "O")


def test_molecules_stay_whole_and_share_the_verdict(denoiser: Denoiser) -> None:
    atoms = waters() + Atoms("He", positions=[[1.6, 1.6, 1.6]])
    atoms.set_array("mark", np.arange(len(atoms)))
    clean = denoiser.denoise(atoms, steps=2)
    shift = clean.positions - atoms.positions
    np.testing.assert_allclose(shift[1:-1:3], shift[:-1:3], atol=1e-12)
    np.testing.assert_allclose(shift[2:-1:3], shift[:-1:3], atol=1e-12)
    assert np.abs(shift[:-1]).max() > 0
    assert (shift[-1] == 0).all()
    names, sure = clean.arrays["structure_type"], clean.arrays["confidence"]
    assert (names[1:-1:3] == names[:-1:3]).all()
    np.testing.assert_array_equal(sure[2:-1:3], sure[:-1:3])
    assert names[-1] == OTHER
    assert OTHER not in names[:-1]
    assert OTHER in CODES
    assert (clean.arrays["mark"] == atoms.arrays["mark"]).all()


def test_the_oxygens_move_as_without_hydrogens(denoiser: Denoiser) -> None:
    atoms = waters()
    seen: list[tuple[int, ...]] = []
    clean = denoiser.denoise(atoms, steps=2, callback=lambda step, x, mean: seen.append(x.shape))
    alone = denoiser.denoise(atoms[atoms.symbols == "O"], steps=2)
    np.testing.assert_array_equal(clean.positions[atoms.symbols == "O"], alone.positions)
    assert seen == [(len(atoms), 3)] * clean.info["denoise_steps"]


def test_it_is_saved_and_read(denoiser: Denoiser, tmp_path: Path) -> None:
    again = Denoiser.from_pretrained(denoiser.save_pretrained(tmp_path / "oxygens"))
    assert again.config.acts_on == "O"
    wrong = {**denoiser.config.to_dict(), "acts_on": "water"}
    with pytest.raises(CheckpointError, match="acts_on must be the symbol of an element"):
        DenoiserConfig.from_dict(wrong)


@pytest.mark.parametrize("symbol", ["O", "X", "H", "C"])
def test_one_species_that_may_be_a_site_of_water_is_one(symbol: str) -> None:
    assert (
        len(
            riders(
                Atoms(f"{symbol}5", positions=3.0 * np.eye(5)[:, :3] * np.arange(1, 6)[:, None]), "O"
            ).acting
        )
        == 5
    )


def test_a_metal_is_no_water() -> None:
    with pytest.raises(StructureError, match="all atoms are Cu, and only O is denoised"):
        riders(bulk("Cu", cubic=True).repeat(2), "O")
