import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2core import tokenizer as tokenizer_module
from gpt2core.data import fast_encoding
from gpt2core.errors import UserError
from gpt2core.tokenizer import Tokenizer

unicode_text = st.text(st.characters(exclude_categories=["Cs"]))
# Plain random text rarely meets the pattern's corners: blanks, contractions, digits, the special token.
corners = st.lists(
    st.sampled_from([" ", "  ", "\n", "\r\n", "\t", "\x1c", "\x85", "\u00a0", "\u3000", "'s", "'ll", "'", "a", "THE"])
    | st.sampled_from(["42", "²", "<|endoftext|>", "<|endof", "text|>", "é", "e\u0301", "中文", "🙂", "👩‍👩‍👧", "\x00"])
    | unicode_text
).map("".join)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    Tokenizer().save(directory)
    return directory


@pytest.fixture(scope="module")
def hugging_face(saved: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(saved, local_files_only=True)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=unicode_text | corners)
def test_ids_equal_those_of_the_saved_hugging_face_tokenizer(hugging_face: Any, text: str) -> None:
    assert Tokenizer().encode(text) == hugging_face(text)["input_ids"]


@settings(max_examples=300, deadline=None)
@given(text=unicode_text | corners)
def test_decoding_what_was_encoded_gives_the_text_back(text: str) -> None:
    tokenizer = Tokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes(ids) == text.encode()


def test_every_character_of_unicode_gets_the_same_ids_as_in_hugging_face(hugging_face: Any) -> None:
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    texts = ["".join(characters[i : i + 512]) for i in range(0, len(characters), 512)]
    expected = hugging_face(texts)["input_ids"]
    assert [Tokenizer().encode(text) for text in texts] == expected


@settings(max_examples=1000, deadline=None)
@given(text=unicode_text | corners)
def test_the_fast_encoding_gives_the_ids_of_tiktoken(text: str) -> None:
    assert Tokenizer().encode(text) == Tokenizer().encode_by_tiktoken(text).tolist()


def boundary_encodings(folder: Path) -> tuple[Any, Any]:
    """tiktoken and gigatoken with a table in which each byte of a character joins what follows it, within a piece.

    So the ids show whether a character counts as letter, digit, blank or mark, which GPT-2's table often hides.
    """
    import base64

    import tiktoken
    from gigatoken.gigatoken_rs import BPETokenizer
    from tiktoken_ext.openai_public import r50k_pat_str

    singles = [bytes([byte]) for byte in range(256)]
    pairs = [bytes([byte, after]) for byte in range(0xC0) for after in b"b1 !"]
    ranks = {token: rank for rank, token in enumerate([*singles, *pairs])}
    table = folder / "boundaries.tiktoken"
    table.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()))
    reference = tiktoken.Encoding("boundaries", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={})
    return reference, BPETokenizer.from_tiktoken(table, "gpt2", {})


@pytest.mark.slow
def test_the_fast_encoding_leaves_every_character_to_tiktoken_on_which_they_differ(tmp_path: Path) -> None:
    reference, fast = boundary_encodings(tmp_path)

    def differing(characters: list[str]) -> list[str]:
        text = "".join(f"{c}b\n\n{c}1\n\n{c}!\n\n {c}  b\n\n" for c in characters)
        if np.array_equal(fast.encode(text), reference.encode_to_numpy(text)):
            return []
        half = len(characters) // 2
        return differing(characters[:half]) + differing(characters[half:]) if half else characters

    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    found = [c for i in range(0, len(characters), 64) for c in differing(characters[i : i + 64])]
    encoding = tokenizer_module._fast_encoding()
    assert encoding is not None
    assert len(found) > 4000
    assert [c for c in found if encoding.can_encode(c)] == []


def test_a_new_letter_gets_the_ids_of_tiktoken() -> None:
    text = "\U00033176\u6da5"  # gigatoken alone takes the two for one word
    ids = Tokenizer().encode(text)
    assert ids == Tokenizer().encode_by_tiktoken(text).tolist() == [172, 111, 227, 114, 162, 114, 98]


def test_the_probe_is_what_tiktoken_makes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = Tokenizer().encode_by_tiktoken(fast_encoding.PROBE)
    assert hashlib.sha256(ids.astype("<u2").tobytes()).hexdigest() == fast_encoding.PROBE_SHA256
    monkeypatch.setattr(fast_encoding, "PROBE_SHA256", "another")
    assert fast_encoding.load_fast_encoding(tokenizer_module.MERGE_TABLE, "<|endoftext|>", 50256) is None


def test_without_gigatoken_tiktoken_encodes() -> None:
    program = (
        "import sys; sys.modules['gigatoken'] = sys.modules['gigatoken.gigatoken_rs'] = None\n"
        "from gpt2core.tokenizer import Tokenizer\n"
        "print(Tokenizer().encode('Hello, world!'), 'tiktoken' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.stdout == "[15496, 11, 995, 0] True\n", result.stderr


def test_ids_stay_the_same_where_the_fast_encoding_is_loaded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_encoding, "RELOAD_BYTES", 100)
    loads = []
    encoding = tokenizer_module._fast_encoding()
    assert encoding is not None
    load = encoding._load
    monkeypatch.setattr(encoding, "_load", lambda: loads.append(1) or load())
    for text in ("Wherefore art thou Romeo?", "x" * 101, "The same again.", "The same again."):
        assert Tokenizer().encode(text) == Tokenizer().encode_by_tiktoken(text).tolist()
    assert loads


