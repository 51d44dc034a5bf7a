"""Options out of range, and combinations in which one has no effect, are refused in one line that says why."""

import math
from dataclasses import fields

import numpy as np
import pytest

from gpt2core.decoding.checks import check_options, check_token_ids
from gpt2core.decoding.options import GenerationOptions
from gpt2core.errors import UserError

SAMPLE = {"do_sample": True}
BEAMS = {"num_beams": 4}
GROUPS = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}
RESULT = {"return_dict_in_generate": True}

SENSIBLE = [
    {},
    SAMPLE,
    {**SAMPLE, "temperature": 1e-6, "top_k": 0, "top_p": 1, "min_p": 0, "typical_p": 0.1, "epsilon_cutoff": 3e-4},
    {**SAMPLE, "temperature": 2, "top_k": None, "top_p": 0.9, "min_p": 1.0, "eta_cutoff": 0.01},
    {**SAMPLE, "num_return_sequences": 7},
    {**SAMPLE, "temperature": None, "top_k": None, "top_p": None, "typical_p": None, "epsilon_cutoff": None},
    # What people write to make sure that nothing is drawn.
    {"temperature": 0, "top_k": None, "top_p": None},
    {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "num_beams": 1, "num_return_sequences": 1},
    {**BEAMS, "num_return_sequences": 4, "length_penalty": -2, "early_stopping": "never", "no_repeat_ngram_size": 3},
    {**BEAMS, **SAMPLE, "top_k": 9, "temperature": 0.7, "early_stopping": True},
    GROUPS,
    {"penalty_alpha": 0.6},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"prompt_lookup_num_tokens": 10, "max_matching_ngram_size": 2},
    {"prompt_lookup_num_tokens": 10, **SAMPLE, "temperature": 0.7},
    {"min_new_tokens": 20},
    {"min_new_tokens": 30, "max_new_tokens": 30},
    {"max_length": 10, "max_new_tokens": 30, "min_length": 20},
    {"eos_token_id": None},
    {"eos_token_id": [0, 50256], "pad_token_id": 0},
    {"bad_words_ids": [[50256], [3]]},
    {"bad_words_ids": [(np.int64(3), 4)], "suppress_tokens": (1, 2)},
    {"suppress_tokens": []},
    {"sequence_bias": {(1, 2): -math.inf, (3,): 4}},
    {"sequence_bias": [[[1, 2], -2.5]]},
    {"stop_strings": "\n\n"},
    {"stop_strings": ["a", "é"]},
    {"logits_processor": lambda ids, logits: logits},
    {"logits_processor": [lambda ids, logits: logits]},
    {**RESULT, "output_scores": True, "output_logits": True, "output_log_probs": True},
    {"max_time": 0.5, "past_block_size": "slide"},
]

