"""Publish a checkpoint folder on the Hugging Face Hub: check it, commit it, compare, then tag it.

The tag is the release, and it is the last thing to be made: whatever fails before leaves no version,
and the same command can be given again.  A version that exists is never changed.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import checkpoint, hub, registry
from zoo.checkpoint import CARD, CONFIG, METRICS, WEIGHTS, Checkpoint
from zoo.errors import CheckpointError
from zoo.hub_errors import HubError, NotOnHubError, explained

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LIBRARY = "score-zoo"
#: What the front matter of a card must say for the Hub to list the checkpoint where it belongs.
FRONT_MATTER = ("license", "library_name", "tags")

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TEMPLATE = re.compile(r"\{\{.*?\}\}", re.DOTALL)
_FIGURE = re.compile(r"!\[.*?\]\(\s*([^()\s]+)[^()]*\)", re.DOTALL)
_PNG = b"\x89PNG\r\n\x1a\n"
LARGEST_FIGURE = 2**20
"""Bytes; a card is read on slow connections too."""
_FACTORS = (1.0, 100.0)
"""A card may show a fraction as per cent."""


class PublishError(CheckpointError):
    """The folder is not fit to be published, or the Hub did not take it."""


@dataclass(frozen=True)
class Plan:
    """What would be published: the very bytes that were checked."""

    folder: Path
    repo: str
    version: str
    files: Mapping[str, bytes]
    name: str
    kind: str

    @property
    def tag(self) -> str:
        return f"v{self.version}"

    @property
    def title(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class State:
    """What the Hub has of a repository; `head` is None if there is no such repository."""

    head: str | None
    versions: Mapping[str, str]


# -- is it fit? ------------------------------------------------------------------------------


def plan(folder: Path, repo: str, version: str) -> Plan:
    """Check a folder completely, offline.

    Args:
        folder: the checkpoint folder.
        repo: `owner/name` on the Hub.
        version: `X.Y.Z`, which must be the one in the folder's config.

    Raises:
        PublishError: what is wrong with the names, the card or the metrics.
        CheckpointError: the folder cannot be loaded, or its model gives no finite result.
    """
    version = version.removeprefix("v")
    check_repository(repo)
    if not _VERSION.fullmatch(version):
        raise PublishError(f"{version!r} is not a version: write X.Y.Z")
    stored = checkpoint.load(folder)
    config = stored.config
    if config["version"] != version:
        raise PublishError(
            f"{folder} holds version {config['version']}, not {version}: publish it as what it is, or train "
            "and measure the new version"
        )
    files: dict[str, bytes] = {}
    for name in (CONFIG, WEIGHTS, CARD, METRICS):
        path = folder / name
        if not path.is_file():
            raise PublishError(f"{folder} has no {name}: a release needs {_NEEDED[name]}")
        files[name] = path.read_bytes()
    if hashlib.sha256(files[WEIGHTS]).hexdigest() != config["weights_sha256"]:
        raise PublishError(f"{folder / WEIGHTS} is being changed: wait until it is finished")
    check_metrics(stored, hashlib.sha256(files[CONFIG]).hexdigest())
    check_card(stored)
    files |= figures(stored)
    check_inference(folder, config["kind"])
    return Plan(folder, repo, version, files, config["name"], config["kind"])


def check_repository(repo: str) -> None:
    """Raise PublishError unless this has the form of a repository's name."""
    if not _REPO.fullmatch(repo):
        raise PublishError(f"{repo!r} is not a repository: write OWNER/NAME")


_NEEDED = {
    CONFIG: "its config",
    WEIGHTS: "its weights",
    CARD: "a card that says what it is for and how good it is",
    METRICS: "what was measured on it",
}


def check_metrics(stored: Checkpoint, config_sha256: str) -> None:
    """Every section was measured on these weights with this config.

    Raises:
        PublishError: nothing was measured, or on something else.
    """
    where = stored.folder / METRICS
    sections = stored.metrics.get("sections")
    if not isinstance(sections, dict) or not sections:
        raise PublishError(f"{where} has no sections: measure the checkpoint first")
    for key, found in (("checkpoint", "name"), ("version", "version")):
        if stored.metrics.get(key) != stored.config[found]:
            raise PublishError(
                f"{where} is about {stored.metrics.get(key)}, the config about {stored.config[found]}: "
                "measure this checkpoint"
            )
    wanted = {"weights_sha256": stored.config["weights_sha256"], "config_sha256": config_sha256}
    for key, digest in wanted.items():
        stale = [name for name, part in sections.items() if part.get(key) != digest]
        if stale:
            what = "weights" if key == "weights_sha256" else "settings"
            raise PublishError(
                f"{where}: {', '.join(stale)} was measured with other {what}: run its command again"
            )


