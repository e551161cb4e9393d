"""Shares within a group of basins from two references: walkers on a flattened surface, and plain MD.

Walkers are on the barrier most of the time, for what happens there decides the rates, and say little of how
a group is shared out among its basins; plain MD goes back and forth within a group and says little of the
barrier.  They are independent simulations.  All shares are those of time in the region of a basin; where a
Markov model weighs the basins, the frames are weighed by it (`zoo.analysis.evaluation`).

So the share s of one of the two basins of a group is that of both: the mean on the scale of ln(s / (1 - s))
with weights 1 / sigma^2 (the fixed-effect model of meta-analysis), where sigma is the width of the 95 %
interval over 2 x 1.96.  Intervals keep their two sides apart: half-widths of the parts, times their weights,
add up in squares.  Two that contradict each other are not averaged: then the walkers' stands.

The share of a basin in all is that within its group times that of the group, which only the walkers know.
The two are taken as independent, for the group's is much better known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from training.benchmarks.barriers.crossings import Key
from zoo.analysis.basins import Basins
from zoo.analysis.bootstrap import Estimate


@dataclass(frozen=True)
class _LogOdds:
    """ln(s / (1 - s)) of a share, and how far its 95 % interval reaches below and above."""

    value: float
    below: float
    above: float

    @classmethod
    def of(cls, share: Estimate) -> _LogOdds | None:
        """None unless the share has an interval of some width around it, strictly between 0 and 1."""
        value, low, high = share.value, share.low, share.high
        if value is None or low is None or high is None:
            return None
        if low == high or not 0.0 < low <= value <= high < 1.0:
            return None
        bottom, middle, top = (math.log(s / (1.0 - s)) for s in (low, value, high))
        return cls(middle, middle - bottom, top - middle)

    @property
    def weight(self) -> float:
        return (self.below + self.above) ** -2

    def share(self, events: int) -> Estimate:
        low, value, high = (
            1.0 / (1.0 + math.exp(-x)) for x in (self.value - self.below, self.value, self.value + self.above)
        )
        return Estimate(value, low, high, events)


def together(one: Estimate, other: Estimate) -> Estimate | None:
    """The share by both; events are those of the first.

    None if one of them has no interval of some width strictly between 0 and 1, or if they contradict each
    other: by more than the half-widths that face each other, added in squares.
    """
    a, b = _LogOdds.of(one), _LogOdds.of(other)
    if a is None or b is None:
        return None
    low, high = (a, b) if a.value <= b.value else (b, a)
    if high.value - low.value > math.hypot(low.above, high.below):
        return None
    whole = a.weight + b.weight
    u, v = a.weight / whole, b.weight / whole
    return _LogOdds(
        u * a.value + v * b.value,
        math.hypot(u * a.below, v * b.below),
        math.hypot(u * a.above, v * b.above),
    ).share(one.events)


def product(part: Estimate, whole: Estimate) -> Estimate | None:
    """The share of a part of a whole that itself has a share, if both are independent, to first order.

    None if one of them has no interval of some width strictly between 0 and 1.
    """
    a, b = _LogOdds.of(part), _LogOdds.of(whole)
    if a is None or b is None:
        return None
    assert part.value is not None and whole.value is not None
    share = part.value * whole.value
    below, above = (
        math.hypot((1.0 - part.value) * of_part, (1.0 - whole.value) * of_whole) / (1.0 - share)
        for of_part, of_whole in ((a.below, b.below), (a.above, b.above))
    )
    return _LogOdds(math.log(share / (1.0 - share)), below, above).share(part.events)


def pooled(
    walkers: Mapping[Key, Estimate], plain: Mapping[Key, Estimate], basins: Basins
) -> dict[Key, Estimate]:
    """The shares of which plain MD knows something: of basins within groups of two, and so in all.

    Parameters
    ----------
    walkers, plain : by kind and name, as `crossings.estimates` gives them; those of plain MD may lack any.
    """
    found: dict[Key, Estimate] = {}
    for group, names in basins.groups:
        keys = [("group population", f"{name} within {group}") for name in names]
        if len(keys) != 2 or not all(key in plain for key in keys):
            continue
        for name, key in zip(names, keys, strict=True):
            if (within := together(walkers[key], plain[key])) is None:
                continue
            found[key] = within
            if (share := product(within, walkers["group population", group])) is not None:
                found["population", name] = share
    return found
