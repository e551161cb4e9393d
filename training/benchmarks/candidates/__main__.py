"""Which network for a propagator?  Each candidate gets the same computing time on the same data.

    python -m training.sd_alanine_dipeptide_cg --data md --pack-only --out build/cg
    python -m training.benchmarks.candidates build/cg-training/data.safetensors --minutes 3
    python -m training.benchmarks.candidates ... --record sd-alanine-dipeptide-cg

First the training speed of all candidates is measured, in several rounds in turn, and the best round of
each counts: other work on the machine then disturbs all of them alike, or none.  Then each trains for as
many steps as it does in the given time at that speed, with a learning rate that has come down to its end
by then.  What counts is the validation loss (of the averaged parameters) that this buys, and after that
the time of an evaluation, which rollouts pay.  Samples per second alone would favour networks that are
too small.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.command_line import command_line
from training.loop import LoopConfig, read_log
from training.metrics import record
from training.score_dynamics.fit import fit
from training.score_dynamics.packed import Packed, read_packed
from training.score_dynamics.transitions import denoising_loss, make_batches
from zoo import registry
from zoo.errors import ZooError
from zoo.score_dynamics import ConditionalDenoiser

#: name -> (backbone, its architecture without n_sites, precision, highest learning rate)
CANDIDATES: dict[str, tuple[str, dict[str, int], str, float]] = {
    "MLP 384 x 4, fp32": ("site-mlp", {"width": 384, "depth": 4}, "fp32", 1e-3),
    "MLP 384 x 4, bf16": ("site-mlp", {"width": 384, "depth": 4}, "bf16", 1e-3),
    "MLP 256 x 3, bf16": ("site-mlp", {"width": 256, "depth": 3}, "bf16", 1e-3),
    "MLP 768 x 4, bf16": ("site-mlp", {"width": 768, "depth": 4}, "bf16", 7e-4),
    "transformer 128 x 4, fp32": ("site-transformer", {"width": 128, "depth": 4}, "fp32", 1e-3),
    "transformer 128 x 4, bf16": ("site-transformer", {"width": 128, "depth": 4}, "bf16", 1e-3),
    "transformer 64 x 3, bf16": ("site-transformer", {"width": 64, "depth": 3, "heads": 4}, "bf16", 2e-3),
}


def candidate(packed: Packed, name: str) -> Packed:
    """The same data, to be learned by another network."""
    backbone, architecture, _, _ = CANDIDATES[name]
    config = {
        **packed.config,
        "backbone": backbone,
        "architecture": {"n_sites": packed.n_sites, **architecture},
    }
    return replace(packed, config=config)


def speed(packed: Packed, precision: str, seconds: float = 3.0) -> float:
    """Training samples per second of one thread: batch, forward, backward and update."""
    model = packed.build()
    model.bf16 = precision == "bf16"
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    draw = make_batches(packed.training, packed.noise.batch_size, packed.noise.condition_noise)
    began, done = time.perf_counter(), 0
    for step in itertools.count():
        if step == 3:  # the first steps allocate
            began = time.perf_counter()
        optimizer.zero_grad()
        batch = draw(np.random.default_rng(step))
        denoising_loss(model, batch, packed.noise.sigma_mean, packed.noise.sigma_std).backward()
        optimizer.step()
        done = step - 2
        if done > 0 and time.perf_counter() - began > seconds:
            break
    return done * packed.noise.batch_size / (time.perf_counter() - began)


def speeds(packed: Packed, names: Sequence[str], rounds: int) -> dict[str, float]:
    """Best of several rounds for each candidate."""
    best = dict.fromkeys(names, 0.0)
    for _ in range(rounds):
        for name in names:
            best[name] = max(best[name], speed(candidate(packed, name), CANDIDATES[name][2]))
    return best


def evaluation_time(model: ConditionalDenoiser, packed: Packed, batch: int, repeats: int = 20) -> float:
    """Milliseconds of one network evaluation of ``batch`` walkers; the median of several."""
    x = packed.training.pairs(slice(0, batch))[0]
    local = (x - x.mean(1, keepdim=True)) @ model.frames(x)
    y, sigma = torch.randn_like(local), torch.full((len(local),), 0.3)
    times = []
    with torch.inference_mode():
        for _ in range(repeats):
            began = time.perf_counter()
            model(y, sigma, local)
            times.append(time.perf_counter() - began)
    return 1e3 * sorted(times)[repeats // 2]


def measure(
    packed: Packed, name: str, samples_per_second: float, minutes: float, seed: int
) -> dict[str, Any]:
    """Train one candidate for ``minutes`` at its speed, and measure it."""
    _, _, precision, rate = CANDIDATES[name]
    steps = max(100, round(samples_per_second * minutes * 60 / packed.noise.batch_size))
    loop = LoopConfig(
        n_steps=steps, learning_rate=rate, warmup=min(500, steps // 10), seed=seed,
        log_every=max(steps // 4, 1), checkpoint_every=1e9, precision=precision,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        model, average = fit(candidate(packed, name), Path(folder), loop)
        rows = read_log(Path(folder))
    model.load_state_dict(average, strict=False)
    return {
        "candidate": name,
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "samples_per_second": round(samples_per_second),
        "steps": steps,
        "validation_loss": round(rows[-1]["validation"], 4),
        "ms_per_evaluation_1": round(evaluation_time(model, packed, 1), 3),
        "ms_per_evaluation_64": round(evaluation_time(model, packed, 64), 3),
    }


def _earlier(path: Path) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text())
        if not all(isinstance(row["candidate"], str) for row in rows):
            raise ValueError("a candidate has no name")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ZooError(f"{path} is not what this command wrote ({error}): choose another --results") from None
    return rows


@command_line()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="what a recipe wrote with --pack-only")
    parser.add_argument("--minutes", type=float, default=3.0, help="of training for each candidate")
    parser.add_argument("--rounds", type=int, default=4, help="of measuring speeds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(CANDIDATES), help="some of them")
    parser.add_argument("--results", type=Path, help="JSON of the rows; those in it already are kept")
    parser.add_argument("--record", metavar="CHECKPOINT", help="write the figures to its metrics.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    packed = read_packed(args.data)
    rows: list[dict[str, Any]] = []
    if args.results is not None and args.results.is_file():
        rows = _earlier(args.results)
    done = {row["candidate"] for row in rows}
    names = [name for name in args.only or CANDIDATES if name not in done]
    for name, samples_per_second in speeds(packed, names, args.rounds).items():
        rows.append(measure(packed, name, samples_per_second, args.minutes, args.seed))
        print(json.dumps(rows[-1]), flush=True)
        if args.results is not None:
            args.results.write_text(json.dumps(rows, indent=1))
    if args.record is not None:
        folder = Path(args.record)
        if not folder.is_dir():
            folder = registry.bundled_folder(registry.find(args.record))
        command = f"python -m training.benchmarks.candidates data.safetensors --minutes {args.minutes:g}"
        record(
            folder, "candidates", rows, command=command, seed=args.seed,
            extra={"n_pairs": len(packed.training), "minutes": args.minutes, "rounds": args.rounds},
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
