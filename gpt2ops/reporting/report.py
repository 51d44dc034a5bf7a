"""The report as data: its header and its sections in reading order."""

from gpt2ops.reporting import origin, results
from gpt2ops.reporting.blocks import Report
from gpt2ops.reporting.inputs import Inputs
from gpt2ops.reporting.runs import Comparison
from gpt2ops.reporting.summary import VERDICTS


def build_report(inputs: Inputs, comparison: Comparison) -> Report:
    verdict = str(inputs.evaluation["verdict"])
    name = inputs.record.get("run_name") or inputs.params.model.preset
    return Report(
        title=str(name),
        subtitle=(
            f"{inputs.train['n_params'] / 1e6:,.1f} M parameters, {inputs.train['steps']:,} training steps, "
            f"data source: {inputs.provenance['source']}"
        ),
        tone=verdict if verdict in VERDICTS else "unknown",
        verdict=verdict,
        sentence=results.verdict_sentence(inputs),
        advice=VERDICTS.get(verdict, VERDICTS["unknown"]),
        tiles=results.tiles(inputs),
        sections=[
            results.scores(inputs),
            results.training(inputs),
            results.samples(inputs),
            results.other_runs(inputs, comparison),
            origin.data(inputs),
            origin.settings(inputs),
            origin.use(inputs),
            origin.origin(inputs, comparison),
        ],
    )
