import glob
import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpt2core.data.corpus import read_corpus
from gpt2core.data.examples.reading import Fields, read_examples
from gpt2core.data.examples.template import Turn
from gpt2core.data.tokens import open_split, open_tokens
from gpt2core.errors import UserError
from gpt2core.tokenizer import END_OF_TEXT, Tokenizer
from gpt2ops.corpora import hub as hub_dataset
from gpt2ops.corpora import sources
from gpt2ops.corpora.globbing import matching_files
from gpt2ops.pipeline import paths
from tasks import download, tokenize

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project as the working directory, with the bundled corpus."""
    monkeypatch.chdir(tmp_path)
    paths.BUNDLED_CORPUS.parent.mkdir(parents=True)
    paths.BUNDLED_CORPUS.symlink_to(ROOT / paths.BUNDLED_CORPUS)
    return tmp_path


def run_download(**data: Any) -> dict[str, Any]:
    paths.PARAMS.write_text(yaml.safe_dump({"data": data}))
    download.main()
    provenance: dict[str, Any] = json.loads(paths.PROVENANCE.read_text())
    return provenance


def raw_files() -> list[str]:
    return sorted(path.relative_to(paths.RAW).as_posix() for path in paths.RAW.rglob("*") if path.is_file())


def test_the_bundled_corpus_is_copied_with_its_licence_and_hash() -> None:
    provenance = run_download()
    assert provenance["licence"] == "public domain"
    assert provenance["files"] == [
        {
            "file": "shakespeare-plays.txt",
            "size_bytes": 1_036_253,
            "sha256": "cca602a1cbd5663eb80c936f8dda791c662dfdb5bc135ba83db74f8a09be4a20",
        }
    ]
    assert raw_files() == ["provenance.json", "shakespeare-plays.txt"]


def test_running_twice_writes_the_same_bytes() -> None:
    run_download()
    before = paths.PROVENANCE.read_bytes()
    run_download()
    assert paths.PROVENANCE.read_bytes() == before


def test_a_folder_gives_its_text_files_sorted_and_nothing_else(project: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/c.jsonl", ".hidden.txt", "picture.png"):
        path = project / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "x"}')
    provenance = run_download(source="texts", licence="CC0")
    assert [entry["file"] for entry in provenance["files"]] == ["a/c.jsonl", "a/z.md", "b.txt"]
    assert provenance["licence"] == "CC0"
    assert raw_files() == ["a/c.jsonl", "a/z.md", "b.txt", "provenance.json"]


def test_a_glob_gives_what_it_matches_below_their_common_folder(project: Path) -> None:
    for name in ("one/a.txt", "two/a.txt", "two/b.md"):
        (project / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (project / "texts" / name).write_text(name)
    provenance = run_download(source="texts/**/*.txt")
    assert [entry["file"] for entry in provenance["files"]] == ["one/a.txt", "two/a.txt"]


def test_a_file_outside_the_project_is_taken_by_its_path(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("elsewhere") / "my.txt.gz"
    path.write_bytes(gzip.compress(b"text"))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert run_download(source=str(path), sha256=sha256)["files"][0]["file"] == "my.txt.gz"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"source": "nowhere.txt"}, r"'nowhere\.txt'\): no such file or folder, nor one of bundled, tinyshakespeare"),
        ({"source": "empty.txt"}, r"empty\.txt: the file is empty \(0 bytes\)"),
        ({"source": "binary.txt"}, r"binary\.txt: byte 4 is NUL"),
        ({"source": "latin.txt"}, r"latin\.txt: byte 3 \(0xE9\)"),
        ({"source": "picture.png"}, r"picture\.png: cannot read this kind of file"),
        ({"source": "void"}, r"'void'\) has no text files"),
        ({"source": "*.rst"}, r"'\*\.rst'\) has no text files"),
        ({"source": "*.png"}, r"picture\.png: cannot read this kind of file"),
        ({"source": "fine.txt", "sha256": "0" * 64}, r"fine\.txt: sha256 is 2[0-9a-f]+, expected 0000"),
        ({"source": "[fl]*.txt", "sha256": "0" * 64}, r"data\.sha256 is for one file.*names 2 files"),
        ({"source": "http://127.0.0.1:9/a.txt"}, r"data\.sha256 is null"),
        ({"source": "http://127.0.0.1:9/a.exe", "sha256": "0" * 64}, r"a\.exe: cannot read this kind of file"),
        ({"source": "file:///etc/hostname"}, "only http and https"),
        ({"source": "hf:a/b/c/d"}, r"must be hf:OWNER/NAME"),
    ],
)
def test_a_bad_source_is_one_line_and_leaves_the_earlier_files(
    project: Path, data: dict[str, Any], message: str
) -> None:
    run_download()
    before = {name: (paths.RAW / name).read_bytes() for name in raw_files()}
    (project / "void").mkdir()
    contents = {
        "empty.txt": b"",
        "binary.txt": b"text\x00",
        "latin.txt": b"caf\xe9",
        "picture.png": b"x",
        "fine.txt": b"f",
    }
    for name, content in contents.items():
        (project / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        run_download(**data)
    assert "\n" not in str(raised.value)
    assert {name: (paths.RAW / name).read_bytes() for name in raw_files()} == before
    assert sorted(path.name for path in paths.RAW.parent.iterdir()) == ["corpus", "raw"]


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder and the address on loopback at which its files are served."""
    folder = tmp_path_factory.mktemp("served")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_url_is_downloaded_and_checked(served: tuple[Path, str]) -> None:
    folder, url = served
    (folder / "a story.txt").write_text("Once upon a time.")
    sha256 = hashlib.sha256(b"Once upon a time.").hexdigest()
    provenance = run_download(source=f"{url}/a%20story.txt?raw=1", sha256=sha256)
    assert raw_files() == ["a story.txt", "provenance.json"]
    assert provenance["urls"] == [f"{url}/a%20story.txt?raw=1"]


