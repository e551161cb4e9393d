"""Teach a denoiser the crystals of your own, from nothing but their perfect structures.

    python -m training.finetune_denoiser denoiser-elements --structure my.cif -o build/my-denoiser
    python -m training.finetune_denoiser denoiser-elements --structure a.cif b.vasp -o build/ab --minutes 30
    python -m training.finetune_denoiser denoiser-elements --structure a.cif -o build/only-a --from-nothing

Half of what it sees are the old lattices, so that they are not forgotten (``--rehearsal``); there it has to
say what the checkpoint said before.  It trains in rounds of ``--steps``, each ending at a learning rate near
zero, and stops by itself after the first one at whose end held-out noised crystals, old and new, come back
(``--enough``), or after ``--minutes``.  A killed run is continued by the same command.  It ends with a
report: up to which noise each crystal is recovered, before and after, as a table, in ``metrics.json`` and in
``recovery.png``.

``--from-nothing`` begins with random weights, and without the old lattices unless ``--rehearsal`` is given.
Whether the network sees which species an atom is depends on the checkpoint: ``denoiser-elements`` learns the
geometry of the sites alone, ``denoiser-binaries`` also which neighbours are of an atom's own species.
"""

from __future__ import annotations

import argparse
import hashlib
import json
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
from torch import nn

from training import lattices
from training.command_line import command_line
from training.denoising import DenoisingConfig, batch_maker, denoising_losses
from training.finished import REPORTS, finish, workplace
from training.first_card import write_first_card
from training.loop import LOG, STATE, LoopConfig, read_log, train
from training.metrics import record
from training.perfect_structures import Perfect, draw, read_perfect, supercell
from training.polymorphs import POLYMORPHS
from training.recovery import Recovered, recovery
from zoo.checkpoint import check_replaceable, save
from zoo.denoiser import Denoiser, DenoiserConfig
from zoo.errors import ZooError

NOISES = (0.02, 0.04, 0.06, 0.08, 0.10, 0.12, 0.14)
#: At this noise training is judged; atoms of a crystal at its melting point vibrate by about that much.
JUDGED = 0.10
#: Of what is held out: supercells of about so many atoms, and so many noised copies of each.
_ATOMS, _COPIES = 500, 2
_BATCH = 1400  # atoms
_LOOK = 50  # steps between two looks at what is held out
_HELD_OUT_SEED = 1_000_003
#: Weight of what the old network says of old lattices: at 3, perovskites cost hot bcc iron 0.5 % of its
#: atoms, and the truth in place of the teacher 1.1 %; at 20, nothing.
_TEACHER_WEIGHT = 20.0


@dataclass(frozen=True)
class Schedule:
    """What the options that were not given are."""

    steps: int
    learning_rate: float
    rehearsal: float
    rollout_after: int
    ema_decay: float


LEARN_MORE = Schedule(500, 5e-4, 0.5, 0, 0.98)
FROM_NOTHING = Schedule(800, 2e-3, 0.0, 300, 0.99)


@dataclass(frozen=True)
class Case:
    """A crystal to be recovered; ``spacing`` is its nearest-neighbour distance in the units of ``atoms``."""

    name: str
    atoms: Atoms
    spacing: float
    new: bool


def known_lattices(config: DenoiserConfig) -> tuple[str, ...]:
    """The lattices of a checkpoint that can be drawn again; the six of elements where none can."""
    drawn = (*lattices.LATTICES, *lattices.COMPOUNDS)
    return tuple(name for name in config.lattices if name in drawn) or lattices.LATTICES


def cases(crystals: Sequence[Perfect], old_lattices: Sequence[str] = lattices.LATTICES) -> list[Case]:
    """The new crystals, then the old lattices that matter, as supercells without strain."""
    found = [Case(c.name, supercell(c, _ATOMS), c.spacing, True) for c in crystals]
    for name in old_lattices:
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


def mixed(
    crystals: Sequence[Perfect],
    rehearsal: float,
    taught: bool = True,
    old_lattices: Sequence[str] = lattices.LATTICES,
) -> Callable[[np.random.Generator], lattices.Sample]:
    """Draws an old lattice with probability ``rehearsal``, else one of the new crystals.

    Of old lattices the answer is a teacher's, if there is one to have ``taught`` them.
    """

    compounds = any(name in lattices.COMPOUNDS for name in old_lattices)
    mix = lattices.COMPOUND_MIX if compounds else lattices.MIX

    def one(rng: np.random.Generator) -> lattices.Sample:
        if rng.random() < rehearsal:
            return replace(lattices.draw(rng, old_lattices, mix), rehearsed=taught)
        return draw(crystals, rng)

    return one


