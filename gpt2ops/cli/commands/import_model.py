"""`gpt2 import`: converts weights made elsewhere to a directory that this project and transformers load."""

import argparse
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2core.importing import ImportedModel

_EXAMPLES = """examples:
  gpt2 import out/ckpt.pt --output-dir models/mine                  # nanoGPT
  gpt2 import gpt2_best_model.pt --output-dir models/mine           # a state dict, or a checkpoint that holds one
  gpt2 import trained_model.pth --n-head 12 --output-dir models/mine
  gpt2 import checkpoint/run1 --output-dir models/mine              # gpt-2-simple, without TensorFlow
  gpt2 import distilgpt2 --output-dir models/distil                 # a name of the Hugging Face hub
then: gpt2 generate --model models/mine --prompt "Once", or `model.init: models/mine` in params.yaml"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Read GPT-2 weights made elsewhere, describe them, test them on a text, and write a Hugging Face directory. "
        "No code in the file is executed. docs/exchange.md lists the layouts."
    )
    parser.epilog = _EXAMPLES
    parser.add_argument("source", metavar="SOURCE", help="a file, a folder, or a name of the Hugging Face hub")
    parser.add_argument("--output-dir", required=True, metavar="DIR", help="where the model goes; must not exist yet")
    parser.add_argument(
        "--n-head", type=int, metavar="N", help="heads, where the file does not say (default: the best guess)"
    )
    parser.add_argument(
        "--activation",
        choices=("gelu_new", "gelu"),
        help="the tanh approximation or the exact GELU (default: as the file's program has it)",
    )
    parser.add_argument("--text", metavar="FILE", help="try the model on this text (default: a paragraph of English)")
    parser.add_argument("--json", action="store_true", help="the result as one JSON object")


def run(arguments: argparse.Namespace) -> None:
    """Import, and print what was found. Raises UserError, with nothing written, where it fails."""
    from pathlib import Path

    from gpt2ops.projects.output_directory import check_new_directory

    output = Path(arguments.output_dir)
    check_new_directory(output)
    text = read_text(arguments.text) if arguments.text else None
    from gpt2core.importing import import_model

    source = find_source(arguments.source)
    imported = import_model(source, n_head=arguments.n_head, activation=arguments.activation, text=text)
    write(imported, arguments.source, output)
    if arguments.json:
        import json

        print(json.dumps({"source": arguments.source, "output_dir": str(output), **facts(imported)}, indent=2))
    else:
        print(report(imported, output))


def find_source(name: str) -> "Any":
    """The path `name`, or the hub's cache directory of the model `name`."""
    from pathlib import Path

    from gpt2core.errors import UserError
    from gpt2core.importing.hub import fetch_from_hub, is_hub_name

    path = Path(name)
    if path.exists() or path.with_name(path.name + ".index").exists():
        return path
    looks_like_path = path.suffix in (".pt", ".pth", ".ckpt", ".bin", ".safetensors") or name.startswith((".", os.sep))
    if looks_like_path or not is_hub_name(name):
        raise UserError(f"{name}: no such file or folder.")
    return fetch_from_hub(name)


def read_text(name: str) -> str:
    """The text of --text. Raises UserError where it cannot be read."""
    from pathlib import Path

    from gpt2core.errors import UserError

    try:
        return Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"--text {name}: not UTF-8 text; save it as UTF-8.") from None
    except OSError as error:
        raise UserError(f"--text {name}: {error.strerror}.") from None


def write(imported: "ImportedModel", source: str, output: "Any") -> None:
    """Write the model, its tokenizer, and `import.json`, which records the source."""
    from pathlib import Path

    from gpt2core.data.examples.template import template_of
    from gpt2core.storage.files import replaced_directory, write_json
    from gpt2core.tokenizer import Tokenizer

    with replaced_directory(output) as partial:
        imported.model.save_pretrained(partial)
        # safetensors makes a file for its owner only; whoever may read the rest may read this.
        (partial / "model.safetensors").chmod((partial / "config.json").stat().st_mode)
        Tokenizer().save(partial)
        if template := template_of(Path(source)):
            template.save(partial)
        write_json(partial / "import.json", {"source": Path(source).name, **facts(imported)})


def facts(imported: "ImportedModel") -> dict[str, Any]:
    """The content of --json and import.json."""
    found = imported.probe
    return {
        "layout": imported.layout,
        "config": imported.model.config.as_dict(),
        "parameters": imported.model.num_parameters(),
        "loss": round(found.loss, 4),
        "uniform_loss": round(found.uniform_loss, 4),
        "tokens_tried": found.tokens,
        "knows_the_text": found.knows_the_text,
        "notes": list(imported.notes),
    }


def report(imported: "ImportedModel", output: "Any") -> str:
    """The result as text."""
    config, found = imported.model.config, imported.probe
    sizes = f"n_layer {config.n_layer}, n_head {config.n_head}, n_embd {config.n_embd}, block_size {config.block_size}"
    lines = [
        f"found      {imported.layout}",
        f"sizes      {sizes}: {imported.model.num_parameters():,} parameters",
        *(f"note       {note}" for note in imported.notes),
        f"tried      logits are finite; loss {found.loss:.2f} on {found.tokens} tokens (guessing blindly: "
        f"{found.uniform_loss:.2f})",
    ]
    if not found.knows_the_text:
        lines.append(
            "warning    no better than guessing: an untrained model, another tokenizer, another architecture, or a "
            "text learned by heart; try it on its own text with --text FILE"
        )
    lines.append(f'written    {output}; try: gpt2 generate --model {output} --prompt "..."')
    return "\n".join(lines)
