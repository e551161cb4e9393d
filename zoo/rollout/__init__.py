"""Rolling a model out over time: walkers, redraws, files written as it goes, and resuming them.

The only place with a loop over time.  Nothing here knows what the network is: a model is whatever
has the attributes of `Propagator`.
"""

from __future__ import annotations

from zoo.rollout.errors import OutOfDistributionWarning, RolloutError
from zoo.rollout.loop import Propagator, Rollout, roll_out
from zoo.rollout.report import Progress, RolloutReport, WalkerReport

__all__ = [
    "OutOfDistributionWarning",
    "Progress",
    "Propagator",
    "Rollout",
    "RolloutError",
    "RolloutReport",
    "WalkerReport",
    "roll_out",
]
