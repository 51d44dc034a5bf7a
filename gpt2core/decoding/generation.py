"""`generate`: the argument names, the layout and, with a seed, the draws of `transformers`' `generate`.

Shapes: B prompts, R num_return_sequences, T prompt tokens, L tokens of the longest row, V vocab_size.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pkgutil import resolve_name
from typing import Any, Literal, overload

import torch
from torch import Tensor

from gpt2core.decoding.checks import check_options, check_token_ids
from gpt2core.decoding.logits.processors import build_processors
from gpt2core.decoding.options import OPTIONS, SEED, GenerationOptions
from gpt2core.decoding.output import Decoded, GenerateOutput
from gpt2core.decoding.prompts import merge_outputs, pad_prompts, strip_common_padding
from gpt2core.decoding.request import DecodingRequest, Generators, Streamer
from gpt2core.decoding.rows.cached import SearchRows, block_size_of
from gpt2core.decoding.rows.opening import open_rows, open_search_rows
from gpt2core.decoding.scoring import score_tokens
from gpt2core.decoding.stopping import StopTest, describe_endings
from gpt2core.decoding.strategies.drafting import is_worth_drafting, sample_with_draft
from gpt2core.decoding.strategies.prompt_lookup import prompt_lookup
from gpt2core.decoding.strategies.sampling import sample
from gpt2core.errors import UserError
from gpt2core.tokenizer import Tokenizer

Model = Callable[[Tensor], Tensor]  # a GPT, a PackedGPT, or any (B, T) int64 -> logits (B, T, V)
Seed = int | Sequence[int] | None
# Imported on first use: most calls need none of them.
SEARCHES = {
    "beam": "gpt2core.decoding.strategies.beam:beam_search",
    "group_beam": "gpt2core.decoding.strategies.group_beam:group_beam_search",
    "contrastive": "gpt2core.decoding.strategies.contrastive:contrastive_search",
}
BEAM_MODES = ("beam", "group_beam")


@overload
def generate(
    model: Model,
    token_ids: Tensor | Sequence[Sequence[int]],
    attention_mask: Tensor | None = None,
    seed: Seed = None,
    *,
    tokenizer: Tokenizer | None = None,
    streamer: Streamer | None = None,
    return_dict_in_generate: Literal[True],
    **options: Any,
) -> GenerateOutput: ...


@overload
def generate(
    model: Model,
    token_ids: Tensor | Sequence[Sequence[int]],
    attention_mask: Tensor | None = None,
    seed: Seed = None,
    *,
    tokenizer: Tokenizer | None = None,
    streamer: Streamer | None = None,
    **options: Any,
) -> Tensor: ...


def generate(
    model: Model,
    token_ids: Tensor | Sequence[Sequence[int]],
    attention_mask: Tensor | None = None,
    seed: Seed = None,
    *,
    tokenizer: Tokenizer | None = None,
    streamer: Streamer | None = None,
    **options: Any,
) -> Tensor | GenerateOutput:
    """Continue prompts; returns (B*R, L) int64, prompt included, finished rows right-padded with `pad_token_id`.

    `token_ids` (B, T) int64 with `attention_mask` (B, T), 0 at left padding, gives exactly what `transformers` gives.
    A list of token lists, of any lengths, gives each prompt the result that it would have had alone; its rows are
    left-padded to one length. An empty prompt starts from `bos_token_id`.

    `options` are the fields of `GenerationOptions`. With a `seed` the draws are those of `torch.manual_seed(seed)`
    before transformers' `generate`; with a list of seeds, one a returned sequence, each row has draws of its own;
    without, torch's global generator is used. `stop_strings` are looked for in the text of `tokenizer` (default:
    GPT-2's). With `return_dict_in_generate` a GenerateOutput is returned. Raises UserError for options out of range,
    or a prompt that does not fit.
    """
    settings = parse_options(options)
    if settings.stop_strings is not None and tokenizer is None:
        tokenizer = Tokenizer()
    with torch.inference_mode():
        deadline = None if settings.max_time is None else time.monotonic() + settings.max_time
        call = _Call(model, settings, tokenizer, streamer, deadline, independent=not isinstance(token_ids, Tensor))
        if isinstance(token_ids, Tensor):
            ids, mask = _checked_ids(token_ids, attention_mask, settings)
        else:
            ids, mask = pad_prompts(token_ids, settings, _device(model))
        _check_vocabulary(model, ids, settings)
        generators = _generators(seed, settings, len(ids), ids.device)
        output = call.run(ids, mask, generators)
    if streamer is not None:
        streamer.end()
    # Copies are no inference tensors, so that the caller may use them anywhere.
    return output.copy() if settings.return_dict_in_generate else output.sequences.clone()


def parse_options(options: dict[str, Any]) -> GenerationOptions:
    """Options by name, checked. Raises UserError naming the option, and for an unknown one the nearest known."""
    for name in options:
        if name not in OPTIONS:
            nearest = get_close_matches(name, OPTIONS, n=1)
            remedy = "did you mean {" + nearest[0] + "}?" if nearest else ""
            raise UserError(rule="unknown option {unknown}", remedy=remedy, unknown=name)
    settings = GenerationOptions(**options)
    check_options(settings)
    return settings


@dataclass(frozen=True)
class _Call:
    """What all batches of one call of `generate` share."""

    model: Model
    options: GenerationOptions
    tokenizer: Tokenizer | None
    streamer: Streamer | None
    deadline: float | None  # by time.monotonic
    independent: bool  # each prompt gets the result that it would have had alone: its padding counts nowhere

    def run(self, ids: Tensor, mask: Tensor | None, generators: Generators) -> GenerateOutput:
        """Decode prompts (B, T), split into batches where they cannot share one."""
        groups = self._groups(ids, mask)
        if self.streamer is not None:
            self._check_streaming(groups)
        if groups is None:
            return self._decode(ids, mask, generators)
        copies = self.options.num_return_sequences
        outputs = []
        for rows in groups:
            batch_generators = generators
            if isinstance(generators, list):
                share = len(generators) // len(ids)
                batch_generators = [generators[row * share + copy] for row in rows for copy in range(share)]
            part, part_mask = ids[rows], None if mask is None else mask[rows]
            if part_mask is not None and self.independent:
                part, part_mask = strip_common_padding(part, part_mask)
            outputs.append(self._decode(part, part_mask, batch_generators))
        return merge_outputs(outputs, groups, copies, ids, self.options.pad_id)

    def _check_streaming(self, groups: list[list[int]] | None) -> None:
        if self.options.mode in BEAM_MODES:
            raise UserError("a search with beams knows its text only at the end; stream greedy decoding or sampling.")
        if groups is not None:
            raise UserError("a streamer takes the steps of one batch, and these prompts need several; give them alone.")

    def _groups(self, ids: Tensor, mask: Tensor | None) -> list[list[int]] | None:
        """Rows that may share a batch; None where all may."""
        if self.options.mode == "prompt_lookup" and len(ids) > 1:
            return [[row] for row in range(len(ids))]
        if not self.independent or mask is None or bool(mask.all()):
            return None
        lengths = mask.sum(-1).tolist()
        overflow = self.options.total_length(max(lengths)) > (block_size_of(self.model) or 2**62)
        if overflow or (self.options.max_new_tokens is None and self.options.max_length is not None):
            # The window slides, or the search ends, at a length that depends on the row's prompt.
            return [[row for row, number in enumerate(lengths) if number == length] for length in sorted(set(lengths))]
        return None

    def _decode(self, ids: Tensor, mask: Tensor | None, generators: Generators) -> GenerateOutput:
        """Decode one batch."""
        request = self._request(ids, mask, generators)
        if self.streamer is not None:
            self.streamer.put(ids.cpu())
        return self._output(self._run_strategy(request), request)

    def _request(self, ids: Tensor, mask: Tensor | None, generators: Generators) -> DecodingRequest:
        """Raises UserError where the prompts and new tokens do not fit into the model."""
        options, prompt_length = self.options, ids.shape[1]
        max_length = options.total_length(prompt_length)
        self._check_fits(prompt_length, max_length)
        starts = None if mask is None else mask.shape[1] - mask.sum(-1)
        padding = starts if self.independent else None
        return DecodingRequest(
            ids,
            mask,
            options,
            build_processors(options, prompt_length, ids.device, padding, mask_starts=starts),
            max_length,
            StopTest(options, prompt_length, self.tokenizer, self.deadline),
            generators,
            self.streamer,
        )

    def _run_strategy(self, request: DecodingRequest) -> Decoded:
        options, mode, max_length = self.options, self.options.mode, request.max_length
        if mode in SEARCHES:
            copies = options.num_beams if mode in BEAM_MODES else options.top_k or 1
            search_rows = open_search_rows(
                self.model, request.ids.shape[1], max_length, copies, options.past_block_size
            )
            search: Callable[[SearchRows, DecodingRequest], Decoded] = resolve_name(SEARCHES[mode])
            return search(search_rows, request)
        rows = open_rows(self.model, max_length, options.past_block_size)
        if mode == "prompt_lookup":
            return prompt_lookup(rows, request)
        strategy = sample_with_draft if is_worth_drafting(rows, request) else sample
        return strategy(rows, request)

    def _output(self, decoded: Decoded, request: DecodingRequest) -> GenerateOutput:
        options, prompt_length, mask = self.options, request.ids.shape[1], request.mask
        values = {field.name: getattr(decoded, field.name) for field in fields(Decoded)}
        output = GenerateOutput(**values, prompt_length=prompt_length)
        if not options.return_dict_in_generate:
            return output
        sequences = decoded.sequences
        lengths, reasons = describe_endings(sequences, options, prompt_length, request.max_length, self.tokenizer)
        output = replace(output, new_tokens=lengths, finish_reasons=reasons)
        if not options.output_log_probs or output.log_probs is not None:
            return output
        if mask is not None:
            mask = mask.repeat_interleave(len(sequences) // len(mask), dim=0)
        scores = score_tokens(self.model, sequences, mask, prompt_length, lengths, options.past_block_size)
        return replace(output, log_probs=scores)

    def _check_fits(self, prompt_length: int, max_length: int) -> None:
        if max_length <= prompt_length:
            raise UserError(
                key="max_length",
                value=max_length,
                rule="leaves no room after a prompt of {prompt} tokens",
                remedy="raise it, or give {max_new_tokens}",
                prompt=prompt_length,
            )
        block_size = block_size_of(self.model)
        if block_size is None or self.options.past_block_size == "slide":
            return
        # The last new token is read by contrastive search only; else it may lie one past the block.
        longest = block_size if self.options.mode == "contrastive" else block_size + 1
        if max_length > longest:
            raise UserError(
                rule="a prompt of {prompt} tokens and {new} new ones do not fit into the model's block_size ({size})",
                remedy="at most {room} new tokens fit, or let the window slide ({past_block_size:slide})",
                prompt=prompt_length,
                new=max_length - prompt_length,
                size=block_size,
                room=max(0, longest - prompt_length),
            )


def _checked_ids(token_ids: Tensor, mask: Tensor | None, options: GenerationOptions) -> tuple[Tensor, Tensor | None]:
    """Prompts (B, T) and their mask; an empty prompt becomes `bos_token_id`."""
    if token_ids.ndim != 2 or len(token_ids) == 0:
        raise UserError(f"token_ids must be (batch, tokens) with at least one row, not {tuple(token_ids.shape)}.")
    if token_ids.dtype not in (torch.int64, torch.int32):
        raise UserError(f"token_ids must be integers (int64), not {token_ids.dtype}.")
    if token_ids.shape[1] == 0:
        return token_ids.new_full((len(token_ids), 1), options.bos_token_id, dtype=torch.int64), None
    if mask is None:
        mask = _inferred_mask(token_ids, options)
        if mask is None:
            return token_ids.long(), None
    if mask.shape != token_ids.shape:
        raise UserError(f"attention_mask {tuple(mask.shape)} and token_ids {tuple(token_ids.shape)} differ in shape.")
    if not _is_left_padding(mask):
        raise UserError("attention_mask must be 0 at the left only: pad prompts on the left, before their first token.")
    return token_ids.long(), None if bool(mask.all()) else mask.long()


def _inferred_mask(token_ids: Tensor, options: GenerationOptions) -> Tensor | None:
    """The mask inferred from `pad_token_id` at the left, as in transformers; None where that token may be text."""
    if options.pad_token_id is None or options.pad_id in options.eos_ids:
        return None
    mask = token_ids != options.pad_id
    return mask if _is_left_padding(mask) else None


def _is_left_padding(mask: Tensor) -> bool:
    return bool(mask[:, -1].all()) and not bool((mask.long().diff(dim=1) < 0).any())


def _check_vocabulary(model: Model, ids: Tensor, options: GenerationOptions) -> None:
    vocab_size = getattr(getattr(model, "config", None), "vocab_size", None)
    if vocab_size is None:
        return
    check_token_ids(options, vocab_size)
    for token_id in (int(ids.min()), int(ids.max())):
        if not 0 <= token_id < vocab_size:
            raise UserError(f"token_ids: {token_id} is outside the model's vocabulary (0 to {vocab_size - 1}).")


def _generators(seed: Seed, options: GenerationOptions, batch_size: int, device: torch.device) -> Generators:
    """One generator for the batch, or one for each sequence. Raises UserError for seeds out of range or too few."""
    if seed is None:
        return None
    seeds = [seed] if isinstance(seed, int) else list(seed)
    for one in seeds:
        SEED.rule.refuse("seed", one)
    if isinstance(seed, int):
        return torch.Generator(device).manual_seed(seed)
    # A search draws for all beams of a prompt at once.
    expected = batch_size * (1 if options.num_beams > 1 else options.num_return_sequences)
    if len(seeds) != expected:
        rule = "has {given} values for {expected} sequences"
        remedy = "give one for each, or one for all"
        raise UserError(key="seed", rule=rule, remedy=remedy, given=len(seeds), expected=expected)
    return [torch.Generator(device).manual_seed(one) for one in seeds]


def _device(model: Model) -> torch.device:
    parameters = getattr(model, "parameters", None)
    first = next(iter(parameters()), None) if callable(parameters) else None
    return first.device if first is not None else torch.device("cpu")
