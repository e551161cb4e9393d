"""Start structures: from what the user has to the positions of the model's sites."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from zoo.errors import StructureError
from zoo.molecules.bonds import inferred_bonds, made_whole, radii
from zoo.molecules.matching import Part, assignments, best_sites, components, parts
from zoo.molecules.molecule import Molecule, hill_formula
from zoo.molecules.sources import Source, sources

if TYPE_CHECKING:
    import ase
    import mdtraj

    Start: TypeAlias = (
        str
        | os.PathLike[str]
        | mdtraj.Trajectory
        | ase.Atoms
        | Sequence[str | os.PathLike[str] | mdtraj.Trajectory | ase.Atoms]
    )

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

# In units of the sum of the covalent radii; a bond at 300 K is between 0.85 and 1.15.
_LONGEST, _SHORTEST = 1.6, 0.5
_WATER = "H2O"


@dataclass(frozen=True)
class _Match:
    part: Part
    atoms: Indices  # of the file: the matched component, in the file's order
    bonds: Indices  # between them
    found: list[Indices]  # assignments, as indices into `atoms`


def load_start(start: Start, molecule: Molecule, reference: Array | None = None) -> Array:
    """Positions of the model's sites, in the model's order, one frame per walker.

    The molecule is looked for among all that the file holds (solvent, ions) by its elements and
    bonds; order and names of atoms do not matter, except that names decide between symmetric
    labellings.  Bonds are those of the topology or, where these are missing or give no match,
    those between atoms near enough.  A file may lack the hydrogens if the model does.  A molecule
    cut by the periodic box is made whole.

    Parameters
    ----------
    start
        A PDB, GRO, HDF5 or other file that MDTraj reads without a topology, XYZ, an
        `mdtraj.Trajectory`, an `ase.Atoms`, or a list of these.
    molecule
        What the model moves.
    reference : (n_sites, 3) Å
        A structure as the model knows it.  Symmetric atoms (methyl hydrogens, the two of a CH2)
        are labelled with its handedness; for the enantiomer, with that of its mirror image.

    Returns
    -------
    (n_frames, n_sites, 3) float64, Å.

    Raises
    ------
    StructureError
        Nothing readable; another molecule; hydrogens missing that the model has; several copies of
        the molecule; another stereoisomer than the reference and its mirror image; NaN; a molecule
        in pieces without the box that would tell how they fit.
    """
    return np.concatenate([_frames(source, molecule, reference) for source in sources(start)])


def load_molecule(start: Start) -> Molecule:
    """The one molecule, all of its atoms, that a start holds beside water and single ions.

    For models that are not of one molecule; `load_start` then gives its positions.  Bonds are those of the
    topology or, where it has none, those between atoms near enough.

    Raises
    ------
    StructureError
        Nothing readable; no molecule, several, or several copies of one.
    """
    source = next(sources(start))
    bonds = source.bonds
    if not len(bonds):
        cell = source.cells[0]
        finite = np.nan_to_num(source.positions[0])
        bonds = inferred_bonds(source.elements, finite, cell)
    groups = [
        group
        for group in components(len(source.elements), bonds)
        if len(group) > 1 and hill_formula([source.elements[i] for i in group]) != _WATER
    ]
    if len(groups) != 1:
        found = Counter(hill_formula([source.elements[i] for i in group]) for group in groups)
        what = ", ".join(f"{n} {formula}" for formula, n in found.most_common(4)) or "no molecule"
        raise StructureError(
            f"{source.where}: {what} found beside water; one molecule is needed, with all its bonds"
        )
    atoms = groups[0]
    place = {int(atom): k for k, atom in enumerate(atoms)}
    count: Counter[str] = Counter()
    names = []
    for atom in atoms:
        element = source.elements[atom]
        count[element] += 1
        names.append(source.names[atom] or f"{element}{count[element]}")
    residues = [_residue(source.residues[atom]) for atom in atoms]
    return Molecule(
        names=tuple(names),
        elements=tuple(source.elements[atom] for atom in atoms),
        residue_names=tuple(name for name, _ in residues),
        residue_ids=tuple(number for _, number in residues),
        bonds=tuple((place[int(i)], place[int(j)]) for i, j in bonds if int(i) in place),
        sites=tuple(range(len(atoms))),
    )


def _residue(label: str) -> tuple[str, int]:
    """Name and number of ``ALA2``; those of an unknown one where there is no label."""
    found = re.fullmatch(r"(.*?)(\d+)", label)
    return (found[1] or "MOL", int(found[2])) if found else (label or "MOL", 1)


def _frames(source: Source, molecule: Molecule, reference: Array | None) -> Array:
    finite: npt.NDArray[np.bool_] = np.all(np.isfinite(source.positions), axis=2)
    if not finite.all():
        frame = int(np.argmin(finite.all(axis=1)))
        raise StructureError(
            f"{_frame(source, frame)}: {int((~finite[frame]).sum())} of {finite.shape[1]} atoms have NaN or "
            "infinite coordinates"
        )
    match = _match(source, molecule)
    positions = source.positions[:, match.atoms]
    names = [source.names[i] for i in match.atoms]
    elements = [source.elements[i] for i in match.atoms]
    positions = _whole(source, match, positions, elements, names)
    rows, wrong = best_sites(match.part, match.found, positions, names, reference)
    if wrong:
        raise StructureError(
            f"{source.where}: another stereoisomer than the model's: {', '.join(wrong)} inverted while the "
            "rest is not; the model knows only its own and the mirror image"
        )
    chosen: Array = np.take_along_axis(positions, rows[:, :, None], axis=1)
    return chosen


def _match(source: Source, molecule: Molecule) -> _Match:
    """The one component of the file that is the molecule, by its own bonds or by distances."""
    choices = parts(molecule)
    matches: list[_Match] = []
    bonds = source.bonds
    if len(bonds):
        matches = _matches(source, bonds, choices)
    if not matches:
        bonds = inferred_bonds(source.elements, source.positions[0], source.cells[0], molecule.elements)
        matches = _matches(source, bonds, choices)
    if len(matches) > 1:
        copies = ", ".join(source.residues[m.atoms[0]] or f"atom {m.atoms[0]}" for m in matches[:4])
        raise StructureError(
            f"{source.where}: {len(matches)} copies of the molecule (at {copies}"
            f"{', ...' if len(matches) > 4 else ''}); keep one, or give each copy as a frame of its own"
        )
    if not matches:
        _explain(source, bonds, molecule)
    return matches[0]


def _matches(source: Source, bonds: Indices, choices: list[Part]) -> list[_Match]:
    groups = components(len(source.elements), bonds)
    owner = np.empty(len(source.elements), dtype=np.int64)
    for k, group in enumerate(groups):
        owner[group] = k
    sizes = {len(part.atoms) for part in choices}
    found = []
    for k, group in enumerate(groups):
        if len(group) < min(sizes) or len(group) > max(sizes):
            continue  # water and proteins need no closer look
        inside = bonds[owner[bonds[:, 0]] == k]
        for part in choices:
            match = _matched(source, group, inside, part)
            if match is not None:
                found.append(match)
                break
    return found


def _matched(source: Source, group: Indices, bonds: Indices, part: Part) -> _Match | None:
    hydrogens = sum(source.elements[i] == "H" for i in group)
    if not part.whole and hydrogens:
        # Some hydrogens are missing; the heavy atoms decide.  As many as there should be, and yet
        # no match of the whole: that is another molecule.
        if hydrogens >= part.molecule.elements.count("H"):
            return None
        group = np.array([i for i in group if source.elements[i] != "H"], dtype=np.int64)
        bonds = bonds[np.isin(bonds, group).all(axis=1)]
    place = {int(atom): k for k, atom in enumerate(group)}
    local = np.array([[place[int(i)], place[int(j)]] for i, j in bonds], dtype=np.int64).reshape(-1, 2)
    elements, names = [source.elements[i] for i in group], [source.names[i] for i in group]
    found = list(assignments(part, elements, local, names))
    return _Match(part, group, local, found) if found else None


def _whole(source: Source, match: _Match, positions: Array, elements: list[str], names: list[str]) -> Array:
    """Every bond at its nearest image in the frames where one is too long; refuses what stays broken."""
    if not len(match.bonds):
        return positions
    i, j = match.bonds[:, 0], match.bonds[:, 1]
    radius = radii(elements)
    usual = radius[i] + radius[j]
    positions = positions.copy()
    ratios = np.linalg.norm(positions[:, i] - positions[:, j], axis=2) / usual
    for frame in np.flatnonzero((ratios > _LONGEST).any(axis=1)):
        cell = source.cells[frame]
        if cell is not None:
            positions[frame] = made_whole(positions[frame], match.bonds, cell)
    ratios = np.linalg.norm(positions[:, i] - positions[:, j], axis=2) / usual
    for frame in np.flatnonzero(((ratios > _LONGEST) | (ratios < _SHORTEST)).any(axis=1)):
        off = np.abs(np.log(np.maximum(ratios[frame], 1e-9)))
        worst = int(np.argmax(off))
        bond = (
            f"bond {_label(source, match.atoms[i[worst]])}-{_label(source, match.atoms[j[worst]])} is "
            f"{ratios[frame, worst] * usual[worst]:.2f} Å long"
        )
        if ratios[frame, worst] > 1 and source.cells[frame] is None:
            raise StructureError(
                f"{_frame(source, int(frame))}: {bond}: the molecule is broken across a periodic box that "
                "the input does not have; add the box, or make it whole first (gmx trjconv -pbc whole)"
            )
        raise StructureError(f"{_frame(source, int(frame))}: {bond}: the structure is damaged")
    return positions


def _explain(source: Source, bonds: Indices, molecule: Molecule) -> NoReturn:
    """Raises the error that says why nothing matched."""
    needed = molecule.formula
    groups = components(len(source.elements), bonds)
    formulas = [hill_formula([source.elements[i] for i in group]) for group in groups]
    # Alone or water: solvent and ions, which say nothing about the solute
    solutes = [
        (group, formula)
        for group, formula in zip(groups, formulas, strict=True)
        if len(group) > 1 and formula != _WATER and not set(formula) <= {"O", "H"}
    ]
    heavy = hill_formula([element for element in molecule.elements if element != "H"])
    n_hydrogens = molecule.elements.count("H")
    for group, formula in solutes:
        elements = [source.elements[i] for i in group]
        here = elements.count("H")
        if formula == needed:
            raise StructureError(
                f"{source.where}: {formula} as needed, but its atoms are bonded otherwise than in "
                f"{_sequence(molecule)}: another isomer, or a structure too distorted to tell"
            )
        if here < n_hydrogens and hill_formula([e for e in elements if e != "H"]) == heavy:
            if any(element == "H" for element in molecule.site_elements):
                raise StructureError(
                    f"{source.where}: {n_hydrogens - here} of {n_hydrogens} hydrogens are missing and the "
                    f"model moves them ({formula} found, {needed} needed); add them, for example with "
                    "OpenMM's Modeller.addHydrogens, PDBFixer or reduce"
                )
            raise StructureError(
                f"{source.where}: the heavy atoms are those of {_sequence(molecule)} but bonded otherwise: "
                "another isomer, or a structure too distorted to tell"
            )
    loose = [
        source.elements[i]
        for group, formula in zip(groups, formulas, strict=True)
        for i in group
        if formula != _WATER
    ]
    wanted = [molecule.elements, tuple(e for e in molecule.elements if e != "H")]
    if len(solutes) != 1 and any(Counter(loose) == Counter(each) for each in wanted):
        hint = (
            "it has no box, so if the molecule is broken across one, make it whole first"
            if source.cells[0] is None
            else "bonds are missing or far too long"
        )
        raise StructureError(
            f"{source.where}: the atoms of {_sequence(molecule)} are in several pieces; {hint}"
        )
    count = Counter(formula for _, formula in solutes) or Counter(formulas)
    shown = [f"{n} {formula}" if n > 1 else formula for formula, n in count.most_common(4)]
    more = ", ..." if len(count) > 4 else ""
    raise StructureError(
        f"{source.where} does not hold the model's molecule {_sequence(molecule)}: "
        f"{', '.join(shown)}{more} found, {needed} needed"
    )


def _sequence(molecule: Molecule) -> str:
    residues = dict.fromkeys(zip(molecule.residue_ids, molecule.residue_names, strict=True))
    return "-".join(name for _, name in residues)


def _frame(source: Source, frame: int) -> str:
    return source.where if len(source.positions) == 1 else f"{source.where}, frame {frame}"


def _label(source: Source, atom: int) -> str:
    return source.names[atom] or f"{source.elements[atom]}{atom}"
