"""Training of families: packed data, exact resume, one's own MD, its end; and the torsions of chains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors import safe_open

from training import finetune_dynamics
from training.benchmarks.alkanes.__main__ import evaluate_molecule, flattened, unseen
from training.benchmarks.alkanes.__main__ import main as alkanes_benchmark
from training.benchmarks.alkanes.chains import MINUS, PLUS, TRANS, compare, figures, measure, states_of
from training.loop import LoopConfig
from training.own_simulation import calculator, check_length, simulate
from training.reference_md.segments import read_record
from training.score_dynamics import learners
from training.score_dynamics.families import fit, read_packed, write_packed
from training.score_dynamics.family_recipe import FamilyRecipe, pack, power_law
from training.score_dynamics.learners import Request, learner
from training.score_dynamics.own_md import mended, read_runs, split
from training.sd_alkanes import RECIPE
from zoo.analysis.trajectories import frame_interval, reference_molecule
from zoo.checkpoint import read_metrics
from zoo.cli import main as cli
from zoo.errors import StructureError, ZooError
from zoo.finetune_command import expanded
from zoo.molecules.family import Family
from zoo.molecules.molecule import Molecule
from zoo.registry import bundled_folder, find
from zoo.score_dynamics import ScoreDynamics

Array = npt.NDArray[np.float64]
DATA = Path(__file__).parent.parent / "training" / "reference_md" / "alkanes"
SMALL: dict[str, Any] = {
    "elements": ["H", "C"], "width": 16, "depth": 1, "heads": 2, "vectors": 4, "pair_width": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def small() -> FamilyRecipe:
    """Ethane and propane with a network that trains in seconds."""
    return replace(
        RECIPE,
        architecture=SMALL,
        batch_sizes={"ethane": 8, "propane": 8},
        segments=("segment-000",),
        validation=(("propane", "segment-003"),),
    )


@pytest.fixture(scope="module")
def packed_path(small: FamilyRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "data.safetensors"
    write_packed(path, pack(small, [DATA / "ethane", DATA / "propane"]))
    return path


def test_packed_data_say_what_was_seen_and_what_was_not(small: FamilyRecipe, packed_path: Path) -> None:
    packed = read_packed(packed_path)
    assert packed.segments["training"] == ["ethane/segment-000", "propane/segment-000"]
    assert packed.segments["validation"] == ["propane/segment-003"]
    assert "ethane/segment-001" in packed.segments["held_out"]
    assert [len(m.training) for m in packed.members] == [2496, 2496]
    family = Family.from_json(packed.config["family"])
    assert family.molecules == ("ethane (C2H6)", "propane (C3H8)")
    assert family.rigid_bonds == ("C4-H1",)
    assert family.bond_lengths["C4-H1"] == pytest.approx(1.09, abs=1e-3)
    # Every frame that was trained on is inside of the bands.
    for member in packed.members:
        strange = family.strangeness(member.molecule, member.training.frames.double().numpy())
        assert strange.max() < 1.001


def test_a_molecule_or_segment_that_is_missing_is_named(small: FamilyRecipe, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="no folder of propane"):
        pack(small, [DATA / "ethane"])
    with pytest.raises(ZooError, match="none of the segments segment-999"):
        pack(replace(small, segments=("segment-999",)), [DATA / "ethane", DATA / "propane"])
    with pytest.raises(ZooError, match="cannot be read as packed training data"):
        read_packed(tmp_path / "none")


def test_the_recipe_never_sees_butane_or_octane() -> None:
    assert not {"butane", "octane"} & set(RECIPE.batch_sizes)


def test_rigid_motion_follows_a_power_law() -> None:
    a, b = power_law([1.0, 10.0, 100.0], [3.0, 0.3, 0.03])
    assert (np.exp(a), b) == (pytest.approx(3.0, rel=1e-4), pytest.approx(-1.0, abs=1e-4))
    assert power_law([5.0, 5.0], [2.0, 2.0]) == (pytest.approx(np.log(2.0), abs=1e-4), 0.0)


def test_resumed_is_uninterrupted_to_the_bit_whatever_the_threads(packed_path: Path, tmp_path: Path) -> None:
    packed = read_packed(packed_path)
    loop = LoopConfig(n_steps=6, learning_rate=1e-3, warmup=2, log_every=3)
    _, whole = fit(packed, tmp_path / "whole", loop)
    fit(packed, tmp_path / "parts", loop, stop_after=3, workers=2)
    _, parts = fit(packed, tmp_path / "parts", loop, workers=2)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    row = json.loads((tmp_path / "whole" / "log.jsonl").read_text().splitlines()[-1])
    assert np.isfinite(row["validation"])


def test_the_best_is_kept_and_the_start_is_one_of_them(packed_path: Path, tmp_path: Path) -> None:
    packed = read_packed(packed_path)
    wild = LoopConfig(n_steps=6, learning_rate=3.0, warmup=1, log_every=2, ema_decay=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(wild.seed)
        start = packed.build().state_dict()
    _, kept = fit(packed, tmp_path / "wild", wild, keep_best=True)
    assert all(torch.equal(kept[name], start[name]) for name in kept)
    calm = LoopConfig(n_steps=6, learning_rate=1e-2, warmup=1, log_every=2)
    model, kept = fit(packed, tmp_path / "calm", calm, keep_best=True)
    fit(packed, tmp_path / "parts", calm, keep_best=True, stop_after=3)
    _, parts = fit(packed, tmp_path / "parts", calm, keep_best=True)
    assert any(not torch.equal(kept[name], start[name]) for name in kept)
    assert kept.keys() == dict(model.named_parameters()).keys()
    rows = [json.loads(line) for line in (tmp_path / "calm" / "log.jsonl").read_text().splitlines()]
    with safe_open(tmp_path / "calm" / "best.safetensors", framework="pt") as file:
        assert float(file.metadata()["validation"]) == min(row["validation"] for row in rows)
    assert parts.keys() == kept.keys()


# --- chains -----------------------------------------------------------------------------------------


def butane_at(angles: Array) -> tuple[Molecule, npt.NDArray[np.float64]]:
    """Butane with its torsion at some angles (degrees); only the carbons are placed."""
    pdb = mdtraj.load_pdb(str(DATA / "butane.pdb"))
    molecule = Molecule.from_mdtraj(pdb.topology, sites="all")
    t = np.radians(angles)
    x = np.zeros((len(angles), molecule.n_sites, 3))
    c = [k for k, e in enumerate(molecule.elements) if e == "C"]
    x[:, c[0]] = [-0.5, 1.4, 0.0]
    x[:, c[2]] = [1.5, 0.0, 0.0]
    x[:, c[3]] = np.stack([np.full_like(t, 2.0), 1.4 * np.cos(t), 1.4 * np.sin(t)], 1)
    return molecule, x


def test_torsions_are_counted_as_exchanges_between_cores_only() -> None:
    angles = np.array([180, 175, 130, 175, 110, 60, 65, 130, 60, -60, -65, 122, -179, 178.0])
    states = states_of(angles)
    assert list(states[[0, 2, 5, 9, 12]]) == [TRANS, -1, PLUS, MINUS, TRANS]
    molecule, x = butane_at(angles)
    blocks = measure(molecule, [x], 1.0, len(angles))
    assert blocks.exchanges.sum() == 2  # to gauche, over to the other gauche, and back
    assert blocks.gauche.sum() == 6
    assert blocks.histogram.sum() == len(angles)


def test_figures_of_a_two_state_process_are_those_it_was_made_with() -> None:
    rng = np.random.default_rng(0)
    rate, share = 0.02, 0.3  # per ps, of gauche
    trajectories = []
    for _ in range(40):
        state, states = 0, []
        for _ in range(1000):
            leave = rate * (share if state == 0 else 1 - share) / (share * (1 - share))
            state = 1 - state if rng.random() < leave else state
            states.append(state)
        trajectories.append(
            butane_at(np.where(np.array(states) == 1, 65.0, 180.0) + rng.normal(0, 3, 1000))[1]
        )
    molecule = butane_at(np.zeros(1))[0]
    blocks = measure(molecule, trajectories, 1.0, 125.0)
    found = figures(blocks)
    assert found["gauche"][1] < share < found["gauche"][2]
    expected = 2 * rate / 1.0 * 1000  # leaving trans and leaving gauche, each rate of the time
    assert found["exchanges_per_ns"][1] < expected < found["exchanges_per_ns"][2]
    halves = [measure(molecule, trajectories[k::2], 1.0, 125.0) for k in (0, 1)]
    both = compare(*halves)
    assert both["rate_ratio"] == pytest.approx(1.0, abs=0.2)
    assert both["torsion_divergence_bits"] < 3 * both["torsion_divergence_halves_95_bits"]


# --- one's own MD -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Butane as XTC files of 300 ps with 0.2 ps between frames, and their topology."""
    folder = tmp_path_factory.mktemp("own")
    topology = mdtraj.load_topology(str(DATA / "butane" / "topology.pdb"))
    x = read_record(DATA / "butane" / "segment-000.npz").pos_nm
    time = 0.2 * np.arange(len(x))
    files = {"topology": folder / "top.pdb", "run": folder / "run.xtc"}
    mdtraj.Trajectory(x[:1], topology).save_pdb(str(files["topology"]))

    def save(name: str, xyz: Any, times: Any, box: float | None = None) -> None:
        t = mdtraj.Trajectory(xyz, topology, time=times)
        if box is not None:
            t.unitcell_lengths, t.unitcell_angles = np.full((len(t), 3), box), np.full((len(t), 3), 90.0)
        files[name] = folder / f"{name}.xtc"
        t.save_xtc(str(files[name]))

    save("run", x[:1501], time[:1501])
    save("short", x[:100], time[:100])
    save("coarse", x[:1500:5], time[:1500:5])
    save("uneven", x[:900], np.where(np.arange(900) < 500, time[:900], time[:900] + 3.0))
    wrapped = x[:1501] - np.floor(x[:1501] / 2.0) * 2.0  # atom by atom, into a box of 2 nm
    save("wrapped", wrapped, time[:1501])
    save("boxed", wrapped, time[:1501], 2.0)
    return files


