"""The texts of `sample.settings` with their metrics, and texts of the model before training."""

from dataclasses import replace
from typing import Any

from gpt2core.data.examples.template import Template, prompt_text, template_of
from gpt2core.data.tokens import TokenSplit
from gpt2core.errors import UserError
from gpt2core.evaluation.overlap import distinct_n, longest_overlap
from gpt2core.model import GPT
from gpt2core.runtime import pick_device
from gpt2core.tokenizer import Tokenizer
from gpt2ops.params.schema import Params
from gpt2ops.params.sections import SampleSetting
from gpt2ops.pipeline import paths
from gpt2ops.process.console import say
from gpt2ops.sampling.texts import Text, passages, write_texts
from gpt2ops.training.initial_model import best_model, initial_model

BATCH_PROMPTS = 8
# Enough to see what training has changed; the untrained model may be as slow as the trained one.
BEFORE_PROMPTS, BEFORE_TOKENS = 2, 60


def write_samples(params: Params, train: TokenSplit) -> dict[str, Any]:
    """The content of samples.json, except `before`. Raises UserError that names the setting that fails."""
    model = best_model().to(pick_device(params.run.device))
    tokenizer = Tokenizer()
    samples = []
    for number, setting in enumerate(params.sample.settings):
        seed = params.sample.seed if setting.seed is None else setting.seed
        try:
            texts = write_setting(params, setting, seed, model, tokenizer)
        except UserError as error:
            place = f"sample.settings[{number}].".__add__
            raise error.spelled(place, source=f"setting {setting.name}") from None
        for prompt, written in zip(params.sample.prompts, texts, strict=True):
            for copy, text in enumerate(written):
                facts = measure(text, train, params.sample.memorised_tokens, tokenizer)
                seeded = {"seed": seed + copy if setting.draws else None}
                samples.append({"prompt": prompt, "setting": setting.name, **seeded, **facts})
    return {
        "settings": {setting.name: setting.model_dump(exclude={"name"}) for setting in params.sample.settings},
        **params.sample.model_dump(include={"max_new_tokens", "seed", "memorised_tokens"}),
        "samples": samples,
    }


def write_before(params: Params) -> list[dict[str, Any]]:
    """Texts of the initial model for the first prompts, by the first setting that samples, else the first."""
    settings = params.sample.settings
    if not settings or not params.sample.prompts:
        return []
    setting = next((one for one in settings if one.draws), settings[0])
    seed = params.sample.seed if setting.seed is None else setting.seed
    short = params.sample.model_copy(
        update={
            "prompts": params.sample.prompts[:BEFORE_PROMPTS],
            "max_new_tokens": min(BEFORE_TOKENS, setting.max_new_tokens or params.sample.max_new_tokens),
        }
    )
    say("generating texts with the model before training ...")
    model = initial_model(params).eval().to(pick_device(params.run.device))
    written = write_setting(
        params.model_copy(update={"sample": short}),
        setting.model_copy(update={"max_new_tokens": None, "num_sequences": None}),
        seed,
        model,
        Tokenizer(),
    )
    return [
        {
            "prompt": prompt,
            "setting": setting.name,
            "seed": seed if setting.draws else None,
            "text": texts[0].text,
            "tokens": texts[0].tokens,
            "mean_log_prob": texts[0].mean_log_prob,
        }
        for prompt, texts in zip(short.prompts, written, strict=True)
    ]


def write_setting(
    params: Params, setting: SampleSetting, seed: int, model: GPT, tokenizer: Tokenizer
) -> list[list[Text]]:
    """The texts of each prompt. Prompts with the same number of new tokens are decoded in one batch."""
    template = template_of(paths.BEST_MODEL)
    prompts = [tokenizer.encode(prompt_text(template, prompt)) for prompt in params.sample.prompts]
    places_by_room: dict[int, list[int]] = {}
    for place, token_ids in enumerate(prompts):
        room = new_tokens(params, setting, params.sample.prompts[place], token_ids, model.config.block_size)
        places_by_room.setdefault(room, []).append(place)
    texts: dict[int, list[Text]] = {}
    for room, places in places_by_room.items():
        for start in range(0, len(places), BATCH_PROMPTS):
            batch = places[start : start + BATCH_PROMPTS]
            seeds = [seed] * len(batch)
            written = write_texts(
                model, [prompts[place] for place in batch], setting, seeds, tokenizer, max_new_tokens=room
            )
            texts.update(zip(batch, ([shown_after(template, text) for text in row] for row in written), strict=True))
    return [texts[place] for place in range(len(prompts))]


def shown_after(template: Template | None, text: Text) -> Text:
    """The text as it is shown after its prompt: an answer begins a line."""
    return replace(text, text=f"\n{template.answer(text.text)}") if template else text


def new_tokens(params: Params, setting: SampleSetting, prompt: str, token_ids: list[int], block_size: int) -> int:
    """How many tokens may follow: what the setting says, or what fits. Raises UserError where nothing fits."""
    wanted = setting.max_new_tokens or params.sample.max_new_tokens
    if setting.past_block_size == "slide":
        return wanted
    room = block_size + 1 - max(1, len(token_ids))
    if room < 1:
        raise UserError(
            f"sample.prompts: {prompt[:40]!r}... has {len(token_ids)} tokens, more than the model's block_size "
            f"({block_size}); shorten it, or set past_block_size: slide in sample.settings."
        )
    return min(wanted, room)


def measure(text: Text, train: TokenSplit, memorised_tokens: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """The text and its metrics, as in samples.json."""
    overlap, shared = 0, []
    for start, stop in passages(text.token_ids, tokenizer):
        passage = text.token_ids[start:stop]
        found = longest_overlap(passage, train)
        if found.length > overlap:
            overlap, shared = found.length, passage[found.start : found.start + found.length]
    return {
        "text": text.text,
        "tokens": text.tokens,
        "finish_reason": text.finish_reason,
        "mean_log_prob": text.mean_log_prob,
        **{f"distinct_{n}": distinct_n(text.token_ids, n) for n in (1, 2, 3)},
        "overlap_tokens": overlap,
        "overlap_text": tokenizer.decode(shared),
        "memorised": overlap >= memorised_tokens,
    }
