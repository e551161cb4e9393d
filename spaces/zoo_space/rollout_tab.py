"""The page on which a molecule is rolled out."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from zoo_space import buttons, charts, pieces
from zoo_space.errors import VisitorError
from zoo_space.examples import MOLECULES
from zoo_space.messages import Progress, RolledOut
from zoo_space.reference import reference_for
from zoo_space.service import Service, names_of, outbox
from zoo_space.viewer import viewer

_EMPTY = (
    "Nothing here yet. Upload a molecule that a checkpoint knows or pick a start: its free-energy map fills "
    "while it runs, then it can be watched here."
)


def build(service: Service) -> None:
    """The components and what they do, within the current ``gr.Tab``."""
    limits = service.limits
    with gr.Row(elem_classes="zs-columns"):
        with gr.Column(scale=2, min_width=300, elem_classes="zs-form"):
            upload = gr.File(
                label="Molecule: PDB, GRO or XYZ, with its water or without",
                height=130,
                elem_id="rollout-upload",
            )
            run = gr.Button("Roll out", variant="primary", elem_id="rollout-run")
            gr.HTML('<p class="zs-or">or start in one of the basins of alanine dipeptide</p>')
            examples = []
            with gr.Row(elem_classes="zs-examples"):
                for each in MOLECULES:
                    examples.append(
                        gr.Button(each.label, size="sm", min_width=120, elem_id=f"start-{each.key}")
                    )
            with gr.Accordion("Settings", open=True):
                checkpoint = gr.Dropdown(
                    names_of("score-dynamics"),
                    value="automatic",
                    label="Checkpoint",
                    elem_id="rollout-checkpoint",
                )
                steps = gr.Slider(
                    10, limits.lag_steps, value=500, step=10, label="Steps", elem_id="rollout-steps",
                    info="Each is one lag time of the checkpoint: 1 or 10 ps.",
                )  # fmt: skip
                walkers = gr.Slider(
                    1, limits.walkers, value=16, step=1, label="Walkers, independent of each other"
                )
                seed = gr.Number(
                    0, label="Seed", precision=0, info="The same seed gives the same trajectories."
                )
            stop = gr.Button("Stop", size="sm", interactive=False, elem_id="rollout-stop")
            gr.HTML(f'<p class="zs-limits">{limits.of_rollouts()} Uploads are not kept.</p>')
        with gr.Column(scale=5, min_width=320):
            status = gr.HTML(elem_id="rollout-status", elem_classes="zs-status")
            maps = gr.HTML(elem_id="rollout-maps")
            view = viewer(_EMPTY, elem_id="rollout-viewer")
            series = gr.HTML(elem_id="rollout-series")
            report = gr.HTML(elem_id="rollout-report")
            files = gr.File(
                label="Downloads: trajectories as XTC, PDB to open them with, report",
                file_count="multiple", interactive=False, visible=False, elem_id="rollout-files",
                elem_classes="zs-files",
            )  # fmt: skip
    starters = [run, *examples]
    outputs = [status, maps, view, series, report, files, stop, *starters]

    def work(example: str | None) -> Callable[..., Iterator[list[Any]]]:
        def act(path: str | None, name: str, n: Any, w: Any, s: Any) -> Iterator[list[Any]]:
            yield from _act(service, None if example else path, example, name, n, w, s, len(starters))

        return act

    inputs = [upload, checkpoint, steps, walkers, seed]
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
            js=pieces.scroll_to("rollout-status"),
        )
        for button, example in [(run, None), *zip(examples, (each.key for each in MOLECULES), strict=True)]
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
    walkers: Any,
    seed: Any,
    starters: int,
) -> Iterator[list[Any]]:
    keep = gr.skip()
    yield [
        pieces.progress(0.0, "starting"),
        "",
        None,
        "",
        "",
        gr.File(visible=False),
        *buttons.busy(starters),
    ]
    with outbox() as out:
        try:
            for message in service.rollout(path, example, name, steps, walkers, seed, out):
                if isinstance(message, Progress):
                    drawn: Any = keep
                    if message.counts is not None:
                        reference = reference_for("sd-alanine-dipeptide")
                        drawn = charts.free_energy_maps(
                            message.counts, None if reference is None else reference.counts, "so far"
                        )
                    as_it_is = [keep] * (5 + starters)
                    yield [pieces.progress(message.share, message.text), drawn, *as_it_is]
                else:
                    files = gr.File(_downloads(message.files), visible=True, interactive=False)
                    yield [*_shown(message), files, *buttons.idle(starters)]
        except VisitorError as error:
            yield [pieces.problem(str(error)), *[keep] * 5, *buttons.idle(starters)]


def _downloads(files: list[Path]) -> list[str]:
    """The first trajectory with what opens it, and everything as one file where there are several walkers."""
    trajectories = [f for f in files if f.suffix == ".xtc"]
    if len(trajectories) == 1:
        return [str(f) for f in files]
    everything = trajectories[0].with_name(trajectories[0].stem.rsplit("-", 1)[0] + "-all.zip")
    with zipfile.ZipFile(everything, "w", zipfile.ZIP_STORED) as archive:  # XTC is compressed already
        for file in files:
            archive.write(file, file.name)
    return [str(f) for f in (trajectories[0], *(f for f in files if f.suffix != ".xtc"), everything)]


def _shown(result: RolledOut) -> list[Any]:
    s = result.summary
    reference = reference_for(result.checkpoint)
    maps = series = ""
    if result.counts is not None and result.angles is not None:
        maps = charts.free_energy_maps(result.counts, None if reference is None else reference.counts)
        if reference is not None:
            maps += f'<p class="zs-caption">Reference: {reference.text}.</p>'
        series = charts.torsion_series(result.angles, s["lag_time_ps"])
    ns = s["simulated_ps"] / 1000
    stopped = s["walkers_stopped_early"]
    done = pieces.notice(f"Done: {ns:.3g} ns of {s['checkpoint']} at {s['ns_per_day']:,.0f} ns/day.")
    if result.warning:
        done += pieces.notice(result.warning)
    kinds = ", ".join(f"{kind} {n:,}" for kind, n in s["redrawn_by_kind"].items())
    share = s["redrawn"] / max(s["proposed"], 1)
    report = pieces.facts(
        [
            ("start", s["file"]),
            ("checkpoint", f"{s['checkpoint']}, {s['lag_time_ps']:g} ps per step, {s['temperature_k']:g} K"),
            ("trained on MD with", s["forcefield"]),
            ("simulated", f"{s['n_walkers']} walkers × {s['n_steps']:,} steps, {ns:.4g} ns in all"),
            ("speed", f"{s['ps_per_second']:,.0f} ps/s, {s['ns_per_day']:,.0f} ns/day, all walkers together"),
            (
                "proposals redrawn",
                f"{s['redrawn']:,} of {s['proposed']:,} ({100 * share:.2g} %){f': {kinds}' if kinds else ''}",
            ),
            (
                "walkers stopped early",
                "none" if not stopped else "; ".join(f"walker {w}: {why}" for w, why in stopped.items()),
            ),
            (
                "start beside the training data",
                f"{s['start_out_of_distribution']:.2f} (1 is the edge: 99.9 % of held-out MD is below it)",
            ),
        ]
    )
    report = '<h3 class="zs-h">Validity report</h3>' + report
    return [done, maps, result.scene.to_json(), series, report]
