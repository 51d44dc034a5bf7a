"""Generates texts for the web page: queues requests, loads models, and reports progress."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Event
from typing import Protocol

from gpt2core.data.examples.template import prompt_text
from gpt2core.errors import UserError
from gpt2core.tokenizer import Tokenizer
from gpt2ops.app.serving.generation_job import GeneratedText, GenerationJob
from gpt2ops.app.serving.limits import Limits
from gpt2ops.app.serving.models import ModelCache
from gpt2ops.app.serving.request_queue import RequestQueue
from gpt2ops.params.decoding import DecodingSetting
from gpt2ops.process.failures import failure_line

_POLL_SECONDS = 0.1  # ten updates a second look like typing
log = logging.getLogger(__name__)


class PassageFinder(Protocol):
    """Finds passages of the training text."""

    shortest: int  # tokens

    def find(self, token_ids: Sequence[int]) -> list[tuple[int, int]]:
        """Start and stop of each passage in `token_ids`."""


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt for one or more models, with the same seed for each."""

    prompt: str
    models: tuple[str, ...]
    setting: DecodingSetting
    seed: int


@dataclass(frozen=True)
class ModelOutput:
    """The texts of one model. `written` is empty until all are finished, and after a beam search was stopped."""

    model: str
    so_far: tuple[str, ...] = ()
    written: tuple[GeneratedText, ...] = ()
    steps: int = 0
    seconds: float = 0.0  # of generation, without waiting and loading
    is_done: bool = False
    answers: bool = False  # the texts are answers, not what continues the prompt


@dataclass(frozen=True)
class GenerationProgress:
    """`status` is empty at the end."""

    status: str
    outputs: tuple[ModelOutput, ...] = ()


class GenerationService:
    """One for all visitors. `generate` runs in one event loop; the models run in threads."""

    def __init__(self, cache: ModelCache, limits: Limits, training_text: PassageFinder | None = None) -> None:
        self.cache, self.limits, self.training_text = cache, limits, training_text
        self._tokenizer = Tokenizer()
        self._queue = RequestQueue(limits.running, limits.waiting)
        self._threads = ThreadPoolExecutor(limits.running, thread_name_prefix="gpt2-app")
        self._stops: set[Event] = set()

    async def generate(self, request: GenerationRequest, stop: Event) -> AsyncIterator[GenerationProgress]:
        """Yields the growing texts, then the finished ones; after `stop` is set, those generated so far.

        Raises UserError with one line for the visitor on any failure.
        """
        self._stops.add(stop)
        try:
            async for progress in self._generate(request, stop):
                yield progress
        except UserError:
            raise
        except Exception as error:
            log.warning("a prompt failed", exc_info=error)
            line = failure_line("app", error) if not isinstance(error, OSError) else None
            raise UserError(line or "The request failed; the reason is in the server's log.") from None
        finally:
            stop.set()  # also if the visitor has left
            self._stops.discard(stop)

    def close(self) -> None:
        """Stop all requests, so that their threads end."""
        for stop in list(self._stops):
            stop.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _generate(self, request: GenerationRequest, stop: Event) -> AsyncIterator[GenerationProgress]:
        self.limits.check(request.prompt, request.setting)
        loop = asyncio.get_running_loop()
        with self._queue.join() as queued:
            before = 0
            while not queued.try_start():
                if stop.is_set():
                    yield GenerationProgress("")
                    return
                if queued.ahead != before:
                    before = queued.ahead
                    yield GenerationProgress(
                        f"Waiting: {before} {'prompt' if before == 1 else 'prompts'} before yours."
                    )
                await asyncio.sleep(_POLL_SECONDS / 2)
            yield GenerationProgress("Loading the model.")
            loaded = [await loop.run_in_executor(self._threads, self.cache.load, name) for name in request.models]
            jobs = [
                GenerationJob(
                    one,
                    self._tokenizer.encode(prompt_text(one.template, request.prompt)),
                    request.setting,
                    request.seed,
                    self._tokenizer,
                    stop,
                    self.limits.seconds,
                )
                for one in loaded
            ]
            for job in jobs:
                job.check_fits()
            done: tuple[ModelOutput, ...] = ()
            for name, job in zip(request.models, jobs, strict=True):
                if stop.is_set():
                    break
                task = loop.run_in_executor(self._threads, self._run, name, job)
                seen = -1
                while not task.done():
                    if job.steps != seen:
                        seen = job.steps
                        output = ModelOutput(name, tuple(job.so_far), steps=seen, answers=job.answers)
                        yield GenerationProgress("Writing.", (*done, output))
                    await asyncio.wait([task], timeout=_POLL_SECONDS)
                done = (*done, await task)
                if len(done) < len(jobs):
                    yield GenerationProgress("Writing.", done)
            yield GenerationProgress("", done)

    def _run(self, name: str, job: GenerationJob) -> ModelOutput:
        texts = job.run()
        finder = self.training_text
        written = tuple(
            GeneratedText(text, choices, finder.find(text.token_ids) if finder else []) for text, choices in texts
        )
        output = ModelOutput(name, tuple(one.text.text for one in written), written, job.steps)
        return replace(output, seconds=job.seconds, is_done=True, answers=job.answers)
