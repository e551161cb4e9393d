"""Fine-tune `sd-alkanes` on 0.5 ns of MD of butane, which it never saw, and train on that MD alone.

    python -m training.benchmarks.finetuning_dynamics --record      # some fifteen minutes

All of it runs as a user would: the same command with and without ``--from-nothing``.  Then each of the three
models, the one that was started from among them, goes beside the rest of butane's MD: the denoising loss on
its pairs of frames, with one weight for all, and the torsions of a rollout (`training.benchmarks.alkanes`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import zoo
from training.benchmarks.alkanes.__main__ import evaluate_molecule
from training.command_line import command_line
from training.metrics import hardware
from training.reference_md.segments import read_segments
from training.score_dynamics.packed import NoiseConfig
from training.score_dynamics.transitions import local_displacements, make_batches, transitions
from zoo.diffusion import log_normal_sigma
from zoo.molecules.rigid import without_rigid_motion
from zoo.score_dynamics import ScoreDynamics

RESULTS = Path(__file__).with_suffix(".json")
MOLECULE, OWN = "butane", "segment-000"
DATA = Path(__file__).parents[1] / "reference_md" / "alkanes" / MOLECULE
_PAIRS = 4096
_SCALE = 0.25  # Å, in the weight of the loss, the same for all


def held_out_loss(model: ScoreDynamics, folder: Path = DATA, own: str = OWN) -> float:
    """Weighted error of the denoiser on pairs of frames of all segments but the user's own."""
    segments = [s for s in read_segments(folder) if s.name != own]
    one: Any = model.for_start(str(folder / "topology.pdb"))._one
    data = transitions(segments, range(one.molecule.n_sites), model.lag_time)
    batch = make_batches(data, _PAIRS, 0.0)(np.random.default_rng(7))
    noise = NoiseConfig()
    with torch.no_grad():
        local, y = local_displacements(one, batch["x"], batch["x_next"])
        sigma = log_normal_sigma(batch["quantiles"], noise.sigma_mean, noise.sigma_std)
        noisy = y + sigma[:, None, None] * without_rigid_motion(batch["noise"], local)
        error = (one(noisy, sigma, local) - y).square().mean((1, 2))
        weight = (sigma**2 + _SCALE**2) / (sigma * _SCALE) ** 2
    return round(float((weight * error).mean()), 5)


def row(how: str, checkpoint: Path | str, seconds: float | None, walkers: int, steps: int) -> dict[str, Any]:
    """What one model is worth on the rest of the MD."""
    model = ScoreDynamics.from_pretrained(checkpoint)
    found = evaluate_molecule(model, DATA, {f"{MOLECULE}/{OWN}"}, walkers, steps, 0, 1)
    return {
        "model": how,
        "held_out_loss": held_out_loss(model),
        "gauche_md": found["gauche"]["md"],
        "gauche": found["gauche"]["rollout"],
        "exchanges_md": found["exchanges_per_ns"]["md"],
        "exchanges": found["exchanges_per_ns"]["rollout"],
        "rate_ratio": found["rate_ratio"],
        "torsion_divergence_bits": found["torsion_divergence_bits"],
        "redrawn_fraction": found["redrawn_fraction"],
        "walkers_stopped": found["walkers_stopped"],
        "angles_shift_in_sd": found["geometry"]["angles_shift_in_sd"],
        "seconds": None if seconds is None else round(seconds, 1),
        "md_ns": found["md_ns"],
    }


@command_line()
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.benchmarks.finetuning_dynamics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", default="sd-alkanes", help="to start from (default %(default)s)")
    parser.add_argument("--walkers", type=int, default=32)
    parser.add_argument("--steps", type=int, default=500, help="of each walker (default %(default)s)")
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.name} beside this script")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    ways = {"fine-tuned on its 0.5 ns": [], "trained on its 0.5 ns alone": ["--from-nothing"]}
    rows = [row(f"{args.checkpoint} as it is", args.checkpoint, None, args.walkers, args.steps)]
    peak = 0
    with tempfile.TemporaryDirectory() as folder:
        for k, (how, options) in enumerate(ways.items()):
            out = Path(folder) / f"model-{k}"
            command = [sys.executable, "-m", "training.finetune_dynamics", args.checkpoint, *options]
            begin = time.perf_counter()
            subprocess.run(
                [*command, "--trajectory", str(DATA / f"{OWN}.npz"), "--out", str(out)], check=True
            )
            seconds = time.perf_counter() - begin
            peak = max(peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
            rows.append(row(how, out, seconds, args.walkers, args.steps))
    for each in rows:
        print(json.dumps(each))
    if args.record:
        entry = {
            "command": "python -m training.benchmarks.finetuning_dynamics --record",
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "hardware": hardware(),
            "package_version": zoo.__version__,
            "python_version": platform.python_version(),
            "seed": 0,
            "peak_memory_mib": peak,
            "walkers": args.walkers,
            "steps": args.steps,
            "results": rows,
        }
        partial = RESULTS.with_suffix(".tmp")
        partial.write_text(json.dumps(entry, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(partial, RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
