"""The web page as its visitors use it: `gpt2 app` in a process of its own, and a real browser before it."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from torch.nn.functional import cross_entropy

from gpt2core.config import GPTConfig
from gpt2core.data.writer import write_tokens
from gpt2core.model import GPT
from gpt2core.tokenizer import Tokenizer
from gpt2ops.cli.main import main

pytest.importorskip("playwright")
from playwright.sync_api import Browser, Page

from tests.support.waiting import HANGS

pytestmark = pytest.mark.xdist_group("app")  # one server and one browser for all
ROOT = Path(__file__).resolve().parents[3]
TOKENIZER = Tokenizer()
PROMPT = "The quality of mercy"
PASSAGE = (
    " is not strained. It droppeth as the gentle rain from heaven upon the place beneath: it is twice blest; it "
    "blesseth him that gives and him that takes. It is mightiest in the mightiest."
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a model that knows one passage by heart, one that knows nothing, a slow and a damaged one."""
    root = tmp_path_factory.mktemp("project")
    learn_by_heart(PROMPT + PASSAGE).save_pretrained(root / "models/best")
    torch.manual_seed(1)
    GPT(GPTConfig(50257, 64, n_layer=1, n_head=2, n_embd=16)).save_pretrained(root / "models/other")
    GPT(GPTConfig(50257, 64, n_layer=4, n_head=4, n_embd=256)).save_pretrained(root / "models/slow")
    shutil.copytree(root / "models/other", root / "models/damaged")
    with (root / "models/damaged/model.safetensors").open("r+b") as file:
        file.truncate(1000)
    shares = {"train": 1.0, "val": 0.0, "test": 0.0}
    write_tokens(root / "data/tokens", [PROMPT + PASSAGE + " The end."], source="test", shares=shares)
    return root


