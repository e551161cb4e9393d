from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo import checkpoint, registry
from zoo.checkpoint import check_weights, load, read_config, resolve, save, write_text
from zoo.errors import CheckpointError, UnknownCheckpointError

Saved = Callable[..., Path]


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            config.pop(key, None)
        else:
            config[key] = value
    path.write_text(json.dumps(config))


def put_weights(folder: Path, data: bytes) -> None:
    """Replace the weights and the sha256 in the config, so that only their content can be refused."""
    (folder / "model.safetensors").write_bytes(data)
    edit_config(folder, weights_sha256=hashlib.sha256(data).hexdigest())


def refused(folder: Path | str, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_is_saved_comes_back(tmp_path: Path, config: dict[str, Any]) -> None:
    weights = {
        "a": torch.randn(3, 4),
        "b": torch.tensor([1, 2], dtype=torch.int64),
        "c": torch.randn(2, dtype=torch.float64),
    }
    metrics = {"sections": {"dc3": {"results": [{"denoised": 1.0}]}}}
    folder = save(tmp_path / "deep" / "er", config, weights, metrics=metrics, card="# Å\n")
    found = load(folder, kind="denoiser")
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "README.md",
        "config.json",
        "metrics.json",
        "model.safetensors",
    ]
    assert found.weights.keys() == weights.keys()
    for key, tensor in weights.items():
        assert found.weights[key].dtype == tensor.dtype
        assert torch.equal(found.weights[key], tensor)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert found.config == {**config, "format_version": checkpoint.FORMAT_VERSION, "weights_sha256": digest}
    assert (found.metrics, found.card, found.folder) == (metrics, "# Å\n", folder)
    assert read_config(folder) == found.config


def test_saving_twice_gives_the_same_bytes(saved: Saved) -> None:
    first, second = saved("one"), saved("two")
    for entry in first.iterdir():
        assert entry.read_bytes() == (second / entry.name).read_bytes()


def test_json_is_sorted_indented_and_ends_with_a_newline(saved: Saved) -> None:
    text = (saved() / "config.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"


def test_shared_and_strided_tensors_can_be_saved(tmp_path: Path, config: dict[str, Any]) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    folder = save(tmp_path / "x", config, {"a": base, "b": base.T, "c": base.requires_grad_()})
    assert torch.equal(load(folder).weights["b"], base.detach().T)


# -- reading strictly ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved: Saved, name: str) -> None:
    folder = saved()
    (folder / name).unlink()
    assert name in refused(folder)


def test_card_and_metrics_are_not_needed_to_load(saved: Saved) -> None:
    folder = saved()
    (folder / "README.md").unlink()
    (folder / "metrics.json").unlink()
    found = load(folder)
    assert (found.metrics, found.card) == ({}, "")


def test_a_path_that_is_not_a_folder(saved: Saved, tmp_path: Path) -> None:
    folder = saved()
    assert "no checkpoint folder" in refused(tmp_path / "nowhere")
    assert "is a file" in refused(folder / "config.json")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"[1]", "must hold a JSON object"),
        (b'{"a": NaN}', "NaN"),
        (b"\xff\xfe", "UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
        (b"{}", "format_version"),
        (b'{"format_version": "1"}', "format_version"),
        (b'{"format_version": true}', "format_version"),
        (b'{"format_version": 1}', "weights_sha256"),
    ],
)
def test_a_bad_config_is_refused(saved: Saved, text: bytes, hint: str) -> None:
    folder = saved()
    (folder / "config.json").write_bytes(text)
    message = refused(folder)
    assert hint in message
    assert "config.json" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kind", None),
        ("kind", "classifier"),
        ("kind", ["denoiser"]),
        ("name", ""),
        ("name", None),
        ("version", "1"),
        ("version", None),
        ("units", None),
        ("units", "angstrom"),
        ("weights_sha256", "abc"),
    ],
)
def test_a_config_without_its_keys_is_refused(saved: Saved, key: str, value: Any) -> None:
    folder = saved()
    edit_config(folder, **{key: value})
    assert key in refused(folder)


def test_a_checkpoint_of_another_kind_is_refused(saved: Saved) -> None:
    folder = saved(kind="score-dynamics")
    assert "score-dynamics checkpoint, not a denoiser" in refused(folder, kind="denoiser")
    with pytest.raises(CheckpointError, match="not a denoiser"):
        read_config(folder, kind="denoiser")


def test_a_newer_format_says_upgrade(saved: Saved) -> None:
    folder = saved()
    edit_config(folder, format_version=checkpoint.FORMAT_VERSION + 1)
    assert "upgrade score-zoo" in refused(folder)


