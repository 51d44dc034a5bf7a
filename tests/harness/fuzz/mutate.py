"""Spoiling inputs: bytes, texts and JSON values, each a function of a random generator and so of the case's number."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

# What a name or a link leads out to: a file of the system that nobody can write to, not even root, should a case or the
# code under test write through the link.
UNHARMED = "/proc/version"
SIZES = (0, 1, 2, 7, 8, 127, 128, 255, 256, 32767, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1)
TOKENS = (
    b"\0",
    b"\xef\xbb\xbf",
    b"\xfe\xff",
    b"\xff\xfe",
    b"\r\n",
    b"\r",
    b"\n\n",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"<|endoftext|>",
    b"<|endof",
    b"\x1b[31m",
    b"\x00\x00\x00\x00",
    b"\xff" * 8,
    b"\x7f\xff\xff\xff",
    b'"',
    b"\\",
    b"\\ud800",
    b"\\u0000",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"true",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-1",
    b"9" * 30,
    b"9" * 5000,
    b"0x" + b"f" * 5000,
    f"../..{UNHARMED}".encode(),
    UNHARMED.encode(),
    b"~",
    b"%s%n",
    b"${HOME}",
    b"&a ",
    b"*a",
    b"!!python/object:os.system",
    b"<<: ",
    b"? ",
    b"- ",
    b"#",
    b"'",
    b"|",
    b">",
    b"\t",
    b"\xe2\x80\xa8",
    b"\xe2\x80\xae",
    b"\xf0\x9f\x8e\xad",
    b"PK\x03\x04",
)
CHARACTERS = (
    "\0",
    "\ufeff",
    "\r",
    "\r\n",
    "\n",
    "\t",
    "\x0b",
    "\x0c",
    "\x1b",
    "\x1c",
    "\x7f",
    "\x85",
    "\xa0",
    "\xad",
    "\u0301",
    "\u200b",
    "\u2028",
    "\u2029",
    "\u202e",
    "\ud800",
    "\udfff",
    "\udc80",
    "\uffff",
    "\U0010ffff",
    "é",
    "日本",
    "🎭",
    "👩‍👩‍👧",
    "Å",
    "ß",
    "İ",
    "ﬁ",
    "<|endoftext|>",
    "<|endof",
    "'s",
    "'",
    '"',
    "\\",
    "/",
    "..",
    ".",
    "~",
    "$",
    "{}",
    "%s",
    "*",
    "?",
    "[",
    "]",
    "#",
    ":",
    "=",
    ",",
)


def spoiled(rng: random.Random, content: bytes, others: Sequence[bytes] = ()) -> bytes:
    """`content` after one to four changes; now and then as it is."""
    if rng.random() < 0.03:
        return content
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        content = rng.choice(_CHANGES)(rng, content, others)
    return content


def spoiled_within(rng: random.Random, content: bytes, start: int, stop: int) -> bytes:
    """`content` with a part of it spoiled, which may become longer or shorter."""
    return content[:start] + spoiled(rng, content[start:stop]) + content[stop:]


def _place(rng: random.Random, content: bytes) -> tuple[int, int]:
    """Start and stop of a part, mostly a short one; the start and the end of a file are likelier than the rest."""
    at = rng.choice((0, rng.randrange(len(content) + 1), rng.randrange(len(content) + 1), max(0, len(content) - 64)))
    return at, min(len(content), at + rng.choice((1, 2, 4, 8, 16, 64, rng.randrange(len(content) + 1))))


def _flip(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8)) if content else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _behead(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    return content[rng.randrange(len(content) + 1) :]


def _remove(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    start, stop = _place(rng, content)
    return content[:start] + content[stop:]


def _repeat(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    start, stop = _place(rng, content)
    times = rng.choice((2, 3, 50, 1 + 20_000 // max(1, stop - start)))
    return content[:start] + content[start:stop] * times + content[stop:]


def _swap(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    a, b, c, d = sorted(rng.randrange(len(content) + 1) for _ in range(4))
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def _insert(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    at, _ = _place(rng, content)
    return content[:at] + rng.choice(TOKENS) + content[at:]


def _overwrite(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    at, _ = _place(rng, content)
    new = rng.choice(TOKENS) if rng.random() < 0.5 else rng.randbytes(rng.choice((1, 2, 4, 8, 40)))
    return content[:at] + new + content[at + len(new) :]


def _number(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    """A count or an offset of a header becomes another, often an absurd one."""
    at, _ = _place(rng, content)
    size = rng.choice((1, 2, 4, 8))
    value = (rng.choice(SIZES) + rng.choice((0, 0, 1, -1))) % 2 ** (8 * size)
    return content[:at] + value.to_bytes(size, rng.choice(("little", "big"))) + content[at + size :]


def _splice(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others) if others else content
    return content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other) + 1) :]


def _nest(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    at, _ = _place(rng, content)
    opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"(", b")"), (b"- ", b""), (b"{a: ", b"}")))
    depth = rng.choice((3, 60, 300, 3000))
    return content[:at] + opening * depth + b"1" + closing * rng.choice((0, depth)) + content[at:]


def _nothing(rng: random.Random, _content: bytes, _: Sequence[bytes]) -> bytes:
    return rng.choice(
        (b"", b"\n", b" ", b"\0", b"\xef\xbb\xbf", b"null", b"{}", b"[]", rng.randbytes(rng.randrange(200)))
    )


_CHANGES: tuple[Callable[[random.Random, bytes, Sequence[bytes]], bytes], ...] = (
    _flip,
    _flip,
    _flip,
    _cut,
    _cut,
    _behead,
    _remove,
    _remove,
    _repeat,
    _swap,
    _insert,
    _insert,
    _overwrite,
    _overwrite,
    _number,
    _number,
    _splice,
    _nest,
    _nothing,
)


# Texts and values


def odd_text(rng: random.Random, most: int = 12) -> str:
    pieces = []
    for _ in range(rng.randrange(most + 1)):
        kind = rng.random()
        if kind < 0.4:
            pieces.append(rng.choice(CHARACTERS))
        elif kind < 0.8:
            pieces.append(rng.choice(("a", "The ", "romeo", " ", "0", "42", "name", "-", "_", "A" * 40)))
        elif kind < 0.98:
            pieces.append(chr(rng.choice((rng.randrange(0x20, 0x7F), rng.randrange(0x3000), rng.randrange(0x110000)))))
        else:
            pieces.append(rng.choice(("x" * 3000, " " * 3000, "\n" * 300, "日" * 2000, "'s" * 1000)))
    return "".join(pieces)


def odd_value(rng: random.Random, depth: int = 0) -> Any:
    """A value that JSON or YAML can have, often a strange one."""
    kind = rng.randrange(14 if depth < 3 else 11)
    if kind < 3:
        return rng.choice((0, 1, -1, 2, 3, *SIZES, -(2**31), 2**64, 10**30, 10**400, rng.randrange(1000)))
    if kind < 6:
        floats = (0.0, -0.0, 0.5, 1.0, 1.5, 1e-300, 1e-9, 1e300, float("nan"), float("inf"), -float("inf"), 3.0)
        return rng.choice((*floats, rng.random()))
    if kind < 8:
        return rng.choice(
            (None, True, False, "", "auto", "null", "true", "1", "1e-3", "none", [], {}, [[]], {"": None})
        )
    if kind < 11:
        return odd_text(rng, 5)
    if kind == 11:
        value: Any = rng.choice((None, "deep"))
        for _ in range(rng.choice((2, 20, 80))):
            value = [value] if rng.random() < 0.5 else {"a": value}
        return value
    if kind == 12:
        return [odd_value(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 3, 3, 60)))]
    return {odd_text(rng, 3): odd_value(rng, depth + 1) for _ in range(rng.choice((1, 2, 3)))}


def changed(rng: random.Random, value: Any, keys: Sequence[str] = ()) -> Any:
    """A copy of a nested value with one to three of its places changed; `keys` are names to use besides its own."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = _changed(rng, value, keys)
    return value


