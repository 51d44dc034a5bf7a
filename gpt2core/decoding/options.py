"""What `generate` takes: the names and defaults of `transformers`' GenerationConfig, typed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

from torch import Tensor

EOT_ID = 50256  # <|endoftext|> of GPT-2's vocabulary
DEFAULT_NEW_TOKENS = 20

Mode = Literal["greedy", "sample", "beam", "group_beam", "contrastive", "prompt_lookup"]
LogitsProcessor = Callable[[Tensor, Tensor], Tensor]  # ids (B, T) int64, logits (B, V) fp32 -> logits (B, V)
SequenceBias = Mapping[tuple[int, ...], float] | Sequence[tuple[Sequence[int], float]]


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Settings of one call. `checks.check_options` says whether they make sense."""

    # Length
    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    max_time: float | None = None  # seconds
    # Strategy
    do_sample: bool = False
    num_beams: int = 1
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    penalty_alpha: float | None = None
    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int | None = None
    # Sampling
    temperature: float = 1.0
    top_k: int | None = 50
    top_p: float | None = 1.0
    min_p: float | None = None
    typical_p: float | None = 1.0
    epsilon_cutoff: float | None = 0.0
    eta_cutoff: float | None = 0.0
    # Penalties
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: Sequence[Sequence[int]] | None = None
    sequence_bias: SequenceBias | None = None
    suppress_tokens: Sequence[int] | None = None
    logits_processor: Sequence[LogitsProcessor] = ()
    # Ends
    eos_token_id: int | Sequence[int] | None = EOT_ID
    pad_token_id: int | None = None
    bos_token_id: int = EOT_ID  # what an empty prompt starts from
    stop_strings: str | Sequence[str] | None = None
    past_block_size: Literal["refuse", "slide"] = "refuse"
    # Result
    num_return_sequences: int = 1
    return_dict_in_generate: bool = False
    output_scores: bool = False
    output_logits: bool = False
    output_log_probs: bool = False

    @property
    def eos_ids(self) -> tuple[int, ...]:
        if self.eos_token_id is None:
            return ()
        if isinstance(self.eos_token_id, Integral):
            return (int(self.eos_token_id),)
        return tuple(int(token_id) for token_id in self.eos_token_id)  # type: ignore[union-attr]

    @property
    def pad_id(self) -> int:
        """What fills finished rows: `pad_token_id`, else the first end of text, else 0."""
        return self.pad_token_id if self.pad_token_id is not None else next(iter(self.eos_ids), 0)

    @property
    def mode(self) -> Mode:
        if self.prompt_lookup_num_tokens is not None:
            return "prompt_lookup"
        if self.penalty_alpha is not None:
            return "contrastive"
        if self.num_beams > 1:
            return "group_beam" if self.num_beam_groups > 1 else "beam"
        return "sample" if self.do_sample else "greedy"

    @property
    def rows_per_prompt(self) -> int:
        """Rows decoded at once for each prompt."""
        return self.num_beams if self.num_beams > 1 else self.num_return_sequences

    def total_length(self, prompt_length: int) -> int:
        """Most tokens of a row, its prompt included."""
        if self.max_new_tokens is not None:
            return prompt_length + self.max_new_tokens
        return self.max_length if self.max_length is not None else prompt_length + DEFAULT_NEW_TOKENS
