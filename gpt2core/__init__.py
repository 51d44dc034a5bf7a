"""GPT-2 in PyTorch: `from gpt2core import GPT, GPTConfig, Tokenizer, generate`.

Names load on first use, so that a stage pays only for what it imports.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from gpt2core.config import GPTConfig
    from gpt2core.decoding import PackedGPT, generate, stream
    from gpt2core.errors import UserError
    from gpt2core.evaluation.scores import evaluate, perplexity
    from gpt2core.model import GPT
    from gpt2core.tokenizer import Tokenizer
    from gpt2core.training.config import TrainerConfig
    from gpt2core.training.trainer import Trainer

_HOMES = {
    "GPT": "model",
    "GPTConfig": "config",
    "PackedGPT": "decoding",
    "Tokenizer": "tokenizer",
    "Trainer": "training.trainer",
    "TrainerConfig": "training.config",
    "UserError": "errors",
    "evaluate": "evaluation.scores",
    "generate": "decoding",
    "perplexity": "evaluation.scores",
    "stream": "decoding",
}

__all__ = [
    "GPT",
    "GPTConfig",
    "PackedGPT",
    "Tokenizer",
    "Trainer",
    "TrainerConfig",
    "UserError",
    "evaluate",
    "generate",
    "perplexity",
    "stream",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"gpt2core.{_HOMES[name]}"), name)
