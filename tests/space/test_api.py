"""The endpoints, with `gradio_client` and as MCP tools, against a page in a process of its own."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read, write

from tests.space.conftest import page_served
from zoo_space.limits import Limits

pytestmark = pytest.mark.slow

gradio_client = pytest.importorskip("gradio_client")
MD = Path(__file__).parents[1] / "data" / "md"


@pytest.fixture(scope="module")
def client(page_url: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return gradio_client.Client(page_url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


def refused(client: Any, **arguments: Any) -> str:
    """The one line with which a call is refused."""
    with pytest.raises(gradio_client.exceptions.AppError) as error:
        client.predict(**arguments)
    message = str(error.value)
    assert "Traceback" not in message
    assert "\n" not in message
    assert "/tmp" not in message
    return message


def test_the_jobs_are_the_only_public_endpoints(page_url: str) -> None:
    with urllib.request.urlopen(page_url + "gradio_api/info") as answer:
        info = json.load(answer)
    assert set(info["named_endpoints"]) == {"/denoise", "/rollout"}
    assert not info["unnamed_endpoints"]
    names = [p["parameter_name"] for p in info["named_endpoints"]["/denoise"]["parameters"]]
    assert names == ["file", "example", "checkpoint", "steps", "frame", "species"]


def test_denoise_an_upload(client: Any) -> None:
    summary, files = client.predict(
        file=gradio_client.handle_file(str(MD / "Fe-1.00.extxyz.gz")), steps=10, api_name="/denoise"
    )
    assert summary["fractions_after"]["bcc"] == 1.0
    assert summary["fractions_before"]["bcc"] < 0.9
    structure, picture = map(Path, files)
    assert structure.name == "Fe-1.00-denoised.extxyz"
    assert set(read(structure).arrays["site_type"]) == {3}
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_denoise_a_frame_of_a_trajectory(client: Any, tmp_path: Path) -> None:
    frames = [bulk("Cu", cubic=True).repeat(3), bulk("Cu", cubic=True).repeat(4)]
    for k, atoms in enumerate(frames):
        atoms.rattle(0.1, seed=k)
    write(tmp_path / "two.xyz", frames, format="extxyz")
    upload = gradio_client.handle_file(str(tmp_path / "two.xyz"))
    summary, _ = client.predict(file=upload, frame=-1, api_name="/denoise")
    assert (summary["frame"], summary["atoms"]) == (2, 256)
    assert "no frame 3" in refused(client, file=upload, frame=3, api_name="/denoise")


def test_rollout_an_example(client: Any) -> None:
    summary, files = client.predict(
        example="alanine-alpha-r", steps=20, walkers=2, seed=3, api_name="/rollout"
    )
    assert summary["checkpoint"].startswith("sd-alanine-dipeptide@")
    assert summary["n_steps"] == 20
    assert [Path(f).suffix for f in files] == [".xtc", ".xtc", ".pdb", ".json"]
    report = json.loads(Path(files[-1]).read_text())
    assert report["seed"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"api_name": "/denoise"}, "nothing to work on"),
        ({"example": "ice", "steps": 21, "api_name": "/denoise"}, "steps must be from 1 to 20"),
        ({"example": "ice", "steps": 2.5, "api_name": "/denoise"}, "whole number"),
        ({"example": "ice", "frame": 0, "api_name": "/denoise"}, "frames count from 1"),
        ({"example": "alanine-c7eq", "steps": 201, "api_name": "/rollout"}, "from 1 to 200"),
        ({"example": "alanine-c7eq", "steps": 9, "walkers": 0, "api_name": "/rollout"}, "from 1 to 32"),
        ({"example": "alanine-c7eq", "steps": 9, "seed": -1, "api_name": "/rollout"}, "seed must be"),
    ],
)
def test_impossible_requests_are_refused_in_one_line(client: Any, arguments: Any, message: str) -> None:
    assert message in refused(client, **arguments)


def test_checkpoints_are_the_released_ones_and_nothing_is_fetched_for_a_visitor(client: Any) -> None:
    for name in ("somebody/their-model", "/etc", "sd-alanine-dipeptide"):
        refused(client, example="ice", checkpoint=name, api_name="/denoise")


def test_hostile_uploads(client: Any, tmp_path: Path) -> None:
    def upload(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return refused(client, file=gradio_client.handle_file(str(tmp_path / name)), api_name="/denoise")

    assert "unpacks to more than 2 MB" in upload("bomb.xyz.gz", gzip.compress(bytes(50_000_000)))
    assert "is a zip archive" in upload("a.zip", b"PK\x03\x04" + bytes(100))
    assert "not recognised" in upload("movie.mp4", b"\0\0\0 ftypisom" * 10)
    assert "1,000,000 atoms" in upload("big.xyz", b"1000000\n\nCu 0 0 0\n")
    nan = b'2\nLattice="5 0 0 0 5 0 0 0 5" pbc="T T T"\nCu 0 0 0\nCu nan 1 1\n'
    assert "NaN" in upload("nan.extxyz", nan)
    assert "same place" in upload("twice.xyz", b"2\n\nCu 0 0 0\nCu 0 0 0\n")


def _post(url: str, data: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        url, json.dumps(data).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    return urllib.request.urlopen(request, timeout=60)


def test_files_of_the_server_cannot_be_named_as_uploads(page_url: str) -> None:
    """As a client that is not ours would: a path of the server in place of one of an upload."""
    secret = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    try:
        with _post(
            page_url + "gradio_api/call/denoise", {"data": [secret, None, "automatic", 5, 1, ""]}
        ) as a:
            event = json.load(a)["event_id"]
        with urllib.request.urlopen(f"{page_url}gradio_api/call/denoise/{event}", timeout=60) as stream:
            text = stream.read().decode()
    except urllib.error.HTTPError as error:
        assert error.code in (400, 403, 422)
    else:
        assert "event: error" in text
        assert "root:" not in text
    for path in ("/etc/passwd", "../../../../etc/passwd"):
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(f"{page_url}gradio_api/file={path}")
        assert refusal.value.code in (403, 404)


def test_uploads_beyond_the_limit_are_refused_by_the_server(page_url: str) -> None:
    boundary = "x" * 20
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="big.xyz"\r\n\r\n'
    body = head.encode() + bytes(1_500_000) + f"\r\n--{boundary}--\r\n".encode()
    request = urllib.request.Request(
        page_url + "gradio_api/upload",
        body,
        {"Content-Type": f"multipart/form-data; boundary={boundary}"},
        method="POST",
    )
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=60)
    assert error.value.code == 413


def test_two_visitors_at_once_get_each_their_own(page_url: str, tmp_path: Path) -> None:
    clients = []
    for name in ("Fe-1.00", "Mg-1.00"):
        (tmp_path / name).mkdir()
        copy = tmp_path / name / "same-name.extxyz.gz"
        shutil.copy(MD / f"{name}.extxyz.gz", copy)
        one = gradio_client.Client(page_url, verbose=False, download_files=tmp_path / name)
        clients.append((name, one.submit(file=gradio_client.handle_file(str(copy)), api_name="/denoise")))
    for (name, job), label in zip(clients, (3, 2), strict=True):
        summary, files = job.result(timeout=120)
        assert summary["formula"] == name[:2]
        values, counts = np.unique(read(files[0]).arrays["site_type"], return_counts=True)
        assert values[counts.argmax()] == label


def test_nothing_of_a_job_is_left_behind(client: Any, page_folder: Path) -> None:
    client.predict(example="grain-boundary", api_name="/denoise")
    refused(client, example="nonsense", api_name="/denoise")
    left = [f.name for f in page_folder.iterdir() if f.name.startswith(("zoo-job-", "zoo-space-out-"))]
    assert not left


def test_the_same_jobs_are_tools_for_language_models(page_url: str) -> None:
    pytest.importorskip("mcp")
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def talk() -> tuple[dict[str, Any], Any, Any]:
        async with (
            streamable_http_client(page_url + "gradio_api/mcp/") as (receive, send, _),
            ClientSession(receive, send) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            name = next(each for each in tools if "denoise" in each)
            good = await session.call_tool(name, {"example": "grain-boundary"})
            bad = await session.call_tool(name, {"example": "ice", "steps": 99})
            return tools, good, bad

    tools, good, bad = asyncio.run(talk())
    assert len(tools) == 2
    denoise = next(tool for name, tool in tools.items() if "denoise" in name)
    assert "thermal vibration" in denoise.description
    assert "at most" in json.dumps(denoise.inputSchema).lower()
    assert "file" not in denoise.inputSchema.get("required", [])
    text = " ".join(part.text for part in good.content if part.type == "text")
    assert "fractions_after" in text
    assert "denoised.extxyz" in text
    assert len(text) < 10_000  # a summary and files, no frames
    assert bad.isError
    assert "steps must be from 1 to 20" in bad.content[0].text


def test_limits_are_stated_where_they_are_enforced() -> None:
    limits = Limits(atoms=123, frames=45, upload_mb=6, unpacked_mb=78, lag_steps=901, walkers=23)
    for number in ("123", "45", "6 MB", "78 MB"):
        assert number in limits.of_denoising()
    for number in ("901", "23"):
        assert number in limits.of_rollouts()


def test_tools_take_the_content_of_a_file(page_url: str) -> None:
    pytest.importorskip("mcp")
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    content = base64.b64encode(gzip.decompress((MD / "Mg-1.00.extxyz.gz").read_bytes())).decode()

    async def talk() -> Any:
        async with (
            streamable_http_client(page_url + "gradio_api/mcp/") as (receive, send, _),
            ClientSession(receive, send) as session,
        ):
            await session.initialize()
            tools = [tool.name for tool in (await session.list_tools()).tools]
            name = next(each for each in tools if "denoise" in each)
            return await session.call_tool(name, {"file": f"data:text/plain;base64,{content}"})

    result = asyncio.run(talk())
    text = " ".join(part.text for part in result.content if part.type == "text")
    assert not result.isError, text
    assert "'hcp': 1.0" in text or '"hcp": 1.0' in text


def test_under_load_late_comers_are_told_and_long_jobs_end(tmp_path: Path) -> None:
    with page_served(tmp_path, workers=1, queue=1, rollout_seconds=6.0) as url:
        one = gradio_client.Client(url, verbose=False)
        long = {"example": "alanine-c7eq", "steps": 5000, "walkers": 10, "api_name": "/rollout"}
        jobs = [one.submit(**long) for _ in range(4)]
        messages = [str(job.exception(timeout=120)) for job in jobs]
        assert any("longer than 6 s, the limit of this page" in each for each in messages), messages
        assert any("Queue is full" in each for each in messages), messages
    assert not [f.name for f in tmp_path.iterdir() if f.name.startswith("zoo-")]  # nor uploads, nor results
