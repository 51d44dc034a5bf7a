"""The flags of `gpt2 finetune`, each with the key of params.yaml that it sets."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpt2core.config import PRESETS
from gpt2core.data.documents import DOCUMENTS
from gpt2ops.params.recipes import RECIPES

# What weights that are there already start with.
RATE, LENGTH, BATCH_SIZE, OPTIMIZER, SCHEDULE, WEIGHT_DECAY = (
    RECIPES["finetune"][key]
    for key in ("learning_rate", "sequence_length", "batch_size", "optimizer", "schedule", "weight_decay")
)

DESCRIPTION = """\
Fine-tune GPT-2 on your text with one command. It runs the whole pipeline:
data, training, evaluation, samples, registry and report, tracked in ./mlruns
(`gpt2 runs` lists the runs). --output-dir gets the model, in the Hugging Face
layout, and its report; the project with all results is in
--output-dir/project.

Ctrl-C saves a checkpoint, and the same command resumes from it. After the end
of a run the same command changes nothing. Other flags with the same
--output-dir make a new run, which repeats only the stages that they change."""
EXAMPLES = """\
examples:
  gpt2 finetune --train-file my.txt --output-dir my_model
  gpt2 finetune --model gpt2-medium --train-file my.txt \\
      --output-dir my_model --block-size 256 --batch-size 8 --epochs 5 \\
      --learning-rate 2e-5 --save-steps 500 --seed 42
  gpt2 finetune --train-file my.txt --output-dir my_model --batch-size 2 \\
      --gradient-accumulation-steps 8 --target-loss 1.5 --max-steps 2000
  gpt2 finetune --from-scratch --preset tinystories --train-file tinystories \\
      --output-dir stories --epochs 1 --set train.schedule=linear

The names of run_clm (--model-name-or-path, --num-train-epochs,
--per-device-train-batch-size ...) and of gpt-2-simple (--dataset, --steps,
--save-every ...) are understood too, with dashes or underscores."""


@dataclass(frozen=True)
class Flag:
    """A flag that sets one key. `also` are other tools' names for it."""

    name: str
    key: str
    kind: Callable[[str], Any]
    help: str
    also: tuple[str, ...] = ()
    choices: tuple[str, ...] | None = None

    @property
    def dest(self) -> str:
        return self.name.removeprefix("--").replace("-", "_")


TEXT_FLAGS = (
    Flag(
        "--documents",
        "data.documents",
        str,
        "what of a text file is an example, which the model learns to end: what <|endoftext|> divides, each line, "
        "each paragraph, or the whole file (default: separator)",
        choices=DOCUMENTS,
    ),
    Flag("--text-field", "data.text_field", str, "field or column of records that holds the text (default: text)"),
    Flag(
        "--format",
        "data.format",
        str,
        "text; completion: records with a prompt and its answer; chat: records with messages (default: text)",
        choices=("text", "completion", "chat"),
    ),
    Flag("--prompt-field", "data.fields.prompt", str, "field of the prompt (default: prompt)"),
    Flag("--completion-field", "data.fields.completion", str, "field of the answer (default: completion)"),
    Flag("--messages-field", "data.fields.messages", str, "field of the messages (default: messages)"),
)
_GROUPS: dict[str, tuple[Flag, ...]] = {
    "the text": TEXT_FLAGS,
    "length of the training": (
        Flag("--epochs", "train.stop.max_epochs", float, "times over the text (default: 3)", ("--num-train-epochs",)),
        Flag("--max-steps", "train.stop.max_steps", int, "stop after so many steps", ("--steps",)),
        Flag("--target-loss", "train.stop.target_loss", float, "stop when the loss has come down to this"),
        Flag(
            "--target-metric",
            "train.stop.metric",
            str,
            "the loss that is meant: of a batch, their moving average, the whole text, or the held-out part "
            "(default: train_ema)",
            choices=("train_batch", "train_ema", "train_full", "val"),
        ),
        Flag("--patience", "train.stop.patience", int, "stop after so many evaluations without a better held-out loss"),
    ),
    "training": (
        Flag("--learning-rate", "train.learning_rate", float, f"peak (default: {RATE:g})", ("--lr",)),
        Flag(
            "--block-size",
            "train.sequence_length",
            int,
            f"tokens in a training sequence (default: {LENGTH})",
        ),
        Flag(
            "--batch-size",
            "train.batch_size",
            int,
            f"sequences in a forward pass (default: {BATCH_SIZE})",
            ("--per-device-train-batch-size",),
        ),
        Flag(
            "--optimizer",
            "train.optimizer",
            str,
            f"(default: {OPTIMIZER})",
            ("--optim",),
            choices=("adamw", "muon", "adafactor"),
        ),
        Flag(
            "--schedule",
            "train.schedule",
            str,
            f"course of the learning rate (default: {SCHEDULE})",
            ("--lr-scheduler-type",),
            choices=("onecycle", "cosine", "linear", "wsd", "constant"),
        ),
        Flag("--warmup-steps", "train.warmup_steps", int, "steps up to the peak (default: 2%% of the run)"),
        Flag("--weight-decay", "train.weight_decay", float, f"(default: {WEIGHT_DECAY})"),
        Flag("--dropout", "model.drop_rate", float, "(default: that of the model)"),
        Flag("--seed", "run.seed", int, "(default: 42)"),
        Flag(
            "--seeds", "run.seeds", int, "train so many times, with seed, seed + 1 ...; the median is kept (default: 1)"
        ),
        Flag("--device", "run.device", str, "(default: auto)", choices=("auto", "cpu", "cuda", "mps")),
        Flag("--precision", "run.precision", str, "(default: auto)", choices=("auto", "fp32", "bf16", "fp16")),
    ),
    "while it runs": (
        Flag(
            "--save-steps",
            "train.checkpoint_interval",
            int,
            "steps between checkpoints (default: 250)",
            ("--save-every",),
        ),
        Flag("--save-total-limit", "train.keep_last", int, "checkpoints kept beside the best (default: 2)"),
        Flag("--eval-steps", "train.eval_interval", int, "steps between evaluations (default: each epoch)"),
        Flag("--logging-steps", "train.log_interval", int, "steps between log lines (default: 10)", ("--print-every",)),
        Flag("--sample-prompt", "train.sample_prompt", str, "start of samples (default: the text's first words)"),
    ),
    "tracking": (
        Flag("--run-name", "run.name", str, "name of the run (default: model, text and time)"),
        Flag("--experiment", "run.experiment", str, "MLflow experiment (default: gpt2)"),
        Flag("--register-name", "register.name", str, "name in the registry (default: that of --output-dir)"),
    ),
}
FLAGS = tuple(flag for flags in _GROUPS.values() for flag in flags)
# Keys that flags with a meaning of their own set.
_PLACES = {
    "model.init": "--model",
    "model.preset": "--preset",
    "data.source": "--train-file",
    "data.split.val": "--validation-split-percentage",
    "data.split.test": "--validation-split-percentage",
    "train.gradient_checkpointing": "--gradient-checkpointing",
}
# Said by those who come from run_clm; the command always does this.
_WITHOUT_EFFECT = ("--do-train", "--do-eval", "--overwrite-output-dir")


