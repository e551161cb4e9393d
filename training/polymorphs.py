"""Polymorphs of silica and of ice, as crystallographers published them.

Each entry names its source.  Of ices only the oxygens are here: their hydrogens are disordered in most of
these phases, and one-site water has none.  Cells are the conventional ones; `orthogonal` makes boxes that
every simulation program takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
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
    return built(POLYMORPHS[name])


def built(entry: Polymorph) -> Atoms:
    """The conventional cell of an entry, in Å."""
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


# Rows in terms of the conventional vectors: an orthogonal cell of a hexagonal one, and the hexagonal triple
# cell of the rhombohedral one of ice II.
_ORTHOGONAL_HEXAGONAL = ((1, 0, 0), (1, 2, 0), (0, 0, 1))
_HEXAGONAL_OF_RHOMBOHEDRAL = ((1, -1, 0), (0, 1, -1), (1, 1, 1))


def orthogonal(name: str) -> Atoms:
    """The smallest cell with three perpendicular axes, in Å, its axes along x, y and z."""
    return made_orthogonal(conventional(name))


def made_orthogonal(atoms: Atoms) -> Atoms:
    """The smallest cell with three perpendicular axes of a conventional one."""
    if abs(atoms.cell.angles()[0] - 90) > 1:
        atoms = make_supercell(atoms, np.array(_HEXAGONAL_OF_RHOMBOHEDRAL))
    if abs(atoms.cell.angles()[2] - 120) < 1:
        atoms = make_supercell(atoms, np.array(_ORTHOGONAL_HEXAGONAL))
    atoms.set_cell(np.diag(atoms.cell.lengths()), scale_atoms=True)  # turned, not deformed
    atoms.wrap()
    return atoms


#: Of phases of low symmetry: the sites of their parent of high symmetry and its cell in the same axes, and
#: how much of the way from there to the published sites is drawn.  Tetrahedra turn back towards the parent as
#: quartz is heated, and jump the rest of the way at the transition.
PARENTS: dict[
    str, tuple[tuple[tuple[float, float, float], ...], tuple[float, ...], tuple[float, float]]
] = {
    "alpha-quartz": (
        ((0.5, 0, 2 / 3), (0.4144, 0.2072, 5 / 6)), _hexagonal(4.9977, 5.4601), (0.45, 1.15),
    ),
    "alpha-cristobalite": (
        ((0.25, 0.25, 0), (0.25, 0, 0.125)), _tetragonal(7.16 / 2**0.5, 7.16), (0.7, 1.15),
    ),
}  # fmt: skip
#: How far free coordinates are from the published ones in other conditions and by other force fields, Å.
_ELSEWHERE = 0.03


def variant(name: str, rng: np.random.Generator | None = None) -> Atoms:
    """`orthogonal`, with what symmetry leaves free drawn at random; as published without ``rng``.

    Coordinates that symmetry fixes stay.  Phases that grow out of a parent of higher symmetry are anywhere
    on the way that they go with temperature.
    """
    entry = POLYMORPHS[name]
    if rng is None:
        return orthogonal(name)
    sites, cell = [np.array(xyz, dtype=float) for _, xyz in entry.sites], np.array(entry.cell, dtype=float)
    if name in PARENTS:
        parents, parent_cell, (least, most) = PARENTS[name]
        way = rng.uniform(least, most)
        sites = [np.array(p) + way * (s - p) for p, s in zip(parents, sites, strict=True)]
        cell = np.array(parent_cell) + way * (cell - parent_cell)
    if name != "beta-quartz":  # whose y is twice its x
        sites = [_moved(site, cell, rng) for site in sites]
    symbols = [symbol for symbol, _ in entry.sites]
    drawn = tuple((s, (float(x), float(y), float(z))) for s, (x, y, z) in zip(symbols, sites, strict=True))
    a, b, c, alpha, beta, gamma = cell.tolist()
    return made_orthogonal(built(Polymorph(drawn, entry.spacegroup, (a, b, c, alpha, beta, gamma), "")))


def _moved(
    site: npt.NDArray[np.float64], cell: npt.NDArray[np.float64], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Coordinates that are no multiples of 1/24 are free here; equal ones stay equal."""
    out = site.copy()
    moved: dict[float, float] = {}
    for axis, x in enumerate(site.tolist()):
        if abs(24 * x - round(24 * x)) > 1e-3:
            out[axis] += moved.setdefault(round(x, 6), rng.normal(0, _ELSEWHERE) / cell[axis])
    return out
