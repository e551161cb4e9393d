"""What a rollout complains about, apart from the start structure itself."""

from __future__ import annotations

from zoo.errors import ZooError


class RolloutError(ZooError, ValueError):
    """Numbers of steps or walkers that make no sense, or output that cannot be written or continued."""


class OutOfDistributionWarning(UserWarning):
    """A start structure lies farther from the training data than held-out MD does."""
