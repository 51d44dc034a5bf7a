"""Lineage of a version: by real runs and versions in a real store, and through a real second training."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from gpt2core.errors import UserError
from gpt2core.storage.files import sha256_file
from gpt2ops.pipeline.run_origin import INITIAL_WEIGHTS_TAG
from gpt2ops.registry.lineage import lineage
from gpt2ops.reporting.lineage import as_page, as_text
from gpt2ops.store.client import connect, experiment_id
from tests.support.small_project import TINY, new_project


def trained(name: str, weights: str, start: str | None = None, init: str = "models:/gpt2@champion") -> tuple[str, str]:
    """A run with a version of `weights`; returns the run's id and the version."""
    client = connect()
    tags = {"data_sha256": "ab" * 32, "git_commit": "c0ffee" * 6, "git_dirty": "true"}
    run = client.create_run(
        experiment_id(client, "gpt2"), run_name=name, tags=tags | ({INITIAL_WEIGHTS_TAG: start} if start else {})
    )
    client.log_param(run.info.run_id, "model.init", init if start else "scratch")
    client.log_param(run.info.run_id, "model.preset", "small")
    if not client.search_registered_models("name = 'gpt2'"):
        client.create_registered_model("gpt2")
    version = client.create_model_version(
        "gpt2", f"{Path.cwd()}/model", run_id=run.info.run_id, tags={"weights_sha256": weights}
    )
    return str(run.info.run_id), str(version.version)


def test_a_version_names_its_ancestors_and_what_was_made_from_it(project: Path) -> None:
    first, one = trained("from nothing", "w1")
    second, two = trained("then further", "w2", "w1")
    third, three = trained("<b>and</b> further", "w3", "w2", init="my folder")
    fourth, _ = trained("another", "w4", "w1")
    connect().set_registered_model_alias("gpt2", "champion", two)
    found = lineage("gpt2@champion")
    assert (found["version"]["version"], found["run"]["run_id"]) == (two, second)
    parent = found["starts_from"]["lineage"]
    assert (parent["version"]["version"], parent["run"]["run_id"]) == (one, first)
    assert parent["starts_from"]["kind"] == "new weights"
    (child,) = found["made_from_it"]
    assert (child["run"]["run_id"], [entry["version"] for entry in child["versions"]]) == (third, [three])
    assert {node["run"]["run_id"] for node in lineage("models:/gpt2/1")["made_from_it"]} == {second, fourth}

    text = as_text(found)
    assert "git commit c0ffeec0ff, with changes" in text
    names = re.findall("then further|from nothing|made from it|<b>and</b>", text)
    assert names == ["then further", "from nothing", "made from it", "<b>and</b>"]
    page = as_page(found)
    assert re.findall(r"<h3>Run (.*?)</h3>", page) == ["from nothing", "then further", "&lt;b&gt;and&lt;/b&gt; further"]


def test_weights_that_a_run_left_as_they_were_end_the_walk(project: Path) -> None:
    trained("no step", "w1", "w1")
    found = lineage("gpt2/1")
    assert found["starts_from"]["kind"] == "weights"
    (same,) = found["made_from_it"]
    assert same["made_from_it"] == []


def test_a_version_without_a_run_and_one_that_is_not_there(project: Path) -> None:
    run_id, _ = trained("removed", "w1")
    connect().delete_run(run_id)
    found = lineage("gpt2/1")
    assert (found["run"], found["starts_from"]) == (None, None)
    assert "not in the store any more" in as_text(found)
    assert "not in the store any more" in as_page(found)
    for uri in ("gpt2@champion", "gpt2/7", "other/1"):
        with pytest.raises(UserError, match="`gpt2 models list` shows what is"):
            lineage(uri)
    with pytest.raises(UserError, match="must be models:/NAME@ALIAS"):
        lineage("gpt2")


@pytest.mark.slow
def test_a_second_training_from_a_folder_is_linked_to_the_version_with_its_weights(tmp_path: Path) -> None:
    root = tmp_path / "project"
    project = new_project(root, TINY, git=True)
    project.dvc("repro", "register")
    shutil.copytree(root / "models/best", root / "start")
    start = sha256_file(root / "start/model.safetensors")
    model: dict[str, Any] = dict.fromkeys(TINY["model"])
    project.set_params({**TINY, "model": {**model, "init": "start"}, "register": {"gate": {"min_improvement": 0.0}}})
    project.dvc("repro", "register")
    command = ["-c", "from gpt2ops.cli.main import main; main()", "models", "lineage", "gpt2/2"]
    found = json.loads(project.run("python", *command, "--json").stdout)
    assert found["starts_from"]["lineage"]["version"]["weights_sha256"] == start
    assert found["starts_from"]["lineage"]["version"]["version"] == "1"
    assert [other["name"] for other in found["same_weights"]] == ["gpt2-text"]
    assert project.run("python", *command, "--html", "page.html").stdout == "the page is page.html\n"
    assert "gpt2 version 2" in (root / "page.html").read_text()
