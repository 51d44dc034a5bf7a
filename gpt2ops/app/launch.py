"""How Gradio is started wherever the page runs: nothing leaves, and nothing of the disk is served."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gradio as gr

ASSETS = Path(__file__).parent / "assets"
QUEUE = 200  # events that Gradio holds; prompts have a shorter queue of their own
THREADS = 80


def prepare_gradio() -> None:
    """No telemetry, no look for newer versions, and a closed tab is soon noticed; before Gradio is imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("GRADIO_HEARTBEAT_INTERVAL", "2")  # seconds; a text for nobody holds up the others


def launch(page: "gr.Blocks", **address: Any) -> None:
    """Serve the page; `address` is what `Blocks.launch` takes of host, port and login."""
    page.queue(max_size=QUEUE)
    page.launch(
        **address,
        theme=_theme(),
        css_paths=[ASSETS / "page.css"],
        js=(ASSETS / "page.js").read_text(encoding="utf-8"),
        footer_links=["api", "settings"],
        share=False,
        allowed_paths=[],
        max_file_size=1,  # nothing here is uploaded, but Gradio always listens for it
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
    """Gradio's own, with small print dark enough to read (its contrast is below WCAG's 4.5)."""
    import gradio as gr

    return gr.themes.Default(primary_hue=gr.themes.colors.blue).set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
    )
