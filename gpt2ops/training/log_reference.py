"""`Is my loss normal?`: what the losses of this run can be held against, on the console and in its MLflow run."""

from gpt2core.evaluation.scores import Tokens, unigram_loss
from gpt2core.model import GPT
from gpt2ops.tracking.api import TrackedRun
from gpt2ops.training.references import LossReference, published_for

# Token frequencies of so many tokens are those of the text to two decimals; counting them takes 30 ms.
MAX_TOKENS = 5_000_000


def loss_reference(model: GPT, train: Tokens, source: str) -> LossReference:
    """For `model` on the training split `train`; `source` is what data.source says."""
    return LossReference(
        vocab_size=model.config.vocab_size,
        unigram=unigram_loss(train, MAX_TOKENS),
        published=published_for(model.num_parameters(), source),
    )


def log_reference(reference: LossReference, tracked: TrackedRun) -> None:
    tracked.log_metrics({"reference/uniform_loss": reference.uniform, "reference/unigram_loss": reference.unigram})
    tracked.set_tags({"loss_reference": "\n".join(reference.lines())})
