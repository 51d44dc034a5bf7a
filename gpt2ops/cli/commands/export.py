"""`gpt2 export`: a model as a Hugging Face directory with a card, checked in two other runtimes."""

import argparse
from typing import Any

_EXAMPLES = """examples:
  gpt2 export --output-dir export/plays                                      # models/best
  gpt2 export --model models:/gpt2@champion --output-dir export/champion --dtype bf16
  gpt2 export --model models/mine --output-dir export/mine --license mit --language en
then: AutoModelForCausalLM.from_pretrained("export/plays"), or `gpt2 push export/plays OWNER/NAME`"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write a model as a Hugging Face directory: weights, tokenizer, generation config and a model card. It appears "
        "only when transformers and CTranslate2 have loaded it and given the tokens that this project gives."
    )
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "--model",
        default="models/best",
        metavar="MODEL",
        help="a directory, a released size (gpt2 ... gpt2-xl), or models:/NAME@ALIAS (default: %(default)s)",
    )
    parser.add_argument("--output-dir", required=True, metavar="DIR", help="where it goes; must not exist yet")
    add_card_flags(parser)
    parser.add_argument("--json", action="store_true", help="the result as one JSON object")


def add_card_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that `gpt2 push` has too."""
    parser.add_argument(
        "--dtype",
        choices=("fp32", "fp16", "bf16"),
        default="fp32",
        help="how weights are stored (default: %(default)s)",
    )
    parser.add_argument(
        "--license", metavar="ID", help="licence of the weights for the card, as the hub spells it: mit"
    )
    parser.add_argument("--language", metavar="CODE", help="language of the text for the card: en, de ...")


def run(arguments: argparse.Namespace) -> None:
    """Export, and print what was checked. Raises UserError, with nothing written, where it fails."""
    from pathlib import Path

    from gpt2ops.projects.output_directory import check_new_directory
    from gpt2ops.publishing.export import export_model

    output = Path(arguments.output_dir)
    check_new_directory(output)
    export = export_model(
        arguments.model, output, dtype=arguments.dtype, licence=arguments.license, language=arguments.language
    )
    if arguments.json:
        import json

        print(json.dumps(as_object(export), indent=2))
        return
    size = sum(size for _, size in export.files)
    print(f"written    {output}: {len(export.files)} files, {size_text(size)}")
    for check in export.checks:
        print(f"checked    {check.runtime}: {check.result}")
    print(f"card       {card_line(export.facts, arguments.license)}")


def as_object(export: Any) -> dict[str, Any]:
    """The result for --json."""
    return {
        "output_dir": str(export.directory),
        "files": [{"file": name, "size_bytes": size} for name, size in export.files],
        "checks": [{"runtime": check.runtime, "result": check.result} for check in export.checks],
        "verdict": export.facts.verdict,
        "held_out_perplexity": held_out_perplexity(export.facts),
    }


def held_out_perplexity(facts: Any) -> float | None:
    return facts.metrics.get(f"evaluate/{facts.held_out}_perplexity") if facts.held_out else None


def card_line(facts: Any, licence: str | None) -> str:
    """The card in one line."""
    from gpt2ops.registry.scoring.coverage import certainty_text, split_score

    perplexity = held_out_perplexity(facts)
    said = ["no held-out perplexity known"]
    if perplexity is not None:
        score = split_score(facts.metrics, facts.held_out)
        certainty = certainty_text(score)
        said = [f"held-out perplexity {perplexity:,.2f}" + (f" ({certainty})" if certainty else "")]
    said += [facts.verdict] if facts.verdict not in (None, "unknown") else []
    said += [f"trained on {facts.data['source']}"] if facts.data else []
    return ", ".join([*said, f"licence {licence}" if licence else "no licence yet (--license)"])


def size_text(size_bytes: int) -> str:
    """`29.0 MB`."""
    return f"{size_bytes / 1e6:,.1f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:,.1f} kB"
