"""The `gpt2 generate` command that writes what the page wrote."""

import shlex
from typing import Any

from gpt2ops.params.decoding import ONE_EACH, STRATEGIES, DecodingSetting, flag_of


def command_of(model: str, weights: str, prompt: str, setting: DecodingSetting, seed: int) -> str:
    """A line for a POSIX shell. `seed` is that of the first text."""
    words = ["gpt2", "generate", "--model", model]
    if weights != "fp32":
        words += ["--weights", weights]
    words += ["--decoding", setting.decoding]
    own = STRATEGIES[setting.decoding].keys
    for key in DecodingSetting.model_fields:
        value = getattr(setting, key)
        is_default = key in own and value == (own[key] if key != "num_sequences" else 1)
        if key in setting.model_fields_set - {"decoding", "seed"} and not is_default:
            words += _flags(key, value)
    if setting.draws:
        words += ["--seed", str(seed)]
    # A prompt may begin with a dash.
    return shlex.join([*words, f"--prompt={prompt}"])


def _flags(key: str, value: Any) -> list[str]:
    if key in ONE_EACH:
        return [f"{flag_of(key)}={one}" for one in value]
    spelled = "off" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return [flag_of(key), spelled]
