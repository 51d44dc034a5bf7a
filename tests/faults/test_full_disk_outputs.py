"""What a full disk leaves of a stage's outputs: all of them as they were, or all new; never some of each."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt2core.storage.files import write_together
from gpt2ops.pipeline import paths
from gpt2ops.process.failures import failure_line
from tasks import plot


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for 40 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be mounted here (it takes root on Linux)")
    (disk / "ballast").write_bytes(bytes(160_000))
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def left(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "ballast"}


def test_of_several_files_all_are_new_or_none(full_disk: Path) -> None:
    page, document = full_disk / "report.html", full_disk / "report.pdf"
    write_together({page: "old page", document: b"old document"})
    with pytest.raises(OSError, match="No space left") as error:
        write_together({page: "new page", document: bytes(100_000)})
    assert "no space left on the disk" in str(failure_line("report", error.value))
    assert left(full_disk) == {"report.html": b"old page", "report.pdf": b"old document"}
    write_together({page: "new page é", document: b"new document"})
    assert left(full_disk) == {"report.html": "new page é".encode(), "report.pdf": b"new document"}


def test_curves_that_the_disk_does_not_take_leave_the_earlier_ones(
    full_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(full_disk)
    paths.PLOTS.mkdir(parents=True)
    (paths.PLOTS / "loss.png").write_bytes(b"earlier")

    class Run:
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: Any) -> None: ...

    def draw(_history: Any, _metrics: Any, directory: Path) -> None:
        (directory / "loss.png").write_bytes(b"new")
        (directory / "learning_rate.png").write_bytes(bytes(100_000))

    monkeypatch.setattr(plot, "load_params", lambda: None)
    monkeypatch.setattr(plot, "read_rows", lambda *_: [])
    monkeypatch.setattr(plot, "read_report", lambda *_: {})
    monkeypatch.setattr(plot, "tracked_run", Run)
    monkeypatch.setattr(plot, "save_plots", draw)
    with pytest.raises(OSError, match="No space left"):
        plot.main()
    assert left(full_disk) == {"loss.png": b"earlier"}
