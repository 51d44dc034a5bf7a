"""Prefect's database file: its tables are made, and after an upgrade changed, by one process."""

import subprocess
import sys
from pathlib import Path

import prefect
from prefect.settings import get_current_settings

from gpt2core.errors import UserError


def prepare_database() -> None:
    """Before a server starts in this process: two that start at once would both make the tables, and one of them fail.

    Does nothing where this version of Prefect has done it before, or where the database is a server's.
    Raises UserError where it cannot be made.
    """
    from filelock import FileLock

    settings = get_current_settings()
    url = settings.server.database.connection_url
    if url is not None and not url.get_secret_value().startswith("sqlite"):
        return
    home = Path(settings.home)
    done = home / f".gpt2-database-{prefect.__version__}"
    if done.exists():
        return
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / ".gpt2-database.lock"):
        if done.exists():
            return
        command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            lines = (made.stderr or made.stdout).strip().splitlines() or ["it says nothing"]
            raise UserError(f"Prefect cannot make its database in {home}: {lines[-1]}")
        done.touch()
