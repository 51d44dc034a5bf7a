"""The login of the Prefect server that `flows.serve` starts.

Who knows it can run any command as this user. It is random, and stands in the project's `.env`: only this user can read
that, and every `prefect` command in the project's folder does.
"""

import os
import secrets
from pathlib import Path

import dotenv

from gpt2core.errors import UserError

VARIABLE = "PREFECT_API_AUTH_STRING"
ENV_FILE = ".env"


def auth_string() -> str | None:
    """`user:password` of Prefect's API, set for the client or only for the server; None where there is none."""
    from prefect.settings import get_current_settings

    for name in (VARIABLE, "PREFECT_SERVER_API_AUTH_STRING"):
        if value := os.environ.get(name):
            return value
    settings = get_current_settings()
    found = settings.api.auth_string or settings.server.api.auth_string
    return found.get_secret_value() if found else None


def place_of(login: str, root: Path) -> str:
    """Where the user finds the login: the project's `.env`, or the variable that they have set."""
    file = root / ENV_FILE
    kept = file.is_file() and dotenv.dotenv_values(file).get(VARIABLE) == login
    return f"{VARIABLE} in {file}" if kept else f"your {VARIABLE}"


def make_login(root: Path) -> str:
    """The login in the `.env` of `root`, which gets a random one where it has none.

    The rest of the file is kept; it becomes readable by this user only. Raises UserError where it cannot be written.
    """
    file = root / ENV_FILE
    try:
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
        file.chmod(0o600)  # before a secret is in it
        if known := dotenv.dotenv_values(file).get(VARIABLE):
            return known
        login = f"gpt2:{secrets.token_urlsafe(24)}"
        dotenv.set_key(file, VARIABLE, login)
        file.chmod(0o600)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise UserError(
            f"the login of Prefect's server cannot be kept in {file} ({reason}); make it a file that you can write, or "
            f"set {VARIABLE} to user:password."
        ) from None
    return login
