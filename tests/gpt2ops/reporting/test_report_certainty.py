"""How sure each number of the report is, and a gain over the champion."""

import math

import pytest

from gpt2ops.reporting.render import render_html, render_pdf
from tests.gpt2ops.reporting.reports import (
    Text,
    pdf_text,
    report_of,
    score,
    some_inputs,
)

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


def test_the_champions_own_weights_have_no_chart_of_rounding_errors() -> None:
    comparison = {"difference": -4e-10, "interval": (-3e-9, 2e-9), "blocks": 63, "confidence": 0.95}
    page = Text(render_html(report_of(some_inputs(registered={"comparison": comparison})))).text
    assert "Against the champion" not in page


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