REFUSED = [
    ({**SAMPLE, "top_p": 1.5}, r"top_p \(1.5\) must be a number above 0 and at most 1"),
    ({**SAMPLE, "top_p": 0}, "top_p"),
    ({**SAMPLE, "top_p": "0.9"}, r"top_p \('0.9'\) must be a number"),
    ({**SAMPLE, "top_p": math.nan}, r"top_p \(nan\)"),
    ({**SAMPLE, "top_k": -1}, r"top_k \(-1\) must be a whole number of at least 0"),
    ({**SAMPLE, "top_k": 2.5}, "top_k"),
    ({**SAMPLE, "top_k": True}, "top_k"),
    ({**SAMPLE, "min_p": 1.1}, "min_p"),
    ({**SAMPLE, "min_p": -0.1}, "min_p"),
    ({**SAMPLE, "typical_p": 0}, "typical_p"),
    ({**SAMPLE, "epsilon_cutoff": 1}, "epsilon_cutoff .* below 1"),
    ({**SAMPLE, "eta_cutoff": -0.1}, "eta_cutoff"),
    ({**SAMPLE, "temperature": 0}, r"temperature \(0\) must be at least 1e-06 .* use greedy"),
    ({**SAMPLE, "temperature": 1e-300}, "temperature"),
    ({**SAMPLE, "temperature": -1}, "temperature"),
    ({**SAMPLE, "temperature": math.nan}, "temperature"),
    ({**SAMPLE, "temperature": math.inf}, "temperature"),
    ({**SAMPLE, "temperature": "hot"}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"do_sample": 1}, r"do_sample \(1\) must be one of True, False"),
    ({"do_sample": "yes"}, "do_sample"),
    ({"num_beams": 0}, r"num_beams \(0\) must be a whole number of at least 1"),
    ({"num_beams": None}, "num_beams"),
    ({"num_return_sequences": 0}, "num_return_sequences"),
    ({"max_new_tokens": 0}, "max_new_tokens"),
    ({"max_new_tokens": 1.0}, "max_new_tokens"),
    ({"max_length": 0}, "max_length"),
    ({"min_length": -1}, "min_length"),
    ({"min_new_tokens": -1}, "min_new_tokens"),
    ({"max_time": 0}, "max_time"),
    ({"repetition_penalty": 0}, "repetition_penalty .* above 0"),
    ({"repetition_penalty": math.inf}, "repetition_penalty"),
    ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
    ({"no_repeat_ngram_size": "3"}, "no_repeat_ngram_size"),
    ({**BEAMS, "length_penalty": math.nan}, "length_penalty .* at most 50"),
    ({**BEAMS, "early_stopping": "always"}, "early_stopping .* True, False, 'never'"),
    ({**BEAMS, "early_stopping": None}, "early_stopping"),
    ({**GROUPS, "diversity_penalty": -1}, "diversity_penalty"),
    ({"penalty_alpha": 0}, "penalty_alpha"),
    ({"penalty_alpha": 1.2}, "penalty_alpha"),
    ({"prompt_lookup_num_tokens": 0}, "prompt_lookup_num_tokens"),
    ({"past_block_size": "crop"}, "past_block_size .* 'refuse', 'slide'"),
    ({"eos_token_id": -1}, "eos_token_id"),
    ({"eos_token_id": []}, "eos_token_id .* None"),
    ({"eos_token_id": [1, -2]}, "eos_token_id"),
    ({"eos_token_id": "<|endoftext|>"}, "eos_token_id"),
    ({"pad_token_id": -1}, "pad_token_id"),
    ({"bad_words_ids": []}, "bad_words_ids"),
    ({"bad_words_ids": [[]]}, "bad_words_ids .* none of them empty"),
    ({"bad_words_ids": [3]}, "bad_words_ids .* list of lists"),
    ({"bad_words_ids": ["bad"]}, "bad_words_ids"),
    ({"bad_words_ids": [[-3]]}, "bad_words_ids"),
    ({"bad_words_ids": [[50256]]}, "bad_words_ids .* only the end of text"),
    ({"sequence_bias": {}}, "sequence_bias"),
    ({"sequence_bias": {3: 1.0}}, "sequence_bias"),
    ({"sequence_bias": {(): 1.0}}, "sequence_bias"),
    ({"sequence_bias": [[[1], 2.0, 3.0]]}, "sequence_bias"),
    ({"sequence_bias": 3}, "sequence_bias"),
    ({"sequence_bias": {(1,): math.inf}}, r"sequence_bias of \(1,\)"),
    ({"sequence_bias": {(1,): math.nan}}, "sequence_bias of"),
    ({"sequence_bias": {(1,): "much"}}, "sequence_bias of"),
    ({"suppress_tokens": 3}, "suppress_tokens"),
    ({"suppress_tokens": [-1]}, "suppress_tokens"),
    ({"stop_strings": ""}, "stop_strings"),
    ({"stop_strings": []}, "stop_strings"),
    ({"stop_strings": ["a", ""]}, "stop_strings .* none of them empty"),
    ({"stop_strings": [b"a"]}, "stop_strings"),
    ({"stop_strings": "\ud800"}, "stop_strings .* lone surrogate"),
    ({"logits_processor": [3]}, "logits_processor"),
    ({"logits_processor": None}, "logits_processor"),
    # Combinations
    ({"num_return_sequences": 2}, "greedy decoding gives one text"),
    ({**BEAMS, "num_return_sequences": 5}, r"num_return_sequences \(5\) is above num_beams \(4\)"),
    ({"penalty_alpha": 0.6, "num_return_sequences": 2}, "contrastive search gives one text"),
    ({"prompt_lookup_num_tokens": 3, **SAMPLE, "num_return_sequences": 2}, "prompt lookup gives one text"),
    ({"temperature": 0.7}, r"temperature \(0.7\) has an effect only when sampling; set do_sample=True"),
    ({"top_k": 10}, "top_k .* only when sampling"),
    ({**BEAMS, "top_p": 0.9}, "top_p .* only when sampling"),
    ({"penalty_alpha": 0.6, "min_p": 0.1}, "min_p .* only when sampling"),
    ({"eta_cutoff": 0.1}, "eta_cutoff .* only when sampling"),
    ({"length_penalty": 2.0}, "length_penalty .* beam search"),
    ({"early_stopping": True}, "early_stopping .* beam search"),
    ({**SAMPLE, "diversity_penalty": 1.0}, "diversity_penalty .* beam search"),
    ({"num_beam_groups": 2, "diversity_penalty": 1.0}, "num_beam_groups .* beam search"),
    ({**BEAMS, "diversity_penalty": 1.0}, "diversity_penalty .* set num_beam_groups"),
    ({**GROUPS, "num_beams": 5}, r"num_beams \(5\) must be a multiple of num_beam_groups \(2\)"),
    ({**GROUPS, "num_beam_groups": 8}, "must be a multiple"),
    ({**GROUPS, "diversity_penalty": 0.0}, "set diversity_penalty above 0"),
    ({**GROUPS, **SAMPLE}, "groups of beams draws nothing"),
    ({"penalty_alpha": 0.6, **SAMPLE}, "contrastive search .* draws nothing"),
    ({"penalty_alpha": 0.6, **BEAMS}, "penalty_alpha follows one text, not beams"),
    ({"penalty_alpha": 0.6, "top_k": 1}, r"top_k \(1\) must be at least 2 for contrastive search"),
    ({"penalty_alpha": 0.6, "top_k": None}, "top_k .* contrastive search"),
    ({"penalty_alpha": 0.6, "prompt_lookup_num_tokens": 3}, "two ways of decoding"),
    ({"prompt_lookup_num_tokens": 3, **BEAMS}, "prompt_lookup_num_tokens follows one text, not beams"),
    ({"max_matching_ngram_size": 2}, "max_matching_ngram_size belongs to prompt lookup"),
    ({"min_new_tokens": 21}, r"min_new_tokens \(21\) is above max_new_tokens \(20\)"),
    ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens"),
    ({"min_length": 31, "max_length": 30}, r"min_length \(31\) is above max_length \(30\)"),
    ({"min_new_tokens": 31, "max_length": 30}, r"min_new_tokens \(31\) is above max_length"),
    ({"output_scores": True}, "output_scores needs return_dict_in_generate=True"),
    ({"output_log_probs": True}, "output_log_probs needs"),
]


