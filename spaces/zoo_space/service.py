"""The two jobs as the page and the API both start them: checked, bounded, in a worker, files handed out."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zoo.registry import records
from zoo_space.errors import VisitorError
from zoo_space.examples import CRYSTALS, MOLECULES, Example, path_of
from zoo_space.limits import Limits, whole
from zoo_space.messages import AUTOMATIC, Denoised, DenoiseRequest, Progress, RolledOut, RolloutRequest
from zoo_space.workers import Done, Told, Workers

_LARGEST_SEED = 2**31 - 1


def names_of(kind: str) -> list[str]:
    """Released checkpoints of a kind, and "automatic" before them."""
    return [AUTOMATIC, *(record.name for record in records() if record.kind == kind)]


@dataclass(frozen=True)
class Service:
    """What can be asked for."""

    workers: Workers
    limits: Limits

    def denoise(
        self,
        upload: str | None,
        example: str | None,
        checkpoint: str,
        steps: object,
        frame: object,
        species: str,
        out: Path,
    ) -> Iterator[Progress | Denoised | Path]:
        """Progress, then the result, then the path of the picture.

        Raises VisitorError.
        """
        number = whole(-1 if frame == -1 else frame, "frame", -1, self.limits.frames)
        if number == 0:
            raise VisitorError("frames count from 1; -1 is the last one")
        request = DenoiseRequest(
            path=_source(upload, example, CRYSTALS, "a structure"),
            checkpoint=_checkpoint(checkpoint, "denoiser"),
            steps=whole(steps, "steps", 1, self.limits.denoise_steps),
            frame=number,
            species=(species or "").replace(",", " ")[:400],
            out=out,
            limits=self.limits,
        )
        for message in self.workers.run("zoo_space.jobs.denoise:run", request, self.limits.denoise_seconds):
            assert isinstance(message, Told | Done)
            yield message.value

    def rollout(
        self,
        upload: str | None,
        example: str | None,
        checkpoint: str,
        steps: object,
        walkers: object,
        seed: object,
        out: Path,
    ) -> Iterator[Progress | RolledOut]:
        """Progress, then the result.

        Raises VisitorError.
        """
        n_steps = whole(steps, "steps", 1, self.limits.lag_steps)
        n_walkers = whole(walkers, "walkers", 1, self.limits.walkers)
        self.limits.check_rollout(n_steps, n_walkers)
        request = RolloutRequest(
            path=_source(upload, example, MOLECULES, "a molecule"),
            checkpoint=_checkpoint(checkpoint, "score-dynamics"),
            steps=n_steps,
            walkers=n_walkers,
            seed=whole(seed, "seed", 0, _LARGEST_SEED),
            out=out,
            limits=self.limits,
        )
        for message in self.workers.run("zoo_space.jobs.rollout:run", request, self.limits.rollout_seconds):
            yield message.value


@contextmanager
def outbox() -> Iterator[Path]:
    """A folder for a job's files, gone when they have been handed out (the server makes its own copies)."""
    folder = Path(tempfile.mkdtemp(prefix="zoo-space-out-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _source(upload: str | None, example: str | None, among: tuple[Example, ...], what: str) -> Path:
    if upload:
        return Path(upload)
    if example:
        return path_of(example, among)
    raise VisitorError(f"there is nothing to work on: upload {what}, or pick one of the examples")


def _checkpoint(name: str | None, kind: str) -> str:
    """Only released ones: a visitor must not make this machine fetch or open anything else."""
    if name in (None, "", AUTOMATIC):
        return AUTOMATIC
    known = names_of(kind)
    if name not in known:
        raise VisitorError(f"there is no checkpoint {name!r} for this: choose one of {', '.join(known)}")
    return str(name)
