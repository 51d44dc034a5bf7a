"""Checks the logged models in a new process, as another user would load them: without the project, without pickle.

Run as a file by `python -I`, so it must not import the project. It reads one line of JSON from standard input
(`model_uri`, `text_uri`, `expected`: an .npz of pairs ids_N, logits_N, `answers`: whether the text model answers a
prompt instead of going on with it) and writes one line to standard output.
"""

import gc
import importlib.machinery
import json
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

PROJECT = ("gpt2core", "gpt2ops", "tasks", "flows")
# Kernels may sum in another order in another process; a wrong weight gives a far larger difference.
TOLERANCE = 1e-4


class ProjectFinder:
    """Finds the project's packages only in the code paths of a model, even if the project is installed."""

    def __init__(self) -> None:
        self.initial_path = set(sys.path)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in PROJECT:
            return None
        code_paths = [entry for entry in sys.path if entry not in self.initial_path]
        spec = importlib.machinery.PathFinder.find_spec(name, code_paths)
        if spec is None:
            raise ModuleNotFoundError(
                f"the model needs {name!r} of the project, which is not in its code paths", name=name
            )
        return spec


def main() -> None:
    sys.meta_path.insert(0, ProjectFinder())
    # Only the answer goes to standard output.
    answer_to, sys.stdout = sys.stdout, sys.stderr
    gc.disable()  # imports take a quarter longer with the collector on
    warm_up()
    gc.enable()
    line = sys.stdin.readline()
    if not line:
        return  # the stage ended without a request
    request = json.loads(line)
    try:
        answer = {"ok": True, **check_logits(request), **check_text(request)}
    except Exception as error:  # whatever prevents loading is the answer
        lines = str(error).strip().splitlines() or [""]
        answer = {"ok": False, "problem": f"{type(error).__name__}: {lines[0][:300]}"}
    print(json.dumps(answer), file=answer_to, flush=True)
    # A normal exit of torch and mlflow takes a second.
    os._exit(0)


def warm_up() -> None:
    """Import the libraries, which takes seconds, while the stage still exports the model."""
    import mlflow.pyfunc
    import mlflow.pytorch
    import tiktoken  # noqa: F401
    import torch._export.serde.serialize  # noqa: F401  torch.export.load imports it
    from safetensors.torch import load_file  # noqa: F401

    mlflow.MlflowClient().search_experiments(max_results=1)


def check_logits(request: dict[str, Any]) -> dict[str, Any]:
    """Largest difference of logits over all shapes. Raises ValueError if it is above TOLERANCE."""
    import mlflow.pytorch
    import numpy as np
    import torch

    model = mlflow.pytorch.load_model(request["model_uri"])
    worst, shapes = 0.0, []
    with np.load(request["expected"]) as expected, torch.no_grad():
        for index in range(len(expected.files) // 2):
            ids, wanted = expected[f"ids_{index}"], expected[f"logits_{index}"]
            logits = model(torch.from_numpy(ids)).numpy()
            if logits.shape != wanted.shape:
                raise ValueError(f"token ids {ids.shape} give logits {logits.shape} instead of {wanted.shape}")
            difference = float(np.abs(logits - wanted).max())
            if not difference <= TOLERANCE:
                raise ValueError(
                    f"logits for token ids {ids.shape} differ by {difference:.2g} from the trained model's"
                )
            worst = max(worst, difference)
            shapes.append(list(ids.shape))
    return {"largest_difference": worst, "shapes": shapes}


def check_text(request: dict[str, Any]) -> dict[str, Any]:
    """One greedy token from the text model. Raises if it does not load, or lacks the prompt that it goes on with."""
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(request["text_uri"])
    prompt = "ROMEO."
    answer = model.predict([{"prompt": prompt}], params={"max_new_tokens": 1, "do_sample": False})
    if len(answer) != 1 or not str(answer[0]).startswith("" if request["answers"] else prompt):
        raise ValueError(f"gpt2-text answered {answer!r:.200} to {prompt!r}")
    return {"text": str(answer[0])}


if __name__ == "__main__":
    main()
