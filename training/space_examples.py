"""Makes the examples of the Space: snapshots of molecular dynamics that no model was trained on.

    python -m training.space_examples                 # all; some minutes on one core
    python -m training.space_examples solid-liquid --potentials FOLDER      # with Al1.eam.fs of NIST in it

Grain boundary: copper, two symmetric tilt boundaries Sigma 5 (310)[001], 1000 K (74 % of melting).
Solid and liquid: aluminium, one half melted at 3 Tm while the other was held, then both at Tm.
Ice: the mW model of water at its melting point, protocol of DC3.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_masses, atomic_numbers

from training.benchmarks.dc3.materials import MATERIALS
from training.benchmarks.dc3.md import (
    define_system,
    force_field,
    frame_of,
    load_lammps,
    potentials_folder,
    run,
    snapshots,
)
from training.benchmarks.defects.build import LATTICES, grain_boundary
from training.benchmarks.defects.relax import POTENTIALS
from training.command_line import command_line
from zoo.structures import FrameWriter

FOLDER = Path(__file__).resolve().parent.parent / "spaces" / "zoo_space" / "examples"
MOLTEN = 3.0  # of the melting point: at constant volume less takes long to melt


def ice(potentials: Path | None = None) -> Atoms:
    """Hexagonal ice, mW, at its melting point; one site per molecule."""
    material = MATERIALS["mW"]
    with tempfile.TemporaryDirectory() as folder:
        run(material, 1.0, Path(folder), potentials, length=10.0, every=10.0)
        (atoms,) = snapshots(Path(folder), "mW", 1.0)
    return atoms


def solid_liquid(potentials: Path | None = None) -> Atoms:
    """Aluminium at its melting point, half of it molten."""
    material = MATERIALS["Al"]
    atoms = material.perfect((7, 7, 14))
    lmp = load_lammps()
    try:
        _begin(lmp)
        define_system(lmp, material, atoms)
        force_field(lmp, material, potentials)
        middle = atoms.cell[2, 2] / 2
        lmp.command(f"region upper block INF INF INF INF {middle - 0.1:.6f} INF")
        lmp.command("group melt region upper")
        hot, melting = MOLTEN * material.melting_point, material.melting_point
        lmp.command(f"velocity melt create {2 * hot} 4711 mom yes dist gaussian")
        lmp.command("fix move melt nve")
        lmp.command(f"fix heat melt temp/csvr {hot} {hot} 0.1 12")
        lmp.command("run 8000")
        lmp.command("unfix heat")
        lmp.command(f"fix heat melt temp/csvr {hot} {melting} 0.1 15")
        lmp.command("run 3000")
        lmp.command("unfix move")
        lmp.command("unfix heat")
        lmp.command(f"velocity all create {melting} 815 mom yes dist gaussian")
        lmp.command("fix barostat all nph aniso 0 0 1.0")
        lmp.command(f"fix heat all temp/csvr {melting} {melting} 0.1 13")
        lmp.command("run 10000")
        out = frame_of(lmp, material)
        out.info |= {"material": "Al", "temperature_K": melting, "time_ps": 10.0, "pair_style": "eam/fs"}
        out.info["system"] = "solid and liquid side by side"
    finally:
        lmp.close()
    return out


def boundary(potentials: Path | None = None) -> Atoms:
    """Copper with two grain boundaries at 1000 K."""
    atoms = grain_boundary(LATTICES["fcc"])
    style, name = POTENTIALS["Cu"]
    kelvin, picoseconds = 1000.0, 20.0
    lmp = load_lammps()
    try:
        _begin(lmp)
        lengths = atoms.cell.lengths()
        lmp.command(f"region box block 0 {lengths[0]:.12f} 0 {lengths[1]:.12f} 0 {lengths[2]:.12f}")
        lmp.command("create_box 1 box")
        n = len(atoms)
        lmp.create_atoms(n, list(range(1, n + 1)), [1] * n, atoms.positions.ravel().tolist())
        lmp.command(f"mass 1 {atomic_masses[atomic_numbers['Cu']]}")
        lmp.command(f"pair_style {style}")
        lmp.command(f"pair_coeff * * {potentials_folder() / name} Cu")
        lmp.command("minimize 0 1e-2 200 1000")
        lmp.command(f"velocity all create {2 * kelvin} 99 mom yes dist gaussian")
        lmp.command("fix barostat all nph aniso 0 0 1.0")
        lmp.command(f"fix heat all temp/csvr {kelvin} {kelvin} 0.1 14")
        lmp.command("timestep 0.002")
        lmp.command(f"run {round(picoseconds / 0.002)}")
        low, high, *_ = lmp.extract_box()
        positions = np.array(lmp.gather_atoms("x", 1, 3)).reshape(n, 3) - low
        out = Atoms("Cu" * n, positions, cell=np.subtract(high, low), pbc=True)
        out.info |= {"material": "Cu", "temperature_K": kelvin, "time_ps": picoseconds, "pair_style": style}
        out.info["system"] = "two symmetric tilt boundaries, Sigma 5 (310)[001]"
    finally:
        lmp.close()
    return out


def _begin(lmp: Any) -> None:
    for line in ("units metal", "atom_style atomic", "atom_modify map yes", "boundary p p p", "thermo 0"):
        lmp.command(line)
    lmp.command("timestep 0.001")


EXAMPLES: dict[str, tuple[str, Callable[[Path | None], Atoms]]] = {
    "grain-boundary": ("copper-grain-boundary.extxyz.gz", boundary),
    "solid-liquid": ("aluminium-solid-liquid.extxyz.gz", solid_liquid),
    "ice": ("ice.extxyz.gz", ice),
}


@command_line()
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(EXAMPLES)}; all by default")
    parser.add_argument("-o", "--out", type=Path, default=FOLDER)
    parser.add_argument("--potentials", type=Path, metavar="FOLDER", help="of parameter files")
    options = parser.parse_args(argv)
    for name in options.names or EXAMPLES:
        if name not in EXAMPLES:
            parser.error(f"no example {name!r}: choose of {', '.join(EXAMPLES)}")
        file, make = EXAMPLES[name]
        atoms = make(options.potentials)
        atoms.wrap()
        atoms.positions = atoms.positions.round(3)
        atoms.set_cell(atoms.cell.array.round(6))
        atoms.info["made_by"] = f"python -m training.space_examples {name}"
        with FrameWriter(options.out / file) as writer:
            writer.write(atoms)
        print(f"{options.out / file}: {len(atoms)} atoms")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
