"""An equivariant message-passing network built from batched matrix products.

Every atom carries C scalars and C vectors.  A layer forms the moments of its neighbours'
features on a radial basis times 1 and the unit vector (l = 0, 1), as in the atomic cluster
expansion (Drautz, Phys. Rev. B 99, 014104 (2019)), mixes them linearly and gates the vectors
with scalars, as in PaiNN (Schütt, Unke & Gastegger, ICML 2021).  The first layer is the bare
density up to l = 4, whose power spectrum tells lattices apart.  Sums over neighbours are small
dense products over a padded neighbour table: no per-edge multilayer perceptron, hence fast on CPU.

Equivariance to rotation and reflection is exact by construction: vectors are only ever
multiplied by scalars, summed, or contracted with one another.

Layers are evaluated for one chunk of atoms after another on complete node arrays, so the
memory of the edges never exceeds that of a chunk and the result does not depend on the chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.graph import Graph

EPSILON = 1e-4  # keeps the square root smooth where a vector vanishes, as on a perfect lattice
TYPICAL_SUM = 3.0  # brings sums over neighbours to order one


@dataclass(frozen=True)
class MomentsConfig:
    """Architecture; lengths are in units of the length scale of the structure."""

    cutoff: float = 1.65
    n_channels: int = 32
    n_radial: int = 6
    n_layers: int = 2
    l_density: int = 4

    def __post_init__(self) -> None:
        """Raises ValueError for arguments that no network can have."""
        if not (isinstance(self.cutoff, int | float) and 0 < self.cutoff < math.inf):
            raise ValueError(f"cutoff is {self.cutoff!r}, it must be a positive number")
        for key, low, high in (
            ("n_channels", 1, 4096),
            ("n_radial", 1, 64),
            ("n_layers", 0, 64),
            ("l_density", 2, 4),
        ):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"{key} is {value!r}, it must be a whole number from {low} to {high}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def angular_moments(unit: Tensor, l_max: int) -> Tensor:
    """Real spherical harmonics up to ``l_max`` <= 4, times sqrt(4 pi): (..., 3) -> (..., (l_max + 1)**2)."""
    x, y, z = unit.unbind(-1)
    out = [torch.ones_like(x)]
    if l_max >= 1:
        c = math.sqrt(3.0)
        out += [c * y, c * z, c * x]
    if l_max >= 2:
        c = math.sqrt(15.0)
        out += [
            c * x * y,
            c * y * z,
            math.sqrt(5.0) / 2 * (3 * z * z - 1),
            c * x * z,
            c / 2 * (x * x - y * y),
        ]
    if l_max >= 3:
        a, b, c = math.sqrt(35 / 8), math.sqrt(105.0), math.sqrt(21 / 8)
        out += [
            a * y * (3 * x * x - y * y),
            b * x * y * z,
            c * y * (5 * z * z - 1),
            math.sqrt(7.0) / 2 * z * (5 * z * z - 3),
            c * x * (5 * z * z - 1),
            b / 2 * z * (x * x - y * y),
            a * x * (x * x - 3 * y * y),
        ]
    if l_max >= 4:
        z2, xx, yy = z * z, x * x, y * y
        a, b, c, d = (
            3 / 2 * math.sqrt(35.0),
            3 / 2 * math.sqrt(35 / 2),
            3 / 2 * math.sqrt(5.0),
            3 / 2 * math.sqrt(5 / 2),
        )
        out += [
            a * x * y * (xx - yy),
            b * y * z * (3 * xx - yy),
            c * x * y * (7 * z2 - 1),
            d * y * z * (7 * z2 - 3),
            3 / 8 * (35 * z2 * z2 - 30 * z2 + 3),
            d * x * z * (7 * z2 - 3),
            c / 2 * (xx - yy) * (7 * z2 - 1),
            b * x * z * (xx - 3 * yy),
            a / 4 * (xx * (xx - 3 * yy) - yy * (3 * xx - yy)),
        ]
    return torch.stack(out, -1)


def tame(x: Tensor) -> Tensor:
    """x / sqrt(1 + mean(x**2)): small inputs as they are, large ones of order one.

    Without it gates grow with the features they multiply, and rare crowded atoms explode.
    """
    return x * (1 + x.square().mean(-1, keepdim=True)).rsqrt()


@dataclass
class EdgeTable:
    """The edges of n atoms, padded to k neighbours each; padding contributes nothing.

    index (n, k), unit (n, 3, k), radial (n, nb, k), dipole (n, 3 nb, k) = unit times radial.
    """

    index: Tensor
    unit: Tensor
    radial: Tensor
    dipole: Tensor


class _Layer(nn.Module):
    """One interaction: moments of neighbours, linear mixing, gated update.

    Node features are one array (n_atoms, 4, C): a scalar and the three components of a vector.
    """

    def __init__(self, c: int, nb: int) -> None:
        super().__init__()
        self.c, self.nb = c, nb
        self.scalars_self = nn.Linear(c, 2 * c)
        self.scalars_near = nn.Linear(nb * c, 2 * c, bias=False)
        self.scalars_along = nn.Linear(nb * c, 2 * c, bias=False)
        self.vectors_self = nn.Linear(c, c, bias=False)
        self.vectors_near = nn.Linear(nb * c, c, bias=False)
        self.vectors_density = nn.Linear(nb * c, c, bias=False)
        self.vectors_along = nn.Linear(nb * c, c, bias=False)
        self.vectors_other = nn.Linear(c, c, bias=False)
        self.gate = nn.Sequential(nn.Linear(4 * c, 2 * c), nn.SiLU(), nn.Linear(2 * c, 3 * c))

    def forward(self, h: Tensor, here: slice, table: EdgeTable) -> Tensor:
        """New features (n, 4, C) of the atoms ``here`` from the old ones of all atoms."""
        n, k = table.index.shape
        c, nb = self.c, self.nb
        near = h.view(len(h), 4 * c).index_select(0, table.index.view(-1)).view(n, k, 4, c)
        s, vx, vy, vz = near.unbind(2)
        ux, uy, uz = table.unit.unsqueeze(-1).unbind(1)
        along = torch.addcmul(ux * vx, uy, vy).addcmul(uz, vz)
        # Radial moments of everything; dipole moments of the scalars and of the longitudinal parts.
        m = torch.bmm(table.radial, near.view(n, k, 4 * c)).view(n, nb, 4, c).transpose(1, 2).contiguous()
        mu = torch.bmm(table.dipole, s).view(n, 3, nb * c)
        nu = torch.bmm(table.dipole, along).view(n, 3, nb * c)
        na = torch.bmm(table.radial, along).view(n, nb * c)
        m0, m1 = m.view(n, 4, nb * c).split((1, 3), 1)
        h0 = h if n == len(h) else h[here]
        s0, v0 = h0.split((1, 3), 1)
        a = self.scalars_self(s0[:, 0]) + self.scalars_near(m0[:, 0]) + self.scalars_along(na)
        b1 = self.vectors_self(v0) + self.vectors_near(m1)
        b1 = b1 + self.vectors_density(mu) + self.vectors_along(nu)
        b2 = self.vectors_other(b1)
        # Lengths rather than squares: invariants of first order keep deep products tame.
        length = ((b1 * b1).sum(1) + EPSILON).sqrt()
        inner = (b1 * b2).sum(1) / (1 + length)
        g = self.gate(tame(torch.cat([a, inner, length], -1)))
        gs, gv, gw = g.split(c, -1)
        update = torch.cat([gs[:, None], gv[:, None] * b1 + gw[:, None] * b2], 1)
        return h0 + update


class Moments(nn.Module):
    """Graph -> one equivariant vector per atom (and the scalars behind it).

    Input edge vectors and output vectors are in units of the length scale.
    """

    def __init__(self, config: MomentsConfig) -> None:
        super().__init__()
        self.config = config
        self.cutoff = config.cutoff
        c, nb = config.n_channels, config.n_radial
        degrees = range(config.l_density + 1)
        self.mix_density = nn.ParameterList(
            [nn.Parameter(torch.randn(nb, c) / math.sqrt(nb)) for _ in degrees]
        )
        self.embed_in = nn.Linear(c * (config.l_density + 2), 2 * c)
        self.embed_context = nn.Linear(3, 2 * c, bias=False)
        self.embed_out = nn.Linear(2 * c, 3 * c)
        self.layers = nn.ModuleList([_Layer(c, nb) for _ in range(config.n_layers)])
        self.read = nn.Sequential(nn.Linear(c, c), nn.SiLU(), nn.Linear(c, c))
        self.out = nn.Linear(c, 1, bias=False)

    def edge_table(self, graph: Graph, start: int, stop: int) -> EdgeTable:
        """Radial and angular functions of the edges of atoms [start, stop)."""
        index, vectors, mask = graph.padded(start, stop)
        r = vectors.square().sum(1).sqrt_().clamp_min_(1e-6)
        unit = vectors.div_(r[:, None])
        x = r / self.cutoff
        # Value and slope vanish at the cutoff; padding gets nothing.
        envelope = (1 - x.clamp(max=1.0).square_()).square_().mul_(mask)
        # sin(n pi r / rc) / r, the Bessel basis of DimeNet (Gasteiger et al., ICLR 2020), by the
        # recurrence sin((n + 1) y) = 2 cos(y) sin(n y) - sin((n - 1) y): two functions, not n.
        y = x.mul_(math.pi)
        twice = 2 * torch.cos(y)
        waves = [torch.sin(y).mul_(envelope).div_(r).div_(TYPICAL_SUM)]
        waves.append(twice * waves[0])
        while len(waves) < self.config.n_radial:
            waves.append(torch.addcmul(-waves[-2], twice, waves[-1]))
        radial = torch.stack(waves[: self.config.n_radial], 1)
        n, nb, k = radial.shape
        # reshape, not view: with one neighbour each (k = 1) the product's strides are ambiguous.
        dipole = (unit[:, :, None] * radial[:, None]).reshape(n, 3 * nb, k)
        return EdgeTable(index, unit, radial, dipole)

    def _density(self, table: EdgeTable, context: Tensor) -> Tensor:
        """First features: the density's power spectrum, its vector, and its tensor applied to that vector."""
        y = angular_moments(table.unit.transpose(1, 2), self.config.l_density)  # (n, k, (l + 1)**2)
        a = torch.bmm(table.radial, y).transpose(1, 2)  # (n, (l + 1)**2, nb)
        parts, start = [], 0
        for degree, weight in enumerate(self.mix_density):
            width = 2 * degree + 1
            parts.append(a[:, start : start + width] @ weight)
            start += width
        scalars = [parts[0][:, 0]] + [((p * p).sum(1) + EPSILON).sqrt() for p in parts]
        hidden = self.embed_in(tame(torch.cat(scalars, -1))) + context
        s, g1, g2 = self.embed_out(nn.functional.silu(hidden)).chunk(3, -1)
        v = parts[1][:, [2, 0, 1]]  # harmonics come as (y, z, x)
        xy, yz, zz, xz, xx = parts[2].unbind(1)
        vx, vy, vz = v.unbind(1)
        zz = zz / math.sqrt(3.0)
        # The traceless symmetric tensor of l = 2 applied to the vector.
        tv = [
            (xx - zz) * vx + xy * vy + xz * vz,
            xy * vx - (xx + zz) * vy + yz * vz,
            xz * vx + yz * vy + 2 * zz * vz,
        ]
        return torch.cat([s[:, None], v * g1[:, None] + torch.stack(tv, 1) * g2[:, None]], 1)

    @property
    def n_scalars(self) -> int:
        """Scalars that `scalars` returns for an atom."""
        return self.config.n_channels * (self.config.n_layers + 1)

    def _features(
        self, graph: Graph, context: tuple[float, float] | None, chunk: int, keep: list[Tensor] | None = None
    ) -> Tensor:
        """Scalars and vectors of the last layer, (n_atoms, 4, C); ``keep`` gets the scalars of all layers."""
        known = [0.0, 0.0, 0.0]
        if context is not None:
            known = [1.0, *(math.log(max(length, 1e-4) / 0.03) / 2 for length in context)]
        shared = self.embed_context(torch.tensor(known, dtype=torch.float32))
        n = graph.n_atoms
        bounds = [(a, min(a + chunk, n)) for a in range(0, n, chunk)]

        # Edge tables are made anew in every layer: cheaper than keeping those of a million atoms.
        def density(a: int, b: int) -> Tensor:
            return self._density(self.edge_table(graph, a, b), shared)

        h = _in_chunks(density, bounds)
        for layer in self.layers:
            if keep is not None:
                keep.append(tame(h[:, 0]))

            def interact(a: int, b: int, layer: nn.Module = layer, h: Tensor = h) -> Tensor:
                new: Tensor = layer(h, slice(a, b), self.edge_table(graph, a, b))
                return new

            h = _in_chunks(interact, bounds)
        if keep is not None:
            keep.append(tame(h[:, 0]))
        return h

    def scalars(self, graph: Graph, context: tuple[float, float] | None = None, chunk: int = 256) -> Tensor:
        """What the layers know of every atom that does not turn with it, (n_atoms, n_scalars)."""
        layers: list[Tensor] = []
        self._features(graph, context, chunk, layers)
        return torch.cat(layers, -1)

    def forward(self, graph: Graph, context: tuple[float, float] | None = None, chunk: int = 256) -> Tensor:
        """One vector per atom, (n_atoms, 3).

        Parameters
        ----------
        context : two lengths that say something of the structure as a whole, if anything is known.
        chunk : so many atoms are worked on at a time; it never changes the result.
        """
        h = self._features(graph, context, chunk)
        vectors: Tensor = self.out(h[:, 1:] * self.read(tame(h[:, 0]))[:, None])
        return vectors.squeeze(-1)


def _in_chunks(function: Callable[[int, int], Tensor], bounds: list[tuple[int, int]]) -> Tensor:
    """The results of ``function`` for all chunks as one tensor, without a second copy in inference."""
    if len(bounds) == 1:
        return function(*bounds[0])
    if torch.is_grad_enabled():
        return torch.cat([function(a, b) for a, b in bounds])
    first = function(*bounds[0])
    out = first.new_empty((bounds[-1][1], *first.shape[1:]))
    out[: len(first)] = first
    for a, b in bounds[1:]:
        out[a:b] = function(a, b)
    return out
