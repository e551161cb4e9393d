"""Rollouts of alkanes beside MD that the model never saw, each molecule on its own, with 95 % intervals.

    python -m training.benchmarks.alkanes build/sd-alkanes --data training/reference_md/alkanes/*
    python -m training.benchmarks.alkanes FOLDER --data ... --record

Walkers start from frames spread over the MD and take ``--steps`` steps; the first 100 ps are left out.
MD is in blocks of 125 ps, which are resampled; torsions forget where they were in about 40 ps.  Segments
that the checkpoint's metrics name as trained on are never used.  The molecules that no training saw at all
are told apart.  With ``--md-ps`` the speed of MD is measured in the same run, on the same core.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.benchmarks.alkanes.chains import compare, measure
from training.benchmarks.held_out import trained_on
from training.benchmarks.kinetics.__main__ import thinned
from training.command_line import command_line
from training.metrics import record
from training.reference_md.segments import Segment, read_segments
from training.reference_md.systems import SYSTEMS
from training.score_dynamics.family_recipe import read_molecule
from zoo.analysis.geometry import Internals
from zoo.checkpoint import read_metrics
from zoo.errors import ZooError
from zoo.evaluate_command import start_frames
from zoo.molecules.sources import NM
from zoo.rollout import roll_out
from zoo.score_dynamics import ScoreDynamics

BLOCK = 125.0  # ps
SKIP = 100.0  # ps


def unseen(folder: Path, trained: set[str]) -> list[Segment]:
    """Segments of a molecule that were neither trained on nor used for validation."""
    return [s for s in read_segments(folder) if f"{folder.name}/{s.name}" not in trained]


def evaluate_molecule(
    model: ScoreDynamics, folder: Path, trained: set[str], walkers: int, steps: int, seed: int, threads: int
) -> dict[str, Any]:
    """One row: all figures of one molecule."""
    segments = unseen(folder, trained)
    if not segments:
        raise ZooError(f"{folder}: every segment was trained on, none is left to compare with")
    molecule = read_molecule(folder)
    one = model.of(molecule)
    md = thinned(segments, molecule.sites, model.lag_time)
    start = start_frames(one, md, walkers)
    run = roll_out(one, start, steps, walkers, seed, keep=True, threads=threads)
    moved = [t.xyz * np.float32(NM) for t in run.trajectories]
    complete = [x for x in moved if len(x) == steps + 1]
    if not complete:
        raise ZooError(f"{folder.name}: every walker stopped before the end: {dict(run.report.stopped)}")
    row: dict[str, Any] = {
        "molecule": folder.name,
        "trained_on": any(name.startswith(f"{folder.name}/") for name in trained),
        "md_ns": round(sum((len(x) - 1) * model.lag_time for x in md) / 1000, 3),
        "md_segments": [s.name for s in segments],
        "walkers": walkers,
        "ps_per_walker": steps * model.lag_time,
        "redrawn_fraction": run.report.redrawn_fraction,
        "redrawn_by_kind": dict(run.report.by_kind),
        "walkers_stopped": len(run.report.stopped),
        "rollout_ps_per_second": run.report.ps_per_second,
    }
    row |= compare(
        measure(molecule, md, model.lag_time, BLOCK),
        measure(molecule, complete, model.lag_time, BLOCK, SKIP),
        seed,
    )
    row["geometry"] = geometry(one, md, complete)
    return row


def geometry(model: ScoreDynamics, md: list[Any], moved: list[Any]) -> dict[str, Any]:
    """Bonds and angles: means and widths beside MD, and whether those of the last tenth have drifted."""
    internals = Internals(model.molecule)
    n = min(len(x) for x in moved) // 10
    late = np.concatenate([x[-n:] for x in moved])
    early = np.concatenate([x[1 : n + 1] for x in moved])
    of_md, first, last = (
        internals.measure(x[:: max(1, len(x) // 5000)]) for x in (np.concatenate(md), early, late)
    )
    n_bonds = len(model.molecule.site_bonds)
    soft = of_md.std(0) > 1e-3
    result: dict[str, Any] = {}
    for name, columns in (("bonds", slice(0, n_bonds)), ("angles", slice(n_bonds, None))):
        keep = soft[columns]
        if not keep.any():
            continue
        a, b, c = (x[:, columns][:, keep] for x in (of_md, first, last))
        result[f"{name}_shift_in_sd"] = round(float((np.abs(c.mean(0) - a.mean(0)) / a.std(0)).max()), 4)
        result[f"{name}_drift_in_sd"] = round(float((np.abs(c.mean(0) - b.mean(0)) / a.std(0)).max()), 4)
        ratio = c.std(0) / a.std(0)
        result[f"{name}_width_ratio"] = [round(float(ratio.min()), 4), round(float(ratio.max()), 4)]
    return result


def speed_of_md(name: str, length: float) -> float:
    """ps per second of OpenMM on one core: production only, 4 fs, the box of the training data."""
    from training.reference_md.simulation import Generator, Progress

    speeds: list[float] = []

    def report(p: Progress) -> None:
        speeds.append(p.speed)

    with tempfile.TemporaryDirectory() as folder:
        Generator(SYSTEMS[name], Path(folder), "CPU", 1, length).run(0, length, report)
    return speeds[-1]


def speed_of_rollout(model: ScoreDynamics, folder: Path, walkers: int, seconds: float) -> float:
    """ps per second of the rollout on one core, all walkers together."""
    one = model.of(read_molecule(folder))
    segment = read_segments(folder)[0]
    start = start_frames(one, thinned([segment], one.molecule.sites, model.lag_time), walkers)
    roll_out(one, start, 2, walkers, 0, keep=False)
    steps = 2
    while True:
        begin = time.perf_counter()
        roll_out(one, start, steps, walkers, 0, keep=False)
        spent = time.perf_counter() - begin
        if spent > seconds:
            return walkers * steps * model.lag_time / spent
        steps = max(steps * 2, int(1.2 * steps * seconds / spent))


@command_line()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.benchmarks.alkanes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of reference MD")
    parser.add_argument("--walkers", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--md-ps", type=float, default=0.0, help="measure the speed of MD over so many ps")
    parser.add_argument("--record", action="store_true", help="write the figures to metrics.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    model = ScoreDynamics.from_pretrained(args.checkpoint)
    if model.family is None:
        raise ZooError(f"{args.checkpoint} is of one molecule: see training.benchmarks.kinetics")
    trained = trained_on(model)
    if not trained:
        raise ZooError(f"{args.checkpoint}: its metrics do not say what it was trained on")
    rows = []
    if args.record:
        unknown = sorted({folder.name for folder in args.data} - set(SYSTEMS))
        if unknown:
            raise ZooError(f"no molecule is called {', '.join(unknown)}: name folders of --data by molecules")
    for folder in args.data:
        if not (folder / "topology.pdb").exists():
            continue
        row = evaluate_molecule(model, folder, trained, args.walkers, args.steps, args.seed, args.threads)
        if args.md_ps:
            row["md_ps_per_second"] = round(speed_of_md(folder.name, args.md_ps), 3)
            row["one_walker_ps_per_second"] = round(speed_of_rollout(model, folder, 1, 5.0), 2)
            row["all_walkers_ps_per_second"] = round(speed_of_rollout(model, folder, args.walkers, 5.0), 2)
            for who in ("one_walker", "all_walkers"):
                row[f"{who}_ratio"] = round(row[f"{who}_ps_per_second"] / row["md_ps_per_second"], 1)
        rows.append(row)
        _show(row)
    if args.record:
        options = f"--walkers {args.walkers} --steps {args.steps}"
        if args.md_ps:
            options += f" --md-ps {args.md_ps:g}"
        command = f"python -m training.benchmarks.alkanes {model.name} --data md/* {options}"
        extra = {"block_ps": BLOCK, "skipped_ps": SKIP}
        flat = [line for row in rows for line in flattened(row)]
        _add(args.checkpoint, "alkanes", flat, command, args.seed, extra)
        _add(args.checkpoint, "stability", [stability(row) for row in rows], command, args.seed, {})
        timed = [speeds(row) for row in rows if "md_ps_per_second" in row]
        if timed:
            _add(args.checkpoint, "wallclock", timed, command, args.seed, {"threads": 1})
    return 0


FIGURES = {
    "gauche": "gauche, all torsions",
    "outer": "gauche, outer torsions",
    "inner": "gauche, inner torsions",
    "exchanges_per_ns": "exchanges per torsion and ns",
    "end_to_end": "end-to-end distance, Å",
    "end_to_end_std": "its standard deviation, Å",
    "gyration": "radius of gyration, Å",
    "gyration_std": "its standard deviation, Å",
}


def flattened(row: dict[str, Any]) -> list[dict[str, Any]]:
    """One line for each figure of a molecule."""
    lines = []
    for key, title in FIGURES.items():
        if key not in row:
            continue
        md, run = row[key]["md"], row[key]["rollout"]
        ratio = run[0] / md[0] if md[0] else None
        lines.append(
            {
                "molecule": row["molecule"],
                "trained_on": row["trained_on"],
                "figure": title,
                "md": md[0],
                "md_interval": f"{md[1]:.3g} to {md[2]:.3g}",
                "rollout": run[0],
                "rollout_interval": f"{run[1]:.3g} to {run[2]:.3g}",
                "difference": round(run[0] - md[0], 5),
                "ratio": None if ratio is None else round(ratio, 4),
                "verdict": "inside" if row[key]["inside"] else f"× {ratio:.2f}" if ratio is not None else "-",
            }
        )
    return lines


def stability(row: dict[str, Any]) -> dict[str, Any]:
    """How a molecule's rollout went, in one line."""
    keys = (
        "molecule", "trained_on", "md_ns", "md_segments", "walkers", "ps_per_walker", "redrawn_fraction",
        "redrawn_by_kind", "walkers_stopped", "n_exchanges_md", "torsion_divergence_bits",
        "torsion_divergence_halves_bits", "torsion_divergence_halves_95_bits",
    )  # fmt: skip
    widths = {}
    for name in ("bonds", "angles"):
        for key in ("shift_in_sd", "drift_in_sd"):
            widths[f"{name}_{key}"] = row["geometry"].get(f"{name}_{key}")
        low, high = row["geometry"].get(f"{name}_width_ratio", (None, None))
        widths |= {f"{name}_width_low": low, f"{name}_width_high": high}
    return {key: row.get(key) for key in keys} | widths


