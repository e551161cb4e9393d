"""What `zoo denoise` does: frames in, denoised frames out, one at a time, with progress."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from zoo.errors import StructureError, ZooError

if TYPE_CHECKING:
    from ase import Atoms

INTERRUPTED = 130
_REDRAW_SECONDS = 0.1


class Selection(Protocol):
    """What reading frames and telling of progress need to know of a job."""

    @property
    def source(self) -> Path: ...
    @property
    def species(self) -> list[str] | None: ...
    @property
    def format_in(self) -> str | None: ...
    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int | None: ...
    @property
    def every(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def threads(self) -> int | None: ...
    @property
    def quiet(self) -> bool: ...


@dataclass(frozen=True)
class Job:
    """Everything the user asked for; frames count from 0, ``stop`` is exclusive.

    ``checkpoint`` None: the one that suits the first frame.  ``colors`` None: with ``analyze``.
    """

    source: Path
    target: Path
    checkpoint: str | None
    steps: int = 10
    analyze: bool = False
    colors: bool | None = None
    species: list[str] | None = None
    format_in: str | None = None
    format_out: str | None = None
    start: int = 0
    stop: int | None = None
    every: int = 1
    overwrite: bool = False
    threads: int | None = None
    quiet: bool = False


def run(job: Job) -> int:
    """Denoise a trajectory and return the exit status: 0, or 130 when interrupted.

    Raises
    ------
    ZooError
        One line; it says how many finished frames were kept, if any.
    """
    # Cheapest checks first: the names, the first frame, the file to write, and only then the network.
    from zoo.structures import FrameWriter

    if job.stop is not None and job.stop <= job.start:
        raise StructureError(f"no frame selected: --stop {job.stop} is not after --start {job.start}")
    if job.analyze:
        from zoo.cli import require_ovito

        require_ovito()
    writer = FrameWriter(job.target, job.format_out, source=job.source, overwrite=True)
    if job.target.is_file() and not job.overwrite:
        raise StructureError(f"{job.target} exists already; use --overwrite, or another name with -o")
    meter = Meter(job)
    frames = selected_frames(job, meter)
    try:
        first = next(frames, None)
        if first is None:
            raise StructureError(f"no frame selected: {job.source} ends before frame {job.start}")
        with writer:
            start = begin(job.checkpoint, first, job, meter)
            judged = getattr(start.denoiser, "head", None) is not None
            config = getattr(start.denoiser, "config", None)
            tally = _Tally(judged, getattr(config, "acts_on", "")) if job.analyze else None
            painted = _painted(job, writer, judged)
            with meter:
                _denoise_all(start, first, frames, job, writer, meter, tally, painted)
    except KeyboardInterrupt:
        print(f"interrupted: {_kept(writer, job)}", file=sys.stderr)
        return INTERRUPTED
    except ZooError as exc:
        if not writer.n_frames or not job.target.exists():
            raise
        raise ZooError(f"{exc}; {_kept(writer, job)}") from None
    meter.summary(job.target)
    if tally is not None:
        tally.show()
    return 0


@dataclass(frozen=True)
class Start:
    """The denoiser, what it made of the first frame if that is known already, and how long it took (s)."""

    denoiser: Any
    clean: Atoms | None = None
    seconds: float = 0.0


def begin(checkpoint: str | None, first: tuple[int, Atoms], job: Selection, meter: Meter) -> Start:
    """Load the checkpoint, or choose one by the first frame and say on stderr which and why.

    Raises
    ------
    StructureError : no denoiser can treat the first frame.
    CheckpointError : the checkpoint cannot be had, or none for this composition is on this machine.
    """
    if job.threads is not None:
        import torch

        torch.set_num_threads(job.threads)
    if checkpoint is not None:
        from zoo.denoiser import Denoiser

        return Start(Denoiser.from_pretrained(checkpoint))
    from zoo.choice import choose

    index, atoms = first
    try:
        with meter:
            meter.begin(len(atoms))
            choice = choose(atoms, job.steps, meter.step)
    except StructureError as exc:
        raise StructureError(f"{job.source}, frame {index + 1}: {exc}") from None
    if not job.quiet:
        # one line, whatever a reason was quoted from
        print(f"chose {choice.name}: {' '.join(choice.reason.split())}", file=sys.stderr)
    return Start(choice.denoiser, choice.clean, choice.seconds)


def _painted(job: Job, writer: Any, judged: bool) -> bool:
    """Whether atoms get the colours of their labels; says what the file or the checkpoint does not give."""
    wanted = job.analyze if job.colors is None else job.colors
    labels = ["structure_type", "confidence"] if judged else []
    if job.analyze:
        labels.append("site_type" if judged else "structure_type")
    note = ""
    if labels and not writer.keeps_arrays:
        from zoo.structures.writer import ARRAY_FORMATS

        lost = [*labels, *(["color"] if job.colors else [])]
        note = f"{writer.format} has no place for {', '.join(lost)}: {' and '.join(ARRAY_FORMATS)} keep them"
    elif job.colors and not labels:
        note = "no colours: this checkpoint gives no verdict; --analyze gives labels"
    if note and not job.quiet:
        print(note, file=sys.stderr)
    return wanted and bool(labels) and writer.keeps_arrays


def _kept(writer: Any, job: Job) -> str:
    if not writer.n_frames:
        return "no frame was finished, nothing was written"
    frames = "1 finished frame is" if writer.n_frames == 1 else f"{writer.n_frames} finished frames are"
    return f"{frames} kept in {job.target}"


def selected_frames(job: Selection, meter: Meter) -> Iterator[tuple[int, Atoms]]:
    """The frames that were asked for, checked, with their numbers; the file is read as they are taken."""
    from zoo.structures import check_structure, read_frames

    frames = read_frames(job.source, job.format_in, job.species, on_read=meter.on_read)
    for index, atoms in islice(enumerate(frames), job.start, job.stop, job.every):
        check_structure(atoms, f"{job.source}, frame {index + 1}")
        yield index, atoms


def _denoise_all(
    start: Start,
    first: tuple[int, Atoms],
    rest: Iterator[tuple[int, Atoms]],
    job: Job,
    writer: Any,
    meter: Meter,
    tally: _Tally | None,
    painted: bool,
) -> None:
    from zoo.structures.colors import paint

    current: tuple[int, Atoms] | None = first
    known, spent = start.clean, start.seconds
    judged = getattr(start.denoiser, "head", None) is not None
    while current is not None:
        index, atoms = current
        meter.begin(len(atoms), spent)
        try:
            denoised = known
            if denoised is None:
                denoised = start.denoiser.denoise(atoms, steps=job.steps, callback=meter.step)
        except StructureError as exc:
            raise StructureError(f"{job.source}, frame {index + 1}: {exc}") from None
        known, spent = None, 0.0
        if tally is not None:
            tally.add(atoms, denoised)
        paint(atoms, denoised, judged=judged, wanted=painted)
        writer.write(denoised)
        meter.finish(int(denoised.info.get("denoise_steps", job.steps)))
        current = next(rest, None)


class _Tally:
    """Structure fractions before and after, averaged over the frames."""

    def __init__(self, judged: bool, acts_on: str = "") -> None:
        self._judged = judged  # whether the checkpoint gives a verdict
        self._acts_on = acts_on  # the element whose sites are the crystal, or nothing for all atoms
        self._before: Counter[str] = Counter()
        self._after: Counter[str] = Counter()
        self._verdict: Counter[str] = Counter()
        self._confidence = 0.0
        self._frames = 0

    def add(self, atoms: Atoms, denoised: Atoms) -> None:
        """Count one frame and label the atoms of the denoised one."""
        import numpy as np

        from zoo.analysis.crystals import store_labels, structure_fractions, structure_types
        from zoo.riders import riders

        acting = riders(atoms, self._acts_on).acting if self._acts_on else np.arange(len(atoms))
        self._before.update(structure_fractions(structure_types(atoms[acting])))
        of_them = structure_types(denoised[acting])
        self._after.update(structure_fractions(of_them))
        labels = np.zeros(len(atoms), dtype=np.int64)
        labels[acting] = of_them
        self._frames += 1
        if self._judged:
            names, counts = np.unique(denoised.arrays["structure_type"], return_counts=True)
            for name, count in zip(names.tolist(), counts.tolist(), strict=True):
                self._verdict[name] += count / len(denoised)
            self._confidence += float(denoised.arrays["confidence"].mean())
        store_labels(denoised, labels)

    def show(self) -> None:
        """Print the table on stdout."""
        from rich.console import Console
        from rich.table import Table

        from zoo.analysis.crystals import STRUCTURES

        of = "" if self._frames == 1 else f" (mean of {self._frames} frames)"
        table = Table(box=None, pad_edge=False)
        table.add_column(f"structure{of}", no_wrap=True)
        table.add_column("before", justify="right")
        table.add_column("after", justify="right")
        for name in (*STRUCTURES[1:], STRUCTURES[0]):
            before, after = self._before[name] / self._frames, self._after[name] / self._frames
            if before or after:
                table.add_row(name, percent(before), percent(after))
        Console().print(table)
        if not self._verdict:
            return
        table = Table(box=None, pad_edge=False)
        table.add_column("verdict", no_wrap=True)
        table.add_column("share", justify="right")
        for name, share in self._verdict.most_common():
            table.add_row(name, percent(share / self._frames))
        Console().print()
        Console().print(table)
        Console().print(f"mean confidence {self._confidence / self._frames:.3f}", highlight=False)


def percent(share: float, up: bool = False) -> str:
    """Rounded down, so that one atom in ten thousand does not disappear in a 100 %; or ``up``."""
    hundredths = math.ceil(share * 1e4 - 1e-6) if up else int(share * 1e4 + 1e-6)
    return f"{hundredths / 100:.2f} %"


class Meter:
    """Progress on a terminal, and the figures for the summary line.

    Without ``--stop`` the number of frames is not known before the end of the file, so the bar shows
    the share of the file that has been read, advanced within a frame by the steps done.
    """

    def __init__(self, job: Selection) -> None:
        self._job = job
        self._read = (0, 1)
        self._share_before = 0.0
        self._progress: Any = None
        self._task: Any = None
        self._frames = 0
        self._atoms = 0
        self._atom_steps = 0
        self._now = 0
        self._started = 0.0
        self._working = 0.0
        self._drawn = 0.0

    def on_read(self, done: int, size: int) -> None:
        """Bytes read so far and size of the input file."""
        self._read = (done, max(size, 1))

    def __enter__(self) -> Meter:
        from rich.console import Console

        console = Console(stderr=True)
        if not self._job.quiet and console.is_terminal:
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("frame {task.fields[frame]}"),
                BarColumn(),
                TextColumn("step {task.fields[step]}/" + str(self._job.steps)),
                TextColumn("{task.fields[rate]} atoms/s"),
                TimeElapsedColumn(),
                console=console,
                transient=True,
            )
            self._task = self._progress.add_task("denoise", total=1.0, frame=1, step=0, rate="-")
            self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def begin(self, n_atoms: int, spent: float = 0.0) -> None:
        """A frame starts, or goes on after so many seconds."""
        self._now = n_atoms
        self._started = time.perf_counter() - spent
        self._draw(0, force=True)

    def step(self, step: int, positions: Any, displacement: float) -> None:
        """A step of the current frame is done (the denoiser's callback)."""
        self._draw(step)

    def finish(self, steps: int) -> None:
        """The frame is done and written, after that many steps."""
        self._working += time.perf_counter() - self._started
        self._frames += 1
        self._atoms += self._now
        self._atom_steps += self._now * steps
        self._now = 0
        self._share_before = self._share()

    def _share(self) -> float:
        if self._job.stop is None:
            return self._read[0] / self._read[1]
        wanted = len(range(self._job.start, self._job.stop, self._job.every))
        # the frame under way counts, as it does in the bytes read
        return (self._frames + (self._now > 0)) / wanted

    def _draw(self, step: int, force: bool = False) -> None:
        if self._progress is None:
            return
        now = time.perf_counter()
        if not force and now - self._drawn < _REDRAW_SECONDS:
            return
        self._drawn = now
        within = step / self._job.steps
        busy = self._working + now - self._started
        done = self._atoms + self._now * within
        self._progress.update(
            self._task,
            completed=self._share_before + (self._share() - self._share_before) * within,
            frame=self._frames + 1,
            step=step,
            rate=f"{done / busy:,.0f}" if busy > 0 and done else "-",
        )

    def summary(self, target: Path) -> None:
        """One line on stderr: what was done, how fast, and where it is."""
        if self._job.quiet:
            return
        seconds = max(self._working, 1e-9)
        frames = "1 frame" if self._frames == 1 else f"{self._frames} frames"
        mean_steps = self._atom_steps / max(self._atoms, 1)
        print(
            f"{frames}, {self._atoms:,} atoms, {mean_steps:.3g} steps: {seconds:.1f} s "
            f"({self._atoms / seconds:,.0f} atoms/s), written to {target}",
            file=sys.stderr,
        )
