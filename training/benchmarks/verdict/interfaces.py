"""Crystals in contact with their own melt, by MD, and the same frames quenched.

    python -m training.benchmarks.verdict.interfaces --material Al Fe --out build/interfaces

A long box at the melting point; half of it is held while the other half is heated until it has melted, then
all of it moves at the melting point.  The reference is the frame with its potential energy minimised, the box
kept: physics' own way to take out vibration, which leaves a melt disordered.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ase import Atoms

from training.benchmarks.dc3.materials import MATERIALS, Material
from training.benchmarks.dc3.md import define_system, force_field, frame_of, load_lammps, write_snapshot

#: Unit cells along the box, and how hot the half that is to melt is made, in melting points.
LENGTH, HOT = 2.5, 3.0


def files(folder: Path, key: str) -> list[tuple[Path, Path]]:
    """Snapshots of a material and their quenched copies, those that have both."""
    hot = sorted((folder / key).glob("[0-9]*.extxyz.gz"))
    return [(path, cold) for path in hot if (cold := path.with_name("quenched-" + path.name)).exists()]


def simulate(
    material: Material, out: Path, potentials: Path | None, picoseconds: float, frames: int, seed: int
) -> None:
    """Melt half, let it meet the rest, and keep ``frames`` snapshots, each with its quenched copy."""
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
        lmp.command(f"run {round(1000 * picoseconds)}")
        frame = frame_of(lmp, material)
        frame.info.update(
            material=material.key,
            structure=material.structure,
            temperature_K=temperature,
            time_ps=index * picoseconds,
            pair_style=material.pair_style,
            seed=seed,
            lammps=str(lmp.version()),
            made=datetime.now(UTC).date().isoformat(),
        )
        cold = quenched(material, frame, potentials)
        for name, atoms in ((f"quenched-{index:03d}", cold), (f"{index:03d}", frame)):
            write_snapshot(folder / f"{name}.extxyz.gz", atoms)
        print(f"{material.key}: {index} of {frames} snapshots of {len(frame)} atoms", flush=True)
    lmp.close()


def quenched(material: Material, atoms: Atoms, potentials: Path | None) -> Atoms:
    """The nearest minimum of the potential energy in the same box, atoms in the same order."""
    lmp: Any = load_lammps()
    lmp.command("units metal")
    lmp.command(f"atom_style {material.atom_style}")
    lmp.command("atom_modify map yes")
    lmp.command("boundary p p p")
    define_system(lmp, material, atoms)
    force_field(lmp, material, potentials)
    lmp.command("thermo 0")
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
    for key in args.material:
        simulate(MATERIALS[key], args.out, args.potentials, args.ps, args.frames, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
