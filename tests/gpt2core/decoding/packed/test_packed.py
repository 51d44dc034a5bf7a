"""A packed GPT computes what the GPT computes, on every path, and a copy never outlives the weights it was made of."""

import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2core.config import GPTConfig
from gpt2core.decoding import generate
from gpt2core.decoding.packed import linear as packed_linear
from gpt2core.decoding.packed import policy as packing
from gpt2core.decoding.packed.linear import Int8Linear, IntegerLinear, has_integer_products, quantise_rows
from gpt2core.decoding.packed.model import PackedGPT
from gpt2core.decoding.packed.normed import IntegerAfterNorm, Norm, after_norm
from gpt2core.decoding.rows.kv_cache import KVCache
from gpt2core.errors import UserError
from gpt2core.model import GPT

IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[GPT, GPT2LMHeadModel]:
    directory = tmp_path_factory.mktemp("reference")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=301, n_positions=64, n_layer=2, n_head=2, n_embd=64, bos_token_id=0, eos_token_id=7)
    reference = GPT2LMHeadModel(config).eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    reference.save_pretrained(directory)
    return GPT.from_pretrained(directory), reference


@pytest.fixture(params=["onednn", "plain"])
def layout(request, monkeypatch) -> str:
    """The packed layers of this machine, then the fallback of one without them."""
    if request.param == "plain":
        monkeypatch.setattr(packed_linear, "has_onednn", lambda weights: False)
    elif not packed_linear.has_onednn("fp32"):
        pytest.skip("no oneDNN here")
    return request.param


def test_packed_fp32_logits_equal_the_model_and_transformers(pair, layout) -> None:
    model, reference = pair
    with torch.inference_mode():
        packed = PackedGPT(model)(IDS)
        assert (packed - model(IDS)).abs().max() < 1e-4
        assert (packed - reference(IDS).logits).abs().max() < 1e-4


@pytest.mark.parametrize("padded", [False, True])
def test_packed_steps_equal_one_pass_over_the_whole(pair, layout, padded) -> None:
    model, _ = pair
    mask = torch.ones_like(IDS)
    mask[1, :3] = 0
    with torch.inference_mode():
        whole = model(IDS, attention_mask=mask if padded else None)
        packed = PackedGPT(model)
        cache = KVCache(model.config, 2, 10, IDS.device, torch.float32)
        pieces = []
        for start, stop in ((0, 3), (3, 5), (5, 6)):
            seen = mask[:, :stop] if padded else None
            pieces.append(packed.lm_head(packed.hidden_states(IDS[:, start:stop], seen, cache)))
    steps = torch.cat(pieces, dim=1)
    real = mask.bool() if padded else torch.ones_like(IDS).bool()
    assert (steps - whole)[real].abs().max() < 1e-4


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_smaller_weights_change_the_logits_little(pair, layout, weights) -> None:
    model, _ = pair
    with torch.inference_mode():
        exact, packed = model(IDS), PackedGPT(model, weights)(IDS)
    assert 0 < (packed - exact).std() < 0.03 * exact.std()


def test_a_bias_of_all_logits_does_not_coarsen_bf16_logits(pair) -> None:
    model, _ = pair
    shifted = GPT(model.config).eval()
    shifted.load_state_dict(model.state_dict())
    with torch.no_grad():
        shifted.ln_f.bias += 20.0
        shifted.wte.weight += 0.5  # logits all near 20 * 0.5 * 64, where bf16 has steps of 4
        exact = shifted(IDS)
        packed = PackedGPT(shifted, "bf16")(IDS)
    assert exact.mean() > 500
    assert (packed - exact).std() < 0.05 * exact.std(-1).mean()


def test_int8_survives_channels_that_are_far_larger_than_the_others(pair) -> None:
    model, _ = pair
    spiky = GPT(model.config).eval()
    spiky.load_state_dict(model.state_dict())
    with torch.no_grad():
        for block in spiky.h:  # as in GPT-2: a few channels of the layer norms carry large values
            for norm, linear in ((block.ln_1, block.attn.c_attn), (block.ln_2, block.mlp.c_fc)):
                norm.weight[:2] *= 30
                norm.bias[:2] *= 30
                linear.weight[:, :2] /= 30
        exact, packed = spiky(IDS), PackedGPT(spiky, "int8")(IDS)
        assert (packed - exact).std() < 0.1 * exact.std()


