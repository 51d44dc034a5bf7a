"""Generates a model's texts in one thread, while another reads the progress and can stop it."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any

from torch import Tensor

from gpt2core.decoding.streaming import TextStream
from gpt2core.errors import UserError
from gpt2core.tokenizer import Tokenizer
from gpt2ops.app.page.alternatives import Choice, token_choices
from gpt2ops.app.serving.models import LoadedModel
from gpt2ops.params.decoding import STRATEGIES, DecodingSetting
from gpt2ops.sampling.texts import Text, write_texts


@dataclass(frozen=True)
class GeneratedText:
    """A finished text with the alternatives of each token; `passages` are memorised ones, as token positions.

    The finish_reason can also be `stopped`, by the visitor, or `limit`, the page's time limit.
    """

    text: Text
    choices: list[Choice]
    passages: list[tuple[int, int]]


class _CutError(Exception):
    """Ends generation: stopped by the visitor, or out of time."""


@dataclass
class _Row:
    stream: TextStream
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    ended: bool = False


class GenerationJob:
    """The texts of one model for one prompt. A beam search has no text until its end, but can be stopped."""

    def __init__(
        self,
        loaded: LoadedModel,
        prompt_ids: Sequence[int],
        setting: DecodingSetting,
        seed: int,
        tokenizer: Tokenizer,
        stop: Event,
        seconds: float,
    ) -> None:
        self._loaded, self._prompt_ids, self._setting, self._seed = loaded, prompt_ids, setting, seed
        self._tokenizer, self._stop, self._seconds = tokenizer, stop, seconds
        self._rows = [_Row(TextStream(tokenizer)) for _ in range(setting.num_sequences or 1)]
        self._searches = "num_beams" in STRATEGIES[setting.decoding].keys
        self._deadline = math.inf
        self._after_prompt = False
        self.answers = loaded.template is not None
        self.steps = 0
        self.seconds = 0.0  # of generation, set at its end

    def check_fits(self) -> None:
        """Raises UserError if the text can exceed the model's context and past_block_size is not slide."""
        room = max(0, self._loaded.block_size + 1 - len(self._prompt_ids))
        wanted = self._setting.max_new_tokens or 0
        if self._setting.past_block_size != "slide" and wanted > room:
            raise UserError(
                rule="The prompt has {prompt:,} tokens and {max_new_tokens} is {wanted}, but {model} reads {size} at "
                "once",
                remedy="lower {max_new_tokens} to {room} or less, shorten the prompt, or set {past_block_size:slide}",
                prompt=len(self._prompt_ids),
                wanted=wanted,
                model=self._loaded.name,
                size=self._loaded.block_size,
                room=room,
            )

    @property
    def so_far(self) -> list[str]:
        """The texts generated so far, whole characters only."""
        return [row.text for row in self._rows]

    def run(self) -> list[tuple[Text, list[Choice]]]:
        """Write the texts. Raises UserError for what this model or prompt does not allow."""
        started = time.monotonic()
        self._deadline = started + self._seconds
        watched: dict[str, Any] = {"logits_processor": [self._on_logits]} if self._searches else {"streamer": self}
        try:
            (texts,) = write_texts(
                self._loaded.model, [self._prompt_ids], self._setting, [self._seed], self._tokenizer, **watched
            )
        except _CutError as cut:
            texts = [] if self._searches else [self._cut(row, str(cut)) for row in self._rows]
        self.seconds = time.monotonic() - started
        return [(text, self._choices(text)) for text in texts]

    def put(self, tokens: Tensor) -> None:
        """Streamer: receives the prompt first, then the tokens (rows,) of each step."""
        if self._after_prompt:
            for row, token_id in zip(self._rows, tokens.flatten().tolist(), strict=True):
                row.ended = row.ended or token_id == self._tokenizer.eot_id
                if not row.ended:
                    row.token_ids.append(token_id)
                    row.text += row.stream.put([token_id])
        self._after_prompt = True
        self._check_stop()

    def end(self) -> None:
        """Part of the streamer's interface; `run` returns the texts."""

    def _on_logits(self, ids: Tensor, logits: Tensor) -> Tensor:
        self._check_stop()
        return logits

    def _check_stop(self) -> None:
        self.steps += 1
        if self._stop.is_set():
            raise _CutError("stopped")
        if time.monotonic() > self._deadline:
            raise _CutError("limit")

    def _cut(self, row: _Row, reason: str) -> Text:
        text = self._tokenizer.decode(row.token_ids)
        return Text(text, row.token_ids, len(row.token_ids), None, "eos" if row.ended else reason)

    def _choices(self, text: Text) -> list[Choice]:
        return token_choices(
            self._loaded.model, self._prompt_ids, text.token_ids, self._setting.past_block_size or "refuse"
        )
