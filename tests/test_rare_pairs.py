"""Pairs over a barrier from released paths: their weights, and training with them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import mdtraj
import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.barrier_chain import Array, N, angles_of, bias, chain, walked
from training.loop import LoopConfig
from training.reference_md.releases import Bias, read_blocks
from training.reference_md.segments import Record, read_record, write_record
from training.reference_md.walks import walks
from training.score_dynamics import importance
from training.score_dynamics import recipe as recipes
from training.score_dynamics.fit import fit
from training.score_dynamics.importance import Importance, learned
from training.score_dynamics.packed import NoiseConfig, Packed, read_packed, write_packed
from training.score_dynamics.rare import kind_of, side_of, weighed
from training.score_dynamics.transitions import RarePairs, Transitions, make_batches, rare_rows
from training.sd_alanine_dipeptide_cg import RECIPE
from zoo.analysis.dihedrals import choose_dihedrals
from zoo.analysis.kinetics import torsions
from zoo.checkpoint import read_metrics
from zoo.molecules.rigid import without_rigid_motion

MD = Path(__file__).parent.parent / "training" / "reference_md"
RELEASES = MD / "alanine-dipeptide-flat"
SMALL = replace(
    RECIPE,
    name="test-cg",
    version="0.0.1",
    architecture={"n_sites": 10, "width": 16, "depth": 1, "n_frequencies": 2},
    hold_out=(),
    validation=("segment-001",),
    noise=NoiseConfig(batch_size=32),
)
LOOP = LoopConfig(n_steps=6, warmup=2, log_every=2, learning_rate=1e-3)


# --- weights ------------------------------------------------------------------------------------------


def exact_kinds(lag: int) -> tuple[Array, Array, npt.NDArray[np.int64]]:
    """Of the chain: joint probability of pairs of states, its phi, and the kind of each pair."""
    pi, t = chain()
    phi = angles_of(np.arange(N))[:, 0]
    return pi[:, None] * np.linalg.matrix_power(t, lag), phi, kind_of(phi[:, None], phi[None], bias())


@pytest.mark.parametrize("lag", [20, 60])
def test_shares_are_those_of_the_exact_chain(lag: int) -> None:
    joint, phi, kinds = exact_kinds(lag)
    path, begin, end, kind, share = weighed(walked(8000), bias(), lag)
    assert len(set(path.tolist())) > 200 and set(np.abs(end - begin).tolist()) == {lag}
    beside = ~bias().on_ridge(phi)
    for k in range(1, 5):
        side = (phi > 0) == (k > 2)
        exact = joint[kinds == k].sum() / joint[beside & side].sum()
        assert exact < 0.02
        assert share[kind == k].sum() == pytest.approx(exact, rel=0.25)


def test_where_rare_pairs_begin_is_that_of_the_exact_chain() -> None:
    joint, phi, kinds = exact_kinds(60)
    from_state = np.where(kinds == 4, joint, 0.0).sum(1)
    data = walked(8000)
    path, begin, _, kind, share = weighed(data, bias(), 60)
    starts, over = data.paths[path, begin, 0], kind == 4
    for low, high in ((25, 45), (45, 65), (65, 100)):
        exact = from_state[(phi > low) & (phi <= high)].sum() / from_state.sum()
        inside = over & (starts > low) & (starts <= high)
        assert share[inside].sum() / share[over].sum() == pytest.approx(exact, abs=0.07)


def test_kinds_of_pairs() -> None:
    flat = Bias(np.zeros((1, 1)), (0.0, 25.0))
    before = [60, 60, 60, 60, 20, -60, -60, -60, -170, 170, 170, 25.1]
    after = [30, 20, -20, -90, -60, 5, -5, -30, 170, -170, -5, 24.9]
    assert kind_of(before, after, flat).tolist() == [0, 3, 4, 4, 0, 2, 1, 0, 0, 0, 4, 3]
    moved = Bias(np.zeros((1, 1)), (120.0, 25.0))
    assert kind_of([60, 60, -10], [170, 110, 10], moved).tolist() == [2, 1, 0]
    assert side_of([110, 130, -70, -50], moved).tolist() == [0, 1, 1, 0]


# --- training -----------------------------------------------------------------------------------------


def some_pairs(n: int = 40) -> RarePairs:
    """Kinds 1 and 2 in turn, of sides 0 and 1; row k stands for k + 1 pairs."""
    x = torch.randn((n, 22, 3), generator=torch.Generator().manual_seed(0))
    side, stands_for = torch.arange(n) % 2, torch.arange(1.0, n + 1).double() / 1e4
    return RarePairs(x, x, side + 1, stands_for, side, torch.arange(50) % 2)


def plain_pairs(n: int = 50) -> Transitions:
    frames = torch.randn((n + 5, 22, 3), generator=torch.Generator().manual_seed(1))
    return Transitions(frames, torch.arange(n), 5, 1.0)


def test_rare_pairs_are_drawn_by_what_they_stand_for() -> None:
    rare, size = some_pairs(), 8000
    n_rare, ratios = rare_rows(rare, 50, size)
    # of each kind 0.05 for one of the plain pairs, of which they are 8e-4
    assert n_rare == round(size * 0.1 / 1.1) and float(ratios[1]) == pytest.approx(8e-4 / 0.05, rel=0.01)
    batch = make_batches(plain_pairs(), size, 0.0, rare)(np.random.default_rng(0))
    assert batch["kind"].shape == (size,) and int((batch["kind"] > 0).sum()) == n_rare
    centred = rare.before - rare.before.mean(1, keepdim=True)
    row = torch.cdist(batch["x"][-n_rare:].flatten(1), centred.flatten(1)).argmin(1)
    assert torch.equal(rare.kind[row], batch["kind"][-n_rare:])
    drawn = torch.bincount(row, minlength=40).double()
    # weighed with the ratios, what is drawn of each stands for its number of plain pairs
    expected = rare.stands_for / ratios[rare.kind] / 50 * (size - n_rare)
    assert float(expected.sum()) == pytest.approx(n_rare)
    assert ((drawn - expected).square() / expected).sum() < 73  # chi square, 39 degrees of freedom: 0.1 %
    for kind in range(3):
        levels = batch["quantiles"][batch["kind"] == kind]
        assert float(levels.mean()) == pytest.approx(0.5, abs=0.1)
    # noise is directed to rare pairs that begin on the same side
    frames = plain_pairs().frames[:50]
    plain = torch.cdist(
        batch["x"][:-n_rare].flatten(1), (frames - frames.mean(1, keepdim=True)).flatten(1)
    ).argmin(1)
    assert torch.equal(batch["toward"][:-n_rare] % 2, plain % 2)
    with pytest.raises(ValueError, match="a batch of 1 has no place"):
        make_batches(plain_pairs(), 1, 0.0, rare)


def test_without_rare_pairs_batches_are_what_they_were() -> None:
    batch = make_batches(plain_pairs(), 8, 0.01)(np.random.default_rng(0))
    assert list(batch) == ["x", "x_next", "noise", "quantiles"]
    rng = np.random.default_rng(0)
    frames = plain_pairs().frames[torch.from_numpy(rng.integers(50, size=8))]
    levels = (np.arange(8) + rng.random(8)) / 8
    torch.testing.assert_close(batch["quantiles"], torch.from_numpy(levels.astype(np.float32)))
    shaken = frames - frames.mean(1, keepdim=True)
    shaken = shaken + 0.01 * torch.from_numpy(rng.standard_normal((8, 22, 3), dtype=np.float32))
    torch.testing.assert_close(batch["x"], shaken)


def test_no_kind_is_drawn_more_than_a_hundred_times_too_often() -> None:
    rare = some_pairs()
    rare = replace(rare, stands_for=torch.where(rare.kind == 1, 1e-4, 1.0).double() * rare.stands_for)
    rows, ratios = rare_rows(rare, 5000, 10**6)
    shares = (rare.of_kinds() / 5000).tolist()
    assert shares[0] < 1e-9 and float(ratios[1:].min()) == pytest.approx(0.01, rel=0.01)
    assert rows == pytest.approx(1e8 * shares[1], rel=0.01)
    assert rare_rows(rare, 5000, 32)[0] == 1


@pytest.mark.parametrize("wrong", [0.0, 2.0])
def test_the_minimum_of_the_loss_is_the_true_one_whatever_the_classifier_says(wrong: float) -> None:
    """Rare y at 4 and plain ones at 0: the weighted mean of y at each noisy y is the posterior mean."""
    rng, n, sigma, share = np.random.default_rng(0), 1_000_000, 1.5, 2e-3
    kind = torch.from_numpy((rng.random(n) < 0.3).astype(np.int64))
    y = torch.from_numpy(0.5 * rng.standard_normal(n)).float() + 4.0 * kind
    noisy = y + sigma * torch.from_numpy(rng.standard_normal(n)).float()
    weights = Importance(0.5, torch.tensor([1.0, share / (1 - share) * 0.7 / 0.3]), torch.zeros(1, 1, 3))
    odds = np.log(0.3 / 0.7)
    var = 0.5**2 + sigma**2

    def logits(noisy: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        z = noisy[:, 0, 0]
        score = odds + (z**2 - (z - 4.0) ** 2) / (2 * var) + wrong * torch.sin(z)
        return torch.stack([torch.zeros_like(z), score], 1)

    weights.logits = logits  # type: ignore[method-assign]
    z = torch.zeros(n, 1, 3)
    z[:, 0, 0] = noisy
    w = weights(z, torch.full((n,), sigma), z, kind)
    assert float(w[kind == 0].max()) > 20
    for at in (0.0, 3.0, 4.0, 5.0):
        near = (noisy - at).abs() < 0.1
        found = float((w * y)[near].sum() / w[near].sum())
        p = 1 / (1 + (1 - share) / share * np.exp(-(at**2 - (at - 4) ** 2) / (2 * var)))
        shrink = 0.25 / var
        exact = p * (4 + shrink * (at - 4)) + (1 - p) * shrink * at
        assert found == pytest.approx(exact, abs=0.12)


def test_weights_make_up_for_the_direction_of_noise() -> None:
    """Weighed means over noise, directed or not, are those of the standard normal, of whatever function."""
    n = 400_000
    rng = torch.Generator().manual_seed(0)
    local = torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.5, 0.0]])
    stretch = torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    weights = Importance(0.5, torch.ones(3), torch.stack([2.0 * stretch, 20.0 * stretch]))
    noise = without_rigid_motion(torch.randn((n, 3, 3), generator=rng), local.expand(n, 3, 3))
    batch = {
        "kind": (torch.arange(n) % 4 == 3).long(),
        "toward": (torch.arange(n) % 8 == 0).long(),  # the second is out of reach
        "how_far": torch.rand(n, generator=rng),
        "coin": torch.rand(n, generator=rng),
    }
    moved, weight = weights.directed(
        torch.zeros(n, 3, 3), torch.full((n,), 1.2), noise, local.expand(n, 3, 3), batch
    )
    rare, far = batch["kind"] == 1, batch["toward"] == 1
    assert torch.equal(moved[rare | far], noise[rare | far]) and bool((weight[rare | far] == 1).all())
    plain = ~rare & ~far
    along = (moved[plain] * stretch).sum((1, 2)) / 2**0.5
    w = weight[plain]
    assert float((along > 2).float().mean()) > 0.15  # not 0.02
    assert float(w.mean()) == pytest.approx(1.0, abs=0.01)
    assert float((w * along).mean()) == pytest.approx(0.0, abs=0.02)
    assert float((w * along**2).mean()) == pytest.approx(1.0, abs=0.03)
    assert float((w * (along > 2)).mean()) == pytest.approx(0.02275, rel=0.05)
    assert float((w * (along > 3)).mean()) == pytest.approx(0.00135, rel=0.1)


# --- the recipe ---------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _few_steps_of_the_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "N_STEPS", 20)


@pytest.fixture(scope="module")
def md(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two segments that shake in one well, a third that jumps over the barrier and back at every frame."""
    folder = tmp_path_factory.mktemp("md")
    start = mdtraj.load_pdb(str(MD / "ace-ala-nme.pdb")).xyz[0].astype(float)
    mirrored = start * [1, 1, -1]
    for number in range(3):
        rng = np.random.default_rng(number)
        frames = [(mirrored if number == 2 and k % 2 else start) for k in range(31)]
        shaken = np.array(frames) + 0.002 * rng.standard_normal((31, 22, 3))
        write_record(
            folder / f"segment-{number:03d}.npz",
            Record(shaken.astype(np.float32), 0.2, (-80.0, 80.0), 2.1, 800),
        )
    return folder


