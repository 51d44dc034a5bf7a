"""Flow `fine-tune`: the stages of dvc.yaml in order, each a Prefect task, in the flow run's own workspace.

`python -m flows.fine_tune [--set train.learning_rate=1e-3 ...]` runs it in this process; with `python -m flows.serve`,
`prefect deployment run 'fine-tune/local' -p 'train={"learning_rate": 1e-3}'` sends it to the worker.
"""

if __name__ == "__main__":
    from gpt2ops.process.startup import start_process

    start_process()

import argparse
import os
import sys
import urllib.request
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings
from prefect.states import Failed

from flows.engine import summary
from flows.engine.child import ChildError, run_child
from flows.engine.database import prepare_database
from flows.engine.overrides import (
    DataOverrides,
    EvaluateOverrides,
    ModelOverrides,
    RegisterOverrides,
    RunOverrides,
    SampleOverrides,
    TrainOverrides,
    check_merged,
    parse_overrides,
)
from flows.engine.progress import FlowProgress
from flows.engine.workspace import open_workspace, remove_workspace
from gpt2core.errors import UserError
from gpt2ops.params.schema import load_params
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.lockfile import mend
from gpt2ops.process.git import without_repository
from gpt2ops.process.signals import FLOW_PROCESS
from gpt2ops.process.startup import end_imports

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("download", "tokenize", "finetune", "evaluate", "sample", "plot", "register", "report")

# Rough shares of a run's time: else the progress bar would stay at 2/8 during the whole training.
_WEIGHTS = {"finetune": 14.0}
# DVC prints it after each stage; a remote storage is optional.
_DVC_ADVICE = "Use `dvc push` to send your updates"


@task(cache_policy=NO_CACHE, persist_result=False)
def run_stage(stage: str, workspace: Path, environment: Mapping[str, str], progress: FlowProgress) -> Any:
    """Run `dvc repro --single-item STAGE` in the workspace; on a failure a Failed state with the stage's message."""
    logger = get_run_logger()

    def on_line(line: str) -> None:
        if line.startswith(_DVC_ADVICE):
            return
        (logger.warning if line.startswith("warning: ") else logger.info)(line)

    command = [sys.executable, "-m", "dvc", "repro", "--single-item", stage]
    progress.started(stage)
    try:
        with progress.of_training(workspace) if stage == "finetune" else nullcontext():
            run_child(command, directory=workspace, environment=environment, on_line=on_line)
    except ChildError as error:
        return Failed(message=f"stage {stage} failed: {error}")
    progress.finished(stage)
    return None


# The section has its name in params.yaml; pydantic's metaclass has a method of that name.
warnings.filterwarnings("ignore", message='Field name "register"', category=UserWarning)


@flow(name="fine-tune", persist_result=False, description="A text file in, a registered GPT-2 out.")
def fine_tune(
    run: RunOverrides = RunOverrides(),  # noqa: B008  # frozen
    data: DataOverrides = DataOverrides(),  # noqa: B008
    model: ModelOverrides = ModelOverrides(),  # noqa: B008
    train: TrainOverrides = TrainOverrides(),  # noqa: B008
    evaluate: EvaluateOverrides = EvaluateOverrides(),  # noqa: B008
    sample: SampleOverrides = SampleOverrides(),  # noqa: B008
    register: RegisterOverrides = RegisterOverrides(),  # noqa: B008
) -> Any:
    """Fine-tune with params.yaml and the keys given here. Empty fields keep the values of params.yaml."""
    logger = get_run_logger()
    sections = {
        "run": run, "data": data, "model": model, "train": train, "evaluate": evaluate, "sample": sample,
        "register": register,
    }  # fmt: skip
    overrides = {name: values for name, section in sections.items() if (values := section.values())}
    flow_run_id = str(flow_run.id)
    try:
        check_merged(load_params(ROOT / paths.PARAMS), overrides)
        workspace = open_workspace(ROOT, flow_run_id, overrides)
    except UserError as error:
        return Failed(message=str(error))
    logger.info("workspace: %s", workspace)
    finished = False
    try:
        state = _run_stages(workspace, flow_run_id, logger.info)
        finished = state is None
    finally:
        if not finished:
            logger.warning(kept_line(workspace, flow_run_id))
    if finished:
        remove_workspace(ROOT, workspace)
    return state


