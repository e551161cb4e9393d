"""Jobs for the tests of the workers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo_space.errors import VisitorError


def double(request: int, folder: Path, tell: Callable[[Any], None]) -> int:
    tell("on it")
    return 2 * request


def where(request: None, folder: Path, tell: Callable[[Any], None]) -> tuple[int, str]:
    (folder / "left behind").write_text("x")
    return os.getpid(), str(folder)


def refuse(request: str, folder: Path, tell: Callable[[Any], None]) -> None:
    raise VisitorError(f"{folder}/upload.dump, frame 3: {request}")


def fail(request: None, folder: Path, tell: Callable[[Any], None]) -> None:
    raise RuntimeError("a bug, with secrets")


def die(request: None, folder: Path, tell: Callable[[Any], None]) -> None:
    os._exit(9)


def sleep(request: float, folder: Path, tell: Callable[[Any], None]) -> None:
    tell(os.getpid())
    time.sleep(request)


def devour(request: int, folder: Path, tell: Callable[[Any], None]) -> int:
    return len(bytearray(request))
