"""`gpt2 push`: a model to the Hugging Face hub, or, with --dry-run, what would go there."""

import argparse
from typing import Any

from gpt2ops.cli.commands.export import add_card_flags, size_text

_EXAMPLES = """examples:
  gpt2 push export/plays me/shakespeare-small --dry-run      # offline: what would be published
  gpt2 push export/plays me/shakespeare-small --private
  gpt2 push models:/gpt2@champion me/shakespeare-small --license mit    # exported, checked, then published
The token is that of `hf auth login` or HF_TOKEN, or of the variable that --token-from-env names; it is never shown."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Publish a folder that `gpt2 export` wrote, or a model, which is exported first, on the Hugging Face hub "
        "(or the one that HF_ENDPOINT names)."
    )
    parser.epilog = _EXAMPLES
    parser.add_argument("model", metavar="MODEL", help="an exported folder, a directory, or models:/NAME@ALIAS")
    parser.add_argument("repo_id", metavar="OWNER/NAME", help="the repository; it is made where it is not")
    parser.add_argument("--private", action="store_true", help="only you can see a new repository")
    parser.add_argument("--dry-run", action="store_true", help="say what would be published; needs no network")
    parser.add_argument(
        "--token-from-env",
        metavar="VARIABLE",
        nargs="?",
        const="HF_TOKEN",
        help="take the token from this variable only",
    )
    add_card_flags(parser)
    parser.add_argument("--json", action="store_true", help="the result as one JSON object")


def run(arguments: argparse.Namespace) -> None:
    """Publish. Raises UserError, with nothing published, where it cannot be done."""
    import tempfile
    from pathlib import Path

    from gpt2ops.publishing.push import check_repo_id, find_token, plan_upload, send

    check_repo_id(arguments.repo_id)
    token = None if arguments.dry_run else find_token(arguments.token_from_env)
    with tempfile.TemporaryDirectory(prefix="gpt2-push-") as folder:
        upload = plan_upload(exported(arguments, Path(folder)))
        address = None
        if not arguments.dry_run:
            address = send(upload, arguments.repo_id, private=arguments.private, token=token)
        print(result(arguments, upload, address))


def exported(arguments: argparse.Namespace, folder: Any) -> Any:
    """The folder as it is where it has a card, else the model, exported into `folder`.

    Raises UserError for flags of the card where there is one, and as `export_model` does.
    """
    from pathlib import Path

    from gpt2core.errors import UserError
    from gpt2ops.publishing.export import export_model

    if (Path(arguments.model) / "README.md").is_file():
        if arguments.license or arguments.language or arguments.dtype != "fp32":
            raise UserError(
                f"{arguments.model} has its card already: give --license, --language and --dtype to `gpt2 export`."
            )
        return Path(arguments.model)
    name = arguments.repo_id.rpartition("/")[2]
    options = {"dtype": arguments.dtype, "licence": arguments.license, "language": arguments.language}
    return export_model(arguments.model, folder / name, repo_id=arguments.repo_id, **options).directory


def result(arguments: argparse.Namespace, upload: Any, address: str | None) -> str:
    """What was published, or would be, as text or JSON."""
    card = card_summary(upload.directory)
    if arguments.json:
        import json

        files = [{"file": name, "size_bytes": size} for name, size in upload.files]
        facts = {"repo_id": arguments.repo_id, "private": arguments.private, "published": address, "files": files}
        return json.dumps(
            {**facts, "size_bytes": upload.size_bytes, "left_out": upload.skipped, "card": card}, indent=2
        )
    lines = [f"{'published' if address else 'would go to'} {address or arguments.repo_id}"]
    lines += [f"  {name:<28}{size_text(size):>12}" for name, size in upload.files]
    lines.append(f"  {f'{len(upload.files)} files':<28}{size_text(upload.size_bytes):>12}")
    if upload.skipped:
        lines.append(f"  left out: {', '.join(upload.skipped)}")
    said = "; ".join(f"{key} {value}" for key, value in card.items())
    lines.append(f"card: {said}")
    if "license" not in card:
        lines.append("card: no license; others may then not use the model (`gpt2 export --license ID`)")
    return "\n".join(lines)


def card_summary(directory: Any) -> dict[str, Any]:
    """The front matter of the card that a reader of the hub sees first. Raises UserError where it is no YAML."""
    from gpt2core.errors import UserError

    try:
        from huggingface_hub import ModelCard

        data = ModelCard.load(directory / "README.md").data.to_dict()
    except Exception as error:  # yaml and the hub's client each raise their own
        raise UserError(f"{directory / 'README.md'} has no valid front matter ({type(error).__name__}).") from None
    shown = {key: data[key] for key in ("license", "language", "base_model", "datasets") if data.get(key)}
    for entry in data.get("model-index") or []:
        for found in entry.get("results", []):
            for metric in found.get("metrics", []):
                shown[str(metric.get("type"))] = metric.get("value")
    return shown
