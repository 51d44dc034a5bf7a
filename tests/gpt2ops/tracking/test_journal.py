"""A run's journal and its sender: what waits on the disk, and what a store never took."""

import json
import time
from pathlib import Path

import pytest

from gpt2ops.tracking.journal import NEXT, Journal, Point, read_records
from gpt2ops.tracking.sender import Sender
from tests.support.waiting import wait_until


class Store:
    """A link to a store, and its client, that can be out of order."""

    def __init__(self):
        self.points: list[tuple[str, float, int]] = []
        self.done: list[str] = []
        self.works = self.artifacts_work = True
        self.run_name = "a run"

    def open(self, plan=None):
        return self, "id"

    def last_steps(self):
        return {}

    def log_batch(self, run_id, metrics=(), tags=()):
        if not self.works:
            raise ConnectionError("http://me:secret@host: Max retries exceeded")
        assert len(metrics) <= 1000
        self.points += [(metric.key, metric.value, metric.step) for metric in metrics]
        self.done += [tag.key for tag in tags]

    def log_text(self, run_id, text, file):
        if not self.artifacts_work:
            raise PermissionError("no such bucket")
        self.done.append(text)


def sender_to(store, tmp_path, warnings=None, **options):
    warn = (warnings if warnings is not None else []).append
    return Sender(Journal(tmp_path / "run"), store, warn=warn, **options)


def test_metrics_reach_the_store_while_training_continues(tmp_path):
    store = Store()
    sender = sender_to(store, tmp_path, interval_seconds=0.02)
    sender.start()
    sender._journal.add({"train_loss": 1.0}, step=1)
    wait_until(lambda: store.points)
    assert store.points == [("train_loss", 1.0, 1)]
    sender.close()


def test_adding_a_row_is_cheap_and_none_of_many_is_lost(tmp_path):
    store = Store()
    sender = sender_to(store, tmp_path)
    row = {f"metric_{i}": float(i) for i in range(8)}
    started = time.thread_time()  # of this thread alone: a busy machine must not fail the test
    for step in range(1000):
        sender._journal.add(row, step=step)
    cost = (time.thread_time() - started) / 1000
    sender.close()
    assert cost < 50e-6
    assert len(store.points) == len(set(store.points)) == 8000


def test_a_failing_store_loses_nothing_and_warns_once(tmp_path):
    store, warnings = Store(), []
    sender = sender_to(store, tmp_path, warnings)
    store.works = False
    for step in range(3):
        sender._journal.add({"train_loss": float(step)}, step=step)
        assert sender.deliver() is False
    assert len(warnings) == 1
    assert "secret" not in warnings[0]
    store.works = True
    sender.close()
    assert [step for _, _, step in store.points] == [0, 1, 2]
    assert list(tmp_path.iterdir()) == []


def test_what_the_store_never_took_is_sent_by_the_next_stage_in_order(tmp_path):
    store, file = Store(), tmp_path / "note.txt"
    file.write_text("first")
    store.works = False
    killed = sender_to(store, tmp_path)
    killed._journal.add({"train_loss": 1.0}, step=1)
    killed._journal.post({"do": "tags", "what": "tags", "tags": {"a": "1"}})
    killed._journal.post({"do": "file", "what": "a file", "path": str(file), "artifact_path": None})
    killed.close()
    file.write_text("changed since")
    store.works = True
    store.log_artifact = lambda _, path, __: store.done.append(Path(path).read_text())
    sender_to(store, tmp_path).close()
    assert store.points == [("train_loss", 1.0, 1)]
    assert store.done == ["a", "first"]
    assert list(tmp_path.iterdir()) == [file]


def test_artifacts_that_their_store_does_not_take_delay_nothing_else(tmp_path):
    store = Store()
    store.artifacts_work = False
    sender = sender_to(store, tmp_path)
    sender._journal.post({"do": "text", "what": "a text", "text": "late", "file": "a.txt"})
    sender._journal.post({"do": "tags", "what": "tags", "tags": {"tag": "1"}})
    sender._journal.add({"train_loss": 1.0}, step=1)
    assert sender.deliver() is False
    assert (store.done, len(store.points)) == (["tag"], 1)
    assert [record["do"] for record in read_records(tmp_path / "run")] == ["text"]
    store.artifacts_work = True
    assert sender.deliver() is True
    assert store.done == ["tag", "late"]


