"""Teach a propagator your own molecule, from your own MD of it.

    python -m training.finetune_dynamics sd-alkanes --trajectory run1.xtc run2.xtc --topology top.pdb \\
        --lag 1.0 --out build/my-sd
    python -m training.finetune_dynamics sd-alkanes --md molecule.pdb --md-ps 1000 --out build/my-sd
    python -m training.finetune_dynamics sd-alkanes --trajectory run.xtc --topology top.pdb --from-nothing
    python -m training.finetune_dynamics sd-alanine-dipeptide --trajectory hot.xtc --topology top.pdb \\
        --temperature 350 --out build/sd-hot

A checkpoint of a family learns one molecule more.  One of a single molecule learns how that molecule moves in
your MD: in another force field, or at another temperature.

Solvent is stripped, periodic images are mended, and the end of each run (or whole runs, if there are five)
is held out.  It ends with the weights, a rollout beside the held-out MD as ``evaluation.json`` and
``evaluation.png``, and a plain verdict.  A killed run is continued by the same command.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from training.command_line import command_line
from training.finished import REPORTS, finish, workplace
from training.first_card import write_first_card
from training.loop import PRECISIONS, LoopConfig, read_log
from training.metrics import record
from training.own_simulation import check_length, simulate
from training.reference_md.segments import Segment
from training.score_dynamics.fit import printed
from training.score_dynamics.learners import Request, learner
from training.score_dynamics.own_md import split
from training.score_dynamics.recipe import summary, trainings
from training.score_dynamics.verdicts import figures, judged
from zoo.analysis.dihedrals import chain_torsions, choose_dihedrals
from zoo.analysis.evaluation import Evaluation, evaluate
from zoo.checkpoint import check_replaceable, save
from zoo.errors import StructureError, ZooError
from zoo.evaluate_command import check_extras, show, start_frames
from zoo.molecules.molecule import Molecule
from zoo.molecules.sources import NM
from zoo.rollout import roll_out
from zoo.score_dynamics import ScoreDynamics


@command_line("interrupted: the same command continues, from two minutes ago at most")
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    torch.set_num_threads(1)
    return run(args, Console())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.finetune_dynamics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="a propagator to start from, name or folder")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--trajectory", type=Path, nargs="+", help="MD of one molecule")
    source.add_argument("--md", type=Path, metavar="MOLECULE", help="make MD of this molecule first")
    parser.add_argument("--md-ps", type=float, default=500.0, help="length of that MD (default %(default)s)")
    parser.add_argument(
        "--force-field", nargs="+", default=[], help="of that MD, see training.own_simulation"
    )
    parser.add_argument("--calculator", help="of that MD, see training.own_simulation")
    parser.add_argument("--model", type=Path, help="of the calculator")
    parser.add_argument("--topology", type=Path, help="PDB of its atoms, for formats that do not name them")
    parser.add_argument("--lag", type=float, help="ps of one step (default: the checkpoint's)")
    parser.add_argument("--temperature", type=float, help="K, of the MD (default: the checkpoint's)")
    parser.add_argument("--interval", type=float, help="ps between frames, if the files do not say")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--name", help="of the new checkpoint (default: the folder's)")
    parser.add_argument(
        "--from-nothing", action="store_true", help="random weights instead of the checkpoint's"
    )
    parser.add_argument("--held-out", type=float, default=0.3, help="share of the MD (default %(default)s)")
    parser.add_argument("--steps", type=int, default=3000, help="of training (default %(default)s)")
    parser.add_argument("--batch-size", type=int, help="(default 128 for a family, else 512)")
    parser.add_argument("--learning-rate", type=float, help="default 5e-4, or 1.5e-3 from nothing")
    parser.add_argument("--dihedral", action="append", default=[], help='"C1 C2 C3 C4", for the report')
    parser.add_argument("--walkers", type=int, default=16, help="of the report (default %(default)s)")
    parser.add_argument("--rollout", type=float, default=500.0, help="ps of each (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--threads", type=int, default=1, help="of MD and report (default %(default)s)")
    parser.add_argument("--log-every", type=int, default=100, help="steps between reports")
    parser.add_argument("--stop-after", type=int, help="save and stop after this step; run again to continue")
    return parser


def run(args: argparse.Namespace, console: Console) -> int:
    """Fine-tune and report; the exit status."""
    check_extras()
    if not 0.1 <= args.held_out <= 0.9:
        raise ZooError(f"--held-out is {args.held_out:g}: a share from 0.1 to 0.9 is needed")
    for option, unit in (("lag", "ps"), ("rollout", "ps"), ("temperature", "K")):
        value = getattr(args, option)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ZooError(f"--{option} is {value:g}: a positive number of {unit} is needed")
    check_replaceable(args.out, REPORTS)
    old = ScoreDynamics.from_pretrained(args.checkpoint)
    args.lag = args.lag or old.lag_time
    state = args.out.with_name(args.out.name + "-training")
    temperature = args.temperature or old.config.temperature
    request = Request(args.name or args.out.name, args.lag, temperature, args.batch_size, args.from_nothing)
    lesson = learner(old, request, state)
    if args.md is not None:
        check_length(args.md_ps, args.lag)
        md = args.out.with_name(args.out.name + "-md")
        args.trajectory = [
            simulate(
                args.md, md, args.md_ps, args.force_field, args.calculator, args.model, args.threads,
                temperature,
            )
        ]  # fmt: skip
    try:
        molecule, runs = lesson.read(args.trajectory, args.topology, args.interval)
    except StructureError as error:
        if args.md is None:
            raise
        raise ZooError(f"the MD that was made, {args.trajectory[0]}, is of no use: {error}") from None
    dihedrals = named_dihedrals(molecule, args.dihedral)
    training, validation, held_out = split(runs, args.lag, args.held_out)
    total = sum((len(r.positions) - 1) * r.interval for r in runs)
    n = f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}"
    console.print(
        f"{molecule.formula}: {total:,.0f} ps of MD in {n}, "
        f"frames every {runs[0].interval:g} ps; "
        f"{sum(len(s.positions) for s in training)} frames to train on, "
        f"{sum(len(s.positions) for s in validation)} to check with, "
        f"{sum(len(s.positions) for s in held_out)} held out",
        highlight=False,
    )
    if jumps := sum(r.jumps for r in runs):
        console.print(f"{jumps} jumps across the box mended", highlight=False)
    lesson.prepare(args.trajectory[0].stem, molecule, training, validation)
    loop = LoopConfig(
        n_steps=args.steps,
        learning_rate=args.learning_rate or (1.5e-3 if args.from_nothing else 5e-4),
        warmup=min(200, max(args.steps // 10, 1)),
        seed=args.seed,
        log_every=args.log_every,
        precision=args.precision,
    )
    model, average = lesson.fit(loop, args.stop_after, printed(state))
    rows = read_log(state)
    if rows[-1]["step"] < loop.n_steps:
        console.print(f"stopped after step {rows[-1]['step']} as asked; run again to continue")
        return 0
    before = lesson.loss_before(held_out)
    config = lesson.finish(model, average)
    after, packed = lesson.loss(model, held_out), lesson.packed()
    made = workplace(state, args.out)
    save(made, config, model.state_dict())
    result = summary(packed, rows, sum(p.numel() for p in model.parameters()), args.precision, args.threads)
    result |= {
        "loss_before": before,
        "loss_after": after,
        "md_ps": round(total, 3),
        "started_from": None if args.from_nothing else old.checkpoint_id,
    }
    record(
        made, "training", [result], command=_command(args, old), seed=args.seed,
        extra={
            "loop": dataclasses.asdict(loop),
            "segments": packed.segments,
            "earlier": [] if args.from_nothing else _earlier(old),
        },
    )  # fmt: skip
    new = ScoreDynamics.from_pretrained(made, source="local").of(molecule)
    console.print(
        f"a rollout of {args.walkers} walkers, {args.rollout:g} ps each, to put beside held-out MD; "
        "this takes minutes",
        highlight=False,
    )
    found, walked = _report(args, new, held_out, dihedrals)
    console.print(
        f"\nheld-out loss {'' if before is None else f'{before:.4f} before, '}{after:.4f} after training",
        highlight=False,
    )
    if found is not None:
        show(found, console)
        found.save_json(made / "evaluation.json")
        found.save_png(made / "evaluation.png")
    verdict = judged(found, walked, before, after, total)
    record(
        made, "evaluation", figures(found), command=_command(args, old), seed=args.seed,
        extra={"verdict": verdict.word, "why": verdict.why, **walked},
    )  # fmt: skip
    write_first_card(made)
    finish(made, state, args.out)
    console.print(f"\n[bold]{verdict.word}[/bold]: {verdict.why}", highlight=False, soft_wrap=True)
    console.print(f"written to {args.out}", highlight=False)
    return 0


def named_dihedrals(molecule: Molecule, wanted: Sequence[str]) -> list[str] | None:
    """Dihedrals for the report: those asked for, phi and psi, or two along a chain; None: there are none.

    Raises
    ------
    StructureError : one that was asked for is not in the molecule.
    """
    if wanted:
        choose_dihedrals(molecule, wanted)
        return list(wanted)
    try:
        chosen = choose_dihedrals(molecule, None).quadruples
    except StructureError:
        chosen = chain_torsions(molecule)[:2]
    return [" ".join(map(str, each)) for each in chosen] or None


def _report(
    args: argparse.Namespace, model: ScoreDynamics, held_out: Sequence[Segment], dihedrals: list[str] | None
) -> tuple[Evaluation | None, dict[str, Any]]:
    """A rollout from held-out frames beside held-out MD, and how it went."""
    every = round(args.lag / held_out[0].dt)
    md = [s.positions[::every] for s in held_out]
    steps = max(50, round(args.rollout / args.lag))
    start = start_frames(model, md, args.walkers)
    result = roll_out(model, start, steps, args.walkers, args.seed, keep=True, threads=args.threads)
    went = {
        "walkers": args.walkers,
        "steps": steps,
        "redrawn_fraction": result.report.redrawn_fraction,
        "walkers_stopped": len(result.report.stopped),
        "ps_per_second": result.report.ps_per_second,
    }
    moved = [each.xyz * np.float32(NM) for each in result.trajectories if len(each) > 1]
    if dihedrals is None or not moved:
        return None, went
    try:
        found = evaluate(moved, md, model.molecule, args.lag, dihedrals=dihedrals, seed=args.seed)
    except StructureError as error:  # walkers that stopped at once, or hardly any MD: the weights are kept
        return None, {**went, "not_compared": str(error)}
    found.details["checkpoint"] = model.checkpoint_id
    found.details["rollout"] = went
    return found, went


def _earlier(old: ScoreDynamics) -> list[dict[str, Any]]:
    section = old.metrics.get("sections", {}).get("training")
    return [] if section is None else trainings(section)


def _command(args: argparse.Namespace, old: ScoreDynamics) -> str:
    given = "--trajectory " + " ".join(path.name for path in args.trajectory)
    if args.md is not None:
        given = f"--md {args.md.name} --md-ps {args.md_ps:g}"
        given += f" --calculator {args.calculator}" if args.calculator else ""
    topology = "" if args.topology is None else f" --topology {args.topology.name}"
    nothing = " --from-nothing" if args.from_nothing else ""
    return (
        f"python -m training.finetune_dynamics {old.name} {given}{topology} --lag {args.lag:g} "
        f"--steps {args.steps} --out {args.out.name}{nothing}"
    )


if __name__ == "__main__":
    sys.exit(main())
