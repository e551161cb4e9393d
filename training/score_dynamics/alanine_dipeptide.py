"""What the recipes of alanine dipeptide have in common: the molecule, its body frame, the force field."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from zoo.molecules.molecule import Molecule

FORCEFIELD = "AMBER14SB, TIP3P, 300 K, LangevinMiddle 0.1/ps, 4 fs"

# Two rounds of the starting basins, so that each of them is tested; the second has just begun.
HOLD_OUT = tuple(f"segment-{k:03d}" for k in (*range(10), 20, *range(50, 55)))
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
