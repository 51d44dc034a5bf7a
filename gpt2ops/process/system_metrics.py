"""Load of this machine as metrics. MLflow's own loop would ask the store before each sample, also while it is away."""

import threading
from collections.abc import Callable
from typing import Any


class SystemMetrics:
    """Samples CPU, memory, disk, network and GPU by MLflow's monitors, until `stop`, and gives `add` the metrics."""

    def __init__(self, add: Callable[[dict[str, float]], None], interval_seconds: float = 5.0) -> None:
        self._add = add
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
        self._add(metrics)


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
