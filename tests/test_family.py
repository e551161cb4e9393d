"""Propagators of families: one network for many molecules, which it knows by elements and bonds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import numpy.typing as npt
import pytest
import torch
from ase import Atoms

from zoo.analysis.dihedrals import chain_torsions, choose_dihedrals
from zoo.backbones.graph_transformer import GraphTransformer, GraphTransformerConfig, graph_of
from zoo.errors import CheckpointError, StructureError
from zoo.graph_denoiser import GraphDenoiser, bounded, principal
from zoo.molecules.family import Family, environments, measured_bands, measured_bonds
from zoo.molecules.molecule import Molecule
from zoo.molecules.start import load_molecule
from zoo.score_dynamics import GRAPH_BACKBONE, ScoreDynamics, ScoreDynamicsConfig

Array = npt.NDArray[np.float64]
ALKANES = Path(__file__).parent.parent / "training" / "reference_md" / "alkanes"
TINY = {"elements": ["H", "C"], "width": 16, "depth": 2, "heads": 2, "vectors": 4, "pair_width": 8}


def alkane(name: str) -> tuple[Molecule, Array]:
    """Molecule and positions (n, 3) Å."""
    pdb = mdtraj.load_pdb(str(ALKANES / f"{name}.pdb"))
    return Molecule.from_mdtraj(pdb.topology, sites="all"), pdb.xyz[0].astype(np.float64) * 10


@pytest.fixture(scope="module")
def network() -> GraphTransformer:
    config = GraphTransformerConfig(**{**TINY, "elements": ("H", "C")})  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = GraphTransformer(config)
        for parameter in net.parameters():  # nothing is zero, as at the start of training
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return net.eval().requires_grad_(False)


def family(**changes: Any) -> Family:
    butane, x = alkane("butane")
    lengths, rigid = measured_bonds([(butane, np.stack([x, x]))], 0.01)
    values: dict[str, Any] = {
        "molecules": ("butane (C4H10)",),
        "environments": tuple(sorted(set(environments(butane)))),
        "bond_lengths": lengths,
        "rigid_bonds": rigid,
        "bands": measured_bands([(butane, np.stack([x, x]))]),
        "example": butane.to_json(),
        **changes,
    }
    assert "C4-H1" in rigid  # all are the same to the three decimals of a PDB file
    return Family(**values)


def model(network: GraphTransformer, **changes: Any) -> ScoreDynamics:
    config = ScoreDynamicsConfig(
        name="test-family", version="1.0.0", molecule={}, lag_time=1.0, frame=(),  # type: ignore[arg-type]
        sigma_data=0.25, bond_lengths=(), backbone=GRAPH_BACKBONE, architecture=TINY, n_levels=3,
        batch_slots=4, family=family(**changes).to_json(),
    )  # fmt: skip
    return ScoreDynamics(config, GraphDenoiser(network, 0.25))


# --- the network ------------------------------------------------------------------------------------


def response(net: GraphTransformer, molecule: Molecule, x: Array, y: Array) -> Array:
    graph = graph_of(molecule, net.config)
    scale, level = torch.tensor([3.0], dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)
    out = net.double().given(torch.from_numpy(x)[None], graph)(torch.from_numpy(y)[None], scale, level)
    net.float()
    return out[0].numpy()


def test_the_network_turns_reflects_and_permutes_with_the_molecule(network: GraphTransformer) -> None:
    molecule, x = alkane("butane")
    rng = np.random.default_rng(0)
    y = rng.normal(0, 0.2, x.shape)
    before = response(network, molecule, x, y)
    assert np.abs(before).max() > 1e-3
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    for turn in (q, -q):
        np.testing.assert_allclose(response(network, molecule, x @ turn, y @ turn), before @ turn, atol=1e-10)
    np.testing.assert_allclose(response(network, molecule, x + 7.0, y), before, atol=1e-10)
    # Two hydrogens of one carbon are exchanged, and so is what is said of them.
    hydrogens = [k for k in molecule.neighbors[0] if molecule.elements[k] == "H"][:2]
    order = np.arange(len(x))
    order[hydrogens] = hydrogens[::-1]
    np.testing.assert_allclose(response(network, molecule, x[order], y[order]), before[order], atol=1e-10)


def test_a_planar_start_may_leave_its_plane_only_by_the_noise(network: GraphTransformer) -> None:
    """What is symmetric under reflection stays so: no handedness is hidden in the network."""
    molecule, x = alkane("ethane")
    x, y = x.copy(), np.random.default_rng(1).normal(size=x.shape)
    x[:, 2] = y[:, 2] = 0.0
    assert np.abs(response(network, molecule, x, y)[:, 2]).max() < 1e-12


def test_one_network_serves_molecules_of_all_lengths(network: GraphTransformer) -> None:
    shapes = {}
    for name in ("ethane", "octane"):
        molecule, x = alkane(name)
        shapes[name] = response(network, molecule, x, 0.1 * x).shape
    assert shapes == {"ethane": (8, 3), "octane": (26, 3)}


def test_an_element_without_a_vector_is_an_error(network: GraphTransformer) -> None:
    water = Molecule(("O", "H1", "H2"), ("O", "H", "H"), ("HOH",) * 3, (1,) * 3, ((0, 1), (0, 2)), (0, 1, 2))
    with pytest.raises(ValueError, match="not in"):
        graph_of(water, network.config)


# --- the family -------------------------------------------------------------------------------------


def test_a_family_survives_json_and_refuses_nonsense() -> None:
    known = family()
    assert Family.from_json(known.to_json()) == known
    for broken in (
        {},
        {**known.to_json(), "more": 1},
        {**known.to_json(), "edge": 0.0},
        {**known.to_json(), "rotation": [1.0]},
        {**known.to_json(), "rigid_bonds": ["N3-H1"]},
        {**known.to_json(), "bond_lengths": {"C4-C4": "long"}},
    ):
        with pytest.raises(CheckpointError):
            Family.from_json(broken)


def test_surroundings_that_were_not_trained_on_are_refused_by_name() -> None:
    isobutane = Atoms("C4H10", np.zeros((14, 3)))
    bonds = [(0, 1), (0, 2), (0, 3), (0, 4)] + [(1 + k // 3, 5 + k) for k in range(9)]
    elements = tuple(isobutane.get_chemical_symbols())
    molecule = Molecule(elements, elements, ("MOL",) * 14, (1,) * 14, tuple(bonds), tuple(range(14)))
    with pytest.raises(StructureError, match=r"C\(CCCH\).*zoo finetune sd-alkanes --trajectory"):
        family().check(molecule, "sd-alkanes")


def test_strangeness_is_one_at_the_edge_of_the_bands() -> None:
    molecule, x = alkane("butane")
    known = family(bands={"C4-C4-1": (1.4, 1.6)})
    stretched = x.copy()
    carbons = [k for k, e in enumerate(molecule.elements) if e == "C"]
    ends = next(b for b in molecule.site_bonds if set(b) <= set(carbons))
    axis = (x[ends[1]] - x[ends[0]]) / np.linalg.norm(x[ends[1]] - x[ends[0]])
    for length, strange in ((1.6, 1.0), (1.7, 2.0)):
        stretched[ends[1]] = x[ends[0]] + length * axis
        found = known.strangeness(molecule, stretched[None])[0]
        assert found >= strange - 1e-6
    only = Molecule(*(t[:2] for t in (("C", "C"), ("C", "C"), ("M", "M"), (1, 1))), ((0, 1),), (0, 1))
    pair = np.array([[[0, 0, 0], [1.7, 0, 0]]], dtype=float)
    assert family(bands={"C1-C1-1": (1.4, 1.6)}).strangeness(only, pair)[0] == pytest.approx(2.0)


def test_rigid_motion_has_the_variance_of_its_law(network: GraphTransformer) -> None:
    molecule, x = alkane("pentane")
    laws = family(rotation=(np.log(2.0), -1.0), translation=(np.log(0.5), 0.0))
    one = GraphDenoiser(network, 0.25).of(molecule, laws)
    positions = torch.from_numpy(x)[None]
    factor = one.rigid_factors(positions)[0]
    covariance = factor @ factor.T
    np.testing.assert_allclose(covariance[3:, 3:], 0.5 * np.eye(3), atol=1e-12)
    moments, axes = principal(positions)
    about = axes[0].T @ covariance[:3, :3] @ axes[0]
    np.testing.assert_allclose(about, torch.diag(2.0 / moments[0]), atol=1e-12)


def test_far_outside_of_the_training_data_the_network_stays_finite() -> None:
    short = torch.tensor([[1.0, -2.0, 0.5]])
    torch.testing.assert_close(bounded(short), short, rtol=1e-4, atol=0.0)
    long = bounded(1e6 * short)
    torch.testing.assert_close(long.norm(dim=-1), torch.tensor([20.0]))
    torch.testing.assert_close(long / 20.0, short / short.norm())


# --- the propagator ---------------------------------------------------------------------------------


def test_a_family_is_told_its_molecule_by_the_start(network: GraphTransformer) -> None:
    unbound = model(network)
    with pytest.raises(StructureError, match=r"many molecules: say which one"):
        _ = unbound.molecule
    octane = unbound.for_start(ALKANES / "octane.pdb")
    assert octane.molecule.formula == "C8H18"
    assert octane.denoiser is unbound.denoiser
    assert octane.for_start("not looked at") is octane
    for bond, length in zip(octane.molecule.site_bonds, octane.bond_lengths, strict=True):
        hydrogen = "H" in {octane.molecule.elements[k] for k in bond}
        assert length == pytest.approx(1.09 if hydrogen else 1.53, abs=0.03)


def test_a_step_moves_as_asked_and_keeps_rigid_bonds(network: GraphTransformer) -> None:
    one = model(network).for_start(ALKANES / "butane.pdb")
    _, x = alkane("butane")
    moved = one.step(np.stack([x, x + 3.0]), np.random.default_rng(0))
    assert moved.shape == (2, 14, 3)
    for (i, j), length in zip(one.molecule.site_bonds, one.bond_lengths, strict=True):
        if "H" in (one.molecule.elements[i], one.molecule.elements[j]):
            np.testing.assert_allclose(np.linalg.norm(moved[:, i] - moved[:, j], axis=1), length, atol=1e-6)


def test_company_does_not_change_a_walker(network: GraphTransformer) -> None:
    one = model(network).for_start(ALKANES / "butane.pdb")
    _, x = alkane("butane")
    noise = one.noise(0, [0, 1, 2, 3], 1, 0)
    together = one.propose(np.stack([x, x + 1, x - 1, 1.001 * x]), range(4), noise)
    alone = one.propose(x[None] - 1, [2], noise[2:3])
    np.testing.assert_array_equal(together[2], alone[0])


def test_score_and_log_prob_do_not_depend_on_the_frame(network: GraphTransformer) -> None:
    one = model(network).for_start(ALKANES / "ethane.pdb")
    _, x = alkane("ethane")
    after = x + np.random.default_rng(3).normal(0, 0.1, x.shape)
    q, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))
    np.testing.assert_allclose(one.score(after @ q, x @ q, 0.2), one.score(after, x, 0.2) @ q, atol=2e-4)
    here, there = (one.log_prob(after @ t, x @ t, n_levels=4) for t in (np.eye(3), q))
    np.testing.assert_allclose(here, there, rtol=1e-3, atol=1e-2)


def test_saved_and_loaded_it_is_the_same(network: GraphTransformer, tmp_path: Path) -> None:
    before = model(network)
    before.save_pretrained(tmp_path / "family")
    after = ScoreDynamics.from_pretrained(tmp_path / "family")
    assert after.config == before.config
    _, x = alkane("propane")
    steps = [m.for_start(ALKANES / "propane.pdb").step(x, np.random.default_rng(0)) for m in (before, after)]
    np.testing.assert_array_equal(*steps)


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": "site-mlp"},
        {"family": None},
        {"bond_lengths": (1.0,)},
        {"family": {}},
        {"architecture": {"width": 16}},
    ],
)
def test_a_config_that_is_half_a_family_is_refused(
    network: GraphTransformer, changes: dict[str, Any]
) -> None:
    data = {**model(network).config.to_dict(), **changes}
    with pytest.raises(CheckpointError):
        ScoreDynamicsConfig.from_dict(data).build()


# --- molecules and torsions from what users have ----------------------------------------------------


def test_the_molecule_is_found_among_water() -> None:
    pdb = mdtraj.load_pdb(str(ALKANES / "propane.pdb"))
    water = Atoms("OH2", [[20, 0, 0], [20.96, 0, 0], [19.76, 0.93, 0]])
    propane = Atoms([a.element.symbol for a in pdb.topology.atoms], pdb.xyz[0] * 10)
    molecule = load_molecule(propane + water)
    assert molecule.formula == "C3H8"
    assert sorted(environments(molecule)) == sorted(environments(alkane("propane")[0]))
    second = propane.copy()
    second.positions += [0, 0, 30]
    with pytest.raises(StructureError, match="2 C3H8 found"):
        load_molecule(propane + second)
    with pytest.raises(StructureError, match="no molecule found beside water"):
        load_molecule(water)


def test_torsions_along_a_chain() -> None:
    assert chain_torsions(alkane("propane")[0]) == ()
    assert len(chain_torsions(alkane("octane")[0])) == 5
    butane = alkane("butane")[0]
    assert choose_dihedrals(butane, None).names == ("C1-C2-C3-C4",)
    with pytest.raises(StructureError, match="name the dihedrals"):
        choose_dihedrals(alkane("octane")[0], None)
