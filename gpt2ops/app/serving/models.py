"""The models of the page, loaded on first use; the most recently used stay in memory."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from gpt2core.config import GPT2_VOCAB_SIZE
from gpt2core.data.examples.template import Template, template_of
from gpt2core.decoding.packed.linear import Weights
from gpt2core.decoding.packed.model import PackedGPT
from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2ops.sampling.texts import with_weights

log = logging.getLogger(__name__)


class ModelSource(Protocol):
    def choices(self) -> list[tuple[str, str]]:
        """Label and name of each model, the default first; may be empty."""

    def directory(self, name: str) -> Path:
        """The folder of a model. Raises UserError if there is no such model, or it is not allowed."""


class FixedModels:
    def __init__(self, directories: Mapping[str, Path]) -> None:
        self._directories = directories

    def choices(self) -> list[tuple[str, str]]:
        return [(name, name) for name in self._directories]

    def directory(self, name: str) -> Path:
        if name not in self._directories:
            raise UserError(f"There is no model {name!r}; choose one of {', '.join(self._directories)}.")
        return self._directories[name]


@dataclass(frozen=True)
class LoadedModel:
    name: str
    model: GPT | PackedGPT
    block_size: int
    template: Template | None = None  # of a model that was trained on examples


class ModelCache:
    """Loads one model at a time and keeps the last `capacity` used; a model that changed on disk is loaded again."""

    def __init__(self, source: ModelSource, weights: Weights, capacity: int) -> None:
        self.source, self.weights, self._capacity = source, weights, capacity
        self._loaded: OrderedDict[tuple[object, ...], GPT | PackedGPT] = OrderedDict()
        self._lock = threading.Lock()

    def load(self, name: str) -> LoadedModel:
        """The model, ready for decoding. Raises UserError without a path of this machine in its message."""
        if not name:
            raise UserError("No model is chosen, or there is none yet: train one (`make run`) or name a folder.")
        directory = self.source.directory(name)
        with self._lock:
            version = _version(directory)
            if version not in self._loaded:
                self._loaded[version] = self._open(name, directory)
                while len(self._loaded) > self._capacity:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(version)
            model = self._loaded[version]
        return LoadedModel(name, model, model.config.block_size, template_of(directory))

    def _open(self, name: str, directory: Path) -> GPT | PackedGPT:
        try:
            model = GPT.from_pretrained(directory)
            if model.config.vocab_size != GPT2_VOCAB_SIZE:
                raise UserError(f"its vocab_size is {model.config.vocab_size}, but GPT-2's is {GPT2_VOCAB_SIZE}.")
        except UserError as error:
            reason = str(error).replace(str(directory), name)
        except Exception as error:  # a damaged file can raise anything
            log.warning("model %s: %r", name, error)
            reason = f"its files cannot be read ({type(error).__name__})."
        else:
            return cast(GPT | PackedGPT, with_weights(model, self.weights))
        raise UserError(f"The model {name!r} cannot be loaded: {reason}")


def _version(directory: Path) -> tuple[object, ...]:
    """A key that changes when a file of the model is rewritten."""
    files = [file for file in sorted(directory.glob("*")) if file.suffix in (".json", ".safetensors")]
    stats = [(file.name, file.stat()) for file in files]
    return (directory.resolve(), *((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats))
