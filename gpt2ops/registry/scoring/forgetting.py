"""What fine-tuning made a model forget: its loss on a text of another kind, before and after.

The bundled control text is written for this project and in the public domain (CC0): twenty-four short pieces of plain
modern prose.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from gpt2core.data.corpus import check_file
from gpt2core.data.text_tokens import TextTokens
from gpt2core.errors import UserError
from gpt2core.evaluation.scores import evaluate
from gpt2core.model import GPT
from gpt2core.storage.files import sha256_file, with_home
from gpt2ops.params.schema import BUNDLED_CONTROL, Params, check_control
from gpt2ops.registry.scoring.uncertainty import difference


def control_file(params: Params) -> Path | None:
    """The control text of this run; None for new weights, which know nothing, and where it is off.

    Raises UserError where the file cannot be read.
    """
    name = params.evaluate.control
    if name is None or params.model.init == "scratch":
        return None
    if name == BUNDLED_CONTROL:
        return Path(str(files("gpt2ops.registry.scoring") / "assets" / "control.txt"))
    check_control(params)
    path = with_home(name)
    try:
        check_file(path)
    except UserError as error:
        raise UserError(f"evaluate.control: {error}") from None
    if len(TextTokens(path)) < 2:
        raise UserError(key="evaluate.control", value=name, rule="has no two tokens", remedy="name a longer text")
    return path


def forgetting(file: Path, params: Params, before: GPT, after: GPT, device: torch.device) -> dict[str, Any]:
    """`forgetting` of evaluate.json: losses in nats a token on the control text, their difference and its interval.

    In fp32, with each model's own context, half of it new in each window.
    """
    text = TextTokens(file)
    scores = [
        evaluate(
            model,
            text,
            block_size=model.config.block_size,
            stride=max(1, model.config.block_size // 2),
            batch_size=params.evaluate.batch_size,
            device=device,
        )
        for model in (before, after)
    ]
    first, last = scores
    assert first is not None, "a control text has two tokens"
    assert last is not None, "a control text has two tokens"
    change = difference(last.blocks, first.blocks)
    return {
        "control": params.evaluate.control,
        "sha256": sha256_file(file),
        "tokens": last.tokens,
        "loss_before": first.loss,
        "loss_after": last.loss,
        "loss_increase": change.difference,
        "interval": list(change.interval) if change.interval else None,
    }
