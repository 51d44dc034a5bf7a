"""What one run tells MLflow, in order, until MLflow has it: `mlruns/spool/ID.jsonl`, one JSON value per line.

A list is a point of a metric, an object anything else: parameters, tags, files, the status. Each may be delivered twice
without harm, as MLflow keeps one of two identical points. Own code: MLflow's asynchronous queue lives in memory only,
and with persist-queue or SQLite the code for steps and files would still be ours.
"""

import itertools
import json
import math
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gpt2core.storage.files import read_json, write_text
from gpt2ops.params.schema import Params
from gpt2ops.pipeline.paths import mlruns
from gpt2ops.process.console import say

if TYPE_CHECKING:
    from filelock import FileLock

NEXT = "next"  # a step: the one after the metric's last
_OLDER_PLAN, _OLDER_MESSAGES = ".run.json", "messages.json"  # of versions up to 0.1


class Point(NamedTuple):
    key: str
    value: float
    timestamp: int  # milliseconds since 1970
    step: int


Message = dict[str, Any]  # "do": what to do, "what": its name in warnings, and arguments
Record = Point | Message


class Journal:
    """The records of one run that MLflow does not have yet. Safe to use from several threads."""

    def __init__(self, stem: Path, lock: "FileLock | None" = None) -> None:
        """`stem` without suffix: records in `stem.jsonl`, copies of files in the folder `stem`."""
        self.name, self._copies, self._lock = stem.name, stem, lock
        self.file = stem.with_name(f"{stem.name}.jsonl")
        self._rows: deque[tuple[dict[str, Any], int | str | None, int]] = deque()
        self._records = read_records(stem)
        self._on_disk = len(self._records)  # so many of the first are in the file
        self.plan = plan_of(self._records)
        self._last_steps: dict[str, int] = {}
        self._last_times: dict[str, int] = {}
        self.is_resolved = False  # whether the store's last step of each metric is known
        self._changing = threading.RLock()
        self._disk_failed = False

    def add(self, metrics: Mapping[str, Any], step: int | str | None = None, timestamp: int | None = None) -> None:
        """Append a row of metrics (microseconds). Without `step`: a summary at the metric's last step; NEXT: after it.

        Steps that the run has already are skipped: a resumed training repeats some.
        """
        self._rows.append((dict(metrics), step, timestamp or int(time.time() * 1000)))

    def put(self, points: Iterable[Point]) -> None:
        """Append points that the store lacks, also where it has later steps."""
        with self._changing:
            self._absorb_rows()
            for point in points:
                self._records.append(point)
                self._last_steps[point.key] = max(point.step, self._last_steps.get(point.key, -1))

    def post(self, message: Message) -> None:
        with self._changing:
            self._absorb_rows()
            self._records.append(message)
            self.plan = self.plan or plan_of([message])

    def waiting(self) -> list[Record]:
        with self._changing:
            self._absorb_rows()
            return list(self._records)

    def resolve(self, last_steps: Mapping[str, int]) -> None:
        """Turn rows into points, now that the last step of each metric in the store is known."""
        with self._changing:
            self._absorb_rows()
            self._last_steps, self.is_resolved, waiting = dict(last_steps), True, self._records
            self._records = []
            for record in waiting:
                if isinstance(record, Point):
                    self._last_steps[record.key] = max(record.step, self._last_steps.get(record.key, -1))
            for record in waiting:
                row = record.get("row") if isinstance(record, dict) else None
                self._records += self._points(**row) if row else [record]
            if self._records != waiting:  # on the disk before they are sent: another process must send the same
                self._write(anew=True)

    def drop(self, delivered: Collection[int]) -> None:
        """Forget the records at these positions of `waiting()`; with the last one the files go."""
        with self._changing:
            self._records = [record for index, record in enumerate(self._records) if index not in delivered]
            if not self._records:
                self._clear()
            elif delivered and self._on_disk:
                self._write(anew=True)

    def secure(self) -> None:
        """Put what waits on the disk, with copies of its files (milliseconds): a kill then loses none of it."""
        with self._changing:
            self._absorb_rows()
            if self._on_disk < len(self._records):
                self._write()

    def unsaved(self) -> int:
        """How many records only this process has: the disk did not take them, and the store does not have them."""
        with self._changing:
            self._absorb_rows()
            return len(self._records) if self._disk_failed else 0

    def release(self) -> None:
        """Let other processes deliver what waits."""
        if not self._records:
            self._clear()
        if self._lock is not None:
            self._lock.release()
            Path(self._lock.lock_file).unlink(missing_ok=True)

    def _absorb_rows(self) -> None:
        while self._rows:
            metrics, step, timestamp = self._rows.popleft()
            if self.is_resolved:
                self._records += self._points(metrics, step, timestamp)
            else:
                row = {"metrics": metrics, "step": step, "timestamp": timestamp}
                self._records.append({"do": "metrics", "what": "metrics", "row": row})

    def _points(self, metrics: Mapping[str, Any], step: int | str | None, timestamp: int) -> Iterator[Point]:
        if isinstance(step, str):
            step = 1 + max((self._last_steps.get(key, -1) for key in metrics), default=-1)
        for key, value in metrics.items():
            if not is_metric(value):
                continue
            last = self._last_steps.get(key, -1)
            if step is not None and step <= last:
                continue
            at = max(last, 0) if step is None else step
            # Of two points at one step MLflow shows the later, and of two in one millisecond the greater.
            moment = max(timestamp, self._last_times.get(key, 0) + 1) if at == last else timestamp
            self._last_steps[key], self._last_times[key] = at, moment
            yield Point(key, float(value), moment, at)

    def _write(self, *, anew: bool = False) -> None:
        """Append what is not in the file, or write the file anew with what waits."""
        new = self._records[0 if anew else self._on_disk :]
        for record in new:
            if isinstance(record, dict) and "path" in record and not record.get("kept"):
                self._copy_file(record)
        # The line break comes first: the line before may be half of one, of a process that was killed.
        text = "".join(f"\n{json.dumps(record)}" for record in new)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            if anew:
                write_text(self.file, text)
                self._remove_older_format()
            else:
                with self.file.open("a", encoding="utf-8") as handle:
                    handle.write(text)
                    handle.flush()
                    os.fsync(handle.fileno())
        except OSError as error:
            self._warn_once(f"{self.file} cannot be written", error)
            self._on_disk = 0  # what the file holds beside is delivered twice, without harm
        else:
            self._disk_failed, self._on_disk = False, len(self._records)

    def _copy_file(self, message: Message) -> None:
        source, folder = Path(message["path"]), self._copies / str(time.time_ns())
        try:
            folder.mkdir(parents=True)
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, folder / source.name)
        except OSError as error:  # it is sent from where it lies, if it is there still
            shutil.rmtree(folder, ignore_errors=True)
            self._warn_once(f"{source} cannot be copied to {self._copies}", error)
        else:
            message.update(path=str((folder / source.name).resolve()), kept=True)

    def _clear(self) -> None:
        self.file.unlink(missing_ok=True)
        self._remove_older_format()
        shutil.rmtree(self._copies, ignore_errors=True)
        self._on_disk = 0

    def _remove_older_format(self) -> None:
        self.file.with_name(f"{self.name}{_OLDER_PLAN}").unlink(missing_ok=True)
        (self._copies / _OLDER_MESSAGES).unlink(missing_ok=True)

    def _warn_once(self, what: str, error: OSError) -> None:
        if not self._disk_failed:
            reason = error.strerror or error
            say(f"tracking: warning: {what} ({reason}); it is lost unless MLflow answers before this stage ends.")
        self._disk_failed = True


