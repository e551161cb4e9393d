"""Neighbour lists: right against ASE for every kind of cell, and the same whatever the slabs."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import primitive_neighbor_list

from zoo import graph
from zoo.graph import Graph, neighbor_graph
from zoo.pairs import complete_cell

OBLIQUE = np.array([[4.0, 0, 0], [3.0, 4.5, 0], [-2.0, 3.0, 5.0]])
EVERY_PBC = list(itertools.product((False, True), repeat=3))


def rows(i: npt.ArrayLike, j: npt.ArrayLike, d: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Edges in an order of their own: by i, then by vector (rounded, so that noise cannot reorder)."""
    table = np.column_stack([i, j, d])
    key = np.round(table, 2) + 0.0
    return table[np.lexsort(key.T[[4, 3, 2, 1, 0]])]


def edges(g: Graph, scale: float = 1.0) -> npt.NDArray[np.float64]:
    i = np.repeat(np.arange(g.n_atoms), np.diff(g.offsets.numpy()))
    return rows(i, g.neighbors.numpy(), g.vectors.numpy() * scale)


def reference(
    positions: npt.NDArray[np.float64], cell: npt.NDArray[np.float64], pbc: tuple[bool, ...], radius: float
) -> npt.NDArray[np.float64]:
    box = complete_cell(cell, np.array(pbc))
    i, j, d = primitive_neighbor_list("ijD", pbc, box, positions, radius, self_interaction=False)
    return rows(i, j, d)


def agree(
    positions: npt.NDArray[np.float64], cell: npt.NDArray[np.float64], pbc: tuple[bool, ...], radius: float
) -> None:
    found = edges(neighbor_graph(positions, cell, pbc, radius / 2.5, 2.5), 2.5)
    expected = reference(positions, cell, pbc, radius)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("pbc", EVERY_PBC)
@pytest.mark.parametrize("cell", [np.diag([4.0, 5.0, 6.0]), OBLIQUE], ids=["small", "oblique"])
def test_neighbors_are_those_of_ase(cell: npt.NDArray[np.float64], pbc: tuple[bool, ...]) -> None:
    # Cells smaller than the cutoff, atoms far outside of them.
    positions = np.random.default_rng(1).normal(size=(9, 3)) * 6
    agree(positions, cell, pbc, 5.0)


@pytest.mark.parametrize("pbc", [(True, True, False), (True, False, False), (False, False, False)])
def test_free_axes_need_no_vector(pbc: tuple[bool, ...]) -> None:
    cell = np.where(np.array(pbc)[:, None], OBLIQUE, 0.0)
    positions = np.random.default_rng(2).normal(size=(9, 3)) * 4
    agree(positions, cell, pbc, 4.0)


@pytest.mark.parametrize(
    ("crystal", "radius", "count"),
    [
        (bulk("Cu", "fcc", a=1.0), 0.8, 12),
        (bulk("Fe", "bcc", a=1.0), 1.1, 14),
        (bulk("Po", "sc", a=1.0), 1.2, 6),
        (bulk("Si", "diamond", a=1.0), 0.5, 4),
    ],
    ids=["fcc", "bcc", "sc", "diamond"],
)
def test_primitive_cells_see_all_images(crystal: Atoms, radius: float, count: int) -> None:
    g = neighbor_graph(crystal.positions, crystal.cell[:], True, radius)
    assert np.diff(g.offsets.numpy()).tolist() == [count] * len(crystal)


def test_turns_with_the_structure() -> None:
    atoms = bulk("Cu").repeat(3)
    atoms.rattle(0.1, seed=3)
    before = neighbor_graph(atoms.positions, atoms.cell[:], True, 1.65, 2.3)
    q, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))
    q *= np.linalg.det(q)
    after = neighbor_graph(atoms.positions @ q, atoms.cell[:] @ q, True, 1.65, 2.3)
    i = np.repeat(np.arange(len(atoms)), np.diff(before.offsets.numpy()))
    np.testing.assert_array_equal(before.offsets, after.offsets)
    np.testing.assert_allclose(rows(i, before.neighbors, before.vectors.numpy() @ q), edges(after), atol=2e-6)


def test_rows_are_sorted_and_types_compact() -> None:
    atoms = bulk("Cu", cubic=True).repeat(2)
    g = neighbor_graph(atoms.positions, atoms.cell[:], True, 1.65, 2.3)
    assert (str(g.neighbors.dtype), str(g.vectors.dtype)) == ("torch.int32", "torch.float32")
    assert g.offsets[0] == 0
    assert g.offsets[-1] == g.n_edges == len(g.vectors)


