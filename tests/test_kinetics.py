"""Torsions, their histograms, and the Jensen-Shannon divergence, against MDTraj and by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.analysis.kinetics import jensen_shannon, torsion_histogram, torsions

PDB = Path(__file__).parent / "data" / "molecules" / "alanine-dipeptide.pdb"


def wrapped(degrees: Any) -> Any:
    return (np.asarray(degrees) + 180.0) % 360.0 - 180.0


def chain(angle: float) -> np.ndarray:
    """Four atoms of that torsion: seen along the middle bond, from front to back, clockwise is positive."""
    turn = math.radians(angle)
    return np.array([[1.0, 0, -0.3], [0, 0, 0], [0, 0, 1.5], [2 * math.cos(turn), 2 * math.sin(turn), 1.9]])


def rotation(seed: int) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


# --- torsions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("angle", [0.0, 1e-3, 60.0, 90.0, 179.9, -0.5, -60.0, -120.0, -179.9])
def test_the_sign_is_that_of_iupac(angle: float) -> None:
    assert torsions(chain(angle), [(0, 1, 2, 3)])[0] == pytest.approx(angle, abs=1e-9)
    assert torsions(chain(angle), [(3, 2, 1, 0)])[0] == pytest.approx(angle, abs=1e-9)  # from either end


def test_antiperiplanar_is_180_of_either_sign() -> None:
    assert abs(torsions(chain(180.0), [(0, 1, 2, 3)])[0]) == pytest.approx(180.0)


def test_mdtraj_finds_the_same_angles() -> None:
    topology = mdtraj.load(str(PDB)).topology
    rng = np.random.default_rng(0)
    # single precision, so that both start from the same numbers; nm for MDTraj
    xyz = rng.normal(size=(40, topology.n_atoms, 3)).astype(np.float32)
    quadruples = [tuple(rng.permutation(topology.n_atoms)[:4].tolist()) for _ in range(30)]
    theirs = np.degrees(
        mdtraj.compute_dihedrals(mdtraj.Trajectory(xyz, topology), quadruples, periodic=False)
    )
    ours = torsions(xyz.astype(np.float64) * 10, quadruples)
    assert ours.shape == (40, 30)
    assert np.abs(wrapped(ours - theirs)).max() < 0.02


def test_phi_and_psi_of_the_bundled_molecule_are_those_of_mdtraj() -> None:
    frame = mdtraj.load(str(PDB))
    (phi,), (psi,) = mdtraj.compute_phi(frame)[0], mdtraj.compute_psi(frame)[0]
    theirs = np.degrees([mdtraj.compute_phi(frame)[1][0, 0], mdtraj.compute_psi(frame)[1][0, 0]])
    ours = torsions(frame.xyz[0] * 10, [tuple(phi), tuple(psi)])
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_only_the_shape_matters_and_a_mirror_changes_the_sign(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(5, 8, 3))
    quadruples = [(0, 1, 2, 3), (4, 2, 7, 5), (6, 0, 3, 1)]
    plain = torsions(x, quadruples)
    assert np.ptp(plain) > 30
    moved = torsions(3.0 * x @ rotation(seed).T + rng.normal(size=3) * 20, quadruples)
    assert np.abs(wrapped(moved - plain)).max() < 1e-8
    mirrored = torsions(x * [1, 1, -1], quadruples)
    assert np.abs(wrapped(mirrored + plain)).max() < 1e-8


def test_any_leading_shape_is_kept_and_the_input_is_left_alone() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 3))
    before = x.copy()
    angles = torsions(x, [(0, 1, 2, 3), (2, 3, 4, 5)])
    assert angles.shape == (2, 3, 2)
    np.testing.assert_array_equal(angles[1, 2], torsions(x[1, 2], [(0, 1, 2, 3), (2, 3, 4, 5)]))
    np.testing.assert_array_equal(x, before)


# --- histograms -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("angle", "bin_"),
    [
        (-180.0, 0),
        (180.0, 0),
        (540.0, 0),
        (-540.0, 0),
        (180.0 - 1e-9, 17),
        (np.nextafter(-180.0, -200.0), 17),  # rounds up to 360 when wrapped
        (-160.0, 1),
        (-160.1, 0),
        (0.0, 9),
        (-1e-9, 8),
        (179.0, 17),
        (179.0 - 720.0, 17),
    ],
)
def test_the_square_is_periodic(angle: float, bin_: int) -> None:
    for column, place in ((0, (bin_, 9)), (1, (9, bin_))):
        angles = np.zeros((1, 2))
        angles[0, column] = angle
        counts = torsion_histogram(angles)
        assert counts.shape == (18, 18)
        assert counts[place] == counts.sum() == 1


def test_rows_are_the_first_angle() -> None:
    counts = torsion_histogram([[-170.0, 170.0], [-170.0, 170.0], [10.0, -10.0]], n_bins=18)
    assert counts[0, 17] == 2
    assert counts[9, 8] == 1
    assert counts.dtype == np.float64


@given(
    angles=st.lists(st.tuples(*[st.floats(-1e4, 1e4)] * 2), max_size=30),
    n_bins=st.integers(1, 73),
)
def test_every_angle_is_counted_once(angles: list[tuple[float, float]], n_bins: int) -> None:
    counts = torsion_histogram(np.array(angles).reshape(-1, 2), n_bins)
    assert counts.shape == (n_bins, n_bins)
    assert counts.sum() == len(angles)


def test_counts_are_those_of_numpy() -> None:
    angles = np.random.default_rng(0).uniform(-180, 180, (2000, 2))
    edges = np.linspace(-180, 180, 31)
    expected, _, _ = np.histogram2d(angles[:, 0], angles[:, 1], bins=[edges, edges])
    np.testing.assert_array_equal(torsion_histogram(angles, 30), expected)


# --- divergence -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "q", "bits"),
    [
        ([1, 2, 3], [1, 2, 3], 0.0),
        ([1, 2, 3], [10, 20, 30], 0.0),
        ([1, 0], [0, 1], 1.0),
        ([3, 5, 0, 0], [0, 0, 1, 9], 1.0),
        # 1/2 log2(4/3) + 1/2 (1/2 log2(2/3) + 1/2 log2(2))
        ([1, 0], [1, 1], 0.5 * math.log2(4 / 3) + 0.25 * math.log2(4 / 3)),
        # H(3/8) - (H(1/4) + H(1/2)) / 2
        ([1, 3], [1, 1], 0.9544340029249649 - 0.5 * (0.8112781244591328 + 1.0)),
        ([1, 1, 0], [0, 1, 1], 0.5),
    ],
)
def test_exact_values(p: list[float], q: list[float], bits: float) -> None:
    assert jensen_shannon(p, q) == pytest.approx(bits, abs=1e-12)
    assert jensen_shannon(q, p) == pytest.approx(bits, abs=1e-12)
    assert jensen_shannon(np.multiply(p, 7), np.multiply(q, 0.01)) == pytest.approx(bits, abs=1e-12)


@given(st.lists(st.tuples(*[st.integers(0, 50)] * 2), min_size=1, max_size=20))
def test_it_is_symmetric_between_0_and_1_and_the_order_of_bins_is_free(rows: list[tuple[int, int]]) -> None:
    p, q = np.array(rows).T
    if not (p.sum() and q.sum()):
        return
    found = jensen_shannon(p, q)
    assert 0.0 <= found <= 1.0 + 1e-12
    assert found == pytest.approx(jensen_shannon(q, p), abs=1e-12)
    assert found == pytest.approx(jensen_shannon(p[::-1], q[::-1]), abs=1e-12)
    # dividing every bin into two equal ones tells nothing new
    assert found == pytest.approx(jensen_shannon(np.repeat(p, 2), np.repeat(q, 2)), abs=1e-12)


def test_two_dimensional_histograms_are_compared_bin_by_bin() -> None:
    p, q = np.zeros((18, 18)), np.zeros((18, 18))
    p[3, 4], q[4, 3] = 5, 5
    assert jensen_shannon(p, q) == 1.0
    assert jensen_shannon(p, q.T) == 0.0


@pytest.mark.parametrize(
    ("p", "q", "message"),
    [
        ([1, 2], [1, 2, 3], "different shapes"),
        ([1, -1, 3], [1, 2, 3], "non-negative"),
        ([1, 2, 3], [1, -1, 3], "non-negative"),
        ([0, 0], [1, 2], "positive"),
        ([1, 2], [0, 0], "positive"),
        ([], [], "positive"),
    ],
)
def test_what_is_no_histogram_is_refused(p: list[float], q: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jensen_shannon(p, q)
