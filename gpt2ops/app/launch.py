"""Starts Gradio without telemetry, sharing, or access to files."""

import os
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from gpt2ops.process.startup import share_cores

if TYPE_CHECKING:
    import gradio as gr

ASSETS = files("gpt2ops.app") / "assets"
QUEUE = 200  # Gradio's events; requests have a shorter queue of their own
THREADS = 80


def prepare_gradio() -> None:
    """Before Gradio and PyTorch are imported: no telemetry, no version check, and a closed tab is noticed soon."""
    share_cores()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("GRADIO_HEARTBEAT_INTERVAL", "2")  # seconds; a text for a closed tab delays the others


def launch(page: "gr.Blocks", **address: Any) -> None:
    """Serve the page; `address` is what `Blocks.launch` takes of host, port and login."""
    page.queue(max_size=QUEUE)
    page.launch(
        **address,
        theme=_theme(),
        css=(ASSETS / "page.css").read_text(encoding="utf-8"),
        js=(ASSETS / "page.js").read_text(encoding="utf-8"),
        footer_links=["api", "settings"],
        share=False,
        allowed_paths=[],
        max_file_size=1,  # the page has no uploads, but Gradio always accepts them
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        quiet=True,
        show_error=False,
        max_threads=THREADS,
        state_session_capacity=1000,
    )


def _theme() -> "gr.Theme":
    """Gradio's default with darker small text: its own contrast is below WCAG's 4.5."""
    import gradio as gr

    return gr.themes.Default(primary_hue=gr.themes.colors.blue).set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
    )
