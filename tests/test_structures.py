"""Structures in and out: formats, streaming, what survives a failure, and what is refused."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import itertools
import lzma
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian
from ase.io import read

from zoo.errors import StructureError
from zoo.structures import FrameWriter, check_structure, read_frames
from zoo.structures.lammps_box import bounds_from_lattice, lattice_from_bounds

DATA = Path(__file__).parent / "data" / "io"


def frames_of(path: Path, **options: object) -> list[Atoms]:
    return list(read_frames(path, **options))  # type: ignore[arg-type]


def write_all(path: Path, frames: list[Atoms], **options: object) -> Path:
    with FrameWriter(path, **options) as writer:  # type: ignore[arg-type]
        for atoms in frames:
            writer.write(atoms)
    return path


def dump_text(columns: str, rows: list[str], box: str = "pp pp pp\n0 10\n0 10\n0 10", step: int = 0) -> str:
    return (
        f"ITEM: TIMESTEP\n{step}\nITEM: NUMBER OF ATOMS\n{len(rows)}\nITEM: BOX BOUNDS {box}\n"
        f"ITEM: ATOMS {columns}\n" + "".join(f"{row}\n" for row in rows)
    )


def sample(seed: int = 0) -> Atoms:
    """Two species, oblique cell, arrays of every kind, mixed pbc."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", cubic=True) * (2, 2, 1)
    atoms.set_cell(atoms.cell.array + [[0, 0, 0], [0.5, 0, 0], [0.2, -0.3, 0]], scale_atoms=True)
    atoms.rattle(0.1, seed=seed)
    atoms.numbers[::3] = 13
    atoms.pbc = [True, True, False]
    atoms.set_array("id", rng.permutation(len(atoms)) + 1)
    atoms.set_array("energy_density", rng.normal(size=len(atoms)))
    atoms.set_array("director", rng.normal(size=(len(atoms), 3)))
    atoms.set_array("picked", rng.random(len(atoms)) < 0.5)
    atoms.info.update(timestep=40 + seed, note="two words", origin=np.array([-1.0, 2.0, 0.5]))
    return atoms


# -- LAMMPS dumps ------------------------------------------------------------------------------


def test_triclinic_dump_agrees_with_ase_and_keeps_every_column() -> None:
    (atoms,) = frames_of(DATA / "triclinic.dump")
    theirs = read(DATA / "triclinic.dump", format="lammps-dump-text", order=False)
    assert np.allclose(atoms.cell.array, theirs.cell.array)
    assert np.allclose(atoms.positions, theirs.positions)
    assert np.allclose(atoms.info["origin"], theirs.get_celldisp().ravel())
    assert atoms.pbc.tolist() == [True, True, False]
    assert atoms.get_chemical_symbols() == ["Al", "Cu", "Al", "Cu"]
    assert atoms.arrays["id"].tolist() == [3, 1, 4, 2]  # file order
    assert atoms.arrays["type"].tolist() == [1, 2, 1, 2]
    assert atoms.arrays["ix"].tolist() == [0, 1, 0, 0]
    assert atoms.arrays["mol"].tolist() == [7, 7, 8, 8]
    assert atoms.arrays["c_pe"].tolist() == [-3.36, -3.54, -3.36, -3.54]
    assert atoms.arrays["c_s[1]"].tolist() == [0.001, 0.002, 0.003, 0.004]
    assert atoms.get_initial_charges().tolist() == [0.25, -0.25, 0, 0]
    assert atoms.arrays["velocities"][0].tolist() == [0.5, 0.0, -0.5]
    assert atoms.get_forces()[0].tolist() == [1.5, 0.0, -1.5]
    assert atoms.info["timestep"] == 100


def test_bounding_box_of_a_tilted_box_by_hand() -> None:
    cell, origin = lattice_from_bounds(
        np.array([[-1.5, 6.0], [-2.0, 4.5], [3.0, 9.0]]), np.array([1.0, -0.5, 0.25])
    )
    assert origin.tolist() == [-1.0, -2.0, 3.0]
    assert cell.tolist() == [[6.0, 0, 0], [1.0, 6.25, 0], [-0.5, 0.25, 6.0]]
    bounds, tilts = bounds_from_lattice(cell, origin)
    assert bounds.tolist() == [[-1.5, 6.0], [-2.0, 4.5], [3.0, 9.0]]
    assert tilts.tolist() == [1.0, -0.5, 0.25]


