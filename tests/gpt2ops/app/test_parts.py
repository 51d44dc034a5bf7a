"""The parts of the web page that need no browser: its fields, the command it shows, probabilities, the queue."""

import shlex
import socket
import sys
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpt2core.config import GPTConfig
from gpt2core.data.writer import write_tokens
from gpt2core.decoding.packed.model import PackedGPT
from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2core.tokenizer import Tokenizer
from gpt2ops.app.page.alternatives import token_choices
from gpt2ops.app.page.command_line import command_of
from gpt2ops.app.page.fields import as_typed, default_of, field_specs, in_labels, read_setting, uses
from gpt2ops.app.page.markup import pieces
from gpt2ops.app.page.training_text import TrainingText
from gpt2ops.app.server import check_port, project_examples, read_login
from gpt2ops.app.serving.generation_job import GenerationJob
from gpt2ops.app.serving.limits import Limits
from gpt2ops.app.serving.models import FixedModels, LoadedModel, ModelCache
from gpt2ops.app.serving.project_models import ProjectModels
from gpt2ops.app.serving.request_queue import RequestQueue
from gpt2ops.app.serving.service import GenerationService
from gpt2ops.cli.flags.decoding import decoding_setting
from gpt2ops.cli.main import build_parser, main
from gpt2ops.params.decoding import STRATEGIES, DecodingSetting
from gpt2ops.pipeline import paths
from gpt2ops.sampling.texts import write_texts

TOKENIZER = Tokenizer()


@pytest.fixture(scope="module")
def model() -> PackedGPT:
    torch.manual_seed(0)
    return PackedGPT(GPT(GPTConfig(50257, 32, n_layer=1, n_head=2, n_embd=16)).eval())


@pytest.mark.parametrize("decoding", STRATEGIES)
def test_untouched_fields_are_the_strategy_as_generate_has_it(decoding: Any) -> None:
    typed = {key: as_typed(default_of(decoding, key)) for key in field_specs()}
    expected = DecodingSetting(decoding=decoding, max_new_tokens=100, past_block_size="slide")
    assert read_setting(decoding, typed).options() == expected.options()


def test_only_the_fields_of_the_strategy_are_in_use() -> None:
    assert uses("sample", "temperature")
    assert not uses("greedy", "temperature")
    assert uses("contrastive", "top_k")
    assert uses("beam-sample", "seed")
    assert not uses("beam", "seed")
    assert not uses("contrastive", "top_p")
    # A field of another strategy may still hold something.
    assert read_setting("greedy", {"temperature": 0.5}).options().get("temperature") is None


@pytest.mark.parametrize(
    ("decoding", "typed", "message"),
    [
        ("sample", {"top_p": 1.5}, "Top p (1.5) must be"),
        ("sample", {"top_k": 2.5}, "Top k (2.5) must be a whole number."),
        ("sample", {"temperature": "warm"}, "Temperature (warm) must be a number."),
        ("sample", {"top_k": "2.5"}, "Top k (2.5) must be a whole number."),
        ("sample", {"temperature": float("inf")}, "Temperature (inf) must be a finite number."),
        ("sample", {"seed": "abc"}, "Seed (abc) must be a whole number."),
        ("sample", {"seed": "-1"}, "Seed (-1) must be"),
        ("sample", {"max_new_tokens": 0}, "Maximum length (tokens) (0) must be"),
        ("greedy", {"suppress_tokens": "3, x"}, "Suppress tokens (x) must be a whole number."),
        ("greedy", {"suppress_tokens": "99999"}, "99999"),
        ("group-beam", {"num_beams": 5, "num_beam_groups": 2}, "Num beam groups"),
        ("nonsense", {}, "Decoding (nonsense) must be one of greedy"),
    ],
)
def test_a_wrong_number_is_named_as_the_page_names_it(
    decoding: str, typed: dict[str, Any], message: str, model: PackedGPT
) -> None:
    with pytest.raises(UserError) as caught:
        job(model, read_setting(decoding, typed)).run()
    shown = str(in_labels(caught.value))
    assert message in shown
    assert "_" not in shown


def test_an_empty_field_turns_a_cut_of_the_distribution_off() -> None:
    options = read_setting("sample", {"top_k": "", "top_p": None, "temperature": "0.7"}).options()
    assert (options["top_k"], options["top_p"], options["temperature"]) == (None, None, 0.7)


@pytest.mark.parametrize(
    ("decoding", "values"),
    [
        ("sample", {"top_k": None, "temperature": 1.0, "num_sequences": 2, "stop": ["-x", "a b"]}),
        ("beam", {"num_beams": 3, "early_stopping": True, "bad_words": ["it's", "--no"]}),
        ("greedy", {"suppress_tokens": [1, 2], "no_repeat_ngram_size": 3, "past_block_size": "slide"}),
        ("contrastive", {"penalty_alpha": 0.5, "top_k": 3}),
    ],
)
@pytest.mark.parametrize("prompt", ["To be", '--prompt it\'s "quoted"\n$HOME `x`', "日本 🎭"])
def test_the_shown_command_says_the_same_as_the_page(decoding: Any, values: dict[str, Any], prompt: str) -> None:
    setting = DecodingSetting(decoding=decoding, max_new_tokens=7, **values)
    words = shlex.split(command_of("models/best", "int8", prompt, setting, 5))
    arguments = build_parser("generate").parse_args(words[1:])
    read = decoding_setting(arguments)
    assert read.options(TOKENIZER) == setting.options(TOKENIZER)
    assert read.seed == (5 if setting.draws else None)
    assert (arguments.prompt, arguments.model, arguments.weights) == (prompt, "models/best", "int8")


