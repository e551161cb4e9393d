"""Fine-tuning a denoiser on perfect crystals: what may be given, what is learned, what is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write
from ase.spacegroup import crystal

from training import finetune_denoiser as recipe
from training.denoising import DenoisingConfig, batch_maker, denoising_losses
from training.perfect_structures import draw, read_perfect, supercell
from training.recovery import recovery
from zoo import recipes, registry
from zoo.cli import main as cli
from zoo.denoiser import Denoiser
from zoo.errors import StructureError


@pytest.fixture
def fluorite(tmp_path: Path) -> Path:
    atoms = crystal(["Ca", "F"], [(0, 0, 0), (0.25,) * 3], spacegroup=225, cellpar=[5.4626] * 3 + [90] * 3)
    write(tmp_path / "CaF2.cif", atoms)
    return tmp_path / "CaF2.cif"


# --- what may be given ------------------------------------------------------------------------------


def test_a_crystal_is_read_in_units_of_its_own_density(fluorite: Path) -> None:
    perfect = read_perfect(fluorite)
    assert perfect.unit.cell.volume == pytest.approx(12.0)
    assert perfect.spacing == pytest.approx(3**0.5 / 4 * 12 ** (1 / 3))
    assert perfect.name == "CaF2 (CaF2.cif)"


def test_supercells_are_about_cubic_and_nowhere_thin() -> None:
    perfect = read_perfect_of(bulk("Mg", "hcp", a=3.2, c=5.2))
    block = supercell(perfect, 500)
    heights = 1 / np.linalg.norm(np.linalg.inv(block.cell[:]), axis=0)
    assert 350 < len(block) < 700
    assert heights.min() > 3.6
    assert heights.max() / heights.min() < 1.5


def read_perfect_of(atoms: Atoms) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "crystal.extxyz"
        write(path, atoms)
        return read_perfect(path)


def test_samples_keep_their_density_and_neighbours(fluorite: Path) -> None:
    perfect = read_perfect(fluorite)
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(60):
        sample = draw([perfect], rng)
        density = len(sample.positions) / abs(np.linalg.det(sample.cell))
        assert 0.6 < density < 1.5
        assert sample.spacing == perfect.spacing
        kinds.add(tuple(sample.pbc))
    assert (True, True, True) in kinds
    assert len(kinds) == 4  # surfaces of all three orientations


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bulk("Cu", cubic=True).repeat(5), "has 500 atoms: give the unit cell"),
        (lambda: Atoms("Cu4", bulk("Cu", cubic=True).positions), "not periodic in all directions"),
        (lambda: Atoms("Cu2", [[0, 0, 0], [0.5, 0, 0]], cell=[4, 4, 4], pbc=True), "nearest atoms are"),
    ],
)
def test_what_is_no_perfect_crystal_is_named(make: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path / "x.extxyz", make())
    with pytest.raises(StructureError, match=message):
        read_perfect(tmp_path / "x.extxyz")


def test_partly_occupied_sites_and_several_frames_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "two.extxyz", [bulk("Cu"), bulk("Cu")])
    with pytest.raises(StructureError, match="has 2 frames"):
        read_perfect(tmp_path / "two.extxyz")
    cif = """data_x
