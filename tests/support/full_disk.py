"""A disk that fills up during a training, and gets room again."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.training import Heard


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MiB that really fills up."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be mounted here (it takes root on Linux)")
    yield disk
    # Lazily: what has cached a connection to a database there lives on.
    subprocess.run(["umount", "-l", str(disk)], check=True)


class Filler(Heard):
    """Fills the disk after some steps and frees it after others."""

    def __init__(self, disk: Path, fill: int, free: int | None) -> None:
        super().__init__()
        self.ballast, self.fill, self.free = disk / "ballast", fill, free
        self.left: list[str] = []

    def on_step(self, trainer, train_loss) -> None:
        super().on_step(trainer, train_loss)
        if trainer.step in (self.fill, self.free):
            trainer.writer.poll(leave=0)  # saves in the background must meet the disk as it was at their step
        if trainer.step == self.fill:
            self.fill_up()
        if trainer.step == self.free:
            self.left = [path.name for path in trainer.checkpoints.rglob("*.partial")]
            self.ballast.unlink()

    def fill_up(self) -> None:
        with self.ballast.open("wb", buffering=0) as handle:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while True:
                        handle.write(bytes(size))
                except OSError:
                    continue
