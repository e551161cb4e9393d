"""A residual multilayer perceptron over all sites of one molecule at once.

It knows the sites by their place in the list, so it serves one molecule only, and it has no symmetry of
its own: it is meant for coordinates in a body frame.  In exchange nearly all of its work is dense
matrix products, which makes it several times faster per sample than attention over sites.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.backbones.site_network import Response, SiteNetwork


@dataclass(frozen=True)
class SiteMLPConfig:
    """``n_sites`` sites; ``depth`` residual blocks of two layers of ``width``; ``n_labels`` of a step."""

    n_sites: int
    width: int = 384
    depth: int = 4
    n_frequencies: int = 8
    n_labels: int = 0


class SiteMLP(SiteNetwork):
    """(positions, noisy displacement, scaled, level) -> (batch, n_sites, 3).

    Besides the coordinates it sees all pair distances of the current structure and how much the noisy
    displacement changes them: bond lengths are then linear in the input, and need not be learned.
    """

    differences: Tensor
    frequencies: Tensor

    def __init__(self, config: SiteMLPConfig) -> None:
        super().__init__()
        n, width = config.n_sites, config.width
        first, second = torch.triu_indices(n, n, 1)
        # Column k takes the difference of the k-th pair: one product is several times faster than gathering.
        eye = torch.eye(n)
        self.register_buffer("differences", (eye[first] - eye[second]).T.contiguous(), persistent=False)
        self.register_buffer("frequencies", 2.0 ** torch.arange(config.n_frequencies) * 0.5, persistent=False)
        n_in = 2 * 3 * n + 2 * len(first) + 1 + 2 * config.n_frequencies
        self.enter = nn.Linear(n_in, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(config.depth))
        self.up = nn.ModuleList(nn.Linear(width, width) for _ in range(config.depth))
        self.down = nn.ModuleList(nn.Linear(width, width) for _ in range(config.depth))
        self.level = nn.Linear(1 + 2 * config.n_frequencies, width)
        self.leave = nn.Linear(width, 3 * n)
        self.n_labels = config.n_labels
        if config.n_labels:
            # zero: what was trained without labels goes on from where it was
            self.labels = nn.Parameter(torch.zeros(config.n_labels, 2 * width))
        for layer in (*self.down, self.leave):
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def given(self, positions: Tensor, label: Tensor | None = None) -> Response:
        now = self._distances(positions)
        n, n_pairs = positions[0].numel(), now.shape[1]
        of_positions, of_displacement, of_now, of_change, of_time = self.enter.weight.split(
            [n, n, n_pairs, n_pairs, self.level.in_features], 1
        )
        known = nn.functional.linear(
            torch.cat([positions.flatten(1) * 0.5, now * 0.5 - 1.0], 1),
            torch.cat([of_positions, of_now], 1),
            self.enter.bias,
        )
        of_moved = torch.cat([of_displacement, of_change], 1)
        more: Tensor | float = 0.0
        if self.n_labels:
            if label is None:
                raise ValueError(f"the network needs to be told one of {self.n_labels} labels")
            of_label, more = self.labels[label].chunk(2, -1)
            known = known + of_label

        def respond(displacement: Tensor, c_in: Tensor, level: Tensor) -> Tensor:
            change = self._distances(positions + displacement) - now
            phase = level[:, None] * self.frequencies
            time = torch.cat([level[:, None], phase.sin(), phase.cos()], -1)
            x = torch.cat([displacement.flatten(1), change], 1) * c_in[:, None]
            h = known + nn.functional.linear(x, of_moved) + nn.functional.linear(time, of_time)
            told = self.level(time) + more
            for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
                h = h + down(nn.functional.silu(up(norm(h)) + told))
            result: Tensor = self.leave(h).reshape(positions.shape)
            return result

        return respond

    def _distances(self, x: Tensor) -> Tensor:
        """(batch, n_pairs) of x (batch, n_sites, 3), exact also where the rest is in bfloat16."""
        with torch.autocast(x.device.type, enabled=False):
            between = x.mT.reshape(-1, x.shape[1]) @ self.differences.to(x.dtype)
        return between.view(len(x), 3, -1).square().sum(1).sqrt()