@pytest.mark.parametrize("options", SENSIBLE, ids=lambda options: ", ".join(options))
def test_sensible_options_pass(options) -> None:
    check_options(GenerationOptions(**options))


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=repr)
def test_senseless_options_are_one_clear_line(options, message) -> None:
    with pytest.raises(UserError, match=message) as error:
        check_options(GenerationOptions(**options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [field.name for field in fields(GenerationOptions)])
def test_no_option_takes_an_object_of_another_kind(name) -> None:
    for value in (object(), {"a": 1}, [[]], -5, math.nan, "\ud800"):
        with pytest.raises(UserError, match=name) as error:
            check_options(GenerationOptions(**{name: value}))
        assert "\n" not in str(error.value)


def test_every_option_with_a_default_of_its_own_passes_when_it_is_spelled_out() -> None:
    for strategy in (SAMPLE, BEAMS, GROUPS, {"penalty_alpha": 0.6}, {"prompt_lookup_num_tokens": 3}, {}):
        defaults = {field.name: field.default for field in fields(GenerationOptions)}
        check_options(GenerationOptions(**{**defaults, **strategy}))


def test_a_long_list_is_cut_short_in_the_message() -> None:
    with pytest.raises(UserError, match=r"bad_words_ids \(\[\[1\], \[1\].*\.\.\.\]\)") as error:
        check_options(GenerationOptions(bad_words_ids=[[1]] * 10_000 + [[-1]]))
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    "options",
    [
        {"eos_token_id": [3, 61]},
        {"pad_token_id": 61},
        {"bos_token_id": 99},
        {"suppress_tokens": [1, 61]},
        {"bad_words_ids": [[1], [2, 61]]},
    ],
    ids=repr,
)
def test_token_ids_that_the_model_does_not_know_are_named(options) -> None:
    (name,) = options
    with pytest.raises(UserError, match=rf"{name}: token id \d+ is outside the model's vocabulary \(0 to 60\)"):
        check_token_ids(GenerationOptions(**options), 61)
    check_token_ids(GenerationOptions(**options), 100)


def test_the_default_end_of_text_suits_a_model_of_any_vocabulary() -> None:
    check_token_ids(GenerationOptions(), 61)


@pytest.mark.parametrize("name", ["num_beams", "num_return_sequences"])
def test_texts_beyond_what_any_machine_holds_are_refused_at_once(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} \(\d+\) must be .* at most 100,000"):
        check_options(GenerationOptions(do_sample=True, **{name: 10**18}))


def test_a_length_penalty_that_overflows_is_refused() -> None:
    with pytest.raises(UserError, match=r"length_penalty \(1e\+300\) must be a number of at least -50 and at most 50"):
        check_options(GenerationOptions(num_beams=4, num_beam_groups=2, diversity_penalty=0.5, length_penalty=1e300))
