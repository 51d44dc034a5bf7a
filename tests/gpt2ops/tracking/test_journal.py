"""The buffer between a training and its store: what waits on the disk, and what a store never took."""

import time

import pytest

from gpt2ops.tracking.journal import MetricBuffer, Point
from tests.support.waiting import wait_until


class Store:
    """A sink that can be out of order."""

    def __init__(self):
        self.points: list[Point] = []
        self.works = True

    def write(self, points):
        if not self.works:
            raise ConnectionError("http://me:secret@host is down")
        assert len(points) <= 1000
        self.points += points


def buffer_to(store, tmp_path, warnings=None, **options):
    warn = (warnings if warnings is not None else []).append
    return MetricBuffer(store.write, tmp_path / "spool.jsonl", warn=warn, **options)


def test_metrics_reach_the_store_while_training_goes_on(tmp_path):
    store = Store()
    buffer = buffer_to(store, tmp_path, interval_seconds=0.02)
    buffer.add({"train_loss": 1.0}, step=1)
    wait_until(lambda: store.points)
    assert [(point.key, point.step) for point in store.points] == [("train_loss", 1)]
    buffer.close()


def test_handing_over_a_row_is_cheap_and_none_of_many_is_lost(tmp_path):
    store = Store()
    buffer = buffer_to(store, tmp_path)
    row = {f"metric_{i}": float(i) for i in range(8)}
    started = time.thread_time()  # of this thread alone: a busy machine must not fail the test
    for step in range(1000):
        buffer.add(row, step=step)
    cost = (time.thread_time() - started) / 1000
    buffer.close()
    assert cost < 50e-6
    assert len(store.points) == 8000
    assert len(set(store.points)) == 8000


def test_a_failing_store_loses_nothing_and_warns_once(tmp_path):
    store, warnings = Store(), []
    buffer = buffer_to(store, tmp_path, warnings)
    store.works = False
    for step in range(3):
        buffer.add({"train_loss": float(step)}, step=step)
        assert buffer.flush() is False
    assert len(warnings) == 1
    assert "training goes on" in warnings[0]
    assert "secret" not in warnings[0]
    store.works = True
    assert buffer.close() is True
    assert [point.step for point in store.points] == [0, 1, 2]
    assert not (tmp_path / "spool.jsonl").exists()


def test_what_the_store_never_took_is_sent_by_the_next_stage(tmp_path):
    store = Store()
    store.works = False
    killed = buffer_to(store, tmp_path)
    killed.add({"train_loss": 1.0}, step=1)
    killed.close()
    store.works = True
    buffer_to(store, tmp_path).close()
    assert [(point.key, point.step) for point in store.points] == [("train_loss", 1)]


def test_lines_of_a_spool_that_are_no_points_are_passed_by(tmp_path):
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
    (tmp_path / "spool.jsonl").write_bytes("\n".join([*odd, whole, '["lo']).encode() + b"\xff")
    sent = []
    buffer = MetricBuffer(sent.extend, tmp_path / "spool.jsonl")
    assert buffer.close()
    assert [(point.key, point.value, point.step) for point in sent] == [("loss", 3.5, 7)]


@pytest.mark.parametrize("content", ["[" * 100_000, "[1, 2]", "\ufeff{}", "", '{"a": '])
def test_damaged_notes_of_what_waits_and_of_restored_runs_are_as_none(tmp_path, monkeypatch, content):
    from gpt2ops.tracking.outbox import read_messages
    from gpt2ops.tracking.store import restored_runs

    monkeypatch.setenv("GPT2_PROJECT_ROOT", str(tmp_path))
    (tmp_path / "mlruns").mkdir()
    for name in ("mlruns/restored_runs.json", "messages.json"):
        (tmp_path / name).write_text(content)
    assert restored_runs() == {}
    assert read_messages(tmp_path) == []
