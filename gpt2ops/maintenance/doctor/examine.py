"""All checks of `gpt2 doctor` in order. A check that fails is reported as a finding."""

from collections.abc import Iterator
from pathlib import Path

from gpt2core.errors import UserError
from gpt2ops.maintenance.doctor import machine, processes, project, store
from gpt2ops.maintenance.doctor.finding import WRONG, Check, Finding
from gpt2ops.store.errors import one_line


def examine(root: Path) -> Iterator[Finding]:
    """The findings of every check that applies to the folder `root`."""
    checks: list[tuple[str, Check]] = [
        ("python", machine.python),
        ("packages", machine.packages),
        ("device", lambda: machine.device(root)),
        ("memory", lambda: machine.memory(root)),
        ("disk", lambda: machine.disk(root)),
        ("project", lambda: project.project(root)),
    ]
    if project.has_project(root):
        checks += [
            ("params.yaml", lambda: project.params(root)),
            ("dvc", lambda: project.dvc(root)),
            ("outputs", lambda: project.outputs(root)),
            ("locks", lambda: processes.locks(root)),
            ("processes", lambda: processes.processes(root)),
            ("workspaces", lambda: processes.flow_runs(root)),
            ("leftovers", lambda: processes.half_written(root)),
        ]
    checks += [
        ("mlflow", lambda: store.store(root)),
        ("runs", lambda: store.runs(root)),
        ("models", lambda: store.models(root)),
        ("metrics", lambda: store.waiting_metrics(root)),
        ("prefect", lambda: project.prefect(root)),
    ]
    for area, check in checks:
        yield from safely(area, check)


def safely(area: str, check: Check) -> list[Finding]:
    """The findings of `check`; one that is WRONG where it raises."""
    try:
        return list(check())
    except UserError as error:
        return [Finding(WRONG, area, *_text_and_remedy(str(error).splitlines()[0]))]
    except Exception as error:  # a damaged project may raise anything
        return [
            Finding(WRONG, area, f"cannot be examined ({type(error).__name__}: {one_line(error)})", _remedy_of(error))
        ]


def _text_and_remedy(line: str) -> tuple[str, str]:
    """A UserError says what is wrong, a semicolon, and what to do."""
    text, _, remedy = line.rstrip(".").partition("; ")
    return text, remedy


def _remedy_of(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "make it readable for your user"
    return "repair or move that file" if isinstance(error, OSError) else ""
