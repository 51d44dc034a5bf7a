"""The model is GPT-2: parity with transformers, causality, caching, initialisation."""

import json
import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2core.config import PRESETS, GPTConfig
from gpt2core.decoding import PackedGPT
from gpt2core.errors import UserError
from gpt2core.model import GPT

TINY = GPTConfig(vocab_size=97, block_size=24, n_layer=2, n_head=3, n_embd=24, drop_rate=0.0)
RANDOM_CONFIGS = [
    {"vocab_size": 101, "n_positions": 16, "n_layer": 1, "n_head": 1, "n_embd": 8, "n_inner": None},
    {"vocab_size": 257, "n_positions": 40, "n_layer": 3, "n_head": 4, "n_embd": 32, "n_inner": 50},
    {
        "vocab_size": 50,
        "n_positions": 64,
        "n_layer": 2,
        "n_head": 6,
        "n_embd": 48,
        "n_inner": 192,
        "layer_norm_epsilon": 1e-3,
    },
]


def random_ids(batch: int, length: int, vocab_size: int) -> torch.Tensor:
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("preset", "count"),
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_released_sizes_have_their_published_parameter_counts(preset: str, count: int) -> None:
    with torch.device("meta"):
        assert GPT(GPTConfig.from_preset(preset)).num_parameters() == count


def test_tinystories_preset_is_the_published_shape() -> None:
    config = PRESETS["tinystories"]
    assert (config.n_layer, config.n_head, config.n_embd, config.feed_forward_width, config.block_size) == (
        6,
        8,
        512,
        2048,
        256,
    )


@pytest.mark.parametrize("sizes", RANDOM_CONFIGS)
def test_logits_equal_transformers_after_loading_its_directory(sizes, tmp_path) -> None:
    torch.manual_seed(0)
    reference = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
    for parameter in reference.parameters():  # biases and norms too must matter
        torch.nn.init.normal_(parameter, std=0.3)
    reference.save_pretrained(tmp_path)
    ids = random_ids(3, sizes["n_positions"], sizes["vocab_size"])
    with torch.no_grad():
        torch.testing.assert_close(GPT.from_pretrained(tmp_path)(ids), reference(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("sizes", RANDOM_CONFIGS)
def test_transformers_loads_what_we_save_and_gives_equal_logits(sizes, qkv_bias, tmp_path) -> None:
    torch.manual_seed(0)
    config = GPTConfig(
        sizes["vocab_size"],
        sizes["n_positions"],
        sizes["n_layer"],
        sizes["n_head"],
        sizes["n_embd"],
        sizes["n_inner"],
        qkv_bias=qkv_bias,
        layer_norm_epsilon=sizes.get("layer_norm_epsilon", 1e-5),
    )
    model = GPT(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    ids = random_ids(2, sizes["n_positions"], sizes["vocab_size"])
    with torch.no_grad():
        expected = model(ids)
        reference = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(reference(ids).logits, expected, atol=1e-4, rtol=0)
        again = GPT.from_pretrained(tmp_path)
        assert again.config == config
        torch.testing.assert_close(again(ids), expected, atol=0, rtol=0)


@pytest.mark.parametrize("weights", ["gpt", "fp32", "bf16", "int8"])
def test_an_untied_head_and_the_exact_gelu_are_those_of_transformers(weights, tmp_path) -> None:
    torch.manual_seed(0)
    sizes = {**RANDOM_CONFIGS[1], "activation_function": "gelu", "tie_word_embeddings": False}
    reference = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    reference.save_pretrained(tmp_path / "theirs")
    model = GPT.from_pretrained(tmp_path / "theirs")
    assert model.lm_head.weight is not model.wte.weight
    assert model.num_parameters() == model.config.num_parameters == reference.num_parameters()
    ids = random_ids(3, 40, 257)
    with torch.no_grad():
        expected = reference(ids).logits
        logits = model(ids) if weights == "gpt" else PackedGPT(model, weights)(ids)
        torch.testing.assert_close(logits, expected, atol={"bf16": 0.1, "int8": 0.2}.get(weights, 1e-4), rtol=0)
        model.save_pretrained(tmp_path / "ours")
        again = GPT2LMHeadModel.from_pretrained(tmp_path / "ours").eval()
        torch.testing.assert_close(again(ids).logits, expected, atol=1e-4, rtol=0)


def test_training_loss_and_gradients_equal_transformers(tmp_path) -> None:
    torch.manual_seed(0)
    reference = GPT2LMHeadModel(GPT2Config(**RANDOM_CONFIGS[1], resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))
    reference.save_pretrained(tmp_path)
    model = GPT.from_pretrained(tmp_path)
    ids = random_ids(3, 21, 257)
    loss = model(ids[:, :-1], ids[:, 1:])
    expected = reference(ids, labels=ids).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(model.wte.weight.grad, reference.transformer.wte.weight.grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(
        model.h[0].attn.c_attn.weight.grad, reference.transformer.h[0].attn.c_attn.weight.grad.t(), atol=1e-6, rtol=1e-4
    )


def test_head_and_embedding_are_one_tensor() -> None:
    model = GPT(TINY)
    assert model.lm_head.weight is model.wte.weight


def test_changing_a_token_leaves_earlier_logits_untouched() -> None:
    model = GPT(TINY).eval()
    ids = random_ids(1, 12, 97)
    changed = ids.clone()
    changed[0, 7] = (ids[0, 7] + 1) % 97
    with torch.no_grad():
        before, after = model(ids), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7:], after[:, 7:])


def test_initial_loss_is_that_of_guessing_and_residual_projections_are_scaled() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(50257, 64, n_layer=8, n_head=4, n_embd=64, drop_rate=0.0))
    ids = random_ids(4, 65, 50257)
    assert abs(model(ids[:, :-1], ids[:, 1:]).item() - math.log(50257)) < 0.1
    scale = model.h[3].mlp.c_proj.weight.std() / model.h[3].mlp.c_fc.weight.std()
    assert abs(scale.item() - 1 / math.sqrt(16)) < 0.01


def test_dropout_acts_in_its_three_places() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(97, 24, n_layer=1, n_head=2, n_embd=16, drop_rate=0.5)).train()
    ids = random_ids(1, 8, 97)
    assert not torch.equal(model(ids), model(ids))
    for module in (model.drop, model.h[0].attn, model.h[0].attn.resid_dropout, model.h[0].mlp.dropout):
        assert module.drop_rate == 0.5


