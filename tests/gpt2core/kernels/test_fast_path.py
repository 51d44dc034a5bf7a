"""What trains fast computes what torch's own operations compute."""

import math

import pytest
import torch
import torch.nn.functional as F

from gpt2core.config import GPTConfig
from gpt2core.kernels.attention import short_attention
from gpt2core.kernels.dropout import Dropout, keep_mask
from gpt2core.kernels.head_loss import head_loss, head_scores
from gpt2core.model import GPT

EXACT = {"rtol": 1e-5, "atol": 1e-6}


def gradients(loss: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, tensors))


@pytest.mark.parametrize("rows", [1, 32, 45])
def test_the_head_s_loss_and_gradients_are_those_of_cross_entropy(rows: int) -> None:
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, 12, requires_grad=True), torch.randn(97, 12, requires_grad=True)
    targets = torch.randint(0, 97, (rows,))
    ours, torchs = head_loss(x, weight, targets), F.cross_entropy(x @ weight.t(), targets)
    torch.testing.assert_close(ours, torchs, **EXACT)
    for a, b in zip(gradients(0.3 * ours, x, weight), gradients(0.3 * torchs, x, weight), strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def test_the_head_s_loss_in_bf16_is_as_near_to_fp32_as_autocast_is() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(64, 48, requires_grad=True), (torch.randn(503, 48) * 0.3).requires_grad_()
    targets = torch.randint(0, 503, (64,))
    exact = F.cross_entropy(x @ weight.t(), targets)
    with torch.autocast("cpu", torch.bfloat16):
        ours = head_loss(x, weight, targets)
        torchs = F.cross_entropy(F.linear(x, weight).float(), targets)
    assert 0 < abs(ours - exact) <= 2 * abs(torchs - exact) + 1e-3  # 0 would be fp32, which is slower
    wanted = gradients(exact, x, weight)
    for a, b, c in zip(gradients(ours, x, weight), gradients(torchs, x, weight), wanted, strict=True):
        assert a.dtype == torch.float32
        assert (a - c).norm() <= 1.5 * (b - c).norm()


def test_a_loss_too_large_for_the_softmax_in_fp32_is_exact() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    weight = torch.tensor([[300.0, 0.0], [0.0, 250.0], [1.0, 2.0]], requires_grad=True)
    targets = torch.tensor([1, 0])
    loss = head_loss(x, weight, targets)
    assert loss.item() == pytest.approx((300.0 + 250.0) / 2)
    wanted = gradients(F.cross_entropy(x @ weight.t(), targets), x, weight)
    for a, b in zip(gradients(loss, x, weight), wanted, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def test_the_gradient_in_bf16_has_no_scale_of_its_own() -> None:
    torch.manual_seed(6)
    x, weight = torch.randn(1020, 64, requires_grad=True), (torch.randn(503, 64) * 0.3).requires_grad_()
    targets = torch.randint(0, 503, (1020,))  # 1 / 1,020 is no bf16
    with torch.autocast("cpu", torch.bfloat16):
        ours = gradients(head_loss(x, weight, targets), x, weight)
    exact = gradients(F.cross_entropy(x @ weight.t(), targets), x, weight)
    for a, b in zip(ours, exact, strict=True):
        scale = (a.double() * b).sum() / b.double().square().sum()
        assert scale.item() == pytest.approx(1.0, abs=5e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_head_s_scores_are_those_of_cross_entropy_and_argmax(precision: str) -> None:
    torch.manual_seed(4)
    x, weight = torch.randn(700, 24), torch.randn(130, 24) * 0.5
    targets = (x @ weight.t()).argmax(dim=1)
    targets[::2] = torch.randint(0, 130, (350,))
    weight[129] = weight[7]  # of two likeliest words the first is the guess
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"), torch.no_grad():
        losses, hits = head_scores(x, weight, targets)
        logits = F.linear(x, weight).float()
    wanted = F.cross_entropy(logits.double(), targets, reduction="none")
    torch.testing.assert_close(losses.double(), wanted, rtol=1e-5, atol=1e-6)
    assert hits == int((logits.argmax(dim=1) == targets).sum()) > 300
    assert int((targets == 129).sum()) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_attention_is_that_of_torch(tokens: int, dtype: torch.dtype) -> None:
    torch.manual_seed(tokens)
    qkv = [torch.randn(2, 3, tokens, 8, dtype=dtype, requires_grad=True) for _ in range(3)]
    upstream = torch.randn(2, 3, tokens, 8, dtype=dtype)
    ours, torchs = short_attention(*qkv, 0.0), F.scaled_dot_product_attention(*qkv, is_causal=True)
    close = EXACT if dtype == torch.float32 else {"rtol": 3e-2, "atol": 3e-2}
    torch.testing.assert_close(ours, torchs, **close)
    wanted = gradients((torchs * upstream).sum(), *qkv)
    for a, b in zip(gradients((ours * upstream).sum(), *qkv), wanted, strict=True):
        torch.testing.assert_close(a, b, **close)


def test_attention_with_dropout_has_the_expectation_and_the_gradient_of_its_own_mask() -> None:
    qkv = [torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def seeded(*tensors: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return short_attention(*tensors, 0.4)

    assert torch.autograd.gradcheck(seeded, qkv)
    torch.manual_seed(0)
    q, k, v = (tensor.detach().float() for tensor in qkv)
    mean = torch.stack([short_attention(q, k, v, 0.4) for _ in range(8000)]).mean(dim=0)
    torch.testing.assert_close(mean, F.scaled_dot_product_attention(q, k, v, is_causal=True), rtol=0.06, atol=0.06)


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.999])
def test_so_much_is_dropped_and_the_rest_makes_up_for_it(rate: float) -> None:
    torch.manual_seed(1)
    x, n = torch.ones(1000, 1001), 1_001_000
    dropout = Dropout(rate)
    y = dropout(x)
    share = (y == 0).float().mean().item()
    assert abs(share - rate) < 5 * math.sqrt(rate * (1 - rate) / n)
    assert y.mean().item() == pytest.approx(1.0, abs=6 * math.sqrt(rate / (1 - rate) / n))
    assert torch.equal(dropout.eval()(x), x)


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(2)
    kept = keep_mask(torch.Size((400_003,)), 0.5, torch.float32) - 0.5
    for distance in (1, 2, 3, 4, 8):
        correlation = 4 * (kept[:-distance] * kept[distance:]).mean().item()
        assert abs(correlation) < 5 / math.sqrt(400_000)


def test_dropout_is_a_function_of_the_seed() -> None:
    x, dropout = torch.ones(3, 5, 7), Dropout(0.5)
    drawn = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        drawn.append(dropout(x))
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


def loss_curve(precision: str, own_kernels: bool) -> list[float]:
    torch.manual_seed(5)
    model = GPT(GPTConfig(vocab_size=211, block_size=32, n_layer=2, n_head=4, n_embd=64, drop_rate=0.1))
    model.use_own_kernels(own_kernels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    text = (torch.arange(4000) ** 2 // 7) % 211
    losses = []
    for step in range(120):
        torch.manual_seed(1000 + step)
        starts = torch.randint(0, 3900, (8,)).tolist()
        rows = torch.stack([text[start : start + 33] for start in starts])
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(rows[:, :-1], rows[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_curve_is_that_of_torch_s_operations_in_fp32_within_noise(precision: str) -> None:
    ours, reference = loss_curve(precision, own_kernels=True), loss_curve("fp32", own_kernels=False)
    assert ours[-1] < 0.7 * ours[0]
    assert ours != reference
    assert sum(ours[-40:]) / 40 == pytest.approx(sum(reference[-40:]) / 40, rel=0.03)


def test_torch_s_kernels_can_be_asked_for() -> None:
    """`run.kernels: torch` is the plain cross-entropy over logits in fp32, to the bit."""
    torch.manual_seed(3)
    model = GPT(GPTConfig(vocab_size=97, block_size=8, n_layer=1, n_head=2, n_embd=16, drop_rate=0.1))
    ids = torch.randint(0, 97, (2, 9))
    model.use_own_kernels(False)
    torch.manual_seed(4)
    loss = model(ids[:, :-1], ids[:, 1:])
    torch.manual_seed(4)
    assert torch.equal(loss, F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()))
