"""MD of a user's molecule, for those who have none: OpenMM in water, or any ASE calculator in vacuum.

    python -m training.own_simulation molecule.pdb -o build/my-md --length 500
    python -m training.own_simulation molecule.pdb -o build/my-md --calculator mace --model M.model
    python -m training.own_simulation molecule.pdb -o build/my-md --calculator tblite.ase:TBLite

OpenMM takes the first of amber14 and the OPLS-AA alkanes of this repository that has parameters for the
molecule, or the files named with ``--force-field``; the protocol is that of `training.reference_md`.  It is
saved every 20 ps of OpenMM, every 2 ps of a calculator; the same command continues, a longer one goes on.

A MACE model file is a pickle: opening one runs whatever is in it, so take it from people you trust.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from training.command_line import command_line
from training.reference_md.segments import (
    FRAME_INTERVAL,
    NM,
    TOPOLOGY,
    Record,
    read_record,
    segment_path,
    write_record,
)
from zoo.checkpoint import write_text
from zoo.errors import MissingExtraError, StructureError, ZooError
from zoo.mace_import import import_mace
from zoo.molecules.start import load_molecule, load_start

TEMPERATURE = 300.0  # K, unless another one is asked of a calculator
#: Fewer pairs of frames than this teach nothing.
FEWEST_PAIRS = 500
#: What the MD in a folder was made with.
SETTINGS = "md.json"
TIMESTEP = 0.5  # fs, of calculators: bonds to hydrogen are not held
FRICTION = 0.01  # 1/fs, of calculators, which have no water to do it
_SAVE_EVERY, _EQUILIBRATION = 2.0, 1.0  # ps
_VACUUM = 1000.0  # nm: a box that nothing is across
#: Tried in this order: files of OpenMM or of `training.reference_md`, and whether they mix geometrically.
FORCE_FIELDS = (
    (("amber14-all.xml", "amber14/tip3p.xml"), False),
    (("alkanes/opls-aa.xml",), True),
)
Tell = Callable[[str], object]


def check_length(length: float, lag_time: float) -> None:
    """That MD of ``length`` (ps) will be enough to learn steps of ``lag_time`` (ps) from.

    Raises
    ------
    ZooError : too few pairs of frames, or frames that do not make the lag.
    """
    lag = round(lag_time / FRAME_INTERVAL)
    if lag < 1 or abs(lag * FRAME_INTERVAL - lag_time) > 1e-6:
        raise ZooError(f"MD has frames every {FRAME_INTERVAL} ps, which do not make a lag of {lag_time:g} ps")
    needed = (FEWEST_PAIRS + lag - 1) * FRAME_INTERVAL
    if length < needed:
        raise ZooError(
            f"--md-ps {length:g}: {FEWEST_PAIRS} pairs of frames {lag_time:g} ps apart are needed, which "
            f"takes {needed:g} ps at least"
        )


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """That MD which is in the folder already was made in the same way; notes how it is made."""
    path = folder / SETTINGS
    if path.exists() and segment_path(folder, 0).exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(key for key in settings if before.get(key) != settings[key])
        if changed:
            raise ZooError(
                f"{folder} has MD that was made with another {', '.join(changed)}: delete it, or choose "
                "another output"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(settings, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise ZooError(f"cannot write to {folder}: {error.strerror or error}") from None


def solute(start: Path, folder: Path) -> Path:
    """The one molecule that a file holds, alone, as ``topology.pdb`` in a folder.

    Raises
    ------
    StructureError : it does not hold one molecule with all its bonds.
    ZooError : the folder cannot be written, or has MD of another molecule.
    """
    import mdtraj

    molecule = load_molecule(str(start))
    x = load_start(str(start), molecule)[:1]
    path = folder / TOPOLOGY
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".new.{TOPOLOGY}"
        mdtraj.Trajectory(x / NM, molecule.topology()).save_pdb(str(temporary))
        lines = temporary.read_text().splitlines(keepends=True)
        temporary.write_text("".join(line for line in lines if not line.startswith("REMARK")))  # the date
        if not path.exists():
            temporary.replace(path)
        elif path.read_bytes() != temporary.read_bytes():
            raise ZooError(f"{folder} has MD of another start: choose another output folder")
        temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ZooError(f"cannot write to {folder}: {error.strerror or error}") from None
    return path


def with_openmm(
    start: Path,
    folder: Path,
    length: float,
    force_field: Sequence[str] = (),
    threads: int = 1,
    tell: Tell = print,
) -> Path:
    """MD in a box of water; returns its segment.

    Raises
    ------
    MissingExtraError : OpenMM is not installed.
    StructureError : no force field has parameters for the molecule.
    ZooError : the MD blew up, or cannot be written.
    """
    try:
        from openmm import app

        from training.reference_md.simulation import Generator, Progress, SegmentError
    except ImportError:
        raise MissingExtraError('MD needs OpenMM: pip install "score-zoo[md]", or --calculator') from None
    from training.reference_md.systems import Basin, MolecularSystem

    path = solute(start, folder)
    pdb = app.PDBFile(str(path))
    choices = [(tuple(force_field), False)] if force_field else list(FORCE_FIELDS)
    fitting = [choice for choice in choices if not _field(choice[0]).getUnmatchedResidues(pdb.topology)]
    if not fitting:
        tried = " or ".join(", ".join(files) for files, _ in choices)
        raise StructureError(
            f"{start}: {tried} has no parameters for this molecule: give OpenMM's XML of its force field "
            "with --force-field, or take --calculator"
        )
    files, mixed = fitting[0]
    extent = float(np.ptp(np.array(pdb.positions.value_in_unit(pdb.positions.unit)), axis=0).max())
    system = MolecularSystem(
        name=f"own-{path.parent.name}",
        pdb=str(path.resolve()),
        force_field=_found(files),
        torsions={},
        basins=(Basin("as given", ()),),
        box_edge=max(2.1, round(extent + 1.2, 1)),  # no image within 1.2 nm when it is stretched
        geometric_mixing=mixed,
    )

    def report(p: Progress) -> None:
        done = (p.n_frames - 1) * FRAME_INTERVAL
        tell(f"MD with OpenMM: {done:.0f} of {length:g} ps, {p.speed:.2f} ps/s, {p.temperature:.0f} K")

    tell(f"MD with OpenMM, {', '.join(files)}, in {folder}")
    try:
        Generator(system, folder, "auto", threads).run(0, length, report)
    except SegmentError as error:
        raise ZooError(str(error)) from None
    return segment_path(folder, 0)


def _found(files: Sequence[str]) -> tuple[str, ...]:
    """Files of `training.reference_md` with their folder; others are OpenMM's, or the user's."""
    here = Path(__file__).parent / "reference_md"
    return tuple(str(here / f) if (here / f).exists() else f for f in files)


def _field(files: Sequence[str]) -> Any:
    from openmm import app

    try:
        return app.ForceField(*_found(files))
    except Exception as error:  # a missing file, broken XML: OpenMM raises what it likes
        raise StructureError(f"{', '.join(files)}: {' '.join(str(error).split())}") from None


def calculator(spec: str, model: Path | None) -> Any:
    """An ASE calculator from ``mace`` with a model file, or from ``package.module:Class``.

    Raises
    ------
    ZooError : there is none of this name, or it cannot be made.
    """
    if model is not None and not model.is_file():
        raise ZooError(f"{model}: there is no such file")
    if spec == "mace":
        if model is None:
            raise ZooError("--calculator mace needs the file of a model: --model FILE")
        calculators = import_mace("mace.calculators")
        try:
            # A pickle, and the only file of this project that is opened as one: the user was told.
            network = torch.load(model, map_location="cpu", weights_only=False)
            return calculators.MACECalculator(models=network.double(), device="cpu", default_dtype="float64")
        except Exception as error:
            raise ZooError(
                f"{model} cannot be opened as a MACE model: {' '.join(str(error).split())}"
            ) from None
    module, _, name = spec.partition(":")
    try:
        if not name:
            raise ValueError("it names no class")
        made = getattr(importlib.import_module(module), name)
        return made() if model is None else made(str(model))
    except (ImportError, AttributeError, ValueError) as error:
        raise ZooError(
            f"--calculator {spec}: {error}; give mace, or package.module:Class such as tblite.ase:TBLite"
        ) from None


def with_ase(
    start: Path, folder: Path, length: float, calc: Any, tell: Tell = print, temperature: float = TEMPERATURE
) -> Path:
    """Langevin MD in vacuum, 0.5 fs; returns its segment.

    Raises
    ------
    StructureError : the calculator cannot do this molecule.
    ZooError : the MD blew up, or cannot be written.
    """
    from ase import Atoms, units
    from ase.md.langevin import Langevin
    from ase.optimize import LBFGS

    def dynamics(n: int) -> Langevin:
        return Langevin(
            atoms, TIMESTEP * units.fs, temperature_K=temperature, friction=FRICTION / units.fs, fixcm=False,
            rng=np.random.default_rng([1, n]),
        )  # fmt: skip

    @contextmanager
    def explained() -> Iterator[None]:
        try:
            yield
        except Exception as error:  # calculators raise what they like
            reason = " ".join(str(error).split()) or type(error).__name__
            raise StructureError(
                f"{type(calc).__name__} cannot do {molecule.formula}: {reason[:200]}"
            ) from None
        if not np.isfinite(atoms.positions).all():
            raise ZooError("the MD blew up: the calculator does not know this molecule")

    solute(start, folder)
    molecule = load_molecule(str(start))
    path, wanted = segment_path(folder, 0), round(length / FRAME_INTERVAL) + 1
    if path.exists():
        record = read_record(path)
        state = json.loads(record.state_xml)
        atoms = Atoms(molecule.elements, np.array(state["positions"]))
        atoms.set_velocities(np.array(state["velocities"]))
    else:
        atoms = Atoms(molecule.elements, load_start(str(start), molecule)[0])
        atoms.calc = calc
        noise = np.random.default_rng(0).standard_normal((len(atoms), 3))
        with explained():
            LBFGS(atoms, logfile=None).run(fmax=0.05, steps=200)
            atoms.set_momenta(np.sqrt(atoms.get_masses() * units.kB * temperature)[:, None] * noise)
            dynamics(0).run(round(_EQUILIBRATION * 1000 / TIMESTEP))
        record = Record(
            pos_nm=(atoms.positions[None] / NM).astype(np.float32),
            dt_ps=FRAME_INTERVAL,
            seed=(),
            box_nm=_VACUUM,
            n_atoms_total=len(atoms),
            provenance={
                "calculator": type(calc).__name__,
                "temperature_k": temperature,
                "timestep_fs": TIMESTEP,
            },
        )
    atoms.calc = calc
    steps, per_save = round(FRAME_INTERVAL * 1000 / TIMESTEP), round(_SAVE_EVERY / FRAME_INTERVAL)
    frames: list[npt.NDArray[np.float32]] = []
    while len(record.pos_nm) + len(frames) < wanted:
        n = len(record.pos_nm) + len(frames)
        with explained():
            dynamics(n).run(steps)
        frames.append((atoms.positions / NM).astype(np.float32))
        if len(frames) == per_save or n + 1 == wanted:
            record.pos_nm = np.concatenate([record.pos_nm, np.stack(frames)])
            frames = []
            record.state_xml = json.dumps(
                {"positions": atoms.positions.tolist(), "velocities": atoms.get_velocities().tolist()}
            )
            write_record(path, record)
            done, kelvin = (len(record.pos_nm) - 1) * FRAME_INTERVAL, atoms.get_temperature()
            tell(f"MD with {type(calc).__name__}: {done:.0f} of {length:g} ps, {kelvin:.0f} K")
    return path


@command_line("stopped; the same command continues where it was saved last")
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.own_simulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("start", type=Path, help="the molecule, all atoms, one conformation")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--length", type=float, default=500.0, help="ps (default %(default)s)")
    parser.add_argument("--force-field", nargs="+", default=[], help="XML files of OpenMM, water included")
    parser.add_argument("--calculator", help="mace, or package.module:Class of an ASE calculator")
    parser.add_argument("--model", type=Path, help="file that the calculator is made of")
    parser.add_argument("--threads", type=int, default=1, help="of OpenMM (default %(default)s)")
    args = parser.parse_args(argv)
    simulate(
        args.start, args.output, args.length, args.force_field, args.calculator, args.model, args.threads
    )
    return 0


def simulate(
    start: Path,
    folder: Path,
    length: float,
    force_field: Sequence[str],
    calculator_spec: str | None,
    model: Path | None,
    threads: int = 1,
    temperature: float = TEMPERATURE,
) -> Path:
    """`with_openmm` or `with_ase`, as asked; returns the segment.

    Raises
    ------
    ZooError : the folder has MD that was made in another way; another temperature than 300 K of OpenMM; and
        what the two raise.
    """
    if not FRAME_INTERVAL <= length < 1e9:
        raise ZooError(f"{length:g} ps of MD: at least {FRAME_INTERVAL} ps are needed")

    def tell(text: str) -> None:
        print(text, flush=True)

    if calculator_spec is None:
        if model is not None:
            raise ZooError("--model is of a --calculator, which is not given")
        if temperature != TEMPERATURE:
            raise ZooError(
                f"MD with OpenMM is at {TEMPERATURE:g} K here, not {temperature:g}: make it yourself, or "
                "take --calculator"
            )
        _check_settings(folder, {"calculator": "openmm", "force field": list(force_field)})
        return with_openmm(start, folder, length, force_field, threads, tell)
    digest = None if model is None or not model.is_file() else hashlib.sha256(model.read_bytes()).hexdigest()
    settings = {"calculator": calculator_spec, "model": digest, "temperature": temperature}
    precision = torch.get_default_dtype()  # MACE makes its own that of the process
    try:
        calc = calculator(calculator_spec, model)
        _check_settings(folder, settings)
        return with_ase(start, folder, length, calc, tell, temperature)
    finally:
        torch.set_default_dtype(precision)


if __name__ == "__main__":
    sys.exit(main())
