"""Find a checkpoint and bring it here: a folder, the installed package or the Hugging Face Hub.

A name is looked for in this order: an existing folder; a name of the registry, whose weights come
with the package; the Hub, as `owner/name`, `name@v1.2.0` or `owner/name@v1.2.0`, through its client's
own cache and variables (HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN).

What the registry pins to a commit and a sha256 is fetched as exactly that, and once it is in the
cache it is opened without a single request.  Other names are resolved to a commit once, which is
logged, and all files come from that commit.  A version tag is never asked about twice; a branch is,
and if the Hub does not answer, what was fetched last is used.

Only the four files of a checkpoint are ever fetched, the weights last, so a folder in the cache that
has weights has everything; what has just arrived is compared with its checksums before it is used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import __version__, checkpoint, registry
from zoo.checkpoint import CARD, CONFIG, METRICS, WEIGHTS, Checkpoint, DamagedCheckpointError
from zoo.errors import CheckpointError, UnknownCheckpointError
from zoo.hub_errors import HubError, explained

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from zoo.registry import Record

SOURCES = ("auto", "local", "bundled", "hub")
FILES = (CONFIG, CARD, METRICS, WEIGHTS)
"""In the order in which they are fetched: the weights are the sign that a folder is complete."""

LARGEST = 4 * 2**30
"""Bytes of weights; nothing larger is fetched, since `checkpoint.load` would refuse it."""

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_VERSION = re.compile(r"\d+\.\d+\.\d+([-+][0-9A-Za-z.+-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_GIT_DIGITS, _SHA256_DIGITS = 40, 64

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where a checkpoint is on this machine, and what is known about it."""

    folder: Path
    record: Record | None = None
    """Of the registry; None for any other folder or repository."""
    sha256: str | None = None
    """What the weights must hash to, from the registry."""
    repo: str | None = None
    commit: str | None = None
    """The Hub commit these files are of; None if they did not come from there."""
    name: str = ""
    """What to type to get the same again."""


@dataclass(frozen=True)
class _Wanted:
    """A repository of the Hub and the state of it that was asked for."""

    repo: str
    revision: str
    name: str
    record: Record | None = None
    pinned: bool = False

    @property
    def sha256(self) -> str | None:
        return self.record.sha256 if self.record is not None and self.pinned else None

    @property
    def fixed(self) -> bool:
        """Whether the revision always means the same commit: a commit, or a version tag."""
        return self.pinned or bool(_COMMIT.fullmatch(self.revision) or _is_tag(self.revision))


def load(
    name_or_path: str | os.PathLike[str],
    *,
    kind: str | None = None,
    version: str | None = None,
    source: str = "auto",
) -> Checkpoint:
    """Find a checkpoint, fetch it if need be, and open it with every check.

    Args:
        name_or_path: a folder, a name of the registry, or `owner/name`; names may end in `@v1.2.0`.
        kind: refuse any other kind of model.
        version: `X.Y.Z`, the same as writing `@vX.Y.Z`.
        source: `local` takes a folder only, `bundled` the installed package, `hub` the Hub (or its
            cache); `auto` tries them in this order.

    Raises:
        HubError: the Hub, the network or the cache is in the way.
        UnknownCheckpointError: no such folder or name; close matches are offered.
        CheckpointError: not a checkpoint of this kind, or a damaged one.
    """
    found = locate(name_or_path, kind=kind, version=version, source=source)
    with _remedied(found):
        return checkpoint.load(found.folder, kind=kind, sha256=found.sha256)


def check(found: Source) -> dict[str, Any]:
    """Compare the weights with their sha256, without torch; returns the config.

    Raises:
        CheckpointError: as `checkpoint.load`, as far as it goes.
    """
    with _remedied(found):
        config = checkpoint.read_config(found.folder)
        checkpoint.check_weights_file(found.folder, config["weights_sha256"])
        if found.sha256 is not None:
            checkpoint.check_weights_file(found.folder, found.sha256)
    return config


