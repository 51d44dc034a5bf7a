"""Which decoding options make sense together. An option at its default is never refused."""

from gpt2core.decoding.options import DEFAULT_NEW_TOKENS, OPTIONS, GenerationOptions
from gpt2core.errors import UserError

# Below it, logits divided by it overflow fp32.
MIN_TEMPERATURE = 1e-6
SAMPLING = tuple(name for name, row in OPTIONS.items() if row.group == "sampling")
# At these values they leave the distribution as it is. A temperature of 0 asks for the likeliest token.
OFF = {"temperature": (1, 0), "top_k": (0,), "top_p": (1,), "min_p": (0,), "typical_p": (1,)}


def check_options(options: GenerationOptions) -> None:
    """Raises UserError, in one line, for a value out of range, or a combination in which an option has no effect."""
    for name, row in OPTIONS.items():
        row.rule.refuse(name, getattr(options, name))
    _check_bad_words(options)
    _check_lengths(options)
    _check_sampling(options)
    _check_beams(options)
    _check_strategies(options)
    _check_copies(options)
    _check_results(options)


def check_token_ids(options: GenerationOptions, vocab_size: int) -> None:
    """Raises UserError for a token id that a model of `vocab_size` tokens does not know, were it not a default."""
    token_ids = {
        "eos_token_id": options.eos_ids,
        "pad_token_id": () if options.pad_token_id is None else (options.pad_token_id,),
        "bos_token_id": (options.bos_token_id,),
        "suppress_tokens": options.suppress_tokens or (),
        "bad_words_ids": [token_id for word in options.bad_words_ids or () for token_id in word],
    }
    for name, ids in token_ids.items():
        unknown = [token_id for token_id in ids if token_id >= vocab_size]
        if unknown and getattr(options, name) != OPTIONS[name].default:
            rule = ": token id {unknown} is outside the model's vocabulary (0 to {last})"
            raise UserError(key=name, rule=rule, unknown=unknown[0], last=vocab_size - 1)


def _check_bad_words(options: GenerationOptions) -> None:
    words = options.bad_words_ids
    if words is not None and all(len(word) == 1 and word[0] in options.eos_ids for word in words):
        raise UserError(
            key="bad_words_ids",
            value=words,
            rule="holds only the end of text, which is no word",
            remedy="for longer texts set {min_new_tokens}, for endless ones eos_token_id=None",
        )


def _check_lengths(options: GenerationOptions) -> None:
    least, most = options.min_new_tokens, options.max_new_tokens
    if most is None and options.max_length is None:
        most = DEFAULT_NEW_TOKENS
    if least is not None and most is not None and least > most:
        rule = "is above {max_new_tokens} ({most})"
        raise UserError(key="min_new_tokens", value=least, rule=rule, remedy="raise {max_new_tokens}", most=most)
    for name in ("min_length", "min_new_tokens"):
        value, most = getattr(options, name), options.max_length
        if options.max_new_tokens is None and most is not None and (value or 0) > most:
            rule = "is above {max_length} ({most})"
            raise UserError(key=name, value=value, rule=rule, remedy="raise {max_length}", most=most)


def _check_sampling(options: GenerationOptions) -> None:
    if options.do_sample:
        if options.temperature is not None and options.temperature < MIN_TEMPERATURE:
            raise UserError(
                key="temperature",
                value=options.temperature,
                rule="must be at least {least:g} to sample",
                remedy="for the likeliest token use greedy decoding",
                least=MIN_TEMPERATURE,
            )
        return
    for name in SAMPLING:
        value = getattr(options, name)
        if value is None or value == OPTIONS[name].default or value in OFF.get(name, ()):
            continue
        if name == "top_k" and options.penalty_alpha is not None:
            continue
        rule, remedy = "has an effect only when sampling", "set {do_sample:True} or leave it out"
        raise UserError(key=name, value=value, rule=rule, remedy=remedy)


def _check_beams(options: GenerationOptions) -> None:
    beams, groups, copies = options.num_beams, options.num_beam_groups, options.num_return_sequences
    if beams == 1:
        for name in ("length_penalty", "early_stopping", "num_beam_groups", "diversity_penalty"):
            value = getattr(options, name)
            if value != OPTIONS[name].default:
                remedy = "set {num_beams} above 1 or leave it out"
                raise UserError(key=name, value=value, rule="belongs to beam search", remedy=remedy)
        return
    if copies > beams:
        rule = "is above {num_beams} ({beams}), which are all there is"
        raise UserError(key="num_return_sequences", value=copies, rule=rule, beams=beams)
    if groups == 1:
        if options.diversity_penalty:
            rule, remedy = "tells groups of beams apart", "set {num_beam_groups} above 1 or leave it out"
            raise UserError(key="diversity_penalty", value=options.diversity_penalty, rule=rule, remedy=remedy)
        return
    if beams % groups:
        rule = "must be a multiple of {num_beam_groups} ({groups})"
        raise UserError(key="num_beams", value=beams, rule=rule, groups=groups)
    if not options.diversity_penalty:
        rule, remedy = "would all find the same texts", "set {diversity_penalty} above 0"
        raise UserError(key="num_beam_groups", value=groups, rule=rule, remedy=remedy)
    if options.do_sample:
        remedy = "leave out {do_sample} or {num_beam_groups}"
        raise UserError(rule="a search in groups of beams draws nothing", remedy=remedy)


def _check_strategies(options: GenerationOptions) -> None:
    contrastive, lookup = options.penalty_alpha is not None, options.prompt_lookup_num_tokens is not None
    if contrastive:
        if lookup:
            rule = "{penalty_alpha} and {prompt_lookup_num_tokens} are two ways of decoding"
            raise UserError(rule=rule, remedy="leave one out")
        if options.do_sample:
            remedy = "leave out {do_sample} or {penalty_alpha}"
            raise UserError(rule="contrastive search ({penalty_alpha}) draws nothing", remedy=remedy)
        if options.top_k is None or options.top_k < 2:
            raise UserError(
                key="top_k",
                value=options.top_k,
                rule="must be at least 2 for contrastive search ({penalty_alpha}), "
                "which chooses among the likeliest tokens",
            )
    if (contrastive or lookup) and options.num_beams > 1:
        name = "penalty_alpha" if contrastive else "prompt_lookup_num_tokens"
        remedy = "leave out {num_beams} or {" + name + "}"
        raise UserError(key=name, rule="follows one text, not beams", remedy=remedy)
    if options.max_matching_ngram_size is not None and not lookup:
        remedy = "set {prompt_lookup_num_tokens} or leave it out"
        raise UserError(key="max_matching_ngram_size", rule="belongs to prompt lookup", remedy=remedy)


def _check_copies(options: GenerationOptions) -> None:
    copies = options.num_return_sequences
    if copies == 1 or options.num_beams > 1:
        return
    if options.prompt_lookup_num_tokens is not None:
        rule = "prompt lookup gives one text, not {copies} {num_return_sequences}"
        raise UserError(rule=rule, remedy="leave one of them out", copies=copies)
    if options.penalty_alpha is not None:
        raise UserError(rule="contrastive search gives one text, not {copies} {num_return_sequences}", copies=copies)
    if not options.do_sample:
        remedy = "set {do_sample} or {num_beams} for several"
        raise UserError(rule="greedy decoding gives one text", remedy=remedy)


def _check_results(options: GenerationOptions) -> None:
    for name in ("output_scores", "output_logits", "output_log_probs"):
        if getattr(options, name) and not options.return_dict_in_generate:
            rule = "needs {return_dict_in_generate:True}: a tensor of tokens has no place for it"
            raise UserError(key=name, rule=rule)
