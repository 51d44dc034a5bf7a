"""The stages, by a name that a user's `tasks.py` cannot hide: `python -m gpt2ops.stages.finetune`.

In the wheel their files lie in this package; in a checkout they are those of `tasks/`.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "tasks")]
