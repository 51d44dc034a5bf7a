"""Writes a token set of examples: format version 2, whole examples in each split, and which tokens answer."""

import heapq
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt2core.data.examples.reading import Example
from gpt2core.data.examples.template import Template
from gpt2core.data.splits import SPLITS, choose_split
from gpt2core.data.tokens import EXAMPLES_VERSION, MANIFEST, START_DTYPE, TOKEN_DTYPE, digest_of_set
from gpt2core.data.writer import SHARD_TOKENS, Shards, write_durably
from gpt2core.errors import UserError
from gpt2core.storage.files import replaced_directory, sha256_file, write_json
from gpt2core.tokenizer import Tokenizer

LONGEST_NAMED = 20  # of the examples, in the manifest


def write_examples(
    directory: Path | str,
    examples: Iterable[Example],
    template: Template,
    *,
    source: str,
    shares: Mapping[str, float],
    max_tokens: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> dict[str, Any]:
    """Encode `examples` by `template`, split them whole, and write `directory`; returns the manifest.

    `max_tokens` keeps the examples from the start that fit. The tokens are held in memory, three bytes each. Raises
    UserError where there is no example, or too few for a split.
    """
    ids, answers, longest = _encoded(examples, template, max_tokens)
    if not ids:
        raise UserError("the corpus holds no example." if max_tokens is None else "no example fits into max_tokens.")
    lengths = np.array([len(part) for part in ids], dtype=np.int64)
    split = choose_split(lengths, shares, "documents")
    with replaced_directory(Path(directory)) as partial:
        splits = {}
        for number, name in enumerate(SPLITS):
            own = np.flatnonzero(split.run_owners == number)
            splits[name] = _write_split(partial, name, [ids[i] for i in own], [answers[i] for i in own], shard_tokens)
        manifest = {
            "format_version": EXAMPLES_VERSION,
            "format": template.name,
            "tokenizer": Tokenizer.name,
            "vocab_size": Tokenizer.n_vocab,
            "source": source,
            "split_by": split.by,
            "split_reason": "examples stay whole",
            "shares": {name: shares[name] for name in SPLITS},
            "max_tokens": max_tokens,
            "splits": splits,
            "tokens": int(lengths.sum()),
            "documents": len(lengths),
            "answer_tokens": int(sum(part.sum(dtype=np.int64) for part in answers)),
            "longest": [{"tokens": tokens, "record": f"{one.file}, {one.where}"} for tokens, _, one in longest],
            "sha256": digest_of_set(splits),
        }
        write_json(partial / MANIFEST, manifest)
    return manifest


def _encoded(
    examples: Iterable[Example], template: Template, max_tokens: int | None
) -> tuple[list[np.ndarray], list[np.ndarray], list[tuple[int, int, Example]]]:
    """Ids and answers of each example, and the longest examples with their numbers of tokens, longest first."""
    ids, answers, total = [], [], 0
    longest: list[tuple[int, int, Example]] = []  # the second number puts examples of a length in order
    for number, example in enumerate(examples):
        tokens, trained = template.encode(example.turns)
        total += len(tokens)
        if max_tokens is not None and total > max_tokens:
            break
        ids.append(tokens)
        answers.append(trained)
        heapq.heappush(longest, (len(tokens), -number, example))
        if len(longest) > LONGEST_NAMED:
            heapq.heappop(longest)
    return ids, answers, sorted(longest, reverse=True)


def _write_split(
    directory: Path, name: str, ids: list[np.ndarray], answers: list[np.ndarray], shard_tokens: int
) -> dict[str, Any]:
    """The split's entry in the manifest."""
    shards = Shards(directory, name, shard_tokens)
    for tokens in ids:
        shards.append(tokens.astype(TOKEN_DTYPE, copy=False))
    shards.close()
    index, mask = directory / f"{name}-documents.bin", directory / f"{name}-answers.bin"
    starts = np.cumsum([0, *(len(tokens) for tokens in ids)])[:-1]
    write_durably(index, starts.astype(START_DTYPE).tobytes())
    write_durably(mask, b"".join(part.tobytes() for part in answers))
    return {
        "tokens": sum(shard["tokens"] for shard in shards.entries),
        "documents": len(ids),
        "sha256": shards.digest.hexdigest(),
        "shards": shards.entries,
        "document_index": {"file": index.name, "sha256": sha256_file(index)},
        "answers": {"file": mask.name, "sha256": sha256_file(mask)},
    }
