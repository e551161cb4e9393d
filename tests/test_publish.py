"""Publishing, against a Hub on loopback and with the genuine client."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_client import NOWHERE, PIN, Client, failure
from tests.hub_server import READ_TOKEN, WRITE_TOKEN, HubServer
from training import pin
from zoo import publish_command, publishing, recipes, registry
from zoo.checkpoint import write_text
from zoo.cli import main
from zoo.errors import CheckpointError
from zoo.hub_errors import HubError
from zoo.publishing import PublishError, plan

NAME = "denoiser-elements"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a released checkpoint, to be spoilt."""
    record = registry.find(NAME)
    return Path(shutil.copytree(registry.bundled_folder(record), tmp_path / "mine"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "check_inference", lambda folder, kind: None)


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder by their path in it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def edit(path: Path, change: Callable[[Any], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


# -- is it fit? ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("record", [r for r in registry.records() if r.bundled], ids=lambda r: r.name)
def test_every_released_checkpoint_is_fit_to_be_published(record: registry.Record) -> None:
    path = registry.bundled_folder(record)
    found = plan(path, record.repo, record.version)
    assert (found.tag, found.title) == (f"v{record.version}", f"{record.name} {record.version}")
    assert found.files == contents(path)


VERSION = registry.find("denoiser-elements").version


def refused(folder: Path, repo: str = "me/mine", version: str = VERSION) -> str:
    with pytest.raises(CheckpointError) as caught:
        plan(folder, repo, version)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("repo", "version", "hint"),
    [
        ("mine", VERSION, "write OWNER/NAME"),
        ("me/mine/more", VERSION, "write OWNER/NAME"),
        ("me/mine", "1.0", "write X.Y.Z"),
        ("me/mine", "1.0.1", f"holds version {VERSION}, not 1.0.1"),
    ],
)
def test_names_and_versions(folder: Path, quick: None, repo: str, version: str, hint: str) -> None:
    assert hint in refused(folder, repo, version)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md", "metrics.json"])
def test_a_release_needs_all_four_files(folder: Path, quick: None, name: str) -> None:
    (folder / name).unlink()
    assert name in refused(folder)


@pytest.mark.parametrize(
    ("old", "new", "hint"),
    [
        ("---\n", "", "has no front matter"),
        ("license: mit\n", "", "the front matter has no license"),
        ("library_name: score-zoo", "library_name: other", "must be 'score-zoo'"),
        ("tags:", "tags: [", "not YAML"),
        ("model-index:\n- name:", "model-index:\n- nom:\n  name:", None),
        ("  results:", "  resultats:", "does not have the form"),
        (
            f"# denoiser-elements {VERSION}",
            "# denoiser-elements {{ record.version }}",
            "{{ record.version }}",
        ),
        (VERSION, "0.9.0", f"does not mention the version {VERSION}"),
        ("denoiser-elements", "denoiser-other", "does not mention the name"),
    ],
)
def test_a_dirty_card_is_refused(folder: Path, quick: None, old: str, new: str, hint: str | None) -> None:
    card = folder / "README.md"
    text = card.read_text()
    assert old in text
    card.write_text(text.replace(old, new))
    if hint is None:
        plan(folder, "me/mine", VERSION)
    else:
        assert hint in refused(folder)


def test_a_card_and_metrics_that_disagree_are_refused(folder: Path, quick: None) -> None:
    card = folder / "README.md"
    text = card.read_text()
    value = re.search(r"value: ([\d.]+)", text)
    assert value is not None
    card.write_text(text.replace(f"value: {value[1]}", "value: 1.23457"))
    assert "= 1.23457, which is not in metrics.json: render the card again" in refused(folder)


def test_results_that_are_exchanged_are_refused(folder: Path, quick: None) -> None:
    rows = [{"material": name, "denoised": value} for name, value in (("Al", 0.991), ("Ti", 0.982))]

    def measured(data: Any) -> None:
        data["sections"]["dc3"]["results"] = rows

    edit(folder / "metrics.json", measured)
    card = folder / "README.md"
    prose = card.read_text().split("\n---\n", 1)[1]

    def claim(**values: float) -> None:
        results = "".join(
            f"  - task: {{type: other}}\n    dataset: {{type: dc3, name: 'Melting {name}, 10 ps'}}\n"
            f"    metrics: [{{type: accuracy, value: {value}}}]\n"
            for name, value in values.items()
        )
        head = "---\nlicense: mit\nlibrary_name: score-zoo\ntags: [a]\nmodel-index:\n- name: x\n  results:\n"
        card.write_text(f"{head}{results}---\n{prose}")

    claim(Al=99.1, Ti=0.982)
    plan(folder, "me/mine", VERSION)
    claim(Al=98.2, Ti=99.1)
    assert "accuracy of Melting Al, 10 ps = 98.2, which metrics.json has of something else" in refused(folder)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda data: data.pop("sections"), "has no sections"),
        (lambda data: data.update(sections={}), "has no sections"),
        (lambda data: data.update(version="0.9.0"), f"is about 0.9.0, the config about {VERSION}"),
        (lambda data: data.update(checkpoint="other"), "is about other"),
        (
            lambda data: data["sections"]["dc3"].update(weights_sha256="0"),
            "dc3 was measured with other weights",
        ),
        (
            lambda data: data["sections"]["speed"].pop("config_sha256"),
            "speed was measured with other settings",
        ),
    ],
)
def test_metrics_of_something_else_are_refused(
    folder: Path, quick: None, change: Callable[[Any], None], hint: str
) -> None:
    edit(folder / "metrics.json", change)
    assert hint in refused(folder)


