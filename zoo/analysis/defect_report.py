"""What is wrong with a crystal, in numbers: structures, point defects, planes, grains, dislocation lines.

One report per denoised frame; `zoo analyze` makes a table, JSON and a picture of them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from ase import Atoms

from zoo.analysis.crystals import (
    OTHER,
    STRUCTURES,
    Dislocation,
    IntArray,
    dislocation_network,
    structure_fractions,
    structure_types,
)
from zoo.analysis.extended_defects import grains, neighbors, planar_faults
from zoo.analysis.point_defects import nearest_distance, point_defects
from zoo.verdict_names import DISORDERED, is_verdict
from zoo.verdict_names import OTHER as NOT_FOR_IT

#: With a smaller share of atoms in any crystal there is none to have defects.
LEAST_CRYSTAL = 0.05
#: Å⁻² are so many m⁻².
_PER_SQUARE_METRE = 1e20


@dataclass(frozen=True)
class DefectReport:
    """The defects of one frame.

    Attributes
    ----------
    atoms : number of atoms.
    crystal : the most common structure of `STRUCTURES`; None if hardly any atom is in one.
    fractions : share of the atoms in each of `STRUCTURES`.
    disordered : share of the atoms that are in no crystal and next to none: glass, liquid, gas.  The other
        atoms without a structure are those of defects, boundaries and surfaces.
    vacancies, interstitials : within crystals, see `zoo.analysis.point_defects`.
    planes : number of planar faults of each kind, see `zoo.analysis.extended_defects`.
    grains : sizes in atoms, the largest first.
    dislocations : of each family of Burgers vectors the number of lines and their length in Å.
    dislocation_density : 1/m², length of all lines over the volume; None unless all is periodic.
    verdict : share of the atoms with each name of a denoiser's verdict, the largest first; empty without one.
    """

    atoms: int
    crystal: str | None
    fractions: dict[str, float]
    disordered: float
    vacancies: int
    interstitials: int
    planes: dict[str, int]
    grains: tuple[int, ...]
    dislocations: dict[str, tuple[int, float]]
    dislocation_density: float | None
    verdict: dict[str, float] = field(default_factory=dict)

    @property
    def unclassified(self) -> str | None:
        """The commonest crystal of the verdict if it is none of `STRUCTURES`, as those of ice and silica.

        The shares and defects above are then those of another thing.
        """
        crystals = [name for name in self.verdict if name not in (DISORDERED, NOT_FOR_IT)]
        return crystals[0] if crystals and self.crystal is None and crystals[0] not in STRUCTURES else None

    @property
    def dislocation_length(self) -> float:
        """Å, of all lines."""
        return sum(length for _, length in self.dislocations.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "atoms": self.atoms,
            "crystal": self.crystal,
            "fractions": {name: round(share, 6) for name, share in self.fractions.items()},
            "disordered": round(self.disordered, 6),
            "vacancies": self.vacancies,
            "interstitials": self.interstitials,
            "planes": self.planes,
            "grains": list(self.grains),
            "dislocations": {
                name: {"lines": number, "length_angstrom": round(length, 3)}
                for name, (number, length) in self.dislocations.items()
            },
            "dislocation_density_per_m2": self.dislocation_density,
            "verdict": {name: round(share, 6) for name, share in self.verdict.items()},
        }


def defect_report(atoms: Atoms, labels: IntArray | None = None) -> DefectReport:
    """The defects of a structure without thermal vibration: denoised, quenched, or built.

    Parameters
    ----------
    labels : (n_atoms,) as by `structure_types`, which is asked if they are not given.

    Raises
    ------
    MissingExtraError : OVITO is not installed.
    StructureError : positions or cell are not finite.
    """
    labels = structure_types(atoms) if labels is None else np.asarray(labels, dtype=np.int64)
    fractions = structure_fractions(labels)
    label, share = max(
        ((k, fractions[name]) for k, name in enumerate(STRUCTURES) if k != OTHER), key=lambda each: each[1]
    )
    if share < LEAST_CRYSTAL:
        nothing = DefectReport(len(atoms), None, fractions, fractions["other"], 0, 0, {}, (), {}, None)
        return replace(nothing, verdict=_verdict(atoms))
    crystal = STRUCTURES[label]
    spacing = nearest_distance(atoms, np.flatnonzero(labels != OTHER))
    lines: list[Dislocation] = []
    families: dict[str, tuple[int, float]] = {}
    if crystal != "simple cubic":  # DXA has no such lattice
        lines, families = dislocation_network(atoms, crystal)
    points = point_defects(atoms, labels, [line.points for line in lines])
    length = sum(each for _, each in families.values())
    density = length / atoms.get_volume() * _PER_SQUARE_METRE if atoms.pbc.all() else None
    return DefectReport(
        atoms=len(atoms),
        crystal=crystal,
        fractions=fractions,
        disordered=_disordered(atoms, labels, spacing),
        vacancies=len(points.vacancies),
        interstitials=len(points.interstitials),
        planes=dict(Counter(plane.kind for plane in planar_faults(atoms, labels, spacing))),
        grains=tuple(int(size) for size in grains(atoms, spacing)),
        dislocations=families,
        dislocation_density=density,
        verdict=_verdict(atoms),
    )


def _verdict(atoms: Atoms) -> dict[str, float]:
    if not is_verdict(atoms.arrays) or not len(atoms):
        return {}
    names, counts = np.unique(atoms.arrays["structure_type"].astype(str), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {str(names[k]): float(counts[k] / len(atoms)) for k in order}


def _disordered(atoms: Atoms, labels: IntArray, spacing: float) -> float:
    i, j, _ = neighbors(atoms, np.arange(len(atoms)), 1.35 * spacing)
    beside = np.zeros(len(atoms), dtype=bool)
    beside[i[labels[j] != OTHER]] = True
    return float(np.mean((labels == OTHER) & ~beside))
