"""What command lines of `training/` do about a user's mistake and about Ctrl-C: one line, and a status."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

from zoo.errors import ZooError

P = ParamSpec("P")
_INTERRUPTED = 130  # as a shell tells it


def command_line(stopped: str = "stopped") -> Callable[[Callable[P, int]], Callable[P, int]]:
    """For a ``main`` that returns its exit status.

    Parameters
    ----------
    stopped : said after Ctrl-C: what is kept, and how to go on.
    """

    def decorate(main: Callable[P, int]) -> Callable[P, int]:
        @functools.wraps(main)
        def run(*args: P.args, **kwargs: P.kwargs) -> int:
            try:
                return main(*args, **kwargs)
            except ZooError as error:
                print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
                return 1
            except KeyboardInterrupt:
                print(stopped, file=sys.stderr)
                return _INTERRUPTED

        return run

    return decorate