def test_general_triclinic_dump_with_units_and_time() -> None:
    (atoms,) = frames_of(DATA / "general-triclinic.dump", species=["Ge"])
    assert atoms.cell.array.tolist() == [[2, 2, 0], [0, 2, 2], [2, 0, 2]]
    assert np.allclose(atoms.positions, [[-1, -1, -1], [1, 1, 1]])
    assert atoms.info["time"] == 0.5
    assert atoms.info["lammps_units"] == "metal"
    assert atoms.get_chemical_symbols() == ["Ge", "Ge"]


def test_scaled_unscaled_and_unwrapped_coordinates_are_the_same_atoms(tmp_path: Path) -> None:
    box = "xy xz yz pp pp pp\n-3 11.5 1.5\n2 12 0\n-1 9 0"
    cell, origin = lattice_from_bounds(np.array([[-3, 11.5], [2, 12], [-1, 9.0]]), np.array([1.5, 0.0, 0.0]))
    rng = np.random.default_rng(3)
    scaled = rng.random((5, 3))
    images = rng.integers(-2, 3, size=(5, 3))
    values = {
        "x y z": scaled @ cell + origin,
        "xs ys zs": scaled,
        "xu yu zu": (scaled + images) @ cell + origin,
        "xsu ysu zsu": scaled + images,
    }
    found = {}
    for columns, coordinates in values.items():
        rows = [f"{i + 1} 1 " + " ".join(f"{v:.10f}" for v in xyz) for i, xyz in enumerate(coordinates)]
        path = tmp_path / "a.dump"
        path.write_text(dump_text(f"id type {columns}", rows, box))
        (found[columns],) = frames_of(path)
    for columns, atoms in found.items():
        shift = (atoms.positions - found["x y z"].positions) @ np.linalg.inv(cell)
        assert np.allclose(shift, np.rint(shift), atol=1e-7), columns
        assert np.allclose(shift, images if "u" in columns else 0, atol=1e-7), columns


def test_wrapped_and_unwrapped_side_by_side_give_image_flags(tmp_path: Path) -> None:
    path = tmp_path / "a.dump"
    path.write_text(dump_text("id type x y z xu yu zu", ["1 1 1 2 3 11 2 -7", "2 1 5 5 5 5 5 5"]))
    (atoms,) = frames_of(path)
    assert [atoms.arrays[k].tolist() for k in ("ix", "iy", "iz")] == [[1, 0], [0, 0], [-1, 0]]
    assert "xu" not in atoms.arrays  # it would no longer hold once the atoms move


def test_type_one_is_not_hydrogen(tmp_path: Path) -> None:
    path = tmp_path / "a.dump"
    path.write_text(dump_text("id type x y z", ["1 1 1 2 3", "2 2 5 5 5"]))
    (atoms,) = frames_of(path)
    assert atoms.numbers.tolist() == [0, 0]
    assert atoms.arrays["type"].tolist() == [1, 2]
    written = write_all(tmp_path / "b.dump", [atoms]).read_text()
    assert "ITEM: ATOMS id type x y z\n1 1 1 2 3\n2 2 5 5 5\n" in written
    (atoms,) = frames_of(path, species=["Al", "Cu"])
    assert atoms.get_chemical_symbols() == ["Al", "Cu"]
    with pytest.raises(StructureError, match="LAMMPS type 2 has no element"):
        frames_of(path, species=["Al"])
    with pytest.raises(StructureError, match="'Aluminium' is not an element"):
        frames_of(path, species=["Aluminium", "Cu"])


@pytest.mark.parametrize(
    ("columns", "rows", "expected"),
    [
        ("id element x y z", ["1 Al 1 1 1", "2 Cu 3 3 3"], ["Al", "Cu"]),
        ("id type typelabel x y z", ["1 1 Al 1 1 1", "2 2 Cu 3 3 3"], ["Al", "Cu"]),
        ("id type mass x y z", ["1 1 26.98 1 1 1", "2 2 63.55 3 3 3"], ["Al", "Cu"]),
        ("id type mass x y z", ["1 1 1 1 1 1", "2 1 1 3 3 3"], ["X", "X"]),
        ("id type element x y z", ["1 1 bead 1 1 1", "2 2 bead 3 3 3"], ["X", "X"]),
        ("id element element x y z", ["1 Al C 1 1 1", "2 Cu C 3 3 3"], ["Al", "Cu"]),
        ("id x y z", ["1 1 1 1", "2 3 3 3"], ["X", "X"]),
    ],
)
def test_where_elements_come_from(tmp_path: Path, columns: str, rows: list[str], expected: list[str]) -> None:
    path = tmp_path / "a.dump"
    path.write_text(dump_text(columns, rows))
    (atoms,) = frames_of(path)
    assert atoms.get_chemical_symbols() == expected


