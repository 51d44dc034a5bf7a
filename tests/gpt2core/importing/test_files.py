"""Files that are not what they seem, damaged or dangerous: one clear line, and nothing of theirs is ever run."""

import argparse
import json
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gpt2core.config import GPTConfig
from gpt2core.errors import UserError
from gpt2core.importing import import_model
from gpt2core.model import GPT
from tests.support.command import run_here
from tests.support.foreign_models import (
    BLOCK,
    HEADS,
    LAYERS,
    VOCAB,
    WIDTH,
    HandMadeGPT,
    NanoGPT,
    assert_same_logits,
    saved,
    spread,
)


@pytest.fixture(scope="module")
def nano() -> NanoGPT:
    return spread(NanoGPT())


@pytest.fixture(scope="module")
def checkpoint(nano: NanoGPT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(nano.checkpoint(), tmp_path_factory.mktemp("nano"), "ckpt.pt")


def assert_refused(path: Path, message: str, **options: Any) -> None:
    with pytest.raises(UserError, match=message) as caught:
        import_model(path, **options)
    assert "\n" not in str(caught.value)


class Payload:
    """Unpickling it would run a command that leaves a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(nano: NanoGPT, zipped: bool, tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    value = {"model": nano.state_dict(), "payload": Payload(proof)}
    torch.save(value, tmp_path / "evil.pt", _use_new_zipfile_serialization=zipped)
    assert_refused(tmp_path / "evil.pt", r"asks for code to be run \(posix.system\) and is not read")
    assert not proof.exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)  # the payload is a real one
    assert proof.exists()


def test_a_payload_named_like_a_settings_class_is_not_imported(nano: NanoGPT, tmp_path: Path, monkeypatch) -> None:
    module: Any = types.ModuleType("innocent")
    calls: list[str] = []

    class EvilConfig:
        def __setstate__(self, state: Any) -> None:
            calls.append("ran")

    EvilConfig.__module__, EvilConfig.__qualname__ = "innocent", "EvilConfig"
    module.EvilConfig = EvilConfig
    monkeypatch.setitem(sys.modules, "innocent", module)
    value = EvilConfig()
    value.n_head = HEADS  # type: ignore[attr-defined]
    path = saved({"model": nano.state_dict(), "config": value}, tmp_path)
    imported = import_model(path)  # the settings are read, by a class that does nothing
    assert imported.model.config.n_head == HEADS
    assert calls == []


def test_settings_stored_as_objects_tell_the_sizes(nano: NanoGPT, tmp_path: Path) -> None:
    value = {"model": nano.state_dict(), "args": argparse.Namespace(n_head=HEADS), "loss": np.float64(0.0941)}
    value["rng"] = np.random.get_state()[1]
    imported = import_model(saved(value, tmp_path, "gpt2_finetuned_best_loss_0.0941.pt"), activation="gelu")
    assert "n_head 4: from args" in imported.notes
    assert_same_logits(imported.model, nano)


def test_where_only_one_number_of_heads_can_be_tried_it_has_to_be_given(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(GPT(GPTConfig(50257, 16, n_layer=1, n_head=2, n_embd=8)).state_dict(), tmp_path / "weights.pt")
    assert_refused(tmp_path / "weights.pt", "the number of heads is not in the file.*give --n-head")
    assert import_model(tmp_path / "weights.pt", n_head=2).model.config.n_head == 2


def test_a_whole_pickled_module_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = saved(HandMadeGPT(), tmp_path)
    assert_refused(path, r"is a whole pickled model .*run `torch.save\(model.state_dict\(\)")


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(pickle.dumps({"model": Payload(tmp_path / "ran")}))
    assert_refused(tmp_path / "weights.pt", "damaged|asks for code")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kept", [0.001, 0.5, 0.99])
def test_a_cut_off_file_is_called_so(checkpoint: Path, kept: float, tmp_path: Path) -> None:
    content = checkpoint.read_bytes()
    (tmp_path / "ckpt.pt").write_bytes(content[: int(len(content) * kept)])
    assert_refused(tmp_path / "ckpt.pt", "damaged, cut off")


def test_a_compressed_archive_is_not_unpacked(checkpoint: Path, tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(checkpoint) as source,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert_refused(tmp_path / "bomb.pt", "compressed data")


def test_a_tensor_that_claims_more_than_is_stored_is_refused(nano: NanoGPT, tmp_path: Path) -> None:
    state = {**nano.state_dict(), "transformer.wpe.weight": torch.zeros(1).expand(10**7, WIDTH)}
    assert_refused(saved(state, tmp_path), "more than is stored")


def test_a_missing_layer_is_named(nano: NanoGPT, tmp_path: Path) -> None:
    state = {name.replace("h.1.", "h.5."): tensor for name, tensor in nano.state_dict().items()}
    assert_refused(saved(state, tmp_path), "layer 1 of 0 to 5 is missing")


def test_fewer_layers_than_the_settings_say_are_noticed(nano: NanoGPT, tmp_path: Path) -> None:
    value = nano.checkpoint()
    value["model"] = {name: tensor for name, tensor in value["model"].items() if ".h.1." not in name}
    assert_refused(saved(value, tmp_path), "n_layer is 1 by the tensors, but 2 by model_args")


def test_a_missing_tensor_is_named(nano: NanoGPT, tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in nano.state_dict().items() if "h.1.mlp.c_fc" not in name}
    assert_refused(saved(state, tmp_path), r"without h\.1\.mlp\.fc\.weight, h\.1\.mlp\.fc\.bias: the file is not whole")


def test_a_tensor_of_no_known_place_is_named_with_its_shape(nano: NanoGPT, tmp_path: Path) -> None:
    state = {**nano.state_dict(), "transformer.h.0.attn.rotary.weight": torch.ones(3, 5)}
    assert_refused(saved(state, tmp_path), r"but not transformer\.h\.0\.attn\.rotary\.weight \(3, 5\)")


def test_a_mask_is_dropped_only_if_it_is_the_causal_one(nano: NanoGPT, tmp_path: Path) -> None:
    causal = torch.ones(BLOCK, BLOCK).tril().view(1, 1, BLOCK, BLOCK)
    buffers = {f"transformer.h.{i}.attn.bias": causal for i in range(LAYERS)}
    buffers["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    imported = import_model(saved({**nano.state_dict(), **buffers}, tmp_path), n_head=HEADS, activation="gelu")
    assert_same_logits(imported.model, nano)
    local = {"transformer.h.0.attn.bias": causal.triu(-3)}  # GPT-Neo's local attention
    assert_refused(saved({**nano.state_dict(), **local}, tmp_path, "neo.pth"), "but not transformer.h.0.attn.bias")


def test_heads_that_do_not_divide_the_width_are_refused(nano: NanoGPT, tmp_path: Path) -> None:
    assert_refused(
        saved(nano.state_dict(), tmp_path), r"n_head \(3\) does not divide n_embd \(32\).*one of 1, 2, 4", n_head=3
    )


def test_heads_that_contradict_the_file_are_refused(checkpoint: Path) -> None:
    assert_refused(checkpoint, "--n-head is 2, but model_args of the file says 4", n_head=2)


def test_a_character_level_model_is_refused_without_touching_its_pickle(tmp_path: Path) -> None:
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    path = saved(spread(NanoGPT(vocab=65)).checkpoint(), tmp_path, "ckpt.pt")
    assert_refused(path, "the vocabulary has 65 tokens, GPT-2's has 50,257.*meta.pkl")
    assert not (tmp_path / "ran").exists()


def test_diverged_weights_are_named(nano: NanoGPT, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in nano.state_dict().items()}
    state["transformer.h.1.ln_2.bias"][3] = float("nan")
    assert_refused(saved(state, tmp_path), "transformer.h.1.ln_2.bias holds NaN")


def test_quantised_weights_are_refused(nano: NanoGPT, tmp_path: Path) -> None:
    state = {**nano.state_dict(), "transformer.h.0.mlp.c_fc.weight": torch.ones(128, 32, dtype=torch.int8)}
    assert_refused(saved(state, tmp_path), "torch.int8.*must be fp16, bf16, fp32 or fp64")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF\x03\0\0\0", "GGUF file"),
        (b"hello, world, this is text", "no file of weights"),
        (b"", "no file of weights"),
    ],
)
def test_files_that_are_no_weights_are_called_so(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "file.dat").write_bytes(content)
    assert_refused(tmp_path / "file.dat", message)


def test_a_folder_with_several_files_asks_which(nano: NanoGPT, tmp_path: Path) -> None:
    saved({"a": 1}, tmp_path, "a.pt")
    assert_refused(tmp_path / "nothing", "no such file or folder")
    saved({"a": 1}, tmp_path, "b.pt")
    assert_refused(tmp_path, "2 files of weights; name one: a.pt, b.pt")
    assert_refused(tmp_path / "a.pt", "holds no state dict")


def test_safetensors_of_a_hand_made_model(tmp_path: Path) -> None:
    reference = spread(HandMadeGPT())
    state = {name: tensor for name, tensor in reference.state_dict().items() if name != "head.weight"}
    save_file(state, tmp_path / "model.safetensors")
    imported = import_model(tmp_path, n_head=HEADS)
    assert_same_logits(imported.model, reference)
    assert "head: none in the file, so tied to the token embedding" in imported.notes
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-100])
    assert_refused(tmp_path, "damaged or no safetensors")


def write_llmc(model: NanoGPT, path: Path, dtype: str = "<f4", version: int = 3) -> None:
    """As llm.c's train_gpt2.py does: a header, then each kind of tensor with all layers after another."""
    header = np.zeros(256, dtype="<i4")
    header[:8] = (20240326, version, BLOCK, VOCAB, LAYERS, HEADS, WIDTH, VOCAB + 47)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    kinds = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    stems = [f"transformer.h.{{}}.{kind}.{leaf}" for kind in kinds for leaf in ("weight", "bias")]
    wte = torch.cat([state["transformer.wte.weight"], torch.zeros(47, WIDTH)])
    tensors = [wte, state["transformer.wpe.weight"]]
    tensors += [state[stem.format(layer)] for stem in stems for layer in range(LAYERS)]
    tensors += [state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]]
    with path.open("wb") as handle:
        handle.write(header.tobytes())
        for tensor in tensors:
            handle.write(tensor.numpy().astype(dtype).tobytes())


