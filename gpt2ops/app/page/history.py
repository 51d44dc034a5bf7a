"""What was written, as lines of JSON: each text with all that is needed to write it again."""

import json
import math
from datetime import UTC, datetime
from typing import Any

from gpt2core.tokenizer import Tokenizer
from gpt2ops.app.page.command_line import command_of
from gpt2ops.app.serving.service import GenerationRequest, ModelOutput

Record = dict[str, Any]


def records_of(request: GenerationRequest, output: ModelOutput, weights: str) -> list[Record]:
    """A record for each text of a finished output."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    tokenizer = Tokenizer()
    return [
        {
            "time": now,
            "model": output.model,
            "weights": weights,
            "prompt": request.prompt,
            "sequence": number + 1,
            "text": written.text.text,
            "tokens": written.text.tokens,
            "mean_log_prob": mean_log_prob(written),
            "finish_reason": written.text.finish_reason,
            "seconds": round(output.seconds, 3),
            "seed": request.seed + number if request.setting.draws else None,
            "settings": request.setting.model_dump(mode="json", exclude={"seed"}),
            "memorised": [
                {"tokens": stop - start, "text": tokenizer.decode(written.text.token_ids[start:stop])}
                for start, stop in written.passages
            ],
            "command": command_of(output.model, weights, request.prompt, request.setting, request.seed),
        }
        for number, written in enumerate(output.written)
    ]


def mean_log_prob(written: Any) -> float | None:
    """Nats a token, by the model itself; of a text that was cut, from the tokens it has."""
    if written.text.mean_log_prob is not None or not written.choices:
        return written.text.mean_log_prob
    return round(sum(math.log(max(choice.probability, 1e-45)) for choice in written.choices) / len(written.choices), 5)


def as_json_lines(records: list[Record]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
