"""TensorFlow checkpoints of GPT-2 (openai/gpt-2, gpt-2-simple), read without TensorFlow.

`PREFIX.index` is a LevelDB table from names to protocol buffers that say where in `PREFIX.data-*` a tensor lies:
tensorflow/core/util/tensor_bundle/tensor_bundle.h, tensorflow/core/protobuf/tensor_bundle.proto, leveldb
doc/table_format.md.
"""

import glob
import math
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from gpt2core.errors import UserError
from gpt2core.storage.bounds import Budget, read_whole
from gpt2core.storage.files import inside

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
# A checkpoint of the largest GPT-2 has 2,000 names, with an optimizer's, of some 60 bytes.
_MOST_NAME_BYTES = 16 * 2**20
_MOST_DIMENSIONS = 8
# DataType of tensorflow/core/framework/types.proto
_DTYPES = {1: torch.float32, 2: torch.float64, 14: torch.bfloat16, 19: torch.float16}
_LEAF = {"w": "weight", "g": "weight", "b": "bias"}


def find_tf_checkpoint(directory: Path) -> Path | None:
    """The prefix of the newest checkpoint in a directory, None where there is none."""
    indexes = sorted(directory.glob("*.index"), key=lambda file: [int(n) for n in re.findall(r"\d+", file.name)])
    return indexes[-1].with_suffix("") if indexes else None


def read_tf_checkpoint(prefix: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under GPT-2's names, matrices (in, out), and notes. Raises UserError when damaged or not GPT-2."""
    index = prefix.with_name(prefix.name + ".index")
    try:
        names = Budget(index, _MOST_NAME_BYTES, "bytes of names")
        entries = dict(_table(read_whole(inside(index, prefix.parent)), names))
        num_shards = _fields(entries.pop(b""))[0].get(1, 1)
        shards = prefix.parent.glob(f"{glob.escape(prefix.name)}.data-*")
        files = {
            (status.st_dev, status.st_ino): status.st_size for status in map(Path.stat, filter(Path.is_file, shards))
        }
        content = Budget(index, sum(files.values()), "bytes of tensors")  # a file with many names counts once
        tensors: dict[str, Tensor] = {}
        skipped = 0
        for key, value in entries.items():
            name = _gpt2_name(key.decode())
            if name is None:
                skipped += 1
            else:
                tensors[name] = _read_tensor(prefix, value, num_shards, content)
    except (ValueError, IndexError, KeyError, TypeError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{index} is damaged or no checkpoint of TensorFlow ({type(error).__name__}).") from None
    if not tensors:
        raise UserError(f"{index} holds no GPT-2: none of its {skipped} tensors is named model/....")
    return tensors, [f"{skipped} tensors of the optimizer and counters left out"] if skipped else []


def _gpt2_name(key: str) -> str | None:
    """`h.0.attn.c_attn.weight` for `model/h0/attn/c_attn/w`; None for an optimizer's tensors."""
    match = re.fullmatch(r"model/(?:h(\d+)/)?([\w/]+)", key)
    if match is None or "Adam" in key or "Momentum" in key:
        return None
    path = match[2].split("/")
    path[-1] = _LEAF.get(path[-1], path[-1])
    if path in (["wte"], ["wpe"]):
        path.append("weight")
    return ".".join(([f"h.{match[1]}"] if match[1] else []) + path)


def _read_tensor(prefix: Path, entry: bytes, num_shards: int, budget: Budget) -> Tensor:
    """The tensor that a BundleEntryProto describes; leading dimensions of 1 are dropped. No byte belongs to two."""
    found, messages = _fields(entry)
    shape = [_fields(dim)[0].get(1, 0) for dim in _fields(b"".join(messages.get(2, [])))[1].get(2, [])]
    dtype = _DTYPES[found[1]]
    shard = prefix.with_name(f"{prefix.name}.data-{found.get(3, 0):05d}-of-{num_shards:05d}")
    size = found.get(5, 0)
    if len(shape) > _MOST_DIMENSIONS or size != math.prod(shape) * dtype.itemsize:
        raise ValueError
    if not inside(shard, prefix.parent).is_file():
        raise UserError(f"{shard} is missing; copy the whole checkpoint.")
    budget.take(min(size, shard.stat().st_size))
    with shard.open("rb") as handle:
        handle.seek(found.get(4, 0))
        content = handle.read(min(size, shard.stat().st_size))
    if len(content) != size:
        raise UserError(f"{shard} is cut off; copy it again.")
    tensor = torch.frombuffer(bytearray(content), dtype=dtype).view(shape)
    while tensor.ndim > 2 and tensor.shape[0] == 1:
        tensor = tensor[0]
    return tensor


def _table(content: bytes, budget: Budget) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a LevelDB table; `budget` is of their bytes, for a block or a name may stand for many."""
    footer = content[-_FOOTER_BYTES:]
    if len(footer) < _FOOTER_BYTES or int.from_bytes(footer[-8:], "little") != _MAGIC:
        raise ValueError
    _, place = _varint(footer, 0)
    _, place = _varint(footer, place)
    for _, handle in _block(content, footer[place:], budget):
        yield from _block(content, handle, budget)


def _block(content: bytes, handle: bytes, budget: Budget) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of the block at `handle`, an offset and a size; keys share prefixes with the one before."""
    offset, place = _varint(handle, 0)
    size, _ = _varint(handle, place)
    block = content[offset : offset + size]
    if len(block) != size or content[offset + size] != 0:  # 0: not compressed
        raise ValueError
    end = size - 4 * (1 + int.from_bytes(block[-4:], "little"))
    place, key = 0, b""
    while place < end:
        shared, place = _varint(block, place)
        own, place = _varint(block, place)
        length, place = _varint(block, place)
        budget.take(shared + own + length)
        key = key[:shared] + block[place : place + own]
        yield key, block[place + own : place + own + length]
        place += own + length


def _fields(message: bytes) -> tuple[dict[int, int], dict[int, list[bytes]]]:
    """The numbers and the byte strings of a protocol buffer, by the number of their field."""
    numbers: dict[int, int] = {}
    strings: dict[int, list[bytes]] = {}
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind = tag & 7
        if kind == 0:
            numbers[tag >> 3], place = _varint(message, place)
            continue
        length = {1: 8, 5: 4}.get(kind)
        if length is None:
            if kind != 2:
                raise ValueError
            length, place = _varint(message, place)
        if place + length > len(message):
            raise ValueError
        strings.setdefault(tag >> 3, []).append(message[place : place + length])
        place += length
    return numbers, strings


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, and the place after it."""
    value = shift = 0
    while True:
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, place
        if shift > 63:
            raise ValueError
