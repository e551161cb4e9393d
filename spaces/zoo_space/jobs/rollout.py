"""Roll a molecule out, and say where it went."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.analysis.kinetics import torsion_histogram, torsions
from zoo.analysis.ramachandran import backbone_torsions
from zoo.errors import StructureError
from zoo.registry import records
from zoo.rollout import Progress as LoopProgress
from zoo.rollout.errors import OutOfDistributionWarning
from zoo.rollout.report import NS_PER_DAY, RolloutReport
from zoo.score_dynamics import ScoreDynamics
from zoo_space.limits import Limits
from zoo_space.messages import AUTOMATIC, Progress, RolledOut, RolloutRequest
from zoo_space.reference import BINS
from zoo_space.scene import Panel, Scene
from zoo_space.uploads import check_molecule_file, safe_name, stem, unpacked

Array = npt.NDArray[np.float64]
_EVERY = 0.7  # seconds between two maps
#: By element, dark enough on white and light enough on black; after Jmol, hydrogen apart.
_ELEMENT_COLORS = {"H": "#b8b8b8", "C": "#7a7a7a", "N": "#3f6ad8", "O": "#d83a2f", "S": "#c9a400"}


def run(request: RolloutRequest, folder: Path, tell: Callable[[Any], None]) -> RolledOut:
    """Tells `Progress` on the way.

    Raises
    ------
    VisitorError, zoo.ZooError : one line for the visitor.
    """
    tell(Progress(0.01, "reading the molecule"))
    path = unpacked(request.path, folder, request.limits)
    check_molecule_file(path, request.limits)
    model = _model_for(path, request.checkpoint)
    try:
        quadruples = backbone_torsions(model.molecule)
    except StructureError:
        quadruples = []
    counts = np.zeros((BINS, BINS)) if quadruples else None
    told = time.perf_counter()

    def count(step: int, positions: Array, running: Sequence[int]) -> None:
        if counts is not None and running:
            counts[:] += torsion_histogram(torsions(positions[list(running)], quadruples), BINS)

    def progress(now: LoopProgress) -> None:
        nonlocal told
        if time.perf_counter() - told > _EVERY and now.step:
            told = time.perf_counter()
            speed = f"{now.ps_per_second * NS_PER_DAY:,.0f} ns/day"
            tell(Progress(now.step / now.n_steps, f"step {now.step:,} of {now.n_steps:,}, {speed}", counts))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", OutOfDistributionWarning)
        rollout = model.rollout(
            path,
            request.steps,
            n_walkers=request.walkers,
            seed=request.seed,
            output=request.out / f"{stem(request.path.name)}-rollout.xtc",
            keep=True,
            progress=progress,
            observers=(count,),
        )
    first = rollout.trajectories[0]
    xyz = 10.0 * np.asarray(first.xyz, dtype=np.float64)
    files = [*rollout.files, *sorted(request.out.glob("*.pdb")), *sorted(request.out.glob("*.json"))]
    for leftover in request.out.glob("*.state.npz"):
        leftover.unlink()
    return RolledOut(
        summary=_summary(rollout.report, model, request),
        scene=_scene(xyz, model, request.limits),
        counts=counts,
        angles=torsions(xyz, quadruples) if quadruples else None,
        files=files,
        checkpoint=model.name,
        warning="; ".join(
            str(each.message) for each in caught if issubclass(each.category, OutOfDistributionWarning)
        ),
    )


@cache
def _model(name: str) -> ScoreDynamics:
    return ScoreDynamics.from_pretrained(name)


def _model_for(path: Path, checkpoint: str) -> ScoreDynamics:
    """The one asked for, or the first in the registry that knows the molecule."""
    if checkpoint != AUTOMATIC:
        return _model(checkpoint).for_start(str(path))
    from zoo.molecules.start import load_start

    first: StructureError | None = None
    for record in records():
        if record.kind != "score-dynamics":
            continue
        try:
            model = _model(record.name).for_start(str(path))
            load_start(path, model.molecule)
        except StructureError as error:
            first = first or error
        else:
            return model
    assert first is not None
    raise first


def _summary(report: RolloutReport, model: ScoreDynamics, request: RolloutRequest) -> dict[str, Any]:
    everything = report.to_json()
    kept = (
        "checkpoint", "lag_time_ps", "seed", "n_steps", "n_walkers", "proposed", "redrawn",
        "redrawn_by_kind", "simulated_ps", "ps_per_second", "ns_per_day", "start_out_of_distribution",
    )  # fmt: skip
    return {
        "file": safe_name(request.path.name),
        **{key: everything[key] for key in kept},
        "walkers_stopped_early": {str(k): v for k, v in report.stopped.items()},
        "temperature_k": model.config.temperature,
        "forcefield": model.config.forcefield,
    }


def _scene(xyz: Array, model: ScoreDynamics, limits: Limits) -> Scene:
    """Walker 0, turned onto its first frame, so that what is seen is the molecule's own motion."""
    import mdtraj

    every = -(-len(xyz) // limits.shown_frames)
    frames = xyz[::every]
    molecule = model.molecule
    trajectory = mdtraj.Trajectory(frames / 10.0, molecule.topology())
    trajectory.superpose(trajectory, 0)
    elements = [molecule.elements[i] for i in molecule.sites]
    names = sorted(set(elements), key=elements.index)
    kinds = np.array([names.index(e) for e in elements])
    lag = model.lag_time
    note = "Walker 0, each frame turned and moved onto the first."
    if every > 1:
        note += (
            f" One in {every} of its {len(xyz):,} frames is shown; all are in the files and in the figures."
        )
    return Scene(
        panels=[Panel("walker 0", list(10.0 * np.asarray(trajectory.xyz)), [kinds] * len(frames))],
        frame_names=[f"{k * every * lag:g} ps" for k in range(len(frames))],
        palette=[(name, _ELEMENT_COLORS.get(name, "#a05ec4"), True) for name in names],
        cell=None,
        radius=0.3,
        bonds=[(int(a), int(b)) for a, b in molecule.site_bonds],
        note=note,
    )
