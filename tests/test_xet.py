"""Publishing and fetching as the client does it by default: large files through Xet, one store for all.

The other tests turn Xet off, so that files travel in one piece and a test can say what happens to it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_client import Client, failure
from tests.hub_server import WRITE_TOKEN, HubServer
from tests.test_hub import checkpoint_files, whole
from zoo.checkpoint import load

pytestmark = pytest.mark.slow

NAME = "me/tiny@v1.0.0"
#: What was checked, without checking it: saves importing torch in every process.
TRUSTED = """
from zoo import publishing
publishing.plan = lambda folder, repo, version: publishing.Plan(
    folder, repo, version, {path.name: path.read_bytes() for path in folder.iterdir()}, "tiny", "denoiser")
"""


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    return checkpoint_files(tmp_path / "tiny")


def machine(hub: HubServer, home: Path) -> Client:
    home.mkdir()
    # The store of `xet_store` puts files together itself, so their pieces must come as they are.
    default = {"HF_HUB_DISABLE_XET": "0", "HF_XET_XORB_COMPRESSION_POLICY": "none"}
    return Client(hub, home, {"HF_TOKEN": WRITE_TOKEN, **default})


@pytest.fixture
def here(hub: HubServer, tmp_path: Path) -> Client:
    return machine(hub, tmp_path / "here")


@pytest.fixture
def there(hub: HubServer, tmp_path: Path) -> Client:
    return machine(hub, tmp_path / "there")


@pytest.fixture
def command(tmp_path: Path, files: dict[str, bytes]) -> tuple[str, ...]:
    return ("publish", str(tmp_path / "tiny"), "--repo", "me/tiny", "--version", "1.0.0")


def publish(client: Client, command: tuple[str, ...]) -> None:
    done = client.zoo(*command, prelude=TRUSTED)
    assert done.returncode == 0, done.stderr


def tags(hub: HubServer) -> dict[str, str]:
    return hub.repositories["me/tiny"].tags if "me/tiny" in hub.repositories else {}


def wait_for(hub: HubServer, pattern: str) -> None:
    deadline = time.monotonic() + 60
    while not hub.requests(pattern):
        assert time.monotonic() < deadline, hub.requests()
        time.sleep(0.01)
    time.sleep(0.2)


def test_published_here_fetched_there(
    hub: HubServer, here: Client, there: Client, command: tuple[str, ...], files: dict[str, bytes]
) -> None:
    publish(here, command)
    assert hub.requests("POST /xet/v1/xorbs/") and not hub.requests("/lfs/")
    hub.log.clear()
    folder = there.fetched(NAME)
    assert whole(folder, files)
    assert hub.requests("GET /xet/data/") and not hub.requests("GET /cdn/")
    hub.log.clear()
    assert there.fetched(NAME) == folder
    assert hub.log == []


@pytest.mark.parametrize(
    ("match", "kind", "options"),
    [
        ("POST /xet/v1/xorbs", "drop", {"keep": 1000}),
        ("POST /xet/v1/xorbs", "status", {"status": 500}),
        ("POST /xet/v1/shards", "status", {"status": 429}),
        ("GET .*/xet-write-token", "status", {"status": 500}),
    ],
)
def test_a_fault_of_an_upload_that_the_client_gets_over(
    hub: HubServer,
    here: Client,
    there: Client,
    command: tuple[str, ...],
    files: dict[str, bytes],
    match: str,
    kind: str,
    options: dict[str, Any],
) -> None:
    fault = hub.fail(match, kind, **options)
    publish(here, command)
    assert fault.times == 0
    assert whole(there.fetched(NAME), files)


def test_an_upload_that_is_refused_leaves_no_tag(
    hub: HubServer, here: Client, there: Client, command: tuple[str, ...], files: dict[str, bytes]
) -> None:
    fault = hub.fail("POST /xet/v1/xorbs", "status", status=403, times=99)
    message = here.fails(*command, prelude=TRUSTED)
    assert message.startswith("nothing was published: the token has no right to do this with me/tiny")
    assert tags(hub) == {}
    fault.times = 0
    publish(here, command)
    assert whole(there.fetched(NAME), files)


@pytest.mark.parametrize("match", ["POST /xet/v1/xorbs", "POST .*/commit/main"])
def test_a_kill_in_the_middle_of_an_upload(
    hub: HubServer, here: Client, there: Client, command: tuple[str, ...], files: dict[str, bytes], match: str
) -> None:
    hub.fail(match, "slow", delay=1.0)
    process = here.start(f"{TRUSTED}\nimport sys\nfrom zoo.cli import main; main(sys.argv[1:])", *command)
    wait_for(hub, match)
    process.kill()
    process.communicate()
    assert tags(hub) == {}
    publish(here, command)
    assert list(tags(hub)) == ["v1.0.0"]
    assert [commit.title for commit in hub.repositories["me/tiny"].commits].count("tiny 1.0.0") == 1
    assert whole(there.fetched(NAME), files)


@pytest.mark.parametrize(
    ("match", "kind", "options"),
    [
        ("GET /xet/data", "drop", {"keep": 1000}),
        ("GET /xet/data", "short", {"keep": 1000}),
        ("GET /xet/data", "status", {"status": 500}),
        ("GET /xet/data", "status", {"status": 429}),
    ],
)
def test_a_fault_of_a_download_that_the_client_gets_over(
    hub: HubServer,
    here: Client,
    there: Client,
    command: tuple[str, ...],
    files: dict[str, bytes],
    match: str,
    kind: str,
    options: dict[str, Any],
) -> None:
    publish(here, command)
    fault = hub.fail(match, kind, **options)
    assert whole(there.fetched(NAME), files)
    assert fault.times == 0


@pytest.mark.parametrize(
    ("match", "kind", "options", "hint"),
    [
        ("GET /xet/data", "wrong", {}, "model.safetensors arrived damaged and was not kept: try again"),
        ("GET .*/reconstructions", "status", {"status": 404, "times": 99}, f"storage refuses {NAME} (404)"),
    ],
)
def test_a_fault_is_one_line_and_a_plain_retry_succeeds(
    hub: HubServer,
    here: Client,
    there: Client,
    command: tuple[str, ...],
    files: dict[str, bytes],
    match: str,
    kind: str,
    options: dict[str, Any],
    hint: str,
) -> None:
    publish(here, command)
    fault = hub.fail(match, kind, **options)
    assert hint in there.fails("fetch", NAME)
    fault.times = 0
    # Nothing wrong was left where another repository of the same weights would find it either.
    assert whole(there.fetched(NAME), files)


def test_a_kill_in_the_middle_of_a_download(
    hub: HubServer, here: Client, there: Client, command: tuple[str, ...], files: dict[str, bytes]
) -> None:
    publish(here, command)
    hub.fail("GET /xet/data", "slow", delay=1.0)
    process = there.start("import sys; from zoo.cli import main; main(sys.argv[1:])", "fetch", NAME)
    wait_for(hub, "GET /xet/data")
    process.kill()
    process.communicate()
    assert "is not on this machine" in there.fails("path", NAME)
    assert whole(there.fetched(NAME), files)


def test_two_processes_at_once(
    hub: HubServer, here: Client, there: Client, command: tuple[str, ...], files: dict[str, bytes]
) -> None:
    publish(here, command)
    hub.fail("GET /xet/data", "slow", delay=0.3)
    code = "import sys; from zoo.cli import main; sys.exit(main(sys.argv[1:]))"
    for process in [there.start(code, "fetch", NAME) for _ in range(2)]:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert whole(Path(out.splitlines()[-1]), files)


def test_a_full_disk(
    hub: HubServer, here: Client, there: Client, command: tuple[str, ...], files: dict[str, bytes]
) -> None:
    small, large = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"
        for size in (100, 100_000)
    )
    message = here.fails(*command, prelude=TRUSTED + small)
    assert "nothing was published: cannot write me/tiny to the caches" in message
    assert "(File too large): free some space" in message
    assert tags(hub) == {}
    publish(here, command)
    message = there.fails("fetch", NAME, prelude=large)
    assert f"cannot write {NAME} to the caches {there.cache}" in message
    assert "(File too large): free some space" in message
    assert whole(there.fetched(NAME), files)


@pytest.mark.parametrize("how", ["forced", "deleted"])
def test_a_file_of_the_shared_store_that_is_damaged(
    hub: HubServer, here: Client, there: Client, command: tuple[str, ...], files: dict[str, bytes], how: str
) -> None:
    publish(here, command)
    folder = there.fetched(NAME)
    stored = (folder / "model.safetensors").resolve()
    stored.chmod(0o600)  # the client makes it read-only
    stored.write_bytes(stored.read_bytes()[:-1] + b"\xff")
    assert "damaged or was tampered with" in there.fails("fetch", NAME)
    if how == "forced":
        assert there.fetched("--force", NAME) == folder
    else:
        stored.unlink()
    assert there.fetched(NAME) == folder
    assert whole(folder, files)


def test_a_damaged_shared_file_is_not_used_for_another_repository(
    hub: HubServer, here: Client, there: Client, command: tuple[str, ...], files: dict[str, bytes]
) -> None:
    publish(here, command)
    stored = (there.fetched(NAME) / "model.safetensors").resolve()
    if not stored.is_relative_to(there.cache / "blobs"):
        pytest.skip("this release of the client shares nothing between repositories")
    stored.chmod(0o600)
    stored.write_bytes(stored.read_bytes()[:-1] + b"\xff")
    hub.put("you/copy", files, tag="v1.0.0")
    first, second = there.session(*2 * [("fetch", "you/copy@v1.0.0")])
    assert "arrived damaged and was not kept" in failure(first)
    assert second.returncode == 0, second.stderr
    assert load(Path(second.stdout.splitlines()[-1])).config["name"] == "tiny"
