"""How much one visitor may ask for; stated on the page, enforced in the workers."""

from __future__ import annotations

from dataclasses import dataclass

from zoo_space.errors import VisitorError

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Limits:
    """All of them; seconds are wall time of one job, queue is of jobs that wait."""

    upload_mb: int = 20
    unpacked_mb: int = 80
    atoms: int = 20_000
    frames: int = 1_000
    denoise_steps: int = 20
    denoise_seconds: float = 120.0
    lag_steps: int = 5_000
    walkers: int = 32
    walker_steps: int = 50_000
    rollout_seconds: float = 180.0
    start_atoms: int = 20_000
    memory_gb: float = 6.0
    workers: int = 2
    queue: int = 16
    shown_atoms: int = 4_000
    shown_frames: int = 200

    def of_denoising(self) -> str:
        """For the page."""
        return (
            f"One frame of up to {self.atoms:,} atoms per job, picked from the first {self.frames:,} frames "
            f"of a file of up to {self.upload_mb} MB ({self.unpacked_mb} MB unpacked); at most "
            f"{self.denoise_steps} steps and {self.denoise_seconds:.0f} s."
        )

    def of_rollouts(self) -> str:
        """For the page."""
        return (
            f"At most {self.lag_steps:,} steps, {self.walkers} walkers, {self.walker_steps:,} walker steps "
            f"and {self.rollout_seconds:.0f} s per job; a start file of up to {self.upload_mb} MB."
        )

    def check_rollout(self, steps: int, walkers: int) -> None:
        """Raises VisitorError."""
        if steps > self.lag_steps:
            raise VisitorError(f"{steps:,} steps are more than the {self.lag_steps:,} that this page does")
        if walkers > self.walkers:
            raise VisitorError(f"{walkers:,} walkers are more than the {self.walkers} that this page does")
        if steps * walkers > self.walker_steps:
            raise VisitorError(
                f"{steps:,} steps of {walkers} walkers are more than {self.walker_steps:,} walker steps: "
                "take fewer of either, or run zoo rollout at home, where there is no limit"
            )


def whole(value: object, name: str, least: int, most: int) -> int:
    """A whole number from a form or an API call.

    Raises VisitorError.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer():
        raise VisitorError(f"{name} must be a whole number from {least:,} to {most:,}, not {value!r}")
    if not least <= value <= most:
        raise VisitorError(f"{name} must be from {least:,} to {most:,}, not {int(value):,}")
    return int(value)
