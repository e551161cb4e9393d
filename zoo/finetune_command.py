"""What `zoo finetune` does: run the recipe that teaches a checkpoint something new."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo import checkpoint, hub, recipes
from zoo.errors import StructureError, ZooError

_OF_DENOISERS = ("--minutes", "--rehearsal")
_OF_MD = ("--md", "--md-ps", "--force-field", "--calculator", "--model")
_OF_DYNAMICS = ("--lag", "--interval", "--temperature", "--topology", "--dihedral", *_OF_MD)


def finetune(
    name: str,
    structures: Sequence[Path],
    trajectories: Sequence[Path],
    out: Path,
    options: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> int:
    """Fine-tune a denoiser on perfect crystals or a propagator on MD; returns the recipe's exit status.

    Raises
    ------
    ZooError : an option of the other kind of checkpoint; the output exists.
    StructureError : no structure or trajectory, or one that is not there.
    CheckpointError, UnknownCheckpointError : the checkpoint cannot be opened.
    """
    # Cheapest checks first; the recipe makes those of the structures themselves.
    kind = checkpoint.read_config(hub.locate(name, network=False).folder)["kind"]
    dynamics = kind == "score-dynamics"
    what, wanted, other = (
        ("score dynamics", "--trajectory", "--structure")
        if dynamics
        else ("a denoiser", "--structure", "--trajectory")
    )
    files = trajectories if dynamics else structures
    if structures if dynamics else trajectories:
        raise ZooError(f"{name} is {what}: it learns from {wanted}, not from {other}")
    wrong = [key for key in (_OF_DENOISERS if dynamics else _OF_DYNAMICS) if _given(options, key)]
    if wrong:
        raise ZooError(f"{name} is {what}, which has no {wrong[0]}")
    md = options.get("--md")
    if md is not None and files:
        raise ZooError("give either MD that is there, --trajectory, or --md to make it")
    wrong = [key for key in _OF_MD[1:] if _given(options, key) and md is None]
    if wrong:
        raise ZooError(f"{wrong[0]} is of the MD that --md makes: give --md MOLECULE")
    if not files and md is None:
        example = "MD of your molecule, --trajectory run.xtc" if dynamics else "crystals, --structure my.cif"
        raise StructureError(f"nothing to learn from: give {example}")
    files = expanded(files)
    topology = options.get("--topology")
    for path in (*files, *(each for each in (topology, md, options.get("--model")) if each is not None)):
        if not path.is_file():
            raise StructureError(f"{path}: there is no such file")
    if (out / checkpoint.CONFIG).exists() and not overwrite:
        raise ZooError(f"{out} exists already: use --overwrite, or another name with -o")
    arguments = []
    for key, value in options.items():
        if not _given(options, key) or (dynamics and key == "--workers"):
            continue
        if value is True:
            arguments.append(key)
        elif key == "--force-field":
            arguments += [key, *value]
        else:
            arguments += [f"{key}={each}" for each in (value if isinstance(value, list) else [value])]
    source = [wanted, *map(str, files)] if files else []
    recipe = "finetune_dynamics" if dynamics else "finetune_denoiser"
    return recipes.run(recipe, [name, *source, "--out", str(out), *arguments])


def _given(options: Mapping[str, Any], key: str) -> bool:
    value = options.get(key)
    return value is not None and value is not False and value != []  # 0 is something


def expanded(paths: Sequence[Path]) -> list[Path]:
    """Patterns that the shell did not expand, such as ``'run*.xtc'``; matches in the order of their names."""
    found: list[Path] = []
    for path in paths:
        matches = [] if path.exists() or not glob.has_magic(path.name) else path.parent.glob(path.name)
        found += sorted(matches) or [path]
    return found
