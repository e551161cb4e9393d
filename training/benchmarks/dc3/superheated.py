"""Crystals at their limit of metastability: what is a defect there, and what is missed?

    python -m training.benchmarks.dc3.superheated --material Al Mg      # MD, then the table
    python -m training.benchmarks.dc3.superheated --record
    python -m training.benchmarks.dc3.superheated --checkpoint denoiser-binaries --material CoAl CuNi-L10:1.2

Runs like those of `md` at T_ml, of another seed, each snapshot kept with what it is without vibration in the
same box (`copies`): quenched for as long as vibration needs to go, minimised, and averaged over a picosecond.
`quench`, beside this, relaxes the box too and goes on to the minimum of the energy, on the way to which close
pairs of defects heal that were there in the snapshot.

Of each material: what share of the atoms has the right label by each of these, by the classifiers after
denoising and by the verdict; and of those that have it in a reference, or in the quench and the mean both,
how many have it after denoising.  A classifier labels an atom by its neighbours, so at a defect a few tenths
of an angstrom decide who is counted to it: the same once more of those inside the crystal, which have their
label in the quench and around them only such as have theirs.
Compounds have to have the right sublattice as well, if the checkpoint knows them.  What is finished is not
done again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ase import Atoms
from ase.io import read
from rich.console import Console
from rich.table import Table

from training.benchmarks.dc3.copies import (
    COPIES,
    WINDOW,
    files,
    named,
    vibration_time,
    write_with_copies,
)
from training.benchmarks.dc3.materials import EVERY, MATERIALS, Material
from training.benchmarks.dc3.md import advance, frame_of, with_forces
from training.command_line import command_line
from training.metrics import record
from zoo.analysis.orderings import ORDERINGS, orderings
from zoo.checkpoint import resolve
from zoo.denoiser import Denoiser
from zoo.pairs import pairs
from zoo.scale import length_scale

#: Length scales; two shells of bcc, simple cubic and diamond, one of fcc and hcp.
_LOOKED_AT = 1.5


def run_name(material: Material, ratio: float | None) -> str:
    """Of the folder of a run at the limit of metastability, or at another T/Tm."""
    if ratio is None:
        return material.key
    return f"{material.key}-{ratio:.2f}" if round(ratio, 2) == ratio else f"{material.key}-{ratio:g}"


def one_run(text: str) -> tuple[Material, float | None]:
    """``Fe``, or ``Fe:1.05`` for another T/Tm than the limit of metastability.

    Raises
    ------
    argparse.ArgumentTypeError : no such material, or no such ratio.
    """
    key, _, ratio = text.partition(":")
    # ZnO's force field has other units.
    known = [name for name, material in EVERY.items() if material.units == "metal"]
    if key not in known:
        raise argparse.ArgumentTypeError(f"{key!r} is none of {', '.join(known)}")
    if not ratio:
        return EVERY[key], None
    try:
        value = float(ratio)
    except ValueError:
        value = 0.0
    if not 0.1 < value < 10:
        raise argparse.ArgumentTypeError(f"{ratio!r} is no ratio of temperatures, such as 1.2")
    return EVERY[key], value


def simulate(
    material: Material,
    out: Path,
    potentials: Path | None,
    *,
    equilibrate: float = 10.0,
    every: float = 10.0,
    frames: int = 4,
    cells: tuple[int, int, int] | None = None,
    ratio: float | None = None,
    seed: int = 2,
) -> None:
    """A superheated crystal: ``frames`` snapshots, each with its copies; times in ps."""
    folder = out / run_name(material, ratio)
    folder.mkdir(parents=True, exist_ok=True)
    if len(files(out, folder.name)) >= frames:
        return
    limit = ratio or material.metastability_limit
    temperature = limit * material.melting_point
    lmp = with_forces(material, material.perfect(cells), potentials)
    lmp.command("timestep 0.001")
    lmp.command(f"velocity all create {temperature} {1000 + seed} mom yes rot no dist gaussian")
    lmp.command("fix barostat all nph iso 0.0 0.0 1.0")
    # How long vibration needs to go is asked at the melting point, where there is no defect yet.
    lmp.command(f"fix thermostat all temp/csvr {material.melting_point} {material.melting_point} 0.1 {seed}")
    advance(lmp, 2.0)
    descent = vibration_time(material, frame_of(lmp, material), potentials)
    print(f"{material.key}: vibration is gone after a descent of {descent:.1f} A^2/eV", flush=True)
    lmp.command("unfix thermostat")
    lmp.command(f"fix thermostat all temp/csvr {temperature} {temperature} 0.1 {seed + 1}")
    advance(lmp, equilibrate)
    for index in range(1, frames + 1):
        advance(lmp, every - WINDOW if index > 1 else every - WINDOW / 2)
        frame = write_with_copies(
            folder, index, lmp, material, potentials, descent,
            temperature_K=temperature, t_over_tm=limit, time_ps=equilibrate + index * every, seed=seed,
        )  # fmt: skip
        print(f"{material.key}: {index} of {frames} snapshots of {len(frame)} atoms", flush=True)
    lmp.close()


def target(material: Material, lattices: Sequence[str]) -> str:
    """What its atoms should be called after a denoiser of these: the compound, or at least the lattice."""
    return material.ordering if material.ordering in lattices else material.structure


def inside(quenched: Atoms, right: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """(n_atoms,) who is ``right``, and so is everybody whom a classifier looks at for its label."""
    scale = length_scale(quenched.positions, quenched.cell[:], quenched.pbc)
    i, j = pairs(quenched.positions, quenched.cell[:], quenched.pbc, _LOOKED_AT * scale, "ij")
    return np.asarray(right & (np.bincount(i, weights=~right[j], minlength=len(right)) == 0))


def ordered(atoms: Atoms) -> npt.NDArray[np.str_]:
    """Names of the compounds by `zoo.analysis.orderings`."""
    return np.array(ORDERINGS)[orderings(atoms)]


def measure(
    denoiser: Denoiser, material: Material, snapshots: Sequence[dict[str, Path]], steps: int
) -> dict[str, Any]:
    """Shares of the atoms of all ``snapshots`` (see `copies.files`) that are right, by each and of each."""
    name_of = target(material, denoiser.config.lattices)
    look = ordered if name_of in ORDERINGS else named
    right: dict[str, list[npt.NDArray[np.bool_]]] = {}
    taken, times = [], []
    for of in snapshots:
        frame = read(of["frame"])
        clean = denoiser.denoise(frame, steps)
        labels = {"raw": look(frame), "denoised": look(clean), "verdict": clean.arrays["structure_type"]}
        labels |= {name: look(read(of[name])) for name in COPIES}
        for name, given in labels.items():
            right.setdefault(name, []).append(given == name_of)
        right.setdefault("inside", []).append(inside(read(of["quenched"]), right["quenched"][-1]))
        taken.append(clean.info["denoise_steps"])
        times.append((frame.info["t_over_tm"], frame.info["time_ps"]))
    by = {name: np.concatenate(parts) for name, parts in right.items()}
    row: dict[str, Any] = {
        "n_snapshots": len(snapshots),
        "t_over_tm": times[0][0],
        "first_snapshot_ps": times[0][1],
        "last_snapshot_ps": times[-1][1],
        "atoms": len(by["raw"]),
        "steps": float(np.mean(taken)),
        **{name: float(flags.mean()) for name, flags in by.items()},
    }
    by["both"] = by["quenched"] & by["averaged"]
    for reference in (*COPIES, "both", "inside"):
        there = by[reference]
        if there.any():  # it may have melted
            found = {name: float(by[name][there].mean()) for name in ("denoised", "verdict", *COPIES)}
            row |= {f"{name}_of_{reference}": share for name, share in found.items() if name != reference}
    return row


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Shares for a terminal."""
    shown = Table(
        title="share of atoms labelled right; of those that are right in the quench; in the mean too; inside"
    )
    columns, ofs = ("raw", "denoised", "verdict", *COPIES), ("quenched", "both", "inside")
    found = {f"{name} of {of}": f"{name}_of_{of}" for of in ofs for name in ("denoised", "verdict")}
    for column in ("material", "atoms", *columns, *found):
        shown.add_column(column, justify="left" if column == "material" else "right")
    for row in rows:
        shares = [row[c] for c in columns] + [row.get(key) for key in found.values()]
        cells = ("" if share is None else f"{share:.2%}" for share in shares)
        shown.add_row(row["material"], str(row["atoms"]), *cells)
    return shown


