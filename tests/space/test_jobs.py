"""The jobs themselves, in this process: what comes out, and what is handed out."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.constraints import FixAtoms
from ase.io import read, write

from training.polymorphs import orthogonal
from zoo.denoiser import Denoiser
from zoo.errors import StructureError
from zoo.registry import records
from zoo.verdict_names import COLORS
from zoo_space import charts, pieces
from zoo_space.errors import VisitorError
from zoo_space.examples import CRYSTALS, MOLECULES, path_of
from zoo_space.jobs import denoise, rollout
from zoo_space.limits import Limits
from zoo_space.messages import AUTOMATIC, Denoised, DenoiseRequest, Progress, RolloutRequest
from zoo_space.reference import BINS, reference_for
from zoo_space.scene import Panel, Scene

LIMITS = Limits()


def run_denoise(
    path: Path, tmp_path: Path, limits: Limits = LIMITS, **changes: Any
) -> tuple[Any, Path, list]:
    told: list[Any] = []
    (tmp_path / "job").mkdir(exist_ok=True)
    (tmp_path / "out").mkdir(exist_ok=True)
    options = {"checkpoint": "denoiser-elements", "steps": 10, "frame": 1, "species": ""} | changes
    request = DenoiseRequest(path=path, out=tmp_path / "out", limits=limits, **options)
    picture = denoise.run(request, tmp_path / "job", told.append)
    (result,) = (each for each in told if isinstance(each, Denoised))
    return result, picture, told


def run_rollout(path: Path, tmp_path: Path, **changes: Any) -> tuple[Any, list[Any]]:
    told: list[Any] = []
    (tmp_path / "job").mkdir()
    (tmp_path / "out").mkdir()
    options = {"checkpoint": AUTOMATIC, "steps": 20, "walkers": 3, "seed": 1} | changes
    request = RolloutRequest(path=path, out=tmp_path / "out", limits=Limits(shown_frames=10), **options)
    return rollout.run(request, tmp_path / "job", told.append), told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "structure", "before", "after"),
    [
        ("aluminium", "fcc", (0.3, 0.7), (1.0, 1.0)),
        ("ice", "hexagonal diamond", (0.9, 0.99), (1.0, 1.0)),
        ("grain-boundary", "fcc", (0.4, 0.6), (0.7, 0.85)),
        ("solid-liquid", "fcc", (0.15, 0.35), (0.4, 0.6)),
    ],
)
def test_examples_show_what_they_are_there_for(
    key: str, structure: str, before: tuple[float, float], after: tuple[float, float], tmp_path: Path
) -> None:
    result, picture, told = run_denoise(path_of(key, CRYSTALS), tmp_path)
    summary = json.loads(json.dumps(result.summary))  # plain JSON
    assert before[0] <= summary["fractions_before"][structure] <= before[1]
    assert after[0] <= summary["fractions_after"][structure] <= after[1]
    assert summary["converged"]
    assert len(result.curve) == summary["steps"] == len(result.scene.frame_names) - 1
    shares = [each.share for each in told if isinstance(each, Progress)]
    assert shares == sorted(shares)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "angstrom" in " ".join(summary)


def test_output_keeps_every_array_of_the_input(tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True).repeat(3)
    atoms.rattle(0.1, seed=0)
    atoms.set_array("charge_of_mine", np.arange(len(atoms)) * 0.5)
    atoms.set_constraint(FixAtoms([0]))
    atoms.info["label"] = "<b>mine</b>"
    write(tmp_path / "mine.extxyz", atoms)
    result, _, _ = run_denoise(tmp_path / "mine.extxyz", tmp_path)
    out = read(result.structure)
    np.testing.assert_allclose(out.arrays["charge_of_mine"], atoms.arrays["charge_of_mine"])
    np.testing.assert_allclose(out.positions[0], atoms.positions[0])
    assert out.info["label"] == "<b>mine</b>"
    assert set(out.arrays["structure_type"]) == {"fcc"}
    assert set(out.arrays["site_type"]) == {1}
    assert result.structure.name == "mine-denoised.extxyz"


def test_large_structures_are_thinned_for_display_and_say_so(tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True).repeat((6, 6, 3))
    write(tmp_path / "large.extxyz", atoms)
    result, _, _ = run_denoise(tmp_path / "large.extxyz", tmp_path, Limits(shown_atoms=100))
    (before, after) = result.scene.panels
    assert len(before.frames[0]) == len(after.frames[-1]) == 100
    assert "100 atoms nearest to the middle, of 432" in result.scene.note
    assert len(read(result.structure)) == 432


def test_what_is_no_crystal_is_denoised_with_a_warning(tmp_path: Path) -> None:
    from ase.build import molecule

    write(tmp_path / "benzene.xyz", molecule("C6H6"))
    assert (
        "take the result with care" in run_denoise(tmp_path / "benzene.xyz", tmp_path)[0].summary["warning"]
    )
    atoms = bulk("Cu", cubic=True).repeat(3)
    write(tmp_path / "copper.extxyz", atoms)
    assert not run_denoise(tmp_path / "copper.extxyz", tmp_path)[0].summary["warning"]


def test_what_has_a_checkpoint_of_its_own_gets_it_and_its_names(tmp_path: Path) -> None:
    """Ice with its hydrogens: chosen by itself, told by the verdict, for which classifiers have no class."""
    oxygens = orthogonal("ice VII").repeat(4)
    crystal = oxygens.copy()
    for shift in ((0.6, 0.7, 0.2), (-0.7, 0.1, 0.6)):
        hydrogens = oxygens.copy()
        hydrogens.numbers[:] = 1
        hydrogens.positions += shift
        crystal += hydrogens
    crystal.rattle(0.05, seed=1)
    write(tmp_path / "seven.extxyz", crystal)
    result, picture, _ = run_denoise(tmp_path / "seven.extxyz", tmp_path, checkpoint=AUTOMATIC)
    summary = json.loads(json.dumps(result.summary))
    assert summary["checkpoint"].startswith("denoiser-ice@")
    assert "H, O" in summary["chosen_because"]
    assert summary["fractions_after"]["ice VII"] > 0.99
    assert sum(summary["fractions_before"].values()) == pytest.approx(1)
    assert not summary["warning"]
    present = [name for name, _, there in result.scene.palette if there]
    assert "ice VII" in present
    assert result.scene.palette[result.scene.panels[1].kinds[-1][0]][0] == "ice VII"
    bars = pieces.fraction_bars(summary["fractions_before"], summary["fractions_after"])
    assert "ice VII" in bars
    assert COLORS["ice VII"] in bars
    assert "ice VII" in pieces.fraction_table(
        summary["fractions_before"], summary["fractions_after"], summary["atoms"]
    )
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_large_structure_is_judged_at_the_ends_of_its_way_only() -> None:
    assert denoise._frames(9, 500, judged=True) == list(range(9))
    assert denoise._frames(9, 20_000, judged=True) == [0, 4, 8]
    assert denoise._frames(9, 200_000, judged=True) == [0, 8]
    assert denoise._frames(9, 200_000, judged=False) == list(range(9))


@pytest.mark.slow
def test_the_trial_that_decided_is_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two species, two checkpoints may be tried; neither denoises twice."""
    crystal = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(3)
    crystal.rattle(0.15, seed=2)
    write(tmp_path / "salt.extxyz", crystal)
    taken: list[str] = []
    original = Denoiser.denoise

    def counted(self: Denoiser, *args: Any, **options: Any) -> Any:
        taken.append(self.name)
        return original(self, *args, **options)

    monkeypatch.setattr(Denoiser, "denoise", counted)
    result, _, told = run_denoise(tmp_path / "salt.extxyz", tmp_path, checkpoint=AUTOMATIC)
    assert taken.count("denoiser-binaries") == 1
    assert result.summary["checkpoint"].startswith("denoiser-binaries@")
    assert result.summary["told_by"] == "verdict"
    assert result.summary["fractions_after"]["rocksalt"] > 0.99
    assert len(result.curve) == len(result.scene.frame_names) - 1
    shares = [each.share for each in told if isinstance(each, Progress)]
    assert shares == sorted(shares)
    assert result.summary["seconds"] > 0


