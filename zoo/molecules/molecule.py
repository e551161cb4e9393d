"""The molecule a checkpoint moves: its graph, and the mapping, that is, which of its atoms are in the model.

The graph is always that of the whole molecule, whatever the mapping, because what makes a heavy
atom a stereocentre may be a hydrogen that the model does not have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zoo.errors import CheckpointError, StructureError

if TYPE_CHECKING:
    import mdtraj

#: Elements whose four-coordinated atoms are tetrahedral; a four-coordinated metal may be planar.
TETRAHEDRAL = frozenset({"B", "C", "N", "Si", "P", "S", "Ge", "As", "Se", "Sn"})


@dataclass(frozen=True)
class Molecule:
    """A molecule and the atoms of it that a model moves.

    Parameters
    ----------
    names, elements, residue_names, residue_ids
        One entry per atom of the whole molecule; names as in a PDB file, elements as symbols.
    bonds
        Pairs of atom indices of the whole molecule, in any order; kept sorted.
    sites
        The mapping: atom indices, in the order in which the model has them.

    Raises
    ------
    StructureError
        Lists of different length, an unknown element, a bond or site that points nowhere, a
        repeated site, no sites, or a molecule in several pieces.
    """

    names: tuple[str, ...]
    elements: tuple[str, ...]
    residue_names: tuple[str, ...]
    residue_ids: tuple[int, ...]
    bonds: tuple[tuple[int, int], ...]
    sites: tuple[int, ...]

    def __post_init__(self) -> None:
        bonds = tuple(sorted((min(int(i), int(j)), max(int(i), int(j))) for i, j in self.bonds))
        for name, value in (
            ("names", tuple(map(str, self.names))),
            ("elements", tuple(map(str, self.elements))),
            ("residue_names", tuple(map(str, self.residue_names))),
            ("residue_ids", tuple(map(int, self.residue_ids))),
            ("bonds", bonds),
            ("sites", tuple(map(int, self.sites))),
        ):
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        from ase.data import atomic_numbers

        n = len(self.names)
        if not len(self.elements) == len(self.residue_names) == len(self.residue_ids) == n:
            raise StructureError("names, elements and residues of the molecule are lists of different length")
        unknown = sorted({symbol for symbol in self.elements if atomic_numbers.get(symbol, 0) == 0})
        if unknown:
            raise StructureError(f"the molecule has unknown elements: {', '.join(map(repr, unknown))}")
        if any(not 0 <= i < j < n for i, j in self.bonds) or len(set(self.bonds)) != len(self.bonds):
            raise StructureError(f"a bond of the molecule is repeated or not between two of its {n} atoms")
        if not self.sites or len(set(self.sites)) != len(self.sites):
            raise StructureError("the mapping needs at least one atom, and each atom at most once")
        if not all(0 <= site < n for site in self.sites):
            raise StructureError(f"the mapping names an atom index outside 0..{n - 1}")
        reached = int((self._distances_from(0) >= 0).sum())
        if reached != n:
            raise StructureError(
                f"the molecule is in several pieces: {reached} of {n} atoms hang together with the first; "
                "take one molecule, with all its bonds"
            )

    # sizes and names

    @property
    def n_atoms(self) -> int:
        """Atoms of the whole molecule."""
        return len(self.names)

    @property
    def n_sites(self) -> int:
        """Atoms in the model."""
        return len(self.sites)

    @property
    def site_names(self) -> tuple[str, ...]:
        """Atom names of the sites."""
        return tuple(self.names[i] for i in self.sites)

    @property
    def site_elements(self) -> tuple[str, ...]:
        """Element symbols of the sites."""
        return tuple(self.elements[i] for i in self.sites)

    @cached_property
    def site_labels(self) -> tuple[str, ...]:
        """Names for messages: the atom name where it is unique among the sites, else as ``ALA2:C``."""
        count = Counter(self.site_names)
        return tuple(
            name if count[name] == 1 else f"{self.residue_names[i]}{self.residue_ids[i]}:{name}"
            for i, name in zip(self.sites, self.site_names, strict=True)
        )

    @property
    def formula(self) -> str:
        """Hill formula of the whole molecule, for example ``C6H12N2O2``."""
        return hill_formula(self.elements)

    # the graph

    @cached_property
    def neighbors(self) -> tuple[tuple[int, ...], ...]:
        """Bonded atoms of each atom of the whole molecule, sorted."""
        found: list[list[int]] = [[] for _ in self.names]
        for i, j in self.bonds:
            found[i].append(j)
            found[j].append(i)
        return tuple(tuple(sorted(each)) for each in found)

    @cached_property
    def site_bonds(self) -> tuple[tuple[int, int], ...]:
        """Pairs of site indices, smaller first, whose atoms share a bond."""
        site_of = {atom: site for site, atom in enumerate(self.sites)}
        pairs = ((site_of[i], site_of[j]) for i, j in self.bonds if i in site_of and j in site_of)
        return tuple(sorted((min(pair), max(pair)) for pair in pairs))

    @cached_property
    def site_separation(self) -> npt.NDArray[np.int64]:
        """(n_sites, n_sites) bonds along the shortest path between two sites, through any atom."""
        sites = list(self.sites)
        separation = np.stack([self._distances_from(atom)[sites] for atom in sites])
        separation.setflags(write=False)  # shared by all who ask
        return separation

    @cached_property
    def centres(self) -> tuple[tuple[int, int, int, int], ...]:
        """Tetrahedral atoms whose handedness the sites tell: (centre, a, b, c) as site indices.

        Atoms with four neighbours in the molecule, at least three of them sites; a, b, c are the
        first three of these by site index.
        """
        site_of = {atom: site for site, atom in enumerate(self.sites)}
        found = []
        for site, atom in enumerate(self.sites):
            if len(self.neighbors[atom]) != 4 or self.elements[atom] not in TETRAHEDRAL:
                continue
            around = sorted(site_of[other] for other in self.neighbors[atom] if other in site_of)
            if len(around) >= 3:
                found.append((site, around[0], around[1], around[2]))
        return tuple(found)

    @cached_property
    def stereocentres(self) -> tuple[tuple[int, int, int, int], ...]:
        """Those of `centres` whose four substituents differ in topology: no relabelling inverts them."""
        found = []
        for centre in self.centres:
            atom = self.sites[centre[0]]
            colours = self.colours(atom)
            if len({colours[other] for other in self.neighbors[atom]}) == 4:
                found.append(centre)
        return tuple(found)

    def _distances_from(self, atom: int) -> npt.NDArray[np.int64]:
        """(n_atoms,) bonds from one atom; -1 where no path leads."""
        distances = np.full(self.n_atoms, -1, dtype=np.int64)
        shell, distance = [atom], 0
        while shell:
            distances[shell] = distance
            distance += 1
            shell = sorted({j for i in shell for j in self.neighbors[i] if distances[j] < 0})
        return distances

    def colours(self, root: int | None = None) -> tuple[int, ...]:
        """(n_atoms,) classes of atoms that colour refinement (Weisfeiler and Leman) does not tell apart.

        With a `root`, that atom is singled out first: then two of its neighbours of equal colour
        are substituents of equal topology.
        """
        colours = _ranks([(i == root, element) for i, element in enumerate(self.elements)])
        while True:
            keys = [
                (colour, sorted(colours[j] for j in near))
                for colour, near in zip(colours, self.neighbors, strict=True)
            ]
            refined = _ranks([(colour, tuple(around)) for colour, around in keys])
            if max(refined) == max(colours):
                return tuple(refined)
            colours = refined

    # in and out

    def to_json(self) -> dict[str, Any]:
        """Lists and strings only; `from_json` gives the same molecule back."""
        return {
            "names": list(self.names),
            "elements": list(self.elements),
            "residue_names": list(self.residue_names),
            "residue_ids": list(self.residue_ids),
            "bonds": [list(bond) for bond in self.bonds],
            "sites": list(self.sites),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Molecule:
        """The molecule that `to_json` wrote.

        Raises
        ------
        CheckpointError
            A key is missing or unknown, an entry has the wrong type, or the parts contradict each other.
        """
        if not isinstance(data, Mapping):
            raise CheckpointError(f"molecule: expected a table, found {type(data).__name__}")
        wanted = {field.name for field in fields(cls)}
        for what, keys in (("missing", wanted - set(data)), ("unknown", set(data) - wanted)):
            if keys:
                raise CheckpointError(f"molecule: {what} {', '.join(sorted(map(str, keys)))}")
        for key in ("names", "elements", "residue_names"):
            _require_list(data[key], str, key)
        for key in ("residue_ids", "sites"):
            _require_list(data[key], int, key)
        _require_list(data["bonds"], list, "bonds")
        for bond in data["bonds"]:
            _require_list(bond, int, "bonds")
            if len(bond) != 2:
                raise CheckpointError(f"molecule: a bond joins two atoms, found {bond}")
        try:
            return cls(
                names=tuple(data["names"]),
                elements=tuple(data["elements"]),
                residue_names=tuple(data["residue_names"]),
                residue_ids=tuple(data["residue_ids"]),
                bonds=tuple((i, j) for i, j in data["bonds"]),
                sites=tuple(data["sites"]),
            )
        except StructureError as error:
            raise CheckpointError(f"molecule: {error}") from None

    def topology(self) -> mdtraj.Topology:
        """MDTraj topology of the sites, in the model's order, with the bonds between them."""
        import mdtraj

        topology = mdtraj.Topology()
        chain = topology.add_chain()
        residue, current = None, None
        atoms = []
        for atom in self.sites:
            key = (self.residue_ids[atom], self.residue_names[atom])
            if residue is None or key != current:
                residue, current = topology.add_residue(key[1], chain, resSeq=key[0]), key
            element = mdtraj.element.Element.getBySymbol(self.elements[atom])
            atoms.append(topology.add_atom(self.names[atom], element, residue))
        for i, j in self.site_bonds:
            topology.add_bond(atoms[i], atoms[j])
        return topology

    @classmethod
    def from_mdtraj(cls, topology: mdtraj.Topology, sites: str | Sequence[str | int] = "heavy") -> Molecule:
        """The molecule of an MDTraj topology that holds this one molecule with all its bonds.

        Parameters
        ----------
        sites
            ``"heavy"`` (all but hydrogen), ``"all"``, or atom indices and names in the order wanted;
            a name that several atoms have is written with its residue, as ``"ALA2-C"``.

        Raises
        ------
        StructureError
            Bonds missing, an unknown or ambiguous atom name, an atom without an element.
        """
        atoms = list(topology.atoms)
        if not atoms:
            raise StructureError("the topology has no atoms")
        for atom in atoms:
            if atom.element is None or atom.element.symbol == "VS":
                raise StructureError(f"atom {atom} has no chemical element")
        return cls(
            names=tuple(atom.name for atom in atoms),
            elements=tuple(atom.element.symbol for atom in atoms),
            residue_names=tuple(atom.residue.name for atom in atoms),
            residue_ids=tuple(atom.residue.resSeq for atom in atoms),
            bonds=tuple({(bond[0].index, bond[1].index) for bond in topology.bonds}),
            sites=_chosen([str(atom) for atom in atoms], [a.name for a in atoms], atoms, sites),
        )


