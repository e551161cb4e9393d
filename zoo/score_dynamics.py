"""Score dynamics: molecular dynamics in picosecond steps, by sampling p(x(t + lag) | x(t)).

Hsu, Sadigh, Bulatov & Zhou, J. Chem. Theory Comput. (2024), arXiv:2310.01678: a conditional diffusion
model is trained on pairs of frames one lag time apart; a step of dynamics is one sample from it.

How a transition is described here (x, x' in Å; rows are sites):

1. x is expressed in its body frame.  The third axis takes the handedness of a stereocentre, so that a
   molecule and its mirror image have the same local coordinates; where the molecule has no
   stereocentre the mean over both handednesses is taken.  Rotations, translations and reflections are
   therefore exact symmetries, whatever the network.
2. x' is superposed on x (Kabsch).  What remains, y = aligned(x') - x, lies in the linear space
   without rigid motion at x, of dimension 3 n - 6.  The diffusion model lives in that space.
3. The rigid motion that superposition took out is put back as Brownian motion of the body frame with a
   covariance (rotation and translation, 6 x 6) fitted to the same MD.
4. Where the MD has a barrier that nearly no step goes over, the side on which the step ends is drawn first,
   and the diffusion model is told it; see `zoo.sides`.
5. Bonds to hydrogen that the MD held rigid are put back at their length, which a sample of a smooth
   density misses by a little.  Scores and probabilities are those before this step.

A checkpoint of a family of molecules has an equivariant network instead of a body frame, and learns of its
molecule from the start; see `zoo.graph_denoiser` and `zoo.molecules.family`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from zoo import checkpoint, diffusion, hub
from zoo.backbones.graph_transformer import GraphTransformer, GraphTransformerConfig
from zoo.backbones.site_mlp import SiteMLP, SiteMLPConfig
from zoo.backbones.site_network import SiteNetwork
from zoo.backbones.site_transformer import SiteTransformer, SiteTransformerConfig
from zoo.errors import CheckpointError, StructureError
from zoo.graph_denoiser import GraphDenoiser, MoleculeDenoiser
from zoo.molecules.checks import Limits
from zoo.molecules.family import Family
from zoo.molecules.molecule import Molecule, handedness
from zoo.molecules.rigid import (
    body_frames,
    centred,
    project_out,
    rigid_motions,
    rotation_matrix,
    without_rigid_motion,
)
from zoo.sides import Sides, SidesConfig

if TYPE_CHECKING:
    from zoo.rollout import Rollout

Array = npt.NDArray[np.float64]

BACKBONES: dict[str, tuple[type[Any], Callable[[Any], SiteNetwork]]] = {
    "site-mlp": (SiteMLPConfig, SiteMLP),
    "site-transformer": (SiteTransformerConfig, SiteTransformer),
}

#: The backbone of families, which serves any molecule.
GRAPH_BACKBONE = "graph-transformer"


@dataclass(frozen=True)
class ScoreDynamicsConfig:
    """Everything but the weights that a propagator is.

    Parameters
    ----------
    name, version : of the checkpoint.
    molecule : graph and mapping, see `Molecule.to_json`; empty for a family.
    lag_time : ps of one step.
    frame : three sites (a, b, c) that define the body frame.
    sigma_data : Å, standard deviation of a component of the displacement y.
    sigma_min, sigma_max, n_levels, rho, solver : the sampler's ladder of noise levels, Å.
    levels : the levels themselves, ``n_levels`` of them down from ``sigma_max``, where they are not those of
        `diffusion.sigma_ladder`; ``rho`` is then not used, and ``sigma_min`` in `log_prob` only.
    noise_scale : the noise from which a step starts, over that of ``sigma_max``.  A network that was not
        fitted perfectly makes steps that spread a few per cent too widely, and so crosses barriers too often;
        what it makes spreads in proportion to this.  Recipes of one molecule choose it by MD that was not
        trained on.
    bond_lengths : Å, mean of each bond of the sites in the training data.
    rigid_bonds : which of these bonds the training data held at a fixed length (constraints on bonds to
        hydrogen); each has an end without other bonds, which a step puts back at that length.
    limits : tolerances of the validity checks.
    temperature : K, of the training data.
    forcefield : what made the training data, in words.
    batch_slots : the network always sees this many walkers at once.
    sides : of a barrier, of which a step is told one, see `zoo.sides.SidesConfig`; the architecture then has
        ``n_labels`` 2.
    family : for a checkpoint that is not of one molecule, see `zoo.molecules.family.Family.to_json`;
        ``molecule``, ``frame``, ``bond_lengths`` and ``rigid_bonds`` are empty then.
    """

    name: str
    version: str
    molecule: dict[str, Any]
    lag_time: float
    frame: tuple[int, int, int]
    sigma_data: float
    bond_lengths: tuple[float, ...]
    rigid_bonds: tuple[int, ...] = ()
    backbone: str = "site-mlp"
    architecture: dict[str, Any] = field(default_factory=dict)
    sigma_min: float = 0.01
    sigma_max: float = 3.0
    n_levels: int = 12
    rho: float = 7.0
    levels: tuple[float, ...] = ()
    solver: str = "dpm_multistep"
    noise_scale: float = 1.0
    limits: dict[str, float] = field(default_factory=dict)
    temperature: float = 300.0
    forcefield: str = ""
    batch_slots: int = 32
    sides: dict[str, Any] | None = None
    family: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        data = asdict(self)
        data["frame"] = list(self.frame)
        data["bond_lengths"] = list(self.bond_lengths)
        data["rigid_bonds"] = list(self.rigid_bonds)
        for key in ("sides", "family"):
            if data[key] is None:
                del data[key]
        data["levels"] = list(self.levels)
        for key, value in (("noise_scale", 1.0), ("levels", [])):  # of checkpoints that are older than these
            if data[key] == value:
                del data[key]
        return {"kind": "score-dynamics", "units": {"length": "Å", "time": "ps"}, **data}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ScoreDynamicsConfig:
        """Strict: unknown, missing or impossible values raise `CheckpointError`."""
        known = {f.name for f in fields(cls)}
        given = {
            k: v for k, v in data.items() if k not in {"kind", "units", "format_version", "weights_sha256"}
        }
        unknown = sorted(set(given) - known)
        if unknown:
            raise CheckpointError(f"config.json has unknown keys: {', '.join(unknown)}")
        try:
            config = cls(
                **{
                    **given,
                    "frame": tuple(int(i) for i in given["frame"]),
                    "bond_lengths": tuple(float(b) for b in given["bond_lengths"]),
                    "rigid_bonds": tuple(int(b) for b in given.get("rigid_bonds", ())),
                    "levels": tuple(given.get("levels", ())),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"config.json of a score-dynamics checkpoint is not valid: {error}"
            ) from None
        config.check()
        return config

    def check(self) -> None:
        for key in ("lag_time", "sigma_data", "sigma_min", "sigma_max", "rho", "noise_scale"):
            value = getattr(self, key)
            if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
                raise CheckpointError(f"config.json: {key} is {value!r}, a positive number is needed")
        if self.sigma_min >= self.sigma_max:
            raise CheckpointError(
                f"config.json: sigma_min {self.sigma_min!r} must be smaller than sigma_max {self.sigma_max!r}"
            )
        for key in ("n_levels", "batch_slots"):
            if not isinstance(getattr(self, key), int) or getattr(self, key) < 1:
                raise CheckpointError(f"config.json: {key} is {getattr(self, key)!r}, a count is needed")
        if self.levels != ():
            self._check_levels()
        if self.backbone not in {*BACKBONES, GRAPH_BACKBONE}:
            raise CheckpointError(
                f"config.json: backbone {self.backbone!r} is not known to this version of zoo"
            )
        if self.solver not in diffusion.SOLVERS:
            raise CheckpointError(f"config.json: solver {self.solver!r} is not known to this version of zoo")
        if self.solver in diffusion.STOCHASTIC_SOLVERS:
            raise CheckpointError(
                f"config.json: solver {self.solver!r} wants fresh noise at every level, which a step has not"
            )
        if (self.family is not None) != (self.backbone == GRAPH_BACKBONE):
            raise CheckpointError(
                f"config.json: the backbone of a family, and of nothing else, is {GRAPH_BACKBONE}"
            )
        if self.family is not None:
            Family.from_json(self.family)
            if self.molecule or self.frame or self.bond_lengths or self.rigid_bonds or self.sides:
                raise CheckpointError("config.json: a family has no molecule, frame, bonds or sides")
            return
        molecule = Molecule.from_json(self.molecule)
        if len(set(self.frame)) != 3 or not all(0 <= i < molecule.n_sites for i in self.frame):
            raise CheckpointError(f"config.json: frame {self.frame} must be three different sites")
        if len(self.bond_lengths) != len(molecule.site_bonds):
            raise CheckpointError("config.json: bond_lengths needs one length per bond of the sites")
        rigid_ends(molecule, self.rigid_bonds)
        labels = self.architecture.get("n_labels", 0) if isinstance(self.architecture, dict) else 0
        if type(labels) is not int or labels != (0 if self.sides is None else 2):
            raise CheckpointError("config.json: an architecture with n_labels 2 goes with sides, and only it")
        if self.sides is not None:
            SidesConfig.from_json(self.sides, molecule.n_sites)
            if not molecule.stereocentres:
                raise CheckpointError(
                    "config.json: sides need a stereocentre, without which a mirror image changes them"
                )

    def _check_levels(self) -> None:
        told = f"config.json: levels must be {self.n_levels} positive numbers that fall from sigma_max"
        levels = self.levels
        if not isinstance(levels, tuple) or not all(
            isinstance(each, int | float) and not isinstance(each, bool) for each in levels
        ):
            raise CheckpointError(f"{told}; they are no list of numbers")
        if len(levels) != self.n_levels or levels[0] != self.sigma_max:
            raise CheckpointError(f"{told}; there are {len(levels)}, not all from there")
        single = np.array([min(each, 1e30) for each in levels], dtype=np.float32)  # what a step computes with
        falls = np.append(single[:-1] > single[1:], single[-1] >= np.finfo(np.float32).tiny)
        if single[0] >= 1e30 or not falls.all():
            raise CheckpointError(f"{told}; number {int(falls.argmin()) + 1} does not")

    def sigmas(self) -> Tensor:
        """The sampler's ladder (n_levels + 1,) float64 Å, with the final 0."""
        if self.levels:
            return torch.tensor([*self.levels, 0.0], dtype=torch.float64)
        return diffusion.sigma_ladder(self.n_levels, self.sigma_min, self.sigma_max, self.rho)

    def build(self) -> ConditionalDenoiser | GraphDenoiser:
        if self.family is not None:
            try:
                graph = GraphTransformerConfig(
                    **{**self.architecture, "elements": tuple(self.architecture["elements"])}
                )
                return GraphDenoiser(GraphTransformer(graph), self.sigma_data)
            except (KeyError, TypeError, ValueError) as error:
                raise CheckpointError(
                    f"config.json: architecture does not fit the backbone: {error}"
                ) from None
        config_class, network = BACKBONES[self.backbone]
        try:
            architecture = config_class(**self.architecture)
        except TypeError as error:
            raise CheckpointError(f"config.json: architecture does not fit the backbone: {error}") from None
        molecule = Molecule.from_json(self.molecule)
        return ConditionalDenoiser(
            network(architecture),
            self.sigma_data,
            self.frame,
            molecule.n_sites,
            molecule.stereocentres[:1],
            None if self.sides is None else Sides(SidesConfig.from_json(self.sides, molecule.n_sites)),
        )


