"""A network of MACE's equivariant blocks that sees which neighbours are of an atom's own species.

Interaction and product blocks are those of ``mace-torch`` (Batatia, Kovács, Simm, Ortner & Csányi, NeurIPS
2022, arXiv:2206.07697): messages are tensor products of the neighbours' features with spherical harmonics of
the edges, and products of summed messages up to ``correlation`` give features of many bodies.

Species enter through the edges alone, as *same* or *other*: a compound is known by how its atoms alternate,
whichever elements they are, so one network serves CuNi and NaCl, and exchanging two species throughout
changes nothing.  Elements that training never saw are no special case.

Where MACE works on all edges at once, here the blocks are applied to one chunk of atoms after another on
complete arrays of node features: memory is bounded, and the result does not depend on the chunks.  Importing
MACE takes seconds and is left until a network is built.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.backbones.moments import tame
from zoo.graph import Graph
from zoo.mace_import import import_mace

TYPICAL_NEIGHBORS = 8.0  # brings sums over neighbours to order one


@dataclass(frozen=True)
class MaceConfig:
    """Architecture; lengths are in units of the length scale of the structure.

    Parameters
    ----------
    n_channels : copies of each scalar and vector feature.
    l_max : largest degree of the spherical harmonics of edges and of messages.
    correlation : messages multiplied with one another; bodies seen by a layer less one.
    radial_width, radial_layers : hidden units, and layers of them, of the network that makes an edge's
        weights from its length.
    envelope : power of the polynomial that ends the radial functions at the cutoff, as in MACE (DimeNet's
        p); 0 is (1 - x^2)^2, which is what zoo's checkpoints have.
    """

    cutoff: float = 1.65
    n_channels: int = 16
    n_radial: int = 6
    n_layers: int = 2
    l_max: int = 2
    correlation: int = 2
    radial_width: int = 32
    radial_layers: int = 1
    envelope: int = 0

    #: Checkpoints made before these existed lack them and mean the defaults, which never change.
    LATER: ClassVar[frozenset[str]] = frozenset({"radial_layers", "envelope"})

    def __post_init__(self) -> None:
        """Raises ValueError for arguments that no network can have."""
        if not (isinstance(self.cutoff, int | float) and 0 < self.cutoff < math.inf):
            raise ValueError(f"cutoff is {self.cutoff!r}, it must be a positive number")
        for key, low, high in (
            ("n_channels", 1, 1024),
            ("n_radial", 1, 64),
            ("n_layers", 1, 16),
            ("l_max", 1, 4),
            ("correlation", 1, 3),
            ("radial_width", 1, 1024),
            ("radial_layers", 1, 8),
            ("envelope", 0, 16),
        ):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"{key} is {value!r}, it must be a whole number from {low} to {high}")

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; what came later is left out at its default, so that older releases can read it."""
        later = {f.name: f.default for f in fields(self) if f.name in self.LATER}
        return {k: v for k, v in asdict(self).items() if k not in later or v != later[k]}


