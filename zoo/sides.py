"""The side of a barrier on which a step ends, drawn before all else of the step.

Over a high barrier one step in thousands or hundreds of thousands goes.  A diffusion model, whose sample runs
down one smooth field from noise, draws the border between an end that has nearly all of the probability and
one that has a share of 1e-4 of it too softly, and lets far too many over, or none.  Told apart they are easy:

    p(x' | x) = sum over sides s of P(s | x) p(x' | x, s).

P(1 | x), a sigmoid of what a small network makes of a few torsions, is a logistic regression and can be as
small as it is; p(x' | x, s) is the diffusion model, whose network is told s, and can be trained on as many
steps to either side as there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import CheckpointError

Quadruple = tuple[int, int, int, int]

_LARGEST_SHIFT = 3.0
#: cos and sin of this many multiples of each torsion are what the network sees.
_HARMONICS = 3


@dataclass(frozen=True)
class SidesConfig:
    """Two sides of a barrier.

    Parameters
    ----------
    torsions : sites of the torsions that the network sees; the first one tells the side.
    between : degrees; side 1 is where the first torsion, in the body frame, is on the way up from the first
        of these angles to the second.  (The body frame of a molecule and of its mirror image is the same, and
        may be the one in which all torsions have the other sign.)
    width : of the two hidden layers.
    shift : added to the log odds that a step ends on the other side, of steps that begin on side 0 and on
        side 1.  Where a propagator is less often on its way to the barrier than MD, too few steps go over it,
        however well their probability is known; this makes up for it from where it is.
    """

    torsions: tuple[Quadruple, ...]
    between: tuple[float, float]
    width: int = 64
    shift: tuple[float, float] = (0.0, 0.0)

    def to_json(self) -> dict[str, Any]:
        data = {
            key: [*map(list, value)] if key == "torsions" else value for key, value in asdict(self).items()
        }
        if not any(self.shift):  # of checkpoints that are older than it
            del data["shift"]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any], n_sites: int) -> SidesConfig:
        """Strict.

        Raises
        ------
        CheckpointError : unknown, missing or impossible values.
        """
        try:
            unknown = sorted(set(data) - {"torsions", "between", "width", "shift"})
            if unknown:
                raise ValueError(f"unknown keys {', '.join(unknown)}")
            torsions = tuple(tuple(each) for each in data["torsions"])
            low, high = (float(each) for each in data["between"])
            width = data.get("width", cls.width)
            out, back = (float(each) for each in data.get("shift", cls.shift))
            if not torsions or not all(
                len(set(each)) == 4 and all(type(i) is int and 0 <= i < n_sites for i in each)
                for each in torsions
            ):
                raise ValueError("a torsion needs four different sites")
            if not (math.isfinite(low) and math.isfinite(high) and (high - low) % 360.0 > 0):
                raise ValueError(f"no angle is between {low} and {high}")
            if not (abs(out) <= _LARGEST_SHIFT and abs(back) <= _LARGEST_SHIFT):
                raise ValueError(
                    f"shift {out}, {back} is not between -{_LARGEST_SHIFT:g} and {_LARGEST_SHIFT:g}"
                )
            if type(width) is not int or not 0 < width <= 4096:
                raise ValueError(f"width {width!r} is none")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"config.json: sides of a barrier are not valid: {error}") from None
        return cls(torsions, (low, high), width, (out, back))


class Sides(nn.Module):
    """Logits of side 1, (batch,), from structures (batch, n_sites, 3) in their body frames."""

    quadruples: Tensor

    def __init__(self, config: SidesConfig) -> None:
        super().__init__()
        self.between, self.shift = config.between, config.shift
        self.register_buffer("quadruples", torch.tensor(config.torsions), persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(2 * _HARMONICS * len(config.torsions), config.width), nn.SiLU(),
            nn.Linear(config.width, config.width), nn.SiLU(), nn.Linear(config.width, 1),
        )  # fmt: skip

    def forward(self, positions: Tensor) -> Tensor:
        return self.of_angles(self.torsions(positions))

    def of_angles(self, angles: Tensor) -> Tensor:
        """Logits (batch,) of torsions (batch, n_torsions) in radians."""
        multiples = torch.cat([k * angles for k in range(1, _HARMONICS + 1)], 1)
        logits: Tensor = self.layers(torch.cat([multiples.cos(), multiples.sin()], 1).to(self.dtype))[:, 0]
        out, back = self.shift
        return logits + torch.where(self._above(angles), -back, out).to(logits.dtype)

    @property
    def dtype(self) -> torch.dtype:
        weight = self.layers[0].weight
        assert isinstance(weight, Tensor)
        return weight.dtype

    def log_probability(self, positions: Tensor, side: int) -> Tensor:
        """log P(side | x), (batch,)."""
        logits = self(positions)
        return nn.functional.logsigmoid(logits if side else -logits)

    def torsions(self, positions: Tensor) -> Tensor:
        """(batch, n_torsions), radians."""
        return torsions(positions, self.quadruples)

    def of(self, positions: Tensor) -> Tensor:
        """(batch,) int64, 0 or 1: the side on which structures are."""
        return self._above(self.torsions(positions)).long()

    def _above(self, angles: Tensor) -> Tensor:
        above: Tensor = is_between(torch.rad2deg(angles[:, 0]), self.between)
        return above


def is_between(angle: Any, between: tuple[float, float]) -> Any:
    """Whether angles (degrees, an array or a tensor) are on the way up from the first limit to the second."""
    low, high = between
    return (angle - low) % 360.0 < (high - low) % 360.0


def torsions(positions: Tensor, quadruples: Tensor | Sequence[Quadruple]) -> Tensor:
    """Torsion angles (batch, n) in radians, of positions (batch, n_sites, 3); IUPAC sign."""
    chosen = positions[:, torch.as_tensor(quadruples)]
    first, axis, last = chosen.diff(dim=2).unbind(2)
    one, other = torch.linalg.cross(first, axis), torch.linalg.cross(axis, last)
    along = (torch.linalg.cross(one, other) * axis).sum(-1) / axis.norm(dim=-1)
    return torch.atan2(along, (one * other).sum(-1))
