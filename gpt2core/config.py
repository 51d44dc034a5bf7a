"""GPT-2 architecture settings and the named presets."""

from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from typing import Any

from gpt2core.errors import UserError

# transformers' name of an activation -> the `approximate` of torch's GELU.
ACTIVATIONS = {"gelu_new": "tanh", "gelu": "none"}


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a GPT-2. Field names follow the released `config.json`, but for `block_size` (its `n_positions`)."""

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    n_inner: int | None = None  # width of the feed-forward layer; None: 4 * n_embd
    drop_rate: float = 0.1  # embeddings, attention weights and residual branches alike
    qkv_bias: bool = True
    layer_norm_epsilon: float = 1e-5
    activation_function: str = "gelu_new"  # of ACTIVATIONS; GPT-2 was trained with the tanh approximation
    tie_word_embeddings: bool = True  # the head is the token embedding, as in GPT-2

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "n_inner"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise UserError(key=name, value=size, rule="must be at least 1")
        if self.n_embd % self.n_head:
            multiple = max(1, round(self.n_embd / self.n_head)) * self.n_head
            rule, remedy = "must be a multiple of {n_head} ({heads})", f"try {multiple}"
            raise UserError(key="n_embd", value=self.n_embd, rule=rule, remedy=remedy, heads=self.n_head)
        if not 0.0 <= self.drop_rate < 1.0:
            raise UserError(key="drop_rate", value=self.drop_rate, rule="must be at least 0 and below 1")
        if self.activation_function not in ACTIVATIONS:
            rule = f"must be one of {', '.join(ACTIVATIONS)}"
            raise UserError(key="activation_function", value=self.activation_function, rule=rule)

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def feed_forward_width(self) -> int:
        return self.n_inner if self.n_inner is not None else 4 * self.n_embd

    @property
    def gelu_approximation(self) -> str:
        """The `approximate` of torch's GELU."""
        return ACTIVATIONS[self.activation_function]

    @property
    def num_parameters(self) -> int:
        """Parameters of a model of this config, a tied head counted once."""
        width, inner = self.n_embd, self.feed_forward_width
        attention = 4 * width * width + width + (3 * width if self.qkv_bias else 0)
        block = attention + 2 * width * inner + inner + width + 4 * width
        tables = (1 if self.tie_word_embeddings else 2) * self.vocab_size + self.block_size
        return tables * width + self.n_layer * block + 2 * width

    @classmethod
    def from_preset(cls, preset: str, **overrides: Any) -> "GPTConfig":
        """The sizes of `preset` with `overrides` applied. Raises UserError for an unknown name."""
        if preset not in PRESETS:
            nearest = get_close_matches(preset, PRESETS, n=1)
            rule = f"is unknown; did you mean {nearest[0]}? Presets" if nearest else "is unknown"
            raise UserError(key="preset", value=preset, rule=f"{rule}: {', '.join(PRESETS)}")
        return replace(PRESETS[preset], **overrides)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


GPT2_VOCAB_SIZE = 50257

# The four released sizes: Radford et al. 2019, table 2.
PRESETS: dict[str, GPTConfig] = {
    "gpt2": GPTConfig(GPT2_VOCAB_SIZE, 1024, n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": GPTConfig(GPT2_VOCAB_SIZE, 1024, n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": GPTConfig(GPT2_VOCAB_SIZE, 1024, n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": GPTConfig(GPT2_VOCAB_SIZE, 1024, n_layer=48, n_head=25, n_embd=1600),
    "tinystories": GPTConfig(GPT2_VOCAB_SIZE, 256, n_layer=6, n_head=8, n_embd=512, n_inner=2048),
    # Learns the bundled plays in minutes on two cores.
    "small": GPTConfig(GPT2_VOCAB_SIZE, 128, n_layer=4, n_head=4, n_embd=128, drop_rate=0.0),
}
