"""A rollout beside MD: free energies, populations, rates, paths and geometry, with 95 % intervals."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zoo.analysis.basins import Basins, alanine_basins, automatic_basins
from zoo.analysis.bootstrap import MIN_UNITS, Estimate, estimate, tail, weighted_sums
from zoo.analysis.dihedrals import choose_dihedrals
from zoo.analysis.divergence import Divergence, divergence
from zoo.analysis.geometry import Internals
from zoo.analysis.geometry_report import geometry_report
from zoo.analysis.measured import Measured, measure
from zoo.analysis.rates import (
    MarkovFigures,
    Tally,
    first_passage_times,
    markov_model,
    markov_resamples,
    passage_lower_bound,
    paths,
    significant,
    tally,
)
from zoo.errors import StructureError, ZooError
from zoo.molecules.molecule import handedness

if TYPE_CHECKING:
    from zoo.molecules.molecule import Molecule

Array = npt.NDArray[np.float64]

FORMAT = 1
#: Bins of each dihedral in a map: of one dihedral and of two; and, coarser, for divergences of two.
BINS_1D, BINS_2D, BINS_JS = 72, 36, 18
#: The lag of the Markov model unless the user says otherwise, ps; and the lags of the scan, in steps.
MARKOV_LAG = 5.0
SCAN = (1, 2, 5, 10, 20, 50)
#: Resamples of the scan: each lag needs its own models.
_SCAN_RESAMPLES = 300
FEWEST_FRAMES = 20
_ENOUGH_PATHS = 10


@dataclass(frozen=True)
class Quantity:
    """One figure of the reference and of the rollout.

    Attributes
    ----------
    kind : "population", "markov population", "group population", "mfpt", "group mfpt", "markov mfpt",
        "timescale", "path time".
    name : a basin, or "A → B", or the number of the process.
    unit : "ps" or "".
    """

    kind: str
    name: str
    unit: str
    reference: Estimate
    rollout: Estimate

    @property
    def ratio(self) -> float | None:
        """Rollout over reference; None where either is missing or the reference is zero."""
        if self.reference.value is None or self.rollout.value is None or not self.reference.value:
            return None
        return self.rollout.value / self.reference.value

    @property
    def inside(self) -> bool | None:
        """Whether the rollout's value is inside the reference's interval; None without one of them."""
        return self.reference.contains(self.rollout.value)

    @property
    def verdict(self) -> str:
        """ "inside", or the ratio, or why there is neither."""
        if self.inside:
            return "inside"
        if self.ratio is not None:
            note = self.reference.note or self.rollout.note
            return f"× {self.ratio:.2f}" + (f", {note}" if note else "")
        return self.reference.note or self.rollout.note or "-"

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "unit": self.unit,
            "reference": self.reference.to_json(),
            "rollout": self.rollout.to_json(),
            "ratio": self.ratio,
            "inside": self.inside,
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes
    ----------
    quantities : populations, times and timescales.
    divergences : by the names of their dihedrals, as "φ ψ", and "paths" for the transition-path density.
    details : the rest of the report: settings, basins, free-energy maps, implied timescales over the
        lag, path densities, geometry; JSON types only.
    """

    quantities: tuple[Quantity, ...]
    divergences: dict[str, Divergence]
    details: dict[str, Any] = field(repr=False)

    def of_kind(self, kind: str) -> list[Quantity]:
        return [each for each in self.quantities if each.kind == kind]

    def quantity(self, kind: str, name: str) -> Quantity:
        """The quantity of this kind and name; KeyError if there is none."""
        for each in self.quantities:
            if (each.kind, each.name) == (kind, name):
                return each
        raise KeyError((kind, name))

    def to_json(self) -> dict[str, Any]:
        """The whole report, of JSON types; what is unknown is null."""
        return {
            "format": FORMAT,
            **self.details,
            "divergences": {name: each.to_json() for name, each in self.divergences.items()},
            "quantities": [each.to_json() for each in self.quantities],
        }

    def save_json(self, path: str | os.PathLike[str]) -> Path:
        """Write the report; it appears under this name only when it is complete.

        Raises
        ------
        ZooError : it cannot be written.
        """
        target = Path(path)
        text = json.dumps(_rounded(self.to_json()), ensure_ascii=False, allow_nan=False) + "\n"
        partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            try:
                partial.write_text(text, encoding="utf-8")
                os.replace(partial, target)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            raise ZooError(f"cannot write the report {target}: {error.strerror or error}") from error
        return target

    def save_png(self, path: str | os.PathLike[str]) -> Path:
        """Draw the report, see `zoo.analysis.evaluation_picture.draw`.

        Raises
        ------
        MissingExtraError : matplotlib is not installed.
        ZooError : the picture cannot be written.
        """
        from zoo.analysis.evaluation_picture import draw

        return draw(self.to_json(), Path(path))


