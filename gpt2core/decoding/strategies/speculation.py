"""Speculative decoding (Leviathan et al. 2023): guess some tokens, and check them all in one pass of the model.

Reading the weights once for several tokens costs little more than for one, so each right guess is nearly free, and a
wrong one changes nothing: what the model itself chooses stands.

Shapes: L tokens so far, K guessed tokens, V vocab_size. The batch is always 1.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from gpt2core.decoding.logits.processors import apply
from gpt2core.decoding.options import GenerationOptions, LogitsProcessor
from gpt2core.decoding.output import Decoded
from gpt2core.decoding.rows.cached import Rows, check_finite
from gpt2core.decoding.strategies.sampling import Streamer, check_choice


class Guesser(Protocol):
    """What proposes the tokens, and how the model then chooses its own."""

    def guess(self, ids: Tensor, vocab_size: int, room: int) -> list[int]:
        """Tokens to follow ids (1, L), maybe none; more than `room` are not checked."""

    def choose(self, scores: Tensor, guess: list[int]) -> Tensor:
        """The model's tokens (1..K + 1,) by scores (K + 1, V): at least up to the first that differs from its guess."""

    def learn(self, matching: int) -> None:
        """The first `matching` tokens of the guess were right."""

    def settle(self, token: int) -> None:
        """The text goes on with `token`."""


def speculate(
    rows: Rows,
    ids: Tensor,
    mask: Tensor | None,
    options: GenerationOptions,
    processors: list[LogitsProcessor],
    guesser: Guesser,
    *,
    finished: Callable[[Tensor], Tensor],
    max_length: int,
    streamer: Streamer | None = None,
) -> tuple[Decoded, Tensor | None]:
    """Continue one prompt ids (1, L); returns what `sampling.sample` does."""
    known = rows.append(ids, mask)  # (1, V) after the prompt; later no logits are known before a pass
    kept_scores: list[Tensor] = []
    kept_logits: list[Tensor] = []
    log_probs: list[Tensor] = []
    while True:
        length = ids.shape[1]
        # A window that slides for a guess would slide sooner than without.
        room = max(0, min(max_length - length - 1, rows.room - (length - rows.length)))
        guess = guesser.guess(ids, known.shape[-1], room) if length + 1 < max_length else []
        fitting = ids.new_tensor(guess[:room])
        text = torch.cat([ids[0], fitting])[None]
        logits = torch.cat([known, _read(rows, text[:, rows.length :], known)])  # (K + 1, V)
        known = logits[:0]
        scores = _process(processors, text, length, logits)
        chosen = guesser.choose(scores, guess)
        checked = min(len(fitting), len(chosen))
        matching = int((chosen[:checked] == fitting[:checked]).long().cumprod(0).sum())
        ids, over = _extend(ids, chosen[: matching + 1], finished)
        new = ids[0, length:]
        guesser.learn(matching)
        logits, scores = logits[: len(new)], scores[: len(new)]
        if options.output_scores:
            kept_scores += scores[:, None]
        if options.output_logits:
            kept_logits += logits[:, None]
        if options.output_log_probs:
            log_probs.append(logits.gather(1, new[:, None])[:, 0] - logits.logsumexp(-1))
        for token in new.cpu():
            guesser.settle(int(token))
            if streamer is not None:
                streamer.put(token[None])
        if over or ids.shape[1] >= max_length:
            break
        rows.crop(ids.shape[1] - 1)
    decoded = Decoded(
        ids,
        scores=tuple(kept_scores) if options.output_scores else None,
        logits=tuple(kept_logits) if options.output_logits else None,
    )
    return decoded, torch.cat(log_probs)[None] if log_probs else None


def _read(rows: Rows, tokens: Tensor, like: Tensor) -> Tensor:
    """Logits (K, V) after each of tokens (1, K), maybe none; of the type of `like` (·, V)."""
    if tokens.shape[1] == 0:
        return like[:0]
    logits = rows.append_all(tokens)[0]
    check_finite(logits)  # the guess would carry what is not finite to the tokens before it
    return logits


def _process(processors: list[LogitsProcessor], text: Tensor, length: int, logits: Tensor) -> Tensor:
    """logits (K + 1, V) after the processors, each with the part of text (1, L + K) before it.

    Fewer where the guess leads to where every token is forbidden. Raises UserError where it is so without a guess.
    """
    if not processors:
        return logits
    scores = torch.cat([apply(processors, text[:, : length + i], row[None]) for i, row in enumerate(logits)])
    check_choice(scores[:1], torch.ones_like(scores[:1, 0], dtype=torch.bool))
    possible = ~scores.amax(-1).isneginf()
    return scores[: int(possible.long().cumprod(0).sum())]


def _extend(ids: Tensor, tokens: Tensor, finished: Callable[[Tensor], Tensor]) -> tuple[Tensor, bool]:
    """ids (1, L) with tokens (·,) up to the first that ends the text, and whether one did."""
    text = torch.cat([ids, tokens[None]], 1)
    for length in range(ids.shape[1] + 1, text.shape[1] + 1):
        if bool(finished(text[:, :length])):
            return text[:, :length], True
    return text, False
