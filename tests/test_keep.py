"""Compact copies of reference MD: the same frames to 0.001 Å, never written over by others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.reference_md import read_segments
from training.reference_md.keep import keep, main
from training.reference_md.segments import Record, read_record, write_record
from zoo.analysis.packed_positions import GRAIN, packed
from zoo.errors import StructureError


def record(n_frames: int = 50, seed: int = 0, jump: float = 0.02) -> Record:
    rng = np.random.default_rng(seed)
    x = 5.0 + np.cumsum(jump * rng.standard_normal((n_frames, 3, 3)), axis=0)
    return Record(x.astype(np.float32), 0.2, (1.0, 2.0), 2.1, 9, {"segment": 0}, "<State/>")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "md"
    made.mkdir()
    write_record(made / "segment-000.npz", record())
    (made / "topology.pdb").write_text("END\n")
    return made


def test_frames_survive_and_the_state_does_not(folder: Path, tmp_path: Path) -> None:
    assert keep(folder, tmp_path / "kept") == 1
    (whole,), (kept,) = read_segments(folder), read_segments(tmp_path / "kept")
    assert kept.positions.dtype == np.float32
    # read_segments gives Å; rounding in single precision adds a little to half a grain
    assert np.abs(kept.positions - whole.positions).max() <= 10 * (0.5 * GRAIN + 1e-6)
    after = read_record(tmp_path / "kept" / "segment-000.npz")
    assert (after.seed, after.dt_ps, after.provenance, after.state_xml) == (
        (1.0, 2.0),
        0.2,
        {"segment": 0},
        "",
    )
    assert (tmp_path / "kept" / "topology.pdb").read_text() == "END\n"


def test_errors_do_not_add_up_along_a_trajectory(tmp_path: Path) -> None:
    long = record(20000)
    write_record(tmp_path / "segment-000.npz", long, compact=True)
    away = np.abs(read_record(tmp_path / "segment-000.npz").pos_nm - long.pos_nm)
    assert away[-1000:].max() <= 0.5 * GRAIN + 1e-5


def test_it_is_much_smaller(folder: Path, tmp_path: Path) -> None:
    write_record(folder / "segment-000.npz", record(2000))
    keep(folder, tmp_path / "kept")
    sizes = [(each / "segment-000.npz").stat().st_size for each in (folder, tmp_path / "kept")]
    assert sizes[1] < 0.6 * sizes[0]


def test_longer_segments_replace_shorter_ones_and_others_do_not(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    keep(folder, kept)
    assert keep(folder, kept) == 0
    write_record(folder / "segment-000.npz", record(80))
    with pytest.raises(StructureError, match="other frames"):  # another seed of the generator
        write_record(folder / "segment-000.npz", record(80, seed=1))
        keep(folder, kept)
    longer = record(50)
    longer.pos_nm = np.concatenate([longer.pos_nm, longer.pos_nm[-1:]])
    write_record(folder / "segment-000.npz", longer)
    assert keep(folder, kept) == 1
    assert len(read_record(kept / "segment-000.npz").pos_nm) == 51


def test_what_moves_too_far_is_refused(folder: Path, tmp_path: Path) -> None:
    write_record(folder / "segment-000.npz", record(jump=10.0))
    with pytest.raises(StructureError, match="more than 3 nm"):
        keep(folder, tmp_path / "kept")


@pytest.mark.parametrize("key", ["pos_first", "pos_change"])
def test_damaged_copies_are_refused(tmp_path: Path, key: str) -> None:
    arrays: dict[str, Any] = {
        **packed(record().pos_nm),
        "dt_ps": 0.2,
        "seed": np.zeros(2),
        "box_nm": 2.0,
        "n_atoms_total": 9,
    }
    path = tmp_path / "segment-000.npz"
    for wrong in (np.zeros((2, 2)), np.zeros((1, 3, 3))):
        np.savez(path, **{**arrays, key: wrong})
        with pytest.raises(StructureError, match="cannot be read as a segment"):
            read_record(path)


def test_an_empty_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "-o", str(tmp_path / "kept")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
