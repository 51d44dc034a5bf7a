"""The login that `flows.serve` gives to its Prefect server."""

import stat
from pathlib import Path

import dotenv
import pytest

from flows.engine.login import ENV_FILE, VARIABLE, make_login, place_of
from gpt2core.errors import UserError


def test_a_login_is_random_stays_and_is_readable_by_its_user_only(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    (one / ENV_FILE).write_text("# mine\nTOKEN='a b'\n")
    (one / ENV_FILE).chmod(0o644)
    login = make_login(one)
    assert make_login(one) == login != make_login(other)
    assert dotenv.dotenv_values(one / ENV_FILE) == {"TOKEN": "a b", VARIABLE: login}
    assert (one / ENV_FILE).read_text().startswith("# mine\nTOKEN='a b'\n")
    assert {stat.S_IMODE((folder / ENV_FILE).stat().st_mode) for folder in (one, other)} == {0o600}
    assert place_of(login, one) == f"{VARIABLE} in {one / ENV_FILE}"
    assert place_of("me:secret", one) == f"your {VARIABLE}"


@pytest.mark.parametrize("content", [None, b"NAME=\xff\n"])
def test_a_file_that_cannot_keep_it_is_named(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / ENV_FILE
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    with pytest.raises(UserError) as error:
        make_login(tmp_path)
    assert str(file) in str(error.value)
    assert content is None or file.read_bytes() == content
