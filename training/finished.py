"""A fine-tuned checkpoint gets its name when everything that belongs to it is there, and not before.

Until then it is in the folder of the training state, so that a run that is killed while it reports is one
that the same command continues.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from zoo.checkpoint import check_replaceable, put_in_place
from zoo.errors import CheckpointError, ZooError

#: What reports add to a checkpoint.
REPORTS = ("evaluation.json", "evaluation.png", "recovery.png")


def workplace(state: Path, out: Path) -> Path:
    """An empty folder to make the checkpoint in; named like ``out``, as the checkpoint will be.

    Raises
    ------
    CheckpointError : ``out`` holds something else than a checkpoint.
    """
    check_replaceable(out, REPORTS)
    made = state / "made" / out.name
    shutil.rmtree(made, ignore_errors=True)
    return made


def finish(made: Path, state: Path, out: Path) -> None:
    """Move the checkpoint to where it belongs, and forget the state.

    Raises
    ------
    ZooError : it cannot be moved; it stays where it was made.
    """
    try:
        check_replaceable(out, REPORTS)
        put_in_place(made, out)
    except (OSError, CheckpointError) as error:
        raise ZooError(f"cannot write {out}: {error}; the checkpoint is in {made}") from None
    shutil.rmtree(state, ignore_errors=True)
