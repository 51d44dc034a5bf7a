import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2core import tokenizer as tokenizer_module
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
    expected = Tokenizer().encode(text)
    monkeypatch.setattr(tokenizer_module, "LONG_BLANK", 64)
    assert len(tokenizer_module._cut_long_blanks(text)) > 1
    assert Tokenizer().encode(text) == expected


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
    heavy = "('tiktoken', 'numpy', 'transformers', 'torch')"
    code = f"import sys, gpt2core.tokenizer; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "[]", result.stderr
