"""Fetching, against a Hub on loopback and with the genuine client."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_client import NOWHERE, PIN, Client, failure, success
from tests.hub_server import READ_TOKEN, HubServer
from zoo import hub as module
from zoo import registry
from zoo.checkpoint import load, save
from zoo.errors import CheckpointError
from zoo.hub import locate

FILES = ("README.md", "config.json", "metrics.json", "model.safetensors")
CONFIG = {"kind": "denoiser", "name": "tiny", "version": "1.0.0", "units": {"length": "angstrom"}}


def checkpoint_files(folder: Path, fill: float = 1.0, **changes: Any) -> dict[str, bytes]:
    import torch

    weights = {"w": torch.full((40_000,), fill), "b": torch.arange(8.0)}
    save(folder, {**CONFIG, **changes}, weights, metrics={"sections": {}}, card="# tiny\n" * 99)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A whole checkpoint of 160 kB, and a pickle that nobody asked for."""
    return checkpoint_files(tmp_path_factory.mktemp("made") / "tiny") | {"pytorch_model.bin": b"\x80\x04."}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def client(hub: HubServer, tmp_path: Path) -> Client:
    home = tmp_path / "home"
    home.mkdir()
    return Client(hub, home)


def whole(folder: Path, files: dict[str, bytes]) -> bool:
    return {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: files[name] for name in FILES
    }


def nothing_wrong(client: Client, files: dict[str, bytes]) -> bool:
    """Whatever a fault left under a name that is looked up has the right content."""
    left = [path for path in client.cache.glob("models--*/snapshots/*/*") if path.exists()]
    return all(path.read_bytes() == files[path.name] for path in left)


# -- the way it should go --------------------------------------------------------------------


def test_fetch_then_use_it_offline_and_after_the_hub_is_gone(
    hub: HubServer, client: Client, files: dict[str, bytes]
) -> None:
    commit = hub.put("me/tiny", files, tag="v1.0.0")
    done = client.zoo("fetch", "me/tiny", HF_TOKEN=READ_TOKEN)
    assert done.returncode == 0, done.stderr
    assert f"me/tiny: commit {commit}" in done.stderr  # no version was given: say which it was
    assert done.stdout.splitlines()[:2] == ["tiny 1.0.0, 161.1 kB", f"commit {commit}"]
    folder = Path(done.stdout.splitlines()[2])
    assert whole(folder, files)
    assert hub.requests("bin") == []
    assert load(folder).config["name"] == "tiny"
    for request in hub.log:  # the token is for the Hub, not for where it sends us
        assert request.authorized == request.host.startswith("127.") or "/api/a" in request.path
    hub.log.clear()
    assert client.fetched("me/tiny", HF_HUB_OFFLINE="1") == folder
    assert client.fetched("me/tiny", HF_ENDPOINT=NOWHERE) == folder
    assert client.zoo("path", "me/tiny", HF_ENDPOINT=NOWHERE).stdout.strip() == str(folder)
    assert json.loads(client.zoo("info", "me/tiny", "--json").stdout)["commit"] == commit
    assert hub.log == []


@pytest.mark.slow
def test_a_version_is_asked_about_once(hub: HubServer, client: Client, files: dict[str, bytes]) -> None:
    first = hub.put("me/tiny", files, tag="v1.0.0")
    client.fetched("me/tiny")
    assert client.fetched("me/tiny@v1.0.0").name == first
    hub.log.clear()
    assert client.fetched("me/tiny@1.0.0").name == first
    assert hub.log == []
    assert client.fetched("me/tiny@v1.0.0", HF_HUB_OFFLINE="1").name == first
    # A branch moves, and is asked about each time.
    second = hub.put("me/tiny", {"README.md": b"# changed\n"})
    assert client.fetched("me/tiny").name == second
    assert client.fetched("me/tiny", HF_HUB_OFFLINE="1").name == second
    assert client.fetched("me/tiny@v1.0.0", HF_HUB_OFFLINE="1").name == first


