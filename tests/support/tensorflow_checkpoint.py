"""Writes a checkpoint as TensorFlow does (gpt-2-simple, openai/gpt-2), byte by byte, without TensorFlow."""

import struct
from pathlib import Path

import torch

from tests.support.foreign_models import WIDTH, NanoGPT


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """A protocol buffer."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    """A block of a LevelDB table: keys share their beginning with the one before, but for every 16th."""
    out, restarts, before = b"", [], b""
    for index, (key, value) in enumerate(entries):
        shared = 0
        if index % 16 == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return out + b"".join(struct.pack("<I", place) for place in [*restarts, len(restarts)])


def write_checkpoint(tensors: dict[str, torch.Tensor], folder: Path, prefix: str = "model-1000") -> None:
    data, entries = b"", [(b"", message((1, 1)))]
    for name in sorted(tensors):
        content = tensors[name].numpy().tobytes()
        shape = b"".join(message((2, message((1, size)))) for size in tensors[name].shape)
        # The checksum is a fixed32, wire type 5.
        entry = message((1, 1), (2, shape), (4, len(data)), (5, len(content))) + varint(6 << 3 | 5) + b"\1\2\3\4"
        entries.append((name.encode(), entry))
        data += content
    table, index = b"", []
    for start in range(0, len(entries), 20):
        part = block(entries[start : start + 20])
        index.append((entries[start : start + 20][-1][0], varint(len(table)) + varint(len(part))))
        table += part + b"\0\0\0\0\0"  # not compressed, and a checksum
    handles = b""
    for part in (block([]), block(index)):
        handles += varint(len(table)) + varint(len(part))
        table += part + b"\0\0\0\0\0"
    footer = handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    (folder / f"{prefix}.index").write_bytes(table + footer)
    (folder / f"{prefix}.data-00000-of-00001").write_bytes(data)


def write_table(file: Path, parts: list[bytes], repeats: int = 1) -> None:
    """A LevelDB table of these blocks, each in the index `repeats` times."""
    table, handles = b"", []
    for part in parts:
        handles += [(b"%08d" % n, varint(len(table)) + varint(len(part))) for n in range(repeats)]
        table += part + b"\0\0\0\0\0"
    footer = b""
    for part in (block([]), block(handles)):
        footer += varint(len(table)) + varint(len(part))
        table += part + b"\0\0\0\0\0"
    file.write_bytes(table + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57))


def as_tensorflow(model: NanoGPT) -> dict[str, torch.Tensor]:
    """OpenAI's names; matrices are convolutions of width 1, (1, in, out)."""
    tensors = {"model/wte": model.transformer["wte"].weight, "model/wpe": model.transformer["wpe"].weight}
    for name, tensor in model.state_dict().items():
        parts = name.removeprefix("transformer.").split(".")
        if parts[0] == "h":
            leaf = "b" if parts[-1] == "bias" else "g" if parts[2].startswith("ln") else "w"
            tensors["/".join(["model", f"h{parts[1]}", *parts[2:-1], leaf])] = (
                tensor.t()[None] if leaf == "w" else tensor
            )
        elif parts[0] == "ln_f":
            tensors[f"model/ln_f/{'g' if parts[1] == 'weight' else 'b'}"] = tensor
    tensors["model/h0/attn/c_attn/w/Adam"] = torch.zeros(1, WIDTH, 3 * WIDTH)
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
