"""From LAMMPS atom types to elements and back, without ever guessing that type 1 is hydrogen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ase import Atoms
from ase.data import atomic_masses, atomic_numbers, chemical_symbols
from numpy.typing import NDArray

from zoo.errors import StructureError

_MASS_TOLERANCE = 0.05


def check_species(species: Sequence[str] | None) -> list[str] | None:
    """Element symbols as typed by a user, checked; None passes through.

    Raises
    ------
    StructureError
        One of them is no element.
    """
    if species is None:
        return None
    cleaned = [symbol.strip() for symbol in species]
    for symbol in cleaned:
        if symbol not in atomic_numbers:
            raise StructureError(
                f"species '{symbol}' is not an element; give one symbol per LAMMPS type, for example Al,Cu"
            )
    if not cleaned:
        raise StructureError("species is empty; give one symbol per LAMMPS type, for example Al,Cu")
    return cleaned


def numbers_from_types(types: NDArray[np.int_], species: Sequence[str], where: str) -> NDArray[np.int_]:
    """Atomic numbers (n_atoms,) of LAMMPS types that count from 1.

    Raises
    ------
    StructureError
        A type has no species.
    """
    low, high = int(types.min()), int(types.max())
    if low < 1 or high > len(species):
        raise StructureError(
            f"{where}: LAMMPS type {high if high > len(species) else low} has no element: "
            f"{len(species)} species given ({','.join(species)}); give one per type"
        )
    table = np.array([atomic_numbers[symbol] for symbol in species])
    return np.asarray(table[types - 1])


def elements_from_masses(masses: Mapping[int, float]) -> dict[int, int]:
    """Atomic number by type from masses in g/mol; 0 where no element weighs that much.

    Masses that are all exactly 1 are the placeholder of reduced units, not hydrogen.
    """
    if all(mass == 1.0 for mass in masses.values()):
        return dict.fromkeys(masses, 0)
    found = {}
    for kind, mass in masses.items():
        nearest = int(np.argmin(np.abs(atomic_masses[1:] - mass))) + 1
        found[kind] = nearest if abs(atomic_masses[nearest] - mass) <= _MASS_TOLERANCE else 0
    return found


class TypeTable:
    """LAMMPS types for structures that have none, the same in every frame of a file."""

    def __init__(self) -> None:
        self._types: dict[int, int] = {}

    def types(self, atoms: Atoms) -> NDArray[np.int_]:
        """Type (n_atoms,) of each atom: its own ``type`` array, else by element, alphabetically."""
        if "type" in atoms.arrays and np.issubdtype(atoms.arrays["type"].dtype, np.integer):
            return np.asarray(atoms.arrays["type"])
        numbers = atoms.numbers
        for number in sorted({int(n) for n in numbers}, key=lambda n: chemical_symbols[n]):
            self._types.setdefault(number, len(self._types) + 1)
        return np.array([self._types[int(n)] for n in numbers], dtype=int)
