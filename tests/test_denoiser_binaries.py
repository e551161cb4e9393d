"""The released denoiser of compounds does on geometry and stored MD what its card says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import read, write

from training import lattices
from zoo import registry
from zoo.analysis.orderings import ORDERINGS, orderings
from zoo.denoiser import Denoiser
from zoo.errors import StructureError
from zoo.verdict_names import DISORDERED

pytest.importorskip("ovito")

NAME = "denoiser-binaries"
GOLDEN = Path(__file__).parent / "data" / f"golden-{NAME}.json"


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    if not registry.bundled_folder(registry.find(NAME)).is_dir() and not os.environ.get("CI"):
        pytest.skip(f"{NAME} has not been trained in this working copy")
    return Denoiser.from_pretrained(NAME)


def noised(lattice: str, noise: float, seed: int = 0, n: int = 4) -> tuple[Atoms, Atoms]:
    """A crystal of Cu and Au and the same with noise in nearest-neighbour distances."""
    unit = lattices.conventional(lattice)
    crystal = unit.repeat(np.ceil(n * 1.6 / unit.cell.lengths()).astype(int))
    crystal.set_cell(2.4 * crystal.cell, scale_atoms=True)
    crystal.numbers = np.where(crystal.numbers == 1, 29, 79)
    hot = crystal.copy()
    sigma = noise * 2.4 * lattices.spacing_of(lattice)
    hot.positions += np.random.default_rng(seed).normal(0, sigma, hot.positions.shape)
    return crystal, hot


def golden(denoiser: Denoiser) -> dict[str, object]:
    """A hot B2 crystal with an antisite, denoised: positions and confidence, rounded."""
    _, hot = noised("B2", 0.08, n=3)
    hot.numbers[3] = 108 - hot.numbers[3]
    clean = denoiser.denoise(hot)
    return {
        "version": denoiser.config.version,
        "steps": clean.info["denoise_steps"],
        "positions": clean.positions.round(4).tolist(),
        "structure_type": clean.arrays["structure_type"].tolist(),
        "confidence": clean.arrays["confidence"].round(4).tolist(),
    }


@pytest.mark.parametrize("lattice", lattices.COMPOUNDS)
def test_noised_compounds_come_back_and_are_told(denoiser: Denoiser, lattice: str) -> None:
    crystal, hot = noised(lattice, 0.10)
    clean = denoiser.denoise(hot)
    assert (orderings(clean) == ORDERINGS.index(lattice)).all()
    away = clean.positions - crystal.positions
    away -= np.median(away, axis=0)
    assert np.linalg.norm(away, axis=1).max() < 0.15 * 2.4 * lattices.spacing_of(lattice)
    assert (clean.arrays["structure_type"] == lattice).mean() > 0.97
    assert (clean.numbers == hot.numbers).all()


@pytest.mark.parametrize("lattice", lattices.COMPOUNDS)
@pytest.mark.parametrize("noise", [0.0, 0.001, 0.03])
def test_cold_compounds_are_told_too_and_twice_is_once(
    denoiser: Denoiser, lattice: str, noise: float
) -> None:
    _, cold = noised(lattice, noise, n=3)
    once = denoiser.denoise(cold)
    twice = denoiser.denoise(once)
    for clean in (once, twice):
        assert (clean.arrays["structure_type"] == lattice).mean() > 0.99
        assert clean.arrays["confidence"].mean() > 0.8
    assert set(twice.arrays) == set(once.arrays)


def test_one_species_is_refused_and_types_of_a_dump_will_do(denoiser: Denoiser) -> None:
    _, hot = noised("B2", 0.05, n=3)
    one = hot.copy()
    one.numbers[:] = 29
    with pytest.raises(StructureError, match="denoiser-elements"):
        denoiser.denoise(one)
    one.set_array("type", np.where(hot.numbers == 29, 1, 2))
    np.testing.assert_array_equal(denoiser.denoise(one).positions, denoiser.denoise(hot).positions)


def test_a_dump_has_the_verdict_in_numbers(denoiser: Denoiser, tmp_path: Path) -> None:
    from ovito.io import import_file

    from zoo.structures import FrameWriter, read_frames
    from zoo.verdict_names import CODES

    _, hot = noised("B2", 0.05, n=3)
    clean = denoiser.denoise(hot)
    with FrameWriter(tmp_path / "clean.dump") as writer:
        writer.write(clean)
    expected = [CODES[name] for name in clean.arrays["structure_type"].tolist()]
    (back,) = read_frames(tmp_path / "clean.dump")
    assert back.arrays["structure_type"].tolist() == expected
    data = import_file(str(tmp_path / "clean.dump")).compute()
    assert np.asarray(data.particles["structure_type"]).tolist() == expected


def test_antisites_stay_antisites(denoiser: Denoiser) -> None:
    crystal, hot = noised("B2", 0.08)
    wrong = np.array([5, 60])
    for atoms in (crystal, hot):
        atoms.numbers[wrong] = 108 - atoms.numbers[wrong]
    clean = denoiser.denoise(hot)
    assert (clean.numbers == crystal.numbers).all()
    away = np.linalg.norm(clean.positions - crystal.positions, axis=1)
    assert away[wrong].max() < 0.3
    np.testing.assert_array_equal(orderings(clean), orderings(crystal))


def test_exchanging_the_species_changes_nothing(denoiser: Denoiser) -> None:
    _, hot = noised("L1_2", 0.08)
    other = hot.copy()
    other.numbers = 108 - other.numbers
    one, two = denoiser.denoise(hot), denoiser.denoise(other)
    np.testing.assert_allclose(one.positions, two.positions, atol=1e-5)
    assert (one.arrays["structure_type"] == two.arrays["structure_type"]).all()


def test_a_random_packing_is_disordered(denoiser: Denoiser) -> None:
    rng = np.random.default_rng(5)
    sample = lattices.with_two_species(lattices.packing_sample(rng, 400), rng)
    packing = Atoms(
        positions=2.4 * sample.positions, cell=2.4 * sample.cell, pbc=True, numbers=28 + sample.species
    )
    clean = denoiser.denoise(packing)
    assert (clean.arrays["structure_type"] == DISORDERED).mean() > 0.97
    assert (orderings(clean) == 0).mean() > 0.99


def test_the_command_line_tells_the_verdict_beside_the_classifiers(
    denoiser: Denoiser, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from typer.testing import CliRunner

    from zoo.cli import app

    _, hot = noised("L1_2", 0.08, n=3)
    write(tmp_path / "hot.extxyz", hot)
    out = tmp_path / "clean.extxyz"
    told = CliRunner().invoke(
        app, ["denoise", str(tmp_path / "hot.extxyz"), "-c", NAME, "-o", str(out), "--analyze"]
    )
    assert told.exit_code == 0, told.output
    assert "verdict" in told.output
    assert "mean confidence" in told.output
    clean = read(out)
    assert (clean.arrays["structure_type"] == "L1_2").mean() > 0.97
    assert clean.arrays["confidence"].min() > 0
    assert (clean.arrays["site_type"] == 1).all()
    assert clean.info["site_type_legend"].startswith("0 other, 1 fcc")


def test_ovito_opens_the_verdict_with_its_names(denoiser: Denoiser, tmp_path: Path) -> None:
    from ovito.io import import_file

    _, hot = noised("B2", 0.08, n=3)
    clean = denoiser.denoise(hot)
    write(tmp_path / "clean.extxyz", clean)
    data = import_file(str(tmp_path / "clean.extxyz")).compute()
    types = data.particles["Structure Type"]
    names = [types.type_by_id(int(code)).name for code in types]
    assert names == clean.arrays["structure_type"].tolist()
    np.testing.assert_allclose(data.particles["confidence"], clean.arrays["confidence"], atol=1e-6)


def test_the_ovito_modifier_sees_particle_types_and_tells_the_verdict(denoiser: Denoiser) -> None:
    from ovito.io.ase import ase_to_ovito
    from ovito.pipeline import Pipeline, StaticSource

    from zoo.ovito import CONFIDENCE, DenoiseModifier

    _, hot = noised("L1_0", 0.08, n=3)
    pipeline = Pipeline(source=StaticSource(data=ase_to_ovito(hot)))
    pipeline.modifiers.append(DenoiseModifier(checkpoint=NAME))
    found, clean = pipeline.compute(), denoiser.denoise(hot)
    types = found.particles["Structure Type"]
    assert [types.type_by_id(int(k)).name for k in types] == clean.arrays["structure_type"].tolist()
    np.testing.assert_allclose(found.particles[CONFIDENCE], clean.arrays["confidence"], atol=1e-4)
    assert len({tuple(kind.color) for kind in types.types}) == len(types.types)


def test_the_golden_output(denoiser: Denoiser) -> None:
    stored, found = json.loads(GOLDEN.read_text()), golden(denoiser)
    assert found["version"] == stored["version"], "run `python tests/make_golden.py` for the new release"
    assert found["steps"] == stored["steps"]
    np.testing.assert_allclose(found["positions"], stored["positions"], atol=2e-3)
    assert found["structure_type"] == stored["structure_type"]
    np.testing.assert_allclose(found["confidence"], stored["confidence"], atol=2e-2)
