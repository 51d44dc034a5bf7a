"""Live status of a training for flow runs: a small file that the stage finetune keeps up to date."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from gpt2core.storage.files import read_json, write_text
from gpt2ops.pipeline import paths

STATUS = paths.LOGS / "live_status.json"


@dataclass(frozen=True)
class LiveStatus:
    """`loss` is the moving average in nats per token, None before the first step."""

    step: int
    total_steps: int
    loss: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    run_id: str
    experiment_id: str
    warnings: int

    @property
    def percent(self) -> float:
        return round(100 * self.step / max(1, self.total_steps), 1)

    def sentence(self, *, ended: bool = False) -> str:
        """One line; without the time left if `ended`."""
        parts = [f"step {self.step:,} of at most {self.total_steps:,}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.3f}")
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:,.0f} tokens/s")
        if self.seconds_left is not None and not ended:
            minutes, seconds = divmod(round(self.seconds_left), 60)
            parts.append(f"at most {minutes}:{seconds:02} left")
        if self.warnings:
            parts.append("1 warning" if self.warnings == 1 else f"{self.warnings} warnings")
        return ", ".join(parts)


def write_status(status: LiveStatus, file: Path = STATUS) -> None:
    write_text(file, json.dumps(asdict(status)))


def read_status(file: Path) -> LiveStatus | None:
    """None if the file is missing or not readable as a status."""
    try:
        status = LiveStatus(**read_json(file))
        status.sentence()
    except (OSError, ValueError, TypeError, OverflowError):
        return None
    return status
