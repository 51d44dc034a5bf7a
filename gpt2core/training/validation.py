"""Evaluation of a model in training, without dropout: losses on train and val, a full pass, a sample text."""

import math

import torch

from gpt2core import runtime
from gpt2core.data.examples.batches import AnyBatches
from gpt2core.decoding import generate
from gpt2core.evaluation.scores import Score, Tokens, evaluate
from gpt2core.model import GPT
from gpt2core.runtime import Runtime
from gpt2core.tokenizer import Tokenizer
from gpt2core.training.config import TrainerConfig
from gpt2core.training.events import Row

# Without gradients more tokens fit in memory than in training, and larger batches are faster.
TOKENS_A_BATCH = 2048


class Validation:
    """Scores windows of the training sequence length, `batch_size` or more at once; leaves the model training."""

    def __init__(self, model: GPT, train: AnyBatches, val: Tokens | None, run: Runtime, batch_size: int) -> None:
        self.model, self.run = model, run
        self.train, self.sequence_length = train.split, train.sequence_length
        self.masked = train.masked
        self.val = val if val is not None and len(val) > 1 else None
        self.batch_size = max(batch_size, TOKENS_A_BATCH // self.sequence_length)

    def row(self, max_tokens: int | None) -> Row:
        """`train_eval_loss` and the val split's metrics; None for a missing split or a value that is not finite."""
        train, val = self._score(self.train, max_tokens), None
        if self.val is not None:
            val = self._score(self.val, max_tokens)
        values = {
            "train_eval_loss": train.loss if train else None,
            "val_loss": val.loss if val else None,
            "val_perplexity": val.perplexity if val else None,
            "val_token_accuracy": val.token_accuracy if val else None,
            "val_loss_stderr": val.blocks.stderr if val else None,
        }
        return {key: value if value is not None and math.isfinite(value) else None for key, value in values.items()}

    def full_pass(self) -> float:
        """Mean loss over the whole training split, in nats per token."""
        score = self._score(self.train, None)
        assert score is not None, "a split that fills a batch has two tokens"
        return score.loss

    def sample(self, config: TrainerConfig) -> list[int] | None:
        """`sample_prompt` and a continuation; None on other ranks, and if no token is asked for or fits block_size."""
        count = min(config.sample_tokens, self.model.config.block_size - len(config.sample_prompt))
        if count < 1 or runtime.rank() != 0:
            return None
        self.model.eval()
        output = generate(
            self.model,
            torch.tensor([config.sample_prompt], device=self.run.device),
            seed=config.seed,
            do_sample=True,
            temperature=0.8,
            top_k=50,
            max_new_tokens=count,
            eos_token_id=Tokenizer.eot_id if self.masked else None,  # an answer has an end
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
