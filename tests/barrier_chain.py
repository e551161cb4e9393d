"""An exact Markov chain with a high barrier, and walkers on it once it is flattened."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from training.reference_md.releases import Bias
from training.reference_md.segments import GAS_CONSTANT
from training.reference_md.walks import Walks

Array = npt.NDArray[np.float64]

KT = 300.0 * GAS_CONSTANT
N = 72  # states of the chain, 5 degrees of phi each
PHI = 5.0 * np.arange(N)
PSI = 20.0
#: Wells at -90 and 70, the barrier at 0, and one at 140 over which nothing goes; in kT.
ENERGY = (
    4.5 * (1 + np.cos(np.radians(2 * PHI)))
    - 1.2 * np.cos(np.radians(PHI + 75.0))
    + 14.0 * np.exp(-(((PHI - 140.0) / 35.0) ** 2))
)
#: Of V, in kT: flattens what is below 10 but a slope that is there to be corrected for.
SLOPED = -0.9 * np.minimum(ENERGY, 10.0) + 0.5 * np.sin(np.radians(PHI))


def chain() -> tuple[Array, Array]:
    """Equilibrium and transition matrix of Metropolis moves to the neighbours around phi."""
    pi = np.exp(-ENERGY) / np.exp(-ENERGY).sum()
    t = np.zeros((N, N))
    for i in range(N):
        for j in ((i + 1) % N, (i - 1) % N):
            t[i, j] = 0.45 * min(1.0, pi[j] / pi[i])
    return pi, t + np.diag(1 - t.sum(1))


def angles_of(states: npt.NDArray[np.int64]) -> Array:
    phi = (PHI[states] + 180.0) % 360.0 - 180.0
    return np.stack([phi, np.full(states.shape, PSI)], -1)


def walked(n: int, n_blocks: int = 40, seed: int = 0, length: int = 250) -> Walks:
    """Frames of walkers that are in equilibrium on the biased chain, and paths from those on the ridge."""
    rng = np.random.default_rng(seed)
    density = np.exp(-ENERGY - SLOPED)
    visited = rng.choice(N, n, p=density / density.sum())
    block = np.arange(n) * n_blocks // n
    released = bias().on_ridge(angles_of(visited)[:, 0])
    start = visited[released]
    _, t = chain()
    cumulative = t.cumsum(1)
    halves = []
    for _ in range(2):
        states, x = [start], start
        for _ in range(length):
            x = np.minimum((cumulative[x] < rng.random(len(x))[:, None]).sum(1), N - 1)
            states.append(x)
        halves.append(np.stack(states, 1))
    path = np.concatenate([halves[1][:, :0:-1], halves[0]], 1)
    return Walks(
        angles_of(visited), SLOPED[visited], block, angles_of(path), SLOPED[start], block[released], 1.0, KT
    )


def bias(width: float = 25.0) -> Bias:
    """Exact at the states of the chain, between which it is never asked for."""
    return Bias(KT * np.repeat(SLOPED[:, None], N, 1), (0.0, width))
