"""Pairs onto and over a barrier, which plain MD has once in thousands or never, from released paths.

Of the pairs of frames one lag apart that begin on one side of a barrier a share p ends on the other side.
Where p is some 1e-4, plain MD of nanoseconds holds a handful of such pairs and a network learns them by heart
or not at all.  Walkers on a flattened surface release many (`training.reference_md.flattened`), and their
weights are known: a release k has the path x_k(s), plain MD on both sides of the release at s = 0, so with
the reasoning of `training.benchmarks.barriers.crossings` the probability, in equilibrium, of a pair of some
kind, all of which are on the ridge at some moment, is

    P = sum over k, and over s with s <= 0 <= s + lag and x_k(s), x_k(s + lag) a pair of this kind,
        of 1 / (sum over moments between the two, on the ridge, of exp(-V / kT))
        / sum over all frames of walkers of exp(V / kT).

Equilibrium does not know the direction of time: each pair counts half as it is and half reversed.  Divided by
the population of what is beside the ridge on the side where a pair begins this is the share of that pair
among all that begin there, and times the number of plain pairs that begin there it is the number of plain
pairs for which it stands.  So plain MD must be in equilibrium on either side, over which the sum of its pairs
is taken; a side ends half a turn from the ridge, where nearly nothing should be.

There are five kinds: pairs that begin beside the ridge on side 0 or 1, and end on the near half of the ridge
(1, 3: `onto` it) or beyond its middle (2, 4: `over` it).  A border between kinds in the middle of the ridge
alone would be one between rare pairs that are drawn often and others, as rare, that are not.  Plain MD gives
up its own pairs of these kinds in exchange.  Shots and clones begin where they were set, with all that
follows; those of their pairs that are like this are kind 5, each for itself, to be drawn more often too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from training.reference_md.releases import Bias, Block, read_blocks
from training.reference_md.walks import Walks, counted, walks
from training.score_dynamics.transitions import RarePairs, Transitions
from zoo.analysis.dihedrals import choose_dihedrals
from zoo.analysis.kinetics import torsions
from zoo.errors import StructureError
from zoo.molecules.molecule import Molecule

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

#: Of pairs that were set, beside the two of either side.
_SET = 5


def kind_of(before: npt.ArrayLike, after: npt.ArrayLike, bias: Bias) -> IntArray:
    """0 for plain pairs, 1 to 4 for those onto and over the ridge, by their first torsions in degrees."""
    a, b = _from_ridge(before, bias), _from_ridge(after, bias)
    width = bias.ridge[1]
    over = ((a > 0) != (b > 0)) & (np.abs(a - b) < 180.0)
    onto = (np.abs(b) <= width) & ~over
    kind = np.where(over, 2, np.where(onto, 1, 0))
    return np.asarray(np.where((np.abs(a) > width) & (kind > 0), kind + 2 * (a > 0), 0), dtype=np.int64)


def side_of(angle: npt.ArrayLike, bias: Bias) -> IntArray:
    """0 or 1: below or above the ridge, where the first torsion (degrees) is within half a turn of it."""
    return (_from_ridge(angle, bias) > 0).astype(np.int64)


def _from_ridge(angle: npt.ArrayLike, bias: Bias) -> Array:
    return np.asarray((np.asarray(angle, dtype=np.float64) - bias.ridge[0] + 180.0) % 360.0 - 180.0)


def exchanged(
    data: Transitions,
    is_plain: BoolArray,
    molecule: Molecule,
    folder: Path,
    names: Sequence[str] = ("flat-*",),
) -> tuple[Transitions, RarePairs, list[str]]:
    """Pairs of plain MD without rare ones, rare ones from blocks of flattened MD, and the names of these.

    Parameters
    ----------
    is_plain : (n_frames,) whether a frame of the data is of plain MD from equilibrium.
    folder, names : of the flattened MD, and patterns of its blocks.

    Raises
    ------
    StructureError : the folder holds no such blocks, or they are of another molecule or bias, too short for
        the lag, or hold no pair over the barrier; or no plain MD begins on one of its sides.
    """
    blocks, bias = read_blocks(folder, names), Bias.read(folder)
    if bias.sha256 != blocks[0].bias_sha256:
        raise StructureError(f"the blocks in {folder} were made with another bias than the one there")
    if blocks[0].paths.shape[2] != molecule.n_atoms:
        raise StructureError(
            f"the released MD in {folder} is of {blocks[0].paths.shape[2]} atoms, the molecule has "
            f"{molecule.n_atoms}"
        )
    quadruples = choose_dihedrals(molecule, None).quadruples
    phi = np.asarray(torsions(data.frames.double().numpy(), quadruples)[:, 0])
    first = data.origins.numpy()
    plain, kind = is_plain[first], kind_of(phi[first], phi[first + data.lag], bias)
    beside = plain & ~bias.on_ridge(phi[first])
    n_plain = np.bincount(side_of(phi[first[beside]], bias), minlength=2)
    if not n_plain.all():
        raise StructureError(
            "the plain MD begins on one side of the barrier only: add segments from the other side"
        )
    kept = kind == 0
    rare = rare_pairs(blocks, bias, molecule.sites, quadruples, data.lag_time, n_plain)
    rare = replace(rare, plain_side=torch.from_numpy(side_of(phi[first[kept]], bias)))
    set_there = torch.from_numpy(~plain & ~kept)
    if bool(set_there.any()):
        before, after = data.pairs(set_there)
        n = len(before)
        rare = RarePairs(
            torch.cat([rare.before, before]),
            torch.cat([rare.after, after]),
            torch.cat([rare.kind, torch.full((n,), _SET)]),
            torch.cat([rare.stands_for, torch.ones(n, dtype=torch.float64)]),
            torch.cat([rare.side, torch.from_numpy(side_of(phi[first[set_there.numpy()]], bias))]),
            rare.plain_side,
        )
    return replace(data, origins=data.origins[torch.from_numpy(kept)]), rare, [b.name for b in blocks]


def rare_pairs(
    blocks: Sequence[Block],
    bias: Bias,
    sites: Sequence[int],
    quadruples: Sequence[Any],
    lag_time: float,
    n_plain: IntArray,
) -> RarePairs:
    """All pairs of the kinds 1 to 4 that contain the moment of a release, in both directions of time.

    Parameters
    ----------
    sites : atoms of the released MD which are the sites; ``quadruples`` of torsions refer to sites.
    lag_time : ps.
    n_plain : (2,) pairs of plain MD that begin beside the ridge on either side.

    Raises
    ------
    StructureError : the paths are shorter than two lags, or there are no pairs of some kind.
    """
    data = walks(blocks, sites, quadruples)
    positions = np.concatenate([b.paths[:, :, list(sites)] for b in counted(blocks)[0]])
    lag, middle = round(lag_time / data.dt), data.paths.shape[1] // 2
    if lag < 1 or abs(lag * data.dt - lag_time) > 1e-6 * lag_time or lag > middle:
        raise StructureError(
            f"released paths of {middle * data.dt:g} ps to either side, with frames every {data.dt:g} ps, "
            f"hold no pairs {lag_time:g} ps apart around their middle"
        )
    path, begin, end, kind, share = weighed(data, bias, lag)
    if set(kind.tolist()) != {1, 2, 3, 4}:
        raise StructureError("too few released paths go over the barrier: let the walkers go on")
    side = (kind - 1) // 2
    return RarePairs(
        torch.from_numpy(positions[path, begin]),
        torch.from_numpy(positions[path, end]),
        torch.from_numpy(kind),
        torch.from_numpy(share * n_plain[side]),
        torch.from_numpy(side),
        torch.zeros(0, dtype=torch.int64),
    )


def weighed(data: Walks, bias: Bias, lag: int) -> tuple[IntArray, IntArray, IntArray, IntArray, Array]:
    """Rare pairs among released paths, (n,) each: path, first and last frame, kind, and share.

    Shares are of all pairs that begin beside the ridge on the same side, so those of a kind add up to the
    probability that a pair that begins there is of this kind.
    """
    middle = data.paths.shape[1] // 2
    phi = data.paths[..., 0]
    on_ridge = np.where(bias.on_ridge(phi), np.exp(-bias.at(data.paths) / data.kt), 0.0)
    top = float(data.bias.max())  # exp(V / kT) is large
    weights = np.exp(data.bias - top)
    beside = weights * ~bias.on_ridge(data.visited[:, 0])
    population = np.bincount(side_of(data.visited[:, 0], bias), beside, minlength=2)
    rows: list[tuple[int, int, int]] = []
    probability: list[float] = []
    for k in np.flatnonzero(on_ridge[:, middle] > 0):
        # by the same interpolation as along the path, so that its error cancels
        scale = on_ridge[k, middle] * np.exp(data.released[k] - top)
        for s in range(middle - lag, middle + 1):
            half = 0.5 * scale / on_ridge[k, s : s + lag + 1].sum()
            rows += [(int(k), s, s + lag), (int(k), s + lag, s)]
            probability += [half, half]
    path, begin, end = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    kind = kind_of(phi[path, begin], phi[path, end], bias)
    rare = kind > 0
    path, begin, end, kind = path[rare], begin[rare], end[rare], kind[rare]
    with np.errstate(divide="ignore"):
        return path, begin, end, kind, np.array(probability)[rare] / population[(kind - 1) // 2]
