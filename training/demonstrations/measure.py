"""A snapshot raw and denoised, and what can be counted in both.

Raw atoms are named by adaptive common neighbour analysis, as simulations usually are.  Denoised ones have
the verdict of the checkpoint if it gives one, otherwise the same analysis.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from training.demonstrations.md import Simulation
from zoo.analysis.crystals import (
    BCC,
    FCC,
    HCP,
    OTHER,
    Dislocation,
    FloatArray,
    IntArray,
    adaptive_cna,
    dislocation_network,
)
from zoo.analysis.extended_defects import neighbors, planar_faults
from zoo.analysis.point_defects import nearest_distance
from zoo.denoiser import Denoiser
from zoo.structures import FrameWriter, read_frames
from zoo.verdict_names import CODES, is_verdict

#: Steps of denoising, at most.
STEPS = 10
#: Names of Burgers vectors in the metrics -> those of OVITO.
FAMILIES = {"111": "1/2<111>", "100": "<100>", "110": "<110>", "other": "Other"}
#: The same for planar faults of fcc.
PLANES = {
    "stacking_faults": "intrinsic stacking fault",
    "twin_boundaries": "coherent twin boundary",
    "multilayer_faults": "multilayer stacking fault",
}
CNA = "adaptive CNA"
VERDICT = "verdict"


@dataclass(frozen=True)
class Lines:
    """What DXA finds: lines, and of each of `FAMILIES` their number and length in Å."""

    lines: list[Dislocation]
    families: dict[str, tuple[int, float]]

    @property
    def number(self) -> int:
        return sum(number for number, _ in self.families.values())

    @property
    def length(self) -> float:
        return sum(length for _, length in self.families.values())

    @classmethod
    def of(cls, atoms: Atoms) -> Lines:
        """Those of a bcc crystal."""
        lines, found = dislocation_network(atoms, "bcc")
        named = {key: found.get(name, (0, 0.0)) for key, name in FAMILIES.items()}
        return cls(lines, named)


@dataclass(frozen=True)
class Pair:
    """One snapshot.

    Attributes
    ----------
    raw, clean : the same atoms in the same order.
    raw_labels, labels : (n_atoms,) as `zoo.analysis.crystals.STRUCTURES`.
    by : what gave ``labels``, `VERDICT` or `CNA`.
    confidence : (n_atoms,) of the verdict; None without one.
    raw_lines, lines : dislocations, where they were asked for.
    minimised : the same atoms at the nearest minimum of their energy, if that was looked for.
    """

    raw: Atoms
    clean: Atoms
    raw_labels: IntArray
    labels: IntArray
    by: str
    confidence: FloatArray | None
    raw_lines: Lines | None = None
    lines: Lines | None = None
    minimised: Atoms | None = None

    @property
    def time(self) -> float:
        """ps."""
        return float(self.raw.info["time_ps"])


def denoised(path: Path, denoiser: Denoiser, digest: str) -> Atoms:
    """The snapshot in a file without its vibration; kept beside it, so that pictures can be made again.

    ``digest`` tells results of different weights and settings apart.
    """
    kept = path.with_name(f"denoised-{digest[:12]}-{path.name}")
    if not kept.is_file():
        with FrameWriter(kept, format="extxyz") as writer:  # which writes names with spaces, and whole files
            writer.write(denoiser.denoise(read(path), STEPS))
    (atoms,) = read_frames(kept)
    return atoms


def pair(raw: Atoms, clean: Atoms, *, dislocations: bool, minimised: Atoms | None = None) -> Pair:
    """Name the atoms of both; with ``dislocations``, find the lines of both as well.

    Raises
    ------
    MissingExtraError : OVITO is not installed.
    """
    if is_verdict(clean.arrays):
        by, confidence = VERDICT, np.asarray(clean.arrays["confidence"], dtype=np.float64)
        labels = np.array([CODES[name] for name in clean.arrays["structure_type"]], dtype=np.int64)
    else:
        by, confidence, labels = CNA, None, adaptive_cna(clean)
    raw_lines, lines = (Lines.of(raw), Lines.of(clean)) if dislocations else (None, None)
    return Pair(raw, clean, adaptive_cna(raw), labels, by, confidence, raw_lines, lines, minimised)


def row(simulation: Simulation, found: Pair) -> dict[str, Any]:
    """What was counted in a snapshot, as one row of the metrics.

    ``raw_...`` is before denoising, ``cna_...`` after it by `CNA` whatever named the atoms otherwise, and
    ``minimised_...`` by `CNA` and DXA of the snapshot at the minimum of its energy.
    """
    out: dict[str, Any] = {
        "demonstration": simulation.name,
        "material": simulation.material.key,
        "temperature_K": simulation.temperature,
        "time_ps": found.time,
        "atoms": len(found.raw),
        "steps": int(found.clean.info["denoise_steps"]),
    }
    analysed = found.labels if found.by == CNA else adaptive_cna(found.clean)
    for prefix, labels in (("raw_", found.raw_labels), ("cna_", analysed), ("", found.labels)):
        for name, label in (("fcc", FCC), ("hcp", HCP), ("bcc", BCC)):
            out[prefix + name] = int((labels == label).sum())
        out[prefix + "disordered"] = int((labels == OTHER).sum())
    if found.confidence is not None:
        out["confidence"] = round(float(found.confidence.mean()), 6)
        out["sure"] = round(float((found.confidence >= 0.9).mean()), 6)
    if found.raw_lines is None or found.lines is None:
        out["raw_nucleus"] = len(largest_cluster(found.raw, found.raw_labels))
        nucleus = largest_cluster(found.clean, found.labels)
        out["nucleus"] = len(nucleus)
        planes = _planes(found)
        return out | {key: planes.get(kind, 0) for key, kind in PLANES.items()}
    out["strain"] = round(float(found.raw.info["strain_z"]), 6) + 0.0  # never -0.0
    ways = [("raw_", found.raw_lines), ("", found.lines)]
    if found.minimised is not None:
        ways.append(("minimised_", Lines.of(found.minimised)))
        out["minimised_bcc"] = int((adaptive_cna(found.minimised) == BCC).sum())
    for prefix, lines in ways:
        out[prefix + "lines"] = lines.number
        out[prefix + "length_angstrom"] = round(lines.length, 1)
        for key, (number, length) in lines.families.items():
            out[f"{prefix}lines_{key}"] = number
            out[f"{prefix}length_{key}"] = round(length, 1)
    out["density_per_m2"] = float(f"{1e20 * found.lines.length / found.clean.get_volume():.4g}")
    return out


def largest_cluster(atoms: Atoms, labels: IntArray) -> IntArray:
    """Indices of the largest group of neighbouring atoms that are in some crystal."""
    index = np.flatnonzero(labels != OTHER)
    if not len(index):
        return index
    volume = atoms.get_volume() / len(atoms)
    reach = 1.2 * float(np.cbrt(np.sqrt(2.0) * volume))  # between first and second neighbours in fcc
    i, j, _ = neighbors(atoms, index, reach)
    graph = coo_matrix((np.ones(len(i)), (i, j)), shape=(len(index), len(index)))
    group = connected_components(graph, directed=False)[1]
    return np.asarray(index[group == np.bincount(group).argmax()])


def _planes(found: Pair) -> Counter[str]:
    crystal = np.flatnonzero(found.labels != OTHER)
    if len(crystal) < 2:
        return Counter()
    spacing = nearest_distance(found.clean, crystal)
    return Counter(plane.kind for plane in planar_faults(found.clean, found.labels, spacing))
