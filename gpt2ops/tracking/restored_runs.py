"""The ids that this store gave to runs which this project knows by another id: `mlruns/restored_runs.json`."""

from pathlib import Path

from gpt2core.storage.files import read_json, write_json
from gpt2ops.pipeline.paths import mlruns


def restored_runs() -> dict[str, str]:
    """New id of each run that was created here for another id: of another store, or begun while the store was away."""
    try:
        found = read_json(_restored_runs_file())
    except (OSError, ValueError):  # where it is damaged, such a run is asked for by its own id
        return {}
    return {str(old): str(new) for old, new in found.items()} if isinstance(found, dict) else {}


def stored_run_id(run_id: str) -> str:
    """The id that this store gave a run which models/run.json knows by another one."""
    return restored_runs().get(run_id, run_id)


def remember_restored_run(old_run_id: str, run_id: str) -> None:
    from filelock import FileLock

    file = _restored_runs_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(".store.lock")):
        write_json(file, {**restored_runs(), old_run_id: run_id})


def _restored_runs_file() -> Path:
    return mlruns() / "restored_runs.json"
