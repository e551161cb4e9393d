"""Accuracy of a denoiser on DC3's thermal crystals and melts.

    python -m training.benchmarks.dc3.evaluate --data build/dc3
    python -m training.benchmarks.dc3.evaluate --data build/dc3 --record

Per material and temperature, over all snapshots: the share of atoms that get the right label from
raw adaptive CNA, from raw polyhedral template matching, from zoo's combination of classifiers on
the raw snapshot, and from the same combination after denoising.  Where a snapshot has been quenched
(`quench`), also the share of atoms that are real defects, and how many of the atoms that the quench
finds crystalline the denoised snapshot gets right.  For the liquid the share of atoms
that get any crystalline label (smaller is better) and the first peak of g(r), before and after.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.io import read
from rich.console import Console
from rich.table import Table

from training.benchmarks.dc3.materials import LIQUID, MATERIALS, Material
from training.benchmarks.dc3.md import ratios, run_folder, snapshot_files
from training.benchmarks.dc3.quench import quenched_path
from training.command_line import command_line
from zoo.analysis.crystals import STRUCTURES, adaptive_cna, ptm, radial_distribution, structure_types
from zoo.denoiser import Denoiser
from zoo.scale import length_scale


def share(labels: np.ndarray, structure: str) -> float:
    """Fraction of atoms with the right label; for the liquid, with any crystalline one."""
    if structure == "liquid":
        return float(np.mean(labels != 0))
    return float(np.mean(labels == STRUCTURES.index(structure)))


def radial(atoms: Atoms, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """g(r) up to 3 length scales in 90 bins: r (Å) and g."""
    return radial_distribution(atoms, 3.0 * scale, 90)


def melt(pairs: list[tuple[Atoms, Atoms]]) -> dict[str, Any]:
    """The radial distribution function of the melt before and after, mean over frames."""
    frame = pairs[0][0]
    scale = length_scale(frame.positions, frame.cell[:], frame.pbc)  # one r axis for all frames
    r = radial(frame, scale)[0]
    before, after = (np.mean([radial(pair[k], scale)[1] for pair in pairs], axis=0) for k in (0, 1))
    return {
        "rdf_peak_A": float(r[np.argmax(before)]),
        "rdf_height": float(before.max()),
        "rdf_peak_after_A": float(r[np.argmax(after)]),
        "rdf_height_after": float(after.max()),
        "rdf_r_A": r.round(3).tolist(),
        "rdf_before": before.round(3).tolist(),
        "rdf_after": after.round(3).tolist(),
    }


def evaluate(
    denoiser: Denoiser,
    material: Material,
    ratio: float,
    frames: list[Atoms],
    quenched_frames: list[Atoms | None],
    steps: int,
) -> dict[str, Any]:
    """One row of the table; fractions are per atom over all frames."""
    structure = "liquid" if ratio == LIQUID else material.structure
    raw_cna, raw_ptm, raw, after, taken, moved = [], [], [], [], [], []
    pairs, quenches = [], []
    for frame, quenched in zip(frames, quenched_frames, strict=True):
        clean = denoiser.denoise(frame, steps)
        raw_cna.append(share(adaptive_cna(frame), structure))
        raw_ptm.append(share(ptm(frame), structure))
        raw.append(share(structure_types(frame), structure))
        labels = structure_types(clean)
        after.append(share(labels, structure))
        if quenched is not None:
            perfect = structure_types(quenched) == STRUCTURES.index(structure)
            right = labels == STRUCTURES.index(structure)
            quenches.append((len(perfect), int(perfect.sum()), int(right[perfect].sum())))
        taken.append(clean.info["denoise_steps"])
        moved.append(float(np.linalg.norm(clean.positions - frame.positions, axis=1).mean()))
        if structure == "liquid":
            pairs.append((frame, clean))
    row: dict[str, Any] = {
        "material": material.key,
        "structure": structure,
        "crystal": material.structure,
        "t_over_tm": ratio,
        "temperature_K": round(ratio * material.melting_point, 1),
        "state": {1.0: "Tm", LIQUID: "liquid"}.get(ratio, "Tml"),
        "n_snapshots": len(frames),
        "n_atoms": len(frames[0]),
        "atoms": sum(map(len, frames)),
        "first_snapshot_ps": frames[0].info["time_ps"],
        "last_snapshot_ps": frames[-1].info["time_ps"],
        "raw_cna": float(np.mean(raw_cna)),
        "raw_ptm": float(np.mean(raw_ptm)),
        "raw_combined": float(np.mean(raw)),
        "denoised": float(np.mean(after)),
        "worst_snapshot": float(np.max(after) if structure == "liquid" else np.min(after)),
        "wrong_atoms": round(sum((1 - a) * len(f) for a, f in zip(after, frames, strict=True))),
        "steps": float(np.mean(taken)),
        "mean_displacement_A": float(np.mean(moved)),
    }
    if quenches:
        row["n_quenched"] = len(quenches)
        atoms, perfect_atoms, right_atoms = np.sum(quenches, axis=0).tolist()
        row["real_defects"] = 1 - perfect_atoms / atoms
        if perfect_atoms:  # a snapshot that has melted has none
            row["right_where_quench_is"] = right_atoms / perfect_atoms
    if structure == "liquid":
        del row["wrong_atoms"]
        row |= melt(pairs)
    return row


def table(rows: list[dict[str, Any]]) -> Table:
    out = Table(title="share of atoms labelled right (liquid: labelled crystalline)")
    for column in (
        "material",
        "structure",
        "T/Tm",
        "atoms",
        "a-CNA",
        "PTM",
        "combined",
        "denoised",
        "worst",
        "vs quench",
        "steps",
    ):
        out.add_column(column, justify="left" if column in ("material", "structure") else "right")
    for r in rows:
        out.add_row(
            r["material"], r["structure"], f"{r['t_over_tm']:.2f}", str(r["n_atoms"] * r["n_snapshots"]),
            f"{r['raw_cna']:.2%}", f"{r['raw_ptm']:.2%}", f"{r['raw_combined']:.2%}",
            f"{r['denoised']:.3%}", f"{r['worst_snapshot']:.3%}",
            f"{r['right_where_quench_is']:.3%}" if "right_where_quench_is" in r else "", f"{r['steps']:.1f}",
        )  # fmt: skip
    return out


@command_line()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("build/dc3"), help="what dc3.md wrote")
    parser.add_argument("--checkpoint", default="denoiser-elements", help="name or folder")
    parser.add_argument("--material", nargs="+", choices=MATERIALS, default=list(MATERIALS))
    parser.add_argument(
        "--state", nargs="+", choices=("Tm", "Tml", "liquid"), default=["Tm", "Tml", "liquid"]
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--at-most", type=int, help="only so many snapshots each")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    parser.add_argument("--record", action="store_true", help="write them into the checkpoint's metrics.json")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    denoiser = Denoiser.from_pretrained(args.checkpoint)
    rows, console = [], Console(width=130)
    for key in args.material:
        material = MATERIALS[key]
        for ratio, state in zip(ratios(material), ("Tm", "Tml", "liquid"), strict=True):
            files = snapshot_files(run_folder(args.data, key, ratio))[: args.at_most]
            if state not in args.state or not files:
                continue
            frames = [read(path) for path in files]
            others = [quenched_path(path) for path in files]
            quenched = [read(path) if path.exists() else None for path in others]
            if state == "liquid":  # a superheated crystal that has not melted yet is no liquid
                molten = [frame.info["time_ps"] > material.molten_after for frame in frames]
                frames = [frame for frame, yes in zip(frames, molten, strict=True) if yes]
                quenched = [None] * len(frames)
                if not frames:
                    continue
            rows.append(evaluate(denoiser, material, ratio, frames, quenched, args.steps))
            r = rows[-1]
            console.print(
                f"{key} {ratio:.2f} raw {r['raw_combined']:.2%} -> {r['denoised']:.3%} in {r['steps']:.1f}",
                highlight=False,
            )
    if not rows:
        print(f"no snapshots in {args.data}: run python -m training.benchmarks.dc3.md first", file=sys.stderr)
        return 1
    console.print(table(rows))
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1))
    if args.record:
        from training.metrics import record
        from zoo.checkpoint import resolve

        folder, _ = resolve(args.checkpoint)
        record(
            folder, "dc3", rows, command="python -m training.benchmarks.dc3.evaluate --record",
            seed=1, extra={"steps_at_most": args.steps},
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
