from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training import cards, metrics, pin
from training.cards import CardError, render, render_readme
from zoo import registry
from zoo.checkpoint import CONFIG, load, read_metrics
from zoo.errors import CheckpointError

Saved = Callable[..., Path]
FACTS: dict[str, Any] = {
    "record": {"name": "tiny", "version": "0.1.0", "license": "mit"},
    "config": {"cutoff": 1.75},
    "dc3": {
        "command": "make dc3",
        "date": "2024-01-02",
        "results": [
            {"material": "Al", "state": "Tm", "denoised": 1.0, "atoms": 20480, "ok": True},
            {"material": "mW ice|water", "state": "Tm", "denoised": 0.99985, "atoms": 21600, "note": "x"},
            {"material": "Al", "state": "liquid", "denoised": None, "atoms": 20480},
        ],
    },
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ record.name }} {{record.version}}", "tiny 0.1.0"),
        ("{{ config.cutoff | .1f }}", "1.8"),
        ("{{ dc3.command }}", "make dc3"),
        ("{{ dc3[material=Al, state=Tm].denoised | .2% }}", "100.00%"),
        ("{{ dc3[state=liquid].denoised | .2% }}", "–"),
        ("{{ dc3[material=Al,state=Tm].ok }}", "yes"),
        ("{{ dc3.results }}", str(FACTS["dc3"]["results"])),
        ("no directives: { } }} {{", "no directives: { } }} {{"),
    ],
)
def test_values(template: str, text: str) -> None:
    assert render(template, FACTS) == text


@pytest.mark.parametrize(
    ("template", "hint"),
    [
        ("{{ record.colour }}", "no 'colour'"),
        ("{{ record }}", "group of values"),
        ("{{ speed.date }}", "no 'speed'"),
        ("{{ dc3[material=Al].denoised }}", "2 rows"),
        ("{{ dc3[material=Xe].denoised }}", "0 rows"),
        ("{{ record.name | .2f }}", "cannot be shown"),
        ("{{ table: speed\natoms\n}}", "no section 'speed'"),
        ("{{ table: dc3 where material=Xe\natoms\n}}", "no row"),
        ("{{ table: dc3\ncolour\n}}", "column 'colour'"),
        ("{{ table: dc3 }}", "no columns"),
        ("{{ model-index: dc3\ntask: t\nmetric: denoised|a|b|1\ndataset: a|b\n}}", "no number"),
        ("{{ model-index: dc3 }}", "exactly the lines"),
    ],
)
def test_what_was_not_measured_is_an_error(template: str, hint: str) -> None:
    with pytest.raises(CardError, match=hint):
        render(template, FACTS)


def test_a_table_has_the_rows_in_order() -> None:
    template = "{{ table: dc3 where state=Tm\nmaterial\natoms | Atoms | ,\ndenoised | OK | .2%\nnote\n}}"
    assert render(template, FACTS).splitlines() == [
        "| material | Atoms | OK | note |",
        "|---|---:|---:|---|",
        "| Al | 20,480 | 100.00% | – |",
        "| mW ice\\|water | 21,600 | 99.98% | x |",
    ]


def test_rounding_never_turns_a_miss_into_a_hit() -> None:
    # 100.00 % is a claim about every single atom.
    facts = {"dc3": {"results": [{"denoised": 1 - 1e-6}]}}
    assert render("{{ dc3[].denoised | .2% }}", facts) == "99.99%"
    assert render("{{ table: dc3\ndenoised | d | .2%\n}}", facts).endswith("| 99.99% |")
    facts = {"dc3": {"results": [{"denoised": 1.0}]}}
    assert render("{{ dc3[].denoised | .2% }}", facts) == "100.00%"
    facts = {"dc3": {"results": [{"denoised": 1e-6}]}}
    assert render("{{ dc3[].denoised | .2% }}", facts) == "0.01%"


def test_a_part_is_there_only_if_its_section_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "ROOT", tmp_path)
    template = "a\n\n{{ part: dc3 }}\n\n## B\n"
    assert cards.with_parts(template, {}) == "a\n\n## B\n"
    with pytest.raises(CardError, match=r"there is no model_cards/parts/dc3\.md"):
        cards.with_parts(template, FACTS)
    (tmp_path / "model_cards" / "parts").mkdir(parents=True)
    (tmp_path / "model_cards" / "parts" / "dc3.md").write_text("## DC3\n\n{{ dc3.command }}\n")
    assert render(cards.with_parts(template, FACTS), FACTS) == "a\n\n## DC3\n\nmake dc3\n\n## B\n"


