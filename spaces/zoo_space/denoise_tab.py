"""The page on which a crystal is denoised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from zoo_space import buttons, charts, pieces
from zoo_space.errors import VisitorError
from zoo_space.examples import CRYSTALS
from zoo_space.messages import Denoised, Progress
from zoo_space.service import Service, names_of, outbox
from zoo_space.viewer import viewer

_EMPTY = (
    "Nothing here yet. Upload a structure or pick an example: before and after appear here, side by side."
)


def build(service: Service) -> None:
    """The components and what they do, within the current ``gr.Tab``."""
    limits = service.limits
    with gr.Row(elem_classes="zs-columns"):
        with gr.Column(scale=2, min_width=300, elem_classes="zs-form"):
            upload = gr.File(
                label="Structure: LAMMPS dump or data, extxyz, CIF, POSCAR, XDATCAR, or .gz of these",
                height=130,
                elem_id="denoise-upload",
            )
            run = gr.Button("Denoise", variant="primary", elem_id="denoise-run")
            gr.HTML('<p class="zs-or">or try a real snapshot of molecular dynamics</p>')
            examples = []
            with gr.Row(elem_classes="zs-examples"):
                for each in CRYSTALS:
                    examples.append(
                        gr.Button(each.label, size="sm", min_width=120, elem_id=f"example-{each.key}")
                    )
            with gr.Accordion("Settings", open=False):
                checkpoint = gr.Dropdown(names_of("denoiser"), value="automatic", label="Checkpoint")
                steps = gr.Slider(
                    1, limits.denoise_steps, value=10, step=1, label="Denoising steps, at most",
                    info="It stops by itself when nothing moves any more.",
                )  # fmt: skip
                frame = gr.Number(1, label="Frame", precision=0, info="Counted from 1; -1 is the last one.")
                species = gr.Textbox(
                    label="Elements of the LAMMPS types", placeholder="Al Cu", max_lines=1,
                    info="Only if the file does not name them. Compounds, ice and the choice depend on them.",
                )  # fmt: skip
            stop = gr.Button("Stop", size="sm", interactive=False, elem_id="denoise-stop")
            gr.HTML(f'<p class="zs-limits">{limits.of_denoising()} Uploads are not kept.</p>')
        with gr.Column(scale=5, min_width=320):
            status = gr.HTML(elem_id="denoise-status", elem_classes="zs-status")
            view = viewer(_EMPTY, elem_id="denoise-viewer")
            bars = gr.HTML(elem_id="denoise-bars")
            numbers = gr.HTML(elem_id="denoise-numbers")
            with gr.Row():
                with gr.Column(min_width=280):
                    facts = gr.HTML(elem_id="denoise-facts")
                with gr.Column(min_width=280):
                    curve = gr.HTML(elem_id="denoise-curve")
            files = gr.File(
                label="Downloads",
                file_count="multiple",
                interactive=False,
                visible=False,
                elem_id="denoise-files",
                elem_classes="zs-files",
            )
    starters = [run, *examples]
    outputs = [status, view, bars, numbers, facts, curve, files, stop, *starters]

    def work(example: str | None) -> Callable[..., Iterator[list[Any]]]:
        def act(path: str | None, name: str, n: Any, k: Any, types: str) -> Iterator[list[Any]]:
            yield from _act(service, None if example else path, example, name, n, k, types, len(starters))

        return act

    inputs = [upload, checkpoint, steps, frame, species]
    events = [
        button.click(
            work(example),
            inputs,
            outputs,
            api_visibility="private",
            concurrency_id="jobs",
            concurrency_limit=limits.workers,
            show_progress="minimal",
            show_progress_on=status,
            trigger_mode="once",
            js=pieces.scroll_to("denoise-status"),
        )
        for button, example in [(run, None), *zip(examples, (each.key for each in CRYSTALS), strict=True)]
    ]
    stop.click(
        lambda: [pieces.notice("Stopped."), *buttons.idle(len(starters))],
        None,
        [status, stop, *starters],
        cancels=events,
        queue=False,
        api_visibility="private",
    )


def _act(
    service: Service,
    path: str | None,
    example: str | None,
    name: str,
    steps: Any,
    frame: Any,
    species: str,
    starters: int,
) -> Iterator[list[Any]]:
    """Everything that changes on the page, as it changes."""
    keep = gr.skip()
    as_it_is = [keep] * (1 + starters)
    yield [pieces.progress(0.0, "starting"), *[keep] * 5, gr.File(visible=False), *buttons.busy(starters)]
    with outbox() as out:
        result: Denoised | None = None
        try:
            for message in service.denoise(path, example, name, steps, frame, species, out):
                if isinstance(message, Progress):
                    yield [pieces.progress(message.share, message.text), *[keep] * 6, *as_it_is]
                elif isinstance(message, Denoised):
                    result = message
                    yield [*_shown(result), _handed([str(result.structure)]), *as_it_is]
                elif result is not None:
                    files = [str(result.structure), str(message)]
                    yield [*[keep] * 6, _handed(files), *buttons.idle(starters)]
        except VisitorError as error:
            yield [pieces.problem(str(error)), *[keep] * 6, *buttons.idle(starters)]


def _handed(files: list[str]) -> gr.File:
    return gr.File(files, visible=True, interactive=False)


def _shown(result: Denoised) -> list[Any]:
    s = result.summary
    before, after = s["fractions_before"], s["fractions_after"]
    end = (
        "converged" if s["converged"] else "stalled: displacements no longer shrink" if s["stalled"] else
        "not converged: allow more steps"
    )  # fmt: skip
    facts = pieces.facts(
        [
            ("file", f"{s['file']}, frame {s['frame']}"),
            ("atoms", f"{s['atoms']:,} ({s['formula']})"),
            ("checkpoint", s["checkpoint"]),
            *([("chosen because", s["chosen_because"])] if "chosen_because" in s else []),
            (
                "structures by",
                "the verdict of the checkpoint, which is made for denoised ones"
                if s["told_by"] == "verdict"
                else "common neighbour analysis and its relatives",
            ),
            ("steps", f"{s['steps']} in {s['seconds']:.2f} s, {end}"),
            ("mean shift of an atom", f"{s['mean_shift_angstrom']:.3f} Å"),
            ("largest shift", f"{s['largest_shift_angstrom']:.3f} Å"),
        ]
    )
    done = pieces.notice(f"Done: {s['steps']} steps, {end}.")
    if s["warning"]:
        done += pieces.notice(s["warning"])
    return [
        done,
        result.scene.to_json(),
        pieces.fraction_bars(before, after),
        pieces.fraction_table(before, after, s["atoms"]),
        facts,
        charts.convergence(result.curve),
    ]
