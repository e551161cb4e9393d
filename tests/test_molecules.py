"""The molecule's graph and mapping: what is a centre, what is a stereocentre, and what survives a file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mdtraj
import networkx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.errors import CheckpointError, StructureError
from zoo.molecules.molecule import Molecule, handedness, hill_formula, triple_products

DATA = Path(__file__).parent / "data" / "molecules"
PDB = mdtraj.load(str(DATA / "alanine-dipeptide.pdb"))
HEAVY = Molecule.from_mdtraj(PDB.topology, "heavy")
ALL = Molecule.from_mdtraj(PDB.topology, "all")


def alkane(carbons: Sequence[tuple[int, int]], sites: str = "all") -> Molecule:
    """A saturated hydrocarbon from its C-C bonds."""
    n = 1 + max(max(bond) for bond in carbons)
    bonds, elements = list(carbons), ["C"] * n
    for carbon in range(n):
        for _ in range(4 - sum(carbon in bond for bond in carbons)):
            bonds.append((carbon, len(elements)))
            elements.append("H")
    return Molecule(
        tuple(f"{e}{i}" for i, e in enumerate(elements)),
        tuple(elements),
        ("UNK",) * len(elements),
        (1,) * len(elements),
        tuple(bonds),
        tuple(range(n if sites == "heavy" else len(elements))),
    )


def centre_names(molecule: Molecule, centres: Sequence[Sequence[int]]) -> list[str]:
    return [molecule.site_labels[centre[0]] for centre in centres]


def test_heavy_atoms_of_alanine_dipeptide() -> None:
    assert HEAVY.site_names == ("CH3", "C", "O", "N", "CA", "CB", "C", "O", "N", "C")
    assert (HEAVY.n_atoms, HEAVY.n_sites, HEAVY.formula) == (22, 10, "C6H12N2O2")
    assert len(HEAVY.site_bonds) == 9
    assert centre_names(HEAVY, HEAVY.centres) == centre_names(HEAVY, HEAVY.stereocentres) == ["CA"]
    assert HEAVY.centres == ((4, 3, 5, 6),)


def test_all_atoms_of_alanine_dipeptide() -> None:
    assert (ALL.n_sites, len(ALL.site_bonds)) == (22, 21)
    assert centre_names(ALL, ALL.centres) == ["CH3", "CA", "CB", "NME3:C"]
    assert centre_names(ALL, ALL.stereocentres) == ["CA"]


def test_labels_name_the_residue_only_where_a_name_is_not_unique() -> None:
    assert HEAVY.site_labels[:5] == ("CH3", "ACE1:C", "ACE1:O", "ALA2:N", "CA")


def test_glycine_has_no_stereocentre() -> None:
    keep = [i for i, name in enumerate(ALL.names) if name not in ("HB1", "HB2", "HB3")]
    place = {atom: k for k, atom in enumerate(keep)}
    glycine = Molecule(
        tuple(ALL.names[i] for i in keep),
        tuple("H" if ALL.names[i] == "CB" else ALL.elements[i] for i in keep),
        tuple(ALL.residue_names[i] for i in keep),
        tuple(ALL.residue_ids[i] for i in keep),
        tuple((place[i], place[j]) for i, j in ALL.bonds if i in place and j in place),
        tuple(range(len(keep))),
    )
    assert "CA" in centre_names(glycine, glycine.centres)
    assert glycine.stereocentres == ()


@pytest.mark.parametrize(
    ("carbons", "stereo"),
    [
        ([(0, 1), (1, 2), (2, 3)], []),  # butane
        ([(0, 1), (1, 2), (1, 3)], []),  # isobutane
        # 3-methylhexane: ethyl and propyl differ only three bonds away
        ([(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (2, 6)], ["C2"]),
        # 4-methylheptane: two propyls
        ([(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (3, 7)], []),
        # 3,4-dimethylhexane: two centres, each other's images by symmetry
        ([(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (2, 6), (3, 7)], ["C2", "C3"]),
    ],
)
def test_stereocentres_of_alkanes(carbons: list[tuple[int, int]], stereo: list[str]) -> None:
    for sites in ("all", "heavy"):
        molecule = alkane(carbons, sites)
        assert centre_names(molecule, molecule.stereocentres) == stereo


def test_a_centre_without_topological_handedness_is_still_a_centre() -> None:
    isobutane = alkane([(0, 1), (1, 2), (1, 3)], "heavy")
    assert isobutane.centres == ((1, 0, 2, 3),)


def test_separation_goes_through_atoms_that_are_not_sites() -> None:
    beads = Molecule.from_mdtraj(PDB.topology, ["CH3", "CA", "NME3-C", "CB"])
    graph = networkx.Graph(ALL.bonds)
    paths = dict(networkx.all_pairs_shortest_path_length(graph))
    assert beads.site_separation.tolist() == [[paths[i][j] for j in beads.sites] for i in beads.sites]
    assert beads.site_separation[0, 2] == 6
    assert beads.site_bonds == ((1, 3),)
    with pytest.raises(ValueError, match="read-only"):
        beads.site_separation[0, 0] = 1


def test_beads_keep_the_order_asked_for() -> None:
    beads = Molecule.from_mdtraj(PDB.topology, ["ALA2-N", 8, "ALA2-C", "CB"])
    assert beads.site_names == ("N", "CA", "C", "CB")
    assert beads.stereocentres == ((1, 0, 2, 3),)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (["C"], '"C" names 3 atoms: ACE1-C, ALA2-C, NME3-C'),
        (["CX"], '"CX" is no atom'),
        ("backbone", "neither"),
        ([0, 0], "at most once"),
        ([99], "outside 0..21"),
        ([], "at least one atom"),
    ],
)
def test_wrong_mappings_are_refused(sites: Any, message: str) -> None:
    with pytest.raises(StructureError, match=message):
        Molecule.from_mdtraj(PDB.topology, sites)


def test_a_topology_without_bonds_is_refused() -> None:
    topology = PDB.topology.copy()
    topology._bonds = []
    with pytest.raises(StructureError, match="several pieces: 1 of 22"):
        Molecule.from_mdtraj(topology)


@pytest.mark.parametrize("molecule", [HEAVY, ALL])
def test_json_round_trip_is_exact(molecule: Molecule) -> None:
    assert Molecule.from_json(json.loads(json.dumps(molecule.to_json()))) == molecule


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sites": None}, "missing sites"),
        ({"charges": [0]}, "unknown charges"),
        ({"sites": [0.0]}, "sites must be a list of whole numbers"),
        ({"sites": [True]}, "sites must be a list of whole numbers"),
        ({"names": "CA"}, "names must be a list of text"),
        ({"bonds": [[0, 1, 2]]}, "joins two atoms"),
        ({"bonds": [0]}, "bonds must be a list of pairs"),
        ({"bonds": [[0, 22]]}, "not between two of its 22 atoms"),
        ({"bonds": [[0, 1], [1, 0]]}, "repeated"),
        ({"elements": ["C"]}, "different length"),
        ({"elements": ["Qq"] * 22}, "unknown elements: 'Qq'"),
        ({"sites": [-1]}, "outside"),
    ],
)
def test_damaged_json_is_refused(change: dict[str, Any], message: str) -> None:
    data = {key: value for key, value in {**HEAVY.to_json(), **change}.items() if value is not None}
    with pytest.raises(CheckpointError, match=message) as error:
        Molecule.from_json(data)
    assert "\n" not in str(error.value)


def test_json_that_is_no_table() -> None:
    with pytest.raises(CheckpointError, match="found list"):
        Molecule.from_json([1])  # type: ignore[arg-type]


@pytest.mark.parametrize("molecule", [HEAVY, ALL])
def test_topology_of_the_sites_survives_a_pdb_file(molecule: Molecule, tmp_path: Path) -> None:
    topology = molecule.topology()
    assert [atom.name for atom in topology.atoms] == list(molecule.site_names)
    bonds = {tuple(sorted((a.index, b.index))) for a, b in topology.bonds}
    assert bonds == set(molecule.site_bonds)
    trajectory = mdtraj.Trajectory(PDB.xyz[:, list(molecule.sites)], topology)
    trajectory.save_pdb(str(tmp_path / "sites.pdb"))
    again = mdtraj.load(str(tmp_path / "sites.pdb"))
    assert [str(atom) for atom in again.topology.atoms] == [str(atom) for atom in topology.atoms]
    phi = mdtraj.compute_phi(trajectory)[1]
    np.testing.assert_allclose(mdtraj.compute_phi(PDB)[1], phi, atol=1e-5)


def test_l_alanine_is_left_handed_by_the_corn_rule() -> None:
    # Seen from H towards CA, CO, R (CB) and N run clockwise in an L amino acid.
    position = dict(zip((str(atom) for atom in PDB.topology.atoms), PDB.xyz[0], strict=True))
    ca = position["ALA2-CA"]
    co, r, n = (position[name] - ca for name in ("ALA2-C", "ALA2-CB", "ALA2-N"))
    view = ca - position["ALA2-HA"]
    assert np.dot(np.cross(co, r) + np.cross(r, n) + np.cross(n, co), view) > 0
    # sites N, CB, C around CA: the other way round, seen from the side where the three are
    assert handedness(PDB.xyz[0][list(HEAVY.sites)], HEAVY.centres).tolist() == [-1]


@given(seed=st.integers(0, 2**32 - 1))
def test_handedness_knows_mirrors_and_ignores_motion(seed: int) -> None:
    rng = np.random.default_rng(seed)
    positions = rng.normal(size=(3, 5, 3))
    centres = [(0, 1, 2, 3), (4, 3, 2, 1)]
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    before = handedness(positions, centres)
    assert before.shape == (3, 2)
    assert (handedness(positions @ rotation.T + rng.normal(size=3), centres) == before).all()
    assert (handedness(-positions, centres) == -before).all()
    assert (handedness(positions, [(0, 2, 1, 3), (4, 3, 1, 2)]) == -before).all()
    assert (handedness(torch.tensor(positions), centres).numpy() == before).all()


def test_triple_product_is_the_determinant_of_the_three_bonds() -> None:
    positions = np.random.default_rng(0).normal(size=(4, 3))
    expected = np.linalg.det(positions[1:] - positions[0])
    assert triple_products(positions, [(0, 1, 2, 3)]) == pytest.approx([expected])


def test_no_centres() -> None:
    assert handedness(np.zeros((2, 5, 3)), ()).shape == (2, 0)
    assert tuple(handedness(torch.zeros(2, 5, 3), ()).shape) == (2, 0)


@pytest.mark.parametrize(
    ("elements", "formula"), [("CCHHHHHHO", "C2H6O"), ("HHO", "H2O"), ("NHHH", "H3N"), (["Cl", "C"], "CCl")]
)
def test_hill_formula(elements: Sequence[str], formula: str) -> None:
    assert hill_formula(list(elements)) == formula


def test_a_molecule_needs_neither_torch_nor_mdtraj() -> None:
    code = "import sys, zoo.molecules.molecule; print({'torch', 'mdtraj', 'networkx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
