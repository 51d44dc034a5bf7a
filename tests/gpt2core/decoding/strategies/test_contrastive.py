"""Contrastive search: the rule of the paper, a pass a token, hidden states kept."""

import pytest
import torch

from gpt2core.config import GPTConfig
from gpt2core.decoding import generate
from gpt2core.errors import UserError
from gpt2core.model import GPT


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(61, 48, n_layer=2, n_head=2, n_embd=16)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def by_the_paper(model: GPT, text: list[int], new: int, alpha: float, k: int) -> list[int]:
    """Su et al. 2022, equation 5, with a pass for each candidate and every similarity anew."""
    text = list(text)
    for _ in range(new):
        probs = model(torch.tensor([text]))[0, -1].softmax(-1)
        best = None
        for token in probs.topk(k).indices.tolist():
            hidden = model.hidden_states(torch.tensor([[*text, token]]))[0]
            similarity = torch.cosine_similarity(hidden[-1:], hidden[:-1], dim=-1).max()
            score = ((1 - alpha) * probs[token] - alpha * similarity).item()
            if best is None or score > best[0]:
                best = (score, token)
        text.append(best[1])
    return text


@pytest.mark.parametrize(("alpha", "k"), [(0.6, 4), (0.2, 8), (1.0, 3), (0.9, 61)])
def test_each_token_is_the_one_the_paper_chooses(model, alpha, k) -> None:
    prompts = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]
    texts = generate(model, prompts, penalty_alpha=alpha, top_k=k, max_new_tokens=15, eos_token_id=None)
    with torch.inference_mode():
        for prompt, text in zip(prompts, texts.tolist(), strict=True):
            assert text[5:] == by_the_paper(model, prompt, 15, alpha, k)[len(prompt) :]


def test_the_candidates_of_all_prompts_cost_one_pass_of_a_token(model, monkeypatch) -> None:
    passes = []
    plain = GPT.hidden_states

    def watched(self, token_ids, *arguments, **options):
        passes.append(tuple(token_ids.shape))
        return plain(self, token_ids, *arguments, **options)

    monkeypatch.setattr(GPT, "hidden_states", watched)
    generate(model, [[3, 1, 4], [1, 5, 9]], penalty_alpha=0.6, top_k=4, max_new_tokens=10, eos_token_id=None)
    assert passes == [(2, 3)] + [(8, 1)] * 10


def test_the_last_token_is_read_too_so_that_one_less_fits_than_elsewhere(model) -> None:
    options = {"penalty_alpha": 0.6, "top_k": 4, "eos_token_id": None}
    assert generate(model, [[3, 1, 4]], max_new_tokens=45, **options).shape == (1, 48)
    with pytest.raises(UserError, match="at most 45 new tokens fit"):
        generate(model, [[3, 1, 4]], max_new_tokens=46, **options)


def test_past_block_size_the_window_slides(model) -> None:
    options = {"penalty_alpha": 0.6, "top_k": 4, "eos_token_id": None, "past_block_size": "slide"}
    together = generate(model, [[3, 1, 4], [1, 5, 9] * 20], max_new_tokens=70, **options)
    assert torch.equal(together[0, 60:], generate(model, [[3, 1, 4]], max_new_tokens=70, **options)[0, 3:])


def test_top_k_above_the_vocabulary_takes_all_of_it(model) -> None:
    options = {"penalty_alpha": 0.6, "max_new_tokens": 5, "eos_token_id": None}
    everything = generate(model, [[3, 1, 4]], top_k=61, **options)
    assert torch.equal(generate(model, [[3, 1, 4]], top_k=1000, **options), everything)


def test_a_callable_that_gives_no_hidden_states_is_one_clear_line(model) -> None:
    with pytest.raises(UserError, match="hidden states.*pass a GPT") as error:
        generate(lambda ids: model(ids), torch.tensor([[3, 1, 4]]), penalty_alpha=0.6, top_k=4)
    assert "\n" not in str(error.value)
