"""What a loss can be held against: knowing nothing, knowing only token frequencies, and published models.

Losses are nats a token of GPT-2's tokenizer. Published ones are of other texts unless the name says otherwise: the
same model loses more on Shakespeare than on web pages, so they say what is usual, not what to reach.
"""

import math
from dataclasses import dataclass

from gpt2core.evaluation.scores import Tokens, unigram_loss
from gpt2core.model import GPT
from gpt2ops.tracking.api import TrackedRun

# A smaller difference is within the spread of held-out text.
SAME = 0.05
# The frequencies of this many tokens give the entropy to two decimals; counting them takes 30 ms.
MAX_TOKENS = 5_000_000


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
            f"loss to compare with: {self.uniform:.2f} knows nothing (ln {self.vocab_size:,}), "
            f"{self.unigram:.2f} knows only token frequencies",
            f"published losses: {known} ({sources})",
        ]

    def place(self, loss: float) -> str:
        """Where `loss` stands, in a few words."""
        if loss > self.uniform:
            return f"worse than knowing nothing by {loss - self.uniform:.2f}"
        if abs(loss - self.unigram) < SAME:
            return "at token frequencies"
        if loss > self.unigram:
            return f"above token frequencies by {loss - self.unigram:.2f}"
        return f"below token frequencies by {self.unigram - loss:.2f}"


def published_for(num_parameters: int, source: str) -> tuple[Published, ...]:
    """The released GPT-2 next in size, and what is known of the text `data.source` names."""
    of_text = {"tinyshakespeare": TINYSHAKESPEARE, "tinystories": TINYSTORIES}.get(source, ())
    nearest = min(OPENWEBTEXT, key=lambda count: abs(math.log(count / num_parameters)))
    return of_text if source == "tinystories" else (OPENWEBTEXT[nearest], *of_text)


def loss_reference(model: GPT, train: Tokens, source: str) -> LossReference:
    """For `model` on the training split `train`; `source` is the value of data.source."""
    return LossReference(
        vocab_size=model.config.vocab_size,
        unigram=unigram_loss(train, MAX_TOKENS),
        published=published_for(model.num_parameters(), source),
    )


def log_reference(reference: LossReference, tracked: TrackedRun) -> None:
    tracked.log_metrics({"reference/uniform_loss": reference.uniform, "reference/unigram_loss": reference.unigram})
    tracked.set_tags({"loss_reference": "\n".join(reference.lines())})
