"""Which network for a propagator?  Each candidate trains for the same time on the same data and threads.

    python -m training.sd_alanine_dipeptide_cg --data md --pack-only --out build/cg
    python -m training.benchmarks.candidates build/cg-training/data.safetensors --minutes 3 --threads 1
    python -m training.benchmarks.candidates ... --record sd-alanine-dipeptide-cg

What counts is the validation loss that a given time of training buys (of the averaged parameters, with a
learning rate that has come down to its end by then), and after that the time of an evaluation, which
rollouts pay.  Samples per second alone would favour networks that are too small.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.loop import LOG, LoopConfig
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


def speed(packed: Packed, precision: str, seconds: float = 6.0) -> float:
    """Training samples per second, forward, backward and update, from a short run of its own."""
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


def measure(packed: Packed, name: str, minutes: float, threads: int, seed: int) -> dict[str, Any]:
    """Train one candidate for about ``minutes`` and measure it."""
    backbone, architecture, precision, rate = CANDIDATES[name]
    config: Mapping[str, Any] = {
        **packed.config,
        "backbone": backbone,
        "architecture": {"n_sites": packed.n_sites, **architecture},
    }
    own = replace(packed, config=dict(config))
    rate_of_samples = speed(own, precision)
    for _ in range(3):  # other work on the machine may have made the first look wrong: then again
        steps = max(100, int(rate_of_samples * minutes * 60 / packed.noise.batch_size))
        loop = LoopConfig(
            n_steps=steps, learning_rate=rate, warmup=min(500, steps // 10), seed=seed,
            log_every=max(steps // 4, 1), checkpoint_every=1e9, precision=precision,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            model, average = fit(own, Path(folder), loop, workers=threads)
            rows = [json.loads(line) for line in (Path(folder) / LOG).read_text().splitlines()]
        rate_of_samples = steps * packed.noise.batch_size / rows[-1]["seconds"]
        if abs(rows[-1]["seconds"] / 60 - minutes) < 0.15 * minutes:
            break
    model.load_state_dict(average, strict=False)
    return {
        "candidate": name,
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "samples_per_second": round(steps * packed.noise.batch_size / rows[-1]["seconds"]),
        "minutes": round(rows[-1]["seconds"] / 60, 2),
        "validation_loss": round(rows[-1]["validation"], 4),
        "ms_per_evaluation_1": round(evaluation_time(model, packed, 1), 3),
        "ms_per_evaluation_64": round(evaluation_time(model, packed, 64), 3),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="what a recipe wrote with --pack-only")
    parser.add_argument("--minutes", type=float, default=3.0, help="of training for each candidate")
    parser.add_argument("--threads", type=int, default=1, choices=(1, 2))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(CANDIDATES), help="some of them")
    parser.add_argument("--results", type=Path, help="JSON of the rows; those in it already are kept")
    parser.add_argument("--record", metavar="CHECKPOINT", help="write the figures to its metrics.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # parallel over parts of a batch instead
    try:
        packed = read_packed(args.data)
        rows: list[dict[str, Any]] = []
        if args.results is not None and args.results.is_file():
            rows = json.loads(args.results.read_text())
        for name in args.only or CANDIDATES:
            if name in {row["candidate"] for row in rows}:
                continue
            rows.append(measure(packed, name, args.minutes, args.threads, args.seed))
            print(json.dumps(rows[-1]), flush=True)
            if args.results is not None:
                args.results.write_text(json.dumps(rows, indent=1))
        if args.record is not None:
            folder = Path(args.record)
            if not folder.is_dir():
                folder = registry.bundled_folder(registry.find(args.record))
            command = (
                f"python -m training.benchmarks.candidates data.safetensors --minutes {args.minutes:g} "
                f"--threads {args.threads}"
            )
            record(
                folder, "candidates", rows, command=command, seed=args.seed,
                extra={"n_pairs": len(packed.training), "threads": args.threads},
            )  # fmt: skip
    except (ZooError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
