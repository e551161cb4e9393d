"""`zoo rollout` with the released checkpoint: starts as people have them, mistakes, files, continuing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import mdtraj
import numpy as np
import pytest
from ase.build import molecule
from ase.io import write

import zoo
from zoo import cli
from zoo.registry import bundled_folder, find
from zoo.score_dynamics import ScoreDynamics

NAME = "sd-alanine-dipeptide-cg"
BUNDLED = Path(zoo.__file__).parent / "data" / "alanine-dipeptide.pdb"
ATOMS = [line for line in BUNDLED.read_text().splitlines() if line.startswith("ATOM")]
BOX = 30.0  # Å

pytestmark = pytest.mark.skipif(
    not (bundled_folder(find(NAME)) / "config.json").is_file() and not os.environ.get("CI"),
    reason=f"the bundled checkpoint {NAME} is not in this tree",
)


@pytest.fixture(autouse=True)
def _folder(empty_folder: Path) -> None:
    Path("start.pdb").write_bytes(BUNDLED.read_bytes())


def run(*arguments: object, name: object = NAME, n: int = 3) -> int:
    return cli.main(["rollout", str(name), *map(str, arguments), "-n", str(n)])


def contents() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path.cwd().iterdir() if path.is_file()}


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def wrapped(line: str, box: float) -> str:
    """A PDB line with its atom wrapped into a cubic box, without regard to the molecule."""
    position = [float(line[k : k + 8]) % box for k in (30, 38, 46)]
    return line[:30] + "".join(f"{value:8.3f}" for value in position) + line[54:]


# --- what is written ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_mdtraj_reads_start_and_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("start.pdb", "-w", 2, "-o", "run.xtc") == 0
    assert capsys.readouterr().err == ""
    start = mdtraj.load("start.pdb")
    heavy = start.atom_slice(start.topology.select("element != H"))
    for file in ("run-00.xtc", "run-01.xtc"):
        written = mdtraj.load(file, top="run.pdb")
        assert written.n_frames == 1 + 3
        np.testing.assert_allclose(written.time, np.arange(4.0))  # ps
        np.testing.assert_allclose(written.xyz[0], heavy.xyz[0], atol=1e-3)  # nm, the precision of XTC
        assert (np.abs(np.diff(written.xyz, axis=0)).max((1, 2)) > 0.01).all()
    assert [str(atom) for atom in mdtraj.load("run.pdb").topology.atoms] == [
        str(atom) for atom in heavy.topology.atoms
    ]


def test_a_continued_run_is_the_uninterrupted_one() -> None:
    assert run("start.pdb", "-o", "whole.xtc", n=5) == 0
    assert run("start.pdb", "-o", "parts.xtc", n=2) == 0
    assert run("start.pdb", "-o", "parts.xtc", n=5) == 0
    assert Path("parts.xtc").read_bytes() == Path("whole.xtc").read_bytes()


# --- starts -------------------------------------------------------------------------------------------


def _another_order() -> None:
    lines = [ATOMS[k] for k in np.random.default_rng(0).permutation(len(ATOMS))]
    Path("other.pdb").write_text("\n".join([*lines, "END", ""]))


def _no_hydrogens() -> None:
    lines = [line for line in ATOMS if line[76:78].strip() != "H"]
    assert len(lines) == 10
    Path("other.pdb").write_text("\n".join([*lines, "END", ""]))


def _some_hydrogens() -> None:
    lines = [line for line in ATOMS if line[12:16].strip() not in ("H2", "HB3", "HA")]
    Path("other.pdb").write_text("\n".join([*lines, "END", ""]))


def _other_names() -> None:
    lines = [f"{line[:12]}X{k:<3d}{line[16:17]}LIG{line[20:]}" for k, line in enumerate(ATOMS)]
    Path("other.pdb").write_text("\n".join([*lines, "END", ""]))


@pytest.mark.parametrize("spell", [_another_order, _no_hydrogens, _some_hydrogens, _other_names])
def test_the_same_structure_spelt_otherwise_gives_the_same_trajectory(spell: Callable[[], None]) -> None:
    """The model has heavy atoms only, so that a start may lack hydrogens."""
    spell()
    assert run("start.pdb", "-o", "one.xtc") == run("other.pdb", "-o", "two.xtc") == 0
    assert Path("one.xtc").read_bytes() == Path("two.xtc").read_bytes()


def test_a_molecule_cut_by_the_periodic_box_is_made_whole() -> None:
    cell = f"CRYST1{BOX:9.3f}{BOX:9.3f}{BOX:9.3f}  90.00  90.00  90.00 P 1           1"
    lines = [wrapped(line, BOX) for line in ATOMS]
    Path("broken.pdb").write_text("\n".join([cell, *lines, "END", ""]))
    assert np.ptp(mdtraj.load("broken.pdb").xyz[0], axis=0).min() > 2.0  # nm: cut along every axis
    assert run("start.pdb", "-o", "one.xtc") == run("broken.pdb", "-o", "two.xtc") == 0
    one, two = (mdtraj.load(file, top="one.pdb").xyz * 10 for file in ("one.xtc", "two.xtc"))
    shift = (two - one)[0].mean(0)
    np.testing.assert_allclose(shift / BOX, np.round(shift / BOX), atol=1e-3)  # some periodic image of it
    np.testing.assert_allclose(two, one + shift, atol=0.03)


@pytest.mark.parametrize(
    ("formula", "told"), [("C2H6", "C2H6 found, C6H12N2O2 needed"), ("H2O", "H2O found, C6H12N2O2 needed")]
)
def test_another_molecule_is_refused(formula: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    write("other.pdb", molecule(formula), format="proteindatabank")
    before = contents()
    assert run("other.pdb") == 1
    error = one_error(capsys)
    assert "other.pdb" in error and told in error
    assert contents() == before


def test_a_stretched_start_is_refused_by_its_worst_bond(capsys: pytest.CaptureFixture[str]) -> None:
    stretched = mdtraj.load("start.pdb")
    stretched.xyz *= 1.3
    stretched.save("stretched.pdb")
    before = contents()
    assert run("stretched.pdb") == 1
    assert "bond CA-CB 2.0" in one_error(capsys)
    assert contents() == before


# --- files and settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("start.pdb", "name a file that ends in"),
        ("start.pdb/run.xtc", "there is no folder start.pdb"),
        ("folder.xtc", "it is a folder"),
        ("taken.xtc", "taken.pdb: it is a folder"),
    ],
)
def test_output_that_cannot_be_written(output: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder.xtc").mkdir()
    Path("taken.pdb").mkdir()
    before = sorted(Path.cwd().iterdir())
    assert run("start.pdb", "-o", output) == 1
    assert told in one_error(capsys)
    assert sorted(Path.cwd().iterdir()) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(capsys: pytest.CaptureFixture[str]) -> None:
    Path("closed").mkdir(mode=0o500)
    assert run("start.pdb", "-o", "closed/run.xtc") == 1
    assert "not writable" in one_error(capsys)


def test_other_weights_do_not_continue_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    model = ScoreDynamics.from_pretrained(NAME)
    next(model.denoiser.parameters()).data += 1e-3
    folder = model.save_pretrained(Path("mine"))
    assert run("start.pdb", "-o", "run.xtc", n=2) == 0
    before = contents()
    capsys.readouterr()
    assert run("start.pdb", "-o", "run.xtc", name=folder) == 1
    error = one_error(capsys)
    assert "sha256 of the weights" in error and "--overwrite" in error
    assert contents() == before


def test_a_denoiser_is_no_propagator(capsys: pytest.CaptureFixture[str]) -> None:
    if not (bundled_folder(find("denoiser-elements")) / "config.json").is_file():
        pytest.skip("the denoiser is not in this tree")
    before = contents()
    assert run("start.pdb", name="denoiser-elements") == 1
    assert "denoiser" in one_error(capsys)
    assert contents() == before


def test_invalid_starts_are_told_by_their_file(capsys: pytest.CaptureFixture[str]) -> None:
    whole = mdtraj.load("start.pdb")
    centre, methyl = (whole.topology.select(f"resname ALA and name {name}")[0] for name in ("CA", "CB"))
    way = whole.xyz[0, methyl] - whole.xyz[0, centre]
    whole.xyz[0, methyl] += 0.04 * way / np.linalg.norm(way)  # nm: still a bond, but too long
    whole.save_gro("long.gro")
    assert run("long.gro", "-o", "run.xtc") == 1
    assert one_error(capsys).startswith("error: long.gro: the start is not a valid structure")


@pytest.mark.parametrize("taken", ["run.pdb", "run.json", "run.state.npz", "run.xtc"])
def test_a_folder_in_the_place_of_an_output_is_said_before_anything_is_written(
    taken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(taken).mkdir()
    before = sorted(Path().iterdir())
    for more in ((), ("--overwrite",)):
        assert run("start.pdb", "-o", "run.xtc", *more) == 1
        assert f"cannot write {taken}: it is a folder" in one_error(capsys)
        assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("suffix", ["xtc", "dcd"])
def test_what_is_written_is_what_python_gives(suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("start.pdb", "-o", f"run.{suffix}", "--seed", 5) == 0
    assert capsys.readouterr().err == ""  # and an ordinary start does not warn
    written = mdtraj.load(f"run.{suffix}", top="run.pdb")
    expected = ScoreDynamics.from_pretrained(NAME).rollout("start.pdb", 3, seed=5).trajectories[0]
    assert len(written) == 4
    np.testing.assert_allclose(written.xyz, expected.xyz, atol=2e-3)


def test_atoms_without_names_residues_or_bonds() -> None:
    """Elements and places are enough to know which atom is which."""
    whole = mdtraj.load("start.pdb")
    order = np.random.default_rng(0).permutation(whole.n_atoms)
    topology = mdtraj.Topology()
    residue = topology.add_residue("LIG", topology.add_chain())
    for k in order:
        topology.add_atom("X", whole.topology.atom(int(k)).element, residue)
    shuffled = mdtraj.Trajectory(whole.xyz[:, order], topology)
    model = ScoreDynamics.from_pretrained(NAME)
    a, b = (model.rollout(each, 2, seed=1).trajectories[0].xyz for each in (whole, shuffled))
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("steps", [0, -3])
def test_zero_and_negative_steps(steps: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("start.pdb", "-o", "run.xtc", n=steps) != 0
    error = capsys.readouterr().err
    assert error and "Traceback" not in error
    assert not Path("run.xtc").exists()


def test_a_run_of_another_seed_is_not_continued(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("start.pdb", "-o", "run.xtc", n=2) == 0
    before = contents()
    capsys.readouterr()
    assert run("start.pdb", "-o", "run.xtc", "--seed", 1, n=4) == 1
    assert "seed" in one_error(capsys)
    assert contents() == before


def test_a_start_far_from_the_training_data_is_one_warning(capsys: pytest.CaptureFixture[str]) -> None:
    """A cis peptide bond: whole, nothing clashes, and nowhere in the training data."""
    from ase import Atoms

    whole = mdtraj.load("start.pdb")
    index = {(a.residue.name, a.name): a.index for a in whole.topology.atoms}
    acetyl = [a.index for a in whole.topology.atoms if a.residue.name == "ACE" and a.name != "C"]
    atoms = Atoms([a.element.symbol for a in whole.topology.atoms], whole.xyz[0] * 10)
    axis = (index["ACE", "C"], index["ALA", "N"], index["ALA", "CA"])
    atoms.set_dihedral(index["ACE", "CH3"], *axis, 0.0, indices=acetyl)
    mdtraj.Trajectory(atoms.positions[None] / 10, whole.topology).save_gro("cis.gro")
    run("cis.gro", "-o", "run.xtc", n=1)
    lines = capsys.readouterr().err.splitlines()
    # What comes after may be that no proposal was good; that is said in lines of its own.
    assert lines[0].startswith("warning: ") and "out-of-distribution score" in lines[0]
    assert sum("out-of-distribution" in line for line in lines) == 1
    assert not any("Traceback" in line for line in lines)
