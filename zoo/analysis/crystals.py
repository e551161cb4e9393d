"""Which crystal each atom sits in, and what is wrong with it: labels, defects, distances.

Labels come from OVITO and use one integer code everywhere in zoo, `STRUCTURES`.  OVITO is an
optional dependency (extra ``analysis``) and is imported inside the functions that need it.

How the six structures are told apart, with no per-material setting
-------------------------------------------------------------------
1. Adaptive common neighbour analysis (Stukowski, Modelling Simul. Mater. Sci. Eng. 20, 045021,
   2012) gives fcc, hcp and bcc: it compares the bond topology of 12 or 14 neighbours.
2. Atoms it leaves as "other" are asked for diamond (Maras et al., Comput. Phys. Commun. 205, 13,
   2016), which is the same topology seen through the second neighbours.
3. What is still "other" is asked for simple cubic by polyhedral template matching (Larsen, Schmidt
   & Schiotz, Modelling Simul. Mater. Sci. Eng. 24, 055007, 2016) with that template only.

The order is from strict to lenient: 1 and 2 demand an exact topology and exclude each other on any
lattice, while template matching accepts whatever is close enough to six neighbours on a cross.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms
from ase.geometry import complete_cell, find_mic, minkowski_reduce

from zoo.errors import MissingExtraError, StructureError
from zoo.pairs import pairs

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

#: Name of each integer label.
STRUCTURES: tuple[str, ...] = (
    "other",
    "fcc",
    "hcp",
    "bcc",
    "simple cubic",
    "cubic diamond",
    "hexagonal diamond",
)
OTHER, FCC, HCP, BCC, SIMPLE_CUBIC, CUBIC_DIAMOND, HEXAGONAL_DIAMOND = range(7)

#: One colour per label (hex RGB): the palette of Okabe & Ito, chosen to stay distinct for every
#: common form of colour blindness; "other" is a light grey that steps back.
COLORS: tuple[str, ...] = ("#c4c4c4", "#009e73", "#d55e00", "#0072b2", "#f0e442", "#56b4e9", "#cc79a7")

#: Names of OVITO's lattices for the dislocation analysis.
_DXA_LATTICES = {
    "fcc": "FCC",
    "hcp": "HCP",
    "bcc": "BCC",
    "cubic diamond": "CubicDiamond",
    "hexagonal diamond": "HexagonalDiamond",
}


@dataclass(frozen=True)
class Dislocation:
    """One dislocation line.

    Attributes
    ----------
    burgers_vector : true Burgers vector in units of the lattice parameter, crystal axes; (3,).
    spatial_burgers_vector : the same in Å, in the axes of the simulation cell; (3,).
    span : end of the line minus its start in Å, (3,); a lattice vector of the cell for a line that
        crosses a periodic cell, zero for a closed loop.
    length : length along the line in Å.
    points : the line itself, (n, 3) Å; not wrapped into the cell.
    """

    burgers_vector: FloatArray
    spatial_burgers_vector: FloatArray
    span: FloatArray
    length: float
    points: FloatArray


def structure_types(atoms: Atoms, *, partial_diamond: bool = False, rmsd_cutoff: float = 0.1) -> IntArray:
    """Structure label of every atom: the six structures of `STRUCTURES`, or "other".

    Parameters
    ----------
    atoms : any cell and pbc; positions may lie outside the cell.
    partial_diamond : also label the first and second neighbours of diamond atoms as diamond,
        although their own surroundings are not complete (surfaces, defects).  Off by default, so
        that diamond is judged as strictly as the other structures.
    rmsd_cutoff : largest template deviation that still counts as simple cubic.

    Returns
    -------
    labels : (n_atoms,) int64, indices into `STRUCTURES`.

    Raises
    ------
    MissingExtraError : OVITO is not installed.
    StructureError : positions or cell are not finite, or a periodic direction has no cell vector.
    """
    data = to_ovito(atoms)
    labels = _adaptive_cna(data)
    undecided = labels == OTHER
    if undecided.any():
        labels[undecided] = _diamond(data, partial_diamond)[undecided]
        undecided = labels == OTHER
    if undecided.any():
        labels[undecided] = _ptm(data, rmsd_cutoff, ("simple cubic",))[undecided]
    return labels


def store_labels(atoms: Atoms, labels: IntArray) -> None:
    """Put labels by `structure_types` into the arrays of ``atoms``, and what the numbers mean into its info.

    They are ``structure_type``, or ``site_type`` where a denoiser's verdict has its names under that.
    """
    there = atoms.arrays.get("structure_type")
    key = "site_type" if there is not None and there.dtype.kind in "UO" else "structure_type"
    atoms.arrays.pop(key, None)  # of an earlier run, perhaps of another type
    atoms.set_array(key, labels.astype(int))
    atoms.info[f"{key}_legend"] = ", ".join(f"{i} {name}" for i, name in enumerate(STRUCTURES))


def structure_fractions(atoms_or_labels: Atoms | npt.ArrayLike) -> dict[str, float]:
    """Fraction of atoms with each label, in the order of `STRUCTURES`; all seven keys are present.

    Takes labels (n_atoms,) or the atoms themselves, which are then labelled by `structure_types`.
    """
    if isinstance(atoms_or_labels, Atoms):
        labels = structure_types(atoms_or_labels)
    else:
        labels = np.asarray(atoms_or_labels, dtype=np.int64).reshape(-1)
    if labels.size and (labels.min() < 0 or labels.max() >= len(STRUCTURES)):
        raise StructureError(
            f"structure labels must lie in 0..{len(STRUCTURES) - 1}, got {labels.min()}..{labels.max()}"
        )
    counts = np.bincount(labels, minlength=len(STRUCTURES))
    total = max(1, labels.size)
    return {name: float(counts[i] / total) for i, name in enumerate(STRUCTURES)}


def adaptive_cna(atoms: Atoms) -> IntArray:
    """Labels (n_atoms,) by adaptive common neighbour analysis alone: fcc, hcp, bcc or other."""
    return _adaptive_cna(to_ovito(atoms))


def diamond(atoms: Atoms, *, partial: bool = False) -> IntArray:
    """Labels (n_atoms,) by diamond identification alone: cubic or hexagonal diamond, or other.

    ``partial`` also counts the first and second neighbours of fully coordinated diamond atoms.
    """
    return _diamond(to_ovito(atoms), partial)


def ptm(atoms: Atoms, rmsd_cutoff: float = 0.1, structures: Sequence[str] = STRUCTURES[1:]) -> IntArray:
    """Labels (n_atoms,) by polyhedral template matching alone, with the given templates.

    ``rmsd_cutoff`` is the largest accepted deviation from a template (0: no limit, as in OVITO).
    ``structures`` are names of `STRUCTURES`.
    """
    return _ptm(to_ovito(atoms), rmsd_cutoff, structures)


def wigner_seitz(atoms: Atoms, reference: Atoms) -> tuple[int, int]:
    """Numbers of vacancies and interstitials: empty and excess atoms of the sites of ``reference``.

    Every atom is assigned to the nearest site.  Vacancies are sites without an atom;
    interstitials are the atoms in excess of one per site.  Only cell and pbc of ``reference``
    count, so both structures must share one frame (no drift, no strain).
    """
    require_ovito()
    from ovito.modifiers import WignerSeitzAnalysisModifier
    from ovito.pipeline import StaticSource

    # Any: OVITO's type hint only names files, its documentation also this kind of source.
    modifier: Any = WignerSeitzAnalysisModifier()
    modifier.reference = StaticSource(data=to_ovito(reference))
    data = to_ovito(atoms)
    data.apply(modifier)
    return (
        int(data.attributes["WignerSeitz.vacancy_count"]),
        int(data.attributes["WignerSeitz.interstitial_count"]),
    )


def dislocations(atoms: Atoms, lattice: str) -> list[Dislocation]:
    """Dislocation lines by OVITO's dislocation extraction algorithm (DXA).

    Parameters
    ----------
    lattice : the perfect crystal around the lines: fcc, hcp, bcc, cubic or hexagonal diamond.

    Notes
    -----
    Stukowski, Bulatov & Arsenlis, Modelling Simul. Mater. Sci. Eng. 20, 085007 (2012).  The signs
    of the Burgers vectors depend on the directions of the lines, which DXA chooses; see
    `net_burgers_vector` for a sum that does not.
    """
    return dislocation_network(atoms, lattice)[0]


def dislocation_network(atoms: Atoms, lattice: str) -> tuple[list[Dislocation], dict[str, tuple[int, float]]]:
    """Dislocation lines as by `dislocations`; of each family of Burgers vectors their number and length (Å).

    Families are named as by OVITO, "1/6<112> (Shockley)"; those without a line are left out, and so is
    everything in cells that are too small for the analysis.
    """
    if lattice not in _DXA_LATTICES:
        raise StructureError(
            f"dislocations: no lattice {lattice!r}; choose one of {', '.join(_DXA_LATTICES)}"
        )
    require_ovito()
    from ovito.modifiers import DislocationAnalysisModifier

    modifier = DislocationAnalysisModifier()
    modifier.input_crystal_structure = getattr(DislocationAnalysisModifier.Lattice, _DXA_LATTICES[lattice])
    data: Any = to_ovito(atoms)
    try:
        data.apply(modifier)
    except RuntimeError as error:
        if "too small" in str(error):
            return [], {}  # no line fits into a cell of a few atoms
        raise StructureError(f"dislocation analysis: {' '.join(str(error).split())}") from None
    numbers, lengths = data.tables["disloc-counts"], data.tables["disloc-lengths"]
    families = {
        kind.name: (int(numbers.y[kind.id]), float(lengths.y[kind.id]))
        for kind in numbers.x.types
        if numbers.y[kind.id]
    }
    lines = [
        Dislocation(
            burgers_vector=np.array(line.true_burgers_vector, dtype=np.float64),
            spatial_burgers_vector=np.array(line.spatial_burgers_vector, dtype=np.float64),
            span=np.asarray(line.points[-1] - line.points[0], dtype=np.float64),
            length=float(line.length),
            points=np.array(line.points, dtype=np.float64),
        )
        for line in data.dislocations.lines
    ]
    return lines, families


def net_burgers_vector(lines: Sequence[Dislocation], axis: int, period: float) -> FloatArray:
    """Burgers vector in Å, (3,), of all lines that cross a plane normal to a cell direction.

    ``axis`` is 0, 1 or 2 and ``period`` the length of the cell along it.  Lines count by their span
    along the axis, so the directions that DXA chose cancel out and partials add up.
    """
    total = np.zeros(3)
    for line in lines:
        total += line.spatial_burgers_vector * line.span[axis] / period
    return total


def displacements(before: Atoms, after: Atoms) -> FloatArray:
    """Minimum-image displacement of each atom, (n_atoms, 3) Å, in the cell and pbc of ``before``."""
    if len(before) != len(after):
        raise StructureError(f"displacements: the structures have {len(before)} and {len(after)} atoms")
    difference = after.positions - before.positions
    if not len(before) or not before.pbc.any():
        return np.asarray(difference, dtype=np.float64)
    vectors, _ = find_mic(difference, before.cell, before.pbc)
    return np.asarray(vectors, dtype=np.float64)


def radial_distribution(atoms: Atoms, r_max: float, bins: int = 100) -> tuple[FloatArray, FloatArray]:
    """Radial distribution function with all periodic images: bin centres (Å) and g(r), both (bins,).

    ``r_max`` may exceed the cell: every image counts.  g(r) is the number of pairs in a shell over
    that of an ideal gas of the same density.  Along directions that are not periodic the density
    uses the extent of the atoms and the missing neighbours at the surface are not corrected for, so
    there g(r) falls below 1 at large r.
    """
    if not r_max > 0 or bins < 1:
        raise StructureError(f"radial_distribution: needs r_max > 0 and bins >= 1, got {r_max} and {bins}")
    _check(atoms)
    edges = np.linspace(0.0, r_max, bins + 1)
    centres = 0.5 * (edges[1:] + edges[:-1])
    n = len(atoms)
    if n == 0:
        return centres, np.zeros(bins)
    cell = _bounding_cell(atoms)
    (distances,) = pairs(atoms.positions, cell, atoms.pbc, float(r_max), "d")
    counts, _ = np.histogram(distances, bins=edges)
    density = n / abs(np.linalg.det(cell))
    shells = 4 / 3 * np.pi * (edges[1:] ** 3 - edges[:-1] ** 3)
    return centres, counts / (n * density * shells)


def to_ovito(atoms: Atoms) -> Any:
    """An OVITO ``DataCollection`` with the positions, cell and pbc of ``atoms`` (no other array).

    The cell is reduced, and along directions that are not periodic it is the atoms' extent.
    """
    require_ovito()
    from ovito.data import DataCollection

    _check(atoms)
    data = DataCollection()
    cell = np.zeros((3, 4))
    cell[:, :3] = _bounding_cell(atoms).T
    data.create_cell(cell, pbc=(bool(atoms.pbc[0]), bool(atoms.pbc[1]), bool(atoms.pbc[2])))
    particles = data.create_particles(count=len(atoms))
    particles.create_property("Position", data=np.ascontiguousarray(atoms.positions, dtype=np.float64))
    return data


def require_ovito() -> None:
    """Raise MissingExtraError unless OVITO is installed."""
    try:
        import ovito  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"structure analysis needs OVITO ({error}): pip install 'score-zoo[analysis]'"
        ) from error


def _check(atoms: Atoms) -> None:
    if not np.isfinite(atoms.positions).all() or not np.isfinite(atoms.cell.array).all():
        raise StructureError("analysis: the structure has positions or cell vectors that are not finite")
    vectors = atoms.cell.array[np.asarray(atoms.pbc, dtype=bool)]
    if len(vectors) and np.linalg.matrix_rank(vectors) < len(vectors):
        raise StructureError(
            "analysis: the cell is singular along a periodic direction; set a cell or pbc=False"
        )


def _bounding_cell(atoms: Atoms) -> FloatArray:
    """Cell rows (3, 3) Å of the same crystal, as compact as possible.

    Periodic vectors are reduced (OVITO misses neighbours in strongly skewed cells); open directions
    are made perpendicular to them and as long as the extent of the atoms.
    """
    pbc = np.asarray(atoms.pbc, dtype=bool)
    cell = np.where(pbc[:, None], atoms.cell.array, 0.0)
    if pbc.any():
        reduced, _ = minkowski_reduce(cell, pbc=pbc)
        cell = np.where(pbc[:, None], reduced, 0.0)
    cell = np.array(complete_cell(cell), dtype=np.float64)
    for axis in np.flatnonzero(~pbc):
        height = atoms.positions @ (cell[axis] / np.linalg.norm(cell[axis]))
        # A planar or single-atom structure still needs a cell with a volume.
        cell[axis] *= max(float(np.ptp(height)) if len(atoms) else 0.0, 1.0) / np.linalg.norm(cell[axis])
    return cell


def _labels(data: Any, modifier: Any, codes: dict[int, int]) -> IntArray:
    """Run a structure identification on ``data`` and translate OVITO's types by ``codes``."""
    n = data.particles.count
    if n == 0:
        return np.zeros(0, dtype=np.int64)
    work = data.clone()
    modifier.color_by_type = False
    work.apply(modifier)
    types = np.array(work.particles["Structure Type"], dtype=np.int64)
    table = np.zeros(max(types.max(), *codes) + 1, dtype=np.int64)
    for theirs, ours in codes.items():
        table[theirs] = ours
    return np.asarray(table[types], dtype=np.int64)