def test_species_outrank_the_element_column(tmp_path: Path) -> None:
    path = tmp_path / "a.dump"
    path.write_text(dump_text("id type element x y z", ["1 1 C 1 1 1", "2 2 C 3 3 3"]))
    assert frames_of(path, species=["Si", "Ge"])[0].get_chemical_symbols() == ["Si", "Ge"]


@pytest.mark.parametrize(
    ("flags", "pbc"), [("pp ff ss", [1, 0, 0]), ("pp fs mm", [1, 0, 0]), ("", [1, 1, 1])]
)
def test_boundary_flags(tmp_path: Path, flags: str, pbc: list[int]) -> None:
    path = tmp_path / "a.dump"
    path.write_text(dump_text("id type x y z", ["1 1 1 1 1", "2 1 3 3 3"], f"{flags}\n0 9\n0 9\n0 9"))
    assert frames_of(path)[0].pbc.tolist() == [bool(p) for p in pbc]


def test_dump_round_trip_keeps_what_it_read(tmp_path: Path) -> None:
    (first,) = frames_of(DATA / "triclinic.dump")
    (again,) = frames_of(write_all(tmp_path / "out.dump.gz", [first]))
    assert again.arrays.keys() == first.arrays.keys()
    for name, values in first.arrays.items():
        assert np.array_equal(again.arrays[name], values), name
    assert np.allclose(again.cell.array, first.cell.array, atol=1e-12)
    assert np.allclose(again.info["origin"], first.info["origin"])
    assert again.pbc.tolist() == first.pbc.tolist()
    assert again.info["timestep"] == 100
    assert np.array_equal(again.get_forces(), first.get_forces())


def test_dump_types_stay_the_same_when_a_species_appears_later(tmp_path: Path) -> None:
    one, two = bulk("Cu") * 2, bulk("Cu") * 2
    two.numbers[0] = 13
    frames = frames_of(write_all(tmp_path / "o.dump", [one, two]))
    assert set(frames[0].arrays["type"]) == {1}
    assert frames[1].arrays["type"][:2].tolist() == [2, 1]
    assert [f.info["timestep"] for f in frames] == [0, 1]


@pytest.mark.parametrize("pbc", [False, [True, True, False]])
def test_dump_of_a_structure_without_a_full_cell_encloses_it(tmp_path: Path, pbc: bool | list[bool]) -> None:
    cell = [[4.0, 0, 0], [1.0, 4, 0], [0, 0, 0]] if pbc else None
    atoms = Atoms("Cu2", [[0, 0, 0], [1, 2, 3]], cell=cell, pbc=pbc)
    (again,) = frames_of(write_all(tmp_path / "o.dump", [atoms]))
    assert np.allclose(again.positions, atoms.positions)
    fractional = (again.positions - again.info["origin"]) @ np.linalg.inv(again.cell.array)
    assert (fractional[:, 2] > 0).all()
    assert (fractional[:, 2] < 1).all()
    assert again.pbc.tolist() == atoms.pbc.tolist()


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (-12, "frame 3 is cut off: expected 2 atoms, found 1 and then the end"),
        (-1, "frame 3 is cut off: expected 2 atoms, found 1"),
        (-60, "frame 3 is cut off: expected"),
    ],
)
def test_truncated_dump_gives_whole_frames_then_an_error(tmp_path: Path, cut: int, message: str) -> None:
    text = "".join(dump_text("id type x y z", ["1 1 1.25 2 3", "2 1 5 5 5.5"], step=k) for k in range(3))
    path = tmp_path / "cut.dump"
    path.write_text(text[:cut])
    frames = read_frames(path)
    assert [next(frames).info["timestep"] for _ in range(2)] == [0, 1]
    with pytest.raises(StructureError, match=message) as caught:
        next(frames)
    assert str(path) in str(caught.value)


