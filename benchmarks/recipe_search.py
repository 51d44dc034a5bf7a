"""What else was searched for the recipe `generalise`: one setting changed at a time, the same tokens for each.

python -m benchmarks.recipe_search [--tokens 204800] [--variants NAME ...]
The small preset on the bundled plays; the table of validation losses goes to benchmarks/RESULTS.md.
"""

import argparse
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.results import write_report
from benchmarks.validation_race import SEQUENCE_LENGTH, tokenized, validation_loss

ROWS_A_BATCH = 4
Phases = Sequence[tuple[float, int, int]]  # share of the tokens, rows and length of a batch


@dataclass(frozen=True)
class Variant:
    """What is changed of the recipe: settings of params.yaml, shapes of the batches, size of the first values."""

    settings: dict[str, Any] = field(default_factory=dict)
    phases: Phases = ((1.0, ROWS_A_BATCH, SEQUENCE_LENGTH),)
    scaled: dict[str, float] = field(default_factory=dict)  # endings of parameters: factor of their first values


PROJECTIONS = "c_proj.weight"
VARIANTS = {
    "as it is: Muon, 4 x 128 tokens a step": Variant(),
    "AdamW at 1e-3 for all": Variant({"train.optimizer": "adamw", "train.learning_rate": 1e-3}),
    "beta2 0.95": Variant({"train.beta2": 0.95}),
    "beta2 0.999": Variant({"train.beta2": 0.999}),
    "schedule wsd": Variant({"train.schedule": "wsd"}),
    "2 x 128 tokens a step": Variant(phases=((1.0, 2, 128),)),
    "8 x 128": Variant(phases=((1.0, 8, 128),)),
    "batch ramp: a third each of 2, 4 and 8 x 128": Variant(phases=((1 / 3, 2, 128), (1 / 3, 4, 128), (1 / 3, 8, 128))),
    "length ramp: a third each of 16 x 32, 8 x 64 and 4 x 128": Variant(
        phases=((1 / 3, 16, 32), (1 / 3, 8, 64), (1 / 3, 4, 128))
    ),
    "projections into the residual start at zero": Variant(scaled={PROJECTIONS: 0.0}),
    "all matrices start half as large": Variant(scaled={"weight": 0.5}),
}


class Recut:
    """The rows of a training in the order in which it would see them, cut into batches of other shapes."""

    def __init__(self, batches: Any, tokens: int, phases: Phases) -> None:
        self._batches = batches
        self.split, self.batch_size, self.sequence_length = batches.split, batches.batch_size, batches.sequence_length
        self.windows_per_epoch, self.tokens_per_step = batches.windows_per_epoch, batches.tokens_per_step
        self.masked = False
        self.plan = list(_plan(tokens, phases))

    def batch(self, index: int) -> tuple[Any, Any]:
        """Token ids and targets, int64 (rows, length)."""
        import numpy as np

        first, rows, length = self.plan[index]
        needed = range(first, first + rows * length // SEQUENCE_LENGTH)
        whole = [self._batches.batch(row // ROWS_A_BATCH) for row in needed]
        places = [row % ROWS_A_BATCH for row in needed]
        token_ids, targets = (
            np.stack([pair[side][place] for pair, place in zip(whole, places, strict=True)]) for side in (0, 1)
        )
        return token_ids.reshape(rows, length), targets.reshape(rows, length)


def _plan(tokens: int, phases: Phases) -> Iterator[tuple[int, int, int]]:
    """First row of the text, rows and length of each batch."""
    first = 0
    for share, rows, length in phases:
        for _ in range(round(tokens * share / (rows * length))):
            yield first, rows, length
            first += rows * length // SEQUENCE_LENGTH


def trained(variant: Variant, tokens: Path, budget: int) -> tuple[float, int]:
    """Validation loss in nats after `budget` tokens, and the steps they took."""
    import torch

    from benchmarks.trained import batches_of, params_of, trainer_of
    from gpt2core.data.tokens import open_tokens
    from gpt2core.runtime import pick_runtime

    token_set = open_tokens(tokens)
    never = dict.fromkeys(("train.log_interval", "train.eval_interval", "train.checkpoint_interval"), 10**7)
    fixed = {**never, "train.eval_batches": 1, "train.sample_tokens": 0}

    def params_for(steps: int) -> Any:
        return params_of({**fixed, **variant.settings, "train.stop": {"max_steps": steps, "target_loss": None}})

    batches = Recut(batches_of(params_for(1), token_set.split("train")), budget, variant.phases)
    steps = len(batches.plan)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(params_for(steps), batches, folder, pick_runtime("auto", "auto"))
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                if parameter.ndim >= 2:
                    parameter.mul_(next((by for end, by in variant.scaled.items() if name.endswith(end)), 1.0))
        trainer.fit()
    return validation_loss(trainer.model, token_set.split("val")), steps


def main() -> None:
    from gpt2core.runtime import set_threads
    from gpt2ops.process.startup import keep_freed_memory

    keep_freed_memory()
    set_threads(None)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=204_800)
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    arguments = parser.parse_args()
    lines = ["| settings | steps | validation loss |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as name:
        tokens = tokenized(Path(name))
        for variant in arguments.variants:
            loss, steps = trained(VARIANTS[variant], tokens, arguments.tokens)
            lines.append(f"| {variant} | {steps:,} | {loss:.3f} |")
            print(lines[-1], flush=True)
    title = f"The search for `generalise`: small preset, bundled plays, {arguments.tokens:,} tokens"
    write_report("recipe_search", title, lines, shlex.join(["python", "-m", "benchmarks.recipe_search", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
