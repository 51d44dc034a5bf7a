"""The sections of params.yaml: each key's type, default, bounds and meaning; those of training from gpt2core."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from gpt2core.config import PRESETS, GPTConfig
from gpt2core.decoding.options import SAMPLING_VALUES
from gpt2core.errors import UserError
from gpt2core.tokenizer import check_unicode
from gpt2core.training.config import StopSettings, TrainSettings
from gpt2ops.params.decoding import DecodingSetting
from gpt2ops.params.recipes import CHOSEN, DEFAULT, with_recipe

BY_RECIPE: Any = None  # null, or the key left out: what `train.recipe` says


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    def __init_subclass__(cls, by_recipe: Sequence[str] = (), **config: Any) -> None:
        """Adds the fields of a library's settings class, with their bounds and help, to a section derived from it."""
        super().__init_subclass__(**config)
        for base in filter(is_dataclass, cls.__bases__):
            for entry in fields(base):
                default = BY_RECIPE if entry.name in by_recipe else entry.default
                help = entry.metadata["help"] or None
                setattr(cls, entry.name, Field(default, description=help, **entry.metadata["bounds"]))
                cls.__annotations__[entry.name] = entry.type

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic reads `true` as 1.
        types = _types_of(cls.model_fields[str(info.field_name)].annotation)
        if isinstance(value, bool) and bool not in types and not {int, float}.isdisjoint(types):
            raise UserError(value=value, rule="must be a number", remedy="leave the key out for its default")
        if isinstance(value, str):
            check_unicode(value)  # it goes into files and to MLflow
        return value


def _types_of(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) or (annotation,)


class Run(Section):
    experiment: str = Field("gpt2", min_length=1)
    """MLflow experiment."""
    name: str | None = None
    """Name of the MLflow run; null: made of the preset and the corpus."""
    seed: int = Field(42, ge=0, lt=2**32)
    seeds: int = Field(1, ge=1, le=100)
    """Trainings, with seed, seed + 1 ...; the median by validation goes on."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the CPU or GPU is known to be faster in it, else fp32 (fp16 on an older GPU)."""
    threads: int | None = Field(None, ge=1, le=1024)
    """CPU threads of PyTorch; null: one a physical core."""
    kernels: Literal["auto", "torch"] = "auto"
    """What computes a training step on a CPU; auto: this package's own head, attention and dropout, which are faster;
    torch: the plain reference."""
    nproc_per_node: int = Field(1, ge=1, le=64)
    """Processes training together (DDP); 1: no process group."""
    deterministic: bool = False
    """Only algorithms that give the same bits twice on a GPU; slower. A CPU run always does."""


class Split(Section):
    train: float = Field(0.8, gt=0, le=1)
    val: float = Field(0.1, ge=0, lt=1)
    test: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-6:
            rule = "train + val + test ({total:g}) must be 1"
            raise UserError(rule=rule, remedy="for example 0.7, 0.2 and 0.1", total=total)
        return self


class Fields(Section):
    prompt: str = Field("prompt", min_length=1)
    completion: str = Field("completion", min_length=1)
    messages: str = Field("messages", min_length=1)
    role: str = Field("role", min_length=1)
    content: str = Field("content", min_length=1)


class Data(Section):
    source: str = Field("bundled", min_length=1)
    """bundled | file, folder or glob | http(s) URL | tinyshakespeare | tinystories | hf:DATASET[/CONFIG]."""
    watch: str = Field("data/corpus", min_length=1)
    """File or folder that DVC watches: a change there runs the download again."""
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """Expected hash of a downloaded or single source file; required for a URL."""
    max_bytes: int | None = Field(None, ge=1)
    """Largest download; null: nine tenths of the free space."""
    text_field: str = Field("text", min_length=1)
    """Field or column that holds the text, of .jsonl, .json, .csv, .tsv, .parquet and hf: records."""
    format: Literal["text", "completion", "chat"] = "text"
    """text; completion: records with a prompt and its answer; chat: records with messages. docs/examples.md."""
    fields: Fields = Fields()
    """Names of the fields of completion (prompt, completion) and chat (messages; role and content of each)."""
    documents: Literal["separator", "line", "paragraph", "file"] = "separator"
    """What of a .txt or .md file is a document: what <|endoftext|> divides, each line, each paragraph, or the file."""
    licence: str | None = None
    """Licence of the text, for the data sheet; null: unknown, but for the bundled and named sets."""
    split_by: Literal["auto", "documents", "tokens"] = "auto"
    """documents: a document goes whole to one split; tokens: three runs of tokens; auto: documents where enough."""
    split: Split = Split()
    max_tokens: int | None = Field(None, ge=1)
    """Keep only so many tokens from the start; null: all."""
    workers: int | None = Field(None, ge=1, le=256)
    """Tokenizing processes; null: one a core."""

    @model_validator(mode="after")
    def _examples_stay_whole(self) -> Self:
        if self.format != "text" and self.split_by == "tokens":
            rule = "cuts examples in two, and {format} is {kind}"
            raise UserError(key="split_by", value="tokens", rule=rule, remedy="set it to auto", kind=self.format)
        return self


