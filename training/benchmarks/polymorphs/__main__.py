"""Accuracy of a denoiser of polymorphs, and of its verdict, on MD of silica or of ice.

    python -m training.benchmarks.polymorphs.silica --out build/polymorphs
    python -m training.benchmarks.polymorphs.ice --out build/polymorphs
    python -m training.benchmarks.polymorphs --checkpoint denoiser-ice --data build/polymorphs --record

Per phase, potential and temperature, over all snapshots: the share of atoms to which the verdict gives the
name of the phase, in the raw snapshot and after denoising, its mean confidence and its expected calibration
error.  Of a melt, the share that is called some crystal; smaller is better.  The truth is that of the MD,
told by mean positions (`sites`); snapshots of a phase that MD did not keep are left out, and counted.  Where
there are hydrogens, only the oxygens count.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from ase import Atoms
from rich.console import Console
from rich.table import Table

from training.benchmarks.polymorphs.store import MELT, snapshots
from training.command_line import command_line
from training.metrics import record
from training.verdict import calibration_error
from zoo.denoiser import Denoiser
from zoo.errors import StructureError
from zoo.verdict_names import DISORDERED

Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


class Judges(Protocol):
    """The part of `zoo.denoiser.Denoiser` that is measured."""

    def denoise(self, atoms: Atoms, steps: int = 10) -> Atoms: ...

    def verdict(self, atoms: Atoms) -> Any: ...


def counted(frame: Atoms) -> BoolArray:
    """(n_atoms,) which atoms count: all but hydrogens."""
    return np.asarray(frame.numbers != 1)


def evaluate(
    denoiser: Judges, frames: Sequence[Atoms], steps: int
) -> tuple[dict[str, Any], Array, BoolArray]:
    """One row of the table for the snapshots of one run, and (n,) confidences and whether each is right."""
    info = frames[0].info
    melt = info["structure"] == MELT
    name = DISORDERED if melt else info["structure"]
    raw, after, sure, taken, on_site = [], [], [], [], []
    for frame in frames:
        of = counted(frame)
        raw.append(denoiser.verdict(frame).structure_type[of] == name)
        clean = denoiser.denoise(frame, steps)
        after.append(clean.arrays["structure_type"][of] == name)
        sure.append(clean.arrays["confidence"][of])
        taken.append(clean.info["denoise_steps"])
        on_site.append(np.asarray(frame.arrays["on_site"], dtype=bool)[of])
    right, confidence = np.concatenate(after), np.concatenate(sure).astype(np.float64)
    there = np.concatenate(on_site)
    share, before = float(right.mean()), float(np.mean(np.concatenate(raw)))
    row: dict[str, Any] = {
        "structure": info["structure"],
        "potential": info["potential"],
        "temperature_K": float(info["temperature_K"]),
        "pressure_bar": float(info["pressure_bar"]),
        "raw": 1 - before if melt else before,
        "denoised": 1 - share if melt else share,
        "confidence": float(confidence.mean()),
        "calibration_error": calibration_error(confidence, right),
        "steps": float(np.mean(taken)),
        "n_snapshots": len(frames),
        "atoms": len(right),
    }
    if not melt:
        # An atom that has left its site is no error of the denoiser's.
        row["on_site"] = float(there.mean())
        row["right_of_those_on_site"] = float(right[there].mean()) if there.any() else None
    if "mean_tilt_deg" in info:
        row["mean_tilt_deg"] = float(np.mean([frame.info["mean_tilt_deg"] for frame in frames]))
    return row, confidence, right


def runs(frames: Sequence[Atoms]) -> list[list[Atoms]]:
    """Snapshots by phase, potential and temperature."""
    found: dict[tuple[str, str, float], list[Atoms]] = {}
    for frame in frames:
        info = frame.info
        found.setdefault((info["structure"], info["potential"], info["temperature_K"]), []).append(frame)
    return [found[key] for key in sorted(found, key=lambda key: (key[0] == MELT, key))]


def total(rows: Sequence[dict[str, Any]], confidence: Array, right: BoolArray) -> dict[str, Any]:
    """All atoms together, those of melts among them."""
    crystals = [row for row in rows if row["structure"] != MELT]
    atoms = sum(row["atoms"] for row in crystals)
    return {
        "structure": "all",
        "right": float(right.mean()),
        "right_of_crystals": sum(r["atoms"] * r["denoised"] for r in crystals) / atoms if atoms else None,
        "confidence": float(confidence.mean()),
        "calibration_error": calibration_error(confidence, right),
        "atoms": len(right),
    }


def table(rows: Sequence[dict[str, Any]]) -> Table:
    out = Table(title="share of atoms named right (melt: called some crystal)")
    columns = "phase potential K tilt atoms raw denoised on_site sure ECE steps"
    for column in columns.split():
        out.add_column(
            column.replace("_", " "), justify="left" if column in ("phase", "potential") else "right"
        )
    for r in rows:
        out.add_row(
            r["structure"], r["potential"], f"{r['temperature_K']:.0f}",
            f"{r['mean_tilt_deg']:.1f}" if "mean_tilt_deg" in r else "", str(r["atoms"]),
            f"{r['raw']:.2%}", f"{r['denoised']:.3%}", f"{r['on_site']:.2%}" if "on_site" in r else "",
            f"{r['confidence']:.4f}", f"{r['calibration_error']:.4f}", f"{r['steps']:.1f}",
        )  # fmt: skip
    return out


def measure(
    denoiser: Judges, frames: Sequence[Atoms], steps: int, console: Console
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All rows, and the sum of all atoms."""
    rows, confidence, right = [], [], []
    for group in runs(frames):
        row, sure, hits = evaluate(denoiser, group, steps)
        rows.append(row)
        confidence.append(sure)
        right.append(hits)
        console.print(
            f"{row['structure']} {row['potential']} {row['temperature_K']:.0f} K {row['denoised']:.3%}",
            highlight=False,
        )
    return rows, total(rows, np.concatenate(confidence), np.concatenate(right))