INT8_LAYERS = [
    pytest.param(Int8Linear, torch.bfloat16, 0.15, id="through fp32"),
    pytest.param(
        IntegerLinear, torch.float32, 0.002, id="integers",
        marks=pytest.mark.skipif(not has_integer_products(), reason="no VNNI here"),
    ),
]  # fmt: skip


@pytest.mark.parametrize("vectors", [1, 5, 200])
@pytest.mark.parametrize(("kind", "inputs", "tolerance"), INT8_LAYERS)
def test_an_int8_layer_is_the_product_with_its_dequantised_weights(kind, inputs, tolerance, vectors) -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(48, 64), torch.randn(48), torch.randn(vectors, 64)
    integers, scale = quantise_rows(weight)
    dequantised = integers.float() * scale.float()[:, None]
    assert ((dequantised - weight).abs() <= 0.51 * scale.float()[:, None]).all()
    expected = x.to(inputs).float() @ dequantised.T + bias
    layer, residual = kind(integers, scale, bias), torch.randn(vectors, 48)
    assert torch.allclose(layer(x), expected, atol=tolerance, rtol=0.01)
    gelu = torch.nn.functional.gelu(expected, approximate="tanh")
    assert torch.allclose(layer.gelu(x, "tanh"), gelu, atol=tolerance, rtol=0.01)
    assert torch.allclose(layer.add_to(residual.clone(), x), residual + expected, atol=tolerance, rtol=0.01)


@pytest.mark.skipif(not has_integer_products(), reason="no VNNI here")
def test_sums_of_integers_do_not_depend_on_the_vectors_beside_nor_hide_what_is_not_finite() -> None:
    torch.manual_seed(0)
    layer = IntegerLinear(*quantise_rows(torch.randn(48, 64)), torch.randn(48))
    x = torch.randn(40, 64) * torch.logspace(-20, 20, 40)[:, None]
    x[3] = 0.0
    together = layer(x)
    assert all(torch.equal(layer(x[row : row + 1])[0], together[row]) for row in range(40))
    assert torch.equal(layer(x.T.contiguous().T), together)
    assert torch.equal(together[3], layer(torch.zeros(1, 64))[0])
    for damage in (torch.nan, torch.inf):
        damaged = x.clone()
        damaged[7, 5] = damage
        result = layer(damaged)
        assert not result[7].isfinite().any()
        assert torch.equal(result[8:], together[8:])


@pytest.mark.skipif(not has_integer_products(), reason="no VNNI here")
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_a_norm_that_gives_integers_is_the_norm_and_then_the_layer(eps) -> None:
    torch.manual_seed(0)
    norm = Norm(torch.randn(64), torch.randn(64), eps)
    integers, scale = quantise_rows(torch.randn(48, 64))
    bias, x = torch.randn(48), torch.randn(200, 64) * torch.logspace(-3, 3, 200)[:, None] + 5
    x[0], x[1], x[2] = 0.0, 0.0, 0.0
    x[1, 11], x[2, 11] = 1e4, -1e4  # as far from the others as a normed number can be
    dequantised = integers.double() * scale.double()[:, None]
    normed = torch.nn.functional.layer_norm(x.double(), (64,), norm.weight.double(), norm.bias.double(), eps)
    expected = normed @ dequantised.T + bias
    layer = after_norm(norm, IntegerLinear(integers, scale, bias))
    assert isinstance(layer, IntegerAfterNorm)
    together = layer(x)
    assert torch.allclose(together.double(), expected, atol=0.02, rtol=0)
    assert torch.allclose(layer.gelu(x, "none").double(), torch.nn.functional.gelu(expected), atol=0.02, rtol=0)
    assert all(torch.equal(layer(x[row : row + 1])[0], together[row]) for row in range(200))
    for damage in (torch.nan, torch.inf):
        damaged = x.clone()
        damaged[7, 5] = damage
        assert layer(damaged)[7].isnan().all()
        assert torch.equal(layer(damaged)[8:], together[8:])


@pytest.mark.skipif(not has_integer_products(), reason="no VNNI here")
def test_a_norm_of_nothing_gives_the_bias_and_a_damaged_one_nothing() -> None:
    integers, scale = quantise_rows(torch.randn(48, 64))
    linear, x = IntegerLinear(integers, scale, torch.randn(48)), torch.randn(3, 64)
    nothing = after_norm(Norm(torch.zeros(64), torch.zeros(64), 1e-5), linear)(x)
    assert torch.allclose(nothing, linear.bias.expand(3, -1), atol=1e-6)
    damaged = torch.ones(64)
    damaged[3] = torch.nan
    assert after_norm(Norm(damaged, torch.zeros(64), 1e-5), linear)(x).isnan().all()


