"""`gpt2 doctor` on healthy and on sick projects: one line for each thing, what to do, and never a traceback."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from gpt2ops.maintenance.doctor import machine as doctor_machine
from gpt2ops.store.client import connect, experiment_id
from tests.support.maintained import ROOT, Commands, copy_of, project_with_store

STORE = Path("mlruns/mlflow.db")


@pytest.fixture
def gpt2(monkeypatch, capsys) -> Commands:
    return Commands(monkeypatch, capsys)


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    return project_with_store(tmp_path_factory.mktemp("template"))


@pytest.fixture
def project(template, tmp_path, monkeypatch) -> Path:
    root = copy_of(template, tmp_path, monkeypatch)
    connect()  # points the store's paths here
    return root


def findings(gpt2: Commands, *flags: str) -> dict[str, list[tuple[str, str, str]]]:
    result = gpt2("doctor", "--json", *flags)
    assert "Traceback" not in result.err
    found: dict[str, list[tuple[str, str, str]]] = {}
    for line in result.json:
        found.setdefault(line["area"], []).append((line["state"], line["text"], line["remedy"]))
    assert result.code == any(state == "wrong" for lines in found.values() for state, _, _ in lines)
    return found


def states(lines: list[tuple[str, str, str]]) -> list[str]:
    return [state for state, _, _ in lines]


def test_a_healthy_project_has_a_line_for_each_thing_and_nothing_is_wrong(project, gpt2) -> None:
    before = {path: path.stat().st_mtime_ns for path in project.rglob("*") if path.is_file()}
    result = gpt2("doctor")
    assert result.code == 0
    assert "wrong" not in result.out
    areas = {line.split()[1] for line in result.out.splitlines() if line.startswith(("ok", "look"))}
    assert areas >= {
        "python", "packages", "device", "threads", "memory", "disk", "project", "params.yaml", "dvc", "outputs",
        "locks", "processes", "workspaces", "leftovers", "mlflow", "runs", "models", "metrics", "prefect",
    }  # fmt: skip
    after = {path: path.stat().st_mtime_ns for path in project.rglob("*") if path.is_file()}
    assert after == before


def test_doctor_neither_imports_mlflow_nor_writes_a_traceback_where_there_is_no_project_at_all(tmp_path) -> None:
    code = (
        "import sys; from gpt2ops.cli.main import main; sys.argv = ['gpt2', 'doctor']\n"
        "try: main()\nfinally: print('mlflow' in sys.modules)"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "PREFECT", "GPT2"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "False"
    assert "look   project      none in" in done.stdout
    assert "-> `gpt2 init FOLDER" in done.stdout
    assert not list(tmp_path.iterdir())


def damage_pages(root: Path) -> None:
    content = bytearray((root / STORE).read_bytes())
    content[4096 : 4096 * 40] = b"\xa5" * (4096 * 39)
    (root / STORE).write_bytes(content)


def older_pipeline(root: Path) -> None:
    file = root / "dvc.yaml"
    file.write_text(file.read_text().replace("-P -m gpt2ops.stages.", "-m tasks."))


SICK: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a store that is no database": (
        lambda root: (root / STORE).write_bytes(b"\0\xffnot sqlite" * 999), "mlflow", "cannot be read",
    ),
    "a store with damaged pages": (damage_pages, "mlflow", ""),
    "an empty store": (lambda root: (root / STORE).write_bytes(b""), "mlflow", "no such table"),
    "a folder in the store's place": (lambda root: ((root / STORE).unlink(), (root / STORE).mkdir()), "mlflow", ""),
    "params.yaml, no YAML": (lambda root: (root / "params.yaml").write_text("run: [1\n"), "params.yaml", "line"),
    "params.yaml of bytes": (lambda root: (root / "params.yaml").write_bytes(b"\xff\xfe\0"), "params.yaml", "byte 0"),
    "a wrong value": (lambda root: (root / "params.yaml").write_text("run: {seed: x}\n"), "params.yaml", "run.seed"),
    "params.yaml that is a folder": (
        lambda root: ((root / "params.yaml").unlink(), (root / "params.yaml").mkdir()), "params.yaml", "cannot be",
    ),
    "no params.yaml": (lambda root: (root / "params.yaml").unlink(), "params.yaml", "missing"),
    "no dvc.yaml": (lambda root: (root / "dvc.yaml").unlink(), "dvc.yaml", "missing"),
    "dvc.yaml of 0.1": (older_pipeline, "dvc.yaml", "version 0.1"),
    "dvc.yaml of bytes": (lambda root: (root / "dvc.yaml").write_bytes(b"\xff\0"), "dvc.yaml", "cannot be read"),
    "dvc.lock in a merge": (lambda root: (root / "dvc.lock").write_text("<<<<<<< HEAD\na: 1\n"), "dvc.lock", "cannot"),
    "no .dvc": (lambda root: shutil.rmtree(root / ".dvc"), "dvc", ".dvc is missing"),
    ".dvc/config of noise": (lambda root: (root / ".dvc/config").write_text("]["), "dvc", "cannot be read"),
    "a file in the cache's place": (lambda root: (root / ".dvc/cache").write_text(""), "dvc", "is not writable"),
    "DVC's lock file of noise": (
        lambda root: ((root / ".dvc/tmp").mkdir(), (root / ".dvc/tmp/rwlock").write_text("{")), "locks", "damaged",
    ),
    "a file in the place of mlruns": (
        lambda root: (shutil.rmtree(root / "mlruns"), (root / "mlruns").write_text("")), "mlflow", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SICK)
def test_on_a_sick_project_doctor_names_what_ails_it_and_goes_on(name, project, gpt2) -> None:
    make_sick, area, fragment = SICK[name]
    make_sick(project)
    found = findings(gpt2)
    wrong = [line for line in found[area] if line[0] == "wrong"]
    if name == "a file in the place of mlruns":  # there is simply no store then, until a run wants one
        wrong = found[area]
    assert any(fragment in text for _, text, _ in wrong)
    assert "prefect" in found  # the last check was reached


# Root writes anywhere, unless it gives up the right to.
UNPRIVILEGED = ["setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override"]
IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.mark.skipif(sys.platform == "win32" or (IS_ROOT and not shutil.which("setpriv")), reason="needs POSIX modes")
def test_in_a_folder_that_is_read_only_doctor_says_so_and_writes_nothing(template, tmp_path) -> None:
    root = tmp_path / "project"
    shutil.copytree(template, root)
    subprocess.run(["chmod", "-R", "a-w", str(root)], check=True)
    try:
        done = subprocess.run(
            [
                *(UNPRIVILEGED if IS_ROOT else []),
                sys.executable,
                "-c",
                "from gpt2ops.cli.main import main; main()",
                "doctor",
            ],
            cwd=root,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
        )
    finally:
        subprocess.run(["chmod", "-R", "u+w", str(root)], check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("wrong")]
    assert (done.returncode, done.stderr) == (1, "")
    # The store is read all the same: its paths are the template's, for the folder is a copy.
    assert [line.split()[1] for line in lines] == ["project", "dvc", "mlflow"]
    assert "-> gpt2 relocate" in done.stdout


def running(tags: dict[str, str]) -> str:
    client = connect()
    return str(client.create_run(experiment_id(client, "gpt2"), run_name="cut", tags=tags).info.run_id)


def test_a_run_that_nobody_works_on_is_named_and_mend_closes_it_as_killed(project, gpt2) -> None:
    run_id = running({"project_folder": "."})
    foreign = running({})  # of another tool: what it does is not known here
    (line,) = findings(gpt2)["runs"]
    assert line[0] == "look"
    assert run_id[:8] in line[1]
    assert "gpt2 doctor --mend" in line[2]
    closed, after = findings(gpt2, "--mend")["runs"]
    assert closed[1] == f"closed cut ({run_id[:8]}) as KILLED"
    assert after[0] == "ok"
    client = connect()
    assert client.get_run(run_id).info.status == "KILLED"
    assert client.get_run(foreign).info.status == "RUNNING"


def test_a_run_whose_stage_is_at_work_is_left_alone(project, gpt2) -> None:
    own = running({"project_folder": "."})
    flow = running({"prefect_flow_run_id": "1f"})
    (project / "workspaces/1f/logs").mkdir(parents=True)
    with FileLock(project / "logs/.stage.lock"), FileLock(project / "workspaces/1f/logs/.stage.lock"):
        (project / "logs/.stage.holder").write_text("the stage finetune (process 7)")
        found = findings(gpt2, "--mend")
        assert found["runs"] == [("ok", "in progress: 2", "")]
        assert found["locks"][0][1] == "the stage finetune (process 7) is writing in this folder"
    client = connect()
    assert {client.get_run(run).info.status for run in (own, flow)} == {"RUNNING"}


def test_a_lock_of_dvc_whose_number_another_program_has_now_is_wrong_but_not_that_of_a_dead_process(
    project, gpt2
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (project / ".dvc/tmp").mkdir()
    for pid, state in ((os.getpid(), "wrong"), (ended.pid, "ok")):
        holder = {"pid": pid, "cmd": "dvc repro"}
        (project / ".dvc/tmp/rwlock").write_text(json.dumps({"write": {"data/tokens": holder}, "read": {}}))
        assert states(findings(gpt2)["locks"]) == ["ok", state]


def test_paths_of_another_folder_lead_to_relocate(project, gpt2) -> None:
    with sqlite3.connect(project / STORE) as connection:
        connection.execute("UPDATE experiments SET artifact_location = 'file:///gone/mlruns/artifacts'")
    whole, moved = findings(gpt2)["mlflow"]
    assert whole[0] == "ok"
    assert moved == ("wrong", "1 paths in the store point to /gone: the folder was moved or copied", "gpt2 relocate")


def test_a_champion_without_its_files_is_wrong_and_another_version_is_worth_a_look(project, gpt2) -> None:
    client = connect()
    client.create_registered_model("gpt2")
    for _ in range(2):
        client.create_model_version("gpt2", (project / "mlruns/artifacts/nothing").as_uri())
    client.set_registered_model_alias("gpt2", "champion", "2")
    found = {text.split(" has no files")[0]: state for state, text, _ in findings(gpt2)["models"]}
    assert found == {"gpt2 version 1": "look", "gpt2 version 2 (champion)": "wrong"}


def test_servers_that_do_not_answer_are_named_without_their_passwords(project, gpt2, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("PREFECT_API_URL", "http://me:secret@127.0.0.1:9/api")
    (project / "mlruns/spool").mkdir(parents=True, exist_ok=True)
    (project / f"mlruns/spool/{'b' * 32}.run.json").write_text("{}")
    result = gpt2("doctor")
    assert "metrics, tags or files of the run bbbbbbbb wait in mlruns/spool for" in " ".join(result.out.split())
    assert result.code == 1
    assert "secret" not in result.out + result.err
    assert [line.split()[1] for line in result.out.splitlines() if line.startswith("wrong")] == ["mlflow", "prefect"]


def test_packages_that_are_missing_or_of_another_version_are_named(project, gpt2, monkeypatch) -> None:
    monkeypatch.setattr(
        doctor_machine, "requirement_lines", lambda: ["no-such-package==1.0", "numpy==0.1", "filelock>=3"]
    )
    missing, other = findings(gpt2)["packages"]
    assert (missing[0], "no-such" in missing[1]) == ("wrong", True)
    assert (other[0], "pinned ==0.1" in other[1], "filelock" in other[1]) == ("look", True, False)


def test_the_device_line_says_the_precision_and_what_of_the_cpu_decided_it(project, monkeypatch) -> None:
    monkeypatch.setattr("gpt2core.runtime.cpu_capabilities", lambda: {"avx512_bf16": True, "cpu_name": "AMD EPYC"})
    found = {finding.area: finding for finding in doctor_machine.device(project)}
    assert found["device"].text.endswith("precision bf16: an AMD CPU with AVX512-BF16")


def test_what_killed_writes_left_is_named_and_an_earlier_folder_is_offered_back(project, gpt2) -> None:
    for name in ("models/checkpoints/ab/damaged-step-00000004", "models/.best.old", "data/.tokens.partial"):
        (project / name).mkdir(parents=True)
    os.utime(project / "data/.tokens.partial", (0, 0))
    (project / "reports").mkdir()
    (project / f"reports/.a.json.{os.getpid()}.partial").touch()  # its writer lives
    earlier, cut = findings(gpt2)["leftovers"]
    assert earlier[2] == "mv models/.best.old models/best"
    assert "data/.tokens.partial" in cut[1]
    assert "damaged-step-00000004" in cut[1]
    assert "a.json" not in cut[1]


def test_stages_at_work_and_what_a_killed_server_left_behind_are_named_by_their_process(project, gpt2) -> None:
    make_sleeper = "import time; print(flush=True); time.sleep(60)"
    (project / "tasks").mkdir()
    (project / "tasks/napping.py").write_text(make_sleeper)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    stage = subprocess.Popen([sys.executable, "-m", "tasks.napping"], cwd=project, stdout=subprocess.PIPE)
    marked = {**os.environ, "GPT2_SERVED_BY": f"{ended.pid} {project}"}
    served = subprocess.Popen([sys.executable, "-c", make_sleeper], cwd="/", env=marked, stdout=subprocess.PIPE)
    try:
        stage.stdout.readline(), served.stdout.readline()
        at_work, left = findings(gpt2)["processes"]
        assert at_work == ("ok", f"the stage napping (process {stage.pid}) runs in {project}", "")
        assert left == ("look", f"a killed `make serve` left processes {served.pid}", f"kill {served.pid}")
    finally:
        for process in (stage, served):
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"read": {"a": {"pid": 1' + "0" * 400 + ', "cmd": "x"}}}', "[1]", "\x00"]
)
def test_a_list_of_locks_that_a_parser_stumbles_over_is_damaged(tmp_path, content: str) -> None:
    from gpt2ops.maintenance.doctor.processes import locks

    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    (tmp_path / ".dvc/tmp/rwlock").write_text(content)
    assert any("is damaged" in finding.text for finding in locks(tmp_path))
