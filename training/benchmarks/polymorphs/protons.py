"""Hydrogens for the oxygens of an ice, by the ice rules: one on each bond, two at each oxygen.

Each oxygen has four bonds, so every connected network of them has a circuit that uses each bond once.  Who
follows it leaves each oxygen twice and arrives twice: bonds directed along it donate two hydrogens and accept
two.  Circuits are drawn at random, and of several the one with the smallest dipole is kept.  Ice II is
ordered: there the directions that its space group leaves are few, and each can be had by its number.
"""

from __future__ import annotations

from itertools import product

import networkx as nx
import numpy as np
import numpy.typing as npt
from ase import Atoms
from ase.spacegroup import Spacegroup

from training.polymorphs import ICE, conventional, orthogonal

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: TIP4P/Ice, Abascal, Sanz, Garcia Fernandez & Vega, J. Chem. Phys. 122, 234511 (2005): Å and degrees.
R_OH, ANGLE = 0.9572, 104.52
#: Longest hydrogen bond and shortest other distance of the published ices are on either side of it, Å.
BOND = 3.0


def bonds(oxygens: Atoms, name: str) -> IntArray:
    """(2 n_atoms, 2) indices of the oxygens that each hydrogen bond joins, each bond once.

    The cell must be orthogonal, and longer than two bonds everywhere.

    Raises
    ------
    ValueError : an oxygen has not four bonds; for ice VII, an odd number of cells along an axis.
    """
    lengths = oxygens.cell.lengths()
    scaled = oxygens.get_scaled_positions(wrap=False)
    d = scaled[:, None] - scaled
    d = (d - np.round(d)) * lengths
    near = np.linalg.norm(d, axis=2) < BOND
    if name == "ice VII":  # eight neighbours alike: those of the same of two diamond networks
        network = _networks(oxygens)
        near &= network[:, None] == network
    i, j = np.nonzero(np.triu(near, 1))
    pairs = np.stack([i, j], axis=1).astype(np.int64)
    if (np.bincount(pairs.ravel(), minlength=len(oxygens)) != 4).any():
        raise ValueError(f"{name}: not every oxygen has four hydrogen bonds within {BOND} Å")
    return pairs


def _networks(oxygens: Atoms) -> IntArray:
    """(n_atoms,) which of the two interpenetrating networks of ice VII each oxygen is in."""
    half = conventional("ice VII").cell.lengths() / 2
    steps = np.round((oxygens.positions - oxygens.positions[0]) / half).astype(np.int64)
    if (np.round(oxygens.cell.lengths() / half).astype(int) % 4).any():
        raise ValueError("ice VII: repeat the cell an even number of times along each axis")
    return np.isin(steps.sum(1) % 4, (1, 2)).astype(np.int64)


def directed(pairs: IntArray, rng: np.random.Generator) -> IntArray:
    """The same bonds, turned to run from donor to acceptor: each oxygen twice the one, twice the other."""
    graph = nx.MultiGraph()
    graph.add_edges_from(map(tuple, rng.permutation(pairs).tolist()))
    out: list[tuple[int, int]] = []
    for part in nx.connected_components(graph):
        members = sorted(part)
        start = members[int(rng.integers(len(members)))]
        out += list(nx.eulerian_circuit(graph.subgraph(part), source=start))
    return np.array(out, dtype=np.int64)


def molecules(oxygens: Atoms, donated: IntArray) -> Atoms:
    """Rigid molecules, O H H in turn, each hydrogen as near to its bond as the molecule's angle lets it.

    ``donated`` (2 n_atoms, 2) are donors and acceptors; each oxygen must donate twice.
    """
    acceptors = donated[np.argsort(donated[:, 0], kind="stable"), 1].reshape(-1, 2)
    lengths = oxygens.cell.lengths()
    d = oxygens.positions[acceptors] - oxygens.positions[:, None]
    d -= np.round(d / lengths) * lengths
    d /= np.linalg.norm(d, axis=2, keepdims=True)
    along, across = d.sum(1), d[:, 0] - d[:, 1]
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    half = np.radians(ANGLE) / 2
    first, second = (R_OH * (np.cos(half) * along + s * np.sin(half) * across) for s in (1, -1))
    o = oxygens.positions
    positions = np.stack([o, o + first, o + second], axis=1).reshape(-1, 3)
    return Atoms(["O", "H", "H"] * len(o), positions, cell=oxygens.cell, pbc=True)


