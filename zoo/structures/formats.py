"""Which format a file has: from its content where that is certain, from its name otherwise."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from zoo.errors import StructureError

EXTXYZ = "extxyz"
DUMP = "lammps-dump"
DATA = "lammps-data"
XDATCAR = "vasp-xdatcar"
POSCAR = "vasp"

COMPRESSIONS = (".gz", ".bz2", ".xz")

ALIASES = {
    "xyz": EXTXYZ,
    "dump": DUMP,
    "lammpstrj": DUMP,
    "lammps-dump-text": DUMP,
    "data": DATA,
    "poscar": POSCAR,
    "contcar": POSCAR,
    "xdatcar": XDATCAR,
    "pdb": "proteindatabank",
    "gro": "gromacs",
}

_SUFFIXES = {
    ".xyz": EXTXYZ,
    ".extxyz": EXTXYZ,
    ".dump": DUMP,
    ".lammpstrj": DUMP,
    ".lammpsdump": DUMP,
    ".data": DATA,
    ".lmp": DATA,
    ".lammps": DATA,
    ".poscar": POSCAR,
    ".contcar": POSCAR,
    ".vasp": POSCAR,
    ".xdatcar": XDATCAR,
    ".cif": "cif",
    ".pdb": "proteindatabank",
    ".gro": "gromacs",
}

_STEMS = {"dump": DUMP, "data": DATA, "poscar": POSCAR, "contcar": POSCAR, "xdatcar": XDATCAR}

_DATA_COUNT = re.compile(r"^\s*\d+\s+atoms\b", re.MULTILINE)
_DATA_BOX = re.compile(r"^.*(xlo\s+xhi|avec|atom\s+types)\b", re.MULTILINE)


def strip_compression(name: str) -> str:
    """File name without a trailing .gz, .bz2 or .xz."""
    for suffix in COMPRESSIONS:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def named_format(name: str) -> str | None:
    """Format that a file name alone tells, or None."""
    base = strip_compression(Path(name).name)
    by_suffix = _SUFFIXES.get(Path(base).suffix.lower())
    if by_suffix is not None:
        return by_suffix
    # dump.melt.1000, data.start, POSCAR_relaxed, XDATCAR-2
    stem = re.match(r"(dump|data|POSCAR|CONTCAR|XDATCAR)(?=$|[._-])", base)
    return _STEMS[stem.group(1).lower()] if stem else None


def canonical(name: str) -> str:
    """The name by which this package knows a format the user typed.

    Raises
    ------
    StructureError
        Neither ours nor one of ASE's; close matches are offered.
    """
    from ase.io.formats import ioformats

    lowered = name.lower()
    known = ALIASES.get(lowered, lowered)
    if known in {EXTXYZ, DUMP, DATA, XDATCAR, POSCAR} or known in ioformats:
        return known
    close = difflib.get_close_matches(lowered, [EXTXYZ, DUMP, DATA, *ALIASES, *ioformats], n=3)
    hint = f"; did you mean {', '.join(close)}?" if close else "; for example extxyz, lammps-dump, cif"
    raise StructureError(f"unknown structure format '{name}'{hint}")


def sniffed_format(head: str) -> str | None:
    """Format that the first few thousand characters prove, or None."""
    if head.lstrip().startswith("ITEM:"):
        return DUMP
    lines = head.splitlines()
    if any("Direct configuration=" in line for line in lines[:9]):
        return XDATCAR
    if _DATA_COUNT.search(head) and _DATA_BOX.search(head):
        return DATA
    if len(lines) > 2 and lines[0].strip().isdigit() and len(lines[2].split()) >= 4:
        return EXTXYZ
    return None


def input_format(path: Path, head: str) -> str:
    """Format of a file to read, from its name and the beginning of its (decompressed) text.

    Raises
    ------
    StructureError
        Nothing recognises the file.
    """
    # A dump or data file is often called anything at all, so its content outranks its name.
    sniffed = sniffed_format(head)
    if sniffed in {DUMP, DATA, XDATCAR}:
        return sniffed
    named = named_format(path.name)
    if named is not None:
        return named
    if sniffed is not None:
        return sniffed
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    try:
        guess = filetype(str(path), guess=False)
    except (UnknownFileTypeError, OSError, UnicodeDecodeError):
        guess = None
    if guess not in ioformats:
        raise StructureError(
            f"{path}: format not recognised from its name or content; name it (for example lammps-dump, "
            "lammps-data, extxyz, vasp, cif)"
        )
    return str(guess)


def output_format(name: str) -> str:
    """Format of a file to write, from its name; a name without any suffix means extended XYZ.

    Raises
    ------
    StructureError
        The suffix stands for nothing that can be written.
    """
    named = named_format(name)
    if named is not None:
        return named
    base = strip_compression(Path(name).name)
    suffix = Path(base).suffix.lower().lstrip(".")
    if not suffix:
        return EXTXYZ
    from ase.io.formats import extension2format

    if suffix in extension2format and extension2format[suffix].can_write:
        return str(extension2format[suffix].name)
    raise StructureError(
        f"{name}: cannot tell the output format from '.{suffix}'; use .extxyz, .dump, .data, .cif, .vasp "
        "(each also with .gz) or name the format"
    )