def test_a_changed_setting_makes_all_measurements_stale(folder: Path, quick: None) -> None:
    edit(folder / "config.json", lambda data: data.update(clip=6.0))
    assert "was measured with other settings" in refused(folder)


def test_a_model_that_cannot_be_opened_is_refused(folder: Path) -> None:
    edit(folder / "config.json", lambda data: data["architecture"].update(n_layers=3))
    digest = publishing.hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()

    def stamp(data: Any) -> None:
        for section in data["sections"].values():
            section["config_sha256"] = digest

    edit(folder / "metrics.json", stamp)
    assert "does not fit the model its config describes" in refused(folder)


PNG = b"\x89PNG\r\n\x1a\n"


def show(folder: Path, name: str, content: bytes | None) -> None:
    """Let the card show a picture, which is there unless there is nothing of it."""
    card = folder / "README.md"
    card.write_text(f"{card.read_text()}\n![what is seen]({name})\n")
    if content is not None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def test_pictures_that_the_card_shows_are_published(folder: Path, quick: None) -> None:
    before = plan(folder, "me/mine", VERSION).files
    show(folder, "https://example.org/badge.svg", None)
    show(folder, "figures/seen.png", PNG)
    (folder / "figures" / "draft.png").write_bytes(PNG)
    found = plan(folder, "me/mine", VERSION).files
    assert found.keys() - before.keys() == {"figures/seen.png"}
    assert found["figures/seen.png"] == PNG


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("figures/none.png", None, "shows figures/none.png, which is not there"),
        ("figures/a.png", b"GIF89a", "must be a PNG of at most 1,048,576 bytes"),
        ("figures/a.png", PNG + bytes(2**20), "must be a PNG of at most 1,048,576 bytes"),
        ("figures/a.jpg", b"", "shows figures/a.jpg: pictures of a card are figures/NAME.png"),
        ("figures/../README.md", None, "pictures of a card are figures/NAME.png"),
        ("../secret.png", None, "pictures of a card are figures/NAME.png"),
        ("/etc/a.png", None, "pictures of a card are figures/NAME.png"),
    ],
)
def test_other_pictures_are_refused(
    folder: Path, quick: None, name: str, content: bytes | None, hint: str
) -> None:
    show(folder, name, content)
    assert hint in refused(folder)


def test_a_picture_that_was_not_made_with_the_metrics_is_refused(folder: Path, quick: None) -> None:
    show(folder, "figures/a.png", PNG)
    digest = publishing.hashlib.sha256(PNG).hexdigest()
    edit(
        folder / "metrics.json",
        lambda data: data["sections"]["dc3"].update(figures={"figures/a.png": digest}),
    )
    assert plan(folder, "me/mine", VERSION).files["figures/a.png"] == PNG
    (folder / "figures" / "a.png").write_bytes(PNG + b"x")
    assert "is not the picture that belongs to metrics.json: make both again" in refused(folder)


# -- on the Hub ------------------------------------------------------------------------------


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def client(hub: HubServer, tmp_path: Path) -> Client:
    home = tmp_path / "home"
    home.mkdir()
    return Client(hub, home, {"HF_TOKEN": WRITE_TOKEN})


#: What was checked, without checking it: saves importing torch in every process.
TRUSTED = """
from zoo import publishing
publishing.plan = lambda folder, repo, version: publishing.Plan(
    folder, repo, version,
    {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()},
    "tiny", "denoiser")
"""


def writes(hub: HubServer) -> list[str]:
    return hub.requests("^(POST|PUT|DELETE)")