def hill_formula(elements: Sequence[str]) -> str:
    """Sum formula in Hill's order: C, H, then the rest by alphabet; without C all by alphabet."""
    count = Counter(elements)
    first = [symbol for symbol in ("C", "H") if "C" in count and symbol in count]
    order = first + sorted(set(count) - set(first))
    return "".join(f"{symbol}{count[symbol] if count[symbol] > 1 else ''}" for symbol in order)


def triple_products(positions: Any, centres: Sequence[Sequence[int]]) -> Any:
    """(..., n_centres) triple product (a - centre)·((b - centre)×(c - centre)), in Å^3.

    Parameters
    ----------
    positions : (..., n, 3), a NumPy array or a torch tensor.
    centres : (n_centres, 4) indices: centre, a, b, c.
    """
    centre, a, b, c = ([each[k] for each in centres] for k in range(4))
    origin = positions[..., centre, :]
    u, v, w = (positions[..., index, :] - origin for index in (a, b, c))
    return (
        u[..., 0] * (v[..., 1] * w[..., 2] - v[..., 2] * w[..., 1])
        + u[..., 1] * (v[..., 2] * w[..., 0] - v[..., 0] * w[..., 2])
        + u[..., 2] * (v[..., 0] * w[..., 1] - v[..., 1] * w[..., 0])
    )