def test_left_padding_does_not_change_a_rows_logits(tmp_path) -> None:
    torch.manual_seed(0)
    model = GPT(TINY).eval()
    ids = random_ids(1, 6, 97)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], dim=1)
    mask = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        torch.testing.assert_close(model(padded, attention_mask=mask)[:, 4:], model(ids), atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    torch.manual_seed(0)
    model = GPT(TINY).train()
    ids = random_ids(2, 10, 97)
    gradients = []
    for flag in (False, True):
        model.gradient_checkpointing = flag
        model.zero_grad()
        model(ids[:, :-1], ids[:, 1:]).backward()
        gradients.append(model.h[0].mlp.c_fc.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_too_many_tokens_is_one_clear_line() -> None:
    with pytest.raises(UserError, match=r"25 tokens do not fit into the model's block_size \(24\)"):
        GPT(TINY)(random_ids(1, 25, 97))


def test_other_architectures_are_refused_by_name(tmp_path) -> None:
    GPT(TINY).save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"n_embd": 24', '"n_embd": 27'))
    with pytest.raises(UserError, match=r"wte.weight is \(97, 24\), expected \(97, 27\)"):
        GPT.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text.replace("gelu_new", "relu"))
    with pytest.raises(UserError, match="activation_function is 'relu'"):
        GPT.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text.replace('"model_type": "gpt2"', '"model_type": "llama"'))
    with pytest.raises(UserError, match="model_type is 'llama'"):
        GPT.from_pretrained(tmp_path)


def test_a_feed_forward_layer_of_no_width_is_refused() -> None:
    with pytest.raises(UserError, match=r"^n_inner \(-3\) must be at least 1"):
        GPTConfig(97, 24, n_layer=1, n_head=2, n_embd=16, n_inner=-3)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", '"n_embd": "wide"', "config.json: a size is no number"),
        ("config.json", '"n_embd": 0', "config.json: n_embd .0. must be at least 1"),
        ("model.safetensors.index.json", '{"weight_map": 3}', "index.json is damaged"),
        ("model.safetensors.index.json", "{", "index.json is damaged"),
    ],
)
def test_a_damaged_description_of_a_model_is_named(tmp_path, file, content, message) -> None:
    GPT(TINY).save_pretrained(tmp_path)
    if file == "config.json":
        content = (tmp_path / file).read_text().replace('"n_embd": 24', content)
    else:
        (tmp_path / "model.safetensors").unlink()  # of the two it would be read
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=message):
        GPT.from_pretrained(tmp_path)


def test_damaged_weights_are_named(tmp_path) -> None:
    GPT(TINY).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="model.safetensors is damaged"):
        GPT.from_pretrained(tmp_path)


def test_released_weights_load_from_the_hub_cache_and_offline_error_says_how(tmp_path, monkeypatch) -> None:
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="hf download openai-community/gpt2 .* set name_or_directory to its path"):
        GPT.from_pretrained("gpt2")
    repository = tmp_path / "models--openai-community--gpt2"
    snapshot = repository / "snapshots" / ("0" * 40)
    GPT(TINY).save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    assert GPT.from_pretrained("gpt2").config == TINY


def test_a_config_that_speaks_of_a_model_too_large_for_any_machine_is_refused_before_it_is_built(tmp_path) -> None:
    GPT(GPTConfig(31, 8, n_layer=1, n_head=2, n_embd=8)).save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    for key, value in (("n_layer", 10**9), ("n_embd", 2**20), ("vocab_size", 2**60), ("n_positions", 10**12)):
        (tmp_path / "config.json").write_text(json.dumps({**json.loads(config), key: value}))
        with pytest.raises(UserError, match="weights of another architecture: config.json describes"):
            GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"), [("n_layer", float("inf")), ("layer_norm_epsilon", 10**400), ("activation_function", ["gelu"])]
)
def test_a_config_with_values_of_another_kind_is_one_line(tmp_path, key: str, value: object) -> None:
    GPT(GPTConfig(31, 8, n_layer=1, n_head=2, n_embd=8)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(UserError, match=r"config.json"):
        GPT.from_pretrained(tmp_path)
