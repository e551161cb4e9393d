"""A residual multilayer perceptron over all sites of one molecule at once.

It knows the sites by their place in the list, so it serves one molecule only, and it has no symmetry of
its own: it is meant for coordinates in a body frame.  In exchange nearly all of its work is dense
matrix products, which makes it several times faster per sample than attention over sites.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class SiteMLPConfig:
    """``n_sites`` sites; ``depth`` residual blocks of two layers of ``width`` each."""

    n_sites: int
    width: int = 384
    depth: int = 4
    n_frequencies: int = 8


class SiteMLP(nn.Module):
    """(positions, noisy displacement, scaled, level) -> (batch, n_sites, 3).

    Besides the coordinates it sees all pair distances of the current structure and how much the noisy
    displacement changes them: bond lengths are then linear in the input, and need not be learned.
    """

    first: Tensor
    second: Tensor
    frequencies: Tensor

    def __init__(self, config: SiteMLPConfig) -> None:
        super().__init__()
        n, width = config.n_sites, config.width
        first, second = torch.triu_indices(n, n, 1)
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("second", second, persistent=False)
        self.register_buffer("frequencies", 2.0 ** torch.arange(config.n_frequencies) * 0.5, persistent=False)
        n_in = 2 * 3 * n + 2 * len(first) + 1 + 2 * config.n_frequencies
        self.enter = nn.Linear(n_in, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(config.depth))
        self.up = nn.ModuleList(nn.Linear(width, width) for _ in range(config.depth))
        self.down = nn.ModuleList(nn.Linear(width, width) for _ in range(config.depth))
        self.level = nn.Linear(1 + 2 * config.n_frequencies, width)
        self.leave = nn.Linear(width, 3 * n)
        for layer in (*self.down, self.leave):
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, positions: Tensor, displacement: Tensor, c_in: Tensor, level: Tensor) -> Tensor:
        """
        Parameters
        ----------
        positions : (batch, n_sites, 3) Å, current structure in its body frame.
        displacement : (batch, n_sites, 3) Å, noisy displacement in the same frame.
        c_in : (batch,) 1/Å, the factor that gives the noisy displacement unit variance.
        level : (batch,) the noise level as preconditioning encodes it.
        """
        a, b = self.first, self.second
        moved = positions + displacement
        now = (positions[:, a] - positions[:, b]).norm(dim=-1)
        then = (moved[:, a] - moved[:, b]).norm(dim=-1)
        phase = level[:, None] * self.frequencies
        time = torch.cat([level[:, None], phase.sin(), phase.cos()], -1)
        scale = c_in[:, None]
        x = torch.cat(
            [
                positions.flatten(1) * 0.5,
                displacement.flatten(1) * scale,
                now * 0.5 - 1.0,
                (then - now) * scale,
                time,
            ],
            -1,
        )
        h = self.enter(x)
        told = self.level(time)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            h = h + down(nn.functional.silu(up(norm(h)) + told))
        result: Tensor = self.leave(h).reshape(positions.shape)
        return result
