"""MD on a flattened surface: the bias, pairs of clones, resume, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.reference_md import read_segments
from training.reference_md.keep import keep
from training.reference_md.releases import Bias, long_path, read_blocks, simulated_ps
from training.reference_md.segments import BIAS, read_record, write_record
from training.reference_md.systems import ALANINE_DIPEPTIDE
from zoo.errors import StructureError, ZooError

pytest.importorskip("openmm")

from training.reference_md import flattened, simulation


@pytest.fixture
def vacuum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in (("RELEASES", 3), ("EVERY", 0.2), ("LENGTH", 0.4), ("LONG", 0.8)):
        monkeypatch.setattr(flattened, name, value)
    system = replace(ALANINE_DIPEPTIDE, force_field=("amber14/protein.ff14SB.xml",))
    protocol = simulation.Protocol(solvated=False, equilibration=((0.4, 2.0),))
    yield simulation.Generator(system, tmp_path / "out", "Reference", protocol=protocol)


def with_bias(generator: Any, grid: Any, ridge_at: tuple[float, float] = (-80.0, 60.0)) -> Any:
    generator.folder.mkdir(exist_ok=True)
    text = json.dumps({"kj_mol": np.asarray(grid).tolist(), "ridge_degrees": ridge_at})
    (generator.folder / BIAS).write_text(text)
    return flattened.Flattened(generator)


def ridge(n: int = 36) -> Any:
    """kJ/mol: 20 cos(phi) + 5 sin(phi) + 4 sin(psi), which is neither even nor the same in both."""
    x = 2 * np.pi * np.arange(n) / n
    return (20.0 * np.cos(x) + 5.0 * np.sin(x))[:, None] + 4.0 * np.sin(x)


def test_a_bias_is_learned_once_and_shaped(vacuum: Any) -> None:
    how = flattened.Metadynamics(n_bins=24)
    told: list[str] = []
    flat = flattened.Flattened(vacuum)
    flat.learn(8.0, how, told.append)
    bias = Bias.read(vacuum.folder)
    grid = bias.kj_mol
    assert bias.ridge == how.ridge[:2]
    assert grid.shape == (24, 24) and len(told) == 20
    assert grid.max() > 1.0
    data = json.loads((vacuum.folder / BIAS).read_text())
    assert data["torsions"] == list(ALANINE_DIPEPTIDE.torsions)
    assert data["metadynamics"]["length_ps"] == 8.0
    with pytest.raises(ZooError, match="share one bias"):
        flat.learn(8.0, how)


def test_shaping_fills_up_what_is_deep_and_lowers_the_ridge() -> None:
    how = flattened.Metadynamics(depth=10.0, ridge=(0.0, 25.0, 8.0))
    grid = np.zeros((36, 36))
    grid[20] = 50.0
    shaped = how.shaped(grid)
    assert shaped[20, 0] == pytest.approx(50.0, abs=1e-6)  # far from the ridge
    assert shaped[18, 0] == pytest.approx(40.0, abs=1e-6)
    assert shaped[0, 5] == pytest.approx(32.0, abs=1e-6)
    assert shaped[1, 0] == pytest.approx(shaped[35, 0])


def test_a_block_holds_pairs_that_part_from_the_same_frame(vacuum: Any) -> None:
    with_bias(vacuum, ridge()).run(3, 1)
    record = read_record(vacuum.folder / "flat-03000.npz")
    segments = read_segments(vacuum.folder)
    assert [len(each.positions) for each in segments] == [3] * 6
    assert record.provenance["pieces"] == 6 and record.provenance["walker"]["number"] == 3
    for first, second in zip(segments[::2], segments[1::2], strict=True):
        np.testing.assert_array_equal(first.positions[0], second.positions[0])
        assert np.abs(first.positions[1] - second.positions[1]).max() > 0.01
    (block,) = read_blocks(vacuum.folder)
    assert block.paths.shape == (3, 5, 22, 3)
    # a path goes through its middle and does not come back from it
    through, there = (np.mean(np.square(block.paths[:, 3] - block.paths[:, k])) for k in (1, 2))
    assert through > there


def test_clones_that_do_not_leave_the_ridge_on_one_side_go_on(vacuum: Any) -> None:
    with_bias(vacuum, ridge()).run(3, 3)
    bias = Bias.read(vacuum.folder)
    blocks = read_blocks(vacuum.folder)
    n_long = 0
    for block in blocks:
        ends = [[vacuum.angles(path[k])[0] for k in (0, -1)] for path in block.paths]
        goes_on = [k for k, (a, b) in enumerate(ends) if bias.beyond(a) * bias.beyond(b) != 1]
        assert block.long_of is not None and block.long_of.tolist() == goes_on
        assert long_path(vacuum.folder / f"{block.name}.npz").exists() == bool(goes_on)
        if goes_on:
            assert block.long_paths.shape == (len(goes_on), 9, 22, 3)
            np.testing.assert_array_equal(block.long_paths[:, 2:7], block.paths[goes_on])
            n_long += len(goes_on)
    assert 0 < n_long < 9
    per_path, more = 4 * 0.2, 2 * 0.4
    walked = sum(0.2 * len(b.visited) for b in blocks)
    assert simulated_ps(blocks, bias) == pytest.approx(walked + 9 * per_path + n_long * more)
    assert {each.name[:4] for each in read_segments(vacuum.folder)} == {"flat"}
    path = long_path(vacuum.folder / f"{next(b for b in blocks if len(b.long_paths)).name}.npz")
    record = read_record(path)
    write_record(path, replace(record, pos_nm=record.pos_nm + 0.1))
    with pytest.raises(StructureError, match="not those of the block"):
        read_blocks(vacuum.folder)
    path.unlink()
    with pytest.raises(StructureError, match="long-"):
        read_blocks(vacuum.folder)
    with pytest.raises(StructureError, match="long-"):
        flattened.Flattened(vacuum).run(3, 4)


def test_without_friction_the_second_clone_goes_back_where_the_walker_came_from(vacuum: Any) -> None:
    """And so a pair is one path: the way of the walker, on without bias, and the same way back."""
    protocol = replace(vacuum.protocol, friction=0.0)
    generator = replace(vacuum, protocol=protocol)
    walker = flattened._Walker(generator, ridge(), 0)
    walker.seed(0)
    walker.take(generator._prepare(0).state_xml)
    walker.integrator.setFriction(0.0)
    walker.step(0.2, {0})
    before = walker.solute()
    walker.step(0.2, {0})
    middle = walker.context.getState(positions=True, velocities=True)
    _, back = walker.velocities(middle)
    walker.context.setVelocities(back)
    walker.context.applyVelocityConstraints(1e-6)
    walker.step(0.2, {0})
    assert np.abs(walker.solute() - before).max() < 1e-4
    assert np.abs(before - simulation._positions(middle)[:22]).max() > 5e-3


def test_it_is_written_down_where_a_walker_was_and_it_is_cloned_on_the_ridge_only(vacuum: Any) -> None:
    with_bias(vacuum, ridge()).run(0, 3)
    bias = Bias.read(vacuum.folder)
    kt = 0.008314462618 * 300
    for block in read_blocks(vacuum.folder):
        np.testing.assert_allclose(kt * block.bias, bias.at(block.visited), atol=0.1)
        on_ridge = bias.on_ridge(block.visited[:, 0])
        np.testing.assert_allclose(block.bias[on_ridge], block.released)
        middle = [vacuum.angles(x)[:2] for x in block.paths[:, 2]]
        np.testing.assert_allclose(middle, block.visited[on_ridge], atol=0.02)


def test_clones_feel_no_bias_and_walkers_do(vacuum: Any) -> None:
    """A bias of 200 kJ/mol pushes phi to 180 degrees: walkers are held there, clones leave it."""
    with_bias(vacuum, 10 * ridge(), (180.0, 60.0)).run(0, 3)
    last = read_blocks(vacuum.folder)[-1]
    phi = np.array([[vacuum.angles(x)[0] for x in path] for path in last.paths])
    away = np.abs(np.abs(phi) - 180.0)
    assert (180.0 - np.abs(last.visited[-3:, 0])).max() < 45.0
    assert away[:, [0, -1]].mean() > away[:, 2].mean()


def test_a_walker_that_was_stopped_goes_on_as_if_it_had_not(vacuum: Any, tmp_path: Path) -> None:
    with_bias(vacuum, ridge()).run(1, 2)
    other = replace(vacuum, folder=tmp_path / "other")
    with_bias(other, ridge()).run(1, 1)
    told: list[str] = []
    flattened.Flattened(other).run(1, 2, told.append)
    assert len(told) == 1
    whole, resumed = (read_record(g.folder / "flat-01001.npz") for g in (vacuum, other))
    np.testing.assert_array_equal(whole.pos_nm, resumed.pos_nm)


def test_copies_go_on_from_their_last_block(vacuum: Any) -> None:
    with_bias(vacuum, ridge()).run(0, 2)
    kept = vacuum.folder.parent / "kept"
    assert keep(vacuum.folder, kept) == len(list(vacuum.folder.glob("*.npz")))
    assert (kept / BIAS).read_text() == (vacuum.folder / BIAS).read_text()
    assert [bool(read_record(p).state_xml) for p in sorted(kept.glob("flat-*.npz"))] == [False, True]
    flattened.Flattened(replace(vacuum, folder=kept)).run(0, 3)
    flattened.Flattened(vacuum).run(0, 3)
    whole, again = (read_record(folder / "flat-00002.npz") for folder in (vacuum.folder, kept))
    np.testing.assert_array_equal(whole.pos_nm, again.pos_nm)
    (kept / "flat-00002.npz").unlink()
    assert keep(vacuum.folder, kept) == 2  # the third, and the second without its state
    assert [bool(read_record(p).state_xml) for p in sorted(kept.glob("flat-*.npz"))] == [False, False, True]
    assert keep(vacuum.folder, kept) == 0
    assert len(read_blocks(kept)) == 3
    (kept / "flat-00002.npz").unlink()
    with pytest.raises(ZooError, match="compact copy without a state"):
        flattened.Flattened(replace(vacuum, folder=kept)).run(0, 3)


def test_blocks_of_another_bias_are_refused(vacuum: Any) -> None:
    with_bias(vacuum, ridge()).run(0, 1)
    kept = vacuum.folder.parent / "kept"
    keep(vacuum.folder, kept)
    with pytest.raises(ZooError, match="another bias"):
        with_bias(vacuum, 1.5 * ridge() + 1.0).run(0, 2)
    with pytest.raises(ZooError, match="felt another bias"):
        keep(vacuum.folder, kept)
    (vacuum.folder / BIAS).unlink()
    with pytest.raises(StructureError, match="learn the bias first"):
        flattened.Flattened(vacuum).run(0, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ethane", "-o", "x", "--learn", "10"], "fewer than two torsions"),
        (["alanine-dipeptide", "-o", "x", "--learn", "0"], "1 to 1000000 ps"),
        (["alanine-dipeptide", "-o", "x", "--walker", "99"], "0 to 98"),
        (["alanine-dipeptide", "-o", "x", "--walker", "0", "--blocks", "0"], "1 to 1000"),
        (["alanine-dipeptide", "-o", "x"], "--learn"),
    ],
)
def test_impossible_requests_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        flattened.main(arguments)
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error


def test_no_bias_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert flattened.main(["alanine-dipeptide", "-o", str(tmp_path), "--walker", "0"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "--learn" in error and error.count("\n") == 1
