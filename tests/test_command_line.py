"""Mistakes and Ctrl-C in the command lines of `training/`: one line, and a status."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.command_line import command_line
from zoo.errors import ZooError


def raising(error: BaseException) -> int:
    @command_line("stopped; go on with the same command")
    def main(argv: list[str] | None = None) -> int:
        raise error

    return main([])


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(ZooError("no folder\n  of that name")) == 1
    assert capsys.readouterr().err == "error: no folder of that name\n"


def test_other_exceptions_are_bugs_whose_traceback_is_wanted() -> None:
    with pytest.raises(ValueError, match="odd"):
        raising(ValueError("odd"))


def test_interrupted_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "stopped; go on with the same command\n"


def test_the_status_passes_through() -> None:
    @command_line()
    def main(argv: list[str] | None = None) -> int:
        """Text."""
        return len(argv or [])

    assert main(["a", "b"]) == 2
    assert main.__doc__ == "Text."


def commands() -> list[Path]:
    """Files with a command line of their own; recipes have that of the module they call."""
    files = sorted((Path(__file__).parents[1] / "training").rglob("*.py"))
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    # Of the worker, whose parent tells what went wrong from the end of its traceback, no line is kept back.
    return [p for p, text in texts.items() if "\ndef main(" in text and p.name != "worker.py"]


@pytest.mark.parametrize("path", commands(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_command_line_says_mistakes_in_one_line(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "\n@command_line(" in text or "return run(RECIPE, __doc__, argv)" in text