def handedness(positions: Any, centres: Sequence[Sequence[int]]) -> Any:
    """(..., n_centres) integers +1 or -1: the sign of `triple_products`; a planar centre counts as -1.

    Parameters
    ----------
    positions : (..., n, 3), a NumPy array or a torch tensor.
    centres : (n_centres, 4) indices: centre, a, b, c.
    """
    return (triple_products(positions, centres) > 0) * 2 - 1


def _ranks(keys: Sequence[Any]) -> list[int]:
    order = {key: rank for rank, key in enumerate(sorted(set(keys)))}
    return [order[key] for key in keys]


def _require_list(value: Any, kind: type, key: str) -> None:
    # bool is an int to Python, and no index
    if not isinstance(value, list) or any(not isinstance(v, kind) or isinstance(v, bool) for v in value):
        what = {str: "text", int: "whole numbers", list: "pairs"}[kind]
        raise CheckpointError(f"molecule: {key} must be a list of {what}")


def _chosen(
    labels: Sequence[str], names: Sequence[str], atoms: Sequence[Any], sites: str | Sequence[str | int]
) -> tuple[int, ...]:
    if isinstance(sites, str):
        if sites == "all":
            return tuple(range(len(atoms)))
        if sites == "heavy":
            return tuple(i for i, atom in enumerate(atoms) if atom.element.symbol != "H")
        raise StructureError(f'mapping "{sites}" is neither "heavy" nor "all"; or list the atoms')
    chosen = []
    for site in sites:
        if not isinstance(site, str):
            chosen.append(int(site))
            continue
        where = [i for i in range(len(atoms)) if site in (labels[i], names[i])]
        if len(where) != 1:
            found = f"names {len(where)} atoms: " + ", ".join(labels[i] for i in where)
            raise StructureError(f'mapping: "{site}" {found if where else "is no atom of the molecule"}')
        chosen.append(where[0])
    return tuple(chosen)
