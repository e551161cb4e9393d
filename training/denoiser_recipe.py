"""What the recipes of denoisers have in common: train, or continue, and write a checkpoint folder."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from training.denoising import DenoisingConfig, Naming, batch_maker, denoising_losses
from training.first_card import write_first_card
from training.lattices import Sample
from training.loop import LOG, LoopConfig, train
from training.metrics import record
from zoo.backbones.mace_network import MaceNetwork
from zoo.checkpoint import save
from zoo.denoiser import BACKBONES, DenoiserConfig


@dataclass(frozen=True)
class DenoiserRecipe:
    """One checkpoint: what it is of, and how it is trained unless the command line says otherwise.

    ``release_step`` cuts the schedule short; None goes to its end.  ``mix`` is what `draw` draws, for the
    record.  ``acts_on`` is that of `zoo.denoiser.DenoiserConfig`.  ``naming`` is the weight of knowing the
    crystals while training, see `training.denoising.Naming`.
    """

    name: str
    version: str
    lattices: tuple[str, ...]
    draw: Callable[[np.random.Generator], Sample]
    mix: Mapping[str, float]
    backbone: str = "moments"
    architecture: Mapping[str, Any] = field(default_factory=dict)
    data: DenoisingConfig = field(default_factory=DenoisingConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    release_step: int | None = None
    acts_on: str = ""
    naming: float = 0.0


def main(recipe: DenoiserRecipe, text: str | None, argv: Sequence[str] | None = None) -> int:
    """The command line of a recipe."""
    parser = argparse.ArgumentParser(
        prog=f"python -m training.{recipe.name.replace('-', '_')}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out = Path("build") / recipe.name
    parser.add_argument("--out", type=Path, default=out, help="checkpoint folder to write")
    parser.add_argument("--state", type=Path, help="folder of the training state; default: OUT-training")
    parser.add_argument(
        "--steps", type=int, default=recipe.loop.n_steps, help="length of the schedule (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="threads; the result does not depend on it")
    parser.add_argument("--stop-after", type=int, help="save and stop after this step; run again to continue")
    args = parser.parse_args(argv)
    state = args.state or args.out.with_name(args.out.name + "-training")
    torch.set_num_threads(1)  # parallel over structures instead, see training.loop
    config_type, network_type = BACKBONES[recipe.backbone]
    architecture, data = config_type(**recipe.architecture), recipe.data
    loop = LoopConfig(**{**asdict(recipe.loop), "n_steps": args.steps, "seed": args.seed})
    last = min(loop.n_steps, recipe.release_step or loop.n_steps)
    torch.manual_seed(args.seed)
    network = network_type(architecture)
    n_parameters = sum(p.numel() for p in network.parameters())
    model = network
    if recipe.naming:
        assert isinstance(network, MaceNetwork)
        model = Naming(network, recipe.lattices, recipe.naming)
    console = Console()
    console.print(f"{recipe.name}: {n_parameters} parameters, {last} steps, state in {state}")
    started = time.perf_counter()
    with Progress(
        TextColumn("step {task.completed}/{task.total}"), BarColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"), TimeElapsedColumn(), TimeRemainingColumn(),
        console=console,
    ) as progress:  # fmt: skip
        bar = progress.add_task("train", total=last, loss=float("nan"))

        def report(row: dict[str, float]) -> None:
            progress.update(bar, completed=row["step"], loss=row["loss"])
            if not console.is_terminal:  # a log file gets lines instead of a bar
                print(
                    f"step {row['step']}/{last} loss {row['loss']:.4f} {row['seconds']:.0f} s",
                    flush=True,
                )

        average = train(
            model, batch_maker(data, architecture.cutoff, recipe.draw),
            denoising_losses(data, architecture.cutoff), loop, state, workers=args.workers, report=report,
            stop_after=min(args.stop_after or last, last),
            settings={"naming": str(recipe.naming)} if recipe.naming else None,
        )  # fmt: skip
    if args.stop_after is not None and args.stop_after < last:
        console.print(f"stopped after step {args.stop_after} as asked; run again to continue")
        return 0
    rows = [json.loads(line) for line in (state / LOG).read_text().splitlines()]
    config = DenoiserConfig(
        name=recipe.name,
        version=recipe.version,
        lattices=recipe.lattices,
        backbone=recipe.backbone,
        architecture=architecture.to_dict(),
        largest_noise=data.largest_noise,
        acts_on=recipe.acts_on,
    )
    if recipe.naming:
        average = {k.removeprefix("network."): v for k, v in average.items() if k.startswith("network.")}
    save(args.out, config.to_dict(), average)
    result = {
        "n_parameters": n_parameters,
        "n_steps": last,
        "atoms_per_step": data.atoms_per_batch,
        "minutes": round(rows[-1]["seconds"] / 60, 1),
        "workers": args.workers,
        "final_loss": sum(r["loss"] for r in rows[-10:]) / len(rows[-10:]),
    }
    record(
        args.out, "training", [result], command=f"{parser.prog} --seed {args.seed}", seed=args.seed,
        extra={
            "loop": asdict(loop), "data": asdict(data), "mix": dict(recipe.mix),
            **({"naming": recipe.naming} if recipe.naming else {}),
        },
    )  # fmt: skip
    write_first_card(args.out)
    console.print(f"wrote {args.out} after {(time.perf_counter() - started) / 60:.1f} minutes in this run")
    return 0