def locate(
    name_or_path: str | os.PathLike[str],
    *,
    kind: str | None = None,
    version: str | None = None,
    source: str = "auto",
    network: bool = True,
    force: bool = False,
) -> Source:
    """The folder of a checkpoint on this machine; it is fetched if it is not here yet.

    Args:
        name_or_path, kind, version, source: as `load`.
        network: False to look at what is here only.
        force: fetch again what the Hub has, even if it is in the cache.

    Raises:
        HubError, UnknownCheckpointError, CheckpointError: as `load`.
    """
    if source not in SOURCES:
        raise CheckpointError(f"source is {source!r}: it must be one of {', '.join(SOURCES)}")
    text = os.fspath(name_or_path)
    if not text.strip():
        raise CheckpointError("the checkpoint name is empty: give a folder or a name from `zoo list`")
    if source in ("auto", "local"):
        folder = _local_folder(name_or_path)
        if folder is not None or source == "local":
            folder = folder or checkpoint.folder_at(Path(text))
            return Source(folder=_of_version(folder, version), name=str(folder))
    wanted, said = registry.split(text)
    if said is not None and version is not None and said != version.removeprefix("v"):
        raise CheckpointError(f"{text!r} and version={version!r} name two versions: give one of them")
    version = said if said is not None else version.removeprefix("v") if version else None
    if version is not None and not _VERSION.fullmatch(version):
        raise UnknownCheckpointError(f"{version!r} is not a version: write X.Y.Z, as in {wanted}@v1.0.0")
    if isinstance(name_or_path, str) and _REPO.fullmatch(wanted) and not Path(text).exists():
        if source == "bundled":
            raise CheckpointError(f"{wanted} is a repository of the Hub: it does not come with the package")
        revision = "main" if version is None else f"v{version}"
        return _from_hub(_wanted_repo(wanted, revision), kind, network, force)
    if not isinstance(name_or_path, str) or checkpoint.looks_like_path(text):
        checkpoint.folder_at(Path(text))  # raises, saying what is there instead of a folder
    record = registry.named(wanted)
    matches = version is None or version == record.version
    if source != "hub" and record.bundled and matches:
        return _bundled(record)
    if source == "bundled":
        raise CheckpointError(
            f"{_named(record, version)} does not come with this installation: leave out source='bundled' to "
            "fetch it from the Hub"
        )
    return _from_hub(_wanted_record(record, version), kind, network, force)


def _wanted_repo(repo: str, revision: str) -> _Wanted:
    name = repo if revision == "main" else f"{repo}@{revision}"
    for record in registry.records():
        # The registry's own repository under its full name is pinned just as well.
        if record.repo == repo and revision == f"v{record.version}" and record.commit is not None:
            return _Wanted(repo, record.commit, name, record, pinned=True)
    return _Wanted(repo, revision, name)


def _wanted_record(record: Record, version: str | None) -> _Wanted:
    if version is not None and version != record.version:
        return _Wanted(record.repo, f"v{version}", _named(record, version), record)
    if record.commit is None:
        instead = "use the one of the package" if record.bundled else f"make it with `{record.recipe}`"
        raise HubError(f"{_named(record, record.version)} is not published on the Hub yet: {instead}")
    return _Wanted(record.repo, record.commit, _named(record, version), record, pinned=True)


def _named(record: Record, version: str | None) -> str:
    return record.name if version is None else f"{record.name}@v{version}"


def _local_folder(name_or_path: str | os.PathLike[str]) -> Path | None:
    text = os.fspath(name_or_path)
    path = Path(text).expanduser()
    is_name = isinstance(name_or_path, str) and not checkpoint.looks_like_path(text)
    taken = is_name and text in {record.name for record in registry.records()}
    # A working folder that happens to be called like a checkpoint does not hide it.
    return path if path.is_dir() and not (taken and not (path / CONFIG).exists()) else None


def _of_version(folder: Path, version: str | None) -> Path:
    if version is not None:
        found = checkpoint.read_config(folder)["version"]
        if found != version.removeprefix("v"):
            raise CheckpointError(f"{folder} holds version {found}, not {version}: give another folder")
    return folder


def _bundled(record: Record) -> Source:
    folder = registry.bundled_folder(record)
    if not folder.is_dir():
        raise CheckpointError(
            f"checkpoint {record.name!r} is missing from this installation ({folder}): reinstall score-zoo"
        )
    return Source(folder=folder, record=record, sha256=record.sha256, name=record.name)


# -- the cache -------------------------------------------------------------------------------


def _from_hub(wanted: _Wanted, kind: str | None, network: bool, force: bool) -> Source:
    if not force and (wanted.fixed or not network):
        found = _cached(wanted, wanted.revision)
        if found is not None:
            if not wanted.pinned:
                _log.info("%s: commit %s", wanted.name, found.commit)
            return found
    if not network:
        raise HubError(f"{wanted.name} is not on this machine: run `zoo fetch {wanted.name}`")
    try:
        with explained(wanted.repo, wanted.revision, wanted.name):
            commit, files = _ask(wanted)
    except HubError:
        found = None if wanted.fixed or force else _cached(wanted, wanted.revision)
        if found is None:
            raise
        why = "HF_HUB_OFFLINE is set" if _offline() else "the Hub does not answer for it now"
        _log.warning("%s: commit %s, fetched earlier: %s", wanted.name, found.commit, why)
        return found
    if not wanted.pinned:
        # Whoever gave no version should know what to write to get the same again.
        level = logging.INFO if wanted.fixed else logging.WARNING
        _log.log(level, "%s: commit %s", wanted.name, commit)
    return _fetch(wanted, commit, files, kind, force)


