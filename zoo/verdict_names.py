"""Names, numbers and colours of what a verdict may call an atom; without torch, for readers and writers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

#: The last class of every head: no crystal that it knows.
DISORDERED = "disordered"
#: What an atom is that the checkpoint is not for, such as a guest in a cage of ice.
OTHER = "other"
#: One colour per class (hex RGB); compounds have that of the lattice whose sites they share, and none of
#: another compound of the same checkpoint.
COLORS: dict[str, str] = {
    DISORDERED: "#c4c4c4",
    "fcc": "#009e73",
    "hcp": "#d55e00",
    "bcc": "#0072b2",
    "simple cubic": "#f0e442",
    "cubic diamond": "#56b4e9",
    "hexagonal diamond": "#cc79a7",
    "L1_0": "#004d38",
    "L1_2": "#009e73",
    "B2": "#0072b2",
    "rocksalt": "#f0e442",
    "zincblende": "#56b4e9",
    "wurtzite": "#cc79a7",
    OTHER: "#8a8a8a",
    "alpha-quartz": "#0072b2",
    "beta-quartz": "#56b4e9",
    "alpha-cristobalite": "#d55e00",
    "beta-cristobalite": "#f0e442",
    "ice Ih": "#cc79a7",
    "ice Ic": "#56b4e9",
    "ice II": "#d55e00",
    "ice III": "#e69f00",
    "ice VI": "#009e73",
    "ice VII": "#0072b2",
    "clathrate sI": "#f0e442",
}
#: Numbers of the classes where names cannot be written; the first seven are those of `zoo.analysis.crystals`.
CODES: dict[str, int] = {name: index for index, name in enumerate(COLORS)}


def is_verdict(arrays: Mapping[str, npt.NDArray[Any]]) -> bool:
    """Whether atoms have the names of a verdict, of this or an earlier run."""
    there = arrays.get("structure_type")
    return there is not None and there.dtype.kind in "UO" and set(there.tolist()) <= set(CODES)
