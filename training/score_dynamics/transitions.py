"""Pairs of frames one lag time apart, and the loss of score dynamics; torch and numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.errors import TrainingError
from training.reference_md.segments import Segment
from zoo.diffusion import log_normal_sigma
from zoo.molecules.rigid import centred, rotation_vector, superposition, without_rigid_motion
from zoo.score_dynamics import ConditionalDenoiser


@dataclass(frozen=True)
class Transitions:
    """All pairs of frames ``lag`` frames apart that do not cross from one segment into the next.

    frames (n_frames, n_sites, 3) Å float32, all segments one after another; ``origins`` (n_pairs,), the
    index of each pair's first frame; ``lag_time`` ps; ``both_ways`` (n_pairs,) bool, which pairs training
    draws reversed half of the time (None: none of them).  Equilibrium does not know the direction of time:
    over momenta drawn anew, p(x) p(x' | x) = p(x') p(x | x'), with Langevin dynamics at any friction.  That
    may be an equilibrium within a part of space, if no pair leaves it.
    """

    frames: Tensor
    origins: Tensor
    lag: int
    lag_time: float
    both_ways: Tensor | None = None

    def __len__(self) -> int:
        return len(self.origins)

    def pairs(self, index: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Frames before and after (n, n_sites, 3) Å of some pairs."""
        origins = self.origins[index]
        return self.frames[origins], self.frames[origins + self.lag]


@dataclass(frozen=True)
class OverPairs:
    """Pairs over a barrier, see `training.score_dynamics.sides`.

    before, after (n, n_sites, 3) Å float32; ``ends`` (n,) int64 the side, 0 or 1, on which each ends;
    ``weight`` (n,) float64, by which those that end on the same side are drawn.
    """

    before: Tensor
    after: Tensor
    ends: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.before)


@dataclass(frozen=True)
class HeadData:
    """What the side on which a step ends is learned from.

    angles (n, n_torsions) float32, radians, in the body frame, where pairs begin; ``above`` (n,) float32,
    whether they end on side 1; ``weight`` (n,) float64, shares of equilibrium with both sides made equal.
    """

    angles: Tensor
    above: Tensor
    weight: Tensor


def transitions(segments: Iterable[Segment], sites: Sequence[int], lag_time: float) -> Transitions:
    """All pairs at all time origins.

    Raises
    ------
    TrainingError : no pairs, or the lag time is no multiple of the interval between frames.
    """
    frames: list[Tensor] = []
    origins: list[Tensor] = []
    offset, lags = 0, set()
    for segment in segments:
        lag = round(lag_time / segment.dt)
        if lag < 1 or not math.isclose(lag * segment.dt, lag_time, rel_tol=1e-6):
            raise TrainingError(
                f"{segment.path}: frames every {segment.dt} ps do not make a lag of {lag_time} ps"
            )
        x = torch.from_numpy(np.ascontiguousarray(segment.positions[:, list(sites)])).double()
        # Single precision has four decimals left of Å at 1000 Å from the origin, so come nearer.
        frames.append((x - x[:1].mean(1, keepdim=True)).float())
        origins.append(offset + torch.arange(max(len(x) - lag, 0)))
        offset += len(x)
        lags.add(lag)
    if not origins or not sum(map(len, origins)):
        raise TrainingError("no pairs of frames: the segments are shorter than the lag time")
    if len(lags) > 1:
        raise TrainingError("the segments have different intervals between frames")
    return Transitions(torch.cat(frames), torch.cat(origins), lags.pop(), lag_time)


def local_displacements(model: ConditionalDenoiser, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Structures and displacements (n_pairs, n_sites, 3) in the body frame, Å."""
    x, x_next = centred(before), centred(after)
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


#: Of a batch, pairs over a barrier that end on one side, and as many that end on the other.
OVER_SHARE = 0.1


def make_batches(
    data: Transitions, batch_size: int, condition_noise: float, over: OverPairs | None = None
) -> Callable[[np.random.Generator], dict[str, Tensor]]:
    """Draws everything random of a step from its generator; the arrays are those of the loss.

    With pairs over a barrier a batch ends with `OVER_SHARE` of them to either side.
    """
    n_sites = data.frames.shape[1]
    n_each, to_side = 0, []
    if over is not None:
        n_each = max(round(OVER_SHARE * batch_size), 1)
        for side in (0, 1):
            rows = torch.nonzero(over.ends == side)[:, 0]
            to_side.append((rows.numpy(), over.weight[rows].cumsum(0).numpy()))
    n_plain = batch_size - 2 * n_each
    if n_plain < 1:
        raise TrainingError(f"a batch of {batch_size} has no place for pairs over a barrier")

    def batch(rng: np.random.Generator) -> dict[str, Tensor]:
        chosen = torch.from_numpy(rng.integers(len(data), size=n_plain))
        before, after = data.pairs(chosen)
        if data.both_ways is not None:
            turned = data.both_ways[chosen] & torch.from_numpy(rng.random(n_plain) < 0.5)
            before, after = (
                torch.where(turned[:, None, None], b, a) for a, b in ((before, after), (after, before))
            )
        if over is not None:
            drawn = np.concatenate(
                [
                    rows[np.searchsorted(c, rng.random(n_each) * c[-1], side="right").clip(max=len(c) - 1)]
                    for rows, c in to_side
                ]
            )
            before = torch.cat([before, over.before[drawn]])
            after = torch.cat([after, over.after[drawn]])

        def normal(shape: tuple[int, ...]) -> Tensor:
            return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))

        # Evenly spread quantiles: every step sees all noise levels, which makes its loss less noisy.
        quantiles = (np.arange(batch_size) + rng.random(batch_size)) / batch_size
        if over is not None:
            quantiles = rng.permutation(quantiles)  # all levels for pairs over the barrier too
        # The structures that a rollout visits are not exactly those of MD; a little noise on the
        # condition, but not on the target, teaches the way back.
        shaken = centred(before) + condition_noise * normal((batch_size, n_sites, 3))
        return {
            "x": shaken,
            "x_next": centred(after),
            "noise": normal((batch_size, n_sites, 3)),
            "quantiles": torch.from_numpy(quantiles.astype(np.float32)).clamp(1e-6, 1 - 1e-6),
        }

    return batch


def denoising_loss(
    model: ConditionalDenoiser,
    batch: dict[str, Tensor],
    mean: float,
    std: float,
) -> Tensor:
    """Mean of w(sigma) |D(y + sigma n, sigma; x) - y|^2 per component, EDM weights; sigma log-normal.

    A model with sides is told on which each pair ends.
    """
    local, y = local_displacements(model, batch["x"], batch["x_next"])
    sigma = log_normal_sigma(batch["quantiles"], mean, std)
    noisy = y + sigma[:, None, None] * without_rigid_motion(batch["noise"], local)
    sides = getattr(model, "sides", None)
    known = () if sides is None else (sides.of(local + y),)
    error = (model(noisy, sigma, local, *known) - y).square().mean((1, 2))
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