def test_llm_c(nano: NanoGPT, tmp_path: Path) -> None:
    write_llmc(nano, tmp_path / "gpt2_tiny.bin")
    imported = import_model(tmp_path / "gpt2_tiny.bin", activation="gelu")
    assert_same_logits(imported.model, nano)
    assert imported.model.config.n_head == HEADS
    content = (tmp_path / "gpt2_tiny.bin").read_bytes()
    (tmp_path / "cut.bin").write_bytes(content[:-4])
    assert_refused(tmp_path / "cut.bin", "bytes, its header says")
    (tmp_path / "old.bin").write_bytes(np.array([20240326, 1] + 254 * [0], dtype="<i4").tobytes())
    assert_refused(tmp_path / "old.bin", "llm.c file of version 1")


@pytest.mark.slow
def test_the_command_writes_what_generate_loads(
    checkpoint: Path, offline: None, tmp_path: Path, monkeypatch, capsys
) -> None:
    def gpt2(*words: str) -> tuple[int, str, str]:
        result = run_here(capsys, monkeypatch, *words)
        return result.code, result.out, result.err

    output = tmp_path / "mine"
    code, out, _ = gpt2("import", str(checkpoint), "--output-dir", str(output))
    assert code == 0
    assert "found      a nanoGPT checkpoint" in out
    assert "warning    no better than guessing" in out
    assert gpt2("generate", "--model", str(output), "--prompt", "To", "--max-new-tokens", "2")[0] == 0
    assert json.loads((output / "import.json").read_text())["source"] == "ckpt.pt"
    code, _, err = gpt2("import", str(checkpoint), "--output-dir", str(output))
    assert code == 1
    assert "exists and is not empty" in err
    code, out, _ = gpt2("import", str(checkpoint), "--output-dir", str(tmp_path / "again"), "--json")
    assert json.loads(out)["config"]["n_head"] == HEADS
    for source in ("missing.pt", "no/such-model"):
        code, out, err = gpt2("import", source, "--output-dir", str(tmp_path / "none"))
        assert (code, out, len(err.splitlines())) == (1, "", 1)
        assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["mask", "transformer.h.0.attn.c_attn.weight"])
