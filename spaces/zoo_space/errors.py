"""What a visitor is told when something cannot be done."""

from __future__ import annotations

from zoo.errors import ZooError


class VisitorError(ZooError):
    """One line: what is wrong, where, and what to do."""
