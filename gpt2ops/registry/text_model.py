"""The registered model `gpt2-text`: prompts in, texts out. MLflow keeps this file and `gpt2core` with the weights.

It is run by MLflow in processes where the project is not installed: only `gpt2core` may be imported here.
docs/serving.md is written for its users.
"""

import json
import logging
import os
import random
from difflib import get_close_matches
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, set_model
from mlflow.protos.databricks_pb2 import DEADLINE_EXCEEDED, INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

from gpt2core.decoding.options import CONTRASTIVE_VALUES, OPTIONS, SAMPLING_VALUES, SEED
from gpt2core.decoding.rules import SWITCH, IdLists, Ids, Number, OneOf, Rule, Whole
from gpt2core.errors import UserError, Words
from gpt2core.kernels.cores import short_waits

# Names and meanings are those of `transformers`; None or [] is "not given".
BAD_WORDS = "bad_words"  # given as text, which becomes `bad_words_ids`


def _kind(rule: Rule) -> str:
    """MLflow's type, which is text where a value may be true, false or a word."""
    if rule == SWITCH:
        return "boolean"
    return "long" if isinstance(rule, Whole | Ids) else "double" if isinstance(rule, Number) else "string"


_ROWS = {
    BAD_WORDS if isinstance(row.rule, IdLists) else row.name: row.rule for row in (*OPTIONS.values(), SEED) if row.help
}
TYPES = {name: _kind(rule) for name, rule in _ROWS.items() if isinstance(rule, Whole | Number | OneOf)}
LISTS = {name: _kind(rule) for name, rule in _ROWS.items() if name not in TYPES}
MOST_NEW_TOKENS = 65_536  # past the block size, with past_block_size
MOST_CHARACTERS = 1_000_000  # of all prompts and words of a request
NEW_TOKENS = 100  # or fewer, where the model has no more positions
# With one of these, or several beams, the text is searched for, not drawn, unless do_sample is given.
SEARCHES = ("penalty_alpha", "prompt_lookup_num_tokens")
EARLY_STOPPING = {"true": True, "false": False, "never": "never"}
SEED_LIMIT = 2**32
EXAMPLE = '{"prompt": "To be"} or {"inputs": ["To be", "Or not"]}'
WORDS = Words(true="true", false="false", or_none="", equals=": ", quotes=False)
# `mlflow models serve` sets it to the seconds after which it gives up on a request.
TIMEOUT = "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"

_logger = logging.getLogger(__name__)


class OneLineError(MlflowException):
    """Answers with its line alone; MLflow's server would put the whole request before it."""

    def serialize_as_json(self) -> str:
        return json.dumps({"error_code": self.error_code, "message": str(self)})


