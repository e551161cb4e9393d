"""How far two sets of trajectories are apart in a histogram, and how far chance alone would put them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.analysis.kinetics import jensen_shannon

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Divergence:
    """Jensen-Shannon divergences in bits.

    Attributes
    ----------
    value : reference against rollout; None without frames on either side.
    floor, floor_95 : mean and 95 % quantile after exchanging trajectories, or blocks of about equal length,
        between reference and rollout at random: what chance alone gives if both are the same.
    halves, halves_95 : the same for random halves of the reference, MD against MD; each half has only
        half the frames, so this is somewhat above what more MD would give.
    """

    value: float | None
    floor: float | None
    floor_95: float | None
    halves: float | None
    halves_95: float | None

    @property
    def ratio(self) -> float | None:
        """Value over floor."""
        return None if self.value is None or not self.floor else self.value / self.floor

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio}


def divergence(
    reference: Array,
    rollout: Array,
    seed: int,
    n_exchanges: int = 500,
    alike: tuple[Array, Array] | None = None,
) -> Divergence:
    """Divergence of two sets of histograms (n_units, n_bins), with its noise floors.

    ``alike``: the same frames in units that are about as long on both sides, which are exchanged in place of
    the units.  Long trajectories in exchange for short ones would not leave two sets like those compared.
    """
    if not reference.sum() or not rollout.sum():
        return Divergence(None, None, None, None, None)
    rng = np.random.default_rng([seed, 2])
    value = jensen_shannon(reference.sum(0), rollout.sum(0))
    ours, theirs = alike or (reference, rollout)
    floor = _exchanged(np.concatenate([ours, theirs]), len(ours), rng, n_exchanges)
    halves = _exchanged(reference, len(reference) // 2, rng, n_exchanges)
    return Divergence(value, *_summary(floor), *_summary(halves))


def _summary(values: Array) -> tuple[float | None, float | None]:
    return (float(values.mean()), float(np.quantile(values, 0.95))) if len(values) else (None, None)


def _exchanged(units: Array, n_first: int, rng: np.random.Generator, n: int) -> Array:
    """Divergences between n_first random units and the rest; without the splits that leave a side empty."""
    if not 0 < n_first < len(units):
        return np.zeros(0)
    first = np.zeros((n, len(units)))
    np.put_along_axis(first, rng.random((n, len(units))).argsort(axis=1)[:, :n_first], 1.0, axis=1)
    a = first @ units
    b = units.sum(0) - a
    used = (a.sum(1) > 0) & (b.sum(1) > 0)
    a, b = a[used] / a[used].sum(1, keepdims=True), b[used] / b[used].sum(1, keepdims=True)
    middle = 0.5 * (a + b)

    def against(x: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(x > 0, x * np.log2(x / middle), 0.0).sum(1))

    return np.maximum(0.5 * (against(a) + against(b)), 0.0)
