"""`gpt2 finetune`: flags to params.yaml, the pipeline in OUTPUT_DIR/project, its model and report to OUTPUT_DIR."""

import argparse
import filecmp
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt2core.config import PRESETS
from gpt2core.errors import UserError
from gpt2core.storage.files import atomic_path, read_json, with_home
from gpt2ops.cli.flags.finetune import FLAGS, flag_names, reading
from gpt2ops.cli.output import put, put_json
from gpt2ops.params.editing import parse_assignments
from gpt2ops.params.problems import FLAG_WORDS
from gpt2ops.params.recipes import DEFAULT, RECIPES
from gpt2ops.pipeline import paths
from gpt2ops.projects.pipeline import INTERRUPTED, InterruptedPipelineError, PipelineError, run_stages
from gpt2ops.projects.project import is_project, params_text, write_project
from gpt2ops.projects.settings import combined, from_model, from_preset, of_text, registry_name

TARGET_EPOCHS = 100  # with a target loss and no other end
# What a user opens, beside the model.
_REPORTS = (paths.REPORT_PAGE, paths.REPORT_PDF, paths.SAMPLES_PAGE)


def run(arguments: argparse.Namespace) -> None:
    """Train as the flags say. Raises UserError in words of flags; exits 1 where a stage failed, 130 for Ctrl-C."""
    for flag, value in (("--train-file", arguments.train_file), ("--output-dir", arguments.output_dir)):
        if not value:
            raise UserError(f"{flag} is missing: gpt2 finetune --train-file my.txt --output-dir my_model.")
    output = with_home(arguments.output_dir)
    check_output(output)
    parameters = checked_params(arguments, output)
    with locked(output):
        train(arguments, output, parameters)


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Lock the folder. Raises UserError where another command runs in it: its settings must not change."""
    from filelock import FileLock, Timeout

    (output / paths.FINETUNED).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output / paths.FINETUNED / ".lock", timeout=0):
            yield
    except Timeout:
        raise UserError(f"another command works in {output}; wait for its end, and run again.") from None


def train(arguments: argparse.Namespace, output: Path, parameters: str) -> None:
    project = output / paths.FINETUNED
    write_project(project, parameters, use_git=False)
    before = content(project / paths.DVC_LOCK)
    try:
        run_stages(
            project,
            store=Path.cwd(),
            output_to_stderr=arguments.json,
            GPT2_OUTPUT_DIR=str(arguments.output_dir),
            GPT2_FLAGS=json.dumps(flag_names(arguments)),
        )
    except InterruptedPipelineError:
        print(f"gpt2: {interrupted_line(project)}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except PipelineError:
        sys.exit(1)
    deliver(project, output)
    changed = content(project / paths.DVC_LOCK) != before
    if arguments.json:
        put_json(result(project, output, changed))
    elif changed:
        put(f"the model is in {arguments.output_dir}\n")
    else:
        put(f"nothing changed: {arguments.output_dir} has the model of these flags and this text already\n")


def check_output(output: Path) -> None:
    """Raises UserError where the folder is a file, or holds other files."""
    if output.is_file():
        raise UserError(f"--output-dir: {output} is a file; name a folder.")
    if output.is_dir() and any(output.iterdir()) and not is_project(output / paths.FINETUNED):
        raise UserError(f"--output-dir: {output} has other files in it; name a new folder.")


def interrupted_line(project: Path) -> str:
    saved = any((project / paths.CHECKPOINTS).rglob("*.safetensors"))
    kept = "the checkpoint is saved, and the same command resumes from it" if saved else "the same command starts again"
    return f"interrupted; {kept}"


# From flags to params.yaml


def checked_params(arguments: argparse.Namespace, output: Path) -> str:
    """The text of params.yaml. Raises UserError in words of the flags that were typed."""
    names = flag_names(arguments)
    try:
        return params_text(overrides(arguments, output), source="")
    except UserError as error:
        problems = error.spelled(lambda key: names.get(key, key), FLAG_WORDS).problems
        raise UserError(" ".join(map(str, problems))) from None


def overrides(arguments: argparse.Namespace, output: Path) -> dict[str, Any]:
    """What differs from the defaults of params.yaml: start, text, flags, and `--set` over all of them."""
    if arguments.from_scratch or arguments.preset is not None:
        if arguments.model is not None:
            raise UserError("--preset is for new weights, and --model brings its own sizes; leave one out.")
        start = from_preset(arguments.preset or "small")
    else:
        start = from_model(arguments.model or "gpt2")
    name = registry_name(output)
    settings = combined(
        {"register": {"name": name, "text_name": f"{name}-text"}},
        start,
        of_text(arguments.train_file, reading(arguments)),
        from_flags(arguments),
    )
    set_implied_keys(settings, arguments)
    return combined(settings, parse_assignments(arguments.set))


def from_flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keys whose flags were given."""
    values: dict[str, Any] = {}
    for flag in FLAGS:
        value = getattr(arguments, flag.dest)
        if value is not None:
            values = combined(values, nested(flag.key, value))
    if arguments.register_name is not None:
        values["register"]["text_name"] = f"{arguments.register_name}-text"
    if arguments.sample_prompt is not None:
        values["sample"] = {"prompts": [arguments.sample_prompt]}
    if arguments.gradient_checkpointing:
        values = combined(values, nested("train.gradient_checkpointing", True))
    if arguments.no_resume:
        values = combined(values, nested("train.resume", False))
    if (percent := arguments.validation_split_percentage) is not None:
        if not 0 <= percent < 50:
            raise UserError(f"--validation-split-percentage ({percent:g}) must be at least 0 and below 50.")
        share = percent / 100
        values["data"] = {"split": {"train": round(1 - 2 * share, 6), "val": share, "test": share}}
    return values


