"""The same by coverage: `python -m tests.harness.fuzz.guided AREA --runs 20000`, after `pip install atheris`.

atheris keeps the bytes that reach new lines of a reader and spoils those further. For the readers of bytes of ours that
are written in Python: JSON lines, TensorFlow's tables, llm.c's headers, params.yaml, prompts.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

import atheris

with atheris.instrument_imports(
    include=[
        "gpt2core",
        "gpt2ops.params.schema",
        "gpt2ops.params.sections",
        "gpt2ops.params.problems",
        "gpt2ops.cli.generation.prompt_lines",
        "yaml",
    ]
):
    from gpt2core.data.corpus import read_corpus
    from gpt2core.importing.llmc import read_llmc
    from gpt2core.importing.tf_checkpoint import read_tf_checkpoint
    from gpt2ops.cli.generation.prompt_lines import read_objects, setting_of
    from gpt2ops.params.schema import load_params

from gpt2ops.process.failures import failure_line
from tests.harness.fuzz.harness import MOST_LINES, wrong_with


def _lines(path: Path) -> None:
    for number, values in read_objects(str(path)):
        setting_of("a", number, values, {})


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "text": ("a.txt", lambda path: list(read_corpus([path]))),
    "records": ("a.jsonl", lambda path: list(read_corpus([path]))),
    "zst": ("a.txt.zst", lambda path: list(read_corpus([path]))),
    "tensorflow": ("model.index", lambda path: read_tf_checkpoint(path.with_suffix(""))),
    "llmc": ("a.bin", read_llmc),
    "params": ("params.yaml", load_params),
    "prompts": ("a.jsonl", _lines),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("area", choices=READERS)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, help="folder of inputs to begin with, which grows")
    arguments = parser.parse_args()
    name, read = READERS[arguments.area]
    folder = tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    path = Path(folder, name)

    def once(content: bytes) -> None:
        path.write_bytes(content)
        try:
            read(path)
        except Exception as error:
            line = failure_line("gpt2", error)
            if line is None or isinstance(error, MemoryError):
                raise
            problem = wrong_with(line, MOST_LINES)
            if problem:
                raise AssertionError(problem) from error

    options = [
        f"-atheris_runs={arguments.runs}",
        f"-seed={arguments.seed}",
        "-timeout=10",
        "-rss_limit_mb=2000",
        "-max_len=4096",
    ]
    atheris.Setup([sys.argv[0], *options, *([str(arguments.corpus)] if arguments.corpus else [])], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
