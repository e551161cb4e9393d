"""Training of one propagator on several molecules: packed data, the loop, and what is measured at the end.

    python -m training.score_dynamics.families data.safetensors state --steps 20000

Each step has a batch of each molecule, and its loss is one term; so nothing is padded, and the terms are
shared out among threads.  Like `training.score_dynamics.fit` it needs torch, numpy, safetensors and
accelerate only, saves its state every two minutes and continues from it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.command_line import command_line
from training.loop import LoopConfig, train
from training.score_dynamics.fit import Best, add_arguments, loop_config, printed, run_name
from training.score_dynamics.packed import NoiseConfig
from training.score_dynamics.transitions import Transitions, denoising_loss, make_batches
from zoo.backbones.graph_transformer import GraphTransformer, GraphTransformerConfig
from zoo.errors import ZooError
from zoo.graph_denoiser import GraphDenoiser
from zoo.molecules.molecule import Molecule

if TYPE_CHECKING:
    from accelerate import Accelerator

N_CHECK = 1024  # validation pairs of each molecule for the curve


@dataclass(frozen=True)
class Member:
    """One molecule of the training: its pairs, those for validation if any, and its share of a batch."""

    name: str
    molecule: Molecule
    training: Transitions
    validation: Transitions | None
    batch_size: int


@dataclass(frozen=True)
class PackedFamily:
    """Training data of one checkpoint of several molecules."""

    config: dict[str, Any]
    members: tuple[Member, ...]
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    segments: dict[str, list[str]] = field(default_factory=dict)
    sha256: str = ""

    def build(self) -> GraphDenoiser:
        """The network with random parameters, from torch's generator."""
        architecture = dict(self.config["architecture"])
        architecture["elements"] = tuple(architecture["elements"])
        network = GraphTransformer(GraphTransformerConfig(**architecture))
        return GraphDenoiser(network, self.config["sigma_data"])

    @property
    def n_pairs(self) -> int:
        return sum(len(member.training) for member in self.members)

    @property
    def samples_per_step(self) -> int:
        return sum(member.batch_size for member in self.members)