def _adaptive_cna(data: Any) -> IntArray:
    from ovito.modifiers import CommonNeighborAnalysisModifier as Cna

    modifier = Cna(mode=Cna.Mode.AdaptiveCutoff)
    kinds = {int(Cna.Type.FCC): FCC, int(Cna.Type.HCP): HCP, int(Cna.Type.BCC): BCC}
    return _labels(data, modifier, kinds)


def _diamond(data: Any, partial: bool) -> IntArray:
    from ovito.modifiers import IdentifyDiamondModifier as Diamond

    kind = Diamond.Type
    codes = {int(kind.CUBIC_DIAMOND): CUBIC_DIAMOND, int(kind.HEX_DIAMOND): HEXAGONAL_DIAMOND}
    if partial:
        codes |= {
            int(kind.CUBIC_DIAMOND_FIRST_NEIGHBOR): CUBIC_DIAMOND,
            int(kind.CUBIC_DIAMOND_SECOND_NEIGHBOR): CUBIC_DIAMOND,
            int(kind.HEX_DIAMOND_FIRST_NEIGHBOR): HEXAGONAL_DIAMOND,
            int(kind.HEX_DIAMOND_SECOND_NEIGHBOR): HEXAGONAL_DIAMOND,
        }
    return _labels(data, Diamond(), codes)


def _ptm(data: Any, rmsd_cutoff: float, structures: Sequence[str]) -> IntArray:
    from ovito.modifiers import PolyhedralTemplateMatchingModifier as Ptm

    kind = Ptm.Type
    theirs = {
        "fcc": kind.FCC,
        "hcp": kind.HCP,
        "bcc": kind.BCC,
        "simple cubic": kind.SC,
        "cubic diamond": kind.CUBIC_DIAMOND,
        "hexagonal diamond": kind.HEX_DIAMOND,
    }
    unknown = [name for name in structures if name not in theirs]
    if unknown or not structures:
        raise StructureError(f"ptm: no template for {unknown}; choose from {', '.join(theirs)}")
    modifier = Ptm(rmsd_cutoff=float(rmsd_cutoff))
    for name, type_id in theirs.items():
        modifier.structures[int(type_id)].enabled = name in structures
    codes = {int(theirs[name]): STRUCTURES.index(name) for name in structures}
    return _labels(data, modifier, codes)
