"""Answers a prompt: waits for its turn, loads the models, and tells how far the texts are."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Event
from typing import Protocol

from gpt2core.errors import UserError
from gpt2core.tokenizer import Tokenizer
from gpt2ops.app.serving.limits import Limits
from gpt2ops.app.serving.models import Shelf
from gpt2ops.app.serving.turns import Turns
from gpt2ops.app.serving.writing import Writing, Written
from gpt2ops.params.decoding import DecodingSetting
from gpt2ops.process.failures import failure_line

_LOOK_SECONDS = 0.1  # ten times a second a page looks as if it were typed
log = logging.getLogger(__name__)


class PassageFinder(Protocol):
    """Finds what stands word for word in the training text."""

    shortest: int  # tokens

    def find(self, token_ids: Sequence[int]) -> list[tuple[int, int]]:
        """Start and stop of each such passage."""


@dataclass(frozen=True)
class Question:
    """A prompt for one model or several, with the same seed for each."""

    prompt: str
    models: tuple[str, ...]
    setting: DecodingSetting
    seed: int


@dataclass(frozen=True)
class Answer:
    """What one model has written; `written` is empty until it has finished, and where it was stopped in a search."""

    model: str
    so_far: tuple[str, ...] = ()
    written: tuple[Written, ...] = ()
    steps: int = 0
    seconds: float = 0.0  # of writing alone
    is_done: bool = False


@dataclass(frozen=True)
class Progress:
    """`status` is empty once all is said."""

    status: str
    answers: tuple[Answer, ...] = ()


class Desk:
    """One for all visitors. `ask` is called in one event loop only; models compute in threads of their own."""

    def __init__(self, shelf: Shelf, limits: Limits, training_text: PassageFinder | None = None) -> None:
        self.shelf, self.limits, self.training_text = shelf, limits, training_text
        self._tokenizer = Tokenizer()
        self._turns = Turns(limits.running, limits.waiting)
        self._threads = ThreadPoolExecutor(limits.running, thread_name_prefix="gpt2-app")
        self._stops: set[Event] = set()

    async def ask(self, question: Question, stop: Event) -> AsyncIterator[Progress]:
        """Yields as the texts grow, then the whole of them; ends early where `stop` is set, with what is there.

        Raises UserError with one line for the visitor, whatever went wrong.
        """
        self._stops.add(stop)
        try:
            async for progress in self._ask(question, stop):
                yield progress
        except UserError:
            raise
        except Exception as error:
            log.warning("a prompt failed", exc_info=error)
            line = failure_line("app", error) if not isinstance(error, OSError) else None
            raise UserError(
                line or "Something went wrong here; who runs this page finds the reason in its log."
            ) from None
        finally:
            stop.set()  # also where the visitor has left
            self._stops.discard(stop)

    def close(self) -> None:
        """Stop all texts, so that their threads end."""
        for stop in list(self._stops):
            stop.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, question: Question, stop: Event) -> AsyncIterator[Progress]:
        self.limits.check(question.prompt, question.setting)
        prompt_ids = self._tokenizer.encode(question.prompt)
        loop = asyncio.get_running_loop()
        with self._turns.join() as turn:
            before = 0
            while not turn.begin():
                if stop.is_set():
                    yield Progress("")
                    return
                if turn.before != before:
                    before = turn.before
                    yield Progress(f"Waiting: {before} {'prompt' if before == 1 else 'prompts'} before yours.")
                await asyncio.sleep(_LOOK_SECONDS / 2)
            yield Progress("Loading the model.")
            loaded = [await loop.run_in_executor(self._threads, self.shelf.load, name) for name in question.models]
            writings = [
                Writing(one, prompt_ids, question.setting, question.seed, self._tokenizer, stop, self.limits.seconds)
                for one in loaded
            ]
            for writing in writings:
                writing.check_fits()
            done: tuple[Answer, ...] = ()
            for name, writing in zip(question.models, writings, strict=True):
                if stop.is_set():
                    break
                task = loop.run_in_executor(self._threads, self._write, name, writing)
                seen = -1
                while not task.done():
                    if writing.steps != seen:
                        seen = writing.steps
                        answer = Answer(name, tuple(writing.so_far), steps=seen)
                        yield Progress("Writing.", (*done, answer))
                    await asyncio.wait([task], timeout=_LOOK_SECONDS)
                done = (*done, await task)
                if len(done) < len(writings):
                    yield Progress("Writing.", done)
            yield Progress("", done)

    def _write(self, name: str, writing: Writing) -> Answer:
        texts = writing.run()
        finder = self.training_text
        written = tuple(
            Written(text, choices, finder.find(text.token_ids) if finder else []) for text, choices in texts
        )
        answer = Answer(name, tuple(one.text.text for one in written), written, writing.steps)
        return replace(answer, seconds=writing.seconds, is_done=True)
