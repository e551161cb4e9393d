"""A verdict per atom: which crystal it sits in, or none, and how sure that is.

A small network reads two things of each atom of the denoised structure: the scalar features that the layers
of the denoiser's own network have of it, and the lengths of the bond-orientational moments of its neighbours
(Steinhardt, Nelson & Ronchetti, Phys. Rev. B 28, 784, 1983), like and unlike ones apart, shell by shell.  The
latter tell what a denoiser need not know, such as zincblende from wurtzite.  It is
trained after the denoiser, on the same geometry-only data: perfect lattices, cut, joined and noised, and
random packings and lattices displaced beyond recognition for disorder.  Its logits are divided by a
temperature found on structures held out from that (Guo, Pleiss, Sun & Weinberger, ICML 2017,
arXiv:1706.04599), so that of such atoms with a confidence of 0.9 nine in ten are right; what that is worth on
simulations is measured, and in the cards.

Where two crystals differ by what many atoms do on average, as alpha- and beta-quartz, a head has a ``reach``:
what it made of each atom is averaged over the neighbours as often as that, as Lechner & Dellago do with bond
orders (J. Chem. Phys. 129, 114707, 2008), and it decides by all of these averages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from zoo.backbones.moments import angular_moments
from zoo.errors import CheckpointError
from zoo.graph import Graph
from zoo.verdict_names import DISORDERED

_KEYS = {"classes", "width", "temperature"}
LONGEST_REACH = 16


@dataclass(frozen=True)
class Verdict:
    """What each atom is taken for.

    Attributes
    ----------
    classes : names of the crystals, then `DISORDERED`.
    probabilities : (n_atoms, n_classes), calibrated; rows sum to one.
    """

    classes: tuple[str, ...]
    probabilities: npt.NDArray[np.float64]

    @property
    def structure_type(self) -> npt.NDArray[np.str_]:
        """(n_atoms,) the most probable class."""
        return np.asarray(np.array(self.classes)[self.probabilities.argmax(1)])

    @property
    def confidence(self) -> npt.NDArray[np.float64]:
        """(n_atoms,) in [0, 1], the probability of that class."""
        return np.asarray(self.probabilities.max(1))


@dataclass(frozen=True)
class VerdictConfig:
    """What a head is, but for its weights.

    Parameters
    ----------
    classes : the crystals, without `DISORDERED`.
    width : of the hidden layers.
    reach : how often hidden features are averaged over neighbours; in the JSON form only if there is one.
    """

    classes: tuple[str, ...]
    width: int = 48
    temperature: float = 1.0
    reach: int = 0

    def to_dict(self) -> dict[str, Any]:
        known = {"classes": list(self.classes), "width": self.width, "temperature": self.temperature}
        return known | ({"reach": self.reach} if self.reach else {})

    @classmethod
    def from_dict(cls, data: object) -> VerdictConfig | None:
        """Read the JSON form strictly; None for an empty object, which stands for no head.

        Raises
        ------
        CheckpointError : something is missing, unknown or of the wrong kind.
        """
        if not isinstance(data, Mapping):
            raise CheckpointError("config.json: verdict must be an object, {} for none")
        if not data:
            return None
        if unknown := sorted(map(str, set(data) - _KEYS - {"reach"})):
            raise CheckpointError(
                f"config.json: verdict has {', '.join(unknown)}, which is not known: upgrade score-zoo"
            )
        if not set(data) >= _KEYS:
            raise CheckpointError(f"config.json: verdict must have {', '.join(sorted(_KEYS))}")
        classes, width, temperature = data["classes"], data["width"], data["temperature"]
        if (
            not isinstance(classes, list | tuple)
            or not classes
            or not all(isinstance(x, str) and x and x != DISORDERED for x in classes)
            or len(set(classes)) < len(classes)
        ):
            raise CheckpointError("config.json: classes of the verdict must be different names of crystals")
        reach = data.get("reach", 0)
        for key, value, low, high in (("width", width, 1, 4096), ("reach", reach, 0, LONGEST_REACH)):
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise CheckpointError(
                    f"config.json: {key} of the verdict must be a whole number from {low} to {high}"
                )
        if (
            not isinstance(temperature, int | float)
            or isinstance(temperature, bool)
            or not (math.isfinite(temperature) and temperature > 0)
        ):
            raise CheckpointError("config.json: temperature of the verdict must be a positive number")
        return cls(tuple(classes), width, float(temperature), reach)


#: Centres and width of the shells, in length scales; weights fall to zero before a network's cutoff.
SHELLS, WIDTH, DEGREES = (0.9, 1.1, 1.3, 1.5), 0.12, 4
N_MOMENTS = 2 * len(SHELLS) * (DEGREES + 1)


def bond_orders(graph: Graph, cutoff: float, chunk: int = 2048) -> Tensor:
    """Lengths of sum_j w_k(r_ij) Y_lm(r_ij), l = 0 to 4, of like and of unlike neighbours, (n_atoms, 40).

    ``w_k`` are Gaussians around `SHELLS`, brought to zero at ``cutoff`` (length scales) over the last tenth.
    """
    parts = []
    for start in range(0, graph.n_atoms, chunk):
        stop = min(start + chunk, graph.n_atoms)
        index, vectors, mask = graph.padded(start, stop)
        r = vectors.square().sum(1).sqrt().clamp_min(1e-6)
        y = angular_moments((vectors / r[:, None]).transpose(1, 2), DEGREES)  # (n, k, 25)
        fade = _fade(r, cutoff) * mask
        weights = torch.stack([torch.exp(-(((r - c) / WIDTH) ** 2)) * fade for c in SHELLS], 1)
        if graph.species is None:
            like = torch.ones_like(r)
        else:
            like = (graph.species[index] == graph.species[start:stop, None]).to(r.dtype)
        for part in (weights * like[:, None], weights * (1 - like)[:, None]):
            moments = torch.bmm(part, y).square()  # (n, shells, 25)
            parts.append([moments[..., d * d : (d + 1) ** 2].sum(-1).sqrt() for d in range(DEGREES + 1)])
    both = [torch.cat([*parts[k], *parts[k + 1]], 1) for k in range(0, len(parts), 2)]
    return torch.cat(both) if both else torch.zeros(0, N_MOMENTS)


def _fade(r: Tensor, cutoff: float) -> Tensor:
    """One within nine tenths of ``cutoff``, from there smoothly to zero."""
    x = (10 * (1 - r / cutoff)).clamp(0, 1)
    return x * x * (3 - 2 * x)


def averaging(graph: Graph, cutoff: float) -> Tensor:
    """The sparse matrix (n_atoms, n_atoms) that averages over an atom and its neighbours.

    All count alike, but the last tenth before ``cutoff`` (length scales), so that the mean does not jump.
    """
    n = graph.n_atoms
    centres = torch.repeat_interleave(torch.arange(n), graph.offsets.diff())
    weights = _fade(graph.vectors.square().sum(1).sqrt(), cutoff)
    shares = 1 / (1 + weights.new_zeros(n).index_add_(0, centres, weights))
    every = torch.arange(n)
    where = torch.stack([torch.cat([centres, every]), torch.cat([graph.neighbors.long(), every])])
    values = torch.cat([weights * shares[centres], shares])
    # Small cells have an atom among its own neighbours, and others more than once.
    return torch.sparse_coo_tensor(where, values, (n, n), check_invariants=False).coalesce()


def head_features(network: nn.Module, graph: Graph) -> Tensor:
    """What a head reads, (n_atoms, n_features): the network's scalars, then the bond orders.

    The network is told nothing of earlier steps: the verdict is of the structure, not of how it came about.
    """
    scalars: Tensor = network.scalars(graph)  # type: ignore[operator]
    return torch.cat([scalars, bond_orders(graph, float(network.cutoff))], -1)  # type: ignore[arg-type]


class VerdictHead(nn.Module):
    """Features of `head_features` -> calibrated logits (n_atoms, n_classes).

    ``mean`` and ``scale`` are those of the features in training.  With a reach, `averaging` has to be given;
    without it there is a ValueError.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, n_features: int, config: VerdictConfig) -> None:
        super().__init__()
        self.config = config
        self.classes = (*config.classes, DISORDERED)
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))
        width = config.width
        hidden = [nn.Linear(n_features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()]
        last = nn.Linear(width, len(self.classes))
        if config.reach == 0:
            self.layers = nn.Sequential(*hidden, last)
        else:
            self.layers = nn.Sequential(*hidden)
            self.gather = nn.Sequential(nn.Linear((config.reach + 1) * width, width), nn.SiLU(), last)

    @classmethod
    def of(cls, network: nn.Module, config: VerdictConfig) -> VerdictHead:
        """An untrained head for a network."""
        return cls(int(network.n_scalars) + N_MOMENTS, config)  # type: ignore[arg-type]

    def forward(self, features: Tensor, average: Tensor | None = None) -> Tensor:
        x: Tensor = self.layers(((features - self.mean) / self.scale).clamp(-6, 6))
        if self.config.reach:
            if average is None:
                raise ValueError("a head with a reach needs what `averaging` gives for the graph")
            seen = [x]
            for _ in range(self.config.reach):
                seen.append(torch.sparse.mm(average, seen[-1]))
            x = self.gather(torch.cat(seen, 1))
        return x / self.config.temperature

    def verdict(self, features: Tensor, average: Tensor | None = None) -> Verdict:
        probabilities = self(features, average).double().softmax(-1)
        return Verdict(self.classes, probabilities.numpy())
