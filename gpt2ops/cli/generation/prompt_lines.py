"""A .jsonl file of prompts in, a .jsonl file of texts out: in batches, and resumable.

Every line is checked before the first text is written. A line's texts depend on the line, the flags and the model only:
batches begin at the same lines in a resumed run, and a line without a seed gets one derived from its number.
"""

import argparse
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2core.errors import UserError
from gpt2core.storage.bounds import check_regular
from gpt2core.tokenizer import check_unicode
from gpt2ops.cli.flags.decoding import given_flags, parse_setting
from gpt2ops.cli.generation.prompts import decode, prompt_file, read_bytes
from gpt2ops.cli.generation.writer import Writer
from gpt2ops.params.decoding import DecodingSetting
from gpt2ops.process.console import progress_bar

DEFAULT_BATCH_SIZE = 8
DEFAULT_SEED = 0  # a fixed one: a resumed run must write the same texts


@dataclass(frozen=True)
class Line:
    """A prompt of the file with its decoding setting."""

    number: int
    id: Any
    prompt: str
    token_ids: list[int]
    setting: DecodingSetting
    seed: int

    @property
    def copies(self) -> int:
        return self.setting.num_sequences or 1


def answer_lines(arguments: argparse.Namespace, open_writer: Callable[[argparse.Namespace], Writer]) -> None:
    """Write the texts that are missing in --output. Raises UserError that names the file and line."""
    name = str(prompt_file(arguments))
    batch_size = DEFAULT_BATCH_SIZE if arguments.batch_size is None else arguments.batch_size
    if arguments.stream:
        raise UserError("--stream writes one text as it comes; a .jsonl file of prompts goes to --output in batches.")
    if arguments.output is None:
        raise UserError(f"--prompt-file {name} needs --output OUT.jsonl for its texts.")
    if batch_size < 1:
        raise UserError(f"--batch-size ({batch_size}) must be at least 1.")
    output = Path(arguments.output)
    check_regular(output, f"--output ({output})")
    if output.resolve() == Path(name).resolve():
        raise UserError(f"--output ({output}) is the file of the prompts; choose another.")
    objects = list(read_objects(name))
    flags = given_flags(arguments)
    settings = [setting_of(name, number, values, flags) for number, values in objects]
    writer = open_writer(arguments)
    lines = [
        line_of(name, number, values, setting, writer)
        for (number, values), setting in zip(objects, settings, strict=True)
    ]
    finished = drop_cut_line(output, name, lines, writer.fingerprint)
    answer(lines, finished, writer, output, batch_size)