def reading(arguments: argparse.Namespace) -> dict[str, Any]:
    """How the text is to be read, as far as flags say: keys of `data`."""
    keys: dict[str, Any] = {}
    for flag in TEXT_FLAGS:
        if (value := getattr(arguments, flag.dest)) is not None:
            *sections, name = flag.key.split(".")[1:]
            (keys.setdefault(sections[0], {}) if sections else keys)[name] = value
    return keys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.usage = "gpt2 finetune --train-file FILE --output-dir DIR [flags]"
    _add_places(parser.add_argument_group("what and where"))
    for title, flags in _GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            add_flag(group, flag)
        if title == "training":
            group.add_argument(
                "--gradient-accumulation-steps",
                type=int,
                metavar="N",
                help="forward passes in a step, so that a step has N times --batch-size sequences (default: 1)",
            )
            group.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a quarter slower")
            group.add_argument("--bf16", dest="precision", action="store_const", const="bf16", help=argparse.SUPPRESS)
            group.add_argument("--fp16", dest="precision", action="store_const", const="fp16", help=argparse.SUPPRESS)
        if title == "while it runs":
            group.add_argument("--no-resume", action="store_true", help="start anew, whatever checkpoints there are")
    group = parser.add_argument_group("everything else")
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any key of params.yaml; may be repeated"
    )
    group.add_argument("--json", action="store_true", help="the result as an object; all else goes to standard error")
    for name in _WITHOUT_EFFECT:
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)


def flag_names(arguments: argparse.Namespace) -> dict[str, str]:
    """Key of params.yaml -> the flag that sets it; without the keys that `--set` names."""
    names = {**_PLACES, **{flag.key: flag.name for flag in FLAGS}}
    if arguments.gradient_accumulation_steps is not None:
        names["train.micro_batch_size"] = "--batch-size"
        names["train.batch_size"] = "--batch-size times --gradient-accumulation-steps"
    named = {assignment.partition("=")[0].strip() for assignment in arguments.set}
    return {key: name for key, name in names.items() if key not in named}


def _add_places(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--train-file",
        metavar="FILE",
        help=".txt, .md, .jsonl, .json, .csv, .tsv or .parquet, also .gz and .zst; a folder or a glob of "
        "them; tinyshakespeare, "
        "tinystories, hf:OWNER/NAME",
    )
    group.add_argument("--output-dir", metavar="DIR", help="where the model comes to lie")
    start = group.add_mutually_exclusive_group()
    start.add_argument(
        "--model", metavar="MODEL", help="gpt2 ... gpt2-xl, a directory, or models:/NAME@ALIAS (default: gpt2)"
    )
    start.add_argument(
        "--from-scratch",
        action="store_true",
        help="new weights instead; defaults are then those of `gpt2 init`: Muon, learning rate 3e-3, 4 sequences of "
        "128 tokens, 1,200 steps",
    )
    group.add_argument("--preset", metavar="NAME", help=f"sizes of new weights: {', '.join(PRESETS)} (default: small)")
    group.add_argument(
        "--validation-split-percentage",
        type=float,
        metavar="P",
        help="percent of the text held out to choose the best step by, and as much again for the test (default: 10)",
    )
    for name, dest in (("--model-name-or-path", "model"), ("--dataset", "train_file"), ("--model-name", "model")):
        group.add_argument(name, dest=dest, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def add_flag(group: argparse._ActionsContainer, flag: Flag) -> None:
    kind = {int: "N", float: "X"}.get(flag.kind, "TEXT")  # type: ignore[call-overload]
    options: dict[str, Any] = {"type": flag.kind, "dest": flag.dest}
    options |= {"choices": flag.choices} if flag.choices else {"metavar": kind}
    group.add_argument(flag.name, help=flag.help, **options)
    for name in flag.also:
        group.add_argument(name, help=argparse.SUPPRESS, default=argparse.SUPPRESS, **options)
