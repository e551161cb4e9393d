"""The page as a whole, and how it is served."""

from __future__ import annotations

import io
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo_space.errors import VisitorError
from zoo_space.limits import Limits

if TYPE_CHECKING:
    import gradio as gr

    from zoo_space.workers import Workers

_HEAD = """
<header class="zs-head">
  <h1>zoo</h1>
  <p>Pretrained models for atomistic simulation. Give it a snapshot of a hot crystal, and the thermal noise
  goes: phases, defects and boundaries can be read. Give it a molecule, and it moves by picoseconds
  at a time.</p>
</header>
"""


def build(workers: Workers, limits: Limits, url: str = "https://HOST/") -> gr.Blocks:
    """The page; nothing is started and nothing loaded yet.

    Parameters
    ----------
    url : where it will be served, for the examples on the page.
    """
    import gradio as gr

    from zoo_space import api, cards_tab, denoise_tab, rollout_tab
    from zoo_space.service import Service

    service = Service(workers, limits)
    hour = 3600
    # Uploads and results are deleted within the hour, and all of them when the server stops.
    with gr.Blocks(title="zoo", analytics_enabled=False, delete_cache=(hour // 4, hour // 2)) as page:
        gr.HTML(_HEAD)
        with gr.Tabs():
            with gr.Tab("Denoise a crystal", id="denoise"):
                denoise_tab.build(service)
            with gr.Tab("Roll out a molecule", id="rollout"):
                rollout_tab.build(service)
            with gr.Tab("Checkpoints", id="checkpoints"):
                cards_tab.build()
            with gr.Tab("API", id="api"):
                text = (Path(__file__).parent / "api.md").read_text(encoding="utf-8")
                gr.Markdown(
                    text.format(
                        url=url, denoise_limits=limits.of_denoising(), rollout_limits=limits.of_rollouts()
                    ),
                    elem_id="api-text",
                )
        api.build(service)
    page.queue(max_size=limits.queue, default_concurrency_limit=limits.workers)
    return page


@contextmanager
def serving(
    host: str = "127.0.0.1", port: int = 7860, limits: Limits | None = None, *, warm: bool = True
) -> Iterator[str]:
    """Serve the page while the context is open; gives its address.

    Sets the environment of this process (no telemetry, a temporary folder of its own for uploads), so it is
    for processes that serve and do nothing else.

    Raises
    ------
    VisitorError : the port is taken, or Gradio is not installed.
    """
    bounds = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="zoo-space-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        gr, theme = _gradio()
        from starlette.routing import Mount
        from starlette.staticfiles import StaticFiles

        from zoo_space import cards_tab
        from zoo_space.viewer import ROUTE, STATIC
        from zoo_space.workers import Workers

        workers = Workers(
            bounds.workers, bounds.memory_gb, ("zoo_space.jobs.denoise", "zoo_space.jobs.rollout")
        )
        shown = "localhost" if host in ("127.0.0.1", "0.0.0.0") else host  # noqa: S104
        public = os.environ.get("SPACE_HOST")
        url = f"https://{public}/" if public else f"http://{shown}:{port}/"
        page = build(workers, bounds, url)
        try:
            with redirect_stdout(io.StringIO()):  # Gradio's own announcements; ours follow
                page.launch(
                    server_name=host,
                    server_port=port,
                    prevent_thread_lock=True,
                    quiet=True,
                    share=False,
                    ssr_mode=False,
                    show_error=False,
                    mcp_server=True,
                    pwa=False,
                    run_history=False,
                    footer_links=["api"],
                    max_file_size=f"{bounds.upload_mb}mb",
                    theme=theme,
                    css_paths=STATIC / "style.css",
                    app_kwargs={
                        "routes": [
                            Mount(path, StaticFiles(directory=folder))
                            for path, folder in ({f"/{ROUTE}": STATIC} | cards_tab.pictures()).items()
                        ]
                    },
                    enable_monitoring=False,
                )
        except OSError:
            workers.close()
            raise VisitorError(f"port {port} cannot be used: choose another one with --port") from None
        if warm:
            threading.Thread(target=workers.warm, daemon=True).start()
        try:
            yield url
        finally:
            page.close(verbose=False)
            workers.close()
            del gr


def main(host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serve until interrupted or told to end.

    Raises
    ------
    VisitorError : as `serving`.
    """
    # No event: it has a lock, which a signal that comes while it is being waited for would take twice.
    told: list[int] = []
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda number, _: told.append(number))
    with serving(host, port) as url:
        print(f"zoo is at {url} (Ctrl-C stops it)", flush=True)
        while not told:
            time.sleep(0.1)
    print("stopped", flush=True)


def _gradio() -> tuple[Any, Any]:
    try:
        import gradio as gr
    except ImportError as error:
        raise VisitorError(f'the page needs Gradio ({error}): pip install "score-zoo[space]"') from None
    # Fonts of the system: others would be asked for from elsewhere.
    theme = gr.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
        radius_size="md",
    ).set(button_primary_background_fill="#0072b2", button_primary_background_fill_hover="#005a8e",
          button_primary_text_color="#ffffff",
        # Gradio's own are too pale to be read by everybody.
        body_text_color_subdued="#475569",
        body_text_color_subdued_dark="#a9b6c8",
        block_info_text_color="#475569",
        block_info_text_color_dark="#a9b6c8",
        block_label_text_color="#334155",
        block_label_text_color_dark="#cbd5e1", button_primary_background_fill_dark="#0072b2",
          button_primary_background_fill_hover_dark="#3394cc")  # fmt: skip
    return gr, theme
