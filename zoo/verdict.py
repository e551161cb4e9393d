"""A verdict per atom: which crystal it sits in, or none, and how sure that is.

A small network reads the scalar features that a denoiser's own network has of the denoised structure.  It is
trained after the denoiser, on the same geometry-only data: perfect lattices, cut, joined and noised, and
random packings and lattices displaced beyond recognition for disorder.  Its logits are divided by a
temperature found on structures held out from that (Guo, Pleiss, Sun & Weinberger, ICML 2017,
arXiv:1706.04599), so that of the atoms with a confidence of 0.9 nine in ten are right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from zoo.errors import CheckpointError

#: The last class of every head: no crystal that it knows.
DISORDERED = "disordered"
#: One colour per class (hex RGB); compounds have that of the lattice whose sites they share, and none of
#: another compound of the same checkpoint.
COLORS: dict[str, str] = {
    DISORDERED: "#c4c4c4",
    "fcc": "#009e73",
    "hcp": "#d55e00",
    "bcc": "#0072b2",
    "simple cubic": "#f0e442",
    "cubic diamond": "#56b4e9",
    "hexagonal diamond": "#cc79a7",
    "L1_0": "#004d38",
    "L1_2": "#009e73",
    "B2": "#0072b2",
    "rocksalt": "#f0e442",
    "zincblende": "#56b4e9",
    "wurtzite": "#cc79a7",
}
_KEYS = {"classes", "width", "temperature"}


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
    """``classes`` are the crystals, without `DISORDERED`; ``width`` is that of the hidden layer."""

    classes: tuple[str, ...]
    width: int = 48
    temperature: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        return {"classes": list(self.classes), "width": self.width, "temperature": self.temperature}

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
        if set(data) != _KEYS:
            raise CheckpointError(f"config.json: verdict must have {', '.join(sorted(_KEYS))}")
        classes, width, temperature = data["classes"], data["width"], data["temperature"]
        if (
            not isinstance(classes, list | tuple)
            or not classes
            or not all(isinstance(x, str) and x and x != DISORDERED for x in classes)
            or len(set(classes)) < len(classes)
        ):
            raise CheckpointError("config.json: classes of the verdict must be different names of crystals")
        if not isinstance(width, int) or isinstance(width, bool) or not 1 <= width <= 4096:
            raise CheckpointError("config.json: width of the verdict must be a whole number from 1 to 4096")
        if (
            not isinstance(temperature, int | float)
            or isinstance(temperature, bool)
            or not (math.isfinite(temperature) and temperature > 0)
        ):
            raise CheckpointError("config.json: temperature of the verdict must be a positive number")
        return cls(tuple(classes), width, float(temperature))


class VerdictHead(nn.Module):
    """Scalar features (n_atoms, n_features) -> calibrated logits (n_atoms, n_classes)."""

    def __init__(self, n_features: int, config: VerdictConfig) -> None:
        super().__init__()
        self.config = config
        self.classes = (*config.classes, DISORDERED)
        self.layers = nn.Sequential(
            nn.LayerNorm(n_features),
            nn.Linear(n_features, config.width),
            nn.SiLU(),
            nn.Linear(config.width, config.width),
            nn.SiLU(),
            nn.Linear(config.width, len(self.classes)),
        )

    def forward(self, scalars: Tensor) -> Tensor:
        logits: Tensor = self.layers(scalars)
        return logits / self.config.temperature

    def verdict(self, scalars: Tensor) -> Verdict:
        probabilities = self(scalars).double().softmax(-1)
        return Verdict(self.classes, probabilities.numpy())
