"""The OVITO modifier: what `Denoiser.denoise` does, inside a pipeline, and nothing else changes."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms
from ase.io import write

from zoo import demo
from zoo.denoiser import Denoiser
from zoo.errors import CheckpointError, StructureError, UnknownCheckpointError

pytest.importorskip("ovito")

from ovito.data import DataCollection
from ovito.io import import_file
from ovito.modifiers import CommonNeighborAnalysisModifier, CreateBondsModifier, ExpressionSelectionModifier
from ovito.pipeline import Pipeline, StaticSource
from traits.api import TraitError

from zoo.ovito import CONFIDENCE, DISPLACEMENT, DenoiseModifier, to_ase

ROOT = Path(__file__).resolve().parent.parent
STEPS = 3


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other by spinning take minutes instead of seconds on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Denoiser.from_pretrained("denoiser-elements")


def hot() -> Atoms:
    """Copper, 108 atoms, shaken so that some of it is not recognised as fcc."""
    atoms = bulk("Cu", cubic=True).repeat(3)
    atoms.rattle(0.2, seed=2)
    return atoms


def ovito_data(atoms: Atoms, origin: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> DataCollection:
    """The same cell, vector for vector, which `zoo.analysis.crystals.to_ovito` would reduce."""
    data = DataCollection()
    cell = np.column_stack([atoms.cell[:].T, origin])
    data.create_cell(cell, pbc=tuple(bool(flag) for flag in atoms.pbc))
    particles = data.create_particles(count=len(atoms))
    particles.create_property("Position", data=atoms.positions + origin)
    return data


def denoised(data: DataCollection, **parameters: Any) -> DataCollection:
    pipeline = Pipeline(source=StaticSource(data=data))
    pipeline.modifiers.append(DenoiseModifier(**{"steps": STEPS, **parameters}))
    return pipeline.compute(0)


def assert_same(data: DataCollection, clean: Atoms, before: Atoms) -> None:
    np.testing.assert_array_equal(data.particles.positions, clean.positions)
    np.testing.assert_array_equal(data.particles[DISPLACEMENT], clean.positions - before.positions)


# -- the result ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_bundled_snapshot_is_denoised_as_without_ovito(denoiser: Denoiser) -> None:
    """Also the example of the README: fcc is found after it, where most of it was not before."""
    atoms = demo.snapshot()
    pipeline = Pipeline(source=StaticSource(data=ovito_data(atoms)))
    pipeline.modifiers.append(CommonNeighborAnalysisModifier())
    before = pipeline.compute(0).attributes["CommonNeighborAnalysis.counts.FCC"]
    pipeline.modifiers.insert(0, DenoiseModifier())
    data = pipeline.compute(0)
    after = data.attributes["CommonNeighborAnalysis.counts.FCC"]
    assert before < 0.5 * len(atoms)
    assert after > 0.99 * len(atoms)
    clean = denoiser.denoise(atoms)
    assert_same(data, clean, atoms)
    assert data.particles[DISPLACEMENT].component_names == ("X", "Y", "Z")
    attributes = {key: value for key, value in data.attributes.items() if key.startswith("Denoise.")}
    assert attributes == {
        "Denoise.steps": clean.info["denoise_steps"],
        "Denoise.converged": clean.info["denoise_converged"],
        "Denoise.stalled": clean.info["denoise_stalled"],
        "Denoise.mean_displacement": clean.info["denoise_mean_displacement"][-1],
        "Denoise.checkpoint": clean.info["denoise_checkpoint"],
    }


def test_only_selected_particles_move_but_the_network_sees_all(denoiser: Denoiser) -> None:
    atoms = hot()
    data = ovito_data(atoms)
    selected = np.arange(len(atoms)) % 3 == 0
    data.particles_.create_property("Selection", data=selected)
    held = atoms.copy()
    held.set_constraint(FixAtoms(mask=~selected))
    clean = denoiser.denoise(held, STEPS)
    result = denoised(data, only_selected=True)
    assert_same(result, clean, atoms)
    moved = np.asarray(result.particles[DISPLACEMENT]).any(axis=1)
    np.testing.assert_array_equal(moved, selected)
    np.testing.assert_array_equal(result.particles.selection, selected)
    # without the parameter, the selection is of no consequence
    assert_same(denoised(data), denoiser.denoise(atoms, STEPS), atoms)


@pytest.mark.parametrize("expression", ["0", "1"], ids=["none", "all"])
def test_selecting_none_or_all(denoiser: Denoiser, expression: str) -> None:
    atoms = hot()
    data = ovito_data(atoms)
    data.apply(ExpressionSelectionModifier(expression=expression))
    result = denoised(data, only_selected=True)
    assert_same(result, denoiser.denoise(atoms, STEPS) if expression == "1" else atoms, atoms)


# -- cells -----------------------------------------------------------------------------------

SKEW = np.array([[1, 0, 0], [1, 1, 0], [-1, 1, 1]])
CELLS: dict[str, Callable[[Atoms], Any]] = {
    "triclinic": lambda a: a.set_cell(SKEW @ a.cell[:]),
    "left-handed": lambda a: a.set_cell(a.cell[:][[1, 0, 2]]),
    "particles outside": lambda a: a.positions.__iadd__(a.cell[:].sum(0)),
}


@pytest.mark.parametrize("origin", [(0.0, 0.0, 0.0), (-50.0, 7.0, 0.3)], ids=["", "shifted"])
@pytest.mark.parametrize("case", CELLS)
def test_how_the_cell_is_written_does_not_matter(
    denoiser: Denoiser, case: str, origin: tuple[float, float, float]
) -> None:
    atoms = hot()
    expected = denoiser.denoise(atoms, STEPS).positions - atoms.positions
    CELLS[case](atoms)
    data = ovito_data(atoms, origin)
    result = denoised(data)
    np.testing.assert_allclose(result.particles[DISPLACEMENT], expected, atol=2e-5)
    np.testing.assert_array_equal(result.cell[...], data.cell[...])
    assert result.cell.pbc == data.cell.pbc


@pytest.mark.parametrize("pbc", [(True, True, False), (False, True, False), (False, False, False)])
def test_mixed_boundaries_are_those_of_the_cell(denoiser: Denoiser, pbc: tuple[bool, bool, bool]) -> None:
    atoms = hot()
    atoms.pbc = pbc
    atoms.center(vacuum=5.0, axis=[k for k in range(3) if not pbc[k]])
    assert_same(denoised(ovito_data(atoms)), denoiser.denoise(atoms, STEPS), atoms)


def test_two_dimensional_cells_and_no_cell_at_all() -> None:
    atoms = hot()
    data = ovito_data(atoms)
    data.cell_.is2D = True
    assert list(to_ase(data).pbc) == [True, True, False]
    data.objects.remove(data.cell)
    assert not to_ase(data).pbc.any()
    atoms.pbc = False
    expected = to_ase(ovito_data(atoms))
    assert expected == to_ase(data)


# -- in a pipeline ---------------------------------------------------------------------------


def test_everything_else_is_kept() -> None:
    atoms = hot()
    data = ovito_data(atoms)
    particles = data.particles_
    particles.create_property("Particle Type", data=np.arange(len(atoms)) % 2 + 1)
    particles.create_property("Velocity", data=np.ones((len(atoms), 3)))
    particles.create_property("Mine", data=np.arange(len(atoms)))
    data.attributes["Timestep"] = 1234
    data.apply(CreateBondsModifier(cutoff=3.0))
    before = data.clone()
    result = denoised(data)
    assert set(result.particles.keys()) == {
        *before.particles.keys(),
        DISPLACEMENT,
        CONFIDENCE,
        "Structure Type",
    }
    for key in set(before.particles.keys()) - {"Position"}:
        np.testing.assert_array_equal(result.particles[key], before.particles[key])
    assert result.particles.bonds.count > 0
    for key in before.particles.bonds:
        np.testing.assert_array_equal(result.particles.bonds[key], before.particles.bonds[key])
    assert before.attributes.items() <= result.attributes.items()
    # nor is the input touched
    np.testing.assert_array_equal(data.particles.positions, atoms.positions)
    assert DISPLACEMENT not in data.particles


def test_frames_of_a_trajectory_are_denoised_one_by_one(
    denoiser: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [hot(), hot()]
    frames[1].rattle(0.05, seed=3)
    write(tmp_path / "run.extxyz", frames)
    loaded: list[Any] = []
    monkeypatch.setattr(Denoiser, "from_pretrained", lambda name: loaded.append(name) or denoiser)
    pipeline = import_file(str(tmp_path / "run.extxyz"))
    modifier = DenoiseModifier(steps=STEPS)
    pipeline.modifiers.append(modifier)
    assert pipeline.num_frames == 2
    for index in (1, 0):
        data = pipeline.compute(index)
        clean = denoiser.denoise(frames[index], STEPS)
        np.testing.assert_allclose(data.particles.positions, clean.positions, atol=1e-6)
        assert data.particles.particle_types.type_by_id(int(data.particles.particle_types[0])).name == "Cu"
    assert loaded == ["denoiser-elements"]
    # a change of a parameter computes the pipeline anew, one of the checkpoint also loads it
    modifier.steps = 1
    assert pipeline.compute(0).attributes["Denoise.steps"] == 1
    assert loaded == ["denoiser-elements"]
    modifier.checkpoint = "another"
    pipeline.compute(0)
    assert loaded == ["denoiser-elements", "another"]


def test_a_folder_is_a_checkpoint_too(denoiser: Denoiser, tmp_path: Path) -> None:
    folder = denoiser.save_pretrained(tmp_path / "mine")
    atoms = hot()
    assert_same(denoised(ovito_data(atoms), checkpoint=str(folder)), denoiser.denoise(atoms, STEPS), atoms)


def test_two_in_a_row_and_a_displacement_from_a_file(denoiser: Denoiser) -> None:
    atoms = hot()
    data = ovito_data(atoms)
    data.particles_.create_property(DISPLACEMENT, data=np.arange(len(atoms)))  # of another layout
    pipeline = Pipeline(source=StaticSource(data=data))
    pipeline.modifiers.append(DenoiseModifier(steps=1))
    pipeline.modifiers.append(DenoiseModifier(steps=1))
    once = denoiser.denoise(atoms, 1)
    assert_same(pipeline.compute(0), denoiser.denoise(once, 1), once)


def test_progress_is_told_and_dropping_it_ends_the_work(
    denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[BaseException | None] = []
    may_go_on = threading.Event()
    denoise = Denoiser.denoise

    def watched(self: Denoiser, atoms: Atoms, steps: int, callback: Callable[..., None]) -> Atoms:
        def after_step(*state: Any) -> None:
            assert may_go_on.wait(30)
            callback(*state)

        try:
            clean = denoise(self, atoms, steps, after_step)
        except BaseException as error:
            ended.append(error)
            raise
        ended.append(None)
        return clean

    monkeypatch.setattr(Denoiser, "denoise", watched)
    monkeypatch.setattr("zoo.ovito._POLL", 1e-4)
    data = ovito_data(hot())
    may_go_on.set()
    told = list(DenoiseModifier(steps=STEPS).modify(data.clone(), frame=0))
    assert told[:2] == ["Loading denoiser-elements", "Denoising 108 particles"]
    fractions = [float(x) for x in told[2:]]
    assert fractions == sorted(fractions)
    assert all(0 <= x <= 1 for x in fractions)
    assert ended == [None]

    may_go_on.clear()
    untouched = data.clone()
    work = DenoiseModifier(steps=STEPS).modify(untouched, frame=0)
    assert [next(work) for _ in range(3)][2] == 0.0
    work.close()
    may_go_on.set()
    for thread in threading.enumerate():
        if thread.name.startswith("zoo-denoise"):
            thread.join(30)
    assert [type(error) for error in ended] == [type(None), CancelledError]
    np.testing.assert_array_equal(untouched.particles.positions, data.particles.positions)


def test_a_saved_session_has_the_parameters_and_not_the_network() -> None:
    modifier = DenoiseModifier(steps=4, only_selected=True)
    modifier._denoiser()
    stored = pickle.dumps(modifier)
    assert len(stored) < 1000
    again = pickle.loads(stored)
    assert (again.checkpoint, again.steps, again.only_selected) == ("denoiser-elements", 4, True)
    assert again._loaded is None


# -- what a user sees of wrong input ---------------------------------------------------------


def _nan(data: DataCollection) -> None:
    data.particles_.positions_[3] = np.nan


def _twice(data: DataCollection) -> None:
    data.particles_.positions_[3] = data.particles.positions[4]


def _flat(data: DataCollection) -> None:
    data.cell_[:, 2] = 0.0


def _nothing(data: DataCollection) -> None:
    data.objects.clear()


def _empty(data: DataCollection) -> None:
    data.particles_.delete_elements(np.ones(data.particles.count))


def _no_positions(data: DataCollection) -> None:
    del data.particles_["Position"]


@pytest.mark.parametrize(
    ("spoil", "parameters", "kind", "message"),
    [
        (_nan, {}, StructureError, "frame 0: .*NaN"),
        (_twice, {}, StructureError, "frame 0: .*same place"),
        (_flat, {}, StructureError, "frame 0: .*lattice vector c is zero"),
        (_nothing, {}, StructureError, "frame 0: there are no particles"),
        (_empty, {}, StructureError, "frame 0: there are no particles"),
        (_no_positions, {}, StructureError, "frame 0: the particles have no positions"),
        (lambda _: None, {"only_selected": True}, StructureError, "only_selected is set but"),
        (lambda _: None, {"checkpoint": "denoiser-element"}, UnknownCheckpointError, "denoiser-elements"),
        (lambda _: None, {"checkpoint": "sd-alkanes"}, CheckpointError, "not a denoiser"),
        (lambda _: None, {"checkpoint": ""}, CheckpointError, "empty"),
    ],
)
def test_wrong_input_is_one_clear_line(
    spoil: Callable[[DataCollection], None], parameters: dict[str, Any], kind: type[Exception], message: str
) -> None:
    data = ovito_data(hot())
    spoil(data)
    with pytest.raises(kind, match=message) as caught:
        denoised(data, **parameters)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("parameters", [{"steps": 0}, {"steps": 2.5}, {"step": 3}, {"checkpoint": None}])
def test_wrong_parameters_are_refused_at_once(parameters: dict[str, Any]) -> None:
    with pytest.raises(TraitError, match=next(iter(parameters))):
        DenoiseModifier(**parameters)
    with pytest.raises(TraitError, match=next(iter(parameters))):
        DenoiseModifier().trait_set(**parameters)


# -- importing -------------------------------------------------------------------------------


@pytest.mark.slow
def test_importing_zoo_needs_no_ovito_and_the_modifier_no_torch() -> None:
    code = (
        "import sys, zoo\n"
        "assert 'ovito' not in sys.modules\n"
        "sys.modules['ovito'] = None\n"  # as if it were not installed
        "try:\n    import zoo.ovito\n"
        "except zoo.MissingExtraError as error:\n    print(error)\n"
        "del sys.modules['ovito']\n"
        "import zoo.ovito\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    message, torch = done.stdout.splitlines()
    assert message.startswith("the OVITO modifier needs OVITO")
    assert message.endswith('pip install "score-zoo[analysis]"')
    assert torch == "False"


def test_ovito_pro_finds_it_by_its_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ((name, value),) = project["entry-points"]["OVITO.Modifier"].items()
    assert EntryPoint(name, value, "OVITO.Modifier").load() is DenoiseModifier
