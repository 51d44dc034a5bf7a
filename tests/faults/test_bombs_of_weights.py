"""Small files of weights that claim much: refused with bounded memory, in bounded time, before a model is built."""

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gpt2core.errors import UserError
from gpt2core.importing import import_model
from gpt2core.importing.parts import is_buffer, sort_parts
from gpt2core.importing.readers import read_source
from gpt2core.importing.source import Source
from gpt2core.importing.torch_file import read_torch_file
from gpt2core.model import GPT

WIDTH = 16


def table() -> dict[str, torch.Tensor]:
    """Of a GPT-2 without layers."""
    return {
        "wte.weight": torch.zeros(50257, WIDTH),
        "wpe.weight": torch.zeros(8, WIDTH),
        "ln_f.weight": torch.ones(WIDTH),
        "ln_f.bias": torch.ones(WIDTH),
    }


def layer() -> dict[str, torch.Tensor]:
    wide = {"attn.c_attn": 3 * WIDTH, "attn.c_proj": WIDTH, "mlp.c_fc": 4 * WIDTH}
    matrices = {f"{name}.weight": torch.zeros(WIDTH, columns) for name, columns in wide.items()}
    norms = {f"{name}.weight": torch.ones(WIDTH) for name in ("ln_1", "ln_2")}
    return {**matrices, "mlp.c_proj.weight": torch.zeros(4 * WIDTH, WIDTH), **norms}


def layers(count: int, tensors_of: Callable[[int], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {f"h.{number}.{name}": tensor for number in range(count) for name, tensor in tensors_of(number).items()}


def test_layers_that_share_their_tensors_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GPT, "__init__", _never)
    one = layer()
    torch.save({**table(), **layers(1000, lambda _: one)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"describes .* parameters in 1,000 layers, and there are"):
        import_model(tmp_path / "a.pt")


def test_layers_without_a_number_are_no_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GPT, "__init__", _never)
    whole, empty = layer(), {name: torch.zeros(0) for name in layer()}
    torch.save({**table(), **layers(1000, lambda number: empty if number else whole)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"describes .* parameters in 1,000 layers, and there are"):
        import_model(tmp_path / "a.pt")


def test_positions_without_a_number_are_no_positions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GPT, "__init__", _never)
    torch.save({**table(), "wpe.weight": torch.zeros(2**24, 0), **layers(1, lambda _: layer())}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="parameters in 1 layers, and there are"):
        import_model(tmp_path / "a.pt")


def test_a_config_of_many_tiny_layers_is_refused_before_they_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GPT, "__init__", _never)
    save_file({"transformer.wte.weight": torch.zeros(16, 1)}, tmp_path / "model.safetensors")
    sizes = {"vocab_size": 16, "n_positions": 8, "n_layer": 39_000, "n_head": 1, "n_embd": 1}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", **sizes}))
    with pytest.raises(UserError, match=r"another architecture: config.json describes .* in 39,000 layers"):
        GPT.from_pretrained(tmp_path)


def _never(*_: object) -> None:
    raise AssertionError("a model was built")


def test_a_mask_that_many_names_share_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    monkeypatch.setattr("gpt2core.importing.parts.is_buffer", lambda tensor: looked.append(1) or is_buffer(tensor))
    mask = torch.ones(8, 8).tril()
    sort_parts(Source("a", {**table(), **layers(1, lambda _: layer()), **{f"m{n}": mask for n in range(1000)}}))
    assert len(looked) == 1


def test_a_dictionary_that_stands_in_a_file_a_billion_times_is_walked_once(tmp_path: Path) -> None:
    tree: dict[str, object] = {"state": {**table(), **layers(1, lambda _: layer())}}
    for _ in range(2):
        tree = {f"key{number}": tree for number in range(2000)}
    torch.save(tree, tmp_path / "a.pt")
    assert len(read_source(tmp_path / "a.pt").tensors) == len(table()) + len(layer())


def text(value: bytes) -> bytes:
    """A text in a pickle."""
    return b"X" + struct.pack("<I", len(value)) + value


def growing_pickles() -> dict[str, bytes]:
    encode = b"c_codecs\nencode\n"
    doubled = encode + text(b"a" * 1024) + text(b"latin1") + b"\x86R"
    for _ in range(22):
        doubled = encode + doubled + text(b"hex") + b"\x86R"
    count = (7 * 2**30).to_bytes(5, "little")
    return {"a size": b"cbuiltins\nbytearray\n\x8a\x05" + count + b"\x85R", "bytes doubled 22 times": doubled}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", growing_pickles())
def test_a_pickle_that_asks_for_gigabytes_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, zipped: bool
) -> None:
    monkeypatch.setattr(torch, "load", _never)
    body = growing_pickles()[kind] + b"."
    path = tmp_path / "a.pt"
    if zipped:
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("archive/data.pkl", b"\x80\x02" + body)
            file.writestr("archive/version", "3\n")
        path.write_bytes(archive.getvalue())
    else:
        torch.save({"a": 1}, path, _use_new_zipfile_serialization=False)
        head = path.read_bytes().partition(b"}q\x00X\x01\x00\x00\x00aq")[0]
        path.write_bytes(head + body)
    with pytest.raises(UserError, match="asks for .*, which weights never do"):
        read_source(path)


def test_an_archive_whose_pickle_cannot_be_opened_is_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({**table(), **layers(1, lambda _: layer())}, path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"PK\x03\x04", b"PK\x03\x05"))  # the head of each entry
    with pytest.raises(UserError, match="a.pt is damaged"):
        read_torch_file(path)