@command_line()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--material", nargs="+", type=one_run, default=[(EVERY[key], None) for key in MATERIALS],
        help="such as Fe, or Fe:1.05 for another T/Tm than the limit of metastability; default: the elements",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("build/superheated"))
    parser.add_argument("--potentials", type=Path, help="folder of parameter files that are not in the wheel")
    parser.add_argument("--equilibrate", type=float, default=10.0, help="ps")
    parser.add_argument("--every", type=float, default=10.0, help="ps between snapshots")
    parser.add_argument(
        "--frames", type=int, default=4, help="at least so many snapshots (default %(default)s)"
    )
    parser.add_argument("--cells", nargs=3, type=int, help="unit cells per axis; default: the protocol's")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--checkpoint", default="denoiser-elements", help="name or folder")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--record", action="store_true", help="write into the checkpoint's metrics.json")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    if args.every < WINDOW or args.frames < 1:
        parser.error(f"at least one frame, and {WINDOW:g} ps between them, over which positions are averaged")
    torch.set_num_threads(args.threads)
    denoiser = Denoiser.from_pretrained(args.checkpoint)
    rows = []
    for material, ratio in args.material:
        simulate(
            material, args.out, args.potentials,
            equilibrate=args.equilibrate, every=args.every, frames=args.frames,
            cells=tuple(args.cells) if args.cells else None, ratio=ratio, seed=args.seed,
        )  # fmt: skip
        row = measure(denoiser, material, files(args.out, run_name(material, ratio)), args.steps)
        rows.append({"material": material.key, "structure": target(material, denoiser.config.lattices)} | row)
    Console(width=180).print(table(rows))
    if args.record:
        folder, _ = resolve(args.checkpoint)
        command = " ".join(["python -m training.benchmarks.dc3.superheated", *(argv or sys.argv[1:])])
        record(
            folder, "superheated", rows, command=command,
            seed=args.seed,
            extra={
                "steps_at_most": args.steps, "frames_at_least": args.frames, "every_ps": args.every,
                "equilibrate_ps": args.equilibrate, "cells": args.cells,
            },
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
