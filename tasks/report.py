"""Stage `report`: the results of the other stages -> reports/report.html and reports/report.pdf, the same in both."""

if __name__ == "__main__":
    from gpt2ops.process.startup import start_process

    start_process()

from gpt2core.storage.files import write_together
from gpt2ops.pipeline import paths
from gpt2ops.process.console import say
from gpt2ops.process.stage import run_stage
from gpt2ops.reporting.inputs import read_inputs
from gpt2ops.reporting.render import render_html, render_pdf
from gpt2ops.reporting.report import build_report
from gpt2ops.reporting.runs import compare
from gpt2ops.reporting.summary import print_summary
from gpt2ops.tracking.api import tracked_run


def main() -> None:
    inputs = read_inputs()
    with tracked_run(last=True) as tracked:
        say("writing the report ...")
        comparison = compare(tracked, inputs.params.register_.name, inputs.held_out)
        report = build_report(inputs, comparison).as_dict()
        write_together({paths.REPORT_PAGE: render_html(report), paths.REPORT_PDF: render_pdf(report)})
        for file in (paths.REPORT_PAGE, paths.REPORT_PDF):
            tracked.log_artifact(file)
    print_summary()


if __name__ == "__main__":
    run_stage("report", main)
