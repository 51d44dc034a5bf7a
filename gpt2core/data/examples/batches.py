"""Training batches of examples: each row is one, or several packed, padded on the right; only answers are trained.

Shapes: B batch_size, T tokens of the longest row, rounded up.
"""

from bisect import bisect_left, insort

import numpy as np

from gpt2core.data.batches import Batches
from gpt2core.data.tokens import TokenSplit
from gpt2core.errors import UserError
from gpt2core.tokenizer import Tokenizer

NOT_TRAINED = -1  # a target without a loss
WIDTHS = 8  # different lengths of rows: few, as a compiled block is one for a length


Bounds = tuple[int, int]  # first token of an example in its split, and the one after its last


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
        packing: bool = False,
    ) -> None:
        """`packing`: a row holds as many examples as fit, and a batch has a third array, the segments."""
        self.split, self.batch_size, self.sequence_length = split, batch_size, sequence_length
        self._shuffled, self._seed, self._mask_prompt = shuffled, seed, mask_prompt
        starts, stops = example_bounds(split)
        self.too_long = int((stops - starts > sequence_length + 1).sum())
        cut = np.minimum(stops, starts + sequence_length + 1)
        kept = cut == stops
        if truncate:
            for i in np.flatnonzero(~kept):
                kept[i] = split.answers(int(starts[i]), int(cut[i]))[1:].any()
        own = [(int(start), int(stop)) for start, stop in zip(starts[kept], cut[kept], strict=True)]
        self.num_examples, self.left_out = len(own), len(starts) - len(own)
        self._packing = packing
        self._rows = packed_rows(own, sequence_length) if packing else [[one] for one in own]
        self.windows_per_epoch = len(self._rows)
        if self.windows_per_epoch < batch_size:
            raise UserError(
                key="batch_size",
                value=batch_size,
                rule="is too large: the {split} split has {found} {what} of at most {sequence_length} ({length}) "
                "tokens",
                what="rows of packed examples" if packing else "examples",
                remedy="lower it, raise {sequence_length}, or use more examples",
                split=split.name,
                found=self.windows_per_epoch,
                length=sequence_length,
            )
        self.tokens_per_step = round(batch_size * sum(stop - start for start, stop in own) / len(self._rows))
        self._order: tuple[int, np.ndarray] | None = None

    def batch(self, index: int) -> tuple[np.ndarray, ...]:
        """Batch `index` >= 0: token_ids and targets, each int64 (B, T); targets without a loss are NOT_TRAINED.

        With packing also the segments, int64 (B, T): which example of its row a token belongs to.
        """
        first = index * self.batch_size
        rows = [
            self._rows[self._row(*divmod(i, self.windows_per_epoch))] for i in range(first, first + self.batch_size)
        ]
        arrays = stack_examples(self.split, rows, self.sequence_length, self._mask_prompt)
        return arrays if self._packing else arrays[:2]

    def _row(self, epoch: int, position: int) -> int:
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


def packed_rows(examples: list[Bounds], longest: int) -> list[list[Bounds]]:
    """Examples of at most `longest` + 1 tokens in few rows of `longest`: best fit, the longest examples first."""
    rows: list[list[Bounds]] = []
    by_room: dict[int, list[int]] = {}  # numbers of the rows that have so much room
    rooms: list[int] = []  # the keys, ascending
    for start, stop in sorted(examples, key=lambda one: (one[0] - one[1], one[0])):
        size = stop - start - 1
        place = bisect_left(rooms, size)
        if place == len(rooms):
            rows.append([])
            number, room = len(rows) - 1, longest
        else:
            room = rooms[place]
            number = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[place]
        rows[number].append((start, stop))
        if room > size:
            if room - size not in by_room:
                by_room[room - size] = []
                insort(rooms, room - size)
            by_room[room - size].append(number)
    return rows


def stack_examples(
    split: TokenSplit, rows: list[list[Bounds]], longest: int, mask_prompt: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids, targets and segments of rows of examples, each int64 (B, T) with T <= `longest`."""
    step = -(-longest // WIDTHS)
    used = max(sum(stop - start - 1 for start, stop in row) for row in rows)
    shape = len(rows), min(longest, step * -(-used // step))
    token_ids = np.full(shape, Tokenizer.eot_id, dtype=np.int64)
    targets, segments = (np.full(shape, fill, dtype=np.int64) for fill in (NOT_TRAINED, -1))
    for number, row in enumerate(rows):
        place = 0
        for segment, (start, stop) in enumerate(row):
            tokens, count = split.read(start, stop).astype(np.int64), stop - start - 1
            here = (number, slice(place, place + count))
            trained = split.answers(start, stop)[1:] if mask_prompt else np.ones(count, dtype=bool)
            token_ids[here], segments[here] = tokens[:-1], segment
            targets[here] = np.where(trained, tokens[1:], NOT_TRAINED)
            place += count
    return token_ids, targets, segments