def read_objects(name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of each line that is not blank."""
    for number, content in enumerate(read_bytes(Path(name)).split(b"\n"), start=1):
        text = decode(content, f"{name}, line {number}")
        if not text.strip():
            continue
        try:
            values = json.loads(text)
        except ValueError as error:
            raise UserError(f"{name}, line {number}: not valid JSON: {getattr(error, 'msg', error)}.") from None
        except RecursionError:
            raise UserError(f"{name}, line {number}: not valid JSON: nested too deeply.") from None
        if not isinstance(values, dict) or not isinstance(values.get("prompt"), str):
            raise UserError(
                f'{name}, line {number}: must be an object with a text "prompt", as in {{"prompt": "To be"}}.'
            )
        yield number, values


def setting_of(name: str, number: int, values: dict[str, Any], flags: dict[str, Any]) -> DecodingSetting:
    """The flags, overridden by the line's keys."""
    own = {key: value for key, value in values.items() if key not in ("prompt", "id")}
    try:
        check_unicode(values["prompt"])
        check_unicode(json.dumps(values.get("id"), ensure_ascii=False))  # the output repeats it
        return parse_setting({**flags, **own}, keys=own)
    except UserError as error:
        raise UserError(f"{name}, line {number}: {error}") from None


def line_of(name: str, number: int, values: dict[str, Any], setting: DecodingSetting, writer: Writer) -> Line:
    token_ids = writer.encode(values["prompt"])
    try:
        writer.check_fits(len(token_ids), setting)
    except UserError as error:
        raise UserError(f"{name}, line {number}: {error}") from None
    seed = setting.seed if "seed" in values and setting.seed is not None else seed_of(setting.seed, number)
    return Line(number, values.get("id"), values["prompt"], token_ids, setting, seed)


def seed_of(base: int | None, number: int) -> int:
    """A seed for the line, far from those of the lines beside it."""
    text = f"{DEFAULT_SEED if base is None else base} {number}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def heads(lines: list[Line], model: str) -> Iterator[dict[str, Any]]:
    """The start of each text's object in the output, which is known before the text is written."""
    for line in lines:
        settings = hashlib.sha256(f"{model} {line.setting.model_dump_json()}".encode()).hexdigest()[:12]
        for number in range(line.copies):
            yield {
                "line": line.number,
                "id": line.id,
                "prompt": line.prompt,
                "sequence": number + 1,
                "seed": line.seed + number if line.setting.draws else None,
                "decoding": line.setting.decoding,
                "settings": settings,
            }


def drop_cut_line(output: Path, name: str, lines: list[Line], model: str) -> int:
    """Number of texts that the output holds; a last line that is incomplete is removed.

    Raises UserError where its lines are not those of these prompts and settings.
    """
    if not output.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        output.touch()
        return 0
    kept = count = 0
    expected = heads(lines, model)
    with output.open("r+b") as file:
        for content in file:
            head = next(expected, None)
            if head is not None and is_cut(content, head):
                break
            found = object_of(content)
            if head is None or any(found.get(key) != value for key, value in head.items()):
                raise UserError(
                    f"--output: {output}, line {count + 1} is not what {name} and these settings make; give the "
                    "settings that it was begun with, choose another file, or delete it."
                )
            kept, count = kept + len(content), count + 1
        file.truncate(kept)
    return count


def is_cut(content: bytes, head: dict[str, Any]) -> bool:
    """Whether a line is the incomplete start of the one with this head, as a kill leaves it."""
    start = json.dumps(head, ensure_ascii=False).encode().removesuffix(b"}")
    return not content.endswith(b"\n") and (content.startswith(start) or start.startswith(content))


def object_of(content: bytes) -> dict[str, Any]:
    """The JSON object of a line, empty where it holds none."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def answer(lines: list[Line], finished: int, writer: Writer, output: Path, batch_size: int) -> None:
    """Append the texts after the first `finished`, a batch at a time."""
    total = sum(line.copies for line in lines)
    done = 0
    with output.open("ab") as file, progress_bar("texts", total, "text") as bar:
        for start in range(0, len(lines), batch_size):
            batch = lines[start : start + batch_size]
            size = sum(line.copies for line in batch)
            if done + size > finished:
                objects = list(answer_batch(batch, writer))
                new = objects[max(0, finished - done) :]
                file.write(b"".join(json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in new))
                file.flush()
            done += size
            bar.update(size)


def answer_batch(batch: list[Line], writer: Writer) -> Iterator[dict[str, Any]]:
    """The objects of a batch, in its order; lines with the same settings are decoded together."""
    texts: dict[int, Any] = {}
    by_setting = sorted(batch, key=settings_but_seed)
    for _, group in itertools.groupby(by_setting, key=settings_but_seed):
        members = list(group)
        written = writer.write(
            [line.token_ids for line in members], members[0].setting, [line.seed for line in members]
        )
        texts.update(zip((line.number for line in members), written, strict=True))
    ordered = (text for line in batch for text in texts[line.number])
    for head, text in zip(heads(batch, writer.fingerprint), ordered, strict=True):
        yield {
            **head,
            "text": text.text,
            "tokens": text.tokens,
            "mean_log_prob": text.mean_log_prob,
            "finish_reason": text.finish_reason,
            "token_ids": text.token_ids,
        }


def settings_but_seed(line: Line) -> str:
    return json.dumps(line.setting.model_dump(exclude={"seed"}), sort_keys=True)
