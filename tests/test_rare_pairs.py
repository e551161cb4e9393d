"""Pairs over a barrier from released paths: their weights, and training with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch

from tests.barrier_chain import N, angles_of, bias, chain, walked
from training.loop import LoopConfig
from training.reference_md.releases import Bias
from training.reference_md.segments import Record, write_record
from training.score_dynamics import recipe as recipes
from training.score_dynamics.fit import fit
from training.score_dynamics.importance import Importance, learned, ratios
from training.score_dynamics.packed import NoiseConfig, Packed, read_packed, write_packed
from training.score_dynamics.rare import goes_over, over_the_barrier, side_of
from training.score_dynamics.transitions import RarePairs, Transitions, make_batches
from training.sd_alanine_dipeptide_cg import RECIPE
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
    noise=NoiseConfig(batch_size=32, classifier_steps=20),
)
LOOP = LoopConfig(n_steps=6, warmup=2, log_every=2, learning_rate=1e-3)


# --- weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lag", [10, 60])
def test_shares_are_those_of_the_exact_chain(lag: int) -> None:
    pi, t = chain()
    after = np.linalg.matrix_power(t, lag)
    phi = angles_of(np.arange(N))[:, 0]
    over = goes_over(phi[:, None], phi[None], bias())
    path, begin, end, side, share = over_the_barrier(walked(8000), bias(), lag)
    assert len(set(path.tolist())) > 50
    assert np.all(np.abs(end - begin) == lag)
    for k in (0, 1):
        here = (phi > 0) == k
        exact = (pi[here, None] * after[here] * over[here]).sum() / pi[here].sum()
        assert exact < 0.01
        assert share[side == k].sum() == pytest.approx(exact, rel=0.15)


def test_where_pairs_over_the_barrier_begin_is_that_of_the_exact_chain() -> None:
    lag = 60
    pi, t = chain()
    phi = angles_of(np.arange(N))[:, 0]
    over = goes_over(phi[:, None], phi[None], bias())
    from_state = pi * (np.linalg.matrix_power(t, lag) * over).sum(1)
    data = walked(8000)
    path, begin, _, side, share = over_the_barrier(data, bias(), lag)
    starts = data.paths[path, begin, 0]
    for low, high in ((0, 25), (25, 50), (50, 100)):
        inside = (phi > low) & (phi <= high)
        exact = from_state[inside].sum() / from_state[phi > 0].sum()
        found = share[(side == 1) & (starts > low) & (starts <= high)].sum() / share[side == 1].sum()
        assert found == pytest.approx(exact, abs=0.07)


def test_the_other_way_around_the_circle_is_not_over_the_barrier() -> None:
    flat = Bias(np.zeros((1, 1)), (0.0, 25.0))
    assert goes_over([10, -10, 170, 170, 20], [-10, 10, -170, 5, 30], flat).tolist() == [1, 1, 0, 0, 0]
    moved = Bias(np.zeros((1, 1)), (120.0, 25.0))
    assert goes_over([110, -10], [170, 10], moved).tolist() == [True, False]
    assert side_of([110, 130, -70, -50], moved).tolist() == [0, 1, 1, 0]


# --- training -----------------------------------------------------------------------------------------


def pairs_over(n: int = 40) -> RarePairs:
    """Rows of even number begin below; row k has the x of its first site at k, and stands for k + 1 pairs."""
    x = torch.randn((n, 22, 3), generator=torch.Generator().manual_seed(0))
    x[:, 0, 0] = torch.arange(n)
    return RarePairs(
        x, x + 0.5, torch.arange(n) % 2, torch.arange(1.0, n + 1).double() / 1e4, torch.arange(50) % 2
    )


def plain_pairs(n: int = 50) -> Transitions:
    frames = torch.randn((n + 5, 22, 3), generator=torch.Generator().manual_seed(1))
    return Transitions(frames, torch.arange(n), 5, 1.0)


def test_rare_pairs_are_drawn_from_both_sides_by_what_they_stand_for() -> None:
    rare = pairs_over()
    rare = replace(rare, after=rare.before)  # sites keep their place, so the first one tells the row
    batch = make_batches(plain_pairs(), 1000, 0.0, rare, 0.4)(np.random.default_rng(0))
    assert torch.bincount(batch["kind"]).tolist() == [200, 400, 400]
    assert batch["x"].shape == (1000, 22, 3)
    centred = rare.before - rare.before.mean(1, keepdim=True)
    row = torch.cdist(batch["x"][200:].flatten(1), centred.flatten(1)).argmin(1)
    assert set((row[:400] % 2).tolist()) == {0} and set((row[400:] % 2).tolist()) == {1}
    drawn = torch.bincount(row[:400], minlength=40)[::2].double()
    expected = rare.stands_for[::2] / rare.stands_for[::2].sum() * 400
    assert ((drawn - expected).square() / expected).sum() < 45  # chi square, 19 degrees of freedom: 0.1 %
    quantiles = batch["quantiles"]
    for kind in range(3):
        assert float(quantiles[batch["kind"] == kind].mean()) == pytest.approx(0.5, abs=0.07)
    with pytest.raises(ValueError, match=r"twice 0.5 of a batch of 1000"):
        make_batches(plain_pairs(), 1000, 0.0, rare, 0.5)


def test_without_rare_pairs_batches_are_what_they_were() -> None:
    batch = make_batches(plain_pairs(), 8, 0.0)(np.random.default_rng(0))
    assert "kind" not in batch
    assert bool((batch["quantiles"].diff() > 0).all())


def test_ratios_bring_the_true_mixture_back() -> None:
    rare, n_plain = pairs_over(), 5000
    r = ratios(rare, n_plain, 512, 0.1).double()
    counted = r * torch.tensor([512 - 2 * 51, 51, 51])  # what each kind weighs in a batch
    stand_for = torch.stack([rare.stands_for[rare.side == side].sum() for side in (0, 1)])
    torch.testing.assert_close(counted[1:] / counted[0], stand_for / n_plain, rtol=1e-5, atol=0)


@pytest.mark.parametrize("wrong", [0.0, 2.0])
def test_the_minimum_of_the_loss_is_the_true_one_whatever_the_classifier_says(wrong: float) -> None:
    """Rare y at 4 and plain ones at 0: the weighted mean of y at each noisy y is the posterior mean."""
    rng, n, sigma, share = np.random.default_rng(0), 1_000_000, 1.5, 2e-3
    kind = torch.from_numpy((rng.random(n) < 0.3).astype(np.int64))
    y = torch.from_numpy(0.5 * rng.standard_normal(n)).float() + 4.0 * kind
    noisy = y + sigma * torch.from_numpy(rng.standard_normal(n)).float()
    importance = Importance(0.5, torch.tensor([1.0, share / (1 - share) * 0.7 / 0.3]), torch.zeros(1, 1, 3))
    odds = np.log(0.3 / 0.7)
    var = 0.5**2 + sigma**2

    def logits(noisy: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        z = noisy[:, 0, 0]
        score = odds + (z**2 - (z - 4.0) ** 2) / (2 * var) + wrong * torch.sin(z)
        return torch.stack([torch.zeros_like(z), score], 1)

    importance.logits = logits  # type: ignore[method-assign]
    z = torch.zeros(n, 1, 3)
    z[:, 0, 0] = noisy
    w = importance(z, torch.full((n,), sigma), z, kind)
    assert float(w.max()) > 20 > 1.01 > float(w[kind == 1].max()) or wrong
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
    importance = Importance(0.5, torch.ones(3), torch.stack([2.0 * stretch, 20.0 * stretch]))
    noise = without_rigid_motion(torch.randn((n, 3, 3), generator=rng), local.expand(n, 3, 3))
    batch = {
        "kind": (torch.arange(n) % 4 == 3).long(),
        "toward": (torch.arange(n) % 8 == 0).long(),  # the second is out of reach
        "how_far": torch.rand(n, generator=rng),
        "coin": torch.rand(n, generator=rng),
    }
    moved, weight = importance.directed(
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


def test_pairs_over_the_barrier_come_from_the_releases(md: Path, packed: Packed) -> None:
    """The segment that jumps has no pair left, for a lag is an odd number of frames."""
    before = recipes.pack(SMALL, [md], [], ["segment-001"])
    assert before.rare is None and (len(before.training), len(packed.training)) == (52, 26)
    rare = packed.rare
    assert rare is not None and len(rare) > 50 and packed.n_pairs == 26 + len(rare)
    assert rare.before.shape == rare.after.shape == (len(rare), 10, 3)
    # every pair is there in both directions
    assert torch.equal(rare.before[::2], rare.after[1::2]) and torch.equal(rare.before[1::2], rare.after[::2])
    assert bool((rare.side[::2] != rare.side[1::2]).all())
    # of 39 that begin below the barrier, 13 of those that jumped among them, and of 13 above
    below, above = (float(rare.stands_for[rare.side == side].sum()) for side in (0, 1))
    assert 39 * 1e-6 < below < 39 * 3e-5 and 13 * 1e-4 < above < 13 * 1.5e-3


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
    learned(packed.build(), packed, 1, path)
    assert path.read_bytes() != written
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
    assert f"--releases {RELEASES.name} --blocks flat-00*" in training["command"]
    assert training["rare"]["n_pairs"] > 50 and len(training["rare"]["stand_for"]) == 2