@pytest.mark.slow
def test_all_files_come_from_one_commit(hub: HubServer, client: Client, files: dict[str, bytes]) -> None:
    commit = hub.put("me/tiny", files)
    client.fetched("me/tiny")
    by_commit = [line for line in hub.requests("resolve") if commit in line]
    assert len(by_commit) == 5  # HEAD and GET of card and metrics, HEAD of the weights
    assert len(hub.requests("resolve/main")) == 2
    assert len(hub.requests("GET /cdn/")) == 1


@pytest.mark.slow
def test_a_moved_repository_is_followed(hub: HubServer, client: Client, files: dict[str, bytes]) -> None:
    hub.put("me/new", files)
    hub.moved["me/old"] = "me/new"
    assert whole(client.fetched("me/old"), files)


# -- names of the registry -------------------------------------------------------------------


def pin(commit: str | None, files: dict[str, bytes], **changes: Any) -> str:
    sha256 = json.loads(files["config.json"])["weights_sha256"]
    row = {"name": "tiny", "version": "1.0.0", "repo": "zoo/tiny", "bundled": False, "commit": commit}
    return PIN.format(changes={**row, "sha256": sha256, **changes})


def test_a_pinned_name_needs_no_request_once_it_is_here(
    hub: HubServer, client: Client, files: dict[str, bytes]
) -> None:
    commit = hub.put("zoo/tiny", files, tag="v1.0.0")
    hub.put("zoo/tiny", {"README.md": b"# later\n"})
    prelude = pin(commit, files)
    folder = client.fetched("tiny", prelude=prelude)
    assert folder.name == commit
    assert whole(folder, files)
    assert hub.requests("revision") == [f"GET /api/models/zoo/tiny/revision/{commit}"]
    hub.log.clear()
    names = ("tiny", "tiny@v1.0.0", "zoo/tiny@v1.0.0")
    assert {
        success(done) for done in client.session(*(("fetch", name) for name in names), prelude=prelude)
    } == {folder}
    assert hub.log == []


@pytest.mark.slow
def test_pinned_weights_that_were_exchanged_are_refused(
    hub: HubServer, client: Client, files: dict[str, bytes], tmp_path: Path
) -> None:
    others = checkpoint_files(tmp_path / "evil", fill=2.0)
    commit = hub.put("zoo/tiny", others, tag="v1.0.0")
    message = client.fails("fetch", "tiny", prelude=pin(commit, files))
    assert "other weights than the registry says" in message
    # Asked for again, it is in the cache, and still not used.
    message = client.fails("fetch", "tiny", prelude=pin(commit, files))
    assert "damaged or was tampered with" in message


def test_what_is_not_published_is_refused_without_a_request(
    hub: HubServer, client: Client, files: dict[str, bytes]
) -> None:
    message = client.fails("fetch", "tiny", prelude=pin(None, files))
    assert message.startswith(
        "tiny@v1.0.0 is not published on the Hub yet: make it with `python -m training."
    )
    assert hub.log == []


@pytest.mark.slow
def test_another_version_comes_from_the_hub_under_its_tag(
    hub: HubServer, client: Client, files: dict[str, bytes], tmp_path: Path
) -> None:
    later = checkpoint_files(tmp_path / "later", fill=3.0, version="1.1.0")
    commit = hub.put("zoo/tiny", later, tag="v1.1.0")
    prelude = pin("0" * 40, files)
    assert client.fetched("tiny@v1.1.0", prelude=prelude).name == commit
    assert "no revision v9.9.9 on the Hub" in client.fails("fetch", "tiny@v9.9.9", prelude=prelude)


@pytest.mark.slow
def test_a_registry_name_never_opens_a_checkpoint_of_another_name(
    hub: HubServer, client: Client, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.put("zoo/tiny", checkpoint_files(tmp_path / "other", name="other"), tag="v1.1.0")
    assert "holds 'other', not 'tiny'" in client.fails("fetch", "tiny@1.1.0", prelude=pin(None, files))


# -- repositories of others ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"config.json": b'{"model_type": "bert"}'}, "no whole number format_version"),
        ({"config.json": None}, "has no config.json"),
        ({"model.safetensors": None}, "no model.safetensors; pytorch_model.bin may be a pickle"),
    ],
)
def test_what_is_not_ours_is_refused_before_its_weights_are_fetched(
    hub: HubServer, client: Client, files: dict[str, bytes], changes: dict[str, bytes | None], hint: str
) -> None:
    found = {**files, **changes}
    hub.put("someone/bert", {name: content for name, content in found.items() if content is not None})
    assert hint in client.fails("fetch", "someone/bert")
    assert hub.requests("safetensors|bin|cdn") == []


