"""Stop, and the buttons that start a job on the same tab: one or the other can be pressed.

A click while a job runs would be ignored, or mix two jobs in one place.
"""

from __future__ import annotations

from typing import Any

import gradio as gr


def busy(n_starters: int) -> list[Any]:
    """Updates of Stop and the others while a job runs."""
    return [gr.Button(interactive=True), *(gr.Button(interactive=False) for _ in range(n_starters))]


def idle(n_starters: int) -> list[Any]:
    """Updates of Stop and the others when it has ended, however it did."""
    return [gr.Button(interactive=False), *(gr.Button(interactive=True) for _ in range(n_starters))]
