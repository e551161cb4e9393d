"""Labels, defects and distances: against lattices whose answer is known exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from zoo.analysis import crystals
from zoo.analysis.crystals import STRUCTURES, structure_fractions, structure_types
from zoo.errors import MissingExtraError, StructureError

pytest.importorskip("ovito")


def _hexagonal_diamond() -> Atoms:
    one = bulk("C", "hcp", a=2.5, c=2.5 * np.sqrt(8 / 3), orthorhombic=True)
    two = one.copy()
    two.positions[:, 2] += 3 / 8 * one.cell[2, 2]
    return one + two


LATTICES: dict[str, Atoms] = {
    "fcc": bulk("Cu", "fcc", a=3.615, cubic=True),
    "hcp": bulk("Mg", "hcp", a=3.21, c=3.21 * np.sqrt(8 / 3), orthorhombic=True),
    "bcc": bulk("Fe", "bcc", a=2.866, cubic=True),
    "simple cubic": bulk("NaCl", "rocksalt", a=5.64, cubic=True),
    "cubic diamond": bulk("Si", "diamond", a=5.43, cubic=True),
    "hexagonal diamond": _hexagonal_diamond(),
}
PRIMITIVE: dict[str, Atoms] = {
    "fcc": bulk("Cu", "fcc", a=3.615),
    "hcp": bulk("Mg", "hcp", a=3.21, c=5.24),
    "bcc": bulk("Fe", "bcc", a=2.866),
    "simple cubic": bulk("Po", "sc", a=3.35),
    "cubic diamond": bulk("Si", "diamond", a=5.43),
}


def test_the_label_table_is_the_contract() -> None:
    assert STRUCTURES == (
        "other", "fcc", "hcp", "bcc", "simple cubic", "cubic diamond", "hexagonal diamond",
    )  # fmt: skip
    assert len(set(crystals.COLORS)) == len(STRUCTURES)


@pytest.mark.parametrize("noise", [0.0, 0.03])
@pytest.mark.parametrize("name", LATTICES)
def test_each_lattice_gets_its_own_label(name: str, noise: float) -> None:
    atoms = LATTICES[name].repeat((4, 4, 4))
    distance = np.linalg.norm(
        atoms.get_distances(0, range(1, len(atoms)), mic=True, vector=True), axis=1
    ).min()
    atoms.rattle(noise * distance, seed=1)
    labels = structure_types(atoms)
    assert labels.dtype == np.int64 and labels.shape == (len(atoms),)
    assert (labels == STRUCTURES.index(name)).all()


@pytest.mark.parametrize("name", PRIMITIVE)
def test_primitive_cells_see_all_their_images(name: str) -> None:
    assert (structure_types(PRIMITIVE[name]) == STRUCTURES.index(name)).all()


def test_frame_of_the_cell_does_not_matter() -> None:
    atoms = LATTICES["fcc"].repeat((4, 4, 4))
    atoms.rattle(0.12, seed=3)
    expected = structure_types(atoms)
    assert 0 < (expected == crystals.FCC).mean() < 1  # a mixture, so that the comparison means something
    moved = atoms.copy()
    moved.positions += [100.0, -50.0, 33.0]
    skewed = atoms.copy()
    skewed.set_cell(np.array([[1, 0, 0], [3, 1, 0], [-2, 5, 1]]) @ atoms.cell.array)
    left_handed = atoms.copy()
    left_handed.set_cell(atoms.cell.array[[1, 0, 2]])
    for same in (moved, skewed, left_handed):
        assert (structure_types(same) == expected).all()


def test_cells_missing_along_open_directions_do_not_matter() -> None:
    slab = LATTICES["fcc"].repeat((3, 3, 3))
    slab.pbc = [True, True, False]
    expected = structure_types(slab)
    assert set(expected) == {crystals.OTHER, crystals.FCC}  # two surfaces, fcc between them
    slab.cell[2] = 0.0
    slab.positions[:, 2] += 500.0
    assert (structure_types(slab) == expected).all()
    cluster = LATTICES["fcc"].repeat((3, 3, 3))
    cluster.pbc = False
    expected = structure_types(cluster)
    cluster.cell = None
    assert (structure_types(cluster) == expected).all()


def test_surface_atoms_of_diamond_are_other_unless_asked() -> None:
    slab = LATTICES["cubic diamond"].repeat((4, 4, 4))
    slab.pbc = [True, True, False]
    strict = structure_types(slab)
    lenient = structure_types(slab, partial_diamond=True)
    assert (strict == crystals.OTHER).sum() > (lenient == crystals.OTHER).sum()
    assert set(strict) == {crystals.OTHER, crystals.CUBIC_DIAMOND}


def test_single_classifiers_use_the_same_codes() -> None:
    sc, cd = LATTICES["simple cubic"].repeat((3, 3, 3)), LATTICES["cubic diamond"].repeat((3, 3, 3))
    assert (crystals.adaptive_cna(cd) == crystals.OTHER).all()
    assert (crystals.diamond(cd) == crystals.CUBIC_DIAMOND).all()
    assert (crystals.diamond(sc) == crystals.OTHER).all()
    for name in LATTICES:
        assert (crystals.ptm(LATTICES[name].repeat((3, 3, 3))) == STRUCTURES.index(name)).all()
    assert (crystals.ptm(sc, structures=("fcc", "bcc")) == crystals.OTHER).all()
    with pytest.raises(StructureError, match="no template"):
        crystals.ptm(sc, structures=("quartz",))


def test_random_atoms_are_no_crystal() -> None:
    generator = np.random.default_rng(0)
    gas = Atoms("Ar500", positions=generator.random((500, 3)) * 20, cell=[20, 20, 20], pbc=True)
    assert (structure_types(gas) == crystals.OTHER).mean() > 0.995


def test_input_is_left_alone() -> None:
    atoms = LATTICES["bcc"].repeat((3, 3, 3))
    before = atoms.copy()
    structure_types(atoms)
    assert atoms == before and set(atoms.arrays) == set(before.arrays)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_atoms_are_other(n: int) -> None:
    atoms = Atoms(f"Cu{n}" if n else "", positions=np.arange(3 * n).reshape(n, 3))
    assert (structure_types(atoms) == crystals.OTHER).all()


def test_bad_structures_are_named() -> None:
    with pytest.raises(StructureError, match="not finite"):
        structure_types(Atoms("Cu", [[np.nan, 0, 0]]))
    with pytest.raises(StructureError, match="singular"):
        structure_types(Atoms("Cu", [[0, 0, 0]], pbc=True))


def test_fractions_from_labels_and_from_atoms() -> None:
    fractions = structure_fractions(np.array([1, 1, 0, 5]))
    assert tuple(fractions) == STRUCTURES
    assert fractions["fcc"] == 0.5 and fractions["other"] == 0.25 and fractions["cubic diamond"] == 0.25
    assert structure_fractions(LATTICES["bcc"])["bcc"] == 1.0
    assert sum(structure_fractions(np.zeros(0, int)).values()) == 0.0
    with pytest.raises(StructureError):
        structure_fractions([7])


def test_radial_distribution_counts_every_image() -> None:
    # 0.005 Å off the lattice distances, so that rounding cannot move pairs between bins.
    r_max, bins = 8.0, 400
    small = crystals.radial_distribution(bulk("Cu", "fcc", a=3.613), r_max, bins)
    large = crystals.radial_distribution(
        bulk("Cu", "fcc", a=3.613, cubic=True).repeat((5, 5, 5)), r_max, bins
    )
    np.testing.assert_allclose(small[1], large[1], atol=1e-8)
    r, g = small
    step = r[1] - r[0]
    density = 4 / 3.613**3
    neighbors = np.cumsum(g * density * 4 / 3 * np.pi * ((r + step / 2) ** 3 - (r - step / 2) ** 3))
    assert neighbors[r < 3.0][-1] == pytest.approx(12)
    assert neighbors[r < 4.0][-1] == pytest.approx(18)


def test_radial_distribution_of_an_ideal_gas_is_one() -> None:
    generator = np.random.default_rng(1)
    gas = Atoms("Ar3000", positions=generator.random((3000, 3)) * 30, cell=[30, 30, 30], pbc=True)
    _, g = crystals.radial_distribution(gas, 8.0, 8)
    np.testing.assert_allclose(g[2:], 1.0, atol=0.05)


def test_displacements_cross_the_boundary() -> None:
    before = LATTICES["fcc"].repeat((2, 2, 2))
    after = before.copy()
    after.positions += [0.1, 0.0, -0.2]
    after.wrap()
    np.testing.assert_allclose(
        crystals.displacements(before, after), np.tile([0.1, 0.0, -0.2], (len(before), 1)), atol=1e-9
    )
    with pytest.raises(StructureError):
        crystals.displacements(before, after[:-1])


def test_wigner_seitz_counts_vacancies_and_interstitials() -> None:
    reference = LATTICES["bcc"].repeat((4, 4, 4))
    atoms = reference.copy()
    del atoms[[10, 20]]
    atoms += Atoms("Fe", [[1.433, 1.433, 0.0]])
    atoms.rattle(0.1, seed=4)
    assert crystals.wigner_seitz(reference, reference) == (0, 0)
    assert crystals.wigner_seitz(atoms, reference) == (2, 1)


def test_a_perfect_crystal_has_no_dislocations() -> None:
    assert crystals.dislocations(LATTICES["fcc"].repeat((5, 5, 5)), "fcc") == []
    with pytest.raises(StructureError, match="no lattice"):
        crystals.dislocations(LATTICES["fcc"], "quartz")


def test_missing_ovito_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ovito", None)
    with pytest.raises(MissingExtraError, match=r"analysis"):
        structure_types(LATTICES["fcc"])


def test_picture_is_written_and_nothing_else(tmp_path: Path) -> None:
    from zoo.analysis.pictures import before_after

    before = LATTICES["fcc"].repeat((4, 4, 4))
    before.rattle(0.2, seed=0)
    after = LATTICES["fcc"].repeat((4, 4, 4))
    path = tmp_path / "both.png"
    before_after(before, after, structure_types(before), structure_types(after), path, title="Cu", pixels=200)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 10_000
    assert [p.name for p in tmp_path.iterdir()] == ["both.png"]


def test_both_panels_show_the_same_images() -> None:
    from zoo.analysis.pictures import _same_images

    after = LATTICES["fcc"].repeat((4, 4, 4))
    after.positions += 7.2  # about half a cell: where a minimum image could go either way
    before = after.copy()
    before.rattle(0.1, seed=5)
    before.wrap()
    shown_before, shown_after = _same_images(before, after)
    moved = shown_after.positions - shown_before.positions
    np.testing.assert_allclose(moved, crystals.displacements(before, after), atol=1e-9)
    scaled = shown_after.get_scaled_positions(wrap=False)
    assert scaled.min() > 0.01 and scaled.max() < 0.99  # cut between planes
