"""The page over one model in a folder, without a project: what a Hugging Face Space runs."""

from collections.abc import Sequence
from pathlib import Path

from gpt2core.decoding.packed.linear import Weights
from gpt2ops.app.launch import launch, prepare_gradio


def serve_model(directory: Path, weights: Weights, examples: Sequence[str]) -> None:
    """Serve until interrupted, where GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say (default: this machine only, 7860).

    Raises UserError for a folder that holds no model.
    """
    prepare_gradio()
    from gpt2ops.app.page.page import build_page
    from gpt2ops.app.serving.limits import Limits
    from gpt2ops.app.serving.models import FixedModels, ModelCache
    from gpt2ops.app.serving.service import GenerationService

    limits = Limits()
    cache = ModelCache(FixedModels({directory.name: directory}), weights, limits.models_in_memory)
    cache.load(directory.name)
    launch(build_page(GenerationService(cache, limits), examples, with_commands=False))
