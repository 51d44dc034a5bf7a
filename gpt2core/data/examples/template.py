"""The text of an example: GPT-2 has no token for a turn, so a turn is a line and `<|endoftext|>` closes an answer.

    completion                      chat
    What is 2 + 2?                  System: Be brief.
    4<|endoftext|>                  User: What is 2 + 2?
                                    Assistant: 4<|endoftext|>

White space around a turn is dropped. So every part ends where GPT-2's pattern ends a piece, and the ids of the parts,
one after the other, are those of the whole text.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt2core.storage.files import write_text
from gpt2core.tokenizer import END_OF_TEXT, Tokenizer

ANSWER = "assistant"
ROLES = ("system", "user", ANSWER)
TEMPLATE_FILE = "chat_template.jinja"
_MOST_BYTES = 1 << 16  # of a file that may be one of ours
_LINE = "{{{{ {head!r} + message['content'] | trim + '\\n' }}}}"


class Turn(NamedTuple):
    role: str  # one of ROLES
    content: str


@dataclass(frozen=True)
class Template:
    """How turns become text. `heads` stand before a turn of a role; `lead` is between the answer's and the answer."""

    name: str
    heads: Mapping[str, str]
    lead: str

    def parts(self, turns: Iterable[Turn]) -> list[tuple[str, bool]]:
        """The text in parts, each with whether it is an answer, which `<|endoftext|>` closes."""
        parts: list[tuple[str, bool]] = []
        for role, content in turns:
            if role == ANSWER:
                parts += [(self.heads[ANSWER], False), (f"{self.lead}{content.strip()}{END_OF_TEXT}", True)]
            else:
                parts.append((f"{self.heads[role]}{content.strip()}\n", False))
        joined = [("".join(text for text, _ in run), kind) for kind, run in groupby(parts, key=lambda part: part[1])]
        return [(text, kind) for text, kind in joined if text]

    def encode(self, turns: Iterable[Turn]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids uint16 (N,), and which of them belong to answers, uint8 (N,)."""
        encode = Tokenizer().encode_array
        parts = [(encode(text), kind) for text, kind in self.parts(turns)]
        ids = np.concatenate([np.empty(0, np.uint16), *(part for part, _ in parts)])
        return ids, np.repeat([kind for _, kind in parts], [len(part) for part, _ in parts]).astype(np.uint8)

    def prompt(self, text: str) -> str:
        """What the model reads before it answers `text`."""
        return "".join(part for part, _ in self.parts([Turn("user", text)])) + self.heads[ANSWER]

    def answer(self, text: str) -> str:
        """What the model has written after a prompt, without the template's own blank."""
        return text.removeprefix(self.lead)

    @property
    def jinja(self) -> str:
        """The template as `transformers` reads it."""
        answer = f"{{{{ {self.heads[ANSWER] + self.lead!r} + message['content'] | trim + eos_token }}}}"
        rules = "".join(
            f"{{%- {'if' if number == 0 else 'elif'} message['role'] == {role!r} %}}"
            + (answer if role == ANSWER else _LINE.format(head=self.heads[role]))
            for number, role in enumerate(self.heads)
        )
        unknown = "{%- else %}{{ raise_exception('unknown role ' + message['role']) }}{%- endif %}"
        opening = f"{{%- if add_generation_prompt %}}{{{{ {self.heads[ANSWER]!r} }}}}{{%- endif %}}"
        return f"{{%- for message in messages %}}{rules}{unknown}{{%- endfor %}}{opening}\n"

    def save(self, directory: Path) -> None:
        """Write it beside a model, where `transformers` and `template_of` find it."""
        write_text(directory / TEMPLATE_FILE, self.jinja)


TEMPLATES = {
    "completion": Template("completion", {"user": "", ANSWER: ""}, ""),
    "chat": Template("chat", {"system": "System: ", "user": "User: ", ANSWER: "Assistant:"}, " "),
}


def prompt_text(template: Template | None, text: str) -> str:
    """What a model of this template reads for the prompt `text`: the text itself where there is none."""
    return template.prompt(text) if template else text


def answer_text(template: Template | None, text: str) -> str:
    """What such a model has answered, of the `text` that it has written after a prompt."""
    return template.answer(text) if template else text


def template_of(directory: Path) -> Template | None:
    """The template with which the model in `directory` was trained; None for plain text, and for a foreign template."""
    path = directory / TEMPLATE_FILE
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return None
    found = path.read_bytes()
    return next((one for one in TEMPLATES.values() if one.jinja.encode() == found), None)
