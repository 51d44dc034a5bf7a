"""Corpora: files of every kind and encoding, folders of them, what becomes of them as tokens."""

import gzip
import io
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from gpt2core.data.corpus import check_file, read_corpus
from gpt2core.data.splits import SPLITS, choose_split
from gpt2core.data.tokens import open_tokens
from gpt2core.data.writer import write_tokens
from gpt2core.errors import UserError
from gpt2core.storage.files import replaced_directory, with_home, write_json
from gpt2core.tokenizer import END_OF_TEXT, Tokenizer
from gpt2ops.corpora import http as http_download
from gpt2ops.corpora.sources import collect
from gpt2ops.params.schema import parse_params
from gpt2ops.pipeline import paths
from tests.harness.fuzz.harness import Fault
from tests.harness.fuzz.mutate import as_json, changed, odd_text, odd_value, spoiled

PLAIN = (
    b"To be, or not to be,\nthat is the question:\n<|endoftext|>\nWhether 'tis nobler\r\n" * 3,
    "Naïve café — 日本語 🎭<|endoftext|> it's, we'll, 42 ² \u00a0\u2028x".encode(),
    b"one\n\n\n   two\t\tthree <|endoftext|><|endoftext|>\n \n<|endoftext|>four" + b" five" * 400,
    b"\xef\xbb\xbfwith a mark\n",
    "in another encoding: é ü".encode("latin-1"),
    "in another encoding".encode("utf-16"),
)
RECORDS: tuple[Any, ...] = (
    {"text": "To be, or not to be", "id": 1},
    {"text": '日本語 🎭 <|endoftext|> \\ " \n', "meta": {"a": [1, 2.5, None]}},
    {"text": "", "n": -1e300},
)
KINDS = (
    ".txt",
    ".md",
    ".txt.gz",
    ".txt.zst",
    ".jsonl",
    ".jsonl.gz",
    ".jsonl.zst",
    ".parquet",
    ".TXT",
    ".json",
    ".zip",
    "",
)
FIELDS = ("text", "text", "text", "text", "content", "id", "", "meta", "日本", "a\nb")


def prepare_nothing(_: Path) -> None:
    Tokenizer().encode("warm")


