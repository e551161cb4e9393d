"""The errors that a user's input can cause.

Every message is one line that says what is wrong, where, and what to do.  The command line
prints the message of a `ZooError` and exits with 1; anything else is a bug of ours.
"""

from __future__ import annotations


class ZooError(Exception):
    """Base of all errors caused by input, files or the environment, not by a bug."""


class StructureError(ZooError, ValueError):
    """A structure or trajectory that cannot be used (NaN, no cell, overlapping atoms, ...)."""


class CheckpointError(ZooError, ValueError):
    """A checkpoint folder that is missing, damaged, of another format or not ours."""


class UnknownCheckpointError(CheckpointError, KeyError):
    """A name that is neither a folder nor in the registry; the message offers close matches."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class MissingExtraError(ZooError, ImportError):
    """An optional dependency is missing; the message names the extra that brings it."""
