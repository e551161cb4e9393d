"""A frame of MD without its vibration, in three ways: which atoms are crystalline, which defects real?

- *quenched*: moved down the gradient of the energy, dx/dt = F, until vibration has gone and not longer.  How
  long that is, a crystal without defects tells: the time in which 99 % of the potential energy of its
  vibration are lost.
- *minimised*: the nearest minimum of the energy, ten to a hundred times as far down.  On that way a crystal
  grows into its melt, and interstitials fall back into vacancies: where there is no barrier to it, how much
  is crystal depends on when one stops.
- *averaged*: the mean positions of the picosecond around the frame, with no quench at all, which tells
  which of the two is nearer to what was crystal at that time.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms

from training.benchmarks.dc3.materials import Material
from training.benchmarks.dc3.md import frame_of, with_forces, write_snapshot
from zoo.analysis.crystals import STRUCTURES, structure_types
from zoo.verdict_names import DISORDERED

#: Share of the potential energy of vibration that a quench leaves.
LEFT = 0.01
#: How it is looked for: the length of a step, of what is done between two looks at the energy, and of the
#: longest descent, all in units of the inverse mean stiffness of the vibration.  The stiffest vibrations are
#: several times as stiff, and a step may be twice the inverse of that.
STEP, STRIDE, LONGEST = 0.05, 0.2, 100.0
#: Steps of a descent of known length, so many that each is shorter than that.
STEPS = 1000
#: The mean is taken over this time, ps, of so many samples.
WINDOW, SAMPLES = 1.0, 50

COPIES = ("quenched", "minimised", "averaged")


def files(folder: Path, key: str) -> list[dict[str, Path]]:
    """Of each snapshot of a material the "frame" and its `COPIES`; those that have all of them."""
    every = []
    for path in sorted((folder / key).glob("[0-9]*.extxyz.gz")):
        copies = {name: path.with_name(f"{name}-{path.name}") for name in COPIES}
        if all(copy.exists() for copy in copies.values()):
            every.append({"frame": path, **copies})
    return every


def named(atoms: Atoms) -> npt.NDArray[np.str_]:
    """Labels of the classifiers in the words of the verdict."""
    return np.array([DISORDERED, *STRUCTURES[1:]])[structure_types(atoms)]


def write_with_copies(
    folder: Path,
    index: int,
    lmp: Any,
    material: Material,
    potentials: Path | None,
    descent: float,
    **info: Any,
) -> Atoms:  # fmt: skip
    """Write the frame in the middle of the next `WINDOW` and its `COPIES`, the frame last; the frame.

    ``descent`` is that of `vibration_time`; ``info`` goes into the info of the frame.
    """
    frame, mean = averaged(lmp, material)
    frame.info.update(
        info,
        material=material.key,
        structure=material.structure,
        descent_A2_per_eV=descent,
        averaged_ps=WINDOW,
        pair_style=material.pair_style,
        lammps=str(lmp.version()),
        made=datetime.now(UTC).date().isoformat(),
    )
    copies = {
        "quenched": descended(material, frame, potentials, descent),
        "minimised": quenched(material, frame, potentials),
        "averaged": mean,
    }
    for name, copy in copies.items():
        write_snapshot(folder / f"{name}-{index:03d}.extxyz.gz", copy)
    write_snapshot(folder / f"{index:03d}.extxyz.gz", frame)
    return frame


def averaged(lmp: Any, material: Material) -> tuple[Atoms, Atoms]:
    """The frame in the middle of the next `WINDOW`, and the mean positions over it in that frame's box."""
    every = round(1000 * WINDOW / SAMPLES)
    first = frame_of(lmp, material)
    start = first.get_scaled_positions()
    total: npt.NDArray[np.float64] = np.zeros_like(start)
    middle = first
    for number in range(1, SAMPLES + 1):
        lmp.command(f"run {every} post no")
        now = frame_of(lmp, material)
        way = now.get_scaled_positions() - start
        total += way - np.rint(way)  # nothing crosses half the box in a picosecond
        if number == SAMPLES // 2:
            middle = now
    mean = middle.copy()
    mean.set_scaled_positions(start + total / SAMPLES)
    mean.wrap()
    return middle, mean


def _downhill(lmp: Any, step: float) -> None:
    """From here on `run` follows dx/dt = F in steps of so many Å²/eV: Brownian motion without its noise."""
    force_to_mass = 9648.5332  # amu Å/ps² of one eV/Å, which LAMMPS multiplies forces with
    lmp.command(f"fix flow all brownian 1.0e-9 1 rng none gamma_t {force_to_mass}")
    lmp.command(f"timestep {step}")


def vibration_time(material: Material, crystal: Atoms, potentials: Path | None) -> float:
    """Å²/eV of descent in which a crystal loses all but `LEFT` of the potential energy of its vibration.

    Raises
    ------
    SystemExit : it does not within `LONGEST`.
    """
    lmp = with_forces(material, crystal, potentials)
    lmp.command("run 0")
    start, forces = lmp.get_thermo("pe"), np.array(lmp.gather_atoms("f", 1, 3))
    lmp.command("min_style cg")
    lmp.command("minimize 0.0 1.0e-3 2000 20000")
    lowest = lmp.get_thermo("pe")
    lmp.close()
    # Of harmonic vibrations |F|² = sum (k x)² and the energy is sum k x² / 2.
    softness = 2 * (start - lowest) / float((forces**2).sum())
    lmp = with_forces(material, crystal, potentials)
    _downhill(lmp, STEP * softness)
    taken = 0.0
    while taken < LONGEST:
        lmp.command(f"run {round(STRIDE / STEP)} post no")
        taken += STRIDE
        if lmp.get_thermo("pe") - lowest <= LEFT * (start - lowest):
            lmp.close()
            return float(taken * softness)
    raise SystemExit(
        f"error: {material.key} still vibrates after a descent of {LONGEST * softness:.3g} A^2/eV"
    )


def descended(material: Material, atoms: Atoms, potentials: Path | None, time: float) -> Atoms:
    """``atoms`` after ``time`` (Å²/eV) of steepest descent in the same box, in the same order."""
    lmp = with_forces(material, atoms, potentials)
    _downhill(lmp, time / STEPS)
    lmp.command(f"run {STEPS} post no")
    result = frame_of(lmp, material)
    lmp.close()
    return result


def quenched(material: Material, atoms: Atoms, potentials: Path | None) -> Atoms:
    """The nearest minimum of the potential energy in the same box, atoms in the same order."""
    lmp = with_forces(material, atoms, potentials)
    lmp.command("min_style cg")
    lmp.command("minimize 0.0 1.0e-2 1000 10000")
    result = frame_of(lmp, material)
    lmp.close()
    return result
