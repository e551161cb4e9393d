"""Basins of a molecule in its dihedral angles: regions for populations, cores for rates.

Every point of the torus belongs to the **region** of exactly one basin; regions give populations.  Inside
each region is a smaller **core**, and a trajectory has changed basin when it enters another core, not when
it crosses a line: frames between cores belong to the core visited last (`zoo.analysis.rates.milestones`).
At frames of a picosecond a molecule on a barrier crosses any line several times on its way, and rates
counted at lines would measure how often it shivers there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zoo.errors import StructureError

if TYPE_CHECKING:
    from zoo.molecules.molecule import Molecule

IntArray = npt.NDArray[np.int64]
Box = tuple[tuple[float, float], ...]
"""One (from, to) in degrees per dihedral, counted upwards and around: (150, -150) is 60 degrees wide."""

EVERYTHING = (-180.0, 180.0)
#: A well of a dihedral must hold more than this share of the MD to be one.
_LEAST_SHARE = 5e-4
#: Its peak must be this many times above the barrier beside it (0.7 kT).
_LEAST_HEIGHT = 2.0
#: How far a core reaches from the peak of a well towards the barrier.
_REACH = 0.6
_WIDTH = 7.0  # degrees: smoothing of the histogram in which wells are looked for
_MOST_BASINS = 12


@dataclass(frozen=True)
class Basin:
    """A region of the dihedrals (a union of boxes) and the core inside it (another)."""

    name: str
    region: tuple[Box, ...]
    core: tuple[Box, ...]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "region": self.region, "core": self.core}


@dataclass(frozen=True)
class Basins:
    """All basins, and coarser groups of them between which first passages are counted too.

    Attributes
    ----------
    basins : regions must not overlap; what is in none of them is counted for no basin.
    groups : names, and the names of the basins in each.
    how : one sentence on where they come from.

    Raises
    ------
    StructureError : no basin, a repeated name, boxes of different dimension, overlapping regions, or a
        core that reaches out of its region.
    """

    basins: tuple[Basin, ...]
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()
    how: str = "given by the user"

    def __post_init__(self) -> None:
        if not self.basins or len(set(self.names)) != len(self.basins):
            raise StructureError("basins need names, each a different one")
        dimensions = {len(box) for basin in self.basins for box in (*basin.region, *basin.core)}
        if len(dimensions) != 1:
            raise StructureError("the boxes of the basins have different numbers of dihedrals")
        unknown = {name for _, members in self.groups for name in members} - set(self.names)
        if unknown:
            raise StructureError(f"a group names basins that are not there: {', '.join(sorted(unknown))}")
        points = _corners([box for basin in self.basins for box in (*basin.region, *basin.core)])
        regions = np.stack([_inside(points, basin.region) for basin in self.basins])
        if (regions.sum(0) > 1).any():
            i, j = np.flatnonzero(regions[:, int(np.argmax(regions.sum(0)))])[:2]
            raise StructureError(f"the basins {self.names[i]} and {self.names[j]} overlap")
        for basin, region in zip(self.basins, regions, strict=True):
            if (_inside(points, basin.core) & ~region).any():
                raise StructureError(f"the core of basin {basin.name} reaches out of its region")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(basin.name for basin in self.basins)

    @property
    def n_dihedrals(self) -> int:
        return len(self.basins[0].region[0])

    def regions(self, angles: Any) -> IntArray:
        """(n,) basin of each row of angles (n, n_dihedrals) in degrees; -1 for none."""
        return _label(np.asarray(angles), [basin.region for basin in self.basins])

    def cores(self, angles: Any) -> IntArray:
        """(n,) core of each row of angles (n, n_dihedrals) in degrees; -1 between the cores."""
        return _label(np.asarray(angles), [basin.core for basin in self.basins])

    def grouped(self, labels: Any) -> IntArray:
        """The group of each basin label; -1 for none."""
        table = np.full(len(self.basins) + 1, -1, dtype=np.int64)
        for k, (_, members) in enumerate(self.groups):
            table[[self.names.index(name) for name in members]] = k
        return np.asarray(table[np.asarray(labels)], dtype=np.int64)  # -1 is the last entry

    def to_json(self) -> dict[str, Any]:
        return {
            "how": self.how,
            "basins": [basin.to_json() for basin in self.basins],
            "groups": [{"name": name, "basins": list(members)} for name, members in self.groups],
        }


def alanine_basins() -> Basins:
    """The four basins of (phi, psi) of an alanine-like residue: beta, alpha-R, alpha-L, C7ax.

    beta holds C7eq, C5 and PII, alpha-R also alpha', C7ax everything of phi in [0, 120) that is not
    alpha-L (in water a shoulder of alpha-L and a weak well around psi = 180 rather than a minimum).
    The lines are where MD of alanine dipeptide has its barriers: phi = 0 and 120; psi = 75 and -105
    for phi < 0.
    """
    left, right = (120.0, 0.0), (0.0, 120.0)
    core_left, core_right = (155.0, -35.0), (25.0, 95.0)
    return Basins(
        (
            Basin("beta", ((left, (75.0, -105.0)),), ((core_left, (105.0, -150.0)),)),
            Basin("alpha-R", ((left, (-105.0, 75.0)),), ((core_left, (-75.0, 40.0)),)),
            Basin("alpha-L", ((right, (-30.0, 110.0)),), ((core_right, (0.0, 70.0)),)),
            Basin("C7ax", ((right, (110.0, -30.0)),), ((core_right, (130.0, -50.0)),)),
        ),
        (("phi < 0", ("beta", "alpha-R")), ("phi > 0", ("alpha-L", "C7ax"))),
        "boxes for an alanine-like residue",
    )


def is_alanine_like(molecule: Molecule, phi: Sequence[int]) -> bool:
    """Whether the residue of these phi sites has a side chain from CB on and is not proline."""
    residue = molecule.residue_ids[molecule.sites[phi[1]]]
    atoms = {
        (name, kind)
        for name, kind, number in zip(
            molecule.names, molecule.residue_names, molecule.residue_ids, strict=True
        )
        if number == residue
    }
    return any(name == "CB" for name, _ in atoms) and not any(kind == "PRO" for _, kind in atoms)


def automatic_basins(angles: Any, names: Sequence[str]) -> Basins:
    """Basins between the barriers of each dihedral's own histogram; of several dihedrals, all combinations.

    The histogram of each dihedral is smoothed by 7 degrees.  A well holds at least 0.05 % of the frames,
    and the barriers beside it are at least 0.7 kT high; others are merged over their lowest barrier.
    Wells are named trans (around 180), gauche+ and gauche- (around +60 and -60), or cis where these fit
    and differ, else by the angle of their peak.  A core reaches from the peak 60 % of the way to either
    barrier.  Combinations whose core was never visited are left out, and at most the 12 most visited
    are kept.

    Parameters
    ----------
    angles : (n, n_dihedrals) degrees, of the reference MD.
    names : of the dihedrals.
    """
    x = np.asarray(angles, dtype=np.float64)
    wells = [_wells(x[:, k]) for k in range(x.shape[1])]
    words = [_well_names(found) for found in wells]
    candidates = []
    for combination in product(*(range(len(found)) for found in wells)):
        region = tuple(wells[k][w][0] for k, w in enumerate(combination))
        core = tuple(wells[k][w][1] for k, w in enumerate(combination))
        label = ", ".join(words[k][w] for k, w in enumerate(combination))
        count = int(_inside(x, (core,)).sum())
        if count:
            candidates.append((count, label, region, core))
    kept = sorted(candidates, key=lambda each: -each[0])[:_MOST_BASINS]
    basins = tuple(Basin(label, (region,), (core,)) for _, label, region, core in kept)
    return Basins(basins, (), f"between the barriers of {' and '.join(names)} in the reference")


def _wells(angle: npt.NDArray[np.float64]) -> list[tuple[tuple[float, float], tuple[float, float], float]]:
    """(region, core, peak) of each well of one dihedral, in degrees."""
    counts = np.bincount(((angle + 180.0) % 360.0).astype(np.int64) % 360, minlength=360).astype(np.float64)
    offset = (np.arange(360) + 180) % 360 - 180
    kernel = np.exp(-0.5 * (offset / _WIDTH) ** 2)
    smooth = np.real(np.fft.ifft(np.fft.fft(counts) * np.fft.fft(kernel / kernel.sum())))
    # where MD never was there is still a barrier, and not a hundred of them
    smooth = np.maximum(smooth, 0.02)
    cuts = _minima(smooth)
    while len(cuts) >= 2:
        spans = [(cuts[i], cuts[(i + 1) % len(cuts)]) for i in range(len(cuts))]
        height = [float(np.take(smooth, np.arange(a, _after(a, b)), mode="wrap").max()) for a, b in spans]
        share = [float(np.take(counts, np.arange(a, _after(a, b)), mode="wrap").sum()) for a, b in spans]
        total = counts.sum()
        # cut i is the barrier between wells i - 1 and i
        ratio = [min(height[i - 1], height[i]) / smooth[c] for i, c in enumerate(cuts)]
        poor = [min(share[i - 1], share[i]) < _LEAST_SHARE * total for i in range(len(cuts))]
        score = [0.0 if poor[i] else ratio[i] for i in range(len(cuts))]
        worst = int(np.argmin(score))
        if score[worst] >= _LEAST_HEIGHT:
            break
        cuts.pop(worst)
    if len(cuts) < 2:
        return [(EVERYTHING, EVERYTHING, float((int(np.argmax(smooth)) + 0.5) - 180.0))]
    found = []
    for a, b in zip(cuts, cuts[1:] + cuts[:1], strict=True):
        inside = np.arange(a, _after(a, b))
        peak = a + int(np.argmax(np.take(smooth, inside, mode="wrap"))) + 0.5
        low, high = peak - _REACH * (peak - a), peak + _REACH * (_after(a, b) - peak)
        region = (_degrees(a), _degrees(b))
        found.append((region, (_degrees(low), _degrees(high)), _degrees(peak)))
    return found


def _minima(smooth: npt.NDArray[np.float64]) -> list[int]:
    """The middle of every flat or sharp minimum of a periodic curve."""
    change = np.flatnonzero(smooth != np.roll(smooth, 1))  # where a plateau begins
    if len(change) < 2:
        return []
    found = []
    for k, begin in enumerate(change):
        end = int(change[(k + 1) % len(change)])
        if smooth[begin - 1] > smooth[begin] < smooth[end]:
            found.append(int((begin + (_after(int(begin), end) - begin) // 2) % 360))
    return sorted(found)


def _after(a: float, b: float) -> int:
    """b, or b + 360 if that is needed to be above a."""
    return int(b if b > a else b + 360)


def _degrees(bin_number: float) -> float:
    return float((bin_number % 360.0) - 180.0)


def _well_names(wells: Sequence[tuple[Any, Any, float]]) -> list[str]:
    standard = {"trans": 180.0, "gauche+": 60.0, "gauche-": -60.0, "cis": 0.0}
    names = []
    for _, _, peak in wells:
        off = {name: abs((peak - angle + 180.0) % 360.0 - 180.0) for name, angle in standard.items()}
        best = min(off, key=lambda name: off[name])
        names.append(best if off[best] <= 30.0 else f"{peak:.0f}°")
    if len(set(names)) < len(names):
        return [f"{peak:.0f}°" for _, _, peak in wells]
    return names


def _inside(angles: npt.NDArray[np.float64], boxes: Sequence[Box]) -> npt.NDArray[np.bool_]:
    """(n,) whether the rows of angles lie in one of the boxes, lower edges included."""
    result = np.zeros(len(angles), dtype=bool)
    for box in boxes:
        here = np.ones(len(angles), dtype=bool)
        for k, (low, high) in enumerate(box):
            if high - low < 360.0:
                above = (angles[:, k] - low) % 360.0  # just below 0 rounds to 360
                here &= np.where(above < 360.0, above, 0.0) < (high - low) % 360.0
        result |= here
    return result


def _label(angles: npt.NDArray[np.float64], boxes: Sequence[Sequence[Box]]) -> IntArray:
    labels = np.full(len(angles), -1, dtype=np.int64)
    for k, each in enumerate(boxes):
        labels[_inside(angles, each)] = k
    return labels


def _corners(boxes: Sequence[Box]) -> npt.NDArray[np.float64]:
    """Points that tell whether boxes overlap: between every two neighbouring edges, in each dihedral."""
    axes = []
    for k in range(len(boxes[0])):
        edges = np.unique([edge % 360.0 for box in boxes for edge in box[k]])
        axes.append(edges + 0.5 * ((np.roll(edges, -1) - edges) % 360.0 if len(edges) > 1 else 180.0))
    return np.stack([grid.ravel() for grid in np.meshgrid(*axes, indexing="ij")], axis=1)