@pytest.mark.slow
def test_newer_formats_and_other_kinds_are_refused_with_the_reason(
    hub: HubServer, client: Client, files: dict[str, bytes]
) -> None:
    config = json.loads(files["config.json"])
    hub.put("me/newer", {**files, "config.json": json.dumps({**config, "format_version": 99}).encode()})
    message = client.fails("fetch", "me/newer")
    assert "has format 99, newer than" in message
    assert "upgrade score-zoo" in message
    hub.put("me/tiny", files)
    code = (
        "from zoo import hub, CheckpointError\n"
        "try: hub.locate('me/tiny', kind='score-dynamics')\n"
        "except CheckpointError as error: print(error)"
    )
    assert "is a denoiser checkpoint, not a score-dynamics" in client.python(code).stdout
    assert hub.requests("cdn") == []


@pytest.mark.slow
def test_weights_that_are_not_those_of_their_config_are_refused(
    hub: HubServer, client: Client, files: dict[str, bytes]
) -> None:
    weights = bytearray(files["model.safetensors"])
    weights[-1] ^= 1
    hub.put("me/tiny", {**files, "model.safetensors": bytes(weights)})
    assert "other weights than its own config says" in client.fails("fetch", "me/tiny")


# -- no network, no rights -------------------------------------------------------------------

TIMED = """
import sys, time
started = time.perf_counter()
from zoo import hub, CheckpointError
try:
    hub.locate(sys.argv[1])
except CheckpointError as error:
    print(error)
print(time.perf_counter() - started)
"""


@pytest.mark.parametrize("variables", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": NOWHERE}])
@pytest.mark.parametrize("name", ["me/tiny", "tiny"])
def test_without_network_it_fails_at_once_and_says_what_to_run(
    client: Client, files: dict[str, bytes], variables: dict[str, str], name: str
) -> None:
    message, seconds = client.python(pin("a" * 40, files) + TIMED, name, **variables).stdout.splitlines()
    assert f"run `zoo fetch {name}` on a machine with network and copy its HF_HOME here" in message
    # Left to itself the client tries for 23 s; how fast it really is, training.benchmarks.loading tells.
    assert float(seconds) < 10


@pytest.mark.slow
def test_rights(hub: HubServer, client: Client, files: dict[str, bytes]) -> None:
    hub.put("me/secret", files, private=True)
    hub.put("me/gated", files, gated=True)
    for name in ("me/secret", "me/nothing"):
        assert "or you may not see it" in client.fails("fetch", name)
    assert "`hf auth login` again, or correct HF_TOKEN" in client.fails(
        "fetch", "me/secret", HF_TOKEN="hf_old"
    )
    assert "no repository me/nothing" in client.fails("fetch", "me/nothing", HF_TOKEN=READ_TOKEN)
    assert "asks for consent first" in client.fails("fetch", "me/gated")
    assert whole(client.fetched("me/secret", HF_TOKEN=READ_TOKEN), files)


# -- faults: one line, then a plain retry succeeds -------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("match", "kind", "options", "hint"),
    [
        ("GET /api/models", "status", {"status": 500}, "has a fault (500)"),
        ("GET /api/models", "status", {"status": 429}, "too many requests"),
        ("GET /api/models", "lost", {}, "cannot be reached"),
        ("HEAD .*/config.json", "lost", {}, "cannot be reached"),
        ("GET .*/config.json", "wrong", {}, "config.json arrived damaged and was not kept"),
        ("GET .*/README.md", "wrong", {}, "README.md arrived damaged and was not kept"),
        ("GET /cdn/", "wrong", {}, "model.safetensors arrived damaged and was not kept"),
        ("GET /cdn/", "short", {"keep": 1000}, "was cut short and nothing of it was kept"),
        ("GET /cdn/", "status", {"status": 503}, "has a fault (503)"),
        ("GET /cdn/", "status", {"status": 403}, "no right"),
    ],
)
def test_a_fault_is_one_line_and_a_plain_retry_succeeds(
    hub: HubServer,
    client: Client,
    files: dict[str, bytes],
    match: str,
    kind: str,
    options: dict[str, Any],
    hint: str,
) -> None:
    hub.put("me/tiny", files, tag="v1.0.0")
    fault = hub.fail(match, kind, **options)
    command = ("fetch", "me/tiny@v1.0.0")
    if kind == "wrong":  # then something could have been kept that a new process finds
        assert hint in client.fails(*command)
        assert nothing_wrong(client, files)
        assert whole(client.fetched("me/tiny@v1.0.0"), files)
        return
    first, second = client.session(command, command)
    assert hint in failure(first)
    assert fault.times == 0
    assert whole(success(second), files)