def kept_line(workspace: Path, flow_run_id: str) -> str:
    """The last line of a failed or cancelled run: what is kept, and how to resume."""
    saved = any((workspace / paths.CHECKPOINTS).rglob("*.safetensors"))
    kept = (
        f"the checkpoint is saved in {workspace / paths.CHECKPOINTS}"
        if saved
        else f"the workspace is kept: {workspace}"
    )
    return f"{kept}; resume with `prefect flow-run retry {flow_run_id}`."


def _run_stages(workspace: Path, flow_run_id: str, say: Callable[..., None]) -> Any:
    """Run all stages and write the summary; returns the Failed state of the first failed stage, else None."""
    environment = child_environment(flow_run_id)
    progress = FlowProgress([(stage, _WEIGHTS.get(stage, 1.0)) for stage in STAGES], get_run_logger().warning)
    for line in mend(workspace):
        get_run_logger().warning(line)
    for stage in STAGES:
        named = run_stage.with_options(name=stage, task_run_name=stage)
        state = named(stage, workspace, environment, progress, return_state=True)
        if not state.is_completed():
            return Failed(message=state.message)
    try:
        run_id, origin = _linked_run(workspace, environment, flow_run_id)
    except ChildError as error:
        return Failed(message=str(error))
    reports = summary.collect(workspace)
    trained_now = origin == "trained"
    page = summary.markdown(reports, run_id=run_id, trained_now=trained_now, picture=summary.picture(workspace))
    create_markdown_artifact(page, key="fine-tune-summary", description="Metrics, verdict and curves")
    say("MLflow run %s, %s", run_id, "trained by this flow run" if trained_now else "restored from DVC's cache")
    return None


def child_environment(flow_run_id: str) -> dict[str, str]:
    """This environment, with this Python as `python`, and the variables of a stage in a flow run."""
    return {
        **without_repository(),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "DVC_NO_ANALYTICS": "true",
        "GPT2_FLOW_RUN_ID": flow_run_id,
        FLOW_PROCESS: str(os.getpid()),
        "GPT2_PROJECT_ROOT": str(ROOT),
    }


def _linked_run(workspace: Path, environment: Mapping[str, str], flow_run_id: str) -> tuple[str, str]:
    """The MLflow run's id, and `trained` or `restored`."""
    lines: list[str] = []
    command = [sys.executable, "-m", "flows.engine.cached_run", flow_run_id]
    run_child(command, directory=workspace, environment=environment, on_line=lines.append)
    run_id, origin = lines[-1].split()
    return run_id, origin


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the flow in this process. Exit codes: 0 finished, 1 failed, 2 a wrong override, 130 Ctrl-C."""
    end_imports()
    parser = argparse.ArgumentParser(
        prog="python -m flows.fine_tune", description="Run the flow fine-tune in this process."
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="assignments",
        help="override a key of params.yaml, as in train.learning_rate=1e-3; may be repeated",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        overrides = parse_overrides(options.assignments)
        check_merged(load_params(ROOT / paths.PARAMS), overrides)
    except UserError as error:
        for line in str(error).splitlines():
            print(f"fine-tune: error: {line}", file=sys.stderr)
        return 2
    try:
        with server_settings():
            state: Any = fine_tune(**overrides, return_state=True)
    except KeyboardInterrupt:
        return 130
    except UserError as error:
        print(f"fine-tune: error: {error}", file=sys.stderr)
        return 1
    if state.is_completed():
        return 0
    print(f"fine-tune: error: {state.message}", file=sys.stderr)
    return 1


def server_settings() -> AbstractContextManager[Any]:
    """Settings for the configured server if it answers, else for a temporary server in this process."""
    url = get_current_settings().api.url
    if "PREFECT_API_URL" in os.environ:
        return nullcontext()
    try:
        if url:
            urllib.request.urlopen(f"{url}/health", timeout=2).close()
            return nullcontext()
    except OSError:
        pass
    prepare_database()
    return temporary_settings({PREFECT_API_URL: None})


if __name__ == "__main__":
    sys.exit(main())
