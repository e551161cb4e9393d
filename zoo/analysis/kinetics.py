"""Backbone torsions, their histograms, and how far two histograms are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def torsions(positions: Any, quadruples: Sequence[tuple[int, int, int, int]]) -> Array:
    """Torsion angles (..., n_quadruples) in degrees, IUPAC sign, of positions (..., n_sites, 3)."""
    x = np.asarray(positions, dtype=np.float64)
    i, j, k, m = np.array(quadruples).T
    first = x[..., i, :] - x[..., j, :]
    axis = x[..., k, :] - x[..., j, :]
    last = x[..., m, :] - x[..., k, :]
    axis = axis / np.linalg.norm(axis, axis=-1, keepdims=True)
    v = first - (first * axis).sum(-1, keepdims=True) * axis
    w = last - (last * axis).sum(-1, keepdims=True) * axis
    angle: Array = np.degrees(np.arctan2((np.cross(axis, v) * w).sum(-1), (v * w).sum(-1)))
    return angle


def torsion_histogram(angles: Any, n_bins: int = 18) -> Array:
    """Counts (n_bins, n_bins) of angles (n, 2) in degrees on the periodic square [-180, 180)."""
    wrapped = (np.asarray(angles).reshape(-1, 2) + 180.0) % 360.0
    index = np.minimum((wrapped * (n_bins / 360.0)).astype(int), n_bins - 1)
    counts = np.bincount(index[:, 0] * n_bins + index[:, 1], minlength=n_bins * n_bins)
    return counts.reshape(n_bins, n_bins).astype(np.float64)


def jensen_shannon(p: Any, q: Any) -> float:
    """Jensen-Shannon divergence in bits, 0 to 1, of two histograms of counts or weights.

    Lin, IEEE Trans. Inf. Theory 37, 145 (1991).  For finite samples it is above zero even if both are
    from one distribution: compare with a noise floor.

    Raises
    ------
    ValueError : different shapes, negative or no counts.
    """
    a, b = np.asarray(p, dtype=np.float64).ravel(), np.asarray(q, dtype=np.float64).ravel()
    if a.shape != b.shape:
        raise ValueError("the histograms have different shapes")
    if (a < 0).any() or (b < 0).any() or a.sum() <= 0 or b.sum() <= 0:
        raise ValueError("a histogram needs non-negative counts, at least one of them positive")
    a, b = a / a.sum(), b / b.sum()
    middle = 0.5 * (a + b)

    def divergence(x: Array) -> float:
        seen = x > 0
        return float((x[seen] * np.log2(x[seen] / middle[seen])).sum())

    return max(0.0, 0.5 * (divergence(a) + divergence(b)))
