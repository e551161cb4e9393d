"""What `zoo train` does: run a recipe, and publish what it wrote if asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zoo import checkpoint, recipes
from zoo.errors import CheckpointError, ZooError

if TYPE_CHECKING:
    from rich.console import Console


def train(recipe: str, arguments: Sequence[str], *, repo: str | None, console: Console) -> int:
    """Run a training recipe, and publish what it wrote if asked; returns the exit status.

    Raises
    ------
    ZooError : there is no such recipe, or it wrote nothing to publish.
    PublishError, HubError : as `zoo.publish_command.publish`; the checkpoint stays where it is.
    """
    module = recipe.replace("-", "_")
    if not module.isidentifier() or not recipes.recipe_file(module).is_file():
        raise ZooError(f"there is no recipe {recipe!r}: it is the name of a checkpoint, see `zoo list`")
    if repo is not None:
        from zoo import publishing

        publishing.check_repository(repo)
        publishing.look(repo)  # better than finding out after hours of training
    folder = _out(arguments)
    given = list(arguments)
    if folder is None:
        folder = Path("build") / recipe
        given += ["--out", str(folder)]
    before = _written(folder)
    status = recipes.run(module, given)
    if status != 0 or repo is None:
        return status
    if _written(folder) in (None, before):
        raise ZooError(f"the recipe did not write {folder}: run it to its end, without stopping early")
    _publish(folder, repo, console)
    return 0


def _publish(folder: Path, repo: str, console: Console) -> None:
    from zoo.publish_command import publish

    version = checkpoint.read_config(folder)["version"]
    try:
        publish(folder, repo, version, everything=False, dry_run=False, private=False, console=console)
    except CheckpointError as error:
        again = f"zoo publish {folder} --repo {repo} --version {version}"
        raise CheckpointError(f"{error}; the checkpoint is in {folder}, publish it with: {again}") from error


def _out(arguments: Sequence[str]) -> Path | None:
    """Where the recipe was told to write; the last one counts, as for the recipe itself."""
    found = None
    for word, following in zip(arguments, [*arguments[1:], None], strict=True):
        if word == "--out" and following is not None:
            found = Path(following)
        elif word.startswith("--out="):
            found = Path(word.removeprefix("--out="))
    return found


def _written(folder: Path) -> tuple[int, int] | None:
    """Tells one writing of the folder from another."""
    try:
        info = (folder / checkpoint.CONFIG).stat()
    except OSError:
        return None
    return info.st_ino, info.st_mtime_ns
