"""Stage `sample`: models/best + data/tokens -> reports/samples.json and reports/samples.md."""

if __name__ == "__main__":
    from gpt2ops.process.startup import start_process

    start_process()

from gpt2core.data.tokens import open_split
from gpt2core.runtime import set_threads
from gpt2core.storage.files import json_text, write_together
from gpt2ops.params.schema import load_params
from gpt2ops.pipeline import paths
from gpt2ops.process.console import say
from gpt2ops.process.stage import run_stage
from gpt2ops.sampling.page import log_samples, samples_page
from gpt2ops.sampling.samples import write_before, write_samples
from gpt2ops.tracking.api import tracked_run


def main() -> None:
    params = load_params()
    set_threads(params.run.threads)
    train = open_split(paths.TOKENS, "train")
    with tracked_run() as tracked:
        say(f"generating texts: {len(params.sample.prompts)} prompts, {len(params.sample.settings)} settings ...")
        samples = {**write_samples(params, train), "before": write_before(params)}
        write_together({paths.SAMPLES: json_text(samples), paths.SAMPLES_PAGE: samples_page(samples)})
        log_samples(tracked)
    memorised = sum(entry["memorised"] for entry in samples["samples"])
    if memorised:
        say(f"memorised texts: {memorised} of {len(samples['samples'])}; see {paths.SAMPLES_PAGE}")


if __name__ == "__main__":
    run_stage("sample", main)
