"""Writes a tokenized corpus: encode the text on all cores into one stream, then divide that among the splits."""

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np

from gpt2core.data.splits import SPLITS, choose_split
from gpt2core.data.tokens import FORMAT_VERSION, MANIFEST, START_DTYPE, TOKEN_DTYPE
from gpt2core.errors import UserError
from gpt2core.kernels.cores import usable_cores
from gpt2core.storage.files import replaced_directory, sha256_file, write_json
from gpt2core.tokenizer import Tokenizer

SHARD_TOKENS = 100_000_000
COPY_TOKENS = 1 << 21


def write_tokens(
    directory: Path | str,
    fragments: Iterable[str],
    *,
    source: str,
    shares: Mapping[str, float],
    split_by: str = "auto",
    close_last: bool = False,
    max_tokens: int | None = None,
    workers: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> dict[str, Any]:
    """Encode `fragments` (see `corpus.read_corpus`), split them, and write `directory`; returns the manifest.

    The last document's `<|endoftext|>` is kept only with `close_last`: a single text's end is no example of one.

    The result is the same for any number of `workers` (threads; None: one a core). Memory is bounded except for
    the documents' lengths (a few dozen bytes each); the disk briefly stores the tokens twice. An earlier `directory`
    is replaced only at the end. Raises UserError for a corpus without text or too short for a split.
    """
    with replaced_directory(Path(directory)) as partial:
        stream = partial / "stream.bin"
        lengths = _write_stream(stream, encode_fragments(fragments, workers), max_tokens, close_last)
        if not len(lengths):
            raise UserError("the corpus holds no text.")
        split = choose_split(lengths, shares, split_by)
        shards = _divide(stream, split.run_lengths, split.run_owners, partial, shard_tokens)
        stream.unlink()
        splits = {}
        for name in SPLITS:
            index = partial / f"{name}-documents.bin"
            starts = np.concatenate([[0], np.cumsum(split.document_lengths[name])])[:-1]
            write_durably(index, starts.astype(START_DTYPE).tobytes())
            splits[name] = {
                "tokens": sum(shard["tokens"] for shard in shards[name].entries),
                "documents": len(starts),
                "sha256": shards[name].digest.hexdigest(),
                "shards": shards[name].entries,
                "document_index": {"file": index.name, "sha256": sha256_file(index)},
            }
        manifest = {
            "format_version": FORMAT_VERSION,
            "tokenizer": Tokenizer.name,
            "vocab_size": Tokenizer.n_vocab,
            "source": source,
            "split_by": split.by,
            "split_reason": split.reason,
            "shares": {name: shares[name] for name in SPLITS},
            "max_tokens": max_tokens,
            "splits": splits,
            "tokens": int(lengths.sum()),
            "documents": len(lengths),
            "sha256": hashlib.sha256("".join(splits[name]["sha256"] for name in SPLITS).encode()).hexdigest(),
        }
        write_json(partial / MANIFEST, manifest)
    return manifest


def encode_fragments(fragments: Iterable[str], workers: int | None = None) -> Iterator[np.ndarray]:
    """Ids of each fragment in order, uint16. Only a few fragments are in memory at once.

    Threads, not processes: tiktoken releases the GIL, and nothing has to be copied.
    """
    encode = Tokenizer().encode_array
    workers = workers or usable_cores()
    pending: deque[Future[np.ndarray]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for fragment in fragments:
                pending.append(pool.submit(encode, fragment))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _write_stream(path: Path, arrays: Iterable[np.ndarray], max_tokens: int | None, close_last: bool) -> np.ndarray:
    """Write the stream; returns the documents' lengths including their `<|endoftext|>`, int64."""
    ends: list[np.ndarray] = []
    total = 0
    held = np.empty(0, TOKEN_DTYPE)  # an <|endoftext|> that is written only if another document follows
    with path.open("wb") as handle:
        for array in arrays:
            tokens = np.concatenate([held, array])
            closed = not close_last and len(tokens) > 0 and tokens[-1] == Tokenizer.eot_id
            held, tokens = (tokens[-1:], tokens[:-1]) if closed else (tokens[:0], tokens)
            if max_tokens is not None:
                tokens = tokens[: max_tokens - total]
            ends.append(np.flatnonzero(tokens == Tokenizer.eot_id) + total + 1)
            handle.write(tokens.astype(TOKEN_DTYPE, copy=False).tobytes())
            total += len(tokens)
            if total == max_tokens:
                break
    lengths = np.diff(np.concatenate([[0], *ends, [total]]))
    return lengths[lengths > 0]


class Shards:
    """Tokens of one split, appended to files of at most `shard_tokens`."""

    def __init__(self, directory: Path, name: str, shard_tokens: int) -> None:
        self.entries: list[dict[str, Any]] = []
        self.digest = hashlib.sha256()
        self._directory, self._name, self._shard_tokens = directory, name, shard_tokens
        self._handle: IO[bytes] | None = None
        self._shard_digest = hashlib.sha256()

    def append(self, tokens: np.ndarray) -> None:
        while len(tokens):
            if self._handle is None:
                file = f"{self._name}-{len(self.entries):05d}.bin"
                self._handle = (self._directory / file).open("wb")
                self._shard_digest = hashlib.sha256()
                self.entries.append({"file": file, "tokens": 0, "sha256": ""})
            room = self._shard_tokens - self.entries[-1]["tokens"]
            content = tokens[:room].tobytes()
            self._handle.write(content)
            self._shard_digest.update(content)
            self.digest.update(content)
            self.entries[-1]["tokens"] += len(tokens[:room])
            tokens = tokens[room:]
            if self.entries[-1]["tokens"] == self._shard_tokens:
                self.close()

    def close(self) -> None:
        if self._handle is not None:
            self._handle.flush()
            os.fsync(self._handle.fileno())
            self._handle.close()
            self._handle = None
            self.entries[-1]["sha256"] = self._shard_digest.hexdigest()


def _divide(
    stream: Path, run_lengths: np.ndarray, run_owners: np.ndarray, directory: Path, shard_tokens: int
) -> dict[str, Shards]:
    """Copy each run of `stream` to its split, in one pass over the file."""
    shards = {name: Shards(directory, name, shard_tokens) for name in SPLITS}
    edges = np.concatenate([[0], np.cumsum(run_lengths)])
    with stream.open("rb") as handle:
        for start in range(0, int(edges[-1]), COPY_TOKENS):
            tokens = np.frombuffer(handle.read(COPY_TOKENS * TOKEN_DTYPE.itemsize), TOKEN_DTYPE)
            stop = start + len(tokens)
            first, last = np.searchsorted(edges, start, side="right") - 1, np.searchsorted(edges, stop)
            counts = np.diff(np.clip(edges[first : last + 1], start, stop))
            owners = np.repeat(run_owners[first:last], counts)
            for split, name in enumerate(SPLITS):
                shards[name].append(tokens[owners == split])
    for name in SPLITS:
        shards[name].close()
    return shards


def write_durably(path: Path, content: bytes) -> None:
    """Write `content`, which has reached the disk when this returns."""
    with path.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
