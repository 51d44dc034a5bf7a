"""The report of a run: what it says, that it says it for every kind of run, and how it looks in a browser."""

import io
import math
import re
import shlex
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gpt2ops.params.schema import Params, parse_params
from gpt2ops.pipeline import paths
from gpt2ops.reporting.curves import MAX_POINTS, thinned
from gpt2ops.reporting.inputs import Inputs
from gpt2ops.reporting.render import render_html, render_pdf
from gpt2ops.reporting.report import build_report
from gpt2ops.reporting.runs import Comparison, OtherRun, compare
from gpt2ops.store.client import connect, experiment_id
from gpt2ops.tracking.link import RunLink
from gpt2ops.tracking.run import TrackedRun

SHA = "0123456789abcdef" * 4


def score(loss: float) -> dict[str, Any]:
    return {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": loss / 3, "token_accuracy": 0.2, "tokens": 999}


def history(steps: int) -> list[dict[str, Any]]:
    rows = []
    for step in range(10, steps + 1, 10):
        scored = {
            "train_eval_loss": 5.0 - step / 100,
            "val_loss": 6.0,
            "val_perplexity": 403.4,
            "val_token_accuracy": 0.2,
        }
        rows.append(
            {
                "step": step, "tokens_seen": 512 * step, "epoch": step / 50, "train_loss": 5.0 - step / 100,
                "learning_rate": 1e-3, "grad_norm": 1.5, "tokens_per_second": 5000.0,
                **(scored if step % 50 == 0 else dict.fromkeys(scored)),
            }
        )  # fmt: skip
    return rows


def sample(text: str = " wherefore", setting: str = "nucleus", prompt: str = "ROMEO.") -> dict[str, Any]:
    return {
        "prompt": prompt, "setting": setting, "seed": 42, "text": text, "tokens": 5, "mean_log_prob": -1.0,
        "overlap_tokens": 3, "overlap_text": "x", "memorised": False,
    }  # fmt: skip


def some_inputs(**changes: Any) -> Inputs:
    """A memorising run, as its stages leave it."""
    split = {"tokens": 3000, "documents": 2, "sha256": SHA}
    everything: dict[str, Any] = {
        "params": Params(),
        "provenance": {
            "source": "bundled", "licence": "public domain", "urls": [], "size_bytes": 1_036_253,
            "files": [{"file": "plays.txt", "size_bytes": 1_036_253, "sha256": SHA}],
        },
        "manifest": {
            "tokenizer": "gpt2", "vocab_size": 50257, "split_by": "documents", "split_reason": "enough of them",
            "max_tokens": None, "splits": {"train": split, "val": split, "test": split},
        },
        "config": {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 128, "vocab_size": 50257},
        "record": {"run_id": "0" * 32, "run_name": "small-plays", "experiment": "gpt2", "tracking_uri": "sqlite:///x"},
        "history": history(200),
        "train": {
            "steps": 200, "tokens_seen": 102_400, "stop_reason": "target_loss", "n_params": 7_242_624,
            "target_loss": 4.4, "target_reached": True, "best_val_loss": 6.0, "best_step": 150, "best_by": "val_loss",
            "wall_seconds": 90.0, "tokens_per_second": 3898.0, "device": "cpu", "precision": "bf16",
        },
        "evaluation": {
            "train": score(0.1), "val": score(6.1), "test": score(6.2), "before": {"test": score(10.8)},
            "held_out": "test", "generalisation_gap": 6.1, "verbatim_recall": 0.83, "unigram_loss": 6.25,
            "verdict": "memorising", "protocol": {"block_size": 128, "stride": 64, "max_tokens": 25_000},
            "data_sha256": SHA,
        },
        "samples": {
            "settings": {}, "memorised_tokens": 32, "samples": [sample(), sample(" text", "greedy")],
            "before": [sample(" unfit noise")],
        },
        "registered": {
            "name": "gpt2", "version": "3", "text_name": "gpt2-text", "text_version": "3", "alias": "challenger",
            "gate": {"passed": False, "reasons": ["Held-out perplexity is worse."]}, "model_uri": "models:/gpt2/3",
            "text_model_uri": "models:/gpt2-text/3", "weights_sha256": SHA,
        },
    }  # fmt: skip
    for name, change in changes.items():
        everything[name] = {**everything[name], **change} if isinstance(change, dict) else change
    return Inputs(**everything)


def other_run(name: str, **facts: Any) -> OtherRun:
    values: dict[str, Any] = {
        "run_id": "1" * 32, "name": name, "started_at": datetime(2026, 1, 2, tzinfo=UTC), "link": "", "loss": 5.0,
        "perplexity": 148.4, "train_loss": 4.0, "recall": 0.0, "steps": 500, "same_data": True, "differing": [],
    }  # fmt: skip
    return OtherRun(**{**values, **facts})


COMPARED = Comparison(
    this=other_run("small-plays"),
    others=[other_run("older", champion="2", differing=[("train.learning_rate", "0.001", "0.003")])],
    tags={"git_commit": "abc123", "git_dirty": "true"},
    champion="2",
)


def report_of(inputs: Inputs, comparison: Comparison = COMPARED) -> dict[str, Any]:
    return build_report(inputs, comparison).as_dict()


class Text(HTMLParser):
    """Words of a page, its headings, and the rows of its tables by caption."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.headings: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: list[str] = []
        self.caption = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.tables.setdefault(self.caption, []).append([])
        if tag in ("td", "th"):
            self.tables[self.caption][-1].append("")
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")
        if tag == "caption":
            self.caption = ""

    def handle_endtag(self, tag: str) -> None:
        if tag in self.tags:
            while self.tags.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if "style" in self.tags:
            return
        self.words.append(data)
        if {"td", "th"} & set(self.tags):
            self.tables[self.caption][-1][-1] += data
        elif "caption" in self.tags:
            self.caption += data
        elif {"h1", "h2", "h3"} & set(self.tags):
            self.headings[-1] += data

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def pdf_text(data: bytes) -> str:
    from pypdf import PdfReader

    text = " ".join(page.extract_text() for page in PdfReader(io.BytesIO(data)).pages)
    return " ".join(text.split())


def test_a_sample_of_empty_lines_says_how_many_instead_of_filling_screens() -> None:
    inputs = some_inputs(samples={"samples": [sample(" the" + "\n" * 61 + "end\n\n\nof it")], "before": []})
    (block,) = (
        block for part in report_of(inputs)["sections"] for block in part["blocks"] if block["kind"] == "samples"
    )
    assert block["samples"][0]["text"] == " the\n[60 empty lines]\nend\n\n\nof it"


def test_a_memorising_run_says_so_first_and_with_the_share() -> None:
    text = Text(render_html(report_of(some_inputs()))).text
    said = "memorising: training loss 0.10, held-out loss 6.20; 83% of training passages are repeated"
    assert said in text
    assert text.index(said) < text.index("Scores")
    assert "use more text, or stop earlier" in text
    generalising = report_of(some_inputs(evaluation={"verdict": "generalising", "verbatim_recall": 0.0}))
    assert "memorising" not in render_html(generalising).split("<main>")[0].split("<body")[1]


def test_what_a_model_wrote_is_shown_and_never_run() -> None:
    wild = '<script>alert("x")</script></pre><img src=x onerror=1> \x00\x1b[31m \u202eabc <svg onload=1> жש漢'
    inputs = some_inputs(
        samples={"samples": [sample(wild, prompt="<b>&amp;"), sample("y" * 10_000, "greedy", "<b>&amp;")], "before": []}
    )
    report = report_of(inputs)
    source = render_html(report)
    assert "<script" not in source
    assert not re.search(r"<(img|svg onload)", source)
    assert "&lt;b&gt;&amp;amp;" in source
    text = Text(source).text
    assert '<script>alert("x")</script></pre><img src=x onerror=1> ␀␛[31m' in text
    assert "<b>&amp;" in text
    assert "… (8,000 more characters)" in text
    assert '<script>alert("x")</script>' in pdf_text(render_pdf(report))


def test_the_table_of_settings_has_what_differs_from_the_defaults_and_nothing_else() -> None:
    params = parse_params({"train": {"learning_rate": 1e-3, "stop": {"max_steps": 77}}, "register": {"name": "mine"}})
    (head, *rows) = Text(render_html(report_of(some_inputs(params=params)))).tables[
        "Settings that differ from the defaults"
    ]
    assert head == ["Setting", "This run", "Default"]
    shown = {row[0].split()[0]: row[1:] for row in rows}
    assert shown == {
        "train.learning_rate": ["0.001", "0.003"],
        "train.min_learning_rate": ["5e-05", "0.00015"],
        "train.stop.max_steps": ["77", "1200"],
        "register.name": ["mine", "gpt2"],
    }
    assert "Every setting has its default value." in render_html(report_of(some_inputs()))


def test_a_run_with_next_to_nothing_has_a_report_as_well() -> None:
    bare = dict.fromkeys(history(10)[0]) | {"step": 1, "tokens_seen": 8, "epoch": 0.1, "tokens_per_second": 3.0}
    inputs = some_inputs(
        history=[bare, {**bare, "step": 2, "train_loss": 5.5, "train_eval_loss": 5.4}],
        train={
            "target_loss": None, "target_reached": None, "best_val_loss": None, "best_step": None,
            "stop_reason": "max_steps", "wall_seconds": 0.4,
        },
        evaluation={
            "val": None, "test": None, "before": {}, "held_out": None, "generalisation_gap": None,
            "verbatim_recall": None, "verdict": "unknown",
        },
        samples={"samples": [], "before": []},
        provenance={"licence": None, "files": []},
    )  # fmt: skip
    report = report_of(inputs, Comparison(problem="no answer"))
    text = Text(render_html(report)).text
    assert "no text was held out, so the loss on new text is not known" in text
    assert "unknown: training loss 0.10, no text was held out; verbatim recall" in text
    assert "train.stop.max_steps was reached" in text
    assert "MLflow could not be read: no answer." in text
    assert "Licence unknown" in text
    assert "None" not in text
    assert "nan" not in text.lower().split()
    assert "no text was held out" in pdf_text(render_pdf(report))
    nothing = Text(render_html(report_of(replace(inputs, history=[bare])))).text
    assert "No loss of this run was finite." in nothing


def test_the_pdf_has_the_headings_and_numbers_of_the_page() -> None:
    report = report_of(some_inputs())
    on_page = Text(render_html(report))
    in_pdf = pdf_text(render_pdf(report))
    assert len(on_page.headings) > 10
    for heading in on_page.headings:
        assert heading in in_pdf
    rows = on_page.tables["Scores before and after training"]
    assert rows[1][1:] == ["10.80", "6.20", "6.10", "0.10"]
    for row in rows[1:]:
        assert " ".join(row[1:]) in in_pdf
    for _, number, remark in report["tiles"]:
        assert number in in_pdf
        assert remark in in_pdf
    for said in ("target 4.4", "ROMEO. unfit noise", "gpt2 generate --model models:/gpt2/3", "abc123"):
        assert said in on_page.text
        assert said in in_pdf


def test_equal_inputs_give_equal_files() -> None:
    first, second = (report_of(some_inputs()) for _ in range(2))
    assert render_html(first) == render_html(second)
    assert render_pdf(first) == render_pdf(second)


def test_the_page_needs_nothing_beside_it() -> None:
    source = render_html(report_of(some_inputs()))
    assert not re.search(r"<(script|link|img|iframe)|src=|@import|url\((?!#)", source)
    inside = set(re.findall(r' id="([^"]+)"', source))
    # MLflow shows the page in a sandbox, where a link to a place of the page does nothing.
    assert 'href="#' not in re.sub(r'xlink:href="#', "", source)
    assert {
        *re.findall(r'(?:xlink:href="|url\()#([^")]+)', source),
        *re.findall(r'labelledby="([^"]+)', source),
    } <= inside
    assert len(inside) == len(re.findall(r' id="', source))


def test_no_secret_of_an_address_is_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://bob:hunter2@mlflow.example.org")
    address = "https://bob:hunter2@data.example.org/text.txt"
    inputs = some_inputs(
        params=parse_params({"data": {"source": address, "sha256": SHA}}),
        provenance={"source": address, "urls": [address]},
        record={"tracking_uri": "https://bob:hunter2@mlflow.example.org"},
        samples={"samples": [sample("see https://bob:hunter2@data.example.org")]},
    )
    report = report_of(inputs)
    for text in (render_html(report), pdf_text(render_pdf(report))):
        assert "data.example.org" in text
        assert "mlflow.example.org" in text
        assert "hunter2" not in text


@pytest.mark.slow
def test_the_last_five_runs_are_newest_first_with_the_champion_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.entities import Metric, Param

    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "GPT2_PROJECT_ROOT", "GPT2_FLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    client = connect()
    experiment = experiment_id(client, "gpt2")

    def made(name: str, hour: int, rate: str, end: str = "FINISHED", **tags: str) -> str:
        started = int(datetime(2026, 1, 1, hour, tzinfo=UTC).timestamp() * 1000)
        run = client.create_run(experiment, start_time=started, run_name=name, tags={"data_sha256": SHA, **tags})
        perplexity = Metric("evaluate/test_perplexity", 100.0 + hour, started, 0)
        client.log_batch(run.info.run_id, [perplexity], [Param("train.learning_rate", rate)])
        client.set_terminated(run.info.run_id, end)
        return str(run.info.run_id)

    oldest = made("run-1", 1, "0.1")
    ids = [made(f"run-{hour}", hour, "0.003") for hour in range(2, 8)]
    client.set_tag(ids[3], "params_changed_later", '{"train.stop.max_steps": "90"}')
    made("run-6 (cached)", 8, "0.003", cached_from=ids[4])
    made("broken", 9, "0.003", end="FAILED")
    made("elsewhere", 10, "0.003", data_sha256="other")
    this = made("this", 11, "0.003")
    client.create_registered_model("gpt2")
    client.create_model_version("gpt2", f"runs:/{oldest}/model", oldest)
    client.set_registered_model_alias("gpt2", "champion", "1")

    comparison = compare(TrackedRun(RunLink.to(client, client.get_run(this))), "gpt2", "test")
    tables = Text(render_html(report_of(some_inputs(), comparison))).tables
    rows = tables["This run and the latest of experiment gpt2"][1:]
    assert [row[0].split(" ")[0] for row in rows] == ["this", "elsewhere", "run-7", "run-6", "run-5", "run-4", "run-1"]
    assert "(champion, version 1)" in rows[-1][0]
    assert rows[-1][-1] == "train.learning_rate 0.1 (here 0.003)"
    assert (rows[1][1], rows[2][1]) == ("110.0 other data", "107.0")
    assert rows[3][-1] == "none"
    assert rows[4][-1] == "train.stop.max_steps 90 (here -)"  # as it was at that run's end
    assert not [row for row in rows[:-1] if "champion" in row[0]]


def test_the_commands_of_the_report_are_taken_by_the_command() -> None:
    from gpt2ops.cli import main as cli

    codes = [
        block["text"]
        for section in report_of(some_inputs())["sections"]
        for block in section["blocks"]
        if block["kind"] == "code"
    ]
    ours = [line for code in codes for line in code.splitlines() if line.startswith("gpt2 ")]
    assert ours
    for line in ours:
        words = shlex.split(line)[1:]
        cli.build_parser(words[0]).parse_args(words)


def test_the_text_of_before_is_the_untrained_models_with_the_seed_of_after() -> None:
    import torch

    from gpt2core import Tokenizer, generate
    from gpt2ops.sampling.samples import write_before
    from gpt2ops.training.initial_model import initial_model

    params = parse_params(
        {
            "model": {"block_size": 32, "n_layer": 1, "n_head": 2, "n_embd": 16},
            "train": {"sequence_length": 16},
            "sample": {"prompts": ["A", "B and", "C"], "max_new_tokens": 8},
        }
    )
    first, second = write_before(params)
    assert (first["prompt"], first["setting"], first["seed"]) == ("A", "nucleus", 42)
    ids = torch.tensor([Tokenizer().encode("B and")])
    sampling = {"do_sample": True, "temperature": 0.8, "top_k": 50, "top_p": 0.95}
    rows = generate(initial_model(params).eval(), ids, seed=42, max_new_tokens=8, **sampling)
    assert second["text"] == Tokenizer().decode(rows[0, ids.shape[1] :].tolist())


def test_a_spike_is_still_there_when_a_long_curve_is_thinned() -> None:
    values = [1.0] * 20_000
    values[7_777], values[9_999] = 50.0, math.nan
    steps, kept = thinned(list(range(20_000)), values)
    assert len(steps) <= MAX_POINTS + 2
    assert kept[steps.index(7_777)] == 50.0
    assert (steps[0], steps[-1]) == (0, 19_999)
    assert steps == sorted(steps)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / paths.REPORT_PAGE.name
    params = parse_params({"data": {"source": "/a/very/long/" + "path" * 60 + "/text.txt", "split_by": "tokens"}})
    text = sample("x" * 3000, prompt="long" * 100)
    inputs = some_inputs(
        params=params, provenance={"source": params.data.source}, samples={"samples": [text], "before": [text]}
    )
    path.write_text(render_html(report_of(inputs)), encoding="utf-8")
    return path


def test_nothing_is_wider_than_a_phone_and_tables_scroll_by_themselves(browser: Any, shown: Path) -> None:
    tab = browser.new_page(viewport={"width": 400, "height": 800})
    requests: list[str] = []
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(shown.as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400
    inner = "[...document.querySelectorAll('.scroll')].some(one => one.scrollWidth > one.clientWidth)"
    assert tab.evaluate(inner)
    assert tab.locator(".when-narrow svg").is_visible()
    assert not tab.locator(".when-wide svg").is_visible()
    assert requests == [shown.as_uri()]
    tab.close()


def test_dark_mode_changes_the_page_and_its_curves_but_not_the_print(browser: Any, shown: Path) -> None:
    colors = {}
    line = "getComputedStyle(document.querySelector('.when-wide path[style*=\"--blue\"]')).stroke"
    for scheme, media in (("light", "screen"), ("dark", "screen"), ("dark", "print")):
        tab = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
        tab.goto(shown.as_uri())
        tab.emulate_media(media=media, color_scheme=scheme)
        colors[scheme, media] = (tab.evaluate("getComputedStyle(document.body).backgroundColor"), tab.evaluate(line))
        tab.close()
    light, dark, printed = colors.values()
    assert light[0] != dark[0]
    assert light[1] != dark[1]
    assert printed == ("rgb(255, 255, 255)", light[1])


SURE = {
    "split_tokens": 40_000, "blocks": 49, "block_unit": "512 tokens", "loss_stderr": 0.021, "perplexity_low": 460.5,
    "perplexity_high": 530.5,
}  # fmt: skip


def test_a_perplexity_stands_with_its_interval_and_what_of_the_text_it_is_of() -> None:
    report = report_of(some_inputs(evaluation={"test": score(6.2) | SURE}))
    page = Text(render_html(report))
    row = page.tables["Scores before and after training"]
    assert any("460.5 to 530.5" in cell for line in row for cell in line)
    assert any("± 0.021" in cell for line in row for cell in line)
    assert any("the first of 40,000" in cell for line in row for cell in line)
    assert "Perplexity with its 95% interval" in page.text
    tile = next(remark for label, _, remark in report["tiles"] if label == "Held-out perplexity")
    assert tile.startswith("95% interval 460.5 to 530.5; the first ")
    assert "460.5 to 530.5" in pdf_text(render_pdf(report))


def test_a_text_too_short_for_an_interval_has_no_chart_of_it() -> None:
    assert "Perplexity with its 95% interval" not in Text(render_html(report_of(some_inputs()))).text


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((-0.03, 0.01), "the difference may be luck"),
        ((-0.03, -0.001), "this model is better by more than the luck of the text"),
        ((0.001, 0.03), "this model is worse by more than the luck of the text"),
    ],
)
def test_a_gain_over_the_champion_is_told_from_luck(interval, verdict) -> None:
    comparison = {"difference": sum(interval) / 2, "interval": interval, "blocks": 63, "confidence": 0.95}
    page = Text(render_html(report_of(some_inputs(registered={"comparison": comparison})))).text
    assert "Against the champion" in page
    assert verdict in page
    assert f"95% interval {math.expm1(interval[0]):+.1%} to {math.expm1(interval[1]):+.1%}" in page
