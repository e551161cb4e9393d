"""Recipe of the checkpoint ``sd-alanine-dipeptide-cg``: from segments of MD to a folder, on CPU cores.

    python -m training.reference_md alanine-dipeptide -o md --segments 40 --length 400
    python -m training.sd_alanine_dipeptide_cg --data md --precision bf16 --threads 2

Prints progress and samples per second, draws a curve, saves its state every two minutes and continues
from it when run again; an interrupted run ends with bit for bit the same weights as an uninterrupted
one.  Whole segments are held out, never single frames.
"""

from __future__ import annotations

import sys
from pathlib import Path

from training.score_dynamics.recipe import Recipe, main
from zoo.molecules.molecule import Molecule

FORCEFIELD = "AMBER14SB, TIP3P, 300 K, LangevinMiddle 0.1/ps, 4 fs"


def molecule() -> Molecule:
    """Alanine dipeptide, its ten heavy atoms as sites."""
    import mdtraj

    pdb = Path(__file__).parent / "reference_md" / "ace-ala-nme.pdb"
    return Molecule.from_mdtraj(mdtraj.load_pdb(str(pdb)).topology, sites="heavy")


def body_frame(mol: Molecule) -> tuple[int, int, int]:
    """N, CA and C of the alanine."""
    residue = [mol.residue_names[i] for i in mol.sites]

    def find(name: str) -> int:
        return next(
            k for k, (r, n) in enumerate(zip(residue, mol.site_names, strict=True)) if (r, n) == ("ALA", name)
        )

    return find("N"), find("CA"), find("C")


RECIPE = Recipe(
    module="training.sd_alanine_dipeptide_cg",
    name="sd-alanine-dipeptide-cg",
    version="1.1.0",
    forcefield=FORCEFIELD,
    molecule=molecule,
    frame=body_frame,
    backbone="site-mlp",
    architecture={"n_sites": 10, "width": 384, "depth": 4, "n_frequencies": 8},
    # One round of the starting basins, so that each of them is tested.
    hold_out=tuple(f"segment-{k:03d}" for k in range(10)),
    validation=("segment-010", "segment-011", "segment-012"),
    n_steps=20000,
)


if __name__ == "__main__":
    sys.exit(main(RECIPE, __doc__))
