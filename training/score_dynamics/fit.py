"""Train a propagator on packed data, on one device or many; needs torch, numpy, safetensors, accelerate.

    python -m training.score_dynamics.fit data.safetensors state --steps 20000
    python -m training.score_dynamics.fit data.safetensors state --steps 20000 --precision bf16 --threads 2
    accelerate launch --num_processes 4 -m training.score_dynamics.fit data.safetensors state --steps 20000

Saves its state every two minutes, and continues from it when the same command is run again: an
interrupted run ends with bit for bit the parameters of an uninterrupted one.  Every report is a line here
and in state/log.jsonl, and a point of state/curve.png where Matplotlib is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.command_line import command_line
from training.curve import draw_curve
from training.loop import PRECISIONS, LoopConfig, train
from training.score_dynamics.packed import Packed, read_packed
from training.score_dynamics.transitions import denoising_loss, make_batches
from zoo.errors import ZooError
from zoo.score_dynamics import ConditionalDenoiser

if TYPE_CHECKING:
    from accelerate import Accelerator

LEARNING_RATE = 1e-3
N_CHECK = 4096  # validation pairs for the curve
N_TERMS = 2
"""Parts of a batch on a CPU, a thread for each: small matrix products gain nothing from more threads."""


def fit(
    packed: Packed,
    state: Path,
    loop: LoopConfig,
    *,
    start_from: Path | None = None,
    workers: int = 1,
    stop_after: int | None = None,
    report: Callable[[dict[str, float]], None] = lambda row: None,
    accelerator: Accelerator | None = None,
    keep_best: bool = False,
) -> tuple[ConditionalDenoiser, dict[str, Tensor]]:
    """Train, or continue; returns the model, and its averaged parameters.

    Parameters
    ----------
    state : folder of the state and the log.
    start_from : weights of a checkpoint to start from in place of random ones.
    workers : threads on a CPU, up to `N_TERMS`; the result does not depend on their number.
    stop_after, report, accelerator : see `training.loop.train`.
    keep_best : return the averaged parameters of that report, or of the start, whose validation was best.

    Raises
    ------
    TrainingError : ``state`` belongs to other data or settings.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(loop.seed)
        model = packed.build()
    if start_from is not None:
        start(model, start_from)
    model.bf16 = loop.precision == "bf16"
    noise = packed.noise
    draw = make_batches(packed.validation, N_CHECK, 0.0)
    check = draw(np.random.default_rng([loop.seed, 2**31]))

    def evaluate(net: nn.Module) -> dict[str, float]:
        assert isinstance(net, ConditionalDenoiser)
        device = next(net.parameters()).device
        with torch.no_grad():
            here = {key: value.to(device) for key, value in check.items()}
            return {"validation": float(denoising_loss(net, here, noise.sigma_mean, noise.sigma_std))}

    settings = {
        "data": packed.sha256,
        "architecture": json.dumps([packed.config["backbone"], packed.config["architecture"]]),
        "noise": json.dumps(asdict(noise)),
    }
    best = Best(state, model, evaluate, run_name(loop, settings, start_from)) if keep_best else None

    on_cpu = accelerator is None or accelerator.device.type == "cpu"
    n_terms = N_TERMS if on_cpu and noise.batch_size % N_TERMS == 0 else 1

    def term(net: nn.Module, batch: dict[str, Tensor], part: int) -> Callable[[], Tensor]:
        assert isinstance(net, ConditionalDenoiser)
        rows = {key: value[part::n_terms] for key, value in batch.items()}
        return lambda: denoising_loss(net, rows, noise.sigma_mean, noise.sigma_std) / n_terms

    average = train(
        model,
        make_batches(packed.training, noise.batch_size, noise.condition_noise, packed.over),
        lambda net, batch, rng, step: [term(net, batch, part) for part in range(n_terms)],
        loop,
        state,
        workers=workers,
        report=report,
        stop_after=stop_after,
        samples_per_step=noise.batch_size,
        evaluate=best or evaluate,
        accelerator=accelerator,
        settings=settings,
    )
    model.bf16 = False
    return model, best.parameters(average) if best else average


def start(model: ConditionalDenoiser, path: Path) -> None:
    """Weights to start from, which may be of a model without sides.

    Raises
    ------
    ZooError : no such file, or it is of another network.
    """
    try:
        weights = load_file(path)
        wrong = model.load_state_dict(weights, strict=False)
        none = not any(k.startswith("sides.") for k in weights)
        missing = [
            k for k in wrong.missing_keys if k != "network.labels" and not (none and k.startswith("sides."))
        ]
        if missing or wrong.unexpected_keys:
            raise RuntimeError(f"missing {missing}, unknown {wrong.unexpected_keys}")
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ZooError(f"cannot start from the weights {path}: {reason}") from None