@pytest.fixture(scope="module")
def packed(md: Path, tmp_path_factory: pytest.TempPathFactory) -> Packed:
    path = tmp_path_factory.mktemp("packed") / "data.safetensors"
    write_packed(path, recipes.pack(SMALL, [md], [], ["segment-001"], (RELEASES, ["flat-00*"])))
    return read_packed(path)


def test_rare_pairs_come_from_the_releases(md: Path, packed: Packed) -> None:
    """The segment that jumps has no pair left, for a lag is an odd number of frames."""
    before = recipes.pack(SMALL, [md], [], ["segment-001"])
    assert before.rare is None and (len(before.training), len(packed.training)) == (52, 26)
    rare = packed.rare
    assert rare is not None and packed.n_pairs == 26 + len(rare) and rare.n_kinds == 4
    assert rare.before.shape == rare.after.shape == (len(rare), 10, 3)
    assert torch.equal(rare.side, (rare.kind - 1) // 2) and packed.segments["releases"][0] == "flat-00000"
    # 39 begin below the barrier, 13 of those that jump among them, and 13 above: for so many they stand
    blocks, n_plain = read_blocks(RELEASES, ["flat-00*"]), np.array([39, 13])
    quadruples = choose_dihedrals(SMALL.molecule(), None).quadruples
    data = walks(blocks, SMALL.molecule().sites, quadruples)
    *_, kind, share = weighed(data, Bias.read(RELEASES), 5)
    np.testing.assert_allclose(rare.stands_for, share * n_plain[(kind - 1) // 2])
    phi = [torsions(x.double().numpy(), quadruples)[:, 0] for x in (rare.before, rare.after)]
    assert torch.equal(rare.kind, torch.from_numpy(kind_of(*phi, Bias.read(RELEASES))))


def test_pairs_of_shots_like_rare_ones_are_a_kind_of_their_own(md: Path, tmp_path: Path) -> None:
    for name in ("segment-000", "segment-001"):
        shutil.copy(md / f"{name}.npz", tmp_path)
    mirrored = read_record(md / "segment-000.npz")
    write_record(tmp_path / "segment-003.npz", replace(mirrored, pos_nm=mirrored.pos_nm * [1, 1, -1]))
    shutil.copy(md / "segment-002.npz", tmp_path / "shot-00000.npz")
    packed = recipes.pack(SMALL, [tmp_path], [], ["segment-001"], (RELEASES, ["flat-00*"]))
    assert packed.rare is not None
    assert len(packed.training) == 52 and packed.rare.n_kinds == 5
    assert float(packed.rare.of_kinds()[4]) == int((packed.rare.kind == 5).sum()) == 26


def test_packed_rare_pairs_come_back_as_they_were(packed: Packed, tmp_path: Path) -> None:
    write_packed(tmp_path / "again", packed)
    again = read_packed(tmp_path / "again")
    assert again.sha256 == packed.sha256 and again.rare is not None and packed.rare is not None
    assert torch.equal(again.rare.stands_for, packed.rare.stands_for)


def test_a_resumed_fit_equals_an_uninterrupted_one(packed: Packed, tmp_path: Path) -> None:
    _, whole = fit(packed, tmp_path / "whole", LOOP)
    fit(packed, tmp_path / "parts", LOOP, stop_after=4)
    assert (tmp_path / "parts" / "importance.safetensors").exists()
    _, parts = fit(packed, tmp_path / "parts", LOOP, workers=2)
    assert all(torch.equal(whole[k], parts[k]) for k in whole) and list(whole) == list(parts)


def test_the_classifier_is_read_only_for_the_run_it_is_of(packed: Packed, tmp_path: Path) -> None:
    path = tmp_path / "importance.safetensors"
    one = learned(packed.build(), packed, 0, path)
    assert one is not None
    written = path.read_bytes()
    again = learned(packed.build(), packed, 0, path)
    assert again is not None and path.read_bytes() == written
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    with pytest.raises(ValueError, match="of other data or settings: choose another folder"):
        learned(packed.build(), packed, 1, path)
    assert path.read_bytes() == written
    path.write_bytes(b"damaged")
    assert learned(packed.build(), packed, 0, path) is not None and path.read_bytes() == written


def test_a_recipe_tells_of_its_releases(md: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ["--data", str(md), "--out", str(out), "--steps", "2", "--log-every", "1", "--threads", "1"]
    assert recipes.main(SMALL, None, [*options, "--releases", str(tmp_path / "none")]) == 1
    assert "has no block" in capsys.readouterr().err
    below = [*options, "--releases", str(RELEASES), "--hold-out", "segment-002"]
    assert recipes.main(SMALL, None, below) == 1
    assert "begins on one side of the barrier only" in capsys.readouterr().err
    assert recipes.main(SMALL, None, [*options, "--releases", str(RELEASES), "--blocks", "flat-00*"]) == 0
    training = read_metrics(out)["sections"]["training"]
    assert f"--releases {RELEASES.name} --blocks 'flat-00*'" in training["command"]
    assert min(training["rare"]["n_pairs"]) > 10 and len(training["rare"]["stand_for"]) == 4
    assert training["segments"]["releases"][0].startswith("flat-00???: ")
    with pytest.raises(SystemExit):
        recipes.main(SMALL, None, [*options, "--blocks", "flat-00*"])
    assert "add --releases FOLDER" in capsys.readouterr().err