class ConditionalDenoiser(nn.Module):
    """D(y, sigma; x): the network with EDM preconditioning, in the body frame, without rigid motion.

    Parameters
    ----------
    network : given x, (y, c_in, level) -> raw output (batch, n_sites, 3).
    sigma_data : Å.
    frame : three sites that define the body frame.
    stereocentre : none or one of `Molecule.stereocentres`, which gives the frame its handedness.
    sides : of a barrier, for networks that are told one; needs a stereocentre.

    ``bf16`` (default False) lets the network, and nothing else, multiply in bfloat16.

    Buffers (part of the weights): ``rigid_factor`` (6, 6), a Cholesky factor of the covariance of
    rotation (rad) and translation (Å) per step in the body frame; ``references`` (k, n_sites, 3),
    training structures in their body frames; ``reference_distance`` (), Å, the distance to the nearest of
    them that 99.9 % of held-out MD frames do not exceed.
    """

    rigid_factor: Tensor
    references: Tensor
    reference_distance: Tensor

    def __init__(
        self,
        network: SiteNetwork,
        sigma_data: float,
        frame: tuple[int, int, int],
        n_sites: int,
        stereocentre: Sequence[tuple[int, int, int, int]] = (),
        sides: Sides | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.sides = sides
        self.preconditioning = diffusion.Preconditioning(sigma_data)
        self.frame = frame
        self.stereocentre = tuple(stereocentre)
        self.bf16 = False
        self.register_buffer("rigid_factor", torch.zeros(6, 6))
        self.register_buffer("references", torch.zeros(N_REFERENCES, n_sites, 3))
        self.register_buffer("reference_distance", torch.ones(()))

    def frames(self, positions: Tensor) -> Tensor:
        """Body axes (batch, 3, 3) of positions (batch, n_sites, 3)."""
        sign = None
        if self.stereocentre:
            sign = handedness(positions, self.stereocentre)[..., 0].to(positions.dtype)
        return body_frames(positions, self.frame, sign)

    def rigid_factors(self, positions: Tensor) -> Tensor:
        """(6, 6) factor L of the covariance L Lᵀ of rotation and translation, the same for all positions."""
        return self.rigid_factor

    def forward(self, y: Tensor, sigma: Tensor, x: Tensor, side: Tensor | None = None) -> Tensor:
        """Denoised displacement; y and x (batch, n_sites, 3) in the body frame, sigma (batch,) or (1,) Å.

        ``side`` (batch,) int64 is that on which the step ends, for models that have sides.
        """
        return self.given(x, side)(y, sigma)

    def given(self, x: Tensor, side: Tensor | None = None) -> diffusion.Denoise:
        """D(., .; x) for many displacements of the same x: what depends on x alone is done once."""
        if self.stereocentre:
            return self._one_hand(x, side)
        mirror = torch.tensor([1.0, 1.0, -1.0], dtype=x.dtype, device=x.device)
        one, other = self._one_hand(x), self._one_hand(x * mirror)

        def denoise(y: Tensor, sigma: Tensor) -> Tensor:
            return 0.5 * (one(y, sigma) + other(y * mirror, sigma) * mirror)

        return denoise

    def _one_hand(self, x: Tensor, side: Tensor | None = None) -> diffusion.Denoise:
        p = self.preconditioning
        rigid = rigid_motions(x)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            network = self.network.given(x, side)

        def denoise(y: Tensor, sigma: Tensor) -> Tensor:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
                raw = network(y, p.c_in(sigma), p.c_noise(sigma)).to(y.dtype)
            wide = sigma[:, None, None]
            return project_out(rigid, p.c_skip(wide) * y + p.c_out(wide) * raw)

        return denoise


#: Structures kept in a checkpoint to tell how far a start is from the training data.
N_REFERENCES = 512


class ScoreDynamics:
    """A propagator over one lag time.

    >>> from zoo import ScoreDynamics
    >>> run = ScoreDynamics.from_pretrained("sd-alanine-dipeptide-cg").rollout(
    ...     "start.pdb", n_steps=1000, n_walkers=16
    ... )  # doctest: +SKIP
    >>> run.trajectories  # doctest: +SKIP
    """

    def __init__(
        self,
        config: ScoreDynamicsConfig,
        denoiser: ConditionalDenoiser | GraphDenoiser,
        *,
        molecule: Molecule | None = None,
        weights_sha256: str = "",
        metrics: dict[str, Any] | None = None,
        card: str = "",
    ) -> None:
        config.check()
        self.config = config
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.family = None if config.family is None else Family.from_json(config.family)
        self.lag_time = float(config.lag_time)
        self.batch_slots = config.batch_slots
        self.limits = Limits(**config.limits)
        self.weights_sha256 = weights_sha256
        self.metrics = dict(metrics or {})
        self.card = card
        self._sigmas = config.sigmas().to(torch.float32)
        self._molecule = molecule if config.family is not None else Molecule.from_json(config.molecule)
        if self._molecule is not None:
            self._set_molecule(self._molecule)

    def _set_molecule(self, molecule: Molecule) -> None:
        lengths, rigid = self.config.bond_lengths, self.config.rigid_bonds
        if isinstance(self.denoiser, GraphDenoiser):
            assert self.family is not None
            self.family.check(molecule, self.name)
            lengths, rigid = self.family.lengths(molecule), self.family.rigid(molecule)
            self._one: ConditionalDenoiser | MoleculeDenoiser = self.denoiser.of(molecule, self.family)
        else:
            self._one = self.denoiser
        self.bond_lengths = np.array(lengths)
        ends = rigid_ends(molecule, rigid)
        self._rigid = (
            torch.tensor([a for a, _ in ends], dtype=torch.long),
            torch.tensor([b for _, b in ends], dtype=torch.long),
            torch.tensor([lengths[k] for k in rigid], dtype=torch.float64)[:, None],
        )

    @property
    def molecule(self) -> Molecule:
        """What it moves.

        Raises
        ------
        StructureError : a checkpoint of a family that has not been told its molecule, see `of`.
        """
        if self._molecule is None:
            raise StructureError(
                f"{self.name} is a model of many molecules: say which one, with model.of(molecule)"
            )
        return self._molecule

    def of(self, molecule: Molecule) -> ScoreDynamics:
        """This propagator for one molecule of its family; the weights are shared.

        Raises
        ------
        StructureError : the molecule does not belong to the family, or is not the one of this checkpoint.
        """
        if self.family is None:
            if molecule != self.molecule:
                raise StructureError(
                    f"{self.name} moves {self.molecule.formula} only, not {molecule.formula}"
                )
            return self
        return ScoreDynamics(
            self.config,
            self.denoiser,
            molecule=molecule,
            weights_sha256=self.weights_sha256,
            metrics=self.metrics,
            card=self.card,
        )

    def for_start(self, start: Any) -> ScoreDynamics:
        """This propagator, of a family for the molecule that ``start`` holds; see `rollout` for starts.

        Raises
        ------
        StructureError : the start holds no single molecule, or one that does not belong to the family.
        """
        if self._molecule is not None:
            return self
        from zoo.molecules.start import load_molecule

        return self.of(load_molecule(start))

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def version(self) -> str:
        return self.config.version

    @property
    def checkpoint_id(self) -> str:
        return f"{self.config.name}@{self.config.version}"

    @property
    def n_evaluations(self) -> int:
        """Network evaluations per lag step."""
        return diffusion.n_evaluations(self.config.solver, self.config.n_levels)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike[str], version: str | None = None, source: str = "auto"
    ) -> ScoreDynamics:
        """Load a checkpoint, fetching it from the Hub if it is not here.

        Parameters
        ----------
        name_or_path : folder, registry name or ``owner/name`` on the Hub; names may end in ``@v1.2.0``.
        version : ``X.Y.Z``, instead of the ``@``.
        source : "local", "bundled" or "hub" to look nowhere else.

        Raises
        ------
        CheckpointError : damaged, of a newer format, not a propagator, or cannot be fetched.
        UnknownCheckpointError : no such folder or name; close matches are offered.
        """
        stored = hub.load(name_or_path, kind="score-dynamics", version=version, source=source)
        config = ScoreDynamicsConfig.from_dict(stored.config)
        with torch.random.fork_rng(
            devices=[]
        ):  # initial values are overwritten; the caller's seed is not ours
            network = config.build().float()
        state = network.state_dict()
        shapes = {k: tuple(v.shape) for k, v in state.items()}
        checkpoint.check_weights(shapes, stored.weights, str(stored.folder))
        network.load_state_dict(stored.weights, strict=True)
        return cls(
            config,
            network,
            weights_sha256=str(stored.config.get("weights_sha256", "")),
            metrics=stored.metrics,
            card=stored.card,
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write the checkpoint folder; an interruption leaves the old one or the new one, never a mixture."""
        return checkpoint.save(
            folder, self.config.to_dict(), self.denoiser.state_dict(), metrics=self.metrics, card=self.card
        )

    # ------------------------------------------------------------------------------ one lag step

    @property
    def sides(self) -> Sides | None:
        """Of a barrier; None for models that draw no side."""
        return self._one.sides if isinstance(self._one, ConditionalDenoiser) else None

    @property
    def noise_shape(self) -> tuple[int, int]:
        """Of the random numbers of a step: rows for the sites, the side if there is one, and motion (two)."""
        return self.molecule.n_sites + (2 if self.sides is None else 3), 3

    def noise(self, seed: int, walkers: Sequence[int], step: int, attempt: int) -> Array:
        """Standard normal numbers (n, *noise_shape) that depend on nothing but the four arguments."""

        def drawn(walker: int, attempt: int) -> Array:
            return np.random.default_rng([seed, walker, step, attempt]).standard_normal(self.noise_shape)

        rows = [drawn(w, attempt) for w in walkers]
        if self.sides is not None and attempt > 0:
            for row, w in zip(rows, walkers, strict=True):
                row[-3] = drawn(w, 0)[-3]  # the side stays: its probability is not that of passing the checks
        return np.stack(rows) if rows else np.zeros((0, *self.noise_shape))

    def propose(self, positions: Array, walkers: Sequence[int], noise: Array) -> Array:
        """One lag step for these walkers; nothing is checked.

        Parameters
        ----------
        positions : (n, n_sites, 3) Å.
        walkers : n numbers, different modulo ``batch_slots``.
        noise : (n, *noise_shape) standard normal; the last two rows drive rotation and translation, the one
            before them the side on which the step ends, if the model has sides.

        Returns
        -------
        (n, n_sites, 3) Å.  A walker always sits in the slot ``walker % batch_slots`` of a batch of fixed
        size, so its result does not depend on the others.
        """
        slots = [w % self.batch_slots for w in walkers]
        if len(set(slots)) != len(slots):
            raise ValueError("two walkers of one call share a slot: split the call")
        x = np.repeat(positions[:1], self.batch_slots, 0)
        z = np.zeros((self.batch_slots, *noise.shape[1:]))
        x[slots], z[slots] = positions, noise
        with torch.inference_mode():
            result: Array = self._sample(torch.from_numpy(x), torch.from_numpy(z)).numpy()
        return result[slots]

    def _sample(self, x: Tensor, noise: Tensor) -> Tensor:
        origin = x.mean(1, keepdim=True)
        axes = self._one.frames(x)
        local = (x - origin) @ axes
        sigma = self._sigmas[0] * self.config.noise_scale
        start = without_rigid_motion(noise[:, : x.shape[1]], local).float() * sigma
        solver = diffusion.SOLVERS[self.config.solver]
        side = None
        if self.sides is not None:
            below = self.sides.log_probability(local.float(), 1).double()
            side = (torch.special.log_ndtr(noise[:, -3, 0]) < below).long()
        y = solver(self._conditional(local.float(), side), start, self._sigmas, centre=True).to(x.dtype)
        kicks, factors = noise[:, -2:].reshape(-1, 6), self._one.rigid_factors(x).to(x.dtype)
        rigid = kicks @ factors.mT if factors.ndim == 2 else (factors @ kicks[..., None])[..., 0]
        # A rotation vector is a pseudovector: in a left-handed frame it changes sign.
        omega = torch.linalg.det(axes)[:, None] * (axes @ rigid[:, :3, None])[..., 0]
        shift = (axes @ rigid[:, 3:, None])[..., 0]
        moved = self._constrained(local + y) @ axes.mT @ rotation_matrix(omega).mT
        return moved + origin + shift[:, None]

    def _constrained(self, positions: Tensor) -> Tensor:
        """Positions with the rigid bonds at their lengths: only the free end of each moves."""
        held, free, lengths = self._rigid
        bond = positions[:, free] - positions[:, held]
        result = positions.clone()
        result[:, free] = positions[:, held] + bond / bond.norm(dim=-1, keepdim=True) * lengths
        return result

    def _conditional(self, local: Tensor, side: Tensor | None = None) -> diffusion.Denoise:
        one = self._one
        denoise = one.given(local, side) if isinstance(one, ConditionalDenoiser) else one.given(local)
        # All of a batch have the same noise level here, so it need not be worked out for each.
        return lambda y, sigma: denoise(y, sigma.reshape(-1)[:1])

    def step(self, x: Any, generator: np.random.Generator | None = None) -> Array:
        """One lag step of x (n_sites, 3) or (n, n_sites, 3) Å; returns the same shape.

        Without a ``generator`` a fresh unseeded one is used.
        """
        given = np.asarray(x, dtype=np.float64)
        positions = self._positions(given)
        rng = generator or np.random.default_rng()
        noise = rng.standard_normal((len(positions), *self.noise_shape))
        moved = [
            self.propose(
                positions[k : k + self.batch_slots],
                range(min(self.batch_slots, len(positions) - k)),
                noise[k : k + self.batch_slots],
            )
            for k in range(0, len(positions), self.batch_slots)
        ]
        return np.concatenate(moved).reshape(given.shape)

    # ------------------------------------------------------------------------------ densities

    def score(self, x_next: Any, x: Any, sigma: float) -> Array:
        """Gradient (1/Å) with respect to x_next of log p_sigma(x_next | x).

        The density is that of the internal displacement (x_next superposed on x, rigid motion not
        counted) convolved with a Gaussian of width ``sigma`` Å in its 3 n - 6 dimensions:
        (D(y, sigma; x) - y) / sigma**2, turned back into the frame of x_next.  The rigid motion that it is
        orthogonal to is the linear one of step 2 in the module's text: translations, and the rotations of
        x superposed on x_next (those of x_next itself only in the limit of small displacements).

        Parameters
        ----------
        x_next, x : (n_sites, 3) or (n, n_sites, 3) Å.

        Of a model with sides it is that of the sum over both, weighed by their likelihoods, which take a
        hundred times as long as the score itself.
        """
        if not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma is {sigma!r}: give a positive noise level in Å")
        given = np.asarray(x_next, dtype=np.float64)
        y, local, axes, rotation = self._transition(x_next, x)
        sides: Sequence[Tensor | None] = (None,)
        share = torch.ones(1, len(y))
        if self.sides is not None:
            sides = _of_all(y)
            share = self._each_side(y, local, sigma, diffusion.LIKELIHOOD_LEVELS).softmax(0)
        with torch.inference_mode():
            values = [
                diffusion.score(self._conditional(local.float(), side), y.float(), sigma).double()
                for side in sides
            ]
            value = (share[..., None, None] * torch.stack(values)).sum(0)
        lab = value @ axes.mT @ rotation
        return lab.numpy().reshape(given.shape)

    def log_prob(self, x_next: Any, x: Any, n_levels: int = diffusion.LIKELIHOOD_LEVELS) -> Array:
        """log p(x_next | x) (n,) of the internal displacement, density per Å**(3 n_sites - 6).

        By the probability-flow ODE (Song et al., arXiv:2011.13456) with the exact divergence, of the
        density convolved with a Gaussian of width ``sigma_min``; with the ``noise_scale`` of the config,
        which `score` is without.
        """
        y, local, _, _ = self._transition(x_next, x)
        sigma = self.config.sigma_min
        if self.sides is None:
            return self._log_density(y, local, None, sigma, n_levels).numpy()
        return self._each_side(y, local, sigma, n_levels).logsumexp(0).numpy()

    def _each_side(self, y: Tensor, local: Tensor, sigma: float, n_levels: int) -> Tensor:
        """log P(s | x) p_sigma(y | x, s), (2, n)."""
        assert self.sides is not None
        both = []
        for k, side in enumerate(_of_all(y)):
            known = self.sides.log_probability(local.float(), k).double()
            both.append(known + self._log_density(y, local, side, sigma, n_levels))
        return torch.stack(both)

    def _log_density(
        self, y: Tensor, local: Tensor, side: Tensor | None, sigma: float, n_levels: int
    ) -> Tensor:
        """log p_sigma(y | x) (n,) float64; where sigma is that of pure noise, of this alone."""
        config = self.config
        sigmas = diffusion.sigma_ladder(n_levels, sigma, max(config.sigma_max, 1.01 * sigma), math.inf)[
            :-1
        ].float()
        return diffusion.log_prob(
            self._conditional(local.float(), side),
            y.float(),
            sigmas,
            basis=internal_basis(local).float(),
            sigma_data=config.sigma_data,
            centre=True,
            noise_scale=config.noise_scale,
        ).double()

    def _transition(self, x_next: Any, x: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        from zoo.molecules.rigid import superposition

        after = torch.from_numpy(self._positions(np.asarray(x_next, dtype=np.float64)))
        before = torch.from_numpy(self._positions(np.asarray(x, dtype=np.float64)))
        rotation = superposition(after, before)
        axes = self._one.frames(before)
        local = centred(before) @ axes
        y = centred(after) @ rotation.mT @ axes - local
        return y, local, axes, rotation

    def _positions(self, x: Array) -> Array:
        wide = x[None] if x.ndim == 2 else x
        if wide.ndim != 3 or wide.shape[1:] != (self.molecule.n_sites, 3):
            raise StructureError(
                f"positions have shape {x.shape}: {self.name} moves {self.molecule.n_sites} sites "
                f"({', '.join(self.molecule.site_names)}), so (n, {self.molecule.n_sites}, 3) is needed"
            )
        return np.array(wide)  # a copy: torch has no read-only tensors

    # ------------------------------------------------------------------------------ rollouts

    def out_of_distribution(self, positions: Array) -> Array:
        """How unlike the training data each structure is: (n, n_sites, 3) Å -> (n,).

        The root-mean-square deviation, in the body frame, to the nearest of the structures kept in
        the checkpoint, over the one that 99.9 % of held-out MD frames do not exceed; for a family, how
        far the worst bond, angle or dihedral angle is outside of what was trained on.
        """
        wide = self._positions(np.asarray(positions, dtype=np.float64))
        if self.family is not None or isinstance(self.denoiser, GraphDenoiser):
            assert self.family is not None
            return self.family.strangeness(self.molecule, wide)
        x = torch.from_numpy(wide)
        return (nearest_reference(self.denoiser, x) / float(self.denoiser.reference_distance)).numpy()

    def reference(self) -> Array | None:
        """(n_sites, 3) Å, a structure as the model knows it; None where it knows of none."""
        if isinstance(self.denoiser, GraphDenoiser):
            return None
        reference: Array = self.denoiser.references[0].double().numpy()
        return reference if np.ptp(reference) > 0 else None

    def rollout(self, start: Any, n_steps: int, n_walkers: int = 1, seed: int = 0, **options: Any) -> Rollout:
        """Many lag steps from ``start``; see `zoo.rollout.roll_out` for the options and the result.

        Parameters
        ----------
        start : PDB, GRO or other file, `mdtraj.Trajectory` (several frames: one walker each) or
            `ase.Atoms`; atoms are matched by topology.
        n_steps : lag steps per walker.

        Raises
        ------
        StructureError : the start does not hold the molecule of this checkpoint, or is broken.
        """
        from zoo.molecules.start import load_start
        from zoo.rollout import roll_out

        if self._molecule is None:
            return self.for_start(start).rollout(start, n_steps, n_walkers, seed, **options)
        reference = self.reference()
        positions = load_start(start, self.molecule, reference)
        if isinstance(start, str | os.PathLike):
            options.setdefault("inputs", (start,))
        return roll_out(self, positions, n_steps, n_walkers, seed, **options)


def _of_all(y: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (batch,) of either side."""
    return torch.zeros(len(y), dtype=torch.long), torch.ones(len(y), dtype=torch.long)


def rigid_ends(molecule: Molecule, rigid_bonds: Sequence[int]) -> list[tuple[int, int]]:
    """(held, free) sites of some of the molecule's bonds; the free one has no other bond.

    Raises
    ------
    CheckpointError : no such bond, or both of its ends have other bonds.
    """
    degree = np.bincount(np.array(molecule.site_bonds, dtype=int).ravel(), minlength=molecule.n_sites)
    ends = []
    for k in rigid_bonds:
        if not 0 <= k < len(molecule.site_bonds):
            raise CheckpointError(
                f"config.json: rigid_bonds has {k}, there are {len(molecule.site_bonds)} bonds"
            )
        a, b = molecule.site_bonds[k]
        if degree[b] != 1:
            a, b = b, a
        if degree[b] != 1:
            names = f"{molecule.site_names[a]}-{molecule.site_names[b]}"
            raise CheckpointError(f"config.json: rigid bond {names} has no free end")
        ends.append((a, b))
    return ends


def nearest_reference(denoiser: ConditionalDenoiser, positions: Tensor) -> Tensor:
    """Å, root-mean-square deviation (n,) of positions (n, n_sites, 3) to the nearest reference structure."""
    local = (centred(positions) @ denoiser.frames(positions)).flatten(1)
    references = denoiser.references.to(local.dtype).flatten(1)
    return torch.cdist(local, references).amin(1) / math.sqrt(positions.shape[1])


def internal_basis(positions: Tensor) -> Tensor:
    """Orthonormal rows (batch, 3 n - 6, 3 n) of the displacements without rigid motion at positions."""
    batch, n, _ = positions.shape
    r = centred(positions)
    eye = torch.eye(3, dtype=r.dtype)
    shifts = eye.repeat(1, n).expand(batch, 3, 3 * n)
    turns = torch.stack([torch.linalg.cross(e.expand_as(r), r).flatten(1) for e in eye], 1)
    _, _, vh = torch.linalg.svd(torch.cat([shifts, turns], 1), full_matrices=True)
    basis: Tensor = vh[:, 6:]
    return basis