class TextModel(PythonModel):
    """GPT-2 over text. A row's text depends on its prompt and the parameters only, not on the other rows."""

    def load_context(self, context: Any) -> None:
        os.environ.update(short_waits(os.environ))
        from gpt2core import GPT, PackedGPT, Tokenizer
        from gpt2core.data.examples.template import template_of
        from gpt2core.decoding.batching import SharedDecoder
        from gpt2core.runtime import pick_device

        device = pick_device("auto")
        model = GPT.from_pretrained(context.artifacts["model"]).to(device)
        self.block_size = model.config.block_size
        self.template = template_of(Path(context.artifacts["model"]))
        self.tokenizer = Tokenizer()
        seconds = float(os.environ[TIMEOUT]) if TIMEOUT in os.environ else None
        self.decoder = SharedDecoder(PackedGPT(model) if device.type == "cpu" else model, self.tokenizer, seconds)

    # MLflow hands on lists and dicts too, but warns its users of any other type hint.
    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[str] | list[list[str]]:
        """Each prompt with what follows it, or its answer; a list of texts a prompt where several are asked for.

        Raises OneLineError: HTTP 400 for a mistake of the user's, 504 where the server is too busy.
        """
        try:
            return self._answer(prompts_of(model_input), options_of(params or {}))
        except Exception as error:
            raise one_line(error) from None

    def _answer(self, prompts: list[str], options: dict[str, Any]) -> list[str] | list[list[str]]:
        from gpt2core.decoding.batching import MAX_ROWS, Job
        from gpt2core.decoding.generation import parse_options

        seed = options.pop("seed", None)
        if seed is not None:
            SEED.rule.refuse("seed", seed)
        words = options.pop("bad_words", None) or []
        size = sum(map(len, (*prompts, *words, *(options.get("stop_strings") or []))))
        if size > MOST_CHARACTERS:  # before they are encoded, which takes seconds for a few million
            raise ValueError(f"the texts have {size:,} characters and may have {MOST_CHARACTERS:,} over HTTP.")
        if words:
            spellings = [spelling for word in words for spelling in dict.fromkeys((word, f" {word}"))]
            options["bad_words_ids"] = [self._encode("bad_words", spelling) for spelling in spellings]
        settings = parse_options({"max_new_tokens": NEW_TOKENS, **options})
        # Contrastive search computes a row for each of its candidates.
        wide = ["num_beams", "num_return_sequences", *(["top_k"] if settings.penalty_alpha else [])]
        for name, most in {**dict.fromkeys(wide, MAX_ROWS), "max_new_tokens": MOST_NEW_TOKENS}.items():
            if (getattr(settings, name) or 0) > most:
                raise ValueError(f"{name} ({getattr(settings, name):,}) must be at most {most:,} over HTTP.")
        draws = 1 if settings.num_beams > 1 else settings.num_return_sequences
        jobs = []
        for number, prompt in enumerate(prompts, start=1):
            ids = self._encode(f"prompt {number}", self.template.prompt(prompt) if self.template else prompt)
            job = Job(ids, {**options, "max_new_tokens": self._new_tokens(number, prompt, len(ids), options)})
            if settings.do_sample:
                first = random.SystemRandom().randrange(SEED_LIMIT) if seed is None else seed
                job.seeds = [first + copy for copy in range(draws)]
            jobs.append(job)
        self.decoder.run(jobs)
        written = [[self._shown(prompt, text) for text in job.texts] for prompt, job in zip(prompts, jobs, strict=True)]
        return [texts[0] for texts in written] if settings.num_return_sequences == 1 else written

    def _shown(self, prompt: str, text: str) -> str:
        """The prompt with what follows it; the answer alone where the model was trained to answer."""
        return self.template.answer(text) if self.template else prompt + text

    def _encode(self, name: str, text: str) -> list[int]:
        try:
            return self.tokenizer.encode(text)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    def _new_tokens(self, number: int, prompt: str, length: int, options: dict[str, Any]) -> int:
        """Most new tokens after a prompt of `length` tokens. Raises ValueError where they have no place."""
        # The last token is read by contrastive search only; else it may lie one past the last position.
        room = self.block_size - length + (0 if "penalty_alpha" in options else 1)
        wanted = options.get("max_new_tokens")
        if options.get("past_block_size") == "slide":
            return wanted or NEW_TOKENS
        if room < (wanted or 1):
            fit = f"at most {room:,} new tokens fit" if room > 0 else "it is too long"
            raise ValueError(
                f"prompt {number} has {length:,} tokens ({len(prompt):,} characters) of the model's "
                f"{self.block_size:,} positions: {fit}, or set past_block_size to slide."
            )
        return wanted or min(NEW_TOKENS, room)


