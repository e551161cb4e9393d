from __future__ import annotations

from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch

from zoo.checkpoint import load
from zoo.errors import CheckpointError, StructureError
from zoo.molecules.molecule import Molecule, handedness
from zoo.molecules.rigid import (
    centred,
    rotation_matrix,
    rotation_vector,
    superposition,
    without_rigid_motion,
)
from zoo.score_dynamics import ScoreDynamics, ScoreDynamicsConfig, internal_basis

PDB = Path(__file__).parent / "data" / "molecules" / "alanine-dipeptide.pdb"


def dipeptide() -> tuple[Molecule, np.ndarray]:
    trajectory = mdtraj.load_pdb(str(PDB))
    molecule = Molecule.from_mdtraj(trajectory.topology, sites="heavy")
    return molecule, trajectory.xyz[0, list(molecule.sites)].astype(np.float64) * 10


def small_model(seed: int = 0, **changes: object) -> ScoreDynamics:
    molecule, x = dipeptide()
    ends = np.array(molecule.site_bonds)
    bonds = np.linalg.norm(x[ends[:, 0]] - x[ends[:, 1]], axis=1)
    config = ScoreDynamicsConfig(
        name="sd-test",
        version="1.0.0",
        molecule=molecule.to_json(),
        lag_time=1.0,
        frame=(3, 4, 6),
        sigma_data=0.18,
        bond_lengths=tuple(bonds),
        architecture={"n_sites": 10, "width": 32, "depth": 2},
        batch_slots=4,
        **changes,  # type: ignore[arg-type]
    )
    generator = torch.Generator().manual_seed(seed)
    denoiser = config.build()
    for parameter in denoiser.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    denoiser.rigid_factor.copy_(0.2 * torch.eye(6))
    denoiser.references[:] = torch.from_numpy(x).float() @ torch.eye(3)
    return ScoreDynamics(config, denoiser)


def rotation(seed: int) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_a_step_follows_rotation_translation_and_reflection(mirror: float) -> None:
    model, (_, x) = small_model(), dipeptide()
    noise = model.noise(3, [0], 1, 0)
    turn = rotation(1) * mirror
    shift = np.array([3.0, -2.0, 5.0])
    plain = model.propose(x[None], [0], noise)[0]
    moved = model.propose((x @ turn.T + shift)[None], [0], noise)[0]
    assert np.abs(plain - x).max() > 0.05  # the network does something
    np.testing.assert_allclose(moved, plain @ turn.T + shift, atol=2e-4)


def test_d_alanine_stays_d_where_l_stays_l() -> None:
    model, (molecule, x) = small_model(), dipeptide()
    noise = model.noise(3, [0], 1, 0)
    left = model.propose(x[None], [0], noise)[0]
    right = model.propose((x * [1, 1, -1])[None], [0], noise)[0]
    assert handedness(left, molecule.centres) == -handedness(right, molecule.centres)


def test_a_walker_does_not_depend_on_the_others() -> None:
    model, (_, x) = small_model(), dipeptide()
    walkers = [0, 1, 2, 3]
    noise = model.noise(0, walkers, 5, 0)
    together = model.propose(np.repeat(x[None], 4, 0), walkers, noise)
    for w in walkers:
        alone = model.propose(x[None], [w], noise[[w]])
        np.testing.assert_array_equal(alone[0], together[w])
    reordered = model.propose(np.repeat(x[None], 2, 0), [6, 1], noise[[2, 1]])
    np.testing.assert_array_equal(reordered, together[[2, 1]])


def test_noise_is_keyed_by_its_arguments() -> None:
    model = small_model()
    base = model.noise(1, [2], 3, 0)
    np.testing.assert_array_equal(base[0], model.noise(1, [7, 2], 3, 0)[1])
    for other in (model.noise(2, [2], 3, 0), model.noise(1, [2], 4, 0), model.noise(1, [2], 3, 1)):
        assert np.abs(other - base).max() > 0.1


def test_shared_slots_are_refused() -> None:
    model, (_, x) = small_model(), dipeptide()
    with pytest.raises(ValueError, match="share a slot"):
        model.propose(np.repeat(x[None], 2, 0), [1, 5], model.noise(0, [1, 5], 1, 0))


