"""One line for an error that a library raised and a user can fix: a full disk, no memory, no access."""

import errno
import json
import os

from gpt2core.errors import UserError, as_one_line
from gpt2ops.process.redact import redact

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS}
# An environment variable of the stages that a command runs, in JSON: key of params.yaml -> the flag that sets it.
FLAGS = "GPT2_FLAGS"
# PyTorch raises RuntimeError for the CPU's memory, and a subclass with the second text for a GPU's.
NO_MEMORY = ("DefaultCPUAllocator", "out of memory", "not enough memory")
# The extra of pyproject.toml that has a library; `pipeline` has the others.
EXTRAS = {"gradio": "app", "transformers": "export", "ctranslate2": "export", "prefect": "serve", "fastapi": "serve"}
SMALLER = {
    "finetune": "lower {train.micro_batch_size} (it must divide {train.batch_size}) or set "
    "{train.gradient_checkpointing}",
    "evaluate": "lower {evaluate.batch_size}",
    "sample": "lower num_sequences or num_beams in sample.settings",
    "app": "ask for fewer outputs or beams, or for a shorter text",
    "gpt2": "lower --num-sequences, --num-beams, --batch-size or --max-new-tokens",
}


def failure_line(name: str, error: BaseException) -> str | None:
    """The message for the user of the stage or command `name`; None for an error that is a bug of this project."""
    if isinstance(error, UserError):
        return redact(str(_in_words_of(name, error)))
    if isinstance(error, ModuleNotFoundError) and error.name:
        library = error.name.partition(".")[0]
        if library not in ("gpt2core", "gpt2ops", "tasks", "flows"):
            extra = EXTRAS.get(library, "pipeline")
            return f"{library} is not installed: pip install 'gpt2-workflow[{extra}]'"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(t in str(error) for t in NO_MEMORY)):
        remedy = f"{SMALLER.get(name, 'close other programs')}, and run again"
        return str(_in_words_of(name, UserError(rule="not enough memory", remedy=remedy)))
    if isinstance(error, OSError) and error.errno is not None:
        line = _os_error_line(error)
        return line and as_one_line(line)
    if type(error).__name__ == "MlflowException":  # by its name: most stages fail before they import MLflow
        reason = redact((str(error).splitlines() or ["no reason given"])[0])
        return as_one_line(f"the MLflow store failed: {reason}; free disk space or repair the store, and run again.")
    return None


def _in_words_of(name: str, error: UserError) -> UserError:
    """For a stage, in keys of params.yaml, or in flags where `gpt2 finetune` runs it; a command has its own already."""
    if name in ("gpt2", "app"):
        return error
    from gpt2ops.params.keys import in_stage_words

    return in_stage_words(name, error, json.loads(os.environ.get(FLAGS, "{}")))


def _os_error_line(error: OSError) -> str | None:
    # For a failed copy, filename is the source.
    file = error.filename2 or error.filename
    where = f" at {file}" if file else ""
    if error.errno in NO_SPACE:
        return f"no space left on the disk{where}; free some and run again."
    if error.errno in NO_ACCESS:
        return f"no access{where} ({error.strerror}); change its permissions or run from a folder you may write to."
    return f"{file}: {error.strerror}; repair or move it and run again." if file else None
