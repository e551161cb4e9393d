"""What visitors upload, hostile things among it: one clear line, and nothing executed, kept or believed."""

from __future__ import annotations

import bz2
import gzip
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write

from zoo.errors import StructureError, ZooError
from zoo_space.errors import VisitorError
from zoo_space.limits import Limits, whole
from zoo_space.uploads import check_molecule_file, read_crystal, safe_name, told, unpacked

LIMITS = Limits(upload_mb=1, unpacked_mb=2, atoms=500, frames=5)


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "job").mkdir()
    return tmp_path / "job"


def frames(n: int) -> list[Atoms]:
    made = []
    for k in range(n):
        atoms = bulk("Cu", cubic=True).repeat(2)
        atoms.info["number"] = k + 1
        made.append(atoms)
    return made


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("run.dump", "run.dump"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        (".bashrc", "bashrc"),
        ("-rf.xyz", "rf.xyz"),
        ("a b\n<script>alert(1)</script>.cif", "script_.cif"),
        ('"><img src=x onerror=alert(1)>.xyz', "___img_src_x_onerror_alert_1__.xyz"),
        ("naïve.xyz", "na_ve.xyz"),
        ("...", "structure"),
        ("", "structure"),
    ],
)
def test_names_are_made_safe(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_names_stay_short_and_keep_their_ending() -> None:
    assert safe_name("x" * 500 + ".extxyz").endswith(".extxyz")
    assert len(safe_name("x" * 500 + ".extxyz")) <= 80


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_a_decompression_bomb_is_stopped_where_the_limit_is(pack: object, inbox: Path, folder: Path) -> None:
    bomb = inbox / "bomb.xyz.gz"
    bomb.write_bytes(pack(bytes(64_000_000)))  # type: ignore[operator]
    assert bomb.stat().st_size < 100_000
    with pytest.raises(VisitorError, match=r"bomb\.xyz\.gz unpacks to more than 2 MB"):
        unpacked(bomb, folder, LIMITS)
    assert sum(f.stat().st_size for f in folder.iterdir()) < 3_000_000


def test_a_file_too_large_is_refused_unread(inbox: Path, folder: Path) -> None:
    large = inbox / "large.xyz"
    large.write_bytes(b"x" * 1_100_000)
    with pytest.raises(VisitorError, match="larger than 1 MB"):
        unpacked(large, folder, LIMITS)
    assert not list(folder.iterdir())


def test_archives_and_damaged_files_are_named(inbox: Path, folder: Path) -> None:
    with zipfile.ZipFile(inbox / "all.zip", "w") as archive:
        archive.writestr("../../x", "x")
    with pytest.raises(VisitorError, match=r"all\.zip is a zip archive: unpack it"):
        unpacked(inbox / "all.zip", folder, LIMITS)
    cut = inbox / "cut.xyz.gz"
    cut.write_bytes(gzip.compress(b"0123456789" * 1000)[:40])
    with pytest.raises(VisitorError, match=r"cut\.xyz\.gz cannot be unpacked: it is damaged"):
        unpacked(cut, folder, LIMITS)


@pytest.mark.parametrize(("wanted", "number"), [(1, 1), (3, 3), (-1, 4)])
def test_a_frame_is_picked(wanted: int, number: int, inbox: Path, folder: Path) -> None:
    write(inbox / "four.extxyz", frames(4))
    atoms, read = read_crystal(unpacked(inbox / "four.extxyz", folder, LIMITS), wanted, "", LIMITS)
    assert atoms.info["number"] == number == read


def test_frames_that_are_not_there_and_too_many_of_them(inbox: Path, folder: Path) -> None:
    write(inbox / "four.extxyz", frames(4))
    with pytest.raises(VisitorError, match=r"four\.extxyz has 4 frames, so there is no frame 5"):
        read_crystal(unpacked(inbox / "four.extxyz", folder, LIMITS), 5, "", LIMITS)
    write(inbox / "six.extxyz", frames(6))
    path = unpacked(inbox / "six.extxyz", folder, LIMITS)
    assert read_crystal(path, 2, "", LIMITS)[0].info["number"] == 2
    with pytest.raises(VisitorError, match="more than 5 frames"):
        read_crystal(path, -1, "", LIMITS)


def test_a_million_atoms_are_refused_by_the_head_of_the_file(inbox: Path, folder: Path) -> None:
    head = "ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n1000000\nITEM: BOX BOUNDS pp pp pp\n0 1\n0 1\n0 1\n"
    (inbox / "huge.dump").write_text(head + "ITEM: ATOMS id type x y z\n" + "1 1 0 0 0\n" * 10)
    with pytest.raises(VisitorError, match=r"huge\.dump has 1,000,000 atoms and this page takes 500"):
        read_crystal(unpacked(inbox / "huge.dump", folder, LIMITS), 1, "", LIMITS)
    write(inbox / "large.cif", bulk("Cu", cubic=True).repeat(6))  # says nothing of it at its head
    with pytest.raises(VisitorError, match=r"large\.cif has 864 atoms"):
        read_crystal(unpacked(inbox / "large.cif", folder, LIMITS), 1, "", LIMITS)


def test_a_pickle_is_not_opened_whatever_its_name(inbox: Path, folder: Path, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (trap,)

    for name in ("trap.extxyz", "trap.pckl", "trap.dump", "trap.traj", "POSCAR"):
        (inbox / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(ZooError):
            read_crystal(unpacked(inbox / name, folder, LIMITS), 1, "", LIMITS)
    assert not trap.exists()


def test_formats_of_other_readers_are_refused(inbox: Path, folder: Path) -> None:
    write(inbox / "x.json", frames(1)[0])
    with pytest.raises(VisitorError, match=r"x\.json looks like json, which this page does not read"):
        read_crystal(unpacked(inbox / "x.json", folder, LIMITS), 1, "", LIMITS)
    (inbox / "notes").write_text("just words\n")
    with pytest.raises(VisitorError, match="notes is not recognised as a structure"):
        read_crystal(unpacked(inbox / "notes", folder, LIMITS), 1, "", LIMITS)
    (inbox / "empty.xyz").write_text(" \n")
    with pytest.raises(VisitorError, match=r"empty\.xyz is empty"):
        read_crystal(unpacked(inbox / "empty.xyz", folder, LIMITS), 1, "", LIMITS)


def test_numbers_that_are_none(inbox: Path, folder: Path) -> None:
    atoms = frames(1)[0]
    atoms.positions[3] = np.nan
    write(inbox / "blown.extxyz", atoms)
    with pytest.raises(StructureError) as error:
        read_crystal(unpacked(inbox / "blown.extxyz", folder, LIMITS), 1, "", LIMITS)
    assert told(error.value, folder).startswith("blown.extxyz, frame 1: 1 of 32 atoms have NaN")


def test_a_molecule_has_a_name_and_a_size(inbox: Path) -> None:
    limits = Limits(start_atoms=10)
    for name, content, message in (
        ("m.exe", b"x", "a start is a PDB"),
        ("m.pdb", b"\0\1", "is a binary file"),
        ("m.gro", b"line\n" * 41, "has 41 lines"),
    ):
        (inbox / name).write_bytes(content)
        with pytest.raises(VisitorError, match=message):
            check_molecule_file(inbox / name, limits)


@pytest.mark.parametrize("value", [0, 21, 2.5, True, None, "7", float("nan"), float("inf"), [1]])
def test_numbers_of_a_form_are_checked(value: object) -> None:
    with pytest.raises(VisitorError, match="steps must be"):
        whole(value, "steps", 1, 20)


def test_a_rollout_is_bounded_in_every_direction() -> None:
    limits = Limits(lag_steps=100, walkers=8, walker_steps=400)
    limits.check_rollout(100, 4)
    for steps, walkers, message in ((101, 1, "101 steps"), (1, 9, "9 walkers"), (100, 5, "400 walker steps")):
        with pytest.raises(VisitorError, match=message):
            limits.check_rollout(steps, walkers)