def test_score_is_equivariant_and_has_no_rigid_part() -> None:
    model, (_, x) = small_model(), dipeptide()
    x_next = model.step(x, np.random.default_rng(0))
    score = model.score(x_next, x, 0.1)
    assert score.shape == x.shape
    turn = rotation(2)
    np.testing.assert_allclose(model.score(x_next @ turn.T, x, 0.1), score @ turn.T, atol=2e-2)
    np.testing.assert_allclose(model.score(x_next, x @ turn.T + 1.0, 0.1), score, atol=2e-2)
    np.testing.assert_allclose(score.sum(0), 0, atol=1e-2)
    with pytest.raises(ValueError, match="sigma"):
        model.score(x_next, x, 0.0)


def test_score_is_the_gradient_of_log_prob_for_a_gaussian_model() -> None:
    """A network that says nothing leaves D = c_skip y: a Gaussian of width sigma_data, 3 n - 6 times."""
    model, (_, x) = small_model(), dipeptide()
    for parameter in model.denoiser.parameters():
        parameter.data.zero_()
    local = torch.from_numpy(x)[None]
    y = 0.1 * without_rigid_motion(
        torch.randn(1, 10, 3, generator=torch.Generator().manual_seed(0)).double(), local
    )
    x_next = x + y[0].numpy()
    sigma, s = 0.05, model.config.sigma_data
    np.testing.assert_allclose(model.score(x_next, x, sigma), -(y[0].numpy()) / (s**2 + sigma**2), atol=2e-3)
    variance = s**2 + model.config.sigma_min**2
    exact = -0.5 * float(y.square().sum()) / variance - 12 * np.log(2 * np.pi * variance)
    assert model.log_prob(x_next, x)[0] == pytest.approx(exact, abs=0.3)


def test_without_a_stereocentre_mirror_images_are_averaged() -> None:
    molecule = Molecule(
        ("C1", "C2", "C3", "C4", *(f"H{i}" for i in range(10))),
        ("C",) * 4 + ("H",) * 10,
        ("BUT",) * 14,
        (1,) * 14,
        ((0, 1), (1, 2), (2, 3), (0, 4), (0, 5), (0, 6), (1, 7), (1, 8), (2, 9), (2, 10),
         (3, 11), (3, 12), (3, 13)),
        (0, 1, 2, 3),
    )  # fmt: skip
    config = ScoreDynamicsConfig(
        name="sd-butane", version="1.0.0", molecule=molecule.to_json(), lag_time=1.0, frame=(0, 1, 2),
        sigma_data=0.2, bond_lengths=(1.53, 1.53, 1.53), architecture={"n_sites": 4, "width": 16, "depth": 1},
        batch_slots=2,
    )  # fmt: skip
    denoiser = config.build()
    generator = torch.Generator().manual_seed(0)
    for parameter in denoiser.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    model = ScoreDynamics(config, denoiser)
    x = np.array([[0.0, 1.4, 0.3], [0, 0, 0], [1.5, 0, 0], [2.0, 0.9, 1.1]])
    x_next = x + 0.1 * np.random.default_rng(0).normal(size=x.shape)
    flip = np.array([1.0, 1.0, -1.0])
    np.testing.assert_allclose(
        model.score(x_next * flip, x * flip, 0.1), model.score(x_next, x, 0.1) * flip, atol=2e-3
    )


def test_rigid_tools() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 7, 3, generator=generator, dtype=torch.float64)
    vector = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    turn = rotation_matrix(vector)
    torch.testing.assert_close(rotation_vector(turn), vector)
    torch.testing.assert_close(superposition(x, x @ turn.mT + 3.0), turn)
    y = torch.randn(5, 7, 3, generator=generator, dtype=torch.float64)
    after = centred(x + 0.1 * y)
    left = after @ superposition(after, x).mT - centred(x)
    torch.testing.assert_close(without_rigid_motion(left, x), left)  # superposed: nothing rigid is left
    basis = internal_basis(x)
    flat = without_rigid_motion(y, x).flatten(1)
    torch.testing.assert_close((basis.mT @ (basis @ flat[..., None]))[..., 0], flat)
    assert basis.shape == (5, 15, 21)


