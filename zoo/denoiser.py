"""The denoiser: thermal vibration out, structure and defects kept.

Hsu, Sadigh, Bertin, Park, Chapman, Bulatov & Zhou, npj Comput. Mater. 10, 155 (2024)
(arXiv:2212.02421): a network trained on noised perfect lattices predicts every atom's displacement
from its site; applying it a few times, neighbours searched anew each time, leaves the lattice.

From its second step on our network is also told the median displacements of the first and of the
previous step, so it can tell a disordered spot in a calm crystal, which is structure, from noise.

Two rules of ours turn that into a process that stops by itself.  Vibration is homogeneous: after
the first prediction the noise level sigma is known from the median displacement of the whole
frame, and no atom moves further than ``clip * sigma`` in that step.  The limit shrinks by ``decay``
with every step, so that the total displacement is at most ``clip * sigma / (1 - decay)``: a loose
guard against runaway in noisy frames, and a tight one where there is no noise, where nothing moves.
Steps end when the mean displacement falls below ``tolerance`` (converged) or no longer shrinks
(stalled).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from ase.data import atomic_numbers
from torch import nn

from zoo import checkpoint, hub
from zoo.backbones.mace_network import MaceConfig, MaceNetwork
from zoo.backbones.moments import Moments, MomentsConfig
from zoo.errors import CheckpointError, StructureError
from zoo.graph import neighbor_graph
from zoo.riders import Riders, riders
from zoo.scale import length_scale
from zoo.structures import check_structure
from zoo.verdict import Verdict, VerdictConfig, VerdictHead, averaging, head_features
from zoo.verdict_names import OTHER, is_verdict

Array = npt.NDArray[np.float64]
Callback = Callable[[int, Array, float], None]

#: Median length of a vector of three unit normal components.
_MEDIAN_LENGTH = 1.5382

_POSITIVE = ("clip", "decay", "persistence", "patience", "tolerance", "stall", "largest_noise")

BACKBONES: dict[str, tuple[type[Any], Callable[[Any], nn.Module]]] = {
    "moments": (MomentsConfig, Moments),
    "mace": (MaceConfig, MaceNetwork),
}


@dataclass(frozen=True)
class DenoiserConfig:
    """Everything but the weights that a denoiser is.

    Parameters
    ----------
    name, version : of the checkpoint.
    lattices : the structures it was trained to restore.
    backbone, architecture : name and arguments of the network.
    scale : how lengths are normalised; "atomic-volume" is the only rule so far.
    clip, decay : bound on a step's displacement, see the module's text.
    persistence, patience : the network is told a median displacement ``persistence`` times that of the
        previous step, but at most that of the first and at least ``patience**k`` times that of the first
        after k steps, so that it goes on where single atoms lag behind the typical one.
    tolerance : mean displacement, in length scales, at which denoising has converged.
    stall : steps also end, from the fourth on, when the mean displacement is more than this fraction of
        that of the previous step; that is not called converged.
    largest_noise : largest noise seen in training, in nearest-neighbour distances per component.
    verdict : of a head that says what each atom is, see `zoo.verdict.VerdictConfig`; None for no head.
    acts_on : symbol of the element whose atoms are denoised, as oxygen in ice; others ride along, see
        `zoo.riders`.  "" for all atoms.
    """

    name: str
    version: str
    lattices: tuple[str, ...] = ()
    backbone: str = "moments"
    architecture: dict[str, Any] = field(default_factory=dict)
    scale: str = "atomic-volume"
    clip: float = 5.0
    decay: float = 0.85
    persistence: float = 6.0
    patience: float = 0.7
    tolerance: float = 1e-3
    stall: float = 0.9
    largest_noise: float = 0.17
    verdict: VerdictConfig | None = None
    acts_on: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, as in ``config.json``."""
        return {
            **asdict(self),
            "lattices": list(self.lattices),
            "verdict": self.verdict.to_dict() if self.verdict else {},
            "kind": "denoiser",
            "units": {"length": "angstrom", "network": "cube root of the atomic volume"},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DenoiserConfig:
        """Read the JSON form strictly.

        Raises
        ------
        CheckpointError : a key is missing, unknown or of the wrong kind.
        """
        known = {f.name for f in fields(cls)}
        extra = {"kind", "units", "format_version", "weights_sha256"}
        unknown = sorted(set(data) - known - extra)
        # All of them: a default that changes later must not change what an old checkpoint means.
        missing = sorted(known - set(data))
        if unknown or missing:
            raise CheckpointError(
                f"config.json of a denoiser: {_listed('unknown', unknown)}{_listed('missing', missing)}"
                "upgrade score-zoo or fetch the checkpoint again"
            )
        acts_on = data["acts_on"]
        if not isinstance(acts_on, str) or (acts_on and acts_on not in atomic_numbers):
            raise CheckpointError("config.json: acts_on must be the symbol of an element, or empty")
        if not isinstance(data["backbone"], str) or not isinstance(data["architecture"], Mapping):
            raise CheckpointError("config.json: backbone must be a name and architecture an object")
        lattices = data.get("lattices", [])
        if not isinstance(lattices, list | tuple) or not all(isinstance(x, str) for x in lattices):
            raise CheckpointError("config.json: lattices must be a list of names")
        config = cls(
            **{k: v for k, v in data.items() if k in known - {"lattices", "verdict"}},
            lattices=tuple(lattices),
            verdict=VerdictConfig.from_dict(data["verdict"]),
        )
        if config.backbone not in BACKBONES:
            raise CheckpointError(f"unknown backbone {config.backbone!r} in config.json: upgrade score-zoo")
        if config.scale != "atomic-volume":
            raise CheckpointError(f"unknown scale rule {config.scale!r} in config.json: upgrade score-zoo")
        arguments = BACKBONES[config.backbone][0]
        later: frozenset[str] = getattr(arguments, "LATER", frozenset())
        unset = sorted({f.name for f in fields(arguments)} - later - set(config.architecture))
        if unset:
            raise CheckpointError(
                f"config.json: architecture lacks {', '.join(unset)}; fetch the checkpoint again"
            )
        numbers = [getattr(config, key) for key in _POSITIVE]
        if (
            not all(
                isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) and x > 0
                for x in numbers
            )
            or max(config.decay, config.patience) >= 1
        ):
            raise CheckpointError(
                f"config.json: {', '.join(_POSITIVE)} must be positive numbers, decay and patience below 1"
            )
        return config

    def build(self) -> nn.Module:
        """An untrained network of this architecture.

        Raises
        ------
        CheckpointError : the architecture's arguments do not fit the backbone.
        """
        config_type, network_type = BACKBONES[self.backbone]
        try:
            return network_type(config_type(**self.architecture))
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"config.json: architecture does not fit backbone {self.backbone!r}: {error}"
            ) from None


