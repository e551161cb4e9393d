"""What `zoo publish` does: from a folder to a version on the Hub."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from zoo import recipes
from zoo.errors import CheckpointError, ZooError

if TYPE_CHECKING:
    from rich.console import Console

    from zoo.publishing import Plan


def publish(
    folder: Path | None,
    repo: str | None,
    version: str | None,
    *,
    everything: bool,
    dry_run: bool,
    private: bool,
    console: Console,
) -> int:
    """Check and publish one folder, or all of the registry; returns the exit status.

    Raises
    ------
    PublishError : the folder is not fit, the version exists, or the Hub did not take it.
    HubError : the Hub cannot be asked.
    """
    if everything:
        if folder is not None or repo is not None or version is not None:
            raise ZooError("--all takes folders, repositories and versions from the registry: give no others")
        return _publish_all(dry_run=dry_run, private=private, console=console)
    if folder is None or repo is None or version is None:
        raise ZooError("give FOLDER, --repo OWNER/NAME and --version X.Y.Z, or --all")
    _publish(folder, repo, version, dry_run=dry_run, private=private, console=console)
    return 0


def _publish(
    folder: Path, repo: str, version: str, *, dry_run: bool, private: bool, console: Console
) -> None:
    from zoo import publishing, registry

    path = folder.expanduser()
    for record in registry.records():
        if path.resolve() == registry.bundled_folder(record).resolve():
            _check_rendered(record.name)
    wanted = publishing.plan(path, repo, version)
    if dry_run:
        _show(wanted, console)
        return
    commit = publishing.publish(wanted, private=private)
    _say(console, f"published {wanted.title} as {wanted.repo}@{wanted.tag}, commit {commit}")
    if any(record.repo == repo and record.version == wanted.version for record in registry.records()):
        _say(console, f"pin it: python -m training.pin {wanted.name} --commit {commit}")


def _publish_all(*, dry_run: bool, private: bool, console: Console) -> int:
    from zoo import publishing

    failed = False
    for folder, repo, version in publishing.everything():
        try:
            if version in publishing.look(repo).versions:
                _say(console, f"{repo}@v{version} is published")
                continue
            _publish(folder, repo, version, dry_run=dry_run, private=private, console=console)
        except ZooError as error:
            # One that is not fit is no reason to keep the others back.
            print(f"error: {repo}: {' '.join(str(error).split())}", file=sys.stderr)
            failed = True
    return 1 if failed else 0


def _check_rendered(name: str) -> None:
    """In a working copy the card of a released checkpoint must be what its template gives now."""
    if not recipes.in_working_copy():
        return
    command = recipes.command("cards", [name, "--check"])
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=recipes.environment())
    if done.returncode != 0:
        reason = " ".join((done.stdout + done.stderr).split())
        raise CheckpointError(f"{name}: {reason}; run `python -m training.cards {name}` and look at it")


def _show(wanted: Plan, console: Console) -> None:
    from zoo import publishing
    from zoo.fetch_command import size

    _say(console, f"{wanted.title}, a {wanted.kind}, is fit to be published")
    for name, content in wanted.files.items():
        _say(console, f"  {name}, {size(len(content))}")
    state = publishing.look(wanted.repo)
    publishing.check_new(wanted, state)
    if state.head is None:
        _say(console, f"would create the repository {wanted.repo}")
    _say(console, f"would commit these files to {wanted.repo} and tag the commit {wanted.tag}")


def _say(console: Console, line: str) -> None:
    console.print(escape(line), highlight=False, soft_wrap=True)
