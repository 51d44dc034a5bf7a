"""The choice of a step's tokens as one CUDA graph: filters, draw, and which rows have ended.

Python takes longer to launch these twenty to sixty kernels one by one than a GPU takes for a token of a small model.
Shapes: B rows, V vocab_size.
"""

import warnings

import torch
from torch import Tensor

from gpt2core.decoding.logits import warpers
from gpt2core.decoding.request import DecodingRequest
from gpt2core.decoding.rows.graphed import capturing
from gpt2core.decoding.stopping import StopTest
from gpt2core.decoding.strategies.choice import choose_unchecked

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
        self._request, self._logits = request, torch.empty_like(logits)
        self._unfinished = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        self._results: tuple[Tensor, Tensor] | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._may_capture = logits.is_cuda

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B,), to be used before the next call, and the step's state as the host reads it, int64 (B + 3,)."""
        self._logits.copy_(logits)
        if self._graph is None and self._may_capture:
            self._capture()
        if self._graph is not None:
            self._graph.replay()
        else:
            self._results = self._body()
        assert self._results is not None
        return self._results

    def _body(self) -> tuple[Tensor, Tensor]:
        scores = self._logits
        for processor in self._request.processors:
            scores = processor(scores, scores)  # its first argument, the text, is not looked at
        chosen, flags = choose_unchecked(scores, self._unfinished, self._request)
        self._unfinished &= ~self._request.finished(chosen[:, None])
        return chosen, torch.cat([chosen, flags, self._unfinished.any()[None].long()])

    def _capture(self) -> None:
        generator = self._request.generator
        assert not isinstance(generator, list)
        drawn = generator if generator is not None else torch.cuda.default_generators[self._logits.device.index]
        before = drawn.get_state()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._body()
        torch.cuda.current_stream().wait_stream(stream)
        drawn.set_state(before)  # the draws of a seed are those without a graph
        self._unfinished.fill_(True)
        graph = torch.cuda.CUDAGraph()
        if generator is not None:
            graph.register_generator_state(generator)
        try:
            with capturing, torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._results = self._body()
            self._graph = graph
        except RuntimeError as error:
            self._may_capture = False
            drawn.graphsafe_set_state(drawn.clone_state())  # else it would refuse to draw outside a graph
            reason = str(error).splitlines()[0]
            warnings.warn(f"no CUDA graph could be made, kernels are launched one by one: {reason}", stacklevel=2)
