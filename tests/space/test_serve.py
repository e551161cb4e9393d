"""`zoo space`, and the Space as the Hub wants it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from zoo.cli import main
from zoo.registry import records

ROOT = Path(__file__).resolve().parents[2]
SPACE = ROOT / "spaces"


@pytest.mark.slow
def test_serve_and_stop_leaves_nothing(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "zoo.cli", "space", "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": f"{ROOT}{os.pathsep}{SPACE}"},
    )
    url = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(300):
            with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
                assert answer.status == 200
                break
            assert process.poll() is None, process.communicate()
            time.sleep(0.2)
        assert any(tmp_path.iterdir())
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert out.splitlines() == [f"zoo is at http://localhost:{port}/ (Ctrl-C stops it)", "stopped"]
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_port_in_use_is_told_in_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "zoo.cli", "space", "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{SPACE}"},
        )
    assert done.returncode == 1
    assert done.stderr.strip() == f"error: port {port} cannot be used: choose another one with --port"


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["space", "--help"]) == 0
    assert "zoo space --port 8000" in capsys.readouterr().out


def test_front_matter_is_what_the_hub_wants() -> None:
    import gradio

    text = (SPACE / "README.md").read_text(encoding="utf-8")
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert match
    front = yaml.safe_load(match.group(1))
    assert front["sdk"] == "gradio"
    assert front["sdk_version"] == gradio.__version__
    assert (SPACE / front["app_file"]).is_file()
    repositories = [record.repo for record in records()]
    assert front["models"] == repositories
    assert front["preload_from_hub"] == repositories
    assert "score-zoo[space]" in (SPACE / "requirements.txt").read_text()


def test_the_vendored_viewer_has_its_licence_and_asks_nobody() -> None:
    static = SPACE / "zoo_space" / "static"
    assert "University of Pittsburgh" in (static / "3Dmol-LICENSE.txt").read_text()
    for ours in ("viewer.js", "style.css"):
        assert "http" not in (static / ours).read_text()


def test_the_page_is_light_until_somebody_works() -> None:
    """Building the page must not import torch: it would double the time until it is there."""
    code = (
        "import sys; from zoo_space import app, api, denoise_tab, rollout_tab, cards_tab;"
        "from zoo_space.limits import Limits; from zoo_space.workers import Workers;"
        "app.build(Workers(1, 4.0), Limits()); print('torch' in sys.modules, 'ovito' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{SPACE}"},
    )
    assert done.stdout.split() == ["False", "False"]


def test_figures_of_the_page_are_recorded_with_how_they_were_measured() -> None:
    metrics = json.loads((SPACE / "metrics.json").read_text())
    assert metrics["results"]["page"] > 0
    for key in ("command", "date", "hardware", "package_version", "rounds"):
        assert metrics[key]
    told = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    results = metrics["results"]
    assert f"the page is there {results['page']:.2f} s after" in told
    assert f"({results['page'] / results['peer_page']:.1f} times a page of Gradio" in told
    assert f"denoised and drawn {results['next_example']:.1f} s after the click" in told