def test_a_url_of_binary_content_is_named_by_its_address(served: tuple[Path, str]) -> None:
    folder, url = served
    (folder / "a.txt").write_bytes(b"\x7fELF\x00")
    with pytest.raises(UserError, match=rf"^{url}/a\.txt: byte 4 is NUL"):
        run_download(source=f"{url}/a.txt", sha256=hashlib.sha256(b"\x7fELF\x00").hexdigest())


def test_a_named_set_of_several_files_keeps_their_order(
    served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = served
    names = ("Stories-train.txt", "Stories-valid.txt")
    for name in names:
        (folder / name).write_text(f"{name}\n<|endoftext|>\nsecond\n<|endoftext|>\n")
    downloads = tuple(sources.Download(f"{url}/{name}", None) for name in names)
    monkeypatch.setitem(sources.NAMED_SETS, "tinystories", sources.NamedSet(downloads, "CDLA-Sharing-1.0"))
    provenance = run_download(source="tinystories")
    assert [entry["file"] for entry in provenance["files"]] == list(names)
    assert provenance["licence"] == "CDLA-Sharing-1.0"
    tokenize.main()
    assert open_tokens(paths.TOKENS).manifest["documents"] == 4


def test_a_local_copy_of_tinyshakespeare_with_the_right_hash_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    local = paths.BUNDLED_CORPUS.parent / "tinyshakespeare.txt"
    local.write_text("First Citizen:\n")
    sha256 = hashlib.sha256(local.read_bytes()).hexdigest()
    unreachable = sources.Download("http://127.0.0.1:9/input.txt", sha256)
    monkeypatch.setitem(sources.NAMED_SETS, "tinyshakespeare", sources.NamedSet((unreachable,), "public domain"))
    run_download(source="tinyshakespeare")
    assert (paths.RAW / "tinyshakespeare.txt").read_text() == "First Citizen:\n"
    local.write_text("Second Citizen:\n")
    monkeypatch.setattr("gpt2ops.corpora.http.time.sleep", lambda _: None)
    with pytest.raises(UserError, match=r"connection refused.*Or save the file as data/corpus/tinyshakespeare\.txt"):
        run_download(source="tinyshakespeare")


def test_tinyshakespeare_is_pinned() -> None:
    (item,) = sources.NAMED_SETS["tinyshakespeare"].downloads
    assert item.sha256 == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    assert "/master/" not in item.url


def test_a_hub_data_set_is_written_split_by_split(project: Path) -> None:
    folder = project / "stories"
    folder.mkdir()
    for split in ("test", "train"):
        (folder / f"{split}.jsonl").write_text(
            "".join(json.dumps({"story": f"{split} {i} é"}) + "\n" for i in range(3))
        )
    # `datasets` reads a local folder by the same call as a set on the hub.
    provenance = run_download(source=f"hf:{folder}", text_field="story")
    names = [entry["file"] for entry in provenance["files"]]
    assert names == ["train.jsonl.zst", "test.jsonl.zst"]
    text = "".join(read_corpus([paths.RAW / name for name in names], text_field="story"))
    assert text.split("<|endoftext|>")[:-1] == [f"{split} {i} é" for split in ("train", "test") for i in range(3)]
    with pytest.raises(UserError, match="no field 'text' \\(it has 'story'\\)"):
        run_download(source=f"hf:{folder}")


@pytest.mark.parametrize("kind", ["completion", "chat"])
def test_a_hub_data_set_of_examples_keeps_the_fields_that_are_asked_for(project: Path, kind: str) -> None:
    folder = project / "pairs"
    folder.mkdir()
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    record = {"question": "a", "completion": "b", "messages": messages, "number": 1}
    (folder / "train.jsonl").write_text(json.dumps(record) + "\n")
    fields = {"prompt": "question"}
    provenance = run_download(source=f"hf:{folder}", format=kind, fields=fields)
    files = [paths.RAW / entry["file"] for entry in provenance["files"]]
    (example,) = read_examples(files, kind, Fields(prompt="question"))
    assert example.turns == (Turn("user", "a"), Turn("assistant", "b"))
    with pytest.raises(UserError, match="'wrong'.*data.fields"):
        run_download(source=f"hf:{folder}", format=kind, fields={**fields, "completion": "wrong", "messages": "wrong"})


def test_a_wrong_record_is_named_with_the_key_that_says_its_field(project: Path) -> None:
    (project / "pairs.jsonl").write_text('{"prompt": "a", "reply": "b"}\n')
    with pytest.raises(UserError, match=r"pairs.jsonl: line 1: no field 'completion'.*set data.fields.completion"):
        run_download(source="pairs.jsonl", format="completion")


def test_a_config_of_a_hub_data_set_is_its_third_part() -> None:
    assert hub_dataset._path_and_config("roneneldan/TinyStories") == ("roneneldan/TinyStories", None)
    assert hub_dataset._path_and_config("Salesforce/wikitext/wikitext-2-v1") == ("Salesforce/wikitext", "wikitext-2-v1")


def run_stage_process(stage: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(Path.cwd()), **environment}
    return subprocess.run(
        [sys.executable, "-m", f"tasks.{stage}"], capture_output=True, text=True, env=env, check=False
    )


@pytest.mark.slow
def test_a_hub_data_set_without_a_network_is_one_line() -> None:
    paths.PARAMS.write_text(yaml.safe_dump({"data": {"source": "hf:roneneldan/TinyStories"}}))
    result = run_stage_process("download", HF_HUB_OFFLINE="1")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("download: error: hf:roneneldan/TinyStories cannot be loaded")


def test_the_stages_exit_red_with_one_line_for_a_bad_text(project: Path) -> None:
    (project / "latin.txt").write_bytes(b"caf\xe9")
    paths.PARAMS.write_text("data: {source: latin.txt}")
    result = run_stage_process("download")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "download: error: latin.txt: byte 3 (0xE9) is not valid UTF-8; convert the file.\n"


def test_tokenize_needs_the_download_first() -> None:
    paths.PARAMS.write_text("{}")
    result = run_stage_process("tokenize")
    assert result.returncode == 1
    assert result.stderr.startswith("tokenize: error: data/raw/provenance.json is missing")


def test_the_two_stages_turn_the_plays_into_splits(capsys: pytest.CaptureFixture[str]) -> None:
    run_download()
    tokenize.main()
    manifest = open_tokens(paths.TOKENS).manifest
    assert (manifest["source"], manifest["tokens"], manifest["documents"]) == ("bundled", 323_289, 8)
    assert "323,289 tokens loaded in 8 document(s)" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "documents"), [("a.txt", "line"), ("a.csv", "separator")])
