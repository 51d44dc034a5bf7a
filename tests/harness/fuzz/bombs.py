"""Small inputs that claim much, and surroundings that a process does not expect."""

import gzip
import json
import os
import random
import struct
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import zstandard

from gpt2core.data.corpus import read_corpus
from gpt2core.data.examples.reading import Fields, read_examples
from gpt2core.importing import import_model
from gpt2core.importing.readers import read_source
from gpt2core.kernels.cores import usable_cores
from gpt2core.storage.hf import read_model
from gpt2ops.params.schema import load_params
from gpt2ops.pipeline.run_origin import origin_tags
from gpt2ops.process.signals import is_rank
from gpt2ops.projects.project import params_text, write_project
from gpt2ops.store.address import is_local, tracking_uri
from tests.harness.fuzz.harness import Fault
from tests.support.tensorflow_checkpoint import block, message, varint, write_table

MOST_TEXT, MOST_ROWS = 20_000_000, 200_000  # characters and records that a case reads within its time


def nothing(_: Path) -> None:
    """No valid input is needed."""


def bombs(_: None, rng: random.Random, folder: Path) -> None:
    """One that expands, repeats itself, or nests without end, read by its reader."""
    rng.choice(BOMBS)(rng, folder)


def _repeated_rows(rng: random.Random, folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    length = rng.choice((1, 1000, 1_000_000))
    indices = pa.array([0] * rng.randint(1, min(MOST_ROWS, MOST_TEXT // length)), pa.int32())
    column = pa.DictionaryArray.from_arrays(indices, pa.array(["a" * length]))
    pq.write_table(pa.table({"text": column}), folder / "a.parquet", compression="zstd")
    _read_text(folder / "a.parquet")


def _repeated_in_a_row(rng: random.Random, folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    length, often = rng.choice((10, 1000, 1_000_000)), rng.randint(1, 5000)
    texts = [
        pa.DictionaryArray.from_arrays(pa.array([0] * often, pa.int32()), pa.array([text]))
        for text in ("user", "a" * length)
    ]
    messages = pa.StructArray.from_arrays(texts, ["role", "content"])
    column = pa.ListArray.from_arrays(pa.array([0, often], pa.int32()), messages)
    pq.write_table(pa.table({"messages": column}), folder / "a.parquet", compression="zstd")
    for _ in read_examples([folder / "a.parquet"], "chat", Fields()):
        pass


def _compressed(rng: random.Random, folder: Path) -> None:
    unit = rng.choice((b"a", b"a b\n", b'{"text": "a"}\n', b"\n", b"\0", b"[", b'"a",', b"a,", b"{},", b"a\xc3\xa9"))
    content = rng.choice((b"", b"[", b'{"text":"')) + unit * (rng.randint(1, MOST_TEXT) // len(unit))
    kind, ending = rng.choice((".txt", ".jsonl", ".json", ".csv")), rng.choice((".zst", ".gz"))
    packed = zstandard.compress(content) if ending == ".zst" else gzip.compress(content, 1)
    (folder / f"a{kind}{ending}").write_bytes(packed)
    _read_text(folder / f"a{kind}{ending}")


def _tensorflow_index(rng: random.Random, folder: Path) -> None:
    kind = rng.randrange(3)
    if kind == 0:  # many names of one place
        size = rng.choice((4, 4096, 4_000_000))
        (folder / "model-1.data-00000-of-00001").write_bytes(bytes(size))
        entry = message((1, 1), (2, message((2, message((1, size // 4))))), (4, 0), (5, size))
        names = [(f"model/h{number:04}/x".encode(), entry) for number in range(rng.randint(1, 2000))]
        write_table(folder / "model-1.index", [block([(b"", message((1, 1))), *names])])
    elif kind == 1:  # a long name that all share
        name = b"model/" + b"x" * rng.randint(1, 500_000)
        body = varint(0) + varint(len(name)) + varint(0) + name
        body += (varint(len(name)) + varint(0) + varint(0)) * rng.randint(1, 100_000)
        write_table(folder / "model-1.index", [body + struct.pack("<II", 0, 1)])
    else:  # a block that is named often
        part = block([(f"model/{number:06}".encode(), b"") for number in range(rng.randint(1, 20_000))])
        write_table(folder / "model-1.index", [part], rng.randint(1, 20_000))
    read_source(folder / "model-1.index")


def _nested(rng: random.Random, folder: Path) -> None:
    depth = rng.choice((10, 1000, 100_000, 1_000_000))
    content = rng.choice(("[", '{"a":')) * depth
    if rng.random() < 0.5:
        (folder / "config.json").write_text(content)
        read_model(folder)
    (folder / "a.jsonl").write_text(content)
    _read_text(folder / "a.jsonl")


def _header_of_safetensors(rng: random.Random, folder: Path) -> None:
    size = rng.choice((0, 100, 2**31, 2**60))
    count = rng.choice((1, 1000, 20_000))
    tensors = {
        f"h.{number}": {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]} for number in range(count)
    }
    header = json.dumps(tensors).encode()
    claimed = rng.choice((len(header), 2**40, 2**63 - 1))
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", claimed) + header)
    read_source(folder / "model.safetensors")


def _layers_that_are_not_stored(rng: random.Random, folder: Path) -> None:
    """Of torch.save: names that share a tensor, or whose tensor is empty."""
    width, count = rng.choice((1, 64)), rng.randint(1, 3000)
    shapes = {"attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width), "mlp.c_fc": (width, 4 * width)}
    whole = {f"{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
    whole |= {"mlp.c_proj.weight": torch.zeros(4 * width, width), "ln_1.weight": torch.ones(width)}
    whole["ln_2.weight"] = whole["ln_1.weight"]
    other = rng.choice((whole, {name: torch.zeros(0) for name in whole}))
    layers = {f"h.{n}.{name}": tensor for n in range(count) for name, tensor in (other if n else whole).items()}
    mask = torch.ones(256, 256).tril()
    masks = {f"mask{n}": mask for n in range(rng.choice((0, 1000)))}
    table = {"wte.weight": torch.zeros(50257, width), "ln_f.weight": torch.ones(width)}
    positions = rng.choice((torch.zeros(8, width), torch.zeros(2**24, 0)))
    torch.save({**table, "wpe.weight": positions, **layers, **masks}, folder / "a.pt")
    import_model(folder / "a.pt")


def _growing_pickle(rng: random.Random, folder: Path) -> None:
    def text(value: bytes) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value

    encode = b"c_codecs\nencode\n"
    body = encode + text(b"a" * 1024) + text(b"latin1") + b"\x86R"
    if rng.random() < 0.5:
        for _ in range(rng.randint(1, 30)):
            body = encode + body + text(rng.choice((b"hex", b"HEX", b"base64", b"hex_codec"))) + b"\x86R"
    else:
        body = b"cbuiltins\nbytearray\n\x8a\x08" + struct.pack("<q", 2 ** rng.randint(20, 40)) + b"\x85R"
    with zipfile.ZipFile(folder / "a.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + body + b".")
        archive.writestr("archive/version", "3\n")
    read_source(folder / "a.pt")


def _index_of_shards(rng: random.Random, folder: Path) -> None:
    config = {
        "model_type": "gpt2",
        "vocab_size": 2**40,
        "n_positions": 2**40,
        "n_layer": 2**20,
        "n_head": 1,
        "n_embd": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    names = {f"h.{number}": rng.choice(("a.safetensors", f"{number}.safetensors")) for number in range(20_000)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    read_model(folder)


BOMBS: tuple[Callable[[random.Random, Path], None], ...] = (
    _repeated_rows, _repeated_in_a_row, _compressed, _layers_that_are_not_stored, _growing_pickle, _tensorflow_index,
    _nested, _header_of_safetensors, _index_of_shards,
)  # fmt: skip


def _read_text(path: Path) -> None:
    for _ in read_corpus([path]):
        pass


# Variables that another program leaves, or that a user sets wrongly.
VARIABLES = {
    **dict.fromkeys(
        ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID"), "int"
    ),
    **dict.fromkeys(("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "MKL_NUM_THREADS", "COLUMNS", "LINES"), "int"),
    **dict.fromkeys(("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "TMPDIR", "XDG_CACHE_HOME", "HOME"), "path"),
    **dict.fromkeys(("MLFLOW_TRACKING_URI", "PREFECT_API_URL"), "address"),
    **dict.fromkeys(("GPT2_FLOW_RUN_ID", "LANG", "LC_ALL", "PYTHONHASHSEED", "TERM"), "text"),
}
VALUES = {
    "int": ("", "0", "1", "-1", "4", "1.5", "many", "9" * 400, " 2 ", "0x10"),
    "path": ("", "/nowhere", ".", "/dev/null", "a b", "a\nb", "\udcff", "x" * 5000, "~nobody/x"),
    "address": (
        "",
        "http://",
        "http://[::1",
        "sqlite://",
        "sqlite:///x.db",
        "file:///tmp/%zz",
        "postgresql://a:b@",
        "\udcff",
    ),
    "text": ("", "C", "a\nb", "\x1b[31m", "\udcff", "x" * 5000),
}


def environment(_: None, rng: random.Random, folder: Path) -> None:
    """What every command asks its surroundings, under variables that were left there."""
    chosen = {name: rng.choice(VALUES[VARIABLES[name]]) for name in rng.sample(sorted(VARIABLES), rng.randint(1, 5))}
    with _variables(chosen):
        (folder / "params.yaml").write_text("run: {seed: 1}\n")
        load_params()
        if is_rank() and not all(chosen.get(name) for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID")):
            raise Fault(f"leftover variables made a rank: {chosen}")
        if usable_cores() < 1:
            raise Fault("no core")
        if is_local():
            tracking_uri()
        origin_tags()


@contextmanager
def _variables(chosen: dict[str, str]) -> Any:
    before = dict(os.environ)
    os.environ.update(chosen)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


PIECES = (
    "a",
    "Z",
    " ",
    "?",
    "%41",
    "%",
    "#",
    "&",
    "'",
    '"',
    "\\",
    "\n",
    "\t",
    "é",
    "日",
    "\udcff",
    "..",
    "-",
    "~",
    "$HOME",
    "*",
    "[x]",
    "x" * 60,
)


def folders(_: None, rng: random.Random, folder: Path) -> None:
    """A project in a folder of any name: made, its settings read, its store named."""
    parts = ["".join(rng.choice(PIECES) for _ in range(rng.randint(1, 4))) for _ in range(rng.choice((1, 1, 2, 30)))]
    here = Path(os.path.normpath(folder / "/".join(part.replace("/", "") for part in parts)))
    if not here.is_relative_to(folder) or here == folder:
        return
    try:
        write_project(here, params_text({}, source=""), use_git=False)
        os.chdir(here)
    except OSError:  # a name that no folder can have
        return
    load_params()
    root = os.environ.get("GPT2_PROJECT_ROOT")
    with _variables({"GPT2_PROJECT_ROOT": str(here)}):
        address = tracking_uri()
    if not address.startswith("sqlite:////") or str(here) not in address:
        raise Fault(f"the store of {here} is {address} (the root was {root})")