_cell_length_a 4
_cell_length_b 4
_cell_length_c 4
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_label
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Cu1 0 0 0 0.5
Au1 0 0 0 0.5
Cu2 0.5 0.5 0.5 1
"""
    (tmp_path / "alloy.cif").write_text(cif)
    with pytest.raises(StructureError, match=r"partly occupied|same place"):
        read_perfect(tmp_path / "alloy.cif")


def test_a_primitive_cell_of_one_atom_will_do() -> None:
    perfect = read_perfect_of(bulk("Cu"))
    assert perfect.unit.cell.volume == pytest.approx(len(perfect.unit))
    assert perfect.spacing == pytest.approx(2 ** (1 / 6))


# --- the criterion ----------------------------------------------------------------------------------


class Oracle:
    """Moves all atoms but the first ``n_lost`` back, and everything by a common translation."""

    def __init__(self, sites: Atoms, n_lost: int) -> None:
        self.sites, self.n_lost = sites, n_lost

    def denoise(self, atoms: Atoms, steps: int = 10) -> Atoms:
        after = self.sites.copy()
        after.positions[: self.n_lost] = atoms.positions[: self.n_lost] + 1.0
        after.positions += [0.3, -0.2, 0.1]
        return after


@pytest.mark.parametrize("n_lost", [0, 1, 7])
def test_recovery_counts_exactly_the_atoms_that_did_not_come_back(n_lost: int) -> None:
    sites = bulk("Cu", cubic=True).repeat(3)
    found = recovery(Oracle(sites, n_lost), sites, 2.55, 0.1, [1, 2])  # type: ignore[arg-type]
    assert (found.sites, found.found) == (216, 216 - 2 * n_lost)


def test_noise_of_the_criterion_is_the_same_every_time() -> None:
    sites = bulk("Cu", cubic=True).repeat(3)
    denoiser = Denoiser.from_pretrained()
    assert recovery(denoiser, sites, 2.55, 0.1, [5]) == recovery(denoiser, sites, 2.55, 0.1, [5])


# --- the recipe -------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same recipe, small."""
    monkeypatch.setattr(recipe, "NOISES", (0.10,))
    monkeypatch.setattr(recipe, "_ATOMS", 60)
    monkeypatch.setattr(recipe, "_COPIES", 1)
    monkeypatch.setattr(recipe, "_BATCH", 150)
    monkeypatch.setattr(recipe, "_LOOK", 3)


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("stop", [3, 4])
def test_a_killed_run_continues_to_the_same_end(
    stop: int, fluorite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not good enough after the first round: the kill is in the second one.
    common = ["denoiser-elements", "--structure", str(fluorite), "--steps", "3", "--enough", "2"]
    monkeypatch.setattr(recipe, "_seconds", lambda folder: 1000.0 if "round-1" in str(folder) else 1.0)
    assert recipe.main([*common, "-o", str(tmp_path / "whole")]) == 0

    train = recipe.train

    def killed(*arguments: Any, **options: Any) -> Any:
        if arguments[4].name == "round-1":
            if stop > 3:  # in the middle of a round: what was saved then
                train(*arguments, **{**options, "stop_after": stop - 3})
            raise KeyboardInterrupt
        return train(*arguments, **options)

    monkeypatch.setattr(recipe, "train", killed)
    assert recipe.main([*common, "-o", str(tmp_path / "killed")]) == 130
    monkeypatch.setattr(recipe, "train", train)
    assert recipe.main([*common, "-o", str(tmp_path / "killed")]) == 0
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name])
    assert not (tmp_path / "killed-training").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_state_of_other_structures_is_not_continued(
    fluorite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: Any, **options: Any) -> Any:
        train(*arguments, **options)
        raise KeyboardInterrupt

    train = recipe.train
    monkeypatch.setattr(recipe, "train", killed)
    common = ["denoiser-elements", "--steps", "3", "--enough", "0", "-o", str(tmp_path / "mine")]
    assert recipe.main([*common, "--structure", str(fluorite)]) == 130
    monkeypatch.setattr(recipe, "train", train)
    write(tmp_path / "other.cif", bulk("Cu"))
    assert recipe.main([*common, "--structure", str(tmp_path / "other.cif")]) == 1
    assert "trained with other settings (structures)" in capsys.readouterr().err


