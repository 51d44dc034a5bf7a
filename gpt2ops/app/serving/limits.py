"""Limits on a request, and on the number of requests."""

from dataclasses import dataclass

from gpt2core.errors import UserError
from gpt2ops.params.decoding import STRATEGIES, DecodingSetting


@dataclass(frozen=True)
class Limits:
    """`seconds` is the time for one model's texts; the text generated until then is kept."""

    prompt_characters: int = 20_000
    new_tokens: int = 1000
    rows: int = 16  # of a batch: texts, beams, candidates
    seconds: float = 120.0
    running: int = 1  # one at a time is fastest: it has all cores
    waiting: int = 40
    models_in_memory: int = 3
    history: int = 100

    def check(self, prompt: str, setting: DecodingSetting) -> None:
        """Raises UserError if a request is over a limit."""
        if not prompt.strip():
            raise UserError("The prompt is empty: type how the text begins.")
        if len(prompt) > self.prompt_characters:
            raise UserError(
                f"The prompt has {len(prompt):,} characters, and this page takes {self.prompt_characters:,} at most: "
                "shorten it."
            )
        most = {"max_new_tokens": self.new_tokens, "num_sequences": self.rows, "num_beams": self.rows}
        if "penalty_alpha" in STRATEGIES[setting.decoding].keys:
            most["top_k"] = self.rows  # contrastive search evaluates top_k candidates in one batch
        for key, limit in most.items():
            value = getattr(setting, key)
            if value is not None and value > limit:
                raise UserError(key=key, value=value, rule=f"must be at most {limit} on this page")
        for key in ("bad_words", "suppress_tokens", "stop"):
            if (entries := len(getattr(setting, key) or ())) > 100:
                raise UserError(key=key, rule=f"has {entries} entries", remedy="at most 100 on this page")
