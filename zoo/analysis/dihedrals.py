"""Which dihedrals to look at: what the user names, or phi and psi."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zoo.analysis.basins import is_alanine_like
from zoo.analysis.ramachandran import backbone_torsions
from zoo.errors import StructureError

if TYPE_CHECKING:
    from zoo.molecules.molecule import Molecule

Quadruple = tuple[int, int, int, int]
#: More torsions than this make more basins than anybody can read.
_MOST_DEFAULTS = 2


@dataclass(frozen=True)
class Dihedrals:
    """Site quadruples with their names; ``alanine_like`` if they are phi and psi of such a residue."""

    quadruples: tuple[Quadruple, ...]
    names: tuple[str, ...]
    alanine_like: bool = False


def choose_dihedrals(molecule: Molecule, wanted: Sequence[str | Sequence[str | int]] | None) -> Dihedrals:
    """The dihedrals to evaluate.

    Parameters
    ----------
    wanted : each one four atoms, as a list or as text with spaces or commas between: site indices
        (in the model's order, from 0), or atom names, with the residue where a name is not unique, as
        in ``ACE:C ALA:N ALA:CA ALA:C`` or ``ALA2:N``.  None: phi and psi of the first residue
        that has both, or, of a short chain of heavy atoms that does not branch, its torsions.

    Raises
    ------
    StructureError : an atom that is not among the sites, an ambiguous name, not four different atoms,
        or no phi and psi where none are named.
    """
    if wanted is None:
        try:
            phi, psi = backbone_torsions(molecule)
        except StructureError:
            chain = chain_torsions(molecule)
            if 1 <= len(chain) <= _MOST_DEFAULTS:
                labels = molecule.site_labels
                return Dihedrals(chain, tuple("-".join(labels[i] for i in each) for each in chain))
            raise StructureError(
                "no residue has both phi and psi among the sites: name the dihedrals, each by four atoms of "
                + ", ".join(molecule.site_labels)
            ) from None
        return Dihedrals((phi, psi), ("φ", "ψ"), is_alanine_like(molecule, phi))
    if not wanted:
        raise StructureError("no dihedral is named")
    quadruples = tuple(_quadruple(molecule, each) for each in wanted)
    if len(set(quadruples)) != len(quadruples):
        raise StructureError("a dihedral is named twice")
    labels = molecule.site_labels
    names = ["-".join(labels[i] for i in each) for each in quadruples]
    try:
        backbone = backbone_torsions(molecule)
    except StructureError:
        backbone = []
    for k, each in enumerate(quadruples):
        for symbol, torsion in zip("φψ", backbone, strict=False):
            if each in (torsion, torsion[::-1]):
                names[k] = symbol
    known = names == ["φ", "ψ"] and is_alanine_like(molecule, backbone[0])
    return Dihedrals(quadruples, tuple(names), known)


def chain_torsions(molecule: Molecule) -> tuple[Quadruple, ...]:
    """Torsions along a chain of heavy atoms that does not branch, from one end to the other; else none."""
    heavy = [k for k, element in enumerate(molecule.site_elements) if element != "H"]
    near: dict[int, list[int]] = {k: [] for k in heavy}
    for i, j in molecule.site_bonds:
        if i in near and j in near:
            near[i].append(j)
            near[j].append(i)
    ends = [k for k in heavy if len(near[k]) == 1]
    if len(ends) != 2 or any(len(near[k]) > 2 for k in heavy):
        return ()
    chain = [ends[0]]
    while len(chain) < len(heavy):
        following = [k for k in near[chain[-1]] if k not in chain[-2:]]
        if len(following) != 1:
            return ()
        chain += following
    return tuple((chain[k], chain[k + 1], chain[k + 2], chain[k + 3]) for k in range(len(chain) - 3))


def _quadruple(molecule: Molecule, wanted: str | Sequence[str | int]) -> Quadruple:
    atoms = (
        [each for each in re.split(r"[,\s]+", wanted) if each] if isinstance(wanted, str) else list(wanted)
    )
    text = " ".join(map(str, atoms))
    if len(atoms) != 4:
        raise StructureError(f'dihedral "{text}" has {len(atoms)} atoms; a dihedral needs four')
    a, b, c, d = (_site(molecule, atom, text) for atom in atoms)
    if len({a, b, c, d}) != 4:
        raise StructureError(f'dihedral "{text}" names an atom twice')
    return a, b, c, d


def _site(molecule: Molecule, atom: str | int, dihedral: str) -> int:
    if not isinstance(atom, str) or re.fullmatch(r"-?\d+", atom):
        index = int(atom)
        if not 0 <= index < molecule.n_sites:
            raise StructureError(
                f'dihedral "{dihedral}": the model has sites 0..{molecule.n_sites - 1}, not {index}'
            )
        return index
    found = []
    for site, i in enumerate(molecule.sites):
        name, residue, number = molecule.names[i], molecule.residue_names[i], molecule.residue_ids[i]
        if atom in (name, f"{residue}:{name}", f"{residue}{number}:{name}"):
            found.append(site)
    if len(found) == 1:
        return found[0]
    if not found:
        labels = molecule.site_labels
        raise StructureError(
            f'dihedral "{dihedral}": {atom} is no atom of the model, which has {", ".join(labels)}'
        )
    full = [
        f"{molecule.residue_names[i]}{molecule.residue_ids[i]}:{molecule.names[i]}"
        for i in (molecule.sites[site] for site in found)
    ]
    raise StructureError(
        f'dihedral "{dihedral}": {atom} names {len(found)} atoms; say which: {", ".join(full)}'
    )
