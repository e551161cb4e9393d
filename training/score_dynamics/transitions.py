"""Pairs of frames one lag time apart, and the loss of score dynamics; torch and numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.reference_md.segments import Segment
from zoo.diffusion import log_normal_sigma
from zoo.molecules.rigid import centred, rotation_vector, superposition, without_rigid_motion
from zoo.score_dynamics import ConditionalDenoiser

if TYPE_CHECKING:
    from training.score_dynamics.importance import Importance

#: Of a batch, pairs of each rare kind, and the ratio, see `rare_rows`, at which this ends: with smaller ones
#: the loss is that of the few plain pairs that have large weights.
RARE_SHARE, SELDOM = 0.05, 0.01


@dataclass(frozen=True)
class Transitions:
    """All pairs of frames ``lag`` frames apart that do not cross from one segment into the next.

    frames (n_frames, n_sites, 3) Å float32, all segments one after another; ``origins`` (n_pairs,), the
    index of each pair's first frame; ``lag_time`` ps.
    """

    frames: Tensor
    origins: Tensor
    lag: int
    lag_time: float

    def __len__(self) -> int:
        return len(self.origins)

    def pairs(self, index: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Frames before and after (n, n_sites, 3) Å of some pairs."""
        origins = self.origins[index]
        return self.frames[origins], self.frames[origins + self.lag]


@dataclass(frozen=True)
class RarePairs:
    """Pairs onto and over a barrier, see `training.score_dynamics.rare`.

    before, after (n, n_sites, 3) Å float32; ``kind`` (n,) int64 from 1, pairs of a kind being drawn by what
    they stand for; ``stands_for`` (n,) float64, for how many pairs of the plain MD; ``side`` (n,) 0 or 1, on
    which side of the barrier each begins; ``plain_side`` (n_plain,) the same of the plain pairs beside them.
    """

    before: Tensor
    after: Tensor
    kind: Tensor
    stands_for: Tensor
    side: Tensor
    plain_side: Tensor

    def __len__(self) -> int:
        return len(self.before)

    def __post_init__(self) -> None:
        n = len(self.before)
        if not n == len(self.after) == len(self.kind) == len(self.stands_for) == len(self.side):
            raise ValueError("rare pairs of different numbers")
        if not bool((self.of_kinds() > 0).all()):
            raise ValueError("there are kinds of rare pairs that stand for nothing")

    def of_kinds(self) -> Tensor:
        """(n_kinds,) float64, for how many plain pairs those of each kind stand."""
        return torch.bincount(self.kind - 1, self.stands_for)

    @property
    def n_kinds(self) -> int:
        return int(self.kind.max())


def rare_rows(rare: RarePairs, n_plain: int, batch_size: int) -> tuple[int, Tensor]:
    """Rows of a batch for rare pairs, and the ratios (1 + n_kinds,): how much too seldom each kind is drawn.

    It is 1 for plain pairs.  Each rare kind gets `RARE_SHARE` of what these get, but is not drawn more than
    1 / `SELDOM` times too often.

    Raises
    ------
    ValueError : none is left for plain pairs.
    """
    shares = rare.of_kinds() / n_plain
    ratios = torch.clamp(shares / RARE_SHARE, SELDOM, 1.0)
    per_plain = float((shares / ratios).sum())
    rows = max(round(batch_size * per_plain / (1.0 + per_plain)), 1)
    if rows >= batch_size:
        raise ValueError(f"a batch of {batch_size} has no place for rare pairs")
    ratios = ratios * per_plain * (batch_size - rows) / rows  # for rows are whole numbers
    return rows, torch.cat([torch.ones(1), ratios.float()])


def transitions(segments: Iterable[Segment], sites: Sequence[int], lag_time: float) -> Transitions:
    """All pairs at all time origins.

    Raises
    ------
    ValueError : no pairs, or the lag time is no multiple of the interval between frames.
    """
    frames: list[Tensor] = []
    origins: list[Tensor] = []
    offset, lags = 0, set()
    for segment in segments:
        lag = round(lag_time / segment.dt)
        if lag < 1 or not math.isclose(lag * segment.dt, lag_time, rel_tol=1e-6):
            raise ValueError(
                f"{segment.path}: frames every {segment.dt} ps do not make a lag of {lag_time} ps"
            )
        x = torch.from_numpy(np.ascontiguousarray(segment.positions[:, list(sites)])).double()
        # Single precision has four decimals left of Å at 1000 Å from the origin, so come nearer.
        frames.append((x - x[:1].mean(1, keepdim=True)).float())
        origins.append(offset + torch.arange(max(len(x) - lag, 0)))
        offset += len(x)
        lags.add(lag)
    if not origins or not sum(map(len, origins)):
        raise ValueError("no pairs of frames: the segments are shorter than the lag time")
    if len(lags) > 1:
        raise ValueError("the segments have different intervals between frames")
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


