"""Several seeds in one run of the pipeline: which one is kept, and what the report says of all."""

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest

from gpt2core.storage.files import read_json, sha256_file
from tests.support.small_project import TINY, Project, new_project

pytestmark = pytest.mark.slow
SEEDS = {**TINY, "run": {"threads": 1, "seed": 7, "seeds": 3}}
WEIGHTS = "models/best/model.safetensors"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = new_project(tmp_path_factory.mktemp("seeds") / "project", SEEDS, git=True)
    project.dvc("repro")
    return project


def runs_of(project: Project) -> list[Any]:
    code = (
        "import json; from gpt2ops.store.client import connect, experiment_id\n"
        "client = connect(); runs = client.search_runs([experiment_id(client, 'gpt2')])\n"
        "print(json.dumps([[run.info.run_id, run.info.run_name, run.info.status, run.data.params['run.seed'], "
        "run.data.tags.get('median_of_seeds'), run.data.metrics] for run in runs]))"
    )
    return list(json.loads(project.run("python", "-c", code).stdout))


def test_the_median_goes_on_and_the_report_shows_the_spread(project: Project) -> None:
    train, record = project.report("metrics/train.json"), read_json(project.root / "models/run.json")
    seeds = train["seeds"]
    scores = {int(seed): run["best_val_loss"] for seed, run in seeds["runs"].items()}
    assert sorted(scores) == [7, 8, 9]
    assert scores[seeds["kept"]] == statistics.median(scores.values()) == train["best_val_loss"]
    assert (seeds["mean"], seeds["stdev"]) == (statistics.fmean(scores.values()), statistics.stdev(scores.values()))

    found = {run_id: rest for run_id, *rest in runs_of(project)}
    assert {run["run_id"] for run in seeds["runs"].values()} == found.keys()
    assert {status for _, status, *_ in found.values()} == {"FINISHED"}
    assert sorted(seed for _, _, seed, *_ in found.values()) == ["7", "8", "9"]
    name, _, seed, mark, metrics = found[record["run_id"]]
    assert (int(seed), mark) == (seeds["kept"], "7, 8, 9")
    assert name.endswith(f"-seed{seed}")
    assert metrics["seeds/stdev"] == seeds["stdev"]
    assert metrics["evaluate/test_perplexity"] == project.report("metrics/evaluate.json")["test"]["perplexity"]
    assert [rest for run_id, rest in found.items() if run_id != record["run_id"] and rest[3]] == []

    page = (project.root / "reports/report.html").read_text()
    assert "The same settings with other seeds" in page
    assert all(f"{score:.4f}" in page for score in (*scores.values(), seeds["stdev"]))


def test_each_seed_trains_as_if_alone_and_none_twice_until_dvc_has_recorded_them(
    project: Project, tmp_path: Path
) -> None:
    kept = read_json(project.root / "models/run.json")["seed"]
    alone = tmp_path / "alone"
    single = new_project(alone, {**TINY, "run": {"threads": 1, "seed": kept}})
    shutil.copytree(project.root / "data/tokens", alone / "data/tokens")
    single.run("python", "-m", "tasks.finetune")
    assert sha256_file(alone / WEIGHTS) == sha256_file(project.root / WEIGHTS)

    single.set_params(SEEDS)
    finished = "this run is finished, but DVC has not recorded its results"
    counts = [single.run("python", "-m", "tasks.finetune").stdout.count(finished) for _ in range(2)]
    assert counts == [1, len(project.report("metrics/train.json")["seeds"]["runs"])]
    assert sha256_file(alone / WEIGHTS) == sha256_file(project.root / WEIGHTS)
    assert len(runs_of(single)) == counts[-1]
