"""Who is champion of a registered model, and who was before: an alias, and its history in a tag of the model."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gpt2ops.process.stage import say
from gpt2ops.tracking.store import store_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient

ALIAS = "champion"
HISTORY_TAG = "champion_history"  # JSON: a list of {version, at, change}, oldest first
_KEPT = 100  # changes that the history remembers


@contextmanager
def registry_lock() -> Iterator[None]:
    """Two runs that end together must not both take the place of the same champion, wherever their projects are.

    Of a server's store it keeps the runs of one machine and one user apart.
    """
    from filelock import FileLock, Timeout

    file = store_lock("register")
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        say("waiting for another run that is being held against the champion ...")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def make_champion(client: "MlflowClient", name: str, version: str, *, rolled_back: bool = False) -> None:
    """Give `version` the alias, and write it into the model's history; nothing happens where it is champion already."""
    model = client.get_registered_model(name)
    current = str(model.aliases.get(ALIAS, ""))
    if current == version:
        return
    history = read_history(model.tags)
    if current and champions(history)[-1:] != [current]:  # of a time, or a tool, that kept no history
        history.append({"version": current, "at": None, "change": "promoted"})
    change = "rolled back" if rolled_back else "promoted"
    history.append({"version": version, "at": datetime.now(UTC).isoformat(timespec="seconds"), "change": change})
    client.set_registered_model_alias(name, ALIAS, version)
    client.set_registered_model_tag(name, HISTORY_TAG, json.dumps(history[-_KEPT:]))


def read_history(tags: dict[str, str]) -> list[dict[str, Any]]:
    """The changes that a registered model's tags tell, oldest first."""
    try:
        return [dict(change) for change in json.loads(tags.get(HISTORY_TAG, "[]"))]
    except (ValueError, TypeError):  # somebody wrote into it by hand
        return []


def champions(history: list[dict[str, Any]]) -> list[str]:
    """Versions in the order in which they became champion, without what was rolled back; the last one is champion."""
    versions: list[str] = []
    for change in history:
        version = str(change.get("version"))
        if change.get("change") == "rolled back":
            while versions and versions[-1] != version:
                versions.pop()
        if versions[-1:] != [version]:
            versions.append(version)
    return versions
