"""Stage `tokenize`: data/raw -> data/tokens."""

if __name__ == "__main__":
    from gpt2ops.process.startup import start_process

    start_process()

from pathlib import Path
from typing import Any

from gpt2core.data.corpus import read_corpus
from gpt2core.data.examples.reading import read_examples
from gpt2core.data.examples.template import TEMPLATES
from gpt2core.data.examples.writer import write_examples
from gpt2core.data.writer import write_tokens
from gpt2core.errors import UserError
from gpt2ops.corpora.source_files import fields_of
from gpt2ops.params.schema import Data, load_params
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.results import read_report
from gpt2ops.process.console import progress_bar, say
from gpt2ops.process.stage import run_stage


def main() -> None:
    data = load_params().data
    provenance = read_provenance()
    files = [paths.RAW / entry["file"] for entry in provenance["files"]]
    try:
        manifest = write(data, files, provenance)
    except UserError as error:
        raise error.spelled(lambda name: name.replace("shares.", "data.split.")) from None
    say(summary(manifest))
    if not manifest["splits"]["val"]["tokens"]:
        say("no val split (data.split.val is 0): there will be no validation loss during training.")


def write(data: Data, files: list[Path], provenance: dict[str, Any]) -> dict[str, Any]:
    """Tokenize; the manifest. Raises UserError, in arguments of the library, where the text does not suit `data`."""
    if data.format != "text":
        return write_examples(
            paths.TOKENS,
            read_examples(files, data.format, fields_of(data)),
            TEMPLATES[data.format],
            source=provenance["source"],
            shares=data.split.model_dump(),
            max_tokens=data.max_tokens,
        )
    examples = data.documents in ("line", "paragraph")  # whole in one split, also where shares are then less exact
    with progress_bar("tokenize", total=provenance["size_bytes"], unit="B") as bar:
        return write_tokens(
            paths.TOKENS,
            read_corpus(files, text_field=data.text_field, documents=data.documents, on_bytes=bar.update),
            source=provenance["source"],
            shares=data.split.model_dump(),
            split_by="documents" if examples and data.split_by == "auto" else data.split_by,
            close_last=examples,
            max_tokens=data.max_tokens,
            workers=data.workers,
        )


def read_provenance() -> dict[str, Any]:
    """Raises UserError if the stage download has not run, or its file is damaged."""
    provenance = read_report(paths.PROVENANCE, "download", ("source", "size_bytes", "files"))
    files = provenance["files"]
    if not isinstance(files, list) or not all(
        isinstance(entry, dict) and _is_relative_name(entry.get("file")) for entry in files
    ):
        raise UserError(f"{paths.PROVENANCE} is damaged (files): run `dvc repro --force download`.")
    return provenance


def _is_relative_name(name: Any) -> bool:
    """Whether `name` is a file below data/raw."""
    return isinstance(name, str) and not Path(name).is_absolute() and ".." not in Path(name).parts


def summary(manifest: dict[str, Any]) -> str:
    splits = ", ".join(
        f"{name} {entry['tokens']:,} ({entry['documents']:,})" for name, entry in manifest["splits"].items()
    )
    return (
        f"{manifest['tokens']:,} tokens loaded in {manifest['documents']:,} document(s); tokens (documents): {splits}; "
        f"split by {manifest['split_by']}: {manifest['split_reason']}"
    )


if __name__ == "__main__":
    run_stage("tokenize", main)