def write_packed(path: Path, packed: PackedFamily) -> None:
    """Replace ``path`` by a complete file."""
    tensors: dict[str, Tensor] = {}
    table = []
    for member in packed.members:
        for part, data in (("training", member.training), ("validation", member.validation)):
            if data is not None:
                tensors[f"{member.name}.{part}.frames"] = data.frames.contiguous()
                tensors[f"{member.name}.{part}.origins"] = data.origins.contiguous()
        table.append(
            {
                "name": member.name,
                "molecule": member.molecule.to_json(),
                "batch_size": member.batch_size,
                "lag": {
                    part: data.lag
                    for part, data in (("training", member.training), ("validation", member.validation))
                    if data is not None
                },
                "lag_time": member.training.lag_time,
            }
        )
    facts = {
        "config": packed.config,
        "members": table,
        "noise": asdict(packed.noise),
        "segments": packed.segments,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, {"facts": json.dumps(facts, sort_keys=True)})
        os.replace(temporary, path)
    except OSError as error:
        raise ZooError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def read_packed(path: Path) -> PackedFamily:
    """Read what `write_packed` wrote.

    Raises
    ------
    ZooError : there is no such file, or it is not one of these.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            members = []
            for row in facts["members"]:
                parts = {
                    part: Transitions(
                        file.get_tensor(f"{row['name']}.{part}.frames"),
                        file.get_tensor(f"{row['name']}.{part}.origins"),
                        int(lag),
                        float(row["lag_time"]),
                    )
                    for part, lag in row["lag"].items()
                }
                members.append(
                    Member(
                        row["name"],
                        Molecule.from_json(row["molecule"]),
                        parts["training"],
                        parts.get("validation"),
                        int(row["batch_size"]),
                    )
                )
        return PackedFamily(
            config=facts["config"],
            members=tuple(members),
            noise=NoiseConfig(**facts["noise"]),
            segments=facts["segments"],
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, ZooError) as error:
        raise ZooError(
            f"{path} cannot be read as packed training data ({error}): make it with a recipe's --pack-only"
        ) from None


def fit(
    packed: PackedFamily,
    state: Path,
    loop: LoopConfig,
    *,
    start_from: Path | None = None,
    workers: int = 1,
    stop_after: int | None = None,
    report: Callable[[dict[str, float]], None] = lambda row: None,
    accelerator: Accelerator | None = None,
    keep_best: bool = False,
) -> tuple[GraphDenoiser, dict[str, Tensor]]:
    """Train, or continue; see `training.score_dynamics.fit.fit`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(loop.seed)
        model = packed.build()
    if start_from is not None:
        try:
            model.load_state_dict(load_file(start_from), strict=True)
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ZooError(f"cannot start from the weights {start_from}: {reason}") from None
    model.bf16 = loop.precision == "bf16"
    noise = packed.noise
    draws = [make_batches(m.training, m.batch_size, noise.condition_noise) for m in packed.members]
    checks = [
        (m, make_batches(m.validation, N_CHECK, 0.0)(np.random.default_rng([loop.seed, 2**31, k])))
        for k, m in enumerate(packed.members)
        if m.validation is not None
    ]
    # A molecule's share of the loss is its share of the samples.
    shares = [m.batch_size / packed.samples_per_step for m in packed.members]

    def batch(rng: np.random.Generator) -> dict[str, Tensor]:
        return {f"{k}.{key}": value for k, draw in enumerate(draws) for key, value in draw(rng).items()}

    def loss(net: nn.Module, k: int, rows: dict[str, Tensor]) -> Tensor:
        assert isinstance(net, GraphDenoiser)
        one: Any = net.of(packed.members[k].molecule)
        return denoising_loss(one, rows, noise.sigma_mean, noise.sigma_std)

    def term(net: nn.Module, rows: dict[str, Tensor], k: int) -> Callable[[], Tensor]:
        own = {key.split(".")[1]: value for key, value in rows.items() if key.split(".")[0] == str(k)}
        return lambda: loss(net, k, own) * shares[k]

    def evaluate(net: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            values = [float(loss(net, packed.members.index(m), rows)) for m, rows in checks]
        return {"validation": float(np.mean(values)) if values else math.nan}

    settings = {
        "data": packed.sha256,
        "architecture": json.dumps([packed.config["backbone"], packed.config["architecture"]]),
        "noise": json.dumps(asdict(noise)),
    }
    best = Best(state, model, evaluate, run_name(loop, settings, start_from)) if keep_best else None

    # The largest first, so that threads end at about the same time.
    order = sorted(
        range(len(packed.members)),
        key=lambda k: -packed.members[k].batch_size * packed.members[k].molecule.n_sites ** 2,
    )
    average = train(
        model,
        batch,
        lambda net, rows, rng, step: [term(net, rows, k) for k in order],
        loop,
        state,
        workers=workers,
        report=report,
        stop_after=stop_after,
        samples_per_step=packed.samples_per_step,
        evaluate=best or evaluate,
        accelerator=accelerator,
        settings=settings,
    )
    model.bf16 = False
    return model, best.parameters(average) if best else average


@command_line("stopped; the same command continues from the last save")
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="what a recipe wrote with --pack-only")
    parser.add_argument("state", type=Path, help="folder of the training state")
    add_arguments(parser, LoopConfig.n_steps)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # parallel over molecules instead
    packed = read_packed(args.data)
    print(
        f"{packed.config['name']}: {', '.join(f'{m.name} {len(m.training)}' for m in packed.members)} "
        f"pairs, state in {args.state}",
        flush=True,
    )
    fit(
        packed, args.state, loop_config(args), start_from=args.start_from, workers=args.threads,
        stop_after=args.stop_after, report=printed(args.state),
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