def test_bytes_that_arrive_wrong_are_not_kept(
    hub: HubServer, client: Client, files: dict[str, bytes]
) -> None:
    hub.put("me/tiny", files)
    hub.fail("GET /cdn/", "wrong")
    first, second = client.session(("fetch", "me/tiny"), ("fetch", "me/tiny"))
    assert "arrived damaged and was not kept: try again" in failure(first)
    assert whole(success(second), files)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("match", "kind", "options"),
    [
        ("GET /cdn/", "drop", {"keep": 50_000}),
        ("GET /cdn/", "status", {"status": 429, "headers": {"Retry-After": "0"}}),
        ("HEAD .*/model.safetensors", "status", {"status": 500}),
    ],
)
def test_some_faults_the_client_gets_over_by_itself(
    hub: HubServer, client: Client, files: dict[str, bytes], match: str, kind: str, options: dict[str, Any]
) -> None:
    hub.put("me/tiny", files)
    fault = hub.fail(match, kind, **options)
    assert whole(client.fetched("me/tiny"), files)
    assert fault.times == 0


@pytest.mark.slow
def test_a_connection_that_always_drops(hub: HubServer, client: Client, files: dict[str, bytes]) -> None:
    hub.put("me/tiny", files)
    fault = hub.fail("GET /cdn/", "drop", keep=0, times=99)
    assert "cannot be reached" in client.fails("fetch", "me/tiny")
    fault.times = 0
    assert whole(client.fetched("me/tiny"), files)


@pytest.mark.slow
def test_a_kill_in_the_middle(hub: HubServer, client: Client, files: dict[str, bytes]) -> None:
    hub.put("me/tiny", files)
    hub.fail("GET /cdn/", "slow", delay=1.0)
    process = client.start("from zoo.cli import main; main(['fetch', 'me/tiny'])")
    deadline = time.monotonic() + 30
    while not hub.requests("GET /cdn/") and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    process.kill()
    process.communicate()
    assert "is not on this machine" in client.fails("path", "me/tiny")
    assert nothing_wrong(client, files)
    assert whole(client.fetched("me/tiny"), files)