def is_metric(value: Any) -> bool:
    """JSON's null, texts and lists are no metrics; MLflow's charts choke on non-finite ones."""
    return isinstance(value, int | float) and math.isfinite(value)


def open_journal(run_id: str) -> Journal:
    """The journal of the run, or one more of it where another process has that one."""
    names = (f"{run_id}.{number}" if number else run_id for number in itertools.count())
    return next(journal for name in names if (journal := take_journal(name)) is not None)


def take_journal(name: str) -> Journal | None:
    """None where another process has it."""
    from filelock import FileLock, Timeout

    lock = FileLock(spool() / f"{name}.lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return Journal(spool() / name, lock)


def spool() -> Path:
    return mlruns() / "spool"


def journal_entries() -> dict[str, list[Path]]:
    """What lies in the spool, by journal: `ID`, or `ID.1` of a second process that wrote into that run."""
    found: dict[str, list[Path]] = {}
    for entry in sorted(spool().glob("[!.]*")):
        name = entry.name
        for suffix in (".jsonl", ".lock", _OLDER_PLAN):
            name = name.removesuffix(suffix)
        found.setdefault(name, []).append(entry)
    return found


def waiting_journals() -> list[str]:
    """Names of the journals in which something waits."""
    return [name for name, entries in journal_entries().items() if any(entry.suffix != ".lock" for entry in entries)]


def run_of(name: str) -> str:
    """The id of the run of a journal."""
    return name.partition(".")[0]


def read_records(stem: Path) -> list[Record]:
    """The records of a journal; lines that are none are skipped, such as half of one, of a process that was killed."""
    try:
        content = stem.with_name(f"{stem.name}.jsonl").read_text(encoding="utf-8", errors="replace")
    except OSError:
        content = ""
    records: list[Record] = []
    for line in content.split("\n"):  # JSON may hold other characters at which `splitlines` splits
        try:
            records += _record(json.loads(line))
        except (ValueError, TypeError, OverflowError, RecursionError):
            continue
    return [*_read_older_format(stem), *records]


def plan_of(records: Iterable[Record]) -> Message | None:
    """How to create the run, where it began while the store was away."""
    creations = (record for record in records if isinstance(record, dict) and record["do"] == "create")
    now = int(time.time() * 1000)
    defaults = {"experiment": Params().run.experiment, "run_name": "", "tags": {}, "start_time": now}
    return next(({**defaults, **creation} for creation in creations), None)


def _record(value: Any) -> list[Record]:
    """None or one. Raises ValueError or TypeError for what is no record."""
    if isinstance(value, dict):
        return [value] if {"do", "what"} <= value.keys() else []
    key, number, timestamp, step, *given = value
    point = Point(key, float(number), int(timestamp), int(step))
    if not isinstance(key, str) or not math.isfinite(point.value):
        return []
    if not any(given):
        return [point]
    # Versions up to 0.1 marked a point whose step was to be resolved.
    later = {"step": point.step, "last": None, NEXT: NEXT}.get(given[0])
    row = {"metrics": {key: point.value}, "step": later, "timestamp": point.timestamp}
    return [{"do": "metrics", "what": "metrics", "row": row}]


def _read_older_format(stem: Path) -> list[Record]:
    """The plan of a run and a list of messages in files of their own; a damaged plan is of a run without a name."""
    plan, messages = (
        _read_json(file) for file in (stem.with_name(f"{stem.name}{_OLDER_PLAN}"), stem / _OLDER_MESSAGES)
    )
    found = [] if plan is None else [{**(plan if isinstance(plan, dict) else {}), "do": "create", "what": "the run"}]
    listed = messages if isinstance(messages, list) else []
    return [*found, *(record for value in listed if isinstance(value, dict) for record in _record(value))]


def _read_json(file: Path) -> Any:
    """None where there is no such file, False where it is damaged."""
    try:
        return read_json(file)
    except OSError:
        return None
    except ValueError:
        return False
