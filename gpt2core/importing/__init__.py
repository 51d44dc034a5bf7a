"""Import GPT-2 weights made by other programs: `import_model(path)`.

`readers` read the file, `layouts` and `parts` map its names, `sizes` infers the config, `assemble` builds the model,
`probing` tries it on a text.
"""

from dataclasses import dataclass
from pathlib import Path

from gpt2core.errors import UserError
from gpt2core.importing.assemble import build_model
from gpt2core.importing.parts import sort_parts
from gpt2core.importing.probing import ENGLISH, Probe, choose_heads_and_orientation, probe
from gpt2core.importing.readers import read_source
from gpt2core.importing.sizes import infer_config
from gpt2core.model import GPT
from gpt2core.storage.claims import check_parameters
from gpt2core.tokenizer import Tokenizer

__all__ = ["ImportedModel", "import_model"]


@dataclass(frozen=True)
class ImportedModel:
    """`layout` names the source's format and tensor names, `notes` each choice that the import made."""

    model: GPT
    layout: str
    notes: tuple[str, ...]
    probe: Probe


def import_model(
    path: Path, *, n_head: int | None = None, activation: str | None = None, text: str | None = None
) -> ImportedModel:
    """The GPT whose weights are at `path`, a file or a directory; no code in it is ever executed.

    `n_head` and `activation` (gelu_new | gelu) are for files that do not record them. The result's loss is measured on
    `text`, by default a paragraph of English. Raises UserError, one line, for a file that is not a complete GPT-2.
    """
    source = read_source(path)
    try:
        parts = sort_parts(source)
        config = infer_config(parts, source, n_head, activation)
        check_parameters(config, source.tensors, "what the tensors are called")
        model = build_model(parts, config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    layout = f"{source.kind}, {parts.layout.name}"
    notes = [*source.notes, *parts.notes]
    token_ids = Tokenizer().encode(ENGLISH if text is None else text)
    may_transpose = not parts.layout.linear and not parts.has("attn.qkv.weight")
    if may_transpose or "n_head" not in source.sizes:
        given = source.sizes.get("n_head", n_head)
        notes += choose_heads_and_orientation(model, token_ids, given_heads=given, may_transpose=may_transpose)
    if not parts.layout.known:
        notes.append(
            "names and shapes are those of a GPT-2; that the model puts its norms first, scales attention by "
            "1/sqrt(head size) and has a GELU cannot be seen in weights: compare a text with one it wrote before"
        )
    return ImportedModel(model, layout, tuple(notes), probe(model, token_ids))
