"""What `zoo analyze` does: the defects of every frame, as a table, as JSON and as a picture."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.denoise_command import INTERRUPTED, Meter, Start, begin, percent, selected_frames
from zoo.errors import StructureError, ZooError
from zoo.verdict_names import DISORDERED

if TYPE_CHECKING:
    from ase import Atoms
    from rich.console import Console

    from zoo.analysis.crystals import IntArray
    from zoo.analysis.defect_report import DefectReport

FORMAT = 1


@dataclass(frozen=True)
class Job:
    """Everything the user asked for; frames count from 0, ``stop`` is exclusive.

    ``checkpoint`` None: the one that suits the first frame.  ``denoise`` False: the frames are without noise
    already.  ``output`` None: only the table.
    """

    source: Path
    output: Path | None
    checkpoint: str | None
    denoise: bool = True
    steps: int = 10
    species: list[str] | None = None
    format_in: str | None = None
    start: int = 0
    stop: int | None = None
    every: int = 1
    overwrite: bool = False
    threads: int | None = None
    quiet: bool = False


def run(job: Job, console: Console) -> int:
    """Analyze a trajectory and return the exit status: 0, or 130 when interrupted.

    Raises
    ------
    ZooError : one line; what was finished before is written if ``output`` was asked for.
    """
    from zoo.cli import require_ovito
    from zoo.evaluate_command import check_report

    if job.stop is not None and job.stop <= job.start:
        raise StructureError(f"no frame selected: --stop {job.stop} is not after --start {job.start}")
    require_ovito()
    if job.output is not None:
        check_report(job.output, job.output.with_suffix(".png"), job.overwrite)
    meter = Meter(job)
    frames = selected_frames(job, meter)
    first = next(frames, None)
    if first is None:
        raise StructureError(f"no frame selected: {job.source} ends before frame {job.start}")
    start = begin(job.checkpoint, first, job, meter) if job.denoise else Start(None)
    denoiser = start.denoiser
    found = _Found(job, None if denoiser is None else f"{denoiser.name}@{denoiser.config.version}")
    status, failure = 0, None
    try:
        with meter:
            current: tuple[int, Atoms] | None = first
            while current is not None:
                index, atoms = current
                known = start if atoms is first[1] else Start(denoiser)
                meter.begin(len(atoms), known.seconds)
                try:
                    found.add(index, *_analyzed(known, atoms, job.steps, meter))
                except StructureError as error:
                    raise StructureError(f"{job.source}, frame {index + 1}: {error}") from None
                meter.finish(1)
                current = next(frames, None)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except ZooError as error:
        failure = error
    found.show(console)
    written = found.write()
    if written:
        console.print(f"written to {written}", highlight=False, soft_wrap=True)
    done = f"{len(found.reports)} finished frame{'s are' if len(found.reports) != 1 else ' is'} shown"
    if status == INTERRUPTED:
        print(f"interrupted: {done}", file=sys.stderr)
    if failure is not None:
        raise failure if not found.reports else ZooError(f"{failure}; {done}")
    return status


def _analyzed(start: Start, atoms: Atoms, steps: int, meter: Meter) -> tuple[Atoms, IntArray, DefectReport]:
    from zoo.analysis.crystals import structure_types
    from zoo.analysis.defect_report import defect_report
    from zoo.riders import acting_part

    clean = atoms if start.denoiser is None else start.clean
    if clean is None:
        clean = start.denoiser.denoise(atoms, steps=steps, callback=meter.step)
    # In water the crystal is that of the oxygens.
    clean = acting_part(clean, getattr(getattr(start.denoiser, "config", None), "acts_on", ""))
    labels = structure_types(clean)
    return clean, labels, defect_report(clean, labels)


class _Found:
    """The reports so far, and what is needed of the last frame for the picture."""

    def __init__(self, job: Job, checkpoint: str | None) -> None:
        self.job, self.checkpoint = job, checkpoint
        self.reports: list[DefectReport] = []
        self.frames: list[int] = []
        self._steps: list[float | None] = []
        self._last: tuple[Atoms, IntArray] | None = None

    def add(self, frame: int, atoms: Atoms, labels: IntArray, report: DefectReport) -> None:
        self.reports.append(report)
        self.frames.append(frame)
        self._last = (atoms, labels)
        step = atoms.info.get("timestep")
        self._steps.append(float(step) if isinstance(step, int | float) else None)

    def times(self) -> tuple[str, list[float]]:
        """A name and the value of each frame: MD steps where the file has them, else its number."""
        steps = [step for step in self._steps if step is not None]
        if len(steps) == len(self.frames) and len(set(steps)) == len(steps):
            return "MD step", steps
        return "frame", [float(k) for k in self.frames]

    def write(self) -> str:
        """JSON and picture, if they were asked for; what to tell of them."""
        if self.job.output is None or self._last is None:
            return ""
        from zoo.analysis.defect_picture import draw
        from zoo.checkpoint import to_json, write_text

        label, times = self.times()
        content = {
            "format": FORMAT,
            "source": self.job.source.name,
            "checkpoint": self.checkpoint,
            "frames": [
                {"frame": frame, label.replace(" ", "_").lower(): time, **report.to_json()}
                for frame, time, report in zip(self.frames, times, self.reports, strict=True)
            ],
        }
        write_text(self.job.output, to_json(content, self.job.output))
        picture = self.job.output.with_suffix(".png")
        draw(self.reports, times, label, picture, self._last)
        return f"{self.job.output} and {picture}"

    def show(self, console: Console) -> None:
        """The table: a column of figures for one frame, a line per frame for several."""
        if not self.reports:
            return
        if len(self.reports) == 1:
            _show_one(self.reports[0], console)
        else:
            _show_many(self.reports, *self.times(), console)


def _show_one(report: DefectReport, console: Console) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    table.add_row("atoms", f"{report.atoms:,}")
    if report.unclassified:
        for name, share in report.verdict.items():
            table.add_row(name, percent(share, up=name == DISORDERED))
        console.print(table)
        console.print(
            f"by the verdict of the checkpoint; classifiers have no class for {report.unclassified}, "
            "so defects are not counted",
            soft_wrap=True,
        )
        return
    for name, share in report.fractions.items():
        if share and name != "other":
            table.add_row(name, percent(share))
    table.add_row("other", percent(report.fractions["other"], up=True))
    table.add_row("  of it disordered", percent(report.disordered, up=True))
    if report.crystal is not None:
        table.add_row("vacancies", str(report.vacancies))
        table.add_row("interstitials", str(report.interstitials))
        for kind, number in report.planes.items():
            table.add_row(kind if number == 1 else _plural(kind), str(number))
        table.add_row("grains", _grains(report.grains))
        for family, (number, length) in report.dislocations.items():
            table.add_row(f"dislocations {family}", f"{number}, {length:.1f} Å")
        if report.dislocation_density:
            table.add_row("dislocation density", f"{report.dislocation_density:.3g} /m²")
    console.print(table)
    if report.crystal is None:
        console.print("no crystal found, so there are no defects to be counted")


def _show_many(reports: Sequence[DefectReport], label: str, times: Sequence[float], console: Console) -> None:
    from rich.table import Table

    kinds = sorted({kind for report in reports for kind in report.planes})
    table = Table(box=None, pad_edge=False)
    headers = (label, "crystal", "of atoms", "disordered", "vac.", "int.")
    for header in (*headers, *map(_plural, kinds), "grains", "lines, Å"):
        justify: Any = "left" if header == "crystal" else "right"
        table.add_column(header, justify=justify, overflow="fold", no_wrap=False)
    for time, r in zip(times, reports, strict=True):
        share = 0.0 if r.crystal is None else r.fractions[r.crystal]
        name, disordered = r.crystal or "none", r.disordered
        if r.unclassified:
            name, disordered = r.unclassified, r.verdict.get(DISORDERED, 0.0)
            share = r.verdict[name]
        table.add_row(
            f"{time:g}", name, percent(share), percent(disordered, up=True),
            str(r.vacancies), str(r.interstitials), *(str(r.planes.get(kind, 0)) for kind in kinds),
            str(len(r.grains)), f"{r.dislocation_length:.1f}",
        )  # fmt: skip
    console.print(table)


def _plural(kind: str) -> str:
    return kind.removesuffix("y") + "ies" if kind.endswith("y") else kind + "s"


def _grains(sizes: Sequence[int]) -> str:
    if len(sizes) < 2:
        return str(len(sizes))
    shown = ", ".join(f"{size:,}" for size in sizes[:4])
    return f"{len(sizes)} ({shown}{', …' if len(sizes) > 4 else ''} atoms)"
