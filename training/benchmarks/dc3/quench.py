"""Quench DC3 snapshots with their own potential: which defects are real?

    python -m training.benchmarks.dc3.quench --material Fe Mg --data build/dc3

Near the metastability limit a crystal holds thermal vacancies and interstitials.  Minimising the
potential energy of a snapshot (conjugate gradients, pressure relaxed to zero) takes out the
vibration as physics does it; atoms that are not crystalline afterwards are real defects, and a
denoiser is right not to call them crystalline.  `evaluate` compares with what this writes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ase import Atoms
from ase.io import read

from training.benchmarks.dc3.materials import EVERY, Material
from training.benchmarks.dc3.md import (
    frame_of,
    run_folder,
    snapshot_files,
    with_forces,
    write_snapshot,
)
from training.command_line import command_line


def quenched_path(snapshot: Path) -> Path:
    return snapshot.with_name("quenched-" + snapshot.name)


def quench(material: Material, atoms: Atoms, potentials: Path | None) -> Atoms:
    """The inherent structure of ``atoms`` at zero pressure, atoms in the same order."""
    lmp = with_forces(material, atoms, potentials)
    lmp.command("min_style cg")
    lmp.command("minimize 0.0 1.0e-2 500 5000")  # first the forces, so that the box sees no vibration
    lmp.command("fix box all box/relax iso 0.0 vmax 0.001")
    lmp.command("minimize 0.0 1.0e-3 1000 10000")
    result = frame_of(lmp, material)
    lmp.close()
    return result


@command_line()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("build/dc3"), help="what dc3.md wrote")
    parser.add_argument("--material", nargs="+", choices=EVERY, default=list(EVERY))
    parser.add_argument("--ratio", nargs="+", type=float, help="T/Tm; default: the metastability limit")
    parser.add_argument("--potentials", type=Path, help="folder of parameter files")
    parser.add_argument("--at-most", type=int, help="only so many snapshots each")
    args = parser.parse_args(argv)
    for key in args.material:
        material = EVERY[key]
        for ratio in args.ratio or [material.metastability_limit]:
            folder = run_folder(args.data, key, ratio)
            for path in snapshot_files(folder)[: args.at_most]:
                target = quenched_path(path)
                if target.exists():
                    continue
                atoms = read(path)
                result = quench(material, atoms, args.potentials)
                result.info.update(atoms.info, quenched=True)
                write_snapshot(target, result)
                print(f"{key} {ratio:.2f} Tm {path.name} quenched", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
