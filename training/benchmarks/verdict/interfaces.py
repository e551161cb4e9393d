"""Crystals in contact with their own melt, by MD, and the same frames quenched.

    python -m training.benchmarks.verdict.interfaces --material Al Fe --out build/interfaces

A long box at the melting point; half of it is held while the other half is heated until it has melted, then
all of it moves at the melting point.  Each frame is kept with what it is without vibration in the same box
(`dc3.copies`): quenched, which is the reference, minimised and averaged.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from training.benchmarks.dc3.copies import WINDOW, files, vibration_time, write_with_copies
from training.benchmarks.dc3.materials import MATERIALS, Material
from training.benchmarks.dc3.md import frame_of, with_forces
from training.command_line import command_line

#: Unit cells along the box, and how hot the half that is to melt is made, in melting points.
LENGTH, HOT = 2.5, 3.0


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
    lmp = with_forces(material, crystal, potentials)
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
    for index in range(1, frames + 1):
        lmp.command(f"run {round(1000 * (picoseconds - WINDOW if index > 1 else picoseconds - WINDOW / 2))}")
        frame = write_with_copies(
            folder, index, lmp, material, potentials, descent,
            temperature_K=temperature, time_ps=index * picoseconds, seed=seed,
        )  # fmt: skip
        print(f"{material.key}: {index} of {frames} snapshots of {len(frame)} atoms", flush=True)
    lmp.close()


@command_line()
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
