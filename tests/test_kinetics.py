"""Torsions, their histograms, and the divergence of histograms."""

from __future__ import annotations

from pathlib import Path

import mdtraj
import numpy as np
import pytest

from zoo.analysis.kinetics import jensen_shannon, torsion_histogram, torsions
from zoo.analysis.ramachandran import backbone_torsions, ramachandran
from zoo.errors import StructureError, ZooError
from zoo.molecules.molecule import Molecule

PDB = Path(__file__).parent / "data" / "molecules" / "alanine-dipeptide.pdb"


def test_torsion_of_a_hand_made_chain_has_the_iupac_sign() -> None:
    # Looking from the second to the third, the last is turned clockwise by the torsion angle.
    for angle in (-179.0, -90.0, -30.0, 0.0, 60.0, 150.0):
        a = np.radians(angle)
        chain = [[1, 0, 0], [0, 0, 0], [0, 0, -1], [np.cos(a), np.sin(-a) * -1, -1]]
        # Down the axis (0, 0, -1) clockwise is from x towards -(-y): the sign below is that of mdtraj.
        ours = torsions(np.array([chain]), [(0, 1, 2, 3)])[0, 0]
        topology = mdtraj.Topology()
        residue = topology.add_residue("X", topology.add_chain())
        for _ in range(4):
            topology.add_atom("C", mdtraj.element.carbon, residue)
        theirs = mdtraj.compute_dihedrals(mdtraj.Trajectory(np.array([chain]) / 10, topology), [[0, 1, 2, 3]])
        assert ours == pytest.approx(np.degrees(theirs[0, 0]), abs=1e-3)
        assert abs(ours) == pytest.approx(abs(angle), abs=1e-9)


def test_torsions_are_those_of_mdtraj_on_a_molecule() -> None:
    trajectory = mdtraj.load_pdb(str(PDB))
    molecule = Molecule.from_mdtraj(trajectory.topology, sites="all")
    ours = torsions(trajectory.xyz * 10, backbone_torsions(molecule))
    theirs = np.degrees([mdtraj.compute_phi(trajectory)[1][:, 0], mdtraj.compute_psi(trajectory)[1][:, 0]]).T
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_torsions_turn_with_nothing_and_change_sign_in_the_mirror() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 4, 3))
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    angles = torsions(x, [(0, 1, 2, 3), (3, 2, 1, 0)])
    np.testing.assert_allclose(angles[:, 0], angles[:, 1])  # the same from either end
    turned = torsions(x @ q.T + 5, [(0, 1, 2, 3)])[:, 0]
    np.testing.assert_allclose(turned, angles[:, 0] * np.sign(np.linalg.det(q)), atol=1e-9)


def test_histograms_are_periodic_and_lose_nothing() -> None:
    angles = np.array([[-180.0, 0.0], [180.0, 0.0], [540.0, 0.0], [179.999, 0.0], [-900.0, 360.0]])
    counts = torsion_histogram(angles, 4)
    assert counts[0, 2] == 4 and counts[3, 2] == 1 and counts.sum() == 5
    rng = np.random.default_rng(1)
    assert torsion_histogram(rng.uniform(-400, 400, (1000, 2))).sum() == 1000


def test_jensen_shannon_in_cases_known_exactly() -> None:
    assert jensen_shannon([1, 2, 3], [2, 4, 6]) == pytest.approx(0.0, abs=1e-15)
    assert jensen_shannon([1, 0], [0, 5]) == pytest.approx(1.0)
    # H(3/4, 1/4) - 1/2 H(1, 0) - 1/2 H(1/2, 1/2)
    entropy = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25))
    assert jensen_shannon([4, 0], [1, 1]) == pytest.approx(entropy - 0.5)
    a, b = np.random.default_rng(2).random((2, 6, 6))
    assert jensen_shannon(a, b) == pytest.approx(jensen_shannon(b, 7 * a))


@pytest.mark.parametrize(("a", "b"), [([1, 2], [1, 2, 3]), ([1, -1], [1, 1]), ([0, 0], [1, 1])])
def test_impossible_histograms_are_refused(a: list[int], b: list[int]) -> None:
    with pytest.raises(ValueError, match="histogram"):
        jensen_shannon(a, b)


@pytest.mark.parametrize("sites", ["all", "heavy"])
def test_backbone_torsions_are_phi_and_psi(sites: str) -> None:
    topology = mdtraj.load_pdb(str(PDB)).topology
    molecule = Molecule.from_mdtraj(topology, sites=sites)  # type: ignore[arg-type]
    named = [[molecule.site_names[k] for k in row] for row in backbone_torsions(molecule)]
    assert named == [["C", "N", "CA", "C"], ["N", "CA", "C", "N"]]


def test_a_molecule_without_phi_has_no_backbone_torsions(tmp_path: Path) -> None:
    topology = mdtraj.load_pdb(str(PDB)).topology
    whole = Molecule.from_mdtraj(topology, sites="heavy")
    with pytest.raises(StructureError, match="phi and psi"):
        backbone_torsions(Molecule.from_json({**whole.to_json(), "sites": list(whole.sites[:5])}))


def test_the_picture_is_a_png_and_nothing_else_is_left(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = ramachandran(rng.normal(-80, 20, (500, 2)), tmp_path / "map.png", "title", (-80, 80))
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 10_000
    assert [p.name for p in tmp_path.iterdir()] == ["map.png"]
    with pytest.raises(ZooError):
        ramachandran(rng.normal(0, 20, (50, 2)), tmp_path / "absent" / "map.png")
