"""GPT-2's tensor names in the files of other projects, as tables from names to parts.

A part is `wte.weight`, `wpe.weight`, `ln_f.*`, `lm_head.*`, or one of a block: `ln_1.*`, `ln_2.*`, `attn.qkv.*` or
`attn.q.*`, `attn.k.*` and `attn.v.*`, `attn.out.*`, `mlp.fc.*`, `mlp.proj.*`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

# What wrappers put before every name: DDP, torch.compile, Lightning, and a module that holds the model.
WRAPPERS = (
    "module|_orig_mod|_forward_module|_fsdp_wrapped_module|model|net|network|backbone|lm|llm|gpt|gpt2|gpt_model|"
    "language_model|transformer|decoder|base_model"
)
_WRAPPED = re.compile(rf"^(?:(?:{WRAPPERS})\.)+")
_LEAF = {"weight": "weight", "scale": "weight", "gamma": "weight", "bias": "bias", "shift": "bias", "beta": "bias"}


@dataclass(frozen=True)
class Layout:
    """Regular expressions of names, without what wrappers put before them and without `.weight` and `.bias`.

    `known` layouts belong to programs that compute as GPT-2 does, with that `activation`; names alone do not prove it.
    `linear` is True where every matrix is an nn.Linear's, (out, in), and None where shapes must decide.
    """

    name: str
    top: dict[str, str]
    block: str
    parts: dict[str, str]
    known: bool = True
    linear: bool | None = None
    activation: str = "gelu_new"

    def part(self, name: str) -> str | None:
        """The part that `name` stands for, blocks as `h.N.PART`; None where this layout has no such name."""
        bare = _WRAPPED.sub("", name)
        match = re.fullmatch(rf"(?:{self.block})\.(\d+)\.(.+)", bare)
        if match:
            part = _look_up(match[2], self.parts)
            return f"h.{int(match[1])}.{part}" if part else None
        return _look_up(bare, self.top)

    def parts_of(self, names: Iterable[str]) -> dict[str, str]:
        """Name -> part, for the names that the layout knows."""
        return {name: part for name in names if (part := self.part(name))}


def _look_up(name: str, table: dict[str, str]) -> str | None:
    stem, _, leaf = name.rpartition(".")
    joined = re.fullmatch(r"(.*in_proj)_(weight|bias)", name)  # nn.MultiheadAttention
    if joined:
        stem, leaf = joined[1], joined[2]
    if leaf not in _LEAF:
        stem, leaf = name, "weight"  # an nn.Parameter of its own: old minGPT's pos_emb
        table = {pattern: part for pattern, part in table.items() if part == "wpe"}
    for pattern, part in table.items():
        if re.fullmatch(pattern, stem):
            return f"{part}.{_LEAF[leaf]}"
    return None


def _projection(letter: str, word: str) -> str:
    """Names of the query, key or value projection."""
    return rf"[wW]?_?{letter}|W_?{word}|(?:c|to)_{letter}|{letter}_(?:proj|linear|layer)|{word}(?:_proj)?"


GPT2_NAMES = Layout(
    name="named as in GPT-2",
    top={"wte": "wte", "wpe": "wpe", "ln_f": "ln_f", "lm_head": "lm_head"},
    block="h",
    parts={
        "ln_1": "ln_1",
        "ln_2": "ln_2",
        r"attn\.c_attn": "attn.qkv",
        r"attn\.c_proj": "attn.out",
        r"mlp\.c_fc": "mlp.fc",
        r"mlp\.c_proj": "mlp.proj",
    },
)

# karpathy/minGPT, first version, 2020
OLD_MINGPT = Layout(
    name="named as in minGPT of 2020",
    top={"tok_emb": "wte", "pos_emb": "wpe", "ln_f": "ln_f", "head": "lm_head"},
    block="blocks",
    parts={
        "ln1": "ln_1",
        "ln2": "ln_2",
        r"attn\.query": "attn.q",
        r"attn\.key": "attn.k",
        r"attn\.value": "attn.v",
        r"attn\.proj": "attn.out",
        r"mlp\.0": "mlp.fc",
        r"mlp\.2": "mlp.proj",
    },
    linear=True,
    activation="gelu",  # nn.GELU()
)

# rasbt/LLMs-from-scratch, chapters 4 to 7
FROM_SCRATCH_BOOK = Layout(
    name="named as in LLMs-from-scratch",
    top={"tok_emb": "wte", "pos_emb": "wpe", "final_norm": "ln_f", "out_head": "lm_head"},
    block="trf_blocks",
    parts={
        "norm1": "ln_1",
        "norm2": "ln_2",
        r"att\.W_query": "attn.q",
        r"att\.W_key": "attn.k",
        r"att\.W_value": "attn.v",
        r"att\.qkv": "attn.qkv",
        r"att\.(?:out_proj|proj)": "attn.out",
        r"ff\.layers\.0": "mlp.fc",
        r"ff\.layers\.2": "mlp.proj",
    },
    linear=True,
)

_EMBEDDING = r"emb(?:ed(?:ding)?s?)?(?:_table)?"
_ATTENTION = r"(?:\w+_)?(?:attn|att|attention|mha|sa)"
_FEED_FORWARD = r"(?:\w+_)?(?:mlp|ff|ffn|ffwd|feed_?forward)"
_INNER = r"(?:net|layers|model|seq|sequential|mlp|fc)"

HAND_MADE = Layout(
    name="with names of its own",
    top={
        rf"wte|(?:tok(?:en)?|word)_{_EMBEDDING}|embed_tokens|embeddings?": "wte",
        rf"wpe|pos(?:ition(?:al)?)?_{_EMBEDDING}": "wpe",
        r"ln_?f|final_?(?:layer_?)?norm|final_ln|ln_final|norm_?f|norm|ln|layer_?norm": "ln_f",
        r"(?:lm_|out_)?head|out(?:put)?(?:_proj(?:ection)?)?|fc_out|linear|to_logits|unembed(?:ding)?": "lm_head",
    },
    block=r"h|(?:\w+_)?(?:blocks?|layers?)",
    parts={
        r"ln_?1|norm_?1|layer_?norm_?1|attn_norm|attention_norm|norm_attn|input_layernorm": "ln_1",
        r"ln_?2|norm_?2|layer_?norm_?2|ffn?_norm|mlp_norm|norm_ffn?|post_attention_layernorm": "ln_2",
        rf"{_ATTENTION}\.(?:c_attn|[wW]?_?qkv(?:_proj|_linear)?|to_qkv|in_proj)": "attn.qkv",
        rf"{_ATTENTION}\.(?:{_projection('q', 'query')})": "attn.q",
        rf"{_ATTENTION}\.(?:{_projection('k', 'key')})": "attn.k",
        rf"{_ATTENTION}\.(?:{_projection('v', 'value')})": "attn.v",
        rf"{_ATTENTION}\.(?:c_proj|out_proj|o_proj|proj|[wW]_?o|W_?out|to_out|out|output|fc_out|c_o)": "attn.out",
        rf"{_FEED_FORWARD}\.(?:c_fc|(?:{_INNER}\.)?0|fc_?1|lin(?:ear)?_?1|w_?1|fc_in|up_proj)": "mlp.fc",
        rf"{_FEED_FORWARD}\.(?:c_proj|(?:{_INNER}\.)?[23]|fc_?2|lin(?:ear)?_?2|w_?2|fc_out|down_proj)": "mlp.proj",
    },
    known=False,
)

LAYOUTS = (GPT2_NAMES, OLD_MINGPT, FROM_SCRATCH_BOOK, HAND_MADE)


def best_layout(names: Iterable[str]) -> Layout:
    """The layout that knows most of the names; of several, the first."""
    names = list(names)
    return max(LAYOUTS, key=lambda layout: len(layout.parts_of(names)))
