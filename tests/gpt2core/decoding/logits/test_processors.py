"""Each logits processor is bit-equal to transformers', and leaves out a row's padding where it is told to."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, LogitsProcessorList

from gpt2core.decoding.logits.processors import apply, build_processors
from gpt2core.decoding.options import GenerationOptions
from gpt2core.errors import UserError


@pytest.fixture(scope="module")
def reference() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_layer=1, n_head=1, n_embd=4))


def transformers_processors(
    reference: GPT2LMHeadModel, settings: dict, prompt_length: int, mask: Tensor | None = None, own: tuple = ()
) -> LogitsProcessorList:
    """What transformers' own `generate` builds for these settings."""
    config = GenerationConfig(**{"top_k": 50, "do_sample": False, "num_beams": 1, **settings})
    reference._prepare_special_tokens(config, kwargs_has_attention_mask=True, device=torch.device("cpu"))
    return reference._get_logits_processor(
        config,
        input_ids_seq_length=prompt_length,
        logits_processor=LogitsProcessorList(own),
        device="cpu",
        model_kwargs={} if mask is None else {"attention_mask": mask},
    )


def make_logits(seed: int, rows: int, vocab_size: int, kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocab_size, generator=generator) * 3
    if "ties" in kind:
        logits = logits.bfloat16().float()
    if "many ties" in kind:
        logits = (logits * 2).round() / 2
    if "inf" in kind:
        logits[torch.rand(rows, vocab_size, generator=generator) < 0.4] = -torch.inf
        logits[:, seed % vocab_size] = 1.25  # a row of nothing but -inf has no distribution
    return logits


KINDS = ["plain", "ties", "many ties", "inf", "inf ties", "inf many ties"]
cases = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "rows": st.integers(1, 4),
        # Small ones for the edges, odd ones for the tails of vectors.
        "vocab_size": st.sampled_from([3, 7, 16, 33, 61, 131, 1000]),
        "length": st.integers(1, 24),
        "kind": st.sampled_from(KINDS),
        "num_beams": st.sampled_from([1, 1, 3]),
        "eos": st.sampled_from([None, 2, [0, 2]]),
    }
)
few_ids = st.lists(st.integers(0, 2), min_size=1, max_size=3)
words = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=5)
unit = st.floats(0.01, 0.99)
PENALTIES = {
    "sequence_bias": words.flatmap(
        lambda keys: st.lists(st.floats(-9, 9), min_size=len(keys), max_size=len(keys)).map(
            lambda values: [list(pair) for pair in zip(keys, values, strict=True)]
        )
    ),
    "repetition_penalty": st.floats(0.3, 3).filter(lambda value: value != 1),
    "no_repeat_ngram_size": st.integers(1, 5),
    "bad_words_ids": words.map(lambda keys: [*keys, [1, 1]]),  # one at least that is no end of text
    "min_length": st.integers(1, 30),
    "min_new_tokens": st.integers(1, 12),
    "suppress_tokens": few_ids,
}
WARPERS = {
    "temperature": st.floats(0.05, 5).filter(lambda value: value != 1),
    "top_k": st.integers(1, 70),
    "top_p": unit,
    "min_p": st.floats(0, 1),
    "typical_p": unit,
    "epsilon_cutoff": st.sampled_from([1e-4, 3e-4, 0.01, 0.2, 0.9]),
    "eta_cutoff": st.sampled_from([3e-4, 4e-3, 0.05, 0.5]),
}


def make_ids(case: dict) -> Tensor:
    """Token ids of few kinds, so that n-grams repeat and biased words occur."""
    generator = torch.Generator().manual_seed(case["seed"] + 1)
    return torch.randint(min(3, case["vocab_size"]), (case["rows"], case["length"]), generator=generator)


