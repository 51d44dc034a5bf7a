"""Training on examples with answers: their batches, what is said of them, and the template that goes with the model."""

from typing import Any

from gpt2core.data.batches import Batches
from gpt2core.data.examples.batches import AnyBatches, ExampleBatches
from gpt2core.data.examples.template import TEMPLATES, Template
from gpt2core.data.tokens import TokenSplit
from gpt2ops.params.schema import Params

MOST_NAMED = 5  # of the examples that are too long


def open_batches(params: Params, split: TokenSplit) -> AnyBatches:
    """Batches of the train split as `params.train` says. Raises UserError for too few tokens or examples."""
    train = params.train
    if not split.has_answers:
        return Batches(
            split,
            batch_size=train.batch_size,
            sequence_length=train.sequence_length,
            sampler=train.sampler,
            stride=train.stride,
            seed=params.run.seed,
        )
    return ExampleBatches(
        split,
        batch_size=train.batch_size,
        sequence_length=train.sequence_length,
        shuffled=train.sampler != "sequential",
        seed=params.run.seed,
        mask_prompt=train.mask_prompt,
        truncate=train.long_examples == "truncate",
        packing=train.packing,
    )


def template_for(manifest: dict[str, Any]) -> Template | None:
    """The template of a token set; None where it is plain text."""
    return TEMPLATES.get(manifest.get("format", "text"))


def example_lines(params: Params, batches: AnyBatches, manifest: dict[str, Any]) -> list[str]:
    """What is trained of the examples, and which are too long; nothing for plain text."""
    if not isinstance(batches, ExampleBatches):
        return []
    what = "the answers alone are trained" if params.train.mask_prompt else "prompts and answers are trained"
    packed = f", packed in {batches.windows_per_epoch:,} rows" if params.train.packing else ""
    lines = [f"examples: {batches.num_examples:,} in the train split ({manifest['format']}){packed}; {what}"]
    if batches.too_long:
        limit = params.train.sequence_length + 1
        named = [one for one in manifest["longest"] if one["tokens"] > limit]
        shown = "; ".join(f"{one['record']} ({one['tokens']:,})" for one in named[:MOST_NAMED])
        cut = batches.too_long - batches.left_out
        fates = [f"{cut:,} cut"] if cut else []
        if batches.left_out:
            why = ", as a cut would leave nothing of the answer" if cut else ""
            fates.append(f"{batches.left_out:,} left out{why}")
        fate = ", ".join(fates)
        lines.append(
            f"{batches.too_long:,} examples of the train split are longer than train.sequence_length "
            f"({params.train.sequence_length:,} tokens and the one after them): {fate}; the longest of all: {shown}"
        )
    return lines