def test_a_restarted_run_after_a_cut_frame_is_noticed(tmp_path: Path) -> None:
    whole = dump_text("id type x y z", ["1 1 1 2 3", "2 1 5 5 5"])
    path = tmp_path / "a.dump"
    path.write_text(whole + whole[: whole.rindex("2 1 5")] + whole)
    with pytest.raises(
        StructureError, match="frame 2 is cut off: expected 2 atoms, found 1 and then the next header"
    ):
        frames_of(path)


def test_units_that_are_not_angstrom_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.dump"
    path.write_text("ITEM: UNITS\nsi\n" + dump_text("id type x y z", ["1 1 1 2 3", "2 1 5 5 5"]))
    with pytest.raises(StructureError, match="'si' units"):
        frames_of(path)


# -- other formats -----------------------------------------------------------------------------


def test_data_file_elements_origin_order_and_images() -> None:
    (atoms,) = frames_of(DATA / "data.alcu")
    assert atoms.arrays["id"].tolist() == [4, 1, 3, 2]
    assert atoms.get_chemical_symbols() == ["Cu", "Al", "Al", "Cu"]
    assert atoms.info["origin"].tolist() == [-1.0, 0.5, 0.0]
    assert atoms.cell.array.tolist() == [[8, 0, 0], [1, 8, 0], [0, 0.5, 8]]
    assert np.allclose(atoms.positions, [[1, 1.5, 1], [11, 1.5, 1], [3, 4.5, 1], [3, 4.0, -3]])
    assert atoms.get_initial_charges().tolist() == [0.5, -0.5, 0, 0]
    (named,) = frames_of(DATA / "data.alcu", species=["Ni", "Pd"])
    assert named.get_chemical_symbols() == ["Pd", "Ni", "Ni", "Pd"]


@pytest.mark.parametrize(
    ("masses", "symbol"), [("1 26.98", "Al"), ("1 1.0", "X"), ("1 50.0  # Ti", "Ti"), ("1 777", "X")]
)
def test_data_file_masses(tmp_path: Path, masses: str, symbol: str) -> None:
    path = tmp_path / "in.lmp"
    head = "t\n\n2 atoms\n1 atom types\n0 5 xlo xhi\n0 5 ylo yhi\n0 5 zlo zhi\n"
    path.write_text(f"{head}\nMasses\n\n{masses}\n\nAtoms # atomic\n\n1 1 0 0 0\n2 1 2 2 2\n")
    assert frames_of(path)[0].get_chemical_symbols() == [symbol] * 2
    path.write_text(f"{head}\nAtoms # atomic\n\n1 1 0 0 0\n2 1 2 2 2\n")
    assert frames_of(path)[0].get_chemical_symbols() == ["X"] * 2


def test_data_file_round_trip_keeps_types_and_frame(tmp_path: Path) -> None:
    (atoms,) = frames_of(DATA / "data.alcu")
    atoms.set_velocities(np.arange(12.0).reshape(4, 3) * 1e-3)
    (again,) = frames_of(write_all(tmp_path / "o.data", [atoms]))
    assert np.allclose(again.positions, atoms.positions)
    assert np.allclose(again.info["origin"], atoms.info["origin"])
    assert np.allclose(again.cell.array, atoms.cell.array)
    assert np.allclose(again.get_velocities(), atoms.get_velocities())
    for name in ("id", "type", "numbers", "initial_charges"):
        assert again.arrays[name].tolist() == atoms.arrays[name].tolist(), name


def test_data_file_of_a_rotated_cell_keeps_distances(tmp_path: Path) -> None:
    atoms = bulk("Cu") * 2
    atoms.rattle(0.1, seed=1)
    (again,) = frames_of(write_all(tmp_path / "o.data", [atoms]))
    assert np.allclose(again.get_all_distances(mic=True), atoms.get_all_distances(mic=True))


def test_poscar_with_selective_dynamics_and_cif() -> None:
    (poscar,) = frames_of(DATA / "POSCAR")
    assert poscar.constraints[0].index.tolist() == [0]
    (cif,) = frames_of(DATA / "salt.cif")
    for atoms in (poscar, cif):
        assert atoms.get_chemical_symbols() == ["Na", "Cl"]
        assert np.allclose(atoms.positions[1], 2.82)


