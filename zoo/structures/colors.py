"""Colours of the labels of atoms, in the array that OVITO takes for the colours of particles.

OVITO reads the column ``color`` of extended XYZ and the columns ``Color.R``, ``Color.G`` and ``Color.B`` of a
dump as its property Color, which outranks the colours of types.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms

from zoo.verdict_names import COLORS, is_verdict

#: Of labels that have no colour.
OTHER = "#888888"


def label_colors(labels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Red, green and blue from 0 to 1 of names or numbers of `zoo.verdict_names`, (n_atoms, 3).

    Four digits, so that a file gives back what was put into it.
    """
    by_number = dict(enumerate(COLORS.values()))
    kinds, inverse = np.unique(labels, return_inverse=True)
    of: dict[Any, str] = {**by_number, **COLORS}
    rgb = [[int(of.get(kind, OTHER)[k : k + 2], 16) for k in (1, 3, 5)] for kind in kinds.tolist()]
    return np.asarray((np.array(rgb, dtype=np.float64).reshape(-1, 3) / 255).round(4)[inverse.ravel()])


def paint(before: Atoms, after: Atoms, *, judged: bool, wanted: bool) -> None:
    """Give ``after`` the array ``color``, (n_atoms, 3), of its labels.

    Colours that came with ``before`` stay, unless they are those of its labels: then they follow the new
    labels, wanted or not.

    Parameters
    ----------
    judged : the names in ``structure_type`` are a verdict; else names are one if all are known.
    wanted : add colours where there were none.
    """
    there = [name for name in before.arrays if name.casefold() == "color"]
    if there:
        labels = _labels(before)
        theirs = before.arrays[there[0]]
        if (
            there != ["color"]
            or labels is None
            or theirs.shape != (len(before), 3)
            or theirs.dtype.kind != "f"
            or not np.allclose(theirs, label_colors(labels), atol=1e-3)
        ):
            return
        after.arrays.pop("color", None)
    labels = after.arrays["structure_type"] if judged else _labels(after)
    if labels is not None and (wanted or there):
        after.set_array("color", label_colors(labels))


def _labels(atoms: Atoms) -> npt.NDArray[Any] | None:
    """The verdict, or the numbers of `zoo.analysis.crystals.store_labels`."""
    if is_verdict(atoms.arrays):
        return np.asarray(atoms.arrays["structure_type"])
    for name in ("structure_type", "site_type"):
        if name in atoms.arrays and atoms.arrays[name].dtype.kind in "iu":
            return np.asarray(atoms.arrays[name])
    return None