def _cached(wanted: _Wanted, revision: str) -> Source | None:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(wanted.repo, CONFIG, revision=revision)
    weights = try_to_load_from_cache(wanted.repo, WEIGHTS, revision=revision)
    if not isinstance(config, str) or not isinstance(weights, str):
        return None
    return _source(wanted, Path(config).parent)


def _source(wanted: _Wanted, folder: Path) -> Source:
    return Source(
        folder=folder,
        record=wanted.record if wanted.pinned else None,
        sha256=wanted.sha256,
        repo=wanted.repo,
        commit=folder.name,
        name=wanted.name,
    )


@contextmanager
def _remedied(found: Source) -> Iterator[None]:
    """Add to the report of a damaged file how to replace it."""
    try:
        yield
    except DamagedCheckpointError as error:
        if found.commit is not None:
            remedy = f" (`zoo fetch --force {found.name}` replaces what is in the cache)"
        else:
            remedy = " (reinstall score-zoo)" if found.record is not None else ""
        raise DamagedCheckpointError(f"{error}{remedy}") from error


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


# -- the network -----------------------------------------------------------------------------


def api() -> HfApi:
    """The Hub's client, introduced as ours."""
    from huggingface_hub import HfApi

    return HfApi(library_name="score-zoo", library_version=__version__)


@dataclass(frozen=True)
class _File:
    """What the Hub says of a file: its bytes, and git's name or the sha256 of its content."""

    size: int
    checksum: str


def _ask(wanted: _Wanted) -> tuple[str, dict[str, _File]]:
    """The commit that a revision names now, and its files.

    One request without retries: a network that is not there is noticed at once.
    """
    from huggingface_hub import constants

    found = api().model_info(
        wanted.repo, revision=wanted.revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
    )
    if found.sha is None:
        raise HubError(f"{constants.ENDPOINT} does not say which commit {wanted.name} is: is it a Hub?")
    return found.sha, {
        file.rfilename: _File(file.size or 0, file.lfs.sha256 if file.lfs else file.blob_id or "")
        for file in found.siblings or []
    }


def _fetch(wanted: _Wanted, commit: str, files: dict[str, _File], kind: str | None, force: bool) -> Source:
    if CONFIG not in files or WEIGHTS not in files:
        pickles = sorted(name for name in files if name.endswith(checkpoint.PICKLES))
        note = f"; {pickles[0]} may be a pickle, which is never opened" if pickles else ""
        lacks = CONFIG if CONFIG not in files else WEIGHTS
        raise HubError(f"{wanted.name} is not a checkpoint of ours: the repository has no {lacks}{note}")
    if max(files[name].size for name in FILES if name in files) > LARGEST:
        raise HubError(f"{wanted.name} has files of more than {LARGEST:,} bytes: not a checkpoint of ours")
    config: dict[str, Any] = {}
    folder = Path()
    for name in FILES:
        if name not in files:
            continue
        # The first file by the name of the revision, so that the client writes down what that meant.
        path, fresh = _download(wanted, name, wanted.revision if name == CONFIG else commit, commit, force)
        folder = path.parent
        if folder.name != commit:
            raise HubError(f"{wanted.name} was changed on the Hub in this very moment: try again")
        if not has_checksum(path.read_bytes(), files[name].checksum):
            raise _damaged(wanted, path, fresh)
        if name == CONFIG:
            config = _our_config(wanted, folder, kind)
    try:
        checkpoint.check_weights_file(folder, wanted.sha256 or config["weights_sha256"])
    except CheckpointError as error:  # though they are what the Hub has
        says = "the registry" if wanted.sha256 else "its own config"
        raise HubError(
            f"{wanted.name} (commit {commit[:12]}) has other weights than {says} says: do not use it, and "
            "report it"
        ) from error
    return _source(wanted, folder)