def test_own_md_is_read_whole_and_split_without_overlap(own: dict[str, Path]) -> None:
    molecule, runs = read_runs([own["run"]], own["topology"], 1.0)
    assert molecule.formula == "C4H10"
    assert runs[0].interval == pytest.approx(0.2, abs=1e-5)
    training, validation, held_out = split(runs, 1.0, 0.3)
    n = [len(part[0].positions) for part in (training, validation, held_out)]
    assert n[0] == 1051
    assert sum(n) == 1501 - 2 * 5  # a lag time between the parts belongs to none
    many = [replace(runs[0], path=Path(f"run-{k}.xtc")) for k in range(6)]
    names = [{s.path.name for s in part} for part in split(many, 1.0, 0.34)]
    assert [len(part) for part in names] == [4, 1, 1]
    assert not names[0] & names[2]


def test_a_molecule_wrapped_atom_by_atom_is_mended_if_the_box_is_known(own: dict[str, Path]) -> None:
    _, (whole,) = read_runs([own["run"]], own["topology"], 1.0)
    _, (boxed,) = read_runs([own["boxed"]], own["topology"], 1.0)

    def internal(x: Array) -> Array:
        return np.linalg.norm(x[:, 0, None] - x[:, 1:], axis=-1)

    np.testing.assert_allclose(internal(boxed.positions), internal(whole.positions), atol=0.03)
    steps = np.linalg.norm(np.diff(boxed.positions.mean(1), axis=0), axis=1)
    assert steps.max() < 8.0


