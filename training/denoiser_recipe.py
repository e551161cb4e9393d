"""What the recipes of denoisers have in common: train, or continue, and write a checkpoint folder."""

from __future__ import annotations

import argparse
import hashlib
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import atomic_numbers
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from training.command_line import command_line
from training.denoising import DenoisingConfig, Naming, batch_maker, denoising_losses
from training.first_card import write_first_card
from training.lattices import Sample
from training.loop import LoopConfig, read_log, train
from training.metrics import record
from zoo.backbones.mace_file import MaceFile, read_mace_file
from zoo.backbones.mace_foundation import config_like, start_from
from zoo.backbones.mace_network import MaceNetwork
from zoo.checkpoint import save
from zoo.denoiser import BACKBONES, DenoiserConfig
from zoo.errors import ZooError


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


@command_line("stopped; the same command continues from the last save")
def main(recipe: DenoiserRecipe, text: str | None, argv: Sequence[str] | None = None) -> int:
    """The command line of a recipe."""
    parser = argparse.ArgumentParser(
        prog=f"python -m training.{recipe.name.replace('-', '_')}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out = Path("build") / recipe.name
    parser.add_argument("--out", type=Path, help=f"checkpoint folder to write (default: {out})")
    parser.add_argument("--state", type=Path, help="folder of the training state; default: OUT-training")
    parser.add_argument(
        "--steps", type=int, default=recipe.loop.n_steps, help="length of the schedule (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="threads; the result does not depend on it")
    parser.add_argument("--stop-after", type=int, help="save and stop after this step; run again to continue")
    if recipe.backbone == "mace":
        parser.add_argument(
            "--mace-model", type=Path, metavar="FILE",
            help="start from the weights, and with the architecture, of a MACE model of energies and "
            "forces, such as MACE-MP-0 medium; nothing in the file is run. It is much larger and slower than "
            "the recipe's own, and neighbours look farther away than in the model, whose cutoff is longer",
        )  # fmt: skip
        parser.add_argument(
            "--elements", nargs="+", default=[], metavar="SYMBOL",
            help="with --mace-model: begin with the mean of its weights for these elements; few and similar "
            "ones are best",
        )  # fmt: skip
    args = parser.parse_args(argv)
    start = _start(args)
    if start is not None:  # another architecture: not the checkpoint that the recipe is of
        recipe = replace(recipe, name=f"{recipe.name}-from-mace", version="1.0.0")
    args.out = args.out or Path("build") / recipe.name
    return _run(recipe, args, start, parser.prog)


def _run(recipe: DenoiserRecipe, args: argparse.Namespace, start: _Start | None, prog: str) -> int:
    state = args.state or args.out.with_name(args.out.name + "-training")
    torch.set_num_threads(1)  # parallel over structures instead, see training.loop
    config_type, network_type = BACKBONES[recipe.backbone]
    architecture, data = config_type(**recipe.architecture), recipe.data
    told, words = (start.told, start.words) if start else ({}, [])
    if start is not None:
        architecture = config_like(start.model, architecture.cutoff)
    loop = LoopConfig(**{**asdict(recipe.loop), "n_steps": args.steps, "seed": args.seed})
    last = min(loop.n_steps, recipe.release_step or loop.n_steps)
    torch.manual_seed(args.seed)
    network = network_type(architecture)
    if start is not None:
        assert isinstance(network, MaceNetwork)
        start_from(network, start.model, start.elements)
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
            settings={**({"naming": str(recipe.naming)} if recipe.naming else {}), **told},
        )  # fmt: skip
    if args.stop_after is not None and args.stop_after < last:
        console.print(f"stopped after step {args.stop_after} as asked; run again to continue")
        return 0
    rows = read_log(state)
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
        args.out, "training", [result], seed=args.seed,
        command=f"{prog} {shlex.join(['--seed', str(args.seed), *words])}",
        extra={
            "loop": asdict(loop), "data": asdict(data), "mix": dict(recipe.mix),
            **({"naming": recipe.naming} if recipe.naming else {}), **told,
        },
    )  # fmt: skip
    write_first_card(args.out)
    console.print(f"wrote {args.out} after {(time.perf_counter() - started) / 60:.1f} minutes in this run")
    return 0


@dataclass(frozen=True)
class _Start:
    """A MACE model to start from, atomic numbers to average over; what to record, words of the command."""

    model: MaceFile
    elements: list[int]
    told: dict[str, str]
    words: list[str]


def _start(args: argparse.Namespace) -> _Start | None:
    file, symbols = getattr(args, "mace_model", None), getattr(args, "elements", [])
    if file is None:
        if symbols:
            raise ZooError("--elements is of the MACE model to start from: --mace-model FILE")
        return None
    if not symbols:
        raise ZooError("--mace-model needs --elements SYMBOL...: whose weights to begin with")
    unknown = [symbol for symbol in symbols if symbol not in atomic_numbers]
    if unknown:
        raise ZooError(f"--elements: no element {', '.join(unknown)}")
    model = read_mace_file(file)
    told = {"mace_model": hashlib.sha256(file.read_bytes()).hexdigest(), "mace_elements": " ".join(symbols)}
    words = ["--mace-model", file.name, "--elements", *symbols]
    return _Start(model, [atomic_numbers[symbol] for symbol in symbols], told, words)