@pytest.mark.parametrize("length", [20, 50])
def test_probabilities_are_those_of_the_text_also_past_the_models_window(model: PackedGPT, length: int) -> None:
    prompt = TOKENIZER.encode("To be, or not")
    setting = DecodingSetting(decoding="sample", max_new_tokens=length, past_block_size="slide")
    ((text,),) = write_texts(model, [prompt], setting, [1], TOKENIZER)
    choices = token_choices(model, prompt, text.token_ids, "slide")
    assert [choice.token_id for choice in choices] == text.token_ids
    mean = torch.tensor([choice.probability for choice in choices]).log().mean().item()
    assert mean == pytest.approx(text.mean_log_prob, abs=1e-4)
    for choice in choices:
        assert len(choice.likeliest) == 5
        assert choice.rank > 5 or choice.likeliest[choice.rank - 1][0] == choice.token_id


def test_tokens_that_share_a_character_are_shown_together() -> None:
    token_ids = TOKENIZER.encode("a 🎭 日本 é")
    found = list(pieces(token_ids))
    assert "".join(piece.text for piece in found) == "a 🎭 日本 é"
    assert any(piece.stop - piece.start > 1 for piece in found)
    assert [piece.start for piece in found[1:]] == [piece.stop for piece in found[:-1]]
    cut = list(pieces(token_ids[:2]))  # the character never becomes whole
    assert "".join(piece.text for piece in cut) == TOKENIZER.decode(token_ids[:2])


@pytest.mark.parametrize("before", [[], TOKENIZER.encode("a")])
def test_a_text_that_stops_within_a_character_is_shown_up_to_its_last_token(before: list[int]) -> None:
    """Some tokens are a space and the first bytes of the character behind it."""
    first_of_two = TOKENIZER.encode(" 日")[0]
    assert TOKENIZER.token_bytes([first_of_two])[:1] == b" "
    token_ids = [*before, first_of_two]
    found = list(pieces(token_ids))
    assert "".join(piece.text for piece in found) == TOKENIZER.decode(token_ids)
    assert [place for piece in found for place in range(piece.start, piece.stop)] == list(range(len(token_ids)))
    assert all(piece.start < piece.stop for piece in found)


class Words:
    """A training text in memory."""

    def __init__(self, text: str) -> None:
        self._ids = TOKENIZER.encode_array(text)

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, start: int, stop: int) -> Any:
        return self._ids[start:stop]


def test_every_passage_of_the_training_text_is_found_not_only_the_longest() -> None:
    one, other = " The quality of mercy is not strained", " It droppeth as the gentle rain from heaven"
    training = TrainingText([Words(f"x{one}. y{other}. z")], shortest=6)
    token_ids = TOKENIZER.encode(f"My words{one}, then{other}!")
    marked = [TOKENIZER.decode(token_ids[start:stop]) for start, stop in training.find(token_ids)]
    assert marked == [one, other]
    assert TrainingText([Words("nothing of it")], shortest=6).find(token_ids) == []


def test_who_comes_later_waits_sees_the_place_and_is_refused_where_too_many_wait() -> None:
    queue = RequestQueue(running=1, waiting=2)
    with queue.join() as first:
        assert first.try_start()
        with queue.join() as second, queue.join() as third:
            assert (second.ahead, third.ahead) == (1, 2)
            assert not second.try_start()
            with pytest.raises(UserError, match="The page is busy: 2 prompts are waiting"), queue.join():
                pass
    with queue.join() as next_one:  # whoever left, in whatever order, holds nobody up
        assert next_one.try_start()


