"""Defects counted without a reference lattice, in structures of which everything is known."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write

pytest.importorskip("ovito", reason="structure analysis needs OVITO")

from training.benchmarks.defects import build
from zoo.analysis.crystals import structure_types
from zoo.analysis.defect_report import DefectReport, defect_report
from zoo.analysis.extended_defects import grains, planar_faults
from zoo.analysis.point_defects import point_defects
from zoo.cli import main as cli
from zoo.denoiser import Denoiser
from zoo.errors import StructureError

FCC, BCC, HCP = (build.LATTICES[name] for name in ("fcc", "bcc", "hcp"))


def counted(atoms: Atoms) -> tuple[int, int]:
    found = point_defects(atoms, structure_types(atoms))
    return len(found.vacancies), len(found.interstitials)


def block(name: str) -> Atoms:
    """A perfect crystal of some hundred atoms."""
    if name in build.LATTICES:
        return build.LATTICES[name].perfect()
    if name == "hexagonal diamond":
        one = bulk("Si", "hcp", a=3.84, c=3.84 * (8 / 3) ** 0.5, orthorhombic=True)
        two = one.copy()
        two.positions[:, 2] += 3 / 8 * one.cell[2, 2]
        return (one + two).repeat((5, 3, 3))
    kind, a, n = {"simple cubic": ("sc", 3.35, 6), "cubic diamond": ("diamond", 5.43, 4)}[name]
    return bulk("Si", kind, a=a, cubic=True).repeat(n)


ALL = ("fcc", "bcc", "hcp", "simple cubic", "cubic diamond", "hexagonal diamond")


def rotation() -> Any:
    q, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))
    return q


@pytest.mark.parametrize("name", ALL)
def test_a_perfect_crystal_has_no_defect_and_a_vacancy_is_one(name: str) -> None:
    atoms = block(name)
    assert counted(atoms) == (0, 0)
    missing = build.central_atom(atoms)
    place = atoms.positions[missing].copy()
    del atoms[missing]
    found = point_defects(atoms, structure_types(atoms))
    assert len(found.interstitials) == 0
    np.testing.assert_allclose(found.vacancies, [place], atol=0.05)


@pytest.mark.parametrize("name", ("fcc", "bcc", "hcp"))
def test_an_interstitial_is_one_atom_too_many(name: str) -> None:
    lattice = build.LATTICES[name]
    found = point_defects(build.interstitial(lattice), structure_types(build.interstitial(lattice)))
    assert (len(found.vacancies), len(found.interstitials)) == (0, 1)
    centre = lattice.perfect().positions[build.central_atom(lattice.perfect())]
    assert np.linalg.norm(found.interstitials[0] - centre) < lattice.nearest


@pytest.mark.parametrize("name", ALL)
def test_counting_does_not_depend_on_orientation_strain_cell_or_order(name: str) -> None:
    atoms = block(name)
    rng = np.random.default_rng(1)
    far = np.argsort(np.linalg.norm(atoms.positions - atoms.positions[0], axis=1))
    del atoms[[0, int(far[len(far) // 2])]]  # two, far from each other, one at the edge of the cell
    atoms = atoms[rng.permutation(len(atoms))]
    strain = np.eye(3) + rng.normal(0, 0.01, (3, 3))
    atoms.set_cell(atoms.cell[:] @ strain @ rotation(), scale_atoms=True)
    atoms.set_cell(np.array([[1, 0, 0], [1, 1, 0], [0, -1, 1]]) @ atoms.cell[:])  # the same crystal, skewed
    atoms.positions += rng.normal(0, 20, 3)
    assert counted(atoms) == (2, 0)


@pytest.mark.parametrize(
    ("name", "n"),
    [("fcc", 2), ("fcc", 3), ("bcc", 3), ("sc", 3), ("diamond", 2)],
)
def test_supercells_as_small_as_those_of_electronic_structure_are_counted(name: str, n: int) -> None:
    atoms = bulk(
        "Si", name, a={"fcc": 3.6, "bcc": 2.87, "sc": 2.5, "diamond": 5.43}[name], cubic=True
    ).repeat(n)
    assert counted(atoms) == (0, 0)
    del atoms[0]
    assert counted(atoms) == (1, 0)


def test_a_unit_cell_is_reported_and_not_refused() -> None:
    report = defect_report(bulk("Cu", cubic=True))
    assert (report.crystal, report.vacancies, report.interstitials) == ("fcc", 0, 0)
    assert (report.grains, report.dislocations) == ((4,), {})


def test_neighbouring_vacancies_are_two_and_a_pair_with_its_atom_is_none() -> None:
    atoms = FCC.perfect()
    centre = build.central_atom(atoms)
    distance = atoms.get_distances(centre, range(len(atoms)), mic=True)
    near = int(np.argsort(distance)[1])
    pair = atoms.copy()
    del pair[[centre, near]]
    assert counted(pair) == (2, 0)
    displaced = atoms.copy()
    displaced.positions[centre] += [0.9, 0.2, 0.1]
    assert counted(displaced) == (0, 0)
    frenkel = build.interstitial(FCC)
    empty = int(np.argmax(frenkel.get_distances(centre, range(len(frenkel)), mic=True)))
    del frenkel[empty]
    assert counted(frenkel) == (1, 1)


@pytest.mark.parametrize(
    "atoms",
    [
        pytest.param(build.slab(FCC, "100", 15.0), id="fcc (100)"),
        pytest.param(build.slab(FCC, "111", 15.0), id="fcc (111)"),
        pytest.param(build.slab(BCC, "110", None), id="bcc (110), free"),
        pytest.param(build.void(FCC), id="void"),
        pytest.param(build.cluster(BCC), id="cluster"),
        pytest.param(build.wire(HCP), id="wire"),
        pytest.param(build.grain_boundary(FCC), id="grain boundary"),
        pytest.param(build.stacking_fault(FCC), id="stacking fault"),
        pytest.param(build.twin(FCC), id="twin"),
    ],
)
def test_surfaces_boundaries_and_planes_are_no_point_defects(atoms: Atoms) -> None:
    assert counted(atoms) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("noise", (0.05, 0.10))
@pytest.mark.parametrize("name", ("fcc", "bcc", "hcp"))
def test_heat_hides_nothing_once_it_is_taken_out(name: str, noise: float) -> None:
    lattice, denoiser = build.LATTICES[name], Denoiser.from_pretrained()
    for make, expected in ((build.vacancy, (1, 0)), (build.interstitial, (0, 1))):
        hot = build.noised(make(lattice), noise * lattice.nearest, 3)
        assert counted(denoiser.denoise(hot)) == expected


def test_labels_of_other_atoms_are_refused() -> None:
    with pytest.raises(StructureError, match="864 atoms and 3 labels"):
        point_defects(FCC.perfect(), np.zeros(3, dtype=np.int64))


def test_planes_are_told_apart() -> None:
    def kinds(atoms: Atoms) -> list[tuple[str, int]]:
        return [(p.kind, p.atoms) for p in planar_faults(atoms, structure_types(atoms), FCC.nearest)]

    assert kinds(build.stacking_fault(FCC)) == [("intrinsic stacking fault", 96)]
    assert kinds(build.twin(FCC)) == [("coherent twin boundary", 48)] * 2
    assert kinds(FCC.perfect()) == kinds(HCP.perfect()) == []
    faulted = build.stacking("ABABABCACACACA", HCP)
    (plane,) = planar_faults(faulted, structure_types(faulted), HCP.nearest)
    assert (plane.kind, plane.atoms) == ("basal stacking fault", 96)
    np.testing.assert_allclose(np.abs(plane.normal), [0, 0, 1], atol=1e-6)


def test_grains_are_those_of_different_orientation() -> None:
    assert list(grains(BCC.perfect(), BCC.nearest)) == [1024]
    twins = grains(build.twin(FCC), FCC.nearest)
    assert len(twins) == 2
    assert len(grains(build.polycrystal(FCC), FCC.nearest)) == 2


def test_a_report_has_everything_and_a_liquid_has_no_defects() -> None:
    report = defect_report(build.vacancy(FCC))
    assert (report.crystal, report.vacancies, report.interstitials) == ("fcc", 1, 0)
    assert (report.grains, report.planes, report.dislocations) == ((863,), {}, {})
    assert (report.disordered, report.dislocation_density) == (0.0, 0.0)
    assert json.loads(json.dumps(report.to_json()))["fractions"]["fcc"] == pytest.approx(851 / 863, abs=1e-6)
    gas = Atoms("Ar200", np.random.default_rng(0).random((200, 3)) * 20, cell=[20] * 3, pbc=True)
    nothing = defect_report(gas)
    assert nothing.crystal is None
    assert nothing.disordered > 0.9
    assert (nothing.vacancies, nothing.interstitials, nothing.grains) == (0, 0, ())


@pytest.mark.slow
@pytest.mark.parametrize("name", ("fcc", "bcc", "hcp"))
def test_an_edge_dislocation_is_a_line_and_its_core_no_point_defect(name: str) -> None:
    lattice = build.LATTICES[name]
    hot = build.noised(build.edge_dislocation(lattice).atoms, 0.05 * lattice.nearest, 1)
    report: DefectReport = defect_report(Denoiser.from_pretrained().denoise(hot))
    families = {"fcc": "1/6<112> (Shockley)", "bcc": "1/2<111>", "hcp": "1/3<1-100>"}
    assert list(report.dislocations) == [families[name]]
    assert (report.vacancies, report.interstitials) == (0, 0)
    assert len(report.grains) == 1


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def trajectory(tmp_path: Path) -> Path:
    frames = []
    for k in range(3):
        atoms = FCC.perfect()
        order = np.random.default_rng(0).permutation(len(atoms))
        del atoms[order[: 2 * k]]
        frames.append(build.noised(atoms, 0.05 * FCC.nearest, k))
    write(tmp_path / "run.extxyz", frames)
    return tmp_path / "run.extxyz"


@pytest.mark.slow
def test_a_trajectory_becomes_a_table_a_report_and_a_picture(
    trajectory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = trajectory.with_name("defects.json")
    assert cli(["analyze", str(trajectory), "-o", str(report), "-q"]) == 0
    table = capsys.readouterr().out
    assert "vac." in table
    assert "100.00 %" in table
    assert max(map(len, table.splitlines()[:4])) <= 80
    found = json.loads(report.read_text())
    assert found["checkpoint"].startswith("denoiser-elements@")
    assert [(f["frame"], f["vacancies"], f["interstitials"]) for f in found["frames"]] == [
        (0, 0, 0), (1, 2, 0), (2, 4, 0),
    ]  # fmt: skip
    assert report.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert cli(["analyze", str(trajectory), "-o", str(report)]) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.slow
def test_one_frame_without_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "twin.cif", build.twin(FCC))
    options = ["--no-denoise", "-o", str(tmp_path / "r.json")]
    assert cli(["analyze", str(tmp_path / "twin.cif"), *options]) == 0
    assert "coherent twin boundaries" in capsys.readouterr().out
    (frame,) = json.loads((tmp_path / "r.json").read_text())["frames"]
    assert frame["planes"] == {"coherent twin boundary": 2}
    assert json.loads((tmp_path / "r.json").read_text())["checkpoint"] is None


@pytest.mark.slow
def test_what_was_done_before_a_bad_frame_is_kept(
    trajectory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = trajectory.read_text()
    trajectory.write_text(text[: len(text) - 400])
    report = trajectory.with_name("defects.json")
    assert cli(["analyze", str(trajectory), "-o", str(report), "-q"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "2 finished frames are shown" in error
    assert len(json.loads(report.read_text())["frames"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.xyz"], "no.xyz: no such file"),
        (["{run}", "-o", "report.txt"], "name a report that ends in .json"),
        (["{run}", "-o", "nowhere/report.json"], "there is no folder nowhere"),
        (["{run}", "--start", "7"], "ends before frame 7"),
        (["{run}", "--start", "2", "--stop", "1"], "--stop 1 is not after --start 2"),
        (["{run}", "-c", "denoiser-element"], "did you mean"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], message: str, trajectory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["analyze", *(a.format(run=trajectory) for a in arguments)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_crystals_without_a_classifier_are_told_by_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from training.polymorphs import orthogonal

    crystal = orthogonal("alpha-cristobalite").repeat(3)
    crystal.rattle(0.03, seed=0)
    write(tmp_path / "hot.extxyz", [crystal, crystal])
    assert (
        cli(["analyze", str(tmp_path / "hot.extxyz"), "--stop", "1", "-o", str(tmp_path / "out.json")]) == 0
    )
    told = capsys.readouterr().out
    assert re.search(r"alpha-cristobalite +100.00 %", told)
    assert "classifiers have no class for alpha-cristobalite, so defects are not counted" in told
    assert "no crystal found" not in told
    (frame,) = json.loads((tmp_path / "out.json").read_text())["frames"]
    assert frame["verdict"] == {"alpha-cristobalite": 1.0}
    assert cli(["analyze", str(tmp_path / "hot.extxyz")]) == 0
    assert len(re.findall(r"alpha-cristobalite +100.00 % +0.00 %", capsys.readouterr().out)) == 2
