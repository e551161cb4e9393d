"""Makes the reference of the Space: the (phi, psi) map of held-out MD, and starts in four of its basins.

python -m training.space_reference
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import mdtraj
import numpy as np

from training.command_line import command_line
from training.reference_md import read_segments
from zoo.analysis.kinetics import torsion_histogram, torsions
from zoo.analysis.ramachandran import backbone_torsions
from zoo.score_dynamics import ScoreDynamics

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "training" / "reference_md" / "alanine-dipeptide"
SPACE = ROOT / "spaces" / "zoo_space"
BINS = 45
CHECKPOINTS = ("sd-alanine-dipeptide", "sd-alanine-dipeptide-10ps", "sd-alanine-dipeptide-cg")
STARTS = {"c7eq": (-80.0, 75.0), "alpha-r": (-75.0, -20.0), "alpha-l": (55.0, 45.0), "c7ax": (65.0, -50.0)}


def held_out(name: str) -> bool:
    """Segments that no checkpoint was trained on: the first ten, and those from the twentieth on."""
    number = name.removeprefix("segment-")
    return number.isdigit() and (int(number) < 10 or int(number) >= 20)


@command_line()
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("-o", "--out", type=Path, default=SPACE)
    options = parser.parse_args(argv)
    molecule = ScoreDynamics.from_pretrained(CHECKPOINTS[0]).molecule
    quadruples = backbone_torsions(molecule)
    counts = np.zeros((BINS, BINS))
    frames, angles, time_ns, n = [], [], 0.0, 0
    for segment in read_segments(options.data):
        if not held_out(segment.name):
            continue
        x = np.asarray(segment.positions, dtype=np.float64)[:, list(molecule.sites)]
        phi_psi = torsions(x, quadruples)
        counts += torsion_histogram(phi_psi, BINS)
        frames.append(np.asarray(segment.positions))
        angles.append(phi_psi)
        time_ns += (len(x) - 1) * segment.dt / 1000
        n += 1
    text = (
        f"{time_ns:.1f} ns of MD that no checkpoint has seen, {n} trajectories started in all basins: shapes "
        "within a basin compare, the weight of φ > 0 against φ < 0 is that of the starts"
    )
    data = {
        "molecule": "alanine dipeptide",
        "checkpoints": CHECKPOINTS,
        "text": text,
        "made_by": "python -m training.space_reference",
        "counts": counts.astype(int).tolist(),
    }
    target = options.out / "reference" / "alanine-dipeptide.json"
    partial = target.with_suffix(".tmp")
    partial.write_text(json.dumps(data), encoding="utf-8")
    os.replace(partial, target)
    print(f"{target}: {text}")
    xyz, where = np.concatenate(frames), np.concatenate(angles)
    topology = mdtraj.load_topology(str(options.data / "topology.pdb"))
    for name, wanted in STARTS.items():
        apart = (where - wanted + 180.0) % 360.0 - 180.0
        best = int(np.argmin(np.linalg.norm(apart, axis=1)))
        path = options.out / "examples" / f"alanine-dipeptide-{name}.pdb"
        mdtraj.Trajectory(xyz[best] / 10.0, topology).save_pdb(str(path))
        print(f"{path}: phi, psi {where[best].round(1)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
