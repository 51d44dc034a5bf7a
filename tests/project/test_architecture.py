"""Dependencies point one way, and the files agree with each other about names."""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from gpt2core.training.config import TrainerConfig, TrainSettings
from gpt2ops.params.recipes import CHOSEN
from gpt2ops.params.schema import Params, load_params, parse_params
from gpt2ops.pipeline import paths

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "gpt2core": {"gpt2ops", "tasks", "flows", "mlflow", "prefect", "dvc", "pandas"},
    "gpt2ops": {"tasks", "flows", "prefect"},
    "tasks": {"tasks", "flows", "prefect"},  # the wheel has the stages under another name (gpt2ops.stages)
    "flows": {"tasks"},
}


def imported_packages(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(path.parent.name if node.level else str(node.module).split(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_dependencies_point_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    upward = {str(path): names for path in files if (names := imported_packages(path) & FORBIDDEN[package])}
    assert upward == {}


def _keys(section: type[BaseModel]) -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation)


# What a library must leave to its caller: the console, the environment, the working directory.
PROCESS_WIDE = re.compile(r"(print|input)|(os|posix)\.(environ|environb|getenv|putenv|getcwd|getcwdb|chdir)|Path\.cwd")
# A key of params.yaml in a text: the library names its own arguments.
SECTIONS = "|".join(field.alias or name for name, field in Params.model_fields.items())
KEY = re.compile(rf"(?<![\w.])({SECTIONS})\.({'|'.join(sorted(set(_keys(Params))))})\b")


def library_nodes() -> Iterator[tuple[str, ast.AST]]:
    for path in sorted((ROOT / "gpt2core").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            yield path.relative_to(ROOT).as_posix(), node


def test_the_library_leaves_console_environment_and_working_directory_to_its_caller() -> None:
    used = {
        (path, ast.unparse(node))
        for path, node in library_nodes()
        if isinstance(node, (ast.Attribute, ast.Name)) and PROCESS_WIDE.fullmatch(ast.unparse(node))
    }
    assert used == set()


def test_the_library_names_no_key_of_params_yaml() -> None:
    named = {
        (path, node.value)
        for path, node in library_nodes()
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and KEY.search(node.value)
    }
    assert not named


def test_params_file_states_the_defaults_of_the_schema() -> None:
    assert load_params(ROOT / "params.yaml") == Params()
    written = yaml.safe_load((ROOT / "params.yaml").read_text())
    defaults = Params().model_dump(by_alias=True)
    defaults["train"] |= dict.fromkeys(CHOSEN)  # what a recipe decides, which gpt2ops/params/recipes.py states
    assert written == defaults


def test_the_library_s_defaults_are_those_of_the_default_recipe() -> None:
    names = {entry.name for entry in fields(TrainSettings)} & set(CHOSEN)
    assert {name: getattr(TrainerConfig(), name) for name in names} == {
        name: getattr(Params().train, name) for name in names
    }


def test_every_shipped_recipe_validates() -> None:
    recipes = sorted((ROOT / "recipes").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        parse_params(yaml.safe_load(recipe.read_text()), source=recipe.name)


def stage_outputs() -> dict[str, set[str]]:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    return {
        name: {
            next(iter(out)) if isinstance(out, dict) else out
            for kind in ("outs", "metrics", "plots")
            for out in stage.get(kind, [])
        }
        for name, stage in stages.items()
    }


def test_dvc_stages_write_the_paths_that_the_code_names() -> None:
    declared = set().union(*stage_outputs().values())
    named = {
        value.as_posix()
        for key, value in vars(paths).items()
        if isinstance(value, Path)
        and key not in {"PARAMS", "DVC_LOCK", "BUNDLED_CORPUS", "PROVENANCE", "CHECKPOINTS", "LOGS"}
        and key not in {"MLRUNS", "WORKSPACES", "FINETUNED"}
    }
    assert declared == named


def test_stages_are_those_of_the_pipeline_in_its_order() -> None:
    stages = ["download", "tokenize", "finetune", "evaluate", "sample", "plot", "register", "report"]
    assert list(stage_outputs()) == stages