def dipole(water: Atoms) -> float:
    """Length of the sum of the vectors from oxygens to their two hydrogens, Å."""
    o, first, second = (water.positions[k::3] for k in range(3))
    return float(np.linalg.norm((first + second - 2 * o).sum(0)))


def disordered(name: str, cells: tuple[int, int, int], seed: int, tries: int = 20) -> Atoms:
    """`orthogonal` cells of an ice with hydrogens at random, the least polar of ``tries``."""
    oxygens = orthogonal(name).repeat(cells)
    pairs, rng = bonds(oxygens, name), np.random.default_rng(seed)
    return min((molecules(oxygens, directed(pairs, rng)) for _ in range(tries)), key=dipole)


def ordered(name: str, cells: tuple[int, int, int]) -> list[Atoms]:
    """All arrangements of hydrogens that keep every symmetry of the oxygens, in `orthogonal` cells.

    Empty where a symmetry swaps the ends of a bond.  Arrangements that differ by a symmetry of the oxygens
    that the space group lacks are both there.
    """
    block = orthogonal(name).repeat(cells)
    unit = conventional(name)
    # Atoms of the block in fractions of the published cell, whose axes are turned in space.
    turn = _frame(name)
    fractions = block.positions @ turn @ np.linalg.inv(unit.cell[:])
    pairs, group = bonds(block, name), Spacegroup(*ICE[name].spacegroup)
    d = block.positions[pairs[:, 1]] - block.positions[pairs[:, 0]]
    d -= np.round(d / block.cell.lengths()) * block.cell.lengths()
    step = d @ turn @ np.linalg.inv(unit.cell[:])
    both = np.concatenate([pairs, pairs[:, ::-1]])
    start = fractions[both[:, 0]]
    step = np.concatenate([step, -step])

    def key(at: Array, by: Array) -> tuple[float, ...]:
        return tuple(np.round(np.concatenate([(at + 5e-4) % 1 - 5e-4, by]), 2).tolist())

    # One orbit per kind of directed bond.
    orbit: dict[tuple[float, ...], int] = {}
    for at, by in zip(start, step, strict=True):
        if key(at, by) in orbit:
            continue
        number = len(set(orbit.values()))
        for rotation, translation in zip(*group.get_op(), strict=True):
            orbit[key(rotation @ at + translation, rotation @ by)] = number
    of = np.array([orbit[key(at, by)] for at, by in zip(start, step, strict=True)])
    there, back = of[: len(pairs)], of[len(pairs) :]
    if (there == back).any():
        return []
    choices = sorted({(min(a, b), max(a, b)) for a, b in zip(there.tolist(), back.tolist(), strict=True)})
    found = []
    for chosen in product(*choices):
        forward = np.isin(there, chosen)
        donated = np.where(forward[:, None], pairs, pairs[:, ::-1])
        if (np.bincount(donated[:, 0], minlength=len(block)) == 2).all():
            found.append(molecules(block, donated))
    return found


def _frame(name: str) -> Array:
    """Rotation (3, 3) from the axes of `orthogonal` to those of `conventional`: positions @ it."""
    unit = conventional(name)
    if abs(unit.cell.angles()[0] - 90) < 1:
        return np.eye(3)
    a, b, c = unit.cell[:]
    x, z = a - b, a + b + c
    y = np.cross(z, x)
    rows = [v / np.linalg.norm(v) for v in (x, y, z)]
    return np.array(rows)