@pytest.mark.slow
def test_published_here_fetched_there(hub: HubServer, client: Client, folder: Path, tmp_path: Path) -> None:
    show(folder, "figures/seen.png", PNG)
    command = ("publish", str(folder), "--repo", "me/mine", "--version", VERSION)
    dry, real, again = client.session([*command, "--dry-run"], command, command)
    assert dry.returncode == 0
    assert "would create the repository me/mine" in dry.stdout
    assert f"tag the commit v{VERSION}" in dry.stdout
    assert real.returncode == 0, real.stderr
    assert len(hub.requests("POST .*/commit/")) == 1
    assert writes(hub)[0] == "POST /api/repos/create"
    assert writes(hub)[-1].startswith("POST /api/models/me/mine/tag/")
    commit = hub.repositories["me/mine"].tags[f"v{VERSION}"]
    assert commit in real.stdout
    assert f"has a version {VERSION} already" in failure(again)
    pictures = {name: content for name, content in contents(folder).items() if "/" in name}
    published = hub.repositories["me/mine"].find(f"v{VERSION}")
    assert published is not None and pictures.items() <= published.files.items()
    assert "figures/seen.png" in pictures
    (tmp_path / "there").mkdir()
    there = Client(hub, tmp_path / "there").fetched(f"me/mine@v{VERSION}")
    # Pictures are for the page of the Hub; they are not fetched.
    wanted = {name: content for name, content in contents(folder).items() if "/" not in name}
    assert contents(there) == wanted


def test_a_dry_run_changes_nothing(hub: HubServer, client: Client, folder: Path) -> None:
    command = ["publish", str(folder), "--repo", "me/mine", "--version", "1.0.0"]
    done = client.zoo(*command, "--dry-run", prelude=TRUSTED)
    assert done.returncode == 0, done.stderr
    assert writes(hub) == []


#: repository -> where it fails, how, and what is said
STAGES: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "me/valid": ("POST /api/validate-yaml", "drop", {}, "nothing was published"),
    "me/created": ("POST /api/repos/create", "status", {"status": 500}, "nothing was published"),
    "me/allowed": ("POST .*me/allowed/preupload", "status", {"status": 403}, "has no right"),
    "me/moved": ("POST .*me/moved/commit", "status", {"status": 412}, "nothing was published"),
    "me/busy": ("POST .*me/busy/commit", "status", {"status": 429}, "wait a few minutes"),
    "me/lost": ("POST .*me/lost/commit", "lost", {}, "nothing was published"),
    "me/compared": ("GET .*me/compared/revision", "status", {"status": 500}, "not a version yet"),
    "me/tagged": ("POST .*me/tagged/tag", "status", {"status": 500}, "not a version yet"),
}


def test_a_failure_at_any_point_leaves_no_tag_and_the_same_command_goes_on(
    hub: HubServer, client: Client, folder: Path
) -> None:
    commands = []
    for repo, (match, kind, options, _) in STAGES.items():
        if repo != "me/created":
            hub.put(repo, {".gitattributes": b"\n"})
        hub.fail(match, kind, **options)
        commands += 2 * [["publish", str(folder), "--repo", repo, "--version", "1.0.0"]]
    rows = client.session(*commands, prelude=TRUSTED)
    assert [fault.times for fault in hub.faults] == [0] * len(STAGES)
    for (repo, (*_, hint)), first, second in zip(STAGES.items(), rows[::2], rows[1::2], strict=True):
        assert hint in failure(first), repo
        assert "there is no tag v1.0.0; the same command goes on from here" in failure(first)
        assert second.returncode == 0, (repo, second.stderr)
        found = hub.repositories[repo]
        assert list(found.tags) == ["v1.0.0"]
        tagged = found.find("v1.0.0")
        assert tagged is not None
        for name, content in contents(folder).items():
            assert tagged.files[name] == content
        # Not even the failed attempts made a second commit.
        assert [commit.title for commit in found.commits].count("tiny 1.0.0") == 1, repo


@pytest.mark.slow
def test_uploads_that_fail_and_answers_that_are_lost(hub: HubServer, client: Client, folder: Path) -> None:
    hub.fail("PUT /lfs/", "status", status=403)
    hub.fail("PUT /lfs/", "drop", keep=1000)  # the client sends it again
    hub.fail("POST .*/tag/", "lost")
    command = ["publish", str(folder), "--repo", "me/mine", "--version", "1.0.0"]
    first, second = client.session(command, command, prelude=TRUSTED)
    assert "nothing was published" in failure(first)
    assert second.returncode == 0, second.stderr
    assert list(hub.repositories["me/mine"].tags) == ["v1.0.0"]
    assert len(hub.requests("PUT /lfs/")) == 3


