"""Trajectories in little space: rounded positions, and from frame to frame only the change."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

GRAIN = 1e-4
"""nm."""


def packed(positions: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
    """Positions (n_frames, n_atoms, 3) in nm as whole multiples of `GRAIN`, and how these change.

    Raises
    ------
    ValueError : an atom moves too far from one frame to the next for this.
    """
    whole = np.round(positions.astype(np.float64) / GRAIN).astype(np.int64)
    change = np.diff(whole, axis=0)
    if (
        np.abs(change).max(initial=0) > np.iinfo(np.int16).max
        or np.abs(whole[:1]).max() > np.iinfo(np.int32).max
    ):
        raise ValueError("an atom moves more than 3 nm between two frames")
    return {"pos_first": whole[:1].astype(np.int32), "pos_change": change.astype(np.int16)}


def unpacked(arrays: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    """The positions that `packed` was given, to half a `GRAIN`.

    Raises
    ------
    KeyError, ValueError : arrays that `packed` did not make.
    """
    first, change = arrays["pos_first"], arrays["pos_change"]
    if first.ndim != 3 or change.ndim != 3 or first.shape != (1, *change.shape[1:]):
        raise ValueError(f"pos_first has the shape {first.shape} and pos_change {change.shape}")
    if first.dtype != np.int32 or change.dtype != np.int16:
        raise ValueError(f"pos_first is of type {first.dtype} and pos_change {change.dtype}")
    whole = np.cumsum(np.concatenate([first.astype(np.int64), change.astype(np.int64)]), axis=0)
    return (whole * GRAIN).astype(np.float32)
