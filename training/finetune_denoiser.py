"""Teach a denoiser the crystals of your own, from nothing but their perfect structures.

    python -m training.finetune_denoiser denoiser-elements --structure my.cif -o build/my-denoiser
    python -m training.finetune_denoiser denoiser-elements --structure a.cif b.vasp --minutes 30

Half of what it sees are the old lattices, so that they are not forgotten (``--rehearsal``).  It stops by
itself when held-out noised crystals, old and new, come back (``--enough``), or after ``--steps`` or
``--minutes``.  A killed run is continued by the same command.  It ends with a report: up to which noise each
crystal is recovered, before and after, as a table, in ``metrics.json`` and in ``recovery.png``.

The network does not see which species an atom is: what it learns is the geometry of the sites.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from training import lattices
from training.denoising import DenoisingConfig, batch_maker, denoising_losses
from training.first_card import write_first_card
from training.loop import LOG, STATE, LoopConfig, train
from training.metrics import record
from training.perfect_structures import Perfect, draw, read_perfect, supercell
from training.recovery import Recovered, recovery
from zoo.backbones.moments import Moments, MomentsConfig
from zoo.checkpoint import save
from zoo.denoiser import Denoiser
from zoo.errors import CheckpointError, ZooError

NOISES = (0.02, 0.04, 0.06, 0.08, 0.10, 0.12, 0.14)
#: At this noise training is judged; atoms of a crystal at its melting point vibrate by about that much.
JUDGED = 0.10
#: Of what is held out: supercells of about so many atoms, and so many noised copies of each.
_ATOMS, _COPIES = 500, 2
_BATCH = 1400  # atoms
_ROUND = 50  # steps between two judgements
_HELD_OUT_SEED = 1_000_003


@dataclass(frozen=True)
class Case:
    """A crystal to be recovered; ``spacing`` is its nearest-neighbour distance in the units of ``atoms``."""

    name: str
    atoms: Atoms
    spacing: float
    new: bool


def cases(crystals: Sequence[Perfect]) -> list[Case]:
    """The new crystals, then the old lattices, as supercells without strain."""
    found = [Case(c.name, supercell(c, _ATOMS), c.spacing, True) for c in crystals]
    for name in lattices.LATTICES:
        unit = lattices.conventional(name)
        old = Perfect(name, unit, lattices.spacing_of(name))
        found.append(Case(name, supercell(old, _ATOMS), old.spacing, False))
    return found


def judged(
    denoiser: Denoiser, among: Sequence[Case], noise: float = JUDGED, copies: int = _COPIES
) -> list[Recovered]:
    """The recovery of each case from one noise level; the noised copies are no training data."""
    seeds = [_HELD_OUT_SEED + k for k in range(copies)]
    return [recovery(denoiser, each.atoms, each.spacing, noise, seeds) for each in among]


def mixed(crystals: Sequence[Perfect], rehearsal: float) -> Callable[[np.random.Generator], lattices.Sample]:
    """Draws an old lattice with probability ``rehearsal``, else one of the new crystals."""

    def one(rng: np.random.Generator) -> lattices.Sample:
        return lattices.draw(rng) if rng.random() < rehearsal else draw(crystals, rng)

    return one


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return run(args, Console())
    except ZooError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command continues", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.finetune_denoiser",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="to begin with: a name from `zoo list`, or a folder")
    parser.add_argument("--structure", type=Path, nargs="+", required=True, help="perfect crystals: CIF, ...")
    parser.add_argument("-o", "--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--steps", type=int, default=600, help="at most (default: %(default)s)")
    parser.add_argument("--at-least", type=int, default=200, metavar="STEPS", help="(default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=15.0, help="at most (default: %(default)g)")
    parser.add_argument("--enough", type=float, default=0.9995, help="share of sites (default: %(default)g)")
    parser.add_argument("--rehearsal", type=float, default=0.5, help="share of old lattices (default: 0.5)")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="threads; the result does not depend on it")
    parser.add_argument("--version", default="0.1.0", help="of the new checkpoint")
    return parser


def run(args: argparse.Namespace, console: Console) -> int:
    """Fine-tune, report, write; returns the exit status.

    Raises
    ------
    ZooError : a structure or the checkpoint cannot be used, or the settings are not those of the state.
    """
    if not 0 <= args.rehearsal < 1:
        raise ZooError(f"--rehearsal is {args.rehearsal:g}: give a share from 0 to below 1")
    started = time.perf_counter()
    crystals = [read_perfect(path) for path in args.structure]
    old = Denoiser.from_pretrained(args.checkpoint)
    torch.set_num_threads(1)  # parallel over structures instead, see training.loop
    among = cases(crystals)
    console.print(f"{len(crystals)} new crystals, beginning with {old.config.name} {old.config.version}")
    before = {noise: judged(old, among, noise) for noise in NOISES}
    _tell(console, among, before[JUDGED], "before")
    network, seconds, step, why = _trained(args, old, crystals, among, console)
    new = Denoiser(
        replace(
            old.config,
            name=args.out.name,
            version=args.version,
            lattices=(*old.config.lattices, *(c.name for c in crystals)),
        ),
        network,
    )
    after = {noise: judged(new, among, noise) for noise in NOISES}
    save(args.out, new.config.to_dict(), network.state_dict())
    rows = _rows(among, before, after)
    command = f"python -m training.finetune_denoiser {args.checkpoint} --structure " + " ".join(
        path.name for path in args.structure
    )
    record(
        args.out,
        "training",
        [
            {
                "n_steps": step,
                "minutes": round(seconds / 60, 1),
                "wall_seconds_of_this_run": round(time.perf_counter() - started, 1),
                "peak_memory_mib": peak_memory(),
                "stopped": why,
            }
        ],
        command=command,
        seed=args.seed,
        extra={
            "begun_with": f"{old.config.name}@{old.config.version}",
            "structures_sha256": {path.name: _digest(path) for path in args.structure},
            "rehearsal": args.rehearsal,
        },
    )
    record(args.out, "recovery", rows, command=command, seed=_HELD_OUT_SEED)
    write_first_card(args.out)
    _tell(console, among, after[JUDGED], "after")
    _report(console, rows)
    _picture(args.out / "recovery.png", among, before, after)
    shutil.rmtree(args.out.with_name(args.out.name + "-training"), ignore_errors=True)
    console.print(f"wrote {args.out} after {step} steps, {seconds / 60:.1f} minutes ({why})")
    return 0


def _trained(
    args: argparse.Namespace,
    old: Denoiser,
    crystals: Sequence[Perfect],
    among: Sequence[Case],
    console: Console,
) -> tuple[Moments, float, int, str]:
    """The network with its averaged parameters, seconds, steps, and why it stopped."""
    if old.config.backbone != "moments":
        raise CheckpointError(f"{old.config.name} has another backbone, which this recipe cannot train")
    architecture = MomentsConfig(**old.config.architecture)
    network = Moments(architecture)
    network.load_state_dict(old.network.state_dict())
    network.train().requires_grad_(True)
    data = DenoisingConfig(atoms_per_batch=_BATCH, largest_noise=old.config.largest_noise, rollout_after=0)
    loop = LoopConfig(
        n_steps=args.steps, learning_rate=args.learning_rate, warmup=min(30, args.steps // 4),
        ema_decay=0.98, seed=args.seed, checkpoint_every=60.0, log_every=_ROUND,
    )  # fmt: skip
    settings = {
        "begun_with": hashlib.sha256(
            b"".join(t.detach().numpy().tobytes() for t in old.network.state_dict().values())
        ).hexdigest(),
        "structures": " ".join(_digest(path) for path in args.structure),
        "rehearsal": repr(args.rehearsal),
        "data": json.dumps(asdict(data), sort_keys=True),
    }
    state = args.out.with_name(args.out.name + "-training")
    make = batch_maker(data, architecture.cutoff, mixed(crystals, args.rehearsal))
    losses = denoising_losses(data, architecture.cutoff)
    best = Moments(architecture).requires_grad_(False)
    done, seconds, why = _steps_done(state), 0.0, ""
    if done:
        console.print(f"continuing {state} after step {done}")
    # Judged again after a kill at the very end of a round, so that it stops where it would have.
    step = max(-(-done // _ROUND) * _ROUND, _ROUND) - _ROUND
    bar = Progress(
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"), BarColumn(),
        TextColumn("{task.fields[told]}"), TimeElapsedColumn(), console=console, transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task("train", total=args.steps, completed=done, told="")
        while not why:
            step = min(step + _ROUND, args.steps)
            try:
                average = train(
                    network,
                    make,
                    losses,
                    loop,
                    state,
                    workers=args.workers,
                    stop_after=step,
                    settings=settings,
                )
            except ValueError as error:
                raise ZooError(str(error)) from None
            best.load_state_dict(average)
            seconds = _seconds(state)
            shares = judged(replaced(old, best), among)
            worst = min(r.share for r in shares)
            old_worst = min(r.share for r, c in zip(shares, among, strict=True) if not c.new)
            told = f"worst recovery at noise {JUDGED:.2f}: new {worst:.2%}, old {old_worst:.2%}"
            bar.update(task, completed=step, told=told)
            if not console.is_terminal:
                print(f"step {step}/{args.steps}, {seconds:.0f} s, {told}", flush=True)
            if worst >= args.enough and step >= min(args.at_least, args.steps):
                why = f"all come back at noise {JUDGED:.2f}"
            elif step >= args.steps:
                why = "all steps were done"
            elif seconds > 60 * args.minutes:
                why = f"{args.minutes:g} minutes were over"
    return best, seconds, step, why


def replaced(old: Denoiser, network: Moments) -> Denoiser:
    """The same denoiser with another network."""
    return Denoiser(old.config, network)


def peak_memory() -> int | None:
    """MiB of this process at most so far; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, but bytes on macOS
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def _steps_done(state: Path) -> int:
    log = state / LOG
    if not (state / STATE).exists() or not log.exists():
        return 0
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return int(rows[-1]["step"]) if rows else 0


