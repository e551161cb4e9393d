from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from safetensors.torch import save as serialise

from training.score_dynamics.recipe import Recipe
from training.verdict import OF_THE_NETWORK
from zoo import registry
from zoo.checkpoint import CONFIG, KINDS, load
from zoo.denoiser import BACKBONES
from zoo.errors import UnknownCheckpointError
from zoo.registry import Record, bundled_folder, find, records
from zoo.score_dynamics import ScoreDynamicsConfig

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = Record(
    "sd-one",
    "score-dynamics",
    "1.2.3",
    "A summary.",
    "0" * 64,
    "mit",
    "zoo/sd-one",
    "sd-one.md",
    "make",
    False,
)


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    names = ("sd-one", "sd-two", "denoiser-elements")
    found = tuple(dataclasses.replace(EXAMPLE, name=name) for name in names)
    monkeypatch.setattr(registry, "_all", lambda: found)
    yield


@pytest.mark.parametrize("record", records(), ids=lambda record: record.name)
def test_a_record_is_complete(record: Record) -> None:
    assert record.kind in KINDS
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", record.name)
    assert re.fullmatch(r"\d+\.\d+\.\d+", record.version)
    assert re.fullmatch(r"[0-9a-f]{64}", record.sha256)
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", record.repo)
    assert record.commit is None or re.fullmatch(r"[0-9a-f]{40}", record.commit)
    assert record.summary.endswith(".")
    assert "\n" not in record.summary
    assert record.license
    assert (ROOT / "model_cards" / record.card).is_file()
    assert re.fullmatch(r"python -m training\.\w+", record.recipe)


def test_names_are_unique_and_sorted() -> None:
    names = [record.name for record in records()]
    assert names == sorted(set(names))


def test_the_file_is_in_the_form_we_write() -> None:
    text = Path(registry.__file__).with_name("registry.json").read_text(encoding="utf-8")
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("record", [r for r in records() if r.bundled], ids=lambda record: record.name)
def test_the_bundled_folder_is_the_one_the_record_pins(record: Record) -> None:
    folder = bundled_folder(record)
    if not (folder / CONFIG).is_file() and not os.environ.get("CI"):
        pytest.skip(f"{record.name} has not been trained in this working copy; run `{record.recipe}`")
    found = load(folder, kind=record.kind, sha256=record.sha256)
    assert found.config["name"] == record.name
    assert found.config["version"] == record.version
    assert found.metrics["checkpoint"] == record.name
    assert found.metrics["version"] == record.version
    measured_on = {name: part["weights_sha256"] for name, part in found.metrics["sections"].items()}
    assert measured_on, "nothing was measured on this checkpoint"
    stale = [name for name, sha256 in measured_on.items() if sha256 != record.sha256]
    assert stale == [], "these sections were measured on other weights"
    config = hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest()
    stale = [name for name, part in found.metrics["sections"].items() if part["config_sha256"] != config]
    assert stale == [], "these sections were measured with another config"
    # What was carried over from a checkpoint without a head was measured on this very network.
    carried = {n: part["made_from"] for n, part in found.metrics["sections"].items() if "made_from" in part}
    assert set(carried) <= OF_THE_NETWORK
    network = {key: value for key, value in found.weights.items() if not key.startswith("verdict.")}
    bare = hashlib.sha256(serialise(network)).hexdigest()
    assert {part["weights_sha256"] for part in carried.values()} <= {bare}


@pytest.mark.slow
@pytest.mark.parametrize("record", [r for r in records() if r.bundled], ids=lambda record: record.name)
def test_the_recipe_is_the_one_that_makes_this_checkpoint(record: Record) -> None:
    found = load(bundled_folder(record))
    assert found.metrics["sections"]["training"]["command"].split(" --")[0] == record.recipe
    module = importlib.import_module(record.recipe.removeprefix("python -m "))
    if record.kind == "denoiser":
        recipe = module.RECIPE
        made = {"name": recipe.name, "version": recipe.version, "lattices": list(recipe.lattices)}
        architecture = BACKBONES[recipe.backbone][0](**recipe.architecture).to_dict()
        made |= {"backbone": recipe.backbone, "architecture": architecture}
    else:
        recipe = module.RECIPE
        assert recipe.module == module.__name__
        keys = ["name", "version", "forcefield", "architecture", "lag_time"]
        one_molecule = isinstance(recipe, Recipe)
        made = {key: getattr(recipe, key) for key in (*keys, *(["backbone"] if one_molecule else []))}
        sampler = ("sigma_min", "sigma_max", "n_levels", "rho", "solver", "batch_slots")
        made |= {each.name: each.default for each in fields(ScoreDynamicsConfig) if each.name in sampler}
        if found.config.get("sides"):  # from the data: --releases
            made["architecture"] = {**recipe.architecture, "n_labels": 2}
        made |= {"molecule": recipe.molecule().to_json() if one_molecule else {}, **recipe.sampler}
    assert {key: found.config[key] for key in made} == made


def test_find_takes_whole_names_only(several: None) -> None:
    assert find("sd-two").name == "sd-two"
    assert find(" sd-two@1.2.3 ").name == "sd-two"
    with pytest.raises(UnknownCheckpointError, match="ambiguous: write one of sd-one, sd-two"):
        find("sd")
    with pytest.raises(UnknownCheckpointError, match=r"did you mean denoiser-elements\?"):
        find("denoiser")
    with pytest.raises(UnknownCheckpointError, match="did you mean sd-two"):
        find("sd-tow")
    with pytest.raises(UnknownCheckpointError, match="known checkpoints are"):
        find("")


def test_another_version_is_refused(several: None) -> None:
    for version in ("2.0.0", "", "latest", "1.2"):
        with pytest.raises(UnknownCheckpointError, match=r"use sd-one@1\.2\.3"):
            find(f"sd-one@{version}")


def test_names_and_versions_are_told_apart(several: None) -> None:
    assert registry.split("sd-one") == ("sd-one", None)
    assert registry.split(" sd-one@v1.2.3 ") == ("sd-one", "1.2.3")
    assert registry.named("sd-one").version == "1.2.3"
    with pytest.raises(UnknownCheckpointError, match="did you mean"):
        registry.named("sd-one@1.2.3")


def test_the_message_is_not_shown_as_a_repr(several: None) -> None:
    with pytest.raises(UnknownCheckpointError) as caught:
        find("sd-onne")
    assert str(caught.value).startswith("no checkpoint or folder called 'sd-onne'")


def test_records_cannot_be_changed_by_a_caller() -> None:
    records().clear()
    assert records()
