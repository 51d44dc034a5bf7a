"""Passages of a text that stand word for word in what the model of this project was trained on."""

from collections.abc import Sequence
from pathlib import Path

from gpt2core.data.tokens import open_split
from gpt2core.errors import UserError
from gpt2core.evaluation.overlap import Corpus, longest_overlap
from gpt2core.tokenizer import Tokenizer
from gpt2ops.params.schema import Params, load_params
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.paths import project_root
from gpt2ops.sampling.texts import passages


class TrainingText:
    """What was trained on, and from how many tokens in a row on a passage counts as learned by heart."""

    def __init__(self, corpora: Sequence[Corpus], shortest: int) -> None:
        self._corpora, self.shortest = corpora, shortest
        self._tokenizer = Tokenizer()

    @classmethod
    def of_project(cls, models: Sequence[str] = ()) -> "TrainingText | None":
        """The tokens of the project, else of each output folder of `gpt2 finetune` here or in `models`; None without.

        The threshold is the lowest of theirs.
        """
        root = project_root()
        projects = [root]
        if not (root / paths.TOKENS).is_dir():
            folders = [*root.glob("*/"), *(Path(name) for name in models)]
            projects = list(dict.fromkeys((folder / paths.FINETUNED).resolve() for folder in folders))
        corpora, shortest = [], []
        for project in projects:
            try:
                corpora.append(open_split(project / paths.TOKENS, "train"))
            except UserError:
                continue
            params = load_params(project / paths.PARAMS) if (project / paths.PARAMS).is_file() else Params()
            shortest.append(params.sample.memorised_tokens)
        return cls(corpora, min(shortest)) if corpora else None

    def find(self, token_ids: Sequence[int]) -> list[tuple[int, int]]:
        """Start and stop of each passage, in order: the longest, then the longest in what lies beside it."""
        found: list[tuple[int, int]] = []
        parts = passages(token_ids, self._tokenizer)
        while parts:
            start, stop = parts.pop()
            if stop - start < self.shortest:
                continue
            overlaps = [longest_overlap(token_ids[start:stop], corpus) for corpus in self._corpora]
            overlap = max(overlaps, key=lambda found: found.length)
            if overlap.length >= self.shortest:
                first, end = start + overlap.start, start + overlap.start + overlap.length
                found.append((first, end))
                parts += [(start, first), (end, stop)]
        return sorted(found)
