"""Pairs of frames one lag time apart, whole segments held out, and the loss of score dynamics.

Needs torch and numpy only, so that a training loop runs wherever these are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.reference_md.segments import Segment
from zoo.diffusion import log_normal_sigma
from zoo.molecules.rigid import centred, rotation_vector, superposition, without_rigid_motion
from zoo.score_dynamics import ConditionalDenoiser


@dataclass(frozen=True)
class Transitions:
    """before, after (n_pairs, n_sites, 3) Å float32, ``lag_time`` ps apart."""

    before: Tensor
    after: Tensor
    lag_time: float

    def __len__(self) -> int:
        return len(self.before)


def transitions(segments: Iterable[Segment], sites: Sequence[int], lag_time: float) -> Transitions:
    """All pairs at all time origins.

    Raises
    ------
    ValueError : no pairs, or the lag time is no multiple of the interval between frames.
    """
    before, after = [], []
    for segment in segments:
        lag = round(lag_time / segment.dt)
        if lag < 1 or not math.isclose(lag * segment.dt, lag_time, rel_tol=1e-6):
            raise ValueError(
                f"{segment.path}: frames every {segment.dt} ps do not make a lag of {lag_time} ps"
            )
        x = centred(torch.from_numpy(np.ascontiguousarray(segment.positions[:, list(sites)])).double())
        before.append(x[:-lag].float())
        after.append(x[lag:].float())
    if not before or not sum(map(len, before)):
        raise ValueError("no pairs of frames: the segments are shorter than the lag time")
    return Transitions(torch.cat(before), torch.cat(after), lag_time)


def local_displacements(model: ConditionalDenoiser, pairs: Transitions) -> tuple[Tensor, Tensor]:
    """Structures and displacements (n_pairs, n_sites, 3) in the body frame, Å."""
    x, x_next = centred(pairs.before), centred(pairs.after)
    axes = model.frames(x)
    aligned = x_next @ superposition(x_next, x).mT
    return x @ axes, (aligned - x) @ axes


def rigid_motion(model: ConditionalDenoiser, before: Tensor, after: Tensor) -> Tensor:
    """(n, 6): rotation (rad) and translation (Å) from before to after, along the body axes of before."""
    axes = model.frames(centred(before))
    turn = rotation_vector(superposition(before, after))
    omega = torch.linalg.det(axes)[:, None] * (axes.mT @ turn[..., None])[..., 0]
    shift = (axes.mT @ (after.mean(1) - before.mean(1))[..., None])[..., 0]
    return torch.cat([omega, shift], -1)


def make_batches(
    pairs: Transitions, batch_size: int, condition_noise: float, n_sites: int
) -> Callable[[np.random.Generator], dict[str, Tensor]]:
    """Draws everything random of a step from its generator; the arrays are those of the loss."""

    def batch(rng: np.random.Generator) -> dict[str, Tensor]:
        index = torch.from_numpy(rng.integers(len(pairs), size=batch_size))

        def normal(shape: tuple[int, ...]) -> Tensor:
            return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))

        # Evenly spread quantiles: every step sees all noise levels, which makes its loss less noisy.
        quantiles = (np.arange(batch_size) + rng.random(batch_size)) / batch_size
        x = pairs.before[index]
        # The structures that a rollout visits are not exactly those of MD; a little noise on the
        # condition, but not on the target, teaches the way back.
        shaken = x + condition_noise * normal((batch_size, n_sites, 3))
        return {
            "x": shaken,
            "x_next": pairs.after[index],
            "noise": normal((batch_size, n_sites, 3)),
            "quantiles": torch.from_numpy(quantiles.astype(np.float32)).clamp(1e-6, 1 - 1e-6),
        }

    return batch


def denoising_loss(model: ConditionalDenoiser, batch: dict[str, Tensor], mean: float, std: float) -> Tensor:
    """Mean of w(sigma) |D(y + sigma n, sigma; x) - y|^2 per component, EDM weights; sigma log-normal."""
    x = centred(batch["x"])
    x_next = centred(batch["x_next"])
    axes = model.frames(x)
    local = x @ axes
    y = x_next @ superposition(x_next, x).mT @ axes - local
    sigma = log_normal_sigma(batch["quantiles"], mean, std)
    noisy = y + sigma[:, None, None] * without_rigid_motion(batch["noise"], local)
    error = (model(noisy, sigma, local) - y).square().mean((1, 2))
    weight = model.preconditioning.loss_weight(sigma)
    loss: Tensor = (weight * error).mean()
    return loss


def farthest_points(points: npt.NDArray[Any], k: int) -> npt.NDArray[np.int64]:
    """Indices of k rows of points (n, d), each as far as possible from those before it."""
    chosen = [0]
    distance = np.linalg.norm(points - points[0], axis=1)
    for _ in range(k - 1):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return np.array(chosen)
