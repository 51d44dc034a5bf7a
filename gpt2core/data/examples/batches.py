"""Training batches of examples: each row is one, padded on the right; only answers are trained.

Shapes: B batch_size, T tokens of the longest row, rounded up.
"""

import numpy as np

from gpt2core.data.batches import Batches
from gpt2core.data.tokens import TokenSplit
from gpt2core.errors import UserError
from gpt2core.tokenizer import Tokenizer

NOT_TRAINED = -1  # a target without a loss
WIDTHS = 8  # different lengths of rows: few, as a compiled block is one for a length


class ExampleBatches:
    """Batches of a split of examples, numbered across epochs; `batch` is a pure function of the number.

    An example of more than `sequence_length` tokens, whose last is a target only, is left out, or cut where `truncate`
    says so; one whose answer would be cut off wholly is left out in any case. Raises UserError for a split of plain
    text, and for fewer examples than one batch has.
    """

    masked = True  # some targets have no loss

    def __init__(
        self,
        split: TokenSplit,
        *,
        batch_size: int,
        sequence_length: int,
        shuffled: bool = True,
        seed: int = 0,
        mask_prompt: bool = True,
        truncate: bool = False,
    ) -> None:
        self.split, self.batch_size, self.sequence_length = split, batch_size, sequence_length
        self._shuffled, self._seed, self._mask_prompt = shuffled, seed, mask_prompt
        starts, stops = example_bounds(split)
        self.too_long = int((stops - starts > sequence_length + 1).sum())
        cut = np.minimum(stops, starts + sequence_length + 1)
        kept = cut == stops
        if truncate:
            for i in np.flatnonzero(~kept):
                kept[i] = split.answers(int(starts[i]), int(cut[i]))[1:].any()
        self._starts, self._stops = starts[kept], cut[kept]
        self.left_out = len(starts) - len(self._starts)
        self.windows_per_epoch = len(self._starts)
        if self.windows_per_epoch < batch_size:
            raise UserError(
                key="batch_size",
                value=batch_size,
                rule="is too large: the {split} split has {found} examples of at most {sequence_length} ({length}) "
                "tokens",
                remedy="lower it, raise {sequence_length}, or use more examples",
                split=split.name,
                found=self.windows_per_epoch,
                length=sequence_length,
            )
        self.tokens_per_step = round(batch_size * float((self._stops - self._starts).mean()))
        self._order: tuple[int, np.ndarray] | None = None

    def batch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch `index` >= 0: token_ids and targets, each int64 (B, T); targets without a loss are NOT_TRAINED."""
        first = index * self.batch_size
        chosen = [self._example(*divmod(i, self.windows_per_epoch)) for i in range(first, first + self.batch_size)]
        rows = [(int(self._starts[i]), int(self._stops[i])) for i in chosen]
        return stack_examples(self.split, rows, self.sequence_length, self._mask_prompt)

    def _example(self, epoch: int, position: int) -> int:
        if not self._shuffled:
            return position
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng([self._seed, epoch]).permutation(self.windows_per_epoch)
            self._order = (epoch, order)
        return int(self._order[1][position])


AnyBatches = Batches | ExampleBatches


def example_bounds(split: TokenSplit) -> tuple[np.ndarray, np.ndarray]:
    """Start and stop of each example in its split, int64. Raises UserError for a split of plain text."""
    if not split.has_answers:
        raise UserError(f"the {split.name} split is plain text, without answers.")
    return split.document_starts, np.append(split.document_starts[1:], len(split))


def stack_examples(
    split: TokenSplit, rows: list[tuple[int, int]], longest: int, mask_prompt: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and targets of the examples with these bounds, each int64 (B, T) with T <= `longest`."""
    step = -(-longest // WIDTHS)
    width = min(longest, step * -(-(max(stop - start for start, stop in rows) - 1) // step))
    token_ids = np.full((len(rows), width), Tokenizer.eot_id, dtype=np.int64)
    targets = np.full((len(rows), width), NOT_TRAINED, dtype=np.int64)
    for row, (start, stop) in enumerate(rows):
        tokens, count = split.read(start, stop), stop - start - 1
        token_ids[row, :count] = tokens[:-1]
        trained = split.answers(start, stop)[1:] if mask_prompt else np.ones(count, dtype=bool)
        targets[row, :count] = np.where(trained, tokens[1:].astype(np.int64), NOT_TRAINED)
    return token_ids, targets
