"""The choice of a step's tokens as one CUDA graph: filters, draw, and which rows have ended.

Python takes longer to launch these twenty to sixty kernels one by one than a GPU takes for a token of a small model.
Shapes: B rows, V vocab_size.
"""

import warnings

import torch
from torch import Tensor

from gpt2core.decoding.logits import warpers
from gpt2core.decoding.request import DecodingRequest
from gpt2core.decoding.stopping import StopTest
from gpt2core.decoding.strategies.choice import TokenBuffer, choose_unchecked, state_of
from gpt2core.kernels.graphed_call import GraphedCall

# A capture takes about as long as a dozen steps without one.
MIN_NEW_TOKENS = 32
WARM_UPS = 2  # libraries load their kernels in the first runs, which must not be captured
# They look at the logits alone, not at the text so far, which would need another graph for each length.
CAPTURED = (
    warpers.Temperature, warpers.TopK, warpers.TopP, warpers.MinP, warpers.TypicalP, warpers.EpsilonCutoff,
)  # fmt: skip


def can_graph_choice(request: DecodingRequest, device: torch.device) -> bool:
    """Whether the tokens of `request` can be chosen by a graph."""
    options, finished = request.options, request.finished
    kept = options.output_scores or options.output_logits or options.output_log_probs
    by_token = isinstance(finished, StopTest) and finished.stop_strings is None and finished.deadline is None
    return (
        device.type == "cuda"
        and request.max_length - request.ids.shape[1] >= MIN_NEW_TOKENS
        and not kept
        and by_token
        and not isinstance(request.generator, list)
        and all(isinstance(processor, CAPTURED) for processor in request.processors)
    )


class GraphedChoice:
    """Chooses for B rows at fixed addresses; on a CPU, for tests, by the same body without a graph."""

    def __init__(self, request: DecodingRequest, logits: Tensor) -> None:
        """`logits` (B, V) give the shape."""
        generator = request.generator
        assert not isinstance(generator, list)
        self._request, self._generator, self._logits = request, generator, torch.empty_like(logits)
        self._unfinished = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        self._call = GraphedCall[tuple[Tensor, Tensor]](logits.device, generator)

    def __call__(self, text: TokenBuffer, logits: Tensor) -> Tensor:
        """Append a token a row after logits (B, V); the step's state, to be read before the next call."""
        self._logits.copy_(logits)
        if self._call.can_capture and (reason := self._call.capture(self._body, self._warm_up)):
            warnings.warn(f"no CUDA graph could be made, kernels are launched one by one: {reason}", stacklevel=2)
        chosen, state = self._call(self._body)
        text.append(chosen)
        return state

    def _body(self) -> tuple[Tensor, Tensor]:
        """Tokens (B,), and the step's state."""
        scores = self._logits
        for processor in self._request.processors:
            scores = processor(scores, scores)  # its first argument, the text, is not looked at
        chosen, flags = choose_unchecked(scores, self._unfinished, self._request)
        self._unfinished &= ~self._request.finished(chosen[:, None])
        return chosen, state_of(chosen, flags, self._unfinished)

    def _warm_up(self) -> None:
        drawn = self._generator or torch.cuda.default_generators[self._logits.device.index]
        before = drawn.get_state()
        for _ in range(WARM_UPS):
            self._body()
        drawn.set_state(before)  # the draws of a seed are those without a graph
        self._unfinished.fill_(True)
