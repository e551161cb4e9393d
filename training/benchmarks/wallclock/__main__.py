"""Speed of a propagator against OpenMM on the same cores, in the same run.

    python -m training.benchmarks.wallclock sd-alanine-dipeptide
    python -m training.benchmarks.wallclock FOLDER [FOLDER ...] --seconds 20 --rounds 3 --record

MD is at its strongest fair setting, that of the reference MD: 4 fs with heavy hydrogens, rigid water, and
no output.  **One walker** is compared with one MD process on one or on two threads, whichever is faster;
**many walkers** with the sum of two MD processes, one on each core.  The small box is that of the training
data; the large one, 4.9 nm, that of the method's paper, where MD spends nearly all of its time on water.
Everything is run once per round, rounds one after another, and medians are compared, so that what else the
machine does hits all of them alike.

**Break-even**: how much has to be simulated until the propagator has paid for its training, and, where
there was no MD before, for the MD that it was trained on: T / v_MD = T / v + costs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.command_line import command_line
from training.metrics import record
from zoo.checkpoint import read_metrics
from zoo.errors import ZooError

WORKER = "training.benchmarks.wallclock.worker"
FRAME_PS = 0.2


@dataclass(frozen=True)
class Case:
    """Some processes that work at the same time; ``arguments`` of each, ``pinned`` to a core each."""

    name: str
    kind: str
    arguments: tuple[str, ...]
    processes: int = 1
    checkpoint: str = ""
    pinned: bool = False


def cases(checkpoints: Sequence[str], walkers: int, platform: str) -> list[Case]:
    """All that is measured: MD once, rollouts of each checkpoint."""

    def md(box: float, threads: int) -> tuple[str, ...]:
        return ("md", "--box", str(box), "--threads", str(threads), "--platform", platform)

    def rollout(checkpoint: str, n: int, threads: int) -> Case:
        what = f"rollout, {n} walker{'s' * (n > 1)}, {threads} thread{'s' * (threads > 1)}"
        arguments = ("rollout", checkpoint, "--walkers", str(n), "--threads", str(threads))
        return Case(what, "one" if n == 1 else "all", arguments, checkpoint=checkpoint)

    return [
        Case("MD, 2.1 nm, one process, 1 thread", "md one", md(2.1, 1), pinned=True),
        Case("MD, 2.1 nm, one process, 2 threads", "md one", md(2.1, 2)),
        Case("MD, 2.1 nm, two processes", "md all", md(2.1, 1), 2, pinned=True),
        Case("MD, 4.9 nm, one process, 2 threads", "large one", md(4.9, 2)),
        Case("MD, 4.9 nm, two processes", "large all", md(4.9, 1), 2, pinned=True),
        *(
            rollout(checkpoint, n, threads)
            for checkpoint in checkpoints
            for n, threads in ((1, 1), (walkers, 1), (walkers, 2))
        ),
    ]


def measure(case: Case, seconds: float) -> dict[str, Any]:
    """ps per second of all processes of a case together, and what the first of them says of itself.

    Raises
    ------
    ZooError : a process failed.
    """
    command = [sys.executable, "-m", WORKER, *case.arguments, "--seconds", str(seconds)]
    pipe = subprocess.PIPE
    running = [
        subprocess.Popen(
            [*command, *(["--core", str(number)] if case.pinned else [])],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
        )
        for number in range(case.processes)
    ]
    try:
        for each in running:
            assert each.stdout is not None
            if each.stdout.readline().strip() != "ready":
                reason = (each.communicate()[1].strip().splitlines() or ["no message"])[-1]
                raise ZooError(f"{case.name}: {reason}")
        for each in running:
            assert each.stdin is not None
            each.stdin.write("go\n")
            each.stdin.flush()
        told = []
        for each in running:
            out, error = each.communicate()
            if each.returncode:
                raise ZooError(f"{case.name}: {(error.strip().splitlines() or ['no message'])[-1]}")
            told.append(json.loads(out))
    finally:
        for each in running:
            each.kill()
    facts = {k: v for k, v in told[0].items() if k not in ("ps", "seconds")}
    return {**facts, "ps_per_second": sum(t["ps"] / t["seconds"] for t in told)}


def summary(measured: Sequence[tuple[Case, Sequence[float]]]) -> list[dict[str, Any]]:
    """A row for each case: median, range, and how many times the MD it is to be compared with."""
    medians = [(case, statistics.median(speeds)) for case, speeds in measured]
    best = {
        kind: max(v for case, v in medians if case.kind == kind)
        for kind in ("md one", "md all", "large one", "large all")
    }
    rows = []
    for (case, speeds), (_, median) in zip(measured, medians, strict=True):
        row: dict[str, Any] = {
            "case": case.name,
            "kind": case.kind,
            "ps_per_second": median,
            "lowest": min(speeds),
            "highest": max(speeds),
            "ns_per_day": median * 86.4,
        }
        if case.kind in ("one", "all"):
            row["times_md"] = median / best[f"md {case.kind}"]
            row["times_md_large_box"] = median / best[f"large {case.kind}"]
        rows.append(row)
    return rows


def break_even(speed: float, md_speed: float, cost_seconds: float) -> float | None:
    """ns to simulate until T / md_speed = T / speed + cost; None where the propagator is not faster."""
    if speed <= md_speed:
        return None
    return cost_seconds / (1 / md_speed - 1 / speed) / 1000


def costs(folder: str | Path, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Break-even times from the training that the checkpoint's metrics tell of; empty where they do not."""
    sections = read_metrics(folder).get("sections", {}) if Path(folder).is_dir() else {}
    training = sections.get("training")
    if not training:
        return {}
    result = training["results"][0]
    md = max(row["ps_per_second"] for row in rows if row["kind"] == "md all")
    speed = max(row["ps_per_second"] for row in rows if row["kind"] == "all")
    minutes = result.get("minutes_in_all", result["minutes"])
    seconds = 60.0 * minutes
    data_ps = FRAME_PS * result["n_pairs"] + 1000 * result.get("released_md_ns", 0.0)
    return {
        "training_minutes": minutes,
        "training_md_ns": data_ps / 1000,
        "break_even_ns": break_even(speed, md, seconds),
        "break_even_with_md_ns": break_even(speed, md, seconds + data_ps / md),
    }


