"""Other people's GPT-2 weights into this project's: `import_model(path)`.

`source` reads the file, `layouts` and `parts` say what its names stand for, `sizes` how large it is, `assemble` builds
the model, `probing` tries it.
"""

from dataclasses import dataclass
from pathlib import Path

from gpt2core.errors import UserError
from gpt2core.importing.assemble import build_model
from gpt2core.importing.parts import sort_parts
from gpt2core.importing.probing import ENGLISH, Probe, choose_reading, probe
from gpt2core.importing.sizes import infer_config
from gpt2core.importing.source import read_source
from gpt2core.model import GPT
from gpt2core.tokenizer import Tokenizer

__all__ = ["ImportedModel", "import_model"]


@dataclass(frozen=True)
class ImportedModel:
    """`layout` says whose names the weights had, `notes` each choice that was made on the way."""

    model: GPT
    layout: str
    notes: tuple[str, ...]
    probe: Probe


def import_model(
    path: Path, *, n_head: int | None = None, activation: str | None = None, text: str | None = None
) -> ImportedModel:
    """The GPT whose weights lie at `path`, a file or a directory; nothing in it is ever run.

    `n_head` and `activation` (gelu_new | gelu) are for what a file does not say. The result was tried on `text`, by
    default a paragraph of English. Raises UserError, one line, for a file that is no whole GPT-2.
    """
    source = read_source(path)
    try:
        parts = sort_parts(source)
        config = infer_config(parts, source, n_head, activation)
        model = build_model(parts, config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    layout = f"{source.kind}, {parts.layout.name}"
    notes = [*source.notes, *parts.notes]
    token_ids = Tokenizer().encode(ENGLISH if text is None else text)
    turnable = not parts.layout.linear and not parts.has("attn.qkv.weight")
    if turnable or "n_head" not in source.sizes:
        given = source.sizes.get("n_head", n_head)
        notes += choose_reading(model, token_ids, given_heads=given, turnable=turnable)
    if not parts.layout.known:
        notes.append(
            "names and shapes are those of a GPT-2; that the model puts its norms first, scales attention by "
            "1/sqrt(head size) and has a GELU cannot be seen in weights: compare a text with one it wrote before"
        )
    return ImportedModel(model, layout, tuple(notes), probe(model, token_ids))
