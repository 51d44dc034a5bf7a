"""The report as one HTML page (Jinja) and as a PDF (Typst), from the same data."""

import json
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any

from gpt2ops.reporting.charts import printable

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

TEMPLATES = files("gpt2ops.reporting") / "templates"
PDF_FONT = "Libertinus Serif"  # comes with typst


def render_html(report: dict[str, Any]) -> str:
    """A self-contained page: no script, no request."""
    return environment().get_template("report.html").render(report=report, style=style()) + "\n"


def environment() -> "Environment":
    """The templates of the pages, which escape every text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("gpt2ops.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def style() -> "Markup":
    """The style sheet of the pages."""
    from markupsafe import Markup

    return Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))  # package data, no user's text


def render_pdf(report: dict[str, Any]) -> bytes:
    """Equal reports give equal bytes on one machine."""
    import typst

    data = json.dumps(_for_print(report), ensure_ascii=False)
    with as_file(TEMPLATES / "report.typ") as template:
        document = typst.compile(template, format="pdf", sys_inputs={"report": data})
    assert isinstance(document, bytes)
    return document


def _for_print(value: Any) -> Any:
    """`value` with the wide drawings only, in colours and a font that Typst knows."""
    if isinstance(value, dict):
        return {
            key: printable(entry, PDF_FONT) if key == "wide" else _for_print(entry)
            for key, entry in value.items()
            if key != "narrow"
        }
    return [_for_print(entry) for entry in value] if isinstance(value, list) else value
