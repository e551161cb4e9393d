"""The denoiser: what goes in comes out, only cleaner; and nothing else in the process changes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixBondLength

from training.lattices import LATTICES, conventional, spacing_of
from zoo import registry
from zoo.backbones.moments import MomentsConfig
from zoo.denoiser import Denoiser, DenoiserConfig
from zoo.errors import CheckpointError, StructureError, UnknownCheckpointError

NAME = "denoiser-elements"
GOLDEN = Path(__file__).parent / "data" / "golden-denoiser-elements.json"
ARCHITECTURE = MomentsConfig(n_channels=4, n_radial=3, n_layers=1)


def config(**changes: Any) -> DenoiserConfig:
    known: dict[str, Any] = {"name": "tiny", "version": "0.1.0", "architecture": ARCHITECTURE.to_dict()}
    return DenoiserConfig(**{**known, **changes})


def tiny(**changes: Any) -> Denoiser:
    """An untrained network that moves atoms by a few hundredths of an Å, always the same one."""
    one = config(**changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network: Any = one.build()
    network.out.weight.data *= 3
    return Denoiser(one, network)


@pytest.fixture
def denoiser() -> Denoiser:
    return tiny()


@pytest.fixture
def snapshot() -> Atoms:
    atoms = bulk("Cu", cubic=True).repeat(3)
    atoms.rattle(0.1, seed=2)
    return atoms


@pytest.fixture(scope="module")
def released() -> Denoiser:
    folder = registry.bundled_folder(registry.find(NAME))
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"the bundled checkpoint {NAME} is missing")
        pytest.skip(f"the bundled checkpoint {NAME} is not in this tree yet")
    return Denoiser.from_pretrained(NAME)


# -- the folder ------------------------------------------------------------------------------


def test_a_saved_denoiser_loads_bit_for_bit(denoiser: Denoiser, snapshot: Atoms, tmp_path: Path) -> None:
    denoiser.metrics, denoiser.card = {"sections": {}}, "# tiny\n"
    again = Denoiser.from_pretrained(denoiser.save_pretrained(tmp_path / "saved"))
    assert again.config == denoiser.config
    assert (again.name, again.cutoff) == ("tiny", ARCHITECTURE.cutoff)
    assert (again.metrics, again.card) == (denoiser.metrics, denoiser.card)
    for key, value in denoiser.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[key]), key
    np.testing.assert_array_equal(again.denoise(snapshot).positions, denoiser.denoise(snapshot).positions)


def test_the_config_survives_json() -> None:
    one = config(lattices=LATTICES, clip=4.0, decay=0.5)
    assert DenoiserConfig.from_dict(json.loads(json.dumps(one.to_dict()))) == one


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "unknown surprise"),
        ({"architecture": None}, "architecture an object"),
        ({"architecture": {"n_channels": 4}}, "lacks cutoff"),
        ({"architecture": {**ARCHITECTURE.to_dict(), "foo": 1}}, "does not fit backbone"),
        ({"architecture": {**ARCHITECTURE.to_dict(), "n_channels": -1}}, "n_channels"),
        ({"architecture": {**ARCHITECTURE.to_dict(), "l_density": 5}}, "l_density"),
        ({"architecture": {**ARCHITECTURE.to_dict(), "n_channels": 5}}, "misshaped"),
        ({"architecture": {**ARCHITECTURE.to_dict(), "n_layers": 2}}, "missing"),
        ({"backbone": "nobody"}, "unknown backbone 'nobody'"),
        ({"backbone": ["moments"]}, "backbone must be a name"),
        ({"scale": "by hand"}, "unknown scale rule"),
        ({"lattices": 5}, "lattices must be a list"),
        ({"clip": 0}, "must be positive"),
        ({"clip": "5"}, "must be positive"),
        ({"clip": True}, "must be positive"),
        ({"decay": 1.0}, "decay and patience below 1"),
        ({"patience": 1.0}, "decay and patience below 1"),
        ({"persistence": 0}, "must be positive"),
        ({"tolerance": -1e-3}, "must be positive"),
        ({"format_version": 99}, "newer"),
        ({"kind": "score-dynamics"}, "not a denoiser"),
    ],
)
def test_bad_configs_are_refused(
    denoiser: Denoiser, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = denoiser.save_pretrained(tmp_path / "bad")
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message) as caught:
        Denoiser.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["backbone", "architecture"])
def test_missing_keys_are_refused(key: str) -> None:
    data = config().to_dict()
    del data[key]
    with pytest.raises(CheckpointError, match=f"missing {key}"):
        DenoiserConfig.from_dict(data)


def test_tampered_weights_are_refused(denoiser: Denoiser, tmp_path: Path) -> None:
    folder = denoiser.save_pretrained(tmp_path / "tampered")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-3] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match="tampered"):
        Denoiser.from_pretrained(folder)


def test_unknown_names_come_with_suggestions() -> None:
    with pytest.raises(UnknownCheckpointError, match=NAME):
        Denoiser.from_pretrained("denoiser-element")


# -- what goes in comes out ------------------------------------------------------------------


def test_everything_but_the_positions_is_kept(denoiser: Denoiser, snapshot: Atoms) -> None:
    snapshot.set_array("tag_of_mine", np.arange(len(snapshot)))
    snapshot.set_velocities(np.ones((len(snapshot), 3)))
    snapshot.set_tags(7)
    snapshot.set_constraint([FixAtoms([0, 5]), FixBondLength(1, 2)])
    snapshot.info.update(note="mine", vector=np.arange(3), nested={"a": [1]})
    snapshot.calc = SinglePointCalculator(snapshot, energy=1.0)
    before = snapshot.copy()
    clean = denoiser.denoise(snapshot)
    assert clean is not snapshot
    assert clean.calc is None
    assert set(clean.arrays) == set(before.arrays)
    for key in set(before.arrays) - {"positions"}:
        np.testing.assert_array_equal(clean.arrays[key], before.arrays[key])
    np.testing.assert_array_equal(clean.cell[:], before.cell[:])
    np.testing.assert_array_equal(clean.pbc, before.pbc)
    assert [c.todict() for c in clean.constraints] == [c.todict() for c in before.constraints]
    assert clean.info["note"] == "mine"
    # the input is as it was
    assert snapshot == before
    assert set(snapshot.info) == set(before.info)
    assert snapshot.calc is not None
    assert not np.shares_memory(clean.positions, snapshot.positions)


def test_info_tells_what_was_done(denoiser: Denoiser, snapshot: Atoms) -> None:
    clean = denoiser.denoise(snapshot, steps=3)
    moved = clean.info["denoise_mean_displacement"]
    assert clean.info["denoise_steps"] == len(moved) <= 3
    assert all(isinstance(x, float) for x in moved)
    assert type(clean.info["denoise_converged"]) is bool
    assert clean.info["denoise_checkpoint"] == "tiny@0.1.0"
    one = denoiser.denoise(snapshot, steps=1)
    lengths = np.linalg.norm(one.positions - snapshot.positions, axis=1)
    assert one.info["denoise_mean_displacement"] == [pytest.approx(lengths.mean())]
    json.dumps({k: v for k, v in clean.info.items() if k.startswith("denoise")})


def test_the_callback_sees_every_step_and_cannot_interfere(denoiser: Denoiser, snapshot: Atoms) -> None:
    seen: list[tuple[int, np.ndarray, float]] = []

    def vandal(step: int, positions: np.ndarray, mean: float) -> None:
        seen.append((step, positions.copy(), mean))
        positions[:] = np.nan

    plain = denoiser.denoise(snapshot, steps=4)
    watched = denoiser.denoise(snapshot, steps=4, callback=vandal)
    np.testing.assert_array_equal(watched.positions, plain.positions)
    assert [s for s, _, _ in seen] == list(range(1, plain.info["denoise_steps"] + 1))
    assert [m for _, _, m in seen] == plain.info["denoise_mean_displacement"]
    np.testing.assert_array_equal(seen[-1][1], plain.positions)


def test_fewer_steps_are_the_beginning_of_more(denoiser: Denoiser, snapshot: Atoms) -> None:
    trace: list[np.ndarray] = []
    denoiser.denoise(snapshot, 3, lambda step, positions, mean: trace.append(positions))
    np.testing.assert_array_equal(denoiser.denoise(snapshot, steps=2).positions, trace[1])


@pytest.mark.parametrize("factor", [1.0, 1e4])
def test_no_atom_moves_further_than_the_bound(factor: float, snapshot: Atoms) -> None:
    wild = tiny(clip=1.5, decay=0.6, tolerance=1e-9)
    wild.network.get_parameter("out.weight").mul_(factor)
    scale = (snapshot.cell.volume / len(snapshot)) ** (1 / 3)
    first = wild.displacement(snapshot.positions, snapshot.cell[:], True, scale)
    first -= first.mean(0)
    sigma = np.median(np.linalg.norm(first, axis=1)) / 1.5382
    clean = wild.denoise(snapshot, steps=30)
    total = np.linalg.norm(clean.positions - snapshot.positions, axis=1)
    assert total.max() <= 1.5 * sigma / (1 - 0.6) * (1 + 1e-6)
    one = np.linalg.norm(wild.denoise(snapshot, steps=1).positions - snapshot.positions, axis=1)
    assert one.max() == pytest.approx(1.5 * sigma)  # the bound was reached, or this shows nothing


def test_steps_end_when_nothing_moves_any_more(denoiser: Denoiser) -> None:
    clean = denoiser.denoise(bulk("Cu", cubic=True).repeat(3), steps=50)
    assert clean.info["denoise_steps"] == 1
    assert clean.info["denoise_converged"]


def test_steps_end_by_tolerance(snapshot: Atoms) -> None:
    clean = tiny(tolerance=1e3).denoise(snapshot, steps=5)
    assert (clean.info["denoise_steps"], clean.info["denoise_converged"]) == (1, True)
    clean = tiny(tolerance=1e-12, stall=1e9).denoise(snapshot, steps=5)
    assert (clean.info["denoise_steps"], clean.info["denoise_converged"]) == (5, False)


def test_steps_end_where_displacements_no_longer_shrink_but_that_is_not_convergence(snapshot: Atoms) -> None:
    clean = tiny(tolerance=1e-12, stall=1e-9).denoise(snapshot, steps=9)
    assert clean.info["denoise_steps"] == 4
    assert clean.info["denoise_stalled"] and not clean.info["denoise_converged"]


def test_the_centre_stays(denoiser: Denoiser, snapshot: Atoms) -> None:
    one = denoiser.denoise(snapshot, steps=1)
    bound = max(one.info["denoise_mean_displacement"])
    assert np.abs((one.positions - snapshot.positions).mean(0)).max() < 0.2 * bound


@pytest.mark.parametrize("held", [[0, 5, -1], list(range(108))], ids=["some", "all"])
def test_held_atoms_stay(denoiser: Denoiser, snapshot: Atoms, held: list[int]) -> None:
    snapshot.set_constraint(FixAtoms(held))
    clean = denoiser.denoise(snapshot)
    np.testing.assert_array_equal(clean.positions[held], snapshot.positions[held])
    if len(held) < len(snapshot):
        assert (clean.positions != snapshot.positions).any(axis=1).sum() > 100
    else:
        assert clean.info["denoise_converged"]


def test_species_are_treated_alike(denoiser: Denoiser, snapshot: Atoms) -> None:
    mixed = snapshot.copy()
    mixed.numbers = np.random.default_rng(3).integers(0, 90, len(mixed))
    np.testing.assert_array_equal(denoiser.denoise(mixed).positions, denoiser.denoise(snapshot).positions)


def test_a_repeated_cell_moves_alike(denoiser: Denoiser, snapshot: Atoms) -> None:
    one, two = denoiser.denoise(snapshot, 3), denoiser.denoise(snapshot.repeat((2, 1, 1)), 3)
    np.testing.assert_allclose(two.positions[: len(one)], one.positions, atol=1e-5)


def test_rotation_and_images_do_not_matter(denoiser: Denoiser, snapshot: Atoms) -> None:
    rng = np.random.default_rng(4)
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    q *= np.linalg.det(q)
    clean = denoiser.denoise(snapshot, 3)
    turned = snapshot.copy()
    turns = rng.integers(-2, 3, (len(snapshot), 3)) @ snapshot.cell[:]
    turned.positions = (snapshot.positions + turns) @ q
    turned.cell = snapshot.cell[:] @ q
    np.testing.assert_allclose(
        denoiser.denoise(turned, 3).positions, (clean.positions + turns) @ q, atol=2e-5
    )


def test_units_cancel(denoiser: Denoiser, snapshot: Atoms) -> None:
    big = snapshot.copy()
    big.set_cell(2 * big.cell[:], scale_atoms=True)
    np.testing.assert_allclose(
        denoiser.denoise(big, 3).positions, 2 * denoiser.denoise(snapshot, 3).positions, atol=2e-5
    )


# -- structures of every kind ----------------------------------------------------------------


def _slab(vacuum: float | None) -> Atoms:
    atoms = fcc111("Cu", (4, 4, 4))
    atoms.rattle(0.1, seed=5)
    atoms.pbc = (True, True, False)
    if vacuum is not None:
        atoms.center(vacuum=vacuum, axis=2)
        atoms.pbc = True
    return atoms


CASES: dict[str, Callable[[], Atoms]] = {
    "two atoms": lambda: Atoms("H2", [[0, 0, 0], [0.1, 0.2, 1.0]]),
    "two far atoms": lambda: Atoms("H2", [[0, 0, 0], [1e4, 0, 0]]),
    "triangle": lambda: Atoms("H3", [[0, 0, 0], [1, 0, 0], [0, 1.2, 0]]),
    "square": lambda: Atoms("H4", [[0, 0, 0], [2, 0, 0], [0, 2, 0], [2.1, 2, 0]]),
    "smallest bcc": lambda: bulk("Fe", cubic=True),
    "smallest diamond": lambda: bulk("Si"),
    "slab without third vector": lambda: _slab(None),
    "slab in a huge vacuum": lambda: _slab(400.0),
    "far away": lambda: Atoms("Cu4", bulk("Al", cubic=True).positions + 1e6, cell=[4.05] * 3, pbc=1),
    "wire": lambda: Atoms(bulk("Cu", cubic=True).repeat((1, 1, 2)), cell=[0, 0, 7.22], pbc=(0, 0, 1)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_odd_structures_stay_finite_and_near(denoiser: Denoiser, case: str) -> None:
    atoms = CASES[case]()
    clean = denoiser.denoise(atoms, steps=3)
    assert np.isfinite(clean.positions).all()
    distances = atoms.get_all_distances()
    assert np.abs(clean.positions - atoms.positions).max() < 0.6 * distances[distances > 0].min()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: a.positions.__setitem__((3, 1), np.nan), "NaN"),
        (lambda a: a.positions.__setitem__((3, 1), np.inf), "NaN or infinite"),
        (lambda a: a.positions.__setitem__(3, a.positions[4]), "same place"),
        (lambda a: a.set_cell(np.zeros((3, 3))), "no cell"),
        (lambda a: a.set_cell(-a.cell[:]), "left-handed"),
        (lambda a: a.__delitem__(slice(1, None)), "one atom"),
        (lambda a: a.__delitem__(slice(None)), "no atoms"),
    ],
)
def test_bad_structures_are_refused(
    denoiser: Denoiser, snapshot: Atoms, spoil: Callable[[Atoms], None], message: str
) -> None:
    spoil(snapshot)
    with pytest.raises(StructureError, match=message):
        denoiser.denoise(snapshot)


@pytest.mark.parametrize("steps", [0, -1, 2.5])
def test_no_steps_are_refused(denoiser: Denoiser, snapshot: Atoms, steps: Any) -> None:
    with pytest.raises(StructureError, match="at least 1"):
        denoiser.denoise(snapshot, steps=steps)


# -- trajectories ----------------------------------------------------------------------------


def test_trajectories_are_read_frame_by_frame(denoiser: Denoiser, snapshot: Atoms) -> None:
    read = []

    def frames() -> Iterator[Atoms]:
        for k in range(3):
            read.append(k)
            yield snapshot

    stream = denoiser.denoise_trajectory(frames(), steps=1)
    assert read == []
    first = next(stream)
    assert read == [0]
    np.testing.assert_array_equal(first.positions, denoiser.denoise(snapshot, 1).positions)
    assert len(list(stream)) == 2


def test_bad_frames_are_named(denoiser: Denoiser, snapshot: Atoms) -> None:
    stream = denoiser.denoise_trajectory([snapshot, Atoms()], steps=1)
    next(stream)
    with pytest.raises(StructureError, match=r"frame 1: .*no atoms"):
        next(stream)


# -- the process around ----------------------------------------------------------------------


def test_nothing_global_changes(denoiser: Denoiser, snapshot: Atoms, tmp_path: Path) -> None:
    folder = denoiser.save_pretrained(tmp_path / "saved")
    torch.manual_seed(5)
    rng, numpy_rng = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    before = (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), dict(os.environ))
    Denoiser.from_pretrained(folder).denoise(snapshot, 2)
    after = (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), dict(os.environ))
    assert after == before
    assert torch.equal(torch.get_rng_state(), rng)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_rng)  # noqa: NPY002


def test_a_caller_with_double_as_default_gets_the_same(
    denoiser: Denoiser, snapshot: Atoms, tmp_path: Path
) -> None:
    folder = denoiser.save_pretrained(tmp_path / "saved")
    expected = denoiser.denoise(snapshot, 2).positions
    torch.set_default_dtype(torch.float64)
    try:
        found = Denoiser.from_pretrained(folder).denoise(snapshot, 2).positions
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(found, expected)


# -- the released checkpoint -----------------------------------------------------------------


def golden_structure() -> Atoms:
    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.rattle(0.15, seed=6)
    return atoms


def golden(denoiser: Denoiser) -> dict[str, Any]:
    """What the released checkpoint makes of a tiny structure; `tests/make_golden.py` stores it."""
    clean = denoiser.denoise(golden_structure(), steps=5)
    return {
        "checkpoint": clean.info["denoise_checkpoint"],
        "positions": clean.positions.round(6).tolist(),
        "mean_displacement": [round(x, 6) for x in clean.info["denoise_mean_displacement"]],
    }


def test_released_checkpoint_gives_its_golden_output(released: Denoiser) -> None:
    if not GOLDEN.is_file():
        if os.environ.get("CI"):
            pytest.fail("run python tests/make_golden.py")
        pytest.skip("no golden output yet: run python tests/make_golden.py")
    stored, found = json.loads(GOLDEN.read_text()), golden(released)
    assert found["checkpoint"] == stored["checkpoint"]
    np.testing.assert_allclose(found["positions"], stored["positions"], atol=2e-4)
    np.testing.assert_allclose(found["mean_displacement"], stored["mean_displacement"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("lattice", LATTICES)
def test_released_checkpoint_restores_noised_lattices(released: Denoiser, lattice: str) -> None:
    pytest.importorskip("ovito")
    from zoo.analysis.crystals import structure_fractions

    unit = conventional(lattice)
    atoms = unit.repeat(np.maximum(3, np.ceil(6 / unit.cell.lengths())).astype(int))
    atoms.set_cell(atoms.cell * 2.5, scale_atoms=True)
    atoms.pbc = True
    sigma = 0.08 * spacing_of(lattice) * 2.5
    atoms.positions += np.random.default_rng(7).normal(0, sigma, (len(atoms), 3))
    clean = released.denoise(atoms)
    assert structure_fractions(clean)[lattice] == 1.0
    assert clean.info["denoise_converged"]


@pytest.mark.slow
def test_released_checkpoint_restores_a_real_snapshot(released: Denoiser) -> None:
    pytest.importorskip("ovito")
    from ase.io import read

    import zoo
    from zoo.analysis.crystals import structure_fractions

    atoms = read(Path(zoo.__file__).parent / "data" / "al-melting-point.extxyz.gz")
    assert structure_fractions(atoms)["fcc"] < 0.9
    assert structure_fractions(released.denoise(atoms))["fcc"] == 1.0


def test_released_checkpoint_leaves_perfect_lattices_alone(released: Denoiser) -> None:
    atoms = bulk("Si", cubic=True).repeat(2)
    clean = released.denoise(atoms)
    assert np.abs(clean.positions - atoms.positions).max() < 1e-3


# -- what the network is told of the steps before --------------------------------------------


class Halving(torch.nn.Module):
    """Moves every atom by half of what it moved it before, and notes what it was told."""

    cutoff = 1.65

    def __init__(self, n_atoms: int) -> None:
        super().__init__()
        self.told: list[tuple[float, float] | None] = []
        self.way = torch.zeros(n_atoms, 3)
        self.way[::2, 0], self.way[1::2, 0] = 0.08, -0.08

    def forward(self, graph: Any, context: tuple[float, float] | None = None) -> torch.Tensor:
        self.told.append(context)
        return self.way * 0.5 ** (len(self.told) - 1)


def test_the_network_is_told_how_far_the_first_and_the_last_step_went(snapshot: Atoms) -> None:
    network = Halving(len(snapshot))
    slow = Denoiser(config(persistence=1.0, patience=1e-9, tolerance=1e-9), network)
    slow.denoise(snapshot, steps=4)
    assert network.told[0] is None
    np.testing.assert_allclose(network.told[1:], [(0.08, 0.08), (0.08, 0.04), (0.08, 0.02)], rtol=1e-5)


def test_persistence_and_patience_raise_the_last_length_but_not_above_the_first(snapshot: Atoms) -> None:
    for changes, expected in (
        ({"persistence": 3.0, "patience": 1e-9}, [0.08, 0.08, 0.06]),
        ({"persistence": 1e-9, "patience": 0.9}, [0.072, 0.0648, 0.05832]),
    ):
        network = Halving(len(snapshot))
        Denoiser(config(**changes, tolerance=1e-9), network).denoise(snapshot, steps=4)
        told = [context[1] for context in network.told if context is not None]
        np.testing.assert_allclose(told, expected, rtol=1e-5)


def test_an_atom_that_has_flown_off_neither_takes_time_nor_moves_the_others(released: Denoiser) -> None:
    slab = fcc111("Cu", (4, 4, 4), vacuum=5.0)
    slab.pbc = (True, True, False)
    slab.rattle(0.08, seed=0)
    more = slab + Atoms("Cu", positions=[[0, 0, 1e7]])
    clean, beside = released.denoise(slab), released.denoise(more)
    np.testing.assert_allclose(beside.positions[:-1], clean.positions, atol=0.02)
    np.testing.assert_allclose(beside.positions[-1], more.positions[-1], atol=0.5)
    assert beside.arrays["structure_type"][-1] == "disordered"
