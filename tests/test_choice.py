"""Which denoiser is taken where none is named, why, and what is said of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

import zoo
from zoo import choice, cli, hub, registry
from zoo.choice import KINDS, choose
from zoo.errors import CheckpointError, MissingExtraError, StructureError
from zoo.graph import neighbor_searches
from zoo.structures import FrameWriter, read_frames
from zoo.verdict_names import COLORS, DISORDERED

ALL = {
    "denoiser-binaries": "compound",
    "denoiser-elements": "element",
    "denoiser-ice": "ice",
    "denoiser-silica": "silica",
}


class Fake:
    """Calls every atom ``crystal`` with ``confidence``; "" for disorder, None for one without a head."""

    def __init__(self, name: str, crystal: str | None, confidence: float = 0.9) -> None:
        self.name, self.crystal, self.confidence = name, crystal, confidence
        self.head = None if crystal is None else SimpleNamespace(classes=(crystal or "fcc", DISORDERED))
        self.config = SimpleNamespace(version="1.0.0")
        self.calls: list[int] = []
        self.error: Exception | None = None

    def denoise(self, atoms: Atoms, steps: int = 10, callback: Any = None) -> Atoms:
        self.calls.append(len(atoms))
        if self.error is not None:
            raise self.error
        clean = atoms.copy()
        if self.head is not None:
            clean.set_array("structure_type", np.array([self.crystal or DISORDERED] * len(atoms)))
            clean.set_array("confidence", np.full(len(atoms), self.confidence))
        return clean


Install = Callable[..., dict[str, Fake]]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts fakes in the place of the checkpoints that are on this machine."""

    def of(*fakes: Fake) -> dict[str, Fake]:
        known = {fake.name: fake for fake in fakes}
        monkeypatch.setattr(choice, "_here", lambda: {name: ALL[name] for name in known})
        monkeypatch.setattr(choice, "_load", known.__getitem__)
        return known

    return of


def salt(n: int = 3) -> Atoms:
    return bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(n)


def alloy(share: float | None, seed: int = 0) -> Atoms:
    """Fcc of Cu with that share of Ni at random; None for the L1_2 of a quarter."""
    atoms = bulk("Cu", cubic=True, a=3.6).repeat(4)
    if share is None:
        atoms.numbers[::4] = 28
    else:
        atoms.numbers[np.random.default_rng(seed).random(len(atoms)) < share] = 28
    return atoms


def noised(atoms: Atoms, sigma: float, seed: int = 0) -> Atoms:
    hot = atoms.copy()
    hot.positions += np.random.default_rng(seed).normal(0, sigma, hot.positions.shape)
    return hot


def water(*guests: str) -> Atoms:
    atoms = Atoms()
    for k, name in enumerate(["H2O"] * 20 + list(guests)):
        one = molecule(name)
        one.translate([4.0 * k, 0, 0])
        atoms += one
    return atoms


