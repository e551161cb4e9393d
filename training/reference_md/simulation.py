"""The MD itself, with OpenMM: build, equilibrate, run, and continue after a kill.

Production goes in pieces of ``save_every`` ps.  Every piece, not only the one after a kill, starts
from the saved state in a freshly initialised context with a random seed that follows from the number
of frames so far.  So noise is never used twice, no frame is lost or repeated, and a resumed segment is
as valid a trajectory as an uninterrupted one.  It is not the same one: the CPU and CUDA platforms round
differently from run to run (on the Reference platform it is the same, bit for bit).
"""

from __future__ import annotations

import os
import platform as python_platform
import shutil
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import zoo
from training.reference_md.mixing import mix_geometrically
from training.reference_md.segments import (
    FRAME_INTERVAL,
    GAS_CONSTANT,
    TOPOLOGY,
    Record,
    read_record,
    segment_path,
    write_record,
)
from training.reference_md.systems import MolecularSystem, Start, atom_indices
from training.reference_md.torsions import handedness, set_torsion, torsion
from zoo.errors import MissingExtraError, ZooError

try:
    import openmm  # type: ignore[import-untyped, unused-ignore]
    from openmm import app, unit
except ImportError as error:
    raise MissingExtraError(f"reference MD needs OpenMM ({error}): pip install 'openmm>=8.2'") from None

Array = npt.NDArray[np.float64]


class SegmentError(ZooError):
    """One segment cannot be made or continued; the others can."""


@dataclass(frozen=True)
class Protocol:
    """How a segment is made; stored with it, and must not change when it is continued.

    Times in ps, timesteps in fs, lengths in nm, temperature in K, pressure in bar, friction in 1/ps,
    restraint in kJ/mol/rad^2, mass in amu.
    """

    solvated: bool = True
    cutoff: float = 0.8
    hydrogen_mass: float = 3.0
    temperature: float = 300.0
    pressure: float = 1.0
    restraint: float = 500.0
    # Ten times that of production, so that the heat which minimisation took out is back after 30 ps.
    equilibration_friction: float = 1.0
    equilibration: tuple[tuple[float, float], ...] = ((10.0, 2.0), (20.0, 4.0))  # (time, timestep)
    friction: float = 0.1
    timestep: float = 4.0
    frame_interval: float = FRAME_INTERVAL

    def as_json(self, system: MolecularSystem) -> dict[str, Any]:
        """What a segment's file says about how it was made."""
        return {
            "system": system.name,
            "force_field": list(system.force_field),
            **({"mixing": "geometric"} if system.geometric_mixing else {}),
            "electrostatics": f"PME, {self.cutoff} nm cutoff" if self.solvated else "no cutoff",
            "constraints": "bonds with hydrogen, rigid water",
            "hydrogen_mass_amu": self.hydrogen_mass,
            "equilibration": {
                "ensemble": f"NPT, {self.pressure} bar" if self.solvated else "NVT",
                "time_ps_and_timestep_fs": [list(stage) for stage in self.equilibration],
                "friction_per_ps": self.equilibration_friction,
                "torsion_restraint_kj_mol_rad2": self.restraint,
            },
            "production": {
                "ensemble": "NVT",
                "integrator": "LangevinMiddle",
                "temperature_k": self.temperature,
                "friction_per_ps": self.friction,
                "timestep_fs": self.timestep,
                "frame_interval_ps": self.frame_interval,
            },
        }


@dataclass(frozen=True)
class Progress:
    """What is told after each saved piece; ``speed`` in ps per second, ``temperature`` its mean in K."""

    segment: int
    basin: str
    n_frames: int
    n_wanted: int
    speed: float
    temperature: float


