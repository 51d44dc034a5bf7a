"""Logits processors of one call of `generate`, in the order in which `transformers` applies them.

Shapes: B rows, P padded prompts, T tokens so far, V vocab_size.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gpt2core.decoding.logits.penalties import (
    MinLength,
    NoRepeatNgram,
    RepetitionPenalty,
    SequenceBias,
    SuppressTokens,
    ban_words,
    spread_padding,
)
from gpt2core.decoding.logits.warpers import EpsilonCutoff, EtaCutoff, MinP, Temperature, TopK, TopP, TypicalP
from gpt2core.decoding.options import GenerationOptions, LogitsProcessor
from gpt2core.errors import UserError


def build_processors(
    options: GenerationOptions,
    prompt_length: int,
    device: torch.device | str = "cpu",
    padding: Tensor | None = None,
    mask_starts: Tensor | None = None,
) -> list[LogitsProcessor]:
    """The processors that `options` ask for; the user's own stand after the penalties and before the temperature.

    With `padding` (P,) int64, the left-padding tokens of each row, a row is treated as if these were not there.
    Without, as by transformers: they count as seen, and towards `min_length`. Only its repetition penalty passes over
    what precedes the first 1 of a row's attention mask: `mask_starts` (P,) int64.
    """
    if padding is not None:
        padding = padding.to(device)
        mask_starts = padding
    elif mask_starts is not None:
        mask_starts = mask_starts.to(device)
    processors = _penalties(options, prompt_length, padding, mask_starts)
    processors += [UserProcessor(function, padding) for function in user_functions(options.logits_processor)]
    if options.do_sample:
        processors += _warpers(options)
    return processors


def apply(processors: Sequence[LogitsProcessor], ids: Tensor, logits: Tensor) -> Tensor:
    """Logits (B, V) after all `processors`; the ones given are not changed."""
    for processor in processors:
        logits = processor(ids, logits)
    return logits


def user_functions(logits_processor: LogitsProcessor | Sequence[LogitsProcessor]) -> Sequence[LogitsProcessor]:
    """The user's functions, one or several (transformers' LogitsProcessorList is several, though callable)."""
    return logits_processor if isinstance(logits_processor, Sequence) else [logits_processor]


class UserProcessor:
    """A user's function (ids, logits) -> logits, given logits that it may change in place.

    With `padding` it is called once for the rows of each length and sees them without their padding. Raises UserError
    where it returns anything but logits.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], padding: Tensor | None = None) -> None:
        self.function = function
        self.padding = padding if padding is not None and bool(padding.any()) else None

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        if self.padding is None:
            return self._call(ids, logits.clone())
        padding = spread_padding(self.padding, len(ids))
        out = torch.empty_like(logits)
        for length in padding.unique().tolist():
            rows = (padding == length).nonzero()[:, 0]
            out[rows] = self._call(ids[rows, length:], logits[rows])
        return out

    def _call(self, ids: Tensor, logits: Tensor) -> Tensor:
        shape, dtype = logits.shape, logits.dtype
        result = self.function(ids, logits)
        if not isinstance(result, Tensor) or result.shape != shape:
            found = f"a tensor of shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            name = getattr(self.function, "__name__", type(self.function).__name__)
            raise UserError(f"the logits processor {name} returned {found}; it must return logits {tuple(shape)}.")
        return result.to(dtype)


def _penalties(
    options: GenerationOptions, prompt_length: int, padding: Tensor | None, mask_starts: Tensor | None
) -> list[LogitsProcessor]:
    eos_ids = options.eos_ids
    processors: list[LogitsProcessor] = []
    if options.sequence_bias is not None:
        biases = {tuple(sequence): float(bias) for sequence, bias in _pairs(options)}
        processors.append(SequenceBias(biases, padding))
    if options.repetition_penalty not in (None, 1.0):
        processors.append(RepetitionPenalty(options.repetition_penalty, mask_starts))
    if options.no_repeat_ngram_size:
        processors.append(NoRepeatNgram(options.no_repeat_ngram_size, padding))
    if options.bad_words_ids is not None:
        processors.append(ban_words(options.bad_words_ids, eos_ids, padding))
    if options.min_length and eos_ids:
        processors.append(MinLength(options.min_length, eos_ids, padding))
    if options.min_new_tokens and eos_ids:
        processors.append(MinLength(prompt_length + options.min_new_tokens, eos_ids))
    if options.suppress_tokens is not None:
        processors.append(SuppressTokens(options.suppress_tokens))
    return processors


def _pairs(options: GenerationOptions) -> list[tuple[Sequence[int], float]]:
    bias = options.sequence_bias
    if bias is None:
        return []
    return list(bias) if isinstance(bias, Sequence) else list(bias.items())


def _warpers(options: GenerationOptions) -> list[LogitsProcessor]:
    # A beam must be able to go on where all ends of text are among the likeliest.
    keep = 1
    if options.num_beams > 1:
        keep = len(options.eos_ids) + 1 if options.eos_ids else 2
    processors: list[LogitsProcessor] = []
    if options.temperature not in (None, 1.0):
        processors.append(Temperature(options.temperature))
    if options.top_k:
        processors.append(TopK(options.top_k, keep))
    if options.top_p is not None and options.top_p < 1:
        processors.append(TopP(options.top_p, keep))
    if options.min_p is not None:
        processors.append(MinP(options.min_p, keep))
    if options.typical_p is not None and options.typical_p < 1:
        processors.append(TypicalP(options.typical_p, keep))
    if options.epsilon_cutoff:
        processors.append(EpsilonCutoff(options.epsilon_cutoff, keep))
    if options.eta_cutoff:
        processors.append(EtaCutoff(options.eta_cutoff, keep))
    return processors
