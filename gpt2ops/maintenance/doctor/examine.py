"""What `gpt2 doctor` says: a line for each thing that a run depends on, whatever state the project is in."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt2core.errors import UserError
from gpt2ops.tracking.store import one_line

OK, LOOK, WRONG = "ok", "look", "wrong"


@dataclass(frozen=True)
class Finding:
    """One line; `remedy` says what to do about it."""

    state: str  # ok | look | wrong
    area: str
    text: str
    remedy: str = ""


Check = Callable[[], Iterable[Finding]]


def examine(root: Path) -> Iterator[Finding]:
    """All findings in the project at `root`, one after the other; a check that fails is a finding too."""
    from gpt2ops.maintenance.doctor import machine as doctor_machine
    from gpt2ops.maintenance.doctor import processes as doctor_processes
    from gpt2ops.maintenance.doctor import project as doctor_project
    from gpt2ops.maintenance.doctor import store as doctor_store

    project = doctor_project.has_project(root)
    checks: list[tuple[str, Check]] = [
        ("python", doctor_machine.python),
        ("packages", doctor_machine.packages),
        ("device", lambda: doctor_machine.device(root)),
        ("memory", lambda: doctor_machine.memory(root)),
        ("disk", lambda: doctor_machine.disk(root)),
        ("project", lambda: doctor_project.project(root)),
    ]
    if project:
        checks += [
            ("params.yaml", lambda: doctor_project.params(root)),
            ("dvc", lambda: doctor_project.dvc(root)),
            ("outputs", lambda: doctor_project.outputs(root)),
            ("locks", lambda: doctor_processes.locks(root)),
            ("processes", lambda: doctor_processes.processes(root)),
            ("workspaces", lambda: doctor_processes.flow_runs(root)),
            ("leftovers", lambda: doctor_processes.half_written(root)),
        ]
    checks += [
        ("mlflow", lambda: doctor_store.store(root)),
        ("runs", lambda: doctor_store.runs(root)),
        ("models", lambda: doctor_store.models(root)),
        ("metrics", lambda: doctor_store.waiting_metrics(root)),
        ("prefect", lambda: doctor_project.prefect(root)),
    ]
    for area, check in checks:
        yield from safely(area, check)


def safely(area: str, check: Check) -> list[Finding]:
    """What `check` finds; where it fails, that it did and why."""
    try:
        return list(check())
    except UserError as error:
        return [Finding(WRONG, area, *_text_and_remedy(str(error).splitlines()[0]))]
    except Exception as error:  # a sick project breaks things in ways that nobody has thought of
        return [
            Finding(WRONG, area, f"cannot be looked at ({type(error).__name__}: {one_line(error)})", _remedy_of(error))
        ]


def _text_and_remedy(line: str) -> tuple[str, str]:
    """A line of this project says what is wrong, a semicolon, and what to do."""
    text, _, remedy = line.rstrip(".").partition("; ")
    return text, remedy


def _remedy_of(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "make it readable for you"
    return "mend or move what it names" if isinstance(error, OSError) else ""
