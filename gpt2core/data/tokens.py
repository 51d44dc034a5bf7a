"""A tokenized corpus on disk: uint16 shards, the starts of the documents, and a manifest. `writer` writes it.

The corpus is one stream of tokens: its documents in order with `<|endoftext|>` (50256) after each but the last.
A split by documents takes documents with the `<|endoftext|>` after them; a split by tokens cuts the stream in three.

    manifest.json             sizes, hashes, how it was split
    train-00000.bin, …        token ids, little-endian uint16, no header
    train-documents.bin       index of each document's first token in its split, little-endian int64
    train-answers.bin         of examples: 1 where a token belongs to an answer, 0 elsewhere; a byte each

A set of examples (`examples.writer`) is of format version 2: each document is one, and ends with its answer's
`<|endoftext|>`. A set of plain text is of version 1, as before.
"""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gpt2core.data.array_file import ArrayFile
from gpt2core.data.splits import SPLITS
from gpt2core.errors import UserError
from gpt2core.storage.files import inside, read_json, sha256_file

FORMAT_VERSION = 1  # of plain text
EXAMPLES_VERSION = 2
MANIFEST = "manifest.json"
TOKEN_DTYPE = np.dtype("<u2")
MOST_TOKENS = 2**60
CHUNK_TOKENS = 2**20  # read at once where a whole split is read
START_DTYPE = np.dtype("<i8")
ANSWER_DTYPE = np.dtype("u1")


