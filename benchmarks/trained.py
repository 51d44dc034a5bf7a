"""A training of ours as a benchmark runs it: settings by dotted key, `gpt2core.Trainer` without a project around it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpt2core.data.batches import Batches
from gpt2core.data.tokens import TokenSplit
from gpt2core.runtime import Runtime
from gpt2core.training.events import TrainerEvents
from gpt2core.training.trainer import Trainer
from gpt2ops.params.schema import Params, parse_params
from gpt2ops.training.initial_model import initial_model
from gpt2ops.training.run import open_batches, trainer_config


def params_of(settings: dict[str, Any]) -> Params:
    """`{"train.batch_size": 8}` and the like, over the defaults."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = value
    return parse_params(sections)


def batches_of(params: Params, split: TokenSplit) -> Batches:
    return open_batches(params, split)


def trainer_of(
    params: Params,
    batches: Any,
    folder: Path | str,
    run: Runtime,
    listeners: Sequence[TrainerEvents] = (),
    interrupted: Callable[[], bool] = lambda: False,
) -> Trainer:
    """A trainer of a new model, with checkpoints in `folder`."""
    return Trainer(
        initial_model(params),
        batches,
        None,
        trainer_config(params, "cpu", 0),
        run=run,
        checkpoints=Path(folder),
        fingerprint={},
        listeners=listeners,
        interrupted=interrupted,
    )