def _changed(rng: random.Random, value: Any, keys: Sequence[str]) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.7:
            value[key] = _changed(rng, value[key], keys)
        elif kind < 0.8:
            del value[key]
        elif kind < 0.9:
            value[rng.choice(keys) if keys and rng.random() < 0.7 else odd_text(rng, 3)] = odd_value(rng)
        else:
            value[key], other = value[rng.choice(list(value))], value[key]
            value[odd_text(rng, 2)] = other
        return value
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        kind = rng.random()
        if kind < 0.7:
            value[at] = _changed(rng, value[at], keys)
        elif kind < 0.8:
            del value[at]
        elif kind < 0.9:
            value.insert(at, odd_value(rng))
        else:
            value *= rng.choice((2, 3, 200))
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.5:
        return rng.choice(
            (
                -value,
                value + 1,
                value - 1,
                value * 2,
                value // 2,
                value * 1000,
                f"{value:.9g}" if abs(value) < 10**9 else "1",
            )
        )
    if isinstance(value, str) and rng.random() < 0.4:
        at = rng.randrange(len(value) + 1)
        return value[:at] + odd_text(rng, 2) + value[at:]
    return odd_value(rng)


def as_json(rng: random.Random, value: Any) -> bytes:
    """As JSON, in any of the ways that programs write it."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, None, 2)))
    return rng.choice((b"", b"", b"", b"", b"\xef\xbb\xbf")) + text.encode("utf-8", "surrogatepass")
