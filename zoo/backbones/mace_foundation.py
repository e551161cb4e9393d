"""A denoiser's network of MACE blocks that starts from a MACE model of energies and forces.

Foundation models (Batatia et al., arXiv:2401.00096) have learned from millions of structures what
surroundings of atoms look like.  `config_like` gives the architecture of one as a `MaceConfig`, `start_from`
brings its weights into a network of that architecture.  From then on it is a network as any other: what it
learns, and how its checkpoint is read, does not change.

What does not carry over as it is:

- Elements.  Zoo's network knows *same* and *other*, so the weights of elements become one set, their mean
  over the elements that are asked for; edges to the same and to other species begin with the same weights.
- Lengths.  The model's are in Å, the network's in units of a structure's own length scale; both see a
  neighbour at the same fraction of the cutoff alike.
- The last layer.  The model ends in scalars, a denoiser in vectors: the parts of the last layer that make
  vectors stay as they were drawn.

For one element, the scalars of every layer are the model's own, to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.backbones.mace_file import Part
from zoo.backbones.mace_network import TYPICAL_NEIGHBORS, MaceConfig, MaceNetwork
from zoo.errors import CheckpointError

BLOCK = "RealAgnosticResidualInteractionBlock"


def config_like(model: Part, cutoff: float) -> MaceConfig:
    """The architecture of a MACE model, with a cutoff in units of the length scale.

    Raises
    ------
    CheckpointError : it is none that a denoiser's network can have; says why.
    """
    known = dict(model.tensors())
    if "r_max" not in known or "node_embedding.linear.weight" not in known:
        raise CheckpointError(f"the model is a {model.kind}, not one of MACE")
    if any(name.startswith("radial_embedding.distance_transform") for name in known):
        raise CheckpointError(
            "the MACE model transforms its distances (Agnesi, Soft): take one that does not"
        )
    if "radial_embedding.bessel_fn.bessel_weights" not in known:
        raise CheckpointError("the radial functions of the MACE model are no Bessel functions")
    layers = 0
    while (block := model.child(f"interactions.{layers}")) is not None:
        if block.kind != BLOCK:
            raise CheckpointError(
                f"layer {layers + 1} of the MACE model is a {block.kind}; a denoiser's network has {BLOCK}, "
                "as MACE-MP-0 and MACE-OFF23"
            )
        layers += 1
    c = known["node_embedding.linear.weight"].numel() // len(known["atomic_numbers"])
    ups = [known[f"interactions.{i}.linear_up.weight"].numel() for i in range(layers)]
    if layers < 2 or ups != [c * c, *[2 * c * c] * (layers - 1)]:
        raise CheckpointError(
            f"features of the MACE model are not {c} scalars and {c} vectors ({c}x0e + {c}x1o): "
            "take a medium model"
        )
    widths: list[int] = []
    while (weight := known.get(f"interactions.0.conv_tp_weights.layer{len(widths)}.weight")) is not None:
        widths.append(weight.shape[1])
    if len(set(widths[:-1])) != 1:
        raise CheckpointError(f"layers of the MACE model's radial network differ in width: {widths[:-1]}")
    contraction = model.child("products.0.symmetric_contractions.contractions.0")
    lower = [name for name, _ in contraction.tensors() if name.startswith("weights.")] if contraction else []
    # Layer 1 makes one message of each degree from scalars.
    l_max = known["interactions.0.linear.weight"].numel() // (c * c) - 1
    return MaceConfig(
        cutoff=cutoff,
        n_channels=c,
        n_radial=known["radial_embedding.bessel_fn.bessel_weights"].numel(),
        n_layers=layers,
        l_max=l_max,
        correlation=1 + len(lower),
        radial_width=widths[0],
        radial_layers=len(widths) - 1,
        envelope=int(known["radial_embedding.cutoff_fn.p"]),
    )


@torch.no_grad()
def start_from(network: MaceNetwork, model: Part, elements: Sequence[int] = ()) -> list[str]:
    """Bring the weights of a MACE model into a network of its architecture; returns the names of the rest.

    Parameters
    ----------
    network : built from `config_like`.
    elements : atomic numbers whose weights are averaged; none given, all that the model knows.

    Raises
    ------
    CheckpointError : the model does not know an element, or is of another architecture.
    """
    config, known = network.config, dict(model.tensors())
    if config_like(model, config.cutoff) != config:
        raise CheckpointError(
            "the network is not of the MACE model's architecture: build it from config_like"
        )
    numbers = known["atomic_numbers"].tolist()
    missing = sorted(set(elements) - set(numbers))
    if missing:
        raise CheckpointError(f"the MACE model does not know the elements with atomic numbers {missing}")
    rows = torch.tensor([numbers.index(z) for z in elements] or list(range(len(numbers))))
    n, c, r_max = len(numbers), config.n_channels, float(known["r_max"])
    # e3nn divides by the root of how many it sums over; of one-hot elements that is their number.
    one_hot = 1 / math.sqrt(n)
    # The model's radial functions are sqrt(2 / r_max) sin(k pi x) / (length in Å).  Here are two sets, same
    # and other, of which one is zero on an edge, so the root of how many are summed over grows by sqrt(2).
    radial = math.sqrt(2 / r_max) * config.cutoff / r_max * math.sqrt(2)

    def translated(name: str, ours: Tensor) -> Tensor:
        theirs: Tensor = known[name].to(ours.dtype)
        if name.endswith("conv_tp_weights.layer0.weight"):
            return torch.cat([theirs, theirs]) * radial
        if name.endswith(".skip_tp.weight"):
            averaged = theirs.reshape(-1, c, n, c)[:, :, rows].mean(2)
            return averaged.flatten() * one_hot
        if name.endswith("linear.weight") and name.startswith("interactions."):
            layer = model.child(name.removesuffix(".linear.weight"))
            neighbors = layer.state.get("avg_num_neighbors") if layer else None
            if not isinstance(neighbors, int | float):
                neighbors = float(known[name.replace("linear.weight", "avg_num_neighbors")])
            return theirs * (TYPICAL_NEIGHBORS / neighbors)
        if ".symmetric_contractions." in name:
            return theirs[rows].mean(0, keepdim=True)
        return theirs

    buffers = dict(network.named_buffers())
    for name, table in buffers.items():
        if ".U_matrix_" in name and name in known and not _alike(known[name], table):
            raise CheckpointError(
                "the MACE model couples messages in another basis than this version of mace-torch and e3nn"
            )
    embedding = known["node_embedding.linear.weight"].unflatten(0, (n, c))
    network.embed.copy_(embedding[rows].mean(0) * one_hot)
    left, last = [], config.n_layers - 1
    for name, ours in network.named_parameters():
        if name == "embed":
            continue
        if name not in known:
            left.append(name)
            continue
        theirs = translated(name, ours)
        if theirs.shape == ours.shape:
            ours.copy_(theirs)
        elif theirs.ndim == 1 and name.startswith((f"interactions.{last}.", f"products.{last}.")):
            # Of scalars alone: e3nn keeps them first, and the vectors' weights after them.
            ours[: len(theirs)] = theirs
            left.append(f"{name} (vectors)")
        else:
            raise CheckpointError(
                f"{name} of the MACE model has shape {tuple(theirs.shape)}, not {tuple(ours.shape)}"
            )
    return left


def _alike(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.shape == ours.shape and torch.allclose(theirs.to(ours.dtype), ours, atol=1e-5)
