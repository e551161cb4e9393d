"""LAMMPS data files: read through ASE with the elements made certain, written here to keep the origin."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TextIO

import numpy as np
from ase import Atoms, units
from ase.data import atomic_masses, atomic_numbers, chemical_symbols

from zoo.errors import StructureError
from zoo.structures.lammps_box import box_of, is_restricted
from zoo.structures.lammps_types import TypeTable, elements_from_masses, numbers_from_types

_SECTION = re.compile(r"^[A-Z][A-Za-z]+( [A-Z][A-Za-z]+)*$")
_ANGSTROM_PER_PS = 1000.0 * units.fs


class _Numbers(dict[int, int]):
    """Atomic number by type; an unknown type is 0 (X), never its own number."""

    def __missing__(self, kind: int) -> int:
        return 0


def read_data(stream: TextIO, where: str, species: Sequence[str] | None) -> Atoms:
    """The one structure of a data file, atoms in file order, with ``id`` and ``type`` arrays.

    Elements come from ``species`` (one per type), else from the type labels, the comments behind the
    masses, or the masses themselves; what none of them tells stays atomic number 0.
    """
    from ase.io.lammpsdata import read_lammps_data

    text = stream.read()
    if not re.search(r"^\s*Atoms\b", text, re.MULTILINE):
        raise StructureError(f"{where} has no 'Atoms' section; the file is cut off or not a LAMMPS data file")
    count = re.search(r"^\s*(\d+)\s+atoms\b", text, re.MULTILINE)
    if count is None or int(count.group(1)) == 0:
        raise StructureError(f"{where} has no atoms")
    try:
        atoms: Atoms = read_lammps_data(
            io.StringIO(text), Z_of_type=_Numbers({0: 0, **_declared_elements(text)}), sort_by_id=False
        )
    except StopIteration:
        raise StructureError(
            f"{where} is cut off: expected {count.group(1)} atoms in its 'Atoms' section"
        ) from None
    if species is not None:
        # setting numbers keeps the masses array, which came from the file
        atoms.numbers[:] = numbers_from_types(atoms.arrays["type"], species, where)
    atoms.arrays.pop("mmcharges", None)
    atoms.info.pop("comment", None)
    origin = _origin(text)
    if origin.any():
        atoms.info["origin"] = origin
    return atoms


def _section_lines(text: str, title: str) -> list[str]:
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        bare = line.split("#")[0].strip()
        if _SECTION.match(bare):
            if inside:
                break
            inside = bare == title
        elif inside and bare:
            lines.append(line)
    return lines


def _declared_elements(text: str) -> dict[int, int]:
    labels: dict[int, str] = {}
    masses: dict[int, float] = {}
    for line in _section_lines(text, "Atom Type Labels"):
        fields = line.split()
        labels[int(fields[0])] = fields[1]
    for line in _section_lines(text, "Masses"):
        body, _, comment = line.partition("#")
        fields = body.split()
        kind = (
            int(fields[0])
            if fields[0].isdigit()
            else next((k for k, v in labels.items() if v == fields[0]), 0)
        )
        masses[kind] = float(fields[1])
        if comment.split():
            labels.setdefault(kind, comment.split()[0])
    found = elements_from_masses(masses) if masses else {}
    found.update({kind: atomic_numbers[label] for kind, label in labels.items() if label in atomic_numbers})
    return found


def _origin(text: str) -> np.ndarray:
    header = re.split(r"^\s*Atoms\b", text, maxsplit=1, flags=re.MULTILINE)[0]
    general = re.search(r"^\s*(\S+)\s+(\S+)\s+(\S+)\s+abc\s+origin", header, re.MULTILINE)
    if general:
        return np.array([float(value) for value in general.groups()])
    low = [re.search(rf"^\s*(\S+)\s+\S+\s+{axis}lo\s+{axis}hi", header, re.MULTILINE) for axis in "xyz"]
    return np.array([float(match.group(1)) if match else 0.0 for match in low])


def encode_data(atoms: Atoms) -> str:
    """A data file of style atomic, charge, molecular or full, as the arrays of the structure ask for.

    A cell that is not lower triangular is rotated into LAMMPS' orientation, atoms and velocities with
    it.  Bonds and other topology are not written.
    """
    from ase.calculators.lammps import Prism

    cell, origin = box_of(atoms)
    positions, velocities = atoms.positions, None
    if "momenta" in atoms.arrays:
        velocities = atoms.get_velocities() * _ANGSTROM_PER_PS
    if not is_restricted(cell):
        prism = Prism(cell)
        positions = prism.vector_to_lammps(positions - origin)
        velocities = None if velocities is None else prism.vector_to_lammps(velocities)
        lx, ly, lz, xy, xz, yz = prism.get_lammps_prism()
        cell, origin = np.array([[lx, 0, 0], [xy, ly, 0], [xz, yz, lz]]), np.zeros(3)
    types = TypeTable().types(atoms)
    lines = ["# LAMMPS data file", "", f"{len(atoms)} atoms", f"{int(types.max())} atom types", ""]
    for axis, name in enumerate("xyz"):
        lines.append(f"{origin[axis]:.16g} {origin[axis] + cell[axis, axis]:.16g} {name}lo {name}hi")
    if cell[1, 0] or cell[2, 0] or cell[2, 1]:
        lines.append(f"{cell[1, 0]:.16g} {cell[2, 0]:.16g} {cell[2, 1]:.16g} xy xz yz")
    lines += ["", "Masses", ""]
    for kind in range(1, int(types.max()) + 1):
        members = np.flatnonzero(types == kind)
        number = int(atoms.numbers[members[0]]) if len(members) else 0
        mass = float(atoms.get_masses()[members[0]]) if len(members) else float(atomic_masses[0])
        comment = f"  # {chemical_symbols[number]}" if number else ""
        lines.append(f"{kind} {mass:.10g}{comment}")
    molecule = atoms.arrays.get("mol-id", atoms.arrays.get("mol"))
    charge = atoms.arrays.get("initial_charges")
    style = {(0, 0): "atomic", (0, 1): "charge", (1, 0): "molecular", (1, 1): "full"}[
        (int(molecule is not None), int(charge is not None))
    ]
    lines += ["", f"Atoms # {style}", ""]
    ids = atoms.arrays.get("id", np.arange(1, len(atoms) + 1))
    for i in range(len(atoms)):
        fields = [f"{int(ids[i])}"]
        fields += [f"{int(molecule[i])}"] if molecule is not None else []
        fields += [f"{int(types[i])}"]
        fields += [f"{float(charge[i]):.10g}"] if charge is not None else []
        fields += [f"{value:.16g}" for value in positions[i]]
        lines.append(" ".join(fields))
    if velocities is not None:
        lines += ["", "Velocities", ""]
        lines += [f"{int(ids[i])} " + " ".join(f"{v:.12g}" for v in velocities[i]) for i in range(len(atoms))]
    return "\n".join(lines) + "\n"
