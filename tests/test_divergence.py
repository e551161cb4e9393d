"""Noise floors of divergences: what chance gives, also where one side has longer trajectories."""

from __future__ import annotations

import numpy as np
import pytest

from zoo.analysis.divergence import divergence
from zoo.analysis.measured import Measured, cut


def wandering(n: int, length: int, rng: np.random.Generator) -> Measured:
    """Trajectories of a chain that stays where it is for some 20 steps, in one dihedral of six wells."""
    angles = []
    for _ in range(n):
        moves = rng.random(length) < 0.05
        well = np.where(moves, rng.integers(0, 6, length), -1)
        well[0] = rng.integers(0, 6)
        last = np.maximum.accumulate(np.where(well >= 0, np.arange(length), 0))
        angles.append((60.0 * well[last] - 150.0)[:, None])
    units, whole = cut([length] * n, 0)
    return Measured(angles, [], units, whole)


def above(md: tuple[int, int], run: tuple[int, int], alike: bool) -> float:
    """How often the divergence of two sets of the same chain is above its 95 % floor."""
    rng, found = np.random.default_rng(3), []
    for k in range(100):
        one, other = wandering(*md, rng), wandering(*run, rng)
        pieces = (
            one.histograms((0,), 36, units=one.no_longer_than(other)),
            other.histograms((0,), 36, units=other.no_longer_than(one)),
        )
        apart = divergence(
            one.histograms((0,), 36), other.histograms((0,), 36), k, 200, alike=pieces if alike else None
        )
        assert apart.value is not None and apart.floor_95 is not None
        found.append(apart.value > apart.floor_95)
    return float(np.mean(found))


@pytest.mark.parametrize(
    ("md", "run"), [((20, 200), (20, 200)), ((20, 200), (20, 4000)), ((20, 4000), (40, 200))]
)
def test_chance_is_told_for_what_it_is(md: tuple[int, int], run: tuple[int, int]) -> None:
    assert above(md, run, alike=True) <= 0.12  # 0.05 is meant; of 100


def test_long_trajectories_in_exchange_for_short_ones_would_not_do() -> None:
    assert above((20, 200), (20, 4000), alike=False) > 0.6


def test_only_what_is_longer_is_cut() -> None:
    rng = np.random.default_rng(0)
    short, long = wandering(4, 100, rng), wandering(3, 1000, rng)
    assert [int(each.max()) + 1 for each in long.no_longer_than(short)] == [10, 20, 30]
    assert short.no_longer_than(long) is short.units
    assert long.no_longer_than(long) is long.units
