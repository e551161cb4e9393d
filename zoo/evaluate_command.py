"""What `zoo evaluate` does: a rollout, read or made, beside MD; a table, a JSON and a picture."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.errors import MissingExtraError, StructureError, ZooError

if TYPE_CHECKING:
    from zoo.analysis.bootstrap import Estimate
    from zoo.analysis.evaluation import Evaluation, Quantity
    from zoo.analysis.trajectories import Read

_TITLES = {
    "population": "population, frames",
    "markov population": "population, Markov",
    "group population": "population, Markov",
    "group mfpt": "first passage, ps",
    "mfpt": "first passage, ps",
    "markov mfpt": "first passage, Markov",
    "timescale": "implied timescale, ps",
    "path time": "path time, ps",
}


@dataclass(frozen=True)
class Job:
    """Everything the user asked for; times in ps."""

    checkpoint: str
    reference: tuple[Path, ...]
    output: Path
    topology: Path | None = None
    reference_interval: float | None = None
    rollout: tuple[Path, ...] = ()
    save_rollout: Path | None = None
    walkers: int = 64
    steps: int = 10_000
    seed: int = 0
    dihedrals: tuple[str, ...] = ()
    markov_lag: float | None = None
    block: float | None = None
    resamples: int = 1000
    overwrite: bool = False
    threads: int = 1
    quiet: bool = False

    @property
    def picture(self) -> Path:
        return self.output.with_suffix(".png")


def run(job: Job, console: Any) -> int:
    """Evaluate and return the exit status 0.

    Raises
    ------
    ZooError
        One line.
    """
    check_report(job.output, job.picture, job.overwrite)
    check_extras()
    if job.save_rollout is not None:
        from zoo.rollout.output import check_output as check_rollout

        check_rollout(job.save_rollout)
    import torch

    from zoo.analysis.dihedrals import choose_dihedrals
    from zoo.analysis.evaluation import evaluate
    from zoo.score_dynamics import ScoreDynamics

    torch.set_num_threads(1)  # threads for whole batches of walkers instead, see `roll_out`
    model = ScoreDynamics.from_pretrained(job.checkpoint)
    if model.family is not None:
        from zoo.analysis.trajectories import reference_molecule

        model = model.of(reference_molecule(job.reference[0], job.topology))
    wanted = list(job.dihedrals) or None
    choose_dihedrals(model.molecule, wanted)  # before the work, not after
    md = [_reference(job, model, path) for path in job.reference]
    made: dict[str, Any] = {}
    if job.rollout:
        runs = _given(job, model)
    else:
        runs, made = _rolled_out(job, model, md)
    with _status(job) as tell:
        found = evaluate(
            runs,
            (each.positions for each in md),
            model.molecule,
            float(model.lag_time),
            dihedrals=wanted,
            markov_lag_ps=job.markov_lag,
            block_ps=job.block,
            n_resamples=job.resamples,
            seed=job.seed,
            progress=tell,
        )
        found.details["checkpoint"] = model.checkpoint_id
        found.details["files"] = {
            "reference": [
                {"path": str(each.path), "every": each.every, "frames": len(each.positions)} for each in md
            ],
            "rollout": [str(path) for path in (*job.rollout, *filter(None, [job.save_rollout]))],
        }
        found.details["rollout"] = made or None
        tell("drawing")
        found.save_json(job.output)
        found.save_png(job.picture)
    if not job.quiet:
        show(found, console)
        console.print(f"written to {job.output} and {job.picture}", highlight=False, soft_wrap=True)
    return 0


def check_report(output: Path, picture: Path, overwrite: bool) -> None:
    """That the report and the picture can be written; looks, and writes nothing.

    Raises
    ------
    ZooError : another suffix than .json, a folder that is missing or cannot be written, a file that is there
        already or that is an input.
    """
    if output.suffix.lower() != ".json":
        raise ZooError(f"cannot write {output}: name a report that ends in .json")
    folder = output.parent
    if not folder.is_dir():
        raise ZooError(f"cannot write {output}: there is no folder {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ZooError(f"cannot write {output}: folder {folder} is not writable")
    for path in (output, picture):
        if path.is_dir():
            raise ZooError(f"cannot write {path}: it is a folder; choose another output (-o)")
        if path.exists() and not overwrite:
            raise ZooError(f"{path} exists already; choose another output (-o), or --overwrite")


def check_extras() -> None:
    """Raise MissingExtraError unless a report can be made; cheaper than finding out after the work."""
    from importlib.util import find_spec

    for module, what in (
        ("deeptime", "Markov models need deeptime"),
        ("matplotlib", "pictures need matplotlib"),
    ):
        if find_spec(module) is None:
            raise MissingExtraError(f'{what}: pip install "score-zoo[analysis]"')


def _reference(job: Job, model: Any, path: Path) -> Read:
    from zoo.analysis.trajectories import read_reference

    return read_reference(
        path,
        model.molecule,
        float(model.lag_time),
        topology=job.topology,
        interval=job.reference_interval,
        labels_like=_labels_like(model),
    )


def _labels_like(model: Any) -> Any:
    """The structure by which `ScoreDynamics.rollout` labels symmetric atoms, if the model has one."""
    reference = getattr(model, "reference", None)
    return None if reference is None else reference()


def _given(job: Job, model: Any) -> Iterator[Any]:
    """The trajectories of given rollouts, one at a time."""
    from zoo.analysis.trajectories import read_rollout, rollout_files

    for path in rollout_files(job.rollout):
        yield read_rollout(path, model.molecule, float(model.lag_time)).positions


def _rolled_out(job: Job, model: Any, md: Sequence[Read]) -> tuple[Iterator[Any], dict[str, Any]]:
    """A rollout from frames spread over the reference, and how it went."""
    from zoo.molecules.sources import NM
    from zoo.rollout import roll_out
    from zoo.rollout_command import Job as RolloutJob
    from zoo.rollout_command import _Meter

    start = start_frames(model, [each.positions for each in md], job.walkers)
    as_rollout = RolloutJob(
        job.checkpoint, job.reference[0], job.output, job.steps, job.walkers, job.seed, quiet=job.quiet
    )
    meter = _Meter(as_rollout)
    with meter:
        result = roll_out(
            model, start, job.steps, job.walkers, job.seed,
            output=job.save_rollout, overwrite=job.overwrite, keep=True, progress=meter, threads=job.threads,
        )  # fmt: skip
    report = result.report
    for walker, reason in list(report.stopped.items())[:10]:
        print(f"warning: walker {walker} stopped at {reason}", file=sys.stderr)
    if len(report.stopped) == job.walkers:
        raise ZooError(f"every walker stopped before step {job.steps:,}: there is nothing to evaluate")
    made = {
        "walkers": job.walkers,
        "steps": job.steps,
        "seed": job.seed,
        "redrawn_fraction": report.redrawn_fraction,
        "redrawn_by_kind": dict(report.by_kind),
        "walkers_stopped": len(report.stopped),
        "ps_per_second": report.ps_per_second,
    }
    # A walker that stopped at once has no step to count.
    moved = (each.xyz * np.float32(NM) for each in result.trajectories if len(each) > 1)
    return moved, made


def start_frames(model: Any, trajectories: Sequence[Any], n_walkers: int) -> Any:
    """(n_walkers, n_sites, 3) frames spread evenly over MD, next to the even ones where these are invalid.

    Raises
    ------
    StructureError : the checkpoint calls most of the MD invalid.
    """
    from zoo.molecules.checks import Validity
    from zoo.molecules.molecule import handedness

    lengths = [len(each) for each in trajectories]
    ends = np.cumsum(lengths)
    even = np.linspace(0, ends[-1] - 1, n_walkers + 2)[1:-1].astype(np.int64)
    frames = []
    for wanted in even:
        for away in (0, 1, -1, 2, -2, 3, -3, 5, -5, 10, -10):
            k = int(np.clip(wanted + away, 0, ends[-1] - 1))
            which = int(np.searchsorted(ends, k, side="right"))
            x = np.asarray(trajectories[which][k - (ends[which] - lengths[which])], dtype=np.float64)[None]
            validity = Validity(
                model.molecule, model.bond_lengths, handedness(x, model.molecule.centres), model.limits
            )
            (reason,) = validity.check(x)
            if reason is None:
                frames.append(x[0])
                break
        else:
            raise StructureError(
                f"the checkpoint calls the reference's frames invalid ({reason}): is it of the same molecule?"
            )
    return np.stack(frames)


@contextmanager
def _status(job: Job) -> Iterator[Any]:
    """Tells what is being done on a terminal, and nothing elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if job.quiet or not console.is_terminal:
        yield lambda what: None
        return
    with console.status("evaluating") as status:
        yield lambda what: status.update(what)