@pytest.mark.parametrize(
    ("prompt", "values", "message"),
    [
        (" \n", {}, "The prompt is empty"),
        ("x" * 100_000, {}, "The prompt has 100,000 characters, and this page takes 20,000 at most"),
        ("x", {"max_new_tokens": 5000}, "max_new_tokens (5000) must be at most 1000"),
        ("x", {"num_sequences": 17}, "num_sequences (17) must be at most 16"),
        ("x", {"stop": ["a"] * 101}, "stop has 101 entries"),
    ],
)
def test_a_visitor_may_not_ask_for_too_much(prompt: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Limits().check(prompt, DecodingSetting(**values))
    assert message in str(caught.value)


def test_a_text_that_does_not_fit_is_refused_with_what_would_fit(model: PackedGPT) -> None:
    setting = DecodingSetting(decoding="greedy", max_new_tokens=40, past_block_size="refuse")
    with pytest.raises(UserError) as caught:
        job(model, setting).check_fits()
    line = str(in_labels(caught.value))
    assert "lower Maximum length (tokens) to 31 or less" in line
    assert "set Past block size: slide" in line


def job(model: PackedGPT, setting: DecodingSetting) -> GenerationJob:
    return GenerationJob(LoadedModel("m", model, 32), TOKENIZER.encode("To be"), setting, 1, TOKENIZER, Event(), 60)


def save(directory: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    GPT(GPTConfig(50257, 16, n_layer=1, n_head=1, n_embd=4)).save_pretrained(directory)
    return directory


def test_the_text_of_a_model_by_finetune_is_found_beside_it_wherever_it_lies(tmp_path: Path, monkeypatch) -> None:
    text = "Once there was a clock that no one in the village could wind, for it had lost its key in the long winter."
    ids = TOKENIZER.encode(text)
    for place in ("here/mine", "elsewhere/yours"):
        tokens = tmp_path / place / "project" / paths.TOKENS
        write_tokens(tokens, [text], source="test", shares={"train": 1.0, "val": 0.0, "test": 0.0})
    (tmp_path / "here" / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here/mine/project" / paths.PARAMS).write_text("sample: {memorised_tokens: 8}")
    here = TrainingText.of_project()
    assert here is not None
    assert here.find([1, 2, *ids[3:14]]) == [(2, 13)]
    (tmp_path / "here" / "mine").rename(tmp_path / "gone")
    assert TrainingText.of_project() is None
    assert TrainingText.of_project(["gpt2", str(tmp_path / "elsewhere" / "yours")]) is not None


def test_an_empty_prompt_of_the_samples_is_no_example(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("GPT2_PROJECT_ROOT", str(tmp_path))
    (tmp_path / "params.yaml").write_text('sample: {prompts: ["Once", ""]}')
    assert project_examples() == ["Once"]


def test_a_page_without_any_model_says_so_and_how_to_get_one() -> None:
    from gpt2ops.app.page.handlers import Handlers

    page = Handlers(GenerationService(ModelCache(FixedModels({}), "fp32", 1), Limits()), with_commands=True)
    *_, alert = page.open_page(SimpleNamespace(query_params={}))  # type: ignore[arg-type]
    assert "There is no model yet: train one with gpt2 finetune, or in a project with dvc repro." in alert
    with pytest.raises(UserError, match="No model is chosen"):
        page._request("To be", None, None, "greedy", {})


def test_few_models_stay_in_memory_and_one_that_was_trained_again_is_read_again(tmp_path: Path) -> None:
    cache = ModelCache(FixedModels({name: save(tmp_path / name, seed) for seed, name in enumerate("abc")}), "fp32", 2)
    first = cache.load("a").model
    assert cache.load("a").model is first
    cache.load("b"), cache.load("c")
    assert cache.load("a").model is not first
    again = cache.load("a").model
    save(tmp_path / "a", 9)
    assert cache.load("a").model is not again


def test_a_visitor_reaches_models_of_the_project_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    project.mkdir()
    save(tmp_path / "outside", 0)
    monkeypatch.chdir(project)
    models = ProjectModels()
    assert models.choices() == []
    for name in (str(tmp_path / "outside"), "../outside", "models/../../outside"):
        with pytest.raises(UserError, match="outside this project"):
            models.directory(name)
    with pytest.raises(UserError, match="no model was registered"):
        models.directory("models:/gpt2@champion")
    assert not (project / "mlruns").exists()
    save(project / "models/best", 0)
    save(project / "models/other", 1)
    models = ProjectModels([str(tmp_path / "outside")])  # who starts the page may name any
    assert [name for _, name in models.choices()] == [str(tmp_path / "outside"), "models/best", "models/other"]
    assert models.directory(str(tmp_path / "outside")).is_dir()


def test_a_damaged_model_is_one_line_without_a_place_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = save(tmp_path / "models/best", 0) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        ModelCache(ProjectModels(), "fp32", 1).load("models/best")
    assert "models/best" in str(caught.value)
    assert "is damaged" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_another_machine_may_see_the_page_only_with_a_login() -> None:
    assert read_login("127.0.0.1", None) is None
    assert read_login("localhost", None) is None
    assert read_login("0.0.0.0", "me:se:cret") == ("me", "se:cret")
    with pytest.raises(UserError, match="needs a login: give --auth user:password"):
        read_login("0.0.0.0", None)
    with pytest.raises(UserError, match="user:password"):
        read_login("127.0.0.1", "me")


def test_a_port_in_use_is_one_line_that_names_it_and_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["gpt2", "app", "--port", str(port)])
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert f"port {port} on 127.0.0.1 is in use" in said
    assert f"--port {port + 1}" in said
    assert len(said.splitlines()) == 1
    assert check_port("127.0.0.1", 0) > 0
    for host, port, message in (("8.8.8.8", 7860, "no address of this machine"), ("127.0.0.1", 99999, "--port")):
        with pytest.raises(UserError, match=message):
            check_port(host, port)
