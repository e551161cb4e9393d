"""Equilibrium, rates and geometry of long rollouts beside MD that the model never saw, with 95 % intervals.

    python -m training.benchmarks.kinetics build/sd-alanine-dipeptide --data md --segments segment-00{0..9}
    python -m training.benchmarks.kinetics FOLDER --data md --segments ... --record --out FOLDER
    python -m training.benchmarks.kinetics FOLDER --data md --segments ... --rollouts 6 --keep build/long

What is compared, and how, is `zoo.analysis.evaluate`: both sides go through the same estimators, and
whole trajectories are resampled.  Segments of reference MD start in chosen basins, so their frames say
nothing of equilibrium: populations are those of a Markov model, and first-passage times count only time
since the last visit of the basin that they start from.

**Two rollouts or more**, from other frames and with other random numbers, are compared with MD together, for
what is rare.  Apart they tell whether the intervals are right: nearly all figures of the second half of them
have to agree with those of the first within their two intervals.
They are also the test of stability: redrawn steps, walkers that stopped, drift, inversions.

With ``--keep`` they are written down as they go, and the same command continues after a kill.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from training.benchmarks.held_out import held_out_segments
from training.command_line import command_line
from training.metrics import record
from training.reference_md.segments import Segment
from zoo.analysis.evaluation import Evaluation, Quantity, evaluate
from zoo.errors import ZooError
from zoo.evaluate_command import start_frames
from zoo.molecules.sources import NM
from zoo.rollout import Rollout, roll_out
from zoo.rollout.report import Progress, RolloutReport
from zoo.score_dynamics import ScoreDynamics

Positions = npt.NDArray[np.float32]

#: What a card speaks of.  Frame populations are those of the seeded segments and left out.
KINDS = (
    "markov population",
    "group population",
    "group mfpt",
    "mfpt",
    "markov mfpt",
    "timescale",
    "path time",
)


def thinned(segments: Sequence[Segment], sites: Sequence[int], lag_time: float) -> list[Positions]:
    """The sites of each segment, every ``lag_time`` ps.

    Raises
    ------
    ZooError : the lag time is no multiple of the time between frames.
    """
    result = []
    for segment in segments:
        stride = round(lag_time / segment.dt)
        if stride < 1 or not math.isclose(stride * segment.dt, lag_time, rel_tol=1e-6):
            raise ZooError(f"{segment.path}: frames every {segment.dt:g} ps do not give {lag_time:g} ps")
        result.append(segment.positions[::stride, list(sites)])
    return result


def walk(
    model: ScoreDynamics,
    start: Any,
    n_steps: int,
    n_walkers: int,
    seed: int,
    threads: int,
    keep: Path | None = None,
) -> Rollout:
    """A rollout that says how far it is; written to this folder, and continued if it is there."""
    told = [0.0]

    def say(at: Progress) -> None:
        if at.seconds - told[0] > 60:
            told[0] = at.seconds
            print(f"seed {seed}: step {at.step} of {at.n_steps}, {at.simulated_ps / at.seconds:.0f} ps/s")

    # float32 in Å, as in memory; XTC would round to 0.01 Å
    output = None if keep is None else keep / f"rollout-{seed}.dcd"
    return roll_out(
        model, start, n_steps, n_walkers, seed, threads=threads, progress=say, output=output, keep=True
    )


def trajectories(run: Rollout) -> Iterable[Positions]:
    """Positions (n_frames, n_sites, 3) in Å of the walkers that moved."""
    return (each.xyz * np.float32(NM) for each in run.trajectories if len(each) > 1)


def rows(found: Evaluation) -> list[dict[str, Any]]:
    """One flat row per quantity, for tables."""
    return [row(each) for kind in KINDS for each in found.of_kind(kind)]


def row(each: Quantity) -> dict[str, Any]:
    result: dict[str, Any] = {"kind": each.kind, "name": each.name, "unit": each.unit}
    for side, estimate in (("md", each.reference), ("rollout", each.rollout)):
        result |= {
            side: estimate.value,
            f"{side}_low": estimate.low,
            f"{side}_high": estimate.high,
            f"{side}_events": estimate.events,
            f"{side}_interval": interval(estimate.low, estimate.high, estimate.note),
        }
    return {**result, "ratio": each.ratio, "inside": each.inside, "verdict": each.verdict}


def interval(low: float | None, high: float | None, note: str) -> str:
    if low is None:
        return note or "–"
    return f"{low:.3g} to {'∞' if high is None else format(high, '.3g')}"


def agreement(first: Evaluation) -> dict[str, Any]:
    """How many figures of other rollouts (the evaluation's rollout) agree with those of the first ones.

    Two independent figures agree if they differ by no more than the root of the sum of the squares of
    their half-widths on the sides that face each other, which 95 % of them should.
    """
    compared, agree, apart = 0, 0, []
    for kind in KINDS:
        for each in first.of_kind(kind):
            one, two = each.reference, each.rollout
            if one.value is None or two.value is None or one.low is None or two.low is None:
                continue
            low, high = (one, two) if one.value <= two.value else (two, one)
            assert low.value is not None and high.value is not None and high.low is not None
            up = math.inf if low.high is None else low.high - low.value
            compared += 1
            if high.value - low.value <= math.hypot(up, high.value - high.low):
                agree += 1
            else:
                apart.append(f"{kind}: {each.name}")
    return {"figures": compared, "agree": agree, "apart": apart}


def conduct(reports: Sequence[RolloutReport]) -> dict[str, Any]:
    """Bad proposals and walkers that stopped, of all rollouts together, and the mean speed."""
    redrawn = sum(report.redrawn for report in reports)
    by_kind: Counter[str] = Counter()
    for report in reports:
        by_kind.update(report.by_kind)
    return {
        "steps": sum(report.accepted for report in reports),
        "redrawn_fraction": redrawn / max(sum(report.proposed for report in reports), 1),
        "redrawn_by_kind": dict(by_kind),
        "walkers_stopped": sum(len(report.stopped) for report in reports),
        "ps_per_second": sum(r.simulated_ps for r in reports) / max(sum(r.seconds for r in reports), 1e-9),
    }


def geometry(found: Evaluation) -> dict[str, Any]:
    """The farthest shift and drift of bonds and angles, and inversions."""
    details = found.details["geometry"]
    result: dict[str, Any] = {"inversions": details["chirality"]["rollout"]["inversions"]}
    for kind, unit in (("bonds", "angstrom"), ("angles", "degrees")):
        for what in ("shift", "drift"):
            worst = max(details[kind], key=partial(_size, what))
            result[f"{kind}_{what}_{unit}"] = worst[what]
            result[f"{kind}_{what}_of"] = worst["name"]
            result[f"{kind}_{what}_in_sd"] = max(
                (each[f"{what}_in_sd"] for each in details[kind] if each["reference"]["sd"] > 1e-3),
                key=abs,
                default=0.0,
            )
        widths = [each["width_ratio"] for each in details[kind] if each["reference"]["sd"] > 1e-3]
        result[f"{kind}_width_ratio_low"], result[f"{kind}_width_ratio_high"] = min(widths), max(widths)
    return result


def _size(what: str, entry: dict[str, Any]) -> float:
    return abs(float(entry[what]))


@command_line()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of reference MD")
    parser.add_argument("--segments", nargs="+", required=True, help="segments that were not trained on")
    parser.add_argument("--walkers", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--markov-lag", type=float, help="ps")
    parser.add_argument("--rollouts", type=int, default=2, metavar="N", help="2 or more (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first rollout; the others have the next")
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help="write the rollouts here, and continue those that are there",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for the report and its picture")
    parser.add_argument("--record", action="store_true", help="write the figures to metrics.json")
    args = parser.parse_args(argv)
    if args.rollouts < 2:
        parser.error("--rollouts: at least 2, for their statistics are compared with each other")
    torch.set_num_threads(1)
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    model = ScoreDynamics.from_pretrained(args.checkpoint)
    segments = held_out_segments(model, args.data, args.segments)
    md = thinned(segments, model.molecule.sites, model.lag_time)
    n = args.rollouts
    start = start_frames(model, md, n * args.walkers)  # other ones for each rollout
    settings: dict[str, Any] = {"markov_lag_ps": args.markov_lag, "seed": args.seed}
    if args.keep is not None:
        args.keep.mkdir(parents=True, exist_ok=True)
    runs = [
        walk(model, start[k::n], args.steps, args.walkers, args.seed + k, args.threads, args.keep)
        for k in range(n)
    ]
    first, other = (
        [each for run in half for each in trajectories(run)] for half in (runs[: n // 2], runs[n // 2 :])
    )
    found = evaluate([*first, *other], md, model.molecule, model.lag_time, **settings)
    again = evaluate(other, first, model.molecule, model.lag_time, **settings)
    table, second, shape = rows(found), agreement(again), geometry(found)
    for each in table:
        print(
            f"{each['kind']:18} {each['name']:22} MD {shown(each['md']):>8} ({each['md_interval']}, "
            f"{each['md_events']})  rollout {shown(each['rollout']):>8} ({each['rollout_interval']})  "
            f"{each['verdict']}"
        )
    print(f"second half: {second['agree']} of {second['figures']} figures agree; apart: {second['apart']}")
    print(shape)
    reports = [run.report for run in runs]
    for report in reports:
        print(report.summary())
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        found.save_json(args.out / "evaluation.json")
        found.save_png(args.out / "evaluation.png")
    if args.record:
        folders, names = " ".join(map(str, args.data)), " ".join(args.segments)
        command = (
            f"python -m training.benchmarks.kinetics {model.name} --data {folders} --segments {names} "
            f"--walkers {args.walkers} --steps {args.steps} --rollouts {n} --seed {args.seed}"
        )
        extra = {
            "md_ns": sum(len(x) - 1 for x in md) * model.lag_time / 1000,
            "md_segments": len(md),
            "rollout_ns": sum(report.simulated_ps for report in reports) / 1000,
            "markov_lag_ps": found.details["markov_lag_ps"],
            "second_rollout": second,
        }
        record(args.checkpoint, "kinetics", table, command=command, seed=args.seed, extra=extra)
        stability = {
            "rollouts": len(reports),
            "n_walkers": args.walkers,
            "ns_per_walker": args.steps * model.lag_time / 1000,
            **conduct(reports),
            **shape,
        }
        record(args.checkpoint, "stability", [stability], command=command, seed=args.seed)
    return 0


def shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    sys.exit(main())
