"""Training of propagators: the data, the loss, exact resume, many processes, and nothing else to install."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from functools import partial
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch

from tests.small_recipe import LOOP, SMALL, start
from training import curve
from training.errors import TrainingError
from training.loop import LOG, LoopConfig
from training.reference_md.segments import Record, Segment, write_record
from training.score_dynamics import recipe as recipes
from training.score_dynamics.alanine_dipeptide import molecule
from training.score_dynamics.fit import fit
from training.score_dynamics.packed import Packed, read_packed, write_packed
from training.score_dynamics.transitions import (
    denoising_loss,
    farthest_points,
    local_displacements,
    make_batches,
    rigid_motion,
    transitions,
)
from zoo.errors import ZooError
from zoo.molecules.molecule import Molecule
from zoo.molecules.rigid import centred, rotation_matrix
from zoo.score_dynamics import ScoreDynamics

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def md(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three segments of 6 ps: the molecule, shaken and tumbling; the physics does not matter here."""
    folder = tmp_path_factory.mktemp("md")
    for number in range(3):
        rng = np.random.default_rng(number)
        frames = []
        for k in range(31):
            turn = rotation_matrix(torch.tensor([[0.1 * k, 0.05 * k, 0.0]]).double())[0].numpy()
            frames.append((start() + 0.008 * rng.standard_normal((22, 3))) @ turn.T + 0.01 * k)
        write_record(
            folder / f"segment-{number:03d}.npz",
            Record(np.array(frames, dtype=np.float32), 0.2, (-80.0, 80.0), 2.1, 800),
        )
    return folder


@pytest.fixture(scope="module")
def packed(md: Path, tmp_path_factory: pytest.TempPathFactory) -> Packed:
    path = tmp_path_factory.mktemp("packed") / "data.safetensors"
    write_packed(path, recipes.pack(SMALL, [md], [], ["segment-001"]))
    return read_packed(path)


def segment(positions: np.ndarray, dt: float = 0.2, name: str = "a") -> Segment:
    return Segment(name, positions.astype(np.float32), dt, (), Path(name))


def numbered(n: int, first: float) -> np.ndarray:
    """Frames (n, 2, 3) that say their own number in the distance of their two sites."""
    x = np.zeros((n, 2, 3))
    x[:, 1, 0] = first + np.arange(n)
    return x


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


# ---------------------------------------------------------------------------------------- transitions


def test_pairs_are_one_lag_apart_and_never_cross_segments() -> None:
    data = transitions([segment(numbered(8, 0.0)), segment(numbered(3, 50.0)), segment(numbered(7, 100.0))],
                       [0, 1], 1.0)  # fmt: skip
    before, after = data.pairs()
    length = [(x[:, 1] - x[:, 0]).norm(dim=-1) for x in (before, after)]
    assert data.lag == 5 and len(data) == (8 - 5) + 0 + (7 - 5)
    assert torch.allclose(length[1] - length[0], torch.tensor(5.0))
    assert length[0].round().tolist() == [0, 1, 2, 100, 101]


def test_translation_is_kept_between_the_frames_of_a_pair() -> None:
    x = numbered(6, 1.0) + np.arange(6)[:, None, None] * np.array([0.5, 0.0, 0.0]) + 900.0
    before, after = transitions([segment(x)], [0, 1], 1.0).pairs()
    assert (after.mean(1) - before.mean(1))[0, 1:].abs().max() < 1e-3
    assert (after[:, 0] - before[:, 0])[0, 0] == pytest.approx(2.5, abs=1e-3)


