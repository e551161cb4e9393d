"""The exact state of a rollout: where every walker is, and what it took to get there."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.molecules.checks import KINDS
from zoo.rollout.errors import RolloutError
from zoo.rollout.files import replace
from zoo.rollout.report import RolloutReport, WalkerReport

FORMAT_VERSION = 1


@dataclass(frozen=True)
class State:
    """All walkers after a lag step; never changed, so an interrupt finds either this one or the next.

    Parameters
    ----------
    step
        Lag steps done, 0 at the start.
    positions
        (n_walkers, n_sites, 3) Å; of a stopped walker its last valid ones.
    frames
        (n_walkers,) frames of each trajectory, the start included.
    rejected
        (n_walkers, n_kinds) bad proposals, by `KINDS`.
    stopped
        Why each walker stopped, None while it runs.
    """

    step: int
    positions: npt.NDArray[np.float64]
    frames: npt.NDArray[np.int64]
    rejected: npt.NDArray[np.int64]
    stopped: tuple[str | None, ...]

    @classmethod
    def start(cls, positions: npt.NDArray[np.float64]) -> State:
        """Step 0, with these positions."""
        n = len(positions)
        counts = np.zeros((n, len(KINDS)), dtype=np.int64)
        return cls(0, positions, np.ones(n, dtype=np.int64), counts, (None,) * n)

    @property
    def running(self) -> list[int]:
        """Walkers that have not stopped."""
        return [w for w, reason in enumerate(self.stopped) if reason is None]

    @property
    def accepted(self) -> int:
        """Lag steps of all walkers together."""
        return int((self.frames - 1).sum())


@dataclass(frozen=True)
class Settings:
    """What has to be the same for a run to be continued."""

    checkpoint: str
    weights: str
    lag_time: float
    seed: int
    walkers: int
    start: str
    suffix: str

    def differences(self, other: dict[str, Any]) -> list[str]:
        """In words, how the settings of a run on disk differ from these; empty if they do not."""
        names = {
            "checkpoint": "checkpoint",
            "weights": "sha256 of the weights",
            "lag_time": "lag time (ps)",
            "seed": "seed",
            "walkers": "number of walkers",
            "start": "start positions (sha256)",
            "suffix": "file format",
        }
        return [
            f"{name} {_short(other.get(key))} there, {_short(getattr(self, key))} now"
            for key, name in names.items()
            if other.get(key) != getattr(self, key)
        ]


@dataclass(frozen=True)
class Saved:
    """A state as it is on disk, with how much of each trajectory file belongs to it.

    `frames` can be fewer than `state.frames` in one case only: at the very beginning, when the state
    has been written and the start frames have not.
    """

    settings: dict[str, Any]
    state: State
    frames: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    out_of_distribution: npt.NDArray[np.float64]
    seconds: float


def report_of(
    settings: Settings,
    state: State,
    n_steps: int,
    max_redraws: int,
    seconds: float,
    out_of_distribution: npt.NDArray[np.float64],
    files: tuple[str, ...] = (),
) -> RolloutReport:
    """The report of a state."""
    walkers = tuple(
        WalkerReport(
            int(state.frames[w]) - 1,
            {kind: int(n) for kind, n in zip(KINDS, state.rejected[w], strict=True) if n},
            state.stopped[w],
            float(out_of_distribution[w]),
        )
        for w in range(len(state.frames))
    )
    return RolloutReport(
        settings.checkpoint,
        settings.weights,
        settings.lag_time,
        settings.seed,
        n_steps,
        max_redraws,
        seconds,
        walkers,
        files,
    )


def save(path: Path, saved: Saved) -> None:
    """Write the state file in one piece; whatever interrupts this, the old or the new one is there."""
    raw = io.BytesIO()
    about = {
        "format_version": FORMAT_VERSION,
        "settings": saved.settings,
        "step": saved.state.step,
        "stopped": saved.state.stopped,
        "seconds": saved.seconds,
    }
    np.savez(
        raw,
        about=np.array(json.dumps(about)),
        positions=saved.state.positions,
        state_frames=saved.state.frames,
        rejected=saved.state.rejected,
        frames=saved.frames,
        sizes=saved.sizes,
        out_of_distribution=saved.out_of_distribution,
    )
    replace(path, raw.getvalue())


def load(path: Path) -> Saved:
    """Read a state file.

    Raises
    ------
    RolloutError
        Damaged, not a state file, or of a newer format.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            about = json.loads(str(data["about"]))
            if about["format_version"] != FORMAT_VERSION:
                raise RolloutError(
                    f"{path} was written by another version of zoo (format {about['format_version']}, "
                    f"this one reads {FORMAT_VERSION}); choose another output (-o)"
                )
            state = State(
                about["step"],
                data["positions"],
                data["state_frames"],
                data["rejected"],
                tuple(about["stopped"]),
            )
            if not len(state.stopped) == len(state.positions) == len(state.frames) == len(state.rejected):
                raise ValueError("lists of different length")
            return Saved(
                about["settings"],
                state,
                data["frames"],
                data["sizes"],
                data["out_of_distribution"],
                float(about["seconds"]),
            )
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, RolloutError):
            raise
        raise RolloutError(
            f"{path} is damaged or not the state of a rollout ({' '.join(str(error).split())}); "
            "choose another output (-o), or --overwrite to start over"
        ) from None


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
