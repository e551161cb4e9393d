"""What every released propagator keeps, whatever its weights: symmetries, seeds, a sound molecule, a score.

The thresholds come from the contract and from physics at 300 K, not from one set of weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import numpy.typing as npt
import pytest
import torch

import zoo
from zoo.errors import StructureError
from zoo.molecules.molecule import handedness
from zoo.molecules.rigid import superposition
from zoo.molecules.start import load_start
from zoo.registry import Record, bundled_folder, records
from zoo.rollout import Rollout
from zoo.score_dynamics import ScoreDynamics

Array = npt.NDArray[np.float64]

NAMES = [record.name for record in records() if record.kind == "score-dynamics"]
MOST_EVALUATIONS = 20
MIRROR = np.array([1.0, 1.0, -1.0])


def record_of(name: str) -> Record:
    return next(record for record in records() if record.name == name)


#: For checkpoints of families: the molecule that they are tried on.
EXAMPLE = Path(zoo.__file__).parent / "data" / "butane.pdb"


@cache
def loaded(name: str) -> ScoreDynamics:
    """By name; one of a family for its example."""
    model = ScoreDynamics.from_pretrained(name)
    return model if model.family is None else model.for_start(EXAMPLE)


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> ScoreDynamics:
    record = record_of(request.param)
    if not (bundled_folder(record) / "config.json").is_file():
        if record.bundled and os.environ.get("CI"):
            pytest.fail(f"the bundled checkpoint {record.name} is missing")
        pytest.skip(f"{record.name} is not in this tree")
    return loaded(record.name)


def start_file(model: ScoreDynamics) -> Path:
    """The bundled structure that holds the molecule of this checkpoint."""
    for path in sorted((Path(zoo.__file__).parent / "data").glob("*.pdb")):
        try:
            load_start(path, model.molecule)
        except StructureError:
            continue
        return path
    raise AssertionError(f"no structure in zoo/data holds the molecule of {model.name}")


def start(model: ScoreDynamics) -> Array:
    (x,) = load_start(start_file(model), model.molecule)
    return x


def rotation(seed: int) -> Array:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return np.asarray(q * np.sign(np.linalg.det(q)))


def copies(x: Array, n: int) -> Array:
    return np.repeat(x[None], n, 0)


def positions(run: Rollout) -> Array:
    """(n_walkers, n_frames, n_sites, 3) Å."""
    return np.stack([each.xyz for each in run.trajectories]).astype(np.float64) * 10


def internal(x_next: Array, x: Array) -> tuple[Array, Array]:
    """Displacements after superposition on x, Å, and the rotations (rows @ R.T) that superpose."""
    after, before = torch.from_numpy(x_next), torch.from_numpy(np.broadcast_to(x, x_next.shape).copy())
    turn = superposition(after, before).numpy()
    aligned = (x_next - x_next.mean(-2, keepdims=True)) @ turn.transpose(0, 2, 1)
    return aligned - (x - x.mean(0)), turn


# --- identity ---------------------------------------------------------------------------------------


def test_there_is_a_propagator() -> None:
    assert "sd-alanine-dipeptide-cg" in NAMES


def test_it_loads_by_name_and_by_name_and_version(model: ScoreDynamics) -> None:
    record = record_of(model.name)
    assert model.checkpoint_id == f"{record.name}@{record.version}"
    assert model.weights_sha256 == record.sha256
    again = ScoreDynamics.from_pretrained(model.checkpoint_id).of(model.molecule)
    x, noise = start(model)[None], model.noise(0, [0], 1, 0)
    np.testing.assert_array_equal(again.propose(x, [0], noise), model.propose(x, [0], noise))
    assert all(bool(torch.isfinite(each).all()) for each in model.denoiser.state_dict().values())


def test_a_step_costs_at_most_20_network_evaluations(model: ScoreDynamics) -> None:
    calls: list[int] = []
    last = model.denoiser.network.leave
    assert isinstance(last, torch.nn.Module)
    hook = last.register_forward_hook(lambda *_: calls.append(1))
    try:
        model.propose(start(model)[None], [0], model.noise(0, [0], 1, 0))
    finally:
        hook.remove()
    assert len(calls) == model.n_evaluations <= MOST_EVALUATIONS


# --- symmetries -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mirror", [1.0, -1.0], ids=["rotation", "mirror image"])
def test_steps_follow_rotation_translation_and_reflection(model: ScoreDynamics, mirror: float) -> None:
    """With the same noise: it is given in the body frame, whose third axis has the molecule's handedness."""
    if mirror < 0 and not model.molecule.stereocentres:
        pytest.skip("without a stereocentre the frame is the same on both sides of a mirror")
    x = start(model)
    turn, shift = rotation(1) * mirror, np.array([30.0, -20.0, 5.0])
    plain, moved = copies(x, 8), copies(x @ turn.T + shift, 8)
    for step in range(1, 6):
        noise = model.noise(3, range(8), step, 0)
        same = noise
        if model.family is not None:  # a family has no body frame: the noise is that of the laboratory
            noise[:, -2:] = 0.0  # principal axes have no sign
            same = noise @ turn.T
        plain, moved = model.propose(plain, range(8), noise), model.propose(moved, range(8), same)
        np.testing.assert_allclose(moved, plain @ turn.T + shift, atol=1e-3)
    assert np.abs(plain - x).max() > 0.3  # and they do move


