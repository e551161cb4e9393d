"""Fine-tune `denoiser-elements` on three crystals of other kinds, one each, and measure what came of it.

    python -m training.benchmarks.finetuning --record      # some five minutes

Nickel arsenide (Wyckoff, Crystal Structures, 1963), fluorite (Cheetham et al., J. Phys. C 4, 3107, 1971), the
cubic perovskite SrTiO3 (Abramov et al., Acta Cryst. B 51, 942, 1995).  For each: the share of sites that
come back from noise of 0.10 nearest-neighbour distances, before and after, in held-out copies; old lattices
in MD at their melting points (`training.benchmarks.finetuned`); time and memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.io import write
from ase.spacegroup import crystal

import zoo
from training.benchmarks.dc3.materials import MATERIALS
from training.benchmarks.finetuned import KEYS, atoms_of, right
from training.command_line import command_line
from training.metrics import hardware
from zoo.denoiser import Denoiser

RESULTS = Path(__file__).with_suffix(".json")
JUDGED = 0.10


def crystals() -> dict[str, Atoms]:
    """The conventional cells."""
    third = 1 / 3
    return {
        "NiAs": crystal(
            ["Ni", "As"], [(0, 0, 0), (third, 2 * third, 0.25)], spacegroup=194,
            cellpar=[3.619, 3.619, 5.035, 90, 90, 120],
        ),
        "CaF2": crystal(
            ["Ca", "F"], [(0, 0, 0), (0.25, 0.25, 0.25)], spacegroup=225, cellpar=[5.463] * 3 + [90] * 3
        ),
        "SrTiO3": crystal(
            ["Sr", "Ti", "O"], [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)], spacegroup=221,
            cellpar=[3.901] * 3 + [90] * 3,
        ),
    }  # fmt: skip


def measure(name: str, atoms: Atoms, folder: Path) -> dict[str, Any]:
    """One row: fine-tune in a process of its own, then look at what it knows."""
    path, out = folder / f"{name}.cif", folder / name
    write(path, atoms)
    command = [sys.executable, "-m", "training.finetune_denoiser", "denoiser-elements"]
    subprocess.run([*command, "--structure", str(path), "--out", str(out)], check=True)
    sections = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["sections"]
    training = sections["training"]["results"][0]
    rows = [row for row in sections["recovery"]["results"] if row["noise"] == JUDGED]
    (new,) = (row for row in rows if row["new"])
    denoiser = Denoiser.from_pretrained(out)
    melting = {key: right(denoiser.denoise(atoms_of(key)), MATERIALS[key].structure) for key in KEYS}
    return {
        "crystal": name,
        "recovered_before": new["recovered_before"],
        "recovered_after": new["recovered_after"],
        "old_lattices_after": min(row["recovered_after"] for row in rows if not row["new"]),
        "old_lattices_at_melting": melting,
        "steps": training["n_steps"],
        "seconds": training["wall_seconds_of_this_run"],
        "peak_memory_mib": training["peak_memory_mib"],
    }


@command_line()
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.benchmarks.finetuning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.name} beside this script")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(name, atoms, Path(folder)) for name, atoms in crystals().items()]
    for row in rows:
        print(json.dumps(row))
    if args.record:
        entry = {
            "command": "python -m training.benchmarks.finetuning --record",
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "hardware": hardware(),
            "package_version": zoo.__version__,
            "python_version": platform.python_version(),
            "seed": 0,
            "results": rows,
        }
        partial = RESULTS.with_suffix(".tmp")
        partial.write_text(json.dumps(entry, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(partial, RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
