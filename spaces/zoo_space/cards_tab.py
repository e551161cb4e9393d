"""The page about the checkpoints: what each is, what was measured, and how to use it at home."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gradio as gr

from zoo import checkpoint
from zoo.registry import Record, bundled_folder, records
from zoo_space import pieces

ROUTE = "zoo-figures"
#: All in one row would not fit on a screen.
KINDS = {"denoiser": "Denoisers", "score-dynamics": "Score dynamics"}
_PYTHON = {
    "denoiser": (
        "from ase.io import read\nfrom zoo import Denoiser\n"
        'clean = Denoiser.from_pretrained("{name}").denoise(read("snapshot.dump"))'
    ),
    "score-dynamics": (
        "from zoo import ScoreDynamics\n"
        'model = ScoreDynamics.from_pretrained("{name}")\n'
        'run = model.rollout("start.pdb", n_steps=1000, n_walkers=16, seed=0)'
    ),
}
_SHELL = {
    "denoiser": "zoo denoise snapshot.dump -o clean.extxyz --checkpoint {name} --analyze",
    "score-dynamics": "zoo rollout {name} start.pdb -n 1000 --walkers 16 -o run.xtc",
}


def build() -> None:
    """One tab per released checkpoint, by kinds, within the current ``gr.Tab``."""
    with gr.Tabs():
        for kind, title in KINDS.items():
            with gr.Tab(title), gr.Tabs():
                for record in records():
                    if record.kind == kind:
                        with gr.Tab(record.name):
                            _checkpoint(record)


def _checkpoint(record: Record) -> None:
    folder = bundled_folder(record)
    if not folder.is_dir():
        gr.Markdown(f"`{record.name}` {record.version} is on the Hub at `{record.repo}`. {record.summary}")
        return
    config = checkpoint.read_config(folder)
    gr.HTML(f'<p class="zs-lead">{pieces.text(record.summary)}</p>' + pieces.facts(_facts(record, config)))
    with gr.Row():
        with gr.Column(min_width=300):
            gr.Code(
                _PYTHON[record.kind].format(name=record.name),
                language="python",
                label="Python",
                wrap_lines=True,
            )
        with gr.Column(min_width=300):
            gr.Code(
                _SHELL[record.kind].format(name=record.name), language="shell", label="Shell", wrap_lines=True
            )
    with gr.Accordion("Model card, with everything that was measured", open=True):
        gr.Markdown(as_shown((folder / checkpoint.CARD).read_text(encoding="utf-8"), record))


def _facts(record: Record, config: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("version", record.version),
        ("on the Hub", f"{record.repo}, tag v{record.version}"),
        ("licence", record.license),
    ]
    if record.kind == "denoiser":
        rows.append(("lattices", ", ".join(config["lattices"])))
    else:
        rows += [
            ("lag time", f"{config['lag_time']:g} ps per step"),
            ("temperature", f"{config['temperature']:g} K"),
            ("trained on MD with", config["forcefield"]),
        ]
    rows += [("sha256 of the weights", record.sha256), ("made by", record.recipe)]
    return rows


def as_shown(card: str, record: Record) -> str:
    """A card as the page shows it: the YAML block is for the Hub, the pictures come from `pictures`."""
    body = re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL)
    return body.replace("](figures/", f"]({ROUTE}/{record.name}/")


def pictures() -> dict[str, Path]:
    """The folders of pictures that cards show, by the paths where the page serves them."""
    folders = {f"/{ROUTE}/{record.name}": bundled_folder(record) / "figures" for record in records()}
    return {path: folder for path, folder in folders.items() if folder.is_dir()}
