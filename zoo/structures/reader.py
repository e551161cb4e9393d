"""Reading structures and trajectories of any format, one frame in memory at a time."""

from __future__ import annotations

import lzma
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ase import Atoms

from zoo.errors import StructureError, ZooError
from zoo.structures import formats
from zoo.structures.lammps_data import read_data
from zoo.structures.lammps_dump import read_dump
from zoo.structures.lammps_types import check_species, numbers_from_types
from zoo.structures.sources import TextSource, one_line
from zoo.structures.text_frames import read_extxyz, read_xdatcar

_TEXT_ONLY = {formats.EXTXYZ, formats.DUMP, formats.DATA, formats.XDATCAR, formats.POSCAR, "cif", "gromacs"}


def read_frames(
    path: str | os.PathLike[str],
    format: str | None = None,  # noqa: A002
    species: Sequence[str] | None = None,
    *,
    on_read: Callable[[int, int], None] | None = None,
) -> Iterator[Atoms]:
    """Yield the frames of a structure or trajectory file in order.

    LAMMPS dumps, extended XYZ and XDATCAR stream: memory does not grow with the number of frames.
    LAMMPS data files and everything ASE reads are accepted too; ``.gz``, ``.bz2`` and ``.xz`` of all.

    Parameters
    ----------
    path
        The file; its format is found from its content and name.
    format
        Name of the format when neither tells (``"lammps-dump"``, ``"lammps-data"``, ``"extxyz"``,
        ``"vasp"``, ``"vasp-xdatcar"``, or any of ASE's).
    species
        Element of each LAMMPS type in order, for example ``["Al", "Cu"]``; outranks the file.  Without
        it and without elements in the file, atoms get atomic number 0 and keep their ``type`` array.
    on_read
        Called after each frame with the bytes read so far and the size of the file.

    Yields
    ------
    Atoms with positions (n_atoms, 3) in Å, in file order.  From LAMMPS: ``info["timestep"]``,
    ``info["origin"]`` (3,) Å where the box does not start at zero, arrays ``id``, ``type``, ``mol``,
    ``ix iy iz``, ``velocities`` (as written), every other column by its name; forces as results of a
    single-point calculator.

    Raises
    ------
    StructureError
        One line naming file and frame: missing, empty, damaged or cut off, unknown format.  Frames
        before the damage have been yielded by then.
    """
    target = Path(path)
    symbols = check_species(species)
    source = TextSource(target)
    try:
        chosen = formats.canonical(format) if format else formats.input_format(target, source.head)
        if source.looks_binary and chosen in _TEXT_ONLY:
            raise StructureError(f"{target} is a binary file, not {chosen}")
        for atoms in _frames(source, chosen, symbols):
            if on_read is not None:
                on_read(source.consumed, source.size)
            yield atoms
    except (EOFError, zlib.error, lzma.LZMAError, UnicodeDecodeError) as exc:
        raise StructureError(
            f"{target} is damaged or cut off: it cannot be decompressed ({one_line(exc)})"
        ) from None
    except OSError as exc:
        raise StructureError(f"{target} cannot be read: {one_line(exc)}") from None
    finally:
        source.close()


def _frames(source: TextSource, chosen: str, species: list[str] | None) -> Iterator[Atoms]:
    name = str(source.path)
    if chosen == formats.DUMP:
        return read_dump(source.text, name, species)
    if chosen == formats.DATA:
        return _data(source, name, species)
    if chosen == formats.EXTXYZ:
        frames = read_extxyz(source.text, name)
    elif chosen == formats.XDATCAR:
        frames = read_xdatcar(source.text, name)
    else:
        frames = _through_ase(source, chosen, name)
    return frames if species is None else _with_species(frames, name, species)


def _data(source: TextSource, name: str, species: list[str] | None) -> Iterator[Atoms]:
    try:
        yield read_data(source.text, name, species)
    except (ZooError, OSError, EOFError, zlib.error, lzma.LZMAError):
        raise
    except Exception as exc:
        raise StructureError(f"{name} is not readable as a LAMMPS data file ({one_line(exc)})") from None


def _with_species(frames: Iterator[Atoms], name: str, species: list[str]) -> Iterator[Atoms]:
    for number, atoms in enumerate(frames, 1):
        where = f"{name}, frame {number}"
        if "type" not in atoms.arrays:
            raise StructureError(
                f"{where}: species given but the file has no LAMMPS types; leave species out"
            )
        atoms.numbers[:] = numbers_from_types(atoms.arrays["type"], species, where)
        yield atoms


def _through_ase(source: TextSource, chosen: str, name: str) -> Iterator[Atoms]:
    from ase.io import iread
    from ase.io.formats import ioformats

    spec = ioformats[chosen]
    if not spec.can_read:
        raise StructureError(f"{name}: {chosen} can be written but not read")
    handle: object = name
    if source.compressed:
        if not spec.acceptsfd:
            raise StructureError(f"{name}: {chosen} cannot be read compressed; decompress it first")
        handle = source.binary if spec.isbinary else source.text
    number = 0
    try:
        for atoms in iread(handle, index=":", format=chosen, do_not_split_by_at_sign=True):
            number += 1
            if len(atoms) == 0:
                raise StructureError(f"{name}, frame {number} has no atoms")
            yield atoms
    except (ZooError, GeneratorExit, MemoryError):
        raise
    except Exception as exc:  # ASE's readers raise whatever their parsing stumbles on
        raise StructureError(
            f"{name}, frame {number + 1} is not readable as {chosen} ({one_line(exc)})"
        ) from None
    if number == 0:
        raise StructureError(f"{name} has no structure that could be read as {chosen}")
