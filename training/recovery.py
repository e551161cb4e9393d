"""Is a perfect crystal recovered from noise?  The share of atoms that come back to their sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from zoo.denoiser import Denoiser

#: An atom has come back if it is nearer to its site than this share of the nearest-neighbour distance.
WITHIN = 0.15


@dataclass(frozen=True)
class Recovered:
    """``sites`` looked at, and how many of them were found again; ``largest`` is the largest distance left,
    in nearest-neighbour distances."""

    sites: int
    found: int
    largest: float

    @property
    def share(self) -> float:
        return self.found / self.sites


def recovery(
    denoiser: Denoiser, crystal: Atoms, spacing: float, noise: float, seeds: Sequence[int], steps: int = 10
) -> Recovered:
    """Add noise to a perfect crystal, denoise, compare with the sites; a common translation does not count.

    Parameters
    ----------
    spacing : nearest-neighbour distance, in the units of ``crystal``.
    noise : standard deviation per component, in units of ``spacing``.
    seeds : one noised copy for each.
    """
    found, largest = 0, 0.0
    for seed in seeds:
        rng = np.random.default_rng([seed, round(1e6 * noise)])
        noised = crystal.copy()
        noised.positions += rng.normal(0, noise * spacing, noised.positions.shape)
        after = denoiser.denoise(noised, steps=steps)
        error = after.positions - crystal.positions
        error -= np.median(error, axis=0)
        away = np.linalg.norm(error, axis=1) / spacing
        found += int((away < WITHIN).sum())
        largest = max(largest, float(away.max()))
    return Recovered(len(crystal) * len(seeds), found, largest)
