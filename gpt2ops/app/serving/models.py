"""The models that the page offers, loaded when first asked for; the latest few stay in memory."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from gpt2core.config import GPT2_VOCAB_SIZE
from gpt2core.decoding.packed.linear import Weights
from gpt2core.decoding.packed.model import PackedGPT
from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2ops.sampling.texts import with_weights

log = logging.getLogger(__name__)


class ModelSource(Protocol):
    """Where models come from."""

    def choices(self) -> list[tuple[str, str]]:
        """Label and name of each model to choose from, the default first; may be empty."""

    def directory(self, name: str) -> Path:
        """The folder of a model. Raises UserError where there is no such model, or it may not be used."""


class FixedModels:
    """Models by name, and no others."""

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


class Shelf:
    """Loads models, one at a time, and keeps the latest `capacity`; a model that changed on disk is loaded again."""

    def __init__(self, source: ModelSource, weights: Weights, capacity: int) -> None:
        self.source, self.weights, self._capacity = source, weights, capacity
        self._loaded: OrderedDict[tuple[object, ...], GPT | PackedGPT] = OrderedDict()
        self._lock = threading.Lock()

    def load(self, name: str) -> LoadedModel:
        """The model, ready to decode with. Raises UserError without a place of this machine in it."""
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
        return LoadedModel(name, model, model.config.block_size)

    def _open(self, name: str, directory: Path) -> GPT | PackedGPT:
        try:
            model = GPT.from_pretrained(directory)
            if model.config.vocab_size != GPT2_VOCAB_SIZE:
                raise UserError(f"its vocab_size is {model.config.vocab_size}, but GPT-2's is {GPT2_VOCAB_SIZE}.")
        except UserError as error:
            reason = str(error).replace(str(directory), name)
        except Exception as error:  # whatever a file that is no model makes its readers raise
            log.warning("model %s: %r", name, error)
            reason = f"its files cannot be read ({type(error).__name__})."
        else:
            return cast(GPT | PackedGPT, with_weights(model, self.weights))
        raise UserError(f"The model {name!r} cannot be loaded: {reason}")


def _version(directory: Path) -> tuple[object, ...]:
    """Changes when a file of the model is written anew."""
    files = [file for file in sorted(directory.glob("*")) if file.suffix in (".json", ".safetensors")]
    stats = [(file.name, file.stat()) for file in files]
    return (directory.resolve(), *((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats))
