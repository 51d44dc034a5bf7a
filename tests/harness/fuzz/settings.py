"""What people write: params.yaml, flags, prompts and files of them, ways of decoding."""

import argparse
import contextlib
import io
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from gpt2core.config import GPTConfig
from gpt2core.decoding import PackedGPT
from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2core.storage.files import with_home
from gpt2core.tokenizer import Tokenizer
from gpt2ops.cli.commands import finetune as finetune_command
from gpt2ops.cli.commands.generate import Writer
from gpt2ops.cli.flags.decoding import decoding_setting, parse_setting
from gpt2ops.cli.flags.finetune import FLAGS
from gpt2ops.cli.generation.prompt_lines import answer_lines
from gpt2ops.cli.generation.prompts import prompt_file, read_prompt
from gpt2ops.cli.main import build_parser
from gpt2ops.params.decoding import STRATEGIES, DecodingSetting
from gpt2ops.params.editing import parse_assignments
from gpt2ops.params.schema import Params, load_params
from gpt2ops.projects.project import params_text
from tests.harness.fuzz.harness import Fault, wrong_with
from tests.harness.fuzz.mutate import as_json, changed, odd_text, odd_value, spoiled

ROOT = Path(__file__).resolve().parents[3]
# A text that would be written for minutes is what was asked for; only short ones are tried.
MOST_TOKENS = 64


def prepare_params(_: Path) -> dict[str, Any]:
    whole = (ROOT / "params.yaml").read_bytes()
    values = Params().model_dump(by_alias=True)
    parts = [yaml.safe_dump({name: section}).encode() for name, section in values.items()]
    keys = sorted({key for section in values.values() for key in section} | set(values))
    return {"whole": whole, "parts": parts, "values": values, "keys": keys}


def params(state: dict[str, Any], rng: random.Random, folder: Path) -> None:
    """params.yaml as a stage reads it."""
    path = Path("params.yaml")
    kind = rng.random()
    if kind < 0.01:
        path.write_bytes(_bomb(rng))
    elif kind < 0.15:
        path.write_bytes(spoiled(rng, state["whole"], state["parts"]))
    elif kind < 0.5:
        path.write_bytes(spoiled(rng, b"".join(rng.sample(state["parts"], rng.choice((1, 2)))), state["parts"]))
    else:
        section = rng.choice(list(state["values"]))
        values = changed(rng, {section: state["values"][section]}, state["keys"])
        path.write_bytes(
            as_json(rng, values)
            if rng.random() < 0.3
            else yaml.safe_dump(values, allow_unicode=True).encode("utf-8", "surrogatepass")
        )
    load_params(path)


def _bomb(rng: random.Random) -> bytes:
    """Lines that each say the one before many times over."""
    wide, deep = rng.choice((2, 9)), rng.choice((3, 30, 60))
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * wide)}]" for n in range(1, deep))]
    key = rng.choice(("run", "data", "{run: {name: *a2}}", "sample"))
    return "\n".join([*lines, f"{key}: *a{deep - 1}" if key[0] != "{" else f"run: {{name: *a{deep - 1}}}"]).encode()


def overrides(state: dict[str, Any], rng: random.Random, folder: Path) -> None:
    """`key=value` laid over params.yaml, whose new text must say the same."""
    given = [_assignment(rng, state) for _ in range(rng.choice((1, 1, 2, 3)))]
    text = params_text(parse_assignments(given), base=rng.choice(state["parts"]).decode())
    Path("params.yaml").write_text(text, encoding="utf-8")
    load_params(Path("params.yaml"))


def _assignment(rng: random.Random, state: dict[str, Any]) -> str:
    section = rng.choice(list(state["values"]))
    key = f"{section}.{rng.choice(list(state['values'][section]))}"
    kind = rng.random()
    if kind < 0.15:
        key = rng.choice((odd_text(rng, 3), f"{key}.x", section, f"{section}.{rng.choice(state['keys'])}", ".", ""))
    value = rng.choice(
        ("null", "1", "0.5", "on", "[1, 2]", "{a: 1}", "1e-3", "=", "", "'", "train_ema", odd_text(rng, 3))
    )
    if rng.random() < 0.3:
        value = json.dumps(odd_value(rng))
    return f"{key}={value}" if rng.random() < 0.97 else key


