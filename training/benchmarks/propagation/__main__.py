"""How well a propagator repeats MD: torsions after 1 to 100 ps, and long rollouts without a broken bond.

    python -m training.benchmarks.propagation build/sd-alanine-dipeptide-cg --data md --segments segment-000
    python -m training.benchmarks.propagation FOLDER --data md --segments ... --record

**Propagation.**  Start frames are taken from held-out segments; each is propagated and compared with what
the same MD did after the same time: the Jensen-Shannon divergence of the two (phi, psi) histograms.
**Noise floor.**  If MD and model were the same, their results could be exchanged without anybody
noticing.  So they are exchanged, at random, for whole blocks of about 100 ps of start frames at a time
(frames within a block share one continuation and are not independent), and the divergence is computed again,
many times: the mean is what chance alone gives.  Next to it stands the divergence between the
continuations of MD from even and from odd blocks: MD against MD, but only half as many frames each and
not quite the same starts.
**Stability.**  Many walkers, thousands of steps: redrawn steps and walkers that had to stop.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from training.benchmarks.held_out import held_out_segments
from training.command_line import command_line
from training.metrics import record
from training.reference_md.segments import Segment
from zoo.analysis.kinetics import jensen_shannon, torsion_histogram, torsions
from zoo.analysis.measured import cut
from zoo.analysis.ramachandran import backbone_torsions
from zoo.errors import ZooError
from zoo.molecules.checks import Validity
from zoo.molecules.molecule import handedness
from zoo.rollout import roll_out
from zoo.score_dynamics import ScoreDynamics

Array = npt.NDArray[np.float64]

TIMES = (1.0, 10.0, 50.0, 100.0)  # ps
BLOCK = 100.0  # ps


def starts(
    segments: Sequence[Segment], sites: Sequence[int], every: float, times: Sequence[float] = TIMES
) -> tuple[Array, dict[float, Array], npt.NDArray[np.int64]]:
    """Start frames, the MD frames after each of ``times``, and the number of the block of each start.

    Raises
    ------
    ZooError : frames are not often enough for ``every``, or no segment outlasts the longest time.
    """
    first: list[Array] = []
    later: dict[float, list[Array]] = {t: [] for t in times}
    for segment in segments:
        stride = round(every / segment.dt)
        if stride < 1 or not math.isclose(stride * segment.dt, every, rel_tol=1e-6):
            raise ZooError(
                f"{segment.path}: frames every {segment.dt:g} ps cannot be taken every {every:g} ps"
            )
        x = segment.positions[:, list(sites)].astype(np.float64)
        last = len(x) - round(max(times) / segment.dt)
        index = np.arange(0, max(last, 0), stride)
        first.append(x[index])
        for t in times:
            later[t].append(x[index + round(t / segment.dt)])
    # equal ones of about that length: one of what is left over would weigh as much as the others
    blocks, _ = cut([len(x) for x in first], max(1, round(BLOCK / every)))
    n_blocks = sum(len(np.unique(each)) for each in blocks)
    if n_blocks < 2:
        raise ZooError(
            f"{len(segments)} segments hold {n_blocks} blocks of {BLOCK:g} ps with the MD of the next "
            f"{max(times):g} ps; at least two are needed: give more or longer segments"
        )
    return np.concatenate(first), {t: np.concatenate(v) for t, v in later.items()}, np.concatenate(blocks)


def whole_steps(lag_time: float, times: Sequence[float] = TIMES) -> tuple[float, ...]:
    """Those of ``times`` that a propagator of this lag time (ps) can reach."""
    steps = {t: round(t / lag_time) for t in times}
    return tuple(t for t, n in steps.items() if n >= 1 and math.isclose(n * lag_time, t, rel_tol=1e-6))


def propagate(
    model: ScoreDynamics, x: Array, seed: int, times: Sequence[float] = TIMES
) -> tuple[dict[float, Array], float]:
    """Structures after each of ``times``, by a rollout of one walker per start; share of redrawn steps."""
    wanted = {round(t / model.lag_time): t for t in times}
    seen: dict[float, Array] = {}

    def keep(step: int, positions: Array, running: Any) -> None:
        if step in wanted:
            seen[wanted[step]] = positions.copy()

    run = roll_out(model, x, max(wanted), len(x), seed, keep=False, observers=(keep,))
    return seen, run.report.redrawn_fraction


def compare(
    md: Array, model: Array, blocks: npt.NDArray[np.int64], seed: int, n_swaps: int = 200
) -> dict[str, float]:
    """Divergence of two sets of (n, 2) angles and its noise floors, see the module's text."""
    rng = np.random.default_rng(seed)
    n = int(blocks.max()) + 1
    a = np.stack([torsion_histogram(md[blocks == b]) for b in range(n)])
    b = np.stack([torsion_histogram(model[blocks == k]) for k in range(n)])
    floor = []
    for _ in range(n_swaps):
        swap = rng.random(n) < 0.5
        one = np.where(swap[:, None, None], b, a).sum(0)
        floor.append(jensen_shannon(one, (a + b).sum(0) - one))
    divergence = jensen_shannon(a.sum(0), b.sum(0))
    if not np.mean(floor) > 0:
        raise ZooError("the noise floor is zero: MD and model fall into the same bins, block by block")
    return {
        "divergence": divergence,
        "floor": float(np.mean(floor)),
        "floor_95": float(np.quantile(floor, 0.95)),
        "ratio": divergence / float(np.mean(floor)),
        "md_halves": jensen_shannon(a[::2].sum(0), a[1::2].sum(0)),
    }


