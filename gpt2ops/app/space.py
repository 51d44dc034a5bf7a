"""`gpt2 app --export-space`: a folder that runs as a Hugging Face Space, with the model and the code that it needs."""

import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import packages_distributions, version
from pathlib import Path

from gpt2core.decoding.packed.linear import Weights
from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2core.storage.files import replaced_directory, write_text
from gpt2core.tokenizer import Tokenizer
from gpt2ops.app.server import project_examples
from gpt2ops.app.serving.models import ModelCache
from gpt2ops.app.serving.project_models import ProjectModels
from gpt2ops.pipeline.closure import Closure, import_closure

ENTRY = "gpt2ops.app.standalone"  # what app.py runs; the folder gets a copy of all that it imports
PACKAGES = ("gpt2core", "gpt2ops")

APP = '''"""Writes text with the model in `model/`: `python app.py`; a Space starts it itself."""

from pathlib import Path

from {entry} import serve_model  # the folder `app`, not this file

serve_model(Path(__file__).parent / "model", {weights!r}, {examples!r})
'''
README = """---
title: {title}
emoji: 📝
colorFrom: blue
colorTo: gray
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
license: mit
---

# {title}

A GPT-2 of {parameters:,} parameters that reads {block_size} tokens at once, on a page that writes text with it.

To run it here: `pip install -r requirements.txt && python app.py`, then open http://127.0.0.1:7860.
To publish it: make a Space with the SDK Gradio and push this folder to it. `license` above is that of the code; say
there what your model was trained on, and under which licence.
"""


def export_space(directory: str, models: Sequence[str], weights: Weights) -> None:
    """Write the folder, completely or not at all. Raises UserError where it exists, or where there is no such model."""
    target = Path(directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--export-space: {target} exists; name a new folder, or delete it.")
    if len(models) > 1:
        raise UserError(f"a Space has one model, not {len(models)}: give --model once.")
    source = ProjectModels(models)
    name = next((name for _, name in source.choices()), None)
    if name is None:
        raise UserError("there is no model to export: train one (`make run`), or give --model.")
    ModelCache(source, weights, 1).load(name)  # says in one line what is wrong with it
    model = GPT.from_pretrained(source.directory(name))
    with replaced_directory(target) as partial:
        model.save_pretrained(partial / "model")
        Tokenizer().save(partial / "model")
        closure = import_closure([ENTRY], PACKAGES)
        _copy_code(closure, partial)
        write_text(partial / "app.py", APP.format(entry=ENTRY, weights=weights, examples=list(project_examples())))
        write_text(partial / "requirements.txt", _requirements(closure))
        write_text(partial / "README.md", _readme(name, model))
    print(
        f"{target} holds the page and {name}. Try it: cd {target} && pip install -r requirements.txt && python app.py"
    )


def _copy_code(closure: Closure, target: Path) -> None:
    for module, file in closure.files.items():
        place = target.joinpath(*module.split("."))
        if file.name == "__init__.py":
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
            if (file.parent / "assets").is_dir():
                shutil.copytree(file.parent / "assets", place / "assets")
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place.with_name(file.name))


def _requirements(closure: Closure) -> str:
    """The versions that are installed here; of PyTorch the build without CUDA, which is a tenth of the size."""
    homes = packages_distributions()  # an optional library that is not installed has none
    names = sorted({name for library in closure.libraries for name in homes.get(library, [])}, key=str.lower)
    pins = [f"{name}=={version(name).partition('+')[0]}" for name in names]
    return "\n".join(["--extra-index-url https://download.pytorch.org/whl/cpu", *pins]) + "\n"


def _readme(name: str, model: GPT) -> str:
    return README.format(
        title=name.removeprefix("models:/").replace("/", " ").replace("@", " "),
        gradio=version("gradio"),
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        parameters=model.num_parameters(),
        block_size=model.config.block_size,
    )
