"""What to make of a fine-tuned propagator: its rollout beside held-out MD, and a plain verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from zoo.analysis.evaluation import Evaluation

#: A rate or a population is trusted within this factor of MD, or inside its interval.
FACTOR = 1.5
#: Events in held-out MD below which nothing can be said of a rate.
FEWEST_EVENTS = 10


@dataclass(frozen=True)
class Verdict:
    """``word``: trust, use with care, or need more data; ``why``: one line."""

    word: str
    why: str


def figures(found: Evaluation | None) -> list[dict[str, Any]]:
    """Populations and first-passage times for metrics and card."""
    if found is None:
        return []
    rows = []
    for each in found.quantities:
        if each.kind in ("population", "mfpt"):
            md, ours = each.reference, each.rollout
            rows.append(
                {
                    "kind": each.kind, "name": each.name,
                    "md": md.value, "md_low": md.low, "md_high": md.high,
                    "rollout": ours.value, "rollout_low": ours.low, "rollout_high": ours.high,
                    "verdict": each.verdict,
                }
            )  # fmt: skip
    return rows


def judged(
    found: Evaluation | None, made: dict[str, Any], before: float | None, after: float, md_ps: float
) -> Verdict:
    """What to make of it: populations and times of the rollout against those of held-out MD."""
    if made["walkers_stopped"] or made["redrawn_fraction"] > 0.05:
        return Verdict(
            "need more data",
            f"{made['redrawn_fraction']:.1%} of steps were redrawn and {made['walkers_stopped']} of "
            f"{made['walkers']} walkers stopped: the molecule does not hold together yet; train longer "
            "(--steps) or on more MD",
        )
    if before is not None and after >= before:
        return Verdict(
            "use with care",
            f"held-out MD is no likelier than before training ({before:.4f} to {after:.4f}): keep the "
            "checkpoint that you started from, or give more MD",
        )
    if "not_compared" in made:
        return Verdict("need more data", made["not_compared"])
    if found is None:
        return Verdict(
            "use with care", "the molecule stays whole, and it has no torsion by which to compare it with MD"
        )
    passages = found.of_kind("mfpt")
    events = sum(q.reference.events for q in passages)
    if passages and events < FEWEST_EVENTS:
        more = math.ceil(md_ps * (FEWEST_EVENTS / max(events, 1) - 1) / 100) / 10
        return Verdict(
            "need more data",
            f"held-out MD has {events} exchange{'s' * (events != 1)} between basins, and rates need "
            f"{FEWEST_EVENTS}: about {more:g} ns more MD would do",
        )
    off = [
        f"{q.kind} {q.name} ({q.verdict})"
        for q in found.quantities
        if q.kind in ("population", "mfpt")
        and not q.inside
        and q.ratio is not None
        and not 1 / FACTOR <= q.ratio <= FACTOR
    ]
    if off:
        return Verdict(
            "use with care", f"not within a factor {FACTOR:g} of held-out MD: {'; '.join(off[:3])}"
        )
    return Verdict(
        "trust",
        f"populations and times between basins are inside MD's intervals or within a factor {FACTOR:g} of "
        "it, as far as the held-out MD can tell",
    )
