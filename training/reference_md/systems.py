"""The molecules that reference MD can be made of; another one is another entry of `SYSTEMS`.

A molecule is a small PDB file next to this module (all atoms, CONECT for all bonds, any sensible
geometry), a force field, and the torsions that tell its basins apart.  Segment K starts in the basin
that `MolecularSystem.start` gives it, always the same one and with the same random numbers.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: Standard deviation (degrees) of the jitter that each segment adds to the angles of its basin.
JITTER = 6.0


@dataclass(frozen=True)
class Basin:
    """A named region of torsion space; ``angles`` in degrees, one for each torsion of the system."""

    name: str
    angles: tuple[float, ...]


@dataclass(frozen=True)
class Start:
    """Where a segment starts: its basin and the jittered ``angles`` in degrees."""

    basin: Basin
    angles: tuple[float, ...]


@dataclass(frozen=True)
class MolecularSystem:
    """A solute, its force field, and where its segments start.

    Atoms are written "RESIDUE:NAME", for example "ALA:CA".

    Attributes:
        pdb: file next to this module with one copy of the solute.
        force_field: files of OpenMM, or files next to this module.
        box_edge: edge (nm) of the cubic water box before its volume relaxes.
        torsions: four atoms each; the middle two must be joined by a bond that is not in a ring.
        basins: visited one after the other.
        barriers: between basins, rarely visited by MD; visited ``barriers_per_round`` at a time
            after each round of ``basins``.
        stereocentres: a centre and three of its neighbours; must keep the handedness of ``pdb``.
        trans: torsions that must stay within 90 degrees of 180 (peptide bonds).
        windows: angles of the first torsion at which shots are released, see `shots`.
        window_step: degrees between the angles of the second torsion.
        geometric_mixing: whether Lennard-Jones sigmas of unlike atoms are geometric means (OPLS), not
            arithmetic ones, see `mixing`.
    """

    name: str
    pdb: str
    force_field: tuple[str, ...]
    torsions: dict[str, tuple[str, str, str, str]]
    basins: tuple[Basin, ...]
    barriers: tuple[Basin, ...] = ()
    barriers_per_round: int = 3
    box_edge: float = 2.1
    stereocentres: tuple[tuple[str, str, str, str], ...] = ()
    trans: tuple[tuple[str, str, str, str], ...] = ()
    windows: tuple[float, ...] = ()
    window_step: int = 30
    geometric_mixing: bool = False

    @property
    def pdb_path(self) -> Path:
        """The starting structure's file."""
        return Path(__file__).parent / self.pdb

    def basin(self, segment: int) -> Basin:
        """The basin of a segment: rounds of all ``basins``, a few ``barriers`` after each."""
        n_barriers = self.barriers_per_round if self.barriers else 0
        number, place = divmod(segment, len(self.basins) + n_barriers)
        if place < len(self.basins):
            return self.basins[place]
        return self.barriers[(number * n_barriers + place - len(self.basins)) % len(self.barriers)]

    def start(self, segment: int) -> Start:
        """The start of a segment; depends on nothing but the system's name and the number."""
        basin = self.basin(segment)
        rng = np.random.default_rng([zlib.crc32(self.name.encode()), segment])
        jittered = np.asarray(basin.angles) + JITTER * rng.standard_normal(len(basin.angles))
        return Start(basin, tuple(round(float(a), 1) for a in (jittered + 180) % 360 - 180))

    def random_seed(self, segment: int, *stage: int) -> int:
        """A positive 31-bit seed for one stage of a segment (OpenMM takes 0 for "any")."""
        words = np.random.SeedSequence([zlib.crc32(self.name.encode()), segment, *stage])
        return int(words.generate_state(1)[0] % (2**31 - 1)) + 1


def atom_indices(names: Sequence[str], all_names: Sequence[str]) -> tuple[int, ...]:
    """The indices of atoms "RESIDUE:NAME" within ``all_names``."""
    return tuple(all_names.index(name) for name in names)


ALANINE_DIPEPTIDE = MolecularSystem(
    name="alanine-dipeptide",
    pdb="ace-ala-nme.pdb",
    force_field=("amber14-all.xml", "amber14/tip3p.xml"),
    torsions={
        "phi": ("ACE:C", "ALA:N", "ALA:CA", "ALA:C"),
        "psi": ("ALA:N", "ALA:CA", "ALA:C", "NME:N"),
    },
    basins=(
        Basin("C7eq", (-80, 75)),
        Basin("C5", (-150, 160)),
        Basin("PII", (-70, 145)),
        Basin("alpha-R", (-75, -30)),
        Basin("alpha-prime", (-120, 10)),
        Basin("alpha-L", (55, 45)),
        Basin("C7ax", (70, -60)),
    ),
    barriers=(
        Basin("phi 0, psi 90", (0, 90)),
        Basin("phi 60, psi -150", (60, -150)),
        Basin("phi -150, psi -60", (-150, -60)),
        Basin("phi 0, psi -90", (0, -90)),
        Basin("phi 120, psi 150", (120, 150)),
        Basin("phi -80, psi -110", (-80, -110)),
        Basin("phi 120, psi -60", (120, -60)),
        Basin("phi 60, psi 120", (60, 120)),
        Basin("phi -80, psi 30", (-80, 30)),
    ),
    stereocentres=(("ALA:CA", "ALA:N", "ALA:C", "ALA:CB"),),
    trans=(("ACE:CH3", "ACE:C", "ALA:N", "ALA:CA"), ("ALA:CA", "ALA:C", "NME:N", "NME:C")),
    windows=(120, 0, 100, 20, 135, -15, 85, 35, 110, 10, 150, -30),
)


def alkane(name: str, residue: str, n_carbons: int) -> MolecularSystem:
    """An unbranched alkane in water, OPLS-AA and TIP3P; starts all trans or with one gauche torsion."""
    torsions = {
        f"C{k}-C{k + 1}-C{k + 2}-C{k + 3}": (
            f"{residue}:C{k}", f"{residue}:C{k + 1}", f"{residue}:C{k + 2}", f"{residue}:C{k + 3}"
        )
        for k in range(1, n_carbons - 2)
    }  # fmt: skip
    basins = [Basin("all trans", (180.0,) * len(torsions))]
    for place in range(len(torsions)):
        for sign, angle in (("+", 65.0), ("-", -65.0)):
            angles = [180.0] * len(torsions)
            angles[place] = angle
            basins.append(Basin(f"gauche{sign} at C{place + 2}-C{place + 3}", tuple(angles)))
    return MolecularSystem(
        name=name,
        pdb=f"alkanes/{name}.pdb",
        force_field=("alkanes/opls-aa.xml",),
        torsions=torsions,
        basins=tuple(basins),
        box_edge=2.1 if n_carbons < 6 else 2.3,
        geometric_mixing=True,
    )


ALKANES = (
    alkane("ethane", "ETA", 2),
    alkane("propane", "PRP", 3),
    alkane("butane", "BUT", 4),
    alkane("pentane", "PEN", 5),
    alkane("hexane", "HEX", 6),
    alkane("heptane", "HEP", 7),
    alkane("octane", "OCT", 8),
)

SYSTEMS: dict[str, MolecularSystem] = {system.name: system for system in (ALANINE_DIPEPTIDE, *ALKANES)}