def run_name(loop: LoopConfig, settings: Mapping[str, str], start_from: Path | None) -> str:
    """Tells one run from another: a digest of its settings, and of the weights that it started from."""
    start = None if start_from is None else hashlib.sha256(start_from.read_bytes()).hexdigest()
    text = json.dumps([asdict(loop), dict(settings), start], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Best:
    """An evaluation for `training.loop.train` that remembers the parameters that did best, in ``state``.

    What stops too late has learned its training frames by heart; with a few hundred ps of MD that is soon.
    The start counts, so that training never makes validation worse.
    """

    def __init__(
        self, state: Path, model: nn.Module, evaluate: Callable[[nn.Module], dict[str, float]], run: str
    ) -> None:
        self.path, self.evaluate, self.run = state / "best.safetensors", evaluate, run
        state.mkdir(parents=True, exist_ok=True)
        self.value = math.inf
        found = self._found()
        if found is None:
            self.path.unlink(missing_ok=True)
            self(model)
        else:
            self.value = found

    def _found(self) -> float | None:
        """What was reached before a kill, if that was in the same run: same data, settings and start."""
        if not self.path.exists():
            return None
        with safe_open(self.path, framework="pt") as file:
            metadata = file.metadata()
        return float(metadata["validation"]) if metadata.get("run") == self.run else None

    def __call__(self, model: nn.Module) -> dict[str, float]:
        row = self.evaluate(model)
        if row["validation"] < self.value:
            self.value = row["validation"]
            temporary = self.path.with_suffix(".tmp")
            named = {name: p.detach().clone() for name, p in model.named_parameters()}
            save_file(named, temporary, {"validation": repr(self.value), "run": self.run})
            os.replace(temporary, self.path)
        return row

    def parameters(self, last: dict[str, Tensor]) -> dict[str, Tensor]:
        """The best ones; ``last`` if validation was never a number."""
        return load_file(self.path) if self.path.exists() else last


def printed(state: Path) -> Callable[[dict[str, float]], None]:
    """A report that prints a line and redraws the curve."""

    def report(row: dict[str, float]) -> None:
        left = (row["n_steps"] - row["step"]) * row["seconds"] / row["step"]
        print(
            f"step {row['step']}/{row['n_steps']}  loss {row['loss']:.4f}  "
            f"validation {row['validation']:.4f}  {row['samples_per_second']:.0f} samples/s  "
            f"{row['seconds'] / 60:.1f} min, {left / 60:.0f} min to go",
            flush=True,
        )
        draw_curve(state)

    return report


def loop_config(args: argparse.Namespace) -> LoopConfig:
    """The schedule that the command line asks for."""
    return LoopConfig(
        n_steps=args.steps,
        learning_rate=args.learning_rate,
        warmup=min(500, max(args.steps // 10, 1)),
        seed=args.seed,
        log_every=args.log_every,
        precision=args.precision,
    )


def add_arguments(parser: argparse.ArgumentParser, steps: int) -> None:
    """The options that `fit` and the recipes have in common."""
    parser.add_argument(
        "--steps", type=int, default=steps, help="length of the schedule (default %(default)s)"
    )
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="bf16 is faster on processors that have it; parameters stay in fp32 (default %(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        choices=range(1, N_TERMS + 1),
        default=N_TERMS,
        help="on a CPU (default %(default)s)",
    )
    parser.add_argument("--log-every", type=int, default=200, help="steps between reports")
    parser.add_argument("--start-from", type=Path, help="model.safetensors of a checkpoint to start from")
    parser.add_argument("--stop-after", type=int, help="save and stop after this step; run again to continue")


@command_line("stopped; the same command continues from the last save")
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="what a recipe wrote with --pack-only")
    parser.add_argument("state", type=Path, help="folder of the training state")
    add_arguments(parser, LoopConfig.n_steps)
    args = parser.parse_args(argv)
    from accelerate import Accelerator

    torch.set_num_threads(1)  # parallel over parts of the batch instead
    accelerator = Accelerator()
    packed = read_packed(args.data)
    if accelerator.is_main_process:
        print(
            f"{packed.config['name']}: {len(packed.training)} pairs, "
            f"{len(packed.validation)} for validation, "
            f"{accelerator.num_processes} x {accelerator.device}, state in {args.state}",
            flush=True,
        )
    fit(
        packed, args.state, loop_config(args), start_from=args.start_from, workers=args.threads,
        stop_after=args.stop_after, report=printed(args.state), accelerator=accelerator,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
