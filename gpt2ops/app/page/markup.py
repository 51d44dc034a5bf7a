"""What the page shows of a text, as HTML. All that came from a visitor or a model is escaped here."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape

from gpt2core.decoding.streaming import TextStream
from gpt2core.tokenizer import Tokenizer
from gpt2ops.app.page.alternatives import Choice
from gpt2ops.app.page.history import Record, mean_log_prob
from gpt2ops.app.serving.generation_job import GeneratedText
from gpt2ops.app.serving.service import GenerationProgress, GenerationRequest, ModelOutput

# From here down a token is marked as less and less likely. A scale of one hue, told apart by its lightness.
SCALE = (0.2, 0.05, 0.01, 0.001)
ENDINGS = {
    "eos": "ended by itself",
    "length": "reached its maximum length",
    "stop": "reached a stop text",
    "time": "reached its maximum time",
    "stopped": "stopped by you",
    "limit": "cut at this page's time limit",
}
_TOKENIZER = Tokenizer()


@dataclass(frozen=True)
class Piece:
    """Tokens `start` to `stop` of a text, which together are whole characters."""

    start: int
    stop: int
    text: str


def outputs_html(request: GenerationRequest, progress: GenerationProgress) -> str:
    """The texts of all models, beside each other where there is room."""
    several = len(request.models) > 1
    sections = [_section(request, output, several) for output in progress.outputs]
    return f'<div class="answers">{"".join(sections)}</div>' if sections else ""


def alert_html(line: str) -> str:
    return f'<p class="alert" role="alert">{escape(line)}</p>' if line else ""


def status_html(line: str) -> str:
    return f'<p class="status" role="status">{escape(line)}</p>' if line else ""


def command_html(records: Sequence[Record]) -> str:
    """The commands that write the latest texts, one a model."""
    commands = dict.fromkeys(str(record["command"]) for record in records)
    return "".join(
        f'<div class="command"><code>{escape(command)}</code>{_button("copy-code", "Copy")}</div>'
        for command in commands
    )


def history_html(records: Sequence[Record], with_commands: bool) -> str:
    """The newest first, each folded."""
    if not records:
        return '<p class="quiet">Nothing yet. What you generate is listed here until you close this tab.</p>'
    return "".join(_entry(record, with_commands) for record in reversed(records))


def pieces(token_ids: Sequence[int]) -> Iterator[Piece]:
    """The tokens of a text, those that share a character together; their texts joined are the text."""
    stream, start, found = TextStream(_TOKENIZER), 0, list[Piece]()
    for place, token_id in enumerate(token_ids):
        text = stream.put([token_id])
        if text:
            yield from found
            found, start = [Piece(start, place + 1, text)], place + 1
    if rest := stream.end():
        if start < len(token_ids):
            found.append(Piece(start, len(token_ids), rest))
        else:  # the last token is a whole character and the begin of another one
            found = [replace(found[0], text=found[0].text + rest)]
    yield from found


def _section(request: GenerationRequest, output: ModelOutput, several: bool) -> str:
    title = f'<h3 class="model">{escape(output.model)}</h3>' if several else ""
    if output.is_done and not output.written:
        return (
            f'<section class="answer">{title}<p class="quiet">Stopped before the search had found a text.</p></section>'
        )
    count = len(output.so_far)
    if output.is_done:
        texts = [_finished(request, output, number, count) for number in range(count)]
    elif any(output.so_far):
        texts = [_growing(request, output, text, number, count) for number, text in enumerate(output.so_far)]
    else:
        texts = [f'<p class="quiet">Searching: step {output.steps} …</p>']
    return f'<section class="answer">{title}{"".join(texts)}</section>'


def _growing(request: GenerationRequest, output: ModelOutput, text: str, number: int, count: int) -> str:
    heading = f'<header><span class="facts">{_number(number, count)}writing …</span></header>'
    return f'<article class="text">{heading}<div class="body">{_prompt(request, output)}{escape(text)}</div></article>'


def _finished(request: GenerationRequest, output: ModelOutput, number: int, count: int) -> str:
    written = output.written[number]
    speed = sum(one.text.tokens for one in output.written) / output.seconds if output.seconds else 0
    facts = [
        f"{written.text.tokens:,} tokens",
        *([f"seed {request.seed + number}"] if request.setting.draws else []),
        *([f"{speed:,.0f} tokens/s"] if number == 0 else []),
        ENDINGS[written.text.finish_reason],
    ]
    mean = mean_log_prob(written)
    if mean is not None:
        facts.insert(1, f"perplexity {math.exp(min(-mean, 100)):,.1f}")
    learned = sum(stop - start for start, stop in written.passages)
    note = (
        f'<p class="learned">{learned} of {len(written.text.token_ids)} tokens stand word for word in the training '
        "text; they are underlined.</p>"
        if learned
        else ""
    )
    heading = (
        f'<header><span class="facts">{_number(number, count)}{escape(" · ".join(facts))}</span>'
        f'<span class="actions">{_button("copy", "Copy")}{_button("continue", "Continue")}</span></header>'
    )
    body = '<div class="body" tabindex="0" aria-label="Text; arrow keys move from token to token">'
    return f'<article class="text">{heading}{note}{body}{_prompt(request, output)}{_tokens(written)}</div></article>'


def _tokens(written: GeneratedText) -> str:
    """The text, a span a piece; passages that were learned by heart are marked around theirs."""
    starts = dict(written.passages)
    parts, open_until = [], None
    for piece in pieces(written.text.token_ids):
        begins = next((start for start in range(piece.start, piece.stop) if start in starts), None)
        if begins is not None and open_until is None:
            open_until = starts[begins]
            parts.append(f'<mark class="learned" data-note="{open_until - begins} tokens from the training text">')
        parts.append(_token(piece, written.choices[piece.start : piece.stop]))
        if open_until is not None and piece.stop >= open_until:
            parts.append("</mark>")
            open_until = None
    return "".join(parts) + ("</mark>" if open_until is not None else "")


def _token(piece: Piece, choices: Sequence[Choice]) -> str:
    """Its probability is that of all its tokens; what stood beside it, that of the first."""
    probability = 1.0
    for choice in choices:
        probability *= choice.probability
    level = sum(probability < bound for bound in SCALE)
    first = choices[0]
    others = [[_TOKENIZER.decode([token_id]), _rounded(value)] for token_id, value in first.likeliest]
    facts = json.dumps([_rounded(probability), first.rank if len(choices) == 1 else 0, others], ensure_ascii=False)
    line_end = " nl" if piece.text.isspace() and "\n" in piece.text else ""
    return f'<span class="t l{level}{line_end}" data-t="{escape(facts)}">{escape(piece.text)}</span>'


def _rounded(probability: float) -> float:
    return float(f"{probability:.3g}")


def _prompt(request: GenerationRequest, output: ModelOutput) -> str:
    """An answer begins a line."""
    return f'<span class="prompt">{escape(request.prompt)}</span>' + ("\n" if output.answers else "")


def _number(number: int, count: int) -> str:
    return f"{number + 1} of {count} · " if count > 1 else ""


def _button(action: str, label: str) -> str:
    return f'<button type="button" class="small" data-do="{action}">{label}</button>'


def _entry(record: Record, with_commands: bool) -> str:
    settings = record["settings"]
    facts = [str(record["model"]), str(settings["decoding"])]
    facts += [f"seed {record['seed']}"] if record["seed"] is not None else []
    facts += [f"{record['tokens']} tokens"]
    command = command_html([record]) if with_commands else ""
    return (
        f'<details class="entry"><summary>{escape(_short(record["prompt"]))} '
        f'<span class="quiet">{escape(" · ".join(facts))}</span></summary>'
        f'<div class="body"><span class="prompt">{escape(record["prompt"])}</span>{escape(record["text"])}</div>'
        f"{command}</details>"
    )


def _short(text: str, length: int = 50) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"
