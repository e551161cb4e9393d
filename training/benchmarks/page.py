"""Seconds until the page of the Space is there, and until an example is denoised and drawn in a browser.

    python -m training.benchmarks.page --record      # needs Debian's chromium, and the dev extra

The peer is a page of the same Gradio with one button on it, served and opened in the same way: what it takes,
no page of Gradio can do without.  Denoising is also timed alone, as `Denoiser.denoise` in this process.
Rounds take turns and medians are told.  Chromium draws without a GPU here, which is the slow way.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import zoo
from training.command_line import command_line
from training.metrics import hardware
from zoo.errors import ZooError

ROOT = Path(__file__).resolve().parents[2]
METRICS = ROOT / "spaces" / "metrics.json"
EXAMPLE = "aluminium"  # 2048 atoms
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
]  # fmt: skip
_OURS = """from zoo_space.app import main
if __name__ == "__main__":
    main(port={port})"""
_PEER = """import gradio as gr
with gr.Blocks(analytics_enabled=False) as page:
    gr.Button("Denoise", elem_id="denoise-run")
page.launch(server_port={port}, quiet=True, ssr_mode=False, run_history=False)"""


@contextmanager
def served(code: str) -> Iterator[tuple[str, float]]:
    """A page in a process of its own: its address, and seconds from the command to the first answer.

    Raises
    ------
    ZooError : it does not answer.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "page.py"
        script.write_text(code.format(port=port), encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'spaces'}"}
        environment |= {"GRADIO_ANALYTICS_ENABLED": "False", "TMPDIR": folder}
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, str(script)], env=environment, stdout=subprocess.DEVNULL, cwd=folder
        )
        try:
            while True:
                with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5):
                    break
                if process.poll() is not None or time.perf_counter() - started > 120:
                    raise ZooError("the page did not start")
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}/", time.perf_counter() - started
        finally:
            process.terminate()
            process.wait(30)


def opened(browser: Any, url: str) -> tuple[Any, float]:
    """A fresh visitor's page, and seconds until its main button is there."""
    page = browser.new_context(viewport={"width": 1280, "height": 1000}).new_page()
    page.set_default_timeout(120_000)
    started = time.perf_counter()
    page.goto(url)
    page.wait_for_selector("#denoise-run")
    return page, time.perf_counter() - started


def drawn(page: Any) -> float:
    """Seconds from a click on the example until it is denoised, labelled and drawn."""
    started = time.perf_counter()
    page.click(f"#example-{EXAMPLE}")
    page.wait_for_selector("#denoise-viewer .zoo-viewer[data-state=ready]")
    page.wait_for_selector("#denoise-status .zs-notice:has-text('Done')")
    return time.perf_counter() - started


def denoised() -> float:
    """Seconds of the denoising alone, after a first one."""
    import torch

    from zoo.demo import snapshot
    from zoo.denoiser import Denoiser

    torch.set_num_threads(1)
    denoiser, atoms = Denoiser.from_pretrained(), snapshot()
    denoiser.denoise(atoms)
    started = time.perf_counter()
    denoiser.denoise(atoms)
    return time.perf_counter() - started


def measure(browser: Any, rounds: int) -> dict[str, float]:
    """Medians over the rounds, in seconds; each round serves both pages anew."""
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        with served(_PEER) as (url, start):
            page, seconds = opened(browser, url)
            page.context.close()
            _add(found, peer_start=start, peer_page=seconds)
        with served(_OURS) as (url, start):
            page, seconds = opened(browser, url)
            time.sleep(8)  # for the workers; a visitor also takes a moment
            first, second = drawn(page), drawn(_reloaded(page))
            page.context.close()
            _add(found, start=start, page=seconds, first_example=first, next_example=second)
        _add(found, denoise_alone=denoised())
    return {key: round(statistics.median(values), 2) for key, values in found.items()}


def _reloaded(page: Any) -> Any:
    page.reload()
    page.wait_for_selector("#denoise-run")
    return page


def _add(found: dict[str, list[float]], **values: float) -> None:
    for key, value in values.items():
        found.setdefault(key, []).append(value)


@command_line()
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.benchmarks.page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help=f"write {METRICS.relative_to(ROOT)}")
    args = parser.parse_args(argv)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("error: there is no Chromium here: apt-get install chromium", file=sys.stderr)
        return 1
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        results = measure(browser, args.rounds)
        chromium_version = browser.version
        browser.close()
    for key, value in results.items():
        print(f"{key.replace('_', ' '):15} {value:6.2f} s")
    print(f"page: {results['page'] / results['peer_page']:.2f} times a page of Gradio with one button")
    if args.record:
        entry = {
            "command": f"python -m training.benchmarks.page --rounds {args.rounds} --record",
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "hardware": hardware(),
            "package_version": zoo.__version__,
            "gradio_version": version("gradio"),
            "chromium_version": chromium_version,
            "seed": None,
            "rounds": args.rounds,
            "unit": "s",
            "results": results,
        }
        partial = METRICS.with_suffix(".tmp")
        partial.write_text(json.dumps(entry, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(partial, METRICS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