def test_jumps_of_the_whole_molecule_are_taken_out() -> None:
    x = np.zeros((6, 2, 3), dtype=np.float32)
    x[:, 1, 0] = 1.5
    x[3:, :, 0] += 20.0
    x[:, :, 1] += 0.1 * np.arange(6)[:, None]
    straight, jumps = mended(x)
    assert jumps == 1
    assert np.abs(np.diff(straight.mean(1), axis=0)).max() < 0.11
    np.testing.assert_allclose(straight[:, 1] - straight[:, 0], x[:, 1] - x[:, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("files", "lag", "message"),
    [
        (["short"], 1.0, r"95 pairs 1 ps apart, and at least 500 are needed: run on for 81 ps more"),
        (["run", "coarse"], 1.0, r"coarse.xtc has frames every 1 ps and .*run.xtc every 0.2 ps"),
        (["run"], 0.3, r"do not make a lag of 0.3 ps: write frames every 0.15 ps, or train --from-nothing"),
        (["coarse"], 0.5, r"frames every 1 ps, which do not make a lag of 0.5 ps"),
        (["uneven"], 1.0, r"from time .* to the next frame are 3.2 ps"),
        (["wrapped"], 1.0, r"is broken across a periodic box that the input does not have"),
    ],
)
def test_bad_trajectories_are_told_in_one_line(
    own: dict[str, Path], files: list[str], lag: float, message: str
) -> None:
    with pytest.raises(StructureError, match=message) as caught:
        read_runs([own[name] for name in files], own["topology"], lag)
    assert "\n" not in str(caught.value)


def test_a_topology_of_other_atoms_is_told(own: dict[str, Path]) -> None:
    with pytest.raises(StructureError, match=r"run\.xtc"):
        read_runs([own["run"]], DATA / "pentane.pdb", 1.0)
    with pytest.raises(StructureError, match="give a PDB of them with --topology"):
        read_runs([own["run"]], None, 1.0)


# --- the whole of it --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(small: FamilyRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family of ethane and propane, hardly trained."""
    from training.score_dynamics.family_recipe import main

    folder = tmp_path_factory.mktemp("base") / "base"
    arguments = ["--data", str(DATA / "ethane"), str(DATA / "propane"), "--steps", "30", "--log-every", "15"]
    assert main(small, None, [*arguments, "--out", str(folder)]) == 0
    return folder


def test_a_recipe_ends_with_a_checkpoint_that_says_how_it_was_made(base: Path) -> None:
    section = read_metrics(base)["sections"]["training"]
    assert section["segments"]["validation"] == ["propane/segment-003"]
    assert section["results"][0]["samples_per_step"] == 16
    assert "ethane (C2H6)" in (base / "README.md").read_text()
    assert ScoreDynamics.from_pretrained(base).family is not None


def test_finetuning_is_stopped_and_continued_and_ends_with_a_verdict(
    base: Path, own: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    arguments = [
        str(base), "--trajectory", str(own["run"]), "--topology", str(own["topology"]), "--steps", "20",
        "--batch-size", "16", "--walkers", "2", "--rollout", "50", "--log-every", "10", "--out", str(out),
    ]  # fmt: skip
    assert finetune_dynamics.main([*arguments, "--stop-after", "10"]) == 0
    assert not out.exists()
    assert finetune_dynamics.main(arguments) == 0
    told = capsys.readouterr().out
    assert "run again to continue" in told
    assert any(word in told for word in ("trust", "use with care", "need more data"))
    metrics = read_metrics(out)["sections"]
    assert metrics["training"]["results"][0]["loss_after"] < metrics["training"]["results"][0]["loss_before"]
    assert metrics["evaluation"]["verdict"] in ("trust", "use with care", "need more data")
    config = ScoreDynamics.from_pretrained(out).config
    assert config.family is not None
    assert config.family["molecules"][-1] == "run (C4H10)"
    assert "C(CCHH)" in config.family["environments"]


def test_a_run_that_is_killed_while_it_reports_is_continued_and_another_one_replaces_it(
    base: Path, own: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "mine"
    arguments = [
        str(base), "--trajectory", str(own["run"]), "--topology", str(own["topology"]), "--steps", "4",
        "--batch-size", "16", "--walkers", "2", "--rollout", "50", "--log-every", "2", "--out", str(out),
    ]  # fmt: skip
    report = finetune_dynamics._report

    def killed(*given: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune_dynamics, "_report", killed)
    assert finetune_dynamics.main(arguments) == 130
    assert not out.exists()
    monkeypatch.setattr(finetune_dynamics, "_report", report)
    assert finetune_dynamics.main(arguments) == 0
    assert "evaluation" in read_metrics(out)["sections"]
    assert not (tmp_path / "mine-training").exists()
    first = (out / "model.safetensors").read_bytes()
    for report_file in ("evaluation.json", "evaluation.png"):
        (out / report_file).write_text("of the old one")
    assert finetune_dynamics.main([*arguments, "--seed", "1"]) == 0  # `zoo finetune` asks for --overwrite
    assert (out / "model.safetensors").read_bytes() != first
    assert not (out / "evaluation.json").exists()  # this one has none: the molecule falls apart
    (out / "notes.txt").write_text("mine")
    assert finetune_dynamics.main(arguments) == 1
    assert (out / "notes.txt").exists()


def test_weights_that_another_run_kept_are_not_taken(packed_path: Path, tmp_path: Path) -> None:
    packed = read_packed(packed_path)
    loop = LoopConfig(n_steps=2, learning_rate=1e-3, warmup=1, log_every=1)
    _, expected = fit(packed, tmp_path / "alone", replace(loop, seed=1), keep_best=True)
    fit(packed, tmp_path / "both", loop, keep_best=True)
    for name in ("state.safetensors", "log.jsonl"):
        (tmp_path / "both" / name).unlink()  # killed before its state was saved for the first time
    _, found = fit(packed, tmp_path / "both", replace(loop, seed=1), keep_best=True)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--structure", "a.cif"], "learns from --trajectory, not from --structure"),
        (["--trajectory", "no.xtc"], "no.xtc: there is no such file"),
        (["--trajectory", "no*.xtc"], "no*.xtc: there is no such file"),
        ([], "nothing to learn from: give MD of your molecule"),
        (["--trajectory", "a.xtc", "--rehearsal", "0"], "has no --rehearsal"),
    ],
)
def test_finetune_tells_wrong_input_in_one_line(
    base: Path, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["finetune", str(base), *arguments, "-o", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_patterns_are_expanded_in_order(tmp_path: Path) -> None:
    for name in ("run2.xtc", "run1.xtc", "other.xtc"):
        (tmp_path / name).touch()
    assert [p.name for p in expanded([tmp_path / "run*.xtc"])] == ["run1.xtc", "run2.xtc"]
    assert expanded([tmp_path / "none*.xtc"]) == [tmp_path / "none*.xtc"]


def test_another_molecule_or_another_lag_is_refused(
    base: Path, own: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        "--trajectory",
        str(own["run"]),
        "--topology",
        str(own["topology"]),
        "--out",
        str(tmp_path / "o"),
    ]
    assert finetune_dynamics.main(["sd-alanine-dipeptide-cg", *given]) == 1
    error = capsys.readouterr().err
    assert "run.xtc does not hold the molecule" in error or "C6H12N2O2" in error
    assert error.count("\n") == 1
    assert finetune_dynamics.main([str(base), *given, "--lag", "2.0"]) == 1
    assert "train --from-nothing" in capsys.readouterr().err
    assert finetune_dynamics.main([str(base), *given, "--temperature", "-5"]) == 1
    assert "a positive number of K" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("nothing", [False, True])
def test_a_propagator_of_one_molecule_learns_how_it_moves_elsewhere(
    nothing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alanine dipeptide in its own MD, by another name: stopped, continued, and still of that molecule."""
    out = tmp_path / "mine"
    md = DATA.parent / "alanine-dipeptide" / "segment-020.npz"
    arguments = [
        "sd-alanine-dipeptide-cg", "--trajectory", str(md), "--steps", "20", "--batch-size", "32",
        "--walkers", "2", "--rollout", "50", "--log-every", "10", "--temperature", "310", "--out", str(out),
    ]  # fmt: skip
    monkeypatch.setattr(learners, "calibrated", lambda config, *data: {**config, "noise_scale": 0.987})
    if nothing:
        arguments += ["--from-nothing", "--lag", "2"]
    assert finetune_dynamics.main([*arguments, "--stop-after", "10"]) == 0
    assert not out.exists()
    assert finetune_dynamics.main(arguments) == 0
    old, new = ScoreDynamics.from_pretrained("sd-alanine-dipeptide-cg"), ScoreDynamics.from_pretrained(out)
    assert new.molecule == old.molecule and new.config.noise_scale == 0.987
    labels = {"n_labels"} if nothing else set()  # sides of a barrier are not kept by what begins from nothing
    kept = {key: value for key, value in old.config.architecture.items() if key not in labels}
    assert new.config.architecture == kept
    assert (new.config.temperature, new.lag_time) == (310.0, 2.0 if nothing else 1.0)
    result = read_metrics(out)["sections"]["training"]["results"][0]
    assert result["samples_per_step"] == 32
    if nothing:
        assert result["loss_before"] is None
        assert new.config.sigma_data > old.config.sigma_data  # it moves farther in 2 ps
    else:
        assert new.config.sigma_data == old.config.sigma_data
        assert result["loss_before"] < 0.5  # and of random weights above 1
        assert result["loss_after"] == pytest.approx(result["loss_before"], rel=0.05)
        assert 0 < float(new.denoiser.reference_distance) < 10  # measured anew
    assert "at 310 K" in (out / "README.md").read_text()


def test_noise_is_fitted_for_short_steps(tmp_path: Path) -> None:
    """Those of 10 ps often go to another basin."""
    short, long = (ScoreDynamics.from_pretrained(f"sd-alanine-dipeptide{which}") for which in ("", "-10ps"))
    for old, lag, nothing, fits in (
        (short, 1.0, False, True),
        (long, 10.0, False, False),
        (long, 1.0, True, True),
        (short, 10.0, True, False),
    ):
        teacher = learner(old, Request("own", lag, 300.0, None, nothing), tmp_path)
        assert isinstance(teacher, learners.MoleculeLearner) and teacher.fits_noise == fits


# --- MD for those who have none -----------------------------------------------------------------------


def test_md_by_an_ase_calculator_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EMT knows C and H; it is no force field for chemistry, and good enough for this."""
    monkeypatch.setattr("training.own_simulation._EQUILIBRATION", 0.05)
    start = tmp_path / "methane.xyz"
    start.write_text(
        "5\n\nC 0 0 0\nH 0.63 0.63 0.63\nH -0.63 -0.63 0.63\nH -0.63 0.63 -0.63\nH 0.63 -0.63 -0.63\n"
    )
    emt = "ase.calculators.emt:EMT"
    path = simulate(start, tmp_path / "md", 0.4, [], emt, None)
    first = read_record(path).pos_nm
    simulate(start, tmp_path / "md", 0.8, [], emt, None)
    longer = read_record(path).pos_nm
    assert (len(first), len(longer)) == (3, 5)
    np.testing.assert_array_equal(longer[:3], first)
    whole = read_record(simulate(start, tmp_path / "whole", 0.8, [], emt, None)).pos_nm
    assert np.abs(whole - longer).max() < 1e-3  # nm; the state is kept as text
    assert reference_molecule(path).formula == "CH4"
    assert frame_interval(path) == pytest.approx(0.2)


def test_md_of_another_kind_is_not_continued_and_too_short_a_one_not_begun(tmp_path: Path) -> None:
    start = tmp_path / "methane.xyz"
    start.write_text(
        "5\n\nC 0 0 0\nH 0.63 0.63 0.63\nH -0.63 -0.63 0.63\nH -0.63 0.63 -0.63\nH 0.63 -0.63 -0.63\n"
    )
    emt = "ase.calculators.emt:EMT"
    simulate(start, tmp_path / "md", 0.2, [], emt, None)
    for other, temperature, what in (
        ("ase.calculators.lj:LennardJones", 300.0, "calculator"),
        (emt, 350.0, "temp"),
    ):
        with pytest.raises(ZooError, match=f"made with another {what}"):
            simulate(start, tmp_path / "md", 0.4, [], other, None, temperature=temperature)
    with pytest.raises(ZooError, match="MD with OpenMM is at 300 K here, not 350"):
        simulate(start, tmp_path / "new", 0.4, [], None, None, temperature=350.0)
    with pytest.raises(ZooError, match=r"takes 100\.8 ps at least"):
        check_length(100.0, 1.0)
    with pytest.raises(ZooError, match=r"do not make a lag of 0\.3 ps"):
        check_length(1000.0, 0.3)
    check_length(101.0, 1.0)


@pytest.mark.slow
def test_md_by_a_mace_model_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    """A MACE of random weights, near zero: the molecule lives on its own repulsion for a few steps."""
    script = f"""
import os, sys
from pathlib import Path
import numpy as np, torch
from zoo.mace_import import import_mace
before = dict(os.environ)
modules = import_mace("mace.modules")
from e3nn import o3
torch.manual_seed(0)
model = modules.ScaleShiftMACE(
    r_max=3.0, num_bessel=4, num_polynomial_cutoff=5, max_ell=1,
    interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
    interaction_cls_first=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
    num_interactions=1, num_elements=2, hidden_irreps=o3.Irreps("4x0e"), MLP_irreps=o3.Irreps("4x0e"),
    gate=torch.nn.functional.silu, atomic_energies=np.zeros(2), avg_num_neighbors=4.0, atomic_numbers=[1, 6],
    correlation=1, atomic_inter_scale=1e-3, atomic_inter_shift=0.0,
)
folder = Path({str(tmp_path)!r})
torch.save(model, folder / "tiny.model")
from training import own_simulation
from training.reference_md.segments import read_record
own_simulation._EQUILIBRATION = 0.01
path = own_simulation.simulate(folder / "methane.xyz", folder / "md", 0.2, [], "mace", folder / "tiny.model")
assert read_record(path).pos_nm.shape == (2, 5, 3)
assert dict(os.environ) == before, "the environment was changed"
assert torch.get_default_dtype() == torch.float32
class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))
torch.save(Evil(), folder / "evil.pt")
try:
    torch.load(folder / "evil.pt")
except Exception as error:
    assert "eights" in str(error), error
else:
    raise SystemExit("a pickle was opened")
"""
    pytest.importorskip("matscipy", reason="MACE is not installed")
    (tmp_path / "methane.xyz").write_text(
        "5\n\nC 0 0 0\nH 0.63 0.63 0.63\nH -0.63 -0.63 0.63\nH -0.63 0.63 -0.63\nH 0.63 -0.63 -0.63\n"
    )
    root = str(Path(__file__).resolve().parent.parent)
    # what torch's compiler left behind where other tests imported it
    clean = {key: value for key, value in os.environ.items() if not key.startswith("TORCH")}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=root, env=clean
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "unpickled" not in done.stdout


@pytest.mark.parametrize(
    ("spec", "model", "message"),
    [
        ("mace", None, "needs the file of a model"),
        ("mace", "no.model", "there is no such file"),
        ("nowhere:Thing", None, "give mace, or package.module:Class"),
        ("ase.calculators.emt", None, "give mace, or package.module:Class"),
    ],
)
def test_calculators_that_are_not_there_are_told(spec: str, model: str | None, message: str) -> None:
    with pytest.raises(ZooError, match=message):
        calculator(spec, None if model is None else Path(model))


def test_a_calculator_that_cannot_do_the_molecule_is_told(tmp_path: Path) -> None:
    start = tmp_path / "silane.xyz"
    start.write_text(
        "5\n\nSi 0 0 0\nH 0.85 0.85 0.85\nH -0.85 -0.85 0.85\nH -0.85 0.85 -0.85\nH 0.85 -0.85 -0.85\n"
    )
    with pytest.raises(StructureError, match="EMT cannot do H4Si"):
        simulate(start, tmp_path / "md", 0.4, [], "ase.calculators.emt:EMT", None)


def test_a_molecule_without_parameters_is_told(tmp_path: Path) -> None:
    pytest.importorskip("openmm")
    start = tmp_path / "methane.xyz"
    start.write_text(
        "5\n\nC 0 0 0\nH 0.63 0.63 0.63\nH -0.63 -0.63 0.63\nH -0.63 0.63 -0.63\nH 0.63 -0.63 -0.63\n"
    )
    with pytest.raises(StructureError, match="has no parameters for this molecule: give OpenMM's XML"):
        simulate(start, tmp_path / "md", 1.0, [], None, None)
    with pytest.raises(StructureError, match=r"no\.xml"):
        simulate(start, tmp_path / "md", 1.0, ["no.xml"], None, None)
    with pytest.raises(ZooError, match=r"at least 0\.2 ps"):
        simulate(start, tmp_path / "md", 0.0, [], None, None)


# --- what the README says -----------------------------------------------------------------------------


def test_the_table_of_fine_tuning_in_the_readme_is_what_was_measured() -> None:
    root = Path(__file__).resolve().parent.parent
    measured = json.loads((root / "training" / "benchmarks" / "finetuning_dynamics.json").read_text())
    readme = (root / "README.md").read_text(encoding="utf-8")
    for row in measured["results"]:
        cells = [
            row["model"],
            f"{row['held_out_loss']:.4f}",
            f"{row['gauche'][0]:.3f} ({row['gauche'][1]:.3f} to {row['gauche'][2]:.3f})",
            f"{row['exchanges'][0]:.1f} ({row['exchanges'][1]:.1f} to {row['exchanges'][2]:.1f})",
            f"{row['redrawn_fraction'] * 100:.2f} %",
            "–" if row["seconds"] is None else f"{row['seconds']:.0f} s",
        ]
        assert f"| {' | '.join(cells)} |" in readme
    assert f"{measured['peak_memory_mib']} MiB" in readme
    losses = [row["held_out_loss"] for row in measured["results"]]
    assert losses[1] < losses[2], "fine-tuning is no better than training on its own MD alone"


def test_the_benchmark_of_alkanes_uses_only_what_was_not_trained_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = ScoreDynamics.from_pretrained("sd-alkanes")
    segments = model.metrics["sections"]["training"]["segments"]
    trained = {*segments["training"], *segments["validation"]}
    assert not any(name.startswith(("butane", "octane")) for name in trained)
    assert {s.name for s in unseen(DATA / "hexane", trained)} >= {"segment-001"}
    assert not {s.name for s in unseen(DATA / "hexane", trained)} & {
        "segment-000",
        "segment-002",
        "segment-003",
    }
    row = evaluate_molecule(model, DATA / "butane", trained, 2, 230, 0, 1)
    assert row["trained_on"] is False
    assert row["walkers_stopped"] == 0
    lines = flattened(row)
    assert [line["figure"] for line in lines][:2] == ["gauche, all torsions", "exchanges per torsion and ns"]
    assert 0.0 < lines[0]["md"] < 0.6
    peptide = bundled_folder(find("sd-alanine-dipeptide-cg"))
    assert alkanes_benchmark([str(peptide), "--data", str(DATA / "butane")]) == 1
    assert "is of one molecule" in capsys.readouterr().err
