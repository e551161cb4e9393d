"""Reversible Markov chains of many states: mean first-passage times between sets of states.

A chain is given by its flow F_ij = pi_i T_ij = F_ji, whose rows sum to the equilibrium pi.  Flows need no
normalisation, and pi may range over many orders of magnitude.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import linalg
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def powered(flow: Array, n: int) -> Array:
    """pi_i (T^n)_ij from pi_i T_ij: what is seen of the chain at every n-th step."""
    if n == 1:
        return flow
    weight = flow.sum(1)
    root = np.sqrt(np.where(weight > 0, weight, 1.0))
    power = np.linalg.matrix_power(flow / root[:, None] / root, n)
    return np.asarray(np.maximum(power, 0.0) * root[:, None] * root)


def passage_time(flow: Array, start: Mask, end: Mask) -> float:
    """Mean first-passage time, in steps, between two sets of states: time since the one was left last,
    over arrivals in the other.

    With the committor q, the probability to come to ``end`` before ``start``,

        MFPT = sum_i pi_i (1 - q_i) / (sum_{i in start, j} F_ij q_j)

    (Vanden-Eijnden, Lect. Notes Phys. 703, 453, 2006).

    Parameters
    ----------
    flow : (n, n).
    start, end : (n,) the states of the two sets.

    Returns
    -------
    Infinity if the one is not reached from the other, NaN if one was never visited.
    """
    weight = flow.sum(1)
    if weight[start].sum() <= 0 or weight[end].sum() <= 0:
        return float("nan")
    _, label = connected_components(csr_array(flow > 0), directed=False)
    joined = np.isin(label, np.intersect1d(label[start & (weight > 0)], label[end & (weight > 0)]))
    if not joined.any():
        return float("inf")
    middle = joined & ~start & ~end & (weight > 0)
    committor = end.astype(np.float64)
    if middle.any():
        # scaled to a unit diagonal, for weights differ by many orders of magnitude
        root = 1.0 / np.sqrt(weight[middle])
        left = np.eye(int(middle.sum())) - root[:, None] * flow[np.ix_(middle, middle)] * root
        right = root * flow[np.ix_(middle, end)].sum(1)
        committor[middle] = np.clip(root * linalg.solve(left, right, assume_a="pos"), 0.0, 1.0)
    time = float(weight[joined] @ (1.0 - committor[joined]))
    return time / float((flow[start & joined] @ committor).sum())