def evaluate(
    rollout: Iterable[Any],
    reference: Iterable[Any],
    molecule: Molecule,
    interval_ps: float,
    *,
    dihedrals: Sequence[str | Sequence[str | int]] | None = None,
    basins: Basins | None = None,
    markov_lag_ps: float | None = None,
    block_ps: float | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
    progress: Callable[[str], object] | None = None,
) -> Evaluation:
    """Compare a rollout with reference MD: free energies, populations, rates, paths, geometry.

    Parameters
    ----------
    rollout, reference : trajectories, positions (n_frames, n_sites, 3) in Å in the molecule's order of
        sites, any number of each; may be generators, for they are read once, one after the other.
    molecule : the molecule of both.
    interval_ps : between the frames of both.
    dihedrals : see `zoo.analysis.dihedrals.choose_dihedrals`; by default phi and psi.
    basins : by default those of `zoo.analysis.basins`: boxes for phi and psi of an alanine-like
        residue, else between the barriers of the reference's own histograms.
    markov_lag_ps : lag of the Markov model; by default the multiple of the interval nearest to 5 ps.
    block_ps : length of the blocks that are resampled; by default whole trajectories, or, where there
        are fewer than ten, about ten blocks of them.  0: always whole trajectories.
    n_resamples, seed : of the bootstrap.
    progress : told in a few words what is being done.

    Raises
    ------
    StructureError : trajectories of another molecule, too short, or not finite; unknown dihedrals;
        basins for another number of dihedrals; impossible numbers.
    MissingExtraError : deeptime is not installed.
    """
    check_numbers(interval_ps, markov_lag_ps, block_ps, n_resamples)
    tell = progress or (lambda what: None)
    chosen = choose_dihedrals(molecule, dihedrals)
    block = None if block_ps is None else (0 if block_ps == 0 else max(1, round(block_ps / interval_ps)))
    internals = Internals(molecule)
    sets: list[Measured] = []
    shift: Array | None = None
    hands: Any = None
    for what, trajectories in (("reference", reference), ("rollout", rollout)):
        tell(f"measuring the {what}")
        iterator = iter(trajectories)
        first = next(iterator, None)
        if (
            first is not None
            and shift is None
            and np.ndim(first) == 3
            and np.shape(first)[1] == molecule.n_sites
        ):
            shift = internals.measure(np.asarray(first[:1]))[0]
            hands = handedness(np.asarray(first[:1], dtype=np.float64), molecule.centres)[0]
        given = [] if first is None else _chain(first, iterator)
        sets.append(measure(given, internals, chosen.quadruples, what, shift, block, hands))
    md, run = sets
    for what, each in (("reference", md), ("rollout", run)):
        if each.n_frames < FEWEST_FRAMES:
            raise StructureError(
                f"the {what} is too short: {each.n_frames} frames {interval_ps:g} ps apart in all, and at "
                f"least {FEWEST_FRAMES} are needed to say anything"
            )
    if basins is None:
        basins = (
            alanine_basins()
            if chosen.alanine_like
            else automatic_basins(np.concatenate(md.angles), chosen.names)
        )
    if basins.n_dihedrals != len(chosen.names):
        raise StructureError(
            f"the basins are boxes in {basins.n_dihedrals} dihedrals, and there are {len(chosen.names)}"
        )
    lag = markov_lag_steps(markov_lag_ps, interval_ps, min(md.longest, run.longest))
    tell("counting")
    sides = [
        _Side(each, basins, interval_ps, lag, n_resamples, seed, stream) for stream, each in enumerate(sets)
    ]
    tell("resampling")
    tables = [side.quantities() for side in sides]
    quantities = tuple(
        Quantity(kind, name, unit, value, tables[1][kind, name, unit])
        for (kind, name, unit), value in tables[0].items()
    )
    tell("maps and divergences")
    maps, divergences = _maps(md, run, sides, chosen.names, seed)
    density, divergences["paths"] = _path_density(md, run, sides, seed)
    details: dict[str, Any] = {
        "molecule": molecule.formula,
        "sites": list(molecule.site_labels),
        "interval_ps": interval_ps,
        "markov_lag_ps": lag * interval_ps,
        "dihedrals": [
            {"name": name, "sites": list(quadruple)}
            for name, quadruple in zip(chosen.names, chosen.quadruples, strict=True)
        ],
        "basins": basins.to_json(),
        "bootstrap": {"n_resamples": n_resamples, "seed": seed, "interval": "expanded percentile, 95 %"},
        "sets": {
            what: _size(each, side, interval_ps)
            for what, each, side in zip(("reference", "rollout"), sets, sides, strict=True)
        },
        "free_energy": maps,
        "implied_timescales": _scan(sides, interval_ps, min(md.longest, run.longest)),
        "path_density": density,
        "geometry": geometry_report(md.geometry, run.geometry, internals, shift, n_resamples, seed),
    }
    return Evaluation(quantities, divergences, details)


