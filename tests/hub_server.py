"""A small Hugging Face Hub on loopback, for the genuine `huggingface_hub` client to talk to.

It keeps repositories in memory and speaks the routes that a publish and a download use: create,
preupload, LFS batch and PUT, commit, tag, refs, tree, resolve with a redirect to a "CDN" (the same
server under another host name, so that the client treats it as foreign).  Every request is logged,
and faults can be injected: see `Fault`.

    with HubServer() as hub:
        hub.put("me/model", {"config.json": b"{}"}, tag="v1.0.0")
        hub.fail("GET /cdn/", "drop", keep=1000)
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.xet_store import XetStore

WRITE_TOKEN = "hf_writes"
READ_TOKEN = "hf_reads"

_LFS_SUFFIXES = (".safetensors", ".bin", ".pkl", ".pt")
_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


def git_oid(content: bytes) -> str:
    """What git calls a file of this content, and the Hub its ETag."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Fault:
    """What goes wrong with the next requests that match.

    `kind` is one of: `status` (answer with `status` and `headers`), `drop` (close the connection after
    `keep` bytes of the answer's or the upload's body), `wrong` (one byte is changed), `short` (the
    answer ends `keep` bytes early, and says so), `slow` (`delay` seconds before each half of the body),
    `lost` (the request is obeyed, but its answer never arrives).
    """

    match: str
    kind: str
    times: int = 1
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    keep: int = 0
    delay: float = 0.0


@dataclass
class Request:
    """One line of the log."""

    method: str
    path: str
    host: str
    authorized: bool

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Commit:
    """A commit and all files as of it."""

    oid: str
    title: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """Branch `main`, newest commit last, and tags."""

    commits: list[Commit]
    tags: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def find(self, revision: str) -> Commit | None:
        oid = self.commits[-1].oid if revision == "main" else self.tags.get(revision, revision)
        return next((commit for commit in self.commits if commit.oid == oid), None)


class HubServer:
    """The server; use it as a context manager."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.moved: dict[str, str] = {}
        """Old repository name -> new one; the Hub answers such requests with 307."""
        self.objects: dict[str, bytes] = {}
        self.xet = XetStore()
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()

    def put(self, repo: str, files: Mapping[str, bytes], *, tag: str | None = None, **options: Any) -> str:
        """Commit files behind the client's back; returns the commit."""
        with self.lock:
            repository = self.repositories.setdefault(repo, Repository([_commit("initial commit", {})]))
            for key, value in options.items():
                setattr(repository, key, value)
            repository.commits.append(_commit("put", {**repository.commits[-1].files, **files}))
            oid = repository.commits[-1].oid
            if tag is not None:
                repository.tags[tag] = oid
        return oid

    def fail(self, match: str, kind: str, **options: Any) -> Fault:
        """Let requests whose "METHOD path" matches the pattern fail."""
        fault = Fault(match, kind, **options)
        self.faults.append(fault)
        return fault

    def fault_for(self, request: Request) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.match, str(request)):
                    fault.times -= 1
                    return fault
        return None

    def requests(self, pattern: str = "") -> list[str]:
        """The log's lines that match."""
        return [str(request) for request in self.log if re.search(pattern, str(request))]


def _commit(title: str, files: dict[str, bytes]) -> Commit:
    # Time makes it unique: two commits of the same files are two commits.
    seed = f"{title}{time.time_ns()}{sorted(files)}".encode()
    return Commit(hashlib.sha1(seed).hexdigest(), title, files)


