"""All that training needs in one safetensors file: coordinates of the sites, and what to build.

The file is what one carries to another machine; it can be read with torch and safetensors alone.  Its
metadata holds, as JSON, the checkpoint's config, the settings of the noise, the three facts about the
molecule that the network needs, and the names of the segments.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from training.score_dynamics.transitions import HeadData, OverPairs, Transitions
from zoo.errors import ZooError
from zoo.score_dynamics import BACKBONES, ConditionalDenoiser
from zoo.sides import Sides, SidesConfig

_OVER = ("before", "after", "ends", "weight")
_HEAD = ("angles", "above", "weight")


@dataclass(frozen=True)
class NoiseConfig:
    """Batches and noise of training; lengths in Å, ``sigma_mean`` and ``sigma_std`` of ln(sigma / Å)."""

    batch_size: int = 512
    condition_noise: float = 0.015
    sigma_mean: float = -1.8
    sigma_std: float = 1.3


@dataclass(frozen=True)
class Packed:
    """Training data of one checkpoint; see `Transitions` for the pairs."""

    config: dict[str, Any]
    n_sites: int
    stereocentre: tuple[tuple[int, int, int, int], ...]
    training: Transitions
    validation: Transitions
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    segments: dict[str, list[str]] = field(default_factory=dict)
    over: OverPairs | None = None
    head: HeadData | None = None
    sha256: str = ""

    @property
    def n_pairs(self) -> int:
        return len(self.training)

    @property
    def samples_per_step(self) -> int:
        return self.noise.batch_size

    def build(self) -> ConditionalDenoiser:
        """The network with random parameters, from torch's generator."""
        config_class, network = BACKBONES[self.config["backbone"]]
        told, sides = self.config.get("sides"), None
        if told is not None:  # learned apart from the rest, see `training.score_dynamics.sides`
            sides = Sides(SidesConfig.from_json(told, self.n_sites)).requires_grad_(False)
        return ConditionalDenoiser(
            network(config_class(**self.config["architecture"])),
            self.config["sigma_data"],
            tuple(self.config["frame"]),
            self.n_sites,
            self.stereocentre,
            sides,
        )


def write_packed(path: Path, packed: Packed) -> None:
    """Replace ``path`` by a complete file."""
    tensors: dict[str, Tensor] = {}
    for name, data in (("training", packed.training), ("validation", packed.validation)):
        tensors[f"{name}.frames"] = data.frames.contiguous()
        tensors[f"{name}.origins"] = data.origins.contiguous()
        if data.both_ways is not None:
            tensors[f"{name}.both_ways"] = data.both_ways.contiguous()
    for name, part, keys in (("over", packed.over, _OVER), ("head", packed.head, _HEAD)):
        if part is not None:
            tensors |= {f"{name}.{key}": getattr(part, key).contiguous() for key in keys}
    facts = {
        "config": packed.config,
        "n_sites": packed.n_sites,
        "stereocentre": packed.stereocentre,
        "lag": packed.training.lag,
        "lag_time": packed.training.lag_time,
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


def read_packed(path: Path) -> Packed:
    """Read what `write_packed` wrote.

    Raises
    ------
    ZooError : there is no such file, or it is not one of these.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts, there = json.loads(file.metadata()["facts"]), set(file.keys())
            sets = [
                Transitions(
                    file.get_tensor(f"{name}.frames"),
                    file.get_tensor(f"{name}.origins"),
                    int(facts["lag"]),
                    float(facts["lag_time"]),
                    file.get_tensor(f"{name}.both_ways") if f"{name}.both_ways" in there else None,
                )
                for name in ("training", "validation")
            ]
            over = head = None
            if "over.before" in there:
                over = OverPairs(*(file.get_tensor(f"over.{key}") for key in _OVER))
                head = HeadData(*(file.get_tensor(f"head.{key}") for key in _HEAD))
        return Packed(
            config=facts["config"],
            n_sites=facts["n_sites"],
            stereocentre=tuple(tuple(row) for row in facts["stereocentre"]),
            training=sets[0],
            validation=sets[1],
            noise=NoiseConfig(**facts["noise"]),
            segments=facts["segments"],
            over=over,
            head=head,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ZooError(
            f"{path} cannot be read as packed training data ({error}): make it with a recipe's --pack-only"
        ) from None