class MaceNetwork(nn.Module):
    """Graph -> one equivariant vector per atom (and the scalars behind it).

    Input edge vectors and output vectors are in units of the length scale.

    Raises
    ------
    MissingExtraError : mace-torch is not installed.
    """

    sees_species = True

    def __init__(self, config: MaceConfig) -> None:
        super().__init__()
        self.config = config
        self.cutoff = config.cutoff
        c = config.n_channels
        blocks = import_mace("mace.modules.blocks")
        o3 = import_mace("e3nn.o3")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript about e3nn's generated code
            harmonics = o3.Irreps.spherical_harmonics(config.l_max)
            messages = (harmonics * c).sort()[0].simplify()
            features, hidden = o3.Irreps(f"{c}x0e"), o3.Irreps(f"{c}x0e + {c}x1o")
            one = o3.Irreps("1x0e")
            self.harmonics = o3.SphericalHarmonics(harmonics, normalize=True, normalization="component")
            self.embed = nn.Parameter(torch.randn(c))
            self.embed_context = nn.Linear(3, c, bias=False)
            self.interactions, self.products = nn.ModuleList(), nn.ModuleList()
            for _ in range(config.n_layers):
                self.interactions.append(
                    blocks.RealAgnosticResidualInteractionBlock(
                        node_attrs_irreps=one,
                        node_feats_irreps=features,
                        edge_attrs_irreps=harmonics,
                        edge_feats_irreps=o3.Irreps(f"{2 * config.n_radial}x0e"),
                        target_irreps=messages,
                        hidden_irreps=hidden,
                        avg_num_neighbors=TYPICAL_NEIGHBORS,
                        radial_MLP=[config.radial_width] * config.radial_layers,
                    )
                )
                self.products.append(
                    blocks.EquivariantProductBasisBlock(
                        node_feats_irreps=messages,
                        target_irreps=hidden,
                        correlation=config.correlation,
                        num_elements=1,
                        use_sc=True,
                    )
                )
                features = hidden
        self.read = nn.Sequential(nn.Linear(c, c), nn.SiLU(), nn.Linear(c, c))
        self.out = nn.Linear(c, 1, bias=False)
        # Checkpoints hold what was learned.  The tables of coupling coefficients follow from the
        # architecture, and other versions of e3nn keep them elsewhere.
        self.register_state_dict_post_hook(_only_parameters)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_tables_may_be_missing)  # type: ignore[no-untyped-call]

    @property
    def n_scalars(self) -> int:
        """Scalars that `scalars` returns for an atom."""
        return self.config.n_channels * self.config.n_layers

    def _features(self, graph: Graph, context: tuple[float, float] | None, chunk: int) -> list[Tensor]:
        """Of each layer, (n_atoms, 4 n_channels): C scalars, then C vectors."""
        known = [0.0, 0.0, 0.0]
        if context is not None:
            known = [1.0, *(math.log(max(length, 1e-4) / 0.03) / 2 for length in context)]
        shared = self.embed + self.embed_context(torch.tensor(known, dtype=self.embed.dtype))
        n = graph.n_atoms
        h, layers = shared.expand(n, -1), []
        bounds = [(a, min(a + chunk, n)) for a in range(0, n, chunk)]
        layer: Any  # one of MACE's, whose parts are called one by one
        for layer, product in zip(self.interactions, self.products, strict=True):
            up = layer.linear_up(h)
            parts = []
            for a, b in bounds:
                centres, others, harmonics, radial = self._edges(graph, a, b)
                messages = layer.conv_tp(up.index_select(0, others), harmonics, layer.conv_tp_weights(radial))
                summed = messages.new_zeros(b - a, messages.shape[1]).index_add_(0, centres, messages)
                summed = layer.linear(summed) / layer.avg_num_neighbors
                attributes = summed.new_ones(b - a, 1)
                skipped = layer.skip_tp(h[a:b], attributes)
                parts.append(product(layer.reshape(summed), skipped, attributes))
            h = torch.cat(parts)
            layers.append(h)
        return layers

    def scalars(self, graph: Graph, context: tuple[float, float] | None = None, chunk: int = 512) -> Tensor:
        """What the layers know of every atom that does not turn with it, (n_atoms, n_scalars)."""
        c = self.config.n_channels
        return torch.cat([tame(h[:, :c]) for h in self._features(graph, context, chunk)], -1)

    def _edges(self, graph: Graph, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Edges of the atoms [start, stop): centres (from 0), neighbours, harmonics and radial functions."""
        offsets = graph.offsets[start : stop + 1]
        edges = slice(int(offsets[0]), int(offsets[-1]))
        centres = torch.repeat_interleave(torch.arange(stop - start), offsets.diff())
        others = graph.neighbors[edges].long()
        vectors = graph.vectors[edges].to(self.embed.dtype)
        r = vectors.square().sum(1, keepdim=True).sqrt().clamp_min(1e-6)
        x = r / self.cutoff
        # The Bessel basis of DimeNet (Gasteiger et al., ICLR 2020); value and slope vanish at the cutoff.
        waves = torch.arange(1, self.config.n_radial + 1, dtype=r.dtype) * math.pi
        radial = torch.sin(waves * x) / r * _envelope(x.clamp(max=1.0), self.config.envelope)
        if graph.species is None:
            same = torch.ones_like(r)
        else:
            species = graph.species
            same = (species[others] == species[start:stop][centres]).to(r.dtype)[:, None]
        # From the neighbour to the centre, as in MACE.
        return centres, others, self.harmonics(-vectors), torch.cat([radial * same, radial * (1 - same)], 1)

    def forward(self, graph: Graph, context: tuple[float, float] | None = None, chunk: int = 512) -> Tensor:
        """One vector per atom, (n_atoms, 3).

        Parameters
        ----------
        graph : with ``species``; without, all atoms count as of one.
        context : see `Moments.forward`.
        chunk : so many atoms are worked on at a time; it never changes the result.
        """
        return self._read(self._features(graph, context, chunk)[-1])

    def with_scalars(
        self, graph: Graph, context: tuple[float, float] | None = None, chunk: int = 512
    ) -> tuple[Tensor, Tensor]:
        """What `forward` and `scalars` return, at the cost of one of them."""
        c = self.config.n_channels
        layers = self._features(graph, context, chunk)
        return self._read(layers[-1]), torch.cat([tame(h[:, :c]) for h in layers], -1)

    def _read(self, h: Tensor) -> Tensor:
        c = self.config.n_channels
        vectors = h[:, c:].unflatten(1, (c, 3)).transpose(1, 2)
        out: Tensor = self.out(vectors * self.read(tame(h[:, :c]))[:, None])
        return out.squeeze(-1)


def _envelope(x: Tensor, p: int) -> Tensor:
    if p == 0:
        return (1 - x.square()).square()
    a, b, c = (p + 1) * (p + 2) / 2, p * (p + 2), p * (p + 1) / 2
    return 1 - a * x**p + b * x ** (p + 1) - c * x ** (p + 2)


def _only_parameters(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    learned = {prefix + name for name, _ in module.named_parameters()}
    for key in [key for key in state if key.startswith(prefix) and key not in learned]:
        del state[key]


def _tables_may_be_missing(module: nn.Module, incompatible: Any) -> None:
    learned = {name for name, _ in module.named_parameters()}
    missing = incompatible.missing_keys
    missing[:] = [key for key in missing if key in learned]
