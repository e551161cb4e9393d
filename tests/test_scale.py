"""The length scale: exact in dense cells, within a few per cent of the bulk's wherever there is vacuum."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms

from training.lattices import LATTICES, conventional, spacing_of
from zoo.errors import StructureError
from zoo.scale import length_scale

TRUE = 2.5


def crystal(lattice: str, n_atoms: int = 300) -> Atoms:
    unit = conventional(lattice)
    block = unit.repeat(round((n_atoms / len(unit)) ** (1 / 3)))
    block.set_cell(block.cell * TRUE, scale_atoms=True)
    block.pbc = True
    return block


def scale(atoms: Atoms) -> float:
    return length_scale(atoms.positions, atoms.cell[:], atoms.pbc)


@pytest.mark.parametrize("lattice", LATTICES)
@pytest.mark.parametrize("noise", [0.0, 0.15])
def test_dense_cells_take_the_volume_exactly(lattice: str, noise: float) -> None:
    atoms = crystal(lattice)
    step = noise * spacing_of(lattice) * TRUE
    atoms.positions += np.random.default_rng(0).normal(0, step, (len(atoms), 3)) if noise else 0
    assert scale(atoms) == pytest.approx(TRUE, rel=1e-12)


def test_primitive_and_single_atom_cells() -> None:
    assert scale(Atoms("Po", cell=[3, 3, 3], pbc=True)) == pytest.approx(3.0, rel=1e-12)
    fcc = Atoms("Cu2", [[0, 0, 0], [1.8, 1.8, 0]], cell=[[3.6, 0, 0], [0, 3.6, 0], [0, 1.8, 1.8]], pbc=True)
    assert scale(fcc) == pytest.approx((3.6**2 * 1.8 / 2) ** (1 / 3), rel=1e-12)


@pytest.mark.parametrize("lattice", LATTICES)
@pytest.mark.parametrize(
    "kind", ["slab", "slab, no vector", "slab in vacuum", "wire", "cluster", "boxed", "void"]
)
def test_vacuum_does_not_count(lattice: str, kind: str) -> None:
    atoms = crystal(lattice)
    if kind.startswith("slab"):
        atoms.pbc = (True, True, False)
    if kind == "slab, no vector":
        atoms.cell[2] = 0
    elif kind == "slab in vacuum":
        atoms.center(vacuum=20, axis=2)
        atoms.pbc = True
    elif kind == "wire":
        atoms.pbc = (False, False, True)
    elif kind == "cluster":
        atoms.pbc = False
        atoms.cell = np.zeros((3, 3))
    elif kind == "boxed":
        atoms.center(vacuum=20)
        atoms.pbc = True
    elif kind == "void":
        atoms = crystal(lattice, 1500)
        middle = atoms.cell[:].sum(0) / 2
        atoms = atoms[np.linalg.norm(atoms.positions - middle, axis=1) > 0.25 * atoms.cell.lengths().min()]
    assert scale(atoms) == pytest.approx(TRUE, rel=0.03)


def test_rotation_translation_and_order_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    atoms = crystal("fcc")
    atoms.rattle(0.1, seed=2)
    atoms.pbc = False
    before = scale(atoms)
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    moved = atoms[rng.permutation(len(atoms))]
    moved.positions = moved.positions @ q + [70, -30, 5]
    assert scale(moved) == pytest.approx(before, rel=2e-3)
    atoms.pbc = True
    atoms.positions += rng.integers(-3, 4, (len(atoms), 3)) @ atoms.cell[:]
    assert scale(atoms) == pytest.approx(TRUE, rel=1e-12)


def test_scales_with_lengths() -> None:
    atoms = crystal("bcc")
    atoms.pbc = (True, True, False)
    assert length_scale(3 * atoms.positions, 3 * atoms.cell[:], atoms.pbc) == pytest.approx(
        3 * scale(atoms), rel=2e-3
    )


@pytest.mark.parametrize("distance", [1.0, 50.0, 2000.0])
@pytest.mark.parametrize("boxed", [False, True])
def test_two_atoms_have_the_scale_of_their_distance(distance: float, boxed: bool) -> None:
    atoms = Atoms("H2", positions=[[0, 0, 0], [0, 0, distance]])
    if boxed:
        atoms.center(vacuum=10 * distance)
        atoms.pbc = True
    assert 0.5 * distance < scale(atoms) < 2 * distance


@pytest.mark.parametrize(
    "positions",
    [
        [[0, 0, 0], [2, 0, 0], [0, 2, 0], [2, 2, 0]],
        [[0, 0, 2 * i] for i in range(5)],
        [[2 * i, 2 * j, 0] for i in range(6) for j in range(6)],
    ],
    ids=["square", "chain", "sheet"],
)
def test_flat_and_linear_clusters_are_finite(positions: list[list[float]]) -> None:
    assert 1.0 < scale(Atoms(["H"] * len(positions), positions)) < 4.0


def test_a_cell_without_volume_is_refused() -> None:
    with pytest.raises(StructureError, match="no volume"):
        length_scale(np.eye(3), np.array([[4.0, 0, 0], [8.0, 0, 0], [0, 0, 4.0]]), True)


@pytest.mark.parametrize("far", [200.0, 1e4, 1e8])
def test_an_atom_that_has_flown_off_does_not_count(far: float) -> None:
    from ase.cluster import Icosahedron

    ball = Icosahedron("Cu", 2)
    flake = np.array([(a + b / 2 + dx, b * 0.866 + dy, 0.0) for a in range(6) for b in range(6)
                      for dx, dy in ((0, 0), (0.5, 0.289))]) * 2.46  # fmt: skip
    for body in (ball.positions, flake):
        alone = length_scale(body, np.zeros((3, 3)), False)
        more = np.concatenate([body, body[:1] + [0, far / 2, far]])
        assert length_scale(more, np.zeros((3, 3)), False) == pytest.approx(alone, rel=0.1)
