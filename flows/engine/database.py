"""Creates and migrates Prefect's database file in one process at a time."""

import subprocess
import sys
from pathlib import Path

import prefect
from prefect.settings import get_current_settings

from gpt2core.errors import UserError


def prepare_database() -> None:
    """Call it before a server starts in this process: of two servers that both create the tables, one fails.

    Does nothing where this version of Prefect has migrated the database before, or where it is on a database server.
    Raises UserError where the migration fails.
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
            lines = (made.stderr or made.stdout).strip().splitlines() or ["no message"]
            raise UserError(f"Prefect cannot create its database in {home}: {lines[-1]}")
        done.touch()
