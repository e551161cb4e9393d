"""The verdict per atom: its head, how it is stored, trained and told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import bulk

from training import lattices, polymorph_structures
from training.verdict import (
    Example,
    calibration_error,
    draw,
    examples,
    fit,
    joined,
    largest_noise,
    molten_sample,
    reach_of,
    truth,
)
from training.verdict import main as train_verdict
from zoo import Denoiser
from zoo.analysis.crystals import STRUCTURES
from zoo.backbones.mace_network import MaceConfig
from zoo.backbones.moments import MomentsConfig
from zoo.denoiser import BACKBONES, DenoiserConfig
from zoo.errors import CheckpointError
from zoo.graph import neighbor_graph
from zoo.verdict import Verdict, VerdictConfig, VerdictHead, averaging
from zoo.verdict_names import CODES, DISORDERED

pytest.importorskip("ovito")

SMALL: dict[str, tuple[str, Any, tuple[str, ...]]] = {
    "moments": ("moments", MomentsConfig(n_channels=8, n_radial=4, n_layers=1, l_density=3), ("fcc", "bcc")),
    "mace": ("mace", MaceConfig(n_channels=4, n_layers=1, radial_width=8), ("B2", "zincblende")),
}


def untrained(kind: str) -> Denoiser:
    backbone, architecture, names = SMALL[kind]
    config = DenoiserConfig(
        name="small", version="0.1.0", lattices=names, backbone=backbone, architecture=architecture.to_dict()
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Denoiser(config, BACKBONES[backbone][1](architecture))


@pytest.fixture(scope="module", params=["moments", pytest.param("mace", marks=pytest.mark.slow)])
def judged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a head, by the recipe, of a denoiser that was never trained."""
    folder = tmp_path_factory.mktemp(request.param)
    untrained(request.param).save_pretrained(folder / "before")
    threads = torch.get_num_threads()
    try:
        arguments = [str(folder / "before"), "-o", str(folder / "after"), "--structures", "60"]
        assert train_verdict([*arguments, "--version", "0.2.0"]) == 0
    finally:
        torch.set_num_threads(threads)
    return folder


def test_the_recipe_leaves_the_denoiser_as_it_is(judged: Path) -> None:
    before, after = (Denoiser.from_pretrained(judged / name) for name in ("before", "after"))
    assert after.config.version == "0.2.0"
    assert before.head is None
    for (name, one), (_, two) in zip(
        before.network.named_parameters(), after.network.named_parameters(), strict=True
    ):
        assert torch.equal(one, two), name
    section = after.metrics["sections"]["verdict"]
    assert 0 <= section["expected_calibration_error"] < 0.2
    assert section["right"] > 0.5
    assert {row["class"] for row in section["results"]} == {*after.config.lattices, DISORDERED}
    assert after.config.verdict is not None
    assert after.config.verdict.classes == after.config.lattices


def test_denoised_atoms_have_a_name_and_a_confidence(judged: Path) -> None:
    denoiser = Denoiser.from_pretrained(judged / "after")
    crystal = bulk("CoAl", "cesiumchloride", a=2.87).repeat(4)
    crystal.rattle(0.05, seed=1)
    crystal.set_array("confidence", np.arange(len(crystal)))  # of another tool
    clean = denoiser.denoise(crystal, steps=2)
    names = {*denoiser.config.lattices, DISORDERED}
    assert set(clean.arrays["structure_type"]) <= names
    np.testing.assert_array_equal(clean.arrays["confidence_input"], np.arange(len(crystal)))
    confidence = clean.arrays["confidence"]
    assert confidence.dtype == np.float64
    assert ((confidence >= 1 / len(names) - 1e-9) & (confidence <= 1)).all()
    assert "structure_type" not in crystal.arrays
    verdict = denoiser.verdict(clean)
    assert verdict.probabilities.shape == (len(crystal), len(names))
    np.testing.assert_allclose(verdict.probabilities.sum(1), 1)
    # It is a property of the surroundings: turned, moved or in another order atoms keep it.
    turned = clean.copy()
    turned.rotate(40, (1, 2, 3), rotate_cell=True)
    order = np.random.default_rng(0).permutation(len(clean))
    np.testing.assert_allclose(
        denoiser.verdict(turned[order]).probabilities, verdict.probabilities[order], atol=1e-4
    )