def test_what_arrives_wrong_is_not_tagged(hub: HubServer, client: Client, folder: Path) -> None:
    prelude = TRUSTED + (
        "import huggingface_hub\n"
        "add = huggingface_hub.CommitOperationAdd\n"
        "huggingface_hub.CommitOperationAdd = lambda name, content: add(name, content + b' ')\n"
    )
    message = client.fails("publish", str(folder), "--repo", "me/mine", "--version", "1.0.0", prelude=prelude)
    assert " was uploaded, but is not a version yet: what the Hub has of " in message
    assert hub.repositories["me/mine"].tags == {}


@pytest.mark.slow
def test_a_new_version_keeps_the_old_one(hub: HubServer, client: Client, folder: Path) -> None:
    old = hub.put("me/mine", {"config.json": b"old", "README.md": b"old"}, tag="v0.9.0")
    done = client.zoo("publish", str(folder), "--repo", "me/mine", "--version", "1.0.0", prelude=TRUSTED)
    assert done.returncode == 0, done.stderr
    assert hub.requests("create") == []
    found = hub.repositories["me/mine"]
    assert found.tags["v0.9.0"] == old
    assert found.find("v0.9.0").files["config.json"] == b"old"  # type: ignore[union-attr]


@pytest.mark.slow
def test_of_two_at_once_one_publishes(hub: HubServer, client: Client, folder: Path) -> None:
    hub.put("me/mine", {".gitattributes": b"\n"})
    hub.fail("POST .*/preupload", "slow", delay=0.5, times=2)
    code = f"{TRUSTED}\nimport sys\nfrom zoo.cli import main; sys.exit(main(sys.argv[1:]))"
    command = ("publish", str(folder), "--repo", "me/mine", "--version", "1.0.0")
    both = [client.start(code, *command) for _ in range(2)]
    said = [process.communicate(timeout=60) for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], said
    found = hub.repositories["me/mine"]
    tagged = found.find("v1.0.0")
    assert tagged is not None and [commit.title for commit in found.commits].count("tiny 1.0.0") == 1
    assert tagged.files.keys() == contents(folder).keys() | {".gitattributes"}


@pytest.mark.slow
def test_rights_and_network(hub: HubServer, client: Client, folder: Path) -> None:
    command = ("publish", str(folder), "--repo", "me/mine", "--version", "1.0.0")
    for token, hint in (
        (READ_TOKEN, "has no right"),
        ("", "log in with `hf auth login`"),
        ("hf_x", "correct HF_"),
    ):
        assert hint in client.fails(*command, prelude=TRUSTED, HF_TOKEN=token)
    assert "unset it" in client.fails(*command, prelude=TRUSTED, HF_HUB_OFFLINE="1")
    assert "cannot be reached" in client.fails(*command, prelude=TRUSTED, HF_ENDPOINT=NOWHERE)
    assert hub.repositories == {}


def test_all_of_the_registry(hub: HubServer, client: Client) -> None:
    prelude = (
        PIN.format(changes={"repo": "zoo/den", "version": "1.0.0"})
        + TRUSTED
        + "from zoo import publish_command; publish_command._check_rendered = lambda name: None\n"
    )
    first, second = client.session(["publish", "--all"], ["publish", "--all"], prelude=prelude)
    assert first.returncode == 0, first.stderr
    assert "published tiny 1.0.0 as zoo/den@v1.0.0" in first.stdout
    commit = hub.repositories["zoo/den"].tags["v1.0.0"]
    assert f"python -m training.pin tiny --commit {commit}" in first.stdout
    assert second.stdout == "zoo/den@v1.0.0 is published\n"
    assert len(hub.requests("POST .*/commit/")) == 1


