"""Dynamic batching: requests of several threads that wait with equal options are decoded as one batch.

Requests that arrive while a batch is decoded form the next one. No request waits for others to arrive.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from gpt2core.decoding.generation import generate
from gpt2core.tokenizer import Tokenizer

# Keys and values of one row of the 124M model take 75 MB at 1,024 tokens.
MAX_ROWS = 32


@dataclass(eq=False)
class Job:
    """One prompt; `seeds` holds one for each sampled text, and is empty for deterministic decoding."""

    token_ids: list[int]
    options: dict[str, Any]  # of `generate`, without the seed
    seeds: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)  # what follows the prompt, without the end of text
    error: Exception | None = None
    done: bool = False

    @property
    def rows(self) -> int:
        """Rows that decode this prompt."""
        beams, copies = self.options.get("num_beams", 1), self.options.get("num_return_sequences", 1)
        return int(beams if beams > 1 else copies)


class SharedDecoder:
    """A model for many threads. `seconds` limits a job's waiting time, and then its decoding time."""

    def __init__(self, model: Callable[[Tensor], Tensor], tokenizer: Tokenizer, seconds: float | None = None) -> None:
        self.model, self.tokenizer, self.seconds = model, tokenizer, seconds
        self._waiting: list[Job] = []
        self._changed = threading.Condition()
        self._decoding = False

    def run(self, jobs: Sequence[Job]) -> None:
        """Fill in the jobs' texts. Raises what `generate` raises, and TimeoutError after `seconds` of waiting."""
        deadline = None if self.seconds is None else time.monotonic() + self.seconds
        with self._changed:
            self._waiting.extend(jobs)
        while batch := self._next_batch(jobs, deadline):
            try:
                self._decode(batch)
            finally:
                with self._changed:
                    self._decoding = False
                    self._changed.notify_all()
        for job in jobs:
            if job.error is not None:
                raise job.error

    def _next_batch(self, jobs: Sequence[Job], deadline: float | None) -> list[Job]:
        """Wait until the model is free; returns the oldest job and those that fit its batch; [] once all are done.

        The batch need not hold the caller's own jobs: any waiting thread decodes the next batch.
        """
        with self._changed:
            while True:
                if all(job.done for job in jobs):
                    return []
                remaining = None if deadline is None else deadline - time.monotonic()
                if remaining is not None and remaining <= 0:
                    self._waiting = [job for job in self._waiting if job not in jobs]
                    raise TimeoutError
                if not self._decoding:
                    self._decoding = True
                    return self._take_batch()
                self._changed.wait(remaining)

    def _take_batch(self) -> list[Job]:
        batch: list[Job] = []
        rows = 0
        for job in self._waiting:
            if batch and (job.options != batch[0].options or rows + job.rows > MAX_ROWS):
                continue
            batch.append(job)
            rows += job.rows
        self._waiting = [job for job in self._waiting if job not in batch]
        return batch

    def _decode(self, batch: list[Job]) -> None:
        try:
            self._generate_texts(batch)
        except Exception as error:
            if len(batch) == 1:
                batch[0].error = error
            else:  # only the faulty job may fail
                for job in batch:
                    self._decode([job])
        finally:
            for job in batch:
                job.done = True

    def _generate_texts(self, batch: list[Job]) -> None:
        options = dict(batch[0].options)
        if self.seconds is not None:
            options["max_time"] = min(options.get("max_time", self.seconds), self.seconds)
        result = generate(
            self.model,
            [job.token_ids for job in batch],
            seed=[seed for job in batch for seed in job.seeds] or None,
            tokenizer=self.tokenizer,
            return_dict_in_generate=True,
            **options,
        )
        counts = result.new_tokens.tolist()
        texts = []
        for row, count, reason in zip(result.sequences.tolist(), counts, result.finish_reasons, strict=True):
            new = row[result.prompt_length : result.prompt_length + count]
            texts.append(self.tokenizer.decode(new[:-1] if reason == "eos" else new))
        copies = len(texts) // len(batch)
        for number, job in enumerate(batch):
            job.texts = texts[number * copies : (number + 1) * copies]
