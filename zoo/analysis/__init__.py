"""Measuring structures: crystal labels, defects, pictures; trajectories: free energies, rates, paths.

Nothing heavy is imported here: `evaluate` and `Evaluation` are loaded when they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.analysis.evaluation import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from zoo.analysis import evaluation

        return getattr(evaluation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
