"""The torsions of a Ramachandran picture, and the picture."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mdtraj
import numpy as np
import pytest

from tests.rollout_model import fluorobutane
from zoo.analysis.kinetics import torsions
from zoo.analysis.ramachandran import backbone_torsions, ramachandran
from zoo.errors import MissingExtraError, StructureError, ZooError
from zoo.molecules.molecule import Molecule

PDB = mdtraj.load(str(Path(__file__).parent / "data" / "molecules" / "alanine-dipeptide.pdb"))
BACKBONE = ["ACE1-C", "ALA2-N", "CA", "ALA2-C", "NME3-N"]


def basin(phi: float, psi: float, n: int = 4000) -> np.ndarray:
    return np.random.default_rng(0).normal((phi, psi), 12.0, (n, 2))


@pytest.mark.parametrize("sites", ["heavy", "all", BACKBONE[::-1]], ids=["heavy", "all", "five beads"])
def test_the_torsions_are_phi_and_psi(sites: str | list[str]) -> None:
    molecule = Molecule.from_mdtraj(PDB.topology, sites)
    quadruples = backbone_torsions(molecule)
    atoms = [[list(PDB.topology.atoms)[molecule.sites[site]] for site in four] for four in quadruples]
    assert [[atom.name for atom in four] for four in atoms] == [["C", "N", "CA", "C"], ["N", "CA", "C", "N"]]
    assert [[atom.residue.resSeq for atom in four] for four in atoms] == [[1, 2, 2, 2], [2, 2, 2, 3]]
    angles = torsions(PDB.xyz[0, list(molecule.sites)], quadruples)
    expected = np.degrees([mdtraj.compute_phi(PDB)[1][0, 0], mdtraj.compute_psi(PDB)[1][0, 0]])
    np.testing.assert_allclose(angles, expected, atol=1e-3)


@pytest.mark.parametrize(
    "molecule",
    [
        fluorobutane(),
        Molecule.from_mdtraj(PDB.topology, ["ALA2-N", "CA", "CB", "ALA2-C"]),
        Molecule.from_mdtraj(PDB.topology, BACKBONE[:-1]),  # phi, but no psi
        Molecule.from_mdtraj(PDB.topology, BACKBONE[1:]),  # psi, but no phi
    ],
    ids=["no peptide", "beads", "no psi", "no phi"],
)
def test_without_both_torsions_that_is_said(molecule: Molecule) -> None:
    with pytest.raises(StructureError, match="phi and psi") as caught:
        backbone_torsions(molecule)
    assert "\n" not in str(caught.value)


def test_the_picture_is_a_png_and_nothing_else_is_left(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    path = tmp_path / "rama.png"
    path.write_bytes(b"an old picture")
    assert ramachandran(basin(-80, 80), path, "a title", start=(-80.0, 70.0)) == path
    pixels = image.imread(path)
    assert all(500 <= side <= 2000 for side in pixels.shape[:2])
    assert pixels[..., :3].std() > 0.02  # not blank
    assert [each.name for each in tmp_path.iterdir()] == ["rama.png"]


@pytest.mark.parametrize(("phi", "psi"), [(-110.0, 120.0), (-110.0, -120.0), (70.0, 120.0), (70.0, -120.0)])
def test_phi_goes_to_the_right_and_psi_up(tmp_path: Path, phi: float, psi: float) -> None:
    """The data, and the mark of the start, are found in the quadrant of the picture where they belong."""
    image = pytest.importorskip("matplotlib.image")
    path = ramachandran(basin(phi, psi), tmp_path / "rama.png", start=(phi, psi))
    pixels = image.imread(path)[..., :3]
    blank = ramachandran(basin(phi, psi), tmp_path / "blank.png", start=(-phi, -psi))
    changed = np.abs(pixels - image.imread(blank)[..., :3]).max(-1) > 0.3
    crimson = (np.abs(pixels - np.array([220, 20, 60]) / 255).max(-1) < 0.1) & changed
    row, column = np.argwhere(crimson).mean(0)
    # the square is left of the colour bar; its centre is near that of the picture without the bar
    height, width = pixels.shape[:2]
    assert (column > 0.42 * width) == (phi > 0)
    assert (row < 0.5 * height) == (psi > 0)
    # viridis has strong colours where there is anything; within the ring is the data
    around = pixels[round(row) - 3 : round(row) + 4, round(column) - 3 : round(column) + 4]
    assert np.ptp(around, axis=-1).mean() > 0.2


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for path in (tmp_path / "nowhere" / "rama.png", tmp_path):
        with pytest.raises(ZooError, match="cannot write the picture") as caught:
            ramachandran(basin(-80, 80, 50), path)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}*"))


def test_a_failure_keeps_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = pytest.importorskip("matplotlib.figure")

    def full(self: object, fname: str | os.PathLike[str], **options: object) -> None:
        Path(fname).write_bytes(b"\x89PNG")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure.Figure, "savefig", full)
    path = tmp_path / "rama.png"
    path.write_bytes(b"an old picture")
    with pytest.raises(ZooError, match="No space left"):
        ramachandran(basin(-80, 80, 50), path)
    assert path.read_bytes() == b"an old picture"
    assert [each.name for each in tmp_path.iterdir()] == ["rama.png"]


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match="analysis"):
        ramachandran(basin(-80, 80, 50), tmp_path / "rama.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_matplotlib_is_imported_late_and_stays_as_the_user_set_it(tmp_path: Path) -> None:
    """A notebook's backend and styles are its own; `import` alone does not even need matplotlib."""
    pytest.importorskip("matplotlib")
    code = """
import sys, warnings
from pathlib import Path
from zoo.analysis.ramachandran import ramachandran
assert "matplotlib" not in sys.modules
import matplotlib
before, filters = dict(matplotlib.rcParams), list(warnings.filters)
ramachandran([[-80.0, 80.0], [60.0, 40.0]], Path("rama.png"), start=(0.0, 0.0))
assert dict(matplotlib.rcParams) == before
assert warnings.filters == filters
assert "matplotlib.pyplot" not in sys.modules  # which would choose a backend
"""
    environment = {**os.environ, "MPLBACKEND": "svg", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
