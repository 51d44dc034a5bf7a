"""A model in training, looked at without dropout: losses on train and val, a full pass, a sample text."""

import math

import torch

from gpt2core.decoding import generate
from gpt2core.evaluation.scores import Score, Tokens, evaluate
from gpt2core.model import GPT
from gpt2core.runtime import Runtime
from gpt2core.training.events import Row

# Without gradients more tokens fit than in training, and many at once are faster than few.
TOKENS_A_BATCH = 2048


class Validation:
    """Scores windows of `sequence_length` tokens; leaves the model in training mode."""

    def __init__(
        self, model: GPT, train: Tokens, val: Tokens | None, run: Runtime, *, batch_size: int, sequence_length: int
    ) -> None:
        self.model, self.run = model, run
        self.train = train
        self.val = val if val is not None and len(val) > 1 else None
        self.sequence_length = sequence_length
        self.batch_size = max(batch_size, TOKENS_A_BATCH // sequence_length)

    def row(self, max_tokens: int | None) -> Row:
        """`train_eval_loss` and, where there is a val split, its numbers; None for what is not finite."""
        train, val = self._score(self.train, max_tokens), None
        if self.val is not None:
            val = self._score(self.val, max_tokens)
        values = {
            "train_eval_loss": train.loss if train else None,
            "val_loss": val.loss if val else None,
            "val_perplexity": val.perplexity if val else None,
            "val_token_accuracy": val.token_accuracy if val else None,
        }
        return {key: value if value is not None and math.isfinite(value) else None for key, value in values.items()}

    def full_pass(self) -> float:
        """Mean loss over the whole training split, in nats a token."""
        score = self._score(self.train, None)
        assert score is not None, "a split that fills a batch has two tokens"
        return score.loss

    def sample(self, prompt: tuple[int, ...], max_new_tokens: int, seed: int) -> list[int] | None:
        """The prompt and a continuation, or None where the prompt fills the model's block_size."""
        count = min(max_new_tokens, self.model.config.block_size - len(prompt))
        if count < 1:
            return None
        self.model.eval()
        output = generate(
            self.model,
            torch.tensor([prompt], device=self.run.device),
            seed=seed,
            do_sample=True,
            temperature=0.8,
            top_k=50,
            max_new_tokens=count,
            eos_token_id=None,
        )
        self.model.train()
        token_ids: list[int] = output[0].tolist()
        return token_ids

    def _score(self, split: Tokens, max_tokens: int | None) -> Score | None:
        self.model.eval()
        with self.run.autocast():
            score = evaluate(
                self.model,
                split,
                block_size=self.sequence_length,
                stride=self.sequence_length,
                batch_size=self.batch_size,
                max_tokens=max_tokens,
                device=self.run.device,
            )
        self.model.train()
        return score