def test_copper_is_not_denoised_as_ice(tmp_path: Path) -> None:
    write(tmp_path / "copper.extxyz", bulk("Cu", cubic=True).repeat(3))
    with pytest.raises(StructureError, match="all atoms are Cu"):
        run_denoise(tmp_path / "copper.extxyz", tmp_path, checkpoint="denoiser-ice")


def test_an_element_needs_no_trial(tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True).repeat(4)
    atoms.rattle(0.1, seed=0)
    write(tmp_path / "copper.extxyz", atoms)
    summary = run_denoise(tmp_path / "copper.extxyz", tmp_path, checkpoint=AUTOMATIC)[0].summary
    assert summary["checkpoint"].startswith("denoiser-elements@")
    assert summary["fractions_after"]["fcc"] == 1


def test_a_slice_is_of_neighbours() -> None:
    x = np.random.default_rng(0).uniform(0, [30, 30, 10], (1000, 3))
    chosen = denoise.slice_of(x, 300)
    assert len(set(chosen)) == 300
    depth = np.abs(x[:, 2] - np.median(x[:, 2]))
    others = np.setdiff1d(np.arange(1000), chosen)
    assert depth[chosen].max() <= depth[others].min()
    assert len(denoise.slice_of(x, 1000)) == 1000


def test_a_scene_comes_back_from_the_browsers_side_of_it() -> None:
    x = np.array([[0.0, 0, 0], [1, 2, 3]])
    scene = Scene(
        [Panel("a", [x, x + 1], [np.array([0, 1]), np.array([1, 1])])],
        ["one", "two"],
        [("k", "#000000", True), ("l", "#ffffff", True)],
        np.eye(3),
        0.5,
        bonds=[(np.int64(0), np.int64(1))],  # type: ignore[list-item]
    )
    data = json.loads(json.dumps(scene.to_json()))
    second = np.frombuffer(base64.b64decode(data["panels"][0]["frames"][1]), "<f4").reshape(-1, 3)
    np.testing.assert_allclose(second + x.mean(0), x + 1, atol=1e-6)
    np.testing.assert_allclose(np.array(data["origin"]), -x.mean(0))
    assert list(base64.b64decode(data["panels"][0]["kinds"][0])) == [0, 1]


