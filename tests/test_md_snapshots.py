"""The job itself: real snapshots at the melting point come out perfect, and a melt stays a melt."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from ase.io import read

from zoo import registry

SNAPSHOTS = Path(__file__).parent / "data" / "md"
CRYSTALS = {
    "Fe-1.00": "bcc",
    "Mg-1.00": "hcp",
    "NaCl-1.00": "simple cubic",
    "Si-1.00": "cubic diamond",
    "mW-1.00": "hexagonal diamond",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("CI") and not registry.bundled_folder(registry.find("denoiser-elements")).is_dir(),
        reason="no bundled denoiser-elements",
    ),
]


@pytest.mark.parametrize("name", CRYSTALS)
def test_a_crystal_at_its_melting_point_is_recovered_in_ten_steps(name: str) -> None:
    pytest.importorskip("ovito")
    from zoo import Denoiser
    from zoo.analysis.crystals import STRUCTURES, structure_types

    hot = read(SNAPSHOTS / f"{name}.extxyz.gz")
    wanted = STRUCTURES.index(CRYSTALS[name])
    assert np.mean(structure_types(hot) == wanted) < 0.995  # there is something to do
    clean = Denoiser.from_pretrained("denoiser-elements").denoise(hot, steps=10)
    assert np.mean(structure_types(clean) == wanted) == 1.0
    assert clean.info["denoise_steps"] <= 10


def test_a_melt_is_not_crystallised() -> None:
    pytest.importorskip("ovito")
    from zoo import Denoiser
    from zoo.analysis.crystals import structure_types

    melt = read(SNAPSHOTS / "Al-1.60.extxyz.gz")
    after = Denoiser.from_pretrained("denoiser-elements").denoise(melt, steps=10)
    assert np.mean(structure_types(after) != 0) <= 0.005
