"""Equivariant attention over the atoms of any molecule, which it knows by elements and bonds.

Atoms are told apart by their element, their number of neighbours and how many of these are hydrogens;
pairs by the number of bonds between them and by their distances.  Nothing belongs to one molecule, so one
network serves many.  Every atom carries scalars and vectors (in the manner of Schütt et al.,
arXiv:2102.03150, and of equivariant transformers, Thölke & De Fabritiis, arXiv:2202.02541).  All vectors
are sums of differences of positions or of displacements with invariant coefficients: rotations,
reflections and permutations of equal atoms are exact symmetries, in any frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from zoo.backbones.site_network import Response

if TYPE_CHECKING:
    from zoo.molecules.molecule import Molecule

_MOST_NEIGHBOURS = 6


@dataclass(frozen=True)
class GraphTransformerConfig:
    """``depth`` pre-norm blocks of ``width`` scalars, ``vectors`` vectors and ``heads`` heads per atom.

    Pairs farther apart than ``separations`` bonds are told by their distances alone, so that longer
    molecules than those of the training hold nothing new.
    """

    elements: tuple[str, ...] = ("H", "C")
    width: int = 128
    depth: int = 4
    heads: int = 8
    vectors: int = 32
    separations: int = 6
    pair_width: int = 48
    n_frequencies: int = 8


@dataclass(frozen=True)
class Graph:
    """A molecule as the network sees it: ``kinds`` (n, 3) long, ``separation`` (n, n) long."""

    kinds: Tensor
    separation: Tensor


def graph_of(molecule: Molecule, config: GraphTransformerConfig) -> Graph:
    """Element, number of neighbours and of hydrogens of each site; bonds between each two.

    Raises
    ------
    ValueError : an element that the network has no vector for.
    """
    rows: list[Sequence[int]] = []
    for atom in molecule.sites:
        near = molecule.neighbors[atom]
        hydrogens = sum(molecule.elements[other] == "H" for other in near)
        rows.append(
            (
                tuple(config.elements).index(molecule.elements[atom]),
                min(len(near), _MOST_NEIGHBOURS),
                min(hydrogens, _MOST_NEIGHBOURS),
            )
        )
    separation = torch.from_numpy(molecule.site_separation.copy()).clamp_max(config.separations)
    return Graph(torch.tensor(rows, dtype=torch.long), separation)


class GraphTransformer(nn.Module):
    """(graph, positions, noisy displacement, its scale, noise level) -> (batch, n, 3)."""

    frequencies: Tensor

    def __init__(self, config: GraphTransformerConfig) -> None:
        super().__init__()
        width, channels = config.width, config.vectors
        if width % config.heads or channels % config.heads:
            raise ValueError(
                f"width {width} and vectors {channels} must be multiples of {config.heads} heads"
            )
        self.config = config
        self.register_buffer("frequencies", 2.0 ** torch.arange(config.n_frequencies) * 0.5, persistent=False)
        n_time = 1 + 2 * config.n_frequencies
        self.kinds = nn.ModuleList(
            nn.Embedding(n, width) for n in (len(config.elements), _MOST_NEIGHBOURS + 1, _MOST_NEIGHBOURS + 1)
        )
        self.time = nn.Sequential(nn.Linear(n_time, width), nn.SiLU(), nn.Linear(width, width))
        self.separation = nn.Embedding(config.separations + 1, config.pair_width)
        self.pair = nn.Linear(5, config.pair_width)
        # Per block and head: a bias of attention, a weight of positions and one of displacements.
        self.bias = nn.Linear(config.pair_width, config.depth * config.heads * 3)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, channels + 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def given(self, positions: Tensor, graph: Graph) -> Response:
        """For one structure and many displacements of it: what depends on it alone is done once."""
        heads = self.config.heads
        now = _distances(positions)
        between = self.separation(graph.separation)
        kinds = sum(table(column) for table, column in zip(self.kinds, graph.kinds.T, strict=True))

        def respond(displacement: Tensor, c_in: Tensor, level: Tensor) -> Tensor:
            scale = c_in[:, None, None]
            with torch.autocast(positions.device.type, enabled=False):
                then = _distances(positions + displacement)
                # How far j is from where i was tells turning from stretching.
                cross = _cross(positions, displacement)
                features = torch.stack(
                    [now * 0.5 - 1.0, (1 + now).reciprocal(), (then - now) * scale, cross * scale,
                     cross.mT * scale], -1,
                )  # fmt: skip
                arrows = torch.cat([positions, displacement * scale], -1)
            pairs = nn.functional.silu(self.pair(features) + between)
            bias = self.bias(pairs).permute(0, 3, 1, 2)
            phase = level[:, None] * self.frequencies
            told = self.time(torch.cat([level[:, None], phase.sin(), phase.cos()], -1))
            n = positions.shape[1]
            h = (kinds + told[:, None]).expand(len(positions), n, -1)
            vectors = positions.new_zeros(len(positions), n, self.config.vectors, 3)
            for block, own in zip(self.blocks, bias.split(3 * heads, 1), strict=True):
                h, vectors = block(h, vectors, own, arrows, told)
            gates = self.leave(self.norm(h)).to(positions.dtype)
            moved = (gates[..., None, :-1] @ vectors.to(positions.dtype))[..., 0, :]
            result: Tensor = moved + gates[..., -1:] * displacement * scale
            return result

        return respond


class _Block(nn.Module):
    def __init__(self, config: GraphTransformerConfig) -> None:
        super().__init__()
        width, channels = config.width, config.vectors
        self.heads = config.heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.shift = nn.Linear(width, 2 * width)  # of the noise level, for both norms
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.arrows = nn.Linear(2 * config.heads + channels, channels, bias=False)
        self.sides = nn.Linear(channels, 2 * channels, bias=False)
        self.up = nn.Linear(width + 2 * channels, 4 * width)
        self.down = nn.Linear(4 * width, width + channels)
        for layer in (self.out, self.down):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, h: Tensor, vectors: Tensor, pairs: Tensor, arrows: Tensor, told: Tensor
    ) -> tuple[Tensor, Tensor]:
        batch, n, width = h.shape
        heads, channels = self.heads, vectors.shape[2]
        one, two = self.shift(nn.functional.silu(told))[:, None].chunk(2, -1)
        qkv = self.qkv(self.first(h) + one).view(batch, n, 3, heads, width // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        bias, of_position, of_displacement = pairs.chunk(3, 1)
        weights = (q @ k.mT / math.sqrt(width // heads) + bias).softmax(-1)
        mixed = (weights.to(v.dtype) @ v).transpose(1, 2).reshape(batch, n, width)
        h = h + self.out(mixed)
        # Vectors: sums of x_j - x_i and y_j - y_i, and those of the others.
        x, y = arrows[:, None, :, :3], arrows[:, None, :, 3:]
        toward = [
            w @ a.to(w.dtype) - w.sum(-1, keepdim=True) * a.to(w.dtype)
            for w, a in ((weights * of_position, x), (weights * of_displacement, y))
        ]
        seen = vectors.view(batch, n, heads, -1).transpose(1, 2)
        seen = (weights.to(seen.dtype) @ seen).transpose(1, 2).reshape(batch, n, channels, 3)
        new = torch.cat([*(t.permute(0, 2, 3, 1).to(seen.dtype) for t in toward), seen.mT], -1)
        vectors = vectors + self.arrows(new).mT
        left, right = self.sides(vectors.mT).chunk(2, -1)  # (batch, n, 3, channels) each
        invariants = [(left * right).sum(-2), (right * right).sum(-2)]
        both = torch.cat([self.second(h) + two, *(i.to(h.dtype) for i in invariants)], -1)
        change, gates = self.down(nn.functional.silu(self.up(both))).split([width, channels], -1)
        return h + change, vectors * (1 + gates[..., None])


def _distances(x: Tensor) -> Tensor:
    """(batch, n, n); a little above zero on the diagonal, where the gradient would be infinite."""
    between = x[:, :, None] - x[:, None]
    return (between.square().sum(-1) + 1e-6).sqrt()


def _cross(x: Tensor, y: Tensor) -> Tensor:
    """(batch, n, n): by how much y_i moves atom i away from where atom j was, to first order, Å."""
    between = x[:, :, None] - x[:, None]
    length = (between.square().sum(-1) + 1e-6).sqrt()
    return (between * y[:, :, None]).sum(-1) / length
