"""Secrets in addresses: none is shown, none may stand in params.yaml, and the environment can give them."""

import hashlib
import json
from pathlib import Path

import pytest

from gpt2core.errors import UserError
from gpt2ops.corpora import sources
from gpt2ops.params.schema import parse_params
from gpt2ops.pipeline import paths
from gpt2ops.process.failures import failure_line
from gpt2ops.process.redact import check_no_secret, filled_in, redact
from tests.support.secret_run import USER, text_server

SHOWN = [
    ("postgresql://me:SECRET@db/mlflow", "postgresql://db/mlflow"),
    ("postgresql+psycopg2://me:SEC/RET@db:5432/mlflow", "postgresql+psycopg2://db:5432/mlflow"),
    ("mysql://me:SECRET@[::1]/x and http://you:SECRET@b/", "mysql://[::1]/x and http://b/"),
    ("https://me:SE@CRET@host/x", "https://host/x"),
    ("https://SECRET@host/x", "https://host/x"),
    ("s3://AKIA:SEC/RET+x=@bucket/key", "s3://bucket/key"),
    ("https://host/x?token=SECRET&part=2", "https://host/x?token=REDACTED&part=2"),
    ("https://h/x?X-Amz-Credential=SECRET&X-Amz-Signature=SECRET", None),
    ("https://h/x?X-Goog-Signature=SECRET&X-Amz-Security-Token=SECRET", None),
    ("https://h/x?AWSAccessKeyId=SECRET&Signature=SECRET&Expires=1", None),
    ("https://h/x?sv=2022&sig=SECRET%2Fx", None),
    ("https://h/x?api_key=SECRET&apikey=SECRET#access_token=SECRET", None),
    ("('http://me:SECRET@h/', 'x')", "('http://h/', 'x')"),
    ("the token is hf_SECRETsecretSECRETsecret1", "the token is hf_REDACTED"),
]


@pytest.mark.parametrize(("text", "shown"), SHOWN)
def test_no_secret_of_an_address_is_shown(text, shown) -> None:
    assert "SECRET" not in redact(text)
    assert "RET" not in redact(text).replace("hf_REDACTED", "")
    assert shown is None or redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/#/models/gpt2@champion",
        "sqlite:////home/me/a@b/mlflow.db",
        "file:///home/me/a:b@c/mlruns",
        "models:/gpt2@champion",
        "https://host/@someone/page?author=me&page=2",
        "me@example.org, see http://host/a?b=c@d",
    ],
)
def test_what_is_no_secret_stays_as_it_is(text) -> None:
    assert redact(text) == text.replace("author=me", "author=REDACTED")


@pytest.mark.parametrize(
    "url",
    [
        "https://me:SECRET@host/x.txt",
        "https://SECRET@host/x.txt",
        "https://host/x.txt?token=SECRET",
        "https://host/x.txt?part=1&X-Amz-Signature=SECRET",
        "https://host/x.txt?sig=SECRET",
        "https://host/x.txt?api_key=SECRET",
    ],
)
def test_an_address_with_a_secret_in_params_is_refused_before_dvc_writes_it_down(url, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = parse_params({"data": {"source": url, "sha256": "0" * 64}}).data
    with pytest.raises(UserError, match=r"holds a password or token.*write \$\{CORPUS_SECRET\} in its place") as error:
        sources.collect(data, tmp_path)
    assert "SECRET@" not in str(error.value)
    assert "=SECRET" not in str(error.value)


def test_names_that_only_look_like_secrets_are_let_through() -> None:
    for url in ("https://h/x.txt?author=me", "https://h/x.txt?design=1&assigned=2", "https://me:${PW}@h/x?key=${KEY}"):
        check_no_secret(url, "data.source")


def test_the_environment_fills_in_what_stands_for_a_secret(monkeypatch) -> None:
    monkeypatch.setenv("PASSWORD", "p@ss/word")
    monkeypatch.setenv("QUERY", "X-Amz-Signature=a%2Fb&Expires=3")
    assert filled_in("https://me:${PASSWORD}@h/x?${QUERY}", "k") == (
        "https://me:p%40ss%2Fword@h/x?X-Amz-Signature=a%2Fb&Expires=3"
    )
    monkeypatch.delenv("QUERY")
    with pytest.raises(UserError, match="k: the environment variable QUERY is not set"):
        filled_in("https://me:${PASSWORD}@h/x?${QUERY}", "k")


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CORPUS_PASSWORD", "hunter2")
    monkeypatch.setenv("CORPUS_TOKEN", "hunter3")
    return tmp_path


def test_a_text_behind_a_login_and_a_token_comes_and_neither_is_written_or_said(project, capfd) -> None:
    content = b"Many words of a text. " * 50
    with text_server(content, "hunter2", "hunter3") as server:
        place = f"127.0.0.1:{server.server_port}/plays.txt?token=${{CORPUS_TOKEN}}"
        values = {
            "source": f"http://{USER}:${{CORPUS_PASSWORD}}@{place}",
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        provenance = sources.collect(parse_params({"data": values}).data, project)
        assert (project / "plays.txt").read_bytes() == content
        assert server.served == 1
    said = capfd.readouterr()
    assert "hunter" not in json.dumps(provenance) + said.out + said.err
    assert provenance["urls"] == [values["source"]]


@pytest.mark.parametrize("fault", ["wrong password", "wrong hash", "no server", "unset"])
def test_no_failure_of_the_download_says_the_secret(fault, project, monkeypatch, capfd) -> None:
    import gpt2ops.corpora.http as module

    monkeypatch.setattr(module, "ATTEMPTS", 1)
    if fault == "unset":
        monkeypatch.delenv("CORPUS_TOKEN")
    with text_server(b"words", "other" if fault == "wrong password" else "hunter2", "hunter3") as server:
        port = 9 if fault == "no server" else server.server_port
        place = f"127.0.0.1:{port}/plays.txt?token=${{CORPUS_TOKEN}}"
        values = {"source": f"http://{USER}:${{CORPUS_PASSWORD}}@{place}", "sha256": "0" * 64}
        with pytest.raises(UserError) as error:
            sources.collect(parse_params({"data": values}).data, project)
    said = capfd.readouterr()
    assert "hunter" not in str(error.value) + said.out + said.err
    assert "${CORPUS_PASSWORD}" in str(error.value) or fault == "unset"


def test_what_a_stage_ends_with_shows_no_secret_whoever_wrote_the_line() -> None:
    assert failure_line("download", UserError("cannot reach http://me:SECRET@h/?token=SECRET.")) == (
        "cannot reach http://h/?token=REDACTED"
    )
    assert not list(paths.RAW.parent.glob("*SECRET*"))