@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False), (False, True, True), (False,) * 3])
@pytest.mark.parametrize("kind", ["rattled", "perfect", "oblique"])
def test_slab_by_slab_finds_the_same_edges(
    kind: str, pbc: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "oblique":
        atoms = bulk("Cu").repeat((18, 6, 6))
        turns = np.random.default_rng(5).integers(-2, 3, (len(atoms), 3))
        atoms.positions += np.where(pbc, turns, 0) @ atoms.cell[:]
    else:
        atoms = bulk("Cu", cubic=True).repeat((10, 4, 4))  # whole planes of atoms on the slabs' faces
    if kind == "rattled":
        atoms.rattle(0.1, seed=6)
    whole = neighbor_graph(atoms.positions, atoms.cell[:], pbc, 1.65, 2.28)
    calls = 0
    search = graph._vesin

    def counted(*args: object) -> object:
        nonlocal calls
        calls += 1
        return search(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(graph, "_vesin", counted)
    monkeypatch.setattr(graph, "ATOMS_PER_SEARCH", 200)
    pieces = neighbor_graph(atoms.positions, atoms.cell[:], pbc, 1.65, 2.28)
    assert calls > 2
    np.testing.assert_array_equal(whole.offsets, pieces.offsets)
    np.testing.assert_allclose(edges(whole), edges(pieces), atol=2e-6)


def test_an_atom_that_has_flown_off_does_not_choose_the_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thin plate is cut along its length, so that no search holds more than its share."""
    plate = bulk("Cu", cubic=True).repeat((12, 6, 1))
    plate.pbc = False
    plate.positions[0, 2] += 10_000.0
    monkeypatch.setattr(graph, "ATOMS_PER_SEARCH", 60)
    searches = graph.neighbor_searches(plate.positions, plate.cell.array, plate.pbc, 4.0)
    sizes = [len(core) for core, *_ in searches]
    assert len(sizes) == 5
    assert max(sizes) < 0.4 * len(plate)


def test_a_cell_too_small_for_slabs_is_searched_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = bulk("Cu", cubic=True).repeat(2)
    whole = neighbor_graph(atoms.positions, atoms.cell[:], True, 1.65, 2.28)
    monkeypatch.setattr(graph, "ATOMS_PER_SEARCH", 4)
    np.testing.assert_array_equal(
        edges(whole), edges(neighbor_graph(atoms.positions, atoms.cell[:], True, 1.65, 2.28))
    )


def test_padded_rows_hold_exactly_the_edges() -> None:
    positions = np.random.default_rng(7).random((30, 3)) * 4
    g = neighbor_graph(positions, np.zeros((3, 3)), False, 1.3)
    for start, stop in ((0, 30), (0, 7), (13, 30), (29, 30)):
        index, vectors, mask = g.padded(start, stop)
        assert vectors.shape == (stop - start, 3, mask.shape[1])
        for row, atom in enumerate(range(start, stop)):
            here = slice(int(g.offsets[atom]), int(g.offsets[atom + 1]))
            np.testing.assert_array_equal(index[row][mask[row]], g.neighbors[here])
            np.testing.assert_array_equal(vectors[row][:, mask[row]].T, g.vectors[here])
        assert int(index.min()) >= 0
        assert int(index.max()) < 30


def test_atoms_without_neighbors_have_empty_rows() -> None:
    g = neighbor_graph(np.array([[0.0, 0, 0], [9.0, 0, 0]]), np.zeros((3, 3)), False, 2.0)
    index, vectors, mask = g.padded(0, 2)
    assert g.n_edges == 0
    assert not mask.any()
    assert index.shape == (2, 1)
    assert vectors.shape == (2, 3, 1)


def test_a_long_radius_along_free_axes_is_no_trap() -> None:
    # Binning a dimer without thickness by its distance would not end.
    g = neighbor_graph(np.array([[0.0, 0, 0], [2e4, 0, 0]]), np.zeros((3, 3)), False, 3e4)
    assert g.n_edges == 2


@pytest.mark.parametrize("pbc", EVERY_PBC)
def test_completed_cells_are_invertible(pbc: tuple[bool, ...]) -> None:
    box = complete_cell(np.where(np.array(pbc)[:, None], OBLIQUE, 0.0), np.array(pbc))
    assert abs(np.linalg.det(box)) > 0.5
    np.testing.assert_array_equal(box[np.array(pbc)], OBLIQUE[np.array(pbc)])
