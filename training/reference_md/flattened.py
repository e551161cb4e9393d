"""MD on a flattened free-energy surface, and the unbiased pieces that it releases: equilibrium and rates.

    python -m training.reference_md.flattened alanine-dipeptide -o build/ala2-flat --learn 1200
    python -m training.reference_md.flattened alanine-dipeptide -o build/ala2-flat --walker 0 --blocks 50

Over a barrier that is crossed once in a hundred nanoseconds plain MD says nothing.  So a bias V on the
first two torsions is learned once, by well-tempered metadynamics (Barducci, Bussi and Parrinello, Phys.
Rev. Lett. 100, 020603, 2008), and kept fixed from then on.  A walker that moves on U + V crosses every
barrier many times in a nanosecond.  Every picosecond its torsions and its bias are written down, and if it
is on the barrier it is cloned: two clones move without the bias for a few picoseconds, the second with all
velocities reversed, and are written down too.  The walker goes on from where it was.  Clones that do not
both leave the barrier on the same side go on for some picoseconds more: they tell of longer steps over it.

Counted with the weight exp(V / kT), what the walker visits is equilibrium.  The clones are plain MD: the
two of a pair, the second one read backwards, are one piece of equilibrium MD through their common first
frame, with its weight.  So populations and rates over the barrier follow without any assumption on the
bias, which decides only how sure they are (`training.benchmarks.barriers`).  Propagators may learn from the
clones, which start where transitions are decided.

FOLDER/bias.json is the bias; FOLDER/flat-WWBBB.npz block BBB of walker WW: ten pairs of clones one after
the other, with what the walker visited in between and the state from which the next block goes on, and
FOLDER/long-WWBBB.npz those of its clones that went on, whole.  After a kill the same command makes what is
missing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.command_line import command_line
from training.reference_md.releases import Bias, long_path
from training.reference_md.segments import (
    BIAS,
    GAS_CONSTANT,
    Record,
    read_record,
    write_record,
)
from training.reference_md.simulation import Generator, SegmentError, _positions
from training.reference_md.systems import SYSTEMS
from zoo.checkpoint import write_text
from zoo.errors import MissingExtraError, ZooError

try:
    import openmm  # type: ignore[import-untyped, unused-ignore]
    from openmm import unit
except ImportError as error:
    raise MissingExtraError(f"flattened MD needs OpenMM ({error}): pip install 'openmm>=8.2'") from None

Array = npt.NDArray[np.float64]

#: Releases of a block, a pair of clones each; ps between what is written down of the walker; ps of a clone,
#: and of one that goes on.
RELEASES, EVERY, LENGTH, LONG = 10, 1.0, 2.0, 12.0
#: Walkers are numbered apart from segments and shots, whose random numbers they must not share.
_STREAM = 2_000_000
#: The bias is a force of its own group, which a clone does without.
_PLAIN, _BIASED = {0}, {0, 1}


@dataclass(frozen=True)
class Metadynamics:
    """How the bias is learned: heights in kJ/mol, widths in radians, times in ps.

    ``depth``: nowhere is it lower than its maximum less this, kJ/mol, so that walkers do not spend their
    time on barriers over which nothing ever goes.  ``ridge``: where (degrees) the barrier of the first
    torsion is, how wide to either side (degrees), and by how much (kJ/mol) the bias is lower still on it, for
    what happens on a barrier decides the rates, and it is a small part of the surface.
    """

    n_bins: int = 36
    height: float = 1.5
    width: float = 0.35
    stride: float = 0.4
    factor: float = 10.0
    friction: float = 1.0
    depth: float = 26.0
    ridge: tuple[float, float, float] = (0.0, 25.0, 8.0)

    def shaped(self, grid: Array) -> Array:
        """The bias that walkers use, from what was learned."""
        center, width, height = self.ridge
        away = (360.0 * np.arange(len(grid)) / len(grid) - center + 180.0) % 360.0 - 180.0
        ridge = height * np.exp(-0.5 * (away / width) ** 2)
        return np.asarray(np.maximum(grid, grid.max() - self.depth) - ridge[:, None])


@dataclass
class Flattened:
    """A molecule whose first two torsions are biased.

    Args:
        generator: the molecule, the protocol and the folder.
    """

    generator: Generator

    @property
    def bias_path(self) -> Path:
        return self.generator.folder / BIAS

    def learn(
        self,
        length: float,
        how: Metadynamics | None = None,
        report: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Learn the bias by ``length`` ps of well-tempered metadynamics and write it.

        Raises:
            SegmentError: the molecule became unstable.
            zoo.ZooError: there is a bias already, or it cannot be written.
        """
        how = how or Metadynamics()
        if self.bias_path.exists():
            raise ZooError(f"{self.bias_path} is there already; all walkers of a folder share one bias")
        try:
            grid = self._learned(length, how, report)
        except openmm.OpenMMException as error:
            raise SegmentError(f"learning the bias failed ({' '.join(str(error).split())})") from None
        self._write_bias(how.shaped(grid), how, length)

    def _learned(self, length: float, how: Metadynamics, report: Callable[[str], None]) -> Array:
        """(n_bins, n_bins) kJ/mol after so many ps."""
        g = self.generator
        walker = _Walker(g, np.zeros((how.n_bins, how.n_bins)), 99)
        walker.seed(0)
        walker.take(g._prepare(_STREAM + 99).state_xml)
        walker.integrator.setFriction(how.friction / unit.picosecond)
        kt = GAS_CONSTANT * g.protocol.temperature
        angle = 2 * np.pi * np.arange(how.n_bins) / how.n_bins
        grid, begin = np.zeros((how.n_bins, how.n_bins)), time.perf_counter()
        n_hills = round(length / how.stride)
        for k in range(n_hills):
            walker.step(how.stride, _BIASED)
            here = np.radians(g.angles(walker.solute())[:2])
            height = how.height * np.exp(-walker.bias() / (kt * (how.factor - 1)))
            away = [np.arctan2(np.sin(angle - a), np.cos(angle - a)) for a in here]
            bumps = [np.exp(-0.5 * (d / how.width) ** 2) for d in away]
            grid += height * np.outer(*bumps)
            walker.set_grid(grid)
            if (k + 1) % max(n_hills // 20, 1) == 0:
                speed = (k + 1) * how.stride / (time.perf_counter() - begin)
                report(f"{(k + 1) * how.stride:.0f} of {length:.0f} ps, hills of {height:.2f} kJ/mol, "
                       f"{grid.max():.1f} kJ/mol high, {speed:.2f} ps/s")  # fmt: skip
        return grid

    def run(self, walker: int, n_blocks: int, report: Callable[[str], None] = lambda text: None) -> None:
        """Make the missing ones of the first ``n_blocks`` blocks of a walker.

        Raises:
            SegmentError: the molecule became unstable, or a block is of another protocol or bias.
            zoo.StructureError: there is no bias, or a block is damaged.
            zoo.ZooError: a file cannot be written.
        """
        bias = Bias.read(self.generator.folder)
        before: Record | None = None
        moving: _Walker | None = None
        for block in range(n_blocks):
            path = self.generator.folder / f"flat-{walker:02d}{block:03d}.npz"
            if path.exists():
                before = self._checked(read_record(path), path, bias)
                continue
            if before and not before.state_xml:
                raise SegmentError(
                    f"the block before {path.name} is a compact copy without a state from which to go on"
                )
            begin = time.perf_counter()
            try:
                moving = moving or _Walker(self.generator, bias.kj_mol, walker)
                before, long = self._block(moving, walker, block, before, bias)
            except openmm.OpenMMException as error:
                raise SegmentError(
                    f"block {block} of walker {walker} failed ({' '.join(str(error).split())}); "
                    "the blocks before it are sound"
                ) from None
            walked = EVERY * len(before.provenance["visited"]) + 2 * RELEASES * LENGTH
            # first, for a block that is there is done
            if long is None:
                long_path(path).unlink(missing_ok=True)
            else:
                write_record(long_path(path), long)
                walked += long.provenance["pieces"] * (LONG - LENGTH)
            write_record(path, before)
            speed = walked / (time.perf_counter() - begin)
            report(f"walker {walker}, block {block + 1} of {n_blocks}: {walked:.0f} ps, {speed:.2f} ps/s")

    def _block(
        self, moving: _Walker, walker: int, block: int, before: Record | None, bias: Bias
    ) -> tuple[Record, Record | None]:
        """A block, and its clones that went on, if any."""
        g, p = self.generator, self.generator.protocol
        state = before.state_xml if before else g._prepare(_STREAM + walker).state_xml
        moving.seed(block)
        moving.take(state)
        frames: list[Array] = []
        long_frames: list[Array] = []
        long_of: list[int] = []
        heights: list[float] = []
        visited: list[tuple[float, float, float]] = []
        while len(heights) < RELEASES:
            moving.integrator.setFriction(Metadynamics.friction / unit.picosecond)
            moving.step(EVERY, _BIASED)
            here = moving.solute()
            phi, psi = g.angles(here)[:2]
            visited.append((round(phi, 2), round(psi, 2), round(moving.bias(), 4)))
            if not bias.on_ridge(phi):
                continue
            kept = moving.context.getState(positions=True, velocities=True)
            there, back = moving.velocities(kept)
            heights.append(visited[-1][2])
            moving.integrator.setFriction(p.friction / unit.picosecond)
            clones: list[tuple[list[Array], Any]] = []
            for velocities in (there, back):
                moving.context.setState(kept)
                moving.context.setVelocities(velocities)
                moving.context.applyVelocityConstraints(moving.integrator.getConstraintTolerance())
                clone = [here, *moving.frames(LENGTH, p.frame_interval)]
                clones.append((clone, moving.context.getState(positions=True, velocities=True)))
                frames += clone
            one, other = (bias.beyond(g.angles(clone[-1])[0]) for clone, _ in clones)
            if one * other != 1:
                long_of.append(len(heights) - 1)
                for clone, end in clones:
                    moving.context.setState(end)
                    long_frames += [*clone, *moving.frames(LONG - LENGTH, p.frame_interval)]
            moving.context.setState(kept)
        result = self._record(frames, walker, block, bias, kept, moving.n_atoms)
        result.provenance |= {
            "pieces": 2 * RELEASES,
            "visited": visited,  # phi and psi in degrees, bias in kJ/mol
            "bias_kj_mol": heights,
            "long_of": long_of,  # the releases whose clones went on
        }
        result.state_xml = openmm.XmlSerializer.serialize(kept)
        if not long_of:
            return result, None
        long = self._record(long_frames, walker, block, bias, kept, moving.n_atoms)
        long.provenance |= {"pieces": 2 * len(long_of), "long_of": long_of}
        return result, long

    def _record(
        self, frames: Sequence[Array], walker: int, block: int, bias: Bias, state: Any, n_atoms: int
    ) -> Record:
        """Of pairs of clones."""
        g, p = self.generator, self.generator.protocol
        positions = np.array(frames)
        if not g._is_whole(positions):
            raise openmm.OpenMMException("a bond of the solute broke")
        return Record(
            pos_nm=positions.astype(np.float32),
            dt_ps=p.frame_interval,
            seed=g.angles(positions[0]),
            box_nm=float(state.getPeriodicBoxVectors()[0][0].value_in_unit(unit.nanometer)),
            n_atoms_total=n_atoms,
            provenance={
                "units": {"pos_nm": "nm", "dt_ps": "ps", "box_nm": "nm", "seed": "degree"},
                "protocol": p.as_json(g.system),
                "pairs": "each second piece starts with the velocities of the one before it reversed",
                "walker": {"number": walker, "block": block, "visited_every_ps": EVERY},
                "bias_sha256": bias.sha256,
                "torsions": list(g.system.torsions),
                "runs": [g._this_run(0)],
            },
        )

    def _write_bias(self, grid: Array, how: Metadynamics, length: float) -> None:
        data = {
            "torsions": list(self.generator.system.torsions),
            "metadynamics": {**asdict(how), "length_ps": length},
            "ridge_degrees": how.ridge[:2],
            "kj_mol": grid.round(6).tolist(),
        }
        write_text(self.bias_path, json.dumps(data) + "\n")

    def _checked(self, record: Record, path: Path, bias: Bias) -> Record:
        g = self.generator
        if record.provenance.get("protocol") != g.protocol.as_json(g.system):
            raise SegmentError(f"{path} was made with another protocol: choose another output folder")
        if record.provenance.get("bias_sha256") != bias.sha256:
            raise SegmentError(f"{path} was made with another bias: choose another output folder")
        walker, pairs = record.provenance.get("walker", {}), 2 * RELEASES
        n_frames = pairs * (1 + round(LENGTH / g.protocol.frame_interval))
        if walker.get("visited_every_ps") != EVERY or len(record.pos_nm) != n_frames:
            raise SegmentError(f"{path} is of another length or kind: choose another output folder")
        if record.provenance.get("long_of"):
            long = read_record(long_path(path))
            each = 1 + round(LONG / g.protocol.frame_interval)
            if len(long.pos_nm) != 2 * len(record.provenance["long_of"]) * each:
                raise SegmentError(f"{long_path(path)} is of another length: choose another output folder")
        return record


class _Walker:
    """The solvated molecule in a context whose bias can be changed and left out."""

    def __init__(self, generator: Generator, grid: Array, number: int) -> None:
        self._g, self._number = generator, number
        self._n = len(grid)
        self._force = openmm.CMAPTorsionForce()
        self._force.addMap(self._n, self._flat(grid))
        first, second = generator._torsions[:2]
        self._force.addTorsion(0, *first, *second)
        self._force.setForceGroup(1)
        self.integrator = generator._integrator(1.0, 1)
        self._seed, self._built = 1, False
        self.n_atoms = 0

    @staticmethod
    def _flat(grid: Array) -> list[float]:
        return [float(v) for v in grid.T.ravel()]  # OpenMM's first torsion runs fastest

    def seed(self, block: int) -> None:
        """Random numbers that follow from the walker and the block; take effect with `take`."""
        self._seed = self._g.system.random_seed(_STREAM + self._number, 1, block)

    def take(self, state_xml: str) -> None:
        """Go on from a state."""
        state = openmm.XmlSerializer.deserialize(state_xml)
        if not self._built:
            self.n_atoms = len(state.getPositions())
            system = self._g.openmm_system(self._g.solvated_topology(self.n_atoms, self._g.system.box_edge))
            system.addForce(self._force)
            masses = [system.getParticleMass(i).value_in_unit(unit.amu) for i in range(self.n_atoms)]
            self._inverse_masses = np.array([1.0 / m if m > 0 else 0.0 for m in masses])
            self.context = openmm.Context(system, self.integrator, self._g._platform, self._g._properties)
            self._built = True
        self.integrator.setRandomNumberSeed(self._seed)
        self.context.reinitialize()
        self.context.setState(state)

    def step(self, time_ps: float, groups: set[int]) -> None:
        self.integrator.setIntegrationForceGroups(groups)
        self.integrator.step(round(1000 * time_ps / self._g.protocol.timestep))

    def frames(self, time_ps: float, interval: float) -> list[Array]:
        """The solute (nm) every ``interval`` ps of so much MD without the bias."""
        found = []
        for _ in range(round(time_ps / interval)):
            self.step(interval, _PLAIN)
            found.append(self.solute())
        return found

    def velocities(self, state: Any) -> tuple[Any, Any]:
        """With which a clone goes on without the bias, and with which another one goes back.

        The integrator's velocities are half a step older than its positions (leap-frog), so those of the
        way back are the ones of half a step later, reversed.
        """
        plain = self.context.getState(forces=True, groups=_PLAIN).getForces(asNumpy=True)
        v, dt = state.getVelocities(asNumpy=True), self.integrator.getStepSize()
        return v, -(v + dt * plain * self._inverse_masses[:, None] / unit.amu)

    def solute(self) -> Array:
        """(n_solute, 3) nm."""
        return _positions(self.context.getState(positions=True))[: self._g._n_solute]

    def bias(self) -> float:
        """kJ/mol, here."""
        energy = self.context.getState(energy=True, groups={1}).getPotentialEnergy()
        return float(energy.value_in_unit(unit.kilojoule_per_mole))

    def set_grid(self, grid: Array) -> None:
        self._force.setMapParameters(0, self._n, self._flat(grid))
        self._force.updateParametersInContext(self.context)


@command_line("stopped; the same command makes what is missing")
def main(arguments: Sequence[str] | None = None) -> int:
    """Learn the bias, or make blocks of a walker; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reference_md.flattened",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("system", choices=sorted(SYSTEMS), help="the molecule: %(choices)s", metavar="SYSTEM")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="made if missing")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--learn", type=float, metavar="PS", help="learn the bias by so much metadynamics")
    what.add_argument("--walker", type=int, metavar="W", help="make blocks of walker W, 0 to 98")
    parser.add_argument(
        "--blocks",
        type=int,
        default=50,
        metavar="N",
        help="blocks to make in all, existing ones included (%(default)s)",
    )
    parser.add_argument("--threads", type=int, default=1, help="for OpenMM on CPU (%(default)s)")
    parser.add_argument("--platform", choices=("auto", "CPU", "CUDA"), default="auto", help="(%(default)s)")
    args = parser.parse_args(arguments)
    if len(SYSTEMS[args.system].torsions) < 2:
        parser.error(f"{args.system} has fewer than two torsions")
    if args.learn is not None and not 1 <= args.learn <= 1e6:
        parser.error("--learn must be 1 to 1000000 ps")
    if args.threads < 1:
        parser.error("--threads must be at least 1")
    if args.walker is not None and not 0 <= args.walker <= 98:
        parser.error("--walker must be 0 to 98")
    if not 1 <= args.blocks <= 1000:
        parser.error("--blocks must be 1 to 1000")

    def say(text: str) -> None:
        print(text, flush=True)

    flattened = Flattened(Generator(SYSTEMS[args.system], args.output, args.platform, args.threads))
    if args.learn is not None:
        flattened.learn(args.learn, report=say)
    else:
        flattened.run(args.walker, args.blocks, say)
    return 0


if __name__ == "__main__":
    sys.exit(main())
