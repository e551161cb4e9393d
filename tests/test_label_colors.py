"""Labels that can be looked at: colours and names as OVITO reads them, and what files do not hold."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from zoo import choice, cli
from zoo.denoiser import Denoiser
from zoo.structures import FrameWriter, read_frames
from zoo.structures.colors import OTHER, label_colors, paint
from zoo.verdict_names import CODES, COLORS

NAMES = ("rocksalt", "disordered")


class Fake:
    """Calls atoms ``rocksalt`` and ``disordered`` in turn; without a head nothing."""

    def __init__(self, judges: bool, names: tuple[str, str] = NAMES) -> None:
        self.head = SimpleNamespace(classes=names) if judges else None

    def denoise(self, atoms: Atoms, steps: int = 10, callback: Any = None) -> Atoms:
        clean = atoms.copy()
        if self.head is not None:
            for key in ("structure_type", "confidence"):
                clean.arrays.pop(key, None)
            clean.set_array("structure_type", np.array(self.head.classes * (len(atoms) // 2)))
            clean.set_array("confidence", np.linspace(0.5, 1, len(atoms)).round(4))
        return clean


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    judging = {
        "judge": Fake(True),
        "spaces": Fake(True, ("simple cubic", "disordered")),
        "blind": Fake(False),
    }
    monkeypatch.setattr(Denoiser, "from_pretrained", judging.__getitem__)
    with FrameWriter("in.extxyz") as writer:
        writer.write(salt())
    return tmp_path


def salt() -> Atoms:
    return bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(2)


def rgb(*names: str) -> np.ndarray:
    values = [[int(COLORS[name][k : k + 2], 16) / 255 for k in (1, 3, 5)] for name in names]
    return np.array(values)


def denoise(*arguments: str, name: str = "judge", source: str = "in.extxyz") -> None:
    assert cli.main(["denoise", source, "-c", name, "--overwrite", *arguments]) == 0


def test_colors_of_names_and_numbers() -> None:
    names = np.array(["fcc", "unheard of", "rocksalt"])
    found = label_colors(names)
    np.testing.assert_allclose(found[[0, 2]], rgb("fcc", "rocksalt"), atol=1e-4)
    np.testing.assert_allclose(found[1], int(OTHER[1:3], 16) / 255, atol=1e-4)
    numbers = np.array([CODES[name] for name in COLORS])
    np.testing.assert_array_equal(label_colors(numbers), label_colors(np.array(list(COLORS))))


@pytest.mark.parametrize("name", ["out.extxyz", "out.extxyz.gz", "out.dump"])
def test_ovito_opens_what_is_written_with_labels_and_colors(folder: Path, name: str) -> None:
    pytest.importorskip("ovito")
    from ovito.io import import_file

    denoise("-o", name, "--colors", "-q")
    data = import_file(name).compute()
    np.testing.assert_allclose(data.particles.colors, rgb(*NAMES)[np.arange(64) % 2], atol=1e-4)
    if "extxyz" in name:
        types = data.particles["Structure Type"]
        assert [types.type_by_id(int(k)).name for k in types] == list(NAMES * 32)
    else:
        assert np.asarray(data.particles["structure_type"]).tolist() == [CODES[n] for n in NAMES] * 32


@pytest.mark.parametrize("checkpoint", ["judge", "spaces"])
@pytest.mark.parametrize("name", ["out.extxyz", "out.dump"])
def test_what_is_written_is_read_again(folder: Path, name: str, checkpoint: str) -> None:
    denoise("-o", name, "--colors", "-q", name=checkpoint)
    (back,) = read_frames(name)
    clean = Denoiser.from_pretrained(checkpoint).denoise(salt())
    labels = clean.arrays["structure_type"]
    if name.endswith("dump"):
        labels = np.array([CODES[each] for each in labels.tolist()])
    np.testing.assert_array_equal(back.arrays["structure_type"], labels)
    np.testing.assert_array_equal(back.arrays["confidence"], clean.arrays["confidence"])
    np.testing.assert_array_equal(back.arrays["color"], label_colors(labels))
    with FrameWriter("again." + name) as writer:
        writer.write(back)
    (again,) = read_frames("again." + name)
    assert again.arrays.keys() == back.arrays.keys()
    for key, values in back.arrays.items():
        np.testing.assert_array_equal(again.arrays[key], values)


def test_names_of_another_tool_are_read_as_they_are(folder: Path) -> None:
    atoms = salt()
    atoms.set_array("structure_type", np.array(["simple_cubic", "grain_A"] * 32))
    with FrameWriter("theirs.extxyz") as writer:
        writer.write(atoms)
    (back,) = read_frames("theirs.extxyz")
    assert back.arrays["structure_type"].tolist() == ["simple_cubic", "grain_A"] * 32


def test_colors_come_with_analyze_or_when_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ovito")

    def colored(*arguments: str, name: str = "judge") -> Atoms | None:
        denoise("-o", "out.extxyz", *arguments, name=name)
        (back,) = read_frames("out.extxyz")
        return back if "color" in back.arrays else None

    assert colored() is None
    assert colored("--colors") is not None
    assert colored("--analyze", "--no-colors") is None
    analyzed = colored("--analyze")
    assert analyzed is not None
    np.testing.assert_array_equal(
        analyzed.arrays["color"], label_colors(analyzed.arrays["structure_type"])
    )  # of the verdict, not of the sites
    numbers = colored("--analyze", name="blind")
    assert numbers is not None
    np.testing.assert_array_equal(numbers.arrays["color"], label_colors(numbers.arrays["structure_type"]))
    capsys.readouterr()
    assert colored("--colors", name="blind") is None
    note, _ = capsys.readouterr().err.splitlines()
    assert note == "no colours: this checkpoint gives no verdict; --analyze gives labels"


@pytest.mark.parametrize("key", ["color", "Color"])
def test_colors_of_the_user_stay(folder: Path, key: str) -> None:
    atoms = salt()
    theirs = np.random.default_rng(0).random((len(atoms), 3)).round(4)
    atoms.set_array(key, theirs)
    with FrameWriter("theirs.extxyz") as writer:
        writer.write(atoms)
    denoise("-o", "out.extxyz", "--colors", "-q", source="theirs.extxyz")
    (back,) = read_frames("out.extxyz")
    np.testing.assert_array_equal(back.arrays[key], theirs)
    assert [name for name in back.arrays if name.casefold() == "color"] == [key]


@pytest.mark.parametrize("name", ["clean.extxyz", "clean.dump"])
def test_colors_of_an_earlier_run_follow_the_new_labels(folder: Path, name: str) -> None:
    denoise("-o", name, "--colors", "-q", name="spaces")
    denoise("-o", "out.extxyz", "-q", source=name)
    (back,) = read_frames("out.extxyz")
    np.testing.assert_allclose(back.arrays["color"], rgb(*NAMES)[np.arange(64) % 2], atol=1e-4)


def test_colors_go_with_the_labels_that_they_are_of() -> None:
    before = salt()
    before.set_array("structure_type", np.array(NAMES * 32))
    before.set_array("color", label_colors(before.arrays["structure_type"]))
    after = before.copy()
    del after.arrays["structure_type"]
    paint(before, after, judged=False, wanted=False)
    assert "color" not in after.arrays


def test_a_dump_keeps_a_color_that_is_no_vector(tmp_path: Path) -> None:
    atoms = salt()
    atoms.set_array("color", np.arange(len(atoms)))
    with FrameWriter(tmp_path / "a.dump") as writer:
        writer.write(atoms)
    (back,) = read_frames(tmp_path / "a.dump")
    assert back.arrays["color"].tolist() == list(range(len(atoms)))


@pytest.mark.parametrize("name", ["out.cif", "out.vasp", "out.data", "out.xdatcar", "out.pdb"])
def test_what_the_file_does_not_hold_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    denoise("-o", name)
    note, summary = capsys.readouterr().err.splitlines()
    form = FrameWriter(name).format
    assert note == f"{form} has no place for structure_type, confidence: extxyz and lammps-dump keep them"
    assert summary.endswith(f"written to {name}")
    denoise("-o", name, "--colors")
    assert "has no place for structure_type, confidence, color:" in capsys.readouterr().err
    denoise("-o", name, "-q")
    denoise("-o", "out.extxyz", "-q")
    assert capsys.readouterr().err == ""
    denoise("-o", name, name="blind")
    assert "no place" not in capsys.readouterr().err


def test_the_choice_and_what_is_lost_are_two_lines(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "_here", lambda: {"judge": "compound"})
    assert cli.main(["denoise", "in.extxyz", "-o", "out.cif"]) == 0
    chosen, note, _ = capsys.readouterr().err.splitlines()
    assert chosen == "chose judge: two species (Na, Cl)"
    assert note.startswith("cif has no place for")


@pytest.mark.parametrize(
    ("verdict", "told"),
    [
        ({}, "none: it only denoises"),
        (
            {"classes": ["B2", "ice Ih"], "width": 48, "temperature": 1.0},
            "per atom, with a confidence: B2, ice Ih or disordered",
        ),
    ],
)
def test_info_tells_of_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verdict: dict[str, object], told: str
) -> None:
    config = {"format_version": 3, "kind": "denoiser", "name": "mine", "version": "1.0.0"}
    config |= {"weights_sha256": "0" * 64, "units": {"length": "angstrom"}, "verdict": verdict}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert cli.main(["info", str(tmp_path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"verdict {told}" in text
    assert "temperature" not in text  # of the head, which is for the model
