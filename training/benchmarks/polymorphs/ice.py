"""Reference MD of ices: mW with LAMMPS, TIP4P/Ice with OpenMM.

    python -m training.benchmarks.polymorphs.ice --out build/polymorphs
    python -m training.benchmarks.polymorphs.ice --phase "ice VI" "ice VII"

Each run starts from the published crystal (`training.polymorphs`), its hydrogens placed by the ice rules
(`protons`); ice II is the only ordered one, of its arrangements that with the lowest energy is taken.  Truth
is told by the mean positions of the oxygens (`sites`).  Every snapshot says what it was made by.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms

from training.benchmarks.dc3.materials import MATERIALS
from training.benchmarks.polymorphs.lammps_run import FOLLOW, SAMPLE, Schedule
from training.benchmarks.polymorphs.lammps_run import run as run_lammps
from training.benchmarks.polymorphs.protons import disordered, ordered
from training.benchmarks.polymorphs.sites import Averager, Mean, averaged, away, nearest_distance, on_site
from training.benchmarks.polymorphs.store import KEPT, MELT, fresh, run_folder, save_snapshot
from training.command_line import command_line
from training.polymorphs import ICE, orthogonal

MW, TIP4P = "mW", "TIP4P/Ice"
MW_TIMESTEP = 0.005  # ps
WATER = "water"


@dataclass(frozen=True)
class Case:
    """One phase in one model of water.

    Parameters
    ----------
    name : of the phase, or `WATER` for the liquid.
    model : `MW` or `TIP4P`.
    cells : how often `orthogonal` is repeated.
    pressure : bar.
    temperatures : K.
    """

    name: str
    model: str
    cells: tuple[int, int, int]
    pressure: float
    temperatures: tuple[float, ...]

    @property
    def crystal(self) -> str:
        """The phase that it starts from."""
        return "ice Ih" if self.name == WATER else self.name


CASES = (
    Case("ice Ih", MW, (7, 4, 5), 0.0, (200, 240, 270)),
    Case("ice Ic", MW, (5, 5, 5), 0.0, (200, 240, 270)),
    Case("clathrate sI", MW, (3, 3, 3), 0.0, (160, 200, 240)),
    Case("ice Ih", TIP4P, (5, 3, 3), 1.0, (250,)),
    Case("ice Ic", TIP4P, (3, 3, 3), 1.0, (250,)),
    Case("ice II", TIP4P, (2, 1, 3), 3000.0, (160, 200, 240)),
    Case("ice III", TIP4P, (3, 3, 3), 3000.0, (200, 230, 250)),
    Case("ice VI", TIP4P, (3, 3, 4), 11000.0, (200, 240, 280)),
    Case("ice VII", TIP4P, (6, 6, 6), 60000.0, (250, 320, 400)),
    Case("clathrate sI", TIP4P, (2, 2, 2), 1.0, (180, 220, 250)),
    Case(WATER, TIP4P, (5, 3, 3), 1.0, (340,)),
)


def truth(case: Case, mean: Mean, moved: float = 0.0) -> tuple[dict[str, Any], npt.NDArray[np.bool_]]:
    """Facts about the mean positions of the oxygens, and which of them are on their sites.

    ``moved`` is the root mean square distance (Å) that they went in the run; without much of it, water has
    not melted.
    """
    sites = orthogonal(case.crystal).repeat(case.cells)
    there = on_site(mean, sites, nearest_distance(orthogonal(case.crystal)))
    melted = case.name == WATER
    facts = {
        "share_on_site": float(there.mean()),
        "rms_from_sites_A": float(np.sqrt((away(mean, sites) ** 2).sum(1).mean())),
        "kept": bool(moved > 3.0) if melted else bool(there.mean() > KEPT),
        **({"rms_moved_A": moved} if melted else {}),
    }
    return facts, there & (not melted)


def simulate(case: Case, temperature: float, out: Path, schedule: Schedule, seed: int = 1) -> bool:
    """Write the snapshots of one case; False if they were there already."""
    folder = run_folder(out, case.name, case.model, temperature, seed)
    info = {
        "structure": MELT if case.name == WATER else case.name,
        "family": "ice",
        "potential": case.model,
    }
    if case.model == MW:
        unit = orthogonal(case.crystal)
        material = replace(MATERIALS["mW"], structure=case.name, unit_cell=lambda: unit, cells=case.cells)

        def judge(mean: Mean, moved: float) -> tuple[dict[str, Any], npt.NDArray[np.bool_]]:
            return truth(case, mean, moved)

        slow = replace(schedule, timestep=MW_TIMESTEP)  # as heavy as a molecule, and soft
        return run_lammps(
            material, material.perfect(), temperature, folder, judge, slow, info=info, seed=seed
        )
    if not fresh(folder, schedule.snapshots):
        return False
    _tip4p(case, temperature, folder, schedule, info, seed)
    return True


def start_of(case: Case, seed: int) -> Atoms:
    """Molecules on the sites of the phase, O H H in turn."""
    if case.crystal != "ice II":
        return disordered(case.crystal, case.cells, seed)
    from training.benchmarks.polymorphs.tip4p_ice import Water

    def energy(water: Atoms) -> float:
        box = Water(water, 200.0, None, seed)
        box.minimize()
        return box.energy()

    return min(ordered(case.crystal, case.cells), key=energy)


def _tip4p(
    case: Case, temperature: float, folder: Path, schedule: Schedule, info: dict[str, Any], seed: int
) -> None:
    import openmm

    from training.benchmarks.polymorphs.tip4p_ice import Water

    start = start_of(case, seed)
    if case.name == WATER:  # a crystal without a surface would take long to melt at this temperature
        hot = Water(start, 600.0, None, seed)
        hot.minimize()
        hot.heat()
        hot.advance(schedule.equilibrate)
        start = hot.frame()
    box = Water(start, temperature, case.pressure, seed)
    box.minimize()
    box.heat()
    path = Averager()  # follows atoms across the walls of the cell

    def advance(picoseconds: float = SAMPLE) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        box.advance(picoseconds)
        now = box.frame()
        path.add(now.positions[::3], now.cell.lengths())
        return now.positions[::3], now.cell.lengths()

    for number in range(1, schedule.snapshots + 1):
        before = schedule.every - schedule.averaging + (schedule.equilibrate if number == 1 else 0)
        for _ in range(round(before / FOLLOW)):
            advance(FOLLOW)
        mean = averaged(advance, round(schedule.averaging / SAMPLE))
        frame = box.frame()
        facts, there = truth(case, mean, path.distance())
        save_snapshot(
            folder, number, frame, np.repeat(there, 3),
            info
            | {
                "temperature_K": temperature,
                "measured_temperature_K": box.temperature(),
                "pressure_bar": case.pressure,
                "time_ps": schedule.equilibrate + number * schedule.every,
                "averaged_ps": schedule.averaging,
                "seed": seed,
                "openmm": openmm.__version__,
            }
            | facts,
        )  # fmt: skip


@command_line()
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.benchmarks.polymorphs.ice",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [*ICE, WATER]
    parser.add_argument("--phase", nargs="+", choices=names, default=names)
    parser.add_argument("--model", nargs="+", choices=(MW, TIP4P), default=[MW, TIP4P])
    parser.add_argument("--temperature", nargs="+", type=float, help="K; default: those of each phase")
    parser.add_argument("--out", type=Path, default=Path("build/polymorphs"))
    parser.add_argument("--equilibrate", type=float, default=8.0, help="ps")
    parser.add_argument("--every", type=float, default=4.0, help="ps between snapshots")
    parser.add_argument("--snapshots", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    schedule = Schedule(args.equilibrate, args.every, args.snapshots, min(2.0, args.every))
    for case in CASES:
        if case.name in args.phase and case.model in args.model:
            for temperature in args.temperature or case.temperatures:
                simulate(case, temperature, args.out, schedule, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
