"""Rates over a barrier from released paths: against an exact chain, and what is recorded and refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import zoo
from tests.barrier_chain import KT, PHI, N, angles_of, bias, chain, walked
from training.benchmarks.barriers.__main__ import main, plain_md, recorded_rollout, rows
from training.benchmarks.barriers.crossings import crossings, estimates
from training.benchmarks.barriers.pooled import pooled, product, together
from training.metrics import record
from training.reference_md import read_segments
from training.reference_md.releases import Bias, read_blocks
from training.reference_md.segments import BIAS, NM, Record, write_record
from training.reference_md.walks import Walks
from zoo.analysis.basins import Basins, alanine_basins
from zoo.analysis.bootstrap import Estimate
from zoo.errors import StructureError, ZooError
from zoo.molecules.start import load_start
from zoo.score_dynamics import ScoreDynamics

Array = npt.NDArray[np.float64]
CG = Path(zoo.__file__).parent / "checkpoints" / "sd-alanine-dipeptide-cg"


def exact_rate(every: int = 1) -> tuple[float, float]:
    """Transitions per step from the core of phi < 0 to that of phi > 0, and the population of phi < 0."""
    pi, t = chain()
    t = np.linalg.matrix_power(t, every)
    basins = alanine_basins()
    at = angles_of(np.arange(N))
    core, region = basins.grouped(basins.cores(at)), basins.grouped(basins.regions(at))
    between = core < 0
    q = (core == 1).astype(float)
    q[between] = np.linalg.solve(
        np.eye(between.sum()) - t[np.ix_(between, between)], t[between][:, core == 1].sum(1)
    )
    return float((pi[:, None] * t)[core == 0].sum(0) @ q) / every, float(pi[region == 0].sum())


@pytest.mark.parametrize("width", [8.0, 25.0])
def test_rates_and_populations_are_those_of_the_exact_chain(width: float) -> None:
    rate, left = exact_rate()
    # in a run as long as all the paths together there would most likely be no transition at all
    assert 1 / rate > 2 * 10**6
    found, crossing = estimates(walked(8000), bias(width), alanine_basins(), 1.0, n_resamples=400)
    assert crossing.events > 50
    assert found["group population", "phi < 0"].value == pytest.approx(left, rel=0.03)
    over = found["group mfpt", "phi < 0 → phi > 0"]
    back = found["group mfpt", "phi > 0 → phi < 0"]
    assert over.value == pytest.approx(left / rate, rel=0.2)
    assert back.value == pytest.approx((1 - left) / rate, rel=0.2)
    assert over.low is not None and over.high is not None
    assert over.low < left / rate < over.high < 2.0 * over.low
    assert over.events == crossing.events


def test_rates_are_those_of_what_is_seen_at_every_so_many_steps() -> None:
    every = 60
    rate, left = exact_rate(every)
    assert rate < 0.95 * exact_rate()[0]  # some are there and back again in between
    found, crossing = estimates(walked(8000), bias(), alanine_basins(), float(every), n_resamples=200)
    assert crossing.unresolved < 20
    assert found["group mfpt", "phi < 0 → phi > 0"].value == pytest.approx(left / rate, rel=0.2)


def test_an_error_of_the_bias_on_paths_does_not_matter() -> None:
    """What was felt is written down; a table that is off by a constant, or by a slope, changes nothing."""
    rate, left = exact_rate()
    data = walked(8000)
    off = replace(bias(), kj_mol=bias().kj_mol + KT * (0.7 + 0.4 * np.sin(np.radians(PHI)))[:, None])
    found, _ = estimates(data, off, alanine_basins(), 1.0, n_resamples=100)
    assert found["group mfpt", "phi < 0 → phi > 0"].value == pytest.approx(left / rate, rel=0.2)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rate, left = exact_rate()
    inside = 0
    for seed in range(30):
        found, _ = estimates(
            walked(1500, 20, seed), bias(), alanine_basins(), 1.0, n_resamples=200, seed=seed
        )
        inside += bool(found["group mfpt", "phi < 0 → phi > 0"].contains(left / rate))
    assert inside >= 25


def test_a_transition_is_shared_among_its_moments_on_the_ridge() -> None:
    flat = Bias(np.zeros((4, 4)), (0.0, 25.0))
    groups = np.array([[0, -1, -1, -1, 1], [0, -1, -1, -1, 0], [0, 0, 0, -1, 1], [-1, -1, -1, -1, 1]])
    paths = np.where(groups < 0, 0.0, 60.0)[..., None] * np.ones(2)
    none = np.zeros(4)
    data = Walks(np.zeros((4, 2)), none, none.astype(int), paths, none, none.astype(int), 0.2, KT)
    found = crossings(data, flat, groups)
    np.testing.assert_allclose(found.share, [1 / 3, 0, 0, 0])
    assert (found.events, found.unresolved) == (1, 1)
    data.paths[0, 1, 0] = 26.0  # no walker would be cloned there
    np.testing.assert_allclose(crossings(data, flat, groups).share, [1 / 2, 0, 0, 0])
    # every second frame: from frame 0 both ends are seen, from frame 1 neither
    found = crossings(data, flat, groups, 2)
    np.testing.assert_allclose(found.share, [1 / 4, 0, 0, 0])
    assert found.unresolved == 3
    with pytest.raises(StructureError, match="too short to look at every 3 frames"):
        crossings(data, flat, groups, 3)


def test_the_bias_is_linear_between_its_points_and_goes_around() -> None:
    grid = np.arange(16.0).reshape(4, 4)
    at = np.array([[0.0, 0.0], [90.0, 180.0], [-90.0, 45.0], [315.0, 0.0], [45.0, 45.0]])
    np.testing.assert_allclose(Bias(grid, (0.0, 25.0)).at(at), [0.0, 6.0, 12.5, 6.0, 2.5])


def test_a_ridge_goes_around_too() -> None:
    ridge = Bias(np.zeros((4, 4)), (170.0, 20.0))
    assert ridge.on_ridge([149.0, 151.0, -171.0, -169.0, 0.0]).tolist() == [False, True, True, False, False]


def test_few_blocks_and_no_crossing_are_told() -> None:
    data = walked(300, 3, length=10)
    found, crossing = estimates(data, bias(), alanine_basins(), 1.0, n_resamples=100)
    assert found["population", "alpha-R"].low is None
    still = replace(data, paths=data.paths[:, 9:12])
    found, crossing = estimates(still, bias(), alanine_basins(), 1.0, n_resamples=100)
    assert crossing.events == 0 and crossing.unresolved > 0
    assert found["group mfpt", "phi < 0 → phi > 0"].value is None
    assert found["group mfpt", "phi < 0 → phi > 0"].note == "no events"


def test_paths_without_a_middle_and_basins_without_two_groups_are_refused() -> None:
    with pytest.raises(StructureError, match="none in the middle"):
        crossings(walked(100, 2, length=2), bias(), np.zeros((10, 4), dtype=np.int64))
    with pytest.raises(StructureError, match="two groups"):
        estimates(walked(100, 2, length=2), bias(), Basins(alanine_basins().basins), 1.0)
    with pytest.raises(StructureError, match="no multiple"):
        estimates(walked(100, 2, length=2), bias(), alanine_basins(), 1.3)


# --- files --------------------------------------------------------------------------------------------


def bias_of_none() -> Bias:
    return Bias(np.zeros((1, 1)), (0.0, 25.0))


def block(n_pairs: int = 3, n_frames: int = 4, **more: object) -> Record:
    """Pairs of pieces in which the x of the first atom counts the frames of the file."""
    x = np.zeros((2 * n_pairs * n_frames, 22, 3), dtype=np.float32)
    x[:, 0, 0] = 0.1 * np.arange(len(x))
    provenance = {
        "protocol": {"production": {"temperature_k": 300.0}},
        "pieces": 2 * n_pairs,
        "visited": [[-80.0, 20.0, 5 * KT], [60.0, 20.0, 0.0], [0.0, 20.0, 0.0]],
        "bias_kj_mol": [KT * k for k in range(n_pairs)],
        "walker": {"number": 0, "visited_every_ps": 60.0},
        "bias_sha256": bias_of_none().sha256,
        **more,
    }
    return Record(x, 0.2, (0.0, 0.0), 2.1, 800, provenance)


def test_a_pair_is_read_as_one_path_and_as_two_segments(tmp_path: Path) -> None:
    write_record(tmp_path / "flat-00000.npz", block())
    (found,) = read_blocks(tmp_path)
    assert found.paths[:, :, 0, 0].round().astype(int).tolist() == [
        [7, 6, 5, 0, 1, 2, 3],
        [15, 14, 13, 8, 9, 10, 11],
        [23, 22, 21, 16, 17, 18, 19],
    ]
    np.testing.assert_allclose(found.released, [0, 1, 2], rtol=1e-6)
    np.testing.assert_allclose(found.bias, [5, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(found.visited[:, 0], [-80, 60, 0])
    segments = read_segments(tmp_path)
    assert [len(each.positions) for each in segments] == [4] * 6
    assert {each.name for each in segments} == {"flat-00000"}
    assert segments[3].positions[:, 0, 0].round().astype(int).tolist() == [12, 13, 14, 15]


@pytest.mark.parametrize(
    "wrong",
    [{"bias_kj_mol": [0.0]}, {"bias_kj_mol": [0.0, float("nan"), 1.0]}, {"bias_kj_mol": "none"},
     {"bias_kj_mol": []}, {"visited": []}, {"visited": [[1.0, 2.0]]}, {"visited": [[1.0, 2.0, None]]},
     {"visited": 3}, {"protocol": {}}, {"pieces": 5}, {"walker": {}},
     {"protocol": {"production": {"temperature_k": float("inf")}}}],
)  # fmt: skip
def test_blocks_that_make_no_sense_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    write_record(tmp_path / "flat-00000.npz", block(**wrong))
    with pytest.raises(StructureError, match=r"flat-00000.npz is no block of flattened MD"):
        read_blocks(tmp_path)


def test_blocks_of_different_paths_and_none_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StructureError, match="has no block"):
        read_blocks(tmp_path)
    write_record(tmp_path / "flat-00000.npz", block())
    write_record(tmp_path / "flat-00001.npz", block(n_frames=6))
    with pytest.raises(StructureError, match=r"flat-00001.npz is not like flat-00000.npz"):
        read_blocks(tmp_path)


@pytest.mark.parametrize("pieces", [5, 0, -2, "six", 1.5, True])
def test_pieces_that_do_not_fit_the_frames_are_refused(tmp_path: Path, pieces: object) -> None:
    write_record(tmp_path / "flat-00000.npz", block(pieces=pieces))
    with pytest.raises(StructureError, match="it is damaged"):
        read_segments(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"kj_mol": [[1]]}', '{"kj_mol": [1, 2], "ridge_degrees": [0, 25]}',
     '{"kj_mol": [[NaN]], "ridge_degrees": [0, 25]}', '{"kj_mol": [[1, 2]], "ridge_degrees": [0, 25]}',
     '{"kj_mol": [[1]], "ridge_degrees": [0, -3]}', '{"kj_mol": [[1]], "ridge_degrees": [NaN, 3]}'],
)  # fmt: skip
def test_a_bias_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(StructureError, match="learn the bias first"):
        Bias.read(tmp_path)
    (tmp_path / BIAS).write_text(text)
    with pytest.raises(StructureError, match=r"bias\.json cannot be read as a bias"):
        Bias.read(tmp_path)


# --- the benchmark ------------------------------------------------------------------------------------


def test_rows_compare_with_the_long_rollout() -> None:
    md = {
        ("group mfpt", "phi > 0 → phi < 0"): Estimate(3000.0, 2000.0, 5000.0, 40),
        ("population", "alpha-L"): Estimate(0.01, 0.005, 0.02, 40),
        ("population", "C7ax"): Estimate(0.01, 0.005, 0.02, 40),
    }
    rollout = {
        ("group mfpt", "phi > 0 → phi < 0"): {"rollout": 9000.0, "rollout_interval": "7e3 to 1e4"},
        ("markov population", "alpha-L"): {"rollout": 0.015, "rollout_interval": "0.01 to 0.02"},
    }
    slow, inside, unknown = rows(
        md,
        {("population", "C7ax"): Estimate(0.05, None, None, 2, "too few events")},
        {("population", "C7ax"): Estimate(0.03, 0.02, 0.04, 50)},
        rollout,
    )
    assert (slow["ratio"], slow["inside"], slow["verdict"], slow["unit"]) == (3.0, False, "× 3.00", "ps")
    assert (inside["verdict"], inside["md_interval"], inside["unit"]) == ("inside", "0.005 to 0.02", "")
    assert (unknown["rollout"], unknown["ratio"], unknown["verdict"]) == (None, None, "–")
    assert (unknown["md"], unknown["walkers"], unknown["md_of"]) == (0.03, 0.01, "both")
    assert (unknown["plain_md"], unknown["plain_md_interval"]) == (0.05, "too few events")
    assert (inside["md"], inside["walkers"], inside["md_of"]) == (0.01, 0.01, "walkers")
    assert (inside["walkers_interval"], inside["walkers_events"]) == ("0.005 to 0.02", 40)
    assert "plain_md" not in inside


def test_two_references_together_are_surer_than_each() -> None:
    half = Estimate(0.5, 0.3, 0.7, 10)
    both = together(half, half)
    assert both is not None and both.low is not None and both.high is not None
    assert (both.value, both.events) == (0.5, 10)

    def odds(share: float) -> float:
        return float(np.log(share / (1 - share)))

    assert odds(both.high) == pytest.approx(odds(0.7) / np.sqrt(2)) == -odds(both.low)
    # sides are kept apart
    skewed = together(*2 * [Estimate(0.5, 0.2, 0.6, 10)])
    assert skewed is not None and skewed.low is not None and skewed.high is not None
    assert odds(skewed.low) / odds(skewed.high) == pytest.approx(odds(0.2) / odds(0.6))
    sure = together(Estimate(0.6, 0.599, 0.601, 10**6), half)
    assert sure is not None and sure.value == pytest.approx(0.6, abs=1e-4)
    # a part of a whole that is nearly known, and the other way around
    for one, other in ((half, Estimate(0.9, 0.8999, 0.9001, 9)), (Estimate(0.9, 0.8999, 0.9001, 9), half)):
        share = product(one, other)
        assert share is not None and share.value == pytest.approx(0.45)
        assert share.low is not None and share.high is not None
        assert (share.low, share.high) == (pytest.approx(0.27, abs=0.02), pytest.approx(0.64, abs=0.02))


@pytest.mark.parametrize("counts", [(60, 150), (30, 40)])
def test_intervals_of_two_references_together_hold_the_truth_as_often_as_they_say(
    counts: tuple[int, int],
) -> None:
    rng = np.random.default_rng(0)

    def found(n: int, truth: float) -> Estimate:
        value = rng.binomial(n, truth) / n
        low, high = np.quantile(rng.binomial(n, value, 2000) / n, [0.025, 0.975])  # as resampling does
        return Estimate(value, float(low), float(high), n)

    inside, of_all, n = 0, 0, 0
    for _ in range(400):
        both = together(found(counts[0], 0.7), found(counts[1], 0.7))
        if both is None:  # a contradiction, or an interval that ends at 1
            continue
        n += 1
        inside += bool(both.contains(0.7))
        share = product(both, found(200, 0.9))
        of_all += share is None or bool(share.contains(0.7 * 0.9))
    assert n > 350
    assert 0.91 <= inside / n <= 0.98
    assert 0.91 <= of_all / n <= 0.99


def test_references_that_contradict_each_other_are_not_averaged() -> None:
    low, high = Estimate(0.3, 0.2, 0.4, 10), Estimate(0.7, 0.6, 0.8, 10)
    assert together(low, high) is None and together(high, low) is None
    assert together(low, Estimate(0.7, 0.3, 0.8, 10)) is not None


@pytest.mark.parametrize(
    "unknown",
    [Estimate(0.5, None, None, 3, "too few events"), Estimate(None, None, None, 0),
     Estimate(0.5, 0.2, None, 9), Estimate(0.9, 0.5, 1.0, 9),
     Estimate(0.1, 0.0, 0.2, 9), Estimate(0.5, 0.5, 0.5, 9)],
)  # fmt: skip
def test_what_one_reference_does_not_know_is_left_to_the_other(unknown: Estimate) -> None:
    known = Estimate(0.5, 0.3, 0.7, 10)
    assert together(unknown, known) is None and together(known, unknown) is None
    assert product(unknown, known) is None and product(known, unknown) is None


def test_only_shares_within_groups_of_two_are_pooled() -> None:
    basins, known, half = alanine_basins(), Estimate(0.5, 0.3, 0.7, 10), Estimate(0.5, 0.4, 0.6, 20)
    walkers = {
        **{("population", name): known for name in basins.names},
        **{("group population", group): Estimate(0.8, 0.7, 0.9, 10) for group, _ in basins.groups},
        **{("group population", f"{n} within {g}"): known for g, names in basins.groups for n in names},
    }
    assert pooled(walkers, {}, basins) == {}
    beta, alpha = (("group population", f"{name} within phi < 0") for name in ("beta", "alpha-R"))
    assert pooled(walkers, {beta: half}, basins) == {}  # or shares would no longer add up to 1
    found = pooled(walkers, {beta: half, alpha: half}, basins)
    assert set(found) == {beta, alpha, ("population", "beta"), ("population", "alpha-R")}
    assert found["population", "beta"].value == pytest.approx(0.4)
    walkers["group population", "phi < 0"] = Estimate(0.8, None, None, 3, "too few events")
    assert set(pooled(walkers, {beta: half, alpha: half}, basins)) == {beta, alpha}
    three = Basins(basins.basins, (("phi < 0", ("beta", "alpha-R", "C7ax")), basins.groups[1]))
    assert pooled(walkers, {beta: half, alpha: half}, three) == {}


def test_plain_md_is_that_beside_the_recorded_rollout() -> None:
    found = plain_md(recorded_rollout(CG))
    beta, alpha = (found["group population", f"{name} within phi < 0"] for name in ("beta", "alpha-R"))
    assert beta.has_interval and alpha.has_interval
    assert beta.value is not None and alpha.value == pytest.approx(1 - beta.value)
    assert all(kind == "group population" for kind, _ in found)
    few = found["group population", "C7ax within phi > 0"]
    assert (few.low, few.note) == (None, "too few events")


def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    shutil.copytree(CG, folder)
    return folder


def test_a_run_records_what_a_card_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkpoint(tmp_path)
    row = {"kind": "group population", "name": "alpha-R within phi < 0", "rollout": 1.0}
    record(folder, "kinetics", [row], command="x", seed=0)
    model = ScoreDynamics.from_pretrained(str(folder))
    x = load_start(Path(zoo.__file__).parent / "data" / "alanine-dipeptide.pdb", model.molecule)
    for k in range(6):
        one = block(n_frames=11)
        one.pos_nm[:, list(model.molecule.sites)] = x / NM
        write_record(tmp_path / f"flat-07{k:03d}.npz", one)
    (tmp_path / BIAS).write_text(json.dumps({"kj_mol": [[0.0]], "ridge_degrees": [0, 25]}))
    assert main([str(folder), "--releases", str(tmp_path), "--blocks", "flat-07*", "--record"]) == 0
    section = json.loads((folder / "metrics.json").read_text())["sections"]["barriers"]
    assert (section["stretches"], section["visited"], section["releases"]) == (3, 18, 18)
    assert section["seen_every_ps"] == 1.0
    assert section["on_transition_paths"] == 0
    assert "--blocks 'flat-07*'" in section["command"]
    found = {(each["kind"], each["name"]): each for each in section["results"]}
    assert found["group population", "alpha-R within phi < 0"]["rollout"] == 1.0
    assert found["population", "alpha-L"]["md"] == pytest.approx(2 / (np.exp(5) + 2))
    assert found["population", "C7ax"]["md_interval"] == "no events"
    assert "3 stretches of walkers: 18 frames, 18 releases" in capsys.readouterr().out
    told = {"segments": {"training": ["segment-010"], "releases": ["flat-07???: 6 blocks"]}}
    data = {"segments": {"training": ["segment-010", "flat-07???: 6 blocks"]}}
    for extra in (told, data, {"segments": {}, "earlier": [told]}):
        record(folder, "training", [{}], command="x", seed=0, extra=extra)
        assert main([str(folder), "--releases", str(tmp_path)]) == 1
        assert (
            "was trained on blocks of the walkers flat-07: choose those of others" in capsys.readouterr().err
        )


@pytest.mark.parametrize("key", ["weights_sha256", "config_sha256"])
def test_figures_of_other_weights_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    folder = checkpoint(tmp_path)
    path = folder / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["sections"]["kinetics"][key] = "0" * 64
    path.write_text(json.dumps(metrics))
    with pytest.raises(ZooError, match="of other weights"):
        recorded_rollout(folder)
    del metrics["sections"]["kinetics"]
    path.write_text(json.dumps(metrics))
    with pytest.raises(ZooError, match="no figures of a long rollout"):
        recorded_rollout(folder)
    assert main([str(folder), "--releases", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_blocks_of_another_molecule_bias_or_nonsense_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint(tmp_path)
    arguments = [str(folder), "--releases", str(tmp_path)]

    def told() -> str:
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        return error

    bias = {"kj_mol": [[1.0]], "ridge_degrees": [0, 25]}
    (tmp_path / BIAS).write_text(json.dumps(bias))
    write_record(tmp_path / "flat-08000.npz", block(n_frames=11))
    assert "another bias" in told()
    (tmp_path / BIAS).write_text(json.dumps({**bias, "kj_mol": [[0.0]]}))
    assert "on top of each other" in told()
    small = block(n_frames=11)
    small.pos_nm = small.pos_nm[:, :3]
    write_record(tmp_path / "flat-08000.npz", small)
    assert "of 3 atoms: another molecule" in told()
    short = block(n_frames=11, walker={"number": 0, "visited_every_ps": 1.0})
    write_record(tmp_path / "flat-08000.npz", short)
    assert "which do not count" in told()
