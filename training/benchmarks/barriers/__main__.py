"""Populations and rates over a barrier that MD hardly crosses: MD beside a propagator's long rollout.

    python -m training.benchmarks.barriers build/sd-alanine-dipeptide --releases flat
    python -m training.benchmarks.barriers FOLDER --releases flat --blocks 'flat-01*' --record

Tens of nanoseconds of MD hold one or two crossings of a high barrier, which is no reference for the rates
of a propagator.  Here the reference is what walkers on a flattened surface visited and released
(`training.reference_md.flattened`); `crossings.py` beside this file tells how populations and mean
first-passage times follow.  How a side is shared out among its basins, held-out plain MD says too, if there
is enough of it: such shares are those of both together (`pooled.py`).  The figures of the propagator and of
plain MD are those that `training.benchmarks.kinetics --record` wrote for the same weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.benchmarks.barriers.crossings import Key, estimates
from training.benchmarks.barriers.pooled import pooled
from training.benchmarks.held_out import trained_on
from training.benchmarks.kinetics.__main__ import interval, shown
from training.command_line import command_line
from training.metrics import is_current, record
from training.reference_md.releases import read_flattened
from training.reference_md.walks import walks
from zoo.analysis.basins import alanine_basins
from zoo.analysis.bootstrap import Estimate
from zoo.analysis.dihedrals import choose_dihedrals
from zoo.analysis.evaluation import Quantity
from zoo.checkpoint import read_metrics
from zoo.errors import ZooError
from zoo.score_dynamics import ScoreDynamics

#: ps between frames of MD for propagators whose steps are longer than the released paths.
SHORT_LAG = 1.0
#: What the long rollout calls the same figure.
_OF_ROLLOUT = {"population": "markov population"}


def rows(
    walkers: Mapping[Key, Estimate],
    plain: Mapping[Key, Estimate],
    both: Mapping[Key, Estimate],
    rollout: Mapping[Key, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """One flat row per figure of the MD, with that of the rollout.

    ``both`` has the figures that are those of walkers and plain MD together; each alone stands beside them.
    """
    result = []
    for (kind, name), alone in walkers.items():
        each = both.get((kind, name), alone)
        other = rollout.get((_OF_ROLLOUT.get(kind, kind), name), {})
        long = Estimate(other.get("rollout"), None, None, 0)
        quantity = Quantity(kind, name, "ps" if "mfpt" in kind else "", each, long)
        ratio, inside = quantity.ratio, quantity.inside
        result.append(
            {
                "kind": kind,
                "name": name,
                "unit": quantity.unit,
                "md": each.value,
                "md_low": each.low,
                "md_high": each.high,
                "md_interval": interval(each.low, each.high, each.note),
                "md_events": each.events,
                "md_of": "both" if (kind, name) in both else "walkers",
                **_alone("walkers", alone),
                **(_alone("plain_md", plain[kind, name]) if (kind, name) in plain else {}),
                "rollout": long.value,
                "rollout_interval": other.get("rollout_interval", "–"),
                "ratio": ratio,
                "inside": inside,
                "verdict": "inside" if inside else "–" if ratio is None else f"× {ratio:.2f}",
            }
        )
    return result


def _alone(who: str, figure: Estimate) -> dict[str, Any]:
    told = interval(figure.low, figure.high, figure.note)
    return {who: figure.value, f"{who}_interval": told, f"{who}_events": figure.events}


def recorded_rollout(folder: Path) -> dict[Key, dict[str, Any]]:
    """Rows of the long rollout in the metrics of a checkpoint, each with what held-out plain MD says of it.

    A population is that of a Markov model.

    Raises
    ------
    ZooError : there are none, or they are of other weights or another config.
    """
    sections = read_metrics(folder).get("sections", {})
    if "kinetics" not in sections:
        raise ZooError(
            f"{folder} has no figures of a long rollout: run training.benchmarks.kinetics --record"
        )
    if not is_current(folder, sections["kinetics"]):
        raise ZooError(
            f"the long rollout in {folder} is of other weights or another config: "
            "run training.benchmarks.kinetics --record"
        )
    return {(row["kind"], row["name"]): row for row in sections["kinetics"]["results"]}


def plain_md(rollout: Mapping[Key, Mapping[str, Any]]) -> dict[Key, Estimate]:
    """What the held-out segments beside the long rollout say of groups."""
    return {
        key: Estimate(
            row.get("md"),
            row.get("md_low"),
            row.get("md_high"),
            int(row.get("md_events") or 0),
            "" if row.get("md_low") is not None else row.get("md_interval", ""),
        )
        for key, row in rollout.items()
        if key[0] == "group population"
    }


@command_line()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.benchmarks.barriers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="folder of a propagator of alanine dipeptide")
    parser.add_argument("--releases", type=Path, required=True, metavar="FOLDER", help="of flattened MD")
    parser.add_argument(
        "--blocks", nargs="+", default=["flat-*"], metavar="NAME",
        help="blocks that were not trained on; * and ? match anything (default: all)",
    )  # fmt: skip
    parser.add_argument("--resamples", type=int, default=1000, help="for the intervals (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the resampling (%(default)s)")
    parser.add_argument("--record", action="store_true", help="write the figures to metrics.json")
    args = parser.parse_args(argv)
    if args.resamples < 100 or args.seed < 0:
        parser.error("--resamples must be at least 100, --seed at least 0")
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    model = ScoreDynamics.from_pretrained(args.checkpoint)
    blocks, bias = read_flattened(args.releases, args.blocks)
    # Blocks of one walker follow one another, so a walker is known whole.
    trained = {name[: len("flat-00")] for name in trained_on(model)}
    walkers = {b.name[: len("flat-00")] for b in blocks}
    known = sorted(trained & walkers)
    if known:
        raise ZooError(
            f"{model.name} was trained on blocks of the walkers {', '.join(known)}: choose those of others "
            "with --blocks"
        )
    chosen = choose_dihedrals(model.molecule, None)
    if not chosen.alanine_like:
        raise ZooError(
            f"{model.name} is of {model.molecule.formula}: basins are known for alanine dipeptide only"
        )
    data = walks(blocks, model.molecule.sites, chosen.quadruples)
    # steps longer than the released paths cannot be seen in them
    half = data.paths.shape[1] // 2 * data.dt
    lag = model.lag_time if model.lag_time <= half else SHORT_LAG
    rollout = recorded_rollout(args.checkpoint)
    plain = plain_md(rollout)
    md, crossing = estimates(data, bias, alanine_basins(), lag, args.resamples, args.seed)
    table = rows(md, plain, pooled(md, plain, alanine_basins()), rollout)
    n = len(data.paths)
    print(
        f"{data.n_units} stretches of walkers: {len(data.visited)} frames, {n} releases, {crossing.events} "
        f"of them on transition paths, {crossing.unresolved} not resolved within {half:g} ps"
    )
    print(f"transitions are counted in frames {lag:g} ps apart")
    for row in table:
        md_told = f"{row['md_interval']}, {row['md_events']}, {row['md_of']}"
        print(
            f"{row['kind']:17} {row['name']:24} MD {shown(row['md']):>9} ({md_told})  "
            f"rollout {shown(row['rollout']):>9} ({row['rollout_interval']})  {row['verdict']}"
        )
    if args.record:
        names = " ".join(f"'{each}'" if set(each) & set("*?[") else each for each in args.blocks)
        record(
            args.checkpoint,
            "barriers",
            table,
            command=f"python -m training.benchmarks.barriers {model.name} --releases {args.releases} "
            f"--blocks {names} --resamples {args.resamples} --seed {args.seed}",
            seed=args.seed,
            extra={
                "walkers": len(walkers),
                "stretches": data.n_units,
                "seen_every_ps": lag,
                "visited": len(data.visited),
                "releases": n,
                "on_transition_paths": crossing.events,
                "unresolved": crossing.unresolved,
                "plain_md_and_rollout": read_metrics(args.checkpoint)["sections"]["kinetics"]["command"],
            },
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
