"""Losses to compare a run with: a uniform guess, token frequencies alone, and published models.

Losses are nats per token of GPT-2's tokenizer. Published ones are of other texts unless the name says otherwise: the
same model has a higher loss on Shakespeare than on web pages, so they show what is usual, not a goal.
"""

import math
from dataclasses import dataclass

# A smaller difference is within the spread of held-out text.
SAME = 0.05


@dataclass(frozen=True)
class Published:
    """A model's loss on held-out text, as `source` reports it."""

    model: str
    text: str
    loss: float
    source: str


_NANOGPT = "nanoGPT, README, baselines: https://github.com/karpathy/nanoGPT#baselines"
_LLM_C = "llm.c, README, quick start (CPU), 64 tokens of context: https://github.com/karpathy/llm.c"
_TINYSTORIES = "Eldan and Li 2023, figure 4, GPT-Neo's tokens: https://arxiv.org/abs/2305.07759"

OPENWEBTEXT = {  # by number of parameters
    124_439_808: Published("GPT-2 124M", "OpenWebText", 3.12, _NANOGPT),
    354_823_168: Published("GPT-2 355M", "OpenWebText", 2.84, _NANOGPT),
    774_030_080: Published("GPT-2 774M", "OpenWebText", 2.67, _NANOGPT),
    1_557_611_200: Published("GPT-2 1.5B", "OpenWebText", 2.54, _NANOGPT),
}
TINYSHAKESPEARE = (
    Published("GPT-2 124M", "tiny-shakespeare without fine-tuning", 5.25, _LLM_C),
    Published("GPT-2 124M", "tiny-shakespeare after 40 steps", 4.11, _LLM_C),
)
TINYSTORIES = (
    Published("8 layers of 256", "TinyStories", 1.38, _TINYSTORIES),
    Published("8 layers of 768", "TinyStories", 1.18, _TINYSTORIES),
)


@dataclass(frozen=True)
class LossReference:
    """`uniform` is ln(vocab_size), `unigram` the entropy of the training text's token frequencies."""

    vocab_size: int
    unigram: float
    published: tuple[Published, ...]

    @property
    def uniform(self) -> float:
        return math.log(self.vocab_size)

    def lines(self) -> list[str]:
        known = ", ".join(f"{entry.model} {entry.loss:.2f} on {entry.text}" for entry in self.published)
        sources = ", ".join(dict.fromkeys(entry.source.split(",")[0] for entry in self.published))
        return [
            f"loss to compare with: {self.uniform:.2f} for a uniform guess (ln {self.vocab_size:,}), "
            f"{self.unigram:.2f} for token frequencies alone",
            f"published losses: {known} ({sources})",
        ]

    def place(self, loss: float) -> str:
        """How `loss` compares with token frequencies and a uniform guess, in a few words."""
        if loss > self.uniform:
            return f"above a uniform guess by {loss - self.uniform:.2f}"
        if abs(loss - self.unigram) < SAME:
            return "at token frequencies"
        if loss > self.unigram:
            return f"above token frequencies by {loss - self.unigram:.2f}"
        return f"below token frequencies by {self.unigram - loss:.2f}"


def published_for(num_parameters: int, source: str) -> tuple[Published, ...]:
    """The released GPT-2 nearest in size, and results on the text that `data.source` names."""
    of_text = {"tinyshakespeare": TINYSHAKESPEARE, "tinystories": TINYSTORIES}.get(source, ())
    nearest = min(OPENWEBTEXT, key=lambda count: abs(math.log(count / num_parameters)))
    return of_text if source == "tinystories" else (OPENWEBTEXT[nearest], *of_text)
