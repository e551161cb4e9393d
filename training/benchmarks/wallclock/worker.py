"""One process of the stopwatch: MD or a rollout, for some seconds, once it is told to start.

    python -m training.benchmarks.wallclock.worker md --box 2.1 --threads 1 --seconds 20
    python -m training.benchmarks.wallclock.worker rollout NAME --walkers 64 --threads 2 --seconds 20

Builds and warms up, writes ``ready``, waits for a line on its input, works, and writes one line of JSON.
So several of them can work at the same time and for the same time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

WARM_UP_PS = 4.0
CHUNK_PS = 1.0


def md(box: float, threads: int, platform: str) -> tuple[Callable[[float], float], dict[str, Any]]:
    """Alanine dipeptide in a cube of water (edge in nm) as the reference MD is made; work(seconds) -> ps."""
    import openmm
    from openmm import app, unit

    from training.reference_md.simulation import Generator
    from training.reference_md.systems import SYSTEMS

    molecule = replace(SYSTEMS["alanine-dipeptide"], box_edge=box)
    with tempfile.TemporaryDirectory() as folder:
        generator = Generator(molecule, Path(folder), platform=platform, threads=threads)
    protocol = generator.protocol
    modeller = app.Modeller(
        generator.solvated_topology(generator._n_solute, box),
        generator.build(molecule.start(0)) * unit.nanometer,
    )
    edge = openmm.Vec3(box, box, box) * unit.nanometer
    modeller.addSolvent(generator._force_field, model="tip3p", boxSize=edge)
    system = generator.openmm_system(modeller.topology)
    integrator = generator._integrator(protocol.friction, 1)
    context = openmm.Context(system, integrator, generator._platform, generator._properties)
    context.setPositions(modeller.positions)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=200)
    context.setVelocitiesToTemperature(protocol.temperature, 1)

    def chunk() -> None:
        integrator.step(round(1000 * CHUNK_PS / protocol.timestep))
        context.getState(positions=True)

    for _ in range(round(WARM_UP_PS / CHUNK_PS)):
        chunk()

    def work(seconds: float) -> float:
        began, done = time.perf_counter(), 0.0
        while time.perf_counter() - began < seconds:
            chunk()
            done += CHUNK_PS
        return done

    return work, {"n_atoms": system.getNumParticles(), "platform": generator._platform.getName()}


def rollout(name: str, walkers: int, threads: int) -> tuple[Callable[[float], float], dict[str, Any]]:
    """Checks and redraws included, as `zoo rollout` does it but for writing; work(seconds) -> ps."""
    import numpy as np
    import torch

    import zoo
    from zoo.molecules.start import load_start
    from zoo.rollout import roll_out
    from zoo.score_dynamics import ScoreDynamics

    torch.set_num_threads(1)
    model = ScoreDynamics.from_pretrained(name)
    start = load_start(Path(zoo.__file__).parent / "data" / "alanine-dipeptide.pdb", model.molecule)
    positions = np.repeat(start, walkers, 0)

    def steps(n: int) -> float:
        report = roll_out(model, positions, n, walkers, 0, keep=False, threads=threads).report
        return report.simulated_ps

    steps(5)
    began = time.perf_counter()
    steps(20)
    speed = 20 / (time.perf_counter() - began)

    def work(seconds: float) -> float:
        return steps(max(round(speed * seconds), 1))

    n_parameters = sum(p.numel() for p in model.denoiser.parameters())
    return work, {"lag_time": model.lag_time, "n_parameters": n_parameters}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    of_md = kinds.add_parser("md")
    of_md.add_argument("--box", type=float, default=2.1, help="nm")
    of_md.add_argument("--platform", default="CPU")
    of_rollout = kinds.add_parser("rollout")
    of_rollout.add_argument("checkpoint")
    of_rollout.add_argument("--walkers", type=int, default=1)
    for each in (of_md, of_rollout):
        each.add_argument("--core", type=int, help="stay on this one")
        each.add_argument("--threads", type=int, default=1)
        each.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args(argv)
    if args.core is not None and hasattr(os, "sched_setaffinity"):
        # Where OpenMM's threads wake each other across idle cores, one of them runs at half its speed.
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[args.core % len(cores)]})
    if args.kind == "md":
        work, facts = md(args.box, args.threads, args.platform)
    else:
        work, facts = rollout(args.checkpoint, args.walkers, args.threads)
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    done = work(args.seconds)
    print(json.dumps({"ps": done, "seconds": time.perf_counter() - began, **facts}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
