"""What `zoo rollout` does: a start structure in, trajectories out, with progress, resumable."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import StructureError

if TYPE_CHECKING:
    from zoo.rollout import Progress, RolloutReport

INTERRUPTED = 130
_REDRAW_SECONDS = 0.1
_MOST_WARNINGS = 10


@dataclass(frozen=True)
class Job:
    """Everything the user asked for; `lag_time` in ps, None for the checkpoint's."""

    checkpoint: str
    start: Path
    target: Path
    steps: int
    walkers: int = 1
    seed: int = 0
    lag_time: float | None = None
    max_redraws: int = 100
    overwrite: bool = False
    threads: int = 1
    quiet: bool = False


def run(job: Job) -> int:
    """Roll out and return the exit status: 0, 1 if no walker got to the end, 130 when interrupted.

    Raises
    ------
    ZooError
        One line.  What had been written before is still there, and can be continued.
    """
    from zoo.rollout.output import check_output

    # Cheapest checks first: the names, and only then the network.
    check_output(job.target)
    if not job.start.exists():
        raise StructureError(f"{job.start}: there is no such file")
    model = _model(job)
    meter = _Meter(job)
    try:
        with meter, _warnings_as_lines(job, meter):
            rollout = model.rollout(
                job.start,
                job.steps,
                n_walkers=job.walkers,
                seed=job.seed,
                output=job.target,
                overwrite=job.overwrite,
                max_redraws=job.max_redraws,
                progress=meter,
                inputs=(job.start,),
                threads=job.threads,
            )
    except KeyboardInterrupt:
        if meter.now is None:
            raise
        print(
            f"interrupted after step {meter.now.step:,} of {job.steps:,}, which is saved; "
            f"give the same command again to continue{', without --overwrite' if job.overwrite else ''}",
            file=sys.stderr,
        )
        return INTERRUPTED
    return _conclude(job, meter, rollout.report)


def _model(job: Job) -> Any:
    import torch

    # Threads for whole batches of walkers instead, see `roll_out`.
    torch.set_num_threads(1)
    from zoo.rollout.errors import RolloutError
    from zoo.score_dynamics import ScoreDynamics

    model = ScoreDynamics.from_pretrained(job.checkpoint)
    if job.lag_time is not None and not math.isclose(job.lag_time, model.lag_time, rel_tol=1e-6):
        raise RolloutError(
            f"{job.checkpoint} takes steps of {model.lag_time:g} ps and cannot take {job.lag_time:g} ps: "
            "the lag time is part of a checkpoint; leave out --lag-time, or choose another checkpoint"
        )
    return model


@contextmanager
def _warnings_as_lines(job: Job, meter: _Meter) -> Iterator[None]:
    """Our own warnings become lines on stderr; those of others stay what they are."""
    from zoo.rollout.errors import OutOfDistributionWarning

    with warnings.catch_warnings():
        warnings.simplefilter("always", OutOfDistributionWarning)
        others = warnings.showwarning

        def show(message: Any, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, OutOfDistributionWarning):
                print(f"warning: {job.start}: {message}", file=sys.stderr)
            else:
                others(message, category, *rest, **more)

        warnings.showwarning = show
        yield


def _conclude(job: Job, meter: _Meter, report: RolloutReport) -> int:
    stopped = report.stopped
    for walker, reason in list(stopped.items())[:_MOST_WARNINGS]:
        print(f"warning: walker {walker} stopped at {reason}", file=sys.stderr)
    if len(stopped) > _MOST_WARNINGS:
        more = len(stopped) - _MOST_WARNINGS
        print(f"warning: {more} more walkers stopped, see {job.target.with_suffix('.json')}", file=sys.stderr)
    if meter.complete_before:
        if not job.quiet:
            step = meter.now.step if meter.now is not None else job.steps
            print(f"{job.target} is complete: {step:,} steps were done before; a larger -n continues it")
    elif not job.quiet:
        print(report.summary())
    if len(stopped) == report.n_walkers:
        every = "the walker" if report.n_walkers == 1 else "every walker"
        print(f"error: {every} stopped before step {job.steps:,}", file=sys.stderr)
        return 1
    return 0


class _Meter:
    """The progress callback: a bar on a terminal, drawn once the walkers are on their way."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.now: Progress | None = None
        self.complete_before = False
        self._progress: Any = None
        self._task: Any = None
        self._drawn = 0.0

    def __enter__(self) -> _Meter:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress is not None:
            if self.now is not None:
                self._draw(self.now, force=True)
            self._progress.stop()

    def __call__(self, now: Progress) -> None:
        """Before the first and after every step."""
        first, self.now = self.now is None, now
        if first:
            self._begin(now)
        self._draw(now)

    def _begin(self, now: Progress) -> None:
        self.complete_before = now.step >= now.n_steps
        if self._job.quiet or self.complete_before:
            return
        if now.step:
            print(f"continuing {self._job.target} after step {now.step:,}", file=sys.stderr)
        from rich.console import Console

        console = Console(stderr=True)
        if not console.is_terminal:
            return
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._progress = Bar(
            TextColumn("step {task.completed:,.0f}/{task.total:,.0f}"),
            BarColumn(),
            TextColumn("{task.fields[walkers]} walkers"),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[redrawn]} redrawn"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task(
            "rollout", total=now.n_steps, completed=now.step, walkers=now.running, speed="-", redrawn="-"
        )
        self._progress.start()

    def _draw(self, now: Progress, force: bool = False) -> None:
        if self._progress is None:
            return
        clock = time.perf_counter()
        if not force and clock - self._drawn < _REDRAW_SECONDS:
            return
        self._drawn = clock
        from zoo.rollout.report import NS_PER_DAY, percent

        rate = now.ps_per_second
        self._progress.update(
            self._task,
            completed=now.step,
            walkers=now.running,
            speed=f"{rate:,.4g} ps/s  {rate * NS_PER_DAY:,.4g} ns/day",
            redrawn=percent(now.redrawn_fraction),
        )
