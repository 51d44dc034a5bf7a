"""Generates texts with their log-probabilities, for the sample stage, `gpt2 generate` and the web page."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpt2core.decoding import PackedGPT, generate
from gpt2core.decoding.packed.linear import Weights
from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2core.runtime import pick_device
from gpt2core.tokenizer import Tokenizer
from gpt2ops.params.decoding import DecodingSetting, key_of
from gpt2ops.params.problems import YAML

LONG_BLANK = 8  # consecutive tokens of white space


@dataclass(frozen=True)
class Text:
    """The text after a prompt. `mean_log_prob` is the model's own, in nats per token, with the end of text."""

    text: str
    token_ids: list[int]  # without the end of text
    tokens: int  # with it
    mean_log_prob: float | None
    finish_reason: str  # eos | stop | length | time


def with_weights(model: GPT, weights: Weights) -> Callable[[Tensor], Tensor]:
    """The model to decode with: packed on a CPU, else on the GPU. Raises UserError for weights that it has not."""
    device = pick_device("auto")
    if device.type == "cpu":
        return PackedGPT(model, weights)
    if weights == "int8":
        raise UserError(f"--weights int8 is for a CPU, and this machine has {device}; take bf16.")
    return model.to(device, torch.bfloat16 if weights == "bf16" else torch.float32)


def write_texts(
    model: Callable[[Tensor], Tensor],
    prompts: Sequence[Sequence[int]],
    setting: DecodingSetting,
    seeds: Sequence[int],
    tokenizer: Tokenizer,
    **options: Any,
) -> list[list[Text]]:
    """The texts of each prompt, given as token ids. Prompt i draws from `seeds[i]`, its text k from `seeds[i] + k`.

    `options` go before those of the setting. Raises UserError as `generate` does, in keys of the setting.
    """
    chosen = {**setting.options(tokenizer), **options}
    copies = chosen.get("num_return_sequences", 1)
    drawn: list[int] | None = None
    if setting.draws:
        # A beam search draws for all texts of a prompt at once.
        drawn = [seed + k for seed in seeds for k in range(1 if chosen.get("num_beams", 1) > 1 else copies)]
    try:
        result = generate(
            model,
            [list(prompt) for prompt in prompts],
            seed=drawn,
            tokenizer=tokenizer,
            return_dict_in_generate=True,
            output_log_probs=True,
            **chosen,
        )
    except UserError as error:
        raise error.spelled(key_of, YAML) from None
    rows = []
    width, counts = result.prompt_length, result.new_tokens.tolist()
    for row, log_probs, count, reason in zip(
        result.sequences.tolist(), result.log_probs.tolist(), counts, result.finish_reasons, strict=True
    ):
        token_ids = row[width : width + count]
        # Digits behind these are rounding, and depend on what else is in the batch.
        mean = round(sum(log_probs[:count]) / count, 5) if count else None
        if reason == "eos":
            token_ids = token_ids[:-1]
        rows.append(Text(tokenizer.decode(token_ids), token_ids, count, mean, reason))
    return [rows[start : start + copies] for start in range(0, len(rows), copies)]


def passages(token_ids: Sequence[int], tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """Start and stop of the parts between long white space, which is common and so no sign of memorisation."""
    kept, start, place = [], 0, 0
    for is_blank, run in itertools.groupby(token_ids, key=lambda token_id: tokenizer.token_bytes([token_id]).isspace()):
        length = len(list(run))
        if is_blank and length >= LONG_BLANK:
            kept.append((start, place))
            start = place + length
        place += length
    return [*kept, (start, place)]