@pytest.mark.parametrize("kind", ["ids", "mask", "sparse", "meta"])
def test_a_tensor_that_claims_more_than_is_stored_costs_no_memory(
    nano: NanoGPT, tmp_path: Path, name: str, kind: str
) -> None:
    tensor = {
        "ids": torch.zeros(1, dtype=torch.int8).expand(2**42),
        "mask": torch.zeros(1).expand(2**20, 2**20),
        "sparse": torch.zeros(3, 3).to_sparse(),
        "meta": torch.zeros(3, 3, device="meta"),
    }[kind]
    path = saved({"model": {**nano.state_dict(), name: tensor}}, tmp_path)
    with pytest.raises(UserError) as caught:
        import_model(path)
    assert len(str(caught.value).splitlines()) == 1


def test_an_archive_with_a_name_in_no_encoding_is_damaged(checkpoint: Path, tmp_path: Path) -> None:
    content = checkpoint.read_bytes()
    at = content.rindex(b"PK\x01\x02")  # the last entry of the directory at the end
    broken = bytearray(content)
    broken[at + 8 : at + 10] = (0x800).to_bytes(2, "little")  # "the name is UTF-8"
    broken[at + 46] = 0xA3
    (tmp_path / "a.pt").write_bytes(broken)
    assert_refused(tmp_path / "a.pt", "is damaged")


def test_an_archive_that_speaks_of_further_disks_is_damaged(checkpoint: Path, tmp_path: Path) -> None:
    content = checkpoint.read_bytes()
    at = content.rindex(b"PK\x05\x06")
    # A locator of a larger directory right before the end, on disk 7 of 9.
    locator = b"PK\x06\x07" + (7).to_bytes(4, "little") + (0).to_bytes(8, "little") + (9).to_bytes(4, "little")
    (tmp_path / "a.pt").write_bytes(content[:at] + locator + content[at:])
    assert_refused(tmp_path / "a.pt", "is damaged")
