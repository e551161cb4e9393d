"""Which atoms of a file are which atoms of the molecule: by elements and bonds, never by order or names.

Names and geometry only choose among assignments that the graph leaves equal: a methyl group can
be labelled in six ways, of which three have the handedness that the model was trained with.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zoo.molecules.molecule import Molecule, handedness

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

#: Assignments looked at for one molecule; only highly symmetric cages have more.
_MOST = 5000
# Ranks of what an assignment should fulfil, far enough apart to be added up.
_INVERTED, _MIRRORED, _STRAINED = 1e6, 1e5, 1e2


@dataclass(frozen=True)
class Part:
    """Atoms of the molecule that a file has: all, the heavy ones, or just the sites."""

    molecule: Molecule
    atoms: tuple[int, ...]

    @property
    def elements(self) -> tuple[str, ...]:
        return tuple(self.molecule.elements[i] for i in self.atoms)

    @property
    def bonds(self) -> list[tuple[int, int]]:
        """Pairs of places in `atoms`."""
        place = {atom: k for k, atom in enumerate(self.atoms)}
        return [(place[i], place[j]) for i, j in self.molecule.bonds if i in place and j in place]

    @property
    def whole(self) -> bool:
        return len(self.atoms) == self.molecule.n_atoms


def parts(molecule: Molecule) -> list[Part]:
    """What of the molecule a file may have, most first: whatever else is missing, the sites are not."""
    heavy = tuple(i for i, element in enumerate(molecule.elements) if element != "H")
    choices = [tuple(range(molecule.n_atoms))]
    if set(molecule.sites) <= set(heavy):
        choices.append(heavy)
    choices.append(tuple(sorted(molecule.sites)))
    return [Part(molecule, atoms) for atoms in dict.fromkeys(choices)]


def components(n_atoms: int, bonds: Indices) -> list[Indices]:
    """Connected sets of atoms, each sorted, in the order of their first atom."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(bonds), dtype=np.int8)
    graph = coo_array((ones, (bonds[:, 0], bonds[:, 1])), shape=(n_atoms, n_atoms))
    labels = connected_components(graph, directed=False)[1]
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return sorted((group.astype(np.int64) for group in groups), key=lambda group: int(group[0]))


def assignments(
    part: Part, elements: Sequence[str], bonds: Indices, names: Sequence[str]
) -> Iterator[Indices]:
    """Isomorphisms from the part to a component: for each atom of the part the atom of the component.

    Terminal atoms are left out of the search where the whole molecule is there, since exchanging
    them is no search: each assignment comes with one way to place them, equal names first.

    Parameters
    ----------
    elements, names : of the atoms of the component.
    bonds : (n_bonds, 2) indices into the component.
    """
    from networkx import vf2pp_all_isomorphisms

    if Counter(part.elements) != Counter(elements) or len(part.bonds) != len(bonds):
        return
    wanted, ends = _core(part.elements, part.bonds, part.whole)
    given, given_ends = _core(elements, bonds.tolist(), part.whole)
    wanted_names = [part.molecule.names[i] for i in part.atoms]
    for core in itertools.islice(vf2pp_all_isomorphisms(wanted, given, node_label="label"), _MOST):
        assignment = np.empty(len(part.atoms), dtype=np.int64)
        for atom, image in core.items():
            assignment[atom] = image
            for element, leaves in ends[atom].items():
                free = list(given_ends[image][element])
                rest = []
                for leaf in leaves:
                    same = next((other for other in free if names[other] == wanted_names[leaf]), None)
                    if same is None:
                        rest.append(leaf)
                    else:
                        assignment[leaf] = same
                        free.remove(same)
                assignment[rest] = free
        yield assignment