def speeds(row: dict[str, Any]) -> dict[str, Any]:
    """How fast a molecule's rollout is beside MD, in one line."""
    return {
        "molecule": row["molecule"],
        **{
            key: value for key, value in row.items() if key.startswith(("md_ps", "one_walker", "all_walkers"))
        },
    }


def _add(
    checkpoint: Path, section: str, rows: list[dict[str, Any]], command: str, seed: int, extra: dict[str, Any]
) -> None:
    """Record; molecules of an earlier call of the same command that are not in this one stay."""
    before = read_metrics(checkpoint).get("sections", {}).get(section, {})
    names = {row["molecule"] for row in rows}
    kept = [row for row in before.get("results", []) if row["molecule"] not in names]
    kept = [{"by": before.get("command"), **row} for row in kept]
    rows = [{**row, "by": command} for row in rows]
    order = list(SYSTEMS)
    rows = sorted([*kept, *rows], key=lambda row: order.index(row["molecule"]))
    record(checkpoint, section, rows, command=command, seed=seed, extra=extra)


def _show(row: dict[str, Any]) -> None:
    seen = "trained on" if row["trained_on"] else "never seen"
    print(
        f"{row['molecule']} ({seen}): {row['md_ns']:g} ns of MD, {row['walkers']} walkers of "
        f"{row['ps_per_walker']:g} ps, redrawn {row['redrawn_fraction']:.3%}, "
        f"stopped {row['walkers_stopped']}, {row['rollout_ps_per_second']:.0f} ps/s"
    )
    for name, value in row.items():
        if isinstance(value, dict) and "md" in value:
            md, run = (f"{v[0]:.4f} ({v[1]:.4f} to {v[2]:.4f})" for v in (value["md"], value["rollout"]))
            print(f"  {name:18} MD {md}  rollout {run}  {'inside' if value['inside'] else ''}")
        elif name.startswith(("torsion", "rate", "md_ps", "one_", "all_", "geometry", "n_exch")):
            print(f"  {name:18} {value}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
