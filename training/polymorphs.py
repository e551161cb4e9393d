"""Polymorphs of silica and of ice, as crystallographers published them.

Each entry names its source.  Of ices only the oxygens are here: their hydrogens are disordered in most of
these phases, and one-site water has none.  Cells are the conventional ones; `orthogonal` makes boxes that
every simulation program takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from ase import Atoms
from ase.build import make_supercell
from ase.spacegroup import crystal


@dataclass(frozen=True)
class Polymorph:
    """A crystal by its space group.

    Parameters
    ----------
    sites : element and fractional coordinates of each atom of the asymmetric unit.
    spacegroup : number in the International Tables, and which of its settings (origin or axes).
    cell : a, b, c in Å and the angles in degrees.
    source : where lengths and coordinates were published.
    """

    sites: tuple[tuple[str, tuple[float, float, float]], ...]
    spacegroup: tuple[int, int]
    cell: tuple[float, float, float, float, float, float]
    source: str


def _cubic(a: float) -> tuple[float, float, float, float, float, float]:
    return a, a, a, 90, 90, 90


def _tetragonal(a: float, c: float) -> tuple[float, float, float, float, float, float]:
    return a, a, c, 90, 90, 90


def _hexagonal(a: float, c: float) -> tuple[float, float, float, float, float, float]:
    return a, a, c, 90, 90, 120


SILICA: dict[str, Polymorph] = {
    "alpha-quartz": Polymorph(
        (("Si", (0.4697, 0, 2 / 3)), ("O", (0.4135, 0.2669, 0.7858))), (154, 1), _hexagonal(4.916, 5.4054),
        "Levien, Prewitt & Weidner, Am. Mineral. 65, 920 (1980)",
    ),
    "beta-quartz": Polymorph(
        (("Si", (0.5, 0, 0)), ("O", (0.2072, 0.4144, 0.5))), (180, 1), _hexagonal(4.9977, 5.4601),
        "Wright & Lehmann, J. Solid State Chem. 36, 371 (1981)",
    ),
    "alpha-cristobalite": Polymorph(
        (("Si", (0.3003, 0.3003, 0)), ("O", (0.2392, 0.1044, 0.1787))), (92, 1), _tetragonal(4.9717, 6.9223),
        "Downs & Palmer, Am. Mineral. 79, 9 (1994)",
    ),
    "beta-cristobalite": Polymorph(
        (("Si", (0.125, 0.125, 0.125)), ("O", (0, 0, 0))), (227, 2), _cubic(7.16),
        "Peacor, Z. Kristallogr. 138, 274 (1973); oxygen on its mean site",
    ),
}  # fmt: skip

ICE: dict[str, Polymorph] = {
    "ice Ih": Polymorph(
        (("O", (1 / 3, 2 / 3, 0.0622)),), (194, 1), _hexagonal(4.4975, 7.3224),
        "Goto, Hondoh & Mae, J. Chem. Phys. 93, 1412 (1990)",
    ),
    "ice Ic": Polymorph(
        (("O", (0.125, 0.125, 0.125)),), (227, 2), _cubic(6.358),
        "Koenig, Z. Kristallogr. 105, 279 (1943), with the cell of Kuhs, Bliss & Finney (1987)",
    ),
    "ice II": Polymorph(
        (("O", (0.2716, 0.0259, -0.1471)), ("O", (0.4798, 0.7571, 0.3388))), (148, 2),
        (7.78, 7.78, 7.78, 113.1, 113.1, 113.1),
        "Kamb, Hamilton, LaPlaca & Prakash, J. Chem. Phys. 55, 1934 (1971)",
    ),
    "ice III": Polymorph(
        (("O", (0.1092, 0.3015, 0.2866)), ("O", (0.3918, 0.3918, 0))), (92, 1), _tetragonal(6.666, 6.936),
        "Londono, Kuhs & Finney, J. Chem. Phys. 98, 4878 (1993)",
    ),
    "ice VI": Polymorph(
        (("O", (0.25, 0.75, 0.25)), ("O", (0.25, 0.4701, 0.8667))), (137, 2), _tetragonal(6.181, 5.698),
        "Kuhs, Finney, Vettier & Bliss, J. Chem. Phys. 81, 3612 (1984)",
    ),
    "ice VII": Polymorph(
        (("O", (0.25, 0.25, 0.25)),), (224, 2), _cubic(3.3501),
        "Kuhs, Finney, Vettier & Bliss, J. Chem. Phys. 81, 3612 (1984)",
    ),
    "clathrate sI": Polymorph(
        (("O", (0.25, 0, 0.5)), ("O", (0.1836, 0.1836, 0.1836)), ("O", (0, 0.3094, 0.1153))), (223, 1),
        _cubic(12.03), "McMullan & Jeffrey, J. Chem. Phys. 42, 2725 (1965)",
    ),
}  # fmt: skip

POLYMORPHS: dict[str, Polymorph] = SILICA | ICE


@cache
def _conventional(name: str) -> Atoms:
    entry = POLYMORPHS[name]
    number, setting = entry.spacegroup
    atoms = crystal(
        [symbol for symbol, _ in entry.sites], [xyz for _, xyz in entry.sites],
        spacegroup=number, setting=setting, cellpar=list(entry.cell), onduplicates="error",
    )  # fmt: skip
    return Atoms(atoms.get_chemical_symbols(), atoms.positions, cell=atoms.cell[:], pbc=True)


def conventional(name: str) -> Atoms:
    """The conventional cell in Å, as published.

    Raises
    ------
    KeyError : no such polymorph.
    """
    atoms: Atoms = _conventional(name).copy()
    return atoms


#: Smallest orthogonal cells of those whose conventional cell is not: rows in terms of its vectors.
_ORTHOGONAL_HEXAGONAL = ((1, 0, 0), (1, 2, 0), (0, 0, 1))
# The rhombohedral cell of ice II, first as its hexagonal triple cell (obverse setting).
_HEXAGONAL_OF_RHOMBOHEDRAL = ((1, -1, 0), (0, 1, -1), (1, 1, 1))


def orthogonal(name: str) -> Atoms:
    """The smallest cell with three perpendicular axes, in Å, its axes along x, y and z."""
    atoms = conventional(name)
    if abs(atoms.cell.angles()[0] - 90) > 1:
        atoms = make_supercell(atoms, np.array(_HEXAGONAL_OF_RHOMBOHEDRAL))
    if abs(atoms.cell.angles()[2] - 120) < 1:
        atoms = make_supercell(atoms, np.array(_ORTHOGONAL_HEXAGONAL))
    atoms.set_cell(np.diag(atoms.cell.lengths()), scale_atoms=True)  # turned, not deformed
    atoms.wrap()
    return atoms
