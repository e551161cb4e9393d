"""Extended XYZ and XDATCAR, one frame in memory at a time.

ASE reads both, but it first indexes (extended XYZ) or loads (XDATCAR) the whole file; here the text of
one frame is cut out and only the extended XYZ frame is handed on to ASE.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from itertools import islice
from typing import TextIO

import numpy as np
from ase import Atoms
from ase.constraints import FixCartesian
from ase.data import atomic_numbers
from ase.io.extxyz import read_xyz, write_xyz

from zoo.errors import StructureError
from zoo.structures.lammps_dump import one_line_text
from zoo.structures.sources import one_line
from zoo.verdict_names import CODES

_MOST_ATOMS = 10**10


def read_extxyz(stream: TextIO, name: str) -> Iterator[Atoms]:
    """Yield the frames of a plain or extended XYZ file; StructureError at the first broken one."""
    number = 0
    pending = ""
    while True:
        line, pending = pending or stream.readline(), ""
        if not line:
            return
        if not line.strip():
            continue
        number += 1
        where = f"{name}, frame {number}"
        if not line.strip().isdigit() or int(line) > _MOST_ATOMS:
            raise StructureError(f"{where}: expected the number of atoms, found '{one_line_text(line)}'")
        n_atoms = int(line)
        if n_atoms == 0:
            raise StructureError(f"{where} has no atoms")
        block = list(islice(stream, n_atoms + 1))
        rows = sum(1 for row in block[1:] if row.strip())
        if rows < n_atoms:
            raise StructureError(f"{where} is cut off: expected {n_atoms} atoms, found {rows}")
        # cells written as pseudo-atoms VEC1..3 follow the atoms
        while (pending := stream.readline()).lstrip().startswith("VEC"):
            block.append(pending)
        yield _parse_extxyz(line + "".join(block), where)


def _parse_extxyz(text: str, where: str) -> Atoms:
    try:
        atoms: Atoms = next(iter(read_xyz(io.StringIO(text), index=slice(0, 1))))
    except Exception as exc:
        raise StructureError(f"{where} is not readable as extended XYZ ({one_line(exc)})") from None
    _merge_constraints(atoms)
    _name_classes(atoms)
    origin = atoms.info.pop("Origin", None)
    if origin is not None and np.size(origin) == 3:
        atoms.info["origin"] = np.asarray(origin, dtype=float).reshape(3)
    return atoms


def _merge_constraints(atoms: Atoms) -> None:
    # ASE makes one constraint per atom of a three-column move mask, free atoms included.
    by_mask: dict[tuple[bool, ...], list[int]] = {}
    for constraint in atoms.constraints:
        if not isinstance(constraint, FixCartesian):
            return
        if constraint.mask.any():
            by_mask.setdefault(tuple(constraint.mask.tolist()), []).extend(constraint.index.tolist())
    atoms.set_constraint([FixCartesian(indices, mask=mask) for mask, indices in by_mask.items()])


def _name_classes(atoms: Atoms) -> None:
    # a value of a column has no spaces, so "simple cubic" was written as simple_cubic
    there = atoms.arrays.get("structure_type")
    if there is None or there.dtype.kind not in "UO":
        return
    written = {"_".join(name.split()): name for name in CODES}
    if set(there.tolist()) <= set(written):
        atoms.arrays["structure_type"] = np.array([written[name] for name in there.tolist()])


def encode_extxyz(atoms: Atoms) -> str:
    """One frame of extended XYZ with every array, the info, pbc and constraints (as a move mask).

    Arrays of more than two dimensions become (n_atoms, k).  The box origin is written under the key
    ``Origin``, where OVITO looks for it.
    """
    atoms = _writable_copy(atoms)
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # ASE warns about info it cannot serialise and drops it; nothing a user could act on
        warnings.simplefilter("ignore")
        try:
            write_xyz(buffer, atoms)
        except KeyError:
            # a result of the calculator stands in info or arrays already
            buffer = io.StringIO()
            write_xyz(buffer, atoms, write_results=False)
    count, comment, body = buffer.getvalue().split("\n", 2)
    # unquoted, a name such as c_stress[1] would lose its brackets when read
    comment = re.sub(r"\bProperties=(\S+)", r'Properties="\1"', comment, count=1)
    return f"{count}\n{comment}\n{body}"


def _writable_copy(atoms: Atoms) -> Atoms:
    calculator = atoms.calc
    atoms = atoms.copy()
    atoms.calc = calculator
    if "origin" in atoms.info:
        atoms.info["Origin"] = np.asarray(atoms.info.pop("origin"), dtype=float)
    for name in list(atoms.arrays):
        values = np.asarray(atoms.arrays[name])
        if values.ndim > 2:
            values = values.reshape(len(atoms), -1)
        if values.dtype.kind == "u":
            values = values.astype(np.int64)
        elif values.dtype.kind not in "fib":
            words = ["_".join(str(v).split()) or "_" for v in values.ravel().tolist()]
            values = np.array(words, dtype=str).reshape(values.shape)
        safe = re.sub(r"[\s:\"'=]", "_", name)
        if safe != name:
            del atoms.arrays[name]
        atoms.arrays[safe] = values
    return atoms


def read_xdatcar(stream: TextIO, name: str) -> Iterator[Atoms]:
    """Yield the configurations of a VASP XDATCAR, whether or not the cell is repeated before each."""
    cell = np.zeros((3, 3))
    numbers: list[int] = []
    number = 0
    for line in stream:
        if not line.strip() and not numbers:
            line = "untitled"
        elif not line.strip():
            continue
        number += 1
        where = f"{name}, frame {number}"
        try:
            if "configuration=" not in line:
                cell, numbers = _xdatcar_header(stream, where)
                line = stream.readline()
                if "configuration=" not in line:
                    raise StructureError(
                        f"{where} is cut off: expected 'Direct configuration=', found '{one_line_text(line)}'"
                    )
            rows = list(islice(stream, len(numbers)))
            if len(rows) < len(numbers) or not rows[-1].endswith("\n"):
                whole = sum(row.endswith("\n") for row in rows)
                raise StructureError(f"{where} is cut off: expected {len(numbers)} atoms, found {whole}")
            coordinates = np.array([row.split()[:3] for row in rows], dtype=float).reshape(-1, 3)
        except ValueError as exc:
            if isinstance(exc, StructureError):
                raise
            raise StructureError(f"{where} is not readable as XDATCAR ({one_line(exc)})") from None
        direct = "Cartesian" not in line
        yield Atoms(
            numbers=numbers, positions=coordinates @ cell if direct else coordinates, cell=cell, pbc=True
        )


def _xdatcar_header(stream: TextIO, where: str) -> tuple[np.ndarray, list[int]]:
    lines = list(islice(stream, 6))
    if len(lines) < 6:
        raise StructureError(
            f"{where} is cut off: expected scale, cell, symbols and counts, found the end of the file"
        )
    scale = float(lines[0].split()[0])
    cell = np.array([[float(value) for value in row.split()[:3]] for row in lines[1:4]]).reshape(3, 3)
    # a negative scale states the volume
    cell = cell * (scale if scale > 0 else (-scale / abs(np.linalg.det(cell))) ** (1 / 3))
    numbers: list[int] = []
    for symbol, count in zip(lines[4].split(), lines[5].split(), strict=True):
        bare = re.split(r"[_/.]", symbol)[0]
        if bare not in atomic_numbers:
            raise StructureError(f"{where}: '{one_line_text(symbol)}' is not an element")
        numbers += [atomic_numbers[bare]] * int(count)
    if not numbers:
        raise StructureError(f"{where} has no atoms")
    return cell, numbers


def encode_xdatcar(atoms: Atoms, index: int) -> str:
    """One configuration with its own cell, atoms in the order given."""
    if not atoms.cell.rank == 3:
        raise StructureError("XDATCAR needs a cell with three lattice vectors; write extxyz instead")
    runs: list[tuple[str, int]] = []
    for symbol in atoms.get_chemical_symbols():
        if runs and runs[-1][0] == symbol:
            runs[-1] = (symbol, runs[-1][1] + 1)
        else:
            runs.append((symbol, 1))
    lines = [atoms.get_chemical_formula(), "1.0"]
    lines += [" ".join(f"{value:.12f}" for value in row) for row in atoms.cell.array]
    lines += [" ".join(symbol for symbol, _ in runs), " ".join(str(count) for _, count in runs)]
    lines.append(f"Direct configuration= {index + 1:5d}")
    scaled = atoms.get_scaled_positions(wrap=False)
    lines += [" ".join(f"{value:.12f}" for value in row) for row in scaled]
    return "\n".join(lines) + "\n"
