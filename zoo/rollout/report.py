"""What came of a rollout: counts, reasons and speed, as text and as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from zoo.molecules.checks import KINDS

NS_PER_DAY = 86.4  # of one ps per second


@dataclass(frozen=True)
class WalkerReport:
    """One walker: accepted lag steps, bad proposals by kind, why it stopped, and how odd its start was.

    `out_of_distribution` is 1 where the start is as far from the training data as the farthest
    0.1 % of held-out MD frames, and more where it is farther.
    """

    steps: int
    redrawn: dict[str, int]
    stopped: str | None
    out_of_distribution: float

    def to_json(self) -> dict[str, Any]:
        """Plain dict of the fields."""
        return {
            "steps": self.steps,
            "redrawn": dict(self.redrawn),
            "stopped": self.stopped,
            "out_of_distribution": self.out_of_distribution,
        }


@dataclass(frozen=True)
class RolloutReport:
    """Everything worth knowing about a rollout apart from the positions.

    Every proposal is either accepted, which makes one lag step of one walker, or found bad and
    redrawn from the same state, so ``proposed == accepted + redrawn``.  `seconds` is wall time,
    summed over all calls of a run that was resumed.
    """

    checkpoint_id: str
    weights_sha256: str
    lag_time: float
    seed: int
    n_steps: int
    max_redraws: int
    seconds: float
    walkers: tuple[WalkerReport, ...]
    files: tuple[str, ...] = ()

    @property
    def n_walkers(self) -> int:
        """Walkers, stopped ones included."""
        return len(self.walkers)

    @property
    def accepted(self) -> int:
        """Lag steps done, of all walkers together."""
        return sum(walker.steps for walker in self.walkers)

    @property
    def redrawn(self) -> int:
        """Proposals found bad and thrown away."""
        return sum(self.by_kind.values())

    @property
    def proposed(self) -> int:
        """All proposals, good and bad."""
        return self.accepted + self.redrawn

    @property
    def redrawn_fraction(self) -> float:
        """Share of the proposals that were bad; 0 before the first."""
        return self.redrawn / self.proposed if self.proposed else 0.0

    @property
    def by_kind(self) -> dict[str, int]:
        """Bad proposals by kind of reason, kinds that did not occur left out."""
        total: Counter[str] = Counter()
        for walker in self.walkers:
            total.update(walker.redrawn)
        return {kind: total[kind] for kind in KINDS if total[kind]}

    @property
    def stopped(self) -> dict[int, str]:
        """Reason by walker, for the walkers that stopped early."""
        return {w: each.stopped for w, each in enumerate(self.walkers) if each.stopped is not None}

    @property
    def out_of_distribution(self) -> float:
        """The oddest start."""
        return max(walker.out_of_distribution for walker in self.walkers)

    @property
    def simulated_ps(self) -> float:
        """Time simulated, of all walkers together, ps."""
        return self.accepted * self.lag_time

    @property
    def ps_per_second(self) -> float:
        """Simulated ps per second of wall time, all walkers together; 0 where nothing was done."""
        return self.simulated_ps / self.seconds if self.seconds > 0 else 0.0

    @property
    def ns_per_day(self) -> float:
        """`ps_per_second` in ns per day."""
        return self.ps_per_second * NS_PER_DAY

    def to_json(self) -> dict[str, Any]:
        """Plain dict: the settings, the totals, and one entry per walker."""
        return {
            "checkpoint": self.checkpoint_id,
            "weights_sha256": self.weights_sha256,
            "lag_time_ps": self.lag_time,
            "seed": self.seed,
            "n_steps": self.n_steps,
            "n_walkers": self.n_walkers,
            "max_redraws": self.max_redraws,
            "proposed": self.proposed,
            "accepted": self.accepted,
            "redrawn": self.redrawn,
            "redrawn_fraction": self.redrawn_fraction,
            "redrawn_by_kind": self.by_kind,
            "simulated_ps": self.simulated_ps,
            "seconds": self.seconds,
            "ps_per_second": self.ps_per_second,
            "ns_per_day": self.ns_per_day,
            "start_out_of_distribution": self.out_of_distribution,
            "files": list(self.files),
            "walkers": [walker.to_json() for walker in self.walkers],
        }

    def summary(self) -> str:
        """A few lines of text."""
        walkers = "1 walker" if self.n_walkers == 1 else f"{self.n_walkers} walkers"
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.by_kind.items())
        lines = [
            f"{walkers}, {self.accepted:,} steps of {self.lag_time:g} ps, {self.simulated_ps / 1000:,.6g} ns "
            f"({self.checkpoint_id}, seed {self.seed})",
            f"{self.redrawn:,} of {self.proposed:,} proposals redrawn ({percent(self.redrawn_fraction)})"
            + (f": {kinds}" if kinds else ""),
            f"{self.seconds:,.1f} s, {self.ps_per_second:,.4g} ps/s, {self.ns_per_day:,.4g} ns/day",
        ]
        if self.stopped:
            lines.append(f"{len(self.stopped)} of {walkers} stopped early: {_few(self.stopped)}")
        if self.files:
            last = f" ... {self.files[-1]}" if len(self.files) > 1 else ""
            lines.append(f"written to {self.files[0]}{last}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Progress:
    """Where a rollout stands; given to the progress callback before the first and after every step.

    `step` of `n_steps` is done, the counts are of the whole run, `simulated_ps` and `seconds` of
    this call only, so that their ratio is the present speed.
    """

    step: int
    n_steps: int
    running: int
    accepted: int
    redrawn: int
    simulated_ps: float
    seconds: float

    @property
    def redrawn_fraction(self) -> float:
        """Share of the proposals that were bad."""
        return self.redrawn / max(self.accepted + self.redrawn, 1)

    @property
    def ps_per_second(self) -> float:
        """All walkers together."""
        return self.simulated_ps / self.seconds if self.seconds > 0 else 0.0


def percent(share: float) -> str:
    """Two significant digits, so that a rare redraw does not round to none."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 99.5 else f"{value:.2g} %"


def _few(stopped: dict[int, str], most: int = 3) -> str:
    told = [f"walker {w} at {reason}" for w, reason in list(stopped.items())[:most]]
    return "; ".join(told) + ("; ..." if len(stopped) > most else "")
