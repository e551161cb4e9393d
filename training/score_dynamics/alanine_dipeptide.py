"""What the recipes of alanine dipeptide have in common: the molecule, its body frame, the force field."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from training.reference_md.segments import Segment
from training.score_dynamics.recipe import Recipe
from zoo.analysis.basins import alanine_basins
from zoo.analysis.dihedrals import choose_dihedrals
from zoo.analysis.kinetics import torsions
from zoo.molecules.molecule import Molecule
from zoo.sides import Quadruple, is_between

FORCEFIELD = "AMBER14SB, TIP3P, 300 K, LangevinMiddle 0.1/ps, 4 fs"

# A round of the starting basins, so that each of them is tested, and more of those with phi < 0.
HOLD_OUT = tuple(f"segment-{k:03d}" for k in (*range(10), 20, *range(50, 55), *range(90, 95)))
VALIDATION = ("segment-010", "segment-011", "segment-012")


def molecule(sites: Literal["heavy", "all"]) -> Molecule:
    """ACE-ALA-NME with its ten heavy atoms, or all 22 atoms, as sites."""
    import mdtraj

    pdb = Path(__file__).parent.parent / "reference_md" / "ace-ala-nme.pdb"
    return Molecule.from_mdtraj(mdtraj.load_pdb(str(pdb)).topology, sites=sites)


def body_frame(mol: Molecule) -> tuple[int, int, int]:
    """N, CA and C of the alanine."""
    residue = [mol.residue_names[i] for i in mol.sites]

    def find(name: str) -> int:
        return next(
            k for k, (r, n) in enumerate(zip(residue, mol.site_names, strict=True)) if (r, n) == ("ALA", name)
        )

    return find("N"), find("CA"), find("C")


#: Degrees of phi between which one side of its barriers is.
SIDE = (0.0, 120.0)


def settled(segment: Segment) -> npt.NDArray[np.bool_]:
    """(n_frames,) whether a frame comes after the first visit of a core of a basin.

    Some segments begin on a barrier, and slide down from there in a picosecond or two.
    """
    visited: npt.NDArray[np.bool_] = np.maximum.accumulate(alanine_basins().cores(_angles(segment)) >= 0)
    return visited


def stays_on_one_side(segment: Segment) -> bool:
    """Whether phi never goes over one of its barriers: what goes there rarely comes back in time."""
    return len(np.unique(is_between(_angles(segment)[:, 0], SIDE))) == 1


def _angles(segment: Segment) -> npt.NDArray[np.float64]:
    """(n_frames, 2) phi and psi in degrees."""
    return torsions(segment.positions, _backbone())


@lru_cache(maxsize=1)
def _backbone() -> tuple[Quadruple, ...]:
    """Phi and psi among all atoms."""
    return tuple(choose_dihedrals(molecule("all"), None).quadruples)


#: A `Recipe` with all that does not depend on sites, lag time and network.
recipe_of = partial(
    Recipe,
    forcefield=FORCEFIELD,
    frame=body_frame,
    hold_out=HOLD_OUT,
    validation=VALIDATION,
    settled=settled,
    stays=stays_on_one_side,
)