def test_the_order_of_atoms_in_the_start_does_not_matter(model: ScoreDynamics) -> None:
    whole = mdtraj.load(str(start_file(model)))
    order = np.random.default_rng(5).permutation(whole.n_atoms)
    assert (order != np.arange(whole.n_atoms)).any()
    plain = positions(model.rollout(whole, n_steps=3, n_walkers=2, seed=7))
    other = positions(model.rollout(reordered(whole, order), n_steps=3, n_walkers=2, seed=7))
    np.testing.assert_allclose(other, plain, atol=1e-3)


def reordered(trajectory: mdtraj.Trajectory, order: Sequence[int]) -> mdtraj.Trajectory:
    atoms = list(trajectory.topology.atoms)
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    new: dict[int, Any] = {}
    for i in order:
        residue = topology.add_residue(atoms[i].residue.name, chain, resSeq=atoms[i].residue.resSeq)
        new[i] = topology.add_atom(atoms[i].name, atoms[i].element, residue)
    for a, b in trajectory.topology.bonds:
        topology.add_bond(new[a.index], new[b.index])
    return mdtraj.Trajectory(trajectory.xyz[:, order], topology)


@pytest.mark.slow
def test_the_mirror_image_of_the_start_keeps_its_hand(model: ScoreDynamics) -> None:
    """D-alanine stays D: 20 steps invert no centre, and none had to be drawn again for it."""
    centres = model.molecule.centres
    if not centres:
        pytest.skip("no tetrahedral centre among the sites")
    whole = mdtraj.load(str(start_file(model)))
    mirrored = mdtraj.Trajectory(whole.xyz * np.float32(MIRROR), whole.topology)
    hand = handedness(start(model), centres)
    run = model.rollout(mirrored, n_steps=20, n_walkers=4, seed=11)
    assert (handedness(positions(run), centres) == -hand).all()
    assert "chirality" not in run.report.by_kind
    straight = model.rollout(whole, n_steps=20, n_walkers=4, seed=11)
    assert (handedness(positions(straight), centres) == hand).all()
    assert "chirality" not in straight.report.by_kind


# --- walkers and seeds ------------------------------------------------------------------------------


def test_a_batch_is_its_walkers_one_by_one(model: ScoreDynamics) -> None:
    rng = np.random.default_rng(0)
    walkers = [3, 0, 5, 1]
    x = copies(start(model), 4) + 0.02 * rng.normal(size=(4, model.molecule.n_sites, 3))
    noise = model.noise(0, walkers, 9, 0)
    together = model.propose(x, walkers, noise)
    for k, walker in enumerate(walkers):
        alone = model.propose(x[[k]], [walker], noise[[k]])
        np.testing.assert_array_equal(alone[0], together[k])


def test_a_trajectory_depends_on_its_seed_and_number_alone(model: ScoreDynamics) -> None:
    path = start_file(model)

    def run(n_walkers: int, seed: int) -> Array:
        return positions(model.rollout(path, n_steps=4, n_walkers=n_walkers, seed=seed))

    many = run(model.batch_slots + 2, seed=1)  # more than one batch
    np.testing.assert_array_equal(run(1, seed=1)[0], many[0])
    np.testing.assert_array_equal(run(3, seed=1), many[:3])
    assert np.abs(run(1, seed=2)[0, 1:] - many[0, 1:]).max() > 0.1
    for a, b in ((0, 1), (0, model.batch_slots)):  # no two walkers share their noise
        assert np.abs(many[a, 1:] - many[b, 1:]).max() > 0.1


# --- physics ----------------------------------------------------------------------------------------


