"""Text while it is generated, in pieces that never split a UTF-8 character.

A token of GPT-2 is bytes, and a character may take several tokens: its bytes are held back until it is complete.
"""

import codecs
import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Queue
from typing import Any

import torch
from torch import Tensor

from gpt2core.decoding.generation import BEAM_MODES, Model, generate, parse_options
from gpt2core.errors import UserError
from gpt2core.tokenizer import Tokenizer


class TextStream:
    """Token ids in, text out. The pieces joined are `tokenizer.decode` of all the ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def put(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete; may be empty."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_ids))

    def end(self) -> str:
        """The rest: U+FFFD where the last character is incomplete."""
        return self._decoder.decode(b"", final=True)


class PieceWriter:
    """A streamer for `generate`: passes each token's text, possibly empty, to `write`; no prompt, no end of text."""

    def __init__(self, tokenizer: Tokenizer, write: Callable[[str], object], eos_ids: Sequence[int] = ()) -> None:
        self._text = TextStream(tokenizer)
        self._write = write
        self._eos_ids = frozenset(eos_ids)
        self._after_prompt = False

    def put(self, tokens: Tensor) -> None:
        """The prompt (1, T) first, then tokens (1,) as they are chosen."""
        if not self._after_prompt:
            self._after_prompt = True
            return
        token_ids = [token_id for token_id in tokens.flatten().tolist() if token_id not in self._eos_ids]
        self._write(self._text.put(token_ids))

    def end(self) -> None:
        self._write(self._text.end())


class _AbandonedError(Exception):
    """The reader has closed the iterator."""


class _End:
    """Follows the last piece, with the error that ended the generation, if any."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def stream(
    model: Model,
    token_ids: Tensor | Sequence[int],
    tokenizer: Tokenizer,
    seed: int | None = None,
    **options: Any,
) -> Iterator[str]:
    """Pieces of the text that continues one prompt, (T,) or (1, T), as they are generated; options as for `generate`.

    Joined, they are the text of the tokens that `generate` returns after the prompt, up to the end of text. Closing the
    iterator, or dropping it, stops the generation, which runs in another thread. Raises UserError as `generate`
    does: at once for the options, at the first piece for the rest.
    """
    settings = parse_options(options)
    if settings.mode in BEAM_MODES or settings.num_return_sequences > 1:
        rule, remedy = "a stream is one text as it grows", "leave out {num_beams}, and set {num_return_sequences} to 1"
        raise UserError(rule=rule, remedy=remedy)
    prompts = torch.atleast_2d(token_ids) if isinstance(token_ids, Tensor) else [token_ids]
    if len(prompts) != 1:
        raise UserError(f"a stream is the text of one prompt, not of {len(prompts)}.")
    return _pieces(model, prompts, tokenizer, seed, options, settings.eos_ids)


def _pieces(
    model: Model,
    prompts: Tensor | list[Sequence[int]],
    tokenizer: Tokenizer,
    seed: int | None,
    options: dict[str, Any],
    eos_ids: Sequence[int],
) -> Iterator[str]:
    # A queue of one piece: a slow reader slows the generation, and one that stops early has caused little extra work.
    pieces: Queue[str | _End] = Queue(maxsize=1)
    abandoned = threading.Event()

    def write(piece: str) -> None:
        if piece:
            pieces.put(piece)
        if abandoned.is_set():
            raise _AbandonedError

    def generate_pieces() -> None:
        error: BaseException | None = None
        try:
            writer = PieceWriter(tokenizer, write, eos_ids)
            generate(model, prompts, seed=seed, tokenizer=tokenizer, streamer=writer, **options)
        except BaseException as raised:  # raised again in the reader's thread
            error = raised
        pieces.put(_End(error))

    thread = threading.Thread(target=generate_pieces, name="gpt2core.stream", daemon=True)
    thread.start()
    try:
        while not isinstance(piece := pieces.get(), _End):
            yield piece
        if piece.error is not None:
            raise piece.error
    finally:
        abandoned.set()
        while thread.is_alive():
            while not pieces.empty():  # a full queue would keep the thread waiting
                pieces.get_nowait()
            thread.join(timeout=0.01)
