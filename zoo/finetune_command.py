"""What `zoo finetune` does: run the recipe that teaches a checkpoint something new."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from zoo import checkpoint, hub
from zoo.errors import StructureError, ZooError
from zoo.train_command import environment, recipe_file

_KILLED = 128


def finetune(
    name: str, structures: Sequence[Path], out: Path, arguments: Sequence[str], *, overwrite: bool = False
) -> int:
    """Fine-tune a denoiser on perfect crystals; returns the exit status of the recipe.

    Raises
    ------
    ZooError : recipes are not installed; no structure, or one that is not there; the output exists.
    CheckpointError, UnknownCheckpointError : the checkpoint cannot be opened.
    """
    if not recipe_file("cards").is_file():
        raise ZooError(
            "fine-tuning is in the source repository, not in the package: clone it, install it with "
            "`pip install -e .[train]`, and try again"
        )
    # Cheapest checks first; the recipe makes those of the structures themselves.
    kind = checkpoint.read_config(hub.locate(name, network=False).folder)["kind"]
    if kind != "denoiser":
        raise ZooError(
            f"{name} is a propagator: only denoisers can be fine-tuned so far, with --structure; to train a "
            "propagator on your own MD, see `zoo train`"
        )
    if not structures:
        raise ZooError("no structure: give perfect crystals, --structure my.cif")
    for path in structures:
        if not path.is_file():
            raise StructureError(f"{path}: there is no such file")
    if (out / checkpoint.CONFIG).exists() and not overwrite:
        raise ZooError(f"{out} exists already: use --overwrite, or another name with -o")
    command = [
        sys.executable, "-m", "training.finetune_denoiser", name, "--structure", *map(str, structures),
        "--out", str(out), *arguments,
    ]  # fmt: skip
    status = subprocess.run(command, check=False, env=environment()).returncode
    return _KILLED - status if status < 0 else status