def assert_bit_equal(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == theirs.dtype == torch.float32
    same = ours.view(torch.int32) == theirs.view(torch.int32)
    # Adding a bias of 0 makes 0 of -0; both are the number 0.
    assert bool((same | ((ours == 0) & (theirs == 0))).all())


def assert_equals_transformers(reference: GPT2LMHeadModel, case: dict, settings: dict, mask: Tensor | None) -> None:
    logits = make_logits(case["seed"], case["rows"], case["vocab_size"], case["kind"])
    before, ids = logits.clone(), make_ids(case)
    settings = {**settings, "num_beams": case["num_beams"], "eos_token_id": case["eos"]}
    prompt_length = max(1, case["length"] // 2)
    theirs = transformers_processors(reference, copy.deepcopy(settings), prompt_length, mask)
    starts = None if mask is None else mask.argmax(-1)
    ours = build_processors(GenerationOptions(**settings), prompt_length, mask_starts=starts)
    assert len(ours) == len(theirs)
    assert_bit_equal(apply(ours, ids, logits), theirs(ids, logits.clone()))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("name", [*PENALTIES, *WARPERS])
def test_each_processor_is_bit_equal_to_that_of_transformers(reference, name) -> None:
    values = {**PENALTIES, **WARPERS}[name]

    @settings(max_examples=150, deadline=None)
    @given(cases, values)
    def check(case, value) -> None:
        own = {"top_k": 0, "do_sample": True} if name in WARPERS else {}
        assert_equals_transformers(reference, case, {**own, name: value}, None)

    check()


@settings(max_examples=300, deadline=None)
@given(cases, st.fixed_dictionaries({}, optional=PENALTIES), st.fixed_dictionaries({}, optional=WARPERS), st.booleans())
def test_any_of_them_together_run_in_the_order_of_transformers(reference, case, penalties, warpers, do_sample) -> None:
    chosen = {**penalties, **(warpers if do_sample else {}), "do_sample": do_sample}
    logits = make_logits(case["seed"], case["rows"], case["vocab_size"], case["kind"])
    # Where nothing is left, the distribution is no number, and so is what follows.
    if torch.isfinite(penalised(reference, case, penalties, logits)).any(-1).all():
        mask = torch.arange(case["length"]) >= torch.arange(case["rows"])[:, None] % case["length"]
        assert_equals_transformers(reference, case, chosen, mask.long())


def penalised(reference: GPT2LMHeadModel, case: dict, penalties: dict, logits: Tensor) -> Tensor:
    settings = {**copy.deepcopy(penalties), "eos_token_id": case["eos"]}
    return transformers_processors(reference, settings, max(1, case["length"] // 2))(make_ids(case), logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chosen", [{"top_k": 0}, {"top_k": 50}, {"top_k": 50, "temperature": 0.7}, {"typical_p": 0.9}])
def test_the_whole_vocabulary_is_bit_equal_too(reference, kind, chosen) -> None:
    logits = make_logits(3, 4, 50257, kind)
    for top_p in (0.3, 0.8, 0.95):
        settings = {"do_sample": True, "top_p": top_p, **chosen}
        theirs = transformers_processors(reference, settings, 1)
        ours = build_processors(GenerationOptions(**settings), 1)
        ids = torch.zeros(4, 1, dtype=torch.int64)
        assert_bit_equal(apply(ours, ids, logits), theirs(ids, logits))


def test_the_value_at_the_edge_of_top_p_is_split_as_transformers_splits_it(reference) -> None:
    logits = torch.zeros(1, 1000)  # all equal: which 500 stay is the sort's choice
    ours = build_processors(GenerationOptions(do_sample=True, top_k=None, top_p=0.5), 1)
    theirs = transformers_processors(reference, {"do_sample": True, "top_k": 0, "top_p": 0.5}, 1)
    ids = torch.zeros(1, 1, dtype=torch.int64)
    kept = apply(ours, ids, logits)
    assert 400 < int(kept.isfinite().sum()) < 600
    assert_bit_equal(kept, theirs(ids, logits))


@pytest.mark.parametrize("name", ["top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"])
def test_a_probability_just_at_the_threshold_falls_where_transformers_has_it(reference, name) -> None:
    halves = torch.tensor([[4.0, 2, 1, 1], [1, 1, 1, 1], [8, 4, 2, 2], [1, 2, 0, 1]]).log()
    assert halves[0].softmax(-1).tolist() == [0.5, 0.25, 0.125, 0.125]
    ids = torch.zeros(4, 1, dtype=torch.int64)
    for value in (0.125, 0.25, 0.5, 0.75, 0.875):
        chosen = {"do_sample": True, name: value}
        theirs = transformers_processors(reference, {"top_k": 0, **chosen}, 1)
        ours = build_processors(GenerationOptions(top_k=None, **chosen), 1)
        assert_bit_equal(apply(ours, ids, halves), theirs(ids, halves))


PADDED = {
    **{name: {name: value} for name, value in {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2}.items()},
    "n-gram of one": {"no_repeat_ngram_size": 1},
    "sequence_bias": {"sequence_bias": {(1,): 2.0, (7, 0, 2): 5.0, (7, 1, 2): -3.0, (7, 7, 5): 4.0, (7, 2, 1): 4.0}},
    "bad_words_ids": {"bad_words_ids": [[7, 0], [0, 1, 2], [7, 7, 7, 1], [2, 2]]},
    "min_length": {"min_length": 9},
    "min_new_tokens": {"min_new_tokens": 3},
    "suppress_tokens": {"suppress_tokens": [1, 4]},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_k": 9, "top_p": 0.9, "min_p": 0.01},
    "user's own": {"logits_processor": [lambda ids, logits: logits + ids.shape[1] + ids.sum(1, keepdim=True)]},
}


@pytest.mark.parametrize("chosen", PADDED.values(), ids=PADDED)
@pytest.mark.parametrize("beams", [1, 3])
def test_a_left_padded_row_gets_what_it_gets_alone(chosen, beams) -> None:
    options = GenerationOptions(eos_token_id=7, num_beams=beams, **chosen)
    generator = torch.Generator().manual_seed(4)
    padding = torch.tensor([0, 5, 2, 11])
    prompt_length, differs = 12, False
    for length in (12, 13, 16):
        ids = torch.randint(4, (4 * beams, length), generator=generator)
        ids[ids == 3] = 7  # the padding's token is also one of the text
        ids[torch.arange(length) < padding.repeat_interleave(beams)[:, None]] = 7
        logits = make_logits(length, 4 * beams, 33, "plain")
        together = apply(build_processors(options, prompt_length, padding=padding), ids, logits)
        differs |= not torch.equal(together, apply(build_processors(options, prompt_length), ids, logits))
        for row, pads in enumerate(padding.repeat_interleave(beams).tolist()):
            alone = apply(build_processors(options, prompt_length - pads), ids[row : row + 1, pads:], logits[[row]])
            assert_bit_equal(together[[row]], alone)
    counts_length = not {"suppress_tokens", "min_new_tokens", "do_sample"} & chosen.keys()
    assert differs == counts_length


def test_padding_of_every_row_serves_one_group_of_beams() -> None:
    padding = torch.tensor([0, 0, 0, 0, 3, 3, 3, 3])  # two prompts of four beams
    processors = build_processors(GenerationOptions(repetition_penalty=2.0), 4, padding=padding)
    ids = torch.tensor([[9, 9, 9, 1]] * 4)  # a group has two beams of each
    out = apply(processors, ids, torch.ones(4, 10))
    assert out[:, 9].tolist() == [0.5, 0.5, 1, 1]


def test_beams_may_change_places_between_steps(reference) -> None:
    chosen = {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "bad_words_ids": [[1, 2]]}
    ours = build_processors(GenerationOptions(**chosen), 4)
    theirs = transformers_processors(reference, chosen, 4)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, (4, 4), generator=generator)
    for step in range(20):
        logits = make_logits(step, 4, 61, "plain")
        assert_bit_equal(apply(ours, ids, logits), theirs(ids, logits))
        places = torch.randint(4, (4,), generator=generator)
        ids = torch.cat([ids[places], torch.randint(3, (4, 1), generator=generator)], dim=1)


def test_a_users_functions_run_once_a_step_after_the_penalties_and_before_the_temperature(reference) -> None:
    seen = []

    def add_one(ids: Tensor, logits: Tensor) -> Tensor:
        seen.append((ids.clone(), logits.clone()))
        logits += 1
        return logits

    chosen = {"suppress_tokens": [2], "do_sample": True, "temperature": 0.5}
    theirs = transformers_processors(reference, chosen, 3, own=(lambda ids, logits: logits + 1,))
    logits, ids = make_logits(0, 2, 33, "plain"), torch.ones(2, 3, dtype=torch.int64)
    before = logits.clone()
    for own in (add_one, [add_one], LogitsProcessorList([add_one])):
        seen.clear()
        ours = build_processors(GenerationOptions(logits_processor=own, **chosen), 3)
        assert_bit_equal(apply(ours, ids, logits), theirs(ids, logits))
        assert len(seen) == 1
        assert torch.equal(seen[0][0], ids)
        assert bool((seen[0][1][:, 2] == -torch.inf).all())
        apply(build_processors(GenerationOptions(logits_processor=own), 3), ids, logits)
        assert torch.equal(logits, before)  # for whoever asked for the model's own


@pytest.mark.parametrize("result", [None, torch.zeros(3), torch.zeros(2, 32), [1.0]])
def test_a_users_function_that_returns_no_logits_is_named(result) -> None:
    def forgetful(ids: Tensor, logits: Tensor) -> object:
        return result

    processors = build_processors(GenerationOptions(logits_processor=[forgetful]), 1)
    with pytest.raises(UserError, match=r"forgetful returned .* must return logits \(2, 33\)"):
        apply(processors, torch.ones(2, 1, dtype=torch.int64), torch.zeros(2, 33))


def test_a_bias_on_a_token_that_the_model_does_not_know_is_one_clear_line() -> None:
    processors = build_processors(GenerationOptions(bad_words_ids=[[3, 99]]), 1)
    with pytest.raises(UserError, match="token id 99"):
        apply(processors, torch.ones(1, 1, dtype=torch.int64), torch.zeros(1, 33))


def test_no_option_means_no_processor() -> None:
    assert build_processors(GenerationOptions(), 5) == []
    off = {"temperature": None, "top_k": None, "top_p": None, "min_p": None, "typical_p": None, "epsilon_cutoff": None}
    off |= {"eta_cutoff": None, "repetition_penalty": None, "no_repeat_ngram_size": None, "min_new_tokens": None}
    assert build_processors(GenerationOptions(do_sample=True, **off), 5) == []
    assert build_processors(GenerationOptions(min_length=9, min_new_tokens=9, eos_token_id=None), 5) == []


def test_greedy_tokens_of_a_peaked_distribution_survive_every_cutoff() -> None:
    chosen = {"top_k": 1, "top_p": 0.01, "min_p": 1.0, "typical_p": 0.01, "epsilon_cutoff": 0.99, "eta_cutoff": 0.99}
    processors = build_processors(GenerationOptions(do_sample=True, **chosen), 1)
    logits = make_logits(1, 3, 1000, "plain")
    kept = apply(processors, torch.ones(3, 1, dtype=torch.int64), logits)
    assert kept.isfinite().sum(-1).tolist() == [1, 1, 1]
    assert torch.equal(kept.argmax(-1), logits.argmax(-1))
    assert not math.isnan(float(kept.amax()))
