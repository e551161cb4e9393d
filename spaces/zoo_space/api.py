"""The two jobs for programs: ``/denoise`` and ``/rollout``, by `gradio_client` or as MCP tools."""

from __future__ import annotations

from typing import Any

import gradio as gr

from zoo_space.errors import VisitorError
from zoo_space.examples import CRYSTALS, MOLECULES
from zoo_space.messages import AUTOMATIC, Denoised, Progress
from zoo_space.service import Service, names_of, outbox


def build(service: Service) -> None:
    """Two invisible forms, which are what Gradio makes endpoints of."""
    limits = service.limits

    def denoise(
        file: str | None = None,
        example: str | None = None,
        checkpoint: str = AUTOMATIC,
        steps: float = 10,
        frame: float = 1,
        species: str = "",
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio wants it
    ) -> Any:
        """Take the thermal vibration out of a snapshot of a crystal; read its structure before and after.

        Args:
            file: Structure: LAMMPS dump or data, extxyz, CIF, POSCAR, XDATCAR, PDB, GRO, or .gz of these.
            example: Instead of a file: aluminium, grain-boundary, ice or solid-liquid.
            checkpoint: Name of a released denoiser, or automatic: by the composition and the verdicts.
            steps: At most so many denoising steps; it stops by itself when it has converged.
            frame: Frame of a trajectory, counted from 1; -1 is the last one.
            species: Elements of the LAMMPS types, such as "Al Cu"; only if the file does not name them.

        Returns:
            Summary: structure fractions before and after, steps, displacements in Å.
            Files: the denoised structure as extxyz with a structure_type per atom, and a picture as PNG.
        """
        with outbox() as out:
            summary: dict[str, Any] = {}
            files: list[str] = []
            try:
                for message in service.denoise(file, example, checkpoint, steps, frame, species, out):
                    if isinstance(message, Progress):
                        progress(message.share, desc=message.text)
                    elif isinstance(message, Denoised):
                        summary, files = message.summary, [str(message.structure)]
                    else:
                        files.append(str(message))
            except VisitorError as error:
                raise _told(error) from None
            yield summary, files

    def rollout(
        file: str | None = None,
        example: str | None = None,
        checkpoint: str = AUTOMATIC,
        steps: float = 500,
        walkers: float = 16,
        seed: float = 0,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Any:
        """Let a molecule take picosecond steps of score dynamics, several independent walkers at once.

        Args:
            file: Start structure of a molecule that a checkpoint knows: PDB, GRO or XYZ, water or not.
            example: Instead of a file: alanine-c7eq, alanine-alpha-r, alanine-alpha-l or alanine-c7ax.
            checkpoint: Name of a released propagator, or automatic.
            steps: Lag steps of each walker.
            walkers: Independent trajectories.
            seed: The same seed gives the same trajectories.

        Returns:
            Summary: the validity report: proposals redrawn and why, walkers stopped, speed in ns/day.
            Files: trajectories as XTC, the topology as PDB, and the full report as JSON.
        """
        with outbox() as out:
            try:
                for message in service.rollout(file, example, checkpoint, steps, walkers, seed, out):
                    if isinstance(message, Progress):
                        progress(message.share, desc=message.text)
                    else:
                        warning = {"warning": message.warning} if message.warning else {}
                        yield {**message.summary, **warning}, [str(f) for f in message.files]
            except VisitorError as error:
                raise _told(error) from None

    with gr.Column(visible=False):
        common = {"api_visibility": "public", "concurrency_id": "jobs", "concurrency_limit": limits.workers}
        gr.Button().click(
            denoise,
            [
                gr.File(label="file"),
                gr.Dropdown([e.key for e in CRYSTALS], value=None, label="example"),
                gr.Dropdown(names_of("denoiser"), value=AUTOMATIC, label="checkpoint"),
                gr.Number(10, label="steps"),
                gr.Number(1, label="frame"),
                gr.Textbox("", label="species"),
            ],
            [gr.JSON(label="summary"), gr.File(label="files", file_count="multiple")],
            api_name="denoise",
            **common,
        )
        gr.Button().click(
            rollout,
            [
                gr.File(label="file"),
                gr.Dropdown([e.key for e in MOLECULES], value=None, label="example"),
                gr.Dropdown(names_of("score-dynamics"), value=AUTOMATIC, label="checkpoint"),
                gr.Number(500, label="steps"),
                gr.Number(16, label="walkers"),
                gr.Number(0, label="seed"),
            ],
            [gr.JSON(label="summary"), gr.File(label="files", file_count="multiple")],
            api_name="rollout",
            **common,
        )


def _told(error: VisitorError) -> gr.Error:
    """For the client, without a traceback in the server's log: it is the visitor's mistake."""
    return gr.Error(str(error), print_exception=False)
