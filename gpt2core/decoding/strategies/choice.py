"""How a step's tokens are chosen from its scores, and how the host learns of them.

Shapes: B rows, L tokens so far, V vocab_size.
"""

import torch
from torch import Tensor

from gpt2core.decoding.logits.topk import fast_argmax
from gpt2core.decoding.request import DecodingRequest, Generators
from gpt2core.errors import UserError


def reads_late(device: torch.device) -> bool:
    """Whether the host reads a step's tokens after it has queued the next step: a GPU then never waits for Python."""
    return device.type == "cuda"


def choose(scores: Tensor, unfinished: Tensor, request: DecodingRequest, late: bool) -> tuple[Tensor, Tensor]:
    """A token a row (B,), and flags (2,) int64: a row has no token to choose; its scores are not finite.

    Raises UserError in place of the flags where the host does not read late.
    """
    if late:
        return choose_unchecked(scores, unfinished, request)
    if request.processors:
        check_choice(scores, unfinished)
    chosen = draw(scores, request.generator) if request.options.do_sample else fast_argmax(scores)
    return torch.where(unfinished, chosen, request.options.pad_id), chosen.new_zeros(2)


def choose_unchecked(scores: Tensor, unfinished: Tensor, request: DecodingRequest) -> tuple[Tensor, Tensor]:
    """`choose` without waiting for a GPU; where a flag is set, the token is of no use."""
    no = unfinished.new_zeros(())
    forbidden, finite = no, ~no
    if request.processors:
        forbidden = (scores.amax(-1).isneginf() & unfinished).any()
    if request.options.do_sample:
        probabilities = scores.softmax(-1)
        finite = probabilities.sum().isfinite()
        chosen = _draw(torch.where(finite, probabilities, 1.0), request.generator)
    else:
        chosen = scores.argmax(-1)
    return torch.where(unfinished, chosen, request.options.pad_id), torch.stack([forbidden, ~finite]).long()


def state_of(chosen: Tensor, flags: Tensor, unfinished: Tensor) -> Tensor:
    """A step as the host reads it, int64 (B + 3,): tokens (B,), flags (2,), whether one of unfinished (B,) is left."""
    return torch.cat([chosen, flags, unfinished.any()[None].long()])


def is_going_on(state: list[int], request: DecodingRequest) -> bool:
    """Whether a row is unfinished after the step of `state`; streams its tokens. Raises UserError by its flags."""
    *chosen, no_choice, not_finite, unfinished = state
    if no_choice:
        raise no_token_left()
    if not_finite:
        raise scores_not_finite()
    if request.streamer is not None:
        request.streamer.put(torch.tensor(chosen))
    return bool(unfinished)


class Host:
    """The numbers of each step as the host reads them: at once, or `late`, after the next step is queued."""

    def __init__(self, late: bool) -> None:
        self.late = late
        self._copies: list[Tensor] = []  # two in turn
        self._ready: list[torch.cuda.Event] = []
        self._count = 0

    def read(self, numbers: Tensor) -> list[int] | None:
        """Those of this step; if late, those of the step before, None at the first."""
        if not self.late:
            return numbers.tolist()
        place, self._count = self._count % 2, self._count + 1
        if len(self._copies) <= place:
            self._copies.append(torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=numbers.is_cuda))
            self._ready += [torch.cuda.Event()] if numbers.is_cuda else []
        self._copies[place].copy_(numbers, non_blocking=True)
        if numbers.is_cuda:
            self._ready[place].record()
        return self._wait(1 - place) if self._count > 1 else None

    def rest(self) -> list[int]:
        """Those of the last step."""
        return self._wait((self._count - 1) % 2)

    def _wait(self, place: int) -> list[int]:
        if self._ready:
            self._ready[place].synchronize()
        return self._copies[place].tolist()


class TokenBuffer:
    """Token ids (B, L) in a buffer of `max_length` columns, so that a step does not copy the earlier tokens."""

    def __init__(self, ids: Tensor, max_length: int) -> None:
        self._store = ids.new_empty(len(ids), max_length)
        self._store[:, : ids.shape[1]] = ids
        self._length = ids.shape[1]

    @property
    def ids(self) -> Tensor:
        return self._store[:, : self._length]

    def append(self, tokens: Tensor) -> None:
        """A token a row, (B,)."""
        self._store[:, self._length] = tokens
        self._length += 1

    def drop_last(self) -> None:
        self._length -= 1


def check_choice(scores: Tensor, unfinished: Tensor) -> None:
    """Raises UserError where a row's scores (B, V) leave no token to choose."""
    if bool((scores.amax(-1).isneginf() & unfinished).any()):
        raise no_token_left()


def no_token_left() -> UserError:
    return UserError(
        rule="every token is forbidden",
        remedy="relax {bad_words_ids}, {suppress_tokens}, {no_repeat_ngram_size}, sequence_bias or a logits_processor",
    )


def scores_not_finite() -> UserError:
    return UserError(
        rule="the scores of the tokens are not finite, so none can be drawn",
        remedy="check {repetition_penalty}, sequence_bias, your logits_processor, and the model's weights",
    )


def probabilities_of(scores: Tensor) -> Tensor:
    """Softmax (B, V). Raises UserError for scores (B, V) that have none."""
    probabilities = scores.softmax(-1)
    if not bool(probabilities.sum().isfinite()):
        raise scores_not_finite()
    return probabilities


def draw(scores: Tensor, generator: Generators) -> Tensor:
    """One token a row, (B,), of scores (B, V); a list of generators holds one for each row."""
    return _draw(probabilities_of(scores), generator)


def _draw(probabilities: Tensor, generator: Generators) -> Tensor:
    if isinstance(generator, list):
        return torch.cat([_draw(row[None], own) for row, own in zip(probabilities, generator, strict=True)])
    if probabilities.device.type == "cpu":
        return torch.multinomial(probabilities, num_samples=1, generator=generator)[:, 0]
    # What torch's multinomial does on a GPU, without its checks, for which the host waits.
    return (probabilities / torch.empty_like(probabilities).exponential_(generator=generator)).argmax(-1)
