"""What `zoo evaluate` does: a rollout, read or made, beside MD; a table, a JSON and a picture."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
    """Everything the user asked for; times in ps.  ``overwrite`` is about the report and its picture only."""

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
    if job.save_rollout is not None:
        if job.rollout:
            raise ZooError(
                "--save-rollout is for a rollout that is made here, and --rollout names one: give one"
            )
        _check_saved(job, job.save_rollout)
    _check_given(job)
    check_report(job.output, job.picture, job.overwrite)
    check_extras()
    import torch

    from zoo.analysis.dihedrals import choose_dihedrals
    from zoo.analysis.evaluation import evaluate
    from zoo.score_dynamics import ScoreDynamics

    torch.set_num_threads(1)  # threads for whole batches of walkers instead, see `roll_out`
    model = ScoreDynamics.from_pretrained(job.checkpoint)
    steps = _longest(job)
    _check_options(job, float(model.lag_time), steps)
    if model.family is not None:
        from zoo.analysis.trajectories import reference_molecule

        model = model.of(reference_molecule(job.reference[0], job.topology))
    wanted = list(job.dihedrals) or None
    choose_dihedrals(model.molecule, wanted)  # before the work, not after
    md = [_reference(job, model, path) for path in job.reference]
    _check_reference(job, md, float(model.lag_time), steps)
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
        _save(found, job)
    if not job.quiet:
        show(found, console)
        console.print(f"written to {job.output} and {job.picture}", highlight=False, soft_wrap=True)
    return 0


def check_report(output: Path, picture: Path, overwrite: bool) -> None:
    """That the report and the picture can be written; leaves nothing behind.

    Raises
    ------
    ZooError : another suffix than .json, a folder that is missing or cannot be written, a file that is there
        already.
    """
    if output.suffix.lower() != ".json":
        raise ZooError(f"cannot write {output}: name a report that ends in .json")
    folder = output.parent
    try:
        if not folder.is_dir():
            raise ZooError(f"cannot write {output}: there is no folder {folder}")
        _try_writing(output)
        for path in (output, picture):
            if path.is_dir():
                raise ZooError(f"cannot write {path}: it is a folder; choose another output (-o)")
            if path.exists() and not overwrite:
                raise ZooError(f"{path} exists already; choose another output (-o), or --overwrite")
    except OSError as error:  # of looking: a folder that may not be searched, a name too long
        raise ZooError(f"cannot write {output}: {error.strerror or error}; choose another") from None


def _try_writing(path: Path) -> None:
    """Make and remove a file beside ``path``: permissions alone say little, least of all to root."""
    trial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            trial.write_bytes(b"")
        finally:
            trial.unlink(missing_ok=True)
    except OSError as error:
        raise ZooError(
            f"cannot write {path}: no file can be made in folder {path.parent} "
            f"({error.strerror or error}); choose another"
        ) from None


def _check_saved(job: Job, run: Path) -> None:
    """That the files of the saved rollout can be written and are neither the report nor an input.

    Raises
    ------
    ZooError : one line.
    """
    from zoo.rollout.output import Names, check_output

    try:
        check_output(run)
    except OSError as error:  # of looking, as in `check_report`
        raise ZooError(f"cannot write {run}: {error.strerror or error}; choose another") from None
    _try_writing(run)
    written = {_place(path) for path in Names(run, job.walkers).all()}
    for path in (job.output, job.picture):
        if _place(path) in written:
            raise ZooError(
                f"{path} is a file of the rollout that --save-rollout {run} writes; "
                "choose another output (-o) or another --save-rollout"
            )
    for source in (*job.reference, *filter(None, [job.topology])):
        if _place(source) in written:
            raise ZooError(f"--save-rollout {run} would write over {source}; choose another --save-rollout")


def _check_given(job: Job) -> None:
    """That the report does not replace that of a given rollout, even with --overwrite.

    Raises
    ------
    ZooError : one line.
    """
    from zoo.analysis.trajectories import own_report, rollout_files

    for path in rollout_files(job.rollout):
        own = own_report(path)
        if own is not None and _place(own[0]) == _place(job.output):
            raise ZooError(f"{job.output} is the report of the rollout {path}; choose another output (-o)")


def _place(path: Path) -> str:
    """The one name of a file, however its folder is spelled; the file itself need not be there."""
    return str(Path(os.path.realpath(path.parent), path.name))


def _longest(job: Job) -> int:
    """Steps of the longest walker, at most; those of given rollouts are not known yet."""
    if job.rollout:
        return sys.maxsize
    if job.save_rollout is None:
        return job.steps
    from zoo.rollout.errors import RolloutError
    from zoo.rollout.output import Names
    from zoo.rollout.state import load

    with suppress(RolloutError, OSError, TypeError):  # no state yet, or a bad one, of which `roll_out` tells
        return max(job.steps, load(Names(job.save_rollout, job.walkers).state).state.step)
    return job.steps


def _check_options(job: Job, lag_time: float, steps: int) -> None:
    """What can be said against the numbers and files before anything is read.

    Raises
    ------
    StructureError : one line.
    """
    from zoo.analysis.evaluation import FEWEST_FRAMES, check_numbers, markov_lag_steps
    from zoo.analysis.trajectories import rollout_files

    check_numbers(lag_time, job.markov_lag, job.block, job.resamples)
    markov_lag_steps(job.markov_lag, lag_time, steps)
    if job.walkers * (steps + 1) < FEWEST_FRAMES:
        raise StructureError(
            f"{job.walkers} walker{'s' * (job.walkers != 1)} of {steps} step{'s' * (steps != 1)} make "
            f"{job.walkers * (steps + 1)} frames, and at least {FEWEST_FRAMES} are needed to say anything; "
            "ask for more steps (-n)"
        )
    for path in (*job.reference, *rollout_files(job.rollout)):
        if not path.exists():
            raise StructureError(f"{path}: there is no such file")


def _check_reference(job: Job, md: Sequence[Read], lag_time: float, steps: int) -> None:
    """What can be said against the MD before the rollout is made or read.

    Raises
    ------
    StructureError : one line.
    """
    from zoo.analysis.evaluation import FEWEST_FRAMES, markov_lag_steps

    for each in md:
        finite = np.isfinite(each.positions).all(axis=(1, 2))
        if not finite.all():
            frame = int(np.argmin(finite)) * each.every
            raise StructureError(f"{each.path}, frame {frame}: coordinates that are not finite")
    frames = sum(len(each.positions) for each in md)
    if frames < FEWEST_FRAMES:
        raise StructureError(
            f"the reference is too short: {frames} frames {lag_time:g} ps apart in all, and at least "
            f"{FEWEST_FRAMES} are needed to say anything; give more MD"
        )
    markov_lag_steps(job.markov_lag, lag_time, min(steps, max(len(each.positions) for each in md) - 1))


def _save(found: Evaluation, job: Job) -> None:
    """Write the report and the picture: both, or neither.

    Raises
    ------
    ZooError : one of them cannot be written.
    """
    made = {path: path.with_name(f".{os.getpid()}{path.suffix}") for path in (job.picture, job.output)}
    new = [path for path in made if not path.exists()]
    try:
        for path, partial in made.items():
            try:
                (found.save_png if path == job.picture else found.save_json)(partial)
            except ZooError as error:
                raise type(error)(str(error).replace(str(partial), str(path))) from None
        try:
            for path, partial in made.items():
                os.replace(partial, path)
        except OSError as error:
            _remove(new)
            raise ZooError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        _remove(made.values())


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink(missing_ok=True)


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
    from zoo.rollout import RolloutError, roll_out
    from zoo.rollout_command import Job as RolloutJob
    from zoo.rollout_command import _Meter

    start = start_frames(model, [each.positions for each in md], job.walkers)
    target = job.save_rollout or job.output
    as_rollout = RolloutJob(
        job.checkpoint, job.reference[0], target, job.steps, job.walkers, job.seed, quiet=job.quiet
    )
    meter = _Meter(as_rollout)
    try:
        with meter:
            result = roll_out(
                model, start, job.steps, job.walkers, job.seed,
                output=job.save_rollout, keep=True, progress=meter, threads=job.threads,
            )  # fmt: skip
    except RolloutError as error:
        raise RolloutError(_advice(str(error), target)) from None
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


def _advice(text: str, run: Path) -> str:
    """What `roll_out` says, whose -o is --save-rollout here, and whose --overwrite there is not."""
    text = text.replace(
        "choose another output (-o), or --overwrite to start over",
        f"choose another --save-rollout, or remove the files of {run} to start over",
    )
    return text.replace("choose another output (-o)", "choose another --save-rollout")


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