@pytest.mark.slow
def test_two_processes_at_once(hub: HubServer, client: Client, files: dict[str, bytes]) -> None:
    hub.put("me/tiny", files, tag="v1.0.0")
    hub.fail("GET /cdn/", "slow", delay=0.3)
    code = "import sys; from zoo.cli import main; sys.exit(main(['fetch', 'me/tiny@v1.0.0']))"
    both = [client.start(code) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert whole(Path(out.splitlines()[-1]), files)
    assert len(hub.requests("GET /cdn/")) == 1, "the second waits for the first"


@pytest.mark.slow
def test_a_full_disk(hub: HubServer, client: Client, files: dict[str, bytes]) -> None:
    hub.put("me/tiny", files)
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    message = client.fails("fetch", "me/tiny", prelude=full)
    assert f"cannot write me/tiny to the cache {client.cache} (File too large): free some space" in message
    assert nothing_wrong(client, files)
    assert whole(client.fetched("me/tiny"), files)


@pytest.mark.slow
def test_a_cache_that_cannot_be_made(hub: HubServer, client: Client, files: dict[str, bytes]) -> None:
    hub.put("me/tiny", files)
    (client.home / "file").write_text("in the way")
    message = client.fails("fetch", "me/tiny", HF_HUB_CACHE=str(client.home / "file" / "cache"))
    assert "set HF_HUB_CACHE to a folder that can be written" in message


@pytest.mark.slow
def test_a_read_only_cache_is_enough(
    hub: HubServer, client: Client, files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    commit = hub.put("zoo/tiny", files, tag="v1.0.0")
    prelude = pin(commit, files)
    folder = client.fetched("tiny", prelude=prelude)
    client.fetched("zoo/tiny", prelude=prelude)

    def state() -> list[tuple[str, int]]:
        return sorted((str(path), path.lstat().st_mtime_ns) for path in client.cache.rglob("*"))

    before = state()
    folders = [client.cache, *(path for path in client.cache.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        for done in client.session(("fetch", "tiny"), ("fetch", "zoo/tiny"), prelude=prelude):
            assert success(done) == folder
        # The superuser writes where it likes, so look as well.
        assert state() == before
        if os.geteuid() != 0:
            hub.put("me/new", files)
            assert "cannot write me/new to the cache" in client.fails("fetch", "me/new")
    finally:
        for path in folders:
            path.chmod(stat.S_IRWXU)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["flipped", "truncated"])
def test_a_damaged_file_in_the_cache_is_never_used(
    hub: HubServer, client: Client, files: dict[str, bytes], how: str
) -> None:
    commit = hub.put("me/tiny", files, tag="v1.0.0")
    name = "me/tiny@v1.0.0"
    folder = client.fetched(name)
    blob = (folder / "model.safetensors").resolve()
    content = blob.read_bytes()
    blob.write_bytes(content[:-5] if how == "truncated" else content[:-1] + b"\xff")
    code = (
        "import sys; from zoo import hub, CheckpointError\n"
        "try: hub.load(sys.argv[1])\n"
        "except CheckpointError as error: print(error)"
    )
    for _ in range(2):
        message = client.python(code, name).stdout
        assert "damaged or was tampered with" in message
        assert f"`zoo fetch --force {name}` replaces" in message
    assert blob.exists(), "nothing is removed behind the user's back"
    assert f"`zoo fetch --force {name}` replaces" in client.fails("fetch", name)
    assert client.fetched("--force", name) == folder
    assert whole(folder, files)
    assert folder.name == commit
    blob.write_bytes(b"again")
    blob.unlink()
    assert whole(client.fetched(name), files)


# -- without more than is needed -------------------------------------------------------------


@pytest.mark.slow
def test_a_warm_load_by_name_makes_no_request(hub: HubServer, client: Client) -> None:
    record = registry.find("denoiser-elements")
    files = [path for path in registry.bundled_folder(record).iterdir() if path.is_file()]
    released = {path.name: path.read_bytes() for path in files}
    commit = hub.put(record.repo, released, tag=f"v{record.version}")
    prelude = PIN.format(changes={"bundled": False, "commit": commit})
    client.fetched(record.name, prelude=prelude)
    hub.log.clear()
    code = (
        f"{prelude}\nfrom zoo import Denoiser\nfrom zoo.hub import locate\n"
        f"Denoiser.from_pretrained({record.name!r}); print(locate({record.name!r}).commit)"
    )
    done = client.python(code)
    assert done.stdout.strip() == commit, done.stderr
    assert hub.log == []


@pytest.mark.slow
def test_a_pickle_in_place_of_the_weights_is_never_opened(
    hub: HubServer, client: Client, files: dict[str, bytes]
) -> None:
    class Planted:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (client.home / "ran",))

    planted = pickle.dumps(Planted())
    config = json.loads(files["config.json"])
    config["weights_sha256"] = hashlib.sha256(planted).hexdigest()
    changes = {"config.json": json.dumps(config).encode(), "model.safetensors": planted}
    hub.put("someone/evil", {**files, **changes, "pytorch_model.bin": planted}, tag="v1.0.0")
    code = (
        "from zoo import Denoiser, CheckpointError\n"
        "try: Denoiser.from_pretrained('someone/evil@v1.0.0')\n"
        "except CheckpointError as error: print(error)"
    )
    assert "is not a readable safetensors file" in client.python(code).stdout
    assert hub.requests("bin") == []
    assert not (client.home / "ran").exists()


def test_the_client_is_not_imported_before_it_is_needed(tmp_path: Path) -> None:
    code = (
        "import sys; from zoo import hub; hub.locate('denoiser-elements')\n"
        "sys.exit({'huggingface_hub', 'torch'} & set(sys.modules) or 0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(registry.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path).returncode == 0


@pytest.mark.slow
def test_list_hub(hub: HubServer, client: Client, files: dict[str, bytes]) -> None:
    card = (
        "---\nlicense: mit\nmodel-index:\n- name: tiny\n  results:\n"
        "  - task: {type: other}\n    dataset: {type: a, name: A}\n"
        "    metrics: [{type: accuracy, name: Recognised (%), value: 99.5}]\n"
        "  - task: {type: other}\n    dataset: {type: a, name: B}\n"
        "    metrics: [{type: accuracy, name: Recognised (%), value: 100}]\n---\n# tiny\n"
    )
    assert "not published" in client.zoo("list", "--hub", prelude=pin(None, files)).stdout
    hub.put("zoo/tiny", files, tag="v1.0.0")
    hub.put("zoo/tiny", {"README.md": card.encode()}, tag="v1.10.0")
    hub.put("zoo/tiny", {}, tag="v1.9.0")
    hub.put("zoo/tiny", {}, tag="old")
    text = client.zoo("list", "--hub", prelude=pin(None, files)).stdout
    assert "1.10.0, 1.9.0, 1.0.0" in text
    assert "160.7 kB" in text
    assert "Recognised (%) 99.5 to 100 (2 results)" in text
    assert "cannot be reached" in client.fails("list", "--hub", HF_ENDPOINT=NOWHERE)


# -- where a name leads, without any Hub ------------------------------------------------------


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder `mine` and a bundled checkpoint `tiny` 1.0.0; whatever would ask the Hub fails."""
    checkpoint_files(tmp_path / "bundled")
    checkpoint_files(tmp_path / "work" / "mine", version="0.3.0")
    record = dataclasses.replace(registry.records()[0], name="tiny", version="1.0.0", repo="zoo/tiny")
    monkeypatch.setattr(registry, "_all", lambda: (record,))
    monkeypatch.setattr(registry, "bundled_folder", lambda record: tmp_path / "bundled")
    monkeypatch.setattr(module, "_from_hub", lambda wanted, *how: pytest.fail(f"asked for {wanted}"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def test_sources(here: Path) -> None:
    for name in ("tiny", "tiny@1.0.0", "tiny@v1.0.0"):
        for source in ("auto", "bundled"):
            assert locate(name, source=source).folder == here / "bundled"
    assert locate("tiny", version="v1.0.0").folder == here / "bundled"
    for folder in ("mine", "./mine", Path("mine")):
        for source in ("auto", "local"):
            found = locate(folder, source=source, version="0.3.0")
            assert (found.folder, found.record, found.sha256) == (Path("mine"), None, None)


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [
        ("tiny", {"source": "web"}, "must be one of auto, local, bundled, hub"),
        ("  ", {}, "is empty"),
        ("tiny@1.0.0", {"version": "1.1.0"}, "name two versions"),
        ("tiny@latest", {}, "write X.Y.Z, as in tiny@v1.0.0"),
        ("tiny", {"source": "local"}, "no checkpoint folder at tiny"),
        ("someone/tiny", {"source": "bundled"}, "does not come with the package"),
        ("tiny@1.1.0", {"source": "bundled"}, "does not come with this installation"),
        ("tiny", {"source": "hub"}, "not published on the Hub yet: use the one of the package"),
        ("mine", {"version": "0.4.0"}, "holds version 0.3.0, not 0.4.0"),
        ("tinny", {}, "did you mean tiny"),
        ("./gone", {}, "no checkpoint folder at"),
        ("a/b/c", {}, "no checkpoint folder at"),
        (Path("someone/tiny"), {}, "no checkpoint folder at"),
        ("mine/config.json", {}, "is a file"),
    ],
)
def test_what_leads_nowhere(here: Path, name: str | Path, options: dict[str, str], hint: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        locate(name, **options)  # type: ignore[arg-type]
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)
