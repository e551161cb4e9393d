"""Shares within a group of basins from two references that know nothing of each other.

Walkers are on the barrier most of the time, for what happens there decides the rates, and say little of how
a group is shared out among its basins; plain MD goes back and forth within a group and says little of the
barrier.  Both are unbiased.  So the share s of one of the two basins of a group is that of both together: on
the scale of ln(s / (1 - s)), on which intervals are nearly symmetric, the mean with weights 1 / sigma^2 (the
fixed-effect model of meta-analysis), where sigma is the width of the 95 % interval over 2 x 1.96.  The share
of a basin in all is then that within its group times that of the group, which only the walkers know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from training.benchmarks.barriers.crossings import Key
from zoo.analysis.basins import Basins
from zoo.analysis.bootstrap import Estimate

#: Half-width of a 95 % interval in standard deviations.
_HALF = 1.959964


@dataclass(frozen=True)
class _LogOdds:
    """ln(s / (1 - s)) of a share, and its standard deviation."""

    value: float
    sigma: float

    @classmethod
    def of(cls, share: Estimate) -> _LogOdds | None:
        """None unless the share and its interval are between 0 and 1, without either."""
        value, low, high = share.value, share.low, share.high
        if (
            value is None
            or low is None
            or high is None
            or not 0.0 < low <= value <= high < 1.0
            or low == high
        ):
            return None
        width = math.log(high / (1.0 - high)) - math.log(low / (1.0 - low))
        return cls(math.log(value / (1.0 - value)), width / (2.0 * _HALF))

    def share(self, events: int) -> Estimate:
        low, value, high = (
            1.0 / (1.0 + math.exp(-(self.value + k * _HALF * self.sigma))) for k in (-1.0, 0.0, 1.0)
        )
        return Estimate(value, low, high, events)


def together(one: Estimate, other: Estimate) -> Estimate | None:
    """The share by both; None if one of them has no interval, or one that ends at 0 or 1.

    Events are those of both.
    """
    a, b = _LogOdds.of(one), _LogOdds.of(other)
    if a is None or b is None:
        return None
    weights = a.sigma**-2, b.sigma**-2
    mean = (weights[0] * a.value + weights[1] * b.value) / sum(weights)
    return _LogOdds(mean, sum(weights) ** -0.5).share(one.events + other.events)


def product(part: Estimate, whole: Estimate) -> Estimate | None:
    """The share of a part of a whole that itself has a share; None as in `together`.

    To first order: the relative variances add up.
    """
    a, b = _LogOdds.of(part), _LogOdds.of(whole)
    if a is None or b is None:
        return None
    assert part.value is not None and whole.value is not None
    share = part.value * whole.value
    relative = math.hypot((1.0 - part.value) * a.sigma, (1.0 - whole.value) * b.sigma)
    return _LogOdds(math.log(share / (1.0 - share)), relative / (1.0 - share)).share(part.events)


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
        if len(names) != 2:
            continue
        for name in names:
            key = ("group population", f"{name} within {group}")
            if key not in plain or (within := together(walkers[key], plain[key])) is None:
                continue
            found[key] = within
            if (share := product(within, walkers["group population", group])) is not None:
                found["population", name] = share
    return found