def test_a_checkpoint_without_a_head_drops_an_earlier_verdict_and_no_array_of_the_user(judged: Path) -> None:
    before, after = (Denoiser.from_pretrained(judged / name) for name in ("before", "after"))
    crystal = bulk("CoAl", "cesiumchloride", a=2.87).repeat(3)
    clean = before.denoise(after.denoise(crystal, steps=1), steps=1)
    assert "structure_type" not in clean.arrays
    assert "confidence" not in clean.arrays
    crystal.set_array("confidence", np.arange(len(crystal)))
    crystal.set_array("structure_type", np.array(["grain A"] * len(crystal)))
    clean = before.denoise(crystal, steps=1)
    assert (clean.arrays["structure_type"] == "grain A").all()
    assert (clean.arrays["confidence"] == np.arange(len(crystal))).all()


def test_numbers_of_the_classes_go_on_from_those_of_the_classifiers() -> None:
    assert [CODES[name] for name in (DISORDERED, *STRUCTURES[1:])] == list(range(len(STRUCTURES)))


def test_saved_again_it_says_the_same(judged: Path, tmp_path: Path) -> None:
    denoiser = Denoiser.from_pretrained(judged / "after")
    again = Denoiser.from_pretrained(denoiser.save_pretrained(tmp_path / "again"))
    assert again.config == denoiser.config
    crystal = bulk("CoAl", "cesiumchloride", a=2.87).repeat(3)
    np.testing.assert_array_equal(
        again.verdict(crystal).probabilities, denoiser.verdict(crystal).probabilities
    )


def test_without_a_head_there_is_no_verdict() -> None:
    denoiser = untrained("moments")
    crystal = bulk("Cu", cubic=True).repeat(3)
    assert "structure_type" not in denoiser.denoise(crystal, steps=1).arrays
    with pytest.raises(CheckpointError, match="only denoises"):
        denoiser.verdict(crystal)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["fcc", "fcc"]}, "different names"),
        ({"classes": []}, "different names"),
        ({"classes": ["fcc", DISORDERED]}, "different names"),
        ({"width": 0}, "width"),
        ({"reach": -1}, "reach"),
        ({"reach": True}, "reach"),
        ({"reach": 17}, "reach"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"extra": 1}, "extra, which is not known"),
    ],
)
def test_an_odd_head_is_refused(change: dict[str, Any], message: str) -> None:
    good = VerdictConfig(("fcc", "bcc")).to_dict()
    assert VerdictConfig.from_dict(good) == VerdictConfig(("fcc", "bcc"))
    assert "reach" not in good  # as heads were written before there was one
    far = VerdictConfig(("fcc", "bcc"), reach=4)
    assert VerdictConfig.from_dict(far.to_dict()) == far
    assert VerdictConfig.from_dict({}) is None
    with pytest.raises(CheckpointError, match=message):
        VerdictConfig.from_dict({**good, **change})
    with pytest.raises(CheckpointError, match="object"):
        VerdictConfig.from_dict(["fcc"])
    with pytest.raises(CheckpointError, match="must have classes"):
        VerdictConfig.from_dict({"classes": ["fcc"]})


def test_weights_without_their_head_are_refused(judged: Path, tmp_path: Path) -> None:
    before = Denoiser.from_pretrained(judged / "before")
    folder = before.save_pretrained(tmp_path / "broken")
    config = json.loads((folder / "config.json").read_text())
    config["verdict"] = VerdictConfig(("fcc",)).to_dict()
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"missing verdict\.layers"):
        Denoiser.from_pretrained(folder)


def test_a_verdict_names_the_most_probable_class() -> None:
    verdict = Verdict(("fcc", DISORDERED), np.array([[0.8, 0.2], [0.4, 0.6]]))
    assert verdict.structure_type.tolist() == ["fcc", DISORDERED]
    assert verdict.confidence.tolist() == [0.8, 0.6]


def test_calibration_error_of_known_cases() -> None:
    confidence = np.full(1000, 0.75)
    assert calibration_error(confidence, np.arange(1000) % 4 != 0) == pytest.approx(0)
    assert calibration_error(confidence, np.ones(1000, bool)) == pytest.approx(0.25)
    two = np.repeat([0.55, 0.95], 500)
    right = np.concatenate([np.arange(500) % 2 == 0, np.ones(500, bool)])
    assert calibration_error(two, right) == pytest.approx(0.05)