class Model(Section):
    init: str = Field("scratch", min_length=1)
    """scratch | gpt2 | gpt2-medium | gpt2-large | gpt2-xl | a directory | models:/NAME@ALIAS."""
    preset: str = "small"
    """Sizes of a scratch model; a pretrained one brings its own."""
    block_size: int | None = Field(None, ge=1, le=1_048_576)
    n_layer: int | None = Field(None, ge=1, le=1000)
    n_head: int | None = Field(None, ge=1, le=1000)
    n_embd: int | None = Field(None, ge=1, le=65_536)
    n_inner: int | None = Field(None, ge=1, le=262_144)
    drop_rate: float | None = Field(None, ge=0, lt=1)
    qkv_bias: bool | None = None

    @property
    def overrides(self) -> dict[str, Any]:
        """What is set beside the preset."""
        keys = ("block_size", "n_layer", "n_head", "n_embd", "n_inner", "drop_rate", "qkv_bias")
        return {key: getattr(self, key) for key in keys if getattr(self, key) is not None}

    @model_validator(mode="after")
    def _makes_a_model(self) -> Self:
        if self.preset not in PRESETS or self.init == "scratch":
            GPTConfig.from_preset(self.preset, **self.overrides)
        else:
            fixed = sorted(self.overrides.keys() - {"drop_rate"})
            if fixed:
                raise UserError(
                    key=fixed[0],
                    value=self.overrides[fixed[0]],
                    rule="cannot be changed when {init} is {weights}: those weights bring their own sizes",
                    remedy=f"set {', '.join(f'{{{key}}}' for key in fixed)} to null",
                    weights=repr(self.init),
                )
        return self


class Stop(Section, StopSettings):
    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.max_steps is None and self.max_epochs is None:
            rule = "{max_steps} and {max_epochs} are both null: the schedule needs an end"
            raise UserError(rule=rule, remedy="set one of them")
        return self


