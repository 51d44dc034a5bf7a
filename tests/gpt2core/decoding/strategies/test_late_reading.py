"""On a GPU the host reads a step's tokens late; the result is that of reading them at once."""

from typing import Any

import pytest
import torch

from gpt2core.config import GPTConfig
from gpt2core.decoding import generate
from gpt2core.decoding.strategies import graphed_choice, sampling
from gpt2core.decoding.strategies.choice import TokenBuffer
from gpt2core.decoding.strategies.graphed_choice import GraphedChoice, can_graph_choice
from gpt2core.errors import UserError
from gpt2core.model import GPT

SAMPLED = {"do_sample": True, "temperature": 1.3, "top_k": 9, "top_p": 0.9}
EVERYTHING = {"output_scores": True, "output_logits": True, "output_log_probs": True}


class Stream:
    def __init__(self) -> None:
        self.tokens: list[list[int]] = []

    def put(self, tokens: torch.Tensor) -> None:
        self.tokens.append(tokens.tolist())

    def end(self) -> None:
        self.tokens.append([])


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(1)
    return GPT(GPTConfig(23, 32, n_layer=2, n_head=2, n_embd=16)).eval()


def both(monkeypatch: pytest.MonkeyPatch, model: Any, **options: Any) -> tuple[Any, Any]:
    """Output and streamed tokens of one call, read at once and read late."""
    results = []
    for late in (False, True):
        monkeypatch.setattr(sampling, "reads_late", lambda device, late=late: late)
        stream = Stream() if options.get("num_return_sequences", 1) == 1 else None
        ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
        out = generate(model, ids, seed=5, streamer=stream, return_dict_in_generate=True, pad_token_id=0, **options)
        results.append((out, stream.tokens if stream else None))
    return results[0], results[1]


@pytest.mark.parametrize("eos", [None, 7, [3, 7, 11, 13, 17, 19]])
@pytest.mark.parametrize("options", [{}, SAMPLED, {**SAMPLED, "num_return_sequences": 3}, {"min_new_tokens": 1}])
@pytest.mark.parametrize("new", [1, 2, 20])
def test_tokens_scores_and_stream_are_the_same(
    monkeypatch: pytest.MonkeyPatch, model: GPT, eos: Any, options: dict[str, Any], new: int
) -> None:
    (now, streamed), (late, streamed_late) = both(
        monkeypatch, model, eos_token_id=eos, max_new_tokens=new, **options, **EVERYTHING
    )
    assert torch.equal(now.sequences, late.sequences)
    assert streamed == streamed_late
    assert now.finish_reasons == late.finish_reasons
    assert torch.equal(now.log_probs, late.log_probs)
    for one, other in ((now.scores, late.scores), (now.logits, late.logits)):
        assert len(one) == len(other)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("options", [{}, SAMPLED, {"do_sample": True, "num_return_sequences": 3, "min_p": 0.1}])
@pytest.mark.parametrize("eos", [None, 7, [3, 7, 11, 13, 17, 19]])
def test_the_body_of_the_graph_chooses_the_same_tokens(
    monkeypatch: pytest.MonkeyPatch, model: GPT, eos: Any, options: dict[str, Any]
) -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    asked = {"seed": 5, "max_new_tokens": 29, "eos_token_id": eos, "pad_token_id": 0, "past_block_size": "slide"}
    expected = generate(model, ids, **asked, **options)
    used = []

    class Watched(GraphedChoice):
        def __call__(self, text: TokenBuffer, logits: torch.Tensor) -> torch.Tensor:
            used.append(True)
            return super().__call__(text, logits)

    monkeypatch.setattr(sampling, "reads_late", lambda device: True)
    monkeypatch.setattr(graphed_choice, "MIN_NEW_TOKENS", 4)
    monkeypatch.setattr(sampling, "GraphedChoice", Watched)
    monkeypatch.setattr(
        sampling, "can_graph_choice", lambda request, device: can_graph_choice(request, torch.device("cuda"))
    )
    assert torch.equal(generate(model, ids, **asked, **options), expected)
    assert used
    used.clear()
    generate(model, ids, **asked, **options, repetition_penalty=1.2)  # looks at the text so far
    generate(model, ids, **asked, **options, stop_strings="the")
    assert not used


@pytest.mark.parametrize(
    ("value", "rule"), [(float("nan"), "are not finite"), (-torch.inf, "every token is forbidden")]
)
@pytest.mark.parametrize("at", [4, 8])  # the prompt has 3 tokens; 8 is the last step
@pytest.mark.parametrize("late", [False, True])
def test_scores_that_cannot_be_drawn_from_are_refused(
    monkeypatch: pytest.MonkeyPatch, model: GPT, value: float, rule: str, at: int, late: bool
) -> None:
    def spoil(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, value) if ids.shape[1] == at else scores

    monkeypatch.setattr(sampling, "reads_late", lambda device: late)
    with pytest.raises(UserError, match=rule):
        generate(
            model, torch.tensor([[1, 2, 3]]), seed=5, do_sample=True, max_new_tokens=6, eos_token_id=None,
            logits_processor=spoil,
        )  # fmt: skip