@command_line("interrupted: the same command continues, from a minute ago at most")
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    return run(args, Console())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.finetune_denoiser",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="to begin with: a name from `zoo list`, or a folder")
    parser.add_argument("--structure", type=Path, nargs="+", required=True, help="perfect crystals: CIF, ...")
    parser.add_argument("-o", "--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--from-nothing", action="store_true", help="random weights to begin with")
    parser.add_argument("--steps", type=int, help="of a round (default: 500, or 800 from nothing)")
    parser.add_argument("--minutes", type=float, default=15.0, help="at most (default: %(default)g)")
    parser.add_argument("--enough", type=float, default=0.9995, help="share of sites (default: %(default)g)")
    parser.add_argument("--rehearsal", type=float, help="share of old lattices (0.5; from nothing 0)")
    parser.add_argument("--learning-rate", type=float, help="(default: 5e-4, or 2e-3 from nothing)")
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
    schedule = FROM_NOTHING if args.from_nothing else LEARN_MORE
    for option in ("steps", "learning_rate", "rehearsal"):
        if getattr(args, option) is None:
            setattr(args, option, getattr(schedule, option))
    if not 0 <= args.rehearsal < 1:
        raise ZooError(f"--rehearsal is {args.rehearsal:g}: give a share from 0 to below 1")
    check_replaceable(args.out, REPORTS)
    started = time.perf_counter()
    crystals = [read_perfect(path) for path in args.structure]
    old = Denoiser.from_pretrained(args.checkpoint)
    if set(old.config.lattices) & set(POLYMORPHS) and not args.from_nothing:
        raise ZooError(
            f"{old.name} cannot be taught yet, its own crystals would be forgotten: begin with "
            "denoiser-elements or denoiser-binaries, or with --from-nothing"
        )
    torch.set_num_threads(1)  # parallel over structures instead, see training.loop
    remembered = known_lattices(old.config) if not args.from_nothing or args.rehearsal > 0 else ()
    among = cases(crystals, remembered)
    n_new = f"{len(crystals)} new crystal{'s' * (len(crystals) != 1)}"
    begun = "random weights" if args.from_nothing else f"{old.config.name} {old.config.version}"
    console.print(f"{n_new}, beginning with {begun}")
    before = {noise: judged(old, among, noise) for noise in NOISES}
    _tell(console, among, before[JUDGED], f"before, {old.config.name}")
    network, seconds, step, why = _trained(args, schedule, old, crystals, among, console)
    known = old.config.lattices if any(not case.new for case in among) else ()
    new = Denoiser(
        replace(
            old.config,
            name=args.out.name,
            version=args.version,
            lattices=(*known, *(c.name for c in crystals)),
            verdict=None,  # of a head that does not know the new crystals
        ),
        network,
    )
    after = {noise: judged(new, among, noise) for noise in NOISES}
    state = args.out.with_name(args.out.name + "-training")
    made = workplace(state, args.out)
    save(made, new.config.to_dict(), network.state_dict())
    rows = _rows(among, before, after)
    command = f"python -m training.finetune_denoiser {args.checkpoint} --structure " + " ".join(
        path.name for path in args.structure
    )
    command += " --from-nothing" if args.from_nothing else ""
    record(
        made,
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
            "begun_with": None if args.from_nothing else f"{old.config.name}@{old.config.version}",
            "structures_sha256": {path.name: _digest(path) for path in args.structure},
            "rehearsal": args.rehearsal,
        },
    )
    record(made, "recovery", rows, command=command, seed=_HELD_OUT_SEED)
    write_first_card(made)
    _tell(console, among, after[JUDGED], "after")
    _report(console, rows)
    _picture(made / "recovery.png", among, before, after)
    finish(made, state, args.out)
    console.print(f"wrote {args.out} after {step} steps, {seconds / 60:.1f} minutes ({why})")
    return 0