class _Refusal(Exception):  # noqa: N818
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    fault: Fault | None

    # -- plumbing ----------------------------------------------------------------------------

    def log_message(self, *arguments: Any) -> None:
        pass

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        request = Request(
            self.command, path, self.headers.get("Host", ""), self.headers.get("Authorization") is not None
        )
        self.hub.log.append(request)
        self.fault = self.hub.fault_for(request)
        fault = self.fault
        if fault is not None and fault.kind == "drop" and self.command in ("PUT", "POST"):
            self.rfile.read(min(fault.keep, int(self.headers.get("Content-Length", 0))))
            self._hang_up()
            return
        self.body = self._read_body()
        if fault is not None and fault.kind == "status":
            self._answer(fault.status, b"{}", dict(fault.headers))
            return
        try:
            for method, pattern, action in _ROUTES:
                found = re.fullmatch(pattern, path)
                if found and method == self.command.replace("HEAD", "GET"):
                    with self.hub.lock:
                        reply = action(self, **found.groupdict())
                    self._answer(*reply)
                    return
            raise _Refusal(404)
        except _Refusal as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            if refused.status == 307:
                headers = {"Location": refused.message}
            body = json.dumps({"error": refused.message}).encode()
            self._answer(refused.status, body, {key: value for key, value in headers.items() if value})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().strip(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        fault, headers = self.fault, dict(headers or {})
        kind = fault.kind if fault is not None else ""
        if kind == "lost":
            self._hang_up()
            return
        if fault is not None and self.command == "GET" and body:
            if kind == "wrong":
                middle = len(body) // 2
                body = body[:middle] + bytes([body[middle] ^ 0xFF]) + body[middle + 1 :]
            elif kind == "short":
                body = body[: -fault.keep]
        length = headers.pop("Content-Length", str(len(body)))
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault is not None and kind == "drop":
            self.wfile.write(body[: fault.keep])
            self._hang_up()
        elif fault is not None and kind == "slow":
            half = len(body) // 2
            for part in (body[:half], body[half:]):
                time.sleep(fault.delay)
                self.wfile.write(part)
                self.wfile.flush()
        else:
            self.wfile.write(body)

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.close()

    def _token(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in (WRITE_TOKEN, READ_TOKEN):
            raise _Refusal(401, "", "Invalid credentials in Authorization header")
        return token or None

    def _repository(self, repo: str, *, write: bool = False) -> Repository:
        if repo in self.hub.moved:
            raise _Refusal(307, "", self.path.replace(repo, self.hub.moved[repo], 1))
        token = self._token()
        repository = self.hub.repositories.get(repo)
        if repository is None or (repository.private and token is None):
            # The Hub does not tell strangers which repositories exist.
            if token is None:
                raise _Refusal(401, "", "Invalid username or password.")
            raise _Refusal(404, "RepoNotFound", "Repository not found")
        if write:
            self._may_write(token)
        if repository.gated and token is None:
            raise _Refusal(401, "GatedRepo", "Access to this model is restricted")
        return repository

    def _may_write(self, token: str | None) -> None:
        if token is None:
            raise _Refusal(401, "", "Invalid username or password.")
        if token != WRITE_TOKEN:
            raise _Refusal(403, "", "You don't have the rights to create a model under this namespace")

    def _found(self, repository: Repository, revision: str) -> Commit:
        commit = repository.find(revision)
        if commit is None:
            raise _Refusal(404, "RevisionNotFound", "Invalid rev id")
        return commit

    # -- routes: each returns status, body, headers -------------------------------------------

    def info(self, repo: str, revision: str = "main") -> tuple[int, bytes, dict[str, str]]:
        repository = self._repository(repo)
        commit = self._found(repository, revision)
        data = {
            "_id": "0",
            "id": repo,
            "modelId": repo,
            "sha": commit.oid,
            "private": repository.private,
            "gated": False,
            "tags": [],
            "downloads": 0,
            "siblings": [
                {
                    "rfilename": path,
                    "size": len(content),
                    "blobId": git_oid(content),
                    **({"lfs": _lfs(content)} if path.endswith(_LFS_SUFFIXES) else {}),
                }
                for path, content in commit.files.items()
            ],
        }
        metadata = _front_matter(commit.files.get("README.md", b"").decode())
        if metadata:
            data["cardData"] = {key: value for key, value in metadata.items() if key != "model-index"}
            if "model-index" in metadata:
                data["model-index"] = metadata["model-index"]
        return _json(data)

    def tree(self, repo: str, revision: str) -> tuple[int, bytes, dict[str, str]]:
        commit = self._found(self._repository(repo), revision)
        rows = [
            {
                "type": "file",
                "path": path,
                "size": len(content),
                "oid": git_oid(content),
                **({"lfs": {**_lfs(content), "oid": _lfs(content)["sha256"]}} if _is_lfs(path) else {}),
            }
            for path, content in commit.files.items()
        ]
        return _json(rows)

    def refs(self, repo: str) -> tuple[int, bytes, dict[str, str]]:
        repository = self._repository(repo)
        head = {"name": "main", "ref": "refs/heads/main", "targetCommit": repository.commits[-1].oid}
        tags = [
            {"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": oid}
            for tag, oid in repository.tags.items()
        ]
        return _json({"branches": [head], "converts": [], "tags": tags})

    def resolve(self, repo: str, revision: str, path: str) -> tuple[int, bytes, dict[str, str]]:
        commit = self._found(self._repository(repo), revision)
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if path not in commit.files:
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        content = commit.files[path]
        if _is_lfs(path):
            sha256 = hashlib.sha256(content).hexdigest()
            self.hub.objects.setdefault(sha256, content)
            # Another origin than the endpoint's: the client must not send its token there.
            location = f"http://localhost:{self.hub.port}/cdn/{sha256}"
            linked = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
            if sha256 in self.hub.xet.names:
                refresh = f"{self.hub.url}/api/models/{repo}/xet-read-token/{commit.oid}"
                linked |= {"X-Xet-Hash": self.hub.xet.names[sha256], "X-Xet-Refresh-Route": refresh}
            return 302, b"", {**headers, **linked, "Location": location, "ETag": f'"{git_oid(content)}"'}
        return self._content(content, {**headers, "ETag": f'"{git_oid(content)}"'})

    def cdn(self, sha256: str) -> tuple[int, bytes, dict[str, str]]:
        if sha256 not in self.hub.objects:
            raise _Refusal(404)
        return self._content(self.hub.objects[sha256], {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})

    def _content(self, content: bytes, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not found:
            return 200, content, headers
        start, stop = int(found[1]), int(found[2] or len(content) - 1) + 1
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return 206, content[start:stop], headers

    def create(self) -> tuple[int, bytes, dict[str, str]]:
        self._may_write(self._token())
        data = json.loads(self.body)
        repo = f"{data.get('organization') or 'me'}/{data['name']}"
        url = {"url": f"{self.hub.url}/{repo}"}
        if repo in self.hub.repositories:
            return _json({**url, "error": "You already created this model repo"}, 409)
        private = data.get("visibility") == "private"
        first = _commit("initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.hub.repositories[repo] = Repository([first], private=private)
        return _json(url)

    def validate_yaml(self) -> tuple[int, bytes, dict[str, str]]:
        try:
            _front_matter(json.loads(self.body)["content"])
        except Exception as error:
            return _json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        return _json({"errors": [], "warnings": []})

    def preupload(self, repo: str, revision: str) -> tuple[int, bytes, dict[str, str]]:
        commit = self._found(self._repository(repo, write=True), revision)
        files = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if _is_lfs(file["path"]) else "regular"
            row = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if (content := commit.files.get(file["path"])) is not None:
                row["oid"] = hashlib.sha256(content).hexdigest() if mode == "lfs" else git_oid(content)
            files.append(row)
        return _json({"files": files})

    def lfs_batch(self, repo: str) -> tuple[int, bytes, dict[str, str]]:
        self._repository(repo, write=True)
        objects = []
        for item in json.loads(self.body)["objects"]:
            row = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.objects:
                upload = f"{self.hub.url}/lfs/{item['oid']}"
                verify = f"{self.hub.url}/{repo}.git/info/lfs/objects/verify"
                row["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
            objects.append(row)
        return _json({"transfer": "basic", "objects": objects})

    def lfs_put(self, sha256: str) -> tuple[int, bytes, dict[str, str]]:
        if hashlib.sha256(self.body).hexdigest() != sha256:
            raise _Refusal(400, "", "the content does not have the announced sha256")
        self.hub.objects[sha256] = self.body
        return 200, b"", {}

    def lfs_verify(self, repo: str) -> tuple[int, bytes, dict[str, str]]:
        item = json.loads(self.body)
        if len(self.hub.objects.get(item["oid"], b"")) != item["size"]:
            raise _Refusal(400, "", "the object was not uploaded")
        return _json({})

    def xet_token(self, repo: str, right: str, revision: str) -> tuple[int, bytes, dict[str, str]]:
        self._repository(repo, write=right == "write")
        url, expires = f"{self.hub.url}/xet", int(time.time()) + 3600
        headers = {
            "X-Xet-Cas-Url": url,
            "X-Xet-Access-Token": "xet",
            "X-Xet-Token-Expiration": str(expires),
        }
        body = json.dumps({"casUrl": url, "accessToken": "xet", "exp": expires}).encode()
        return 200, body, {**headers, "Content-Type": "application/json"}

    def xet_xorb(self, xorb: str) -> tuple[int, bytes, dict[str, str]]:
        new = xorb not in self.hub.xet.xorbs
        self.hub.xet.xorbs[xorb] = self.body
        return _json({"was_inserted": new})

    def xet_shard(self) -> tuple[int, bytes, dict[str, str]]:
        self.hub.objects |= self.hub.xet.add_shard(self.body)
        return _json({"result": 1})

    def xet_reconstruction(self, name: str) -> tuple[int, bytes, dict[str, str]]:
        if name not in self.hub.xet.files:
            raise _Refusal(404)
        return _json(self.hub.xet.reconstruction(name, f"{self.hub.url}/xet/data"))

    def xet_data(self, xorb: str) -> tuple[int, bytes, dict[str, str]]:
        return self._content(self.hub.xet.xorbs[xorb], {})

    def commit(self, repo: str, revision: str) -> tuple[int, bytes, dict[str, str]]:
        repository = self._repository(repo, write=True)
        head = self._found(repository, revision)
        files, header = dict(head.files), {}
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                header = value
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise _Refusal(400, "", "an LFS object is missing")
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                files.pop(value["path"], None)
        if header.get("parentCommit") not in (None, head.oid):
            raise _Refusal(412, "", "A commit has happened since. Please refresh and try again.")
        repository.commits.append(_commit(header["summary"], files))
        oid = repository.commits[-1].oid
        return _json({"commitOid": oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}", "success": True})

    def tag(self, repo: str, revision: str) -> tuple[int, bytes, dict[str, str]]:
        repository = self._repository(repo, write=True)
        commit = self._found(repository, revision)
        name = json.loads(self.body)["tag"]
        if name in repository.tags:
            raise _Refusal(409, "", "Tag reference exists already")
        repository.tags[name] = commit.oid
        return _json({})


def _json(data: Any, status: int = 200) -> tuple[int, bytes, dict[str, str]]:
    return status, json.dumps(data).encode(), {"Content-Type": "application/json"}


def _is_lfs(path: str) -> bool:
    return path.endswith(_LFS_SUFFIXES)


def _lfs(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}


def _front_matter(text: str) -> dict[str, Any]:
    import yaml  # comes with huggingface_hub

    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    data = yaml.safe_load(found[1]) if found else {}
    return data if isinstance(data, dict) else {}


_Action = Callable[..., tuple[int, bytes, dict[str, str]]]
_ROUTES: list[tuple[str, str, _Action]] = [
    ("GET", rf"/api/models/{_REPO}", _Handler.info),
    ("GET", rf"/api/models/{_REPO}/revision/(?P<revision>.+)", _Handler.info),
    ("GET", rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)", _Handler.tree),
    ("GET", rf"/api/models/{_REPO}/refs", _Handler.refs),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("POST", rf"/api/models/{_REPO}/preupload/(?P<revision>.+)", _Handler.preupload),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/verify", _Handler.lfs_verify),
    ("PUT", r"/lfs/(?P<sha256>[0-9a-f]{64})", _Handler.lfs_put),
    ("POST", rf"/api/models/{_REPO}/commit/(?P<revision>.+)", _Handler.commit),
    ("POST", rf"/api/models/{_REPO}/tag/(?P<revision>.+)", _Handler.tag),
    ("GET", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
    ("GET", rf"/api/models/{_REPO}/xet-(?P<right>read|write)-token/(?P<revision>.+)", _Handler.xet_token),
    ("POST", r"/xet/v1/xorbs/default/(?P<xorb>[0-9a-f]{64})", _Handler.xet_xorb),
    ("POST", r"/xet/v1/shards", _Handler.xet_shard),
    ("GET", r"/xet/v1/reconstructions/(?P<name>[0-9a-f]{64})", _Handler.xet_reconstruction),
    ("GET", r"/xet/data/(?P<xorb>[0-9a-f]{64})", _Handler.xet_data),
    ("GET", r"/cdn/(?P<sha256>[0-9a-f]{64})", _Handler.cdn),
]
