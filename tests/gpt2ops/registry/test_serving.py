"""`mlflow models serve` on the text model, as a client sees it: a real server, a tiny model, HTTP."""

import csv
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow.pyfunc
import pytest
import torch

import gpt2core
from gpt2core.config import GPTConfig
from gpt2core.decoding import generate
from gpt2core.model import GPT
from gpt2core.tokenizer import Tokenizer
from gpt2ops.registry import text_model

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
BLOCK_SIZE = 24
START_SECONDS = 120


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    GPT(GPTConfig(50257, BLOCK_SIZE, n_layer=1, n_head=2, n_embd=8)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(weights, tmp_path_factory):
    """The port of a server, which a process outside the project runs."""
    folder = tmp_path_factory.mktemp("served")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(
            folder / "model",
            python_model=text_model.__file__,
            artifacts={"model": str(weights)},
            code_paths=[str(Path(gpt2core.__file__).parent)],
            signature=text_model.signature(),
            pip_requirements=["mlflow"],
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "PYTHON"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = ["mlflow", "models", "serve", "-m", str(folder / "model"), "--env-manager", "local", "-p", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(port, process, folder / "log")
        yield port
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def wait_for(port, process, log):
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)


def post(port, body, kind="application/json"):
    """Status and answer."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", content, {"content-type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def texts(port, body, kind="application/json"):
    status, answer = post(port, body, kind)
    assert status == 200, answer
    return answer["predictions"] if isinstance(answer, dict) else answer


def line(port, body):
    """What a refused request is told."""
    status, answer = post(port, body)
    assert status == 400, answer
    assert set(answer) == {"error_code", "message"}
    assert "\n" not in answer["message"]
    return answer["message"]


DRAWN = {"max_new_tokens": 5, "seed": 3}


def test_every_form_of_request_that_mlflow_knows_gets_the_same_text(server):
    (text,) = texts(server, {"prompt": "To be", **DRAWN})
    assert text.startswith("To be")
    assert len(text) > len("To be")
    for form in (
        {"inputs": ["To be"]},
        {"inputs": "To be"},
        {"inputs": [{"prompt": "To be"}]},
        {"inputs": {"prompt": ["To be"]}},
        {"instances": ["To be"]},
        {"dataframe_records": [{"prompt": "To be"}]},
        {"dataframe_split": {"columns": ["prompt"], "data": [["To be"]]}},
    ):
        assert texts(server, {**form, "params": DRAWN}) == [text], form
    table = io.StringIO()
    csv.writer(table).writerows([["prompt"], ["To be"], ["Or not"]])
    assert [row[:5] for row in texts(server, table.getvalue().encode(), "text/csv")] == ["To be", "Or no"]


def test_each_way_of_decoding_gives_the_text_of_the_library(server, weights):
    model, tokenizer = GPT.from_pretrained(weights), Tokenizer()
    ids = tokenizer.encode("To be, or not to be")
    for params in (
        {"do_sample": False},
        {"do_sample": True, "temperature": 1.5, "top_k": 0, "top_p": 0.9, "seed": 4},
        {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.5, "typical_p": 0.9, "seed": 4},
        {"do_sample": True, "temperature": 1.0, "top_k": 9, "top_p": 1.0, "epsilon_cutoff": 1e-5, "seed": 4},
        {"do_sample": True, "temperature": 1.0, "top_k": 9, "top_p": 1.0, "eta_cutoff": 1e-5, "seed": 4},
        {"num_beams": 3, "length_penalty": 0.5, "early_stopping": True},
        {"num_beams": 2, "early_stopping": "never"},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 2},
        {"do_sample": False, "repetition_penalty": 1.5, "no_repeat_ngram_size": 1, "min_new_tokens": 3},
        {"do_sample": False, "suppress_tokens": [198, 50256], "max_time": 30.0},
    ):
        rows = generate(model, [ids], max_new_tokens=6, **params)
        sent = dict(params)
        if "early_stopping" in sent:
            sent["early_stopping"] = str(sent["early_stopping"]).lower()
        wanted = tokenizer.decode([one for one in rows[0].tolist() if one != tokenizer.eot_id])
        assert texts(server, {"prompt": "To be, or not to be", "max_new_tokens": 6, **sent}) == [wanted], params


def test_stop_strings_end_a_text_and_bad_words_are_not_in_it(server):
    (text,) = texts(server, {"prompt": "To be", "do_sample": False, "max_new_tokens": 8})
    new = text.removeprefix("To be")
    letter = next(letter for letter in new if letter.isalpha())
    (stopped,) = texts(server, {"prompt": "To be", "do_sample": False, "max_new_tokens": 8, "stop_strings": [letter]})
    assert text.startswith(stopped)
    assert letter in stopped.removeprefix("To be")
    word = re.findall(r"\w+", new)[0]
    (without,) = texts(server, {"prompt": "To be", "do_sample": False, "max_new_tokens": 8, "bad_words": [word]})
    assert without != text


def test_several_texts_of_a_prompt_are_a_list_and_a_seed_repeats_them(server):
    body = {"prompt": ["To be", "Or not to be"], "num_return_sequences": 3, **DRAWN}
    rows = texts(server, body)
    assert [len(row) for row in rows] == [3, 3]
    assert len(set(rows[0])) > 1
    assert texts(server, body) == rows
    assert texts(server, {**body, "prompt": "Or not to be"}) == [rows[1]]
    unseeded = {"prompt": "To be", "max_new_tokens": 8}
    assert texts(server, unseeded) != texts(server, unseeded)


def test_twenty_clients_at_once_get_the_text_that_each_gets_alone(server):
    bodies = [{"prompt": "word " * (number % 5 + 1), "max_new_tokens": 6, "seed": number} for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        together = list(pool.map(lambda body: texts(server, body), bodies))
    assert together == [texts(server, body) for body in bodies]


def test_without_a_number_of_tokens_a_text_fills_the_room_that_its_prompt_leaves(server):
    tokenizer = Tokenizer()
    (text,) = texts(server, {"prompt": "word " * 10, "do_sample": False, "suppress_tokens": [tokenizer.eot_id]})
    assert len(tokenizer.encode(text)) >= BLOCK_SIZE - 2
    (long,) = texts(server, {"prompt": "word " * 100, "past_block_size": "slide", "max_new_tokens": 3})
    assert long.startswith("word " * 100), "a prompt longer than the model's positions comes back whole"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prompt": ""}, "prompt 1 is empty"),
        ({"inputs": ["a", ""]}, "prompt 2 is empty"),
        ({"prompt": "x" * 100_000}, r"prompt 1 has [\d,]+ tokens \(100,000 characters\) of the model's 24 positions"),
        ({"prompt": 5}, r"prompt 1 \(5\) must be a text"),
        ({"prompt": None}, "must be a text"),
        ({"inputs": [5]}, r"prompt 1 \(5\) must be a text"),
        ({"inputs": []}, "the request has no prompt"),
        ({"inputs": [{"promt": "a"}]}, "the request has no prompt; send"),
        ({"dataframe_records": [{"text": "a"}]}, "the request has no prompt; send"),
        ({"prompt": "a", "temprature": 1}, "unknown parameter temprature.*did you mean temperature"),
        ({"prompt": "a", "params": {"seed": 1}}, "stand alone, without params"),
        ({"dataframe_records": [{"prompt": "a", "seed": 1}]}, "seed beside the prompt; put it into params"),
        ({"prompt": "\ud800"}, "prompt 1: .*lone surrogate"),
        ({"prompt": "a", "temperature": -1}, "temperature .* must be a number of at least 0"),
        ({"prompt": "a", "temperature": 0.5, "do_sample": False}, "only when sampling; set do_sample: true"),
        ({"prompt": "a", "max_new_tokens": 25}, "at most 24 new tokens fit"),
        ({"prompt": "a", "num_beams": 1_000}, "num_beams .* at most 32"),
        ({"prompt": "a", "num_return_sequences": 40}, "num_return_sequences .* at most 32"),
        ({"prompt": "a", "penalty_alpha": 0.6, "top_k": 12_000}, "top_k .12,000. must be at most 32"),
        ({"prompt": "a", "past_block_size": "slide", "max_new_tokens": 10**9}, "max_new_tokens .* at most 65,536"),
        ({"prompt": "a" * 2_000_000}, "the texts have 2,000,000 characters and may have 1,000,000"),
        ({"prompt": "a", "bad_words": ["b" * 600_000] * 2}, "the texts have 1,200,001 characters"),
        ({"prompt": "a", "early_stopping": "maybe", "num_beams": 2}, "early_stopping .* true, false or never"),
        ({"prompt": "a", "bad_words": [""]}, "bad_words has an empty text"),
        ({"prompt": "a", "suppress_tokens": [60_000]}, "outside the model's vocabulary"),
        ({"prompt": "a", "seed": 2**70}, "below 2"),
        ({"prompt": "a", "length_penalty": 1e308, "num_beams": 2, "max_new_tokens": 3}, "length_penalty .* at most 50"),
        ({"prompt": "a", "repetition_penalty": 1e-300, "max_new_tokens": 3}, "scores of the tokens are not finite"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_line(server, body, said):
    assert re.search(said, line(server, body))


def test_a_value_of_the_wrong_type_is_refused_with_its_name_and_without_a_traceback(server):
    for name, value in (("temperature", "hot"), ("max_new_tokens", 2.5), ("do_sample", "yes"), ("stop_strings", "x")):
        status, answer = post(server, {"inputs": ["a"], "params": {name: value}})
        assert status == 400
        assert name in answer["message"]
        assert "Traceback" not in json.dumps(answer)


def test_the_docs_name_every_parameter_with_its_type_and_no_other():
    page = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `(\w+)` \| (\w+(?: list)?) \|", page, flags=re.MULTILINE))
    kinds = {"long": "integer", "double": "number", "boolean": "boolean", "string": "text"}
    declared = {name: kinds[kind] for name, kind in text_model.TYPES.items()}
    declared |= {name: f"{kinds[kind]} list" for name, kind in text_model.LISTS.items()}
    assert table == declared
