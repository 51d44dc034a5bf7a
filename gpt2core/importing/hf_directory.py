"""Directories in the Hugging Face layout, as any version of transformers wrote them."""

from pathlib import Path
from typing import Any

from torch import Tensor

from gpt2core.errors import UserError
from gpt2core.importing.source import Source, read_safetensors, read_small_json
from gpt2core.importing.torch_file import read_torch_file
from gpt2core.storage.files import inside
from gpt2core.storage.hf import read_config
from gpt2core.tokenizer import Tokenizer

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def read_hf_directory(directory: Path) -> Source:
    """Tensors and sizes. Raises UserError for another architecture, another tokenizer, or a file that is damaged."""
    directory = directory.resolve()
    config = read_config(directory)
    notes = check_tokenizer(directory)
    tensors: dict[str, Tensor] = {}
    files = _weight_files(directory, notes)
    for file in files:
        content = read_safetensors(file) if file.suffix == ".safetensors" else read_torch_file(file)
        if not isinstance(content, dict) or not all(isinstance(item, Tensor) for item in content.values()):
            raise UserError(f"{file} holds no state dict (names with tensors).")
        tensors.update(content)
    head, wte = "lm_head.weight", "transformer.wte.weight"
    if config.tie_word_embeddings and head in tensors and wte not in tensors and "wte.weight" not in tensors:
        tensors[wte] = tensors[head]  # safetensors' `save_model` keeps one name of a shared tensor
    sizes = {name: getattr(config, name) for name in ("n_head", "n_layer", "n_embd", "block_size")}
    form = "safetensors" if files[0].suffix == ".safetensors" else "pytorch_model.bin"
    shards = f", {len(files)} shards" if len(files) > 1 else ""
    settings = {**config.as_dict(), "hugging_face": True}
    return Source(f"a Hugging Face directory ({form}{shards})", tensors, sizes, settings, "config.json", notes)


def _weight_files(directory: Path, notes: list[str]) -> list[Path]:
    """The files that transformers would read; `notes` gets those that it, and so this, passes over."""
    there = [name for weights in _WEIGHTS for name in (weights, f"{weights}.index.json") if (directory / name).exists()]
    if there:
        if there[1:]:
            notes.append(f"passed over, as transformers does: {', '.join(there[1:])}")
        chosen = within(directory / there[0], directory)
        if not there[0].endswith(".index.json"):
            return [chosen]
        return [within(directory / file, directory) for file in _index_files(chosen)]
    if (directory / "adapter_config.json").exists():
        raise UserError(f"{directory} is a LoRA adapter; merge it into its model (`merge_and_unload()`) and save that.")
    raise UserError(f"{directory} has a config.json, but neither {' nor '.join(_WEIGHTS)}; fetch the weights as well.")


def _index_files(index: Path) -> list[str]:
    weight_map = read_small_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map; fetch or save it again.")
    # Only the file's name counts: an index must not lead out of its directory.
    return sorted({Path(str(name)).name for name in weight_map.values()})


def within(file: Path, directory: Path) -> Path:
    """`file`, links followed. Raises UserError where it is missing or leads out of `directory`."""
    target = inside(file, directory)
    if not target.is_file():
        raise UserError(f"{file} is missing; fetch or save it again.")
    return target


def check_tokenizer(directory: Path) -> list[str]:
    """Notes on tokens added to GPT-2's. Raises UserError where the tokenizer beside the weights is not GPT-2's."""
    vocabulary, added = _vocabulary(directory)
    if vocabulary is None:
        return []
    ours = Tokenizer().vocabulary()
    differing = [
        token for token, number in vocabulary.items() if number < Tokenizer.n_vocab and ours.get(token) != number
    ]
    if len(vocabulary) < Tokenizer.n_vocab - 1 or differing:
        raise UserError(
            f"{directory}: its tokenizer is not GPT-2's ({len(vocabulary):,} tokens, {len(differing):,} of them other "
            "than GPT-2's); this project has that one only."
        )
    extra = sorted({token for token, number in {**vocabulary, **added}.items() if number >= Tokenizer.n_vocab})
    if not extra:
        return []
    return [f"tokens added to GPT-2's are not taken over: {', '.join(extra[:5])}{' ...' if len(extra) > 5 else ''}"]


def _vocabulary(directory: Path) -> tuple[dict[str, int] | None, dict[str, int]]:
    """Token -> id of the vocabulary, None without tokenizer files; and the same of added tokens."""
    added: dict[str, Any] = {}
    if (directory / "added_tokens.json").exists():
        added = read_small_json(within(directory / "added_tokens.json", directory))
    vocabulary: Any = None
    if (directory / "vocab.json").exists():
        vocabulary = read_small_json(within(directory / "vocab.json", directory))
    elif (directory / "tokenizer.json").exists():
        content = read_small_json(within(directory / "tokenizer.json", directory))
        vocabulary = content.get("model", {}).get("vocab") if isinstance(content.get("model"), dict) else None
        tokens = content.get("added_tokens")
        for token in tokens if isinstance(tokens, list) else []:
            if isinstance(token, dict):
                added[str(token.get("content"))] = token.get("id")
    if vocabulary is None:
        return None, {}
    if not isinstance(vocabulary, dict) or not all(isinstance(number, int) for number in vocabulary.values()):
        raise UserError(f"{directory}: its tokenizer is not GPT-2's (another kind of vocabulary).")
    return vocabulary, {token: number for token, number in added.items() if isinstance(number, int)}
