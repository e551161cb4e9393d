"""A page served in a process of its own, as `zoo space` does, and a browser."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
pytest.importorskip("ovito")

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
#: No GPU, no sandbox (containers), and nothing that Chromium asks of others on its own.
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
]  # fmt: skip

_SERVE = """
import json, sys, threading
from zoo_space.app import serving
from zoo_space.limits import Limits
if __name__ == "__main__":
    port, limits = int(sys.argv[1]), Limits(**json.loads(sys.argv[2]))
    with serving(port=port, limits=limits) as url:
        print(url, flush=True)
        threading.Event().wait()
"""


@contextmanager
def page_served(folder: Path, **limits: Any) -> Iterator[str]:
    """The address of a page with these limits, whose temporary files are all in ``folder``."""
    script = folder / "serve.py"
    script.write_text(_SERVE, encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **{k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")},
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "spaces"))),
        "TMPDIR": str(folder),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(script), str(port), json.dumps(limits)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
    url = f"http://127.0.0.1:{port}/"
    try:
        end = time.monotonic() + 120
        while True:
            with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    break
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"the page did not start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def page_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="session")
def page_url(page_folder: Path) -> Iterator[str]:
    """Of a page with limits small enough to run into."""
    with page_served(
        page_folder, upload_mb=1, unpacked_mb=2, atoms=5_000, frames=20, shown_atoms=1_500, lag_steps=200
    ) as url:
        yield url


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium; without one, these tests are skipped, but not in CI."""
    missing = None if CHROMIUM else "there is no Chromium on this machine: apt-get install chromium"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing = "Playwright is not installed: pip install playwright"
    if missing:
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()