def test_an_older_format_is_upgraded_step_by_step(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(cutoff=1.0)
    edit_config(folder, format_version=1)

    def rename(config: dict[str, Any], weights: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        return config, {key.replace("layer", "head"): value for key, value in weights.items()}

    def deepen(config: dict[str, Any], weights: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        return {**config, "cutoff": 2 * config["cutoff"]}, weights

    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 3)
    monkeypatch.setattr(checkpoint, "_UPGRADES", {1: rename, 2: deepen})
    found = load(folder)
    assert found.config["format_version"] == 3
    assert found.config["cutoff"] == 2.0
    assert sorted(found.weights) == ["head.bias", "head.weight"]
    assert read_config(folder)["cutoff"] == 2.0
    assert json.loads((folder / "config.json").read_text())["format_version"] == 1, "the file stays as it was"


OLD_FORMATS = sorted((Path(__file__).parent / "data" / "checkpoints").glob("format-*/"))


def test_every_old_format_has_an_upgrade_and_a_stored_folder() -> None:
    old = set(range(1, checkpoint.FORMAT_VERSION))
    assert set(checkpoint._UPGRADES) == old
    assert {read_stored(folder)["format_version"] for folder in OLD_FORMATS} == old


def read_stored(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    assert folder.name == f"format-{found['format_version']}"
    return found


@pytest.mark.parametrize("folder", OLD_FORMATS, ids=lambda folder: folder.name)
def test_a_stored_old_checkpoint_still_does_what_it_did(folder: Path, tmp_path: Path) -> None:
    """The positions were written by the release that wrote the folder; it did not know of stalling."""
    import numpy as np
    from ase.build import bulk

    from zoo import Denoiser

    crystal = bulk("Cu", cubic=True) * 2
    crystal.positions += np.random.default_rng(0).normal(0, 0.1, (len(crystal), 3))
    before = json.loads(folder.with_name(f"{folder.name}-denoised.json").read_text())
    denoiser = Denoiser.from_pretrained(folder)
    found = denoiser.denoise(crystal, steps=8)
    np.testing.assert_allclose(found.positions, before, atol=2e-5)
    assert found.info["denoise_steps"] == 8
    # Saved again it is of the present format, and means the same.
    again = denoiser.save_pretrained(tmp_path / "again")
    assert json.loads((again / "config.json").read_text())["format_version"] == checkpoint.FORMAT_VERSION
    assert Denoiser.from_pretrained(again).config == denoiser.config


def test_a_stall_that_a_config_of_format_1_has_is_kept(saved: Saved) -> None:
    folder = saved(stall=0.9)
    edit_config(folder, format_version=1)
    assert read_config(folder)["stall"] == 0.9
    other = saved("other", kind="score-dynamics")
    edit_config(other, format_version=1)
    assert "stall" not in read_config(other)


def test_an_older_format_without_an_upgrade_is_refused(saved: Saved) -> None:
    folder = saved()
    edit_config(folder, format_version=0)
    assert "can no longer read" in refused(folder)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_of_the_weights_is_noticed(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = {"kind": "denoiser", "name": "x", "version": "1.0.0", "units": {}}
    folder = save(tmp_path_factory.mktemp("flip") / "x", config, {"w": torch.ones(4)})
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    content[where] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    assert "damaged or was tampered with" in refused(folder)


def test_weights_of_another_sha256_than_the_registry_are_refused(saved: Saved) -> None:
    folder = saved()
    digest = json.loads((folder / "config.json").read_text())["weights_sha256"]
    load(folder, sha256=digest)
    # Someone who exchanges the weights can also write a fitting config; the pin still catches it.
    assert "tampered" in refused(folder, sha256="0" * 64)


def test_a_truncated_file_is_refused(saved: Saved) -> None:
    folder = saved()
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    assert "damaged" in refused(folder)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\xff" * 64,
        b"\x02\x00\x00\x00\x00\x00\x00\x00{}",
        (9).to_bytes(8, "little") + b'{"a": 1}x',
        # a header that promises more bytes than there are
        (62).to_bytes(8, "little") + b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}       ',
    ],
)
def test_a_damaged_safetensors_header_is_refused(saved: Saved, data: bytes) -> None:
    folder = saved()
    put_weights(folder, data)
    assert "model.safetensors" in refused(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(saved: Saved, value: float, config: dict[str, Any]) -> None:
    from safetensors.torch import save as serialise

    folder = saved()
    put_weights(folder, serialise({"ok": torch.ones(1), "bad": torch.tensor([0.0, value])}))
    assert "infinite values in bad" in refused(folder)
    with pytest.raises(CheckpointError, match="infinite values in bad"):
        save(folder.parent / "other", config, {"bad": torch.tensor([value])})
    assert not (folder.parent / "other").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_a_pickle_in_place_of_the_weights_is_refused(saved: Saved, name: str) -> None:
    folder = saved()
    (folder / "model.safetensors").rename(folder / name)
    message = refused(folder)
    assert name in message
    assert "pickle" in message
    assert "pickle" in refused(folder / name)


def test_a_pickle_called_safetensors_is_refused_and_not_run(saved: Saved, tmp_path: Path) -> None:
    import pickle

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "ran"),))

    folder = saved()
    put_weights(folder, pickle.dumps(Payload()))
    assert "not a readable safetensors file" in refused(folder)
    assert not (tmp_path / "ran").exists()