def make_batches(
    data: Transitions, batch_size: int, condition_noise: float, rare: RarePairs | None = None
) -> Callable[[np.random.Generator], dict[str, Tensor]]:
    """Draws everything random of a step from its generator; the arrays are those of the loss.

    With rare pairs a batch ends with some of them, see `rare_rows`, and has the "kind" of each pair, 0 for
    plain ones, and what directed noise needs: see `training.score_dynamics.importance`.
    """
    n_sites = data.frames.shape[1]
    n_rare, of_side, cumulative = 0, [], np.zeros(0)
    if rare is not None:
        n_rare, ratios = rare_rows(rare, len(data), batch_size)
        of_side = [torch.nonzero(rare.side == side)[:, 0].numpy() for side in (0, 1)]
        cumulative = (rare.stands_for / ratios[rare.kind].double()).cumsum(0).numpy()
    n_plain = batch_size - n_rare

    def batch(rng: np.random.Generator) -> dict[str, Tensor]:
        more: dict[str, Tensor] = {}
        index = torch.from_numpy(rng.integers(len(data), size=n_plain))
        before, after = data.pairs(index)
        if rare is not None:
            drawn = np.searchsorted(cumulative, rng.random(n_rare) * cumulative[-1], side="right")
            before = torch.cat([before, rare.before[drawn]])
            after = torch.cat([after, rare.after[drawn]])

        def normal(shape: tuple[int, ...]) -> Tensor:
            return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))

        # Evenly spread quantiles: every step sees all noise levels, which makes its loss less noisy.
        quantiles = (np.arange(batch_size) + rng.random(batch_size)) / batch_size
        if rare is not None:
            quantiles = rng.permutation(quantiles)  # all levels for all kinds
            side, any_of = np.zeros(batch_size, dtype=np.int64), rng.random((3, batch_size))
            side[:n_plain] = rare.plain_side[index]
            toward = [rows[(any_of[0] * len(rows)).astype(np.int64)] for rows in of_side]
            more = {
                "kind": torch.cat([torch.zeros(n_plain, dtype=torch.int64), rare.kind[drawn]]),
                "toward": torch.from_numpy(np.where(side == 0, *toward)),
                "how_far": torch.from_numpy(any_of[1].astype(np.float32)),
                "coin": torch.from_numpy(any_of[2].astype(np.float32)),
            }
        # The structures that a rollout visits are not exactly those of MD; a little noise on the
        # condition, but not on the target, teaches the way back.
        shaken = centred(before) + condition_noise * normal((batch_size, n_sites, 3))
        return {
            "x": shaken,
            "x_next": centred(after),
            "noise": normal((batch_size, n_sites, 3)),
            "quantiles": torch.from_numpy(quantiles.astype(np.float32)).clamp(1e-6, 1 - 1e-6),
            **more,
        }

    return batch


def denoising_loss(
    model: ConditionalDenoiser,
    batch: dict[str, Tensor],
    mean: float,
    std: float,
    importance: Importance | None = None,
) -> Tensor:
    """Mean of w(sigma) |D(y + sigma n, sigma; x) - y|^2 per component, EDM weights; sigma log-normal.

    With ``importance`` every pair counts as that says, see `training.score_dynamics.importance`.
    """
    local, y = local_displacements(model, batch["x"], batch["x_next"])
    sigma = log_normal_sigma(batch["quantiles"], mean, std)
    noise, weight = without_rigid_motion(batch["noise"], local), torch.ones_like(sigma)
    if importance is not None:
        noise, weight = importance.directed(y, sigma, noise, local, batch)
    noisy = y + sigma[:, None, None] * noise
    if importance is not None:
        weight = weight * importance(noisy, sigma, local, batch["kind"])
    error = (model(noisy, sigma, local) - y).square().mean((1, 2))
    loss: Tensor = (weight * model.preconditioning.loss_weight(sigma) * error).mean()
    return loss


def farthest_points(points: npt.NDArray[Any], k: int) -> npt.NDArray[np.int64]:
    """Indices of k rows of points (n, d), each as far as possible from those before it."""
    chosen = [0]
    distance = np.linalg.norm(points - points[0], axis=1)
    for _ in range(k - 1):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return np.array(chosen)
