"""A model trained on questions with answers, by the stages: it ends its answers by itself, and they are right."""

import json
import random

import pytest

from gpt2core.data.examples.template import TEMPLATES, template_of
from gpt2core.storage.files import read_json
from tests.support.small_project import Project, copy_sources

pytestmark = pytest.mark.slow
WORDS = ["red", "blue", "green", "black", "white", "brown", "grey", "pink", "gold", "silver", "orange", "purple"]
PAIRS, HELD_OUT = 2000, 200
SETTINGS = {
    "run": {"threads": 1, "precision": "fp32"},
    "data": {
        "source": "data/corpus/pairs.jsonl",
        "watch": "data/corpus/pairs.jsonl",
        "format": "chat",
        "split": {"train": 0.9, "val": 0.05, "test": 0.05},
    },
    "model": {"block_size": 32, "n_layer": 2, "n_head": 4, "n_embd": 64, "drop_rate": 0.0},
    "train": {
        "batch_size": 16, "sequence_length": 31, "learning_rate": 5e-3, "min_learning_rate": 2.5e-4,
        "warmup_steps": 20, "eval_interval": 60, "checkpoint_interval": 1000, "compile": "off",
        "stop": {"max_steps": 240, "target_loss": None},
    },
    "sample": {"prompts": ["Reverse: red blue green black"], "max_new_tokens": 12,
               "settings": [{"name": "greedy", "decoding": "greedy"}]},
}  # fmt: skip


def pairs(count: int, seed: int) -> dict[str, str]:
    """Four words, and the same in reverse."""
    draw, found = random.Random(seed), {}
    while len(found) < count:
        words = draw.sample(WORDS, 4)
        found[f"Reverse: {' '.join(words)}"] = " ".join(reversed(words))
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    root = tmp_path_factory.mktemp("examples") / "project"
    root.mkdir()
    copy_sources(root)
    trained = list(pairs(PAIRS + HELD_OUT, seed=1).items())[:PAIRS]
    messages = (
        [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}] for asked, answer in trained
    )
    lines = "".join(json.dumps({"messages": one}) + "\n" for one in messages)
    (root / "data/corpus/pairs.jsonl").write_text(lines)
    project = Project(root, SETTINGS)
    for stage in ("download", "tokenize", "finetune", "evaluate", "sample", "plot", "register", "report"):
        project.run("python", "-m", f"tasks.{stage}")
    return project


def test_held_out_answers_end_by_themselves_and_are_right(project: Project) -> None:
    held_out = dict(list(pairs(PAIRS + HELD_OUT, seed=1).items())[PAIRS:])
    prompts, texts = project.root / "prompts.jsonl", project.root / "texts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": asked}) + "\n" for asked in held_out))
    main = "from gpt2ops.cli.main import main; main()"
    flags = ("--decoding", "greedy", "--max-new-tokens", "12", "--batch-size", "50")
    files = ("--prompt-file", str(prompts), "--output", str(texts))
    project.run("python", "-c", main, "generate", "--model", "models/best", *files, *flags)
    answers = [json.loads(line) for line in texts.read_text().splitlines()]
    assert len(answers) == HELD_OUT
    assert sum(one["finish_reason"] == "eos" for one in answers) >= 0.95 * HELD_OUT
    assert sum(one["text"] == held_out[one["prompt"]] for one in answers) >= 0.9 * HELD_OUT


def test_the_registered_text_model_and_an_export_answer_too(project: Project) -> None:
    asked = "Reverse: gold pink grey brown"
    code = (
        "import json, mlflow; mlflow.set_tracking_uri('sqlite:///mlruns/mlflow.db')\n"
        "model = mlflow.pyfunc.load_model('models:/gpt2-text@champion')\n"
        f"print(json.dumps(model.predict([{asked!r}], params={{'max_new_tokens': 12, 'do_sample': False}})))"
    )
    assert json.loads(project.run("python", "-c", code).stdout.splitlines()[-1]) == ["brown grey pink gold"]
    main = "from gpt2ops.cli.main import main; main()"
    project.run("python", "-c", main, "export", "--model", "models:/gpt2@champion", "--output-dir", "exported")
    assert template_of(project.root / "exported") == TEMPLATES["chat"]


def test_the_stages_train_score_and_sample_answers(project: Project) -> None:
    assert template_of(project.root / "models/best") == TEMPLATES["chat"]
    manifest = read_json(project.root / "data/tokens/manifest.json")
    assert (manifest["documents"], manifest["format"]) == (PAIRS, "chat")
    evaluation = project.report("metrics/evaluate.json")
    test = manifest["splits"]["test"]
    assert evaluation["test"]["tokens"] < test["tokens"] / 2  # the answers alone
    assert evaluation["test"]["token_accuracy"] > 0.9 > evaluation["before"]["test"]["token_accuracy"]
    (sample,) = project.report("samples.json")["samples"]
    assert (sample["text"], sample["finish_reason"]) == ("\nblack green blue red", "eos")
    log = next((project.root / "logs").glob("training_log_*.txt")).read_text()
    assert "the answers alone are trained" in log
