"""The side of a barrier on which a step ends: drawn, told to the network, part of densities, and learned."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import zoo
from tests.barrier_chain import N, angles_of, bias, chain, walked
from tests.small_recipe import LOOP, MD, SMALL, start
from training.reference_md.releases import Bias, read_blocks
from training.reference_md.segments import Record, read_segments, write_record
from training.score_dynamics import crossings
from training.score_dynamics import recipe as recipes
from training.score_dynamics import sides as learning
from training.score_dynamics.alanine_dipeptide import settled, stays_on_one_side
from training.score_dynamics.fit import fit
from training.score_dynamics.learners import Request, learner
from training.score_dynamics.packed import Packed, read_packed, write_packed
from training.score_dynamics.sides import learn_sides, on_the_ridge, sides_of, turned_back
from training.score_dynamics.transitions import HeadData, local_displacements
from zoo.analysis.kinetics import torsions as measured
from zoo.checkpoint import read_metrics
from zoo.errors import CheckpointError, StructureError
from zoo.molecules.start import load_start
from zoo.score_dynamics import ScoreDynamics, ScoreDynamicsConfig
from zoo.sides import Sides, SidesConfig, is_between, torsions

RELEASES = MD / "alanine-dipeptide-flat"
CG = Path(zoo.__file__).parent / "checkpoints" / "sd-alanine-dipeptide-cg"
QUADRUPLES = ((4, 6, 8, 14), (6, 8, 14, 16))  # of all atoms
TORSIONS = ((0, 1, 3, 5), (1, 3, 5, 6))


@pytest.fixture(scope="module")
def plain() -> ScoreDynamics:
    """The released one without its sides."""
    released = ScoreDynamics.from_pretrained(CG)
    architecture = {k: v for k, v in released.config.architecture.items() if k != "n_labels"}
    config = replace(released.config, architecture=architecture, sides=None)
    denoiser = config.build()
    own = denoiser.state_dict()
    denoiser.load_state_dict({k: v for k, v in released.denoiser.state_dict().items() if k in own})
    return ScoreDynamics(config, denoiser)


def sided(plain: ScoreDynamics, share: float, labels: float = 0.0) -> ScoreDynamics:
    """The checkpoint with sides of which the second has a fixed share, told to the network or not."""
    architecture = {**plain.config.architecture, "n_labels": 2}
    told = {"torsions": [list(each) for each in TORSIONS], "between": [0.0, 125.0]}
    config = replace(plain.config, architecture=architecture, sides=told)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = config.build()
        denoiser.load_state_dict(plain.denoiser.state_dict(), strict=False)
        with torch.no_grad():
            denoiser.sides.layers[-1].weight.zero_()
            denoiser.sides.layers[-1].bias.fill_(math.log(share / (1 - share)))
            denoiser.network.labels.copy_(labels * torch.randn_like(denoiser.network.labels))
    return ScoreDynamics(config, denoiser)


def starts(model: ScoreDynamics, n: int) -> np.ndarray:
    x = load_start(Path(zoo.__file__).parent / "data" / "alanine-dipeptide.pdb", model.molecule)
    return np.repeat(x.reshape(-1, model.molecule.n_sites, 3)[:1], n, 0)


# --- the model ----------------------------------------------------------------------------------------


def test_torsions_are_those_of_the_analysis() -> None:
    x = np.random.default_rng(0).standard_normal((20, 7, 3))
    found = torch.rad2deg(torsions(torch.from_numpy(x), TORSIONS)).numpy()
    np.testing.assert_allclose(found, measured(x, TORSIONS), atol=1e-9)


def test_sides_are_those_between_two_angles_on_the_way_up() -> None:
    sides = Sides(SidesConfig(TORSIONS, (100.0, -140.0)))
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((200, 7, 3)))
    phi = torch.rad2deg(sides.torsions(x)[:, 0])
    assert torch.equal(sides.of(x).bool(), (phi >= 100) | (phi < -140)) and 0 < sides.of(x).sum() < 200
    both = torch.stack([sides.log_probability(x.float(), k) for k in (0, 1)]).exp().sum(0)
    torch.testing.assert_close(both, torch.ones(200))


@pytest.mark.parametrize(
    "wrong",
    [{"torsions": [[0, 1, 2]]}, {"torsions": [[0, 1, 2, float("inf")]]}, {"torsions": [[0, 1, 2, 3.0]]},
     {"torsions": [[0, 1, 2, 2]]}, {"torsions": [[0, 1, 2, 10]]}, {"torsions": []},
     {"between": [0.0]}, {"between": [5, 5]}, {"between": ["a", 1]}, {"width": 0}, {"width": "x"},
     {"more": 1}, {"between": [0.0, float("nan")]}],
)  # fmt: skip
def test_sides_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"config.json: sides of a barrier are not valid"):
        SidesConfig.from_json({"torsions": [[0, 1, 2, 3]], "between": [0.0, 120.0], **wrong}, 10)


def test_sides_and_labels_go_together(plain: ScoreDynamics) -> None:
    config = plain.config.to_dict()
    assert "sides" not in config
    told = {"torsions": [[0, 1, 3, 5]], "between": [0.0, 125.0]}
    labelled = ({"architecture": {**config["architecture"], "n_labels": n}} for n in (2, 1, -1, 0.0))
    for more in ({"sides": told}, *labelled):
        with pytest.raises(CheckpointError, match="n_labels 2 goes with sides"):
            ScoreDynamicsConfig.from_dict({**config, **more})


def test_a_checkpoint_with_sides_comes_back(plain: ScoreDynamics, tmp_path: Path) -> None:
    model = sided(plain, 0.3, 1.0)
    model.save_pretrained(tmp_path / "sided")
    again = ScoreDynamics.from_pretrained(str(tmp_path / "sided"))
    assert again.config == model.config and again.sides is not None
    x = starts(model, 3)
    noise = model.noise(0, range(3), 1, 0)
    np.testing.assert_array_equal(again.propose(x, range(3), noise), model.propose(x, range(3), noise))


def test_sides_are_drawn_with_their_probability_by_their_own_number(
    plain: ScoreDynamics, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, told = sided(plain, 0.3), []

    def conditional(local: torch.Tensor, side: torch.Tensor | None = None) -> Any:
        told.append(side)
        return lambda y, sigma: torch.zeros_like(y)

    monkeypatch.setattr(model, "_conditional", conditional)
    n, slots = 4000, model.batch_slots
    x, numbers = starts(model, slots), []
    for k in range(n // slots):
        noise = model.noise(5, range(slots), k, 0)
        numbers.append(noise[:, -3, 0])
        model.propose(x, range(slots), noise)
    drawn, number = torch.cat(told).numpy(), np.concatenate(numbers)
    assert drawn.mean() == pytest.approx(0.3, abs=0.03)
    assert (drawn == (number < -0.52440051)).all()  # the quantile 0.3 of the standard normal


def test_a_redrawn_step_keeps_its_side(plain: ScoreDynamics) -> None:
    model = sided(plain, 0.3)
    assert model.noise_shape == (13, 3) and plain.noise_shape == (12, 3)
    first, second = (model.noise(1, [0, 7], 3, attempt) for attempt in (0, 1))
    np.testing.assert_array_equal(first[:, -3], second[:, -3])
    assert (np.delete(first, -3, 1) != np.delete(second, -3, 1)).all()


def test_sides_that_the_network_does_not_heed_change_nothing(plain: ScoreDynamics) -> None:
    model = sided(plain, 0.3)
    x = starts(model, 4)
    noise = model.noise(0, range(4), 1, 0)
    moved = plain.propose(x, range(4), np.delete(noise, -3, 1))
    np.testing.assert_allclose(model.propose(x, range(4), noise), moved, atol=1e-5)
    np.testing.assert_allclose(model.log_prob(moved, x, 12), plain.log_prob(moved, x, 12), atol=2e-3)
    for sigma in (0.05, 1.0, 10.0):
        one, other = (m.score(moved, x, sigma) for m in (model, plain))
        np.testing.assert_allclose(one, other, atol=1e-3 * np.abs(other).max())


@pytest.mark.parametrize("share", [1e-6, 0.3])
def test_densities_are_sums_over_sides(plain: ScoreDynamics, share: float) -> None:
    model, sure = sided(plain, share, 0.3), sided(plain, 1 - 1e-9, 0.3)
    x = starts(model, 2)
    after = model.propose(x, range(2), model.noise(0, range(2), 1, 0))
    of_one = sure.log_prob(after, x, 12)
    of_none = sided(plain, 1e-9, 0.3).log_prob(after, x, 12)
    assert np.abs(of_one - of_none).max() > 0.1
    expected = np.logaddexp(math.log(share) + of_one, math.log1p(-share) + of_none)
    np.testing.assert_allclose(model.log_prob(after, x, 12), expected, atol=2e-3)


# --- how often ----------------------------------------------------------------------------------------


def test_the_other_barrier_is_in_the_middle_of_where_the_bias_is_lowest() -> None:
    assert sides_of(Bias.read(RELEASES)) == (0.0, 125.0)
    grid = np.full((36, 36), 50.0)
    grid[[34, 35, 0, 1]] = 0.0
    assert sides_of(Bias(grid, (200.0, 25.0))) == (200.0, 355.0)
    assert is_between(np.array([10, 130, -10, 359]), (0.0, 125.0)).tolist() == [True, False, False, False]


def shares_are_exact(lag: int, starts: np.ndarray, ends: np.ndarray, weight: np.ndarray, atol: float) -> None:
    """Of pairs from phi to phi, over the barrier and on the ridge, where all pairs are of this kind."""
    pi, t = chain()
    phi = angles_of(np.arange(N))[:, 0]
    joint = pi[:, None] * np.linalg.matrix_power(t, lag)
    above, first, last = (is_between(each, (0.0, 140.0)) for each in (phi, starts, ends))
    for side in (False, True):
        exact = joint[above == side][:, above != side].sum()
        assert weight[(first == side) & (last != side)].sum() == pytest.approx(exact, rel=0.2)
    for low, high in ((-25, -10), (-10, 10), (10, 25)):
        here, there = (phi > low) & (phi <= high), (starts > low) & (starts <= high)
        exact = joint[here][:, above].sum() / joint[here].sum()
        assert weight[there & last].sum() / weight[there].sum() == pytest.approx(exact, abs=atol)
        assert weight[there].sum() == pytest.approx(joint[here].sum(), rel=0.2)


@pytest.mark.parametrize("lag", [20, 60])
def test_shares_over_the_barrier_are_those_of_the_exact_chain(lag: int) -> None:
    data = walked(8000)
    path, begin, end, weight = on_the_ridge(data, bias(), lag)
    assert set(np.abs(end - begin).tolist()) == {lag}
    shares_are_exact(lag, data.paths[path, begin, 0], data.paths[path, end, 0], weight, 0.05)


def test_long_lags_from_paths_of_which_few_went_on() -> None:
    """Those that turned back within 60 frames are known no longer; shares are those of the exact chain."""
    lag = 240
    data = walked(8000)
    middle = data.paths.shape[1] // 2
    one, other = (data.paths[:, middle + k, 0] for k in (-60, 60))
    long_of = np.flatnonzero(bias().on_ridge(one) | bias().on_ridge(other) | ((one > 0) != (other > 0)))
    short = replace(
        data, paths=data.paths[:, middle - 60 : middle + 61], long_paths=data.paths[long_of], long_of=long_of
    )
    assert 0 < len(long_of) < 0.5 * len(data.paths)
    starts, ends, weights = [], [], []
    for each, (path, begin, end, weight) in (
        (short.of_long(), on_the_ridge(short.of_long(), bias(), lag)),
        (short, turned_back(short, bias(), lag)),
    ):
        starts.append(each.paths[path, begin, 0])
        ends.append(each.paths[path, end, 0])
        weights.append(weight)
    shares_are_exact(lag, np.concatenate(starts), np.concatenate(ends), np.concatenate(weights), 0.07)


def test_small_probabilities_are_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sigmoid, from pairs weighed as rare ones are."""
    monkeypatch.setattr(learning, "N_STEPS", 1500)
    phi = torch.linspace(-124.0, 124.0, 2001, dtype=torch.float64)
    p = torch.sigmoid(phi / 9.0)
    angles = torch.deg2rad(torch.stack([phi, 0.5 * phi], 1)).float()
    data = HeadData(
        torch.cat([angles, angles]), torch.arange(2).repeat_interleave(2001).float(), torch.cat([1 - p, p])
    )
    found = learn_sides(SidesConfig(TORSIONS, (0.0, 125.0)), data).of_angles(angles).double()
    for at in (-90, -60, -30, 0, 30, 60, 90):  # 4.5e-5 at the ends
        near = (phi - at).abs() < 5
        assert float(found[near].mean()) == pytest.approx(at / 9.0, abs=0.5)


