"""Structures with one known defect each, in orthogonal cells; pure geometry, nothing relaxed.

fcc, bcc and hcp stand for Cu, Fe and Mg (hcp with the ideal c/a).  Every builder returns new
``ase.Atoms`` with positions in Å.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.build import bcc110, bulk, fcc100, fcc111, hcp0001
from ase.neighborlist import neighbor_list

from zoo.analysis.crystals import FloatArray


@dataclass(frozen=True)
class Lattice:
    """One crystal: its label in `zoo.analysis.crystals.STRUCTURES`, element and parameters (Å)."""

    name: str
    element: str
    a: float
    cells: tuple[int, int, int]

    @property
    def nearest(self) -> float:
        """Nearest-neighbour distance in Å; noise and displacements are given in units of it."""
        return {"fcc": self.a * math.sqrt(0.5), "bcc": self.a * math.sqrt(0.75), "hcp": self.a}[self.name]

    def unit_cell(self) -> Atoms:
        """The smallest orthogonal cell."""
        if self.name == "hcp":
            return bulk(self.element, "hcp", a=self.a, c=self.a * np.sqrt(8 / 3), orthorhombic=True)
        return bulk(self.element, self.name, a=self.a, cubic=True)

    def primitive(self) -> Atoms:
        """The primitive (oblique) cell."""
        if self.name == "hcp":
            return bulk(self.element, "hcp", a=self.a, c=self.a * np.sqrt(8 / 3))
        return bulk(self.element, self.name, a=self.a)

    def perfect(self) -> Atoms:
        """The perfect supercell of about a thousand atoms in which point defects are put."""
        return self.unit_cell().repeat(self.cells)


LATTICES: dict[str, Lattice] = {
    "fcc": Lattice("fcc", "Cu", 3.615, (6, 6, 6)),
    "bcc": Lattice("bcc", "Fe", 2.866, (8, 8, 8)),
    "hcp": Lattice("hcp", "Mg", 3.21, (8, 5, 5)),
}


def noised(atoms: Atoms, sigma: float, seed: int) -> Atoms:
    """Copy with Gaussian noise of standard deviation ``sigma`` (Å) on every coordinate."""
    out = atoms.copy()
    out.positions += np.random.default_rng(seed).normal(0.0, 1.0, out.positions.shape) * sigma
    return out


def central_atom(atoms: Atoms) -> int:
    """Index of the atom closest to the centre of the cell."""
    return int(np.linalg.norm(atoms.positions - 0.5 * atoms.cell.array.sum(axis=0), axis=1).argmin())


def vacancy(lattice: Lattice) -> Atoms:
    """The perfect supercell without its central atom."""
    atoms = lattice.perfect()
    del atoms[central_atom(atoms)]
    return atoms


def interstitial(lattice: Lattice) -> Atoms:
    """One atom too many: the stable self-interstitial of each crystal, before relaxation.

    fcc: <100> dumbbell; bcc: <110> dumbbell; hcp: basal octahedral, between two basal planes.
    """
    atoms = lattice.perfect()
    i = central_atom(atoms)
    if lattice.name == "hcp":
        # Octahedral site: over the centre of a triangle of basal neighbours that has no atom below it.
        extra = atoms.positions[i] + _octahedral_hole(atoms, i, lattice)
    else:
        direction = np.array([1.0, 0.0, 0.0] if lattice.name == "fcc" else [1.0, 1.0, 0.0])
        half = 0.28 * lattice.a * direction / np.linalg.norm(direction)
        extra = atoms.positions[i] + half
        atoms.positions[i] -= half
    return atoms + Atoms([lattice.element], [extra])


def _octahedral_hole(atoms: Atoms, i: int, lattice: Lattice) -> FloatArray:
    """Vector from atom ``i`` to an octahedral hole next to it: six neighbours at a / sqrt(2)."""
    distance = lattice.a / np.sqrt(2)
    height = 0.25 * lattice.a * np.sqrt(8 / 3)
    radius = np.sqrt(distance**2 - height**2)
    best, gap = np.zeros(3), -1.0
    for angle in np.deg2rad(np.arange(0, 360, 30)):
        trial = np.array([radius * np.cos(angle), radius * np.sin(angle), height])
        others = atoms.copy() + Atoms("X", [atoms.positions[i] + trial])
        nearest = others.get_distances(len(atoms), list(range(len(atoms))), mic=True).min()
        if nearest > gap:
            best, gap = trial, float(nearest)
    return best


def stacking(sequence: str, lattice: Lattice, repeat: tuple[int, int] = (6, 4)) -> Atoms:
    """Close-packed layers along z in the order of ``sequence`` (letters A, B, C), periodic.

    ``repeat`` counts orthogonal two-atom cells of each layer.
    """
    d = lattice.nearest
    height = d * np.sqrt(2 / 3)
    layer = np.array([[0.0, 0.0], [d / 2, d * np.sqrt(3) / 2]])
    offset = np.array([0.0, d / np.sqrt(3)])  # from one kind of layer to the next
    positions = [
        np.column_stack([layer + offset * "ABC".index(letter), np.full(2, k * height)])
        for k, letter in enumerate(sequence)
    ]
    cell = [d, d * np.sqrt(3), len(sequence) * height]
    atoms = Atoms(lattice.element + str(2 * len(sequence)), np.concatenate(positions), cell=cell, pbc=True)
    atoms.wrap()
    return atoms.repeat((*repeat, 1))


def stacking_fault(lattice: Lattice) -> Atoms:
    """fcc with one intrinsic stacking fault: one close-packed plane taken out of ABCABC..."""
    return stacking(("ABC" * 5)[:-1], lattice)


def twin(lattice: Lattice) -> Atoms:
    """fcc with two coherent twin boundaries (periodic cells cannot have one)."""
    half = 7
    up = [i % 3 for i in range(half + 1)]
    return stacking("".join("ABC"[i] for i in up + up[-2:0:-1]), lattice)


@dataclass(frozen=True)
class Edge:
    """An edge dislocation: structure, Burgers vector (Å) along x, line along z."""

    atoms: Atoms
    burgers: float


def edge_dislocation(lattice: Lattice, columns: int = 34) -> Edge:
    """One edge dislocation, periodic along its line (z) and its Burgers vector (x), open along y.

    The half crystal above the glide plane has one more column of atoms per period than the one
    below; both are strained to one length (the array of Osetsky & Bacon, Modelling Simul. Mater.
    Sci. Eng. 11, 427, 2003).  Relaxation makes the core.  Glide planes: fcc {111}, bcc {110}, hcp
    basal.
    """
    cell = _edge_cell(lattice)
    width, height, depth = cell.cell.lengths()
    up = max(4, round(30.0 / height))
    line = max(1, round(13.0 / depth))
    length = (columns + 0.5) * width
    lower, upper = (cell.repeat((n, up, line)) for n in (columns, columns + 1))
    lower.positions[:, 0] *= length / (columns * width)
    # Half of the wider column is out of step on either side: centre the misfit in the cell.
    upper.positions[:, 0] *= length / ((columns + 1) * width)
    upper.positions[:, 1] += up * height
    atoms = lower + upper
    atoms.set_cell([length, 2 * up * height, line * depth])
    atoms.positions[:, 0] += 0.25 * length
    atoms.pbc = [True, False, True]
    atoms.wrap()
    return Edge(atoms, width)


def _edge_cell(lattice: Lattice) -> Atoms:
    """Orthogonal cell with x one Burgers vector, y normal to the glide plane, z along the line."""
    a = lattice.a
    if lattice.name == "hcp":
        cell = lattice.unit_cell()  # x: <11-20>, y: <1-100>, z: c
        swapped = Atoms(
            cell.symbols, cell.positions[:, [0, 2, 1]], cell=cell.cell.lengths()[[0, 2, 1]], pbc=True
        )
        swapped.positions[:, 1] += 0.25 * swapped.cell[1, 1]  # the glide plane lies between layers
        return swapped
    if lattice.name == "fcc":
        axes, lengths = (
            [[1, -1, 0], [1, 1, 1], [1, 1, -2]],
            [a / np.sqrt(2), a * np.sqrt(3), a * np.sqrt(1.5)],
        )
        points = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    else:
        axes, lengths = (
            [[1, 1, 1], [1, -1, 0], [1, 1, -2]],
            [a * np.sqrt(3) / 2, a * np.sqrt(2), a * np.sqrt(6)],
        )
        points = [[0, 0, 0], [0.5, 0.5, 0.5]]
    return oriented(lattice.element, a, np.array(points), np.array(axes), np.array(lengths))


def oriented(element: str, a: float, basis: FloatArray, axes: FloatArray, lengths: FloatArray) -> Atoms:
    """Cubic crystal cut along orthogonal ``axes`` (3, 3), Miller indices, with periods ``lengths`` (Å).

    The y origin is put halfway between the two planes that are furthest apart.
    """
    unit = np.array(axes, dtype=float)
    unit /= np.linalg.norm(unit, axis=1)[:, None]
    reach = int(np.ceil(max(lengths) / a)) + 2
    grid = np.array(list(np.ndindex(*[2 * reach + 1] * 3))) - reach
    points = (grid[:, None, :] + basis[None, :, :]).reshape(-1, 3) * a @ unit.T
    fractional = points / lengths
    # Shift a little, so that rounding cannot keep both or neither of two equivalent faces.
    inside = ((fractional > -1e-6) & (fractional < 1 - 1e-6)).all(axis=1)
    positions = points[inside]
    levels = np.unique(np.round(positions[:, 1], 6))
    gaps = np.diff(levels, append=levels[0] + lengths[1])
    widest = int(gaps.argmax())
    positions[:, 1] -= levels[widest] + 0.5 * gaps[widest]
    atoms = Atoms([element] * len(positions), positions, cell=lengths, pbc=True)
    atoms.wrap()
    return atoms


def slab(lattice: Lattice, face: str, vacuum: float | None) -> Atoms:
    """A slab of about 20 Å with surfaces normal to z.

    ``face``: 100 and 111 for fcc, 110 for bcc, 0001 for hcp.  ``vacuum`` in Å on either side with
    pbc everywhere; ``None``: pbc is off along z and the cell ends at the surfaces.
    """
    builders = {
        ("fcc", "100"): fcc100,
        ("fcc", "111"): fcc111,
        ("bcc", "110"): bcc110,
        ("hcp", "0001"): hcp0001,
    }
    if (lattice.name, face) not in builders:
        raise ValueError(f"no {face} slab of {lattice.name}")
    layers = {"100": 12, "111": 10, "110": 10, "0001": 8}[face]
    kwargs = {"c": lattice.a * np.sqrt(8 / 3)} if lattice.name == "hcp" else {}
    # ASE's orthogonal cells need an even number of rows.
    orthogonal = {} if face == "100" else {"orthogonal": True}
    size = (8, 8, layers)
    atoms = builders[(lattice.name, face)](lattice.element, size=size, a=lattice.a, **kwargs, **orthogonal)
    atoms.set_tags(None)
    atoms.info.clear()
    atoms = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell)
    if vacuum is None:
        atoms.center(vacuum=0.0, axis=2)
        atoms.pbc = [True, True, False]
    else:
        atoms.center(vacuum=vacuum, axis=2)
        atoms.pbc = True
    return atoms


def void(lattice: Lattice, radius: float = 10.0) -> Atoms:
    """Bulk of about 4 000 atoms with a spherical hole of ``radius`` Å in the middle."""
    cell = lattice.unit_cell()
    atoms = cell.repeat([round(36.0 / length) for length in cell.cell.lengths()])
    centre = atoms.positions[central_atom(atoms)]
    return atoms[np.linalg.norm(atoms.positions - centre, axis=1) > radius]


def cluster(lattice: Lattice) -> Atoms:
    """An isolated ball with a radius of 5 nearest-neighbour distances, without a cell."""
    radius, cell = 5.0 * lattice.nearest, lattice.unit_cell()
    atoms = cell.repeat([round(2 * radius / length) + 2 for length in cell.cell.lengths()])
    centre = atoms.positions[central_atom(atoms)] + 0.1  # off the lattice: no layer exactly at the rim
    out = atoms[np.linalg.norm(atoms.positions - centre, axis=1) < radius]
    out.cell, out.pbc = None, False
    return out


def wire(lattice: Lattice) -> Atoms:
    """A round wire along x, 9 nearest-neighbour distances thick, periodic along x only."""
    radius, cell = 4.5 * lattice.nearest, lattice.unit_cell()
    repeat = [5, *(round(2 * radius / length) + 2 for length in cell.cell.lengths()[1:])]
    atoms = cell.repeat(repeat)
    centre = atoms.positions[central_atom(atoms)] + 0.1
    out = atoms[np.linalg.norm((atoms.positions - centre)[:, 1:], axis=1) < radius]
    out.pbc = [True, False, False]
    return out


def grain_boundary(lattice: Lattice) -> Atoms:
    """fcc bicrystal with two symmetric tilt boundaries, Sigma 5 (310)[001], before relaxation.

    The second grain mirrors the first, moved by a/2 along [001] and 0.25 Å away from it: of a grid
    of translations and deletions of overlapping atoms this has the lowest energy after relaxation,
    0.90 J/m2 with the potential used here.
    """
    a, gap = lattice.a, 0.25
    basis = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    axes = np.array([[0, 0, 1], [-1, 3, 0], [3, 1, 0]])
    cell = oriented(lattice.element, a, basis, axes, np.array([a, a * np.sqrt(10), a * np.sqrt(10)]))
    cell.positions -= cell.positions[0]
    cell.wrap(eps=1e-6)
    grain = cell.repeat((4, 2, 2))
    height = grain.cell[2, 2]
    mirrored = grain.copy()
    depth = grain.positions[:, 2]
    # The atoms of the boundary plane itself belong to the first boundary once, to the second once.
    mirrored.positions[:, 2] = np.where(depth < 1e-6, height, 2 * height - depth) + gap
    mirrored.positions[:, 0] += 0.5 * a
    atoms = grain + mirrored
    atoms.set_cell([*grain.cell.lengths()[:2], 2 * (height + gap)])
    atoms.wrap()
    return atoms


def polycrystal(lattice: Lattice, length: float = 42.0, grains: int = 2, seed: int = 0) -> Atoms:
    """Periodic Voronoi polycrystal of randomly turned grains, before relaxation."""
    from scipy.spatial.transform import Rotation

    generator = np.random.default_rng(seed)
    centres = generator.random((grains, 3)) * length
    unit = lattice.unit_cell()
    n = [int(np.ceil(1.8 * length / side)) for side in unit.cell.lengths()]
    block = unit.repeat(n).positions
    block = block - block.mean(axis=0)
    images = (np.array(list(np.ndindex(3, 3, 3))) - 1) * length
    kept = []
    for k, centre in enumerate(centres):
        turn = Rotation.random(random_state=int(generator.integers(2**31)))
        points = turn.apply(block) + centre
        own = np.linalg.norm(points - centre, axis=1)
        others = np.full(len(points), np.inf)
        for j, other in enumerate(centres):
            for image in images:
                if j == k and not image.any():
                    continue
                others = np.minimum(others, np.linalg.norm(points - other - image, axis=1))
        kept.append(points[own < others])
    positions = np.concatenate(kept)
    atoms = Atoms([lattice.element] * len(positions), positions, cell=[length] * 3, pbc=True)
    atoms.wrap()
    return without_overlaps(atoms, 0.75 * lattice.nearest)


def without_overlaps(atoms: Atoms, distance: float) -> Atoms:
    """Copy without the second atom of each pair closer than ``distance`` Å."""
    first, second = neighbor_list("ij", atoms, distance)
    removed: set[int] = set()
    for i, j in zip(first, second, strict=True):
        if i < j and i not in removed:
            removed.add(int(j))
    return atoms[[i for i in range(len(atoms)) if i not in removed]]