# -- composition -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("atoms", "words", "names"),
    [
        (bulk("Al", cubic=True), "one species (Al)", ["elements"]),
        (Atoms("O4"), "one species (O)", ["ice", "elements"]),
        (Atoms("X4"), "one unknown species", ["elements", "ice"]),
        (salt(1), "two species (Na, Cl)", ["binaries", "elements"]),
        (Atoms("Si2O4"), "two species (O, Si)", ["silica", "binaries"]),
        (Atoms("Si4O4"), "two species (O, Si)", ["binaries", "elements"]),
        (water(), "two species (H, O)", ["ice", "elements"]),
        (water("CH4", "CH4", "CH4"), "three species (H, C, O)", ["ice", "elements"]),
        (water("CO2", "CO2", "CO2"), "three species (H, C, O)", ["ice", "elements"]),
        (Atoms("NaOH"), "three species (H, O, Na)", ["elements", "binaries"]),
        (Atoms("HFLiBeBC"), "6 species (H, Li, Be, B, C, F)", ["elements", "binaries"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_composition_says_which_to_try_first(
    install: Install, atoms: Atoms, words: str, names: list[str]
) -> None:
    install(*(Fake(name, None) for name in ALL))
    assert choice._candidates(atoms) == (words, [f"denoiser-{name}" for name in names])


def test_without_the_checkpoint_made_for_it_the_number_of_species_decides(install: Install) -> None:
    install(Fake("denoiser-elements", None), Fake("denoiser-binaries", "B2"))
    assert choice._candidates(water())[1] == ["denoiser-binaries", "denoiser-elements"]
    assert choice._candidates(Atoms("O4"))[1] == ["denoiser-elements"]


def test_types_of_a_dump_stand_for_species_where_it_names_no_element(install: Install) -> None:
    install(*(Fake(name, None) for name in ALL))
    types = "2 LAMMPS types (name them with --species)"
    for symbol, words, first in (("X", types, "binaries"), ("C", types, "binaries"),
                                 ("Al", "one species (Al)", "elements")):  # fmt: skip
        atoms = Atoms([symbol] * 4)
        atoms.set_array("type", np.array([1, 1, 2, 2]))
        said, names = choice._candidates(atoms)
        assert (said, names[0]) == (words, f"denoiser-{first}")


def test_candidates_are_the_denoisers_of_the_registry_that_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = {
        r.name for r in registry.records() if r.kind == "denoiser" and registry.bundled_folder(r).is_dir()
    }
    found = choice._here()
    assert bundled <= set(found)
    assert {name: ALL[name] for name in bundled & set(ALL)} == {n: found[n] for n in bundled & set(ALL)}
    asked: list[bool] = []
    monkeypatch.setattr(hub, "locate", lambda name, *, network: asked.append(network) or _absent())
    assert choice._here() == {}
    assert not any(asked)
    with pytest.raises(CheckpointError, match=r"two species \(Na, Cl\) is on this machine: run `zoo fetch"):
        choose(salt())


def _absent() -> None:
    raise CheckpointError("not here")


def test_every_lattice_has_one_kind_and_a_colour() -> None:
    names = [name for lattices in KINDS.values() for name in lattices]
    assert len(set(names)) == len(names)
    assert set(names) <= set(COLORS)
    assert set(choice.EXCESS) == set(KINDS["compound"])


# -- verdicts ----------------------------------------------------------------------------------


def test_the_only_candidate_is_not_tried(install: Install) -> None:
    fakes = install(Fake("denoiser-elements", "fcc"), Fake("denoiser-binaries", "B2"))
    found = choose(bulk("Al", cubic=True).repeat(2))
    assert (found.name, found.reason, found.clean) == ("denoiser-elements", "one species (Al)", None)
    assert not fakes["denoiser-elements"].calls


def test_a_sure_one_ends_the_search_and_its_work_is_kept(install: Install) -> None:
    fakes = install(Fake("denoiser-binaries", "rocksalt", 0.95), Fake("denoiser-elements", "fcc", 1.0))
    found = choose(salt())
    assert found.name == "denoiser-binaries"
    assert found.reason == (
        "two species (Na, Cl), 100 % of 216 atoms in a crystal it knows (rocksalt), mean confidence 0.950"
    )
    assert found.clean is not None
    assert len(found.clean) == 216
    assert not fakes["denoiser-elements"].calls


@pytest.mark.parametrize(("confidence", "name"), [(0.75, "denoiser-binaries"), (0.9, "denoiser-elements")])
def test_a_later_one_has_to_be_clearly_better(install: Install, confidence: float, name: str) -> None:
    install(Fake("denoiser-binaries", "rocksalt", 0.7), Fake("denoiser-elements", "simple cubic", confidence))
    found = choose(salt())
    assert found.name == name
    other = {"denoiser-binaries": "elements 100 % (simple cubic), 0.750",
             "denoiser-elements": "binaries 100 % (rocksalt), 0.700"}[name]  # fmt: skip
    assert found.reason.endswith(f"; denoiser-{other}")


def test_a_solid_solution_is_no_compound_however_sure_its_denoiser_is(install: Install) -> None:
    install(Fake("denoiser-binaries", "L1_2", 1.0), Fake("denoiser-elements", "fcc", 0.9))
    assert choose(alloy(None)).name == "denoiser-binaries"
    for share in (0.02, 0.25, 0.5):
        found = choose(alloy(share))
        assert found.name == "denoiser-elements"
        assert "denoiser-binaries 100 % (L1_2), 1.000, order of its species 0." in found.reason
    some = alloy(None)
    some.numbers[[0, 1]] = some.numbers[[1, 0]]
    assert choose(some).name == "denoiser-binaries"


@pytest.mark.parametrize("lattice", KINDS["compound"])
def test_the_order_of_perfect_compounds_is_one(lattice: str) -> None:
    from training import lattices

    unit = lattices.conventional(lattice)
    crystal = unit.repeat(np.ceil(5 / unit.cell.lengths()).astype(int))
    names, all_of_it = np.array([lattice] * len(crystal)), np.ones(len(crystal), dtype=bool)
    assert choice._order(crystal, names, all_of_it) == pytest.approx(1)
    shuffled = crystal.copy()
    shuffled.numbers = np.random.default_rng(0).permutation(crystal.numbers)
    assert choice._order(shuffled, names, all_of_it) < 0.3
    assert choice._order(crystal, np.array(["fcc"] * len(crystal)), all_of_it) == 1


@pytest.mark.parametrize("atoms", [salt(), Atoms("X216", salt().positions, cell=salt().cell, pbc=True)])
def test_of_a_melt_the_first_by_composition(install: Install, atoms: Atoms) -> None:
    fakes = install(*(Fake(name, "") for name in ALL))
    first, second = choice._candidates(atoms)[1]
    found = choose(atoms)
    assert found.name == first
    assert f"none of 216 atoms in a crystal it knows; {second} none" in found.reason
    assert fakes[second].calls == [216]


@pytest.mark.parametrize(("crystal", "name"), [("rocksalt", "binaries"), ("", "elements")])
def test_one_without_a_verdict_is_taken_where_nothing_is_known(
    install: Install, crystal: str, name: str
) -> None:
    fakes = install(Fake("denoiser-binaries", crystal), Fake("denoiser-elements", None))
    found = choose(salt())
    assert found.name == f"denoiser-{name}"
    assert (found.clean is None) == (name == "elements")
    if name == "elements":
        assert "denoiser-binaries none; denoiser-elements gives no verdict" in found.reason
    assert not fakes["denoiser-elements"].calls


def test_one_that_cannot_is_out_and_if_all_are_the_first_one_says_why(install: Install) -> None:
    fakes = install(Fake("denoiser-binaries", "B2"), Fake("denoiser-elements", "fcc"))
    fakes["denoiser-binaries"].error = MissingExtraError("needs mace")
    found = choose(salt())
    assert found.name == "denoiser-elements"
    assert found.reason.endswith("; denoiser-binaries cannot: needs mace")
    fakes["denoiser-binaries"].error = StructureError("too exotic")
    fakes["denoiser-elements"].error = StructureError("not for me")
    with pytest.raises(StructureError, match="too exotic"):
        choose(salt())


def test_atoms_that_a_checkpoint_is_not_for_do_not_count(install: Install) -> None:
    class Sodium(Fake):
        def denoise(self, atoms: Atoms, steps: int = 10, callback: Any = None) -> Atoms:
            clean = super().denoise(atoms, steps, callback)
            clean.arrays["structure_type"] = np.where(atoms.numbers == 11, "fcc", "other")
            return clean

    install(Sodium("denoiser-binaries", "fcc", 0.95), Fake("denoiser-elements", None))
    assert "100 % of 108 of 216 atoms" in choose(salt()).reason


# -- a piece of a large structure --------------------------------------------------------------


@pytest.mark.parametrize("pbc", [True, (True, True, False), False])
@pytest.mark.parametrize("repeat", [(13, 13, 13), (5, 5, 50)])
def test_of_a_large_structure_a_piece_is_judged(
    pbc: bool | tuple[bool, ...], repeat: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "LARGEST", 4000)
    atoms = bulk("Cu", cubic=True).repeat(repeat)
    atoms.pbc = pbc
    atoms.set_cell(atoms.cell[:] + [[0, 0, 0], [5, 0, 0], [0, 3, 0]], scale_atoms=True)
    atoms.positions += 100.0
    piece, counts = choice._piece(atoms)
    assert choice.LARGEST / 3 < len(piece) <= choice.LARGEST
    assert counts.sum() > 200
    assert (piece.pbc <= atoms.pbc).all()
    if repeat == (5, 5, 50):  # only the long side is cut
        assert piece.pbc.tolist() == [*atoms.pbc[:2], False]
    # What counts has as many neighbours there as in the whole.
    atoms.set_array("whole", coordination(atoms))
    piece, counts = choice._piece(atoms)
    np.testing.assert_array_equal(coordination(piece)[counts], piece.arrays["whole"][counts])
    assert (coordination(piece) != piece.arrays["whole"]).any()


def coordination(atoms: Atoms) -> np.ndarray:
    (found,) = neighbor_searches(atoms.positions, atoms.cell[:], np.array(atoms.pbc), 3.5)
    return np.bincount(found[1], minlength=len(atoms))


def test_a_piece_is_not_taken_from_the_vacuum_and_its_work_is_not_kept(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "LARGEST", 4000)
    atoms = salt(9)
    atoms.cell[2] *= 4  # the slab is at one end of a long cell
    piece, counts = choice._piece(atoms)
    assert len(piece) > 1000
    assert counts.sum() > choice.FEWEST
    fakes = install(Fake("denoiser-binaries", "rocksalt", 0.95), Fake("denoiser-elements", None))
    found = choose(atoms)
    assert found.clean is None
    assert fakes["denoiser-binaries"].calls == [len(piece)]
    assert f"100 % of {counts.sum():,} of 5,832 atoms" in found.reason


def test_what_has_no_inside_is_not_judged(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "LARGEST", 200)
    fakes = install(Fake("denoiser-binaries", "rocksalt"), Fake("denoiser-elements", "fcc"))
    found = choose(salt(4))
    assert found.name == "denoiser-binaries"
    assert found.reason == "two species (Na, Cl); no piece of 512 atoms is thick enough to be tried"
    assert not any(fake.calls for fake in fakes.values())


# -- the command line --------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with FrameWriter("salt.extxyz") as writer:
        for k in range(3):
            writer.write(noised(salt(), 0.01, k))
    return tmp_path


def run(*arguments: str) -> int:
    return cli.main(list(arguments))


def test_the_command_says_what_it_chose_and_denoises_every_frame_once(
    install: Install, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes = install(Fake("denoiser-binaries", "rocksalt", 0.95), Fake("denoiser-elements", None))
    assert run("denoise", "salt.extxyz", "-o", "out.extxyz") == 0
    said, summary = capsys.readouterr().err.splitlines()
    assert said == (
        "chose denoiser-binaries: two species (Na, Cl), 100 % of 216 atoms in a crystal it knows (rocksalt), "
        "mean confidence 0.950"
    )
    assert summary.startswith("3 frames, 648 atoms")
    assert fakes["denoiser-binaries"].calls == [216] * 3
    before, after = list(read_frames("salt.extxyz")), list(read_frames("out.extxyz"))
    assert len(after) == 3
    for one, two in zip(before, after, strict=True):
        np.testing.assert_allclose(one.positions, two.positions, atol=1e-7)


def test_the_choice_is_of_the_first_frame_that_is_asked_for(install: Install, folder: Path) -> None:
    fakes = install(Fake("denoiser-binaries", "", 0.95), Fake("denoiser-elements", None))
    assert run("denoise", "salt.extxyz", "-o", "out.extxyz", "--start", "1", "-q") == 0
    assert fakes["denoiser-binaries"].calls == [216]
    assert fakes["denoiser-elements"].calls == [216] * 2
    before, after = list(read_frames("salt.extxyz")), list(read_frames("out.extxyz"))
    assert np.allclose(before[1].positions, after[0].positions, atol=1e-7)


def test_quiet_says_nothing_and_a_name_is_taken_as_it_is(
    install: Install, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes = install(Fake("denoiser-binaries", "rocksalt", 0.95), Fake("denoiser-elements", None))
    assert run("denoise", "salt.extxyz", "-o", "out.extxyz", "-q") == 0
    assert capsys.readouterr().err == ""
    from zoo.denoiser import Denoiser

    monkeypatch.setattr(choice, "choose", None)
    monkeypatch.setattr(Denoiser, "from_pretrained", fakes.__getitem__)
    assert run("denoise", "salt.extxyz", "-o", "two.extxyz", "-c", "denoiser-elements") == 0
    assert "chose" not in capsys.readouterr().err
    assert fakes["denoiser-elements"].calls == [216] * 3


def test_an_error_of_all_candidates_names_the_frame(
    install: Install, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for fake in install(Fake("denoiser-binaries", "B2"), Fake("denoiser-elements", "fcc")).values():
        fake.error = StructureError(f"nothing for {fake.name}")
    assert run("denoise", "salt.extxyz", "-o", "out.extxyz") == 1
    assert capsys.readouterr().err == "error: salt.extxyz, frame 1: nothing for denoiser-binaries\n"
    assert [path.name for path in folder.iterdir()] == ["salt.extxyz"]


def test_analyze_chooses_too(install: Install, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ovito")
    fakes = install(Fake("denoiser-binaries", "rocksalt", 0.95), Fake("denoiser-elements", None))
    assert run("analyze", "salt.extxyz", "--stop", "2") == 0
    assert capsys.readouterr().err.startswith("chose denoiser-binaries: two species (Na, Cl), 100 %")
    assert fakes["denoiser-binaries"].calls == [216] * 2
    assert run("analyze", "salt.extxyz", "--stop", "2", "--no-denoise") == 0
    assert capsys.readouterr().err == ""
    assert fakes["denoiser-binaries"].calls == [216] * 2


# -- the released ones -------------------------------------------------------------------------


@pytest.fixture
def released() -> None:
    for name in ("denoiser-elements", "denoiser-binaries"):
        if not registry.bundled_folder(registry.find(name)).is_dir() and not os.environ.get("CI"):
            pytest.skip(f"{name} has not been trained in this working copy")


@pytest.mark.slow
@pytest.mark.usefixtures("released")
@pytest.mark.parametrize(
    ("crystal", "sigma", "name"),
    [
        (salt(), 0.25, "denoiser-binaries"),
        (alloy(None), 0.2, "denoiser-binaries"),
        (alloy(0.3), 0.2, "denoiser-elements"),
        (alloy(0.02), 0.2, "denoiser-elements"),
        (bulk("Al", cubic=True).repeat(3), 0.25, "denoiser-elements"),
    ],
    ids=["rocksalt", "L1_2", "solid solution", "antisites", "one species"],
)
def test_released_denoisers_are_chosen_for_what_they_are_for(crystal: Atoms, sigma: float, name: str) -> None:
    denoiser, reason = zoo.choose_denoiser(noised(crystal, sigma))
    assert denoiser.name == name
    if name == "denoiser-binaries":
        assert "100 % of" in reason


@pytest.mark.slow
@pytest.mark.usefixtures("released")
def test_types_of_a_dump_are_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hot = noised(salt(), 0.25)
    hot.set_array("type", np.where(hot.numbers == 11, 1, 2))
    hot.numbers[:] = 0
    with FrameWriter(tmp_path / "salt.dump") as writer:
        writer.write(hot)
    assert run("denoise", str(tmp_path / "salt.dump"), "-o", str(tmp_path / "out.extxyz")) == 0
    assert capsys.readouterr().err.startswith(
        "chose denoiser-binaries: 2 LAMMPS types (name them with --species), 100 % of 216 atoms"
    )
    (clean,) = read_frames(tmp_path / "out.extxyz")
    assert set(clean.arrays["structure_type"]) == {"rocksalt"}
