"""Real structures to try: snapshots of molecular dynamics that no model was trained on."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from zoo_space.errors import VisitorError


@dataclass(frozen=True)
class Example:
    """``key`` is what the API takes, ``label`` what the page shows, ``module`` where the file is."""

    key: str
    label: str
    file: str
    module: str = "zoo_space.examples"


CRYSTALS = (
    Example("aluminium", "Aluminium at its melting point", "al-melting-point.extxyz.gz", "zoo.data"),
    Example("grain-boundary", "Copper grain boundaries, 1000 K", "copper-grain-boundary.extxyz.gz"),
    Example("ice", "Ice at its melting point", "ice.extxyz.gz"),
    Example("solid-liquid", "Aluminium, solid beside liquid", "aluminium-solid-liquid.extxyz.gz"),
)
MOLECULES = (
    Example("alanine-c7eq", "Alanine dipeptide, C7eq", "alanine-dipeptide-c7eq.pdb"),
    Example("alanine-alpha-r", "Alanine dipeptide, α-R", "alanine-dipeptide-alpha-r.pdb"),
    Example("alanine-alpha-l", "Alanine dipeptide, α-L", "alanine-dipeptide-alpha-l.pdb"),
    Example("alanine-c7ax", "Alanine dipeptide, C7ax", "alanine-dipeptide-c7ax.pdb"),
)

_OPEN = ExitStack()  # keeps the files of a zipped package unpacked while the process lives


def path_of(key: str, among: tuple[Example, ...]) -> Path:
    """The file of an example.

    Raises VisitorError.
    """
    for each in among:
        if each.key == key:
            return _OPEN.enter_context(as_file(files(each.module).joinpath(each.file)))
    raise VisitorError(f"there is no example {key!r}: choose one of {', '.join(e.key for e in among)}")
