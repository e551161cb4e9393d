"""Equilibrium and rates from many short pieces of MD, over barriers that no long run crosses often.

The pieces start anywhere, most of them where a walker on a flattened surface released them
(`training.reference_md.flattened`).  A microstate is a cell of the first two torsions, 10 degrees wide, with
its basin and core.  From the transitions between microstates at a lag of a picosecond follows the reversible
Markov model of maximum likelihood (Prinz et al., J. Chem. Phys. 134, 174105, 2011; by deeptime): populations
are its equilibrium, and mean first-passage times between cores are those of its paths (`chains`), which are
what `zoo.analysis.rates` counts along a long trajectory with frames so far apart.  A test compares the two.
Where frames are several lags apart, the model is taken to that power first.

A propagator is measured in the same way, by steps of its own from the first frames of the same pieces, so
whatever cells and lag leave out is left out on both sides.

Intervals resample pieces in groups that are independent: blocks of a walker, whole segments of plain MD.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
from deeptime.markov.msm import MaximumLikelihoodMSM  # type: ignore[import-untyped]
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from training.benchmarks.kinetics.chains import passage_time, powered
from training.reference_md.segments import Segment
from zoo.analysis.basins import Basins
from zoo.analysis.bootstrap import Estimate, percentile_interval, resample
from zoo.analysis.kinetics import torsions
from zoo.errors import StructureError
from zoo.rollout import roll_out
from zoo.score_dynamics import ScoreDynamics

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Key = tuple[str, str]

#: Degrees.
CELL = 10
#: How long the pieces are into which plain MD is cut for a propagator to start from, ps.
STRIDE = 6.0
_FEWEST_UNITS = 5
NOT_CONNECTED = "not connected"


@dataclass(frozen=True)
class Pieces:
    """Pieces of MD, or of steps of a propagator.

    Attributes
    ----------
    angles : (n_frames, 2) degrees of each.
    units : (n_pieces,) which group of pieces, independent of the others, each is of; from 0.
    dt : ps between frames.
    """

    angles: tuple[Array, ...]
    units: IntArray
    dt: float

    @property
    def n_units(self) -> int:
        return int(self.units.max()) + 1

    @property
    def ps(self) -> float:
        """Simulated time."""
        return self.dt * sum(len(each) - 1 for each in self.angles)


def pieces_of(segments: Sequence[Segment], sites: Sequence[int], quadruples: Sequence[Any]) -> Pieces:
    """Torsions along pieces of MD; pieces of the same name are one unit.

    Parameters
    ----------
    sites : atoms of the MD that are sites of the molecule.
    quadruples : sites of the two torsions.

    Raises
    ------
    StructureError : there are none, or they differ in the time between frames.
    """
    if not segments:
        raise StructureError("there are no pieces of MD")
    if len({s.dt for s in segments}) > 1:
        raise StructureError("the pieces of MD differ in the time between their frames")
    angles = tuple(torsions(s.positions[:, list(sites)].astype(np.float64), quadruples) for s in segments)
    return Pieces(angles, _units(segments), segments[0].dt)


def propagated(
    model: ScoreDynamics,
    segments: Sequence[Segment],
    quadruples: Sequence[Any],
    n_times: int,
    seed: int,
) -> tuple[Pieces, float]:
    """What a propagator makes of frames `STRIDE` apart in as much time, each ``n_times`` over, and the share
    of steps that were redrawn."""
    n_steps = max(1, round(STRIDE / model.lag_time))
    starts, units = [], []
    for segment, unit in zip(segments, _units(segments), strict=True):
        x = segment.positions[: -1 : round(STRIDE / segment.dt), list(model.molecule.sites)]
        starts.append(np.tile(x.astype(np.float64), (n_times, 1, 1)))
        units.append(np.full(len(x) * n_times, unit))
    start = np.concatenate(starts)
    angles = np.empty((len(start), n_steps + 1, 2))
    angles[:, 0] = torsions(start, quadruples)

    def keep(step: int, positions: Array, running: Any) -> None:
        angles[:, step] = torsions(positions, quadruples)

    run = roll_out(model, start, n_steps, len(start), seed, keep=False, observers=(keep,))
    return Pieces(tuple(angles), np.concatenate(units), model.lag_time), run.report.redrawn_fraction


def _units(segments: Sequence[Segment]) -> IntArray:
    names = sorted({s.name for s in segments})
    return np.array([names.index(s.name) for s in segments])


def estimates(
    pieces: Pieces,
    basins: Basins,
    lag: float,
    every: int = 1,
    n_resamples: int = 200,
    seed: int = 0,
    cell: int = CELL,
) -> dict[Key, Estimate]:
    """Populations of all basins and groups, and mean first-passage times between them.

    Parameters
    ----------
    lag : of the Markov model, ps.
    every : lags between the frames in which an arrival is seen.
    cell : size of a microstate, degrees; a divisor of 360.

    Returns
    -------
    By kind ("population", "group population", "mfpt", "group mfpt", as in `zoo.analysis.evaluation`) and
    name (of the basin or group, "A within G", "A → B"); the number of events is that of crossings between the
    cores concerned within pieces, 0 for populations.

    Raises
    ------
    StructureError : the lag is no multiple of the time between frames, or longer than all pieces.
    """
    counted = _Counted(pieces, basins, lag, every, cell)
    values = counted.evaluate(np.ones(pieces.n_units))
    samples = [counted.evaluate(w) for w in resample(pieces.n_units, n_resamples, seed)]
    found = {}
    for key, value in values.items():
        interval = percentile_interval([each[key] for each in samples], pieces.n_units)
        if not np.isfinite(value) or interval is None or not np.isfinite(interval[0]):
            interval = None
        if pieces.n_units < _FEWEST_UNITS:
            interval = None
        low, high = interval or (None, None)
        found[key] = Estimate(
            float(value) if np.isfinite(value) else None,
            low,
            high if high is None or np.isfinite(high) else None,
            0,
            "" if np.isfinite(value) else NOT_CONNECTED,
        )
    return found


class _Counted:
    """Transitions of each unit between microstates."""

    def __init__(self, pieces: Pieces, basins: Basins, lag: float, every: int, cell: int) -> None:
        step = round(lag / pieces.dt)
        if step < 1 or abs(step * pieces.dt - lag) > 1e-6 * lag:
            raise StructureError(f"a lag of {lag:g} ps is no multiple of the {pieces.dt:g} ps between frames")
        long = [k for k, each in enumerate(pieces.angles) if len(each) > step]
        if not long:
            raise StructureError(f"a lag of {lag:g} ps is longer than all pieces")
        self._basins, self._every, self._interval = basins, every, lag * every
        flat = np.concatenate([pieces.angles[k] for k in long])
        n_cells, n_labels = 360 // cell, len(basins.names) + 1
        index = ((flat + 180.0) % 360.0 // cell).astype(np.int64) % n_cells
        core, region = basins.cores(flat), basins.regions(flat)
        micro = ((index[:, 0] * n_cells + index[:, 1]) * n_labels + core + 1) * n_labels + region + 1
        found, first, states = np.unique(micro, return_index=True, return_inverse=True)
        self.n, self.core, self.region = len(found), core[first], region[first]
        ends = np.cumsum([len(pieces.angles[k]) for k in long])
        parts = np.split(states, ends[:-1])
        self._pair = np.concatenate([each[:-step] * self.n + each[step:] for each in parts])
        self._unit = np.repeat(pieces.units[long], [len(each) - step for each in parts])

    def evaluate(self, unit_weights: Array) -> dict[Key, float]:
        """All figures, with so much weight on each unit; NaN or infinite where not known."""
        counts = np.bincount(self._pair, unit_weights[self._unit], self.n**2).astype(np.float64)
        flow = equilibrium_flow(counts.reshape(self.n, self.n))
        pi, basins = flow.sum(1), self._basins
        found: dict[Key, float] = {}
        shares = [float(pi[self.region == k].sum()) for k in range(len(basins.names))]
        # a basin that is not connected with the others has no known population, not none
        known = [share if share > 0 else np.nan for share in shares]
        groups = [(name, [basins.names.index(m) for m in members]) for name, members in basins.groups]
        for name, share in zip(basins.names, known, strict=True):
            found["population", name] = share if np.isfinite(known).all() else np.nan
        for name, members in groups:
            whole = sum(known[m] for m in members)
            found["group population", name] = whole if np.isfinite(known).all() else np.nan
            for m in members:
                found["group population", f"{basins.names[m]} within {name}"] = known[m] / whole
        flow = powered(flow, self._every)
        sets = [(name, [k]) for k, name in enumerate(basins.names)]
        for kind, these in (("mfpt", sets), ("group mfpt", groups)):
            for (a, from_), (b, to) in permutations(these, 2):
                steps = passage_time(flow, np.isin(self.core, from_), np.isin(self.core, to))
                found[kind, f"{a} → {b}"] = self._interval * steps
        return found


def equilibrium_flow(counts: Array) -> Array:
    """pi_i T_ij (n, n) of the reversible Markov model of maximum likelihood, pi summing to 1.

    Of the largest set of states that are all reached from each other; the flow of other states is zero.
    """
    _, label = connected_components(csr_array(counts > 0), directed=True, connection="strong")
    inside = np.flatnonzero(label == np.bincount(label, counts.sum(1)).argmax())
    part = counts[np.ix_(inside, inside)]
    result = np.zeros_like(counts)
    if len(inside) > 1 and part.sum() > 0:
        model = MaximumLikelihoodMSM(reversible=True, maxiter=10**6, maxerr=1e-8).fit_fetch(part)
        result[np.ix_(inside, inside)] = model.stationary_distribution[:, None] * model.transition_matrix
    return result