def test_short_examples_are_whole_in_one_split_each_closed(project: Path, name: str, documents: str) -> None:
    examples = [f"Question {number}: how much is {number} plus {number}? {2 * number}." for number in range(200)]
    (project / name).write_text("\n".join([*(["text"] if name == "a.csv" else []), *examples, ""]))
    run_download(source=name, documents=documents)
    tokenize.main()
    manifest = open_tokens(paths.TOKENS).manifest
    assert (manifest["documents"], manifest["split_by"]) == (len(examples), "documents")
    found = []
    for split in ("train", "val", "test"):
        text = Tokenizer().decode(open_split(paths.TOKENS, split).read(0, manifest["splits"][split]["tokens"]).tolist())
        assert text.endswith(END_OF_TEXT) or documents == "separator"
        found += text.removesuffix(END_OF_TEXT).split(END_OF_TEXT)
    assert sorted(found) == sorted(examples)


def test_tokenize_says_that_there_is_no_val_split(capsys: pytest.CaptureFixture[str]) -> None:
    run_download(split={"train": 1.0, "val": 0.0, "test": 0.0})
    tokenize.main()
    assert "no val split" in capsys.readouterr().out
    assert len(open_split(paths.TOKENS, "val")) == 0


def test_a_glob_finds_what_pythons_own_finds_and_ends_where_links_lead_in_a_circle(project: Path) -> None:
    for name in ("a.txt", "b.md", "sub/a.txt", "sub/deep/a.txt", ".hidden/a.txt", "sub/.a.txt", "[x].txt"):
        (project / "c" / name).parent.mkdir(parents=True, exist_ok=True)
        (project / "c" / name).write_text("text")
    patterns = (
        "c/*",
        "c/**",
        "c/**/*.txt",
        "**/a.txt",
        "c/*/a.txt",
        "c/[ab]*",
        "c/**/deep/*",
        "c/../c/*.md",
        "c/[[]x].txt",
    )
    patterns += ("c/.*/*", "c/**/**/a.txt", "c/?.txt", "c/none*", "c/[", "c/a.txt/*")
    for pattern in patterns:
        found = glob.glob(pattern, recursive=True)  # noqa: PTH207
        expected = sorted({Path(match) for match in found if Path(match).is_file()})
        assert matching_files(pattern) == expected, pattern
    for number in range(3):
        (project / f"c/loop{number}").symlink_to(".")
    assert matching_files("c/**/deep/*.txt") == [Path("c/sub/deep/a.txt")]


def test_a_file_whose_name_is_no_utf8_is_refused_by_name(project: Path) -> None:
    (project / "c").mkdir()
    Path(os.fsdecode(os.fsencode(project) + b"/c/\xff.txt")).write_text("text")
    with pytest.raises(UserError, match=r"udcff.txt: the file's name is not UTF-8; rename it"):
        run_download(source="c")
    assert not paths.RAW.exists()


def test_a_home_of_nobody_is_a_folder_that_is_not_there(project: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        run_download(source="~nobody-of-this-name/c")
