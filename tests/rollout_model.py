"""A small honest propagator for the tests of rollouts: 2-fluorobutane, its five heavy atoms as sites.

Each step relaxes towards the start shape and adds noise, so that every proposal is valid except those
the test asks to be bad.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.molecules.checks import Limits
from zoo.molecules.molecule import Molecule
from zoo.molecules.start import load_start
from zoo.rollout import Rollout, roll_out

_HYDROGENS = {"C1": 3, "C2": 1, "C3": 2, "C4": 3}


def fluorobutane() -> Molecule:
    names = ["C1", "C2", "F", "C3", "C4"]
    bonds = [(0, 1), (1, 2), (1, 3), (3, 4)]
    for carbon, count in _HYDROGENS.items():
        for _ in range(count):
            bonds.append((names.index(carbon), len(names)))
            names.append(f"H{len(names)}")
    n = len(names)
    return Molecule(
        tuple(names), tuple(name[0] for name in names), ("FBU",) * n, (1,) * n, tuple(bonds), (0, 1, 2, 3, 4)
    )


# staggered, C-C 1.53 Å, C-F 1.40 Å
SHAPE = np.array(
    [[0.88, 0.88, 0.88], [0.0, 0.0, 0.0], [-0.81, -0.81, 0.81], [0.88, -0.88, -0.88], [1.77, -1.77, 0.0]]
)


class FakeDynamics:
    """Has what a rollout needs; `bad` maps (walker, step, attempt) to the kind of bad proposal."""

    name = "sd-fake"

    def __init__(self, bad: dict[tuple[int, int, int], str] | None = None, **changes: Any) -> None:
        self.molecule = fluorobutane()
        self.lag_time = 2.0
        self.metrics: dict[str, Any] = {}
        self.checkpoint_id = "sd-fake@1.0.0"
        self.weights_sha256 = "0" * 64
        self.batch_slots = 4
        self.limits = Limits()
        pairs = np.array(self.molecule.site_bonds)
        self.bond_lengths = np.linalg.norm(SHAPE[pairs[:, 0]] - SHAPE[pairs[:, 1]], axis=1)
        self.bad = bad or {}
        self.calls: list[list[int]] = []
        self.strangeness = 0.5
        self._now = (0, 0)
        for key, value in changes.items():
            setattr(self, key, value)

    def noise(self, seed: int, walkers: Sequence[int], step: int, attempt: int) -> Any:
        self._now = (step, attempt)
        return np.stack(
            [np.random.default_rng([seed, w, step, attempt]).normal(size=SHAPE.shape) for w in walkers]
        )

    def propose(self, positions: Any, walkers: Sequence[int], noise: Any) -> Any:
        slots = [w % self.batch_slots for w in walkers]
        assert len(set(slots)) == len(slots) == len(positions) == len(noise)
        assert positions.dtype == np.float64
        self.calls.append(list(walkers))
        proposal = positions + 0.3 * (shape_like(positions) - positions) + 0.03 * noise
        for row, w in enumerate(walkers):
            spoil(proposal[row], self.bad.get((w, *self._now)))
        return proposal

    def out_of_distribution(self, positions: Any) -> Any:
        return np.full(len(positions), self.strangeness)

    def rollout(self, start: Any, n_steps: int, n_walkers: int = 1, seed: int = 0, **options: Any) -> Rollout:
        positions = load_start(start, self.molecule)
        return roll_out(self, positions, n_steps, n_walkers, seed, **options)


def shape_like(positions: Any) -> Any:
    """SHAPE or its mirror image, whichever has the handedness of the positions."""
    arms = positions[:, [0, 2, 3]] - positions[:, [1]]
    right = np.linalg.det(arms) * np.linalg.det(SHAPE[[0, 2, 3]] - SHAPE[1]) > 0
    return np.where(right[:, None, None], SHAPE, SHAPE * [-1, 1, 1])


def spoil(positions: Any, kind: str | None) -> None:
    if kind == "bond":
        positions[2] *= 2
    elif kind == "chirality":
        positions *= -1
    elif kind == "not finite":
        positions[0, 0] = np.nan
    elif kind == "clash":
        towards = positions[0] - positions[3]
        positions[4] = positions[3] + 1.53 * towards / np.linalg.norm(towards)


def write_start(path: Path, n_frames: int = 1, mirror: bool = False) -> Path:
    import mdtraj

    shapes = np.stack([SHAPE * ([-1, 1, 1] if mirror else 1) + 0.05 * k for k in range(n_frames)])
    mdtraj.Trajectory(shapes / 10, fluorobutane().topology()).save(os.fspath(path))
    return path