def test_round_trip(tmp_path: Path) -> None:
    model, (_, x) = small_model(), dipeptide()
    folder = model.save_pretrained(tmp_path / "sd-test")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = ScoreDynamics.from_pretrained(folder)
    assert torch.equal(before, torch.get_rng_state())
    assert again.config == model.config
    assert len(again.weights_sha256) == 64
    noise = model.noise(0, [0], 1, 0)
    np.testing.assert_array_equal(again.propose(x[None], [0], noise), model.propose(x[None], [0], noise))
    assert load(folder).config["kind"] == "score-dynamics"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lag_time", -1.0, "lag_time"),
        ("sigma_min", 1000.0, "sigma_min 1000.0 must be smaller than sigma_max"),
        ("frame", [1, 1, 2], "frame"),
        ("solver", "magic", "solver"),
        ("backbone", "magic", "backbone"),
        ("bond_lengths", [1.5], "bond_lengths"),
        ("surprise", 1, "surprise"),
        ("architecture", {"n_sites": 10, "heads": 3}, "architecture"),
    ],
)
def test_a_bad_config_is_refused_in_one_line(key: str, value: object, message: str) -> None:
    data = small_model().config.to_dict()
    data[key] = value
    with pytest.raises(CheckpointError, match=message) as caught:
        ScoreDynamicsConfig.from_dict(data).build()
    assert "\n" not in str(caught.value)


def test_positions_of_another_molecule_are_refused() -> None:
    with pytest.raises(StructureError, match="10 sites"):
        small_model().step(np.zeros((7, 3)))


def test_rollout_from_a_pdb() -> None:
    run = small_model().rollout(PDB, n_steps=1, n_walkers=2, seed=0, max_redraws=1)
    assert len(run.trajectories) == 2
    assert run.lag_time == 1.0


def test_out_of_distribution_grows_with_the_distance() -> None:
    model, (_, x) = small_model(), dipeptide()
    model.denoiser.reference_distance.fill_(0.5)
    local = (x - x.mean(0)) @ model.denoiser.frames(torch.from_numpy(x)[None])[0].numpy()
    model.denoiser.references[:] = torch.from_numpy(local).float()
    far = x.copy()
    far[0] += 3.0
    near, away = model.out_of_distribution(np.stack([x, far]))
    assert near < 0.01
    assert away > 1.0


# -------------------------------------------------------------------------------- rigid bonds


def free_bonds(molecule: Molecule) -> list[int]:
    """Bonds with an end that has no other bond."""
    degree = np.bincount(np.array(molecule.site_bonds).ravel())
    return [k for k, pair in enumerate(molecule.site_bonds) if min(degree[list(pair)]) == 1]


@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_rigid_bonds_keep_their_length_and_nothing_else_moves(mirror: float) -> None:
    molecule, x = dipeptide()
    x = x * [1.0, 1.0, mirror]
    rigid = free_bonds(molecule)[:3]
    plain, held = small_model(), small_model(rigid_bonds=tuple(rigid))
    noise = plain.noise(3, [0], 1, 0)
    a, b = (model.propose(x[None], [0], noise)[0] for model in (plain, held))
    ends = np.array(molecule.site_bonds)

    def lengths(y: np.ndarray) -> np.ndarray:
        return np.asarray(np.linalg.norm(y[ends[:, 0]] - y[ends[:, 1]], axis=1))

    assert np.abs(lengths(a) - held.bond_lengths)[rigid].min() > 1e-3
    np.testing.assert_allclose(lengths(b)[rigid], held.bond_lengths[rigid], atol=1e-6)
    moved = np.flatnonzero(np.abs(a - b).max(1) > 1e-6)
    assert len(moved) == 3 and all(len(set(ends[k]) & set(moved)) == 1 for k in rigid)
    for k in rigid:  # along the bond, so that no angle changes
        way = [
            (y[ends[k, 1]] - y[ends[k, 0]]) / np.linalg.norm(y[ends[k, 1]] - y[ends[k, 0]]) for y in (a, b)
        ]
        np.testing.assert_allclose(*way, atol=1e-6)


def test_rigid_bonds_are_kept_in_the_folder(tmp_path: Path) -> None:
    model = small_model(rigid_bonds=(free_bonds(dipeptide()[0])[0],))
    again = ScoreDynamics.from_pretrained(model.save_pretrained(tmp_path / "folder"))
    assert again.config.rigid_bonds == model.config.rigid_bonds


def test_bonds_that_cannot_be_rigid_are_refused() -> None:
    molecule, _ = dipeptide()
    inner = next(k for k in range(len(molecule.site_bonds)) if k not in free_bonds(molecule))
    for bad, message in ((inner, "has no free end"), (99, "there are 9 bonds"), (-1, "there are 9 bonds")):
        with pytest.raises(CheckpointError, match=message):
            small_model(rigid_bonds=(bad,))
