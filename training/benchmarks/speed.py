"""Speed and memory of a denoiser on a noised crystal, from 10^3 to 10^6 atoms.

    python -m training.benchmarks.speed
    python -m training.benchmarks.speed --record
    python -m training.benchmarks.speed --checkpoint denoiser-binaries --crystal NaCl --cells 6 11 24 --record
    python -m training.benchmarks.speed --checkpoint denoiser-ice --crystal ice --cells 6 12 24 --record

Every size runs in a process of its own, so that its peak memory is its own.  Prints microseconds
per atom and step, the share of the neighbour search, the peak memory, and the exponent with which
the cost grows.  Two yardsticks: polyhedral template matching by OVITO on the same atoms in the same
run, on one thread, and the 197 us per atom and step of the reference implementation (one thread,
1 000 to 1 400 atoms, best of eight, measured earlier on the same kind of machine; not run again here).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from rich.console import Console
from rich.table import Table

from training.command_line import command_line

REFERENCE_US = 197.0
CRYSTALS = {"Cu": ("fcc", 3.615), "NaCl": ("rocksalt", 5.64), "CoAl": ("cesiumchloride", 2.866)}
POLYMORPHS = {"quartz": "alpha-quartz", "ice": "ice Ih"}
SIZES = (7, 14, 30, 63)  # cubic cells of four atoms: 1 372, 10 976, 108 000 and 1 000 188 atoms


def unit_cell(crystal: str) -> Atoms:
    """What is repeated: a conventional cell, of quartz and ice an orthogonal one."""
    if crystal in POLYMORPHS:
        from training.polymorphs import orthogonal

        return orthogonal(POLYMORPHS[crystal])
    from ase.build import bulk

    structure, a = CRYSTALS[crystal]
    return bulk(crystal, structure, a=a, cubic=True)


def measure(
    checkpoint: str, cells: int, steps: int, repeats: int, threads: int, ptm: bool, crystal: str = "Cu"
) -> dict[str, Any]:
    """One size, in this process; the best of ``repeats`` counts."""
    import torch

    from zoo.denoiser import Denoiser
    from zoo.graph import neighbor_graph
    from zoo.scale import length_scale

    torch.set_num_threads(threads)
    denoiser = Denoiser.from_pretrained(checkpoint)
    unit = unit_cell(crystal)
    atoms = unit.repeat(cells)
    spacing = unit.repeat(3).get_all_distances(mic=True)
    atoms.rattle(0.08 * float(spacing[spacing > 0].min()), seed=0)
    if len(atoms) <= 12_000:
        denoiser.denoise(atoms, steps=1)  # warm up
    seconds, taken = [], 0
    for _ in range(repeats):
        started = time.perf_counter()
        taken = denoiser.denoise(atoms, steps).info["denoise_steps"]
        seconds.append((time.perf_counter() - started) / taken)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    scale = length_scale(atoms.positions, atoms.cell[:], True)
    search = []
    for _ in range(repeats):
        started = time.perf_counter()
        graph = neighbor_graph(atoms.positions, atoms.cell[:], True, denoiser.cutoff, scale)
        search.append(time.perf_counter() - started)
    row: dict[str, Any] = {
        "atoms": len(atoms),
        "threads": threads,
        "steps": taken,
        "edges_per_atom": graph.n_edges / len(atoms),
        "us_per_atom_step": 1e6 * min(seconds) / len(atoms),
        "neighbour_share": min(search) / min(seconds),
        "peak_memory_mib": peak,
    }
    if ptm:
        from zoo.analysis.crystals import ptm as template_matching

        template_matching(atoms)
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            template_matching(atoms)
            times.append(time.perf_counter() - started)
        row["ptm_us_per_atom"] = 1e6 * min(times) / len(atoms)
    return row


def child(arguments: list[str]) -> dict[str, Any]:
    """`measure` in a fresh process."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OVITO_THREAD_COUNT": "1"}
    command = [sys.executable, "-m", "training.benchmarks.speed", "--child", *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"benchmark process failed:\n{done.stderr}")
    row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return row


@command_line()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="denoiser-elements", help="name or folder")
    parser.add_argument(
        "--crystal", choices=[*CRYSTALS, *POLYMORPHS], default="Cu", help="(default %(default)s)"
    )
    parser.add_argument("--cells", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--record", action="store_true", help="write into the checkpoint's metrics.json")
    parser.add_argument("--child", nargs=7, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        name, crystal, *numbers, ptm = args.child
        cells, steps, repeats, threads = map(int, numbers)
        print(json.dumps(measure(name, cells, steps, repeats, threads, ptm == "1", crystal)))
        return 0
    rows = []
    console = Console()
    for threads in args.threads:
        for cells in args.cells:
            n_atoms = len(unit_cell(args.crystal)) * cells**3
            big = n_atoms > 250_000
            # As many as for small ones: the verdict comes once, after the last of them.
            steps = args.steps
            # A small system takes milliseconds: many repeats, so that the best is a quiet one.
            repeats = 1 if big else 20 if n_atoms <= 2100 else 8 if n_atoms <= 12_000 else 2
            ptm = threads == 1 and not big
            rows.append(
                child([args.checkpoint, args.crystal, *map(str, (cells, steps, repeats, threads, int(ptm)))])
            )
            row = rows[-1]
            # Atoms per second per core against the reference's on one thread.
            row["times_reference"] = REFERENCE_US / (row["us_per_atom_step"] * threads)
            if "ptm_us_per_atom" in row:
                row["times_ptm"] = row["us_per_atom_step"] / row["ptm_us_per_atom"]
            console.print(
                f"{row['atoms']} atoms, {threads} threads: {row['us_per_atom_step']:.1f} us per atom and step"
            )
    table = Table(title=f"denoising {args.crystal}")
    for column in (
        "atoms", "threads", "us/(atom step)", "neighbours", "peak MiB", "x reference per core", "in PTM runs",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for r in rows:
        ptm = f"{r['times_ptm']:.2f}" if "times_ptm" in r else ""
        table.add_row(
            f"{r['atoms']:,}", str(r["threads"]), f"{r['us_per_atom_step']:.1f}",
            f"{r['neighbour_share']:.0%}", f"{r['peak_memory_mib']:,.0f}", f"{r['times_reference']:.1f}", ptm,
        )  # fmt: skip
    console.print(table)
    single = [r for r in rows if r["threads"] == args.threads[0]]
    exponent = None
    if len(single) > 1:
        n, t = (np.log([r[k] for r in single]) for k in ("atoms", "us_per_atom_step"))
        exponent = 1 + float(np.polyfit(n, t, 1)[0])
        console.print(f"cost grows with the number of atoms to the power {exponent:.3f}")
    if args.record:
        from training.metrics import record
        from zoo.checkpoint import resolve

        folder, _ = resolve(args.checkpoint)
        command = (
            f"python -m training.benchmarks.speed --checkpoint {Path(args.checkpoint).name} "
            f"--crystal {args.crystal} --cells {' '.join(map(str, args.cells))} --record"
        )
        record(
            folder,
            "speed",
            rows,
            command=command,
            seed=0,
            extra={
                "crystal": args.crystal,
                "growth_exponent": exponent,
                "reference_us_per_atom_step": REFERENCE_US,
            },
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