@command_line()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+", help="names or folders")
    parser.add_argument("--walkers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--platform", default="CPU", help="of OpenMM")
    parser.add_argument("--record", action="store_true", help="write the figures to FOLDER/metrics.json")
    args = parser.parse_args(argv)
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    if args.walkers < 2 or args.rounds < 1 or not args.seconds > 0:
        raise ZooError("give at least 2 walkers, 1 round and some seconds")
    if args.record and (names := [each for each in args.checkpoints if not Path(each).is_dir()]):
        raise ZooError(f"--record needs the folder of a checkpoint, {names[0]} is none")
    every = cases(args.checkpoints, args.walkers, args.platform)
    speeds: dict[Case, list[float]] = {case: [] for case in every}
    facts: dict[Case, dict[str, Any]] = {}
    for number in range(args.rounds):
        for case in every:
            found = measure(case, args.seconds)
            speeds[case].append(found.pop("ps_per_second"))
            facts[case] = found
            where = f"{case.checkpoint}: " if case.checkpoint else ""
            print(f"round {number + 1}  {where}{case.name}: {speeds[case][-1]:.4g} ps/s", flush=True)
    for checkpoint in args.checkpoints:
        mine = [case for case in every if case.checkpoint in ("", checkpoint)]
        rows = summary([(case, speeds[case]) for case in mine])
        _tell(args, checkpoint, [{**row, **facts[case]} for case, row in zip(mine, rows, strict=True)])
    return 0


def _tell(args: argparse.Namespace, checkpoint: str, rows: Sequence[dict[str, Any]]) -> None:
    print(checkpoint)
    for row in rows:
        line = f"{row['case']}: {row['ps_per_second']:.4g} ps/s ({row['lowest']:.4g} to {row['highest']:.4g})"
        if "times_md" in row:
            line += f"  {row['times_md']:.0f} x MD, {row['times_md_large_box']:.0f} x MD in the large box"
        print(line)
    extra = costs(checkpoint, rows)
    for key, value in extra.items():
        print(f"{key}: {value if value is None else format(value, '.3g')}")
    if args.record:
        options = f"--walkers {args.walkers} --seconds {args.seconds:g} --rounds {args.rounds}"
        command = f"python -m training.benchmarks.wallclock {Path(checkpoint).name} {options}"
        record(checkpoint, "wallclock", rows, command=command, seed=0, extra=extra)


if __name__ == "__main__":
    sys.exit(main())
