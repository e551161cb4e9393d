"""Which ordered compound each atom sits in: the lattice of the sites, and who sits on them.

Sites are labelled as by `zoo.analysis.crystals.structure_types`, without regard to species.  How the species
share them is then read by polyhedral template matching (Larsen, Schmidt & Schiøtz, Modelling Simul. Mater.
Sci. Eng. 24, 055007, 2016), and for rocksalt, which it does not know, from the six nearest neighbours, which
must all be of the other species.  An atom that stands on the wrong sublattice is "other", and so are the
neighbours whose surroundings it changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms

from zoo.analysis.crystals import (
    BCC,
    CUBIC_DIAMOND,
    FCC,
    HEXAGONAL_DIAMOND,
    OTHER,
    SIMPLE_CUBIC,
    structure_types,
    to_ovito,
)
from zoo.pairs import pairs
from zoo.scale import length_scale

IntArray = npt.NDArray[np.int64]

#: Name of each integer label.
ORDERINGS: tuple[str, ...] = ("other", "L1_0", "L1_2", "B2", "zincblende", "rocksalt", "wurtzite")
#: The lattice whose sites a compound shares, as an index into `zoo.analysis.crystals.STRUCTURES`.
HOSTS: dict[str, int] = {
    "L1_0": FCC,
    "L1_2": FCC,
    "B2": BCC,
    "zincblende": CUBIC_DIAMOND,
    "rocksalt": SIMPLE_CUBIC,
    "wurtzite": HEXAGONAL_DIAMOND,
}


def orderings(atoms: Atoms, sites: npt.ArrayLike | None = None) -> IntArray:
    """Ordered compound of every atom, (n_atoms,) indices into `ORDERINGS`.

    Parameters
    ----------
    atoms : denoised or cold; of any number of species, each neighbour counts as like or unlike.
    sites : labels by `structure_types`, if they are known already.

    Raises
    ------
    MissingExtraError, StructureError : as `structure_types`.
    """
    labels = structure_types(atoms) if sites is None else np.asarray(sites, dtype=np.int64)
    out = np.full(len(atoms), OTHER, dtype=np.int64)
    ordering, kind = _by_templates(atoms)
    fits = (
        ("L1_0", ordering == kind.L10),
        ("L1_2", (ordering == kind.L12_A) | (ordering == kind.L12_B)),
        ("B2", ordering == kind.B2),
        ("zincblende", ordering == kind.ZINCBLENDE_WURTZITE),
        ("wurtzite", ordering == kind.ZINCBLENDE_WURTZITE),
    )
    for name, fit in fits:
        out[fit & (labels == HOSTS[name])] = ORDERINGS.index(name)
    cubic = labels == SIMPLE_CUBIC
    if cubic.any():
        out[cubic & _all_unlike(atoms, 6)] = ORDERINGS.index("rocksalt")
    return out


def _by_templates(atoms: Atoms) -> tuple[IntArray, Any]:
    """Template matching's codes of the chemical order, (n_atoms,), and their names."""
    data = to_ovito(atoms)
    from ovito.modifiers import PolyhedralTemplateMatchingModifier as Ptm

    if not len(atoms):
        return np.zeros(0, dtype=np.int64), Ptm.OrderingType
    data.particles_.create_property("Particle Type", data=atoms.numbers.astype(np.int32))
    modifier = Ptm(output_ordering=True, rmsd_cutoff=0.15)
    modifier.color_by_type = False
    for structure in modifier.structures:
        structure.enabled = True
    data.apply(modifier)
    return np.array(data.particles["Ordering Type"], dtype=np.int64), Ptm.OrderingType


def _all_unlike(atoms: Atoms, n: int) -> npt.NDArray[np.bool_]:
    """Whether the ``n`` nearest neighbours of each atom are all of other species."""
    scale = length_scale(atoms.positions, atoms.cell[:], atoms.pbc)
    i, j, d = pairs(atoms.positions, atoms.cell[:], atoms.pbc, 1.6 * scale, "ijd")
    order = np.lexsort((d, i))
    i, j = i[order], j[order]
    degree = np.bincount(i, minlength=len(atoms))
    rank = np.arange(len(i)) - np.repeat(np.cumsum(degree) - degree, degree)
    unlike = (rank < n) & (atoms.numbers[i] != atoms.numbers[j])
    return np.asarray(np.bincount(i, weights=unlike, minlength=len(atoms)) == n)
