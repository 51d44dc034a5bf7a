"""`gpt2 models list|promote|rollback|lineage`: the registered models and who is champion."""

import argparse
from typing import Any

from gpt2ops.cli.output import number, put, put_json, put_table
from gpt2ops.registry.scoring.coverage import split_score

DESCRIPTION = """\
The registered models. A run registers its model as `challenger`; it becomes
`champion` where the gate finds it better (register.gate in params.yaml).
`promote` makes another version champion, `rollback` the champion before; the
text model of the same run (NAME-text) goes with it."""
EXAMPLES = """\
examples:
  gpt2 models list
  gpt2 models promote gpt2 3
  gpt2 models rollback gpt2
  gpt2 models lineage gpt2@champion --html lineage.html
  gpt2 generate --model models:/gpt2@champion --prompt "To be"
"""

# Description and examples of each.
LIST = (
    "List the registered versions, newest first: their aliases, held-out perplexity\n"
    "and what the gate said. models:/NAME@ALIAS or models:/NAME/VERSION names one.",
    "examples:\n  gpt2 models list\n  gpt2 models list gpt2 --json | jq '.[0].gate_reasons'",
)
PROMOTE = (
    "Make a version champion, and the text model of the same run with it. The one\n"
    "before is kept: `gpt2 models rollback NAME` brings it back.",
    "examples:\n  gpt2 models promote gpt2 3\n  gpt2 models promote gpt2 2 --force      although the gate refused it",
)
ROLLBACK = (
    "Make the version champion that was it before, and the text model of the same\nrun with it. No version is removed.",
    "example:\n  gpt2 models rollback gpt2",
)
LINEAGE = (
    "Where a version came from (data, code, settings, the version it started at, and\n"
    "so on) and what was made from it, as text or as a page.",
    "examples:\n  gpt2 models lineage gpt2@champion\n  gpt2 models lineage gpt2/3 --html lineage.html",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|promote|rollback|lineage")
    listing = _action(actions, "list", "versions, newest first", LIST)
    listing.add_argument("name", nargs="?", metavar="NAME", help="only of this model")
    promoting = _action(actions, "promote", "make a version champion", PROMOTE)
    promoting.add_argument("name", metavar="NAME", help="a registered model, such as gpt2")
    promoting.add_argument("version", metavar="VERSION", help="its number, as `gpt2 models list` shows it")
    promoting.add_argument("--force", action="store_true", help="also one that the gate refused")
    rolling = _action(actions, "rollback", "make the champion before champion again", ROLLBACK)
    rolling.add_argument("name", metavar="NAME", help="a registered model, such as gpt2")
    for action in (listing, promoting, rolling):
        action.add_argument("--json", action="store_true", help="a list of objects")
    tracing = _action(actions, "lineage", "where a version came from", LINEAGE)
    tracing.add_argument("model", metavar="NAME@ALIAS|NAME/VERSION", help="a version, such as gpt2@champion")
    tracing.add_argument("--html", metavar="FILE", help="write it as a page")
    tracing.add_argument("--json", action="store_true", help="one object, nested")


def _action(actions: Any, name: str, summary: str, texts: tuple[str, str]) -> argparse.ArgumentParser:
    description, epilog = texts
    parser: argparse.ArgumentParser = actions.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        allow_abbrev=False,
    )
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Raises UserError for a model or version that is not there, one that the gate refused, and no earlier champion."""
    from gpt2ops.registry.models import no_such_model, promote, registered_versions, rollback

    if arguments.action == "list":
        versions = registered_versions(arguments.name)
        if not versions and not arguments.json:
            raise no_such_model(arguments.name, registered_versions())
        show(versions, as_json=arguments.json)
        return
    if arguments.action == "lineage":
        show_lineage(arguments)
        return
    if arguments.action == "promote":
        changed = promote(arguments.name, arguments.version, arguments.force)
    else:
        changed = rollback(arguments.name)
    if arguments.json:
        put_json([as_object(version) for version in changed])
    else:
        for version in changed:
            put(f"{version.name} version {version.version} is champion: models:/{version.name}@champion\n")


def show(versions: list[Any], *, as_json: bool) -> None:
    if as_json:
        put_json([as_object(version) for version in versions])
        return
    headers = ["NAME", "VER", "ALIASES", "CREATED", "TEST PPL", "OF TEXT", "GATE", "RUN"]
    rows = [
        [
            version.name,
            version.version,
            ", ".join(version.aliases) or "-",
            f"{version.created.astimezone():%d %b %H:%M}",
            number(version.metrics.get("evaluate/test_perplexity")),
            scored(version.metrics),
            version.gate or "-",
            version.run_id[:8],
        ]
        for version in sorted(versions, key=lambda version: version.name)  # within a name, newest first still
    ]
    put_table(headers, rows, left=(0, 2, 3, 6, 7), shrink=0)


def scored(metrics: dict[str, float]) -> str:
    """The share of the test split that was scored."""
    score = split_score(metrics, "test")
    tokens, everything = score.get("tokens"), score.get("split_tokens")
    if not tokens or not everything:
        return "-"
    return "all" if tokens >= everything else f"{tokens / everything:.2%}"


def show_lineage(arguments: argparse.Namespace) -> None:
    from gpt2core.storage.files import atomic_path, with_home
    from gpt2ops.registry.lineage import lineage
    from gpt2ops.reporting.lineage import as_page, as_text

    found = lineage(arguments.model)
    if arguments.html:
        target = with_home(arguments.html)
        with atomic_path(target) as partial:
            partial.write_text(as_page(found), encoding="utf-8")
    if arguments.json:
        put_json(found)
    else:
        put(f"the page is {arguments.html}\n" if arguments.html else as_text(found))


def as_object(version: Any) -> dict[str, Any]:
    metrics = {key: value for key, value in version.metrics.items() if not key.startswith("system/")}
    return {**vars(version), "created": version.created.isoformat(), "metrics": metrics, "uri": version.uri}
