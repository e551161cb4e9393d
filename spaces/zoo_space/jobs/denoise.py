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
#: Atoms of all frames that get a verdict.
_JUDGED_ATOMS = 60_000


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
    way = _Way(request, tell)
    denoiser, why, after = _chosen(before, request, way)
    started = time.perf_counter()
    if after is None:
        after = denoiser.denoise(before, steps=request.steps, callback=way.follow)
    seconds = time.perf_counter() - started
    every = [before.get_positions(), *way.taken(after)]
    kept = _frames(len(every), len(before), judged=_names(denoiser) != STRUCTURES)
    steps, labels = [every[k] for k in kept], []
    for positions in steps[:-1]:
        frame = before.copy()
        frame.set_positions(positions, apply_constraint=False)
        labels.append(_labels(denoiser, frame))
        tell(Progress(0.8 + 0.15 * len(labels) / len(steps), "reading the structure of every step"))
    labels.append(_labels(denoiser, after, judged=True))
    structure = _written(after, denoiser, request)
    summary = _summary(before, after, denoiser, labels, number, way.seconds or seconds, request)
    if why:
        summary["chosen_because"] = why
    scene = _scene(before, steps, kept, labels, _names(denoiser), request.limits)
    curve = [float(x) for x in after.info["denoise_mean_displacement"]]
    tell(Denoised(summary, scene, curve, structure))
    picture = request.out / f"{stem(request.path.name)}-denoised.png"
    title = f"{stem(request.path.name)}: {len(curve)} steps of {denoiser.name}"
    palette = pieces.palette_of(_names(denoiser))
    return before_after(before, after, labels[0], labels[-1], picture, title, pixels=_PIXELS, palette=palette)


@cache
def _denoiser(name: str) -> Denoiser:
    return Denoiser.from_pretrained(name)


class _Way:
    """The steps of every denoiser that is tried, told as progress as they are taken."""

    def __init__(self, request: DenoiseRequest, tell: Callable[[Any], None]) -> None:
        self._request, self._tell = request, tell
        self._runs: list[list[Array]] = []
        self._share = 0.05
        self.seconds = 0.0  # of the trial that is shown, if one is

    def follow(self, step: int, positions: Array, mean: float) -> None:
        if step == 1:
            self._runs.append([])
        self._runs[-1].append(positions)
        # A second trial begins where the first one ended, so that a bar never goes back.
        self._share += (0.8 - self._share) / (self._request.steps + 2)
        self._tell(Progress(self._share, f"step {step}: atoms moved {mean:.3f} Å on average"))

    def taken(self, after: Atoms) -> list[Array]:
        """Positions after each of the steps that led to this structure."""
        return next(run for run in reversed(self._runs) if np.array_equal(run[-1], after.positions))


def _chosen(atoms: Atoms, request: DenoiseRequest, way: _Way) -> tuple[Denoiser, str, Atoms | None]:
    """The denoiser that was asked for; or the one that suits best, why, and what it made if it was tried."""
    if request.checkpoint != AUTOMATIC:
        return _denoiser(request.checkpoint), "", None
    choice = choose(atoms, request.steps, way.follow, _denoiser)
    way.seconds = choice.seconds
    reason = " ".join(choice.reason.split()).replace("with --species", "under Settings")
    return choice.denoiser, reason, choice.clean


def _frames(n_frames: int, n_atoms: int, *, judged: bool) -> list[int]:
    """Which frames are labelled and shown: all, but of a large structure as many as can be judged in time.

    A verdict costs as much as a step.
    """
    most = n_frames if not judged else max(2, min(n_frames, _JUDGED_ATOMS // max(n_atoms, 1)))
    return sorted(set(np.linspace(0, n_frames - 1, most).round().astype(int).tolist()))


def _names(denoiser: Denoiser) -> tuple[str, ...]:
    """What atoms are called here: by the usual classifiers, or by its verdict where they have no class."""
    classes = denoiser.head.classes if denoiser.head is not None else ()
    if set(classes) - {DISORDERED} <= set(STRUCTURES):
        return STRUCTURES
    return (*classes, OTHER) if denoiser.config.acts_on else classes


def _labels(denoiser: Denoiser, frame: Atoms, *, judged: bool = False) -> npt.NDArray[np.int64]:
    """(n_atoms,) places in `pieces.palette_of` of `_names`; of a frame that has its verdict, those."""
    if _names(denoiser) == STRUCTURES:
        return structure_types(frame)
    names = frame.arrays["structure_type"] if judged else denoiser.verdict(frame).structure_type
    return np.array([CODES[name] for name in names.tolist()], dtype=np.int64)


def _shares(denoiser: Denoiser, labels: npt.NDArray[np.int64]) -> dict[str, float]:
    """Share of the atoms with each of `_names`."""
    names = _names(denoiser)
    place = {name: index for index, name in enumerate(pieces.palette_of(names))}
    return {name: float((labels == place[name]).mean()) for name in names}


def _written(after: Atoms, denoiser: Denoiser, request: DenoiseRequest) -> Path:
    out = after.copy()
    if not denoiser.config.acts_on:  # else the crystal's sites are some of the atoms only
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
        "told_by": "classifiers" if _names(denoiser) == STRUCTURES else "verdict",
        "fractions_before": _shares(denoiser, labels[0]),
        "fractions_after": fractions,
        "warning": warning,
        "seconds": round(seconds, 2),
    }


def _scene(
    before: Atoms,
    steps: list[Array],
    numbers: list[int],
    labels: list[Any],
    names: tuple[str, ...],
    limits: Limits,
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
        frame_names=["as given", *(f"step {k}" for k in numbers[1:])],
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