def check_card(stored: Checkpoint) -> None:
    """The card is finished, is about this version, and its results are those of the metrics.

    Raises:
        PublishError: what is missing or does not agree.
    """
    where = stored.folder / CARD
    if unfinished := _TEMPLATE.search(stored.card):
        said = " ".join(unfinished[0].split())[:60]
        raise PublishError(f"{where} still has {said}: render the card from its template")
    metadata = front_matter(stored.card, where)
    missing = [key for key in FRONT_MATTER if not metadata.get(key)]
    if missing:
        raise PublishError(f"{where}: the front matter has no {', '.join(missing)}")
    if metadata["library_name"] != LIBRARY:
        raise PublishError(f"{where}: library_name is {metadata['library_name']!r}, it must be {LIBRARY!r}")
    prose = stored.card.split("\n---\n", 1)[1]
    for what, text in (("name", stored.config["name"]), ("version", stored.config["version"])):
        if text not in prose:
            raise PublishError(f"{where} does not mention the {what} {text}: bring the card up to date")
    for label, dataset, value in _results(metadata.get("model-index"), where):
        if not any(_same(value, number) for number in _numbers(stored.metrics)):
            raise PublishError(
                f"{where} claims {label} = {value:g}, which is not in {METRICS}: render the card again"
            )
        if not _is_of(value, dataset, stored.metrics["sections"]):
            raise PublishError(
                f"{where} claims {label} = {value:g}, which {METRICS} has of something else: render the card "
                "again"
            )


def figures(stored: Checkpoint) -> dict[str, bytes]:
    """The pictures of the folder that its card shows, by their path in it.

    A section of the metrics may have an object `figures` with their sha256.

    Raises:
        PublishError: one is missing, no PNG, too large, or not the one that belongs to the metrics.
    """
    where = stored.folder / CARD
    sections = stored.metrics.get("sections", {}).values()
    measured = {name: digest for part in sections for name, digest in part.get("figures", {}).items()}
    found = {}
    for name in _FIGURE.findall(stored.card):
        if "://" in name:
            continue
        if re.fullmatch(r"figures/[\w-]+\.png", name) is None:
            raise PublishError(f"{where} shows {name}: pictures of a card are figures/NAME.png")
        path = stored.folder / name
        if not path.is_file():
            raise PublishError(f"{where} shows {name}, which is not there: make it again")
        content = path.read_bytes()
        if not content.startswith(_PNG) or len(content) > LARGEST_FIGURE:
            raise PublishError(f"{path} must be a PNG of at most {LARGEST_FIGURE:,} bytes")
        if measured.get(name, digest := hashlib.sha256(content).hexdigest()) != digest:
            raise PublishError(f"{path} is not the picture that belongs to {METRICS}: make both again")
        found[name] = content
    return found


def _same(shown: float, number: float) -> bool:
    """Whether a card that shows this means that number; it rounds to six decimals, maybe of per cent."""
    return any(math.isclose(shown, number * factor, rel_tol=1e-5, abs_tol=1e-6) for factor in _FACTORS)


def _is_of(value: float, dataset: str, sections: Mapping[str, Any]) -> bool:
    """Whether a section has this number in a row that the dataset's name describes as well as any other.

    Which row was meant is not written in a card; what is exchanged between two materials shows nevertheless.
    """
    found = False
    for section in sections.values():
        rows = section.get("results", [])
        rows = [row for row in (rows if isinstance(rows, list) else [rows]) if isinstance(row, dict)]
        fits = [_described(row, dataset) for row in rows]
        holders = [
            fit for fit, row in zip(fits, rows, strict=True) if any(_same(value, n) for n in _numbers(row))
        ]
        if holders and max(holders) == max(fits):
            return True
        found = found or bool(holders)
    return not found  # it is not in any row, but beside them


def _described(row: Mapping[str, Any], dataset: str) -> int:
    """How many of the row's values the name mentions."""
    shown = (f"{each:g}" if isinstance(each, int | float) else each for each in row.values())
    return sum(
        bool(re.search(rf"(?<![\w.]){re.escape(each)}(?!\w)", dataset))
        for each in shown
        if isinstance(each, str) and each
    )


def front_matter(card: str, where: Path) -> dict[str, Any]:
    """The metadata at the top of a card.

    Raises:
        PublishError: there is none, or it is not YAML.
    """
    import yaml  # type: ignore[import-untyped]  # comes with huggingface_hub, which reads cards with it

    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    if found is None:
        raise PublishError(f"{where} has no front matter: begin it with --- license, library_name, tags ---")
    try:
        data = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        raise PublishError(
            f"{where}: the front matter is not YAML ({' '.join(str(error).split())})"
        ) from None
    if not isinstance(data, dict):
        raise PublishError(f"{where}: the front matter must hold names and values")
    return data


def _results(index: Any, where: Path) -> Iterator[tuple[str, str, float]]:
    """What each result of a model-index is called, the name of its dataset, and its value."""
    try:
        for model in index or []:
            for result in model["results"]:
                for metric in result["metrics"]:
                    dataset = str(result["dataset"]["name"])
                    label = f"{metric.get('name', metric['type'])} of {dataset}"
                    yield label, dataset, float(metric["value"])
    except (TypeError, KeyError, ValueError, AttributeError):
        raise PublishError(f"{where}: the model-index does not have the form that the Hub reads") from None