def _download(wanted: _Wanted, name: str, revision: str, commit: str, force: bool) -> tuple[Path, bool]:
    """The file in the cache, and whether it has just been fetched."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    here = try_to_load_from_cache(wanted.repo, name, revision=revision)
    if isinstance(here, str) and Path(here).parent.name == commit and not force:
        return Path(here), False
    known = isinstance(try_to_load_from_cache(wanted.repo, name, revision=commit), str)
    with explained(wanted.repo, wanted.revision, wanted.name):
        path = hf_hub_download(
            wanted.repo,
            name,
            revision=revision,
            force_download=force,
            library_name="score-zoo",
            library_version=__version__,
        )
    return Path(path), force or not known


def _our_config(wanted: _Wanted, folder: Path, kind: str | None) -> dict[str, Any]:
    try:
        config = checkpoint.read_config(folder, kind=kind)
    except CheckpointError as error:
        message = str(error).replace(str(folder / CONFIG), CONFIG).replace(str(folder), wanted.name)
        raise HubError(f"{wanted.name} (commit {folder.name[:12]}) cannot be used: {message}") from error
    if wanted.record is not None and config["name"] != wanted.record.name:
        raise HubError(f"{wanted.repo} holds {config['name']!r}, not {wanted.record.name!r}: report this")
    return config


def has_checksum(content: bytes, expected: str) -> bool:
    """Whether this is what the Hub says it has: a sha256, or git's name; its client compares sizes only."""
    if len(expected) == _SHA256_DIGITS:
        return hashlib.sha256(content).hexdigest() == expected
    if len(expected) == _GIT_DIGITS:
        # Git's name of a file.  It finds accidents; the sha256 of the weights finds the rest.
        header = b"blob %d\0" % len(content)
        return hashlib.sha1(header + content, usedforsecurity=False).hexdigest() == expected
    return True


def _damaged(wanted: _Wanted, path: Path, fresh: bool) -> CheckpointError:
    blob = path.resolve()
    if fresh:  # or it would be found again; nobody has used it yet
        _discard(path)
        return HubError(f"{wanted.name}: {path.name} arrived damaged and was not kept: try again")
    return DamagedCheckpointError(
        f"{path} is not what the Hub has: `zoo fetch --force {wanted.name}` replaces it, or delete {blob}"
    )


def _discard(path: Path) -> None:
    """Remove a file of the cache with all it links to, down to the bytes.

    The client's cache may have a link to a link: from the snapshot to the repository's blob, and from there
    to a store that repositories share.  Whatever else links there has the same wrong bytes.
    """
    while path.is_symlink():
        following = path.parent / path.readlink()
        path.unlink(missing_ok=True)
        path = following
    path.unlink(missing_ok=True)


# -- what the Hub has ------------------------------------------------------------------------


@dataclass(frozen=True)
class Released:
    """A repository as the Hub shows it."""

    versions: tuple[str, ...]
    """`X.Y.Z`, newest first."""
    size: int
    """Bytes of the newest version's four files."""
    results: dict[str, tuple[float, ...]]
    """Values per metric, from the model-index of the newest version's card."""


def released(repo: str) -> Released:
    """The versions of a repository, two requests.

    Raises:
        NotOnHubError: there is no such repository.
        HubError: the Hub cannot be asked.
    """
    with explained(repo, "main", repo, fetching=False):
        versions = sorted(tags(repo), key=_order, reverse=True)
        if not versions:
            return Released((), 0, {})
        found = api().model_info(repo, revision=f"v{versions[0]}", files_metadata=True)
    size = sum(file.size or 0 for file in found.siblings or [] if file.rfilename in FILES)
    return Released(tuple(versions), size, _results(found.model_index))


def tags(repo: str) -> dict[str, str]:
    """The commit of each version that is tagged; whatever the client raises comes through."""
    refs = api().list_repo_refs(repo)
    return {tag.name[1:]: tag.target_commit for tag in refs.tags if _is_tag(tag.name)}


def _is_tag(revision: str) -> bool:
    return revision.startswith("v") and bool(_VERSION.fullmatch(revision[1:]))


def _order(version: str) -> tuple[list[int], bool, str]:
    numbers, _, suffix = version.replace("+", "-").partition("-")
    return [int(part) for part in numbers.split(".")], suffix == "", suffix


def _results(index: Any) -> dict[str, tuple[float, ...]]:
    """Metric name -> values; whatever has another form is left out."""
    found: dict[str, list[float]] = {}
    for model in index if isinstance(index, list) else []:
        for result in model.get("results", []):
            for metric in result.get("metrics", []):
                if isinstance(metric.get("value"), int | float):
                    found.setdefault(str(metric.get("name", metric.get("type"))), []).append(metric["value"])
    return {name: tuple(values) for name, values in found.items()}
