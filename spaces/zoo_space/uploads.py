"""What visitors upload: named safely, unpacked within bounds, read by readers that execute nothing."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ase import Atoms

from zoo.errors import StructureError
from zoo.structures import check_structure, formats, read_frames
from zoo_space.errors import VisitorError
from zoo_space.limits import MEGABYTE, Limits

#: Of those that the command line reads, the ones whose readers parse plain text and nothing else.
CRYSTAL_FORMATS = (
    formats.EXTXYZ, formats.DUMP, formats.DATA, formats.XDATCAR, formats.POSCAR, "cif", "gromacs",
    "proteindatabank",
)  # fmt: skip
MOLECULE_SUFFIXES = (".pdb", ".ent", ".gro", ".xyz", ".extxyz")

_OPENERS: tuple[tuple[bytes, Callable[..., Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ", lzma.open),
)
_ARCHIVES = {b"PK\x03\x04": "a zip archive", b"Rar!": "a RAR archive", b"7z\xbc\xaf": "a 7z archive"}
_CHUNK = 1 << 20


def safe_name(name: str) -> str:
    """The name of a file, without folders, control characters and anything a page or shell might act on."""
    last = re.split(r"[\\/]", name)[-1]
    cleaned = re.sub(r"[^\w.+-]", "_", last, flags=re.ASCII).lstrip(".-")
    return cleaned[-80:].lstrip(".-") or "structure"


def stem(name: str) -> str:
    """What to call the results of a file of this name: it without the endings of format and compression."""
    return Path(formats.strip_compression(safe_name(name))).stem or "structure"


def unpacked(path: Path, folder: Path, limits: Limits) -> Path:
    """A copy of an upload in ``folder``, decompressed, under a safe name.

    Raises
    ------
    VisitorError : too large, before or after unpacking, an archive, or damaged.
    """
    name = safe_name(path.name)
    if path.stat().st_size > limits.upload_mb * MEGABYTE:
        raise VisitorError(f"{name} is larger than {limits.upload_mb} MB, the limit of this page")
    with path.open("rb") as stream:
        magic = stream.read(6)
    for start, what in _ARCHIVES.items():
        if magic.startswith(start):
            raise VisitorError(f"{name} is {what}: unpack it and upload the structure file in it")
    opener: Callable[..., Any] = next((o for start, o in _OPENERS if magic.startswith(start)), open)
    target = folder / (formats.strip_compression(name) or "structure")
    try:
        with opener(path, "rb") as source, target.open("wb") as copy:
            _copy(source, copy, name, limits)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, OSError) as error:
        raise VisitorError(f"{name} cannot be unpacked: it is damaged or cut off ({error})") from None
    return target


def _copy(source: IO[bytes], target: IO[bytes], name: str, limits: Limits) -> None:
    size = 0
    while chunk := source.read(_CHUNK):
        size += len(chunk)
        if size > limits.unpacked_mb * MEGABYTE:
            raise VisitorError(
                f"{name} unpacks to more than {limits.unpacked_mb} MB, the limit of this page: cut out the "
                "frame you are interested in, or run zoo denoise at home, where there is no limit"
            )
        target.write(chunk)


def read_crystal(path: Path, frame: int, species: str, limits: Limits) -> tuple[Atoms, int]:
    """Frame number ``frame`` (from 1; -1 is the last one) of an unpacked upload, and how many were read.

    Raises
    ------
    VisitorError : another format, no such frame, too many frames or atoms.
    zoo.StructureError : unreadable or unusable, naming file and frame.
    """
    with path.open("rb") as stream:
        head = stream.read(8192).decode("utf-8", errors="replace")
    if not head.strip():
        raise VisitorError(f"{path.name} is empty")
    try:
        chosen = formats.input_format(path, head)
    except StructureError:
        raise VisitorError(
            f"{path.name} is not recognised as a structure by its name or content: if it is one, give its "
            "name an ending that tells, such as .dump, .data, .extxyz, .cif or .vasp"
        ) from None
    if chosen not in CRYSTAL_FORMATS:
        raise VisitorError(
            f"{path.name} looks like {chosen}, which this page does not read: use a LAMMPS dump or data "
            "file, extxyz, CIF, POSCAR, XDATCAR, PDB or GRO; zoo denoise at home reads all that ASE does"
        )
    declared = _declared_atoms(head)
    if declared is not None:
        _check_size(declared, path.name, limits)
    found: Atoms | None = None
    number = 0
    for number, atoms in enumerate(read_frames(path, chosen, species.split() or None), 1):
        _check_size(len(atoms), path.name, limits)
        if frame in (number, -1):
            found = atoms
        if number == frame:
            break
        if number >= limits.frames:
            raise VisitorError(
                f"{path.name} has more than {limits.frames:,} frames, the limit of this page: give a frame "
                f"from 1 to {limits.frames:,}, or cut the file"
            )
    if found is None:
        have = "1 frame" if number == 1 else f"{number:,} frames"
        raise VisitorError(f"{path.name} has {have}, so there is no frame {frame}")
    check_structure(found, f"{path.name}, frame {number}")
    return found, number


def _declared_atoms(head: str) -> int | None:
    """The number of atoms that the beginning of the file promises, so that a huge one is not even read."""
    patterns = (
        r"ITEM: NUMBER OF ATOMS\s*\n\s*(\d+)",
        r"^\s*(\d+)\s+atoms\b",
        r"\A\s*(\d+)\s*\n",
    )
    for pattern in patterns:
        match = re.search(pattern, head, re.MULTILINE)
        if match:
            return int(match.group(1)[:18])
    return None


def _check_size(n_atoms: int, name: str, limits: Limits) -> None:
    if n_atoms > limits.atoms:
        raise VisitorError(
            f"{name} has {n_atoms:,} atoms and this page takes {limits.atoms:,}: cut out a part, or run "
            "zoo denoise at home, where there is no limit"
        )


def check_molecule_file(path: Path, limits: Limits) -> None:
    """Raises VisitorError for what is not a structure file of a molecule, or far too large a one."""
    suffix = path.suffix.lower()
    if suffix not in MOLECULE_SUFFIXES:
        raise VisitorError(
            f"{path.name}: a start is a {', '.join(s[1:].upper() for s in MOLECULE_SUFFIXES)} file, "
            "which name the atoms and their positions"
        )
    with path.open("rb") as stream:
        start = stream.read(4096)
        if b"\0" in start:
            raise VisitorError(f"{path.name} is a binary file, not {suffix[1:].upper()}")
        lines = start.count(b"\n") + sum(part.count(b"\n") for part in iter(lambda: stream.read(_CHUNK), b""))
    if lines > 4 * limits.start_atoms:
        raise VisitorError(
            f"{path.name} has {lines:,} lines, far more than the {limits.start_atoms:,} atoms that this page "
            "takes: leave out the water and all frames but one"
        )


def told(error: StructureError | Exception, folder: Path) -> str:
    """A reader's message with the upload's name in place of where it is on this machine."""
    return " ".join(str(error).replace(f"{folder}/", "").split())
