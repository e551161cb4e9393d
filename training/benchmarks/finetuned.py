"""What a fine-tuned denoiser kept of the old lattices: six crystals in MD at their melting points.

    python -m training.benchmarks.finetuned build/my-denoiser --record

The snapshots (Al, Fe, Mg, NaCl, Si, mW ice) are those of the tests; no model was trained on them.  An atom is
right if `zoo.analysis.crystals.structure_types` gives it the crystal's label after denoising.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from rich.console import Console
from rich.table import Table

from training.benchmarks.dc3.materials import MATERIALS
from training.command_line import command_line
from training.first_card import write_first_card
from training.metrics import record
from zoo.analysis.crystals import STRUCTURES, structure_types
from zoo.demo import snapshot
from zoo.denoiser import Denoiser
from zoo.structures import read_frames

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "data" / "md"
KEYS = ("Al", "Fe", "Mg", "NaCl", "Si", "mW")


def atoms_of(key: str) -> Atoms:
    """The snapshot of a material at its melting point."""
    return snapshot() if key == "Al" else next(read_frames(FOLDER / f"{key}-1.00.extxyz.gz"))


def right(atoms: Atoms, structure: str) -> float:
    """Share of the atoms with the label of this structure."""
    return float(np.mean(structure_types(atoms) == STRUCTURES.index(structure)))


@command_line()
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.benchmarks.finetuned",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="of the fine-tuned checkpoint")
    parser.add_argument("--record", action="store_true", help="into its metrics.json and its card")
    args = parser.parse_args(argv)
    denoiser = Denoiser.from_pretrained(args.folder)
    rows = []
    for key in KEYS:
        structure, atoms = MATERIALS[key].structure, atoms_of(key)
        after = denoiser.denoise(atoms)
        rows.append(
            {
                "material": key,
                "structure": structure,
                "atoms": len(atoms),
                "raw": right(atoms, structure),
                "denoised": right(after, structure),
            }
        )
    table = Table(box=None, pad_edge=False)
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{v:.2%}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)
    if args.record:
        command = f"python -m training.benchmarks.finetuned {args.folder.name} --record"
        record(args.folder, "old lattices at melting", rows, command=command, seed=None)
        write_first_card(args.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
