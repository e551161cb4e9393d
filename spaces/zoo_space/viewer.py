"""The 3D viewer as a Gradio component: `static/viewer.js` on vendored 3Dmol.js, no outside request."""

from __future__ import annotations

from html import escape
from pathlib import Path

import gradio as gr

STATIC = Path(__file__).parent / "static"
#: Where `STATIC` is served; relative, so that it works behind a proxy too.
ROUTE = "zoo-static"

_TEMPLATE = """
<div class="zoo-viewer" data-state="empty">
  <div class="zv-body"><p class="zv-empty">{empty}</p></div>
</div>
"""
_HEAD = f'<script src="{ROUTE}/3Dmol-min.js"></script><script src="{ROUTE}/viewer.js"></script>'


def viewer(empty: str, elem_id: str) -> gr.HTML:
    """A component whose value is `Scene.to_json`, or None.

    Parameters
    ----------
    empty : what is said where there is nothing to show yet.
    elem_id : of the component in the page.
    """
    # No subclass: Gradio would write a stub file of it into this folder.
    return gr.HTML(
        None,
        html_template=_TEMPLATE.format(empty=escape(empty)),
        js_on_load="window.zooViewer.mount(element, props, watch);",
        head=_HEAD,
        apply_default_css=False,
        elem_id=elem_id,
    )
