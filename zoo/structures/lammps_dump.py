"""Reading LAMMPS text dumps, one frame in memory at a time.

This keeps what the file says: atoms in file order, ``id`` and ``type`` as arrays, the box origin in
``info["origin"]``, the step in ``info["timestep"]``, every further per-atom column under its own name.
Numbers are not converted between unit systems; lengths are taken as Å.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import Any, TextIO

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_numbers
from numpy.typing import NDArray

from zoo.errors import StructureError
from zoo.structures.lammps_box import Array, lattice_from_bounds
from zoo.structures.lammps_types import elements_from_masses, numbers_from_types
from zoo.structures.sources import one_line

# Best first: wrapped coordinates (with image flags they lose nothing), then what follows from them.
_COORDINATES = (
    (("x", "y", "z"), False),
    (("xs", "ys", "zs"), True),
    (("xu", "yu", "zu"), False),
    (("xsu", "ysu", "zsu"), True),
)
_IMAGES = ("ix", "iy", "iz")
VECTORS = {
    "velocities": ("vx", "vy", "vz"),
    "forces": ("fx", "fy", "fz"),
    "color": ("Color.R", "Color.G", "Color.B"),  # as OVITO calls them
}
_INTEGERS = {"id", "type", "mol", "ix", "iy", "iz", "proc", "procp1", "structure_type", "tags"}
_NO_LENGTH_IN_ANGSTROM = {"si", "cgs", "electron", "micro", "nano"}


def read_dump(stream: TextIO, name: str, species: Sequence[str] | None) -> Iterator[Atoms]:
    """Yield the frames of a dump; raise StructureError at the first one that is not whole."""
    carried: dict[str, Any] = {}
    for number in count(1):
        where = f"{name}, frame {number}"
        frame = _read_frame(stream, where, species, carried)
        if frame is None:
            return
        yield frame


def _read_frame(
    stream: TextIO, where: str, species: Sequence[str] | None, carried: dict[str, Any]
) -> Atoms | None:
    info: dict[str, Any] = {}
    n_atoms: int | None = None
    box: tuple[Array, Array, NDArray[np.bool_]] | None = None
    started = False
    line = _next_item(stream, where)
    while line:
        item, _, labels = line[len("ITEM:") :].strip().partition(" ")
        started = True
        following: str | None = None
        try:
            if item == "TIMESTEP":
                info["timestep"] = int(float(_value(stream, where, "the time step")))
            elif item == "TIME":
                info["time"] = float(_value(stream, where, "the time"))
            elif item == "UNITS":
                carried["lammps_units"] = _value(stream, where, "the unit system").strip()
            elif item == "NUMBER":
                n_atoms = int(_value(stream, where, "the number of atoms"))
            elif item == "BOX":
                box = _read_box(stream, where, labels)
            elif item == "ATOMS":
                if n_atoms is None or box is None:
                    missing = "NUMBER OF ATOMS" if n_atoms is None else "BOX BOUNDS"
                    raise StructureError(
                        f"{where}: no ITEM: {missing} before the atoms; not a whole dump file"
                    )
                info.update(carried)
                return _read_atoms(stream, where, labels.split(), n_atoms, box, info, species)
            elif item == "ENTRIES":
                raise StructureError(
                    f"{where}: a 'dump local' file has no atoms; use 'dump atom' or 'dump custom'"
                )
            else:
                following = _skip_item(stream)
        except ValueError as exc:
            if isinstance(exc, StructureError):
                raise
            raise StructureError(f"{where}: ITEM: {item} cannot be read ({one_line(exc)})") from None
        line = following if following is not None else _next_item(stream, where)
    if started:
        raise StructureError(
            f"{where} is cut off: expected ITEM: ATOMS after its header, found the end of the file"
        )
    return None


def _next_item(stream: TextIO, where: str) -> str:
    for line in stream:
        if line.startswith("ITEM:"):
            return line
        if line.strip():
            raise StructureError(
                f"{where}: expected a line starting with 'ITEM:', found '{one_line_text(line)}'"
            )
    return ""


def _skip_item(stream: TextIO) -> str:
    return next((line for line in stream if line.startswith("ITEM:")), "")


def one_line_text(line: str) -> str:
    """The beginning of a line of a file, fit to be quoted in a message."""
    text = " ".join(line.encode("ascii", "replace").decode().split())
    return "".join(c if c.isprintable() else "?" for c in text)[:40]


def _value(stream: TextIO, where: str, what: str) -> str:
    line = stream.readline()
    if not line.endswith("\n"):
        raise StructureError(f"{where} is cut off: expected {what}, found the end of the file")
    return line


def _read_box(stream: TextIO, where: str, labels: str) -> tuple[Array, Array, NDArray[np.bool_]]:
    words = labels.split()[1:]
    rows = [[float(v) for v in _value(stream, where, "three lines of box bounds").split()] for _ in range(3)]
    if len({len(row) for row in rows}) != 1 or len(rows[0]) not in {2, 3, 4}:
        raise StructureError(f"{where}: box bounds must be three lines of two, three or four numbers")
    values = np.array(rows)
    flags = [word for word in words if set(word) <= set("pfsm") and len(word) <= 2]
    # Dumps from before boundary flags were written say nothing; periodic is what they were used for.
    pbc = np.array(["p" in flag for flag in flags[-3:]] if len(flags) >= 3 else [True] * 3)
    if values.shape[1] == 4:
        return values[:, :3].copy(), values[:, 3].copy(), pbc
    tilts = np.zeros(3)
    if values.shape[1] == 3:
        named = [word for word in words if word in {"xy", "xz", "yz"}]
        order = named if sorted(named) == ["xy", "xz", "yz"] else ["xy", "xz", "yz"]
        tilts = np.array([values[order.index(tilt), 2] for tilt in ("xy", "xz", "yz")])
    cell, origin = lattice_from_bounds(values[:, :2], tilts)
    return cell, origin, pbc


def _dtype(column: str, token: str) -> type | str:
    if column in _INTEGERS or column.startswith(("i_", "i2_")):
        return np.int64
    if column in {"element", "typelabel"}:
        return "U16"
    try:
        float(token)
    except ValueError:
        return "U32"
    return np.float64


def _table(rows: list[str], columns: Sequence[str]) -> dict[str, NDArray[Any]]:
    tokens = rows[0].split()
    if len(tokens) != len(columns):
        raise ValueError(f"{len(tokens)} values in a row under {len(columns)} column names")
    dtypes = [
        (f"f{i}", _dtype(column, token))
        for i, (column, token) in enumerate(zip(columns, tokens, strict=True))
    ]
    try:
        data = np.loadtxt(rows, dtype=np.dtype(dtypes), ndmin=1, comments=None)
    except ValueError:
        # some programs write integer columns as 1.0
        relaxed = [(name, np.float64 if kind is np.int64 else kind) for name, kind in dtypes]
        data = np.loadtxt(rows, dtype=np.dtype(relaxed), ndmin=1, comments=None)
    table: dict[str, NDArray[Any]] = {}
    for i, column in enumerate(columns):
        values = np.ascontiguousarray(data[f"f{i}"])
        if dtypes[i][1] is np.int64 and values.dtype != np.int64:
            values = np.rint(values).astype(np.int64)
        table.setdefault(column, values)  # of a column written twice the first one counts
    return table


def _read_atoms(
    stream: TextIO,
    where: str,
    columns: list[str],
    n_atoms: int,
    box: tuple[Array, Array, NDArray[np.bool_]],
    info: dict[str, Any],
    species: Sequence[str] | None,
) -> Atoms:
    if n_atoms < 1:
        raise StructureError(f"{where} has no atoms")
    units = info.get("lammps_units")
    if units in _NO_LENGTH_IN_ANGSTROM:
        raise StructureError(
            f"{where}: lengths in '{units}' units are not Å; convert the dump to metal or real units"
        )
    rows = list(islice(stream, n_atoms))
    foreign = next((i for i, row in enumerate(rows) if row.startswith("ITEM:")), None)
    # The last byte of a whole dump is an end of line; without it the last number may have lost digits.
    cut = foreign is not None or len(rows) < n_atoms or not rows[-1].endswith("\n")
    if cut:
        whole = foreign if foreign is not None else sum(row.endswith("\n") for row in rows)
        end = "the next header" if foreign is not None else "the end of the file"
        raise StructureError(f"{where} is cut off: expected {n_atoms} atoms, found {whole} and then {end}")
    try:
        table = _table(rows, columns)
    except ValueError as exc:
        raise StructureError(
            f"{where}: the atoms cannot be read as columns {' '.join(columns)} ({one_line(exc)})"
        ) from None
    return _atoms_from_table(table, where, box, info, species)


def _atoms_from_table(
    table: dict[str, NDArray[Any]],
    where: str,
    box: tuple[Array, Array, NDArray[np.bool_]],
    info: dict[str, Any],
    species: Sequence[str] | None,
) -> Atoms:
    cell, origin, pbc = box
    positions: Array | None = None
    images: Array | None = None
    for names, scaled in _COORDINATES:
        if not all(name in table for name in names):
            continue
        values = np.column_stack([table.pop(name) for name in names]).astype(float)
        cartesian = values @ cell + origin if scaled else values
        if positions is None:
            positions = cartesian
        elif (
            images is None
            and names[0] in {"xu", "xsu"}
            and _IMAGES[0] not in table
            and abs(np.linalg.det(cell)) > 0
        ):
            # wrapped and unwrapped side by side say how often each atom crossed the box
            images = np.rint((cartesian - positions) @ np.linalg.inv(cell))
    if positions is None:
        raise StructureError(
            f"{where}: no coordinates among the columns {' '.join(table)}; dump x y z, xs ys zs or xu yu zu"
        )
    numbers = _numbers(table, where, species)
    if origin.any():
        info["origin"] = origin
    atoms = Atoms(numbers=numbers, positions=positions, cell=cell, pbc=pbc, info=info)
    if images is not None and np.isfinite(images).all():
        for axis, name in enumerate(_IMAGES):
            atoms.set_array(name, images[:, axis].astype(np.int64))
    results = {}
    for array, names in VECTORS.items():
        if all(name in table for name in names):
            vectors = np.column_stack([table.pop(name) for name in names]).astype(float)
            if array == "forces":
                results["forces"] = vectors
            else:
                atoms.set_array(array, vectors)
    renamed = {"q": "initial_charges", "mass": "masses"}
    for column, values in table.items():
        target = renamed.get(column, column)
        atoms.set_array(target if target not in {"positions", "numbers"} else f"{target}_", values)
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def _numbers(table: dict[str, NDArray[Any]], where: str, species: Sequence[str] | None) -> NDArray[np.int_]:
    n_atoms = len(next(iter(table.values()))) if table else 0
    if species is not None:
        # What the user says outranks the file: LAMMPS writes C for every atom unless told otherwise.
        if "type" not in table:
            raise StructureError(f"{where}: species given but the dump has no 'type' column")
        table.pop("element", None)
        return numbers_from_types(table["type"], species, where)
    for column in ("element", "typelabel"):
        if column in table and all(str(symbol) in atomic_numbers for symbol in np.unique(table[column])):
            symbols, inverse = np.unique(table[column], return_inverse=True)
            if column == "element":
                del table[column]
            return np.array([atomic_numbers[str(symbol)] for symbol in symbols])[inverse]
    if "mass" in table:
        masses, inverse = np.unique(table["mass"], return_inverse=True)
        found = elements_from_masses({i: float(mass) for i, mass in enumerate(masses)})
        return np.array([found[i] for i in range(len(masses))])[inverse]
    if not n_atoms:
        raise StructureError(f"{where}: neither 'type' nor 'element' among the columns; dump one of them")
    return np.zeros(n_atoms, dtype=int)
