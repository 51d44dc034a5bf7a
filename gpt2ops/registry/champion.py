"""The champion of a registered model: an alias, with its history in a tag of the model."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gpt2ops.process.console import say
from gpt2ops.store.address import store_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient

ALIAS = "champion"
HISTORY_TAG = "champion_history"  # JSON: a list of {version, at, change}, oldest first
_MAX_CHANGES = 100  # in the history


@contextmanager
def registry_lock() -> Iterator[None]:
    """Makes the comparison with the champion and its replacement one step for all runs that use the same store.

    On a tracking server it excludes only the runs of the same user on the same machine.
    """
    from filelock import FileLock, Timeout

    file = store_lock("register")
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        say("waiting for another run, which is being compared with the champion ...")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def make_champion(client: "MlflowClient", name: str, version: str, *, rolled_back: bool = False) -> None:
    """Set the alias and extend the history; does nothing if `version` is the champion already."""
    model = client.get_registered_model(name)
    current = str(model.aliases.get(ALIAS, ""))
    if current == version:
        return
    history = read_history(model.tags)
    if current and champions(history)[-1:] != [current]:  # set by another tool, or before there was a history
        history.append({"version": current, "at": None, "change": "promoted"})
    change = "rolled back" if rolled_back else "promoted"
    history.append({"version": version, "at": datetime.now(UTC).isoformat(timespec="seconds"), "change": change})
    client.set_registered_model_alias(name, ALIAS, version)
    client.set_registered_model_tag(name, HISTORY_TAG, json.dumps(history[-_MAX_CHANGES:]))


def read_history(tags: dict[str, str]) -> list[dict[str, Any]]:
    """The changes in a registered model's tags, oldest first; empty if the tag is damaged."""
    try:
        return [dict(change) for change in json.loads(tags.get(HISTORY_TAG, "[]"))]
    except (ValueError, TypeError):  # edited by hand
        return []


def champions(history: list[dict[str, Any]]) -> list[str]:
    """Versions in the order in which they became champion, without those rolled back; the last is the champion."""
    versions: list[str] = []
    for change in history:
        version = str(change.get("version"))
        if change.get("change") == "rolled back":
            while versions and versions[-1] != version:
                versions.pop()
        if versions[-1:] != [version]:
            versions.append(version)
    return versions
