"""A version's lineage as text, and as a page without scripts."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from gpt2ops.reporting.render import environment, style

Node = dict[str, Any]
INDENT = "  "


def as_text(node: Node) -> str:
    """A tree: the version, what it was made of, then what was made from it."""
    lines = [*_version_lines(node, ""), *_below(node["made_from_it"], "")]
    return "\n".join(lines) + "\n"


def as_page(node: Node) -> str:
    """A self-contained HTML page: ancestors above the version, descendants below."""
    chain = [node]
    while (start := chain[0]["starts_from"]) and start["kind"] == "version":
        chain.insert(0, start["lineage"])
    return environment().get_template("lineage.html").render(
        chain=chain, node=node, style=style(), version_name=version_name, facts=run_facts, when=when
    ) + "\n"  # fmt: skip


def version_name(version: Node) -> str:
    aliases = f" ({', '.join(version['aliases'])})" if version["aliases"] else ""
    return f"{version['name']} version {version['version']}{aliases}"


def when(moment: str) -> str:
    return f"{datetime.fromisoformat(moment).astimezone():%d %b %Y %H:%M}"


def run_facts(run: Node) -> list[tuple[str, str]]:
    """What a run was made of: its text, code and settings."""
    data, code, settings = run["data"], run["code"], run["settings"]
    commit = code["git_commit"] or "unknown"
    commit = commit if commit == "unknown" else commit[:10] + (", with changes" if code["git_dirty"] == "true" else "")
    steps = "" if settings["steps"] is None else f", {settings['steps']:,.0f} steps"
    loss = "" if settings["val_loss"] is None else f", best validation loss {settings['val_loss']:.3f}"
    seeds = f", the median of seeds {run['median_of_seeds']}" if "median_of_seeds" in run else ""
    facts = [
        ("data", f"{data['source']}, sha256 {(data['sha256'] or 'unknown')[:12]}"),
        ("code", f"{code['version'] or 'unknown'}, git commit {commit}"),
        ("settings", f"{settings['recipe']}, seed {settings['seed']}{seeds}{steps}{loss}"),
    ]
    return facts + [(key.replace("_", " "), run[key]) for key in ("rerun_of", "cached_from") if key in run]


def _version_lines(node: Node, indent: str) -> Iterator[str]:
    version, run, start = node["version"], node["run"], node["starts_from"]
    yield f"{indent}{version_name(version)}, {when(version['created'])}"
    indent += INDENT
    if version["test_perplexity"] is not None:
        yield f"{indent}test perplexity {version['test_perplexity']:.2f}, gate {version['gate'] or 'unknown'}"
    for other in node["same_weights"]:
        yield f"{indent}the same weights: {version_name(other)}"
    if run is None:
        yield f"{indent}its run is not in the store any more"
        return
    yield from _run_lines(run, indent)
    if start["kind"] == "version":
        yield f"{indent}{INDENT}started at {start['name']}, which was"
        yield from _version_lines(start["lineage"], indent + 2 * INDENT)
    else:
        yield f"{indent}{INDENT}started at {start['kind']}: {start['name']}"


def _run_lines(run: Node, indent: str) -> Iterator[str]:
    yield f"{indent}run {run['name']} ({run['run_id'][:8]}), {run['state']}, {when(run['started'])}"
    for name, fact in run_facts(run):
        yield f"{indent}{INDENT}{name}: {fact}"


def _below(nodes: list[Node], indent: str) -> Iterator[str]:
    if not nodes:
        yield f"{indent}nothing was made from it"
        return
    yield f"{indent}made from it:"
    for node in nodes:
        yield from _run_lines(node["run"], indent + INDENT)
        for version in node["versions"]:
            yield f"{indent}{2 * INDENT}{version_name(version)}, {when(version['created'])}"
        if node["made_from_it"]:
            yield from _below(node["made_from_it"], indent + 2 * INDENT)
