"""The demonstration, with a stand-in for the network so that it is fast and exact."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read
from rich.console import Console

from zoo import demo
from zoo.analysis import crystals
from zoo.errors import MissingExtraError

pytest.importorskip("ovito")
pytest.importorskip("matplotlib")


class _Oracle:
    """Puts every atom on the fcc site it belongs to."""

    @classmethod
    def from_pretrained(cls, name: str) -> _Oracle:
        assert name == "denoiser-elements"
        return cls()

    def denoise(self, atoms: Atoms, steps: int = 10, callback: Any = None) -> Atoms:
        out = atoms.copy()
        sites = bulk("Al", "fcc", a=atoms.cell[0, 0] / 8, cubic=True).repeat((8, 8, 8))
        out.positions = sites.positions
        out.info["denoise_steps"] = 3
        return out


def test_the_bundled_snapshot_is_hot_solid_aluminium() -> None:
    atoms = demo.snapshot()
    assert len(atoms) == 2048 and set(atoms.symbols) == {"Al"} and atoms.pbc.all()
    assert atoms.info["potential"] == "Al1.eam.fs" and atoms.info["temperature_K"] == 933.0
    fcc = (crystals.adaptive_cna(atoms) == crystals.FCC).mean()
    assert 0.4 < fcc < 0.75  # thermal noise hides a good part, which is the point of the demonstration


def test_the_bundled_snapshot_is_small() -> None:
    assert (Path(demo.__file__).parent / "data" / demo.SNAPSHOT).stat().st_size < 60_000


def test_demo_writes_table_structures_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zoo.denoiser", SimpleNamespace(Denoiser=_Oracle))  # no weights
    monkeypatch.setattr(demo, "_PIXELS", 120)
    monkeypatch.setattr(demo, "WALKERS", 2)
    monkeypatch.setattr(demo, "LAG_STEPS", 3)
    out = io.StringIO()
    assert demo.run(tmp_path / "demo", console=Console(file=out, width=100)) == 0
    text = out.getvalue()
    assert "100.00 %" in text and "fcc" in text and "3 steps" in text
    names = sorted(path.name for path in (tmp_path / "demo").iterdir())
    assert names == [
        "al-after.extxyz", "al-before.extxyz", "al.png", "dipeptide.pdb", "dipeptide.png", "dipeptide.xtc",
    ]  # fmt: skip
    assert "2 walkers, 6 steps" in text
    after = read(tmp_path / "demo" / "al-after.extxyz")
    assert (after.arrays["structure_type"] == crystals.FCC).all()
    before = read(tmp_path / "demo" / "al-before.extxyz")
    assert set(before.arrays["structure_type"]) > {crystals.OTHER}
    np.testing.assert_allclose(before.positions, demo.snapshot().positions, atol=1e-4)


def test_demo_without_ovito_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ovito", None)
    with pytest.raises(MissingExtraError, match="analysis"):
        demo.run(tmp_path / "demo", console=Console(file=io.StringIO()))
    assert not (tmp_path / "demo").exists()


def test_table_never_rounds_up_to_all() -> None:
    assert demo._percent(2047 / 2048) == "99.95 %"
    assert demo._percent(1.0) == "100.00 %"
    assert demo._percent(0.29) == "29.00 %"