def _numbers(data: Any) -> Iterator[float]:
    if isinstance(data, dict):
        data = list(data.values())
    if isinstance(data, list):
        for item in data:
            yield from _numbers(item)
    elif isinstance(data, int | float) and not isinstance(data, bool):
        yield float(data)


def check_inference(folder: Path, kind: str) -> None:
    """Open the model as a user would and let it do one step.

    Raises:
        CheckpointError: it cannot be opened, or its result is not finite.
    """
    import numpy as np

    if kind == "denoiser":
        from ase.build import bulk

        from zoo.denoiser import Denoiser

        crystal = bulk("CuZn", "cesiumchloride", a=2.95) * (4, 4, 4)  # two species, for those that want them
        crystal.positions += np.random.default_rng(0).normal(0, 0.05, (len(crystal), 3))
        denoiser = Denoiser.from_pretrained(folder, source="local")
        if denoiser.config.acts_on:
            crystal.symbols = denoiser.config.acts_on
        moved = denoiser.denoise(crystal, steps=1).positions
    else:
        from zoo.molecules.molecule import Molecule
        from zoo.score_dynamics import ScoreDynamics

        model = ScoreDynamics.from_pretrained(folder, source="local")
        if model.family is not None:
            model = model.of(Molecule.from_json(model.family.example))
        rng = np.random.default_rng(0)
        steps = rng.normal(size=(model.molecule.n_sites, 3))
        walk = np.cumsum(1.5 * steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0)
        moved = model.step(walk, rng)
    if not np.isfinite(moved).all():
        raise PublishError(f"{folder}: the model's result is not finite: these weights cannot be used")


# -- the Hub ---------------------------------------------------------------------------------


def look(repo: str) -> State:
    """What the Hub has of this repository, one request.

    Raises:
        HubError: it cannot be asked.
    """
    try:
        with explained(repo, "main", repo, fetching=False):
            refs = hub.api().list_repo_refs(repo)
    except NotOnHubError:
        return State(None, {})
    head = next((branch.target_commit for branch in refs.branches if branch.name == "main"), None)
    return State(head, {tag.name.removeprefix("v"): tag.target_commit for tag in refs.tags})


def check_new(wanted: Plan, state: State) -> None:
    """Refuse a version that exists.

    Raises:
        PublishError: it does.
    """
    if wanted.version in state.versions:
        commit = state.versions[wanted.version]
        raise PublishError(
            f"{wanted.repo} has a version {wanted.version} already (commit {commit}), and versions never "
            "change: publish a new one"
        )


def publish(wanted: Plan, *, private: bool = False) -> str:
    """Upload in one commit, compare what arrived, tag it; returns the commit.

    Raises:
        PublishError: with what had been done by then, and what to do.  There is no tag.
    """
    from huggingface_hub import CommitOperationAdd

    client, repo = hub.api(), wanted.repo
    state = look(repo)
    check_new(wanted, state)
    head = state.head
    with _stage(wanted, "nothing was published"):
        if head is None:
            client.create_repo(repo, private=private, exist_ok=True)
            head = client.model_info(repo).sha
        operations = [CommitOperationAdd(name, content) for name, content in wanted.files.items()]
        done = client.create_commit(
            repo,
            operations,
            commit_message=wanted.title,
            # Whoever commits at the same time loses, instead of mixing two checkpoints.
            parent_commit=head,
        )
    with _stage(wanted, f"commit {done.oid} was uploaded, but is not a version yet"):
        _compare(client, wanted, done.oid)
    _tag(client, wanted, done.oid)
    return str(done.oid)


def _compare(client: HfApi, wanted: Plan, commit: str) -> None:
    found = client.model_info(wanted.repo, revision=commit, files_metadata=True)
    there = {file.rfilename: file for file in found.siblings or []}
    for name, content in wanted.files.items():
        file = there.get(name)
        checksum = None if file is None else file.lfs.sha256 if file.lfs else file.blob_id
        if checksum is None or not hub.has_checksum(content, checksum):
            raise PublishError(f"what the Hub has of {name} is not what was sent")


def _tag(client: HfApi, wanted: Plan, commit: str) -> None:
    try:
        with _stage(wanted, f"commit {commit} was uploaded, but is not a version yet"):
            client.create_tag(wanted.repo, tag=wanted.tag, revision=commit)
    except PublishError:
        # The answer may have been lost on its way; then all is well.
        if _tagged(wanted) != commit:
            raise


def _tagged(wanted: Plan) -> str | None:
    try:
        return look(wanted.repo).versions.get(wanted.version)
    except HubError:
        return None


@contextmanager
def _stage(wanted: Plan, done: str) -> Iterator[None]:
    """Says how far it had come when something failed."""
    try:
        with explained(wanted.repo, "main", wanted.repo, fetching=False):
            yield
    except CheckpointError as cause:
        raise PublishError(
            f"{done}: {cause} (there is no tag {wanted.tag}; the same command goes on from here)"
        ) from cause


def everything() -> Sequence[tuple[Path, str, str]]:
    """Folder, repository and version of each checkpoint of the registry that is on this machine."""
    return [
        (registry.bundled_folder(record), record.repo, record.version)
        for record in registry.records()
        if registry.bundled_folder(record).is_dir()
    ]