class TokenSplit:
    """The tokens of one split, read from the disk as they are asked for: opening takes the same time for any size."""

    def __init__(self, directory: Path, name: str, entry: Mapping[str, Any]) -> None:
        self.name = name
        self.sha256: str = entry["sha256"]
        self.num_documents: int = entry["documents"]
        self._directory = directory
        self._index: Mapping[str, Any] = entry["document_index"]
        self._shards: list[Mapping[str, Any]] = entry["shards"]
        self._answers: Mapping[str, Any] | None = entry.get("answers")
        files = [entry["file"] for entry in (*self._shards, *self._side_files)]
        if any(Path(file).name != file for file in files):  # a plain name, not a path
            raise TypeError
        counts = [self.num_documents, *(shard["tokens"] for shard in self._shards)]
        if not all(type(count) is int and 0 <= count < MOST_TOKENS for count in counts):
            raise TypeError
        self._edges = np.cumsum([0, *(shard["tokens"] for shard in self._shards)])
        self._files: dict[int, ArrayFile] = {}
        self._answer_file: ArrayFile | None = None

    def __len__(self) -> int:
        return int(self._edges[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` (exclusive), uint16 (stop - start,).

        Raises IndexError for tokens that the split does not have, UserError for a shard that was cut short since.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} to {stop} of a {self.name} split of {len(self)} tokens")
        parts = []
        shard = int(np.searchsorted(self._edges, start, side="right")) - 1
        while start < stop:
            first, end = int(self._edges[shard]), int(self._edges[shard + 1])
            parts.append(self._file(shard).read(start - first, min(stop, end) - first))
            start, shard = end, shard + 1
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, TOKEN_DTYPE), *parts])

    @property
    def has_answers(self) -> bool:
        """Whether the documents are examples with answers."""
        return self._answers is not None

    def answers(self, start: int, stop: int) -> np.ndarray:
        """Which of the tokens `start` to `stop` (exclusive) belong to answers, bool (stop - start,).

        Raises IndexError for tokens that the split does not have, UserError for a file that was cut short since.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} to {stop} of a {self.name} split of {len(self)} tokens")
        assert self._answers is not None, "a split of plain text"
        if self._answer_file is None:
            self._answer_file = ArrayFile(self._directory / self._answers["file"], ANSWER_DTYPE)
        return self._answer_file.read(start, stop) != 0

    @property
    def _side_files(self) -> tuple[Mapping[str, Any], ...]:
        return (self._index,) if self._answers is None else (self._index, self._answers)

    @cached_property
    def document_starts(self) -> np.ndarray:
        """Index of each document's first token in this split, int64. One that began in another split starts at 0."""
        return ArrayFile(self._directory / self._index["file"], START_DTYPE).read(0, self.num_documents)

    def check_sizes(self) -> None:
        """Raises UserError for a file that is missing or has another size; reads no content."""
        sizes = {shard["file"]: shard["tokens"] * TOKEN_DTYPE.itemsize for shard in self._shards}
        sizes[self._index["file"]] = self.num_documents * START_DTYPE.itemsize
        if self._answers is not None:
            sizes[self._answers["file"]] = len(self) * ANSWER_DTYPE.itemsize
        for file, size in sizes.items():
            path = inside(self._directory / file, self._directory)
            found = path.stat().st_size if path.is_file() else None
            if found is None:
                raise UserError(f"{path} is missing; tokenize the corpus again.")
            if found != size:
                raise UserError(f"{path} has {found} bytes, expected {size}; tokenize the corpus again.")

    def verify(self) -> None:
        """Raises UserError for a file whose checksum differs; reads all of it."""
        self.check_sizes()
        for entry in (*self._shards, *self._side_files):
            if sha256_file(self._directory / entry["file"]) != entry.get("sha256"):
                raise UserError(f"{self._directory / entry['file']} is damaged (sha256); tokenize the corpus again.")
        self.check_digest()

    def check_digest(self) -> None:
        """Raises UserError if the manifest lists other shards, or another order, than were written."""
        if len(self._shards) == 1:
            found = self._shards[0].get("sha256")
        else:
            digest = hashlib.sha256()
            for start in range(0, len(self), CHUNK_TOKENS):
                digest.update(self.read(start, min(start + CHUNK_TOKENS, len(self))).data)
            found = digest.hexdigest()
        if found != self.sha256:
            raise _damaged(self._directory / MANIFEST)

    def _file(self, shard: int) -> ArrayFile:
        if shard not in self._files:
            self._files[shard] = ArrayFile(self._directory / self._shards[shard]["file"], TOKEN_DTYPE)
        return self._files[shard]


class TokenSet:
    """A tokenized corpus: its `manifest` and its splits."""

    def __init__(self, directory: Path, manifest: dict[str, Any]) -> None:
        self.directory = directory
        self.manifest = manifest

    def split(self, name: str) -> TokenSplit:
        """The split `name`, empty where it got no share. Raises UserError for a missing or cut file."""
        if name not in self.manifest["splits"]:
            raise UserError(f"unknown split {name!r}; known: {', '.join(self.manifest['splits'])}.")
        try:
            split = TokenSplit(self.directory, name, self.manifest["splits"][name])
            split.check_sizes()
        except UserError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError):
            raise _damaged(self.directory / MANIFEST) from None
        return split

    def verify(self) -> None:
        """Raises UserError for a file whose checksum differs; reads all of them."""
        for name in self.manifest["splits"]:
            self.split(name).verify()
        self._check_digest()

    def check_digests(self) -> None:
        """Raises UserError if the manifest's checksums are inconsistent with each other."""
        for name in self.manifest["splits"]:
            self.split(name).check_digest()
        self._check_digest()

    def _check_digest(self) -> None:
        if digest_of_set(self.manifest["splits"]) != self.manifest["sha256"]:
            raise _damaged(self.directory / MANIFEST)


def digest_of_set(splits: Mapping[str, Any]) -> str:
    """The hash that identifies a token set, of the manifest's entries: of its tokens, and of what is an answer."""
    found = [splits[name] for name in SPLITS if name in splits]
    hashes = [entry["sha256"] + (entry["answers"]["sha256"] if "answers" in entry else "") for entry in found]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def open_tokens(directory: Path | str) -> TokenSet:
    """The corpus in `directory`. Raises UserError if it is missing or has another format version."""
    directory = Path(directory)
    path = directory / MANIFEST
    if not inside(path, directory).is_file():
        raise UserError(f"{path} is missing; tokenize a corpus first.")
    try:
        manifest = read_json(path)
        version = manifest["format_version"]
    except (ValueError, KeyError, TypeError):
        raise _damaged(path) from None
    if version not in (FORMAT_VERSION, EXAMPLES_VERSION):
        known = f"{FORMAT_VERSION} or {EXAMPLES_VERSION}"
        raise UserError(f"{path}: format_version is {version!r}, expected {known}; tokenize the corpus again.")
    if not {"splits", "sha256", "tokens"} <= manifest.keys() or not isinstance(manifest["splits"], dict):
        raise _damaged(path)
    return TokenSet(directory, manifest)


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged; tokenize the corpus again.")


def open_split(directory: Path | str, name: str) -> TokenSplit:
    """The split `name` of the corpus in `directory`. Raises UserError as `open_tokens` and `TokenSet.split` do."""
    return open_tokens(directory).split(name)
