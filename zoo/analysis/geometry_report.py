"""Drift of bonds, angles and handedness: the rollout beside MD, and its end beside its beginning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.analysis.bootstrap import MIN_UNITS, percentile_interval, resample
from zoo.analysis.geometry import Geometry, Internals

Array = npt.NDArray[np.float64]


def geometry_report(
    reference: Sequence[Geometry],
    rollout: Sequence[Geometry],
    internals: Internals,
    shift: Array | None,
    n_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Means and standard deviations of every bond (Å) and angle (degrees), and counts of inversions.

    ``drift`` is the mean over the last quarter of each rollout trajectory minus that over the first, and
    ``reference_drift`` the same of MD; ``shift`` is the mean of the rollout minus that of MD.  They have 95 %
    intervals from whole trajectories; ``shift_in_sd`` and ``drift_in_sd`` are in standard deviations of MD.
    """
    base = np.zeros(len(internals.names)) if shift is None else shift
    mean_md, sd_md = _moments(reference)
    mean_run, sd_run = _moments(rollout)
    n = np.array([each.n for each in rollout], dtype=np.float64)
    drift, drifts = _drift(rollout, n_resamples, seed, 3)
    drift_md, drifts_md = _drift(reference, n_resamples, seed, 4)
    n_units = min(len(reference), len(rollout))
    shifts = None
    if n_units >= MIN_UNITS:
        shifts = _means(rollout, n_resamples, seed, 6) - _means(reference, n_resamples, seed, 5)
    first = n @ np.stack([each.first for each in rollout]) / n.sum()
    scale = np.maximum(sd_md, 1e-3)  # constrained bonds have no width of their own
    rows = []
    for k, (name, unit) in enumerate(zip(internals.names, internals.units, strict=True)):
        rows.append(
            {
                "name": name,
                "unit": unit,
                "reference": {"mean": float(mean_md[k] + base[k]), "sd": float(sd_md[k])},
                "rollout": {"mean": float(mean_run[k] + base[k]), "sd": float(sd_run[k])},
                "first_quarter": float(first[k] + base[k]),
                "last_quarter": float(first[k] + drift[k] + base[k]),
                "drift": float(drift[k]),
                "drift_interval_95": _interval(drifts, k, len(rollout)),
                "reference_drift": float(drift_md[k]),
                "reference_drift_interval_95": _interval(drifts_md, k, len(reference)),
                "drift_in_sd": float(drift[k] / scale[k]),
                "shift": float(mean_run[k] - mean_md[k]),
                "shift_interval_95": _interval(shifts, k, n_units),
                "shift_in_sd": float((mean_run[k] - mean_md[k]) / scale[k]),
                "width_ratio": float(sd_run[k] / scale[k]),
            }
        )
    n_bonds = len(internals.bonds)
    return {
        "bonds": rows[:n_bonds],
        "angles": rows[n_bonds:],
        "chirality": {
            "n_stereocentres": len(internals.molecule.stereocentres),
            "reference": _handedness(reference),
            "rollout": _handedness(rollout),
        },
    }


def _drift(parts: Sequence[Geometry], n_resamples: int, seed: int, stream: int) -> tuple[Array, Array | None]:
    """The drift (n_internals,) of these trajectories, and of resamples of them if there are enough."""
    n = np.array([each.n for each in parts], dtype=np.float64)
    moved = np.stack([each.last - each.first for each in parts])
    if len(parts) < MIN_UNITS:
        return n @ moved / n.sum(), None
    weights = resample(len(n), n_resamples, seed, stream) * n
    return n @ moved / n.sum(), weights @ moved / weights.sum(1, keepdims=True)


def _means(parts: Sequence[Geometry], n_resamples: int, seed: int, stream: int) -> Array:
    """Means (n_resamples, n_internals) of resampled trajectories."""
    weights = resample(len(parts), n_resamples, seed, stream)
    n = np.array([each.n for each in parts], dtype=np.float64)
    return np.asarray(weights @ np.stack([each.total for each in parts]) / (weights @ n)[:, None])


def _interval(samples: Array | None, k: int, n_units: int) -> list[float] | None:
    found = None if samples is None else percentile_interval(samples[:, k], n_units)
    return None if found is None else list(found)


def _moments(parts: Sequence[Geometry]) -> tuple[Array, Array]:
    n = float(sum(each.n for each in parts))
    mean = np.sum([each.total for each in parts], axis=0) / n
    square = np.sum([each.squares for each in parts], axis=0) / n
    return mean, np.sqrt(np.maximum(square - mean**2, 0.0))


def _handedness(parts: Sequence[Geometry]) -> dict[str, int]:
    return {
        "inverted_stereocentre_frames": sum(each.inverted_stereocentres for each in parts),
        "inversions": sum(each.flips for each in parts),
        "inverted_centre_frames": sum(each.inverted_centres for each in parts),
    }
