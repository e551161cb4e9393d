"""What a user may start from, read into one shape: files, MDTraj trajectories, ASE atoms, lists of these."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.errors import StructureError

Array = npt.NDArray[np.float64]
NM = 10.0  # Å; MDTraj's unit of length, here and nowhere else

#: Positions without atoms: a topology has to come from elsewhere.
_NO_ATOMS = frozenset(
    [".xtc", ".trr", ".tng", ".dcd", ".nc", ".netcdf", ".ncdf", ".mdcrd", ".crd", ".binpos", ".dtr", ".stk"]
    + [".rst7", ".ncrst", ".inpcrd", ".restrt", ".lammpstrj"]
)
_NO_POSITIONS = frozenset([".psf", ".prmtop", ".parm7", ".prm7", ".top", ".itp", ".tpr"])
_XYZ = frozenset([".xyz", ".extxyz"])
_PDB = frozenset([".pdb", ".ent", ".pdb.gz", ".ent.gz"])
#: A box thinner than this (Å) holds no molecule; files write 0 or 1 for "no box".
_THINNEST = 3.0


@dataclass(frozen=True)
class Source:
    """Frames of the same atoms."""

    where: str
    elements: list[str]
    names: list[str]
    residues: list[str]
    bonds: npt.NDArray[np.int64]
    """(n_bonds, 2), as the topology has them; may be empty."""
    positions: Array
    """(n_frames, n_atoms, 3) Å."""
    cells: list[Array | None]
    """One per frame: (3, 3) Å, rows are lattice vectors, zero where not periodic; None = no box."""


def sources(start: Any) -> Iterator[Source]:
    """Everything that `start` holds, in order.

    Raises
    ------
    StructureError
        A type that cannot be used, or a file that cannot be read, that holds nothing, or that
        needs a topology.
    """
    if isinstance(start, list | tuple):
        if not start:
            raise StructureError("no start structure: the list is empty")
        for each in start:
            yield from sources(each)
    elif isinstance(start, str | os.PathLike):
        yield from _from_file(Path(start))
    else:
        yield _from_object(start, type(start).__name__)


def _from_object(start: Any, where: str) -> Source:
    kind = type(start).__module__.partition(".")[0]
    if kind == "ase" or hasattr(start, "get_atomic_numbers"):
        return _from_ase(start, where)
    if hasattr(start, "topology") and hasattr(start, "xyz"):
        return _from_mdtraj(start, where)
    raise StructureError(
        "a start is a file, an mdtraj.Trajectory, an ase.Atoms or a list of these, "
        f"not {type(start).__name__}"
    )


def _from_ase(atoms: Any, where: str) -> Source:
    n = len(atoms)
    if n == 0:
        raise StructureError(f"{where} has no atoms")
    names = atoms.arrays.get("atomtypes", atoms.arrays.get("name", [""] * n))
    residues = atoms.arrays.get("residuenames", [""] * n)
    cell = np.where(np.asarray(atoms.pbc)[:, None], atoms.cell.array, 0.0)
    return Source(
        where,
        list(atoms.get_chemical_symbols()),
        [str(name).strip() for name in names],
        [str(name).strip() for name in residues],
        np.empty((0, 2), dtype=np.int64),
        np.array(atoms.positions, dtype=float)[None],
        [_usable(cell)],
    )


def _from_mdtraj(trajectory: Any, where: str) -> Source:
    topology = trajectory.topology
    if topology is None:
        raise StructureError(f"{where} has no topology; load it with top='start.pdb'")
    if trajectory.n_frames == 0 or trajectory.n_atoms == 0:
        raise StructureError(f"{where} has no {'frames' if trajectory.n_atoms else 'atoms'}")
    atoms = list(topology.atoms)
    bonds = {(min(b[0].index, b[1].index), max(b[0].index, b[1].index)) for b in topology.bonds}
    vectors = trajectory.unitcell_vectors
    return Source(
        where,
        [_symbol(atom) for atom in atoms],
        [atom.name for atom in atoms],
        [f"{atom.residue.name}{atom.residue.resSeq}" for atom in atoms],
        np.array(sorted(bonds), dtype=np.int64).reshape(-1, 2),
        np.asarray(trajectory.xyz, dtype=float) * NM,
        [None] * trajectory.n_frames
        if vectors is None
        else [_usable(np.asarray(cell, dtype=float) * NM) for cell in vectors],
    )


def _from_file(path: Path) -> Iterator[Source]:
    if not path.exists():
        raise StructureError(f"{path}: no such file")
    if path.is_dir():
        raise StructureError(f"{path} is a folder; name a file in it, for example a PDB")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    suffix = "".join(suffixes[-2:]) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])
    if suffix in _NO_ATOMS:
        raise StructureError(
            f"{path}: {suffix[1:].upper()} holds positions but not which atoms they are; give a PDB or GRO, "
            f"or mdtraj.load({path.name!r}, top='start.pdb') from Python"
        )
    if suffix in _NO_POSITIONS:
        raise StructureError(f"{path} holds a topology but no positions; give a PDB or GRO")
    if path.stat().st_size == 0:
        raise StructureError(f"{path} is empty")
    if suffix in _XYZ:
        from zoo.structures import read_frames

        for k, atoms in enumerate(read_frames(path)):
            yield _from_ase(atoms, f"{path}, frame {k}")
    else:
        yield _from_mdtraj(_loaded(path, suffix), str(path))


def _loaded(path: Path, suffix: str) -> Any:
    import mdtraj
    from mdtraj.formats.registry import FormatRegistry

    loader = mdtraj.load_pdb if suffix in _PDB else FormatRegistry.loaders.get(suffix)
    if loader is None:
        what = f"{suffix[1:].upper()} files" if suffix else "files without a suffix"
        raise StructureError(f"{path}: {what} cannot be read; give a PDB, GRO or HDF5")
    try:
        # MDTraj warns of dummy boxes and odd residues; what matters here is checked here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return loader(str(path))
    except StructureError:
        raise
    except IndexError:  # what MDTraj says of a file in which it finds nothing
        raise StructureError(f"{path} holds no atoms that can be read as {suffix[1:].upper()}") from None
    except Exception as error:  # readers of many formats raise nearly everything on a damaged file
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise StructureError(f"{path} cannot be read as {suffix[1:].upper()}: {reason}") from error


def _symbol(atom: Any) -> str:
    """Element symbol, from the name where the file leaves it open; "X" for what is no atom."""
    symbol = "" if atom.element is None else atom.element.symbol
    if symbol in ("", "VS"):
        # GRO and old PDB files number hydrogens in front: 1HB
        letters = atom.name.lstrip("0123456789'\"*")
        symbol = letters[:1].upper() if letters[:1].upper() in {"H", "C", "N", "O", "S", "P"} else "X"
    return "H" if symbol == "D" else str(symbol)


def _usable(cell: Array) -> Array | None:
    """The cell without directions that are no period, or None where none is left."""
    if not np.isfinite(cell).all():
        return None
    given = cell.any(axis=1)
    if not given.any():
        return None
    heights = 1.0 / np.maximum(np.linalg.norm(np.linalg.pinv(cell[given]), axis=0), 1e-12)
    return None if heights.min() < _THINNEST else cell
