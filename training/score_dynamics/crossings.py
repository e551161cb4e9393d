"""How often a propagator goes over a barrier in its own equilibrium, and what makes it as often as MD does.

P(side | x) of `zoo.sides` is learned where MD is.  A propagator is not there as often: the rare frames on the
way to a barrier are the tails of its steps, which come out too rare.  Then too few of its steps go over,
though each with the right probability.  How often is the mean of P over frames of a rollout that stays on its
side, far better known than by waiting for steps that go over.  A number for each side, added to the log odds,
makes it what it is in MD: ``shift`` of `SidesConfig`.

Recipes do so at their end.  For a checkpoint that was trained before they did, with the data of its training
(STATE/data.safetensors; a recipe's ``--pack-only`` makes it again):

    python -m training.score_dynamics.crossings build/sd-alanine-dipeptide --data STATE/data.safetensors
"""

from __future__ import annotations

import argparse
import copy
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.command_line import command_line
from training.metrics import carry
from training.score_dynamics.packed import read_packed
from training.score_dynamics.transitions import HeadData
from zoo.checkpoint import CONFIG, read_config, read_metrics, to_json, write_text
from zoo.errors import ZooError
from zoo.molecules.checks import Validity
from zoo.molecules.molecule import handedness
from zoo.molecules.rigid import centred
from zoo.rollout import OutOfDistributionWarning, roll_out
from zoo.score_dynamics import ConditionalDenoiser, ScoreDynamics, ScoreDynamicsConfig
from zoo.sides import Sides, is_between

#: Of the rollout on each side, whose first steps do not count.
N_WALKERS, N_STEPS, FIRST = 64, 1500, 100
#: No larger one is believed.
LIMIT = 1.5
#: Log odds that keep a step on its side.
_NEVER = 60.0


def md_rates(data: HeadData, sides: Sides) -> tuple[float, float]:
    """Shares of the steps that begin on side 0, and on side 1, which end on the other, in MD."""
    above = is_between(torch.rad2deg(data.angles[:, 0]), sides.between).numpy()
    changes = above != data.above.bool().numpy()
    weight = data.weight.numpy()
    out, back = (
        float(weight[changes & (above == k)].sum() / weight[above == k].sum()) for k in (False, True)
    )
    return out, back


def fitted_shift(
    config: ScoreDynamicsConfig,
    denoiser: ConditionalDenoiser,
    frames: Tensor,
    wanted: tuple[float, float],
    seed: int = 0,
) -> tuple[float, float]:
    """The shift with which steps of the model's own equilibrium go over the barrier at these rates.

    Parameters
    ----------
    denoiser : with sides, without a shift; it is left as it is.
    frames : (n, n_sites, 3) Å, of both sides, from which the rollouts begin.
    wanted : shares of steps that leave side 0, and side 1.

    Raises
    ------
    ZooError : no usable frames on one of the sides.
    """
    found = []
    for side in (0, 1):
        logits = _logits(config, denoiser, frames, side, seed)
        found.append(shift_to(logits if side == 0 else -logits, wanted[side]))
    return found[0], found[1]


def with_shift(config: Mapping[str, Any], shift: tuple[float, float]) -> dict[str, Any]:
    """The config of a checkpoint with this shift."""
    return {**config, "sides": {**config["sides"], "shift": list(shift)}}


def shift_to(log_odds: Tensor, wanted: float) -> float:
    """What has to be added to log odds (n,) for a mean probability, to 0.001, within `LIMIT`."""
    low, high = -LIMIT, LIMIT
    while high - low > 1e-4:
        middle = 0.5 * (low + high)
        if float(torch.sigmoid(log_odds.double() + middle).mean()) < wanted:
            low = middle
        else:
            high = middle
    return round(0.5 * (low + high), 3)


def _logits(
    config: ScoreDynamicsConfig, denoiser: ConditionalDenoiser, frames: Tensor, side: int, seed: int
) -> Tensor:
    """Log odds of side 1 of frames of a rollout that is kept on one side."""
    sides = denoiser.sides
    assert sides is not None
    staying = copy.deepcopy(denoiser)
    assert staying.sides is not None
    with torch.no_grad():
        last: Any = staying.sides.layers[-1]
        last.weight.zero_()
        last.bias.fill_(_NEVER if side else -_NEVER)
    model = ScoreDynamics(config, staying)
    found: list[Tensor] = []

    def keep(step: int, positions: Any, running: Sequence[int]) -> None:
        if step > FIRST:
            local = _local(denoiser, torch.from_numpy(positions[list(running)]))
            # the rare step that ends elsewhere all the same is none of this side
            found.append(sides(local.float())[sides.of(local) == side])

    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", OutOfDistributionWarning)  # of the first steps, which do not count
        roll_out(
            model, _starts(model, frames, side, seed), N_STEPS, N_WALKERS, seed, keep=False, observers=[keep]
        )
    return torch.cat(found)


def _starts(model: ScoreDynamics, frames: Tensor, side: int, seed: int) -> Any:
    """(N_WALKERS, n_sites, 3) valid frames of one side, drawn at random."""
    assert isinstance(model.denoiser, ConditionalDenoiser) and model.sides is not None
    rng = np.random.default_rng([seed, side])
    some = frames[
        torch.from_numpy(rng.choice(len(frames), min(len(frames), 200_000), replace=False))
    ].double()
    x = some[model.sides.of(_local(model.denoiser, some)) == side][: 4 * N_WALKERS].numpy()
    if len(x):
        hands = handedness(x, model.molecule.centres)
        checked = Validity(model.molecule, model.bond_lengths, hands, model.limits).check(x)
        x = x[[reason is None for reason in checked]]
    if not len(x):
        raise ZooError(f"no valid frame of the training data is on side {side} of the barrier")
    return x[np.arange(N_WALKERS) % len(x)]


def _local(denoiser: ConditionalDenoiser, positions: Tensor) -> Tensor:
    """Positions in the body frame."""
    x = centred(positions)
    return x @ denoiser.frames(x)


@command_line()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.score_dynamics.crossings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="folder of a propagator that draws sides first")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="what it was trained on")
    parser.add_argument("--seed", type=int, default=0, help="of the rollouts (%(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    model, packed = ScoreDynamics.from_pretrained(args.checkpoint), read_packed(args.data)
    if model.sides is None or packed.head is None:
        raise ZooError(f"{args.checkpoint if model.sides is None else args.data} knows no sides of a barrier")
    assert isinstance(model.denoiser, ConditionalDenoiser)
    model.sides.shift = (0.0, 0.0)  # what is fitted is all of it
    rates = md_rates(packed.head, model.sides)
    shift = fitted_shift(model.config, model.denoiser, packed.training.frames, rates, args.seed)
    print(
        f"steps over the barrier in MD: {rates[0]:.3g} and {rates[1]:.3g} of all; "
        f"shift {shift[0]:g}, {shift[1]:g}"
    )
    command = (
        f"python -m training.score_dynamics.crossings {model.name} --data {args.data.name} --seed {args.seed}"
    )
    write_shift(args.checkpoint, shift, command)
    return 0


def write_shift(folder: Path, shift: tuple[float, float], command: str) -> None:
    """Put the shift into the config of a checkpoint; of its metrics what tells of the training goes on."""
    told = read_metrics(folder)["sections"]["training"]
    path = folder / CONFIG
    write_text(path, to_json(with_shift(read_config(folder), shift), path))
    carry(folder, "training", {**told, "shift_by": command})


if __name__ == "__main__":
    sys.exit(main())