# -- the command line ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["publish"], "or --all"),
        (["publish", "x", "--repo", "me/x"], "--version X.Y.Z"),
        (["publish", "x", "--all"], "give no others"),
        (["publish", "x", "--repo", "me/x", "--version", "1.0.0"], "no checkpoint folder at x"),
        (["train", "nothing"], "there is no recipe 'nothing'"),
        (["train", "../x"], "there is no recipe"),
    ],
)
def test_wrong_usage(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    assert main(arguments) == 1
    assert hint in capsys.readouterr().err


def test_a_released_card_must_be_what_its_template_gives(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stale(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[command.index("-m") :] == ["-m", "training.cards", NAME, "--check"]
        return subprocess.CompletedProcess(command, 1, "out of date: README.md\n", "")

    monkeypatch.setattr(subprocess, "run", stale)
    record = registry.find(NAME)
    path = str(registry.bundled_folder(record))
    assert main(["publish", path, "--repo", record.repo, "--version", record.version]) == 1
    assert (
        "out of date: README.md; run `python -m training.cards denoiser-elements`" in capsys.readouterr().err
    )


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[list[str]]:
    """The commands of recipes that ran; each writes the checkpoint again, unless it is told to stop."""
    ran: list[list[str]] = []

    def run(command: list[str]) -> int:
        ran.append(command[command.index("-m") :])
        if "--stop-after" not in command:
            write_text(folder / "config.json", (folder / "config.json").read_text())
        status = next((int(word) for word in command if word.startswith("-") and word[1:].isdigit()), 0)
        return 3 if "--fail" in command else status

    monkeypatch.setattr(recipes, "waited", run)
    monkeypatch.setattr(publishing, "look", lambda repo: publishing.State(None, {}))
    return ran


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    monkeypatch.setattr(publish_command, "_publish", lambda *what, **how: found.append(what))
    return found


def test_train_runs_the_recipe(recipe: list[list[str]], published: list[tuple[Any, ...]]) -> None:
    assert main(["train", NAME, "--workers", "2"]) == 0
    assert recipe == [["-m", "training.denoiser_elements", "--workers", "2", "--out", f"build/{NAME}"]]
    assert published == []
    assert main(["train", NAME, "--publish", "me/mine", "--fail"]) == 3
    assert main(["train", NAME, "--publish", "me/mine", "-9"]) == 137, "killed"
    assert published == []


@pytest.mark.parametrize("form", ["--out {}", "--out={}", "--out elsewhere --out {}"])
def test_train_publishes_what_the_recipe_wrote(
    recipe: list[list[str]], published: list[tuple[Any, ...]], folder: Path, form: str
) -> None:
    where = form.format(folder).split(" ")
    assert main(["train", NAME, *where, "--publish", "me/mine"]) == 0
    assert recipe == [["-m", "training.denoiser_elements", *where]]
    assert published == [(folder, "me/mine", VERSION)]


def test_train_does_not_publish_what_was_there_before(
    recipe: list[list[str]],
    published: list[tuple[Any, ...]],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", NAME, "--out", str(folder), "--publish", "me/mine", "--stop-after", "5"]) == 1
    assert f"the recipe did not write {folder}: run it to its end" in capsys.readouterr().err
    assert published == []


def test_train_asks_before_the_training_and_says_where_the_checkpoint_is(
    recipe: list[list[str]],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def unreachable(*what: Any, **how: Any) -> None:
        raise HubError("the Hub cannot be reached: try again")

    monkeypatch.setattr(publish_command, "_publish", unreachable)
    assert main(["train", NAME, "--out", str(folder), "--publish", "me/mine"]) == 1
    assert (
        f"publish it with: zoo publish {folder} --repo me/mine --version {VERSION}" in capsys.readouterr().err
    )
    recipe.clear()
    assert main(["train", NAME, "--out", str(folder), "--publish", "mine"]) == 1
    assert "write OWNER/NAME" in capsys.readouterr().err
    monkeypatch.setattr(publishing, "look", unreachable)
    assert main(["train", NAME, "--out", str(folder), "--publish", "me/mine"]) == 1
    assert "cannot be reached" in capsys.readouterr().err
    assert recipe == []


def test_pin_takes_the_commit(tmp_path: Path) -> None:
    record = registry.find(NAME)
    file = tmp_path / "registry.json"
    rows = [{"name": NAME, "sha256": record.sha256, "commit": None}]
    file.write_text(json.dumps({"checkpoints": rows}))
    pin.pin(NAME, file, commit="a" * 40)
    assert json.loads(file.read_text())["checkpoints"][0]["commit"] == "a" * 40
    pin.pin(NAME, file)
    assert json.loads(file.read_text())["checkpoints"][0]["commit"] == "a" * 40
    with pytest.raises(CheckpointError, match="not a full commit"):
        pin.pin(NAME, file, commit="abc")
    rows[0]["sha256"] = "0" * 64
    file.write_text(json.dumps({"checkpoints": rows}))
    with pytest.raises(CheckpointError, match="which were published"):
        pin.pin(NAME, file, commit="a" * 40)


def test_an_error_of_publishing_is_one_of_ours() -> None:
    assert issubclass(PublishError, CheckpointError)
