"""The GPU's Triton kernels compute what the model computes: by Triton's interpreter on a CPU (`make test-kernels`)."""

import os

import pytest
import torch

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
pytest.importorskip("triton", reason="Triton comes with CUDA's PyTorch; `make test-kernels` installs it")

from gpt2core.config import GPTConfig
from gpt2core.decoding.rows.fused import TOKENS_AT_A_TIME, FusedLayers
from gpt2core.decoding.rows.kv_cache import KVCache
from gpt2core.model import GPT

CPU = torch.device("cpu")


@pytest.mark.parametrize("changes", [{}, {"activation_function": "gelu"}, {"qkv_bias": False}, {"n_inner": 40}])
@pytest.mark.parametrize(("rows", "seen"), [(1, 1), (3, 6), (2, TOKENS_AT_A_TIME), (2, TOKENS_AT_A_TIME + 5)])
def test_a_token_s_states_keys_and_values_are_the_model_s(changes: dict[str, object], rows: int, seen: int) -> None:
    torch.manual_seed(0)
    config = GPTConfig(**{"vocab_size": 50, "block_size": 600, "n_layer": 2, "n_head": 3, "n_embd": 24, **changes})
    model = GPT(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.randint(0, 50, (rows, seen + 1))
    padding = torch.randint(0, seen, (rows,))
    mask = (torch.arange(seen + 1) >= padding[:, None]).long()
    with torch.inference_mode():
        ours, theirs = (KVCache(config, rows, seen + 3, CPU, torch.float32) for _ in range(2))
        for cache in (ours, theirs):
            model.hidden_states(ids[:, :seen], mask[:, :seen], cache)
        expected = model.hidden_states(ids[:, seen:], mask, theirs)
        store = ours.reserve(1)
        layers = FusedLayers(model, store)
        states = layers.read(ids[:, seen:].contiguous(), torch.tensor([seen]), padding[:, None])
        torch.testing.assert_close(model.ln_f(states), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(store[..., : seen + 1, :], theirs.reserve(0)[..., : seen + 1, :])