def test_readme_tables_are_refreshed_and_the_rest_kept() -> None:
    opening = "# t\n<!-- tiny table: dc3 where state=Tm\nmaterial\natoms\n-->\n"
    before = opening + "old\nnumbers\n<!-- end -->\nafter {{ x }}\n"
    after = render_readme(before, {"tiny": FACTS})
    assert "| Al | 20480 |" in after
    assert "old" not in after
    assert after.startswith(opening)
    assert after.endswith("<!-- end -->\nafter {{ x }}\n")
    assert render_readme(after, {"tiny": FACTS}) == after
    with pytest.raises(CardError, match="not a known checkpoint"):
        render_readme(before, {})


@pytest.mark.slow
def test_the_model_index_is_what_the_hub_reads() -> None:
    from huggingface_hub import ModelCard

    template = (
        "---\nlicense: mit\n{{ model-index: dc3 where state=Tm\ntask: Denoising\n"
        "metric: denoised | accuracy | Atoms | 100\ndataset: dc3 | DC3, {material}\n}}\n---\n# t\n"
    )
    data: Any = ModelCard(render(template, FACTS)).data
    assert data.model_name == "tiny"
    assert [(r.dataset_name, r.metric_value) for r in data.eval_results] == [
        ("DC3, Al", 100.0),
        ("DC3, mW ice|water", 99.985),
    ]


@pytest.mark.parametrize("record", registry.records(), ids=lambda record: record.name)
def test_templates_hold_no_measured_number(record: registry.Record) -> None:
    text = (cards.ROOT / "model_cards" / record.card).read_text(encoding="utf-8")
    prose = re.sub(r"\{\{.*?\}\}|```.*?```", "", text, flags=re.DOTALL)
    assert re.findall(r"\d[\d.]*\s*(?:%|µs|MiB|GiB|minutes|atoms)", prose) == []
    assert text.startswith("---\n")
    for promised in (
        "license: {{ record.license }}", "library_name: score-zoo", "tags:", "{{ model-index:",
        "## Use", "from_pretrained", "**For**", "**Not for**", "## Training", "{{ training.command }}",
        "{{ table: ", "## Speed", "## Where it fails", "## Cite", "2212.02421", "2310.01678", "## Changes",
    ):  # fmt: skip
        assert promised in text, promised
    if record.kind == "score-dynamics":
        for promised in (
            "{{ config.forcefield }}",
            "{{ config.lag_time",
            "300 K",
            "reference_md",
            "interval",
        ):
            assert promised in text, promised
    assert f"**{record.version}**" in text, "the changes do not mention this version"


@pytest.mark.parametrize("record", [r for r in registry.records() if r.bundled], ids=lambda r: r.name)
def test_the_bundled_card_is_up_to_date(record: registry.Record) -> None:
    folder = registry.bundled_folder(record)
    if not (folder / CONFIG).is_file() and not os.environ.get("CI"):
        pytest.skip(f"{record.name} has not been trained in this working copy; run `{record.recipe}`")
    command = f"run `python -m training.cards {record.name}`"
    assert (folder / "README.md").read_text(encoding="utf-8") == cards.card(record.name), command
    assert (cards.ROOT / "README.md").read_text(encoding="utf-8") == cards.readme(), command


@pytest.mark.slow
@pytest.mark.parametrize("record", [r for r in registry.records() if r.bundled], ids=lambda r: r.name)
def test_the_results_that_the_hub_shows_are_those_of_the_metrics(record: registry.Record) -> None:
    from huggingface_hub import ModelCard

    folder = registry.bundled_folder(record)
    data: Any = ModelCard.load(folder / "README.md").data
    assert (data.license, data.library_name, data.model_name) == (record.license, "score-zoo", record.name)
    sections = read_metrics(folder)["sections"]
    if "compounds" in sections:
        rows = [row for row in sections["compounds"]["results"] if row["t_over_tm"] == 1.0]
        measured = [100 * row["denoised"] for row in rows]
        words = [row["material"] for row in rows]
    elif "polymorphs" in sections:
        rows = [row for row in sections["polymorphs"]["results"] if row["potential"] in ("mW", "BKS")]
        measured = [100 * row["denoised"] for row in rows]
        words = [row["structure"] for row in rows]
    elif record.kind == "denoiser":
        rows = [row for row in sections["dc3"]["results"] if row["state"] == "Tm"]
        measured = [100 * row["denoised"] for row in rows]
        words = [row["material"] for row in rows]
    elif "alkanes" in sections:  # a family: the molecules that it has never seen
        rows = [row for row in sections["stability"]["results"] if not row["trained_on"]]
        measured = [row["torsion_divergence_bits"] for row in rows]
        words = [row["molecule"] for row in rows]
    else:
        rows = sections["propagation"]["results"]
        measured = [row["ratio"] for row in rows]
        words = [f"{row['time_ps']:g} ps" for row in rows]
    assert [result.metric_value for result in data.eval_results] == pytest.approx(measured, abs=1e-6)
    for word, result in zip(words, data.eval_results, strict=True):
        assert word in result.dataset_name


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: Saved) -> Path:
    """A project with one checkpoint, the tiny one, under the released name."""
    folder = saved("checkpoint", name="denoiser-elements", version=registry.find("denoiser-elements").version)
    monkeypatch.setattr(cards, "ROOT", tmp_path)
    monkeypatch.setattr(registry, "bundled_folder", lambda record: folder)
    (tmp_path / "model_cards").mkdir()
    (tmp_path / "model_cards" / "denoiser-elements.md").write_text("{{ dc3[].denoised | .2% }}\n")
    table = "<!-- denoiser-elements table: dc3\ndenoised\n-->\n<!-- end -->\n"
    (tmp_path / "README.md").write_text(table)
    return folder


