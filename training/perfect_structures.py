"""Perfect crystals of a user's own as training data of a denoiser: read, checked, repeated, cut and strained.

As in `training.lattices`, lengths are in units of the length scale, the cube root of the atomic volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import vesin
from ase import Atoms

from training.lattices import Sample, species_of, strain, with_vacancies
from zoo.errors import StructureError
from zoo.structures import check_structure, read_frames

Array = npt.NDArray[np.float64]

#: Atoms of a unit cell; a supercell with room for noise to average out must still fit into a batch.
LARGEST_CELL = 200
#: A crystal whose nearest atoms are nearer than this (length scales) is no crystal, or is in other units.
_NEAREST = 0.35
#: How often `draw` takes each kind of structure.
MIX = {"bulk": 0.75, "vacancies": 0.1, "slab": 0.15}


@dataclass(frozen=True)
class Perfect:
    """One crystal: its unit cell with one Å³ per atom, its nearest-neighbour distance in length scales."""

    name: str
    unit: Atoms
    spacing: float


def read_perfect(path: Path) -> Perfect:
    """The crystal in a CIF, POSCAR or other structure file.

    Raises
    ------
    StructureError : unreadable, several frames, not periodic in three directions, partly occupied sites, a
        cell of more than `LARGEST_CELL` atoms, atoms far too close.
    """
    frames = list(read_frames(path))
    if len(frames) != 1:
        raise StructureError(f"{path} has {len(frames)} frames: give one perfect crystal per file")
    atoms = frames[0]
    if len(atoms) == 1 and atoms.pbc.all():
        atoms = atoms.repeat(2)  # a primitive cell is welcome
    check_structure(atoms, str(path))
    if not atoms.pbc.all():
        raise StructureError(f"{path} is not periodic in all directions: give the bulk crystal's cell")
    occupied = atoms.info.get("occupancy") or {}
    if any(abs(sum(site.values()) - 1) > 1e-3 or len(site) > 1 for site in occupied.values()):
        raise StructureError(f"{path} has partly occupied sites: give an ordered cell of it")
    if len(atoms) > LARGEST_CELL:
        raise StructureError(
            f"{path} has {len(atoms)} atoms: give the unit cell, which is repeated here, "
            f"{LARGEST_CELL} atoms at most"
        )
    unit = Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
    unit.set_cell(unit.cell * (len(unit) / unit.cell.volume) ** (1 / 3), scale_atoms=True)
    unit.wrap()
    distances = vesin.NeighborList(cutoff=2.0, full_list=False).compute(
        unit.positions, unit.cell[:], True, "d"
    )[0]
    spacing = float(distances.min())
    if spacing < _NEAREST:
        raise StructureError(
            f"{path}: the nearest atoms are {spacing:.2f} of the mean spacing apart; is it a perfect crystal?"
        )
    name = f"{atoms.get_chemical_formula(empirical=True)} ({path.name})"
    return Perfect(name, unit, spacing)


def supercell(perfect: Perfect, n_atoms: float, thinnest: float = 3.6) -> Atoms:
    """A block of about ``n_atoms`` atoms, as cubic as the cell allows, nowhere thinner than ``thinnest``."""
    n = _repeats(perfect.unit, n_atoms, np.zeros(3), thinnest)
    return perfect.unit.repeat(n)


def draw(crystals: Sequence[Perfect], rng: np.random.Generator) -> Sample:
    """One training structure: strained bulk, missing atoms, a surface."""
    perfect = crystals[int(rng.integers(len(crystals)))]
    index = int(np.searchsorted(np.cumsum(list(MIX.values())), rng.random(), side="right"))
    kind = list(MIX)[min(index, len(MIX) - 1)]
    block = perfect.unit.repeat(_repeats(perfect.unit, 180, rng.normal(0, 0.12, 3), 3.6))
    pbc = np.ones(3, dtype=bool)
    if kind == "slab":
        axis = rng.integers(3)
        block.positions += rng.random(3) @ perfect.unit.cell[:]  # every termination occurs
        block.wrap()
        pbc[axis] = False
    f = strain(rng)
    sample = Sample(block.positions @ f, block.cell[:] @ f, pbc, perfect.spacing, species_of(block))
    return with_vacancies(sample, rng) if kind == "vacancies" else sample


def _repeats(unit: Atoms, n_atoms: float, jitter: Array, thinnest: float) -> tuple[int, int, int]:
    heights = 1 / np.linalg.norm(np.linalg.inv(unit.cell[:]), axis=0)
    side = n_atoms ** (1 / 3) * np.exp(jitter)
    n = np.maximum(np.round(side / heights), np.ceil(thinnest / heights)).astype(int)
    return int(n[0]), int(n[1]), int(n[2])
