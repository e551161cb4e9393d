"""Attention over the sites of a molecule, biased by the distances between them.

Sites are told apart by a learned vector each, so one network serves one molecule; it has no symmetry of
its own and is meant for coordinates in a body frame.  Compared with `zoo.backbones.site_mlp`: fewer
parameters, which grow with the width and not with the number of sites, and several times more work per
sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.backbones.site_network import Response, SiteNetwork


@dataclass(frozen=True)
class SiteTransformerConfig:
    """``n_sites`` sites; ``depth`` pre-norm blocks of ``width`` channels and ``heads`` heads."""

    n_sites: int
    width: int = 128
    depth: int = 4
    heads: int = 8
    n_frequencies: int = 8


class SiteTransformer(SiteNetwork):
    """(positions, noisy displacement, scaled, level) -> (batch, n_sites, 3)."""

    frequencies: Tensor

    def __init__(self, config: SiteTransformerConfig) -> None:
        super().__init__()
        width = config.width
        if width % config.heads:
            raise ValueError(f"width {width} is not a multiple of {config.heads} heads")
        self.heads = config.heads
        self.register_buffer("frequencies", 2.0 ** torch.arange(config.n_frequencies) * 0.5, persistent=False)
        n_time = 1 + 2 * config.n_frequencies
        self.site = nn.Parameter(torch.randn(config.n_sites, width) * 0.5)
        self.enter = nn.Linear(6, width)
        self.time = nn.Sequential(nn.Linear(n_time, width), nn.SiLU(), nn.Linear(width, width))
        # One bias per pair of sites and head, and one that depends on the distances of the pair.
        self.pair = nn.Parameter(torch.zeros(config.depth * config.heads, config.n_sites, config.n_sites))
        self.bias = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, config.depth * config.heads))
        self.blocks = nn.ModuleList(_Block(width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, 3)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def given(self, positions: Tensor, label: Tensor | None = None) -> Response:
        now = _distances(positions)

        def respond(displacement: Tensor, c_in: Tensor, level: Tensor) -> Tensor:
            scaled = displacement * c_in[:, None, None]
            then = _distances(positions + displacement)
            pairs = torch.stack(
                [now * 0.5 - 1.0, (then - now) * c_in[:, None, None], (1 + now).reciprocal()], -1
            )
            bias = self.bias(pairs).permute(0, 3, 1, 2) + self.pair
            phase = level[:, None] * self.frequencies
            told = self.time(torch.cat([level[:, None], phase.sin(), phase.cos()], -1))
            h = self.enter(torch.cat([positions * 0.5, scaled], -1)) + self.site
            for block, own in zip(self.blocks, bias.split(self.heads, 1), strict=True):
                h = block(h, own, told)
            result: Tensor = self.leave(self.norm(h))
            return result

        return respond


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.shift = nn.Linear(width, 2 * width)  # of the noise level, for both norms
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for layer in (self.out, self.down):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor, bias: Tensor, told: Tensor) -> Tensor:
        batch, n, width = h.shape
        one, two = self.shift(nn.functional.silu(told))[:, None].chunk(2, -1)
        qkv = self.qkv(self.first(h) + one).view(batch, n, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / math.sqrt(width // self.heads) + bias).softmax(-1)
        mixed = (weights.to(v.dtype) @ v).transpose(1, 2).reshape(batch, n, width)
        h = h + self.out(mixed)
        result: Tensor = h + self.down(nn.functional.silu(self.up(self.second(h) + two)))
        return result


def _distances(x: Tensor) -> Tensor:
    """(batch, n, n); a little above zero on the diagonal, where the gradient would be infinite."""
    between = x[:, :, None] - x[:, None]
    return (between.square().sum(-1) + 1e-6).sqrt()
