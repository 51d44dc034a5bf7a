"""The flow through a real server, pool and worker, as `python -m flows.serve` starts them, in a copy of the project."""

import json
import re
import shutil
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dotenv
import httpx
import psutil
import pytest

from flows.engine.login import ENV_FILE, VARIABLE
from tests.support.flow_server import ENDLESS, TINY, Served, Server, mlflow_runs
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    served = Served(tmp_path_factory.mktemp("flow-server"))
    try:
        server = served.start()
        assert f"export PREFECT_API_URL={server.api}" in served.said()
        yield server
    finally:
        code = served.stop()
        shutil.rmtree(served.root / "workspaces", ignore_errors=True)
    assert code == 0, served.said()
    for port in served.ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, f"port {port} still answers"


def test_a_failing_stage_turns_the_run_red_and_says_why(server: Server) -> None:
    flow_run = server.submit({**TINY, "data": {"source": "no/such/file.txt"}})
    server.wait_for(flow_run, "FAILED")
    message = server.state(flow_run)["message"]
    assert message.startswith("stage download failed: download: error: ")
    assert "no/such/file.txt" in message
    assert (server.root / "workspaces" / flow_run / "params.yaml").exists()


@pytest.fixture(scope="module")
def completed(server: Server) -> str:
    """The id of a flow run that went through all stages."""
    triggered = server.deployment_run(**TINY)
    assert triggered.returncode == 0, triggered.stdout + triggered.stderr
    flow_run = triggered.stdout.split("UUID: ")[1].split()[0]
    server.wait_for(flow_run, "COMPLETED")
    return flow_run


def test_a_run_goes_through_all_stages_and_shows_its_progress(server: Server, completed: str) -> None:
    (run,) = mlflow_runs(server.root, completed)
    assert "cached_from" not in run.data.tags
    assert server.artifact(completed, "fine-tune-progress")["data"] == 100.0
    training = server.artifact(completed, "training-progress")
    assert training["data"] == 100.0
    assert re.fullmatch(r"finished: step 4 of at most 4, loss 1\d\.\d+, [\d,]+ tokens/s", training["description"])
    page = server.artifact(completed, "fine-tune-summary")["data"]
    assert "data:image/png;base64," in page
    assert "| registered model | gpt2 version 1, champion |" in page
    assert not (server.root / "workspaces" / completed).exists()
    assert "dvc push" not in server.log(completed)


def test_an_unknown_setting_is_refused_before_a_run_starts(server: Server) -> None:
    refused = server.deployment_run(train={"learning_rat": 1e-4})
    assert refused.returncode == 1
    assert "'learning_rat' is not one of" in " ".join(refused.stdout.split())


