"""Logs the two models to a run, checks them in a new process, and creates model versions."""

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import gpt2core
from gpt2core.data.examples.template import template_of
from gpt2core.errors import UserError
from gpt2ops.pipeline import paths
from gpt2ops.process.startup import quick_imports
from gpt2ops.store.address import tracking_uri
from gpt2ops.store.errors import one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from gpt2core.model import GPT

MODEL_REQUIREMENTS = ("mlflow", "torch", "numpy")
# What `gpt2core` imports to generate text.
TEXT_REQUIREMENTS = (*MODEL_REQUIREMENTS, "safetensors", "tiktoken", "psutil")
_MODEL_URI = "models:/"
LOGGED_TAGS = {"gpt2_stage": "register"}  # of the models that this stage logs: `gpt2 gc` removes none of a user's own
VERSIONS_TAG = "mlflow.modelVersions"  # MLflow's run page finds a logged model's versions by it


@dataclass(frozen=True)
class LoggedModels:
    """The two models of a run, before they are registered."""

    model_id: str
    text_id: str

    @property
    def model_uri(self) -> str:
        return _MODEL_URI + self.model_id

    @property
    def text_uri(self) -> str:
        return _MODEL_URI + self.text_id


@dataclass(frozen=True)
class Versions:
    version: str
    text_version: str


class FreshProcess:
    """A process without the project that loads the models. It imports its libraries while the stage exports."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="gpt2-verify-")
        self.folder = Path(self._folder.name)
        environment = {
            **os.environ,
            "MLFLOW_TRACKING_URI": tracking_uri(),
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        }
        script = find_spec("gpt2ops.registry.fresh_check")
        assert script is not None
        assert script.origin is not None
        self._process = subprocess.Popen(
            [sys.executable, "-I", script.origin],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, logged: LoggedModels, expected: Path) -> None:
        """Start the check against the .npz of token ids and logits; `answer` waits for its result."""
        answers = template_of(paths.BEST_MODEL) is not None
        request = {
            "model_uri": logged.model_uri,
            "text_uri": logged.text_uri,
            "expected": str(expected),
            "answers": answers,
        }
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return  # `answer` reports why it ended

    def answer(self) -> dict[str, Any]:
        """Raises UserError if a model does not load or its logits differ."""
        output, errors = self._process.communicate()
        try:
            answer = dict(json.loads(output))
        except ValueError:
            lines = errors.strip().splitlines() or [f"exit code {self._process.returncode}"]
            answer = {"ok": False, "problem": lines[-1][:300]}
        if not answer["ok"]:
            raise UserError(
                f"no version was registered: the logged model failed its check in a new process ({answer['problem']})."
            )
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
        self._folder.cleanup()


def log_models(model: "GPT", run_id: str, model_id: str | None = None, text_id: str | None = None) -> LoggedModels:
    """Log `gpt2` (exported graph, no code, no pickle) and `gpt2-text` (this project's library with the weights).

    Of `model_id` and `text_id`, what is given was logged before. Needs `fluent_mlflow`. Raises UserError if the model
    cannot be exported or stored.
    """
    import mlflow

    with mlflow.start_run(run_id=run_id, log_system_metrics=False):
        try:
            return LoggedModels(model_id or _log_graph(model), text_id or _log_text_model())
        except Exception as error:
            if isinstance(error, OSError):
                raise
            raise UserError(f"the model could not be exported and logged: {one_line(error)}") from error


def _log_graph(model: "GPT") -> str:
    import numpy as np

    with quick_imports():
        import mlflow.pytorch
        import torch._dynamo  # for torch.export, which imports it late
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

    signature = ModelSignature(
        Schema([TensorSpec(np.dtype("int64"), (-1, -1))]),
        Schema([TensorSpec(np.dtype("float32"), (-1, -1, model.config.vocab_size))]),
    )
    info = mlflow.pytorch.log_model(
        model,
        name="gpt2",
        serialization_format="pt2",
        # A dimension of one would become a constant of the exported graph.
        input_example=torch.zeros(2, min(8, model.config.block_size), dtype=torch.int64),
        signature=signature,
        pip_requirements=requirements(MODEL_REQUIREMENTS),
        tags=LOGGED_TAGS,
    )
    return str(info.model_id)


def _log_text_model() -> str:
    import mlflow.pyfunc

    from gpt2ops.registry.text_model import signature

    info = mlflow.pyfunc.log_model(
        name="gpt2-text",
        python_model=str(Path(__file__).with_name("text_model.py")),
        artifacts={"model": str(paths.BEST_MODEL)},
        code_paths=[str(Path(gpt2core.__file__).parent)],
        signature=signature(),
        pip_requirements=requirements(TEXT_REQUIREMENTS),
        tags=LOGGED_TAGS,
    )
    return str(info.model_id)


def requirements(packages: tuple[str, ...]) -> list[str]:
    """Pins of the installed versions, without a local part such as `+cpu`, which package indexes do not have."""
    return [f"{package}=={importlib.metadata.version(package).partition('+')[0]}" for package in packages]


def write_expected(model: "GPT", file: Path) -> None:
    """Token ids and the trained model's logits for several batch sizes and lengths, up to block_size, as .npz."""
    import numpy as np
    import torch

    block_size, vocab_size = model.config.block_size, model.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    arrays = {}
    for index, (batch, length) in enumerate([(1, 1), (2, 3), (3, 7), (1, block_size)]):
        ids = torch.randint(vocab_size, (batch, min(length, block_size)), generator=generator)
        with torch.inference_mode():
            arrays[f"logits_{index}"] = model(ids).numpy()
        arrays[f"ids_{index}"] = ids.numpy()
    np.savez(file, **arrays)


def create_version(
    client: "MlflowClient", name: str, model_id: str, run_id: str, tags: dict[str, str], description: str
) -> str:
    """Create a version of the registered model `name`; returns its number. Needs `fluent_mlflow`."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(
        name, f"models:/{model_id}", run_id=run_id, tags=tags, description=description, model_id=model_id
    )
    tag = json.dumps([{"name": name, "version": version.version}])
    client.set_logged_model_tags(model_id, {VERSIONS_TAG: tag})
    return str(version.version)


def find_version(client: "MlflowClient", name: str, run_id: str, weights_sha256: str) -> "ModelVersion | None":
    """The newest version of `name` that the run registered with these weights."""
    found = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    same = [entry for entry in found if entry.tags.get("weights_sha256") == weights_sha256]
    return max(same, key=lambda entry: int(entry.version), default=None)


def logged_model_of(entry: "ModelVersion | None") -> str | None:
    """The id of the logged model that a version was made of; None for no version, or one made otherwise."""
    source = str(entry.source) if entry else ""
    return source.removeprefix(_MODEL_URI) if source.startswith(_MODEL_URI) else None
