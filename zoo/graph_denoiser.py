"""D(y, sigma; x) for any molecule of a family, as `zoo.score_dynamics.ConditionalDenoiser` is for one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from zoo import diffusion
from zoo.backbones.graph_transformer import GraphTransformer, graph_of
from zoo.molecules.rigid import centred, project_out, rigid_motions

if TYPE_CHECKING:
    from zoo.molecules.family import Family
    from zoo.molecules.molecule import Molecule


#: Of a raw output, which has unit variance in training.
_LONGEST = 20.0


class GraphDenoiser(nn.Module):
    """An equivariant network with EDM preconditioning, for no molecule in particular.

    Parameters
    ----------
    network : knows atoms by elements and bonds.
    sigma_data : Å.

    ``bf16`` (default False) lets the network, and nothing else, multiply in bfloat16.
    """

    def __init__(self, network: GraphTransformer, sigma_data: float) -> None:
        super().__init__()
        self.network = network
        self.preconditioning = diffusion.Preconditioning(sigma_data)
        self.bf16 = False

    def of(self, molecule: Molecule, family: Family | None = None) -> MoleculeDenoiser:
        """For one molecule; its rigid motion is that of the ``family``, without one there is none.

        Raises
        ------
        ValueError : an element that the network has no vector for.
        """
        return MoleculeDenoiser(self, molecule, family)


class MoleculeDenoiser:
    """A `GraphDenoiser` with the graph of one molecule: all that a step and a loss ask for."""

    def __init__(self, shared: GraphDenoiser, molecule: Molecule, family: Family | None = None) -> None:
        self.shared = shared
        self.molecule = molecule
        self.family = family
        self.preconditioning = shared.preconditioning
        self._graph = graph_of(molecule, shared.network.config)
        self._mass = mass(molecule) if family is not None else 0.0

    def frames(self, positions: Tensor) -> Tensor:
        """The axes of the laboratory (batch, 3, 3): the network is the same in every frame."""
        eye = torch.eye(3, dtype=positions.dtype, device=positions.device)
        return eye.expand(len(positions), 3, 3)

    def rigid_factors(self, positions: Tensor) -> Tensor:
        """(batch, 6, 6) factor L of the covariance L Lᵀ of rotation (rad) and translation (Å) of one step.

        Rotations are about the principal axes, each with a variance that its moment of inertia gives.
        """
        factor = positions.new_zeros(len(positions), 6, 6)
        if self.family is None:
            return factor
        moments, axes = principal(positions)
        (a, b), (c, d) = self.family.rotation, self.family.translation
        factor[:, :3, :3] = axes * (0.5 * (a + b * moments.clamp_min(0.1).log())).exp()[:, None, :]
        spread = math.exp(0.5 * (c + d * math.log(self._mass)))
        factor[:, 3:, 3:] = torch.eye(3, dtype=positions.dtype, device=positions.device) * spread
        return factor

    def __call__(self, y: Tensor, sigma: Tensor, x: Tensor) -> Tensor:
        """Denoised displacement; y and x (batch, n_sites, 3) Å, sigma (batch,) or (1,) Å."""
        return self.given(x)(y, sigma)

    def given(self, x: Tensor) -> diffusion.Denoise:
        """D(., .; x) for many displacements of the same x."""
        p, bf16 = self.preconditioning, self.shared.bf16
        rigid = rigid_motions(x)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            network = self.shared.network.given(x, self._graph)

        def denoise(y: Tensor, sigma: Tensor) -> Tensor:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
                raw = bounded(network(y, p.c_in(sigma), p.c_noise(sigma)).to(y.dtype))
            wide = sigma[:, None, None]
            return project_out(rigid, p.c_skip(wide) * y + p.c_out(wide) * raw)

        return denoise


def bounded(raw: Tensor) -> Tensor:
    """Vectors (..., 3) no longer than `_LONGEST`; those of ordinary length, about 1, are left as they are.

    Invariants are products of vectors, so that far outside of what was trained on the network grows without
    bounds; likelihoods of impossible structures would overflow.
    """
    ratio = raw.square().sum(-1, keepdim=True) / _LONGEST**2
    return raw * (1 + ratio.square()) ** -0.25


def principal(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of inertia (batch, 3) Å², ascending, with equal weights, and their axes as columns."""
    r = centred(positions)
    eye = torch.eye(3, dtype=r.dtype, device=r.device)
    inertia = (r * r).sum((-1, -2))[:, None, None] * eye - r.mT @ r
    moments, axes = torch.linalg.eigh(inertia)
    return moments, axes


def mass(molecule: Molecule) -> float:
    """Of the whole molecule, u."""
    from ase.data import atomic_masses, atomic_numbers

    return float(sum(atomic_masses[atomic_numbers[e]] for e in molecule.elements))
