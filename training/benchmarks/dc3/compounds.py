"""Accuracy of a species-aware denoiser on thermal compounds and their melts, and of its verdict.

    python -m training.benchmarks.dc3.md --material CuNi-L12 CoAl --out build/dc3
    python -m training.benchmarks.dc3.compounds --data build/dc3 --checkpoint denoiser-binaries --record

Per compound and temperature, over all snapshots: the share of atoms on the right lattice and the right
sublattice (`zoo.analysis.orderings`) in the raw snapshot and after denoising, the share to which the verdict
gives the right name, its mean confidence and its expected calibration error.  Where snapshots have been
quenched (`quench`), also how many of the atoms that are crystalline then are right, and the verdict counts on
those.  For the liquid, and for
crystals of which a quench finds nothing left, shares are those of atoms that are called crystalline, smaller
is better.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.io import read
from rich.console import Console
from rich.table import Table

from training.benchmarks.dc3.materials import COMPOUNDS, LIQUID, Material
from training.benchmarks.dc3.md import run_folder, snapshot_files
from training.benchmarks.dc3.quench import quenched_path
from training.command_line import command_line
from training.metrics import kept, record
from training.verdict import calibration_error
from zoo.analysis.orderings import ORDERINGS, orderings
from zoo.denoiser import Denoiser
from zoo.verdict_names import DISORDERED


def simulated(data: Path, key: str) -> list[float]:
    """T / Tm of all runs of a material in ``data``; one that melts at T_ml may have been run below it."""
    return sorted(float(f.name.removeprefix(f"{key}-")) for f in data.glob(f"{key}-[0-9].[0-9][0-9]"))


def evaluate(
    denoiser: Denoiser,
    material: Material,
    ratio: float,
    frames: list[Atoms],
    quenched: list[Atoms | None],
    steps: int,
) -> dict[str, Any]:
    """One row of the table; fractions are per atom over all frames."""
    cold = [orderings(a) == ORDERINGS.index(material.ordering) for a in quenched if a is not None]
    # A superheated crystal may melt during the run.
    melted = ratio < LIQUID and len(cold) == len(frames) and bool(np.concatenate(cold).mean() < 0.01)
    liquid = ratio == LIQUID or melted
    raw: list[Any] = []
    after: list[Any] = []
    named, confidence, certain, taken = [], [], [], []
    real: list[Any] = []
    for frame, minimum in zip(frames, quenched, strict=True):
        clean = denoiser.denoise(frame, steps)
        for labels, into in ((orderings(frame), raw), (orderings(clean), after)):
            into.append(labels != 0 if liquid else labels == ORDERINGS.index(material.ordering))
        if minimum is not None and not liquid:
            perfect = orderings(minimum) == ORDERINGS.index(material.ordering)
            real.append((len(perfect), int(perfect.sum()), int(after[-1][perfect].sum())))
        taken.append(clean.info["denoise_steps"])
        if denoiser.head is not None:
            name = DISORDERED if liquid else material.ordering
            # Where a quench is there, of the atoms that are crystalline in it.
            of = perfect if minimum is not None and not liquid else np.ones(len(frame), dtype=bool)
            named.append(clean.arrays["structure_type"][of] == name)
            confidence.append(clean.arrays["confidence"][of])
            certain.append(~named[-1] if liquid else named[-1])
    row: dict[str, Any] = {
        "material": material.key,
        "structure": "melted" if melted else "liquid" if liquid else material.ordering,
        "t_over_tm": ratio,
        "raw": float(np.mean(np.concatenate(raw))),
        "denoised": float(np.mean(np.concatenate(after))),
        **({"verdict": float(np.mean(np.concatenate(certain)))} if named else {}),
        "temperature_K": round(ratio * material.melting_point, 1),
        "n_snapshots": len(frames),
        "n_atoms": len(frames[0]),
        "atoms": sum(map(len, frames)),
        "first_snapshot_ps": frames[0].info["time_ps"],
        "last_snapshot_ps": frames[-1].info["time_ps"],
        "steps": float(np.mean(taken)),
    }
    if real:  # what is no crystal after a quench either is no error
        n_atoms, n_perfect, n_right = np.sum(real, axis=0).tolist()
        row["real_defects"] = 1 - n_perfect / n_atoms
        if n_perfect:
            row["right_where_quench_is"] = n_right / n_perfect
    if named:
        sure = np.concatenate(confidence)
        row["confidence"] = float(sure.mean())
        row["calibration_error"] = calibration_error(sure, np.concatenate(named))
    return row


def table(rows: list[dict[str, Any]]) -> Table:
    out = Table(title="share of atoms labelled right (liquid: labelled crystalline)")
    for column in (
        "compound",
        "structure",
        "T/Tm",
        "atoms",
        "raw",
        "denoised",
        "vs quench",
        "verdict",
        "ECE",
        "steps",
    ):
        out.add_column(column, justify="left" if column in ("compound", "structure") else "right")
    for r in rows:
        out.add_row(
            r["material"], r["structure"], f"{r['t_over_tm']:.2f}", str(r["atoms"]), f"{r['raw']:.2%}",
            f"{r['denoised']:.3%}",
            f"{r['right_where_quench_is']:.3%}" if "right_where_quench_is" in r else "",
            f"{r['verdict']:.3%}" if "verdict" in r else "",
            f"{r['calibration_error']:.4f}" if "verdict" in r else "", f"{r['steps']:.1f}",
        )  # fmt: skip
    return out


@command_line()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.benchmarks.dc3.compounds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=Path("build/dc3"), help="what dc3.md wrote")
    parser.add_argument("--checkpoint", default="denoiser-binaries", help="name or folder")
    parser.add_argument("--material", nargs="+", choices=COMPOUNDS, default=list(COMPOUNDS))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--at-most", type=int, help="only so many snapshots each")
    parser.add_argument("--record", action="store_true", help="write into the checkpoint's metrics.json")
    parser.add_argument(
        "--add", action="store_true", help="with --record: leave rows of what --data does not have, if they "
        "are of the same weights",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    if args.add and (not args.record or args.steps != parser.get_default("steps")):
        parser.error("--add goes with --record, and with the default of --steps")
    torch.set_num_threads(args.threads)
    denoiser = Denoiser.from_pretrained(args.checkpoint)
    rows, console = [], Console(width=130)
    for key in args.material:
        material = COMPOUNDS[key]
        for ratio in simulated(args.data, key):
            files = snapshot_files(run_folder(args.data, key, ratio))[: args.at_most]
            read_in = [(read(f), f) for f in files]
            if ratio == LIQUID:  # a superheated crystal that has not melted yet is no liquid
                read_in = [(a, f) for a, f in read_in if a.info["time_ps"] > material.molten_after]
            if read_in:
                cold = [read(q) if (q := quenched_path(f)).exists() else None for _, f in read_in]
                frames = [a for a, _ in read_in]
                rows.append(evaluate(denoiser, material, ratio, frames, cold, args.steps))
                console.print(f"{key} {ratio:.2f} {rows[-1]['denoised']:.3%}", highlight=False)
    if not rows:
        print(f"no snapshots in {args.data}: run python -m training.benchmarks.dc3.md first", file=sys.stderr)
        return 1
    console.print(table(rows))
    if args.record:
        from zoo.checkpoint import resolve

        folder, _ = resolve(args.checkpoint)
        if args.add:
            order = list(COMPOUNDS)
            old = kept(folder, "compounds", rows, ("material", "t_over_tm"))
            rows += [row for row in old if row["material"] in order]
            rows.sort(key=lambda row: (order.index(row["material"]), row["t_over_tm"]))
        record(
            folder, "compounds", rows, command="python -m training.benchmarks.dc3.compounds --record",
            seed=1, extra={"steps_at_most": args.steps},
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
