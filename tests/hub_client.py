"""Runs the genuine Hub client in a subprocess against the server of `hub_server`.

The client reads its variables when it is imported, so each call is a process of its own, with an
environment that holds nothing but what a test puts there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.hub_server import HubServer

ROOT = Path(__file__).resolve().parent.parent
NOWHERE = "http://127.0.0.1:9"
"""An endpoint that refuses connections at once, as a machine without network does."""

PIN = """
import dataclasses
from zoo import registry
rows = [dataclasses.replace(r, **{changes!r}) for r in registry._all() if r.name == "denoiser-elements"]
registry._all = lambda rows=tuple(rows): rows
"""


_SESSION = """
import contextlib, io, json, sys
from zoo.cli import main
rows = []
for command in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        rc = main(command)
    rows.append({"command": command, "rc": rc, "out": out.getvalue(), "err": err.getvalue()})
print(json.dumps(rows))
"""


@dataclass
class Client:
    """One user's machine: a home with a cache, a token, an endpoint."""

    hub: HubServer
    home: Path
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        return self.home / "hub"

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "HF_HOME": str(self.home),
            "HF_ENDPOINT": self.hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "400",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            **self.variables,
            **(extra or {}),
        }

    def start(self, code: str, *arguments: str, **extra: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env=self.environment(extra),
            cwd=self.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def python(self, code: str, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        process = self.start(code, *arguments, **extra)
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def zoo(self, *arguments: str, prelude: str = "", **extra: str) -> subprocess.CompletedProcess[str]:
        """The command line; `prelude` is run first, `extra` are variables."""
        code = f"{prelude}\nimport sys; from zoo.cli import main; sys.exit(main(sys.argv[1:]))"
        return self.python(code, *arguments, **extra)

    def session(
        self, *commands: Sequence[str], prelude: str = "", **extra: str
    ) -> list[subprocess.CompletedProcess[str]]:
        """Several command lines one after another in one process, which saves starting it again."""
        done = self.python(f"{prelude}\n{_SESSION}", json.dumps(commands), **extra)
        assert done.returncode == 0, done.stderr
        rows = json.loads(done.stdout.splitlines()[-1])
        return [
            subprocess.CompletedProcess(row["command"], row["rc"], row["out"], row["err"]) for row in rows
        ]

    def fails(self, *arguments: str, prelude: str = "", **extra: str) -> str:
        """The one line that the command line says, without the client's own warnings."""
        return failure(self.zoo(*arguments, prelude=prelude, **extra))

    def fetched(self, *arguments: str, prelude: str = "", **extra: str) -> Path:
        """The folder that `zoo fetch` says it is in."""
        return success(self.zoo("fetch", *arguments, prelude=prelude, **extra))


def failure(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that failed as it should."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert len(lines) == 1, done.stderr
    return lines[0].removeprefix("error: ")


def success(done: subprocess.CompletedProcess[str]) -> Path:
    """The last line that a command wrote, which `zoo fetch` makes a folder."""
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])
