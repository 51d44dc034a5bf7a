"""The report of a run: what it says, and that it says it for every kind of run."""

import math
import re
import shlex
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gpt2ops.params.schema import parse_params
from gpt2ops.reporting.curves import MAX_POINTS, thinned
from gpt2ops.reporting.render import render_html, render_pdf
from gpt2ops.reporting.runs import Comparison, compare
from gpt2ops.store.client import connect, experiment_id
from gpt2ops.tracking.link import RunLink
from gpt2ops.tracking.run import TrackedRun
from tests.gpt2ops.reporting.reports import SHA, Text, history, pdf_text, report_of, sample, some_inputs


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
