"""The patterns of turned tetrahedra that lead from quartz and cristobalite of high symmetry to alpha.

An alpha phase is its beta phase with every tetrahedron turned, the same way in every cell; at any moment a
hot beta phase is turned too, one way here and the opposite way there (Dolino, Phase Transitions 21, 59, 1990;
Swainson & Dove, Phys. Rev. Lett. 71, 193, 1993).  What tells the two apart is only how far the pattern goes
on.  So a structure is given such patterns with amplitudes that change from place to place: their mean is that
of the phase, zero for beta.

Quartz has one pattern, whose two signs are the Dauphiné twins.  Beta-cristobalite has as many as the symmetry
of the cubic crystal makes independent ones of that of its alpha phase, which may be along any axis.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import permutations, product

import numpy as np
import numpy.typing as npt
from ase import Atoms

from training.polymorphs import PARENTS, POLYMORPHS, built, made_orthogonal, orthogonal

Array = npt.NDArray[np.float64]

#: The alpha phase of each beta phase.
ALPHA_OF = {"beta-quartz": "alpha-quartz", "beta-cristobalite": "alpha-cristobalite"}
#: Å; sites that are the same agree better than that.
_SAME = 0.05
#: Waves that make up an amplitude, and lengths within which it is alike, in length scales.
_WAVES, _SHORTEST, _LONGEST = 48, 0.6, 2.4


@cache
def _way(alpha: str) -> tuple[Atoms, Array]:
    """The parent of an alpha phase in that phase's orthogonal cell, and the way to the published sites, Å."""
    entry, (parents, cell, _) = POLYMORPHS[alpha], PARENTS[alpha]
    symbols = [symbol for symbol, _ in entry.sites]
    sites = tuple(zip(symbols, parents, strict=True))
    a, b, c, *angles = cell
    box = (a, b, c, angles[0], angles[1], angles[2])
    start = made_orthogonal(built(replace(entry, sites=sites, cell=box)))
    end = made_orthogonal(built(replace(entry, cell=box)))
    way = (end.positions - start.positions) / start.cell.lengths()
    return start, (way - np.round(way)) * start.cell.lengths()


@cache
def turns(name: str) -> Array:
    """(n_atoms, n_patterns, 3), Å, of the atoms of `training.polymorphs.orthogonal`, as large as in alpha.

    Raises
    ------
    KeyError : not a crystal whose tetrahedra turn.
    """
    if name in PARENTS:
        way = _way(name)[1]
        return np.asarray((way - way.mean(0))[:, None])
    start, way = _way(ALPHA_OF[name])
    here = orthogonal(name)
    if name == "beta-cristobalite":
        # The tetragonal cell is turned by 45 degrees in the cubic one.
        c = np.sqrt(0.5)
        turn = np.array([[c, c, 0], [-c, c, 0], [0, 0, 1]])
        every = start.repeat((3, 3, 2))
        positions, pattern = every.positions @ turn, np.tile(way, (18, 1)) @ turn
    else:
        positions, pattern = start.positions, way
    first = _carried(here, positions, pattern - pattern.mean(0), start)
    assert first is not None, f"{name} is not the parent of {ALPHA_OF[name]}"
    if name != "beta-cristobalite":
        return first[:, None]
    found = []
    for order in permutations(range(3)):
        for signs in product((1, -1), repeat=3):
            op = np.zeros((3, 3))
            op[range(3), order] = signs
            moved = _carried(here, here.positions @ op, first @ op, here)
            if moved is not None:
                found.append(moved)
    # Alpha has, beside the turns, a little of what they bring about, which is the same along each axis and
    # changes the shape of tetrahedra: the small singular values.
    rows = np.array(found).reshape(len(found), -1)
    _, sizes, basis = np.linalg.svd(rows, full_matrices=False)
    pure = basis[sizes > 0.5 * sizes[0]]
    independent: list[Array] = []
    for row in rows @ pure.T @ pure:  # in this order, so that it is the same on every machine
        rest = row - sum((row @ one * one for one in independent), np.zeros_like(row))
        if np.linalg.norm(rest) > 0.1 * np.linalg.norm(row):
            independent.append(rest / np.linalg.norm(rest))
    patterns = np.array(independent) * np.linalg.norm(first)
    return np.ascontiguousarray(patterns.reshape(len(patterns), -1, 3).transpose(1, 0, 2))


def _carried(here: Atoms, positions: Array, pattern: Array, start: Atoms) -> Array | None:
    """``pattern`` of the atoms at ``positions`` on those of ``here``, which are the same but for a shift."""
    lengths = here.cell.lengths()
    silicon = np.flatnonzero(here.numbers == 14)
    numbers = np.resize(start.numbers, len(positions))
    of = int(np.flatnonzero(numbers == 14)[0])
    for target in silicon:
        away = here.positions[:, None] - (positions - positions[of] + here.positions[target])
        distance = np.linalg.norm(away - np.round(away / lengths) * lengths, axis=2)
        distance[here.numbers[:, None] != numbers] = np.inf
        nearest = distance.argmin(1)
        if distance[np.arange(len(here)), nearest].max() < _SAME:
            return np.asarray(pattern[nearest])
    return None


def amplitudes(
    positions: Array, cell: Array, pbc: npt.NDArray[np.bool_], n: int, rng: np.random.Generator
) -> Array:
    """Smooth random functions of the atoms, (n_atoms, n), each of mean zero and mean square one over them.

    Sums of waves that fit into the cell along its periodic axes; along others they go on as they like.
    """
    fractional = positions @ np.linalg.inv(cell)
    alike = np.exp(rng.uniform(np.log(_SHORTEST), np.log(_LONGEST)))
    lengths = np.linalg.norm(cell, axis=1)
    # Wave vectors with normally distributed components of 1 / alike.
    waves = rng.normal(0, lengths / (2 * np.pi * alike), (n, 4 * _WAVES, 3))
    waves[..., pbc] = np.round(waves[..., pbc])
    out = np.empty((len(positions), n))
    for k in range(n):
        kept = waves[k][np.abs(waves[k]).max(1) >= 0.5][:_WAVES]
        if not len(kept):
            kept = np.eye(3)[rng.integers(3, size=1)]
        phase = 2 * np.pi * (fractional @ kept.T + rng.random(len(kept)))
        out[:, k] = np.cos(phase).sum(1)
    out -= out.mean(0)
    return np.asarray(out / np.sqrt(np.mean(out**2, axis=0)))


def turned(modes: Array, wave: Array, rng: np.random.Generator) -> Array:
    """Displacements (n, 3) of mean square one per component: patterns (n, k, 3) times amplitudes (n, k)."""
    strength = np.exp(rng.normal(0, 0.7, modes.shape[1]))
    u = np.einsum("ika,ik,k->ia", modes, wave, strength)
    return np.asarray(u / np.sqrt(np.mean(u**2)))
