"""`zoo.pairs` against all pairs of all images, and where atoms are far from one another."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from zoo.pairs import complete_cell, pairs

OBLIQUE = np.array([[7.0, 0, 0], [2.5, 6.0, 0], [-1.0, 1.5, 8.0]])


def every_pair(positions, cell, pbc, radius):
    """Sorted (i, j, rounded vector) of all pairs, from three images each way."""
    box = np.where(np.array(pbc)[:, None], cell, 0.0)
    found = []
    for shift in product(*(range(-3, 4) if p else (0,) for p in pbc)):
        d = positions[None] + np.array(shift) @ box - positions[:, None]
        near = np.linalg.norm(d, axis=2) < radius
        if not any(shift):
            np.fill_diagonal(near, False)
        found += [(int(i), int(j), *np.round(d[i, j], 6)) for i, j in np.argwhere(near)]
    return sorted(found)


def of(positions, cell, pbc, radius, **more):
    i, j, d = pairs(positions, cell, pbc, radius, **more)
    return sorted((int(a), int(b), *np.round(v, 6)) for a, b, v in zip(i, j, d, strict=True))


@pytest.mark.parametrize("pbc", list(product((True, False), repeat=3)))
@pytest.mark.parametrize("cell", [np.diag([7.0, 6.0, 8.0]), OBLIQUE], ids=["orthogonal", "oblique"])
def test_all_pairs_and_no_others(pbc, cell):
    rng = np.random.default_rng(0)
    # Across some cells, so that atoms lie outside; and thin along the last axis.
    positions = rng.uniform(-1, 2, (40, 3)) @ cell * [1, 1, 0.3]
    assert of(positions, cell, pbc, 3.1) == every_pair(positions, cell, pbc, 3.1)


@pytest.mark.parametrize("pbc", [(True, True, False), (False, True, False), (False, False, False)])
@pytest.mark.parametrize("far", [50.0, 1e6, 1e12])
def test_an_atom_that_has_flown_off_changes_nothing_and_takes_no_time(pbc, far):
    rng = np.random.default_rng(1)
    positions = rng.random((30, 3)) @ OBLIQUE
    box = complete_cell(OBLIQUE, np.array(pbc))
    away = (~np.array(pbc)).astype(float) @ box * far
    more = np.concatenate([positions, positions[:1] + away, positions[:1] - 2 * away])
    # In pieces, so that the gap is closed between many atoms, too.
    more = np.concatenate([more, more[:20] + 5 * away])
    there = of(positions, OBLIQUE, pbc, 3.1)
    assert [pair for pair in of(more, OBLIQUE, pbc, 3.1) if max(pair[:2]) < 30] == there
    i, j, _ = pairs(more, OBLIQUE, pbc, 3.1)
    alike = {(a - 32, b - 32) for a, b in zip(i.tolist(), j.tolist(), strict=True) if min(a, b) >= 32}
    assert alike == {(a, b) for a, b, *_ in there if max(a, b) < 20}
    lonely = (i >= 30) & (i < 32)
    assert (i[lonely] == j[lonely]).all()  # nobody but their own images


def test_a_flat_body_and_a_large_radius():
    dimer = np.array([[0.0, 0, 0], [0, 0, 1000.0]])
    i, j, d = pairs(dimer, np.zeros((3, 3)), False, 1500.0)
    assert sorted(zip(i.tolist(), j.tolist(), strict=True)) == [(0, 1), (1, 0)]
    assert np.allclose(np.abs(d), [0, 0, 1000])
    assert len(pairs(dimer, np.zeros((3, 3)), False, 999.0)[0]) == 0


@pytest.mark.parametrize("pbc", [True, False, (True, True, False)])
def test_no_atoms_have_no_pairs(pbc):
    assert [len(x) for x in pairs(np.zeros((0, 3)), OBLIQUE, pbc, 3.0)] == [0, 0, 0]


def test_order_half_lists_and_quantities():
    rng = np.random.default_rng(2)
    positions = rng.random((50, 3)) @ OBLIQUE
    i, j, d, length, shift = pairs(positions, OBLIQUE, (True, True, False), 3.0, "ijDdS", ordered=True)
    assert i.dtype == np.int64
    assert (np.diff(i) >= 0).all()
    assert np.allclose(np.linalg.norm(d, axis=1), length)
    assert not shift[:, 2].any()
    assert np.allclose(positions[j] + shift @ OBLIQUE - positions[i], d)
    assert len(pairs(positions, OBLIQUE, (True, True, False), 3.0, full=False)[0]) * 2 == len(i)