def _listed(what: str, names: list[str]) -> str:
    return f"{what} {', '.join(names)}; " if names else ""


class Denoiser:
    """A pretrained denoiser of crystal snapshots.

    >>> clean = Denoiser.from_pretrained("denoiser-elements").denoise(atoms)  # doctest: +SKIP
    """

    def __init__(
        self,
        config: DenoiserConfig,
        network: nn.Module,
        *,
        head: VerdictHead | None = None,
        metrics: Mapping[str, Any] | None = None,
        card: str = "",
    ) -> None:
        self.config = config
        self.network = network.eval().requires_grad_(False)
        self.head = head.eval().requires_grad_(False) if head is not None else None
        # In units of the length scale; a default of the architecture unless the config says otherwise.
        self.cutoff = float(getattr(network, "cutoff"))  # noqa: B009
        self.metrics = dict(metrics or {})
        self.card = card

    @property
    def name(self) -> str:
        return self.config.name

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str] = "denoiser-elements",
        version: str | None = None,
        source: str = "auto",
    ) -> Denoiser:
        """Load a checkpoint, fetching it from the Hub if it is not here.

        Parameters
        ----------
        name_or_path : folder, registry name or ``owner/name`` on the Hub; names may end in ``@v1.2.0``.
        version : ``X.Y.Z``, instead of the ``@``.
        source : "local", "bundled" or "hub" to look nowhere else.

        Raises
        ------
        CheckpointError : damaged, of a newer format, not a denoiser, or cannot be fetched.
        UnknownCheckpointError : no such folder or name; close matches are offered.
        """
        stored = hub.load(name_or_path, kind="denoiser", version=version, source=source)
        config = DenoiserConfig.from_dict(stored.config)
        # Initial values are overwritten, and the caller's seed is not ours.  The meta device would draw
        # none, but its arithmetic imports the whole of torch's compiler, which takes a second.
        with torch.random.fork_rng(devices=[]):
            network = config.build().float()  # float32 whatever the caller's default dtype
            head = None if config.verdict is None else VerdictHead.of(network, config.verdict).float()
        shapes = {k: tuple(v.shape) for k, v in _weights(network, head).items()}
        checkpoint.check_weights(shapes, stored.weights, str(stored.folder))
        network.load_state_dict({k: v for k, v in stored.weights.items() if not k.startswith(_HEAD)})
        if head is not None:
            weights = {k.removeprefix(_HEAD): v for k, v in stored.weights.items() if k.startswith(_HEAD)}
            head.load_state_dict(weights)
        return cls(config, network, head=head, metrics=stored.metrics, card=stored.card)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write the checkpoint folder; an interruption leaves the old one or the new one, never a mixture.

        Raises
        ------
        CheckpointError : the folder cannot be written.
        """
        return checkpoint.save(
            folder, self.config.to_dict(), self.weights(), metrics=self.metrics, card=self.card
        )

    def weights(self) -> dict[str, torch.Tensor]:
        """What ``model.safetensors`` holds: the network's parameters, and the head's."""
        return _weights(self.network, self.head)

    def denoise(self, atoms: Atoms, steps: int = 10, callback: Callback | None = None) -> Atoms:
        """A copy of ``atoms`` without its thermal vibration.

        Parameters
        ----------
        atoms : any species, any mixture of periodic and free axes.  Atoms held by ``FixAtoms`` stay; other
            constraints are kept but do not act.  Made for crystals: a molecule is distorted.
        steps : at most so many steps; fewer if it has converged.
        callback : called after every step with (step from 1, positions (n_atoms, 3) Å, mean
            displacement of the step in Å).

        Returns
        -------
        A new object with every array, the cell, pbc, constraints and info of the input.  Results of
        a calculator belong to the old positions and are left out.  Where the checkpoint acts on one element
        (``acts_on``), what is bonded to such an atom moves with it and the rest stays.  ``info`` gains
        ``denoise_mean_displacement`` (Å, over the atoms that are denoised and not held, one per step taken),
        ``denoise_steps``, ``denoise_converged``, ``denoise_stalled`` (it ended because displacements no
        longer shrank, as happens in liquids and in lattices the checkpoint was not trained on) and
        ``denoise_checkpoint``.  If the checkpoint has a head, arrays of the atoms gain ``structure_type``
        (names, "disordered" among them) and ``confidence`` (in [0, 1]), see `verdict`; arrays of the input
        with these names are then called ``structure_type_input`` and ``confidence_input``.  The verdict of
        an earlier run is dropped.

        Raises
        ------
        StructureError : unusable structure (NaN, no cell with pbc, coincident atoms, ...) or steps < 1.
        """
        if not isinstance(steps, int | np.integer) or steps < 1:
            raise StructureError(f"steps is {steps!r}: give a whole number, at least 1")
        check_structure(atoms)
        part, acting = self._part(atoms)
        result = atoms.copy()
        moved: list[float] = []
        start = positions = atoms.get_positions()
        held = _held(atoms)
        converged = stalled = False
        for step in self._steps(acting, steps):
            positions = step.positions
            if part is not None:
                positions = part.carried(start, step.positions)
                positions[held] = start[held]
            moved.append(step.mean)
            converged, stalled = step.converged, step.stalled
            if callback is not None:
                callback(len(moved), positions.copy(), step.mean)  # the caller's to keep or to change
        result.set_positions(positions, apply_constraint=False)
        if self.head is not None:
            self._tell(result)
        elif is_verdict(result.arrays) and "confidence" in result.arrays:
            for key in ("structure_type", "confidence"):
                result.arrays.pop(key, None)
        result.info.update(
            denoise_mean_displacement=moved,
            denoise_steps=len(moved),
            denoise_converged=converged,
            denoise_stalled=stalled,
            denoise_checkpoint=f"{self.config.name}@{self.config.version}",
        )
        return result

    def _part(self, atoms: Atoms) -> tuple[Riders | None, Atoms]:
        """Who is denoised and who rides along, None where all atoms are denoised; and the former, checked.

        Raises
        ------
        StructureError : there are none, or they alone are no structure.
        """
        if not self.config.acts_on:
            return None, atoms
        part = riders(atoms, self.config.acts_on)
        acting = atoms[part.acting]
        if len(acting) < len(atoms):
            check_structure(acting, f"the {self.config.acts_on} of the structure")
        return part, acting

    def _species(self, atoms: Atoms) -> npt.NDArray[np.int64]:
        """(n_atoms,) what tells species apart: elements, or LAMMPS types where no element is known.

        Raises
        ------
        StructureError : all atoms are of one species, and the network is one for compounds.
        """
        kinds: list[npt.NDArray[np.int64]] = [np.asarray(atoms.numbers, dtype=np.int64)]
        if self.config.acts_on:  # all that is left is of one element
            return np.zeros(len(atoms), dtype=np.int64)
        if not getattr(self.network, "sees_species", False):
            return kinds[0]
        types = atoms.arrays.get("type")
        if types is not None and types.dtype.kind in "iu":
            kinds.append(np.asarray(types, dtype=np.int64))
        for kind in kinds:
            if len(np.unique(kind)) > 1:
                return kind
        raise StructureError(
            f"all atoms are of one species, and {self.name} is for compounds: name the species of LAMMPS "
            "types (--species), or use denoiser-elements"
        )

    def _tell(self, result: Atoms) -> None:
        """Put the verdict into the arrays of a denoised structure."""
        verdict = self.verdict(result)
        earlier = is_verdict(result.arrays) and "confidence" in result.arrays
        for key, values in (("structure_type", verdict.structure_type), ("confidence", verdict.confidence)):
            there = result.arrays.pop(key, None)
            if there is not None and not earlier:
                result.set_array(f"{key}_input", there)
            result.set_array(key, values)

    def denoise_trajectory(
        self, frames: Iterable[Atoms], steps: int = 10, callback: Callback | None = None
    ) -> Iterator[Atoms]:
        """Denoise frame after frame, reading the next one only when it is asked for.

        Raises
        ------
        StructureError : as `denoise`, naming the frame (from 0).
        """
        for index, atoms in enumerate(frames):
            try:
                yield self.denoise(atoms, steps, callback)
            except StructureError as error:
                raise StructureError(f"frame {index}: {error}") from error

    def _steps(self, atoms: Atoms, steps: int) -> Iterator[_Step]:
        positions = atoms.get_positions()
        cell, pbc = atoms.cell[:], atoms.pbc
        scale, species = length_scale(positions, cell, pbc), self._species(atoms)
        held = _held(atoms)
        bound = before = math.inf
        context: tuple[float, float] | None = None
        for k in range(steps):
            displacement = self.displacement(positions, cell, pbc, scale, context, species)
            displacement[held] = 0.0
            if not held.any():
                displacement -= displacement.mean(0)  # a common translation is no vibration
            length = np.linalg.norm(displacement, axis=1)
            median = float(np.median(length[~held])) if not held.all() else 0.0
            first = context[0] if context else median / scale
            told = max(self.config.persistence * median / scale, first * self.config.patience ** (k + 1))
            context = (first, min(first, told))
            if k == 0:
                bound = self.config.clip * median / _MEDIAN_LENGTH
            displacement *= np.minimum(1.0, bound / np.maximum(length, 1e-12))[:, None]
            bound *= self.config.decay
            positions = positions + displacement
            mean = float(np.linalg.norm(displacement[~held], axis=1).mean()) if not held.all() else 0.0
            # What no longer shrinks from step to step is not noise: a free body that breathes, a boundary
            # that creeps.
            converged = mean < self.config.tolerance * scale
            stalled = not converged and k >= 3 and mean > self.config.stall * before
            before = mean
            yield _Step(positions, mean, converged, stalled)
            if converged or stalled:
                return

    def displacement(
        self,
        positions: Array,
        cell: Array,
        pbc: npt.ArrayLike,
        scale: float,
        context: tuple[float, float] | None = None,
        species: npt.ArrayLike | None = None,
    ) -> Array:
        """The network's prediction (n_atoms, 3) in Å of the way back to the lattice.

        ``context`` has the median displacements of the first and of the previous step (the latter
        raised, see `DenoiserConfig`) in units of ``scale``, if there were any.  ``species`` are (n_atoms,)
        whole numbers such as atomic numbers; networks that do not see species ignore them.

        The score of the noised distribution is this over sigma squared (Tweedie's formula).
        """
        graph = neighbor_graph(positions, cell, pbc, self.cutoff, scale, species)
        with torch.inference_mode():
            prediction: Array = self.network(graph, context).numpy().astype(np.float64)
        return prediction * scale

    def verdict(self, atoms: Atoms) -> Verdict:
        """What each atom of a *denoised* structure is: a crystal or disordered, with a confidence.

        For a checkpoint that acts on one element, atoms bonded to such an atom share its verdict, and a last
        class "other" has the atoms that it is not for.

        Raises
        ------
        CheckpointError : this checkpoint has no head.
        StructureError : unusable structure.
        """
        if self.head is None:
            raise CheckpointError(f"{self.name} {self.config.version} gives no verdict, it only denoises")
        check_structure(atoms)
        part, acting = self._part(atoms)
        positions, cell = acting.positions, acting.cell[:]
        scale = length_scale(positions, cell, acting.pbc)
        graph = neighbor_graph(positions, cell, acting.pbc, self.cutoff, scale, self._species(acting))
        with torch.inference_mode():
            features = head_features(self.network, graph)
            average = averaging(graph, self.cutoff) if self.head.config.reach else None
            verdict = self.head.verdict(features, average)
        if part is None or len(acting) == len(atoms):
            return verdict
        probabilities = np.pad(verdict.probabilities, ((0, 1), (0, 1)))
        probabilities[-1, -1] = 1.0  # the row of those that go with nobody, -1
        return Verdict((*verdict.classes, OTHER), probabilities[part.host])


@dataclass(frozen=True)
class _Step:
    positions: Array
    mean: float
    converged: bool
    stalled: bool


#: Names of the head's weights in a checkpoint begin like this.
_HEAD = "verdict."


def _weights(network: nn.Module, head: VerdictHead | None) -> dict[str, torch.Tensor]:
    weights = dict(network.state_dict())
    if head is not None:
        weights |= {_HEAD + key: value for key, value in head.state_dict().items()}
    return weights


def _held(atoms: Atoms) -> npt.NDArray[np.bool_]:
    """Atoms that a ``FixAtoms`` constraint holds in place."""
    held = np.zeros(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            held[constraint.index] = True
    return held
