"""One contract for every released propagator: symmetries, seeds, physics, golden output."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import mdtraj
import numpy as np
import pytest

from tests.released_propagators import NAMES, PDB, golden, golden_path, start_positions
from zoo import cli
from zoo.molecules.molecule import handedness
from zoo.score_dynamics import ScoreDynamics


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> ScoreDynamics:
    return ScoreDynamics.from_pretrained(request.param)


def rotation(seed: int) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def test_golden_output(model: ScoreDynamics) -> None:
    stored, found = json.loads(golden_path(model.name).read_text()), golden(model)
    assert stored["weights_sha256"] == found["weights_sha256"], "run python tests/make_golden_propagators.py"
    np.testing.assert_allclose(found["after_1"], stored["after_1"], atol=1e-3)
    np.testing.assert_allclose(found["after_5"], stored["after_5"], atol=1e-2)
    np.testing.assert_allclose(found["score"], stored["score"], atol=1e-2, rtol=1e-3)


def test_the_limits_of_the_project_are_kept(model: ScoreDynamics) -> None:
    assert model.n_evaluations <= 20
    assert model.lag_time > 0


@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_steps_follow_rotation_translation_and_reflection(model: ScoreDynamics, mirror: float) -> None:
    x = start_positions(model)
    turn, shift = rotation(4) * mirror, np.array([5.0, -8.0, 2.0])
    noise = model.noise(1, [0], 1, 0)
    plain = model.propose(x[None], [0], noise)[0]
    moved = model.propose((x @ turn.T + shift)[None], [0], noise)[0]
    np.testing.assert_allclose(moved, plain @ turn.T + shift, atol=1e-3)


def test_d_moves_as_the_mirror_of_l_and_neither_ever_flips(model: ScoreDynamics) -> None:
    x = start_positions(model)
    mirror = np.array([1.0, 1.0, -1.0])
    left = model.rollout(as_trajectory(model, x), 20, seed=3).trajectories[0].xyz
    right = model.rollout(as_trajectory(model, x * mirror), 20, seed=3).trajectories[0].xyz
    hands = [handedness(np.asarray(y, dtype=float), model.molecule.centres) for y in (left, right)]
    assert (hands[0] == hands[0][0]).all() and (hands[1] == -hands[0]).all()
    # Rounding grows along a trajectory, so only its first steps are compared.
    np.testing.assert_allclose(right[:4], left[:4] * mirror, atol=2e-3)


def as_trajectory(model: ScoreDynamics, x: np.ndarray) -> mdtraj.Trajectory:
    return mdtraj.Trajectory(x[None] / 10, model.molecule.topology())


def test_the_same_seed_gives_the_same_walker_whoever_else_runs(model: ScoreDynamics) -> None:
    few = model.rollout(PDB, 5, n_walkers=2, seed=11)
    many = model.rollout(PDB, 5, n_walkers=35, seed=11)
    other = model.rollout(PDB, 5, n_walkers=1, seed=12)
    for k in range(2):
        assert np.array_equal(few.trajectories[k].xyz, many.trajectories[k].xyz)
    assert not np.array_equal(few.trajectories[0].xyz, few.trajectories[1].xyz)
    assert not np.array_equal(few.trajectories[0].xyz, other.trajectories[0].xyz)


def test_the_order_of_atoms_in_the_file_does_not_matter(model: ScoreDynamics) -> None:
    trajectory = mdtraj.load_pdb(str(PDB))
    order = np.random.default_rng(0).permutation(trajectory.n_atoms)
    topology = mdtraj.Topology()
    residue = topology.add_residue("LIG", topology.add_chain())
    for k in order:  # no names, no residues, no bonds to go by
        topology.add_atom("X", trajectory.topology.atom(int(k)).element, residue)
    shuffled = mdtraj.Trajectory(trajectory.xyz[:, order], topology)
    a = model.rollout(trajectory, 2, seed=1).trajectories[0]
    b = model.rollout(shuffled, 2, seed=1).trajectories[0]
    np.testing.assert_allclose(a.xyz, b.xyz, atol=1e-5)


def test_the_score_is_that_of_an_internal_density(model: ScoreDynamics) -> None:
    x = start_positions(model)
    x_next = model.step(x, np.random.default_rng(2))
    value = model.score(x_next, x, 0.1)
    assert np.isfinite(value).all() and np.abs(value).max() > 0.1
    assert np.abs(value.sum(0)).max() < 1e-3 * np.abs(value).sum()


def test_what_happens_is_likelier_than_what_does_not(model: ScoreDynamics) -> None:
    x = start_positions(model)
    rng = np.random.default_rng(5)
    real = np.stack([model.step(x, rng) for _ in range(3)])
    odd = real + 0.5 * rng.standard_normal(real.shape)
    before = np.broadcast_to(x, real.shape)
    assert (model.log_prob(real, before) > model.log_prob(odd, before) + 10).all()


@pytest.mark.slow
def test_a_short_rollout_stays_the_molecule(model: ScoreDynamics) -> None:
    run = model.rollout(PDB, 200, n_walkers=8, seed=0)
    assert not run.report.stopped and run.report.redrawn_fraction < 0.02
    x = np.concatenate([t.xyz[20:] for t in run.trajectories]) * 10
    ends = np.array(model.molecule.site_bonds)
    lengths = np.linalg.norm(x[:, ends[:, 0]] - x[:, ends[:, 1]], axis=-1)
    assert np.abs(lengths.mean(0) - model.bond_lengths).max() < 0.02
    assert np.abs(lengths - model.bond_lengths).max() <= model.limits.bond_tolerance + 1e-3
    assert 0.01 < lengths.std(0).mean() < 0.06  # bonds vibrate, and by as much as bonds do


def test_an_ordinary_start_does_not_warn(model: ScoreDynamics) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.rollout(PDB, 1)


# --------------------------------------------------------------------------- the command line, for real


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = cli.main(["rollout", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize("suffix", ["xtc", "dcd"])
def test_a_rollout_from_the_command_line(
    model: ScoreDynamics, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    out = tmp_path / f"run.{suffix}"
    status, _, error = command(capsys, model.name, PDB, "-n", 3, "-o", out, "--seed", 5)
    assert (status, error) == (0, "")
    written = mdtraj.load(str(out), top=str(tmp_path / "run.pdb"))
    expected = model.rollout(PDB, 3, seed=5).trajectories[0]
    assert len(written) == 4
    np.testing.assert_allclose(written.xyz, expected.xyz, atol=2e-3)
    again = command(capsys, model.name, PDB, "-n", 5, "-o", out, "--seed", 5)
    assert again[0] == 0 and len(mdtraj.load(str(out), top=str(tmp_path / "run.pdb"))) == 6


def edited(tmp_path: Path, name: str) -> Path:
    """A start that is wrong in one way."""
    trajectory = mdtraj.load_pdb(str(PDB))
    if name == "other molecule":
        trajectory = trajectory.atom_slice(trajectory.topology.select("resname NME"))
    elif name == "pulled apart":
        trajectory.xyz[0, trajectory.topology.select("resname NME")] += 1.5
    elif name == "not a number":
        trajectory.xyz[0, 3] = np.nan
    path = tmp_path / "start.gro"
    trajectory.save_gro(str(path))
    return path


@pytest.mark.parametrize("name", ["other molecule", "pulled apart", "not a number"])
def test_wrong_starts_cost_one_line(
    model: ScoreDynamics, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = edited(tmp_path, name)
    status, out, error = command(capsys, model.name, path, "-n", 2, "-o", tmp_path / "run.xtc")
    assert status != 0 and out == ""
    assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
    assert [p.name for p in tmp_path.iterdir()] == ["start.gro"]


@pytest.mark.parametrize("steps", [0, -3])
def test_zero_and_negative_steps(
    model: ScoreDynamics, tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: int
) -> None:
    status, _, error = command(capsys, model.name, PDB, "-n", steps, "-o", tmp_path / "run.xtc")
    assert status != 0 and "Traceback" not in error and error
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_seed_is_not_continued(
    model: ScoreDynamics, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.xtc"
    assert command(capsys, model.name, PDB, "-n", 2, "-o", out)[0] == 0
    before = out.read_bytes()
    status, _, error = command(capsys, model.name, PDB, "-n", 4, "-o", out, "--seed", 1)
    assert status != 0 and error.count("\n") == 1 and "seed" in error
    assert out.read_bytes() == before


def test_a_start_far_from_the_training_data_is_one_warning(
    model: ScoreDynamics, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cis peptide bond: whole, nothing clashes, and nowhere in the training data."""
    from ase import Atoms

    trajectory = mdtraj.load_pdb(str(PDB))
    index = {(a.residue.name, a.name): a.index for a in trajectory.topology.atoms}
    acetyl = [a.index for a in trajectory.topology.atoms if a.residue.name == "ACE" and a.name != "C"]
    methyl = index["ACE", "CH3"]
    atoms = Atoms([a.element.symbol for a in trajectory.topology.atoms], trajectory.xyz[0] * 10)
    axis = (index["ACE", "C"], index["ALA", "N"], index["ALA", "CA"])
    atoms.set_dihedral(methyl, *axis, 0.0, indices=acetyl)
    path = tmp_path / "cis.gro"
    mdtraj.Trajectory(atoms.positions[None] / 10, trajectory.topology).save_gro(str(path))
    _, _, error = command(capsys, model.name, path, "-n", 1, "-o", tmp_path / "run.xtc")
    lines = error.splitlines()
    # What comes after may be that no proposal was good; that is said in lines of its own.
    assert "out-of-distribution score" in lines[0] and lines[0].startswith("warning: ")
    assert sum("out-of-distribution" in line for line in lines) == 1 and "Traceback" not in error