def test_lines_of_a_journal_that_are_no_records_are_skipped(tmp_path):
    whole = '["loss", 3.5, 1790000000000, 7]'
    odd = [
        '["loss", {}, 1, 2]',
        "[1]",
        '["loss", NaN, 1, 2]',
        "[" * 100_000,
        '["a", 1' + "0" * 400 + ", 1, 2]",
        "\x85",
        "{}",
        "7",
    ]
    (tmp_path / "run.jsonl").write_bytes("\n".join([*odd, whole, '["lo']).encode() + b"\xff")
    journal = Journal(tmp_path / "run")
    journal.post({"do": "tags", "what": "tags", "tags": {}})
    journal.secure()  # a half line is no part of the next one
    assert [type(record) for record in read_records(tmp_path / "run")] == [Point, dict]
    store = Store()
    assert sender_to(store, tmp_path).deliver()
    assert store.points == [("loss", 3.5, 7)]


def test_what_version_0_1_left_is_sent_once(tmp_path):
    """Metrics, a list of messages with copies of files, and the plan of a run that began while MLflow was away."""
    copy = tmp_path / "run/1790000000000000000-1/note.txt"
    copy.parent.mkdir(parents=True)
    copy.write_text("kept")
    plan = {"experiment": "mine", "run_name": "old", "tags": {"git_dirty": "false"}, "start_time": 1790000000000}
    (tmp_path / "run.run.json").write_text(json.dumps(plan, indent=2))
    lines = [["loss", 3.5, 1790000000000, 7, ""], ["loss", 3.25, 1790000001000, 8, "step"]]
    lines += [["steps", 8.0, 1790000002000, 0, "last"], ["system/cpu", 0.5, 1790000003000, 0, "next"]]
    (tmp_path / "run.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    messages = [{"do": "running", "what": "that it runs"}, {"do": "tags", "tags": {"a": "1"}, "what": "tags"}]
    messages += [{"do": "file", "path": str(copy), "artifact_path": None, "kept": True, "what": "note.txt"}]
    messages += [{"do": "status", "status": "KILLED", "end_time": 1790000004000, "what": "the status"}]
    (tmp_path / "run/messages.json").write_text(json.dumps(messages))
    store, plans = Store(), []
    store.open = lambda plan: plans.append(plan) or (store, "id")
    store.last_steps = lambda: {"system/cpu": 4}
    store.update_run = lambda _, status: store.done.append(status)
    store.log_artifact = lambda _, path, __: store.done.append(Path(path).read_text())
    store.set_terminated = lambda _, status, end_time: store.done.append(status)
    assert sender_to(store, tmp_path).deliver()
    assert plan.items() <= plans[0].items()
    assert store.points == [("loss", 3.5, 7), ("loss", 3.25, 8), ("steps", 8.0, 0), ("system/cpu", 0.5, 5)]
    assert store.done == ["RUNNING", "a", "kept", "KILLED"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["[" * 100_000, "[1, 2]", "\ufeff{}", "", '{"a": '])
def test_damaged_older_messages_and_notes_of_restored_runs_are_as_none(tmp_path, monkeypatch, content):
    from gpt2ops.tracking.restored_runs import restored_runs

    monkeypatch.setenv("GPT2_PROJECT_ROOT", str(tmp_path))
    for name in ("mlruns/restored_runs.json", "run/messages.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(content)
    assert restored_runs() == {}
    assert read_records(tmp_path / "run") == []


def test_a_full_disk_is_said_once_and_the_store_still_gets_everything(tmp_path, capsys):
    (tmp_path / "run.jsonl").mkdir()  # a file that cannot be written
    store = Store()
    sender = sender_to(store, tmp_path)
    for step in range(3):
        sender._journal.add({"loss": 1.0}, step)
        sender._journal.secure()
    (tmp_path / "run.jsonl").rmdir()
    assert sender.deliver()
    assert len(store.points) == 3
    assert capsys.readouterr().out.count("run.jsonl cannot be written") == 1


def test_rows_of_an_unknown_store_share_the_next_step(tmp_path):
    journal = Journal(tmp_path / "run")
    journal.add({"system/cpu": 1.0, "system/disk": 2.0}, NEXT, 5)
    journal.resolve({"system/cpu": 3})
    assert journal.waiting() == [Point("system/cpu", 1.0, 5, 4), Point("system/disk", 2.0, 5, 4)]