class Train(Section, TrainSettings, by_recipe=CHOSEN):
    recipe: Literal["memorise", "generalise", "finetune"] = DEFAULT
    """Says what a null means for the keys in gpt2ops/params/recipes.py. memorise: new weights, a short text by heart;
    generalise: new weights that write what they have not read; finetune: weights that have learned a language."""
    batch_size: int = Field(BY_RECIPE, ge=1, le=1_000_000)
    """Sequences a step, over all devices."""
    sequence_length: int = Field(BY_RECIPE, ge=2, le=1_048_576)
    """Tokens in a training sequence, at most the model's block_size."""
    sampler: Literal["sequential", "shuffled", "sliding"] = "shuffled"
    stride: int | None = Field(None, ge=1)
    """Distance between the starts of sliding windows; null: half the sequence."""
    mask_prompt: bool = True
    """Of examples (data.format), train the answers only; false: the prompts too."""
    long_examples: Literal["leave_out", "truncate"] = "leave_out"
    """What becomes of an example longer than sequence_length; without its answer it is left out in any case."""
    packing: bool = False
    """Put as many examples into a row as fit; none sees another."""
    eval_interval: int | Literal["epoch"] = 100
    """Steps between evaluations, or once an epoch."""
    sample_prompt: str = "ROMEO."
    """Start of the sample text shown at each evaluation; empty: <|endoftext|>."""
    best_by: Literal["auto", "val_loss", "train_loss"] = "auto"
    """What models/best is chosen by; auto: val_loss, but train_loss where the target is one of train."""
    resume: bool = True
    """Resume the newest checkpoint that fits this run."""
    stop: Stop = Stop()

    @model_validator(mode="before")
    @classmethod
    def _by_recipe(cls, values: Any) -> Any:
        return with_recipe(values)

    @field_validator("compile", "cuda_graph", mode="before")
    @classmethod
    def _yaml_switch(cls, value: object) -> object:
        # YAML 1.1 reads a bare on or off as true or false.
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value

    @field_validator("eval_interval")
    @classmethod
    def _interval_is_positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise UserError(value=value, rule="must be at least 1, or 'epoch'")
        return value

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.min_learning_rate > self.learning_rate:
            rule = "must not exceed {learning_rate} ({peak:g})"
            raise UserError(key="min_learning_rate", value=self.min_learning_rate, rule=rule, peak=self.learning_rate)
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            fitting = max(1, self.batch_size // self.micro_batch_size) * self.micro_batch_size
            raise UserError(
                key="batch_size",
                value=self.batch_size,
                rule="must be a multiple of {micro_batch_size} ({micro})",
                remedy=f"try {fitting}",
                micro=self.micro_batch_size,
            )
        return self


class Evaluate(Section):
    stride: int | None = Field(None, ge=1)
    """New tokens a window of the sliding-window perplexity; null: half of block_size."""
    batch_size: int = Field(16, ge=1)
    max_tokens: Annotated[int, Field(ge=2)] | Literal["auto"] | None = "auto"
    """Tokens scored of each split, from its start; null: all; auto: all held-out text where that takes fewer forward
    passes than the training did (three a token), else 25,000, and of the training text about as much."""
    gate_tokens: int | None = Field(100_000, ge=2)
    """Held-out tokens, from the start, by which the gate and gpt2 compare compare models; null: all."""
    recall_passages: int = Field(50, ge=0)
    """Training passages tried for verbatim recall; 0: none."""
    recall_prompt_tokens: int = Field(32, ge=1)
    recall_continuation_tokens: int = Field(32, ge=1)


class SampleSetting(DecodingSetting):
    """A way of decoding that the sample stage tries."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")
    """Stands at its texts."""


def _default_settings() -> list[SampleSetting]:
    values: list[dict[str, Any]] = [
        {"name": "greedy", "decoding": "greedy"},
        {"name": "nucleus", "decoding": "sample", **SAMPLING_VALUES, "num_sequences": 2},
        {"name": "beam", "decoding": "beam", "num_beams": 4, "no_repeat_ngram_size": 3},
    ]
    return [SampleSetting.model_validate(setting) for setting in values]


class Sample(Section):
    prompts: list[str] = ["ROMEO.", "To be, or not to be"]
    """Starts of the texts; an empty one is <|endoftext|>."""
    max_new_tokens: int = Field(100, ge=1, le=100_000)
    """Of each text, or what fits into the model's block_size after the prompt; a setting may have its own."""
    seed: int = Field(42, ge=0, lt=2**32)
    """A setting may have its own; text k of a prompt has seed + k."""
    memorised_tokens: int = Field(32, ge=1)
    """A text that shares a run of so many tokens with the training text is called memorised."""
    settings: list[SampleSetting] = Field(default_factory=_default_settings)
    """Ways of decoding, each tried on every prompt: gpt2ops/params/decoding.py."""

    @field_validator("prompts")
    @classmethod
    def _prompts_are_text(cls, prompts: list[str]) -> list[str]:
        for number, prompt in enumerate(prompts):
            try:
                check_unicode(prompt)
            except UserError as error:
                raise UserError(rule=": prompt {number}: {reason}", number=number + 1, reason=str(error)) from None
        return prompts

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        seen: dict[str, int] = {}
        for number, setting in enumerate(self.settings):
            if setting.name in seen:
                rule = f"is that of {{settings[{seen[setting.name]}]}} already"
                key, remedy = f"settings[{number}].name", "give it another"
                raise UserError(key=key, value=setting.name, rule=rule, remedy=remedy)
            seen[setting.name] = number
        return self


class Gate(Section):
    min_improvement: float = Field(0.0, ge=0)
    """Share by which held-out perplexity must fall below the champion's; 0: any that is not luck."""
    confidence: float = Field(0.95, ge=0.5, lt=1)
    """A better perplexity counts where this interval of the difference, on the same text, does not hold 0."""
    max_perplexity: float | None = Field(None, gt=1)
    """No champion above this held-out perplexity; null: no limit."""
    max_verbatim_recall: float | None = Field(None, ge=0, le=1)
    """No champion that recalls more of its training text; null: named, not refused."""
    require_target: bool = False
    """No champion that missed its target loss."""


_MODEL_NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$"  # a folder of the registry: not `.` or `..`


class Register(Section):
    name: str = Field("gpt2", pattern=_MODEL_NAME)
    text_name: str = Field("gpt2-text", pattern=_MODEL_NAME)
    gate: Gate = Gate()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if self.name == self.text_name:
            rule = "{name} and {text_name} are both {same}"
            raise UserError(rule=rule, remedy="give them different names", same=repr(self.name))
        return self