def set_implied_keys(settings: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Set, in place, the keys that other flags imply."""
    train = settings.setdefault("train", {})
    stop = train.setdefault("stop", {})
    if arguments.epochs is not None or arguments.max_steps is not None:
        stop |= {"max_epochs": arguments.epochs, "max_steps": arguments.max_steps}
    elif arguments.target_loss is not None:
        stop |= {"max_epochs": TARGET_EPOCHS, "max_steps": None}
    if (steps := arguments.gradient_accumulation_steps) is not None:
        if steps < 1:
            raise UserError(f"--gradient-accumulation-steps ({steps}) must be at least 1.")
        share = train.get("batch_size") or RECIPES[train.get("recipe", DEFAULT)]["batch_size"]
        train |= {"batch_size": share * steps, "micro_batch_size": share}
    model = settings["model"]
    if model["init"] != "scratch":
        return
    if arguments.warmup_steps is None and (arguments.epochs is not None or arguments.max_steps is not None):
        train["warmup_steps"] = None  # the default of params.yaml may exceed the whole run
    if arguments.block_size is not None and arguments.block_size != PRESETS[model["preset"]].block_size:
        model["block_size"] = arguments.block_size  # positions beyond it would be scored but never trained


def nested(key: str, value: Any) -> dict[str, Any]:
    """`{"train": {"seed": 1}}` for `train.seed` and 1."""
    *sections, last = key.split(".")
    result: dict[str, Any] = {last: value}
    for section in reversed(sections):
        result = {section: result}
    return result


# Results


def deliver(project: Path, output: Path) -> None:
    """The model, the report and the samples to where the user asked for them; a file that is there already stays."""
    for file in [*sorted((project / paths.BEST_MODEL).iterdir()), *(project / name for name in _REPORTS)]:
        target = output / file.name
        if not file.is_file() or (target.is_file() and filecmp.cmp(file, target, shallow=False)):
            continue
        with atomic_path(target) as partial:
            shutil.copyfile(file, partial)


def result(project: Path, output: Path, changed: bool) -> dict[str, Any]:
    """What `--json` says."""
    run = read_json(project / paths.RUN)
    evaluation = read_json(project / paths.EVALUATE_METRICS)
    registered = read_json(project / paths.REGISTERED)
    return {
        "output_dir": str(output.resolve()),
        "changed": changed,
        "run_id": registered["run_id"],
        "run_name": run["run_name"],
        "experiment": run["experiment"],
        "train": read_json(project / paths.TRAIN_METRICS),
        "evaluate": {split: evaluation[split] for split in ("train", "val", "test")},
        "verdict": evaluation["verdict"],
        "model": f"models:/{registered['name']}/{registered['version']}",
        "champion": registered["champion"],
        "report": str((output / paths.REPORT_PAGE.name).resolve()),
    }


def content(file: Path) -> bytes:
    return file.read_bytes() if file.is_file() else b""