def test_pairs_go_both_ways_where_they_may_and_only_there() -> None:
    data = transitions([segment(numbered(8, 0.0)), segment(numbered(8, 100.0))], [0, 1], 1.0)
    first = data.origins < 8
    forward = make_batches(data, 400, 0.0)
    mixed = make_batches(replace(data, both_ways=first), 400, 0.0)

    def steps(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        length = [(batch[key][:, 1] - batch[key][:, 0]).norm(dim=-1) for key in ("x", "x_next")]
        return torch.minimum(*length) < 50, (length[1] - length[0]).round()

    for draw, share in ((forward, 0.0), (mixed, 0.5)):
        in_first, step = steps(draw(np.random.default_rng(0)))
        assert set(step.abs().tolist()) == {5.0}
        assert bool((step[~in_first] > 0).all()) and 150 < int(in_first.sum()) < 250
        assert float((step[in_first] < 0).double().mean()) == pytest.approx(share, abs=0.1)


@pytest.mark.parametrize(
    ("segments", "lag", "message"),
    [
        ([segment(numbered(9, 0.0))], 0.5, "do not make a lag of 0.5"),
        ([segment(numbered(9, 0.0))], 0.1, "do not make a lag of 0.1"),
        ([segment(numbered(5, 0.0))], 1.0, "shorter than the lag"),
        ([], 1.0, "no pairs"),
        ([segment(numbered(9, 0.0)), segment(numbered(9, 0.0), 0.5)], 1.0, "different intervals"),
    ],
)
def test_impossible_pairs_are_refused(segments: list[Segment], lag: float, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        transitions(segments, [0, 1], lag)


def test_a_known_rigid_motion_is_found_and_leaves_no_displacement(packed: Packed) -> None:
    model = packed.build()
    before = packed.training.pairs(slice(0, 5))[0].double()
    axes = model.frames(centred(before))
    local = torch.tensor([0.1, -0.2, 0.3, 1.0, 2.0, -0.5]).double()
    omega = torch.linalg.det(axes)[:, None] * (axes @ local[:3])
    after = centred(before) @ rotation_matrix(omega).mT + before.mean(1, keepdim=True)
    after = after + (axes @ local[3:])[:, None]
    assert torch.allclose(rigid_motion(model, before, after), local.expand(5, 6), atol=1e-9)
    assert local_displacements(model, before, after)[1].abs().max() < 1e-9


def test_the_loss_does_not_see_how_the_molecule_lies(packed: Packed) -> None:
    batch = make_batches(packed.training, 16, 0.01)(np.random.default_rng(0))
    model = packed.build()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05)
    turn = rotation_matrix(torch.tensor([[0.7, -1.1, 0.4]]))[0]
    turned = {k: v @ turn.T if k in {"x", "x_next"} else v for k, v in batch.items()}
    a, b = (denoising_loss(model, x, -1.8, 1.3).item() for x in (batch, turned))
    assert a == pytest.approx(b, rel=1e-4) and a > 0


def test_farthest_points_are_spread() -> None:
    line = np.linspace(0.0, 1.0, 101)[:, None]
    assert sorted(farthest_points(line, 3).tolist()) == [0, 50, 100]


# -------------------------------------------------------------------------------------------- the fit


def test_packed_data_come_back_as_they_were(md: Path, packed: Packed, tmp_path: Path) -> None:
    fresh = recipes.pack(SMALL, [md], [], ["segment-001"])
    assert torch.equal(fresh.training.frames, packed.training.frames)
    assert torch.equal(fresh.validation.origins, packed.validation.origins)
    assert packed.segments == {
        "training": ["segment-000", "segment-002"],
        "validation": ["segment-001"],
        "held_out": [],
    }
    assert packed.config == json.loads(json.dumps(fresh.config)) and len(packed.training) == 2 * 26
    assert packed.training.both_ways is None  # what leaves a basin and does not come back is no equilibrium
    write_packed(tmp_path / "again", fresh)
    assert read_packed(tmp_path / "again").sha256 == packed.sha256
    (tmp_path / "bad").write_bytes(b"no tensors")
    for name in ("bad", "absent"):
        with pytest.raises(ZooError, match="cannot be read as packed training data"):
            read_packed(tmp_path / name)


def test_what_the_recipe_holds_out_need_not_be_there(
    md: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = replace(SMALL, hold_out=("segment-002", "segment-090"))
    packed = recipes.pack(own, [md], list(own.hold_out), ["segment-001"])
    assert (packed.segments["training"], packed.segments["held_out"]) == (["segment-000"], ["segment-002"])
    for hold_out, validation in ((["segment-091"], ["segment-001"]), ([], ["segment-090"])):
        with pytest.raises(ZooError, match=r"^no segment segment-09[01];"):
            recipes.pack(own, [md], hold_out, validation)
    assert recipes.main(own, None, ["--data", str(md), "--out", str(tmp_path / "out"), "--pack-only"]) == 0
    assert "held out by the recipe, but not there: segment-090\n" in capsys.readouterr().out


def test_bonds_that_the_md_held_fixed_are_rigid(tmp_path: Path) -> None:
    everything = replace(SMALL, molecule=partial(molecule, "all"), architecture={"n_sites": 22, "width": 8})
    mol = everything.molecule()
    held = [k for k, pair in enumerate(mol.site_bonds) if {mol.site_elements[i] for i in pair} > {"H"}][:5]
    rng = np.random.default_rng(0)
    for number in range(2):
        x = start() + 0.008 * rng.standard_normal((31, 22, 3))
        for a, b in (mol.site_bonds[k] for k in held):
            free, fixed = (a, b) if mol.site_elements[a] == "H" else (b, a)
            bond = x[:, free] - x[:, fixed]
            x[:, free] = x[:, fixed] + 0.109 * bond / np.linalg.norm(bond, axis=-1, keepdims=True)
        write_record(tmp_path / f"segment-{number:03d}.npz", Record(x.astype(np.float32), 0.2, (), 2.1, 800))
    packed = recipes.pack(everything, [tmp_path], [], ["segment-001"])
    assert list(packed.config["rigid_bonds"]) == held
    assert [packed.config["bond_lengths"][k] for k in held] == pytest.approx([1.09] * 5, abs=1e-4)


def test_held_out_segments_are_nowhere_in_the_packed_data(md: Path) -> None:
    data = recipes.pack(SMALL, [md], ["segment-002"], ["segment-001"])
    assert data.segments["training"] == ["segment-000"] and data.segments["held_out"] == ["segment-002"]
    assert len(data.training.frames) == len(data.validation.frames) == 31


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_fit_equals_an_uninterrupted_one(packed: Packed, tmp_path: Path, precision: str) -> None:
    loop = replace(LOOP, precision=precision)
    _, whole = fit(packed, tmp_path / "whole", loop)
    for stop in (1, 4):
        fit(packed, tmp_path / "pieces", loop, stop_after=stop)
    _, pieces = fit(packed, tmp_path / "pieces", loop, workers=2)  # nor does the number of threads matter
    assert same(whole, pieces)
    rows = [json.loads(line) for line in (tmp_path / "whole" / LOG).read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert all(row["samples_per_second"] > 0 and row["validation"] > 0 for row in rows)


def test_bf16_computes_nearly_the_same_and_keeps_parameters_in_fp32(packed: Packed, tmp_path: Path) -> None:
    _, single = fit(packed, tmp_path / "a", LOOP)
    _, half = fit(packed, tmp_path / "b", replace(LOOP, precision="bf16"))
    assert not same(single, half)
    for name, value in half.items():
        assert value.dtype == torch.float32
        assert (value - single[name]).abs().max() < 0.02


def test_a_state_of_other_data_is_refused(packed: Packed, tmp_path: Path) -> None:
    fit(packed, tmp_path, LOOP, stop_after=1)
    with pytest.raises(TrainingError, match=r"other settings \(data\)"):
        fit(replace(packed, sha256="0" * 64), tmp_path, LOOP)
    with pytest.raises(TrainingError, match=r"other settings \(precision\)"):
        fit(packed, tmp_path, replace(LOOP, precision="bf16"))
    with pytest.raises(TrainingError, match="precision 'fp8' is none of"):
        fit(packed, tmp_path, replace(LOOP, precision="fp8"))


def test_the_fit_leaves_the_global_generator_alone(packed: Packed, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(packed, tmp_path, LOOP, stop_after=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.slow
def test_the_loss_falls(packed: Packed, tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    loop = LoopConfig(n_steps=400, warmup=10, log_every=50, learning_rate=1e-2)
    fit(packed, tmp_path, loop, report=rows.append)
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]


@pytest.mark.slow
def test_two_processes_equal_one(packed: Packed, md: Path, tmp_path: Path) -> None:
    """Gradients are averaged over the processes, so the result is the same but for rounding."""
    path = tmp_path / "data.safetensors"
    write_packed(path, packed)
    command = [str(path), "--steps", "6", "--log-every", "2", "--learning-rate", "1e-3", "--threads", "1"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for n in (1, 2):
        run = subprocess.run(
            [sys.executable, *(launch if n == 2 else ()), "-m", "training.score_dynamics.fit", command[0],
             str(tmp_path / f"state-{n}"), *command[1:]],
            cwd=ROOT, capture_output=True, text=True, timeout=300,
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert f"{n} x cpu" in run.stdout
        assert run.stdout.count("step 6/6") == 1  # one process reports
    from safetensors.torch import load_file

    one, two = (load_file(tmp_path / f"state-{n}" / "state.safetensors") for n in (1, 2))
    assert max(float((one[k] - two[k]).abs().max()) for k in one if k.startswith("model.")) < 1e-4
    losses = [[json.loads(x)["loss"] for x in (tmp_path / f"state-{n}" / LOG).read_text().splitlines()]
              for n in (1, 2)]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_loop_needs_torch_numpy_safetensors_and_accelerate_only(packed: Packed, tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys

        absent = "ase mdtraj networkx scipy vesin rich typer openmm ovito matplotlib tables"
        sys.modules.update(dict.fromkeys(absent.split()))  # None: importing it fails

        import tempfile
        from pathlib import Path

        import accelerate
        from training.loop import LoopConfig
        from training.score_dynamics.fit import fit, printed
        from training.score_dynamics.packed import read_packed

        data = read_packed(Path(sys.argv[1]))
        loop = LoopConfig(n_steps=2, warmup=1, log_every=1)
        with tempfile.TemporaryDirectory() as folder:
            fit(data, Path(folder), loop, report=printed(Path(folder)))
        """
    )
    data = tmp_path / "data.safetensors"
    write_packed(data, packed)
    run = subprocess.run(
        [sys.executable, "-c", script, str(data)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert "step 2/2" in run.stdout


# ----------------------------------------------------------------------------------------- the recipe


@pytest.mark.slow
def test_a_recipe_ends_in_a_checkpoint_that_loads(
    md: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--data", str(md), "--out", str(out), "--steps", "4", "--log-every", "2", "--threads", "1"]
    assert recipes.main(SMALL, None, [*options, "--stop-after", "2"]) == 0
    assert "run again to continue" in capsys.readouterr().out and not out.exists()
    assert recipes.main(SMALL, None, options) == 0
    assert "samples/s" in capsys.readouterr().out
    model = ScoreDynamics.from_pretrained(out)
    assert model.n_evaluations <= 20 and model.lag_time == 1.0
    training = model.metrics["sections"]["training"]
    assert training["segments"]["validation"] == ["segment-001"]
    assert training["results"][0]["n_steps"] == 4
    moved = model.step(start()[list(model.molecule.sites)] * 10, np.random.default_rng(0))
    assert np.isfinite(moved).all()
    # The translation put in by hand, 0.1 Å per frame and direction, is what is fitted.
    rms = (model.denoiser.rigid_factor @ model.denoiser.rigid_factor.T).diagonal()[3:].sum().sqrt()
    assert float(rms) == pytest.approx(0.5 * 3**0.5, rel=0.05)
    picture = (tmp_path / "out-training" / "curve.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sites", "n_sites"), [("all", 22), (("ALA2-N", "ALA2-CA", "ALA2-C", "ALA2-CB", "ALA2-O"), 5)]
)
def test_every_mapping_takes_the_same_path(
    md: Path, tmp_path: Path, sites: str | tuple[str, ...], n_sites: int
) -> None:
    topology = mdtraj.load_pdb(str(ROOT / "training" / "reference_md" / "ace-ala-nme.pdb")).topology
    molecule = Molecule.from_mdtraj(topology, sites=sites)
    assert molecule.n_sites == n_sites
    architecture = {**SMALL.architecture, "n_sites": molecule.n_sites}
    mapped = replace(SMALL, molecule=lambda: molecule, architecture=architecture)
    options = ["--data", str(md), "--out", str(tmp_path / "out"), "--steps", "2", "--threads", "1"]
    assert recipes.main(mapped, None, options) == 0
    model = ScoreDynamics.from_pretrained(tmp_path / "out")
    x = start()[list(molecule.sites)] * 10
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    noise = model.noise(0, [0], 1, 0)
    moved = [model.propose(y[None], [0], noise)[0] for y in (x, x @ q.T)]
    np.testing.assert_allclose(moved[1], moved[0] @ q.T, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hold-out", "segment-009"], "no segment segment-009"),
        (["--hold-out", "flat-01*"], "no segment flat-01*"),
        (["--hold-out", "segment-000", "segment-002"], "none is left to train on"),
        (["--hold-out", "segment-00[02]"], "none is left to train on"),
        (["--hold-out", "segment-001"], "segment-001 is asked for both as held out and for validation"),
        (["--steps", "3", "--start-from", "absent.safetensors"], "absent.safetensors"),
        (["--steps", "3", "--seed", "-1"], "the seed is -1: it must be at least 0"),
        (["--steps", "3", "--learning-rate", "-1"], "the learning rate is -1"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(
    md: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert recipes.main(SMALL, None, ["--data", str(md), "--out", str(tmp_path / "out"), *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_weights_to_start_from_are_used(packed: Packed, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model, _ = fit(packed, tmp_path / "first", LOOP)
    weights = tmp_path / "model.safetensors"
    save_file(model.state_dict(), weights)
    rows: list[dict[str, float]] = []
    slow = replace(LOOP, learning_rate=1e-9, n_steps=2)
    again, _ = fit(packed, tmp_path / "second", slow, start_from=weights, report=rows.append)
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_curve_without_a_log_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert curve.main([str(tmp_path)]) == 1
    assert "has no log.jsonl" in capsys.readouterr().err
    (tmp_path / LOG).write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    assert curve.main([str(tmp_path)]) == 0
    assert (tmp_path / curve.CURVE).read_bytes().startswith(b"\x89PNG")


# --- what a recipe says of its past -----------------------------------------------------------------


def test_names_of_shots_and_blocks_are_counted_by_series() -> None:
    names = ["flat-00002", "segment-001", "shot-00000", "flat-00010", "shot-00011", "shot-01203"]
    assert recipes.shortened(names) == [
        "segment-001",
        "shot-000??: 2 shots",
        "shot-012??: 1 shots",
        "flat-00???: 2 blocks",
    ]


def test_all_pieces_of_a_block_go_where_its_name_goes(md: Path) -> None:
    with np.load(md / "segment-000.npz") as data:
        x = data["pos_nm"][:12]
    for walker in (0, 1):
        block = Record(x, 0.2, (0.0, 0.0), 2.1, 800, {"pieces": 4})
        write_record(md / f"flat-{walker:02d}000.npz", block)
    parts = recipes.split([md], ["flat-01*", "segment-000"], ["segment-001"])
    assert [s.name for s in parts["held_out"]] == ["flat-01000"] * 4 + ["segment-000"]
    assert [s.name for s in parts["training"]] == ["flat-00000"] * 4 + ["segment-002"]


def test_which_pairs_go_both_ways_is_packed(packed: Packed, tmp_path: Path) -> None:
    ways = torch.arange(len(packed.training)) % 3 == 0
    write_packed(tmp_path / "ways", replace(packed, training=replace(packed.training, both_ways=ways)))
    again = read_packed(tmp_path / "ways")
    assert again.training.both_ways is not None and torch.equal(again.training.both_ways, ways)
    assert again.validation.both_ways is None


def test_trainings_that_led_to_a_checkpoint_are_told_in_order(tmp_path: Path) -> None:
    assert recipes.earlier(None) == []
    first = {"command": "first", "results": [{"minutes": 1.0}]}
    second = {"command": "second", "results": [{"minutes": 2.0}], "earlier": [{"command": "first"}]}
    for section, commands in ((first, ["first"]), (second, ["first", "second"])):
        (tmp_path / "metrics.json").write_text(json.dumps({"sections": {"training": section}}))
        assert [each["command"] for each in recipes.earlier(tmp_path / "model.safetensors")] == commands


def test_weights_without_a_past_are_not_started_from(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="how it was trained"):
        recipes.earlier(tmp_path / "model.safetensors")