@pytest.fixture
def two_noises(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured before and after takes most of the time of a short run."""
    monkeypatch.setattr(recipe, "NOISES", (0.06, recipe.JUDGED))


@pytest.mark.slow
@pytest.mark.usefixtures("two_noises")
def test_fluorite_is_learned_and_nothing_is_forgotten(
    fluorite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an eighth of the steps that `zoo finetune` takes, of half the atoms."""
    monkeypatch.setattr(recipe, "_BATCH", 700)
    out = tmp_path / "my-denoiser"
    status = recipe.main(["denoiser-elements", "--structure", str(fluorite), "-o", str(out), "--steps", "60"])
    assert status == 0
    sections = json.loads((out / "metrics.json").read_text())["sections"]
    rows = [row for row in sections["recovery"]["results"] if row["noise"] == 0.10]
    (new,) = (row for row in rows if row["new"])
    assert new["recovered_before"] < 0.9
    assert new["recovered_after"] >= 0.999
    assert all(row["recovered_after"] == 1.0 for row in rows if not row["new"])
    released = registry.find("denoiser-elements").version
    assert sections["training"]["begun_with"] == f"denoiser-elements@{released}"
    loaded = Denoiser.from_pretrained(out)
    assert loaded.config.lattices[-1] == "CaF2 (CaF2.cif)"
    assert (out / "recovery.png").read_bytes().startswith(b"\x89PNG")
    assert "CaF2" in (out / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("two_noises")
def test_a_denoiser_from_nothing_knows_its_crystal_and_no_other(
    fluorite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "_BATCH", 700)
    out = tmp_path / "only-fluorite"
    status = recipe.main(
        ["denoiser-elements", "--structure", str(fluorite), "-o", str(out), "--from-nothing", "--steps", "60"]
    )
    assert status == 0
    metrics = json.loads((out / "metrics.json").read_text())["sections"]
    assert metrics["training"]["begun_with"] is None
    rows = metrics["recovery"]["results"]
    assert all(row["new"] for row in rows), "there are no old lattices to be forgotten"
    (row,) = (row for row in rows if row["noise"] == 0.10)
    assert row["recovered_after"] >= 0.999
    assert Denoiser.from_pretrained(out).config.lattices == ("CaF2 (CaF2.cif)",)


def test_rehearsed_structures_have_the_answer_of_the_teacher(fluorite: Path) -> None:
    """Of a network that is its own teacher nothing is asked, and the truth of new crystals is asked of it."""
    denoiser = Denoiser.from_pretrained()
    network: Any = denoiser.network
    config = DenoisingConfig(atoms_per_batch=100, rollout_after=0, teacher_weight=20.0)
    cutoff = network.config.cutoff
    crystals = [read_perfect(fluorite)]
    for rehearsal, expected in ((0.999999, True), (0.0, False)):
        make = batch_maker(config, cutoff, recipe.mixed(crystals, rehearsal))
        batch = make(np.random.default_rng(0))
        assert all(b.sample.rehearsed == expected for b in batch)
        terms = denoising_losses(config, cutoff, network)(network, batch, np.random.default_rng(1), 10)
        total = sum(float(term()) for term in terms)
        assert (total == 0.0) == expected


def test_the_table_in_the_readme_is_what_was_measured() -> None:
    root = Path(__file__).resolve().parent.parent
    measured = json.loads((root / "training" / "benchmarks" / "finetuning.json").read_text())
    readme = (root / "README.md").read_text(encoding="utf-8")

    def percent(share: float) -> str:
        return f"{int(share * 1e4 + 1e-6) / 100:.2f} %"

    for row in measured["results"]:
        worst = min(row["old_lattices_at_melting"], key=row["old_lattices_at_melting"].get)
        at_melting = percent(row["old_lattices_at_melting"][worst])
        cells = [
            row["crystal"],
            percent(row["recovered_before"]),
            percent(row["recovered_after"]),
            percent(row["old_lattices_after"]),
            at_melting if at_melting == "100.00 %" else f"{at_melting} ({worst})",
            f"{row['seconds']:.0f} s",
            f"{row['peak_memory_mib']} MiB",
        ]
        assert f"| {' | '.join(cells)} |" in readme


# --- the command ------------------------------------------------------------------------------------


def test_mistakes_are_told_before_anything_starts(
    tmp_path: Path, fluorite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*arguments: object) -> str:
        assert cli(["finetune", *map(str, arguments)]) in (1, 2)
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    out = tmp_path / "out"
    assert "is score dynamics: it learns from --trajectory" in told(
        "sd-alanine-dipeptide", "--structure", fluorite, "-o", out
    )
    assert "no such file" in told("denoiser-elements", "--structure", tmp_path / "no.cif", "-o", out)
    assert "did you mean" in told("denoiser-element", "--structure", fluorite, "-o", out)
    out.mkdir()
    (out / "config.json").write_text("{}")
    assert "exists already" in told("denoiser-elements", "--structure", fluorite, "-o", out)
    assert "--structure" in told("denoiser-elements", "-o", out)


def test_options_reach_the_recipe(
    tmp_path: Path, fluorite: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    given: list[tuple[str, list[str]]] = []

    def run(module: str, arguments: list[str]) -> int:
        given.append((module, arguments))
        return 0

    monkeypatch.setattr(recipes, "run", run)
    out = tmp_path / "mine"
    options = ["--structure", str(fluorite), "-o", str(out), "--from-nothing", "--steps", "7", "--seed", "3"]
    assert cli(["finetune", "denoiser-elements", *options]) == 0
    ((module, arguments),) = given
    assert module == "finetune_denoiser"
    assert arguments[:5] == ["denoiser-elements", "--structure", str(fluorite), "--out", str(out)]
    assert {"--from-nothing", "--steps=7", "--seed=3"} <= set(arguments)
    # and a process of its own understands them, up to the first mistake that only it can find
    monkeypatch.undo()
    (tmp_path / "disordered.cif").write_text("data_x\n")
    options[1] = str(tmp_path / "disordered.cif")
    assert cli(["finetune", "denoiser-elements", *options]) == 1
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "disordered.cif" in error


def test_what_is_rehearsed_is_what_the_checkpoint_knows() -> None:
    from training import lattices
    from training.finetune_denoiser import cases, known_lattices, mixed
    from zoo.denoiser import DenoiserConfig

    def of(*names: str) -> tuple[str, ...]:
        return known_lattices(DenoiserConfig("one", "0.1.0", lattices=names))

    assert of("B2", "rocksalt", "NiAs (mine.cif)") == ("B2", "rocksalt")
    assert of(*lattices.LATTICES) == lattices.LATTICES
    assert of("NiAs (mine.cif)") == lattices.LATTICES
    assert [case.name for case in cases([], ("B2", "wurtzite"))] == ["B2", "wurtzite"]
    assert cases([], ()) == []
    draw = mixed([], 1 - 1e-12, old_lattices=("B2",))
    drawn = [draw(np.random.default_rng(seed)) for seed in range(20)]
    assert all(sample.rehearsed and set(sample.species) <= {1, 2} for sample in drawn)
    assert any(len(set(sample.species)) == 2 for sample in drawn)
