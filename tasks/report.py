"""Stage `report`: what all stages before left -> reports/report.html and reports/report.pdf, the same in both."""

if __name__ == "__main__":
    from gpt2ops.process.startup import start_process

    start_process()

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from gpt2core.storage.files import write_together
from gpt2ops import paths
from gpt2ops.process.stage import run_stage, say
from gpt2ops.reporting import origin as report_origin
from gpt2ops.reporting import results as report_results
from gpt2ops.reporting.blocks import Report
from gpt2ops.reporting.charts import printable
from gpt2ops.reporting.inputs import Inputs, read_inputs
from gpt2ops.reporting.runs import Comparison, compare
from gpt2ops.reporting.summary import VERDICTS, print_summary
from gpt2ops.tracking.api import tracked_run

TEMPLATES = Path(str(files("gpt2ops.reporting"))) / "templates"
PDF_FONT = "Libertinus Serif"  # comes with typst


def main() -> None:
    inputs = read_inputs()
    with tracked_run() as tracked:
        say("writing the report ...")
        comparison = compare(tracked, inputs.params.register_.name, inputs.held_out)
        report = build(inputs, comparison).as_dict()
        write_together({paths.REPORT_PAGE: page(report), paths.REPORT_PDF: pdf(report)})
        for file in (paths.REPORT_PAGE, paths.REPORT_PDF):
            tracked.log_artifact(file)
    print_summary()


def build(inputs: Inputs, comparison: Comparison) -> Report:
    """The report as data: pure, but for drawing."""
    verdict = str(inputs.evaluation["verdict"])
    name = inputs.record.get("run_name") or inputs.params.model.preset
    return Report(
        title=str(name),
        subtitle=(
            f"{inputs.train['n_params'] / 1e6:,.1f} M parameters, trained on {inputs.provenance['source']}"
            f" for {inputs.train['steps']:,} steps"
        ),
        tone=verdict if verdict in VERDICTS else "unknown",
        verdict=verdict,
        sentence=report_results.verdict_sentence(inputs),
        advice=VERDICTS.get(verdict, VERDICTS["unknown"]),
        tiles=report_results.tiles(inputs),
        sections=[
            report_results.scores(inputs),
            report_results.training(inputs),
            report_results.samples(inputs),
            report_results.other_runs(inputs, comparison),
            report_origin.data(inputs),
            report_origin.settings(inputs),
            report_origin.use(inputs),
            report_origin.origin(inputs, comparison),
        ],
    )


def page(report: dict[str, Any]) -> str:
    """One HTML file that needs nothing beside it: no script, no network."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))  # ours, no user's text
    return environment.get_template("report.html").render(report=report, style=style) + "\n"


def pdf(report: dict[str, Any]) -> bytes:
    """The same as PDF. Equal reports give equal bytes on one machine."""
    import typst

    ready = json.dumps(_for_print(report), ensure_ascii=False)
    made = typst.compile(TEMPLATES / "report.typ", format="pdf", sys_inputs={"report": ready})
    assert isinstance(made, bytes)
    return made


def _for_print(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: printable(entry, PDF_FONT) if key == "wide" else _for_print(entry)
            for key, entry in value.items()
            if key != "narrow"
        }
    return [_for_print(entry) for entry in value] if isinstance(value, list) else value


if __name__ == "__main__":
    run_stage("report", main)
