"""Pretrained models for atomistic simulation: find one, load it, denoise a structure.

>>> from zoo import Denoiser
>>> clean = Denoiser.from_pretrained("denoiser-elements").denoise(atoms)  # doctest: +SKIP

Importing this package reads no file and opens no connection; torch and ASE are imported when a
name that needs them is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from zoo.errors import (
    CheckpointError,
    MissingExtraError,
    StructureError,
    UnknownCheckpointError,
    ZooError,
)

if TYPE_CHECKING:  # what type checkers and editors see; at run time `__getattr__` does the import
    from zoo.choice import choose_denoiser
    from zoo.denoiser import Denoiser
    from zoo.registry import records as list_checkpoints
    from zoo.rollout import Rollout, RolloutReport
    from zoo.rollout.errors import OutOfDistributionWarning, RolloutError
    from zoo.score_dynamics import ScoreDynamics

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "Denoiser",
    "MissingExtraError",
    "OutOfDistributionWarning",
    "Rollout",
    "RolloutError",
    "RolloutReport",
    "ScoreDynamics",
    "StructureError",
    "UnknownCheckpointError",
    "ZooError",
    "__version__",
    "choose_denoiser",
    "list_checkpoints",
]

_LAZY = {
    "Denoiser": ("zoo.denoiser", "Denoiser"),
    "OutOfDistributionWarning": ("zoo.rollout.errors", "OutOfDistributionWarning"),
    "Rollout": ("zoo.rollout", "Rollout"),
    "RolloutError": ("zoo.rollout.errors", "RolloutError"),
    "RolloutReport": ("zoo.rollout", "RolloutReport"),
    "ScoreDynamics": ("zoo.score_dynamics", "ScoreDynamics"),
    "choose_denoiser": ("zoo.choice", "choose_denoiser"),
    "list_checkpoints": ("zoo.registry", "records"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value  # the next access does not come back here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
