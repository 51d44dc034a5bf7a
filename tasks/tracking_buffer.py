"""Metrics on their way to MLflow: cheap to hand over, written in batches by a thread, spooled where the store fails."""

import atexit
import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tasks.stage import say

_BATCH_LIMIT = 1000  # metrics that MLflow takes in one `log_batch`


class Point(NamedTuple):
    key: str
    value: float
    timestamp: int  # milliseconds since 1970
    step: int


class MetricBuffer:
    """Rows of metrics for one run. `write` sends at most 1,000 points and raises where the store fails.

    `last_steps` holds for each metric the last step that the store has: a training that goes on from a checkpoint
    plays some steps again, and they are left out.
    """

    def __init__(
        self,
        write: Callable[[list[Point]], None],
        spool: Path,
        last_steps: Mapping[str, int] | None = None,
        interval_seconds: float = 3.0,
        warn: Callable[[str], None] = say,
    ) -> None:
        self._write = write
        self._spool = spool
        self._last_steps = dict(last_steps or {})
        self._last_moments: dict[str, int] = {}
        self._interval_seconds = interval_seconds
        self._warn = warn
        self._rows: deque[tuple[dict[str, Any], int | None, int]] = deque()
        self._flushing = threading.Lock()
        self._closed = threading.Event()
        self._failing = False
        self._thread: threading.Thread | None = None

    def add(self, metrics: Mapping[str, Any], step: int | None = None, timestamp: int | None = None) -> None:
        """Hand over a row; microseconds. Without `step`: a summary, put at the metric's last step."""
        self._rows.append((dict(metrics), step, timestamp or int(time.time() * 1000)))
        if self._thread is None:
            self._start()

    def flush(self) -> bool:
        """Write what waits, the spool first. False where the store fails: then all of it is in the spool."""
        with self._flushing:
            spooled = self._read_spool()
            points = spooled + self._take_points()
            for start in range(0, len(points), _BATCH_LIMIT):
                try:
                    self._write(points[start : start + _BATCH_LIMIT])
                except Exception as error:  # requests, SQLAlchemy and MLflow each raise their own
                    self._keep(points[start:], error)
                    return False
            self._spool.unlink(missing_ok=True)
            if self._failing:
                self._failing = False
                self._warn(f"tracking: MLflow answers again; {len(points)} metrics were sent late.")
            return True

    def close(self) -> bool:
        """Stop the thread and flush. Rows added later are written by the next flush or close."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
            atexit.unregister(self.close)
            self._thread = None
        return self.flush()

    def _start(self) -> None:
        self._closed.clear()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def _run(self) -> None:
        while not self._closed.wait(self._interval_seconds):
            if self._rows or self._failing:
                self.flush()

    def _take_points(self) -> list[Point]:
        points = []
        while self._rows:
            metrics, step, timestamp = self._rows.popleft()
            for key, value in metrics.items():
                # JSON's null, texts and lists are no metrics; MLflow's charts choke on non-finite ones.
                if not isinstance(value, int | float) or not math.isfinite(value):
                    continue
                last = self._last_steps.get(key, -1)
                if step is not None and step <= last:
                    continue
                at = max(last, 0) if step is None else step
                # Of two points at one step MLflow shows the later, and of two in one millisecond the greater.
                moment = max(timestamp, self._last_moments.get(key, 0) + 1) if at == last else timestamp
                self._last_steps[key], self._last_moments[key] = at, moment
                points.append(Point(key, float(value), moment, at))
        return points

    def _read_spool(self) -> list[Point]:
        try:
            lines = self._spool.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        points = []
        for line in lines:
            try:
                points.append(Point(*json.loads(line)))
            except (ValueError, TypeError):
                continue  # the last line of a process that was killed while writing it
        return points

    def _keep(self, points: list[Point], error: Exception) -> None:
        from gpt2core.files import write_text
        from tasks.tracking_store import one_line

        write_text(self._spool, "".join(json.dumps(point) + "\n" for point in points))
        if not self._failing:
            self._failing = True
            self._warn(
                f"tracking: warning: MLflow does not take metrics ({one_line(error)}); training goes on, "
                f"they wait in {self._spool} and are sent when it answers."
            )


class SystemMetrics:
    """Load of this machine (CPU, memory, disk, network, GPU) as `system/...` metrics, by MLflow's own monitors."""

    def __init__(self, buffer: MetricBuffer, first_step: int, interval_seconds: float = 5.0) -> None:
        self._buffer = buffer
        self._step = first_step
        self._interval_seconds = interval_seconds
        self._monitors = _monitors()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_seconds):
            self._sample()
        self._sample()  # so that a run of two seconds has its point

    def _sample(self) -> None:
        metrics: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            metrics.update({f"system/{key}": value for key, value in monitor.aggregate_metrics().items()})
            monitor.clear_metrics()
        self._buffer.add(metrics, self._step)
        self._step += 1


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        monitors.append(GPUMonitor())
    except Exception:  # no NVIDIA GPU, no driver or no bindings: each its own error
        return monitors
    return monitors
