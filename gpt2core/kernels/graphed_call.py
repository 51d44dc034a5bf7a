"""A function whose kernels are launched at once, as a CUDA graph (PyTorch's notes on CUDA graphs).

The function takes no argument, and reads and writes tensors at fixed addresses.
"""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
_capturing = threading.Lock()  # CUDA makes one graph at a time


class GraphedCall(Generic[T]):
    """Calls a function; once it is captured, by its graph. On a CPU, and where a capture failed, kernel by kernel.

    The function is given to each call: held here, its owner and this would keep each other, and GPU memory, alive.
    """

    def __init__(self, device: torch.device, generator: torch.Generator | None = None) -> None:
        """`generator` is the one that the function draws from; None: torch's own."""
        self._device, self._generator = device, generator
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: T | None = None
        self._failed = False

    @property
    def can_capture(self) -> bool:
        """Whether `capture` is still to be tried."""
        return self._device.type == "cuda" and self._graph is None and not self._failed

    def __call__(self, body: Callable[[], T]) -> T:
        """The result of `body`; that of a graph is overwritten by the next call."""
        if self._graph is None:
            return body()
        self._graph.replay()
        return self._result  # type: ignore[return-value]

    def capture(self, body: Callable[[], T], warm_up: Callable[[], None]) -> str | None:
        """Make the graph; returns why it could not be made, or None.

        `warm_up` calls `body` before, as libraries load kernels and allocate workspaces in the first calls, and undoes
        what it changed.
        """
        device = self._device
        # The outer context restores the thread's stream where the capture fails.
        with _capturing, torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
            try:
                stream = torch.cuda.Stream(device)
                stream.wait_stream(torch.cuda.current_stream(device))
                with torch.cuda.stream(stream):
                    warm_up()
                torch.cuda.current_stream(device).wait_stream(stream)
                self._record(body, stream)
            except RuntimeError as error:
                self._failed = True
                return str(error).splitlines()[0]
        return None

    def forget(self) -> None:
        """Drop the graph: an address that it holds has changed."""
        self._graph = self._result = None

    def _record(self, body: Callable[[], T], stream: torch.cuda.Stream) -> None:
        graph = torch.cuda.CUDAGraph()
        drawn = [torch.cuda.default_generators[torch.cuda.current_device()]]  # every graph registers it
        if self._generator is not None:
            graph.register_generator_state(self._generator)
            drawn.append(self._generator)
        try:
            # Other threads may use the GPU meanwhile: a server's, or one that writes a checkpoint.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._result = body()
        except RuntimeError:
            for generator in drawn:  # it would refuse to draw outside a graph
                generator.graphsafe_set_state(generator.clone_state())
            raise
        self._graph = graph