@pytest.mark.slow
def test_a_rollout_hands_out_what_opens_elsewhere(tmp_path: Path) -> None:
    import mdtraj

    result, _ = run_rollout(path_of("alanine-c7eq", MOLECULES), tmp_path)
    names = [f.name for f in result.files]
    assert names == [
        *(f"alanine-dipeptide-c7eq-rollout-0{k}.xtc" for k in range(3)),
        "alanine-dipeptide-c7eq-rollout.pdb",
        "alanine-dipeptide-c7eq-rollout.json",
    ]
    trajectory = mdtraj.load(str(result.files[0]), top=str(result.files[3]))
    assert trajectory.n_frames == 21
    assert result.checkpoint == "sd-alanine-dipeptide"
    assert result.counts.sum() == 3 * 21
    assert len(result.scene.panels[0].frames) == 7  # at most ten, so every third
    assert "One in 3 of its 21 frames" in result.scene.note
    assert result.angles.shape == (21, 2)
    summary = json.loads(json.dumps(result.summary))
    assert summary["proposed"] == 60 + summary["redrawn"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_rollout_and_another_one_does_not(tmp_path: Path) -> None:
    start = path_of("alanine-alpha-r", MOLECULES)
    made = []
    for k, seed in enumerate((5, 5, 6)):
        (tmp_path / str(k)).mkdir()
        made.append(run_rollout(start, tmp_path / str(k), seed=seed, steps=5, walkers=1)[0].angles)
    np.testing.assert_array_equal(made[0], made[1])
    assert np.abs(made[0][1:] - made[2][1:]).max() > 1


@pytest.mark.slow
def test_automatic_is_the_checkpoint_that_knows_the_molecule(tmp_path: Path) -> None:
    import mdtraj

    whole = mdtraj.load(str(path_of("alanine-c7ax", MOLECULES)))
    heavy = whole.atom_slice([a.index for a in whole.topology.atoms if a.element.symbol != "H"])
    heavy.save_pdb(str(tmp_path / "heavy.pdb"))
    assert run_rollout(tmp_path / "heavy.pdb", tmp_path)[0].checkpoint == "sd-alanine-dipeptide-cg"


def test_a_molecule_that_nobody_knows(tmp_path: Path) -> None:
    from ase.build import molecule

    write(tmp_path / "ethanol.xyz", molecule("CH3CH2OH"))
    with pytest.raises(StructureError):
        run_rollout(tmp_path / "ethanol.xyz", tmp_path)


@pytest.mark.parametrize("examples", [CRYSTALS, MOLECULES])
def test_all_examples_are_there(examples: Any) -> None:
    for each in examples:
        assert path_of(each.key, examples).stat().st_size < 60_000
    with pytest.raises(VisitorError, match="choose one of"):
        path_of("../../../etc/passwd", examples)


def test_every_propagator_of_a_peptide_has_its_reference() -> None:
    for record in records():
        if "alanine" in record.name:
            reference = reference_for(record.name)
            assert reference is not None
            assert reference.counts.shape == (BINS, BINS)
    assert reference_for("denoiser-elements") is None


# --- the pieces of the page -------------------------------------------------------------------------


def test_charts_take_their_ink_from_the_page_and_say_what_they_show() -> None:
    counts = np.zeros((BINS, BINS))
    counts[3, 4], counts[3, 5] = 10, 4
    for chart in (
        charts.convergence([0.3, 0.03, 0.001]),
        charts.free_energy_maps(counts, counts),
        charts.free_energy_maps(np.zeros((BINS, BINS)), None),
        charts.torsion_series(np.zeros((50, 2)), 1.0),
    ):
        assert "currentColor" in chart
        assert charts._INK not in chart
        assert re.search(r'role="img" aria-label="[^"]{20,}"', chart)
        assert "<script" not in chart
        assert len(chart) < 200_000


def test_nothing_of_a_visitor_gets_into_the_page_as_html() -> None:
    evil = "<img src=x onerror=alert(1)>"
    for made in (
        pieces.problem(evil), pieces.notice(evil), pieces.facts([(evil, evil)]), pieces.progress(0.5, evil),
        pieces.table([evil, evil], [[evil, evil]]), pieces.text(evil),
    ):  # fmt: skip
        assert "<img" not in made
        assert "&lt;img" in made


def test_bars_say_in_words_what_they_show() -> None:
    none = dict.fromkeys(
        ("other", "fcc", "hcp", "bcc", "simple cubic", "cubic diamond", "hexagonal diamond"), 0.0
    )
    bars = pieces.fraction_bars({**none, "other": 1.0}, {**none, "fcc": 0.99995, "other": 0.00005})
    assert "before: other 100.00 %" in bars
    assert "after: fcc 99.99 %, other 0.00 %" in bars  # rounded down: it is not all of them


def test_colours_of_the_bars_can_be_read() -> None:
    """Contrast of the text on the colour of all that an atom may be called, by WCAG 2: at least 4.5."""
    from zoo.analysis.crystals import STRUCTURES

    def luminance(color: str) -> float:
        rgb = np.array([int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for names in (STRUCTURES, tuple(COLORS)):
        for name in names:
            shares = {other: float(other == name) for other in names}
            found = re.findall(r"background:(#\w+);color:(#\w+)", pieces.fraction_bars(shares, shares))
            assert len(found) == 2, name
            for pair in found:
                light, dark = sorted(map(luminance, pair), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, name
