"""The denoiser as a modifier of OVITO, to stand before CNA, PTM or DXA in a pipeline.

>>> from ovito.io import import_file
>>> from zoo.ovito import DenoiseModifier
>>> pipeline = import_file("run.dump")                       # doctest: +SKIP
>>> pipeline.modifiers.append(DenoiseModifier(steps=10))     # doctest: +SKIP

OVITO Pro finds it by the entry point ``OVITO.Modifier`` and imports this module at startup, so torch is
only imported once a structure has to be denoised.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from ase import Atoms
from ase.constraints import FixAtoms
from ase.data import atomic_numbers

from zoo.errors import MissingExtraError, StructureError

try:
    from ovito.pipeline import ModifierInterface
    from traits.api import Any as AnyTrait
    from traits.api import Bool, HasPrivateTraits, Range, Str
except ImportError as error:
    raise MissingExtraError(
        f'the OVITO modifier needs OVITO ({error}): pip install "score-zoo[analysis]"'
    ) from error

if TYPE_CHECKING:
    from ovito.data import DataCollection, SimulationCell

    from zoo.denoiser import Denoiser

#: The particle property with new minus old position.
DISPLACEMENT = "Denoise Displacement"
#: The particle property with the confidence of the verdict.
CONFIDENCE = "Denoise Confidence"

#: Seconds between two signs of life to OVITO, which redraws its window and looks for a cancel meanwhile.
_POLL = 0.05


# HasPrivateTraits: a misspelt parameter would otherwise be accepted, and do nothing.
class DenoiseModifier(HasPrivateTraits, ModifierInterface):
    """Takes the thermal vibration out of the particles' positions.

    Parameters
    ----------
    checkpoint : a name from `zoo list`, ``owner/name`` on the Hugging Face Hub, or a folder.
    steps : at most so many steps, at least 1; fewer if it has converged.
    only_selected : only particles whose ``Selection`` is not 0 move; the network sees the others too.

    Notes
    -----
    Replaces ``Position``; cell, bonds and all other properties stay, and positions are not wrapped.  Adds the
    particle property ``Denoise Displacement`` (X, Y, Z in Å: new minus old) and the attributes
    ``Denoise.steps`` (taken), ``Denoise.converged`` and ``Denoise.stalled`` (1 or 0: OVITO has no
    booleans), ``Denoise.mean_displacement`` (Å, of the last step, over the particles that may move) and
    ``Denoise.checkpoint`` (name@version).  With a checkpoint that gives a verdict, ``Structure Type`` and
    ``Denoise Confidence`` are those of the verdict.  The origin of the cell does not matter; particle types
    matter to checkpoints of compounds.

    Computing the pipeline raises `StructureError` where `Denoiser.denoise` would, and where particles or
    a wanted selection are missing; `CheckpointError` where `Denoiser.from_pretrained` would.
    """

    checkpoint = Str("denoiser-elements", label="Checkpoint")
    steps = Range(low=1, value=10, label="Steps at most")
    only_selected = Bool(False, label="Only selected particles")
    # The checkpoint's name and the denoiser; neither shown nor saved with the session.
    _loaded = AnyTrait(None, transient=True, visible=False)

    def modify(
        self, data: DataCollection, *, frame: int, **kwargs: Any
    ) -> Generator[str | float, None, None]:
        """Called by OVITO: changes the ``DataCollection`` in place and yields its progress.

        Raises
        ------
        StructureError : the frame cannot be denoised; the message names it.
        CheckpointError : the checkpoint is unknown, damaged or cannot be fetched.
        """
        try:
            atoms = to_ase(data, only_selected=self.only_selected)
            yield f"Loading {self.checkpoint}"
            denoiser = self._denoiser()
            yield f"Denoising {len(atoms)} particles"
            clean = yield from _in_background(denoiser, atoms, int(self.steps))
        except StructureError as error:
            raise StructureError(f"frame {frame}: {error}") from error
        particles = data.particles_
        particles.positions_[...] = clean.positions
        # One from a file may have another layout, which OVITO refuses to overwrite.
        if DISPLACEMENT in particles:
            del particles[DISPLACEMENT]
        displacement = clean.positions - atoms.positions
        particles.create_property(DISPLACEMENT, data=displacement, components=["X", "Y", "Z"])
        if "structure_type" in clean.arrays:
            _tell_verdict(particles, clean, denoiser)
        data.attributes["Denoise.steps"] = clean.info["denoise_steps"]
        data.attributes["Denoise.converged"] = clean.info["denoise_converged"]
        data.attributes["Denoise.stalled"] = clean.info["denoise_stalled"]
        data.attributes["Denoise.mean_displacement"] = clean.info["denoise_mean_displacement"][-1]
        data.attributes["Denoise.checkpoint"] = clean.info["denoise_checkpoint"]

    def _denoiser(self) -> Denoiser:
        if self._loaded is None or self._loaded[0] != self.checkpoint:
            from zoo.denoiser import Denoiser

            loaded = (self.checkpoint, Denoiser.from_pretrained(self.checkpoint))
            # Quietly: OVITO evaluates the pipeline anew when it hears of a change.
            self.trait_setq(_loaded=loaded)
        denoiser: Denoiser = self._loaded[1]
        return denoiser


def _tell_verdict(particles: Any, clean: Atoms, denoiser: Denoiser) -> None:
    """Structure types with the names and colours of the verdict, and its confidence."""
    from zoo.verdict_names import COLORS, OTHER

    assert denoiser.head is not None
    for name in ("Structure Type", CONFIDENCE):
        if name in particles:
            del particles[name]
    # 0 is what is no crystal, as elsewhere in OVITO.
    classes = (*denoiser.head.classes[::-1], *([OTHER] if denoiser.config.acts_on else []))
    code = {name: index for index, name in enumerate(classes)}
    labels = np.array([code[name] for name in clean.arrays["structure_type"]], dtype=np.int32)
    types = particles.create_property("Structure Type", data=labels)
    for name, index in code.items():
        kind = types.add_type_id(index, particles, name=name)
        value = COLORS.get(name, "#888888").lstrip("#")
        kind.color = tuple(int(value[i : i + 2], 16) / 255 for i in (0, 2, 4))
    particles.create_property(CONFIDENCE, data=clean.arrays["confidence"])


def to_ase(data: DataCollection, *, only_selected: bool = False) -> Atoms:
    """The particles of an OVITO ``DataCollection`` as atoms, for the denoiser.

    Atomic numbers are those of elements where all particle types are named after some; else they tell types
    apart and mean nothing.
    Positions are copied as they are, in Å; the cell is the same lattice, if need be with other vectors,
    and zero where it is not periodic.  With ``only_selected``, ``FixAtoms`` holds what is not selected.

    Raises
    ------
    StructureError : no particles, or ``only_selected`` without a ``Selection`` property.
    """
    particles = data.particles
    if particles is None or particles.count == 0:
        raise StructureError("there are no particles; is the file read as particles?")
    if particles.positions is None:
        raise StructureError("the particles have no positions; map a column of the file to Position")
    cell, pbc = _lattice(data.cell)
    atoms = Atoms(positions=np.asarray(particles.positions, dtype=np.float64), cell=cell, pbc=pbc)
    if particles.particle_types is not None:
        atoms.numbers = _numbers(particles.particle_types)
    if only_selected:
        if particles.selection is None:
            raise StructureError(
                "only_selected is set but nothing was ever selected; put a modifier that selects particles "
                "before this one, or set only_selected=False"
            )
        held = np.asarray(particles.selection) == 0
        if held.any():
            atoms.set_constraint(FixAtoms(mask=held))
    return atoms


def _numbers(types: Any) -> npt.NDArray[np.int64]:
    """(n_particles,) atomic numbers by the names of the particle types; 1, 2, ... if they are no symbols."""
    ids, index = np.unique(np.asarray(types), return_inverse=True)
    named = {kind.id: kind.name for kind in types.types}
    symbols = [named.get(int(each), "") for each in ids]
    known = all(symbol in atomic_numbers and symbol != "X" for symbol in symbols)
    if known and len(set(symbols)) == len(symbols):
        return np.array([atomic_numbers[symbol] for symbol in symbols], dtype=np.int64)[index.ravel()]
    return np.asarray(1 + index.ravel(), dtype=np.int64)


def _lattice(cell: SimulationCell | None) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Lattice vectors as rows, (3, 3) Å, and pbc, (3,), of an OVITO ``SimulationCell`` or of None."""
    if cell is None:
        return np.zeros((3, 3)), np.zeros(3, dtype=bool)
    # OVITO ignores the third direction of a two-dimensional cell.
    pbc = np.array(cell.pbc, dtype=bool) & [True, True, not cell.is2D]
    rows = np.where(pbc[:, None], np.asarray(cell[...], dtype=np.float64)[:, :3].T, 0.0)
    if np.linalg.det(rows) < 0:  # left-handed, which the denoiser refuses; so all three are periodic
        rows = rows[[1, 0, 2]]
    return rows, pbc


def _in_background(denoiser: Denoiser, atoms: Atoms, steps: int) -> Generator[float, None, Atoms]:
    """Denoise in a thread, yield the fraction done every 50 ms, return the clean atoms.

    So OVITO stays responsive during long steps.  Where it drops this generator (the user cancels, a
    parameter changes), the thread ends after the step it is at.
    """
    done, dropped = 0, False

    def after_step(step: int, positions: npt.NDArray[np.float64], mean: float) -> None:
        nonlocal done
        done = step
        if dropped:
            raise CancelledError

    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="zoo-denoise")
    try:
        future = pool.submit(denoiser.denoise, atoms, steps, after_step)
        while not wait([future], timeout=_POLL).done:
            yield done / steps
        return future.result()
    finally:
        dropped = True
        pool.shutdown(wait=False)