def _seconds(state: Path) -> float:
    return float(json.loads((state / LOG).read_text().splitlines()[-1])["seconds"])


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _rows(
    among: Sequence[Case], before: dict[float, list[Recovered]], after: dict[float, list[Recovered]]
) -> list[dict[str, Any]]:
    rows = []
    for k, case in enumerate(among):
        for noise in NOISES:
            b, a = before[noise][k], after[noise][k]
            rows.append(
                {
                    "crystal": case.name,
                    "new": case.new,
                    "noise": noise,
                    "sites": a.sites,
                    "recovered_before": b.share,
                    "recovered_after": a.share,
                    "largest_error_after": round(a.largest, 4),
                }
            )
    return rows


def _tell(console: Console, among: Sequence[Case], found: Sequence[Recovered], when: str) -> None:
    new = min(r.share for r, c in zip(found, among, strict=True) if c.new)
    old = min(r.share for r, c in zip(found, among, strict=True) if not c.new)
    console.print(f"{when}: at noise {JUDGED:.2f}, new crystals {new:.2%} of sites, old lattices {old:.2%}")


def _report(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """Per crystal: recovery at the judged noise, before and after, and up to which noise it holds."""
    table = Table(box=None, pad_edge=False)
    table.add_column("crystal", no_wrap=True)
    for column in ("before", "after", "recovered up to noise", "verdict"):
        table.add_column(column, justify="right")
    for name in dict.fromkeys(row["crystal"] for row in rows):
        mine = [row for row in rows if row["crystal"] == name]
        at = next(row for row in mine if row["noise"] == JUDGED)
        held = _held(mine)
        if at["new"]:
            verdict = "recovered" if at["recovered_after"] >= 0.999 else "not yet: more steps"
        else:
            lost = at["recovered_before"] - at["recovered_after"]
            verdict = "kept" if lost <= 0.0005 else f"forgotten by {100 * lost:.2f} %"
        table.add_row(
            name, f"{at['recovered_before']:.2%}", f"{at['recovered_after']:.2%}",
            f"{held:.2f}" if held else "none", verdict,
        )  # fmt: skip
    console.print(f"Sites recovered from noise {JUDGED:.2f} of the nearest-neighbour distance:")
    console.print(table)


def _held(rows: Sequence[dict[str, Any]]) -> float:
    """The largest noise up to which, and at all below, 99.9 % of the sites are recovered."""
    held = 0.0
    for row in sorted(rows, key=lambda r: r["noise"]):
        if row["recovered_after"] < 0.999:
            break
        held = row["noise"]
    return held


def _picture(
    path: Path,
    among: Sequence[Case],
    before: dict[float, list[Recovered]],
    after: dict[float, list[Recovered]],
) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return  # the table says the same
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # type: ignore[no-untyped-call, unused-ignore]
    axes = figure.add_subplot()
    for k, case in enumerate(among):
        style = "-o" if case.new else "-"
        (line,) = axes.plot(
            NOISES, [100 * after[n][k].share for n in NOISES], style, label=case.name, linewidth=1.6
        )
        axes.plot(NOISES, [100 * before[n][k].share for n in NOISES], ":", color=line.get_color())
    axes.set(xlabel="noise (nearest-neighbour distances)", ylabel="sites recovered (%)", ylim=(0, 102))
    axes.set_title("after fine-tuning (dotted: before)")
    axes.legend(fontsize=8)
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
