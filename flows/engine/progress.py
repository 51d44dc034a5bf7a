"""Artifacts on Prefect's page during a flow run: progress of all stages, progress of the training, the MLflow run.

A failed update never stops the run: it is reported once.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_progress_artifact, update_progress_artifact

from flows.engine.services import MLFLOW_PAGE
from gpt2ops.process.redact import redact
from gpt2ops.store.address import tracking_uri
from gpt2ops.training.status import STATUS, LiveStatus, read_status

UPDATE_SECONDS = 5.0
# A cancel must not wait for an update that Prefect does not answer.
_LAST_UPDATE_SECONDS = 3.0


class FlowProgress:
    """The artifacts `fine-tune-progress` (all stages), `training-progress` (steps) and `mlflow-run` (a link)."""

    def __init__(self, weights: Sequence[tuple[str, float]], warn: Callable[[str], None]) -> None:
        """`weights`: the stages in order, with their shares of a run's time."""
        self._weights, self._warn = dict(weights), warn
        self._done, self._total = 0.0, sum(self._weights.values())
        self._warned = False
        self._artifacts: dict[str, Any] = {}  # ids by key
        self._linked = False
        self._shown: LiveStatus | None = None
        self._show("fine-tune-progress", 0.0, "starting")

    def started(self, stage: str) -> None:
        position = list(self._weights).index(stage) + 1
        self._show_all(0.0, f"stage {position} of {len(self._weights)}, {stage}")

    def finished(self, stage: str) -> None:
        self._done += self._weights[stage]
        self._show_all(0.0, f"{stage} has finished")

    @contextmanager
    def of_training(self, workspace: Path) -> Iterator[None]:
        """Show the live status of the training in `workspace` every UPDATE_SECONDS within this block."""
        file = workspace / STATUS
        file.unlink(missing_ok=True)  # of an earlier attempt
        closed = threading.Event()

        def follow() -> None:
            while not closed.wait(UPDATE_SECONDS):
                self._follow(file)
            self._follow(file)

        # Prefect keeps the server and the flow run in context variables.
        thread = threading.Thread(target=copy_context().run, args=(follow,), name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            closed.set()
            thread.join(_LAST_UPDATE_SECONDS)
        if self._shown is not None:
            self._show("training-progress", 100.0, f"finished: {self._shown.sentence(ended=True)}")

    def _follow(self, file: Path) -> None:
        status = read_status(file)
        if status is None or status == self._shown:
            return
        self._shown = status
        if not self._linked and (page := run_page(status)):
            self._linked = True
            self._try(
                lambda: create_link_artifact(
                    page, link_text="MLflow run", key="mlflow-run", description="Live curves, settings and warnings"
                )
            )
        self._show("training-progress", status.percent, status.sentence())
        self._show_all(status.percent / 100 * self._weights["finetune"], f"finetune: {status.sentence()}")

    def _show_all(self, within_stage: float, description: str) -> None:
        self._show("fine-tune-progress", round(100 * (self._done + within_stage) / self._total, 1), description)

    def _show(self, key: str, percent: float, description: str) -> None:
        if key in self._artifacts:
            self._try(lambda: update_progress_artifact(self._artifacts[key], percent, description))
        else:
            self._try(lambda: self._artifacts.update({key: create_progress_artifact(percent, key, description)}))

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # of httpx, Prefect and their libraries
            if not self._warned:
                self._warned = True
                self._warn(f"Prefect rejects the progress ({type(error).__name__}); the run continues without it.")


def run_page(status: LiveStatus) -> str | None:
    """The URL of the training's MLflow run; None where no server is known."""
    uri = redact(tracking_uri())
    server = uri if uri.startswith("http") else os.environ.get(MLFLOW_PAGE)
    if not server or not status.experiment_id:  # not yet created in MLflow
        return None
    return f"{server.rstrip('/')}/#/experiments/{status.experiment_id}/runs/{status.run_id}"
