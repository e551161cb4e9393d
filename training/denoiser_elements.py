"""Recipe of the checkpoint ``denoiser-elements``: from nothing to a folder, on two CPU cores.

    python -m training.denoiser_elements                      # build/denoiser-elements
    python -m training.denoiser_elements --out my-folder --steps 500   # a quick look

Prints progress, saves its state every two minutes and continues from it when run again; an
interrupted run ends with bit for bit the same weights as an uninterrupted one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from training.denoising import DenoisingConfig, batch_maker, denoising_losses
from training.first_card import write_first_card
from training.lattices import LATTICES, MIX
from training.loop import LOG, LoopConfig, train
from training.metrics import record
from zoo.backbones.moments import Moments, MomentsConfig
from zoo.checkpoint import save
from zoo.denoiser import DenoiserConfig

NAME, VERSION = "denoiser-elements", "1.0.0"

#: The schedule is cut short here.  Trained on, the network fits noised lattices ever better (already at
#: this step all crystals at their melting points come out without a fault) and holds relaxed grain
#: boundaries ever less: the labels of a copper Sigma 5 boundary with noise, not seen in training, agree
#: with the noise-free ones for 99.1 % of the atoms here, for 97.9 % after 1511 steps and 97.0 % after 1840.
RELEASE_STEP = 1226


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build") / NAME, help="checkpoint folder to write")
    parser.add_argument("--state", type=Path, help="folder of the training state; default: OUT-training")
    parser.add_argument("--steps", type=int, default=LoopConfig.n_steps, help="length of the schedule")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="threads; the result does not depend on it")
    parser.add_argument("--stop-after", type=int, help="save and stop after this step; run again to continue")
    args = parser.parse_args(argv)
    state = args.state or args.out.with_name(args.out.name + "-training")
    torch.set_num_threads(1)  # parallel over structures instead, see training.loop
    architecture, data = MomentsConfig(), DenoisingConfig()
    loop = LoopConfig(n_steps=args.steps, seed=args.seed)
    last = min(loop.n_steps, RELEASE_STEP)
    torch.manual_seed(args.seed)
    network = Moments(architecture)
    n_parameters = sum(p.numel() for p in network.parameters())
    console = Console()
    console.print(f"{NAME}: {n_parameters} parameters, {last} steps, state in {state}")
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
            network, batch_maker(data, architecture.cutoff), denoising_losses(data, architecture.cutoff),
            loop, state, workers=args.workers, report=report, stop_after=min(args.stop_after or last, last),
        )  # fmt: skip
    if args.stop_after is not None and args.stop_after < last:
        console.print(f"stopped after step {args.stop_after} as asked; run again to continue")
        return 0
    rows = [json.loads(line) for line in (state / LOG).read_text().splitlines()]
    config = DenoiserConfig(
        name=NAME,
        version=VERSION,
        lattices=LATTICES,
        architecture=architecture.to_dict(),
        largest_noise=data.largest_noise,
    )
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
        args.out, "training", [result], command=f"python -m training.denoiser_elements --seed {args.seed}",
        seed=args.seed, extra={"loop": asdict(loop), "data": asdict(data), "mix": MIX},
    )  # fmt: skip
    write_first_card(args.out)
    console.print(f"wrote {args.out} after {(time.perf_counter() - started) / 60:.1f} minutes in this run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
