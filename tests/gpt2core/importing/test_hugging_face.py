"""Directories and cached models as transformers writes them, of today and of years ago."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from gpt2core.errors import UserError
from gpt2core.importing import import_model
from gpt2core.importing.hub import fetch_from_hub
from gpt2core.model import GPT
from gpt2core.tokenizer import Tokenizer
from tests.support.foreign_models import spread

IDS = torch.randint(50257, (2, 24), generator=torch.Generator().manual_seed(1))
SIZES = {"vocab_size": 50257, "n_positions": 24, "n_layer": 2, "n_head": 4, "n_embd": 32}


@pytest.fixture(scope="module")
def reference() -> GPT2LMHeadModel:
    return spread(GPT2LMHeadModel(GPT2Config(**SIZES)))


@pytest.fixture
def directory(reference: GPT2LMHeadModel, tmp_path: Path) -> Path:
    reference.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def assert_same(directory: Path, reference: GPT2LMHeadModel) -> tuple[str, ...]:
    imported = import_model(directory)
    assert imported.layout.startswith("a Hugging Face directory")
    with torch.no_grad():
        expected = reference(IDS).logits[..., :50257]
        torch.testing.assert_close(imported.model(IDS), expected, atol=1e-5, rtol=0)
    return imported.notes


def test_a_directory_of_today(directory: Path, reference: GPT2LMHeadModel) -> None:
    assert "n_head 4: from config.json" in assert_same(directory, reference)


def test_shards_with_an_index(reference: GPT2LMHeadModel, tmp_path: Path) -> None:
    reference.save_pretrained(tmp_path, max_shard_size="1MB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert_same(tmp_path, reference)
    shard = next(tmp_path.glob("model-00001-*"))
    shard.unlink()
    with pytest.raises(UserError, match="model-00001.* is missing"):
        import_model(tmp_path)


def test_of_two_saves_in_one_folder_the_one_that_transformers_reads(
    reference: GPT2LMHeadModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = GPT2LMHeadModel(reference.config)
    older.save_pretrained(tmp_path, max_shard_size="1MB")
    shards = {file.name: file.read_bytes() for file in tmp_path.glob("model*")}
    reference.save_pretrained(tmp_path)  # it removes what the first left, other programs do not
    for name, content in shards.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "pytorch_model.bin").write_bytes(b"older still")
    expected = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(GPT.from_pretrained(tmp_path)(IDS), expected(IDS).logits, atol=1e-5, rtol=0)
    assert "model.safetensors.index.json is passed over" in caplog.text
    notes = assert_same(tmp_path, expected)
    assert "passed over, as transformers does: model.safetensors.index.json, pytorch_model.bin" in notes


@pytest.mark.parametrize("kept", ["lm_head.weight", "transformer.wte.weight"])
def test_a_tied_model_may_keep_either_name_of_its_shared_matrix(
    kept: str, directory: Path, reference: GPT2LMHeadModel
) -> None:
    file = directory / "model.safetensors"
    save_model(reference, file)  # keeps one of the two names
    state = load_file(file)
    (shared,) = {"lm_head.weight", "transformer.wte.weight"} & state.keys()
    state[kept] = state.pop(shared)
    save_file(state, file, metadata={"format": "pt"})
    assert_same(directory, reference)
    with torch.no_grad():
        torch.testing.assert_close(GPT.from_pretrained(directory)(IDS), reference(IDS).logits, atol=1e-5, rtol=0)


def test_pytorch_model_bin_with_old_buffers_and_without_the_prefix(directory: Path, reference: GPT2LMHeadModel) -> None:
    state = {name.removeprefix("transformer."): tensor for name, tensor in reference.state_dict().items()}
    causal = torch.ones(1, 1, 24, 24, dtype=torch.uint8).tril()
    state |= {"h.0.attn.bias": causal, "h.1.attn.bias": causal, "h.0.attn.masked_bias": torch.tensor(-1e4)}
    (directory / "model.safetensors").unlink()
    torch.save(state, directory / "pytorch_model.bin")
    assert "3 buffers (causal masks and the like) are not needed" in assert_same(directory, reference)


def test_sharded_pytorch_model_bin(directory: Path, reference: GPT2LMHeadModel) -> None:
    (directory / "model.safetensors").unlink()
    names = sorted(reference.state_dict())
    weight_map = {name: f"pytorch_model-0000{1 + index % 2}-of-00002.bin" for index, name in enumerate(names)}
    for file in set(weight_map.values()):
        torch.save({n: reference.state_dict()[n] for n in names if weight_map[n] == file}, directory / file)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_same(directory, reference)


def test_a_model_without_a_head(reference: GPT2LMHeadModel, tmp_path: Path) -> None:
    bare = GPT2Model(reference.config)
    bare.load_state_dict(reference.transformer.state_dict())
    bare.save_pretrained(tmp_path)
    assert_same(tmp_path, reference)


@pytest.mark.parametrize(
    "options",
    [
        {"vocab_size": 50304},
        {"tie_word_embeddings": False},
        {"activation_function": "gelu", "layer_norm_epsilon": 1e-3},
        {"n_inner": 50},
    ],
)
def test_variants_that_gpt2_may_have(options: dict, tmp_path: Path) -> None:
    model = spread(GPT2LMHeadModel(GPT2Config(**{**SIZES, **options})))
    model.save_pretrained(tmp_path)
    assert_same(tmp_path, model)


def test_half_precision(reference: GPT2LMHeadModel, tmp_path: Path) -> None:
    half = GPT2LMHeadModel(reference.config).eval()
    half.load_state_dict(reference.state_dict())
    half.half().save_pretrained(tmp_path)
    assert_same(tmp_path, half.float())


def test_a_head_that_differs_though_config_json_calls_it_tied_is_read_as_transformers_reads_it(directory: Path) -> None:
    state = load_file(directory / "model.safetensors")
    save_file({**state, "lm_head.weight": torch.randn(50257, 32)}, directory / "model.safetensors", {"format": "pt"})
    theirs = GPT2LMHeadModel.from_pretrained(directory).eval()
    assert any("though config.json says tied" in note for note in assert_same(directory, theirs))


def test_another_tokenizer_is_refused_and_added_tokens_are_named(directory: Path, reference: GPT2LMHeadModel) -> None:
    Tokenizer().save(directory)
    assert_same(directory, reference)
    (directory / "added_tokens.json").write_text('{"[PAD]": 50257}')
    assert any("not taken over: [PAD]" in note for note in assert_same(directory, reference))
    vocabulary = json.loads((directory / "vocab.json").read_text())
    words = list(vocabulary)
    swapped = {**vocabulary, words[300]: 301, words[301]: 300}
    (directory / "vocab.json").write_text(json.dumps(swapped))
    with pytest.raises(UserError, match="its tokenizer is not GPT-2's"):
        import_model(directory)


def test_another_architecture_is_refused(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(UserError, match="model_type is 'llama'"):
        import_model(directory)


def test_a_link_out_of_the_directory_is_not_followed(directory: Path, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere.safetensors"
    shutil.move(directory / "model.safetensors", outside)
    (directory / "model.safetensors").symlink_to(outside)
    with pytest.raises(UserError, match="leads out of"):
        import_model(directory)


def test_an_adapter_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="LoRA adapter.*merge_and_unload"):
        import_model(tmp_path)


def test_a_name_of_the_hub_comes_from_the_cache(
    reference: GPT2LMHeadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    repository = tmp_path / "models--somebody--tiny-gpt2"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    reference.save_pretrained(repository / "blobs")
    snapshot.mkdir(parents=True)
    for blob in (repository / "blobs").iterdir():  # as the hub's client keeps them
        (snapshot / blob.name).symlink_to(Path("../../blobs") / blob.name)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = fetch_from_hub("somebody/tiny-gpt2")
    assert found == snapshot
    assert_same(found, reference)
    with pytest.raises(UserError, match="cannot be reached .*hf download somebody/other"):
        fetch_from_hub("somebody/other")


@pytest.mark.parametrize("tokens", [1, [1], {"a": 1}, [{"content": 1}], [{"id": "x"}], [None]])
def test_added_tokens_of_another_form_are_no_reason_to_fail(
    directory: Path, reference: GPT2LMHeadModel, tokens: object
) -> None:
    content = {"model": {"vocab": Tokenizer().vocabulary()}, "added_tokens": tokens}
    (directory / "tokenizer.json").write_text(json.dumps(content))
    assert_same(directory, reference)