@command_line()
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.benchmarks.polymorphs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", required=True, help="name or folder")
    parser.add_argument("--data", type=Path, default=Path("build/polymorphs"), help="what the MD wrote")
    parser.add_argument("--family", choices=("silica", "ice"), help="default: what the checkpoint knows")
    parser.add_argument("--phase", nargs="+", help="only these, and melt")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--record", action="store_true", help="write into the checkpoint's metrics.json")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    console = Console(width=130)
    denoiser = Denoiser.from_pretrained(args.checkpoint)
    family = args.family or family_of(denoiser)
    frames = [f for f in stored(args.data) if f.info["family"] == family]
    if args.phase:
        frames = [f for f in frames if f.info["structure"] in args.phase]
    kept = [f for f in frames if f.info["kept"]]
    if not kept:
        raise StructureError(
            f"no snapshots of {family} in {args.data}: run "
            f"python -m training.benchmarks.polymorphs.{family} first"
        )
    rows, everything = measure(denoiser, kept, args.steps, console)
    console.print(table(rows))
    console.print(
        f"all {everything['atoms']} atoms: {everything['right']:.3%} right, expected calibration error "
        f"{everything['calibration_error']:.4f}; {len(frames) - len(kept)} snapshots left out, "
        "whose phase MD did not keep",
        highlight=False,
    )
    if args.record:
        from zoo.checkpoint import resolve

        folder, _ = resolve(args.checkpoint)
        command = " ".join(["python -m training.benchmarks.polymorphs", *(argv or sys.argv[1:])])
        extra = {"steps_at_most": args.steps, "all": everything, "left_out": len(frames) - len(kept)}
        record(folder, "polymorphs", rows, command=command, seed=1, extra=extra)
    return 0


def family_of(denoiser: Denoiser) -> str:
    """The MD that a checkpoint is for.

    Raises
    ------
    StructureError : it knows no polymorph of silica or ice.
    """
    from training.polymorphs import ICE, SILICA

    for family, names in (("silica", SILICA), ("ice", ICE)):
        if set(names) & set(denoiser.config.lattices):
            return family
    raise StructureError(f"{denoiser.name} knows neither silica nor ice: choose with --family")


def stored(data: Path) -> list[Atoms]:
    """All snapshots of a folder; none if there is no such folder."""
    return snapshots(data) if data.is_dir() else []


if __name__ == "__main__":
    sys.exit(main())
