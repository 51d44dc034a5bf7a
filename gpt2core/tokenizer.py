"""GPT-2's byte-level BPE (Radford et al. 2019), offline, from the merge table in `assets/`.

gigatoken does the encoding where its ids are known to be those of tiktoken, and else tiktoken; `save` writes the same
vocabulary in the Hugging Face layout.
"""

import base64
import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2core.data.fast_encoding import FastEncoding, load_fast_encoding
from gpt2core.errors import UserError
from gpt2core.storage.files import write_json, write_text

if TYPE_CHECKING:
    import numpy as np
    import tiktoken

END_OF_TEXT = "<|endoftext|>"
MERGE_TABLE = Path(__file__).parent / "assets" / "gpt2.tiktoken"
# The hash tiktoken expects of `r50k_base`, its name for GPT-2's table.
MERGE_TABLE_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"


class Tokenizer:
    """Text to token ids and back. Ids equal those of tiktoken and of transformers' GPT-2 tokenizer."""

    name = "gpt2"
    n_vocab = 50257
    eot_id = 50256

    def encode(self, text: str) -> list[int]:
        """Token ids; `<|endoftext|>` in `text` is the special token. Raises UserError for a lone surrogate."""
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> "np.ndarray":
        """The ids of `encode` as a uint16 array, without a Python object a token."""
        content = check_unicode(text)
        fast = _fast_encoding()
        if fast is not None and fast.can_encode(text):
            return fast.encode(content)
        return self.encode_by_tiktoken(text)

    def encode_by_tiktoken(self, text: str) -> "np.ndarray":
        """The same ids by the reference implementation, which is slower."""
        import numpy as np

        parts = [self._encoding.encode_to_numpy(part, allowed_special="all") for part in _cut_long_blanks(text)]
        return np.concatenate(parts).astype(np.uint16)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; bytes that are no UTF-8 (a character cut in two) become U+FFFD."""
        return self.token_bytes(ids).decode("utf-8", errors="replace")

    def token_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of `ids`, `<|endoftext|>` spelled out. Raises UserError for an id outside the vocabulary."""
        plain = [int(token_id) for token_id in ids]
        for token_id in plain:
            if not 0 <= token_id < self.n_vocab:
                raise UserError(f"token id {token_id} is outside GPT-2's vocabulary (0 to {self.n_vocab - 1}).")
        return self._encoding.decode_bytes(plain)

    def token_lengths(self) -> "np.ndarray":
        """Bytes of text in each token, int64 (n_vocab,); 0 for `<|endoftext|>`, which stands for no text."""
        import numpy as np

        lengths = np.zeros(self.n_vocab, dtype=np.int64)
        for token, rank in _ranks().items():
            lengths[rank] = len(token)
        return lengths

    def vocabulary(self) -> dict[str, int]:
        """Each token with its id, spelled as in the Hugging Face layout's vocab.json."""
        return {_spell(token): rank for token, rank in _ranks().items()} | {END_OF_TEXT: self.eot_id}

    def save(self, directory: Path | str) -> None:
        """Write the files from which `transformers.AutoTokenizer.from_pretrained(directory)` loads offline."""
        directory = Path(directory)
        vocab = self.vocabulary()
        merges = [(_spell(left), _spell(right)) for left, right in _merges()]
        special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
        write_text(directory / "vocab.json", json.dumps(vocab, ensure_ascii=False))
        write_text(directory / "merges.txt", "".join(f"{line}\n" for line in ["#version: 0.2", *map(" ".join, merges)]))
        write_text(directory / "tokenizer.json", json.dumps(self._hugging_face(vocab, merges), ensure_ascii=False))
        write_json(directory / "special_tokens_map.json", special)
        config = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "model_max_length": 1024}
        write_json(directory / "tokenizer_config.json", {**config, **special})

    def _hugging_face(self, vocab: dict[str, int], merges: list[tuple[str, str]]) -> dict[str, Any]:
        """`tokenizer.json`, as the `tokenizers` library reads it."""
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        end_of_text = {
            "id": self.eot_id,
            "content": END_OF_TEXT,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        model = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [end_of_text],
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": {**byte_level, "trim_offsets": False},
            "decoder": byte_level,
            "model": {**model, "vocab": vocab, "merges": merges},
        }

    @cached_property
    def _encoding(self) -> "tiktoken.Encoding":
        return _load_encoding()


