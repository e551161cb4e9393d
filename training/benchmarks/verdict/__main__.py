"""Accuracy and calibration of a denoiser's verdict on MD that it never saw.

    python -m training.benchmarks.dc3.md --material Al Fe Mg Si --out build/dc3
    python -m training.benchmarks.verdict.interfaces --material Al Fe Mg --out build/interfaces
    python -m training.benchmarks.verdict --record

Crystals at their melting points, where every atom is taken for one of the crystal, and melts, where none is;
at interfaces the truth is the label of each atom after a quench of the same frame (`interfaces`).  A quench
also lets the crystal grow by what is about to join it; how many atoms are crystalline there and disordered by
the verdict is told, and how far the quench moved these, in units of how far it moved the crystal's atoms.

Beside the verdict: the same classifiers as for the quench, on the raw and on the denoised frame.  The
expected calibration error compares confidence with the share of right verdicts in fifteen bins, over all
atoms.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ase import Atoms
from ase.geometry import find_mic
from ase.io import read
from rich.console import Console
from rich.table import Table

from training.benchmarks.dc3.materials import LIQUID, MATERIALS
from training.benchmarks.dc3.md import run_folder, snapshot_files
from training.benchmarks.verdict.interfaces import files
from training.metrics import record
from training.verdict import calibration_error
from zoo.analysis.crystals import STRUCTURES, structure_types
from zoo.denoiser import Denoiser
from zoo.errors import ZooError
from zoo.verdict_names import DISORDERED

Names = npt.NDArray[np.str_]


def named(atoms: Atoms) -> Names:
    """Labels of the classifiers in the words of the verdict."""
    return np.array([DISORDERED, *STRUCTURES[1:]])[structure_types(atoms)]


def measure(
    denoiser: Denoiser, frames: list[tuple[Atoms, Names, Atoms | None]], steps: int
) -> tuple[dict[str, Any], Any]:
    """Shares of atoms that are as in the truth, and confidence and rightness of every atom.

    Frames come with the truth, and with what a quench made of them if the truth is from there.
    """
    raw, after, verdict, sure, taken = [], [], [], [], []
    moved: dict[bool, list[Any]] = {True: [], False: []}
    for frame, truth, cold in frames:
        clean = denoiser.denoise(frame, steps)
        if cold is not None:
            distance = find_mic(cold.positions - frame.positions, frame.cell, frame.pbc)[1]
            crystal = truth != DISORDERED
            moved[True].append(distance[crystal & (clean.arrays["structure_type"] == truth)])
            moved[False].append(distance[crystal & (clean.arrays["structure_type"] == DISORDERED)])
        raw.append(named(frame) == truth)
        after.append(named(clean) == truth)
        verdict.append(clean.arrays["structure_type"] == truth)
        sure.append(clean.arrays["confidence"])
        taken.append(clean.info["denoise_steps"])
    right, confidence = np.concatenate(verdict), np.concatenate(sure)
    row: dict[str, Any] = {
        "n_snapshots": len(frames),
        "atoms": len(right),
        "raw": float(np.concatenate(raw).mean()),
        "denoised": float(np.concatenate(after).mean()),
        "verdict": float(right.mean()),
        "confidence": float(confidence.mean()),
        "calibration_error": calibration_error(confidence, right),
        "steps": float(np.mean(taken)),
    }
    if moved[True]:
        agreed, only = (np.concatenate(moved[both]) for both in (True, False))
        row["crystal_in_quench_only"] = len(only) / len(right)
        # How far the quench had to move them, beside what vibrates.
        row["their_way_in_the_quench"] = float(np.median(only) / np.median(agreed)) if len(only) else None
    return row, (confidence, right)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.benchmarks.verdict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=Path("build/dc3"), help="what dc3.md wrote")
    parser.add_argument("--interfaces", type=Path, default=Path("build/interfaces"))
    parser.add_argument("--checkpoint", default="denoiser-elements", help="name or folder")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--record", action="store_true", help="write into the checkpoint's metrics.json")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        denoiser = Denoiser.from_pretrained(args.checkpoint)
    except ZooError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    rows, every = [], []
    for key, material in MATERIALS.items():
        states: list[tuple[str, list[tuple[Atoms, Names, Atoms | None]]]] = []
        for state, ratio, name in (("crystal", 1.0, material.structure), ("liquid", LIQUID, DISORDERED)):
            hot = [read(path) for path in snapshot_files(run_folder(args.data, key, ratio))]
            # A superheated crystal that has not melted yet is no liquid.
            hot = [a for a in hot if state == "crystal" or a.info["time_ps"] > material.molten_after]
            states.append((state, [(a, np.full(len(a), name), None) for a in hot]))
        both = [(read(path), read(cold)) for path, cold in files(args.interfaces, key)]
        states.append(("interface", [(hot, named(cold), cold) for hot, cold in both]))
        for state, frames in states:
            if frames:
                row, atoms = measure(denoiser, frames, args.steps)
                rows.append({"material": key, "structure": material.structure, "state": state, **row})
                every.append(atoms)
    if not rows:
        print("no snapshots: see --help for the two commands that make them", file=sys.stderr)
        return 1
    confidence, right = (np.concatenate([pair[k] for pair in every]) for k in (0, 1))
    error = calibration_error(confidence, right)
    table = Table(title="share of atoms that are as in the truth")
    for column in ("material", "state", "atoms", "raw", "denoised", "verdict", "confidence", "ECE"):
        table.add_column(column, justify="left" if column in ("material", "state") else "right")
    for r in rows:
        table.add_row(
            r["material"], r["state"], str(r["atoms"]), f"{r['raw']:.2%}", f"{r['denoised']:.3%}",
            f"{r['verdict']:.3%}", f"{r['confidence']:.3%}", f"{r['calibration_error']:.4f}",
        )  # fmt: skip
    console = Console(width=130)
    console.print(table)
    console.print(f"all {len(right)} atoms: {right.mean():.3%} right, expected calibration error {error:.4f}")
    if args.record:
        from zoo.checkpoint import resolve

        folder, _ = resolve(args.checkpoint)
        record(
            folder, "verdict_md", rows, command="python -m training.benchmarks.verdict --record", seed=1,
            extra={
                "steps_at_most": args.steps,
                "atoms": len(right),
                "right": float(right.mean()),
                "calibration_error": error,
            },
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