def show(found: Evaluation, console: Any) -> None:
    """Print the table of an evaluation."""
    from rich.table import Table

    details = found.details
    for what in ("reference", "rollout"):
        size = details["sets"][what]
        name = "MD" if what == "reference" else "rollout"
        console.print(
            f"{name}: {size['n_trajectories']} trajectories, {size['total_ps'] / 1000:.4g} ns, "
            f"{size['resampled']} resampled ({size['n_units']})",
            highlight=False,
        )
        for note in size["notes"]:
            console.print(f"note: {name}: {note}", highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("", "rollout (95 %)", "MD (95 %)", "verdict"):
        table.add_column(column, no_wrap=True)
    title = ""
    for each in found.quantities:
        if each.reference.events == each.rollout.events == 0 and each.kind != "population":
            continue
        if _TITLES[each.kind] != title:
            title = _TITLES[each.kind]
            table.add_row(f"[bold]{title}[/bold]")
        table.add_row(f"  {each.name}", cell(each.rollout), cell(each.reference), verdict(each))
    console.print(table)
    console.print(
        "inside: the rollout's value is in MD's interval; else their ratio.  > marks a lower bound.",
        highlight=False,
        soft_wrap=True,
    )
    for name, apart in found.divergences.items():
        if apart.value is None:
            console.print(f"Jensen-Shannon divergence of {name}: no frames", highlight=False)
            continue
        floor = "unknown" if apart.floor is None else f"{apart.floor:.4f} (95 % below {apart.floor_95:.4f})"
        halves = "unknown" if apart.halves is None else f"{apart.halves:.4f}"
        console.print(
            f"Jensen-Shannon divergence of {name}: {apart.value:.4f} bits; by chance {floor}; "
            f"MD half against half {halves}",
            highlight=False,
            soft_wrap=True,
        )
    _show_geometry(details["geometry"], console)


def _show_geometry(geometry: dict[str, Any], console: Any) -> None:
    for kind, digits in (("bonds", 4), ("angles", 2)):
        rows = geometry[kind]
        if not rows:
            continue
        shift = max(rows, key=lambda row: abs(row["shift_in_sd"]))
        drift = max(rows, key=lambda row: abs(row["drift_in_sd"]))
        console.print(
            f"{kind}: farthest from MD {shift['name']}, {shift['shift']:+.{digits}f} {shift['unit']} "
            f"({shift['shift_in_sd']:+.2f} standard deviations); most drift {drift['name']}, "
            f"{drift['drift']:+.{digits}f} {drift['unit']} ({drift['drift_in_sd']:+.2f})",
            highlight=False,
            soft_wrap=True,
        )
    hands = geometry["chirality"]
    console.print(
        f"stereocentres: {hands['n_stereocentres']}, inverted {hands['rollout']['inversions']} times "
        f"(MD {hands['reference']['inversions']})",
        highlight=False,
    )


def cell(estimate: Estimate) -> str:
    """Value and interval of one figure, or what stands in the place of an interval."""
    if estimate.value is None:
        bound = f"> {_figure(estimate.lower_bound)}, " if estimate.lower_bound is not None else ""
        return f"{bound}{estimate.note}"
    value = _figure(estimate.value)
    if estimate.low is not None:
        high = "∞" if estimate.high is None else _figure(estimate.high)
        return f"{value} ({_figure(estimate.low)} – {high})"
    return f"{value} ({_events(estimate.events)})"


def verdict(quantity: Quantity) -> str:
    """ "inside", a ratio, or a dash."""
    if quantity.inside:
        return "inside"
    return "–" if quantity.ratio is None else f"× {quantity.ratio:.2f}"


def _events(n: int) -> str:
    return f"{n:,} event{'s' * (n != 1)}"


def _figure(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
