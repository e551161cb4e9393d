"""Accuracy and calibration of a denoiser's verdict on MD that it never saw.

    python -m training.benchmarks.dc3.md --material Al Fe Mg Si --out build/dc3
    python -m training.benchmarks.verdict.interfaces --material Al Fe Mg --out build/interfaces
    python -m training.benchmarks.verdict --record

Crystals at their melting points, where every atom is taken for one of the crystal, and melts, where none is;
at interfaces the truth is the label of each atom after a quench of the same frame, as long as vibration needs
to go (`interfaces`).  Beside it: what shares are crystalline by the verdict, in the quench, in the mean of a
picosecond of MD and in the minimum of the energy, in which the crystal has grown, and how far these agree.

Beside the verdict: the same classifiers as for the quench, on the raw and on the denoised frame.  The
expected calibration error compares confidence with the share of right verdicts in fifteen bins, over all
atoms.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ase import Atoms
from ase.io import read
from rich.console import Console
from rich.table import Table

from training.benchmarks.dc3.copies import COPIES, files, named
from training.benchmarks.dc3.materials import LIQUID, MATERIALS
from training.benchmarks.dc3.md import run_folder, snapshot_files
from training.command_line import command_line
from training.metrics import record
from training.verdict import calibration_error
from zoo.denoiser import Denoiser
from zoo.verdict_names import DISORDERED

Names = npt.NDArray[np.str_]


@dataclass(frozen=True)
class Frame:
    """A frame and the truth about its atoms; at interfaces also the labels of its minimum and of its mean."""

    atoms: Atoms
    truth: Names
    minimum: Names | None = None
    mean: Names | None = None


def measure(denoiser: Denoiser, frames: list[Frame], steps: int) -> tuple[dict[str, Any], Any]:
    """Shares of atoms that are as in the truth, and confidence and rightness of every atom."""
    raw, after, said, sure, taken = [], [], [], [], []
    for frame in frames:
        clean = denoiser.denoise(frame.atoms, steps)
        raw.append(named(frame.atoms) == frame.truth)
        after.append(named(clean) == frame.truth)
        said.append(clean.arrays["structure_type"])
        sure.append(clean.arrays["confidence"])
        taken.append(clean.info["denoise_steps"])
    verdict, truth = np.concatenate(said), np.concatenate([frame.truth for frame in frames])
    right, confidence = verdict == truth, np.concatenate(sure)
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
    minima = [frame.minimum for frame in frames if frame.minimum is not None]
    means = [frame.mean for frame in frames if frame.mean is not None]
    if len(minima) == len(means) == len(frames):
        row |= agreement(verdict, truth, np.concatenate(minima), np.concatenate(means))
    return row, (confidence, right)


def agreement(verdict: Names, quench: Names, minimum: Names, mean: Names) -> dict[str, float]:
    """What shares of atoms are crystalline by each, and how many agree; "both" are quench and mean."""
    both = mean == quench
    by = {"verdict": verdict, "quench": quench, "mean": mean, "minimum": minimum}
    shares = {f"crystalline_{name}": float((labels != DISORDERED).mean()) for name, labels in by.items()}
    return shares | {
        "verdict_where_both_agree": float((verdict == quench)[both].mean()) if both.any() else 0.0,
        "verdict_as_minimum": float((verdict == minimum).mean()),
        "mean_as_quench": float(both.mean()),
        "mean_as_minimum": float((mean == minimum).mean()),
    }


@command_line()
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
    denoiser = Denoiser.from_pretrained(args.checkpoint)
    rows, every = [], []
    for key, material in MATERIALS.items():
        states: list[tuple[str, list[Frame]]] = []
        for state, ratio, name in (("crystal", 1.0, material.structure), ("liquid", LIQUID, DISORDERED)):
            hot = [read(path) for path in snapshot_files(run_folder(args.data, key, ratio))]
            # A superheated crystal that has not melted yet is no liquid.
            hot = [a for a in hot if state == "crystal" or a.info["time_ps"] > material.molten_after]
            states.append((state, [Frame(a, np.full(len(a), name)) for a in hot]))
        fronts = []
        for of in files(args.interfaces, key):
            truth, minimum, mean = (named(read(of[name])) for name in COPIES)
            fronts.append(Frame(read(of["frame"]), truth, minimum, mean))
        states.append(("interface", fronts))
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
