"""Prompt-lookup speculation (Saxena 2023, apoorvumang/prompt-lookup-decoding), with `transformers`' candidates.

What followed an earlier occurrence of the last n-gram is guessed to follow again; one pass of the model checks the
guess. Texts are those of plain greedy decoding, or of the same distribution with sampling, in fewer passes.

Shapes: L tokens so far, K guessed tokens, V vocab_size. The batch is always 1.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2core.decoding.options import GenerationOptions, LogitsProcessor
from gpt2core.decoding.output import Decoded
from gpt2core.decoding.processors import apply
from gpt2core.decoding.rows import Rows
from gpt2core.decoding.sampling import Generators, Streamer, draw

DEFAULT_NGRAM_SIZE = 2


def prompt_lookup(
    rows: Rows,
    ids: Tensor,
    mask: Tensor | None,
    options: GenerationOptions,
    processors: list[LogitsProcessor],
    *,
    generator: Generators,
    finished: Callable[[Tensor], Tensor],
    max_length: int,
    streamer: Streamer | None = None,
) -> Decoded:
    """Continue one prompt ids (1, L).

    With sampling and a seed, the draws are those of transformers' assisted decoding, not those of plain sampling: a
    guessed token is kept if the token drawn in its place is the same. Ends exactly where a stop string ends the text,
    while transformers goes on to the end of the guess.
    """
    lookup = _Lookup(ids[0].tolist(), options.max_matching_ngram_size or DEFAULT_NGRAM_SIZE)
    known = rows.append(ids, mask)  # (1, V) after the prompt; later no logits are known before a pass
    scores: list[Tensor] = []
    raw: list[Tensor] = []
    while True:
        length = ids.shape[1]
        guess = _guess(lookup, ids, known.shape[-1], options, processors) if length + 1 < max_length else []
        # A window that slides for a guess would slide sooner than without.
        room = min(max_length - length - 1, rows.room - (length - rows.length))
        fitting = ids.new_tensor(guess[: max(0, room)])
        text = torch.cat([ids[0], fitting])[None]
        logits = torch.cat([known, _read(rows, text[:, rows.length :], known)])  # (K + 1, V)
        known = logits[:0]
        processed = _process(processors, text, length, logits)
        chosen = _choose(processed, len(guess), options, generator)
        matching = int((chosen[:-1] == fitting).long().cumprod(0).sum())
        ids, over = _extend(ids, chosen[: matching + 1], finished)
        new = ids[0, length:]
        lookup.extend(new.tolist())
        if options.output_scores:
            scores += processed[: len(new), None]
        if options.output_logits:
            raw += logits[: len(new), None]
        if streamer is not None:
            for token in new.cpu():
                streamer.put(token[None])
        if over or ids.shape[1] >= max_length:
            break
        rows.crop(ids.shape[1] - 1)
    return Decoded(
        ids,
        scores=tuple(scores) if options.output_scores else None,
        logits=tuple(raw) if options.output_logits else None,
    )


def _read(rows: Rows, tokens: Tensor, like: Tensor) -> Tensor:
    """Logits (K, V) after each of tokens (1, K), maybe none; of the type of `like` (·, V)."""
    if tokens.shape[1] == 0:
        return like[:0]
    rows.append(tokens)
    return rows.all_logits()[0, -tokens.shape[1] :]  # a window that slides reads older tokens again


class _Lookup:
    """Where each n-gram of a growing text ended; a token costs max_size entries, whatever the text's length."""

    def __init__(self, tokens: list[int], max_size: int) -> None:
        self.tokens: list[int] = []
        self._max_size = max_size
        self._ends: dict[tuple[int, ...], list[int]] = defaultdict(list)
        self.extend(tokens)

    def extend(self, tokens: list[int]) -> None:
        for token in tokens:
            self.tokens.append(token)
            end = len(self.tokens)
            for size in range(1, min(self._max_size, end) + 1):
                self._ends[tuple(self.tokens[end - size :])].append(end)

    def continuations(self, count: int) -> Iterator[list[int]]:
        """Up to `count` tokens that followed the last n-gram before: longest n-gram first, then the earliest."""
        length = len(self.tokens)
        for size in range(min(self._max_size, length - 1), 0, -1):
            for end in self._ends[tuple(self.tokens[length - size :])]:
                if end < length:
                    yield self.tokens[end : end + count]


def _guess(
    lookup: _Lookup, ids: Tensor, vocab_size: int, options: GenerationOptions, processors: list[LogitsProcessor]
) -> list[int]:
    """The first continuation that begins with a token the processors allow, up to one that they forbid or an end."""
    for tokens in lookup.continuations(options.prompt_lookup_num_tokens or 1):
        allowed = _allowed(tokens, ids, vocab_size, processors)
        if allowed:
            end = next((place for place, token in enumerate(allowed) if token in options.eos_ids), len(allowed))
            return allowed[:end]
    return []


def _allowed(tokens: list[int], ids: Tensor, vocab_size: int, processors: list[LogitsProcessor]) -> list[int]:
    """Tokens before the first that the processors, given equal logits after ids (1, L), make impossible."""
    if not processors:
        return tokens
    text = torch.cat([ids, ids.new_tensor([tokens])], 1)
    for place, token in enumerate(tokens):
        equal = torch.ones(1, vocab_size, device=ids.device)
        score = apply(processors, text[:, : ids.shape[1] + place], equal)[0, token]
        if float(score) <= torch.finfo(torch.float32).min:
            return tokens[:place]
    return tokens


def _process(processors: list[LogitsProcessor], text: Tensor, length: int, logits: Tensor) -> Tensor:
    """logits (K + 1, V) after the processors, each with the part of text (1, L + K) before it."""
    if not processors:
        return logits
    steps = [apply(processors, text[:, : length + place], row[None]) for place, row in enumerate(logits)]
    return torch.cat(steps)


def _choose(scores: Tensor, guessed: int, options: GenerationOptions, generator: Generators) -> Tensor:
    """A token for each of scores (K + 1, V)."""
    if not options.do_sample:
        return scores.argmax(-1)
    # transformers also draws for guesses that do not fit; drawing as many keeps a seeded generator in step.
    surplus = guessed + 1 - len(scores)
    own = generator[0] if isinstance(generator, list) else generator
    return draw(F.pad(scores, (0, 0, 0, surplus)), own)[: len(scores)]


def _extend(ids: Tensor, tokens: Tensor, finished: Callable[[Tensor], Tensor]) -> tuple[Tensor, bool]:
    """ids (1, L) with tokens (·,) up to the first that ends the text, and whether one did."""
    text = torch.cat([ids, tokens[None]], 1)
    for length in range(ids.shape[1] + 1, text.shape[1] + 1):
        if bool(finished(text[:, :length])):
            return text[:, :length], True
    return text, False
