"""Prompt-lookup speculation (Saxena 2023, apoorvumang/prompt-lookup-decoding), with `transformers`' candidates.

The tokens that followed an earlier occurrence of the last n-gram are the draft; one forward pass checks it. Texts are
those of plain greedy decoding, or of the same distribution with sampling, in fewer passes.

Shapes: L tokens so far, K draft tokens, V vocab_size. The batch is always 1.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2core.decoding.logits.processors import apply
from gpt2core.decoding.logits.topk import fast_argmax
from gpt2core.decoding.options import LogitsProcessor
from gpt2core.decoding.output import Decoded
from gpt2core.decoding.request import DecodingRequest
from gpt2core.decoding.rows.cached import Rows
from gpt2core.decoding.strategies.choice import draw
from gpt2core.decoding.strategies.speculation import speculate

DEFAULT_NGRAM_SIZE = 2


def prompt_lookup(rows: Rows, request: DecodingRequest) -> Decoded:
    """Continue one prompt; returns what `sampling.sample` does.

    With sampling and a seed, the draws are those of transformers' assisted decoding, not those of plain sampling: a
    draft token is accepted if the token drawn in its place is the same. Ends exactly where a stop string ends the text,
    while transformers continues to the end of the draft.
    """
    return speculate(rows, request, _LookupDrafter(request))


class _LookupDrafter:
    """Drafts the tokens that followed an earlier occurrence of the last n-gram."""

    def __init__(self, request: DecodingRequest) -> None:
        options, generator = request.options, request.generator
        self._index = _NgramIndex(request.ids[0].tolist(), options.max_matching_ngram_size or DEFAULT_NGRAM_SIZE)
        self._options, self._processors = options, request.processors
        self._generator = generator[0] if isinstance(generator, list) else generator

    def propose(self, ids: Tensor, vocab_size: int, room: int) -> list[int]:
        """The first continuation whose first token the processors allow, cut before a forbidden token or an end."""
        for tokens in self._index.continuations(self._options.prompt_lookup_num_tokens or 1):
            allowed = _allowed(tokens, ids, vocab_size, self._processors)
            if allowed:
                ends = (place for place, token in enumerate(allowed) if token in self._options.eos_ids)
                return allowed[: next(ends, len(allowed))]
        return []

    def choose(self, scores: Tensor, draft: list[int]) -> Tensor:
        if not self._options.do_sample:
            return fast_argmax(scores)
        # transformers also draws for draft tokens that do not fit; as many draws keep a seeded generator in step.
        surplus = len(draft) + 1 - len(scores)
        return draw(F.pad(scores, (0, 0, 0, surplus)), self._generator)[: len(scores)]

    def record_acceptance(self, accepted: int) -> None:
        """Nothing to adapt: every draft is looked up again."""

    def append(self, token: int) -> None:
        self._index.extend([token])


class _NgramIndex:
    """Where each n-gram of a growing text ended; a token adds max_size entries, whatever the text's length."""

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


def _allowed(tokens: list[int], ids: Tensor, vocab_size: int, processors: Sequence[LogitsProcessor]) -> list[int]:
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
