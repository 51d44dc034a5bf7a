"""Passages of a text that stand word for word in what the model of this project was trained on."""

from collections.abc import Sequence

from gpt2core.errors import UserError
from gpt2core.text_measures import Corpus, longest_overlap
from gpt2core.tokenizer import Tokenizer
from gpt2core.tokens import open_split
from tasks import paths
from tasks.params import Params, load_params
from tasks.texts import passages
from tasks.tracking_store import project_root


class TrainingText:
    """A corpus, and from how many tokens in a row on a passage counts as learned by heart."""

    def __init__(self, corpus: Corpus, shortest: int) -> None:
        self._corpus, self.shortest = corpus, shortest
        self._tokenizer = Tokenizer()

    @classmethod
    def of_project(cls) -> "TrainingText | None":
        """The tokens and the threshold of the project; None where it has no tokens."""
        root = project_root()
        try:
            corpus = open_split(root / paths.TOKENS, "train")
        except UserError:
            return None
        params = load_params(root / paths.PARAMS) if (root / paths.PARAMS).is_file() else Params()
        return cls(corpus, params.sample.memorised_tokens)

    def find(self, token_ids: Sequence[int]) -> list[tuple[int, int]]:
        """Start and stop of each passage, in order: the longest, then the longest in what lies beside it."""
        found: list[tuple[int, int]] = []
        parts = passages(token_ids, self._tokenizer)
        while parts:
            start, stop = parts.pop()
            if stop - start < self.shortest:
                continue
            overlap = longest_overlap(token_ids[start:stop], self._corpus)
            if overlap.length >= self.shortest:
                first, end = start + overlap.start, start + overlap.start + overlap.length
                found.append((first, end))
                parts += [(start, first), (end, stop)]
        return sorted(found)
