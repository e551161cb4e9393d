"""On which side of a barrier steps end: how often, and pairs of frames that go over it, from released paths.

Of the pairs of frames one lag apart that begin on one side of a high barrier a share of 1e-4 or less ends on
the other.  Plain MD of nanoseconds holds a handful of them or none.  Walkers on a flattened surface release
many (`training.reference_md.flattened`), and their weights are known.  With x_k(s) the path of a release k,
plain MD on both sides of the release at s = 0, and the reasoning of `training.benchmarks.barriers.crossings`,
what pairs that are on the ridge at some moment contribute to the mean of a function of pairs is

    sum over k, and over s with s <= 0 <= s + lag, of f(x_k(s), x_k(s + lag))
        / (sum over moments between the two, on the ridge, of exp(-V / kT))
        / sum over all frames of walkers of exp(V / kT).

A lag may be longer than the paths if those that were undecided at their ends went on (`Block.long_paths`).
Of all others, which left the ridge on the side from which they had come to it, it is known how a pair ends
that begins on the path: on the side of the path's end, for what has left the ridge does not come back soon.
Pairs that begin before the path are not known, and count as those that are never on the ridge, which is what
nearly all of their neighbours are.

Equilibrium does not know the direction of time: each pair counts half as it is and half reversed.  Pairs
that are never on the ridge come from plain MD, which is taken to be in equilibrium on either side.  Together
these are equilibrium: from them P(side | x) of `zoo.sides` is learned, by logistic regression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from training.loop import LoopConfig, learning_rate
from training.reference_md.releases import Bias, read_flattened
from training.reference_md.walks import Walks, counted, walks
from training.score_dynamics.transitions import HeadData, OverPairs, Transitions
from zoo.analysis.dihedrals import choose_dihedrals
from zoo.errors import StructureError
from zoo.molecules.molecule import Molecule, handedness
from zoo.molecules.rigid import body_frames, centred
from zoo.sides import Quadruple, Sides, SidesConfig, is_between, torsions

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def sides_of(bias: Bias) -> tuple[float, float]:
    """Degrees of the first torsion between which side 1 is: the ridge, and the other barrier.

    Where the bias, which fills wells up, is nowhere high the barrier is: in the middle of where it is lowest,
    for it is not made lower than some depth.
    """
    n = len(bias.kj_mol)
    angle = bias.ridge[0] + 360.0 / n * np.arange(n)  # on the way up from the ridge
    highest = bias.kj_mol.max(1)
    filled = np.interp(angle % 360.0, 360.0 / n * np.arange(n + 1), [*highest, highest[0]])
    filled = np.where(np.abs(angle - bias.ridge[0] - 180.0) < 120.0, filled, np.inf)
    first = last = int(filled.argmin())
    while last + 1 < n and filled[last + 1] < filled[first] + 0.1:
        last += 1
    return bias.ridge[0], float(0.5 * (angle[first] + angle[last]))


def on_the_ridge(data: Walks, bias: Bias, lag: int) -> tuple[IntArray, IntArray, IntArray, Array]:
    """Pairs among released paths that contain the release: path, first and last frame, weight, (n,) each.

    Weights are shares of all pairs of equilibrium, ``lag`` frames apart, each of which begins anywhere.
    """
    middle = data.paths.shape[1] // 2
    ahead = [(s, s + lag) for s in range(middle - lag, middle + 1)]
    return _weighted(data, bias, np.arange(len(data.paths)), ahead + [(t, s) for s, t in ahead])


def turned_back(data: Walks, bias: Bias, lag: int) -> tuple[IntArray, IntArray, IntArray, Array]:
    """Pairs like those of `on_the_ridge` that begin on a path which did not go on, and end after it.

    In place of the last frame of such a pair stands the end of the path that is nearer to it in time.
    """
    n_frames = data.paths.shape[1]
    middle, last = n_frames // 2, n_frames - 1
    paths = np.setdiff1d(np.arange(len(data.paths)), data.long_of)
    ahead = [(s, min(s + lag, last)) for s in range(middle + 1)]
    back = [(t, max(t - lag, 0)) for t in range(middle, n_frames)]
    return _weighted(data, bias, paths, ahead + back)


def _weighted(
    data: Walks, bias: Bias, paths: IntArray, pairs: Sequence[tuple[int, int]]
) -> tuple[IntArray, IntArray, IntArray, Array]:
    """Pairs of frames (begin, end) of paths, with their weights."""
    middle = data.paths.shape[1] // 2
    on_ridge = bias.ridge_weight(data.paths, data.kt)
    top = float(data.bias.max())  # exp(V / kT) is large
    total = np.exp(data.bias - top).sum()
    rows: list[tuple[int, int, int]] = []
    weights: list[float] = []
    for k in paths[on_ridge[paths, middle] > 0]:
        # by the same interpolation as along the path, so that its error cancels
        scale = 0.5 * on_ridge[k, middle] * np.exp(data.released[k] - top) / total
        for begin, end in pairs:
            rows.append((int(k), begin, end))
            weights.append(scale / on_ridge[k, min(begin, end) : max(begin, end) + 1].sum())
    path, begins, ends = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return path, begins, ends, np.array(weights)


def gathered(
    data: Transitions, is_plain: BoolArray, molecule: Molecule, frame: tuple[int, int, int], folder: Path,
    names: Sequence[str],
) -> tuple[Transitions, OverPairs, HeadData, SidesConfig, list[str]]:  # fmt: skip
    """From plain MD and blocks of flattened MD: all that a model with sides is trained on.

    Parameters
    ----------
    data : all pairs; ``is_plain`` (n_frames,) says which frames are of plain MD from equilibrium.
    folder, names : of the flattened MD, and patterns of its blocks.

    Returns
    -------
    The pairs without those of plain MD that go over the barrier, so that what is left of plain MD may go both
    ways; pairs that do, from the releases; data of the head; the sides; and the names of the blocks.

    Raises
    ------
    StructureError : there are no such blocks; they are of another molecule or bias, too short for the lag,
        or go nowhere; or no plain MD begins on one of the sides.
    """
    blocks, bias = read_flattened(folder, names)
    if blocks[0].paths.shape[2] != molecule.n_atoms:
        raise StructureError(
            f"the released MD in {folder} is of {blocks[0].paths.shape[2]} atoms, the molecule has "
            f"{molecule.n_atoms}"
        )
    quadruples = choose_dihedrals(molecule, None).quadruples
    if not molecule.stereocentres or len(quadruples) != 2:
        raise StructureError(
            "sides of a barrier are known for molecules with a stereocentre, phi and psi only"
        )
    lag = data.lag
    if lag > blocks[0].paths.shape[1] // 2:  # blocks of which none went on do not tell of it
        blocks = [b for b in blocks if b.long_of is not None] or blocks
    walk = walks(blocks, molecule.sites, quadruples)
    went_on = lag > walk.paths.shape[1] // 2 and len(walk.long_of) > 0
    whole = walk.of_long() if went_on else walk  # in which pairs have both ends
    middle = whole.paths.shape[1] // 2
    if abs(lag * walk.dt - data.lag_time) > 1e-6 * data.lag_time or lag > middle:
        raise StructureError(
            f"released paths of {middle * walk.dt:g} ps to either side, with frames every {walk.dt:g} ps, "
            f"hold no pairs {data.lag_time:g} ps apart around their middle"
        )
    between = sides_of(bias)
    angles = torch.rad2deg(torsions(data.frames.double(), quadruples)).numpy()
    first = data.origins.numpy()
    begins, ends = (is_between(angles[at, 0], between) for at in (first, first + lag))
    plain = is_plain[first]
    touches = np.zeros(len(first), dtype=bool)
    for step in range(lag + 1):
        touches |= bias.on_ridge(angles[first + step, 0])
    over = plain & touches & (begins != ends)

    path, begin, end, weight = on_the_ridge(whole, bias, lag)
    x0, x1 = (is_between(whole.paths[path, at, 0], between) for at in (begin, end))
    from_ridge, to_side, share = whole.paths[path, begin], x1, weight
    if went_on:
        path_2, begin_2, end_2, weight_2 = turned_back(walk, bias, lag)
        from_ridge = np.concatenate([from_ridge, walk.paths[path_2, begin_2]])
        to_side = np.concatenate([to_side, is_between(walk.paths[path_2, end_2, 0], between)])
        share = np.concatenate([share, weight_2])
    from_side = is_between(from_ridge[:, 0], between)
    population = np.bincount(is_between(walk.visited[:, 0], between), np.exp(walk.bias - walk.bias.max()), 2)
    population = population / population.sum()
    away = plain & ~touches
    n_away = np.bincount(begins[away], minlength=2)
    if not n_away.all():
        raise StructureError(
            "the plain MD begins on one side of the barrier only: add segments from the other"
        )
    rest = population - np.bincount(from_side, share, 2)
    if not (rest > 0).all():
        raise StructureError("the walkers were too little on one side of the barrier: add blocks")
    of_away = rest / n_away
    mirrored = _mirrored(data.frames[:1], molecule, frame, quadruples)
    sign = -1.0 if mirrored else 1.0
    started = np.concatenate([angles[first[away]], from_ridge])
    sides = np.concatenate([begins[away], from_side])
    head = HeadData(
        torch.from_numpy(np.radians(sign * started)).float(),
        torch.from_numpy(np.concatenate([ends[away], to_side])).float(),
        torch.from_numpy(
            np.concatenate([of_away[begins[away].astype(int)], share]) / population[sides.astype(int)]
        ),
    )
    chosen = [b.long_paths if went_on else b.paths for b in counted(blocks)[0]]
    positions = np.concatenate([paths[:, :, list(molecule.sites)] for paths in chosen if len(paths)])
    crossing = x0 != x1
    if len(np.unique(x1[crossing])) < 2:
        raise StructureError("too few released paths go over the barrier: let the walkers go on")
    pairs = OverPairs(
        torch.from_numpy(positions[path[crossing], begin[crossing]]),
        torch.from_numpy(positions[path[crossing], end[crossing]]),
        torch.from_numpy(x1[crossing].astype(np.int64)),
        torch.from_numpy(weight[crossing] / population[x0[crossing].astype(int)]),
    )
    low, high = between
    config = SidesConfig(
        tuple(tuple(int(i) for i in each) for each in quadruples),  # type: ignore[misc]
        (-high, -low) if mirrored else (low, high),
    )
    stays = torch.from_numpy(~over)
    kept = replace(data, origins=data.origins[stays], both_ways=torch.from_numpy(plain)[stays])
    return kept, pairs, head, config, [b.name for b in blocks]


def _mirrored(
    frames: Tensor, molecule: Molecule, frame: tuple[int, int, int], quadruples: Sequence[Quadruple]
) -> bool:
    """Whether torsions have the other sign in the body frame."""
    x = centred(frames.double())
    sign = handedness(x, molecule.stereocentres[:1])[..., 0]
    local = x @ body_frames(x, frame, sign)
    return bool((torsions(local, quadruples) * torsions(x, quadruples) < 0).all())


#: Steps, rows of each part of a batch, and the highest rate of the regression.
N_STEPS, N_ROWS, RATE = 10000, 2048, 3e-3


def learn_sides(config: SidesConfig, data: HeadData, seed: int = 0) -> Sides:
    """P(side 1 | x) by logistic regression on the torsions of x.

    Pairs that end on the other side than where they began are drawn as often as all others, for they are a
    few thousandths of the loss.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sides = Sides(config)
    schedule = LoopConfig(n_steps=N_STEPS, learning_rate=RATE, warmup=min(100, N_STEPS), final_fraction=1e-3)
    optimizer = torch.optim.Adam(sides.parameters(), lr=RATE)
    above = torch.from_numpy(is_between(torch.rad2deg(data.angles[:, 0]).numpy(), config.between))
    parts = []
    for rows in (above == data.above.bool(), above != data.above.bool()):
        index = torch.nonzero(rows)[:, 0].numpy()
        cumulative = np.cumsum(data.weight[rows].numpy())
        parts.append((index, cumulative))
    total = sum(cumulative[-1] for _, cumulative in parts)
    rng = np.random.default_rng([seed, 2**31 + 2])
    for step in range(N_STEPS):
        loss = torch.zeros(())
        for index, cumulative in parts:
            at = np.searchsorted(cumulative, rng.random(N_ROWS) * cumulative[-1], side="right")
            drawn = torch.from_numpy(index[at.clip(max=len(index) - 1)])
            logits = sides.of_angles(data.angles[drawn])
            each = nn.functional.binary_cross_entropy_with_logits(logits, data.above[drawn])
            loss = loss + each * float(cumulative[-1] / total)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(schedule, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return sides.requires_grad_(False)
