"""What propagators ask of their networks: the current structure once, many noisy displacements after it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Response = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(displacement, c_in, level) -> (batch, n_sites, 3), see `SiteNetwork.forward`."""


class SiteNetwork(nn.Module):
    """(positions, noisy displacement, its scale, noise level) -> (batch, n_sites, 3), for fixed sites."""

    #: How many labels a step may have, one of which `given` is told; 0 for networks that know of none.
    n_labels = 0

    def forward(
        self,
        positions: Tensor,
        displacement: Tensor,
        c_in: Tensor,
        level: Tensor,
        label: Tensor | None = None,
    ) -> Tensor:
        """
        Parameters
        ----------
        positions : (batch, n_sites, 3) Å, current structure in its body frame.
        displacement : (batch, n_sites, 3) Å, noisy displacement in the same frame.
        c_in : (batch,) or (1,) 1/Å, the factor that gives the noisy displacement unit variance.
        level : (batch,) or (1,) the noise level as preconditioning encodes it.
        label : (batch,) int64, where the network knows labels.
        """
        return self.given(positions, label)(displacement, c_in, level)

    def given(self, positions: Tensor, label: Tensor | None = None) -> Response:
        """`forward` for one structure and many displacements: what depends on it alone is done once."""
        raise NotImplementedError
