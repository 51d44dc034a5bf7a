"""Metrics on their way to MLflow: cheap to hand over, written in batches by a thread, spooled where the store fails."""

import atexit
import json
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from gpt2core.storage.files import write_text
from gpt2ops.process.stage import say

_BATCH_LIMIT = 1000  # metrics that MLflow takes in one `log_batch`


NEXT = "next"  # a step: the one after the metric's last


class Point(NamedTuple):
    key: str
    value: float
    timestamp: int  # milliseconds since 1970
    step: int
    # How the step was given while it was not known which steps the store has: "step", "last" or "next"; else "".
    given: str = ""


def settled(points: Sequence[Point], stored: Mapping[str, int]) -> list[Point]:
    """What to send to a store that has each metric up to a step: none of it again, and the rest after it."""
    last = dict(stored)
    for point in points:
        if not point.given:
            last[point.key] = max(point.step, last.get(point.key, -1))
    after = 1 + max((last.get(point.key, -1) for point in points if point.given == NEXT), default=-1)
    result = []
    for point in points:
        here, step = last.get(point.key, -1), point.step
        if point.given == "step" and step <= here:
            continue
        if point.given == "last":
            step = max(step, here)
        elif point.given == NEXT:
            step += after
        result.append(point._replace(step=step, given=""))
    return result


