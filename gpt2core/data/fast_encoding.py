"""GPT-2's ids by gigatoken, eighteen to thirty times as fast as tiktoken, where both are known to give the same."""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from gigatoken.gigatoken_rs import BPETokenizer

# Characters that Unicode 17 made letters, digits or marks: gigatoken 0.10 knows of them, tiktoken 0.14 does not yet.
# A test compares both on every character of Unicode.
NEW_CHARACTERS = (
    *((0x088F, 0x088F), (0x0C5C, 0x0C5C), (0x0CDC, 0x0CDC), (0xA7CE, 0xA7CF), (0xA7D2, 0xA7D2), (0xA7D4, 0xA7D4)),
    *((0xA7F1, 0xA7F1), (0x10940, 0x10959), (0x10EC5, 0x10EC7), (0x11DB0, 0x11DDB), (0x11DE0, 0x11DE9)),
    *((0x16EA0, 0x16ED3), (0x16FF2, 0x16FF6), (0x187F8, 0x187FF), (0x18D09, 0x18D1E), (0x18D80, 0x18DF2)),
    *((0x1E6C0, 0x1E6FF), (0x2B73A, 0x2B73F), (0x2CEA2, 0x2CEAD), (0x323B0, 0x33479)),
)
# Contractions, blanks, digits and marks in a row, scripts, joined emoji, a special token and half of one.
PROBE = (
    "It's they'll WE'RE 'tis I'd've\n\n  two   blanks\t\r\n \u00a0\u3000x\x1c\x85 3.14 1234567 --...?!_a_ "
    "caf\u00e9 e\u0301 \u00bd\u2167\u00b2 \ufb01 \u4e2d\u6587\u65e5\u672c \ud55c\uae00 \u0627\u0644\u0639\u0631 "
    "\u0939\u093f\u0928\u094d\u0926\u0940 \U0001f642\U0001f469\u200d\U0001f469\u200d\U0001f467 \x00 "
    "<|endoftext|> <|endoftext <|endoftext|><|endoftext|>  antidisestablishmentarianism aaaaaaaaaaaaaaaaaaa !!!!!!!!"
)
PROBE_SHA256 = "02b4dad5c0549c5883c89551e0ca5ad6dd346fa804a7ff7aa529028a1f53ccbe"  # of tiktoken's ids, two bytes each


# gigatoken keeps every word that it has seen, some 60 bytes each; loaded anew it forgets them, in 0.04 s.
RELOAD_BYTES = 64 << 20


class FastEncoding:
    """Ids of texts; `can_encode` says for which of them they are those of tiktoken."""

    def __init__(self, load: "Callable[[], BPETokenizer]") -> None:
        self._load, self._backend, self._bytes = load, load(), 0

    def encode(self, content: bytes) -> "np.ndarray":
        """Ids of UTF-8, uint16 (N,)."""
        import numpy as np

        self._bytes += len(content)
        if self._bytes > RELOAD_BYTES:
            self._bytes, self._backend = 0, self._load()
        return self._backend.encode(content).astype(np.uint16)

    def can_encode(self, text: str) -> bool:
        """Whether both know every character of `text` as the same; lone surrogates raise UnicodeEncodeError."""
        import numpy as np

        if text.isascii():
            return True
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        return not _is_new()[codes].any()


def load_fast_encoding(merge_table: Path, end_of_text: str, eot_id: int) -> FastEncoding | None:
    """None where gigatoken is not installed, as on a machine it has no build for, or gives the probe other ids."""
    try:
        from gigatoken.gigatoken_rs import BPETokenizer
    except ImportError:
        return None
    encoding = FastEncoding(lambda: BPETokenizer.from_tiktoken(merge_table, "gpt2", {end_of_text: eot_id}))
    found = hashlib.sha256(encoding.encode(PROBE.encode()).astype("<u2").tobytes()).hexdigest()
    return encoding if found == PROBE_SHA256 else None


@lru_cache(maxsize=1)
def _is_new() -> "np.ndarray":
    """Whether a character is one of NEW_CHARACTERS, bool (0x110000,)."""
    import numpy as np

    new = np.zeros(0x110000, dtype=bool)
    for first, last in NEW_CHARACTERS:
        new[first : last + 1] = True
    return new