def test_the_truth_is_read_from_the_sites() -> None:
    rng = np.random.default_rng(0)
    classes = ("fcc", "hcp", "bcc")
    assert set(truth("bcc", lattices.bulk_sample("bcc", rng), classes)) == {2}
    assert set(truth("bcc", molten_sample("bcc", rng), classes)) == {3}
    slab = truth("fcc", lattices.slab_sample("fcc", rng), classes)
    assert {0, 3} <= set(slab) <= {0, 1, 3}
    antisites = lattices.with_antisites(lattices.bulk_sample("B2", rng), rng)
    assert set(truth("B2", antisites, ("B2", "L1_2"))) == {0}


def test_a_third_of_the_draws_has_no_order() -> None:
    drawn = [draw(("fcc", "B2"), np.random.default_rng(seed)) for seed in range(100)]
    assert 0.15 < np.mean([not sample.ordered for _, sample in drawn]) < 0.45
    assert {name for name, _ in drawn} == {"fcc", "B2"}


def test_a_temperature_makes_an_overconfident_head_honest() -> None:
    """Labels that are noise for a third of the atoms: confidence must end near two thirds."""
    rng = np.random.default_rng(0)

    def half(n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        y = rng.integers(0, 2, n)
        x = rng.normal(0, 0.05, (n, 3)) + np.eye(3)[y]
        seen = np.where(rng.random(n) < 2 / 3, y, 1 - y)
        return [Example(torch.tensor(x, dtype=torch.float32), torch.tensor(seen))]

    head = fit(VerdictConfig(("a",), width=8), half(3000), half(3000), 0)
    fresh = half(3000)[0]
    with torch.no_grad():
        verdict = head.verdict(fresh.features)
    right = verdict.probabilities.argmax(1) == fresh.truth.numpy()
    assert verdict.confidence.mean() == pytest.approx(2 / 3, abs=0.04)
    assert calibration_error(verdict.confidence, right) < 0.04


def test_examples_depend_on_the_seed_only() -> None:
    denoiser = untrained("moments")

    def some(seed: int, workers: int = 1) -> list[Example]:
        return examples(denoiser, denoiser.config.lattices, 2, seed, lambda numbers: numbers, 0, workers)

    for one, two in zip(some(1), some(1, 2), strict=True):
        assert torch.equal(one.features, two.features)
        assert torch.equal(one.truth, two.truth)
    first, other = some(1)[0].features, some(2)[0].features
    assert first.shape != other.shape or not torch.equal(first, other)


def test_averages_are_over_an_atom_and_its_neighbours() -> None:
    """On a cubic lattice an atom has six neighbours here; what only one atom has spreads by a seventh."""
    crystal = bulk("Po", "sc", a=1.0).repeat(5)
    graph = neighbor_graph(crystal.positions, crystal.cell[:], True, 1.3)
    average = averaging(graph, 1.3)
    spread = torch.sparse.mm(average, torch.eye(len(crystal))[:, :1])[:, 0]
    assert spread.sum() == pytest.approx(1, abs=1e-6)
    assert (spread > 0).sum() == 7
    assert spread[0] == pytest.approx(1 / 7, abs=1e-6)
    # a neighbour at the cutoff no longer counts, one just before it hardly
    pair = [[0, 0, 0], [1.2999, 0, 0]]
    apart = averaging(neighbor_graph(np.array(pair), np.eye(3), False, 1.3), 1.3).to_dense()
    assert apart[0, 1] < 1e-5


def test_a_head_with_a_reach_knows_by_its_neighbours_what_single_atoms_do_not_tell() -> None:
    """Two kinds of crystals whose atoms look alike, but on average differ a little."""
    rng = np.random.default_rng(3)
    crystal = bulk("Po", "sc", a=1.0).repeat(6)
    average = averaging(neighbor_graph(crystal.positions, crystal.cell[:], True, 1.3), 1.3)

    def crystals(n: int) -> list[Example]:
        kinds = rng.integers(0, 2, n)
        x = [rng.normal(0.5 * kind, 1.0, (len(crystal), 2)) for kind in kinds]
        return [
            Example(torch.tensor(one, dtype=torch.float32), torch.full((len(crystal),), int(kind)), average)
            for one, kind in zip(x, kinds, strict=True)
        ]

    training, held_out, fresh = crystals(60), crystals(20), joined(crystals(20))
    right = []
    for reach in (0, 4):
        head = fit(VerdictConfig(("a",), width=8, reach=reach), training, held_out, 0)
        with torch.no_grad():
            chosen = head.verdict(fresh.features, fresh.average).probabilities.argmax(1)
        right.append(float((chosen == fresh.truth.numpy()).mean()))
    assert right[0] < 0.7
    assert right[1] > 0.95


def test_a_denoiser_whose_head_has_a_reach_is_stored_and_loaded(tmp_path: Path) -> None:
    plain = untrained("moments")
    verdict = VerdictConfig(("fcc", "bcc"), width=8, reach=3)
    head = VerdictHead.of(plain.network, verdict)
    denoiser = Denoiser(replace(plain.config, verdict=verdict), plain.network, head=head)
    again = Denoiser.from_pretrained(denoiser.save_pretrained(tmp_path / "far"))
    assert again.config.verdict == verdict
    crystal = bulk("Cu", cubic=True).repeat(3)
    crystal.rattle(0.1, seed=0)
    expected = denoiser.verdict(crystal).probabilities
    np.testing.assert_allclose(again.verdict(crystal).probabilities, expected, atol=1e-6)
    order = np.random.default_rng(0).permutation(len(crystal))
    turned = crystal.copy()
    turned.rotate(37, (1, 2, 3), rotate_cell=True)
    np.testing.assert_allclose(again.verdict(turned[order]).probabilities, expected[order], atol=1e-4)
    alone = bulk("Cu", cubic=True)[:2]
    alone.set_cell([30, 30, 30])
    alone.positions[1] += 12
    assert np.isfinite(again.verdict(alone).probabilities).all()
    with pytest.raises(ValueError, match="averaging"):
        head(torch.zeros(1, head.mean.numel()))


def test_structures_side_by_side_do_not_see_each_other() -> None:
    crystal = bulk("Po", "sc", a=1.0).repeat(3)
    average = averaging(neighbor_graph(crystal.positions, crystal.cell[:], True, 1.3), 1.3)
    head = VerdictHead(2, VerdictConfig(("a",), width=4, reach=3))
    one, two = (Example(torch.randn(27, 2), torch.zeros(27, dtype=torch.int64), average) for _ in range(2))
    both = joined([one, two])
    with torch.no_grad():
        expected = torch.cat([head(each.features, each.average) for each in (one, two)])
        torch.testing.assert_close(head(both.features, both.average), expected)


def test_the_head_divides_by_its_temperature() -> None:
    head = VerdictHead(3, VerdictConfig(("a", "b"), width=4))
    warm = VerdictHead(3, VerdictConfig(("a", "b"), width=4, temperature=2.0))
    warm.load_state_dict(head.state_dict())
    x = torch.randn(5, 3)
    torch.testing.assert_close(warm(x) * 2, head(x))


def test_a_checkpoint_with_lattices_that_cannot_be_drawn_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    denoiser = untrained("moments")
    config = {**denoiser.config.to_dict(), "lattices": ["NiAs (mine.cif)"]}
    from zoo.checkpoint import save

    save(tmp_path / "own", config, denoiser.network.state_dict())
    assert train_verdict([str(tmp_path / "own"), "-o", str(tmp_path / "out")]) == 1
    assert "cannot draw NiAs" in capsys.readouterr().err


def test_alpha_phases_vibrate_less_than_what_would_make_them_beta() -> None:
    rng = np.random.default_rng(0)
    for name in ("alpha-quartz", "alpha-cristobalite"):
        sample = polymorph_structures.bulk_sample(name, rng, 200)
        assert largest_noise(name, sample, 0.22) == pytest.approx(
            {"alpha-quartz": 0.0846, "alpha-cristobalite": 0.1449}[name], abs=1e-3
        )
        assert largest_noise(name, sample, 0.01) == 0.01
        molten = replace(sample, ordered=False)
        assert largest_noise(name, molten, 0.22) == 0.22  # a melt is no phase
    beta = polymorph_structures.bulk_sample("beta-quartz", rng, 200)
    assert largest_noise("beta-quartz", beta, 0.22) == 0.22
    iron = lattices.bulk_sample("bcc", rng)
    assert largest_noise("bcc", iron, 0.17) == 0.17


def test_a_head_sees_as_far_as_its_crystals_need() -> None:
    assert [reach_of(names) for names in (("fcc", "bcc"), ("B2",), ("ice Ih",), ("beta-quartz",))] == [
        2,
        2,
        4,
        8,
    ]