def _parsed(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """What argparse makes of it; its one line is a refusal."""
    said = io.StringIO()
    # As a program gets them: bytes without NUL, those that are no UTF-8 as halves of surrogate pairs.
    argv = [
        word.encode("utf-8", "surrogatepass").replace(b"\0", b"0").decode("utf-8", "surrogateescape") for word in argv
    ]
    try:
        with contextlib.redirect_stderr(said):
            return parser.parse_args(argv)
    except SystemExit as end:
        line = said.getvalue().removesuffix("\n")
        if end.code == 0:  # --help
            return argparse.Namespace(command="help")
        if end.code != 2 or wrong_with(line):
            raise Fault(f"exit {end.code}: {wrong_with(line)}") from None
        raise UserError(line) from None


def _odd_argument(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.5:
        numbers = (
            "0",
            "1",
            "-1",
            "3",
            "0.5",
            "1e-3",
            "nan",
            "inf",
            "-inf",
            "1e400",
            "9" * 30,
            "9" * 5000,
            "0x10",
            "1_000",
            "٣",
            "²",
            "",
        )
        return rng.choice(numbers)
    if kind < 0.7:
        return rng.choice(
            ("off", "null", "true", "auto", "none", "sample", "beam", "greedy", "cpu", "-", "--", "@x", "a=b", "never")
        )
    return odd_text(rng, 4)


def prepare_finetune(folder: Path) -> dict[str, Any]:
    text = folder / "my.txt"
    text.write_text("To be, or not to be.\n" * 20)
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    return {"parser": build_parser("finetune"), "text": str(text), "model": str(model), **prepare_params(folder)}


def finetune(state: dict[str, Any], rng: random.Random, folder: Path) -> None:
    """The flags of `gpt2 finetune`, up to the params.yaml that they make."""
    argv = ["finetune", "--train-file", state["text"], "--output-dir", "out"]
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        flag = rng.choice(FLAGS)
        argv += [
            rng.choice((flag.name, *flag.also)),
            rng.choice(flag.choices) if flag.choices and rng.random() < 0.5 else _odd_argument(rng),
        ]
    starts = (
        ["--from-scratch"],
        ["--preset", rng.choice(("small", "gpt2", _odd_argument(rng)))],
        ["--model", rng.choice((state["model"], "gpt2", _odd_argument(rng)))],
    )
    argv += rng.choice(
        ([], *starts, ["--set", _assignment(rng, state)], ["--validation-split-percentage", _odd_argument(rng)])
    )
    if rng.random() < 0.2:
        argv[rng.randrange(1, len(argv))] = _odd_argument(rng)
    if rng.random() < 0.1:
        argv.insert(
            rng.randrange(1, len(argv)),
            rng.choice(("--bf16", "--no-resume", "--gradient-accumulation-steps", "--", "--json")),
        )
    arguments = _parsed(state["parser"], argv)
    if arguments.command == "help" or not arguments.train_file or not arguments.output_dir:
        return
    output = with_home(arguments.output_dir)
    finetune_command.check_output(output)
    Path("params.yaml").write_text(finetune_command.checked_params(arguments, output), encoding="utf-8")
    load_params(Path("params.yaml"))


def prepare_generate(folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    model = GPT(GPTConfig(50257, 32, n_layer=1, n_head=1, n_embd=4, drop_rate=0.0)).eval()
    writer = Writer(PackedGPT(model, "fp32"), Tokenizer(), 32, "0123456789ab")
    lines = [
        {"prompt": "To be"},
        {"prompt": "日本 🎭", "id": [1], "seed": 3, "max_new_tokens": 2},
        {"prompt": "", "decoding": "greedy"},
    ]
    parser = build_parser("generate")
    writer.write([[1]], parse_setting({"max_new_tokens": 1}), [1])
    return {"parser": parser, "writer": writer, "lines": lines, "keys": sorted(DecodingSetting.model_fields)}


def _flags(state: dict[str, Any], rng: random.Random) -> list[str]:
    """Flags of decoding, often those that belong to the strategy."""
    decoding = rng.choice(list(STRATEGIES))
    argv = ["--decoding", decoding, "--max-new-tokens", rng.choice(("1", "2", "3", "4"))]
    own = [key for key in STRATEGIES[decoding].keys if key != "num_sequences"]
    for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
        key = rng.choice(own) if own and rng.random() < 0.6 else rng.choice(state["keys"])
        flag = "--" + {"bad_words": "bad-word", "suppress_tokens": "suppress-token"}.get(key, key.replace("_", "-"))
        small = ("1", "2", "4", "0.5", "0.9", "1.2", "true", "slide", "off", "50256")
        argv += [flag, rng.choice(small) if rng.random() < 0.8 else _odd_argument(rng)]
    return argv


def generate(state: dict[str, Any], rng: random.Random, folder: Path) -> None:
    """Flags and one prompt, from the command line, a file or standard input; then a text of a few tokens."""
    argv = ["generate", *_flags(state, rng)]
    prompt = odd_text(rng, 6)
    kind = rng.random()
    content = spoiled(rng, prompt.encode("utf-8", "surrogatepass"))
    if kind < 0.3:
        argv += ["--prompt", prompt]
    elif kind < 0.6:
        Path("prompt.txt").write_bytes(content)
        argv += [
            "--prompt-file",
            rng.choice(
                (
                    "prompt.txt",
                    "prompt.txt",
                    "prompt.txt",
                    "missing.txt",
                    ".",
                    "prompt.txt/x",
                    odd_text(rng, 2),
                )
            ),
        ]
    elif kind < 0.75:
        argv.append("-")
    if rng.random() < 0.05:
        argv.insert(rng.randrange(1, len(argv)), _odd_argument(rng))
    arguments = _parsed(state["parser"], argv)
    if arguments.command == "help":
        return
    setting = decoding_setting(arguments)
    if (prompt_file(arguments) or "").endswith(".jsonl"):
        return
    with _stdin(content):
        text = read_prompt(arguments)
    writer: Writer = state["writer"]
    token_ids = writer.tokenizer.encode(text)
    writer.check_fits(len(token_ids), setting)
    if _is_small(setting):
        writer.write([token_ids], setting, [setting.seed or 0])


def _is_small(setting: DecodingSetting) -> bool:
    candidates = setting.top_k if setting.decoding == "contrastive" else 1
    copies = max(setting.num_sequences or 1, setting.num_beams or 1, candidates or 1)
    return (setting.max_new_tokens or 0) <= MOST_TOKENS and copies <= MOST_TOKENS


@contextlib.contextmanager
def _stdin(content: bytes) -> Any:
    before = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(content))
    try:
        yield
    finally:
        sys.stdin = before


def prompts(state: dict[str, Any], rng: random.Random, folder: Path) -> None:
    """A .jsonl file of prompts, and the file of texts that it goes on in."""
    arguments = _parsed(
        state["parser"], ["generate", "--prompt-file", "in.jsonl", "--output", "out.jsonl", *_flags(state, rng)]
    )
    arguments.max_new_tokens = 2
    Path("in.jsonl").write_bytes(_prompt_lines(state, rng))
    before = b""
    if rng.random() < 0.3:  # the second run goes on where the first one was cut
        with contextlib.suppress(UserError):
            answer_lines(arguments, _small_only(state["writer"]))
        before = Path("out.jsonl").read_bytes() if Path("out.jsonl").is_file() else b""
        before = spoiled(rng, before) if rng.random() < 0.7 else before[: rng.randrange(len(before) + 1)]
        Path("out.jsonl").write_bytes(before)
    try:
        answer_lines(arguments, _small_only(state["writer"]))
    except UserError as error:
        if (
            not isinstance(error, _TooMuchError)
            and Path("out.jsonl").exists()
            and Path("out.jsonl").read_bytes() != before
        ):
            raise Fault("the output was changed though the prompts were refused") from None
        raise


def _prompt_lines(state: dict[str, Any], rng: random.Random) -> bytes:
    lines = []
    for _ in range(rng.choice((1, 2, 3))):
        line = rng.choice(state["lines"])
        if rng.random() < 0.35:
            line = changed(rng, line, state["keys"])
        if isinstance(line, dict):
            line = {**line, "max_new_tokens": line.get("max_new_tokens", 2)}
        lines.append(as_json(rng, line))
    content = rng.choice((b"\n", b"\r\n", b"\n\n")).join(lines) + rng.choice((b"", b"\n"))
    return content if rng.random() < 0.8 else spoiled(rng, content)


class _TooMuchError(UserError):
    pass


def _small_only(writer: Writer) -> Callable[[argparse.Namespace], Writer]:
    class Small(Writer):
        def write(self, prompts: Any, setting: DecodingSetting, seeds: Any, **options: Any) -> Any:
            if not _is_small(setting) or len(prompts) > MOST_TOKENS:
                raise _TooMuchError("too much to be tried here")
            return super().write(prompts, setting, seeds, **options)

    small = Small(writer.model, writer.tokenizer, writer.block_size, writer.fingerprint)
    return lambda _: small
