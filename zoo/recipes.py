"""Where the recipes of `training/` are, beside the package or inside of it (wheel), and how one is run.

They are no part of the package's API: each runs in a process of its own, which calls them ``training``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
#: Folders that may hold ``training/``: what a wheel brings, or the working copy.
_PLACES = (_PACKAGE / "_source", _PACKAGE.parent)
_KILLED = 128


def root() -> Path:
    """The folder that holds ``training/``."""
    return next((place for place in _PLACES if (place / "training" / "cards.py").is_file()), _PACKAGE.parent)


def in_working_copy() -> bool:
    """Whether this is the source repository, with the templates of the cards."""
    return (root() / "model_cards").is_dir()


def recipe_file(module: str) -> Path:
    """Where a module of ``training/`` is, or would be."""
    return root() / "training" / f"{module}.py"


def command(module: str, arguments: Sequence[str]) -> list[str]:
    """The command line of a recipe.  ``-P``: a folder ``training`` where the user is would not be ours."""
    return [sys.executable, "-P", "-m", f"training.{module}", *arguments]


def environment() -> dict[str, str]:
    """For such a process: our folder first; that of the user last, for modules of their own."""
    path = os.pathsep.join(filter(None, (str(root()), os.environ.get("PYTHONPATH"), str(Path.cwd()))))
    return {**os.environ, "PYTHONPATH": path}


def run(module: str, arguments: Sequence[str]) -> int:
    """Run a recipe; its exit status, as a shell would tell it."""
    status = waited(command(module, arguments))
    return _KILLED - status if status < 0 else status


def waited(words: Sequence[str]) -> int:
    """The return code of a process.  Ctrl-C reaches it, too; it is given the time to say what it kept."""
    with subprocess.Popen(words, env=environment()) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue
