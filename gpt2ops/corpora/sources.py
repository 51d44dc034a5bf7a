"""Collects the text files of `data.source` in one folder. It can be:

bundled                      the plays in data/corpus
tinyshakespeare, tinystories the named sets below
hf:DATASET[/CONFIG]          a data set of the Hugging Face Hub (gpt2ops/corpora/hub.py)
http://…, https://…          one file, with data.sha256; ${NAME} in the URL stands for an environment variable
anything else                a file, a folder (recursive) or a glob
"""

import glob
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from gpt2core.data.corpus import COMPRESSIONS, SUFFIXES, file_format
from gpt2core.errors import UserError
from gpt2core.storage.files import sha256_file, with_home
from gpt2core.tokenizer import check_unicode
from gpt2ops.corpora.globbing import matching_files
from gpt2ops.corpora.http import DOWNLOADS, download
from gpt2ops.corpora.source_files import check_source_file
from gpt2ops.params.sections import Data
from gpt2ops.pipeline import paths
from gpt2ops.process.console import say
from gpt2ops.process.redact import check_no_secret, filled_in, place

BUNDLED_LICENCE = "public domain"


@dataclass(frozen=True)
class Download:
    url: str
    sha256: str | None


@dataclass(frozen=True)
class NamedSet:
    downloads: tuple[Download, ...]
    licence: str


# Both URLs name a commit, so their content cannot change.
_TINY_SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/d1d7aa34fdb3626174bce1d753e6cc6845ce7087/data/"
_TINY_STORIES = (
    "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/f54c09fd23315a6f9c86f9dc80f725de7d8f9c64/"
)
NAMED_SETS = {
    "tinyshakespeare": NamedSet(
        (
            Download(
                f"{_TINY_SHAKESPEARE}tinyshakespeare/input.txt",
                "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            ),
        ),
        "public domain",
    ),
    "tinystories": NamedSet(
        (
            Download(f"{_TINY_STORIES}TinyStoriesV2-GPT4-train.txt", None),
            Download(f"{_TINY_STORIES}TinyStoriesV2-GPT4-valid.txt", None),
        ),
        "CDLA-Sharing-1.0",
    ),
}


@dataclass(frozen=True)
class CollectedFiles:
    """The files of a source, as names in the folder, in reading order, and their origin."""

    licence: str | None
    urls: tuple[str, ...]
    files: tuple[str, ...]


def collect(data: Data, folder: Path) -> dict[str, Any]:
    """Copy the files of `data.source` to `folder` and check that each is readable text; returns the provenance.

    Raises UserError that names the file that is missing, is not text, or could not be downloaded.
    """
    found = _collect(data, folder)
    entries: list[dict[str, Any]] = [
        {"file": name, "size_bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
        for name in found.files
    ]
    return {
        "format_version": 1,
        "source": data.source,
        "licence": data.licence or found.licence,
        "urls": list(found.urls),
        "size_bytes": sum(entry["size_bytes"] for entry in entries),
        "files": entries,
    }


def _collect(data: Data, folder: Path) -> CollectedFiles:
    source = data.source
    if source.startswith("hf:"):
        from gpt2ops.corpora.hub import save_dataset

        _refuse_sha256(data, "a data set of the Hub")
        names, licence = save_dataset(source.removeprefix("hf:"), _hub_fields(data), folder)
        for name in names if data.format != "text" else []:
            _check(folder / name, data)
        return CollectedFiles(licence, (f"https://huggingface.co/datasets/{source.removeprefix('hf:')}",), tuple(names))
    if source in NAMED_SETS:
        return _named_set(data, NAMED_SETS[source], folder)
    if source.startswith(("http://", "https://")):
        return _url(data, folder)
    if "://" in source:
        raise UserError(f"data.source ({place(source)!r}): only http and https URLs are supported.")
    if source == "bundled":
        return CollectedFiles(
            BUNDLED_LICENCE, (), _copy({paths.BUNDLED_CORPUS: paths.BUNDLED_CORPUS.name}, data, folder)
        )
    return CollectedFiles(None, (), _copy(_local_files(source), data, folder))


def _copy(files: dict[Path, str], data: Data, folder: Path) -> tuple[str, ...]:
    """Check and copy `files`, a map of path to name in `folder`."""
    if len(files) > 1:
        _refuse_sha256(data, f"{len(files)} files")
    for path, name in files.items():
        if not path.is_file():
            raise UserError(f"{path} is missing; restore it or set data.source.")
        _check(path, data)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
        found = sha256_file(folder / name) if data.sha256 else None
        if found != data.sha256:
            raise UserError(f"{path}: sha256 is {found}, expected {data.sha256}; check data.source and data.sha256.")
    return tuple(files.values())


def _check(path: Path, data: Data) -> None:
    try:
        check_source_file(path, data)
    except UserError as error:
        raise error.spelled(lambda name: name.replace("fields.", "data.fields.")) from None


def _hub_fields(data: Data) -> dict[str, type]:
    """The fields of a record that are kept, with their types."""
    if data.format == "text":
        return {data.text_field: str}
    if data.format == "chat":
        return {data.fields.messages: list}
    return {data.fields.prompt: str, data.fields.completion: str}


def _refuse_sha256(data: Data, what: str) -> None:
    if data.sha256:
        raise UserError(
            f"data.sha256 is for one file, but data.source ({data.source}) names {what}; set data.sha256 to null."
        )


# Local files


def _local_files(source: str) -> dict[Path, str]:
    """The files of `source`, sorted: path to name in the folder of raw files."""
    path = with_home(source)
    if path.is_file():
        file_format(path)
        return {path: _storable_name(path, path.parent)}
    if path.is_dir():
        files = sorted(found for found in _walk(path) if _is_readable(found))
        base = path
    elif glob.has_magic(source):
        files = matching_files(str(path))
        for file in files:
            file_format(file)
        base = Path(os.path.commonpath([file.parent for file in files])) if files else path
    else:
        known = ", ".join(["bundled", *NAMED_SETS])
        raise UserError(f"data.source ({source!r}): no such file or folder, nor one of {known}, hf:DATASET or a URL.")
    if not files:
        kinds = ", ".join(SUFFIXES)
        raise UserError(f"data.source ({source!r}) has no text files ({kinds}, also with {' or '.join(COMPRESSIONS)}).")
    return {file: _storable_name(file, base) for file in files}


def _storable_name(file: Path, base: Path) -> str:
    """The name relative to `base`. Raises UserError if it is not UTF-8, which JSON needs."""
    name = file.relative_to(base).as_posix()
    try:
        check_unicode(name)
    except UserError:
        raise UserError(f"{file}: the file's name is not UTF-8; rename it.") from None
    return name


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _is_readable(path: Path) -> bool:
    try:
        file_format(path)
    except UserError:
        return False
    return True


# Downloads


def _url(data: Data, folder: Path) -> CollectedFiles:
    check_no_secret(data.source, "data.source")
    name = _file_name(data.source)
    if data.sha256 is None:
        raise UserError(f"data.sha256 is null: to download {data.source}, set it to the file's hash.")
    _fetch(Download(data.source, data.sha256), data, folder / name)
    return CollectedFiles(None, (data.source,), (name,))


def _file_name(url: str) -> str:
    try:
        name = Path(unquote(urlsplit(url).path)).name
    except ValueError as error:
        raise UserError(f"data.source ({url!r}) is not a valid URL: {error}.") from None
    file_format(Path(name or url))
    return name


def _named_set(data: Data, named: NamedSet, folder: Path) -> CollectedFiles:
    _refuse_sha256(data, "a set with its own hash")
    names = []
    for item in named.downloads:
        single = len(named.downloads) == 1
        name = f"{data.source}.txt" if single else _file_name(item.url)
        local = paths.BUNDLED_CORPUS.parent / name
        names.append(name)
        if item.sha256 and local.is_file() and sha256_file(local) == item.sha256:
            say(f"using {local}")
            shutil.copyfile(local, folder / name)
            continue
        try:
            _fetch(item, data, folder / name)
        except UserError as error:
            hint = f" Or save the file as {local}." if item.sha256 else ""
            raise UserError(f"{error}{hint}") from None
    return CollectedFiles(named.licence, tuple(item.url for item in named.downloads), tuple(names))


def urls_of(source: str) -> list[str]:
    """What `data.source` downloads by address."""
    return [item.url for item in NAMED_SETS[source].downloads] if source in NAMED_SETS else [source]


def _fetch(item: Download, data: Data, target: Path) -> None:
    say(f"downloading {item.url}")
    partial = download(
        filled_in(item.url, "data.source"), DOWNLOADS, item.sha256, shown=item.url, max_bytes=data.max_bytes
    )
    shutil.move(partial, target)
    try:
        _check(target, data)
    except UserError as error:
        raise error.spelled(source=item.url) from None