def test_a_row_gets_the_same_text_whatever_the_rows_beside_it(pair) -> None:
    model, _ = pair
    packed = PackedGPT(model, "int8")
    together = generate(packed, IDS, max_new_tokens=20, eos_token_id=None)
    for row in range(2):
        assert torch.equal(
            together[row : row + 1], generate(packed, IDS[row : row + 1], max_new_tokens=20, eos_token_id=None)
        )


def test_the_packed_copy_is_used_where_the_call_pays_for_it(pair, monkeypatch) -> None:
    model, _ = pair
    used = []
    inner = PackedGPT.hidden_states
    monkeypatch.setattr(PackedGPT, "hidden_states", lambda self, *args: used.append(1) or inner(self, *args))
    generate(model, IDS, max_new_tokens=packing.MIN_NEW_TOKENS - 1, eos_token_id=None)
    assert not used
    generate(model, IDS, max_new_tokens=packing.MIN_NEW_TOKENS, eos_token_id=None)
    assert bool(used) == packed_linear.has_onednn("fp32")


def test_a_copy_follows_the_weights_through_every_way_of_changing_them() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=61, block_size=32, n_layer=1, n_head=2, n_embd=16, drop_rate=0.0)).eval()
    if packing.fastest(model, 100) is model:
        pytest.skip("no oneDNN here")
    kept = packing.fastest(model, 100)
    assert packing.fastest(model, 100) is kept

    def optimizer_step() -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        model(IDS, IDS).backward()
        optimizer.step()

    def replaced_parameter() -> None:
        model.h[0].mlp.c_fc.weight = torch.nn.Parameter(torch.randn_like(model.h[0].mlp.c_fc.weight))

    def replaced_data() -> None:
        model.h[0].attn.c_attn.weight.data = torch.randn_like(model.h[0].attn.c_attn.weight)

    def loaded_state() -> None:
        model.load_state_dict({name: torch.randn_like(value) for name, value in model.state_dict().items()})

    for change in (optimizer_step, replaced_parameter, replaced_data, loaded_state):
        change()
        with torch.inference_mode():
            assert (packing.fastest(model, 100)(IDS) - model(IDS)).abs().max() < 1e-3, change.__name__


def test_a_model_that_is_not_plain_is_left_as_it_is() -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = GPT(GPTConfig(vocab_size=61, block_size=32, n_layer=1, n_head=2, n_embd=16, drop_rate=0.1)).eval()
    model.h[0].mlp.c_fc = Doubled(16, 64)
    assert packing.fastest(model, 100) is model
    model = GPT(model.config)
    assert model.training
    assert packing.fastest(model, 100) is model


def test_a_copy_does_not_keep_its_model_alive() -> None:
    model = GPT(GPTConfig(vocab_size=61, block_size=32, n_layer=1, n_head=2, n_embd=16, drop_rate=0.0)).eval()
    before = len(packing._seen)
    packing.fastest(model, 100)
    packing.fastest(model, 100)
    del model
    assert len(packing._seen) <= before


def test_unknown_weights_and_other_devices_are_refused(pair) -> None:
    model, _ = pair
    with pytest.raises(UserError, match="'int4'.*fp32, bf16, int8"):
        PackedGPT(model, "int4")
    with pytest.raises(UserError, match="PackedGPT is for a CPU"):
        PackedGPT(GPT(model.config).to("meta"))
    with pytest.raises(UserError, match="block_size"):
        PackedGPT(model)(torch.zeros(1, 65, dtype=torch.int64))


def test_perplexity_of_a_packed_model_is_that_of_the_model(pair) -> None:
    from gpt2core.evaluation.scores import perplexity

    model, _ = pair

    class Split:
        tokens = torch.randint(301, (200,), generator=torch.Generator().manual_seed(0)).numpy()

        def __len__(self) -> int:
            return len(self.tokens)

        def read(self, start: int, stop: int):
            return self.tokens[start:stop]

    ours = perplexity(PackedGPT(model), Split(), block_size=32)
    assert math.isclose(ours, perplexity(model, Split(), block_size=32), rel_tol=1e-4)
