"""What a propagator is fine-tuned with: how it reads one's own MD, packs it, trains on it and is judged.

A checkpoint of a family learns the user's molecule beside those that it knows; a checkpoint of one molecule
stays one of that molecule, and learns how it moves in the user's MD.  `learner` gives the one that fits.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.loop import LoopConfig
from training.reference_md.segments import Segment
from training.score_dynamics import families, fit
from training.score_dynamics.calibration import LONGEST_LAG, calibrated
from training.score_dynamics.families import Member, PackedFamily
from training.score_dynamics.family_recipe import family_of, spread
from training.score_dynamics.own_md import Run, read_runs
from training.score_dynamics.packed import NoiseConfig, Packed, read_packed, write_packed
from training.score_dynamics.recipe import finish, measured
from training.score_dynamics.transitions import denoising_loss, make_batches, transitions
from zoo.errors import ZooError
from zoo.graph_denoiser import GraphDenoiser
from zoo.molecules.family import Family
from zoo.molecules.molecule import Molecule
from zoo.score_dynamics import ConditionalDenoiser, ScoreDynamics, ScoreDynamicsConfig

#: In the folder of the state.
DATA, START = "data.safetensors", "start.safetensors"
_CHECK = 2048  # held-out pairs for the loss before and after
Report = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class Request:
    """What is asked for: name of the new checkpoint, ps of a step, K of the MD, samples of a training step
    (None: as many as usual), and whether to start from random weights."""

    name: str
    lag_time: float
    temperature: float
    batch_size: int | None
    from_nothing: bool


class Learner(ABC):
    """One fine-tuning: `read`, `prepare`, `fit`, `finish`; ``state`` is the folder that a kill leaves."""

    #: Samples of a step unless asked otherwise.
    batch_size: int

    def __init__(self, old: ScoreDynamics, request: Request, state: Path) -> None:
        self.old, self.request, self.state = old, request, state
        if request.batch_size is not None:
            self.batch_size = request.batch_size
        self.start_from = None if request.from_nothing else state / START

    @abstractmethod
    def read(
        self, paths: Sequence[Path], topology: Path | None, interval: float | None
    ) -> tuple[Molecule, list[Run]]:
        """The molecule, and where its sites went; see `read_runs`."""

    @abstractmethod
    def prepare(
        self, source: str, molecule: Molecule, training: list[Segment], validation: list[Segment]
    ) -> None:
        """Write the training data, and the weights to start from; ``source`` names the MD."""

    @abstractmethod
    def fit(
        self, loop: LoopConfig, stop_after: int | None, report: Report
    ) -> tuple[torch.nn.Module, dict[str, Tensor]]:
        """Train, or continue; the network, and its averaged parameters where validation was best."""

    @abstractmethod
    def finish(self, model: Any, average: dict[str, Tensor]) -> dict[str, Any]:
        """Give the network its averaged parameters, and what else is measured on the data; the config."""

    @abstractmethod
    def loss(self, model: Any, held_out: Sequence[Segment]) -> float:
        """Denoising loss on frames that neither training nor its curve has seen."""

    @abstractmethod
    def packed(self) -> Packed | PackedFamily:
        """The training data, as written."""

    def loss_before(self, held_out: Sequence[Segment]) -> float | None:
        """`loss` of the weights that training started from; None where these were random."""
        if self.start_from is None:
            return None
        model = self.packed().build()
        model.load_state_dict(load_file(self.start_from))
        return self.loss(model, held_out)

    def config(self, **more: Any) -> dict[str, Any]:
        """Fields of the new checkpoint's config.

        What continues a model with sides keeps how often it goes over the barrier, which trajectories of a
        user do not tell; what begins from nothing has no sides.
        """
        old = self.old.config
        known = {f.name: getattr(old, f.name) for f in dataclasses.fields(old)}
        if self.request.from_nothing:  # these were chosen for the old weights
            known |= {"noise_scale": 1.0, "levels": ()}
        if self.request.from_nothing and old.sides is not None:
            known["sides"] = None
            known["architecture"] = {k: v for k, v in old.architecture.items() if k != "n_labels"}
        return {
            **known,
            "name": self.request.name,
            "version": "0.1.0",
            "lag_time": self.request.lag_time,
            "temperature": self.request.temperature,
            "forcefield": "that of the trajectories",
            **more,
        }


class FamilyLearner(Learner):
    """A family that learns one more molecule: its elements, surroundings, bonds and bands."""

    batch_size = 128

    def read(
        self, paths: Sequence[Path], topology: Path | None, interval: float | None
    ) -> tuple[Molecule, list[Run]]:
        return read_runs(paths, topology, self.request.lag_time, interval)

    def prepare(
        self, source: str, molecule: Molecule, training: list[Segment], validation: list[Segment]
    ) -> None:
        old, lag = self.old, self.request.lag_time
        assert old.family is not None
        sites = range(molecule.n_sites)
        member = Member(
            "molecule",
            molecule,
            transitions(training, sites, lag),
            transitions(validation, sites, lag),
            self.batch_size,
        )
        new = replace(family_of([member]), molecules=(f"{source} ({molecule.formula})",))
        nothing = self.request.from_nothing
        elements = list(dict.fromkeys([*old.config.architecture["elements"], *molecule.elements]))
        config = ScoreDynamicsConfig(
            **self.config(
                sigma_data=round(spread([member]), 4) if nothing else old.config.sigma_data,
                architecture={**old.config.architecture, "elements": elements},
                family=(new if nothing else joined(old.family, new)).to_json(),
            )
        )
        config.check()
        data = PackedFamily(config.to_dict(), (member,), NoiseConfig(), _names(training, validation))
        families.write_packed(self.state / DATA, data)
        if self.start_from is not None:
            save_file(widened(old, data), self.start_from)

    def packed(self) -> PackedFamily:
        return families.read_packed(self.state / DATA)

    def fit(
        self, loop: LoopConfig, stop_after: int | None, report: Report
    ) -> tuple[GraphDenoiser, dict[str, Tensor]]:
        return families.fit(
            self.packed(), self.state, loop, start_from=self.start_from, stop_after=stop_after, report=report,
            keep_best=True,
        )  # fmt: skip

    def finish(self, model: GraphDenoiser, average: dict[str, Tensor]) -> dict[str, Any]:
        model.load_state_dict(average, strict=False)
        return self.packed().config

    def loss(self, model: GraphDenoiser, held_out: Sequence[Segment]) -> float:
        data = self.packed()
        return _loss(model.of(data.members[0].molecule), data.noise, held_out, self.request.lag_time)


class MoleculeLearner(Learner):
    """A propagator of one molecule that learns how it moves in other MD: sites and network stay."""

    batch_size = 512

    def read(
        self, paths: Sequence[Path], topology: Path | None, interval: float | None
    ) -> tuple[Molecule, list[Run]]:
        return read_runs(
            paths,
            topology,
            self.request.lag_time,
            interval,
            molecule=self.old.molecule,
            labels_like=self.old.reference(),
        )

    def prepare(
        self, source: str, molecule: Molecule, training: list[Segment], validation: list[Segment]
    ) -> None:
        sites, lag = range(molecule.n_sites), self.request.lag_time
        pairs = transitions(training, sites, lag)
        # Measured anew for random weights only: the old ones are used to theirs.
        sigma_data = None if self.request.from_nothing else self.old.config.sigma_data
        config = measured(self.config(), molecule, pairs, sigma_data)
        data = Packed(
            config=config.to_dict(),
            n_sites=molecule.n_sites,
            stereocentre=molecule.stereocentres[:1],
            training=pairs,
            validation=transitions(validation, sites, lag),
            noise=NoiseConfig(batch_size=self.batch_size),
            segments=_names(training, validation),
        )
        write_packed(self.state / DATA, data)
        if self.start_from is not None:
            weights = {k: v.contiguous() for k, v in self.old.denoiser.state_dict().items()}
            save_file(weights, self.start_from)

    def packed(self) -> Packed:
        return read_packed(self.state / DATA)

    def fit(
        self, loop: LoopConfig, stop_after: int | None, report: Report
    ) -> tuple[ConditionalDenoiser, dict[str, Tensor]]:
        return fit.fit(
            self.packed(), self.state, loop, start_from=self.start_from, stop_after=stop_after, report=report,
            keep_best=True,
        )  # fmt: skip

    def finish(self, model: ConditionalDenoiser, average: dict[str, Tensor]) -> dict[str, Any]:
        model.load_state_dict(average, strict=False)
        data = self.packed()
        finish(model, data.training, data.validation)
        return calibrated(data.config, model, data.validation) if self.fits_noise else data.config

    @property
    def fits_noise(self) -> bool:
        return self.request.lag_time <= LONGEST_LAG

    def loss(self, model: ConditionalDenoiser, held_out: Sequence[Segment]) -> float:
        return _loss(model, self.packed().noise, held_out, self.request.lag_time)


def learner(old: ScoreDynamics, request: Request, state: Path) -> Learner:
    """The learner for a checkpoint.

    Raises
    ------
    ZooError : another lag time than the checkpoint's, and not from nothing.
    """
    if not request.from_nothing and abs(request.lag_time - old.lag_time) > 1e-6 * old.lag_time:
        raise ZooError(
            f"{old.name} takes steps of {old.lag_time:g} ps: for --lag {request.lag_time:g} train "
            "--from-nothing"
        )
    return (MoleculeLearner if old.family is None else FamilyLearner)(old, request, state)


def _loss(model: Any, noise: NoiseConfig, held_out: Sequence[Segment], lag_time: float) -> float:
    data = transitions(held_out, range(held_out[0].positions.shape[1]), lag_time)
    rows = make_batches(data, _CHECK, 0.0)(np.random.default_rng(1))
    with torch.no_grad():
        value = denoising_loss(model, rows, noise.sigma_mean, noise.sigma_std)
    return round(float(value), 5)


def _names(training: list[Segment], validation: list[Segment]) -> dict[str, list[str]]:
    return {
        "training": [s.name for s in training],
        "validation": [s.name for s in validation],
        "held_out": [],
    }


def joined(old: Family, new: Family) -> Family:
    """Both families: what was measured anew counts where both know something, bands are as wide as either."""
    bands = dict(old.bands)
    for kind, (low, high) in new.bands.items():
        before = bands.get(kind, (low, high))
        bands[kind] = (min(low, before[0]), max(high, before[1]))
    rigid = [kind for kind in old.rigid_bonds if kind not in new.bond_lengths]
    # The law keeps its exponent and goes through what was measured.
    return Family(
        molecules=tuple(dict.fromkeys([*old.molecules, *new.molecules])),
        environments=tuple(sorted({*old.environments, *new.environments})),
        bond_lengths={**old.bond_lengths, **new.bond_lengths},
        rigid_bonds=tuple(sorted({*rigid, *new.rigid_bonds})),
        bands=bands,
        edge=max(old.edge, new.edge),
        translation=new.translation,
        rotation=new.rotation,
        example=new.example,
    )


def widened(old: ScoreDynamics, packed: PackedFamily) -> dict[str, Tensor]:
    """The old weights, with random vectors for elements that are new."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = packed.build().state_dict()
    weights = {}
    for name, value in old.denoiser.state_dict().items():
        if value.shape == fresh[name].shape:
            weights[name] = value.clone()
        else:
            weights[name] = fresh[name].clone()
            weights[name][: len(value)] = value
    return weights
