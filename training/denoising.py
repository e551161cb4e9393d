"""The denoising objective: what a step of training a denoiser consists of.

A batch is a set of noised structures (`training.lattices`); the network sees the noised one and
must return the displacement back to the structure before the noise.  For half of the structures the
network is first applied one to three times without gradients, so that it also learns to finish what
it began: residual errors after a step are not Gaussian.  It is then told the median displacements of
its first and its previous step, from which it can know how calm the structure as a whole already is:
what is disordered within a calm crystal is a defect, not noise.  (In use, `zoo.denoiser` limits
displacements and tells it a larger previous one, so that it goes on longer; training does neither.)

Where a network is fine-tuned, the answer to what it knew already is not the truth but what it said before
(learning without forgetting, Li & Hoiem, arXiv:1606.09282): its errors near the limit of what can be told,
and how soon it is content, are part of what made it good.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from training import lattices
from zoo.backbones.mace_network import MaceNetwork
from zoo.graph import Graph, neighbor_graph

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DenoisingConfig:
    """Data and loss of a denoiser; lengths in units of the length scale unless said otherwise."""

    atoms_per_batch: int = 2000
    largest_noise: float = 0.17  # of the nearest-neighbour distance, per component
    rollout_after: int = 500  # step from which the network also sees its own output
    error_floor: float = 0.02  # errors are weighed by 1 / (sigma**2 + error_floor**2)
    teacher_weight: float = 1.0  # of rehearsed structures, whose answers have no noise


@dataclass
class Noised:
    """A structure, its noised positions (n, 3), the noise per component and the noised graph."""

    sample: lattices.Sample
    positions: Array
    sigma: float
    graph: Graph


class Naming(nn.Module):
    """A network that while it is trained also has to say which crystal each atom is in.

    Where crystals differ by what is the same in many cells, such as which way tetrahedra are turned, squared
    errors of displacements hardly reward to know it.  Afterwards only the network is kept; what its layers
    then tell apart is there for the head of the verdict, which is trained as always.
    """

    def __init__(self, network: MaceNetwork, classes: Sequence[str], weight: float) -> None:
        super().__init__()
        self.network, self.classes, self.weight = network, tuple(classes), weight
        n = network.n_scalars
        self.names = nn.Sequential(nn.Linear(n, n), nn.SiLU(), nn.Linear(n, len(self.classes) + 1))

    def forward(self, graph: Graph, context: tuple[float, float] | None = None) -> Tensor:
        out: Tensor = self.network(graph, context)
        return out

    def both(
        self, graph: Graph, context: tuple[float, float] | None, sample: lattices.Sample
    ) -> tuple[Tensor, Tensor]:
        """The displacement, and the sum over atoms of ``weight`` times the cross entropy of their names."""
        vectors, scalars = self.network.with_scalars(graph, context)
        true = sample.crystals(self.classes)
        assert true is not None
        wrong = nn.functional.cross_entropy(self.names(scalars), torch.from_numpy(true), reduction="sum")
        return vectors, self.weight * wrong


def graph_of(sample: lattices.Sample, positions: Array, cutoff: float) -> Graph:
    """The neighbours of ``positions`` in the sample's cell, with its species."""
    return neighbor_graph(positions, sample.cell, sample.pbc, cutoff, species=sample.species)


def batch_maker(
    config: DenoisingConfig,
    cutoff: float,
    draw: Callable[[np.random.Generator], lattices.Sample] = lattices.draw,
) -> Callable[[np.random.Generator], list[Noised]]:
    """A function that draws the structures of one step, one after the other with ``draw``."""

    def make(rng: np.random.Generator) -> list[Noised]:
        batch: list[Noised] = []
        while sum(len(b.positions) for b in batch) < config.atoms_per_batch:
            sample = draw(rng)
            sigma = lattices.noise_level(sample, rng, config.largest_noise)
            x = sample.positions + lattices.noise(sample, sigma, rng)
            batch.append(Noised(sample, x, sigma, graph_of(sample, x, cutoff)))
        return batch

    return make


def denoising_losses(
    config: DenoisingConfig, cutoff: float, teacher: nn.Module | None = None
) -> Callable[[nn.Module, list[Noised], np.random.Generator, int], list[Callable[[], Tensor]]]:
    """Mean squared error of the displacement, each structure weighed by its noise.

    The displacement of a ``rehearsed`` structure is that of the ``teacher``, who has to be there then.
    One term per structure, so that what backpropagation keeps fits into the cache.
    """

    def term(model: nn.Module, b: Noised, n_before: int, n_atoms: int) -> Tensor:
        positions, graph = b.positions, b.graph
        context: tuple[float, float] | None = None
        for _ in range(n_before):
            with torch.no_grad():
                moved = model(graph, context).numpy()
            positions = positions + moved
            median = float(np.median(np.linalg.norm(moved, axis=1)))
            context = (context[0] if context else median, median)
            graph = graph_of(b.sample, positions, cutoff)
        weight = 1 / (3 * n_atoms * (b.sigma**2 + config.error_floor**2))
        if b.sample.rehearsed:
            assert teacher is not None
            with torch.no_grad():
                answer = teacher(graph, context)
            weight *= config.teacher_weight
        else:
            target = b.sample.positions - positions
            target -= target.mean(0)  # nobody can know a common translation
            answer = torch.from_numpy(target.astype(np.float32))
        if isinstance(model, Naming):
            vectors, wrong = model.both(graph, context, b.sample)
            return torch.sum((vectors - answer).square()) * weight + wrong / n_atoms
        error: Tensor = model(graph, context) - answer
        return torch.sum(error.square()) * weight

    def losses(
        model: nn.Module, batch: list[Noised], rng: np.random.Generator, step: int
    ) -> list[Callable[[], Tensor]]:
        n_atoms = sum(len(b.positions) for b in batch)
        # One to three steps of the network's own first, in half of the structures.
        before = [max(int(rng.integers(-2, 4)), 0) if step >= config.rollout_after else 0 for _ in batch]
        return [partial(term, model, b, n, n_atoms) for b, n in zip(batch, before, strict=True)]

    return losses