def best_sites(
    part: Part,
    found: Sequence[Indices],
    positions: Array,
    names: Sequence[str],
    reference: Array | None,
) -> tuple[Indices, list[str]]:
    """(n_frames, n_sites) indices into a component, and the labels of centres that are still wrong.

    In each frame the assignment is taken whose handedness agrees with that of the reference, or
    with that of its mirror image where the frame holds the enantiomer; then the one whose names do.

    Parameters
    ----------
    found : assignments of the part's atoms.
    positions : (n_frames, n, 3) Å of the component, whole.
    names : of the component's atoms.
    reference : (n_sites, 3) Å or None.
    """
    molecule = part.molecule
    place = {atom: k for k, atom in enumerate(part.atoms)}
    sites = [place[atom] for atom in molecule.sites]
    chosen = np.stack([assignment[sites] for assignment in found])
    named = np.array(
        [[names[i] != name for i, name in zip(row, molecule.site_names, strict=True)] for row in chosen]
    )
    cost = np.repeat(named.mean(axis=1)[:, None], len(positions), axis=1)
    if reference is None:
        return chosen[cost.argmin(axis=0)], []

    wanted = handedness(reference, molecule.centres)
    leaves = [_exchangeable(molecule, centre[0], part.whole) for centre in molecule.centres]
    fixed = np.array([len(pair) < 2 for pair in leaves], dtype=bool)
    seen = np.stack([handedness(positions[:, row], molecule.centres) for row in chosen])
    inverted = np.stack(
        [(seen != sign * wanted)[..., fixed].sum(axis=-1) * _INVERTED for sign in (1, -1)]
    )  # (2, n_found, n_frames)
    inverted[1] += _MIRRORED
    cost = cost + inverted.min(axis=0)
    if not part.whole:
        cost = cost + _STRAINED * _strain(molecule, chosen, positions, reference)
    best = cost.argmin(axis=0)
    result = chosen[best].copy()
    wrong: set[int] = set()
    for frame, row in enumerate(best):
        sign = 1 if inverted[0, row, frame] <= inverted[1, row, frame] else -1
        for k in np.flatnonzero(seen[row, frame] != sign * wanted):
            if fixed[k]:
                wrong.add(int(k))
            else:
                first, second = leaves[k][-2:]
                result[frame, [first, second]] = result[frame, [second, first]]
    return result, [molecule.site_labels[molecule.centres[k][0]] for k in sorted(wrong)]


def _core(
    elements: Sequence[str], bonds: Sequence[Sequence[int]], collapse: bool
) -> tuple[object, dict[int, dict[str, list[int]]]]:
    """The graph to search and, for each of its atoms, the terminal atoms left out, by element."""
    from networkx import Graph

    neighbors: dict[int, list[int]] = defaultdict(list)
    for i, j in bonds:
        neighbors[i].append(j)
        neighbors[j].append(i)
    leaf = {
        i: collapse and len(neighbors[i]) == 1 and len(neighbors[neighbors[i][0]]) > 1
        for i in range(len(elements))
    }
    ends: dict[int, dict[str, list[int]]] = {}
    graph = Graph()
    for i, element in enumerate(elements):
        if leaf[i]:
            continue
        ends[i] = defaultdict(list)
        for j in sorted(neighbors[i]):
            if leaf[j]:
                ends[i][elements[j]].append(j)
        graph.add_node(i, label=(element, tuple(sorted((e, len(each)) for e, each in ends[i].items()))))
    graph.add_edges_from((i, j) for i, j in bonds if not leaf[i] and not leaf[j])
    return graph, ends


def _exchangeable(molecule: Molecule, centre: int, whole: bool) -> list[int]:
    """Sites next to a centre that are terminal and of one element, so that two of them may be exchanged."""
    if not whole:
        return []  # all isomorphisms are enumerated there, none is left to make by exchange
    atom = molecule.sites[centre]
    by_element: dict[str, list[int]] = defaultdict(list)
    for other in molecule.neighbors[atom]:
        if len(molecule.neighbors[other]) == 1 and other in molecule.sites:
            by_element[molecule.elements[other]].append(molecule.sites.index(other))
    return max(by_element.values(), key=len, default=[])


def _strain(molecule: Molecule, chosen: Indices, positions: Array, reference: Array) -> Array:
    """(n_found, n_frames) mean deviation of bond lengths from those of the reference, to 0.02 Å.

    Without hydrogens the graph does not tell a carbonyl oxygen from a hydroxyl; the lengths do.
    Averages over equivalent bonds make assignments that only differ by a symmetry of the molecule
    cost the same.
    """
    bonds = np.array(molecule.site_bonds, dtype=np.int64).reshape(-1, 2)
    if not len(bonds):
        return np.zeros((len(chosen), len(positions)))
    colours = molecule.colours()
    kinds = [tuple(sorted(colours[molecule.sites[k]] for k in bond)) for bond in bonds.tolist()]
    classes = np.unique(kinds, axis=0, return_inverse=True)[1].reshape(-1)
    lengths = np.linalg.norm(reference[bonds[:, 0]] - reference[bonds[:, 1]], axis=1)
    usual = (np.bincount(classes, lengths) / np.bincount(classes))[classes]
    strain = np.empty((len(chosen), len(positions)))
    for k, row in enumerate(chosen):
        here = positions[:, row]
        lengths = np.linalg.norm(here[:, bonds[:, 0]] - here[:, bonds[:, 1]], axis=2)
        strain[k] = np.abs(lengths - usual).mean(axis=1)
    return np.round(strain / 0.02) * 0.02
