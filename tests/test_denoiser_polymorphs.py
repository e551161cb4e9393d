"""The released denoisers of ice and of silica do on geometry what their cards say."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write

from training import polymorph_structures as structures
from training.polymorphs import ICE, POLYMORPHS, SILICA, orthogonal
from zoo import registry
from zoo.denoiser import Denoiser
from zoo.errors import StructureError
from zoo.verdict_names import DISORDERED

NAMES = {"denoiser-ice": tuple(ICE), "denoiser-silica": tuple(SILICA)}
PHASES = [(name, phase) for name, phases in NAMES.items() for phase in phases]
#: Of which little noise is taken out, as the card says.
HARD = ("ice II", "ice III")
SPACING = {"denoiser-ice": 2.75, "denoiser-silica": 1.6}


def golden_file(name: str) -> Path:
    return Path(__file__).parent / "data" / f"golden-{name}.json"


@cache
def released(name: str) -> Denoiser:
    if not registry.bundled_folder(registry.find(name)).is_dir() and not os.environ.get("CI"):
        pytest.skip(f"{name} has not been trained in this working copy")
    return Denoiser.from_pretrained(name)


def noised(phase: str, noise: float, side: float = 13.0, seed: int = 0) -> tuple[Atoms, Atoms]:
    """A crystal as published and the same with noise in Å per component."""
    unit = orthogonal(phase)
    crystal = unit.repeat(np.ceil(side / unit.cell.lengths()).astype(int))
    hot = crystal.copy()
    hot.positions += np.random.default_rng(seed).normal(0, noise, hot.positions.shape)
    return crystal, hot


def golden(name: str) -> dict[str, object]:
    """One hot crystal, denoised: positions and confidence, rounded."""
    denoiser = released(name)
    _, hot = noised(NAMES[name][0], 0.06 * SPACING[name], side=9.0)
    clean = denoiser.denoise(hot)
    return {
        "version": denoiser.config.version,
        "steps": clean.info["denoise_steps"],
        "positions": clean.positions.round(4).tolist(),
        "structure_type": clean.arrays["structure_type"].tolist(),
        "confidence": clean.arrays["confidence"].round(4).tolist(),
    }


@pytest.mark.parametrize(("name", "phase"), PHASES)
def test_hot_crystals_come_back_and_are_told(name: str, phase: str) -> None:
    hard = phase in HARD
    crystal, hot = noised(phase, (0.05 if hard else 0.08) * SPACING[name])
    clean = released(name).denoise(hot)
    away = clean.positions - crystal.positions
    away = np.linalg.norm(away - np.median(away, axis=0), axis=1)
    before = np.linalg.norm(hot.positions - crystal.positions, axis=1)
    # Alpha phases are turned by any angle, so where their sites are is less certain.
    assert away.mean() < (0.8 if hard else 0.5 if phase.startswith("alpha") else 0.4) * before.mean()
    assert away.max() < (0.3 if hard else 0.2) * SPACING[name]
    assert (clean.arrays["structure_type"] == phase).mean() > (0.95 if hard else 0.98)
    assert (clean.numbers == crystal.numbers).all()


@pytest.mark.parametrize(("name", "phase"), PHASES)
def test_cold_crystals_are_told_and_hardly_move(name: str, phase: str) -> None:
    cold, _ = noised(phase, 0.0, side=10.0)
    clean = released(name).denoise(cold)
    assert (clean.arrays["structure_type"] == phase).mean() > 0.99
    assert np.linalg.norm(clean.positions - cold.positions, axis=1).max() < 0.1 * SPACING[name]


@pytest.mark.parametrize("name", NAMES)
def test_melts_are_in_disorder(name: str) -> None:
    right = []
    for seed, phase in enumerate(NAMES[name]):
        sample = structures.melt_sample(phase, np.random.default_rng(100 + seed), 300)
        melt = Atoms(positions=2.6 * sample.positions, cell=2.6 * sample.cell, pbc=True)
        melt.numbers = sample.species
        right.append(released(name).denoise(melt).arrays["structure_type"] == DISORDERED)
    assert np.concatenate(right).mean() > 0.97


def test_structures_without_oxygen_are_refused() -> None:
    _, salt = noised("alpha-quartz", 0.05)
    salt.numbers[salt.numbers == 8] = 9
    with pytest.raises(StructureError, match="no O among the atoms"):
        released("denoiser-ice").denoise(salt)


def test_water_with_hydrogens_is_told_by_its_oxygens() -> None:
    crystal, hot = noised("ice Ih", 0.1)
    water = hot.copy()
    for shift in ((0.6, 0.7, 0.2), (-0.7, 0.1, 0.6)):
        hydrogens = hot.copy()
        hydrogens.numbers[:] = 1
        hydrogens.positions += shift
        water += hydrogens
    one, two = released("denoiser-ice").denoise(hot), released("denoiser-ice").denoise(water)
    n = len(crystal)
    np.testing.assert_allclose(two.positions[:n], one.positions, atol=1e-6)
    assert (two.arrays["structure_type"] == np.tile(one.arrays["structure_type"], 3)).all()
    np.testing.assert_allclose(two.positions[n : 2 * n] - two.positions[:n], [(0.6, 0.7, 0.2)] * n)


def test_names_are_those_that_files_and_ovito_know(tmp_path: Path) -> None:
    from zoo.structures import FrameWriter, read_frames
    from zoo.verdict_names import CODES, COLORS

    assert set(POLYMORPHS) <= set(CODES)
    for phases in NAMES.values():
        assert len({COLORS[phase] for phase in phases}) == len(phases)
    _, hot = noised("ice Ih", 0.1, side=9.0)
    clean = released("denoiser-ice").denoise(hot)
    with FrameWriter(tmp_path / "clean.extxyz") as writer:
        writer.write(clean)
    (back,) = read_frames(tmp_path / "clean.extxyz")
    assert back.arrays["structure_type"].tolist() == clean.arrays["structure_type"].tolist()


def test_ovito_sees_the_oxygens_of_water(tmp_path: Path) -> None:
    pytest.importorskip("ovito")
    from ovito.io import import_file

    from zoo.ovito import DenoiseModifier

    _, hot = noised("ice Ic", 0.1)
    hot += Atoms("He", positions=[[3.97, 3.97, 3.97]])  # in the middle of a cage
    write(tmp_path / "hot.extxyz", hot)
    pipeline = import_file(str(tmp_path / "hot.extxyz"))
    pipeline.modifiers.append(DenoiseModifier(checkpoint="denoiser-ice"))
    types = pipeline.compute().particles["Structure Type"]
    names = np.array([types.type_by_id(int(code)).name for code in types])
    assert names[-1] == "other"
    assert (names[:-1] == "ice Ic").mean() > 0.95


@pytest.mark.parametrize("name", NAMES)
def test_the_golden_output(name: str) -> None:
    stored, found = json.loads(golden_file(name).read_text()), golden(name)
    assert found["version"] == stored["version"], "run `python tests/make_golden.py` for the new release"
    assert found["steps"] == stored["steps"]
    np.testing.assert_allclose(found["positions"], stored["positions"], atol=2e-3)
    assert found["structure_type"] == stored["structure_type"]
    np.testing.assert_allclose(found["confidence"], stored["confidence"], atol=2e-2)


def test_the_classifiers_look_at_the_oxygens_of_water(tmp_path: Path) -> None:
    pytest.importorskip("ovito")
    from typer.testing import CliRunner

    from zoo.cli import app
    from zoo.structures import read_frames

    _, hot = noised("ice Ic", 0.1)
    n = len(hot)
    for shift in ((0.6, 0.7, 0.2), (-0.7, 0.1, 0.6)):
        hydrogens = hot[:n]
        hydrogens.numbers[:] = 1
        hydrogens.positions += shift
        hot += hydrogens
    write(tmp_path / "hot.extxyz", hot)
    out = tmp_path / "clean.extxyz"
    told = CliRunner().invoke(app, ["denoise", str(tmp_path / "hot.extxyz"), "-o", str(out), "--analyze"])
    assert told.exit_code == 0, told.output
    assert "chose denoiser-ice" in told.output
    (clean,) = read_frames(out)
    assert (clean.arrays["site_type"][:n] == 5).mean() > 0.95
    assert (clean.arrays["site_type"][n:] == 0).all()
    told = CliRunner().invoke(app, ["analyze", str(tmp_path / "hot.extxyz")])
    assert told.exit_code == 0, told.output
    assert "cubic diamond" in told.output