@cache
def short_run(name: str) -> Rollout:
    model = loaded(name)
    return model.rollout(start_file(model), n_steps=200, n_walkers=8, seed=2024)


@pytest.mark.slow
def test_a_short_run_stays_the_molecule(model: ScoreDynamics) -> None:
    run = short_run(model.name)
    assert run.report.stopped == {}
    assert run.report.redrawn_fraction < 0.02
    x = positions(run)
    assert x.shape == (8, 201, model.molecule.n_sites, 3)
    pairs = np.array(model.molecule.site_bonds)
    lengths = np.linalg.norm(x[:, :, pairs[:, 0]] - x[:, :, pairs[:, 1]], axis=-1)
    # 1e-3 Å: trajectories are kept in single precision, in nm
    assert np.abs(lengths - model.bond_lengths).max() < model.limits.bond_tolerance + 1e-3
    np.testing.assert_allclose(lengths[:, 1:].mean((0, 1)), model.bond_lengths, atol=0.02)


@pytest.mark.slow
def test_bonds_vibrate_as_much_as_at_room_temperature(model: ScoreDynamics) -> None:
    """sqrt(kT / 2k) of the stretches of AMBER is 0.02 to 0.04 Å at 300 K, between heavy atoms.

    Twice as much is a bond that the network has not learned; none at all, a frozen molecule.
    """
    elements = model.molecule.site_elements
    pairs = np.array([p for p in model.molecule.site_bonds if "H" not in (elements[p[0]], elements[p[1]])])
    x = positions(short_run(model.name))[:, 1:]
    spread = np.linalg.norm(x[:, :, pairs[:, 0]] - x[:, :, pairs[:, 1]], axis=-1).std((0, 1))
    assert (spread > 0.01).all()
    assert (spread < 0.08).all()


@pytest.mark.slow
def test_the_molecule_turns_and_wanders_like_one_in_a_liquid(model: ScoreDynamics) -> None:
    """Rigid motion is put back as Brownian motion: neither frozen nor faster than free flight.

    Free flight at 300 K with the mass of the sites is an upper bound of the displacement in one lag
    time; a tenth of it is far below what a small molecule does in 1 ps in water.
    """
    x = positions(short_run(model.name))
    kelvin_in_amu = 0.831446  # k_B in amu Å^2 / ps^2 / K
    mass = sum(mdtraj.element.Element.getBySymbol(e).mass for e in model.molecule.elements)
    flight = np.sqrt(kelvin_in_amu * model.config.temperature / mass) * model.lag_time
    moved = np.diff(x.mean(2), axis=1).reshape(-1, 3)
    rms = np.sqrt((moved**2).mean(0))
    assert (rms > 0.1 * flight).all()
    assert (rms < 1.2 * flight).all()
    assert (np.abs(moved.mean(0)) < 5 * rms / np.sqrt(len(moved))).all()  # without a drift


@pytest.mark.slow
def test_the_molecule_turns(model: ScoreDynamics) -> None:
    """A small molecule in water turns by some 5 to 30 degrees about each axis in 1 ps."""
    x = positions(short_run(model.name))[:, ::20]
    cosines = []
    for walker in x:
        for before, after in pairwise(walker):
            _, turn = internal(after[None], before)
            cosines.append((np.trace(turn[0]) - 1) / 2)
    assert -0.6 < np.mean(cosines) < 0.9  # after 20 steps: neither frozen nor always upside down


# --- score and probability --------------------------------------------------------------------------


def internal_step(model: ScoreDynamics, n: int, seed: int) -> tuple[Array, Array]:
    x = start(model)
    return x, model.step(copies(x, n), np.random.default_rng(seed))


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.5, 3.0])
def test_the_score_is_finite_and_has_no_rigid_part(model: ScoreDynamics, sigma: float) -> None:
    x, x_next = internal_step(model, 2, 0)  # few: of a model with sides, likelihoods are behind a score
    score = model.score(x_next, copies(x, 2), sigma)
    assert score.shape == x_next.shape
    assert np.isfinite(score).all()
    scale = np.abs(score).max()
    assert np.abs(score.sum(1)).max() < 1e-3 * scale
    _, turn = internal(x_next, x)
    superposed = (x - x.mean(0)) @ turn  # on x_next
    torque = np.cross(superposed, score).sum(1)
    assert np.abs(torque).max() < 1e-3 * scale * np.abs(superposed).sum()


