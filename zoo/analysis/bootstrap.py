"""95 % intervals by bootstrapping whole trajectories.

Frames of a trajectory are not independent; trajectories are.  So trajectories (or, where there are too
few of them, long blocks of them) are drawn with replacement, and every figure is computed again.  What
a figure needs is a sum over trajectories (counts, times at risk, histograms), so a resample is a
weighted sum and nothing is counted twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

#: Fewer independent trajectories or blocks than this do not tell how they vary.
MIN_UNITS = 5
#: Fewer events than this, or events in fewer trajectories than `MIN_UNITS_WITH_EVENTS`, have no interval.
MIN_EVENTS = 5
MIN_UNITS_WITH_EVENTS = 3
#: Share of resamples that may be without a value.
_MOST_MISSING = 0.05

NO_EVENTS = "no events"
FEW_EVENTS = "too few events"
FEW_UNITS = "too few trajectories"


@dataclass(frozen=True)
class Estimate:
    """A figure, its 95 % interval, and how many events it rests on.

    Attributes
    ----------
    value : None where nothing was seen that could give one.
    low, high : 95 % interval; both None without an interval, ``high`` alone None if it has no upper end.
    events : how often what is measured was seen.
    note : why there is no value or no interval; empty otherwise.
    lower_bound : one-sided 95 % bound where events are too few for an interval.
    """

    value: float | None
    low: float | None
    high: float | None
    events: int
    note: str = ""
    lower_bound: float | None = None

    @property
    def has_interval(self) -> bool:
        return self.low is not None

    def contains(self, value: float | None) -> bool | None:
        """Whether the interval holds ``value``; None where one of them is missing."""
        if value is None or self.low is None:
            return None
        return self.low <= value and (self.high is None or value <= self.high)

    def to_json(self) -> dict[str, Any]:
        """Numbers, null and text; never an infinity or NaN."""
        data: dict[str, Any] = {
            "value": self.value,
            "interval_95": None if self.low is None else [self.low, self.high],
            "events": self.events,
        }
        if self.note:
            data["note"] = self.note
        if self.lower_bound is not None:
            data["lower_bound_95"] = self.lower_bound
        return data


def resample(n_units: int, n_resamples: int, seed: int, stream: int = 0) -> Array:
    """Weights (n_resamples, n_units): how often each unit was drawn; a row sums to n_units.

    ``stream`` keeps the draws of two sets of trajectories apart.
    """
    rng = np.random.default_rng([seed, stream])
    return rng.multinomial(n_units, np.full(n_units, 1.0 / n_units), size=n_resamples).astype(np.float64)


def weighted_sums(weights: Array, per_unit: Any) -> Array:
    """(n_resamples, ...) sums of (n_units, ...) sums with weights (n_resamples, n_units)."""
    values = np.asarray(per_unit, dtype=np.float64)
    return (weights @ values.reshape(len(values), -1)).reshape(len(weights), *values.shape[1:])


def tail(n_units: int) -> float:
    """Probability in each tail of a percentile interval from ``n_units`` units, so that it covers 95 %.

    The plain percentile interval (0.025) is too narrow for few units, by the factor
    sqrt((n - 1)/n) of the sample's standard deviation and by the normal in place of Student's
    distribution: Hesterberg, Am. Stat. 69, 371 (2015), the "expanded percentile interval".
    """
    from scipy import stats

    if n_units < 2:
        return 0.0
    wide = np.sqrt(n_units / (n_units - 1)) * stats.t.ppf(0.975, n_units - 1)
    return float(stats.norm.cdf(-wide))


def percentile_interval(samples: Any, n_units: int) -> tuple[float, float] | None:
    """Expanded percentile interval of resampled figures; ends may be infinite, None if too many are NaN."""
    values = np.asarray(samples, dtype=np.float64)
    missing = np.isnan(values)
    if not len(values) or missing.mean() > _MOST_MISSING:
        return None
    values = np.sort(values[~missing])
    # order statistics, not a mean of two of them, which would be NaN beside an infinity
    k = int(np.floor(tail(n_units) * (len(values) - 1)))
    return float(values[k]), float(values[len(values) - 1 - k])


def estimate(
    value: float,
    samples: Any,
    n_units: int,
    *,
    events: float,
    units_with_events: int | None = None,
    lower_bound: float | None = None,
    value_without_events: float | None = None,
) -> Estimate:
    """Value and interval where the data carry them, and a word where they do not.

    Parameters
    ----------
    value, samples : the figure, and (n_resamples,) of it; NaN or infinite where it has no value.
    events, units_with_events : how often it was seen, and in how many trajectories.
    lower_bound : told in place of an interval.
    value_without_events : the value if there are no events, for example a population of 0.
    """
    count = int(events)
    given = float(value) if np.isfinite(value) else None
    bound = float(lower_bound) if lower_bound is not None and np.isfinite(lower_bound) else None
    if count == 0 or given is None:
        note = NO_EVENTS if count == 0 else FEW_EVENTS
        return Estimate(value_without_events if count == 0 else None, None, None, count, note, bound)
    few = units_with_events is not None and units_with_events < min(MIN_UNITS_WITH_EVENTS, n_units)
    if count < MIN_EVENTS or few:
        return Estimate(given, None, None, count, FEW_EVENTS, bound)
    if n_units < MIN_UNITS:
        return Estimate(given, None, None, count, FEW_UNITS, bound)
    interval = percentile_interval(samples, n_units)
    if interval is None or not np.isfinite(interval[0]):
        return Estimate(given, None, None, count, FEW_EVENTS, bound)
    return Estimate(given, interval[0], interval[1] if np.isfinite(interval[1]) else None, count)