def check_unicode(text: str) -> bytes:
    """`text` in UTF-8. Raises UserError where it holds half of a surrogate pair, which no UTF-8 can spell."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"character {error.start} (U+{ord(text[error.start]):04X}) is a lone surrogate, "
            "which is not valid Unicode; remove it."
        ) from None


# tiktoken's regular expression gives up on about a million blanks that a word follows.
LONG_BLANK = 500_000
# What the pattern takes for a blank: Python's own blanks but for four separators.
_BLANKS = re.compile(r"[^\S\x1c-\x1f]{64,}+")


def _cut_long_blanks(text: str) -> list[str]:
    """`text` cut before the last of very many blanks, where the pattern always starts a new piece."""
    if len(text) < LONG_BLANK:
        return [text]
    cuts = [0]
    for run in _BLANKS.finditer(text):
        followed_by_word = run.end() < len(text) and not text.startswith(END_OF_TEXT, run.end())
        if run.end() - run.start() >= LONG_BLANK and followed_by_word:
            cuts.append(run.end() - 1)
    cuts.append(len(text))
    return [text[start:stop] for start, stop in itertools.pairwise(cuts)]


@lru_cache(maxsize=1)
def _load_encoding() -> "tiktoken.Encoding":
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    return tiktoken.Encoding(
        name=Tokenizer.name,
        pat_str=r50k_pat_str,
        mergeable_ranks=_ranks(),
        special_tokens={END_OF_TEXT: Tokenizer.eot_id},
        explicit_n_vocab=Tokenizer.n_vocab,
    )


@lru_cache(maxsize=1)
def _fast_encoding() -> FastEncoding | None:
    _read_merge_table()
    return load_fast_encoding(MERGE_TABLE, END_OF_TEXT, Tokenizer.eot_id)


def _read_merge_table() -> bytes:
    """Raises UserError for a damaged merge table."""
    # tiktoken's own loader copies the table to a shared temporary directory and reads it from there.
    content = MERGE_TABLE.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != MERGE_TABLE_SHA256:
        raise UserError(f"{MERGE_TABLE}: sha256 {found}, expected {MERGE_TABLE_SHA256}; restore the file.")
    return content


@lru_cache(maxsize=1)
def _ranks() -> dict[bytes, int]:
    """Bytes of each token but `<|endoftext|>` to its id. Raises UserError for a damaged merge table."""
    pairs = (line.split() for line in _read_merge_table().splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


@lru_cache(maxsize=1)
def _merges() -> list[tuple[bytes, bytes]]:
    """The pairs that make the tokens of more than one byte, in order of rank."""
    ranks = _ranks()
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            left, right = _parts(token, ranks, rank)
            merges.append((left, right))
    return merges


def _parts(token: bytes, ranks: dict[bytes, int], limit: int) -> list[bytes]:
    """`token` merged as far as the tokens below rank `limit` go: the last step's two halves."""
    parts = [bytes([byte]) for byte in token]
    while True:
        candidates = [(ranks.get(left + right, limit), i) for i, (left, right) in enumerate(itertools.pairwise(parts))]
        rank, i = min(candidates)
        if rank >= limit:
            return parts
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def _spell(token: bytes) -> str:
    return "".join(_byte_characters()[byte] for byte in token)


@lru_cache(maxsize=1)
def _byte_characters() -> list[str]:
    """GPT-2's spelling of each byte: itself where printable in Latin-1, else the next character from U+0100 on."""
    characters, spare = [], 0x100
    for byte in range(256):
        if chr(byte).isprintable() and byte != 0x20:
            characters.append(chr(byte))
        else:
            characters.append(chr(spare))
            spare += 1
    return characters
