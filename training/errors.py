"""What is wrong with the data or the settings of a training, told to its user in one line."""

from __future__ import annotations

from zoo.errors import ZooError


class TrainingError(ZooError, ValueError):
    """Data or settings with which nothing can be trained, or a state that cannot be continued."""
