"""`gpt2 models list|promote|rollback`: the registered models and who is champion."""

import argparse
from typing import Any

from cli.output import number, put, put_json, put_table
from gpt2core.errors import UserError

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
  gpt2 generate --model models:/gpt2@champion --prompt "To be"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|promote|rollback")
    listing = actions.add_parser("list", help="versions, newest first", allow_abbrev=False)
    listing.add_argument("name", nargs="?", metavar="NAME", help="only of this model")
    promoting = actions.add_parser("promote", help="make a version champion", allow_abbrev=False)
    promoting.add_argument("name", metavar="NAME")
    promoting.add_argument("version", metavar="VERSION")
    promoting.add_argument("--force", action="store_true", help="also one that the gate refused")
    rolling = actions.add_parser("rollback", help="make the champion before champion again", allow_abbrev=False)
    rolling.add_argument("name", metavar="NAME")
    for action in (listing, promoting, rolling):
        action.add_argument("--json", action="store_true", help="a list of objects")


def run(arguments: argparse.Namespace) -> None:
    """Raises UserError for a model or version that is not there, one that the gate refused, and no earlier champion."""
    from tasks.registry import NO_MODELS, promote, registered_versions, rollback

    if arguments.action == "list":
        versions = registered_versions(arguments.name)
        if not versions and not arguments.json:
            there = ", ".join(sorted({version.name for version in registered_versions()}))
            raise UserError(f"no registered model {arguments.name!r}; there is {there}." if there else NO_MODELS)
        show(versions, as_json=arguments.json)
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
    headers = ["NAME", "VER", "ALIASES", "CREATED", "TEST PPL", "GATE", "RUN"]
    rows = [
        [
            version.name,
            version.version,
            ", ".join(version.aliases) or "-",
            f"{version.created.astimezone():%d %b %H:%M}",
            number(version.metrics.get("evaluate/test_perplexity")),
            version.gate or "-",
            version.run_id[:8],
        ]
        for version in sorted(versions, key=lambda version: version.name)  # within a name, newest first still
    ]
    put_table(headers, rows, left=(0, 2, 3, 5, 6), gives_way=0)


def as_object(version: Any) -> dict[str, Any]:
    metrics = {key: value for key, value in version.metrics.items() if not key.startswith("system/")}
    return {**vars(version), "created": version.created.isoformat(), "metrics": metrics, "uri": version.uri}