class MetricBuffer:
    """Rows of metrics for one run. `write` sends at most 1,000 points and raises where the store fails.

    `last_steps` holds for each metric the last step that the store has: a training that goes on from a checkpoint
    plays some steps again, and they are left out. Where the store is away it is a function that asks for them, and
    raises.
    """

    def __init__(
        self,
        write: Callable[[list[Point]], None],
        spool: Path,
        last_steps: Mapping[str, int] | Callable[[], Mapping[str, int]] | None = None,
        interval_seconds: float = 3.0,
        warn: Callable[[str], None] = say,
        also: Callable[[], bool] = lambda: True,
    ) -> None:
        """`also` is called after the metrics were sent; False where it, too, must be called again."""
        self._write, self._also = write, also
        self._spool = spool
        self._ask = last_steps if callable(last_steps) else None
        self._last_steps = {} if callable(last_steps) else dict(last_steps or {})
        self._last_moments: dict[str, int] = {}
        self._interval_seconds = interval_seconds
        self._warn = warn
        self._rows: deque[tuple[dict[str, Any], int | str | None, int]] = deque()
        self._points = self._read_spool()  # not known to be in the store; the first `_spooled` of them are in the spool
        self._spooled = len(self._points)
        self._changing, self._flushing = threading.Lock(), threading.Lock()
        self._closed = threading.Event()
        self._failing = self._ask is not None
        self._spool_failing = self._also_waits = False
        if self._ask is None:
            self._settle(self._last_steps)
        self._count(self._points)
        self._thread: threading.Thread | None = None

    def add(self, metrics: Mapping[str, Any], step: int | str | None = None, timestamp: int | None = None) -> None:
        """Hand over a row; microseconds. Without `step`: a summary, put at the metric's last step; NEXT: after it."""
        self._rows.append((dict(metrics), step, timestamp or int(time.time() * 1000)))
        if self._thread is None:
            self._start()

    def flush(self) -> bool:
        """Write what waits, the spool first. False where the store fails: then all of it is in the spool."""
        with self._flushing:
            with self._changing:
                self._points += self._take_points()
            if self._ask is not None:
                try:
                    stored = self._ask()
                except Exception as error:  # requests, SQLAlchemy and MLflow each raise their own
                    self._fail(error)
                    return False
                with self._changing:
                    self._ask = None
                    self._points += self._take_points()
                    self._settle(stored)
                    self._last_steps = dict(stored)
                    self._count(self._points)
            sent = 0
            while batch := self._points[:_BATCH_LIMIT]:
                try:
                    self._write(batch)
                except Exception as error:  # requests, SQLAlchemy and MLflow each raise their own
                    self._fail(error)
                    return False
                sent += len(batch)
                with self._changing:
                    del self._points[: len(batch)]
                    self._spooled = max(0, self._spooled - len(batch))
            with self._changing:
                if not self._points:
                    self._spool.unlink(missing_ok=True)
                    self._spooled = 0
            if self._failing:
                self._failing = False
                if sent:
                    self._warn(f"tracking: MLflow answers again; {sent} metrics were sent late.")
        return self._also()

    def _settle(self, stored: Mapping[str, int]) -> None:
        """Now that it is known what the store has. In the spool too: after a kill others send it."""
        if not any(point.given for point in self._points):
            return
        self._points = settled(self._points, stored)
        with suppress(OSError):  # a full disk
            write_text(self._spool, "".join(json.dumps(point) + "\n" for point in self._points))
            self._spooled = len(self._points)

    def _count(self, points: Sequence[Point]) -> None:
        for point in points:
            self._last_steps[point.key] = max(point.step, self._last_steps.get(point.key, -1))

    def secure(self) -> None:
        """Put what waits on the disk, whatever the store does: milliseconds. A kill then loses none of it."""
        with self._changing:
            self._points += self._take_points()
            lines = "".join(json.dumps(point) + "\n" for point in self._points[self._spooled :])
            if not lines:
                return
            try:
                self._spool.parent.mkdir(parents=True, exist_ok=True)
                with self._spool.open("a", encoding="utf-8") as handle:
                    handle.write(lines)
                    handle.flush()
                    os.fsync(handle.fileno())
            except OSError as error:
                if not self._spool_failing:
                    self._warn(f"tracking: warning: {self._spool} cannot be written ({error.strerror or error}).")
                self._spool_failing = True
                return
            self._spool_failing = False
            self._spooled = len(self._points)

    def wake(self) -> None:
        """Have the thread call `also` soon."""
        self._also_waits = True
        if self._thread is None:
            self._start()

    def close(self) -> bool:
        """Stop the thread and flush. Rows added later are written by the next flush or close."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
            atexit.unregister(self.close)
            self._thread = None
        return self.flush()

    def abandon(self) -> None:
        """Do not wait for the store when the process ends."""
        atexit.unregister(self.close)

    def _start(self) -> None:
        self._closed.clear()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def _run(self) -> None:
        while not self._closed.wait(self._interval_seconds):
            if self._rows or self._points or self._also_waits:
                self._also_waits = not self.flush()

    def _take_points(self) -> list[Point]:
        points = []
        while self._rows:
            metrics, step, timestamp = self._rows.popleft()
            given = "" if self._ask is None else step if isinstance(step, str) else "last" if step is None else "step"
            if isinstance(step, str):
                step = 1 + max((self._last_steps.get(key, -1) for key in metrics), default=-1)
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
                points.append(Point(key, float(value), moment, at, given))
        return points

    def _read_spool(self) -> list[Point]:
        try:
            # Only a line end ends a point: JSON may hold other signs that Python splits at.
            content = self._spool.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        lines = content.split("\n")
        points = []
        for line in lines:
            try:
                points.append(_point(json.loads(line)))
            except (ValueError, TypeError, OverflowError, RecursionError):
                continue  # the last line of a process that was killed while writing it
        if lines[-1]:
            write_text(self._spool, "".join(json.dumps(point) + "\n" for point in points))
        return points

    def _fail(self, error: Exception) -> None:
        from gpt2ops.tracking.store import one_line

        self.secure()
        if not self._failing:
            self._failing = True
            self._warn(
                f"tracking: warning: MLflow does not take metrics ({one_line(error)}); training goes on, "
                f"they wait in {self._spool} and are sent when it answers, at the latest by the next stage or run."
            )


def _point(values: Any) -> Point:
    """A line of the spool. Raises ValueError or TypeError where it is none."""
    key, value, timestamp, step, *given = values
    number = float(value)
    if not isinstance(key, str) or not math.isfinite(number):
        raise ValueError
    return Point(key, number, int(timestamp), int(step), *map(str, given))


class SystemMetrics:
    """Load of this machine (CPU, memory, disk, network, GPU) as `system/...` metrics, by MLflow's own monitors."""

    def __init__(self, buffer: MetricBuffer, interval_seconds: float = 5.0) -> None:
        self._buffer = buffer
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
        self._buffer.add(metrics, NEXT)


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
