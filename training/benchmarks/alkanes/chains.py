"""What there is to measure of a chain of carbons: its torsions, how often they change, and its size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.analysis.bootstrap import resample, tail, weighted_sums
from zoo.analysis.dihedrals import chain_torsions
from zoo.analysis.divergence import divergence
from zoo.analysis.kinetics import torsions
from zoo.analysis.rates import milestones
from zoo.errors import StructureError
from zoo.molecules.molecule import Molecule

Array = npt.NDArray[np.float64]

#: Degrees.  A torsion belongs to the core that it visited last, so that jitter at a barrier is no exchange.
CORES = {"trans": (150.0, 180.0), "gauche": (40.0, 95.0)}
BINS = 36
TRANS, PLUS, MINUS = 0, 1, 2


@dataclass(frozen=True)
class Blocks:
    """Sums over pieces of trajectories, the units that are resampled; the first axis is the piece.

    ``frames`` and ``exchanges`` (trans to gauche and back) are per torsion of the chain, in frames that
    had visited a core; ``sums`` of end-to-end distance, its square, radius of gyration and its square.
    """

    frames: Array
    gauche: Array
    exchanges: Array
    histogram: Array
    sums: Array
    n_frames: Array
    interval: float


def measure(
    molecule: Molecule,
    trajectories: Sequence[npt.NDArray[Any]],
    interval: float,
    block: float,
    skip: float = 0.0,
) -> Blocks:
    """Blocks of ``block`` ps of trajectories (n_frames, n_sites, 3) Å, ``interval`` ps between frames.

    The first ``skip`` ps of each trajectory are left out.
    """
    quadruples = chain_torsions(molecule)
    carbons = [k for k, e in enumerate(molecule.site_elements) if e == "C"]
    ends = (quadruples[0][0], quadruples[-1][-1]) if quadruples else (carbons[0], carbons[-1])
    length, first = max(1, round(block / interval)), round(skip / interval)
    rows: list[tuple[Array, ...]] = []
    for x in trajectories:
        x = np.asarray(x, dtype=np.float64)
        angles = torsions(x, quadruples) if quadruples else np.zeros((len(x), 0))
        states = np.stack([states_of(a) for a in angles.T], 1) if quadruples else np.zeros((len(x), 0), int)
        last = np.stack([milestones(s) for s in states.T], 1) if quadruples else states
        gauche = (np.abs(angles) < 120.0).astype(float)
        # Of both neighbours in time, so that an exchange belongs to the block it ends in.
        was_trans, is_trans = last[:-1] == TRANS, last[1:] == TRANS
        known = (last[:-1] >= 0) & (last[1:] >= 0)
        changed = np.concatenate([np.zeros((1, states.shape[1])), known & (was_trans != is_trans)]).astype(
            float
        )
        distance = np.linalg.norm(x[:, ends[0]] - x[:, ends[1]], axis=-1)
        heavy = x[:, carbons]
        gyration = np.sqrt(((heavy - heavy.mean(1, keepdims=True)) ** 2).sum(-1).mean(1))
        size = np.stack([distance, distance**2, gyration, gyration**2], 1)
        for begin in range(first, len(x) - length + 1, length):
            piece = slice(begin, begin + length)
            counts = np.histogram(np.abs(angles[piece]), BINS, (0.0, 180.0))[0].astype(float)
            rows.append(
                (
                    (last[piece] >= 0).sum(0).astype(float),
                    gauche[piece].sum(0),
                    changed[piece].sum(0),
                    counts,
                    size[piece].sum(0),
                    np.array(float(length)),
                )
            )
    if not rows:
        raise StructureError(f"no trajectory is as long as a block of {block:g} ps")
    frames, share, changes, histogram, sums, n_frames = (np.stack(c) for c in zip(*rows, strict=True))
    return Blocks(frames, share, changes, histogram, sums, n_frames, interval)


def states_of(angle: Array) -> npt.NDArray[np.int64]:
    """Core of each angle (n,) in degrees; -1 outside all."""
    size = np.abs(angle)
    states = np.full(len(angle), -1, dtype=np.int64)
    states[size >= CORES["trans"][0]] = TRANS
    inside = (size >= CORES["gauche"][0]) & (size <= CORES["gauche"][1])
    states[inside & (angle > 0)] = PLUS
    states[inside & (angle < 0)] = MINUS
    return states


def figures(blocks: Blocks, n_resamples: int = 2000, seed: int = 0, stream: int = 0) -> dict[str, Any]:
    """Each figure with its 95 % interval: ``{"gauche": [value, low, high], ...}``.

    ``gauche``: share of gauche among all torsions; ``outer`` and ``inner``: of the two at the ends of the
    chain and of the rest; ``exchanges_per_ns``: trans to gauche and back, per torsion; ``end_to_end``,
    ``gyration`` Å, and their standard deviations.
    """
    n = len(blocks.n_frames)
    weights = np.concatenate([np.ones((1, n)), resample(n, n_resamples, seed, stream)])
    found: dict[str, Any] = {}

    def put(name: str, values: Array) -> None:
        samples = np.sort(values[1:])
        low = int(np.floor(tail(n) * (len(samples) - 1)))
        found[name] = [round(float(v), 5) for v in (values[0], samples[low], samples[-1 - low])]

    total = weighted_sums(weights, blocks.n_frames)
    gauche = weighted_sums(weights, blocks.gauche)
    m = gauche.shape[1]
    if m:
        put("gauche", gauche.sum(1) / (m * total))
        outer = sorted({0, m - 1})
        inner = [k for k in range(m) if k not in outer]
        if inner:
            put("outer", gauche[:, outer].sum(1) / (len(outer) * total))
            put("inner", gauche[:, inner].sum(1) / (len(inner) * total))
        ns = weighted_sums(weights, blocks.frames).sum(1) * blocks.interval / 1000
        put("exchanges_per_ns", weighted_sums(weights, blocks.exchanges).sum(1) / ns)
    means = weighted_sums(weights, blocks.sums) / total[:, None]
    for k, name in enumerate(("end_to_end", "gyration")):
        put(name, means[:, 2 * k])
        put(f"{name}_std", np.sqrt(np.maximum(means[:, 2 * k + 1] - means[:, 2 * k] ** 2, 0.0)))
    return found


def compare(md: Blocks, run: Blocks, seed: int = 0) -> dict[str, Any]:
    """Both sets of figures, the ratio of the exchange rates, and how far the histograms are apart."""
    a, b = figures(md, seed=seed, stream=0), figures(run, seed=seed, stream=1)
    result: dict[str, Any] = {
        name: {"md": a[name], "rollout": b[name], "inside": a[name][1] <= b[name][0] <= a[name][2]}
        for name in a
    }
    if "gauche" in a:
        result["n_exchanges_md"] = int(md.exchanges.sum())
        result["rate_ratio"] = round(b["exchanges_per_ns"][0] / a["exchanges_per_ns"][0], 4)
        apart = divergence(md.histogram, run.histogram, seed)
        result["torsion_divergence_bits"] = apart.value
        result["torsion_divergence_halves_bits"] = apart.halves
        result["torsion_divergence_halves_95_bits"] = apart.halves_95
    return result
