"""Denoisers for one element of a structure: the oxygens of ice, with their hydrogens riding along.

Where a molecule is one site of a crystal, as water is in ice, the lattice is that of one of its atoms.  Only
those are denoised and judged.  What is bonded to one of them moves with it, as a rigid body, and shares its
verdict; the rest (guests in cages, ions, a surface) stays where it is.  An atom of that element that is
bonded to anything but hydrogen, such as the oxygens of CO2, is of another molecule and stays, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols

from zoo.errors import StructureError
from zoo.pairs import pairs

Array = npt.NDArray[np.float64]

#: And one nearer than this (Å) to an atom of a third element is of another molecule: C-O is 1.16 to 1.45 Å.
FOREIGN = 1.6
#: Atoms nearer than this (Å) to one that is denoised ride with it: O-H is about 1 Å, a hydrogen bond 1.8.
BONDED = 1.3
#: Atomic numbers that say nothing: none, and those that LAMMPS and its readers give to types without a name.
_UNNAMED = (0, 1, 6)


@dataclass(frozen=True)
class Riders:
    """Who is denoised, and who goes along.

    Attributes
    ----------
    acting : (n_acting,) indices of the atoms that are denoised.
    host : (n_atoms,) place in ``acting`` of the atom that each one goes with, itself if it is one of them;
        -1 for atoms that stay.
    """

    acting: npt.NDArray[np.int64]
    host: npt.NDArray[np.int64]

    def carried(self, before: Array, moved: Array) -> Array:
        """All positions (n_atoms, 3) Å once the acting atoms are at ``moved`` (n_acting, 3)."""
        shift = moved - before[self.acting]
        return before + np.where((self.host >= 0)[:, None], shift[self.host], 0.0)


def acting_part(atoms: Atoms, symbol: str) -> Atoms:
    """The atoms that are denoised, alone; all of them where ``symbol`` is empty."""
    return atoms[riders(atoms, symbol).acting] if symbol else atoms


def riders(atoms: Atoms, symbol: str) -> Riders:
    """Divide a structure for a denoiser that acts on one element.

    A structure of one species throughout, such as one-site water, is taken to be of that element, if its
    atoms are not named or have a name that LAMMPS files get by default.

    Raises
    ------
    StructureError : that element is none of the species, or always in other molecules.
    """
    numbers = np.asarray(atoms.numbers)
    chosen = numbers == atomic_numbers[symbol]
    if not chosen.any():
        types = atoms.arrays.get("type")
        if not np.isin(numbers, _UNNAMED).all() and len(np.unique(numbers)) == 1:
            name = chemical_symbols[int(numbers[0])]
            raise StructureError(
                f"all atoms are {name}, and only {symbol} is denoised: use another checkpoint, or name the "
                f"sites {symbol} if they are those of a one-site model"
            )
        if len(np.unique(numbers)) > 1 or (types is not None and len(np.unique(types)) > 1):
            formula = atoms.get_chemical_formula(empirical=True)
            raise StructureError(
                f"there is no {symbol} among the atoms ({formula}), and only {symbol} is denoised: name the "
                "species of LAMMPS types (--species), or use another checkpoint"
            )
        chosen[:] = True
    i, j, d = pairs(atoms.positions, atoms.cell[:], atoms.pbc, FOREIGN, "ijd")
    foreign = ~chosen & ~np.isin(numbers, (0, 1))
    chosen[i[chosen[i] & foreign[j]]] = False
    if not chosen.any():
        raise StructureError(f"every {symbol} is bonded to another element: there is none to denoise")
    acting = np.flatnonzero(chosen)
    host = np.full(len(atoms), -1, dtype=np.int64)
    host[acting] = np.arange(len(acting))
    if len(acting) == len(atoms):
        return Riders(acting, host)
    bonds = ~chosen[i] & chosen[j] & (d < BONDED) & ~foreign[i] & (numbers[i] != numbers[acting[0]])
    i, j, d = i[bonds], j[bonds], d[bonds]
    order = np.argsort(-d, kind="stable")  # the nearest one is written last
    host[i[order]] = host[j[order]]
    return Riders(acting, host)
