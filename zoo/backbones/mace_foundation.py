"""A denoiser's network of MACE blocks that starts from a MACE model of energies and forces.

Foundation models (Batatia et al., arXiv:2401.00096) have learned from millions of structures what
surroundings of atoms look like.  `config_like` gives the architecture of one as a `MaceConfig`, `start_from`
brings its weights into a network of that architecture.  From then on it is a network as any other: what it
learns, and how its checkpoint is read, does not change.

What does not carry over as it is:

- Elements.  Zoo's network knows *same* and *other*, so the weights of the elements that are asked for become
  one set, their mean; edges to the same and to other species begin with the same weights.  The mean of
  elements that are unlike is smaller than any of them, so one or a few similar ones are the better start.
- Lengths.  The model's are in Å, the network's in units of a structure's own length scale; both see a
  neighbour at the same fraction of the cutoff alike.  With a shorter cutoff than the model's, which may be
  two or three neighbours away, neighbours look farther away than they are.
- The noise level, of which the model knows nothing: at first it changes nothing.
- The last layer.  The model ends in scalars, a denoiser in vectors: the parts of the last layer that make
  vectors stay as they were drawn.

For one element, and a structure in which lengths are alike as a fraction of the cutoff, the scalars of every
layer are the model's own, to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from ase.data import chemical_symbols
from torch import Tensor

from zoo.backbones.mace_file import MaceFile
from zoo.backbones.mace_network import TYPICAL_NEIGHBORS, MaceConfig, MaceNetwork
from zoo.errors import CheckpointError

BLOCK = "RealAgnosticResidualInteractionBlock"
_BESSEL = "radial_embedding.bessel_fn.bessel_weights"


def config_like(model: MaceFile, cutoff: float) -> MaceConfig:
    """The architecture of a MACE model, with a cutoff in units of the length scale.

    Raises
    ------
    CheckpointError : it is none that a denoiser's network can have; says why.
    """
    known = model.tensors
    if "r_max" not in known or "node_embedding.linear.weight" not in known:
        raise CheckpointError(f"the model is a {model.kind}, not one of MACE")
    if "radial_embedding.distance_transform" in model.modules:
        raise CheckpointError("the MACE model transforms distances (Agnesi, Soft): take one that does not")
    if "joint_embedding" in model.modules:
        raise CheckpointError("the MACE model knows charges or spins of atoms: take one that does not")
    if model.attribute("radial_embedding", "apply_cutoff") is False:
        raise CheckpointError("the MACE model applies its cutoff after the radial network: take another")
    r_max, n_radial = float(known["r_max"]), len(_of(model, _BESSEL, "radial functions that are Bessel's"))
    waves = math.pi / r_max * torch.arange(1, n_radial + 1, dtype=torch.float64)
    if not torch.allclose(known[_BESSEL].double(), waves, rtol=1e-4):
        raise CheckpointError("the MACE model has learned its own radial functions: take one with Bessel's")
    layers = 0
    while (block := model.modules.get(f"interactions.{layers}")) is not None:
        if block.kind != BLOCK:
            raise CheckpointError(
                f"layer {layers + 1} of the MACE model is a {block.kind}; a denoiser's network has {BLOCK}, "
                "as MACE-MP-0 and MACE-OFF23"
            )
        layers += 1
    c = known["node_embedding.linear.weight"].numel() // len(_of(model, "atomic_numbers", "elements"))
    ups = [_of(model, f"interactions.{i}.linear_up.weight", "known layers").numel() for i in range(layers)]
    if layers < 2 or ups != [c * c, *[2 * c * c] * (layers - 1)]:
        raise CheckpointError(
            f"features of the MACE model are not {c} scalars and {c} vectors ({c}x0e + {c}x1o): "
            "take a medium model"
        )
    widths: list[int] = []
    while (weight := known.get(f"interactions.0.conv_tp_weights.layer{len(widths)}.weight")) is not None:
        widths.append(weight.shape[1])
    if len(widths) < 2 or len(set(widths[:-1])) != 1:
        raise CheckpointError(f"layers of the MACE model's radial network differ in width: {widths[:-1]}")
    lower = "products.0.symmetric_contractions.contractions.0.weights."
    # Layer 1 makes one message of each degree from scalars.
    l_max = _of(model, "interactions.0.linear.weight", "known layers").numel() // (c * c) - 1
    try:
        return MaceConfig(
            cutoff=cutoff,
            n_channels=c,
            n_radial=n_radial,
            n_layers=layers,
            l_max=l_max,
            correlation=1 + sum(name.startswith(lower) for name in known),
            radial_width=widths[0],
            radial_layers=len(widths) - 1,
            envelope=int(_of(model, "radial_embedding.cutoff_fn.p", "a polynomial cutoff")),
        )
    except ValueError as error:
        raise CheckpointError(f"the MACE model is larger than a denoiser's network may be: {error}") from None


@torch.no_grad()
def start_from(network: MaceNetwork, model: MaceFile, elements: Sequence[int]) -> list[str]:
    """Bring the weights of a MACE model into a network of its architecture; returns the names of the rest.

    Parameters
    ----------
    network : built from `config_like`; as it was if an error is raised.
    elements : atomic numbers whose weights are averaged.

    Raises
    ------
    CheckpointError : the model does not know an element, or is of another architecture.
    """
    config, known = network.config, model.tensors
    if config_like(model, config.cutoff) != config:
        raise CheckpointError("the network is not of the MACE model's architecture: config_like tells it")
    numbers = [int(z) for z in known["atomic_numbers"]]
    missing = [chemical_symbols[z] for z in elements if z not in numbers]
    if missing or not elements:
        names, what = ", ".join(chemical_symbols[z] for z in numbers), ", ".join(missing)
        raise CheckpointError(
            f"the MACE model does not know {what or 'which elements'}: name some of {names}"
        )
    for name, table in network.named_buffers():
        if ".U_matrix_" in name and name in known and not _alike(known[name], table):
            raise CheckpointError(
                "the MACE model couples messages in another basis than this version of mace-torch and e3nn"
            )
    translated = _translated(network, model, [numbers.index(z) for z in elements])
    last = config.n_layers - 1
    left = []
    for name, ours in network.named_parameters():
        theirs = translated.get(name)
        if theirs is None and not name.startswith(("read.", "out.", f"products.{last}.")):
            raise CheckpointError(f"the MACE model has no {name}")
        if theirs is not None and theirs.shape != ours.shape:
            # Of scalars alone: e3nn keeps them first, and the vectors' weights after them.
            scalars = theirs.ndim == 1 and theirs.numel() < ours.numel()
            if not scalars or not name.startswith((f"interactions.{last}.", f"products.{last}.")):
                shapes = f"{tuple(theirs.shape)}, not {tuple(ours.shape)}"
                raise CheckpointError(f"{name} of the MACE model has shape {shapes}")
            translated[name] = torch.cat([theirs, ours[len(theirs) :]])
            left.append(f"{name} (vectors)")
        elif theirs is None:
            left.append(name)
    for name, ours in network.named_parameters():
        if name in translated:
            ours.copy_(translated[name])
    return left


def _translated(network: MaceNetwork, model: MaceFile, rows: Sequence[int]) -> dict[str, Tensor]:
    """What parameters of the network become, by name; rows are the elements' in the model's tables."""
    config, known = network.config, model.tensors
    n, c, r_max = len(known["atomic_numbers"]), config.n_channels, float(known["r_max"])
    chosen = torch.tensor(rows)
    # e3nn divides by the root of how many it sums over; of one-hot elements that is their number.
    one_hot = 1 / math.sqrt(n)
    # The model's radial functions are sqrt(2 / r_max) sin(k pi x) / (length in Å).  Here are two sets, same
    # and other, of which one is zero on an edge, so the root of how many are summed over grows by sqrt(2).
    radial = math.sqrt(2 / r_max) * config.cutoff / r_max * math.sqrt(2)
    embedding = known["node_embedding.linear.weight"].reshape(n, c)
    found = {
        "embed": embedding[chosen].mean(0) * one_hot,
        "embed_context.weight": torch.zeros_like(network.embed_context.weight),
    }
    for name, ours in network.named_parameters():
        if name in found or name not in known:
            continue
        theirs = known[name].to(ours.dtype)
        if name.endswith("conv_tp_weights.layer0.weight"):
            theirs = torch.cat([theirs, theirs]) * radial
        elif name.endswith(".skip_tp.weight"):
            theirs = theirs.reshape(-1, c, n, c)[:, :, chosen].mean(2).flatten() * one_hot
        elif name.endswith("linear.weight") and name.startswith("interactions."):
            theirs = theirs * (TYPICAL_NEIGHBORS / _neighbors(model, name.removesuffix(".linear.weight")))
        elif ".symmetric_contractions." in name and len(theirs) == n:  # else the same for all elements
            theirs = theirs[chosen].mean(0, keepdim=True)
        found[name] = theirs
    return found


def _neighbors(model: MaceFile, layer: str) -> float:
    """By what a layer divides sums over neighbours; a number or a buffer."""
    stored = model.attribute(layer, "avg_num_neighbors")
    if isinstance(stored, int | float):
        return float(stored)
    return float(_of(model, f"{layer}.avg_num_neighbors", "a number of neighbours that can be read"))


def _of(model: MaceFile, name: str, what: str) -> Tensor:
    if name not in model.tensors:
        raise CheckpointError(f"the MACE model has no {what} ({name})")
    return model.tensors[name]


def _alike(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.shape == ours.shape and torch.allclose(theirs.to(ours.dtype), ours, atol=1e-5)