def test_entries_that_are_not_plain_files_are_refused(saved: Saved) -> None:
    folder = saved()
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")  # would block for ever if opened
    assert "not a plain file" in refused(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    assert "not a plain file" in refused(folder)
    (folder / "metrics.json").unlink()
    (folder / "model.safetensors").rmdir()
    (folder / "model.safetensors").symlink_to("gone")
    assert "no model.safetensors" in refused(folder)


def test_links_to_plain_files_are_followed(saved: Saved, tmp_path: Path) -> None:
    # a download cache is a folder of links
    folder = saved()
    (tmp_path / "cached").mkdir()
    for entry in folder.iterdir():
        (tmp_path / "cached" / entry.name).symlink_to(entry)
    assert load(tmp_path / "cached").config == load(folder).config


def test_oversized_files_are_refused_before_they_are_read(saved: Saved) -> None:
    folder = saved()
    with open(folder / "metrics.json", "wb") as file:
        file.truncate(2**34)  # sparse: takes no disk, but would take 16 GiB of memory
    assert "more than" in refused(folder)


def test_check_weights_names_every_fault_in_one_line() -> None:
    expected = {"a": (2, 3), "b": (1,), "c": (4,)}
    check_weights(expected, {key: torch.zeros(shape) for key, shape in expected.items()})
    with pytest.raises(CheckpointError) as caught:
        check_weights(expected, {"a": torch.zeros(3, 2), "c": torch.zeros(4), "d": torch.zeros(1)})
    message = str(caught.value)
    assert "missing b" in message
    assert "unexpected d" in message
    assert "a is (3, 2) instead of (2, 3)" in message
    assert "\n" not in message


def test_check_weights_stays_short_with_many_faults() -> None:
    with pytest.raises(CheckpointError, match="and 96 more"):
        check_weights({f"layer{i}": (1,) for i in range(100)}, {})


# -- writing in one piece --------------------------------------------------------------------


def leftovers(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.name.startswith(".")]


def test_an_existing_checkpoint_is_replaced(saved: Saved, tmp_path: Path) -> None:
    saved(fill=1.0)
    folder = saved(fill=2.0)
    assert load(folder).weights["layer.weight"].unique().tolist() == [2.0]
    assert leftovers(tmp_path) == []


def test_it_is_also_replaced_where_folders_cannot_be_swapped(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_exchange", lambda first, second: False)
    saved(fill=1.0)
    folder = saved(fill=2.0)
    assert load(folder).weights["layer.weight"].unique().tolist() == [2.0]
    assert leftovers(tmp_path) == []


def test_a_folder_with_other_files_is_never_replaced(saved: Saved, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"also holds thesis\.tex"):
        saved()
    assert (tmp_path / "tiny" / "thesis.tex").read_text() == "years of work"


def test_a_file_in_the_way_is_kept(saved: Saved, tmp_path: Path) -> None:
    (tmp_path / "tiny").write_text("mine")
    with pytest.raises(CheckpointError, match="in the way"):
        saved()
    assert (tmp_path / "tiny").read_text() == "mine"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("failing", ["config.json", "model.safetensors", "metrics.json"])
def test_a_failed_write_leaves_the_old_checkpoint(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, failing: str
) -> None:
    folder = saved(fill=1.0)
    write = checkpoint._write_synced

    def full(path: Path, content: bytes) -> None:
        if path.name == failing:
            raise OSError(code, os.strerror(code))
        write(path, content)

    monkeypatch.setattr(checkpoint, "_write_synced", full)
    with pytest.raises(CheckpointError, match=os.strerror(code)):
        saved(fill=2.0)
    assert load(folder).weights["layer.weight"].unique().tolist() == [1.0]
    assert leftovers(tmp_path) == []


def test_a_failed_swap_puts_the_old_checkpoint_back(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(fill=1.0)
    rename, calls = os.rename, []

    def second_fails(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(checkpoint, "_exchange", lambda first, second: False)
    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(CheckpointError, match="Input/output error"):
        saved(fill=2.0)
    assert load(folder).weights["layer.weight"].unique().tolist() == [1.0]
    assert leftovers(tmp_path) == []


def test_a_really_full_disk_is_one_clear_line(config: dict[str, Any]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(CheckpointError, match="/dev"):
        save("/dev/full/x", config, {"w": torch.ones(1)})


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(saved: Saved, tmp_path: Path) -> None:
    """A process that keeps replacing one folder is killed; what is left must load."""
    folder = saved(fill=0.0)
    script = (
        "import sys, torch; from zoo.checkpoint import save\n"
        "config = dict(kind='denoiser', name='tiny', version='0.1.0', units={})\n"
        "print('ready', flush=True)\n"
        "for i in range(10**9):\n"
        "    save(sys.argv[1], config, {'w': torch.full((50_000,), float(i))})\n"
    )
    for delay in (0.05, 0.11, 0.23):
        with subprocess.Popen(
            [sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(delay)
            process.kill()
        load(folder)


def test_json_that_cannot_be_written_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    for value in (float("nan"), {1, 2}, torch.ones(1)):
        with pytest.raises(CheckpointError, match="as JSON"):
            save(tmp_path / "x", {**config, "sigma": value}, {"w": torch.ones(1)})
    with pytest.raises(CheckpointError, match="'units'"):
        save(tmp_path / "x", {"kind": "denoiser", "name": "x", "version": "1.0.0"}, {"w": torch.ones(1)})
    with pytest.raises(CheckpointError, match="no tensors"):
        save(tmp_path / "x", config, {})
    assert list(tmp_path.iterdir()) == []


def test_write_text_replaces_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def full(path: Path, content: bytes) -> None:
        path.write_bytes(content[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_synced", full)
    with pytest.raises(CheckpointError, match="free some space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == []


# -- from a name or a path to a folder -------------------------------------------------------


@pytest.fixture
def bundled(monkeypatch: pytest.MonkeyPatch, saved: Saved) -> Path:
    """The bundled checkpoint's folder, played by the tiny one."""
    folder = saved("bundled")
    monkeypatch.setattr(registry, "bundled_folder", lambda record: folder)
    return folder


def test_resolve_a_registry_name(bundled: Path, empty_folder: Path) -> None:
    version = registry.find("denoiser-elements").version
    for name in ("denoiser-elements", f"denoiser-elements@{version}", f"denoiser-elements@v{version}"):
        folder, record = resolve(name)
        assert folder == bundled
        assert record is not None
        assert record.name == "denoiser-elements"


def test_resolve_a_folder(saved: Saved, empty_folder: Path) -> None:
    folder = saved()
    for given_as in (folder, str(folder), "tiny", "./tiny", Path("tiny")):
        found, record = resolve(given_as)
        assert found.resolve() == folder
        assert record is None


def test_a_folder_wins_over_a_name_only_if_it_is_a_checkpoint(
    bundled: Path, saved: Saved, empty_folder: Path
) -> None:
    (empty_folder / "denoiser-elements").mkdir()
    assert resolve("denoiser-elements")[0] == bundled
    assert resolve("./denoiser-elements") == (Path("denoiser-elements"), None)
    saved("denoiser-elements")
    assert resolve("denoiser-elements") == (Path("denoiser-elements"), None)


def test_an_unknown_name_offers_close_matches(empty_folder: Path) -> None:
    for wrong in ("denoiser-element", "denoizer-elements", "Denoiser_Elements"):
        with pytest.raises(UnknownCheckpointError, match="did you mean denoiser-elements"):
            resolve(wrong)
    with pytest.raises(UnknownCheckpointError, match="write one of denoiser-binaries, denoiser-elements"):
        resolve("denoiser")
    with pytest.raises(UnknownCheckpointError, match="known checkpoints are"):
        resolve("qqqq")


@pytest.mark.parametrize("path", ["./gone", "/gone/away", "a/b/c", Path("a/b"), Path("denoiser-elements")])
def test_a_path_is_never_taken_for_a_name(path: str | Path, empty_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint folder at"):
        resolve(path)


def test_resolve_refuses_files_and_nothing(saved: Saved) -> None:
    folder = saved()
    with pytest.raises(CheckpointError, match="is a file"):
        resolve(folder / "model.safetensors")
    for empty in ("", "  "):
        with pytest.raises(CheckpointError, match="is empty"):
            resolve(empty)


def test_a_released_checkpoint_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, empty_folder: Path
) -> None:
    monkeypatch.setattr(registry, "bundled_folder", lambda record: empty_folder / "nothing")
    with pytest.raises(CheckpointError, match="reinstall score-zoo"):
        resolve("denoiser-elements")


def test_the_weights_file_can_be_checked_without_reading_tensors(saved: Saved) -> None:
    folder = saved("checked")
    digest = json.loads((folder / "config.json").read_text())["weights_sha256"]
    checkpoint.check_weights_file(folder, digest)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="damaged or was tampered with"):
        checkpoint.check_weights_file(folder, digest)