def test_xdatcar_with_a_cell_that_changes(tmp_path: Path) -> None:
    frames = frames_of(DATA / "XDATCAR")
    assert [round(float(f.cell[0, 0]), 2) for f in frames] == [5.64, 5.64, 5.70]
    assert [round(float(f.get_scaled_positions()[0, 0]), 2) for f in frames] == [0.0, 0.01, 0.02]
    again = frames_of(write_all(tmp_path / "XDATCAR", frames))
    for one, two in zip(frames, again, strict=True):
        assert np.allclose(one.positions, two.positions)
        assert one.numbers.tolist() == two.numbers.tolist()
    path = tmp_path / "XDATCAR-cut"
    path.write_text((DATA / "XDATCAR").read_text()[:-20])
    reader = read_frames(path)
    next(reader), next(reader)
    with pytest.raises(StructureError, match="frame 3 is cut off: expected 2 atoms, found 1"):
        next(reader)


def test_extxyz_round_trip_keeps_everything(tmp_path: Path) -> None:
    frames = [sample(k) for k in range(3)]
    frames[0].set_constraint(FixAtoms([1, 4]))
    frames[1].set_constraint(FixCartesian([2], mask=[True, False, True]))
    frames[2].calc = SinglePointCalculator(frames[2], energy=-1.5, forces=np.ones((len(frames[2]), 3)))
    for one, two in zip(frames, frames_of(write_all(tmp_path / "o.xyz", frames)), strict=True):
        assert two.arrays.keys() == one.arrays.keys()
        for name, values in one.arrays.items():
            assert np.allclose(two.arrays[name], values, atol=1e-8), name
        assert np.allclose(two.cell.array, one.cell.array)
        assert two.pbc.tolist() == one.pbc.tolist()
        assert two.info["note"] == "two words"
        assert two.info["timestep"] == one.info["timestep"]
        assert np.allclose(two.info["origin"], one.info["origin"])
    again = frames_of(tmp_path / "o.xyz")
    assert again[0].constraints[0].index.tolist() == [1, 4]
    (fixed,) = again[1].constraints
    assert (fixed.index.tolist(), fixed.mask.tolist()) == ([2], [True, False, True])
    assert again[2].get_potential_energy() == -1.5


def test_extxyz_survives_awkward_arrays(tmp_path: Path) -> None:
    atoms = bulk("Cu") * 2
    n = len(atoms)
    atoms.arrays["c_s[1]"] = np.arange(n) / 7
    atoms.arrays["tensor"] = np.arange(9.0 * n).reshape(n, 3, 3)
    atoms.arrays["name"] = np.array(["a b", "", *["c"] * (n - 2)])
    atoms.arrays["count"] = np.arange(n, dtype=np.uint8)
    atoms.info["what"] = {"a": [1, 2]}
    (again,) = frames_of(write_all(tmp_path / "o.extxyz", [atoms]))
    assert np.allclose(again.arrays["c_s[1]"], atoms.arrays["c_s[1]"])
    assert np.allclose(again.arrays["tensor"], atoms.arrays["tensor"].reshape(n, 9))
    assert again.arrays["name"][:3].tolist() == ["a_b", "_", "c"]
    assert again.arrays["count"].tolist() == list(range(n))
    assert again.info["what"] == {"a": [1, 2]}
    assert atoms.arrays["tensor"].shape == (n, 3, 3)  # the caller's object is left alone


def test_other_tools_read_what_we_write(tmp_path: Path) -> None:
    atoms = sample()
    theirs = read(write_all(tmp_path / "o.extxyz.gz", [atoms]))
    assert np.allclose(theirs.positions, atoms.positions, atol=1e-8)
    theirs = read(write_all(tmp_path / "o.dump", [atoms]), format="lammps-dump-text", order=False)
    assert np.allclose(theirs.positions, atoms.positions)
    assert np.allclose(theirs.cell.array, atoms.cell.array)