def test_the_score_follows_rotations(model: ScoreDynamics) -> None:
    x, x_next = internal_step(model, 1, 1)
    turn = rotation(2)
    ends = np.concatenate([x_next, x_next @ turn.T + 4.0, x_next])
    begins = np.stack([x, x, x @ turn.T - 3.0])
    score, moved, unmoved = model.score(ends, begins, 0.1)
    scale = np.abs(score).max()
    np.testing.assert_allclose(moved, score @ turn.T, atol=1e-3 * scale)
    np.testing.assert_allclose(unmoved, score, atol=1e-3 * scale)


def test_at_the_highest_noise_the_score_points_to_the_mean(model: ScoreDynamics) -> None:
    """Where sigma is far above the spread of the steps, D is their mean: score = (mean - y) / sigma**2."""
    sigma = model.config.sigma_max
    x, stepped = internal_step(model, 2 * model.batch_slots, 2)
    y, _ = internal(stepped, x)
    mean, spread = y.mean(0), np.sqrt(y.var(0).sum())
    assert sigma > 2 * spread / np.sqrt(y[0].size)
    far = x + sigma * np.random.default_rng(3).normal(size=(6, *x.shape))
    y_far, turn = internal(far, x)
    score = model.score(far, copies(x, 6), sigma) @ turn.transpose(0, 2, 1)
    exact = (mean - y_far) / sigma**2
    cosine = (
        (score * exact).sum((1, 2)) / np.linalg.norm(score, axis=(1, 2)) / np.linalg.norm(exact, axis=(1, 2))
    )
    assert cosine.min() > 0.99
    # D is the posterior mean, so it may be off by less than one spread of the steps themselves
    denoised = score * sigma**2 + y_far
    assert np.linalg.norm(denoised - mean, axis=(1, 2)).mean() < spread


@pytest.mark.slow
def test_likely_steps_have_a_higher_log_prob(model: ScoreDynamics) -> None:
    """A step that the model took, against the same step distorted by 1 Å or by a bond's tolerance."""
    x, x_next = internal_step(model, 2, 4)
    rng = np.random.default_rng(5)
    way = rng.normal(size=x_next.shape)
    way /= np.linalg.norm(way, axis=-1, keepdims=True)
    batch = np.concatenate([x_next, x_next + 1.0 * way, x_next + model.limits.bond_tolerance * way])
    taken, distorted, shaken = model.log_prob(batch, copies(x, 6)).reshape(3, 2)
    assert np.isfinite(taken).all()
    assert (taken > shaken + 5).all()  # by e**5 at least
    assert (shaken > distorted).all()


# --- golden output ----------------------------------------------------------------------------------

SEED, WALKERS, STEPS = 17, (0, 5), 5
ATOL = {1: 1e-3, STEPS: 5e-3}  # Å: other CPUs round otherwise


def golden_file(name: str) -> Path:
    return Path(__file__).parent / "data" / f"golden-{name}.json"


def golden(model: ScoreDynamics, x: Array) -> dict[str, Any]:
    """What the checkpoint makes of a start, without redraws; `tests/make_golden_propagators.py` stores it."""
    after: dict[str, Any] = {}
    now = copies(x, len(WALKERS))
    for step in range(1, STEPS + 1):
        now = model.propose(now, WALKERS, model.noise(SEED, WALKERS, step, 0))
        if step in ATOL:
            after[str(step)] = now.round(6).tolist()
    return {
        "checkpoint": model.checkpoint_id,
        "weights_sha256": model.weights_sha256,
        "seed": SEED,
        "walkers": list(WALKERS),
        "start": x.round(6).tolist(),
        "positions_after": after,
    }


def test_the_golden_output_is_repeated(model: ScoreDynamics) -> None:
    path = golden_file(model.name)
    again = "run python tests/make_golden_propagators.py and look at what changed"
    assert path.is_file(), f"no {path.name} yet: {again}"
    stored = json.loads(path.read_text())
    assert stored["weights_sha256"] == model.weights_sha256, f"the weights of {model.name} changed: {again}"
    found = golden(model, np.array(stored["start"]))
    settings = ("checkpoint", "seed", "walkers", "start")
    assert [found[key] for key in settings] == [stored[key] for key in settings], again
    for step, atol in ATOL.items():
        np.testing.assert_allclose(
            found["positions_after"][str(step)], stored["positions_after"][str(step)], rtol=0, atol=atol,
            err_msg=f"after {step} steps",
        )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _forget() -> Iterator[None]:
    yield
    short_run.cache_clear()
    loaded.cache_clear()