def learn_by_heart(text: str) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(50257, 128, n_layer=1, n_head=2, n_embd=32, drop_rate=0.0))
    ids = torch.tensor([TOKENIZER.encode(text)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(60):
        loss = cross_entropy(model(ids[:, :-1])[0], ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    return model.eval()


@pytest.fixture(scope="module")
def server(project: Path) -> Iterator[str]:
    """The address of the page; at the end, Ctrl-C must end it at once."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", "from gpt2ops.cli.main import main; main()", "app", "--port", "0"]
    log = (project / "server.log").open("w")
    process = subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
    if address is None:
        process.wait(HANGS)
        pytest.fail((project / "server.log").read_text())
    yield address[0]
    process.send_signal(signal.SIGINT)
    assert process.wait(HANGS) == 130
    log.close()
    assert (project / "server.log").read_text() == "gpt2: interrupted\n"


@pytest.mark.parametrize(
    ("header", "value"),
    [("Host", "rebound.example"), ("Host", "[::"), ("Origin", "http://evil.example"), ("Origin", "null")],
)
def test_a_page_of_another_site_is_refused(server: str, header: str, value: str) -> None:
    assert httpx.get(f"{server}/config").status_code == 200
    assert (
        httpx.get(f"{server}/config", headers={"Host": "[::1]:7860", "Origin": "http://[::1]:7860"}).status_code == 200
    )
    refused = httpx.get(f"{server}/config", headers={header: value})
    assert refused.status_code == 403
    assert header in refused.text


class Visit:
    """A tab with the page open, and what went on in it."""

    def __init__(self, browser: Browser, address: str, width: int = 1280) -> None:
        self.page: Page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.set_default_timeout(60_000)
        self.said: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.page.wait_for_function("document.querySelector('#model input')?.value")

    def slide(self, label: str, value: int) -> None:
        self.page.get_by_label(f"number input for {label}").fill(str(value))

    def choose(self, field: str, value: str) -> None:
        """In a list to choose from; a value that is not on it is typed."""
        box = self.page.locator(f"#{field} input")
        box.click()
        if field != "decoding":
            box.fill(value)
            box.press("Enter")
        else:
            self.page.get_by_role("option", name=value, exact=True).click()

    def press(self, prompt: str) -> None:
        self.page.fill("#prompt textarea", prompt)
        self.page.press("#prompt textarea", "Control+Enter")

    def generate(self, prompt: str) -> None:
        """Until something new is shown; a small model may have finished by then."""
        answers = "document.querySelector('.answers')?.innerHTML ?? ''"
        before = self.page.evaluate(answers)
        self.press(prompt)
        self.page.wait_for_function(f"old => ({answers}) !== old", arg=before)

    def wait(self) -> None:
        self.page.wait_for_selector("#generate:not([disabled])")

    def texts(self) -> list[str]:
        self.wait()
        return [body.text_content() or "" for body in self.page.query_selector_all("#output .body")]

    def alert(self) -> str:
        return self.page.locator("[role=alert]").text_content() or ""


@pytest.fixture
def visit(server: str, browser: Browser) -> Iterator[Callable[..., Visit]]:
    visits: list[Visit] = []

    def open_page(query: str = "", width: int = 1280) -> Visit:
        visits.append(Visit(browser, f"{server}/{query}", width))
        return visits[-1]

    yield open_page
    for one in visits:
        one.page.close()


def run_command(line: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> str:
    """What a shown command prints."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    main()
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_loads_without_an_error_or_a_request_to_elsewhere(visit: Any, server: str, width: int) -> None:
    one = visit("?prompt=From+the+address", width)
    assert one.page.input_value("#prompt textarea") == "From the address"
    one.page.get_by_text("More settings").click()  # fields that are empty and stay so
    one.page.locator("#set-max_time :is(input, textarea)").wait_for()
    one.generate("Once")
    assert len(one.texts()) == 1
    assert one.said == []
    assert [url for url in one.requests if not url.startswith((server, "data:", "blob:"))] == []
    assert one.page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_text_is_that_of_generate_and_what_was_learned_by_heart_is_marked(
    visit: Any, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = visit()
    one.choose("decoding", "greedy")
    one.page.locator("#set-temperature :is(input, textarea)").wait_for(state="hidden")
    one.slide("Maximum length (tokens)", 40)
    one.generate(PROMPT)
    (text,) = one.texts()
    command = one.page.locator("#command code").text_content()
    assert run_command(command, project, monkeypatch, capsys) == f"{text}\n"
    assert text.startswith(PROMPT + PASSAGE[:60])
    mark = one.page.locator("mark.learned")
    length = len(mark.locator(".t").all())
    assert mark.get_attribute("data-note") == f"{length} tokens from the training text"
    assert length >= 32
    one.page.locator("#output .t").nth(2).click()
    shown = one.page.locator("#alternatives").text_content()
    assert re.search(r"“.+” \d+ %, number 1 of the model's choices", shown), shown
    assert one.page.locator("#alternatives tr").count() == 5
    one.page.get_by_role("button", name="Continue").click()
    assert one.page.input_value("#prompt textarea") == text


def test_a_text_grows_while_it_is_written_and_stop_frees_the_model(visit: Any) -> None:
    one = visit()
    one.choose("model", "models/slow")
    one.slide("Maximum length (tokens)", 1000)
    one.generate("Once")
    lengths = []
    for _ in range(2):
        one.page.wait_for_function(
            "n => document.querySelector('#output .body')?.textContent.length > n", arg=(lengths or [10])[-1]
        )
        lengths.append(len(one.page.text_content("#output .body") or ""))
    one.page.click("#stop")
    (text,) = one.texts()
    assert len(text) >= lengths[1]
    facts = one.page.text_content("#output .facts")
    assert "stopped by you" in facts
    assert int(facts.split(" tokens")[0].replace(",", "")) < 1000
    another = visit()
    started = time.monotonic()
    another.slide("Maximum length (tokens)", 5)
    another.generate("Once")
    another.wait()
    assert time.monotonic() - started < 15


def test_a_closed_tab_frees_the_model_and_who_waits_sees_the_place(visit: Any) -> None:
    one, another = visit(), visit()
    one.choose("model", "models/slow")
    one.slide("Maximum length (tokens)", 1000)
    one.slide("Number of outputs", 16)  # half a minute
    one.generate("Once")
    one.page.wait_for_selector("#output .body")
    another.slide("Maximum length (tokens)", 5)
    another.press("Once")
    another.page.get_by_text("Waiting: 1 prompt before yours.").wait_for()
    one.page.close()
    started = time.monotonic()
    assert len(another.texts()) == 1
    assert time.monotonic() - started < 20


def test_two_models_write_beside_each_other_with_the_same_seed(
    visit: Any, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = visit()
    one.choose("second", "models/other")
    one.slide("Maximum length (tokens)", 12)
    one.slide("Number of outputs", 2)
    one.generate("Once")
    texts = one.texts()
    assert len(texts) == 4
    boxes = [section.bounding_box() for section in one.page.query_selector_all(".answer")]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] < boxes[1]["x"]
    with one.page.expect_download() as waiting:
        one.page.get_by_text("History").click()
        one.page.get_by_role("button", name="Download").click()
    records = [json.loads(line) for line in waiting.value.path().read_text("utf-8").splitlines()]
    assert [record["prompt"] + record["text"] for record in records] == texts
    assert [record["model"] for record in records] == ["models/best"] * 2 + ["models/other"] * 2
    seed = records[0]["seed"]
    assert [record["seed"] for record in records] == [seed, seed + 1] * 2
    for place in (0, 2):
        written = run_command(records[place]["command"], project, monkeypatch, capsys)
        assert written == f"--- 1 ---\n{texts[place]}\n--- 2 ---\n{texts[place + 1]}\n"


def test_a_wrong_input_is_a_line_on_the_page(visit: Any, project: Path) -> None:
    one = visit()
    for prompt, model, message in (
        ("", "", "The prompt is empty"),
        ("x" * 100_000, "", "The prompt has 100,000 characters"),
        ("x", "no/such", "There is no model 'no/such'"),
        ("x", "../elsewhere", "outside this project"),
        ("x", "models/damaged", "models/damaged/model.safetensors is damaged"),
        ("x", "models:/gpt2@champion", "no model was registered here yet"),
    ):
        if model:
            one.choose("model", model)
        one.page.fill("#prompt textarea", prompt)
        one.page.click("#generate")
        one.page.get_by_role("alert").get_by_text(message).wait_for()
        assert str(project) not in one.alert()
    one.choose("model", "models/best")
    one.page.locator("#set-top_p :is(input, textarea)").fill("1.5")
    one.page.click("#generate")
    one.page.get_by_role("alert").get_by_text("Top p (1.5) must be").wait_for()
    one.page.locator("#set-top_p :is(input, textarea)").fill("0.9")
    one.slide("Maximum length (tokens)", 5)
    one.page.click("#generate")
    one.page.wait_for_selector("#output .t")
    assert one.page.get_by_role("alert").count() == 0
    assert one.said == []


def ask(server: str, prompt: str, **settings: Any) -> Any:
    """What the page's own API says: the records, or None for an error."""
    with httpx.Client(base_url=f"{server}/gradio_api/call/generate", timeout=60) as client:
        body = {"data": [prompt, "", "sample", settings, settings.pop("seed", 1)]}
        event = client.post("", json=body).json()["event_id"]
        lines = client.get(f"/{event}").text.strip().splitlines()
    assert lines[-2] in ("event: complete", "event: error"), lines
    return json.loads(lines[-1].removeprefix("data: "))[0] if lines[-2] == "event: complete" else None


def test_twenty_visitors_at_once_all_get_their_text(server: str) -> None:
    prompts = [f"{number} men" for number in range(20)]
    with ThreadPoolExecutor(20) as visitors:
        answers = list(visitors.map(lambda prompt: ask(server, prompt, max_new_tokens=30), prompts))
    assert [answer[0]["prompt"] for answer in answers] == prompts
    assert all(answer[0]["tokens"] == 30 for answer in answers)
    assert ask(server, "7 men", max_new_tokens=30)[0]["text"] == answers[7][0]["text"]


def test_nothing_of_the_disk_is_served_and_nothing_is_taken(server: str, project: Path) -> None:
    for path in ("models/best/config.json", str(project / "models/best/config.json"), "/etc/passwd"):
        assert httpx.get(f"{server}/gradio_api/file={path}").status_code in (403, 404)
    assert httpx.post(f"{server}/gradio_api/upload", files={"files": b"x" * 2000}).status_code >= 400
    assert httpx.get(f"{server}/monitoring").status_code >= 400