def check_numbers(
    interval_ps: float, markov_lag_ps: float | None, block_ps: float | None, n_resamples: int
) -> None:
    if not (math.isfinite(interval_ps) and interval_ps > 0):
        raise StructureError(
            f"the interval between frames must be a positive number of ps, not {interval_ps}"
        )
    if block_ps is not None and not (math.isfinite(block_ps) and block_ps >= 0):
        raise StructureError(f"the length of a block must be a number of ps, not {block_ps}")
    if markov_lag_ps is not None and not (math.isfinite(markov_lag_ps) and markov_lag_ps > 0):
        raise StructureError(
            f"the lag of the Markov model must be a positive number of ps, not {markov_lag_ps}"
        )
    if n_resamples < 100:
        raise StructureError(f"{n_resamples} resamples are too few for a 95 % interval; give at least 100")


def _chain(first: Any, rest: Iterable[Any]) -> Iterable[Any]:
    yield first
    yield from rest


def markov_lag_steps(wanted: float | None, interval: float, longest: int) -> int:
    lag = max(1, round((MARKOV_LAG if wanted is None else wanted) / interval))
    if wanted is None:
        return min(lag, max(1, longest // 4))
    if not math.isclose(lag * interval, wanted, rel_tol=1e-6):
        raise StructureError(f"a lag of {wanted:g} ps is no multiple of the interval of {interval:g} ps")
    if lag >= longest:
        raise StructureError(
            f"a lag of {wanted:g} ps is too long for trajectories of {longest * interval:g} ps"
        )
    return lag


class _Side:
    """The counts of one set of trajectories, its bootstrap weights, and the figures from both."""

    def __init__(
        self,
        data: Measured,
        basins: Basins,
        interval: float,
        lag: int,
        n_resamples: int,
        seed: int,
        stream: int,
    ) -> None:
        self.data, self.basins, self.interval, self.lag = data, basins, interval, lag
        self.cores = [basins.cores(each) for each in data.angles]
        regions = [basins.regions(each) for each in data.angles]
        lags = tuple(sorted({1, lag, *(k for k in SCAN if k <= max(1, data.longest // 5))}))
        self.n = len(basins.names)
        of = basins.grouped(np.arange(self.n)).tolist()
        self.of = of if len(basins.groups) > 1 else [-1] * self.n
        self.tally = tally(self.cores, regions, data.units, self.n, lags, self.of)
        self.groups: Tally | None = None
        if len(basins.groups) > 1:
            cores = [basins.grouped(each) for each in self.cores]
            self.groups = tally(cores, cores, data.units, len(basins.groups), ())
        self.weights = data.weights(n_resamples, seed, stream)

    def counts(self, lag: int) -> Array:
        """(U, B, B) at this lag."""
        return np.asarray(self.tally.counts[self.tally.lags.index(lag)])

    def quantities(self) -> dict[tuple[str, str, str], Estimate]:
        """By kind, name and unit."""
        result: dict[tuple[str, str, str], Estimate] = {}
        names = self.basins.names
        for k, value in enumerate(self._populations()):
            result["population", names[k], ""] = value
        stationary, timescales, markov = self._markov(self.lag, self.weights)
        for k, value in enumerate(stationary):
            result["markov population", names[k], ""] = value
        if self.groups is not None:
            labels = [name for name, _ in self.basins.groups]
            for (inside, within), value in self._within_groups().items():
                result["group population", f"{inside} within {within}", ""] = value
            for (a, b), value in self._passages(self.groups).items():
                result["group mfpt", f"{labels[a]} → {labels[b]}", "ps"] = value
        for (a, b), value in self._passages(self.tally).items():
            result["mfpt", f"{names[a]} → {names[b]}", "ps"] = value
        for (a, b), value in markov.items():
            result["markov mfpt", f"{names[a]} → {names[b]}", "ps"] = value
        for k, value in enumerate(timescales):
            result["timescale", f"{k + 1}", "ps"] = value
        for (a, b), value in self._path_times().items():
            result["path time", f"{names[a]} → {names[b]}", "ps"] = value
        return result

    def _within_groups(self) -> dict[tuple[str, str], Estimate]:
        """Populations of the basins of each group among themselves, see `_shares`.

        Trajectories may be too short to go from group to group, and still long enough to tell this.
        """
        where = self.tally.inside
        weighted = weighted_sums(self.weights, where)
        result: dict[tuple[str, str], Estimate] = {}
        for (group, members), (index, model, resampled) in zip(self.basins.groups, self._alone, strict=True):
            if len(index) < 2:
                continue
            value = _shares(model.stationary, where.sum(0)[index], index)
            samples = _shares(resampled[0], weighted[:, index], index)
            changes = _among(self.tally.paths, index)
            for k, name in enumerate(members):
                ways = changes[:, :, k].sum(1) + changes[:, k, :].sum(1)
                result[name, group] = self._estimate(value[k], samples[:, k], ways)
        return result

    @cached_property
    def _alone(self) -> list[tuple[list[int], MarkovFigures, tuple[Array, Array, Array]]]:
        """Of each group its basins, and the Markov model of these among themselves with its resamples."""
        counts = self.counts(self.lag)
        resampled = weighted_sums(self.weights, counts)
        found = []
        for _, members in self.basins.groups:
            index = [self.basins.names.index(name) for name in members]
            model = markov_model(_among(counts.sum(0), index), self.lag)
            found.append((index, model, markov_resamples(_among(resampled, index), self.lag)))
        return found

    def timescales(self, lag: int) -> list[Estimate] | None:
        """Implied timescales at another lag; None if it was not counted."""
        if lag not in self.tally.lags:
            return None
        return self._markov(lag, self.weights[:_SCAN_RESAMPLES], only_timescales=True)[1]

    def _estimate(self, value: float, samples: Array, per_unit: Array, **more: Any) -> Estimate:
        """With the number of events in each unit."""
        return estimate(
            float(value), samples, self.data.n_units,
            events=float(per_unit.sum()), units_with_events=int((per_unit > 0).sum()), **more,
        )  # fmt: skip

    def _populations(self) -> list[Estimate]:
        frames = self.tally.frames
        samples = weighted_sums(self.weights, frames)
        all_frames = np.zeros(self.data.n_units)
        for unit in self.data.units:
            all_frames += np.bincount(unit, minlength=self.data.n_units)
        share = frames.sum(0) / all_frames.sum()
        resampled = samples / (self.weights @ all_frames)[:, None]
        return [
            self._estimate(
                share[k], resampled[:, k], self.tally.visits[:, k], value_without_events=float(share[k])
            )
            for k in range(self.n)
        ]

    def _passages(self, counted: Tally) -> dict[tuple[int, int], Estimate]:
        time, number = counted.at_risk, counted.arrivals
        values = first_passage_times(time.sum(0), number.sum(0)) * self.interval
        samples = first_passage_times(weighted_sums(self.weights, time), weighted_sums(self.weights, number))
        result = {}
        for a, b in _pairs(values.shape[0]):
            risk = float(time[:, a, b].sum())
            bound = passage_lower_bound(risk, float(number[:, a, b].sum())) * self.interval if risk else None
            result[a, b] = self._estimate(
                values[a, b], samples[:, a, b] * self.interval, number[:, a, b], lower_bound=bound
            )
        return result

    def _path_times(self) -> dict[tuple[int, int], Estimate]:
        steps, number = self.tally.path_steps, self.tally.paths
        values = first_passage_times(steps.sum(0), number.sum(0)) * self.interval
        samples = first_passage_times(weighted_sums(self.weights, steps), weighted_sums(self.weights, number))
        return {
            (a, b): self._estimate(values[a, b], samples[:, a, b] * self.interval, number[:, a, b])
            for a, b in _pairs(self.n)
        }

    def _markov(
        self, lag: int, weights: Array, only_timescales: bool = False
    ) -> tuple[list[Estimate], list[Estimate], dict[tuple[int, int], Estimate]]:
        counts = self.counts(lag)
        model = markov_model(counts.sum(0), lag)
        stationary, timescales, mfpt = markov_resamples(weighted_sums(weights, counts), lag, model.slow)
        changes = self.tally.paths
        slow = []
        for k in range(self.n - 1):
            side = significant(model.slow[k])
            across = (side[:, None] * side[None, :]) < 0
            crossings = (changes * across).sum((1, 2))
            slow.append(
                self._estimate(
                    model.timescales[k] * self.interval, timescales[:, k] * self.interval, crossings
                )
            )
        if only_timescales:
            return [], slow, {}
        everywhere = list(range(self.n))
        value = _shares(model.stationary, self.tally.inside.sum(0), everywhere)
        samples = _shares(stationary, weighted_sums(weights, self.tally.inside), everywhere)
        populations = [
            self._estimate(value[k], samples[:, k], self._ways(k, model.stationary)) for k in range(self.n)
        ]
        passages = model.mfpt.copy()
        if self.groups is not None:
            for index, alone, samples_alone in self._alone:
                rows, columns = np.ix_(index, index)
                passages[rows, columns], mfpt[:, rows, columns] = alone.mfpt, samples_alone[2]
        times = {
            (a, b): self._estimate(
                passages[a, b] * self.interval, mfpt[:, a, b] * self.interval, self.tally.arrivals[:, a, b]
            )
            for a, b in _pairs(self.n)
        }
        return populations, slow, times

    def _ways(self, basin: int, stationary: Array) -> Array:
        """(U,) events on which the share of a basin in all rests: changes into it and out of it.

        Of a basin in a group that has less than half of all these are, if they are fewer, the changes of the
        group, twice those of the rarer direction, for neither share nor balance comes from one of them.
        """
        changes = self.tally.paths
        ways = changes[:, :, basin].sum(1) + changes[:, basin, :].sum(1)
        mine = np.array([each == self.of[basin] for each in self.of])
        if self.of[basin] < 0 or mine.all() or not stationary[mine].sum() < 0.5:
            return np.asarray(ways)
        out, back = (changes[:, a][:, :, b].sum((1, 2)) for a, b in ((mine, ~mine), (~mine, mine)))
        rarer = 2.0 * (out if out.sum() <= back.sum() else back)
        return np.asarray(rarer if rarer.sum() < ways.sum() else ways)


def _shares(stationary: Array, where: Array, index: Sequence[int]) -> Array:
    """Shares of time (..., K) in the regions ``index`` of basins.

    A Markov model weighs the basins (..., K) whose cores were visited last; of the frames in which one of
    them was, ``where`` (..., K, B + 1) counts those in each region.  The basin visited last is not always
    that where a frame is, on the way between cores; only what lies in the regions counts, and together it is
    1 where they leave nothing out.
    """
    every = where.sum(-1, keepdims=True)
    share = np.divide(where, every, out=np.zeros_like(where), where=every > 0)
    inside = np.einsum("...m,...mr->...r", stationary, share)[..., index]
    if share.shape[-1] == len(index) + 1:  # of all basins: of all time, also of that in no region
        return np.asarray(inside)
    with np.errstate(invalid="ignore"):
        return np.asarray(inside / inside.sum(-1, keepdims=True))


def _among(matrices: Array, index: Sequence[int]) -> Array:
    """These rows and columns of matrices (..., B, B)."""
    return np.asarray(matrices[..., index, :][..., index])


def _pairs(n: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(n) for b in range(n) if a != b]


def _size(data: Measured, side: _Side, interval: float) -> dict[str, Any]:
    unit_ps = data.n_frames / data.n_units * interval
    slowest = side.timescales(side.lag)
    known = [each.value for each in slowest or [] if each.value is not None]
    notes = []
    if not data.whole and known and unit_ps < 5 * max(known):
        notes.append(
            f"blocks of {unit_ps:.0f} ps are not long against the slowest timescale of {max(known):.0f} ps: "
            "intervals may be too narrow"
        )
    return {
        "n_trajectories": data.n_trajectories,
        "n_frames": data.n_frames,
        "total_ps": data.n_steps * interval,
        "resampled": "whole trajectories" if data.whole else f"blocks of about {unit_ps:.0f} ps",
        "n_units": data.n_units,
        "notes": notes,
    }


def _maps(
    md: Measured, run: Measured, sides: Sequence[_Side], names: Sequence[str], seed: int
) -> tuple[list[dict[str, Any]], dict[str, Divergence]]:
    """Free-energy maps of each dihedral and of the first two together, and their divergences."""
    maps: list[dict[str, Any]] = []
    divergences: dict[str, Divergence] = {}
    every = [(k,) for k in range(len(names))] + ([(0, 1)] if len(names) > 1 else [])
    for axes in every:
        bins = BINS_1D if len(axes) == 1 else BINS_2D
        counted = [each.histograms(axes, bins) for each in (md, run)]
        zero = counted[0].sum(0).max() / counted[0].sum()
        maps.append(
            {
                "dihedrals": [names[k] for k in axes],
                "bins": bins,
                "unit": "kT",
                "reference": _free_energy(counted[0], sides[0].weights, zero, bins, len(axes)),
                "rollout": _free_energy(counted[1], sides[1].weights, zero, bins, len(axes)),
            }
        )
        divergences[" ".join(names[k] for k in axes)] = _apart(md, run, axes, bins, counted, seed)
    return maps, divergences


def _apart(
    md: Measured,
    run: Measured,
    axes: Sequence[int],
    bins: int,
    counted: Sequence[Array],
    seed: int,
    chosen: Sequence[Sequence[Any] | None] = (None, None),
) -> Divergence:
    """Divergence of the histograms ``counted``, with floors."""
    ours, theirs = (_coarse(each, len(axes), bins) for each in counted)
    alike = []
    for data, other, own, frames in ((md, run, ours, chosen[0]), (run, md, theirs, chosen[1])):
        units = data.no_longer_than(other)
        cut = units is not data.units
        alike.append(_coarse(data.histograms(axes, bins, frames, units), len(axes), bins) if cut else own)
    return divergence(ours, theirs, seed, alike=(alike[0], alike[1]))


def _coarse(per_unit: Array, dimensions: int, bins: int) -> Array:
    """Histograms with bins put together until BINS_JS are left in each direction, or 36 of one dihedral."""
    left = BINS_JS if dimensions == 2 else 36
    shape = (len(per_unit), *(size for _ in range(dimensions) for size in (left, bins // left)))
    together = tuple(range(2, 2 * dimensions + 1, 2))
    return np.asarray(per_unit.reshape(shape).sum(together).reshape(len(per_unit), -1))


def _free_energy(per_unit: Array, weights: Array, zero: float, bins: int, dimensions: int) -> dict[str, Any]:
    """-ln(p / zero) in kT, zero being the highest probability of a bin of the reference."""
    shape = (bins,) * dimensions
    with np.errstate(divide="ignore"):
        value, high, low = (_table(-np.log(each / zero), shape) for each in _bin_shares(per_unit, weights))
    frames = per_unit.sum(0).astype(int).reshape(shape).tolist()
    return {"value": value, "low": low, "high": high, "frames": frames}


def _density(per_unit: Array, weights: Array, shape: tuple[int, ...]) -> dict[str, Any]:
    """The share of all frames in each bin, its interval, and how many frames they are."""
    share, low, high = (_table(each, shape, 7) for each in _bin_shares(per_unit, weights))
    frames = per_unit.sum(0).astype(int).reshape(shape).tolist()
    return {"share": share, "low": low, "high": high, "frames": frames}


def _bin_shares(per_unit: Array, weights: Array) -> tuple[Array, Array, Array]:
    """(n_bins,) share of all frames in each bin, and its interval; NaN where that is not known."""
    frames = per_unit.sum(0)
    share, low, high = (np.full(len(frames), np.nan) for _ in range(3))
    if frames.sum():
        share = frames / frames.sum()
        seen = np.flatnonzero((per_unit > 0).sum(0) >= min(3, len(per_unit)))
        if len(seen) and len(per_unit) >= MIN_UNITS:
            with np.errstate(invalid="ignore"):
                samples = (weights @ per_unit[:, seen]) / (weights @ per_unit.sum(1))[:, None]
            samples = np.sort(samples[np.isfinite(samples).all(1)], axis=0)
            k = int(np.floor(tail(len(per_unit)) * (len(samples) - 1)))
            low[seen], high[seen] = samples[k], samples[len(samples) - 1 - k]
    return share, low, high


def _table(values: Array, shape: tuple[int, ...], digits: int = 4) -> Any:
    """Nested lists with null for what is not finite."""
    plain = [round(float(v), digits) if np.isfinite(v) else None for v in values]
    if len(shape) == 1:
        return plain
    return [plain[k * shape[1] : (k + 1) * shape[1]] for k in range(shape[0])]


def _path_density(
    md: Measured, run: Measured, sides: Sequence[_Side], seed: int
) -> tuple[dict[str, Any], Divergence]:
    """Where the molecule is on its way from core to core, the ends of each path included.

    Paths in both directions are put together: at equilibrium they are the same.  Where there are
    groups, and enough paths between them on both sides, only these count, for those within a group are
    far more frequent and would hide them; otherwise all.
    """
    axes = (0, 1) if len(sides[0].data.angles[0].T) > 1 else (0,)
    bins = BINS_2D if len(axes) == 2 else BINS_1D
    counted, numbers, choices = [], [], []
    grouped = all(side.groups is not None and side.groups.paths.sum() >= _ENOUGH_PATHS for side in sides)
    for data, side in zip((md, run), sides, strict=True):
        chosen, number = [], 0
        for cores in side.cores:
            first, last = paths(cores)
            if grouped:
                group = side.basins.grouped(cores)
                across = group[first] != group[last]
                first, last = first[across], last[across]
            number += len(first)
            edge = np.zeros(len(cores) + 1, dtype=np.int64)
            np.add.at(edge, first, 1)
            np.add.at(edge, last + 1, -1)
            chosen.append(np.cumsum(edge[:-1]) > 0)
        numbers.append(number)
        choices.append(chosen)
        counted.append(data.histograms(axes, bins, chosen))
    shape = (bins,) * len(axes)
    density: dict[str, Any] = {"between": "groups" if grouped else "basins", "bins": bins}
    for what, per_unit, number, side in zip(("reference", "rollout"), counted, numbers, sides, strict=True):
        density[what] = {"paths": number, **_density(per_unit, side.weights, shape)}
    return density, _apart(md, run, axes, bins, counted, seed, choices)


def _scan(sides: Sequence[_Side], interval: float, longest: int) -> list[dict[str, Any]]:
    """Implied timescales at several lags: they should not depend on it."""
    result = []
    for lag in sorted({*sides[0].tally.lags} & {*sides[1].tally.lags}):
        found = [side.timescales(lag) for side in sides]
        if lag <= longest and found[0] is not None and found[1] is not None:
            result.append(
                {
                    "lag_ps": lag * interval,
                    "reference": [each.to_json() for each in found[0]],
                    "rollout": [each.to_json() for each in found[1]],
                }
            )
    return result


def _rounded(value: Any) -> Any:
    """Floats with seven digits: the rest is noise, and long."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value