def test_the_command_writes_then_checks(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cards.main(["denoiser-elements"]) == 1
    assert capsys.readouterr().err == "error: {{ dc3[].denoised }}: there is no 'dc3'\n"
    metrics.record(project, "dc3", [{"denoised": 0.5}], command="x", seed=0)
    assert cards.main(["denoiser-elements", "--check"]) == 1
    assert (project / "README.md").read_text() == "# tiny\n"
    assert cards.main(["denoiser-elements"]) == 0
    assert (project / "README.md").read_text() == "50.00%\n"
    assert "| 0.5 |" in (project.parent / "README.md").read_text()
    assert cards.main(["denoiser-elements", "--check"]) == 0
    metrics.record(project, "dc3", [{"denoised": 0.25}], command="x", seed=0)
    assert cards.main(["denoiser-elements", "--check"]) == 1


def test_record_fills_in_how_it_was_measured(saved: Saved) -> None:
    folder = saved()
    metrics.record(folder, "speed", [{"atoms": 10}], command="python -m bench", seed=3, extra={"threads": 1})
    found = read_metrics(folder)
    assert found["format"] == 1
    assert (found["checkpoint"], found["version"]) == ("tiny", "0.1.0")
    section = found["sections"]["speed"]
    assert section["results"] == [{"atoms": 10}]
    assert (section["command"], section["seed"], section["threads"]) == ("python -m bench", 3, 1)
    assert section["weights_sha256"] == load(folder).config["weights_sha256"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", section["date"])
    assert section["hardware"]["cores"] >= 1
    assert section["hardware"]["cpu"]
    assert section["package_version"]
    assert section["python_version"]
    assert section["torch_version"]


def test_record_replaces_its_section_and_keeps_the_others(saved: Saved) -> None:
    folder = saved()
    metrics.record(folder, "a", [{"x": 1}], command="a", seed=None)
    metrics.record(folder, "b", [{"x": 2}], command="b", seed=None)
    metrics.record(folder, "a", [{"x": 3}], command="a", seed=None)
    sections = read_metrics(folder)["sections"]
    assert {name: part["results"][0]["x"] for name, part in sections.items()} == {"a": 3, "b": 2}
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "README.md",
        "config.json",
        "metrics.json",
        "model.safetensors",
    ]


def test_benchmarks_that_record_at_once_do_not_lose_a_section(saved: Saved) -> None:
    folder = saved()
    threads = [
        threading.Thread(
            target=metrics.record, args=(folder, f"s{i}", [{"x": i}]), kwargs={"command": "c", "seed": i}
        )
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_metrics(folder)["sections"]) == 8


def test_record_refuses_what_json_cannot_hold(saved: Saved) -> None:
    folder = saved()
    before = (folder / "metrics.json").read_text()
    with pytest.raises(CheckpointError, match="as JSON"):
        metrics.record(folder, "a", [{"x": float("nan")}], command="a", seed=None)
    assert (folder / "metrics.json").read_text() == before


def test_pin_writes_the_sha256(project: Path, tmp_path: Path) -> None:
    file = tmp_path / "registry.json"
    rows = [{"name": "denoiser-elements", "sha256": "0"}, {"name": "other", "sha256": "1"}]
    file.write_text(json.dumps({"checkpoints": rows}))
    sha256 = pin.pin("denoiser-elements", file)
    assert sha256 == load(project).config["weights_sha256"]
    assert [row["sha256"] for row in json.loads(file.read_text())["checkpoints"]] == [sha256, "1"]


def test_pin_refuses_a_folder_of_another_version(project: Path, saved: Saved) -> None:
    saved("checkpoint", name="denoiser-elements", version="9.9.9")
    with pytest.raises(CheckpointError, match=r"version '9\.9\.9', the registry '\d"):
        pin.pin("denoiser-elements")