# --- the recipe ---------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "small_probabilities" not in request.node.name:
        monkeypatch.setattr(learning, "N_STEPS", 20)


@pytest.fixture(scope="module")
def md(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two segments that shake in one well, a third that goes over the barrier."""
    folder = tmp_path_factory.mktemp("md")
    for number in range(2):
        shaken = start() + 0.002 * np.random.default_rng(number).standard_normal((31, 22, 3))
        write_record(
            folder / f"segment-{number:03d}.npz", Record(shaken.astype(np.float32), 0.2, (), 2.1, 800)
        )
    paths = np.concatenate([b.paths for b in read_blocks(RELEASES, ["flat-00*"])])
    write_record(folder / "segment-002.npz", Record(crossing(paths) / 10, 0.2, (), 2.1, 800))
    return folder


def crossing(paths: np.ndarray) -> np.ndarray:
    """One path that begins above the barrier, and ends far below it."""
    phi = measured(paths.reshape(-1, 22, 3).astype(float), QUADRUPLES)[:, 0].reshape(paths.shape[:2])
    found = np.flatnonzero(
        (phi[:, :3] > 35).all(1) & (phi[:, -3:] < -35).all(1) & (phi[:, -3:] > -150).all(1)
    )
    return np.asarray(paths[found[0]])


@pytest.fixture(scope="module")
def packed(md: Path, tmp_path_factory: pytest.TempPathFactory) -> Packed:
    path = tmp_path_factory.mktemp("packed") / "data.safetensors"
    write_packed(path, recipes.pack(SMALL, [md], [], ["segment-001"], (RELEASES, ["flat-00*"])))
    return read_packed(path)


def test_pairs_over_the_barrier_come_from_the_releases(md: Path, packed: Packed) -> None:
    before = recipes.pack(SMALL, [md], [], ["segment-001"])
    x = read_segments(md)[2].positions.astype(float)
    above = is_between(measured(x, QUADRUPLES)[:, 0], (0.0, 125.0))
    n_over = int((above[:-5] != above[5:]).sum())
    assert before.over is None and n_over >= 5
    assert (len(before.training), len(packed.training)) == (26 + 16, 26 + 16 - n_over)
    # what is left does not leave its side, so it may be reversed; without releases nothing is
    assert before.training.both_ways is None and packed.training.both_ways is not None
    assert bool(packed.training.both_ways.all())
    over, head = packed.over, packed.head
    assert over is not None and head is not None and over.before.shape == (len(over), 10, 3)
    network = packed.build()
    local, y = local_displacements(network, over.before.double(), over.after.double())
    assert network.sides is not None
    assert torch.equal(network.sides.of(local + y), over.ends)
    assert torch.equal(network.sides.of(local), 1 - over.ends)
    local, y = local_displacements(network, *(each.double() for each in packed.training.pairs()))
    assert torch.equal(network.sides.of(local), network.sides.of(local + y))
    # in both directions of time alike
    assert min(over.ends.bincount().tolist()) == max(over.ends.bincount().tolist()) > 50
    assert float(head.weight.sum()) == pytest.approx(2.0)
    assert packed.segments["releases"][0] == "flat-00000"


def test_steps_longer_than_clones_learn_from_those_that_went_on(md: Path, tmp_path: Path) -> None:
    shutil.copy(md / "segment-000.npz", tmp_path)
    shutil.copy(md / "segment-001.npz", tmp_path)
    above = crossing(np.concatenate([b.paths for b in read_blocks(RELEASES, ["flat-00*"])]))[0] / 10
    shaken = above + 0.002 * np.random.default_rng(2).standard_normal((31, 22, 3))
    write_record(tmp_path / "segment-002.npz", Record(shaken.astype(np.float32), 0.2, (), 2.1, 800))
    recipe = replace(SMALL, lag_time=5.0)
    packed = recipes.pack(recipe, [tmp_path], [], ["segment-001"], (RELEASES, ["flat-0[04]*"]))
    assert {name[:7] for name in packed.segments["releases"]} == {"flat-04"}  # of walker 0 none went on
    over, network = packed.over, packed.build()
    assert over is not None and network.sides is not None and len(over) > 100
    local, y = local_displacements(network, over.before.double(), over.after.double())
    assert torch.equal(network.sides.of(local), 1 - network.sides.of(local + y))
    with pytest.raises(StructureError, match="hold no pairs 5 ps apart"):
        recipes.pack(recipe, [tmp_path], [], ["segment-001"], (RELEASES, ["flat-00*"]))


def test_without_releases_what_goes_over_the_barrier_is_not_reversed(md: Path, tmp_path: Path) -> None:
    recipe = replace(SMALL, stays=stays_on_one_side)
    packed = recipes.pack(recipe, [md], [], ["segment-001"])
    assert packed.segments["training"] == ["segment-000", "segment-002"]
    both_ways = packed.training.both_ways
    assert both_ways is not None and both_ways.tolist() == 26 * [True] + 16 * [False]
    # of walkers neither, even where they stay on their side
    for old, new in (("segment-000", "flat-00000"), ("segment-001", "segment-001")):
        shutil.copy(md / f"{old}.npz", tmp_path / f"{new}.npz")
    both_ways = recipes.pack(recipe, [tmp_path], [], ["segment-001"]).training.both_ways
    assert both_ways is not None and not bool(both_ways.any())


@pytest.mark.parametrize("releases", [None, (RELEASES, ["flat-00*"])])
def test_the_way_down_to_a_basin_is_not_reversed(md: Path, tmp_path: Path, releases: Any) -> None:
    """A segment that begins between the cores for four frames, and is in that of alpha-R from then on."""
    down = crossing(np.concatenate([b.paths for b in read_blocks(RELEASES, ["flat-00*"])]))[-8:]
    whole = np.concatenate([np.repeat(start()[None], 4, axis=0), np.repeat(down, 3, axis=0) / 10])
    for name in ("segment-001", "segment-002"):
        shutil.copy(md / f"{name}.npz", tmp_path)
    write_record(tmp_path / "segment-000.npz", Record(whole.astype(np.float32), 0.2, (), 2.1, 800))
    recipe = replace(SMALL, settled=settled, stays=stays_on_one_side)
    both_ways = recipes.pack(recipe, [tmp_path], [], ["segment-001"], releases).training.both_ways
    assert both_ways is not None
    assert both_ways[:23].tolist() == 4 * [False] + 19 * [True]


def test_a_resumed_fit_equals_an_uninterrupted_one(packed: Packed, tmp_path: Path) -> None:
    _, whole = fit(packed, tmp_path / "whole", LOOP)
    fit(packed, tmp_path / "parts", LOOP, stop_after=4)
    _, parts = fit(packed, tmp_path / "parts", LOOP, workers=2)
    assert list(whole) == list(parts) and all(torch.equal(whole[k], parts[k]) for k in whole)
    assert "network.labels" in whole and not any(k.startswith("sides.") for k in whole)


def test_a_recipe_ends_in_a_checkpoint_with_sides(
    md: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crossings, "N_STEPS", 3)
    monkeypatch.setattr(crossings, "FIRST", 1)
    out = tmp_path / "out"
    options = ["--data", str(md), "--out", str(out), "--steps", "2", "--log-every", "1", "--threads", "1"]
    with pytest.raises(SystemExit):
        recipes.main(SMALL, None, [*options, "--blocks", "flat-00*"])
    assert "add --releases FOLDER" in capsys.readouterr().err
    for wrong, message in (
        ([str(tmp_path / "none")], "has no block flat-*"),
        ([str(RELEASES), "--blocks", "flat-00*", "flat-99*"], "has no block flat-99*"),
        ([str(RELEASES), "--hold-out", "segment-002"], "begins on one side of the barrier only"),
    ):
        assert recipes.main(SMALL, None, [*options, "--releases", *wrong]) == 1
        assert message in capsys.readouterr().err
    assert recipes.main(SMALL, None, [*options, "--releases", str(RELEASES), "--blocks", "flat-00*"]) == 0
    model = ScoreDynamics.from_pretrained(out)
    assert model.sides is not None and model.config.architecture["n_labels"] == 2
    assert any(model.sides.shift)
    training = read_metrics(out)["sections"]["training"]
    assert f"--releases {RELEASES.name} --blocks 'flat-00*'" in training["command"]
    assert training["segments"]["releases"][0].startswith("flat-00???: ")
    # To learn the bias; of each block, the walker's picoseconds and ten paths of two to either side.
    blocks = read_blocks(RELEASES, ["flat-00*"])
    assert training["results"][0]["released_md_ns"] == pytest.approx(
        (1200 + sum(len(b.visited) + 10 * 4.0 for b in blocks)) / 1000, abs=1e-3
    )


@pytest.mark.parametrize("from_nothing", [False, True])
def test_what_is_trained_on_keeps_its_sides_and_what_begins_from_nothing_has_none(
    plain: ScoreDynamics, md: Path, tmp_path: Path, from_nothing: bool
) -> None:
    old = sided(plain, 1e-3, 0.5)
    request = Request("own", 1.0, 300.0, None, from_nothing)
    config = learner(old, request, tmp_path).config()
    assert (config["sides"] is None) == from_nothing
    assert ("n_labels" in config["architecture"]) != from_nothing
    if not from_nothing:
        assert old.sides is not None
        weights = {k: v.contiguous() for k, v in old.denoiser.state_dict().items()}
        save_file(weights, tmp_path / "old.safetensors")
        data = replace(recipes.pack(SMALL, [md], [], ["segment-001"]), config=old.config.to_dict())
        write_packed(tmp_path / "data", data)
        model, average = fit(
            read_packed(tmp_path / "data"), tmp_path / "state", LOOP, start_from=tmp_path / "old.safetensors"
        )
        assert model.sides is not None and not any(k.startswith("sides.") for k in average)
        kept = model.sides.state_dict()
        assert all(torch.equal(v, kept[k]) for k, v in old.sides.state_dict().items())