@pytest.mark.slow
def test_runs_queue_are_cancelled_with_a_checkpoint_and_restored_from_the_cache(server: Server, completed: str) -> None:
    endless = server.submit(ENDLESS)
    again = server.submit(TINY)
    # One place in the pool: the last one waits while the endless one trains.
    wait_until(lambda: re.search(r"step \d+/1000000", server.log(endless)) is not None, interval=0.3)
    assert server.state(again)["type"] == "SCHEDULED"
    wait_until(lambda: bool(server.artifact(endless, "training-progress")), interval=0.3)
    live = server.artifact(endless, "training-progress")
    assert live["data"] < 100
    assert "of at most 1,000,000" in live["description"]
    assert "finetune: step " in server.artifact(endless, "fine-tune-progress")["description"]
    (training_run,) = mlflow_runs(server.root, endless)
    assert f"/runs/{training_run.info.run_id})" in server.artifact(endless, "mlflow-run")["data"]
    checkpoints = server.root / "workspaces" / endless / "models/checkpoints"
    assert {path.name for path in checkpoints.rglob("step-*")} == {"step-00000000"}
    server.post(f"flow_runs/{endless}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    server.wait_for(endless, "CANCELLED")
    assert max(path.parent.name for path in checkpoints.rglob("step-*/model.safetensors")) > "step-00000000"
    assert f"resume with `prefect flow-run retry {endless}`" in server.log(endless)

    # The same inputs as the completed one: DVC restores the model, and the run says from which one.
    server.wait_for(again, "COMPLETED")
    assert "Running stage 'finetune'" not in server.log(again)
    (run,), (linked,) = mlflow_runs(server.root, completed), mlflow_runs(server.root, again)
    assert linked.data.tags["cached_from"] == run.info.run_id
    assert server.artifact(again, "fine-tune-summary")
    assert not server.artifact(endless, "fine-tune-summary")


def test_the_shared_checkout_is_not_touched(server: Server) -> None:
    for name, content in server.given.items():
        assert (server.root / name).read_bytes() == content
    assert not (server.root / "models").exists()


@pytest.mark.slow
def test_a_start_after_a_kill_clears_up_and_goes_on_with_the_queue(tmp_path: Path) -> None:
    served = Served(tmp_path)
    try:
        server = served.start()
        lost, then = server.submit(ENDLESS), server.submit(ENDLESS)
        wait_until(lambda: "step 1" in server.log(lost), interval=0.3)
        everything = [psutil.Process(served.process.pid), *served.family()]
        assert not any("huey" in " ".join(process.cmdline()) for process in everything)
        for process in everything:
            process.kill()
        served.process.wait()
        psutil.wait_procs(everything, 10)  # the dying still hold their ports

        # Prefect's server still says that the killed worker is online.
        server = served.start()
        assert "1 flow run(s) were queued before this start and start now" in served.said()
        assert server.state(lost)["type"] == "CRASHED"
        wait_until(lambda: re.search(r"step \d+/1000000", server.log(then)) is not None, interval=0.3)

        # Now the rest of it goes on without the one that would stop it.
        left = served.family()
        served.process.kill()
        served.process.wait()
        server = served.start()
        assert "that was killed" in served.said()
        assert not [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        assert server.state(then)["type"] == "CANCELLED"
        saved = (served.root / "workspaces" / then / "models/checkpoints").rglob("step-*/model.safetensors")
        assert max(path.parent.name for path in saved) > "step-00000000"
    finally:
        code = served.stop()
    assert code == 0


# What any page may send without asking first: "text/plain" needs no preflight.
SEND = """async ([url, body, mode]) => {
  try {
    const answer = await fetch(url, {method: "POST", mode, headers: {"Content-Type": "text/plain"}, body});
    return answer.type === "opaque" ? "opaque" : answer.status + " " + await answer.text();
  } catch (error) { return "refused"; }
}"""


class _Empty(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def foreign_page(browser: Any) -> Iterator[Any]:
    """A page of another site, in a real browser."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Empty) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        page.goto(f"http://localhost:{server.server_port}/")
        yield page
        page.close()
        server.shutdown()


def send(page: Any, url: str, body: str, mode: str = "cors") -> str:
    """What the page's script reads: status and text, `opaque`, or `refused` by the browser."""
    answer: str = page.evaluate(SEND, [url, body, mode])
    return answer


def test_a_page_of_another_site_can_neither_read_nor_start_anything(server: Server, browser: Any) -> None:
    with foreign_page(browser) as page:
        assert send(page, f"{server.api}/flow_runs/filter", "{}") == "refused"
        deployment = server.request("GET", "deployments/name/fine-tune/local")["id"]
        start = json.dumps({"name": "from-a-page", "parameters": TINY})
        send(page, f"{server.api}/deployments/{deployment}/create_flow_run", start, mode="no-cors")
    assert server.post("flow_runs/filter", {"flow_runs": {"name": {"any_": ["from-a-page"]}}}) == []


FOREIGN = [("Host", "rebound.example:4200"), ("Origin", "http://evil.example"), ("Origin", "null")]


@pytest.mark.parametrize(("header", "value"), [*FOREIGN, ("Origin", "http://localhost:1")])
def test_who_knows_the_login_is_refused_from_another_site_all_the_same(server: Server, header: str, value: str) -> None:
    login = tuple(dotenv.dotenv_values(server.root / ENV_FILE)[VARIABLE].split(":"))
    body: dict[str, Any] = {"json": {}, "auth": login}
    assert httpx.post(f"{server.api}/flow_runs/count", **body).status_code == 200
    assert httpx.post(f"{server.api}/flow_runs/count", headers={header: value}, **body).status_code == 403


@pytest.mark.parametrize(("header", "value"), FOREIGN)
def test_mlflows_server_refuses_another_site(server: Server, header: str, value: str) -> None:
    address = f"http://127.0.0.1:{server.mlflow_port}/ajax-api/2.0/mlflow/experiments/create"
    assert httpx.post(address, json={"name": "foreign"}, headers={header: value}).status_code == 403


def test_without_the_login_nothing_is_answered(server: Server) -> None:
    assert httpx.post(f"{server.api}/flow_runs/filter", json={}).status_code == 401
    assert stat.S_IMODE((server.root / ENV_FILE).stat().st_mode) == 0o600


def test_a_flow_run_cannot_bring_a_command_of_its_own(server: Server) -> None:
    deployment = server.request("GET", "deployments/name/fine-tune/local")["id"]
    touched = server.root / "touched"
    run = {"parameters": TINY, "job_variables": {"command": f"touch {touched}"}}
    with pytest.raises(OSError, match="422|409"):
        server.post(f"deployments/{deployment}/create_flow_run", run)
    assert not touched.exists()


@pytest.mark.pages
def test_prefects_page_asks_for_the_login_and_then_shows_the_runs(server: Server, browser: Any, completed: str) -> None:
    page = browser.new_page()
    page.goto(server.api.removesuffix("/api").replace("127.0.0.1", "localhost"))
    page.get_by_placeholder("admin:pass").fill(str(dotenv.dotenv_values(server.root / ENV_FILE)[VARIABLE]))
    page.keyboard.press("Enter")
    page.get_by_text("Flow Runs").first.wait_for()
    page.goto(page.url.split("/v2/")[0] + f"/v2/runs/flow-run/{completed}")
    page.get_by_text("Completed").first.wait_for()
    assert completed in page.url
    assert not page.get_by_placeholder("admin:pass").is_visible()
