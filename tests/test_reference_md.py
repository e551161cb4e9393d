"""Reference MD: starts, torsions, the file format, resuming, and files that are not segments."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.reference_md import read_segments
from training.reference_md.__main__ import main
from training.reference_md.segments import Record, read_record, segment_path, write_record
from training.reference_md.systems import ALANINE_DIPEPTIDE, SYSTEMS, MolecularSystem, atom_indices
from training.reference_md.torsions import handedness, set_torsion, torsion
from zoo.errors import StructureError, ZooError

mdtraj = pytest.importorskip("mdtraj")

PHI, PSI = (4, 6, 8, 14), (6, 8, 14, 16)


# --- where segments start ---------------------------------------------------------------------------


def test_starts_are_fixed_for_good() -> None:
    """Data of different machines and years must be extendable: these numbers may never change."""
    assert ALANINE_DIPEPTIDE.start(0).angles == (-81.2, 74.9)
    assert ALANINE_DIPEPTIDE.start(17).angles == (-3.9, -91.7)
    assert ALANINE_DIPEPTIDE.random_seed(0, 0, 0) == 1885977611


def test_first_seven_segments_visit_each_basin() -> None:
    names = [ALANINE_DIPEPTIDE.basin(k).name for k in range(7)]
    assert names == ["C7eq", "C5", "PII", "alpha-R", "alpha-prime", "alpha-L", "C7ax"]


def test_basins_and_barriers_interleave_evenly() -> None:
    count = Counter(ALANINE_DIPEPTIDE.basin(k).name for k in range(30))
    assert all(count[b.name] == 3 for b in ALANINE_DIPEPTIDE.basins)
    assert all(count[b.name] == 1 for b in ALANINE_DIPEPTIDE.barriers)


def test_a_system_without_barriers_cycles_through_its_basins() -> None:
    system = replace(ALANINE_DIPEPTIDE, barriers=())
    assert [system.basin(k).name for k in (0, 6, 7, 13)] == ["C7eq", "C7ax", "C7eq", "C7ax"]


def test_no_two_segments_share_angles_or_random_numbers() -> None:
    assert len({ALANINE_DIPEPTIDE.start(k).angles for k in range(200)}) == 200
    seeds = {ALANINE_DIPEPTIDE.random_seed(k, *stage) for k in range(200) for stage in ((0, 0), (1, 1))}
    assert len(seeds) == 400
    assert min(seeds) > 0  # OpenMM takes 0 for "any"


def test_jitter_stays_near_the_basin() -> None:
    off = np.array(
        [
            (np.subtract(s.angles, s.basin.angles) + 180) % 360 - 180
            for s in map(ALANINE_DIPEPTIDE.start, range(300))
        ]
    )
    assert np.abs(off).max() < 30
    assert 5 < off.std() < 7


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=lambda s: s.name)
def test_every_system_names_atoms_and_angles_that_exist(system: MolecularSystem) -> None:
    top = mdtraj.load(str(system.pdb_path)).topology
    names = [f"{a.residue.name}:{a.name}" for a in top.atoms]
    bonds = {frozenset((a.index, b.index)) for a, b in top.bonds}
    assert len(set(names)) == len(names)
    for atoms in (*system.torsions.values(), *system.trans):
        i = atom_indices(atoms, names)
        assert all(frozenset(pair) in bonds for pair in pairwise(i)), atoms
    for centre in system.stereocentres:
        i = atom_indices(centre, names)
        assert all(frozenset((i[0], other)) in bonds for other in i[1:]), centre
    assert all(len(b.angles) == len(system.torsions) for b in (*system.basins, *system.barriers))


# --- torsions ---------------------------------------------------------------------------------------


def _start() -> tuple[Any, np.ndarray[Any, Any], list[tuple[int, int]]]:
    frame = mdtraj.load(str(ALANINE_DIPEPTIDE.pdb_path))
    return frame, frame.xyz[0].astype(float), [(a.index, b.index) for a, b in frame.topology.bonds]


def test_the_committed_structure_is_l_alanine_dipeptide() -> None:
    """CORN rule: seen from the hydrogen, CO, R and N of an L amino acid read clockwise."""
    frame, x, bonds = _start()
    names = [a.name for a in frame.topology.atoms]
    assert (frame.n_atoms, len(bonds)) == (22, 21)
    co, r, n, h, ca = (names.index("C", 8), names.index("CB"), 6, names.index("HA"), names.index("CA"))
    view = x[ca] - x[h]  # away from the eye
    assert np.dot(np.cross(x[co] - x[ca], x[r] - x[ca]), view) > 0
    assert np.dot(np.cross(x[r] - x[ca], x[n] - x[ca]), view) > 0


@pytest.mark.parametrize("angles", [(-80, 75), (0, 90), (60, -150), (180, -180), (-0.5, 179.5)])
def test_torsions_are_set_exactly_and_nothing_else_changes(angles: tuple[float, float]) -> None:
    frame, x, bonds = _start()
    y = x
    for atoms, angle in zip((PHI, PSI), angles, strict=True):
        y = set_torsion(y, bonds, atoms, angle)
    moved = mdtraj.Trajectory(y, frame.topology)
    measured = np.degrees([mdtraj.compute_phi(moved)[1][0, 0], mdtraj.compute_psi(moved)[1][0, 0]])
    assert np.abs((measured - angles + 180) % 360 - 180).max() < 1e-3
    ours = np.array([torsion(y, PHI), torsion(y, PSI)])
    assert np.abs((ours - measured + 180) % 360 - 180).max() < 1e-3
    near = {tuple(sorted(b)) for b in bonds}  # bonds, and with two bonds in a row, bond angles
    near |= {(min(a, d), max(a, d)) for a, b in bonds for c, d in bonds if b == c and a != d}
    for i, j in near:
        assert np.linalg.norm(y[i] - y[j]) == pytest.approx(np.linalg.norm(x[i] - x[j]), abs=1e-9)
    centre = (8, 6, 14, 10)
    assert handedness(y, centre) == handedness(x, centre)
    omega = (1, 4, 6, 8)
    assert torsion(y, omega) == pytest.approx(torsion(x, omega), abs=1e-6)


def test_handedness_changes_sign_in_a_mirror() -> None:
    _, x, _ = _start()
    assert handedness(x * [1, 1, -1], (8, 6, 14, 10)) == -handedness(x, (8, 6, 14, 10))


def test_bonds_in_rings_and_missing_bonds_are_refused() -> None:
    x = np.random.default_rng(0).random((5, 3))
    with pytest.raises(ValueError, match="ring"):
        set_torsion(x, [(0, 1), (1, 2), (2, 3), (3, 0)], (0, 1, 2, 3), 10)
    with pytest.raises(ValueError, match="not bonded"):
        set_torsion(x, [(0, 1), (2, 3)], (0, 1, 2, 3), 10)
    with pytest.raises(ValueError, match="far side"):
        set_torsion(x, [(0, 1), (1, 2), (2, 3)], (0, 1, 2, 4), 10)


# --- the file format --------------------------------------------------------------------------------


def _record(n_frames: int = 3, n_atoms: int = 4) -> Record:
    x = np.random.default_rng(1).normal(size=(n_frames, n_atoms, 3)).astype(np.float32)
    return Record(x, 0.2, (-80.5, 75.0), 2.04, 830, {"segment": 0, "µ": "α"}, "<State/>")


def test_round_trip(tmp_path: Path) -> None:
    record = _record()
    write_record(segment_path(tmp_path, 7), record)
    again = read_record(tmp_path / "segment-007.npz")
    assert np.array_equal(again.pos_nm, record.pos_nm)
    assert replace(again, pos_nm=record.pos_nm) == record
    assert [p.name for p in tmp_path.iterdir()] == ["segment-007.npz"]


def test_read_segments_gives_angstrom(tmp_path: Path) -> None:
    for number in (11, 2):
        write_record(segment_path(tmp_path, number), _record())
    first, second = read_segments(tmp_path)
    assert (first.name, second.name) == ("segment-002", "segment-011")
    assert first.positions.dtype == np.float32
    np.testing.assert_allclose(first.positions, _record().pos_nm * 10, rtol=1e-6)
    assert (first.dt, first.seed, first.path) == (0.2, (-80.5, 75.0), tmp_path / "segment-002.npz")


def test_files_without_provenance_and_with_integer_seeds_are_read(tmp_path: Path) -> None:
    x = np.zeros((2, 3, 3), np.float32)
    seed = np.array([55, 45])
    np.savez_compressed(tmp_path / "old.npz", pos_nm=x, dt_ps=0.2, seed=seed, box_nm=2.0, n_atoms_total=9)
    assert read_segments(str(tmp_path))[0].seed == (55.0, 45.0)


def test_numpy_alone_reads_without_pickles(tmp_path: Path) -> None:
    write_record(tmp_path / "a.npz", _record())
    with np.load(tmp_path / "a.npz", allow_pickle=False) as data:
        assert json.loads(str(data["provenance"]))["µ"] == "α"


def test_reading_imports_neither_openmm_nor_torch() -> None:
    heavy = "{'openmm', 'torch', 'mdtraj', 'ase'}"
    code = f"import sys, training.reference_md; print({heavy} & set(sys.modules))"
    root = Path(__file__).parents[1]
    shown = subprocess.run([sys.executable, "-c", code], check=True, cwd=root, capture_output=True, text=True)
    assert shown.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pos_nm": None}, "no 'pos_nm'"),
        ({"dt_ps": None}, "no 'dt_ps'"),
        ({"pos_nm": np.zeros((3, 4))}, "shape"),
        ({"pos_nm": np.zeros((0, 4, 3), np.float32)}, "shape"),
        ({"pos_nm": np.zeros((3, 4, 3), np.int64)}, "int64"),
        ({"pos_nm": np.array([[[0, 0, 0]], [[0, np.nan, 0]]], np.float32)}, "not finite in frame 1"),
        ({"pos_nm": np.array([[[{}] * 3]], dtype=object)}, "allow_pickle"),
        ({"dt_ps": 0.0}, "dt_ps is 0.0"),
        ({"dt_ps": np.array([0.2, 0.2])}, "dt_ps is not one number"),
        ({"box_nm": np.inf}, "box_nm"),
        ({"box_nm": "large"}, "large"),
        ({"n_atoms_total": 3}, "fewer"),
        ({"seed": np.array([np.nan])}, "seed"),
        ({"provenance": np.array("{")}, "Expecting"),
        ({"provenance": np.array("[]")}, "JSON object"),
    ],
)
def test_files_with_wrong_content_are_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    arrays: dict[str, Any] = {
        "pos_nm": np.zeros((3, 4, 3), np.float32),
        "dt_ps": 0.2,
        "seed": np.array([1.0]),
        "box_nm": 2.0,
        "n_atoms_total": 40,
        **change,
    }
    np.savez(tmp_path / "x.npz", **{k: v for k, v in arrays.items() if v is not None})
    _refused(tmp_path, reason)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    good = tmp_path / "good"
    write_record(good, _record(50, 22))
    content = good.read_bytes()
    bad = tmp_path / "in"
    bad.mkdir()
    path = bad / "x.npz"
    for damaged in (b"", b"not a zip", content[: len(content) // 2], _flipped(content)):
        path.write_bytes(damaged)
        _refused(bad)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pos_nm", "raw")
    _refused(bad, "not an array")
    path.unlink()
    path.mkdir()
    _refused(bad)


def test_a_file_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (10**12, 22, 3), }"
    header = header.replace(b"10**12", b"1000000000000").ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("pos_nm.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    _refused(tmp_path)


def test_folders_without_segments_and_of_several_molecules(tmp_path: Path) -> None:
    with pytest.raises(StructureError, match=r"no \*\.npz"):
        read_segments(tmp_path)
    with pytest.raises(StructureError, match="not a folder"):
        read_segments(tmp_path / "missing")
    write_record(tmp_path / "a.npz", _record(n_atoms=4))
    write_record(tmp_path / "b.npz", _record(n_atoms=5))
    with pytest.raises(StructureError, match="one molecule per folder"):
        read_segments(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    write_record(path, _record())
    before = path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(ZooError, match="No space left"):
        write_record(path, _record(5))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


def _refused(folder: Path, reason: str = "") -> None:
    with pytest.raises(StructureError) as caught:
        read_segments(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert "x.npz" in message
    assert reason in message


# --- the command ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["unobtainium", "--segments", "1", "--length", "1"],
        ["alanine-dipeptide", "--segments", "0", "--length", "1"],
        ["alanine-dipeptide", "--segments", "1", "--length", "0"],
        ["alanine-dipeptide", "--segments", "1", "--length", "nan"],
        ["alanine-dipeptide", "--segments", "1", "--length", "0.3"],
        ["alanine-dipeptide", "--segments", "1", "--length", "1", "--first", "-1"],
        ["alanine-dipeptide", "--segments", "1", "--length", "1", "--threads", "0"],
        ["alanine-dipeptide", "--segments", "1", "--length", "1", "--platform", "abacus"],
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "-o", str(tmp_path / "new")])
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "new").exists()


def test_without_openmm_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openmm", None)
    monkeypatch.delitem(sys.modules, "training.reference_md.simulation", raising=False)
    assert main(["alanine-dipeptide", "-o", str(tmp_path), "--segments", "1", "--length", "1"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: reference MD needs OpenMM")
    assert error.count("\n") == 1


# --- the MD (in vacuum, where it is fast) -----------------------------------------------------------


@pytest.fixture(scope="module")
def simulation() -> Any:
    pytest.importorskip("openmm")
    from training.reference_md import simulation

    return simulation


@pytest.fixture
def vacuum(simulation: Any, tmp_path: Path) -> Iterator[Any]:
    system = replace(ALANINE_DIPEPTIDE, force_field=("amber14/protein.ff14SB.xml",))
    protocol = simulation.Protocol(solvated=False, equilibration=((0.4, 2.0),))
    yield simulation.Generator(system, tmp_path / "out", "Reference", save_every=0.4, protocol=protocol)


def test_a_killed_segment_continues_as_if_nothing_had_happened(vacuum: Any, tmp_path: Path) -> None:
    vacuum.run(3, 1.6)
    whole = read_record(segment_path(vacuum.folder, 3))

    def kill(progress: Any) -> None:
        if progress.n_frames == 5:
            raise KeyboardInterrupt

    other = replace(vacuum, folder=tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        other.run(3, 1.6, kill)
    assert len(read_record(segment_path(other.folder, 3)).pos_nm) == 5
    assert other.run(3, 1.6)
    resumed = read_record(segment_path(other.folder, 3))
    assert whole.pos_nm.shape == (9, 22, 3)
    assert np.array_equal(resumed.pos_nm, whole.pos_nm)
    assert [run["first_frame"] for run in resumed.provenance["runs"]] == [0, 5]
    assert not other.run(3, 1.6)  # nothing left to do
    assert other.run(3, 2.0)  # longer
    longer = read_record(segment_path(other.folder, 3))
    assert np.array_equal(longer.pos_nm[:9], whole.pos_nm)
    assert len(longer.pos_nm) == 11
    assert (other.folder / "topology.pdb").read_bytes() == ALANINE_DIPEPTIDE.pdb_path.read_bytes()


def test_every_start_keeps_its_angles_handedness_and_peptide_bonds(vacuum: Any) -> None:
    """All 16 regions; also that the angles of the first frame are those of the restraint."""
    for k in (*range(10), 17, 18, 19, 27, 28, 29):
        record = vacuum._prepare(k)  # raises if the chirality or a trans bond is lost
        off = (np.subtract(vacuum.angles(record.pos_nm[0]), record.seed) + 180) % 360 - 180
        assert np.abs(off).max() < 25, (k, record.seed, off)


def test_constraints_temperature_and_frames(vacuum: Any) -> None:
    temperatures: list[float] = []
    vacuum.run(0, 8.0, lambda p: temperatures.append(p.temperature))
    record = read_record(segment_path(vacuum.folder, 0))
    x = record.pos_nm.astype(float)
    assert np.linalg.norm(x[:, 8] - x[:, 9], axis=1) == pytest.approx(0.109, abs=1e-4)  # CA-HA
    assert np.linalg.norm(x[1:] - x[:-1], axis=2).max(axis=1).min() > 1e-3  # no frame twice
    assert 200 < np.mean(temperatures) < 400
    assert record.provenance["protocol"]["production"]["timestep_fs"] == 4.0


def test_segments_of_another_protocol_or_tampered_ones_are_not_continued(
    vacuum: Any, simulation: Any
) -> None:
    vacuum.run(0, 0.4)
    path = segment_path(vacuum.folder, 0)
    hotter = replace(vacuum, protocol=replace(vacuum.protocol, temperature=400.0))
    with pytest.raises(simulation.SegmentError, match="another protocol"):
        hotter.run(0, 0.8)
    with pytest.raises(simulation.SegmentError, match="another segment"):
        path.rename(segment_path(vacuum.folder, 1))
        vacuum.run(1, 0.8)
    segment_path(vacuum.folder, 1).rename(path)
    record = read_record(path)
    write_record(path, replace(record, pos_nm=record.pos_nm + np.float32(0.1)))
    with pytest.raises(simulation.SegmentError, match="not its last frame"):
        vacuum.run(0, 0.8)
    for state in ("", "not xml", record.state_xml[:500], record.state_xml[:-500], "<State/>"):
        write_record(path, replace(record, state_xml=state))
        with pytest.raises(simulation.SegmentError, match="delete it to start again"):
            vacuum.run(0, 0.8)
    (vacuum.folder / "topology.pdb").write_text("another molecule")
    with pytest.raises(ZooError, match="another molecule"):
        replace(vacuum)


def test_an_unstable_segment_keeps_what_was_saved(vacuum: Any, simulation: Any) -> None:
    vacuum.run(0, 0.8)
    path = segment_path(vacuum.folder, 0)
    record = read_record(path)
    wild = replace(vacuum, protocol=replace(vacuum.protocol, timestep=50.0))
    record.provenance["protocol"] = wild.protocol.as_json(wild.system)
    write_record(path, record)
    before = path.read_bytes()
    with pytest.raises(simulation.SegmentError, match="segment 0 failed"):
        wild.run(0, 20.0)
    assert path.read_bytes() == before


def test_a_segment_that_fails_does_not_stop_the_others(
    tmp_path: Path, simulation: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = []

    def run(self: Any, segment: int, *_: Any) -> bool:
        if segment == 1:
            raise simulation.SegmentError("segment 1 failed")
        done.append(segment)
        return False

    monkeypatch.setattr(simulation.Generator, "run", run)
    arguments = ["--segments", "3", "--length", "1", "--platform", "CPU"]
    assert main(["alanine-dipeptide", "-o", str(tmp_path), *arguments]) == 1
    assert done == [0, 2]
    assert capsys.readouterr().err == "error: segment 1 failed\n"


def test_an_unwritable_folder_is_one_line(
    tmp_path: Path, simulation: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["--segments", "1", "--length", "1", "--platform", "CPU"]
    assert main(["alanine-dipeptide", "-o", str(tmp_path / "file"), *arguments]) == 1
    assert capsys.readouterr().err.startswith("error: cannot write to")


def test_rebuilt_water_topology_is_the_one_that_was_equilibrated(simulation: Any, tmp_path: Path) -> None:
    """Atom order and force field of a continued segment must be those it was built with."""
    from openmm import Vec3, app, unit

    g = simulation.Generator(ALANINE_DIPEPTIDE, tmp_path, "Reference")
    solute = app.PDBFile(str(ALANINE_DIPEPTIDE.pdb_path)).topology
    modeller = app.Modeller(solute, g.build(ALANINE_DIPEPTIDE.start(0)) * unit.nanometer)
    modeller.addSolvent(g._force_field, model="tip3p", boxSize=Vec3(2.1, 2.1, 2.1) * unit.nanometer)
    n_atoms = modeller.topology.getNumAtoms()
    assert 780 < n_atoms < 880
    rebuilt = g.solvated_topology(n_atoms, 2.1)
    assert g._solute.getNumAtoms() == 22  # the next segment starts from it

    def described(topology: Any) -> list[tuple[str, str]]:
        return [(a.residue.name, a.name) for a in topology.atoms()]

    assert described(rebuilt) == described(modeller.topology)
    a, b = g.openmm_system(rebuilt), g.openmm_system(modeller.topology)
    assert a.getNumConstraints() == b.getNumConstraints()
    assert [a.getParticleMass(i)._value for i in range(n_atoms)] == [
        b.getParticleMass(i)._value for i in range(n_atoms)
    ]
    assert not any(isinstance(f, simulation.openmm.MonteCarloBarostat) for f in a.getForces())
