"""A model of the Hugging Face hub by its name: from the cache where it is there, else from the hub."""

import re
from pathlib import Path

from gpt2core.errors import UserError
from gpt2core.extras import needs_extra
from gpt2core.storage.hf import RELEASED

# Other formats of the same weights (onnx, tflite, h5) are not fetched.
_SMALL = ["config.json", "generation_config.json", "vocab.json", "merges.txt", "tokenizer*.json", "added_tokens.json"]
_SAFETENSORS = ["model*.safetensors", "model.safetensors.index.json"]
_PICKLES = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


def is_hub_name(source: str) -> bool:
    """Whether it is written like a model of the hub: `gpt2`, `distilgpt2`, `OWNER/NAME`."""
    return re.fullmatch(r"[\w][\w.-]*(?:/[\w][\w.-]*)?", source) is not None


def fetch_from_hub(name: str) -> Path:
    """The directory in the hub's cache that holds the model. Raises UserError where it is not to be had."""
    with needs_extra(f"the model {name!r} of the hub"):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    repo_id = RELEASED.get(name, name)
    try:
        cached = Path(snapshot_download(repo_id, local_files_only=True))
        if _has_weights(cached):
            return cached
    except (LocalEntryNotFoundError, FileNotFoundError):
        pass
    try:
        directory = Path(snapshot_download(repo_id, allow_patterns=_SMALL + _SAFETENSORS))
        if not _has_weights(directory):
            directory = Path(snapshot_download(repo_id, allow_patterns=_SMALL + _PICKLES))
        return directory
    except RepositoryNotFoundError:
        raise UserError(
            f"{name!r} is no file or folder here, and the hub has no such model, or it is private: "
            "check the name, or `hf auth login` first."
        ) from None
    except Exception as error:  # the hub client raises many kinds, for as many ways of being offline
        raise UserError(
            f"{name!r} is no file or folder here and not in the Hugging Face cache, and the hub cannot be reached "
            f"({type(error).__name__}). On a machine with a network run `hf download {repo_id} --local-dir MODEL`, "
            "copy that folder here and import it."
        ) from None


def _has_weights(directory: Path) -> bool:
    return (directory / "config.json").exists() and any(
        file.suffix in (".safetensors", ".bin") for file in directory.iterdir()
    )
