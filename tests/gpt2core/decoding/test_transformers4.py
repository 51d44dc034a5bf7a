"""Group beam search and contrastive search give what transformers 4 gave, the last version that had them."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gpt2core.decoding import generate
from gpt2core.model import GPT

FIXTURES = Path(__file__).parents[2] / "support/fixtures"
CASES = json.loads((FIXTURES / "transformers4.json").read_text())["cases"]
SCORE_TOLERANCE = 1e-4


def _writer() -> ModuleType:
    """The file that wrote the cases: it knows how to make their models."""
    spec = importlib.util.spec_from_file_location("transformers4", FIXTURES / "transformers4.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[GPT]:
    writer = _writer()
    loaded = []
    for model in writer.MODELS:
        directory = tmp_path_factory.mktemp("model")
        (directory / "config.json").write_text(json.dumps(writer.config_of(model)))
        state = {name: torch.from_numpy(values) for name, values in writer.build_state(model).items()}
        save_file(state, directory / "model.safetensors")
        loaded.append(GPT.from_pretrained(directory))
    return loaded


def _run(models: list[GPT], case: dict[str, Any]) -> Any:
    ids, mask = torch.tensor(case["ids"]), torch.tensor(case["mask"])
    return generate(
        models[case["model"]], ids, mask, return_dict_in_generate=True, output_scores=True, **case["options"]
    )


def test_group_beam_search_finds_the_same_texts_with_the_same_scores(models) -> None:
    cases = [case for case in CASES if "num_beam_groups" in case["options"]]
    assert len(cases) > 60
    for case in cases:
        output = _run(models, case)
        assert output.sequences.tolist() == case["sequences"], case
        torch.testing.assert_close(
            output.sequences_scores,
            torch.tensor(case["sequences_scores"]),
            atol=SCORE_TOLERANCE,
            rtol=SCORE_TOLERANCE,
        )


def test_contrastive_search_chooses_the_same_tokens(models) -> None:
    cases = [case for case in CASES if "penalty_alpha" in case["options"]]
    assert len(cases) > 60
    for case in cases:
        assert _run(models, case).sequences.tolist() == case["sequences"], case


def test_a_list_of_prompts_gives_each_the_search_it_would_have_had_alone(models) -> None:
    padded = [case for case in CASES if len({sum(row) for row in case["mask"]}) > 1]
    assert len(padded) > 20
    for case in padded:
        model, options = models[case["model"]], case["options"]
        pairs = zip(case["ids"], case["mask"], strict=True)
        prompts = [[token for token, real in zip(*pair, strict=True) if real] for pair in pairs]
        together = generate(model, prompts, **options)
        copies = options.get("num_return_sequences", 1)
        width = max(map(len, prompts))
        for number, prompt in enumerate(prompts):
            alone = generate(model, [prompt], **options)[:, len(prompt) :]
            rows = together[number * copies : (number + 1) * copies, width:]
            assert torch.equal(rows[:, : alone.shape[1]], alone)
            assert bool((rows[:, alone.shape[1] :] == options["pad_token_id"]).all())
