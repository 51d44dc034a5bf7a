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
    ("http://me:a#SECRET@h/x, http://me:a?SECRET@h/x", "http://h/x, http://h/x"),
    ("http://me:a/SECRET@h/x and http:/me:SECRET@h/x", "http://h/x and http:/h/x"),
    ("https://h/x?t%6fken=SECRET&jwt=SECRET;token=SECRET", "https://h/x?t%6fken=REDACTED&jwt=REDACTED;token=REDACTED"),
    ("https://h/x?whatever=SECRET&page=2", "https://h/x?whatever=REDACTED&page=2"),
    ("https://h/x?v=1?sig=SECRET&path=a%26pass%3DSECRET", "https://h/x?v=REDACTED&path=REDACTED"),
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
        "me@example.org, see http://host:80/a?v=c@d",
        "https://me:${GPT2_SECRET_PW}@host/x?token=${GPT2_SECRET_T}",
        "https://${GPT2_SECRET_T}@host/x",
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
        "https://host/x.txt?pass=SECRET",
        "https://host/x.txt?jwt=SECRET",
        "https://host/x.txt?sas=SECRET",
        "https://host/x.txt?t%6fken=SECRET",
        "https://host/x.txt?SECRET",
        "https://host/x.txt?whatever=SECRET",
        "https://host/x.txt#access_token=SECRET",
        "https://host/x.txt;token=SECRET",
        "https://me:${GPT2_SECRET_P}SECRET@host/x.txt",
        "http://me:a#SECRET@host/x.txt",
        "http://me:a?SECRET@host/x.txt",
        "http://me:a/SECRET@host/x.txt",
        "http:/me:SECRET@host/x.txt",
        "http://host:SECRET/x.txt",
        "http://me:12/SECRET@host/x.txt",
        "https://host/x.txt?v=1?token=SECRET",
        "https://host/x.txt?path=/a%3Fsig%3DSECRET",
        "https://host/x.txt?v=1%2526token=SECRET",
        "ftp://host/x.txt?whatever=SECRET",
        "http://me:SECRET@[::1/x.txt",
    ],
)
def test_an_address_with_a_secret_in_params_is_refused_before_dvc_writes_it_down(url, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = parse_params({"data": {"source": url, "sha256": "0" * 64}}).data
    with pytest.raises(UserError, match="^data.source ") as error:
        sources.collect(data, tmp_path)
    said = failure_line("download", error.value)
    assert "SECRET" not in said.replace("GPT2_SECRET_", "")


def test_what_is_no_secret_or_stands_for_one_is_let_through() -> None:
    for url in (
        "https://h/x.txt?download=1&page=2#part",
        "https://h/x.txt?id=3&export=download",
        "https://h/x.txt?path=/a/b%20c.txt&version=1.0-rc,2&lang=en+de",
        "https://h/@me/x.txt?v=2",
        "https://h:8080/%40me/x.txt",
        "https://me:${GPT2_SECRET_PW}@h/x?key=${GPT2_SECRET_KEY}&raw",
        "https://${GPT2_SECRET_PW}@h/${GPT2_SECRET_FOLDER}/x?${GPT2_SECRET_QUERY}",
    ):
        check_no_secret(url, "data.source")


def test_no_other_variable_of_the_environment_is_sent(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    url = "http://127.0.0.1:9/${AWS_SECRET_ACCESS_KEY}.txt"
    with pytest.raises(UserError, match="rename it to GPT2_SECRET_AWS_SECRET_ACCESS_KEY"):
        sources.collect(parse_params({"data": {"source": url, "sha256": "0" * 64}}).data, tmp_path)
    assert filled_in(url, "k") == url


def test_the_environment_fills_in_what_stands_for_a_secret(monkeypatch) -> None:
    monkeypatch.setenv("GPT2_SECRET_PW", "p@ss/word")
    monkeypatch.setenv("GPT2_SECRET_QUERY", "X-Amz-Signature=a%2Fb&Expires=3")
    assert filled_in("https://me:${GPT2_SECRET_PW}@h/x?${GPT2_SECRET_QUERY}", "k") == (
        "https://me:p%40ss%2Fword@h/x?X-Amz-Signature=a%2Fb&Expires=3"
    )
    monkeypatch.delenv("GPT2_SECRET_QUERY")
    with pytest.raises(UserError, match="k: the environment variable GPT2_SECRET_QUERY is not set"):
        filled_in("https://me:${GPT2_SECRET_PW}@h/x?${GPT2_SECRET_QUERY}", "k")


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPT2_SECRET_PASSWORD", "hunter2")
    monkeypatch.setenv("GPT2_SECRET_TOKEN", "hunter3")
    return tmp_path


def test_a_text_behind_a_login_and_a_token_comes_and_neither_is_written_or_said(project, capfd) -> None:
    content = b"Many words of a text. " * 50
    with text_server(content, "hunter2", "hunter3") as server:
        place = f"127.0.0.1:{server.server_port}/plays.txt?token=${{GPT2_SECRET_TOKEN}}"
        values = {
            "source": f"http://{USER}:${{GPT2_SECRET_PASSWORD}}@{place}",
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
        monkeypatch.delenv("GPT2_SECRET_TOKEN")
    with text_server(b"words", "other" if fault == "wrong password" else "hunter2", "hunter3") as server:
        port = 9 if fault == "no server" else server.server_port
        place = f"127.0.0.1:{port}/plays.txt?token=${{GPT2_SECRET_TOKEN}}"
        values = {"source": f"http://{USER}:${{GPT2_SECRET_PASSWORD}}@{place}", "sha256": "0" * 64}
        with pytest.raises(UserError) as error:
            sources.collect(parse_params({"data": values}).data, project)
    said = capfd.readouterr()
    assert "hunter" not in str(error.value) + said.out + said.err
    assert "${GPT2_SECRET_PASSWORD}" in str(error.value) or fault == "unset"


def test_what_a_stage_ends_with_shows_no_secret_whoever_wrote_the_line() -> None:
    assert failure_line("download", UserError("cannot reach http://me:SECRET@h/?token=SECRET.")) == (
        "cannot reach http://h/?token=REDACTED"
    )
    assert not list(paths.RAW.parent.glob("*SECRET*"))
