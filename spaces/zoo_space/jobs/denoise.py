"""Denoise one frame of a crystal, and say what changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms

from zoo.analysis.crystals import STRUCTURES, displacements, store_labels, structure_types
from zoo.analysis.pictures import before_after
from zoo.choice import choose
from zoo.denoiser import Denoiser
from zoo.scale import length_scale
from zoo.structures import FrameWriter
from zoo.verdict_names import CODES, DISORDERED, OTHER
from zoo_space import pieces
from zoo_space.limits import Limits
from zoo_space.messages import AUTOMATIC, Denoised, DenoiseRequest, Progress
from zoo_space.scene import Panel, Scene
from zoo_space.uploads import read_crystal, safe_name, stem, unpacked

Array = npt.NDArray[np.float64]
_PIXELS = 620


def run(request: DenoiseRequest, folder: Path, tell: Callable[[Any], None]) -> Path:
    """Tells `Progress` and then `Denoised`; returns the picture, which takes longer than the rest.

    Raises
    ------
    VisitorError, zoo.ZooError : one line for the visitor.
    """
    tell(Progress(0.02, "reading the structure"))
    before, number = read_crystal(
        unpacked(request.path, folder, request.limits), request.frame, request.species, request.limits
    )
    before.calc = None
    denoiser, why = _chosen(before, request, tell)
    steps: list[Array] = [before.get_positions()]

    def follow(step: int, positions: Array, mean: float) -> None:
        steps.append(positions)
        tell(Progress(0.1 + 0.7 * step / request.steps, f"step {step}: atoms moved {mean:.3f} Å on average"))

    started = time.perf_counter()
    after = denoiser.denoise(before, steps=request.steps, callback=follow)
    seconds = time.perf_counter() - started
    tell(Progress(0.85, "reading the structure of every step"))
    labels = []
    for positions in steps:
        frame = before.copy()
        frame.set_positions(positions, apply_constraint=False)
        labels.append(_labels(denoiser, frame))
    structure = _written(after, request)
    summary = _summary(before, after, denoiser, labels, number, seconds, request)
    if why:
        summary["chosen_because"] = why
    scene = _scene(before, steps, labels, _names(denoiser), request.limits)
    curve = [float(x) for x in after.info["denoise_mean_displacement"]]
    tell(Denoised(summary, scene, curve, structure))
    picture = request.out / f"{stem(request.path.name)}-denoised.png"
    title = f"{stem(request.path.name)}: {len(curve)} steps of {denoiser.name}"
    palette = pieces.palette_of(_names(denoiser))
    return before_after(before, after, labels[0], labels[-1], picture, title, pixels=_PIXELS, palette=palette)


@cache
def _denoiser(name: str) -> Denoiser:
    return Denoiser.from_pretrained(name)


def _chosen(atoms: Atoms, request: DenoiseRequest, tell: Callable[[Any], None]) -> tuple[Denoiser, str]:
    """The denoiser that was asked for, or the one that suits best and why."""
    if request.checkpoint != AUTOMATIC:
        return _denoiser(request.checkpoint), ""
    tell(Progress(0.05, "choosing a checkpoint"))
    choice = choose(atoms, request.steps)
    return choice.denoiser, " ".join(choice.reason.split())


def _names(denoiser: Denoiser) -> tuple[str, ...]:
    """What atoms are called here: by the usual classifiers, or by its verdict where they have no class."""
    classes = denoiser.head.classes if denoiser.head is not None else ()
    if set(classes) - {DISORDERED} <= set(STRUCTURES):
        return STRUCTURES
    return (*classes, OTHER) if denoiser.config.acts_on else classes


def _labels(denoiser: Denoiser, frame: Atoms) -> npt.NDArray[np.int64]:
    """(n_atoms,) places in `pieces.palette_of` of `_names`."""
    if _names(denoiser) == STRUCTURES:
        return structure_types(frame)
    return np.array([CODES[name] for name in denoiser.verdict(frame).structure_type.tolist()], dtype=np.int64)


def _shares(denoiser: Denoiser, labels: npt.NDArray[np.int64]) -> dict[str, float]:
    """Share of the atoms with each of `_names`."""
    names = _names(denoiser)
    place = {name: index for index, name in enumerate(pieces.palette_of(names))}
    return {name: float((labels == place[name]).mean()) for name in names}


def _written(after: Atoms, request: DenoiseRequest) -> Path:
    out = after.copy()
    store_labels(out, structure_types(out))
    path = request.out / f"{stem(request.path.name)}-denoised.extxyz"
    with FrameWriter(path) as writer:
        writer.write(out)
    return path


def _summary(
    before: Atoms,
    after: Atoms,
    denoiser: Denoiser,
    labels: list[Any],
    number: int,
    seconds: float,
    request: DenoiseRequest,
) -> dict[str, Any]:
    info = after.info
    fractions = _shares(denoiser, labels[-1])
    known = [name for name in fractions if name not in (DISORDERED, OTHER)]
    warning = ""
    if sum(fractions[name] for name in known) < 0.05:
        warning = (
            "Hardly any atom is recognised as one of the structures that this checkpoint knows: "
            f"{', '.join(known)}. It is a liquid, a glass, a molecule or another crystal: take the "
            "result with care, what the checkpoint was not trained on may be distorted."
        )
    moved = np.linalg.norm(displacements(before, after), axis=1)
    return {
        "file": safe_name(request.path.name),
        "frame": number,
        "atoms": len(before),
        "formula": before.get_chemical_formula(empirical=True)
        if before.numbers.any()
        else "unknown elements",
        "checkpoint": str(info["denoise_checkpoint"]),
        "steps": int(info["denoise_steps"]),
        "converged": bool(info["denoise_converged"]),
        "stalled": bool(info["denoise_stalled"]),
        "mean_shift_angstrom": round(float(moved.mean()), 4),
        "largest_shift_angstrom": round(float(moved.max()), 4),
        "mean_displacement_of_each_step_angstrom": [
            round(float(x), 5) for x in info["denoise_mean_displacement"]
        ],
        "fractions_before": _shares(denoiser, labels[0]),
        "fractions_after": fractions,
        "warning": warning,
        "seconds": round(seconds, 2),
    }


def _scene(
    before: Atoms, steps: list[Array], labels: list[Any], names: tuple[str, ...], limits: Limits
) -> Scene:
    """Two panels, seen alike: what was given, and every step of the way."""
    wrapped = before.copy()
    wrapped.wrap()
    shift = wrapped.positions - before.positions  # the same image of each atom in every step
    shown = slice_of(wrapped.positions, limits.shown_atoms)
    frames = [(positions + shift)[shown] for positions in steps]
    kinds = [each[shown] for each in labels]
    note = ""
    if len(shown) < len(before):
        note = (
            f"Shown is a slice: the {len(shown):,} atoms nearest to the middle, of {len(before):,}. All "
            "atoms were denoised, are counted, and are in the files."
        )
    present = np.unique(np.concatenate(kinds))
    scale = length_scale(before.get_positions(), before.cell[:], before.pbc)
    return Scene(
        panels=[
            Panel("before", frames[:1], kinds[:1]),
            Panel("after", frames, kinds),
        ],
        frame_names=["as given", *(f"step {k}" for k in range(1, len(frames)))],
        palette=[
            (name, color, bool(i in present))
            for i, (name, color) in enumerate(pieces.palette_of(names).items())
        ],
        cell=np.where(before.pbc[:, None], before.cell.array, 0.0),
        radius=0.42 * scale,
        note=note,
    )


def slice_of(positions: Array, most: int) -> npt.NDArray[np.int64]:
    """Indices of at most ``most`` atoms: those nearest to the middle plane of the structure.

    A slice keeps the neighbours of an atom, so that order is still seen; every third atom would not.
    """
    n = len(positions)
    if n <= most:
        return np.arange(n)
    axis = int(np.argmin(np.ptp(positions, axis=0)))
    middle = np.median(positions[:, axis])
    chosen = np.argpartition(np.abs(positions[:, axis] - middle), most)[:most]
    return np.sort(chosen)