@pytest.mark.parametrize(
    "name", ["o.vasp", "o.cif", "o.data", "o.extxyz", "o.dump", "o.xdatcar", "o.pdb", "o.gro"]
)
@pytest.mark.parametrize("compression", ["", ".gz", ".bz2", ".xz"])
def test_every_format_round_trips_compressed(tmp_path: Path, name: str, compression: str) -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    path = write_all(tmp_path / (name + compression), [atoms])
    opener = {"": open, ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[compression]
    with opener(path, "rb") as file:  # type: ignore[operator]
        assert file.read(1)
    (again,) = frames_of(path)
    assert sorted(again.get_chemical_symbols()) == sorted(atoms.get_chemical_symbols())
    assert np.allclose(sorted(again.positions.tolist()), sorted(atoms.positions.tolist()), atol=2e-3)
    assert np.allclose(again.cell.lengths(), 5.64, atol=1e-3)


@pytest.mark.parametrize(
    ("original", "name"),
    [
        ("triclinic.dump", "dump.melt.1000"),
        ("triclinic.dump", "notes.txt"),
        ("triclinic.dump", "odd.lmp"),
        ("data.alcu", "melt.dat"),
        ("data.alcu", "melt.lmp"),
        ("XDATCAR", "run7"),
        ("POSCAR", "CONTCAR.relaxed"),
        ("salt.cif", "salt.CIF"),
    ],
)
def test_format_is_found_from_content_or_name(tmp_path: Path, original: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes((DATA / original).read_bytes())
    assert len(frames_of(path)[0]) in {2, 4}
    # a compressed file need not say so
    path.write_bytes(gzip.compress((DATA / original).read_bytes()))
    assert len(frames_of(path)[0]) in {2, 4}


def test_extxyz_without_a_telling_name(tmp_path: Path) -> None:
    path = write_all(tmp_path / "snapshot", [sample()])
    assert len(frames_of(path)[0]) == len(sample())


# -- streaming ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["big.dump", "big.extxyz", "big.xdatcar", "big.dump.gz", "big.extxyz.gz"])
def test_memory_does_not_grow_with_the_number_of_frames(tmp_path: Path, name: str) -> None:
    atoms = bulk("Cu", cubic=True) * 2
    peaks = []
    for n_frames in (40, 160):
        path = tmp_path / f"{n_frames}-{name}"
        tracemalloc.start()
        write_all(path, itertools.repeat(atoms, n_frames))  # type: ignore[arg-type]
        assert sum(1 for _ in read_frames(path)) == n_frames
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 60_000


def test_frames_are_read_only_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.dump"
    atoms = bulk("Cu", cubic=True) * 8
    write_all(path, [atoms] * 30)
    seen: list[float] = []
    frames = read_frames(path, on_read=lambda done, size: seen.append(done / size))
    next(frames)
    assert seen[0] < 0.7  # the rest of the file has not been touched
    for _ in frames:
        pass
    assert seen[-1] == 1.0
    assert seen == sorted(seen)


# -- the writer when things go wrong -----------------------------------------------------------


def interrupted(frames: int) -> Iterator[Atoms]:
    for k in range(frames):
        yield sample(k)
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["o.extxyz", "o.extxyz.gz", "o.dump", "o.dump.xz"])
def test_interrupt_keeps_finished_frames(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(KeyboardInterrupt), FrameWriter(path) as writer:
        for atoms in interrupted(2):
            writer.write(atoms)
    assert [f.info["timestep"] for f in frames_of(path)] == [40, 41]
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_interrupt_before_the_first_frame_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "o.extxyz"
    path.write_text("mine")
    with pytest.raises(KeyboardInterrupt), FrameWriter(path):
        raise KeyboardInterrupt
    assert path.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["o.extxyz"]


class Disk:
    """A file that takes so many bytes and then fails like a full disk, or is interrupted."""

    def __init__(self, file: io.FileIO, room: int, failure: BaseException) -> None:
        self.file, self.room, self.failure = file, room, failure

    def write(self, data: memoryview) -> int:
        if self.room <= 0:
            raise self.failure
        written = self.file.write(data[: self.room])  # a short write, as real ones are
        self.room -= written
        return written

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("name", ["o.extxyz", "o.dump.gz"])
def test_a_frame_half_written_is_cut_off(tmp_path: Path, name: str, failure: BaseException) -> None:
    whole = write_all(tmp_path / name, [sample(0)]).stat().st_size
    path = tmp_path / "sub" / name
    path.parent.mkdir()
    expected = StructureError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected), FrameWriter(path) as writer:
        writer._file = Disk(writer._file, whole + 50, failure)  # type: ignore[arg-type, assignment]
        writer.write(sample(0))
        writer.write(sample(1))
    assert path.stat().st_size == whole
    assert len(frames_of(path)) == 1
    assert [p.name for p in path.parent.iterdir()] == [name]


def test_full_device_is_one_clear_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(StructureError, match=r"cannot write /dev/full: No space left"):
        write_all(Path("/dev/full"), [sample()], format="extxyz")
    assert Path("/dev/full").is_char_device()


def test_writer_refuses(tmp_path: Path) -> None:
    with pytest.raises(StructureError, match="does not exist"), FrameWriter(tmp_path / "no" / "o.extxyz"):
        pass
    with pytest.raises(StructureError, match="it is a folder"):
        FrameWriter(tmp_path)
    with pytest.raises(StructureError, match=r"cannot tell the output format from '\.foo'"):
        FrameWriter(tmp_path / "o.foo")
    with pytest.raises(StructureError, match="did you mean extxyz"):
        FrameWriter(tmp_path / "o", format="extxzy")
    path = write_all(tmp_path / "o.extxyz", [sample()])
    (tmp_path / "link.extxyz").symlink_to(path)
    with pytest.raises(StructureError, match="is the input file"):
        FrameWriter(tmp_path / "link.extxyz", source=path)
    with pytest.raises(StructureError, match="exists already"):
        FrameWriter(path, overwrite=False)
    cluster = Atoms("Cu2", [[0, 0, 0], [0, 0, 2]])
    with pytest.raises(StructureError, match="XDATCAR needs a cell"):
        write_all(tmp_path / "o.xdatcar", [cluster])
    with pytest.raises(StructureError, match="structure cannot be written as vasp"):
        write_all(tmp_path / "o.vasp", [cluster])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.extxyz", "o.extxyz"]


@pytest.mark.parametrize("name", ["o.vasp", "o.cif", "o.data", "o.pdb"])
def test_second_frame_in_a_format_of_one(tmp_path: Path, name: str) -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    with pytest.raises(StructureError, match="holds one frame only; write several to extxyz, lammps-dump"):
        write_all(tmp_path / name, [atoms, atoms])
    assert len(frames_of(tmp_path / name)) == 1


def test_writing_through_a_link_replaces_its_target(tmp_path: Path) -> None:
    real = tmp_path / "real.extxyz"
    real.write_text("old")
    (tmp_path / "link.extxyz").symlink_to(real)
    write_all(tmp_path / "link.extxyz", [sample()])
    assert (tmp_path / "link.extxyz").is_symlink()
    assert len(frames_of(real)) == 1


# -- bad input ---------------------------------------------------------------------------------

BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("a.dump", b"", "is empty"),
    "blank": ("a.xyz", b"\n \n", "is empty"),
    "no atoms, dump": ("a.dump", dump_text("id type x y z", []).encode(), "frame 1 has no atoms"),
    "no atoms, xyz": ("a.xyz", b"0\n\n", "frame 1 has no atoms"),
    "binary xyz": ("a.xyz", b"\x00\x01\x02\xff" * 50, "is a binary file, not extxyz"),
    "binary unnamed": ("a.qqq", b"\x00\x01\x02\xff" * 50, "format not recognised"),
    "prose": ("a.txt", b"hello world\nthis is not a structure\n", "format not recognised"),
    "prose as xyz": ("a.xyz", b"hello world\n", "frame 1: expected the number of atoms, found 'hello world'"),
    "prose as POSCAR": ("POSCAR", b"hello\nworld\n", "frame 1 is not readable as vasp"),
    "prose as data": ("a.data", b"hello\nworld\n", "no 'Atoms' section"),
    "prose as cif": ("a.cif", b"hello\nworld\n", "cif"),
    "short xyz": ("a.xyz", b"3\n\nCu 0 0 0\nCu 1 1 1\n", "expected 3 atoms, found 2"),
    "no element": ("a.xyz", b"2\n\nQq 0 0 0\nCu 1 1 1\n", "frame 1 is not readable as extended XYZ"),
    "short row": ("a.xyz", b"2\n\nCu 0 0\nCu 1 1 1\n", "frame 1 is not readable as extended XYZ"),
    "cut gzip": (
        "a.xyz.gz",
        gzip.compress(b"2\n\nCu 0 0 0\nCu 1 1 1\n" * 9)[:-12],
        "damaged or cut off|decompressed",
    ),
    "not numbers": ("a.dump", dump_text("id type x y z", ["1 1 a b c", "2 1 1 1 1"]).encode(), "frame 1"),
    "ragged": ("a.dump", dump_text("id type x y z", ["1 1 1 1", "2 1 1 1 1"]).encode(), "id type x y z"),
    "no coordinates": ("a.dump", dump_text("id type vx", ["1 1 1", "2 1 1"]).encode(), "no coordinates"),
    "only a header": ("a.dump", b"ITEM: TIMESTEP\n", "cut off"),
    "dump local": (
        "a.dump",
        b"ITEM: TIMESTEP\n0\nITEM: NUMBER OF ENTRIES\n1\nITEM: ENTRIES c_1\n1\n",
        "dump local",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_one_line(tmp_path: Path, case: str) -> None:
    name, content, message = BAD_FILES[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(StructureError, match=message) as caught:
        frames_of(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_file_folder_and_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(StructureError, match="no such file"):
        frames_of(tmp_path / "none.xyz")
    with pytest.raises(StructureError, match="is a folder"):
        frames_of(tmp_path)
    with pytest.raises(StructureError, match="did you mean lammps-dump"):
        frames_of(DATA / "triclinic.dump", format="lamps-dump")
    with pytest.raises(StructureError, match="no LAMMPS types"):
        frames_of(DATA / "POSCAR", species=["Na"])


def broken(**changes: object) -> Atoms:
    atoms = bulk("Cu", cubic=True) * 2
    atoms.rattle(0.05, seed=0)
    for name, value in changes.items():
        setattr(atoms, name, value)
    return atoms


def with_position(index: int, value: object) -> Atoms:
    atoms = broken()
    atoms.positions[index] = value
    return atoms


BAD_STRUCTURES = {
    "empty": (Atoms(), "frame 2 has no atoms"),
    "one atom": (Atoms("Cu", cell=[3, 3, 3], pbc=True), "only one atom"),
    "NaN": (with_position(5, np.nan), r"1 of 32 atoms have NaN or infinite coordinates \(first: index 5\)"),
    "inf": (with_position(7, [0, np.inf, 0]), "first: index 7"),
    "no cell": (broken(cell=np.zeros((3, 3))), "there is no cell"),
    "one vector": (broken(cell=[[7, 0, 0], [0, 7, 0], [0, 0, 0]]), "lattice vector c is zero"),
    "NaN cell": (broken(cell=[[7, 0, 0], [0, np.nan, 0], [0, 0, 7]]), "cell has NaN"),
    "singular": (broken(cell=[[7, 0, 0], [0, 7, 0], [7, 7, 0]]), "singular cell"),
    "left-handed": (
        broken(cell=[[0, 7, 0], [7, 0, 0], [0, 0, 7]]),
        "left-handed cell .* swap two lattice vectors",
    ),
    "thin": (broken(cell=[7, 7, 1e-3]), "only 0.001 Å thick"),
    "coincident": (with_position(9, broken().positions[3]), "atoms 3 and 9 .* same place, 0 Å apart; delete"),
    "coincident image": (
        with_position(9, broken().positions[3] + broken().cell.array[0] + [0, 0, 5e-4]),
        "atoms 3 and 9 .* across the periodic boundary",
    ),
}


@pytest.mark.parametrize("case", BAD_STRUCTURES)
def test_check_structure_refuses(case: str) -> None:
    atoms, message = BAD_STRUCTURES[case]
    with pytest.raises(StructureError, match=message) as caught:
        check_structure(atoms, "a.dump, frame 2")
    assert str(caught.value).startswith("a.dump, frame 2")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "atoms",
    [
        broken(),
        broken(pbc=False, cell=np.zeros((3, 3))),
        broken(pbc=[True, True, False], cell=[[7.3, 0, 0], [0, 7.3, 0], [0, 0, 0]]),
        broken(pbc=False, cell=[[0, 7, 0], [7, 0, 0], [0, 0, 7]]),  # a cell that nothing uses
        bulk("Cu") * (2, 1, 1),
        bulk("Si"),
        with_position(9, broken().positions[3] + [0, 0, 2e-3]),
        with_position(9, broken().positions[9] + 5 * broken().cell.array[0]),
    ],
)
def test_check_structure_accepts(atoms: Atoms) -> None:
    check_structure(atoms)