@command_line()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of reference MD")
    parser.add_argument("--segments", nargs="+", required=True, help="segments that were not trained on")
    parser.add_argument("--every", type=float, default=1.0, help="ps between start frames")
    parser.add_argument("--walkers", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5000, help="steps of the stability run")
    parser.add_argument("--seed", type=int, default=0)
    # The kinetics benchmark records the stability of its own rollout, with bonds and angles: not to be lost.
    parser.add_argument(
        "--what", choices=["propagation", "stability", "both"], default="propagation",
        help="what to measure (%(default)s); training.benchmarks.kinetics measures stability, too, and more",
    )  # fmt: skip
    parser.add_argument("--record", action="store_true", help="write the figures to metrics.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    model = ScoreDynamics.from_pretrained(args.checkpoint)
    segments = held_out_segments(model, args.data, args.segments)
    times = whole_steps(model.lag_time)
    if not times:
        raise ZooError(f"{model.name} takes {model.lag_time:g} ps at once, no divisor of any of {TIMES} ps")
    x, later, blocks = starts(segments, model.molecule.sites, args.every, times)
    hands = handedness(x, model.molecule.centres)
    bad = sum(
        r is not None for r in Validity(model.molecule, model.bond_lengths, hands, model.limits).check(x)
    )
    far = float(model.out_of_distribution(x).max())
    folders = " ".join(map(str, args.data))
    options = (
        f"--data {folders} --segments {' '.join(args.segments)} --every {args.every:g} --seed {args.seed}"
    )
    command = f"python -m training.benchmarks.propagation {model.name} {options}"
    print(
        f"{len(x)} starts of {len(segments)} segments, {blocks.max() + 1} blocks; {bad} MD frames invalid, "
        f"out-of-distribution score up to {far:.2f}"
    )
    if args.what != "stability":
        _propagation(model, args, (x, later, blocks), command)
    if args.what != "propagation":
        _stability(model, args, x, f"{command} --walkers {args.walkers} --steps {args.steps}")
    return 0


def _propagation(model: ScoreDynamics, args: argparse.Namespace, data: Any, command: str) -> None:
    x, later, blocks = data
    quadruples = backbone_torsions(model.molecule)
    right = torsions(x, quadruples)[:, 0] > 0
    began = time.perf_counter()
    times = tuple(later)
    moved, redrawn = propagate(model, x, args.seed, times)
    took = time.perf_counter() - began
    rows: list[dict[str, Any]] = []
    for t in times:
        row = compare(torsions(later[t], quadruples), torsions(moved[t], quadruples), blocks, args.seed)
        verdict = "as by chance" if row["divergence"] <= row["floor_95"] else "more than by chance"
        rows.append(
            {"verdict": verdict, "time_ps": t, "n_starts": len(x), "n_blocks": int(blocks.max()) + 1, **row}
        )
        print(
            f"{t:5.0f} ps  JS {row['divergence']:.4f}  floor {row['floor']:.4f} ({row['ratio']:.2f} x), "
            f"MD halves {row['md_halves']:.4f}"
        )
    print(f"propagation: {len(x) * max(times) / took:.0f} ps/s, {redrawn:.3%} redrawn")
    if args.record:
        extra = {
            "redrawn_fraction": redrawn,
            "every_ps": args.every,
            "segments": args.segments,
            "starts_with_positive_phi": int(right.sum()),
        }
        record(args.checkpoint, "propagation", rows, command=command, seed=args.seed, extra=extra)


def _stability(model: ScoreDynamics, args: argparse.Namespace, x: Array, command: str) -> None:
    pick = x[np.linspace(0, len(x) - 1, args.walkers).astype(int)]
    run = roll_out(model, pick, args.steps, args.walkers, args.seed, keep=False)
    report = run.report
    result = {
        "n_walkers": args.walkers,
        "ns_per_walker": args.steps * model.lag_time / 1000,
        "steps": report.accepted,
        "redrawn_fraction": report.redrawn_fraction,
        "redrawn_by_kind": report.by_kind,
        "walkers_stopped": len(report.stopped),
        "ps_per_second": report.ps_per_second,
    }
    print(report.summary())
    if not math.isfinite(report.redrawn_fraction):
        raise ZooError("the stability run took no step")
    if args.record:
        record(args.checkpoint, "stability", [result], command=command, seed=args.seed)


if __name__ == "__main__":
    sys.exit(main())