@dataclass
class Generator:
    """Makes the segments of one system into one folder.

    Args:
        system: what is simulated.
        folder: where the segments go; made if missing.
        platform: "CPU", "CUDA", "Reference", or "auto" for CUDA where it works and else CPU.
        threads: of the CPU platform.
        save_every: ps between two saves.
        protocol: leave it alone unless for tests.

    Raises:
        zoo.ZooError: the platform does not work, or the folder cannot be written to.
    """

    system: MolecularSystem
    folder: Path
    platform: str = "auto"
    threads: int = 1
    save_every: float = 20.0
    protocol: Protocol = field(default_factory=Protocol)

    def __post_init__(self) -> None:
        pdb = app.PDBFile(str(self.system.pdb_path))
        self._solute = pdb.topology
        self._solute_positions: Array = np.array(pdb.positions.value_in_unit(unit.nanometer))
        self._n_solute: int = pdb.topology.getNumAtoms()
        self._bonds = [(a.index, b.index) for a, b in pdb.topology.bonds()]
        self._names = [f"{a.residue.name}:{a.name}" for a in pdb.topology.atoms()]
        self._torsions = [atom_indices(t, self._names) for t in self.system.torsions.values()]
        files = [Path(__file__).parent / name for name in self.system.force_field]
        self._force_field = app.ForceField(
            *(str(f) if f.exists() else name for f, name in zip(files, self.system.force_field, strict=True))
        )
        self._platform, self._properties = _platform(self.platform, self.threads)
        self._frames_per_save = max(round(self.save_every / self.protocol.frame_interval), 1)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / TOPOLOGY).exists():
                temporary = self.folder / f".{TOPOLOGY}.{os.getpid()}.tmp"
                shutil.copyfile(self.system.pdb_path, temporary)
                os.replace(temporary, self.folder / TOPOLOGY)
        except OSError as error:
            raise ZooError(f"cannot write to {self.folder}: {error.strerror or error}") from None
        if (self.folder / TOPOLOGY).read_bytes() != self.system.pdb_path.read_bytes():
            raise ZooError(f"{self.folder} has segments of another molecule: choose another output folder")

    def run(self, segment: int, length: float, report: Callable[[Progress], None] | None = None) -> bool:
        """Make or continue one segment until it is ``length`` ps long.

        Returns:
            False if there was nothing left to do.

        Raises:
            SegmentError: the segment's file is of another protocol or was tampered with, or the MD
                became unstable; frames saved so far stay as they are.
            zoo.StructureError: the segment's file is damaged.
            zoo.ZooError: the file cannot be written.
        """
        try:
            return self._run(segment, length, report)
        except openmm.OpenMMException as error:  # mostly coordinates that are NaN
            raise SegmentError(
                f"segment {segment} failed ({' '.join(str(error).split())}); what was saved before is sound:"
                f" leave it out, or delete {segment_path(self.folder, segment)} to start it again"
            ) from None

    def _run(self, segment: int, length: float, report: Callable[[Progress], None] | None) -> bool:
        path = segment_path(self.folder, segment)
        n_wanted = round(length / self.protocol.frame_interval) + 1  # the start is frame 0
        record = read_record(path) if path.exists() else None
        if record:
            self._check_same(record, segment, path)
            if len(record.pos_nm) >= n_wanted:
                return False
            record.provenance.setdefault("runs", []).append(self._this_run(len(record.pos_nm)))
        else:
            record = self._prepare(segment)
            write_record(path, record)
        production = _Production(self, record.n_atoms_total)
        while len(record.pos_nm) < n_wanted:
            begin = time.perf_counter()
            n = min(self._frames_per_save, n_wanted - len(record.pos_nm))
            seed = self.system.random_seed(segment, 1, len(record.pos_nm))
            frames, record.state_xml, temperature = production.run(record.state_xml, n, seed)
            if not self._is_whole(frames):
                raise openmm.OpenMMException("a bond of the solute broke")
            record.pos_nm = np.concatenate([record.pos_nm, frames.astype(np.float32)])
            write_record(path, record)
            if report:
                speed = n * self.protocol.frame_interval / (time.perf_counter() - begin)
                basin = self.system.basin(segment).name
                report(Progress(segment, basin, len(record.pos_nm), n_wanted, speed, temperature))
        return True

    def build(self, start: Start) -> Array:
        """The solute (n_atoms, 3) in nm with its torsions at the angles of ``start``."""
        x = self._solute_positions
        for atoms, angle in zip(self._torsions, start.angles, strict=True):
            x = set_torsion(x, self._bonds, atoms, angle)
        return x

    def angles(self, positions: npt.NDArray[np.floating]) -> tuple[float, ...]:
        """The system's torsions in degrees of one frame (n_atoms, 3), any unit."""
        return tuple(torsion(positions, atoms) for atoms in self._torsions)

    def _prepare(self, segment: int) -> Record:
        """Build, minimise and equilibrate; the record has the start as its only frame."""
        p, start = self.protocol, self.system.start(segment)
        modeller = app.Modeller(deepcopy(self._solute), self.build(start) * unit.nanometer)
        if p.solvated:
            edge = openmm.Vec3(*(self.system.box_edge,) * 3) * unit.nanometer
            modeller.addSolvent(self._force_field, model="tip3p", boxSize=edge)
        system = self.openmm_system(modeller.topology)
        system.addForce(self._restraint(start))
        if p.solvated:
            barostat = openmm.MonteCarloBarostat(p.pressure, p.temperature)
            barostat.setRandomNumberSeed(self.system.random_seed(segment, 0, 1))
            system.addForce(barostat)
        integrator = self._integrator(p.equilibration_friction, self.system.random_seed(segment, 0, 0))
        context = openmm.Context(system, integrator, self._platform, self._properties)
        context.setPositions(modeller.positions)
        openmm.LocalEnergyMinimizer.minimize(context)
        context.setVelocitiesToTemperature(p.temperature, self.system.random_seed(segment, 0, 2))
        for duration, timestep in p.equilibration:
            integrator.setStepSize(timestep * unit.femtosecond)
            integrator.step(round(duration * 1000 / timestep))
        context.setTime(0)
        context.setStepCount(0)
        state = context.getState(positions=True, velocities=True)
        first = _positions(state)[: self._n_solute]
        self._check_start(first, segment, start)
        return Record(
            pos_nm=first[None].astype(np.float32),
            dt_ps=p.frame_interval,
            seed=start.angles,
            box_nm=float(state.getPeriodicBoxVectors()[0][0].value_in_unit(unit.nanometer)),
            n_atoms_total=system.getNumParticles(),
            provenance={
                "units": {"pos_nm": "nm", "dt_ps": "ps", "box_nm": "nm", "seed": "degree"},
                "protocol": p.as_json(self.system),
                "segment": segment,
                "basin": {"name": start.basin.name, "angles": list(start.basin.angles)},
                "torsions": list(self.system.torsions),
                "random_seed": self.system.random_seed(segment, 0, 0),
                "runs": [self._this_run(0)],
            },
            state_xml=openmm.XmlSerializer.serialize(state),
        )

    def openmm_system(self, topology: Any) -> Any:
        """An ``openmm.System`` of the force field for production; no barostat, no restraint."""
        p = self.protocol
        system = self._force_field.createSystem(
            topology,
            nonbondedMethod=app.PME if p.solvated else app.NoCutoff,
            nonbondedCutoff=p.cutoff * unit.nanometer,
            constraints=app.HBonds,
            rigidWater=True,
            hydrogenMass=p.hydrogen_mass * unit.amu,
        )
        if self.system.geometric_mixing:
            mix_geometrically(system, self._n_solute)
        return system

    def solvated_topology(self, n_atoms: int, box: float) -> Any:
        """The solute followed by water up to ``n_atoms``, as `openmm.app.Modeller` orders it."""
        topology = deepcopy(self._solute)
        chain = topology.addChain()
        for _ in range((n_atoms - self._n_solute) // 3):
            water = topology.addResidue("HOH", chain)
            oxygen = topology.addAtom("O", app.element.oxygen, water)
            for name in ("H1", "H2"):
                topology.addBond(oxygen, topology.addAtom(name, app.element.hydrogen, water))
        if self.protocol.solvated:
            topology.setUnitCellDimensions(openmm.Vec3(box, box, box) * unit.nanometer)
        return topology

    def _restraint(self, start: Start) -> Any:
        force = openmm.CustomTorsionForce("0.5*k*d^2; d=atan2(sin(theta-target), cos(theta-target))")
        force.addGlobalParameter("k", self.protocol.restraint)
        force.addPerTorsionParameter("target")
        for atoms, angle in zip(self._torsions, start.angles, strict=True):
            force.addTorsion(*atoms, [float(np.radians(angle))])
        return force

    def _integrator(self, friction: float, seed: int) -> Any:
        integrator = openmm.LangevinMiddleIntegrator(
            self.protocol.temperature * unit.kelvin,
            friction / unit.picosecond,
            self.protocol.timestep * unit.femtosecond,
        )
        integrator.setRandomNumberSeed(seed)
        return integrator

    def _is_whole(self, frames: Array) -> bool:
        """Whether all bonds of all frames (n_frames, n_atoms, 3) are within 30 % of their first length.

        A molecule that blew up can still have finite positions.
        """
        i, j = np.array(self._bonds).T
        first = np.linalg.norm(self._solute_positions[i] - self._solute_positions[j], axis=-1)
        ratio = np.linalg.norm(frames[:, i] - frames[:, j], axis=-1) / first
        return bool((np.abs(ratio - 1) < 0.3).all())  # false for NaN

    def _check_start(self, positions: Array, segment: int, start: Start) -> None:
        """A strained start may relax by turning a stereocentre or a peptide bond over: say so."""
        where = f"segment {segment} ({start.basin.name})"
        if not self._is_whole(positions[None]):
            raise SegmentError(f"{where} became unstable while it was equilibrated: leave it out")
        for names in self.system.stereocentres:
            atoms = atom_indices(names, self._names)
            if handedness(positions, atoms) != handedness(self._solute_positions, atoms):
                raise SegmentError(
                    f"{where} lost the handedness of {names[0]} on equilibration: leave it out"
                )
        for names in self.system.trans:
            if abs(torsion(positions, atom_indices(names, self._names))) < 90:
                raise SegmentError(f"{where} has a cis bond {names[1]}-{names[2]}: leave it out")

    def _check_same(self, record: Record, segment: int, path: Path) -> None:
        """Raise unless ``record`` is one that this generator made and can continue."""
        if record.provenance.get("protocol") != self.protocol.as_json(self.system):
            raise SegmentError(f"{path} was made with another protocol: choose another output folder")
        if record.provenance.get("segment") != segment:
            raise SegmentError(f"{path} is another segment under this name: move it away")
        try:
            x = _positions(openmm.XmlSerializer.deserialize(record.state_xml))
        except Exception as error:  # whatever OpenMM makes of a damaged text
            reason = " ".join(str(error).split())
            raise SegmentError(f"{path} has a damaged state ({reason}): delete it to start again") from None
        last = x[: record.pos_nm.shape[1]].astype(np.float32)
        if len(x) != record.n_atoms_total or not np.array_equal(last, record.pos_nm[-1]):
            raise SegmentError(f"{path} has a state that is not its last frame: delete it to start again")

    def _this_run(self, first_frame: int) -> dict[str, Any]:
        """Where and with what the frames from ``first_frame`` on are made."""
        return {
            "first_frame": first_frame,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "openmm": openmm.version.version,
            "score_zoo": zoo.__version__,
            "platform": self._platform.getName(),
            "platform_properties": self._properties,
            "hardware": _hardware(self._platform.getName()),
            "save_every_ps": self.save_every,
        }


class _Production:
    """The unrestrained system in a context that can be started again from a state."""

    def __init__(self, generator: Generator, n_atoms: int) -> None:
        g = generator
        self._n_solute, self._protocol = g._n_solute, g.protocol
        system = g.openmm_system(g.solvated_topology(n_atoms, g.system.box_edge))
        self._integrator = g._integrator(g.protocol.friction, 1)
        self._context = openmm.Context(system, self._integrator, g._platform, g._properties)
        masses = [system.getParticleMass(i).value_in_unit(unit.amu) for i in range(n_atoms)]
        # Three fewer: the motion of the centre of mass is removed.
        self._n_freedom = 3 * sum(m > 0 for m in masses) - system.getNumConstraints() - 3

    def run(self, state_xml: str, n_frames: int, seed: int) -> tuple[Array, str, float]:
        """``n_frames`` more frames (n_frames, n_solute, 3) in nm, the new state, the mean temperature."""
        self._integrator.setRandomNumberSeed(seed)  # takes effect when the context is initialised
        self._context.reinitialize()
        self._context.setState(openmm.XmlSerializer.deserialize(state_xml))
        n_steps = round(1000 * self._protocol.frame_interval / self._protocol.timestep)
        frames, kinetic = [], []
        for i in range(n_frames):
            self._integrator.step(n_steps)
            # Unwrapped, so that the molecule stays whole; energy only now and then, it is not free.
            state = self._context.getState(positions=True, energy=i % 10 == 0)
            frames.append(_positions(state)[: self._n_solute])
            if i % 10 == 0:
                kinetic.append(state.getKineticEnergy().value_in_unit(unit.kilojoule_per_mole))
        temperature = 2 * float(np.mean(kinetic)) / (self._n_freedom * GAS_CONSTANT)
        last = self._context.getState(positions=True, velocities=True)
        return np.array(frames), openmm.XmlSerializer.serialize(last), temperature


def _positions(state: Any) -> Array:
    x: Array = np.array(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    return x


def _platform(name: str, threads: int) -> tuple[Any, dict[str, str]]:
    """The OpenMM platform called ``name`` and its properties."""
    if name == "auto":
        try:
            return _platform("CUDA", threads)
        except ZooError:
            return _platform("CPU", threads)
    try:
        platform = openmm.Platform.getPlatformByName(name)
    except openmm.OpenMMException:
        raise ZooError(f"OpenMM has no platform {name} here: use --platform CPU") from None
    if name == "CUDA":
        _try_platform(platform)
        return platform, {"Precision": "mixed"}
    return platform, {"Threads": str(threads)} if name == "CPU" else {}


def _try_platform(platform: Any) -> None:
    """Raise if the platform is installed but has nothing to run on."""
    system = openmm.System()
    system.addParticle(1.0)
    try:
        openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    except openmm.OpenMMException as error:
        reason = " ".join(str(error).split())
        raise ZooError(f"the platform {platform.getName()} does not work here: {reason}") from None


def _hardware(platform_name: str) -> str:
    """The processor's name as far as the operating system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = python_platform.processor() or python_platform.machine()
    return model + (", CUDA device 0" if platform_name == "CUDA" else "")
