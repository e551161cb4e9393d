"""`zoo evaluate`: a rollout beside "MD" that the same propagator made, one that differs, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mdtraj
import numpy as np
import pytest

import zoo
from tests.one_line import one_error
from training.benchmarks.kinetics.__main__ import agreement
from zoo import cli
from zoo.analysis.evaluation import Evaluation, _shares, _Side, evaluate
from zoo.analysis.packed_positions import packed
from zoo.analysis.trajectories import read_reference
from zoo.errors import StructureError
from zoo.molecules.start import load_start
from zoo.rollout import roll_out
from zoo.score_dynamics import ScoreDynamics

NAME = "sd-alanine-dipeptide-cg"
START = Path(zoo.__file__).parent / "data" / "alanine-dipeptide.pdb"
N_WALKERS, N_STEPS = 12, 250


@pytest.fixture(scope="module")
def model() -> ScoreDynamics:
    return ScoreDynamics.from_pretrained(NAME)


@pytest.fixture(scope="module")
def runs(model: ScoreDynamics) -> list[list[mdtraj.Trajectory]]:
    """Two independent rollouts."""
    x = load_start(START, model.molecule)
    return [roll_out(model, x, N_STEPS, N_WALKERS, seed).trajectories for seed in (1, 2)]


def positions(run: list[mdtraj.Trajectory]) -> list[np.ndarray]:
    return [each.xyz * 10 for each in run]


@pytest.fixture(scope="module")
def found(model: ScoreDynamics, runs: list[list[mdtraj.Trajectory]]) -> Evaluation:
    return evaluate(positions(runs[0]), positions(runs[1]), model.molecule, 1.0, n_resamples=200)


# --- the comparison ---------------------------------------------------------------------------------


def test_the_same_dynamics_agree(found: Evaluation) -> None:
    """Within what both are uncertain by, nearly everywhere."""
    told = agreement(found)
    assert told["figures"] >= 5
    assert told["agree"] >= 0.9 * told["figures"]
    apart = found.divergences["φ ψ"]
    assert apart.value is not None and apart.floor_95 is not None
    assert apart.value < 1.5 * apart.floor_95


def test_populations_add_up(found: Evaluation) -> None:
    for side in ("reference", "rollout"):
        assert sum(getattr(each, side).value for each in found.of_kind("population")) == pytest.approx(1.0)


def test_populations_within_a_group_need_no_way_to_the_other(found: Evaluation) -> None:
    within = {each.name: each for each in found.of_kind("group population")}
    beta, alpha = within["beta within phi < 0"], within["alpha-R within phi < 0"]
    for side in ("reference", "rollout"):
        assert getattr(beta, side).value + getattr(alpha, side).value == pytest.approx(1.0)
    away, back = (
        found.quantity("markov mfpt", name).rollout.value for name in ("beta → alpha-R", "alpha-R → beta")
    )
    assert away is not None and back is not None
    # of two states the population ratio is the ratio of the passage times, but for visits elsewhere
    assert beta.rollout.value == pytest.approx(away / (away + back), abs=0.05)


def test_a_side_compared_with_itself_is_the_same_everywhere(
    model: ScoreDynamics, runs: list[list[mdtraj.Trajectory]]
) -> None:
    x = positions(runs[0])
    same = evaluate(x, x, model.molecule, 1.0, n_resamples=100)
    assert same.divergences["φ ψ"].value == 0
    for each in same.quantities:
        assert each.rollout.value == each.reference.value
        assert each.rollout.events == each.reference.events
    for row in (*same.details["geometry"]["bonds"], *same.details["geometry"]["angles"]):
        assert row["shift"] == 0


def test_frozen_dynamics_are_caught(model: ScoreDynamics, runs: list[list[mdtraj.Trajectory]]) -> None:
    slow = [np.repeat(x, 5, 0)[: len(x)] for x in positions(runs[0])]
    wrong = evaluate(slow, positions(runs[1]), model.molecule, 1.0, n_resamples=200)
    passage = wrong.quantity("mfpt", "alpha-R → beta")
    assert passage.ratio is None or passage.ratio > 2
    assert passage.inside is not True


def test_a_stretched_bond_is_caught(model: ScoreDynamics, runs: list[list[mdtraj.Trajectory]]) -> None:
    long = [x.copy() for x in positions(runs[0])]
    a, b = model.molecule.site_bonds[0]
    end = a if [a in bond for bond in model.molecule.site_bonds].count(True) == 1 else b
    held = b if end == a else a
    for x in long:
        x[:, end] += 0.1 * (x[:, end] - x[:, held])
    wrong = evaluate(long, positions(runs[1]), model.molecule, 1.0, n_resamples=100)
    shifts = [row["shift"] for row in wrong.details["geometry"]["bonds"]]
    assert shifts[0] == pytest.approx(0.15, abs=0.02)
    assert max(abs(each) for each in shifts[1:]) < 0.02


def test_an_inverted_stereocentre_is_counted(
    model: ScoreDynamics, runs: list[list[mdtraj.Trajectory]]
) -> None:
    x = positions(runs[0])
    x[3] = np.concatenate([x[3][:100], x[3][100:] * [1.0, 1.0, -1.0]])
    wrong = evaluate(x, positions(runs[1]), model.molecule, 1.0, n_resamples=100)
    hands = wrong.details["geometry"]["chirality"]
    assert (hands["rollout"]["inversions"], hands["reference"]["inversions"]) == (1, 0)
    assert hands["rollout"]["inverted_stereocentre_frames"] == len(x[3]) - 100


def test_a_rollout_of_the_mirror_image_is_told(
    model: ScoreDynamics, runs: list[list[mdtraj.Trajectory]]
) -> None:
    mirrored = [x * [1.0, 1.0, -1.0] for x in positions(runs[0])]
    wrong = evaluate(mirrored, positions(runs[1]), model.molecule, 1.0, n_resamples=100)
    hands = wrong.details["geometry"]["chirality"]
    assert hands["rollout"]["inverted_stereocentre_frames"] == sum(map(len, mirrored))
    assert hands["rollout"]["inversions"] == hands["reference"]["inverted_stereocentre_frames"] == 0


def test_shifts_and_path_densities_have_intervals(found: Evaluation) -> None:
    for row in (*found.details["geometry"]["bonds"], *found.details["geometry"]["angles"]):
        for what in ("shift", "drift", "reference_drift"):
            low, high = row[f"{what}_interval_95"]
            assert low <= row[what] <= high
    for side in ("reference", "rollout"):
        density = found.details["path_density"][side]
        share, low, high = (np.array(density[key], dtype=float) for key in ("share", "low", "high"))
        assert share.sum() == pytest.approx(1.0, abs=1e-4)
        known = np.isfinite(low)
        assert known.any()
        assert ((low <= share + 1e-6) & (share <= high + 1e-6))[known].mean() > 0.95


def test_the_result_depends_on_the_seed_only_through_the_intervals(
    model: ScoreDynamics, runs: list[list[mdtraj.Trajectory]], found: Evaluation
) -> None:
    other = evaluate(positions(runs[0]), positions(runs[1]), model.molecule, 1.0, n_resamples=200, seed=5)
    assert [each.rollout.value for each in other.quantities] == [
        each.rollout.value for each in found.quantities
    ]
    assert other.to_json() != found.to_json()
    again = evaluate(positions(runs[0]), positions(runs[1]), model.molecule, 1.0, n_resamples=200)
    assert again.to_json() == found.to_json()


def test_other_dihedrals_have_basins_of_their_own(
    model: ScoreDynamics, runs: list[list[mdtraj.Trajectory]]
) -> None:
    named = ["ACE:CH3 ACE:C ALA:N ALA:CA"]
    omega = evaluate(
        positions(runs[0]), positions(runs[1]), model.molecule, 1.0, dihedrals=named, n_resamples=100
    )
    (basin,) = omega.of_kind("population")
    assert basin.name == "trans"
    assert basin.rollout.value == pytest.approx(1.0)


def test_the_report_survives_json(found: Evaluation, tmp_path: Path) -> None:
    path = found.save_json(tmp_path / "report.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["sets"]["rollout"]["n_trajectories"] == N_WALKERS
    assert len(data["quantities"]) == len(found.quantities)
    first = found.quantities[0]
    assert data["quantities"][0]["rollout"]["value"] == pytest.approx(first.rollout.value, rel=1e-6)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_the_picture_is_drawn_also_where_nothing_happens(
    found: Evaluation, model: ScoreDynamics, runs: list[list[mdtraj.Trajectory]], tmp_path: Path
) -> None:
    assert found.save_png(tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    still = [np.repeat(x[:1], 30, 0) for x in positions(runs[0])]
    nothing = evaluate(still, still, model.molecule, 1.0, n_resamples=100)
    assert nothing.save_png(tmp_path / "b.png").is_file()


def test_shares_are_of_time_in_regions_weighed_by_the_model() -> None:
    where = np.array(
        [[8.0, 2.0, 0.0], [0.0, 30.0, 10.0]]
    )  # frames after core 0 and after core 1; the last: nowhere
    np.testing.assert_allclose(_shares(np.array([0.5, 0.5]), where, [0, 1]), [0.4, 0.1 + 0.375])
    # of two of three basins, which share what lies in them
    three = np.array([[6.0, 2.0, 2.0, 0.0], [1.0, 9.0, 0.0, 0.0]])
    shares = _shares(np.array([0.2, 0.8]), three, [0, 1])
    np.testing.assert_allclose(shares, np.array([0.12 + 0.08, 0.04 + 0.72]) / 0.96)
    many = _shares(np.array([[0.2, 0.8], [1.0, 0.0]]), np.stack([three, three]), [0, 1])
    np.testing.assert_allclose(many, [shares, [0.75, 0.25]])
    never = _shares(np.array([1.0, 0.0]), np.array([[8.0, 2.0, 0.0], [0.0, 0.0, 0.0]]), [0, 1])
    np.testing.assert_allclose(never, [0.8, 0.2])


def test_a_rare_side_is_known_as_well_as_its_rarer_crossings_are() -> None:
    """However often its basins exchange among themselves."""
    changes = np.zeros((2, 4, 4))  # of two trajectories
    changes[:, 0, 1] = changes[:, 1, 0] = 50.0
    changes[:, 2, 3] = changes[:, 3, 2] = 20.0
    changes[0, 0, 2], changes[:, 2, 0] = 1.0, 7.0
    side: Any = SimpleNamespace(of=[0, 0, 1, 1], tally=SimpleNamespace(paths=changes))
    stationary = np.array([0.6, 0.36, 0.03, 0.01])
    ways = [_Side._ways(side, k, stationary).tolist() for k in range(4)]
    assert ways == [[108.0, 107.0], [100.0, 100.0], [2.0, 0.0], [2.0, 0.0]]
    side.of = [-1] * 4
    assert _Side._ways(side, 3, stationary).tolist() == [40.0, 40.0]


# --- the command ------------------------------------------------------------------------------------


@pytest.fixture
def here(runs: list[list[mdtraj.Trajectory]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """md-00.xtc, ... hold all 22 atoms: heavy ones of a rollout, and hydrogens where the start has them."""
    monkeypatch.chdir(tmp_path)
    whole = mdtraj.load(str(START))
    model = ScoreDynamics.from_pretrained(NAME)
    sites = list(model.molecule.sites)
    for k, run in enumerate(runs[1]):
        xyz = np.repeat(whole.xyz, len(run), 0)
        xyz[:, sites] = run.xyz
        mdtraj.Trajectory(xyz, whole.topology, time=np.arange(len(run))).save(f"md-{k:02d}.xtc")
    whole.save("md.pdb")
    for k, run in enumerate(runs[0]):
        run.save(f"run-{k:02d}.xtc")
    return tmp_path


def run(*arguments: object) -> int:
    return cli.main(["evaluate", *(str(argument) for argument in arguments)])


def md() -> list[str]:
    return sorted(path.name for path in Path.cwd().glob("md-*.xtc"))


@pytest.mark.slow
def test_files_give_the_report_of_the_api(
    here: Path, capsys: pytest.CaptureFixture[str], found: Evaluation
) -> None:
    assert run(NAME, "--reference", *md(), "--topology", "md.pdb", "--rollout", "run.xtc") == 0
    out = capsys.readouterr().out
    assert "alpha-R" in out and "stereocentres: 1, inverted 0 times" in out
    data = json.loads(Path("evaluation.json").read_text(encoding="utf-8"))
    for mine, theirs in zip(data["quantities"], found.quantities, strict=True):
        assert mine["name"] == theirs.name
        for side, estimate in (("rollout", theirs.rollout), ("reference", theirs.reference)):
            if estimate.value is not None:  # XTC rounds to 0.01 Å, which may move a frame across a line
                assert mine[side]["value"] == pytest.approx(estimate.value, rel=0.1, abs=0.02)
    assert Path("evaluation.png").is_file()
    assert data["checkpoint"].startswith(NAME)


@pytest.mark.slow
def test_without_a_rollout_one_is_made_and_kept(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = ("-n", "30", "-w", "3", "--save-rollout", "made.xtc", "-o", "report.json", "-q")
    assert run(NAME, "--reference", *md(), "--topology", "md.pdb", *made) == 0
    assert capsys.readouterr().out == ""
    data = json.loads(Path("report.json").read_text(encoding="utf-8"))
    assert data["rollout"]["walkers"] == 3
    assert data["sets"]["rollout"]["n_frames"] == 3 * 31
    assert sorted(path.name for path in here.glob("made-*.xtc")) == [f"made-{k:02d}.xtc" for k in range(3)]


def test_segments_of_reference_md_are_read_also_compact(here: Path) -> None:
    whole = mdtraj.load("md-00.xtc", top="md.pdb")
    small: dict[str, Any] = packed(whole.xyz)
    np.savez("segment-000.npz", pos_nm=whole.xyz, dt_ps=1.0)
    np.savez("segment-001.npz", dt_ps=1.0, **small)
    whole[0].save("topology.pdb")
    molecule = ScoreDynamics.from_pretrained(NAME).molecule
    plain, compact = (read_reference(Path(f"segment-00{k}.npz"), molecule, 1.0).positions for k in (0, 1))
    np.testing.assert_allclose(compact, plain, atol=1e-3)


BAD: list[tuple[list[str], str]] = [
    (["--reference", "md-00.xtc"], "--topology"),
    (["--reference", "nothing.xtc", "--topology", "md.pdb"], "nothing.xtc: there is no such file"),
    (["--reference", "md-00.xtc", "--topology", "none.pdb"], "none.pdb: there is no such file"),
    (["--reference", "md-00.xtc", "--topology", "butane.pdb"], "md-00.xtc"),
    (["--reference", "butane.pdb", "--reference-interval", "1"], "butane.pdb"),
    (["--reference", "slow.xtc", "--topology", "md.pdb"], "does not divide"),
    (["--reference", "md.pdb"], "--reference-interval"),
    (["--reference", "short.xtc", "--topology", "md.pdb"], "too short"),
    (["--reference", "text.xtc", "--topology", "md.pdb"], "text.xtc"),
    (["--reference", "md-00.xtc", "--topology", "md.pdb", "-o", "no/where.json"], "no folder"),
    (["--reference", "md-00.xtc", "--topology", "md.pdb", "-o", "report.txt"], ".json"),
    (["--reference", "md-00.xtc", "--topology", "md.pdb", "-o", "there.json"], "--overwrite"),
    (["--reference", "md-00.xtc", "--topology", "md.pdb", "--dihedrals", "N CA C XX"], "XX"),
    (["--reference", "md-00.xtc", "--topology", "md.pdb", "--dihedrals", "N CA C"], "four"),
    (["--reference", "md-00.xtc", "--topology", "md.pdb", "--rollout", "gone.xtc"], "gone.xtc"),
    (["--reference", "md-00.xtc", "--topology", "md.pdb", "--rollout", "md-00.xtc"], "md-00.xtc"),
    (["--reference", "md-00.xtc", "--topology", "md.pdb", "--markov-lag", "0.3"], "lag"),
    (["--reference", "md-00.xtc", "--topology", "md.pdb", "--save-rollout", "new.xtc"], "give one"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(each[0])[12:] for each in BAD])
def test_a_mistake_is_answered_by_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    Path("butane.pdb").write_text(
        "".join(
            f"HETATM{k + 1:5d}  C{k + 1}  BUT A   1    {x:8.3f}{x % 1:8.3f}   0.000  1.00  0.00{'C':>12}\n"
            for k, x in enumerate([0.0, 1.5, 3.0, 4.5])
        )
        + "END\n"
    )
    whole = mdtraj.load(str(START))
    xyz = np.repeat(whole.xyz, 40, 0)
    mdtraj.Trajectory(xyz, whole.topology, time=0.3 * np.arange(40)).save("slow.xtc")
    mdtraj.Trajectory(xyz[:2], whole.topology, time=np.arange(2) * 0.5).save("short.xtc")
    Path("text.xtc").write_text("not a trajectory\n" * 100)
    Path("there.json").write_text("mine")
    before = sorted(path.name for path in here.iterdir())
    if "--rollout" not in arguments:
        arguments = [*arguments, "--rollout", "run-00.xtc", "run-01.xtc"]
    assert run(NAME, *arguments) == 1
    assert words in one_error(capsys)
    assert sorted(path.name for path in here.iterdir()) == before
    assert Path("there.json").read_text() == "mine"


def test_an_unknown_checkpoint_is_told_before_anything_is_read(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sd-alanine-dipeptid-cg", "--reference", "nothing.xtc") == 1
    assert NAME in one_error(capsys)


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(run("--help"))
    assert stop.value.code == 0
    assert f"zoo evaluate {NAME}" in capsys.readouterr().out


# --- the API's own refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interval_ps": 0.0}, "interval between frames"),
        ({"block_ps": -1.0}, "length of a block"),
        ({"n_resamples": 10}, "too few"),
        ({"markov_lag_ps": 1.5}, "no multiple"),
        ({"dihedrals": []}, "no dihedral"),
        ({"dihedrals": [(0, 1, 2, 2)]}, "twice"),
        ({"dihedrals": [(0, 1, 2, 99)]}, "not 99"),
    ],
)
def test_impossible_settings(
    model: ScoreDynamics, runs: list[list[mdtraj.Trajectory]], change: dict[str, Any], message: str
) -> None:
    x = positions(runs[0])[:2]
    with pytest.raises(StructureError, match=message):
        evaluate(x, x, model.molecule, **{"interval_ps": 1.0, **change})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([], "no reference trajectory"),
        ([np.zeros((5, 3, 3))], "shape"),
        ([np.full((30, 10, 3), np.nan)], "not finite"),
        ([np.zeros((1, 10, 3))], "too short"),
    ],
)
def test_impossible_trajectories(model: ScoreDynamics, x: list[np.ndarray], message: str) -> None:
    with pytest.raises(StructureError, match=message):
        evaluate(x, x, model.molecule, 1.0)
