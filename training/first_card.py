"""The card of a checkpoint that has just been trained: what it is, and every figure measured so far.

    python -m training.first_card build/my-checkpoint     # again, after benchmarks have recorded more

Recipes end with it, so that their folder can be published as it is.  Released checkpoints have a template
of their own in `model_cards/`, with the prose that a person has to write; see `training.cards`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.command_line import command_line
from zoo.checkpoint import CARD, read_config, read_metrics, write_text
from zoo.errors import CheckpointError

LICENSE = "mit"
#: Of weights that began as somebody else's.
DERIVED = (
    "Training began with the weights of the MACE model whose file has the sha256 `{mace_model}`, so its "
    "licence applies to these weights, too: name it in the front matter of this card before publishing.\n"
)

_KINDS = {
    "denoiser": (
        "Denoiser",
        "Removes thermal vibration from snapshots of crystals.",
        'clean = Denoiser.from_pretrained("{folder}").denoise(atoms)',
    ),
    "score-dynamics": (
        "ScoreDynamics",
        "Moves {molecule} by {lag_time:g} ps at a time at {temperature:g} K ({forcefield}).",
        'run = ScoreDynamics.from_pretrained("{folder}").rollout("start.pdb", n_steps=1000, n_walkers=16)',
    ),
}


def first_card(folder: str | os.PathLike[str]) -> str:
    """The card of a checkpoint folder from its config and metrics.

    Raises
    ------
    CheckpointError : not a checkpoint, or nothing was recorded of how it was trained.
    """
    config, sections = read_config(folder), read_metrics(folder).get("sections", {})
    if "training" not in sections:
        raise CheckpointError(f"{folder}: its metrics do not say how it was trained")
    name, kind = config["name"], config["kind"]
    class_name, purpose, line = _KINDS[kind]
    facts: dict[str, Any] = dict(config)
    if kind == "score-dynamics":
        from zoo.molecules.molecule import Molecule

        if config.get("family"):
            facts["molecule"] = f"molecules like {', '.join(config['family']['molecules'])}"
        else:
            facts["molecule"] = Molecule.from_json(config["molecule"]).formula
    training = sections["training"]
    derived = "mace_model" in training
    measured = [title for title in sections if title != "training"]
    licence = "other" if derived else LICENSE
    parts = [
        f"---\nlicense: {licence}\nlibrary_name: score-zoo\ntags:\n- atomistic-simulation\n- {kind}\n---\n",
        f"# {name} {config['version']}\n",
        purpose.format_map(facts) + "\n",
        f"```python\nfrom zoo import {class_name}\n\n{line.format(folder=name)}\n```\n",
        "## Training\n",
        *_section(training),
        *([DERIVED.format_map(training)] if derived else []),
        "## Measured\n"
        if measured
        else "## Measured\n\nNothing yet: how accurate it is has not been measured.\n",
    ]
    for title in measured:
        parts += [f"### {title}\n", *_section(sections[title])]
    return "\n".join(parts)


def _section(section: Mapping[str, Any]) -> list[str]:
    rows = section["results"]
    return [f"`{section['command']}`, {section['date']}:\n", table(rows) + "\n"]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """All plain columns of the rows; of a single row, one line per column."""
    plain = (str, int, float, type(None))
    keys = list(dict.fromkeys(key for row in rows for key, value in row.items() if isinstance(value, plain)))
    if len(rows) == 1:
        return "\n".join(["| | |", "|---|---|", *(f"| {key} | {_cell(rows[0].get(key))} |" for key in keys)])
    lines = [f"| {' | '.join(keys)} |", "|" + "---|" * len(keys)]
    return "\n".join([*lines, *(f"| {' | '.join(_cell(row.get(key)) for key in keys)} |" for row in rows)])


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.5g}"
    return str(value).replace("|", "\\|")


def write_first_card(folder: str | os.PathLike[str]) -> Path:
    """Write the card into the folder.

    Raises
    ------
    CheckpointError : as `first_card`; or it cannot be written.
    """
    path = Path(folder) / CARD
    write_text(path, first_card(folder))
    return path


@command_line()
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.first_card",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path)
    print(f"wrote {write_first_card(parser.parse_args(argv).folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
