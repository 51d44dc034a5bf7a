"""`gpt2 init DIR`: a project on the user's own text."""

import argparse
import shutil
from pathlib import Path
from typing import Any

from gpt2core.config import PRESETS
from gpt2core.errors import UserError
from gpt2core.storage.files import with_home, write_text
from gpt2ops.cli.flags.finetune import TEXT_FLAGS, add_flag, reading
from gpt2ops.corpora.source_files import first_prompts
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.code_version import package_version
from gpt2ops.projects.project import in_git, is_project, params_text, published, write_pipeline, write_project
from gpt2ops.projects.settings import combined, data_of, from_model, from_preset, local_files, prompts_of

EXAMPLES = """\
examples:
  gpt2 init plays                                   the bundled plays
  gpt2 init novel --train-file my.txt               your own text
  gpt2 init novel --train-file my.txt --model gpt2  from the released weights
  cd novel && dvc repro                             train, evaluate, register ...

`gpt2 finetune` does the same in one line, without a project to look after."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Start a project: params.yaml with every setting explained, the pipeline (dvc.yaml) and your text. "
        "`dvc repro` in it trains, evaluates and registers; a changed setting runs again what depends on it."
    )
    parser.epilog = EXAMPLES
    parser.add_argument("directory", metavar="DIR", help="the project's folder: new or empty")
    parser.add_argument(
        "--train-file",
        metavar="FILE",
        help="your text: .txt, .md, .jsonl, .json, .csv, .tsv or .parquet, also .gz and .zst, or a "
        "folder of them; it is copied into the "
        "project (default: the bundled plays)",
    )
    for flag in TEXT_FLAGS:
        add_flag(parser, flag)
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--preset", metavar="NAME", help=f"sizes of a new model: {', '.join(PRESETS)} (default: small)")
    start.add_argument(
        "--model", metavar="MODEL", help="weights to start from: gpt2 ... gpt2-xl, a directory, models:/NAME@ALIAS"
    )
    parser.add_argument(
        "--update",
        action="store_true",
        help="update an existing project to the stages of the installed version; settings and results are kept",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write or update the project. Raises UserError, and leaves nothing behind, where that is not possible."""
    folder = with_home(arguments.directory)
    if arguments.update:
        update(folder)
        return
    check_free(folder)
    text = None if arguments.train_file is None else with_home(arguments.train_file)
    files = [] if text is None else local_files(str(text), reading(arguments))
    parameters = params_text(settings(arguments, text, files))
    here = folder.is_dir()
    try:
        write_project(folder, parameters, use_git=in_git(folder))
        copied = copy_text(text, folder)
        write_text(folder / "README.md", readme(folder, copied))
    except OSError:
        empty(folder, keep=here)
        raise
    print_welcome(arguments.directory, folder, copied)


def check_free(folder: Path) -> None:
    if folder.is_file():
        raise UserError(f"{folder} is a file; name a folder.")
    if is_project(folder):
        raise UserError(f"{folder} is a project already; `gpt2 init {folder} --update` updates its stages.")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name a new folder.")


def settings(arguments: argparse.Namespace, text: Path | None, files: list[Path]) -> dict[str, Any]:
    """The settings that differ from the defaults of params.yaml."""
    chosen: dict[str, Any] = {}
    if arguments.model is not None:
        chosen = from_model(arguments.model)
    elif arguments.preset is not None:
        chosen = from_preset(arguments.preset)
    if text is None:
        return chosen
    how = reading(arguments)
    own = {
        "data": {"source": (paths.BUNDLED_CORPUS.parent / text.resolve().name).as_posix(), **how},
        "train": {"stop": {"target_loss": None}},
    }
    return combined(chosen, own, prompts_of(first_prompts(files[0], data_of(how))))


def copy_text(text: Path | None, folder: Path) -> Path:
    """Copy the text, or the bundled plays, into the project; returns its path there, relative to `folder`."""
    if text is None:
        (folder / paths.BUNDLED_CORPUS).write_bytes(published(paths.BUNDLED_CORPUS).read_bytes())
        return paths.BUNDLED_CORPUS
    source = text.resolve()
    target = paths.BUNDLED_CORPUS.parent / source.name
    if source.is_dir():
        shutil.copytree(source, folder / target)
    else:
        shutil.copyfile(source, folder / target)
    return target


def empty(folder: Path, *, keep: bool) -> None:
    """Remove all that is in `folder`; with `keep` the folder itself stays."""
    for path in folder.iterdir() if folder.is_dir() else []:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)


def update(folder: Path) -> None:
    if not is_project(folder):
        raise UserError(f"{folder} is no project; `gpt2 init {folder}` without --update creates one.")
    write_pipeline(folder)
    print(f"{folder} has the stages of version {package_version()}; `dvc repro` runs again those that changed.")


def print_welcome(typed: str, folder: Path, text: Path) -> None:
    size = sum(file.stat().st_size for file in [folder / text, *(folder / text).rglob("*")] if file.is_file())
    print(f"created the project {typed}")
    print("  params.yaml   what a run does: every setting, with its meaning")
    print(f"  data/corpus/  {text.name}, {size:,} bytes")
    print("  README.md     what to do next")
    change = "" if folder.resolve() == Path.cwd() else f"cd {typed} && "
    print(f"next:  {change}dvc repro")


def readme(folder: Path, text: Path) -> str:
    name = folder.resolve().name
    return f"""\
# {name}

A GPT-2 on `{text.as_posix()}`, made with gpt2-workflow {package_version()}.

```bash
dvc repro                                          # train, evaluate, sample, register, report; skips unchanged stages
gpt2 generate --model models/best --prompt "..."   # write with the model
gpt2 runs                                          # every run so far; `gpt2 compare A B` for two of them
mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db
```

| where | what |
|---|---|
| `params.yaml` | every setting; after a change `dvc repro` runs the stages that depend on it |
| `data/corpus/` | the text; after a change `dvc repro` runs all stages |
| `models/best/` | the model, in the Hugging Face layout |
| `reports/` | the report, samples, curves and numbers |
| `mlruns/` | MLflow: every run and every registered model |
| `dvc.yaml`, `dvc.lock` | the stages, and the hashes of their inputs and outputs |
| `code.yaml` | a digest of each stage's code: after an update of the package, `gpt2 init . --update` |

Ctrl-C saves a checkpoint, and the next `dvc repro` resumes from it. Useful settings in `params.yaml`:

- `train.stop`: when to stop: `max_steps`, `max_epochs`, `target_loss`, `patience`
- `model.init: gpt2`: start from the released weights; with `train.recipe: finetune` and
  `train.stop: {{target_loss: null, max_steps: null, max_epochs: 3}}`
- `train.micro_batch_size: 1`: less memory, the same result

In git: commit everything that `.gitignore` does not exclude. A folder that was no git repository when the project was
made needs `dvc config core.no_scm false` after `git init`; then `dvc exp run -S train.learning_rate=1e-3`
compares settings too.
"""