@pytest.mark.slow
def test_words_never_seen_before_do_not_fill_the_memory() -> None:
    program = """
import numpy as np, psutil
from gpt2core.tokenizer import Tokenizer
tokenizer, random, process = Tokenizer(), np.random.default_rng(0), psutil.Process()
used = []
for _ in range(150):
    letters = random.integers(97, 123, (200_000, 8), dtype=np.uint8)
    letters[:, 0] = 32
    tokenizer.encode_array(letters.tobytes().decode())
    used.append(process.memory_info().rss)
print(max(used[:75]), max(used[75:]))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    first_half, second_half = map(int, result.stdout.split())
    assert first_half < 900 << 20
    assert second_half < 1.25 * first_half


def test_threads_that_encode_at_once_get_the_ids_of_one() -> None:
    texts = [f"{i} Wherefore art thou {'Romeo ' * (i % 7)}\u4e2d{i * i}?\n" * 50 for i in range(200)]
    tokenizer = Tokenizer()
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(tokenizer.encode, texts))
    assert together == [tokenizer.encode_by_tiktoken(text).tolist() for text in texts]


def test_known_ids_of_the_released_tokenizer() -> None:
    # https://github.com/openai/gpt-2 encodes these so.
    assert Tokenizer().encode("Hello, world!") == [15496, 11, 995, 0]
    assert Tokenizer().encode("a<|endoftext|>b") == [64, 50256, 65]
    assert Tokenizer().encode("") == []


def test_files_without_tokenizer_json_give_the_same_ids(saved: Path, tmp_path: Path) -> None:
    from transformers import GPT2Tokenizer

    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    text = "ROMEO.\n\nIt is the east,  and Juliet's the sun!<|endoftext|>"
    assert GPT2Tokenizer.from_pretrained(tmp_path)(text)["input_ids"] == Tokenizer().encode(text)


def test_saved_tokenizer_knows_its_end_of_text(hugging_face: Any) -> None:
    assert hugging_face.eos_token_id == hugging_face.bos_token_id == Tokenizer.eot_id
    assert len(hugging_face) == Tokenizer.n_vocab


def test_a_lone_surrogate_is_named_with_its_place() -> None:
    with pytest.raises(UserError, match=r"^character 3 \(U\+D83D\) is a lone surrogate"):
        Tokenizer().encode("abc\ud83d!")


def test_half_a_character_decodes_to_the_replacement_character() -> None:
    ids = Tokenizer().encode("🙂")
    assert Tokenizer().decode(ids[:1]) == "\ufffd"


@pytest.mark.parametrize("token_id", [50257, -1])
def test_an_id_outside_the_vocabulary_is_named(token_id: int) -> None:
    with pytest.raises(UserError, match=f"token id {token_id} "):
        Tokenizer().decode([15496, token_id])


def test_a_million_blanks_before_a_word_encode_and_decode() -> None:
    text = "end" + "\n" * 1_200_000 + "start" + " " * 600_000
    ids = Tokenizer().encode(text)
    assert Tokenizer().decode(ids) == text


@pytest.mark.parametrize("tail", ["x", " x", "\x1cx", "\n", ".", "<|endoftext|>"])
def test_cutting_long_blanks_changes_no_ids(monkeypatch: pytest.MonkeyPatch, tail: str) -> None:
    text = "a" + " " * 70 + tail + "\n" * 200 + "b" + " \n" * 100 + "\n" * 81 + tail
    expected = Tokenizer().encode_by_tiktoken(text).tolist()
    monkeypatch.setattr(tokenizer_module, "LONG_BLANK", 64)
    assert len(tokenizer_module._cut_long_blanks(text)) > 1
    assert Tokenizer().encode_by_tiktoken(text).tolist() == expected


def test_token_lengths_count_the_bytes_of_any_text() -> None:
    text = "Naïve café — 中文 🙂\n"
    lengths = Tokenizer().token_lengths()
    assert lengths.shape == (50257,)
    assert lengths[Tokenizer().encode(text)].sum() == len(text.encode())
    assert lengths[Tokenizer.eot_id] == 0


def test_encode_array_holds_the_ids_of_encode_in_two_bytes_each() -> None:
    array = Tokenizer().encode_array("To be, or not to be")
    assert array.dtype == np.uint16
    assert array.tolist() == Tokenizer().encode("To be, or not to be")


def test_a_damaged_merge_table_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    damaged = tmp_path / "gpt2.tiktoken"
    damaged.write_bytes(tokenizer_module.MERGE_TABLE.read_bytes()[:-1])
    monkeypatch.setattr(tokenizer_module, "MERGE_TABLE", damaged)
    tokenizer_module._ranks.cache_clear()
    with pytest.raises(UserError, match="sha256"):
        Tokenizer().token_lengths()
    tokenizer_module._ranks.cache_clear()


def test_importing_the_module_loads_no_heavy_library() -> None:
    heavy = "('gigatoken', 'tiktoken', 'numpy', 'transformers', 'torch')"
    code = f"import sys, gpt2core.tokenizer; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "[]", result.stderr
