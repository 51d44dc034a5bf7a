"""Drafts of a 4-bit copy: the texts of plain decoding, in fewer passes of the model."""

import pytest
import torch

from gpt2core.config import GPTConfig
from gpt2core.decoding import generate, stream
from gpt2core.decoding.packed.int4 import Int4Linear, has_int4, quantise_groups
from gpt2core.decoding.packed.linear import has_integer_products
from gpt2core.decoding.packed.model import PackedGPT
from gpt2core.decoding.strategies import drafting
from gpt2core.decoding.strategies.drafting import (
    AcceptanceRate,
    LookaheadSampler,
    RepeatedNgrams,
    best_draft_length,
)
from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2core.tokenizer import Tokenizer

PROMPT = [[3, 1, 4, 1, 5, 9, 2, 6]]
NEW = 60


def make_model(vocab_size: int, weights: str = "fp32") -> PackedGPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size, 100, n_layer=2, n_head=2, n_embd=64, drop_rate=0.0)).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float(name.endswith("weight") and "ln" in name), std=0.15)
    return PackedGPT(model, weights)


@pytest.fixture(scope="module")
def model() -> PackedGPT:
    model = make_model(61)
    if not model.can_draft:
        pytest.skip("no fast 4-bit weights here")
    return model


def draft_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for small models and short texts."""
    monkeypatch.setattr(drafting, "MIN_NEW_TOKENS", 1)
    monkeypatch.setattr(drafting, "MIN_PARAMETERS", 0)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    draft_always(monkeypatch)


def passes(monkeypatch: pytest.MonkeyPatch, model: PackedGPT, weights: list[str]) -> None:
    """Note in `weights` whose pass each is: the model's or the draft's."""
    inner = PackedGPT.hidden_states

    def noted(self: PackedGPT, *args: object) -> torch.Tensor:
        weights.append("model" if self is model else "draft")
        return inner(self, *args)

    monkeypatch.setattr(PackedGPT, "hidden_states", noted)


def both(model: PackedGPT, monkeypatch: pytest.MonkeyPatch, **options):
    """What `generate` gives without and with drafts, and the passes of the second."""
    options = {"max_new_tokens": NEW, "eos_token_id": None, **options}
    plain = generate(model, PROMPT, **options)
    draft_always(monkeypatch)
    weights: list[str] = []
    passes(monkeypatch, model, weights)
    return plain, generate(model, PROMPT, **options), weights


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.4, "no_repeat_ngram_size": 3},
        {"bad_words_ids": [[1], [8, 2]], "suppress_tokens": [9]},
        {"do_sample": True, "top_k": 0, "seed": 5},
        {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "seed": [6]},
        {"do_sample": True, "repetition_penalty": 1.3, "min_p": 0.02, "seed": 7},
    ],
)
def test_texts_are_those_without_a_draft_in_fewer_passes(model, monkeypatch, options) -> None:
    plain, drafted, weights = both(model, monkeypatch, **options)
    assert torch.equal(drafted, plain)
    assert "draft" in weights
    assert weights.count("model") < NEW * 0.7


def test_an_end_of_text_ends_it_there(model, monkeypatch) -> None:
    said = generate(model, PROMPT, max_new_tokens=NEW, eos_token_id=None)[0, 8:].tolist()
    end = next(token for place, token in enumerate(said) if place > 20 and token not in said[:place])
    plain, drafted, _ = both(model, monkeypatch, eos_token_id=end)
    assert torch.equal(drafted, plain)
    assert drafted[0, -1] == end
    assert drafted.shape[1] < 8 + NEW


def test_the_draws_of_torchs_own_generator_are_left_where_they_would_be(model, monkeypatch) -> None:
    torch.manual_seed(1)
    plain = generate(model, PROMPT, max_new_tokens=NEW, eos_token_id=None, do_sample=True)
    after = torch.rand(3)
    draft_always(monkeypatch)
    torch.manual_seed(1)
    assert torch.equal(generate(model, PROMPT, max_new_tokens=NEW, eos_token_id=None, do_sample=True), plain)
    assert torch.equal(torch.rand(3), after)


class Listener:
    """Leaves after some tokens, and draws at each if it is told to."""

    def __init__(self, tokens: int, draws: bool = False) -> None:
        self.left, self.draws, self.drawn = tokens, draws, []

    def put(self, tokens: torch.Tensor) -> None:
        self.left -= 1
        if self.draws:
            self.drawn += torch.rand(3).tolist()
        if not self.left:
            raise KeyboardInterrupt

    def end(self) -> None: ...


@pytest.mark.parametrize("tokens", [2, 3, 20, 33])
def test_who_leaves_between_two_tokens_finds_the_generator_as_without_a_draft(model, monkeypatch, tokens) -> None:
    def after() -> list[float]:
        torch.manual_seed(2)
        with pytest.raises(KeyboardInterrupt):
            generate(model, PROMPT, max_new_tokens=NEW, do_sample=True, streamer=Listener(tokens))
        return torch.rand(3).tolist()

    plain = after()
    draft_always(monkeypatch)
    assert after() == plain


def test_what_others_draw_meanwhile_is_not_dealt_again(model, always) -> None:
    torch.manual_seed(2)
    listener = Listener(NEW, draws=True)
    with pytest.raises(KeyboardInterrupt):
        generate(model, PROMPT, max_new_tokens=NEW, do_sample=True, eos_token_id=None, streamer=listener)
    drawn = [*listener.drawn, *torch.rand(3).tolist()]
    assert len(set(drawn)) == len(drawn)


def test_scores_and_log_probs_are_those_of_the_model_not_of_the_draft(model, monkeypatch) -> None:
    plain, drafted, _ = both(
        model, monkeypatch, return_dict_in_generate=True, output_scores=True, output_logits=True, output_log_probs=True
    )
    assert torch.equal(drafted.sequences, plain.sequences)
    for name in ("scores", "logits"):
        ours, expected = torch.stack(getattr(drafted, name)), torch.stack(getattr(plain, name))
        assert ours.shape == expected.shape == (NEW, 1, 61)
        assert torch.allclose(ours, expected, atol=1e-4)
    assert torch.allclose(drafted.log_probs, plain.log_probs, atol=1e-4)


def test_a_stop_string_and_a_stream_know_nothing_of_drafts(monkeypatch) -> None:
    model, tokenizer = make_model(50257), Tokenizer()
    if not model.can_draft:
        pytest.skip("no fast 4-bit weights here")
    said = generate(model, PROMPT, max_new_tokens=40)
    words = [tokenizer.decode([token]) for token in said[0].tolist()]
    stop = next(word for word in words[25:] if word.isascii() and word not in "".join(words[:25]))
    options = {"max_new_tokens": 40, "stop_strings": stop, "tokenizer": tokenizer}
    stopped = generate(model, PROMPT, **options)
    assert stopped.shape[1] < said.shape[1]
    draft_always(monkeypatch)
    assert torch.equal(generate(model, PROMPT, **options), stopped)
    pieces = list(stream(model, PROMPT[0], tokenizer, max_new_tokens=40))
    assert "".join(pieces) == tokenizer.decode(said[0, 8:].tolist())


def test_a_text_is_drafted_up_to_the_last_token_that_fits(model, monkeypatch) -> None:
    plain, drafted, weights = both(model, monkeypatch, max_new_tokens=93)  # block_size 100, and one past it
    assert torch.equal(drafted, plain)
    assert weights.count("model") < 93 * 0.7


def test_a_users_own_processor_sees_each_token_once(model, monkeypatch, always) -> None:
    seen: list[int] = []

    def count(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        seen.append(ids.shape[1])
        return logits

    generate(model, PROMPT, max_new_tokens=NEW, eos_token_id=None, logits_processor=[count])
    assert seen == list(range(8, 8 + NEW))


def test_forbidding_every_token_is_refused_as_without_a_draft(model, always) -> None:
    with pytest.raises(UserError, match="every token is forbidden"):
        generate(model, PROMPT, max_new_tokens=NEW, suppress_tokens=list(range(61)), eos_token_id=None)
    # After eight words of a vocabulary of nine no word is left that was not said before.
    small = make_model(9)
    with pytest.raises(UserError, match="every token is forbidden"):
        generate(small, [[1]], max_new_tokens=20, no_repeat_ngram_size=1, eos_token_id=None)


@pytest.mark.parametrize("options", [{"sequence_bias": {(6, 5): 1e39}}, {"repetition_penalty": 1e-39}])
def test_what_cannot_be_drawn_is_refused_with_and_without_a_draft(model, monkeypatch, options) -> None:
    options = {**options, "do_sample": True, "max_new_tokens": NEW, "eos_token_id": None}
    with pytest.raises(UserError, match="scores of the tokens are not finite"):
        generate(model, PROMPT, **options)
    draft_always(monkeypatch)
    with pytest.raises(UserError, match="scores of the tokens are not finite"):
        generate(model, PROMPT, **options)


def test_damaged_weights_are_refused_where_they_show(always) -> None:
    damaged = make_model(61)
    damaged._wpe = damaged._wpe.clone()
    damaged._wpe[30:] = torch.nan
    if not damaged.can_draft:
        pytest.skip("no fast 4-bit weights here")
    with pytest.raises(UserError, match="weights are damaged"):
        generate(damaged, PROMPT, max_new_tokens=NEW, eos_token_id=None)


def test_a_pass_reads_the_head_once(model, monkeypatch) -> None:
    reads: list[int] = []
    inner = PackedGPT.lm_head

    def noted(self: PackedGPT, hidden: torch.Tensor) -> torch.Tensor:
        reads.append(hidden[..., 0].numel())
        return inner(self, hidden)

    with monkeypatch.context() as patch:
        patch.setattr(PackedGPT, "lm_head", noted)
        _, _, weights = both(model, monkeypatch)
    assert len(reads) == NEW + len(weights)


def test_several_texts_and_long_windows_are_decoded_without(model, monkeypatch, always) -> None:
    weights: list[str] = []
    passes(monkeypatch, model, weights)
    generate(model, PROMPT * 2, max_new_tokens=20, eos_token_id=None)
    generate(model, PROMPT, max_new_tokens=20, eos_token_id=None, do_sample=True, num_return_sequences=2)
    generate(model, PROMPT, max_new_tokens=120, eos_token_id=None, past_block_size="slide")
    assert set(weights) == {"model"}


def test_bf16_is_drafted_too_and_int8_is_not(monkeypatch, always) -> None:
    for weights, drafts in (("bf16", True), ("int8", False)):
        model = make_model(61, weights)
        used: list[str] = []
        with monkeypatch.context() as patch:
            passes(patch, model, used)
            generate(model, PROMPT, max_new_tokens=30, eos_token_id=None)
        assert ("draft" in used) == (drafts and model.can_draft), weights


def test_the_lookahead_sampler_draws_what_multinomial_draws() -> None:
    scores = torch.randn(200, 1, 61, generator=torch.Generator().manual_seed(0)) * 3
    scores[:, :, ::3] = -torch.inf
    plain, ahead = torch.Generator().manual_seed(4), torch.Generator().manual_seed(4)
    expected = [torch.multinomial(row.softmax(-1), 1, generator=plain)[:, 0] for row in scores]
    sampler, place = LookaheadSampler(ahead), 0
    while place < len(scores):
        for further in reversed(range(min(5, len(scores) - place))):  # looked ahead, in any order
            assert torch.equal(sampler.draw(scores[place + further], further), expected[place + further])
        sampler.advance()
        sampler.advance()
        place += 2
    sampler.restore()
    assert torch.equal(torch.rand(2, generator=ahead), torch.rand(2, generator=plain))


def test_a_draft_has_the_length_with_the_best_expected_speed() -> None:
    # Of certain tokens as many as allowed, of wrong ones none, and the more the likelier they are.
    assert best_draft_length(1.0, 0.4, 8)[1] == 8
    assert best_draft_length(0.0, 0.4, 8) == (1.0, 0)
    counts = [best_draft_length(chance / 100, 0.4, 8)[1] for chance in range(101)]
    assert counts == sorted(counts)
    # A chance of 0.5: tokens expected are 1, 1.5, 1.75, ..., so that one is worth 0.3 of a step, and two are not 0.6.
    assert best_draft_length(0.5, 0.3, 8)[1] == 1


def test_an_acceptance_rate_follows_the_observations_and_returns_to_its_prior() -> None:
    rate = AcceptanceRate(accepted=8.0, rejected=1.0)
    first = rate.value
    for _ in range(5):
        rate.decay()
        rate.update(0, 4)
    assert rate.value < 0.7 < first
    for _ in range(100):
        rate.decay()
    assert rate.value == pytest.approx(first, abs=1e-3)


def ngrams_of(text: list[int]) -> RepeatedNgrams:
    ngrams = RepeatedNgrams()
    for token in text:
        ngrams.append(token)
    return ngrams


def test_repeats_are_of_the_last_time_and_of_the_longest_match() -> None:
    text = [1, 2, 3, 7, 8, 1, 2, 3, 9, 4, 2, 3, 5, 1, 2, 3]
    assert ngrams_of(text).propose(3) == (3, [9, 4, 2])
    assert ngrams_of([*text, 5]).propose(3) == (3, [1, 2, 3])
    assert ngrams_of([*text, 6]).propose(3) == (0, [])
    assert ngrams_of([*text, 6, 7, 8, 7, 8, 7]).propose(5) == (3, [8, 7, 8, 7, 8])
    assert ngrams_of([]).propose(2) == ngrams_of([1]).propose(2) == (0, [])


def test_one_token_is_enough_where_three_are_new() -> None:
    assert ngrams_of([1, 2, 3, 9, 2]).propose(3) == (1, [3, 9, 2])
    assert ngrams_of([4, 4]).propose(3) == (1, [4, 4, 4])


CIRCLE = {"sequence_bias": {(1,): 500.0, **dict.fromkeys([(1, 2), (2, 3), (3, 4), (4, 5), (5, 1)], 1000.0)}}


def test_a_text_that_repeats_itself_is_not_drafted_there(model, monkeypatch) -> None:
    plain, drafted, weights = both(model, monkeypatch, max_new_tokens=80, **CIRCLE)
    assert torch.equal(drafted, plain)
    assert plain[0, -20:-15].sort().values.tolist() == [1, 2, 3, 4, 5]
    assert weights.count("draft") < 40
    assert weights.count("model") < 80 / 3


@pytest.mark.skipif(not has_integer_products(), reason="no VNNI here")
@pytest.mark.parametrize(
    ("options", "most"), [(CIRCLE, 80 / 3), ({}, 80), ({"do_sample": True, "top_k": 5, "seed": 3}, 80)]
)
def test_int8_weights_guess_repetitions_without_a_copy(monkeypatch, options, most) -> None:
    plain, guessed, weights = both(make_model(61, "int8"), monkeypatch, max_new_tokens=80, **options)
    assert torch.equal(guessed, plain)
    assert set(weights) == {"model"}
    assert len(weights) <= most


@pytest.mark.parametrize("outputs", [32, 61, 1500])
def test_int4_layers_multiply_with_the_weights_they_round_to(outputs: int) -> None:
    if not has_int4(64):
        pytest.skip("no fast 4-bit weights here")
    torch.manual_seed(outputs)
    weight, bias, x = torch.randn(outputs, 64), torch.randn(outputs), torch.randn(3, 64)
    steps, scales = quantise_groups(weight)
    assert int(steps.min()) == 0
    assert int(steps.max()) == 15
    scale, zero = scales.float().permute(2, 1, 0).repeat_interleave(32, dim=2)
    rounded = (steps - 8) * scale + zero
    assert ((rounded - weight).abs() <= scale * 0.51 + 0.02).all()
    expected = x.bfloat16().double() @ rounded.double().T + bias
    assert torch.allclose(Int4Linear(weight, bias)(x).double(), expected, atol=0.05, rtol=0.01)
