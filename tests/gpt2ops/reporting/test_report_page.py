"""How the report looks in a browser: on a phone, in dark mode, in print."""

from pathlib import Path
from typing import Any

import pytest

from gpt2ops.params.schema import parse_params
from gpt2ops.pipeline import paths
from gpt2ops.reporting.render import render_html
from tests.gpt2ops.reporting.reports import report_of, sample, some_inputs


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