def _trained(
    args: argparse.Namespace,
    schedule: Schedule,
    old: Denoiser,
    crystals: Sequence[Perfect],
    among: Sequence[Case],
    console: Console,
) -> tuple[nn.Module, float, int, str]:
    """The network with its averaged parameters, seconds, steps, and why it stopped."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        best = old.config.build()
    if not args.from_nothing:
        best.load_state_dict(old.network.state_dict())
    data = DenoisingConfig(
        atoms_per_batch=_BATCH, largest_noise=old.config.largest_noise,
        rollout_after=schedule.rollout_after, teacher_weight=_TEACHER_WEIGHT,
    )  # fmt: skip
    settings = {
        "begun_with": hashlib.sha256(
            b"".join(t.detach().numpy().tobytes() for t in old.network.state_dict().values())
        ).hexdigest(),
        "structures": " ".join(_digest(path) for path in args.structure),
        "rehearsal": repr(args.rehearsal),
        "from_nothing": repr(args.from_nothing),
        "data": json.dumps(asdict(data), sort_keys=True),
    }
    state = args.out.with_name(args.out.name + "-training")
    draw_one = mixed(
        crystals, args.rehearsal, taught=not args.from_nothing, old_lattices=known_lattices(old.config)
    )
    make = batch_maker(data, old.cutoff, draw_one)
    losses = denoising_losses(data, old.cutoff, old.network)
    done = _steps_done(state)
    if done:
        console.print(f"continuing {state} after step {done}")
    seconds, number, why = 0.0, 0, ""
    bar = Progress(
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"), BarColumn(),
        TextColumn("{task.fields[told]}"), TimeElapsedColumn(), console=console, transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task("train", total=args.steps, completed=done, told="")
        while not why:
            folder = _round_folder(state, number)
            network = old.config.build()
            network.load_state_dict(best.state_dict())
            network.train().requires_grad_(True)
            # Another seed: later rounds see other structures.
            loop = LoopConfig(
                n_steps=args.steps, learning_rate=args.learning_rate, warmup=min(30, args.steps // 4),
                ema_decay=schedule.ema_decay, seed=args.seed + number, checkpoint_every=60.0, log_every=_LOOK,
            )  # fmt: skip
            first, earlier = number * args.steps, seconds
            # What was done before a kill is not judged again, only its last state.
            step = max(_steps_done(folder) - 1, 0) // _LOOK * _LOOK
            while step < args.steps and not why:
                step = min(step + _LOOK, args.steps)
                average = train(
                    network, make, losses, loop, folder, workers=args.workers, stop_after=step,
                    settings=settings,
                )  # fmt: skip
                best.load_state_dict(average)
                seconds = earlier + _seconds(folder)
                shares = judged(replaced(old, best.requires_grad_(False)), among)
                told = f"worst recovery at noise {JUDGED:.2f}: {_worst(among, shares)}"
                bar.update(task, completed=first + step, total=first + args.steps, told=told)
                if not console.is_terminal:
                    print(f"step {first + step}/{first + args.steps}, {seconds:.0f} s, {told}", flush=True)
                if step == args.steps and min(r.share for r in shares) >= args.enough:
                    why = f"all come back at noise {JUDGED:.2f}"
                elif seconds > 60 * args.minutes:
                    why = f"{args.minutes:g} minutes were over"
            number += 1
    return best, seconds, first + step, why


def _round_folder(state: Path, number: int) -> Path:
    return state / f"round-{number}"


def replaced(old: Denoiser, network: nn.Module) -> Denoiser:
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
    """Of a round, or of all rounds in a folder."""
    rounds = list(state.glob("round-*"))
    if rounds:
        return sum(_steps_done(each) for each in rounds)
    log = state / LOG
    if not (state / STATE).exists() or not log.exists():
        return 0
    rows = read_log(state)
    return int(rows[-1]["step"]) if rows else 0


def _seconds(state: Path) -> float:
    return float(read_log(state)[-1]["seconds"])


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
    console.print(f"{when}: sites recovered at noise {JUDGED:.2f}, at worst: {_worst(among, found)}")


def _worst(among: Sequence[Case], found: Sequence[Recovered]) -> str:
    parts = []
    for name, new in (("new crystals", True), ("old lattices", False)):
        shares = [r.share for r, c in zip(found, among, strict=True) if c.new == new]
        if shares:
            parts.append(f"{name} {min(shares):.2%}")
    return ", ".join(parts)


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
            verdict = "recovered" if at["recovered_after"] >= 0.999 else "not yet: more --minutes"
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
