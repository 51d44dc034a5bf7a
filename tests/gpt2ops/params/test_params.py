"""params.yaml: wrong keys and values are named, each with what to do."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpt2core.errors import UserError
from gpt2ops.params.recipes import CHOSEN, RECIPES
from gpt2ops.params.schema import Params, load_params, parse_params
from gpt2ops.pipeline import paths

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"learning_rat": 1}}, "unknown key train.learning_rat; did you mean learning_rate?"),
        ({"train": {"max_stepz": 1}}, "unknown key train.max_stepz; did you mean stop.max_steps?"),
        ({"trian": {}}, "unknown key trian; did you mean train?"),
        ({"train": {"stop": {"target": 1}}}, "unknown key train.stop.target; did you mean target_loss?"),
        ({"train": {"batch_size": -4}}, "train.batch_size (-4)"),
        ({"train": {"learning_rate": "fast"}}, "train.learning_rate ('fast')"),
        ({"train": {"learning_rate": 1e9}}, "train.learning_rate (1000000000)"),
        ({"train": {"learning_rate": float("nan")}}, "train.learning_rate (nan)"),
        (
            {"train": {"batch_size": 64, "micro_batch_size": 5}},
            "train.batch_size (64) must be a multiple of train.micro_batch_size (5); try 60.",
        ),
        ({"train": {"eval_interval": 0}}, "train.eval_interval"),
        ({"train": {"eval_interval": "daily"}}, "train.eval_interval ('daily')"),
        (
            {"train": {"stop": {"max_steps": None}}},
            "params.yaml: train.stop.max_steps and train.stop.max_epochs are both null",
        ),
        ({"train": {"sequence_length": 4096}}, "train.sequence_length (4096) must not exceed the model's block_size"),
        ({"model": {"preset": "gpt3"}}, "model.preset ('gpt3') is unknown; did you mean gpt2?"),
        ({"model": {"n_embd": 130}}, "model.n_embd (130) must be a multiple of model.n_head (4); try 128."),
        ({"model": {"init": "gpt2", "n_layer": 3}}, "model.n_layer (3) cannot be changed when model.init is 'gpt2'"),
        ({"data": {"split": {"train": 0.5}}}, "train + val + test (0.7) must be 1"),
        ({"data": {"sha256": "abc"}}, "data.sha256 ('abc')"),
        ({"run": {"nproc_per_node": 3}}, "must be a multiple of run.nproc_per_node"),
        ({"sample": {"max_new_tokens": 0}}, "sample.max_new_tokens (0)"),
        ([1, 2], "the file ([1, 2]) must be a section"),
        ({"data": None}, "data must be a section"),
        ({"train": {"eval_interval": 1.5}}, "fractional part; or input should be 'epoch'."),
        ({"register": {"name": "a", "text_name": "a"}}, "give them different names"),
        ({"register": {"name": ".."}}, "register.name"),
        ({"data": {"format": "chat", "split_by": "tokens"}}, "data.split_by ('tokens') cuts examples in two"),
        ({"data": {"format": "chat"}, "train": {"sampler": "sliding"}}, "train.sampler ('sliding') is for text"),
        ({"train": {"packing": True}}, "train.packing (true) is for examples"),
        ({"data": {"fields": {"prompt": ""}}}, "data.fields.prompt ('')"),
        ({"train": {"stop": {"max_epochs": 1e300}}}, "train.stop.max_epochs"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_its_key(values: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_params(values, source="params.yaml")
    assert message in str(error.value)
    assert str(error.value).startswith("params.yaml: ")
    assert "\n" not in str(error.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(UserError) as error:
        parse_params({"train": {"batch_size": 0, "keep_last": 0}, "run": {"sed": 1}})
    assert len(str(error.value).splitlines()) == 3


def test_numbers_that_yaml_reads_as_text_and_bare_switches_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("train:\n  learning_rate: 6e-4\n  compile: off\n")
    train = load_params(path).train
    assert (train.learning_rate, train.compile) == (6e-4, "off")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"train: [1, 2\n", "line 2, column 1: not valid YAML"),
        (b"train:\n  batch_size: 4\n  batch_size: 8\n", "line 3, column 3: .* the key batch_size stands twice"),
        (b"run: {}\nrun: {seed: 3}\n", "line 2, column 1: .* the key run stands twice"),
        (b"train: {batch_size: true}\n", r"train.batch_size \(true\) must be a number"),
        (b"run: {name: \x00}\n", r"character 12 \(U\+0000\) is not allowed"),
        (b"run: {name: caf\xe9}\n", "byte 15 is not valid UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_place(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_params(path)
    with pytest.raises(UserError, match="is missing"):
        load_params(tmp_path / "other.yaml")


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("")
    assert load_params(path) == Params()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: " + "[" * 3000, "nested too deeply"),
        ("run: {seed: " + "9" * 5000 + "}", "not valid YAML"),
        ("? [a, b]\n: 1", "not valid YAML"),
        ('run: {name: "\\uD800"}', "run.name: character 0 (U+D800) is a lone surrogate"),
        ('data:\n  "[3": 1', "unknown key data.[3"),
    ],
)
def test_a_file_that_a_parser_stumbles_over_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(content)
    with pytest.raises(UserError) as caught:
        load_params(tmp_path / "params.yaml")
    (line,) = str(caught.value).splitlines()
    assert message in line


def test_huge_and_nested_values_are_not_repeated_to_the_user(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40))]
    (tmp_path / "params.yaml").write_text("\n".join([*lines, "run: {name: *a39, seed: 0x" + "f" * 5000 + "}"]))
    with pytest.raises(UserError) as caught:
        load_params(tmp_path / "params.yaml")
    said = str(caught.value).splitlines()
    assert len(said) == 21
    assert said[-1].endswith("and 22 more problems.")
    assert max(map(len, said)) <= 1000


def test_many_problems_are_told_up_to_twenty() -> None:
    with pytest.raises(UserError) as caught:
        parse_params({"sample": {"prompts": [1] * 500}})
    assert str(caught.value).splitlines()[-1] == "params: and 480 more problems."


def test_a_recipe_fills_in_what_is_null_and_nothing_else() -> None:
    params = parse_params({"train": {"recipe": "memorise", "learning_rate": "2e-4", "weight_decay": None}})
    assert (params.train.learning_rate, params.train.beta1) == (2e-4, Params().train.beta1)
    recipe = RECIPES["memorise"]
    assert (params.train.schedule, params.train.weight_decay) == (recipe["schedule"], recipe["weight_decay"])
    assert (params.model.drop_rate, Params().model.drop_rate) == (0.0, None)
    kept = parse_params({"train": {"recipe": "memorise", "optimizer": "adamw"}, "model": {"drop_rate": 0.3}})
    assert (kept.train.optimizer, kept.model.drop_rate) == ("adamw", 0.3)


def test_the_floor_of_the_schedule_follows_a_learning_rate_of_ones_own() -> None:
    assert parse_params({"train": {"learning_rate": 1e-4}}).train.min_learning_rate == 5e-6
    assert parse_params({"train": {"learning_rate": 1e-4, "min_learning_rate": 0.0}}).train.min_learning_rate == 0.0


@pytest.mark.parametrize("values", [{"recipe": "fast"}, {"recipe": ["memorise"]}, {"recipe": None}])
def test_an_unknown_recipe_is_named(values: Any) -> None:
    with pytest.raises(UserError, match="train.recipe"):
        parse_params({"train": values})


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_sets_every_key_that_null_leaves_to_it(recipe: str) -> None:
    params = parse_params({"model": {"preset": "gpt2"}, "train": {"recipe": recipe, **dict.fromkeys(CHOSEN)}})
    assert None not in [getattr(params.train, key) for key in CHOSEN]


def test_params_yaml_leaves_to_the_recipe_what_it_may() -> None:
    values = yaml.safe_load(paths.PARAMS.read_text())
    assert {key for key, value in values["train"].items() if value is None and key in CHOSEN} == set(CHOSEN)
    assert load_params() == Params()


NINE_LEVELS = range(1, 9)
MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 9)}]}}\n" for level in NINE_LEVELS
)
LISTS = "a0: &a0 [x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in NINE_LEVELS
)
# Ends the process where it takes more than a minute or 3 GB.
BOUNDED = """
import resource, sys
from pathlib import Path
from gpt2core.errors import UserError
from gpt2ops.params.schema import load_params
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
resource.setrlimit(resource.RLIMIT_AS, (3 * 10**9, 3 * 10**9))
try:
    load_params(Path(sys.argv[1]))
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs limits of a process")
@pytest.mark.parametrize(
    "text",
    [
        MERGES,
        LISTS + "run: *a8\n",
        "".join(f"unknown_key_{number}: 1\n" for number in range(30_000)),
        "x" * 2_000_000,
        f"train: {{learning_rate: 1{':1' * 300}.5}}\n",
    ],
    ids=["merges", "lists of lists", "unknown keys", "long", "sexagesimal"],
)
def test_a_small_file_cannot_take_the_machine(text: str, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(text)
    done = subprocess.run([sys.executable, "-c", BOUNDED, str(file)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0 < len(done.stdout) < 5000