def prompts_of(model_input: Any) -> list[str]:
    """The texts of a request, in whatever form MLflow hands it on. Raises ValueError where they are none."""
    if isinstance(model_input, pd.DataFrame):
        model_input = {str(column): model_input[column].tolist() for column in model_input.columns}
    if isinstance(model_input, np.ndarray):
        model_input = model_input.tolist()
    if isinstance(model_input, dict):
        values = _prompt_in(model_input)
    elif isinstance(model_input, list) and all(isinstance(row, dict) for row in model_input):
        values = [_prompt_in(row) for row in model_input]
    else:
        values = model_input
    prompts = values if isinstance(values, list) else [values]
    if not prompts:
        raise ValueError(f"the request has no prompt; send {EXAMPLE}.")
    for number, prompt in enumerate(prompts, start=1):
        if not isinstance(prompt, str):
            raise ValueError(f"prompt {number} ({short(prompt)}) must be a text; send {EXAMPLE}.")
        if not prompt:
            raise ValueError(f"prompt {number} is empty; send a text, or <|endoftext|> for the start of a document.")
    return [str(prompt) for prompt in prompts]


def _prompt_in(row: dict[str, Any]) -> Any:
    """What stands under `prompt`; refuses what stands beside it, which MLflow has not recognised as a parameter."""
    if "prompt" not in row:
        raise ValueError(f"the request has no prompt; send {EXAMPLE}.")
    for name in row:
        if name != "prompt":
            nearest = get_close_matches(name, [*TYPES, *LISTS], n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "docs/serving.md lists them."
            if name == "params":
                hint = "beside a prompt the parameters stand alone, without params."
            if name in TYPES or name in LISTS:
                hint = "put it into params."
            raise ValueError(f"unknown parameter {name} beside the prompt; {hint}")
    value = row["prompt"]
    return value.tolist() if isinstance(value, np.ndarray) else value


def options_of(params: dict[str, Any]) -> dict[str, Any]:
    """Options for `generate`, with `seed` and `bad_words` as they came. Raises ValueError for a wrong word."""
    options = {name: value for name, value in params.items() if value is not None and value != []}
    if "early_stopping" in options:
        known = EARLY_STOPPING.get(options["early_stopping"])
        if known is None:
            raise ValueError(f"early_stopping ({options['early_stopping']!r}) must be true, false or never, as a text.")
        options["early_stopping"] = known
    if "" in options.get("bad_words", []):
        raise ValueError("bad_words has an empty text, which is everywhere; leave it out.")
    searches = options.get("num_beams", 1) > 1 or any(name in options for name in SEARCHES)
    if options.setdefault("do_sample", not searches):
        return {**SAMPLING_VALUES, **options}
    if "penalty_alpha" in options:
        options.setdefault("top_k", CONTRASTIVE_VALUES["top_k"])
    return options


def one_line(error: Exception) -> OneLineError:
    """What the client is told. MLflow itself would send the traceback."""
    if isinstance(error, UserError):
        error = error.spelled(lambda name: BAD_WORDS if name == "bad_words_ids" else name, WORDS)
    line = str(error)
    if isinstance(error, ValueError):
        return OneLineError(line, INVALID_PARAMETER_VALUE)
    if isinstance(error, ArithmeticError) or "probability tensor" in line:
        return OneLineError("a parameter is too extreme: the model's numbers overflow.", INVALID_PARAMETER_VALUE)
    if isinstance(error, TimeoutError):
        line = "the server is busy: the request waited longer than its timeout; try later, or ask for fewer tokens."
        return OneLineError(line, DEADLINE_EXCEEDED)
    _logger.error("a request failed", exc_info=error)
    return OneLineError(f"the model failed: {short(line)}", INTERNAL_ERROR)


def signature() -> ModelSignature:
    """Lists of texts out, and the options as typed parameters.

    The input has no schema: MLflow would make a text of a number, and drop a parameter that is misspelled.
    """
    scalars = [ParamSpec(name, kind, None) for name, kind in TYPES.items()]
    lists = [ParamSpec(name, kind, [], shape=(-1,)) for name, kind in LISTS.items()]
    return ModelSignature(None, Schema([ColSpec("string")]), ParamSchema([*scalars, *lists]))


set_model(TextModel())
