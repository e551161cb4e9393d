from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import zoo

ROOT = Path(__file__).resolve().parent.parent
BLOCK_NETWORK = """
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("importing opened a socket")
socket.socket = socket.create_connection = socket.getaddrinfo = refuse
"""


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_brings_neither_torch_nor_ase_nor_the_network() -> None:
    heavy = python(
        BLOCK_NETWORK + "import zoo\n"
        "heavy = {'torch', 'ase', 'numpy', 'huggingface_hub', 'safetensors', 'vesin', 'ovito', 'typer'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert heavy == "[]\n"


def test_listing_checkpoints_needs_no_torch() -> None:
    out = python(
        BLOCK_NETWORK + "import zoo\n"
        "names = [record.name for record in zoo.list_checkpoints()]\n"
        "import zoo.checkpoint\n"
        "print('denoiser-elements' in names, 'torch' in sys.modules)"
    )
    assert out == "True False\n"


def test_import_is_fast() -> None:
    # The best of three, because a busy machine can be slow but never too fast.
    code = "import time; t = time.perf_counter(); import zoo; print(time.perf_counter() - t)"
    assert min(float(python(code)) for _ in range(3)) < 0.5


def test_import_changes_nothing_process_wide() -> None:
    out = python(
        "import os, warnings, random\n"
        "before = dict(os.environ), list(warnings.filters), random.getstate()\n"
        "import zoo, zoo.registry, zoo.checkpoint\n"
        "print(before == (dict(os.environ), list(warnings.filters), random.getstate()))"
    )
    assert out == "True\n"


def test_public_names() -> None:
    for name in zoo.__all__:
        assert name in dir(zoo)
    assert set(zoo._LAZY) <= set(zoo.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = zoo.nonsense
    from zoo.registry import records

    assert zoo.list_checkpoints is records


def test_installed_version_is_the_declared_one() -> None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        assert version("score-zoo") == zoo.__version__
    except PackageNotFoundError:
        pytest.skip("score-zoo is not installed here")


def commands() -> list[str]:
    """The one-line console blocks of the README, without those that show a prompt."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return [block.strip() for block in blocks if not block.startswith("$")]


def test_ci_runs_the_command_that_the_readme_gives() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    first, second = commands()
    assert "zoo demo" in first
    assert "pytest" in second
    assert second in script.splitlines()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_ci_stops_at_a_failed_install(tmp_path: Path) -> None:
    """`a && b` does not trip `set -e` when a fails, so the script has to see to it."""
    (tmp_path / ".ci").mkdir()
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (tmp_path / ".ci" / "run").write_text(script)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, body in {
        "python": "mkdir -p $3/bin; echo > $3/bin/activate",
        "pip": "exit 1",
        "ruff": "exit 0",
        "mypy": "exit 0",
        "pytest": "exit 0",
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHON": str(tools / "python")}
    run = ["bash", str(tmp_path / ".ci" / "run")]
    assert subprocess.run(run, env=environment, check=False).returncode != 0
    (tools / "pip").write_text("#!/bin/sh\nexit 0\n")
    assert subprocess.run(run, env=environment, check=False).returncode == 0


def test_readme_links_to_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert links
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    headings = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    for link in links:
        if link.startswith("#"):
            assert link[1:] in headings, link
            continue
        # A rendered card is part of a trained checkpoint; test_cards sees to that one.
        assert (ROOT / link).exists() or link.startswith("zoo/checkpoints/"), link


def test_every_command_we_name_exists() -> None:
    texts = [ROOT / "README.md", ROOT / "zoo" / "registry.json", *(ROOT / "model_cards").glob("*.md")]
    modules = {
        name for text in texts for name in re.findall(r"python -m ([\w.]+)", text.read_text(encoding="utf-8"))
    }
    assert "training.denoiser_elements" in modules
    for name in modules:
        path = ROOT.joinpath(*name.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), name


def test_every_dependency_is_pinned_by_the_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!]+", pin) for pin in pins), (
        "plain pins only: no paths, no addresses"
    )

    def normal(requirement: str) -> str:
        return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~ ]", requirement)[0]).lower()

    pinned = {normal(pin) for pin in pins}
    extras = [item for extra in project["optional-dependencies"].values() for item in extra]
    wanted = {normal(item) for item in [*project["dependencies"], *extras]} - {"score-zoo"}
    assert wanted <= pinned


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="building without isolation needs the dev extra")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_recipes_run_from_the_wheel_wherever_one_is(wheel: Path, tmp_path: Path) -> None:
    """Fine-tuning needs no clone, and a folder ``training`` of the user's is not taken for ours."""
    installed, here = tmp_path / "installed", tmp_path / "here"
    zipfile.ZipFile(wheel).extractall(installed)
    (here / "training").mkdir(parents=True)
    (here / "training" / "__init__.py").write_text("raise SystemExit('the wrong training')")
    from ase.build import bulk
    from ase.io import write

    write(here / "two.extxyz", [bulk("Cu"), bulk("Cu")])
    script = "import sys, zoo; from zoo.cli import main; print(zoo.__file__); sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, "finetune", "denoiser-elements", "--structure", "two.extxyz"]
        + ["-o", "mine"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )
    assert done.stdout.startswith(str(installed))
    assert (done.returncode, done.stderr) == (
        1,
        "error: two.extxyz has 2 frames: give one perfect crystal per file\n",
    )


@pytest.mark.slow
def test_the_wheel_has_the_checkpoints_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"zoo/py.typed", "zoo/registry.json", "zoo/cli.py"} <= names
    recipes = ("finetune_denoiser.py", "finetune_dynamics.py", "reference_md/alkanes/opls-aa.xml")
    assert {f"zoo/_source/training/{file}" for file in recipes} <= names
    assert not [name for name in names if name.endswith(".npz") and "_source" in name], "MD stays behind"
    assert {name.split("/")[0] for name in names} == {
        "zoo",
        "zoo_space",
        f"score_zoo-{zoo.__version__}.dist-info",
    }
    page = ("app.py", "api.md", "static/3Dmol-min.js", "static/3Dmol-LICENSE.txt", "examples/ice.extxyz.gz")
    assert {f"zoo_space/{file}" for file in page} <= names
    for record in zoo.list_checkpoints():
        if (ROOT / "zoo" / "checkpoints" / record.name).is_dir():
            folder = f"zoo/checkpoints/{record.name}"
            files = ("config.json", "model.safetensors", "README.md", "metrics.json")
            assert {f"{folder}/{file}" for file in files} <= names
