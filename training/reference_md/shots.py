"""Shots: many short pieces of MD that start on and beside the barriers between basins.

    python -m training.reference_md.shots alanine-dipeptide -o build/ala2-shots
    python -m training.reference_md.shots alanine-dipeptide -o build/ala2-shots --series 12 --first 12

Crossings of a high barrier are so rare that ordinary MD holds a handful of them, and a propagator learns
their rate from frames that are hardly there.  A conditional density may be learned from any starting
points, so here they are put where they are missing: a series of shots holds the first torsion in a window
and takes the second once around; at each target the molecule is held for a while and then let go, and
what follows is written as a segment, shot-SSSKK.npz, in the format of README.md.

The restraint depends on the solute alone, so water and velocities at the moment of release are those of
equilibrium given the structure, and the frame of release is a fair starting point.  Shots are for learning
only: they say nothing of populations.

Series S has always the same targets and random numbers.  After a kill the same command makes what is missing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.command_line import command_line
from training.reference_md.segments import Record, write_record
from training.reference_md.simulation import Generator, SegmentError, _positions
from training.reference_md.systems import SYSTEMS, Basin, Start
from zoo.errors import MissingExtraError, ZooError

try:
    import openmm  # type: ignore[import-untyped, unused-ignore]
    from openmm import app, unit
except ImportError as error:
    raise MissingExtraError(f"shots need OpenMM ({error}): pip install 'openmm>=8.2'") from None

#: Series are numbered apart from segments, whose random numbers they must not share.
_STREAM = 1_000_000
HOLD = 2.0  # ps for which a target is held before the release


def targets(generator: Generator, series: int) -> list[Start]:
    """Where the shots of a series are released: torsions in degrees, jittered."""
    system = generator.system
    windows = system.windows
    if not windows:
        raise ZooError(f"{system.name} has no windows for shots: add them in systems.py")
    name, around = windows[series % len(windows)], range(-180, 180, system.window_step)
    rng = np.random.default_rng([system.random_seed(_STREAM + series)])
    turn = -1 if (series // len(windows)) % 2 else 1
    found = []
    for second in list(around)[::turn]:
        angles = np.array([name, second + system.window_step * rng.uniform(-0.5, 0.5)])
        angles[0] += 5.0 * rng.standard_normal()
        wrapped = tuple(round(float(a), 1) for a in (angles + 180) % 360 - 180)
        found.append(Start(Basin(f"window {name:g}", wrapped), wrapped))
    return found


def shoot(
    generator: Generator, series: int, length: float, report: Callable[[str], None] = lambda text: None
) -> int:
    """Make the missing shots of a series, ``length`` ps each; returns how many could not be made.

    A shot whose molecule lost its handedness or a peptide bond, or broke, is left out.
    """
    starts = targets(generator, series)
    paths = [generator.folder / f"shot-{series:03d}{k:02d}.npz" for k in range(len(starts))]
    held: _Held | None = None
    failed = 0
    for k, (path, start) in enumerate(zip(paths, starts, strict=True)):
        if path.exists():
            continue
        begin = time.perf_counter()
        where = f"series {series:03d}, shot {k + 1} of {len(starts)}"
        try:
            held = held or _Held(generator, series, start)
            frames = held.release(start, length)
            generator._check_start(frames[0], series, start)
            if not generator._is_whole(frames):
                raise openmm.OpenMMException("a bond of the solute broke")
        except (SegmentError, openmm.OpenMMException) as error:
            report(f"{where} is left out: {' '.join(str(error).split())}")
            held = None  # whatever went wrong is not carried on to the next one
            failed += 1
            continue
        write_record(path, held.record(start, series, k, frames))
        speed = (HOLD + length) / (time.perf_counter() - begin)
        report(f"{where} from {start.angles}, {speed:.2f} ps/s")
    return failed


class _Held:
    """The solvated molecule with its torsions held, which can be let go and taken back."""

    def __init__(self, generator: Generator, series: int, start: Start) -> None:
        self._generator, self._protocol = generator, generator.protocol
        g, p = generator, generator.protocol
        modeller = app.Modeller(
            g.solvated_topology(g._n_solute, g.system.box_edge), g.build(start) * unit.nanometer
        )
        if p.solvated:
            edge = openmm.Vec3(*(g.system.box_edge,) * 3) * unit.nanometer
            modeller.addSolvent(g._force_field, model="tip3p", boxSize=edge)
        system = g.openmm_system(modeller.topology)
        self._force = g._restraint(start)
        system.addForce(self._force)
        seeds = [g.system.random_seed(_STREAM + series, k) for k in range(3)]
        if p.solvated:
            self._barostat = openmm.MonteCarloBarostat(p.pressure, p.temperature)
            self._barostat.setRandomNumberSeed(seeds[1])
            system.addForce(self._barostat)
        self._integrator = g._integrator(p.equilibration_friction, seeds[0])
        self._context = openmm.Context(system, self._integrator, g._platform, g._properties)
        self._context.setPositions(modeller.positions)
        openmm.LocalEnergyMinimizer.minimize(self._context)
        self._context.setVelocitiesToTemperature(p.temperature, seeds[2])
        for duration, timestep in p.equilibration:
            self._integrator.setStepSize(timestep * unit.femtosecond)
            self._integrator.step(round(duration * 1000 / timestep))
        if p.solvated:  # shots are made at constant volume, as production is
            self._context.setParameter(self._barostat.Pressure(), 0.0)
            self._barostat.setFrequency(0)
            self._context.reinitialize(preserveState=True)
        self._integrator.setStepSize(p.timestep * unit.femtosecond)
        self._n_atoms = system.getNumParticles()

    def release(self, start: Start, length: float) -> Any:
        """Frames (n_frames, n_atoms, 3) in nm from the release on; afterwards it is held again."""
        p, context = self._protocol, self._context
        for k, (atoms, angle) in enumerate(zip(self._generator._torsions, start.angles, strict=True)):
            self._force.setTorsionParameters(k, *atoms, [float(np.radians(angle))])
        self._force.updateParametersInContext(context)
        context.setParameter("k", p.restraint)
        self._integrator.setFriction(p.equilibration_friction / unit.picosecond)
        self._integrator.step(round(1000 * HOLD / p.timestep))
        held = context.getState(positions=True, velocities=True)
        context.setParameter("k", 0.0)
        self._integrator.setFriction(p.friction / unit.picosecond)
        frames = [_positions(held)[: self._generator._n_solute]]
        for _ in range(round(length / p.frame_interval)):
            self._integrator.step(round(1000 * p.frame_interval / p.timestep))
            state = context.getState(positions=True)
            frames.append(_positions(state)[: self._generator._n_solute])
        context.setState(held)
        return np.array(frames)

    def record(self, start: Start, series: int, number: int, frames: Any) -> Record:
        p, g = self._protocol, self._generator
        box = self._context.getState().getPeriodicBoxVectors()[0][0].value_in_unit(unit.nanometer)
        return Record(
            pos_nm=frames.astype(np.float32),
            dt_ps=p.frame_interval,
            seed=start.angles,
            box_nm=float(box),
            n_atoms_total=self._n_atoms,
            provenance={
                "units": {"pos_nm": "nm", "dt_ps": "ps", "box_nm": "nm", "seed": "degree"},
                "protocol": p.as_json(g.system),
                "shot": {"series": series, "number": number, "held_ps": HOLD},
                "torsions": list(g.system.torsions),
                "runs": [g._this_run(0)],
            },
        )


@command_line("stopped; the same command makes what is missing")
def main(arguments: Sequence[str] | None = None) -> int:
    """Make series of shots; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reference_md.shots",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("system", choices=sorted(SYSTEMS), help="the molecule: %(choices)s", metavar="SYSTEM")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="made if missing")
    parser.add_argument("--series", type=int, default=12, metavar="N", help="how many series (%(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="S", help="number of the first one (0)")
    parser.add_argument("--length", type=float, default=11.0, metavar="PS", help="of each shot (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU platform (%(default)s)")
    parser.add_argument("--platform", choices=("auto", "CPU", "CUDA"), default="auto", help="(%(default)s)")
    args = parser.parse_args(arguments)
    if args.series < 1 or args.first < 0 or not 0.2 <= args.length < 1e6:
        parser.error("--series must be at least 1, --first at least 0, --length at least 0.2")
    failed = 0
    generator = Generator(SYSTEMS[args.system], args.output, args.platform, args.threads)
    for series in range(args.first, args.first + args.series):
        failed += shoot(generator, series, args.length, lambda text: print(text, flush=True))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