def prepare_corpus(_: Path) -> dict[str, list[bytes]]:
    Tokenizer().encode("warm")
    http_download.ATTEMPTS = 1
    lines = b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in RECORDS)
    bombs = []
    for unit in (b" ", b"a", b"ab ", b'{"text": "a"}\n', b"\n", b"<|endoftext|>", b"\xc3\xa9", b"'"):
        content = unit * (2 * 2**20 // len(unit))
        bombs += [gzip.compress(content, mtime=0), zstandard.compress(content)]
    return {
        ".jsonl": [lines, lines * 40, lines.replace(b"\n", b"\r\n")],
        ".txt": [*PLAIN],
        ".parquet": _parquets(),
        "bombs": bombs,
    }


def _parquets() -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = ["To be", "日本語 🎭", "", "x" * 300] * 5
    tables = [
        pa.table({"text": texts, "id": range(len(texts))}),
        pa.table({"text": pa.array(texts, pa.large_string())}),
        pa.table({"text": pa.array(texts).dictionary_encode()}),
        pa.table({"text": pa.array([*texts, None])}),
        pa.table({"content": texts}),
        pa.table({"text": pa.array([{"a": 1}])}),
        pa.table({"text": pa.array([text.encode() for text in texts])}),
        pa.table({"text": pa.array([], pa.string())}),
        pa.table({"text": [["a"], ["b"]]}),
    ]
    files = []
    for number, table in enumerate(tables):
        for compression in ("snappy", "none", "zstd", "gzip")[: 4 if number == 0 else 1]:
            handle = io.BytesIO()
            pq.write_table(table, handle, compression=compression)
            files.append(handle.getvalue())
    return files


def content_for(rng: random.Random, suffix: str, seeds: dict[str, list[bytes]]) -> bytes:
    """The content of a file that is named so: spoiled text, packed; or packed text, spoiled; seldom a bomb."""
    kind, _, packing = suffix.removeprefix(".").partition(".")
    own = seeds.get(f".{kind.lower()}", seeds[".txt"])
    if kind == "jsonl" and rng.random() < 0.5:
        records = [
            changed(rng, rng.choice(RECORDS), ("text",)) if rng.random() < 0.7 else odd_value(rng) for _ in range(3)
        ]
        content = rng.choice((b"\n", b"\r\n", b"\n\n", b" ")).join(as_json(rng, record) for record in records)
    else:
        content = spoiled(rng, rng.choice(own), own)
    if not packing:
        return content
    if rng.random() < 0.002:
        return spoiled(rng, rng.choice(seeds["bombs"]), seeds["bombs"])
    packed = gzip.compress(content, 1, mtime=0) if packing == "gz" else zstandard.compress(content)
    if rng.random() < 0.1:
        packed += packed
    return packed if rng.random() < 0.4 else spoiled(rng, packed)


def corpus(seeds: dict[str, list[bytes]], rng: random.Random, folder: Path) -> None:
    """One file, read as the download stage and then the tokenize stage do."""
    suffix = rng.choice(KINDS)
    path = folder / f"a{suffix}"
    path.write_bytes(content_for(rng, suffix, seeds))
    field = rng.choice(FIELDS)
    check_file(path, text_field=field)
    fragments = list(read_corpus([path], text_field=field))
    text = "".join(fragments)
    if not text.endswith(END_OF_TEXT):
        raise Fault("the text does not end with <|endoftext|>")
    encode = Tokenizer().encode
    if len(text) < 20_000 and [one for piece in fragments for one in encode(piece)] != encode(text):
        raise Fault("fragments have other ids than the text")


def source(seeds: dict[str, list[bytes]], rng: random.Random, folder: Path) -> None:
    """The download stage on a folder of odd things, under any name for it."""
    (folder / "outside.txt").write_text("secret")
    corpora = folder / "c"
    corpora.mkdir()
    names = [_thing(rng, corpora, seeds) for _ in range(rng.choice((0, 1, 1, 2, 4)))]
    name = _source_name(rng, names)
    if _real_path(name) in {"/", *map(str, folder.resolve().parents)}:
        name = "c"  # to read this whole machine would take long, and is not refused
    data: dict[str, Any] = {"source": name, "text_field": rng.choice(FIELDS[:5])}
    if rng.random() < 0.15:
        data["sha256"] = rng.choice(("0" * 64, odd_text(rng, 3), None))
    settings = parse_params({"data": data}).data
    try:
        with replaced_directory(paths.RAW) as raw:
            provenance = collect(settings, raw)
            write_json(raw / paths.PROVENANCE.name, provenance)
    except BaseException:
        if paths.RAW.exists():
            raise Fault("data/raw is there though the download failed") from None
        raise
    inside = paths.RAW.resolve()
    for entry in provenance["files"]:
        found = paths.RAW / entry["file"]
        if not found.resolve().is_relative_to(inside) or found.is_symlink() or not found.is_file():
            raise Fault(f"{entry['file']!r} is not a file in data/raw")


def _real_path(name: str) -> str:
    try:
        return os.path.realpath(with_home(name))
    except (OSError, ValueError):
        return name


def _thing(rng: random.Random, folder: Path, seeds: dict[str, list[bytes]]) -> str:
    suffix = rng.choice(KINDS)
    stem = rng.choice(("a", "b", "sub/a", "sub/deep/a", ".hidden/a", ".a", odd_text(rng, 2).replace("/", "_") or "e"))
    name = (stem + suffix).replace("\0", "0")
    path = os.fsencode(folder / name.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape"))
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        kind = 1 if os.path.lexists(path) else rng.random()  # a pipe that is there already would be waited for
        if kind < 0.7:
            with open(path, "wb") as handle:  # noqa: PTH123
                handle.write(
                    content_for(rng, suffix, seeds) if rng.random() < 0.3 else valid_content(rng, seeds, suffix)
                )
        elif kind < 0.75:
            os.mkfifo(path)
        elif kind < 0.8:
            os.mkdir(path)  # noqa: PTH102
        else:
            os.symlink(rng.choice((b"../outside.txt", b".", b"..", b"nowhere", os.path.basename(path))), path)  # noqa: PTH119, PTH211
    except OSError:  # a name that is taken, or that no file can have
        return "a.txt"
    return os.fsdecode(path)


def _source_name(rng: random.Random, names: list[str]) -> str:
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(("c", "c/", "./c", "c/../c", "~/c"))
    if kind < 0.6 and names:
        return rng.choice(names)
    if kind < 0.8:
        return rng.choice(
            ("c/*", "c/**/*", "c/*.txt", "c/[ab].txt", "c/**/*.txt*", "c/[", "**", "c/?", "../*/../c/*.txt")
        )
    urls = (
        "http://127.0.0.1:9/a.txt",
        "https://[::1",
        "http://",
        "https:///a.txt",
        "http://127.0.0.1:9/%2e%2e/..",
        "file:///c/a.txt",
    )
    return rng.choice(
        (*urls, "hf:", "hf:a/b/c/d", "bundled", "c/a.txt\0", odd_text(rng, 4) or "x", "http://127.0.0.1:99999/a.txt")
    )


def tokenizer(_: None, rng: random.Random, folder: Path) -> None:
    """Text to ids and back; ids that are none."""
    tokens = Tokenizer()
    if rng.random() < 0.3:
        ids = [rng.choice((0, 1, 50255, 50256, rng.randrange(50257))) for _ in range(rng.randrange(40))]
        if rng.random() < 0.3:
            ids.insert(rng.randrange(len(ids) + 1), rng.choice((-1, 50257, 2**31, 2**64, -(2**64))))
        tokens.decode(ids)
        return
    text = odd_text(rng, 30)
    ids = tokens.encode(text)
    if tokens.decode(ids) != text:
        raise Fault(f"{text!r:.200} comes back as {tokens.decode(ids)!r:.200}")


def split(_: None, rng: random.Random, folder: Path) -> None:
    """Documents of any lengths by any shares."""
    shares: dict[str, Any] = rng.choice(
        (
            {"train": 0.8, "val": 0.1, "test": 0.1},
            {"train": 1, "val": 0, "test": 0},
            {"train": 0.5, "val": 0.5, "test": 0},
        )
    )
    if rng.random() < 0.5:
        shares = changed(rng, shares, SPLITS)
    elif rng.random() < 0.5:
        cuts = sorted((rng.random(), rng.random()))
        shares = {"train": cuts[0], "val": cuts[1] - cuts[0], "test": 1 - cuts[1]}
    way = rng.choice(("auto", "documents", "tokens", "tokens", odd_value(rng)))
    data = parse_params({"data": {"split": shares, "split_by": way}}).data
    most = rng.choice((1, 2, 3, 10, 1000, 2**40))
    lengths = np.array(
        [rng.randrange(1, most + 1) for _ in range(rng.choice((1, 2, 3, 5, 12, 40, 400)))], dtype=np.int64
    )
    found = choose_split(lengths, data.split.model_dump(), data.split_by)
    if found.run_lengths.sum() != lengths.sum() or (found.run_lengths < 0).any():
        raise Fault("the splits are not the text")
    for number, name in enumerate(SPLITS):
        size = found.run_lengths[found.run_owners == number].sum()
        if found.document_lengths[name].sum() != size or (getattr(data.split, name) > 0 and size < 2):
            raise Fault(f"{name} has {size} tokens in documents of {found.document_lengths[name].sum()}")


def tokenize(seeds: dict[str, list[bytes]], rng: random.Random, folder: Path) -> None:
    """A corpus to shards and back."""
    files = []
    for number in range(rng.choice((1, 1, 2, 3))):
        suffix = rng.choice((".txt", ".txt", ".jsonl", ".txt.gz"))
        files.append(folder / f"{number}{suffix}")
        files[-1].write_bytes(
            content_for(rng, suffix, seeds) if rng.random() < 0.5 else valid_content(rng, seeds, suffix)
        )
    target = folder / "tokens"
    shares = rng.choice(({"train": 0.8, "val": 0.1, "test": 0.1}, {"train": 1.0, "val": 0.0, "test": 0.0}))
    most = rng.choice((None, None, 1, 5, 100))
    try:
        manifest = write_tokens(
            target,
            read_corpus(files),
            source="fuzz",
            shares=shares,
            max_tokens=most,
            split_by=rng.choice(("auto", "documents", "tokens")),
            workers=rng.choice((1, 2)),
            shard_tokens=rng.choice((7, 100, 10**6)),
        )
    except UserError:
        if target.exists():
            raise Fault("tokens are there though the corpus was refused") from None
        raise
    opened = open_tokens(target)
    opened.verify()
    total = sum(len(opened.split(name)) for name in SPLITS)
    text = "".join(read_corpus(files)).removesuffix(END_OF_TEXT)
    if manifest["tokens"] != total or (most is None and total != len(Tokenizer().encode(text))):
        raise Fault(f"{total} tokens, not those of the text")


def valid_content(rng: random.Random, seeds: dict[str, list[bytes]], suffix: str) -> bytes:
    """Valid content."""
    kind = suffix.lower().removesuffix(".gz").removesuffix(".zst")
    content = seeds[kind][0] if kind in (".jsonl", ".parquet") else rng.choice(PLAIN[:4])
    if suffix.endswith(".zst"):
        return zstandard.compress(content)
    return gzip.compress(content, 1, mtime=0) if suffix.endswith(".gz") else content
