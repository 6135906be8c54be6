"""docs/performance.md, made of the JSON in benchmarks/results: no figure in it is typed by hand."""

from pathlib import Path
from typing import Any

from benchmarks.table import cells, compared

HEAD = """\
<!-- Made by `python -m benchmarks report` from benchmarks/results/*.json. `python -m benchmarks check` fails if it differs. -->

# Performance

What `make bench` measured, with peers beside us: the same machine, the same PostgreSQL with fsync on, turn by turn, each
contender in processes of its own. Figures are medians over the rounds; *rounds* is the range of the first figure. Ratios
are of that figure, above 1 is better. Absolute numbers say as much about the machine as about the software: compare
within a table, not across machines. [benchmarks/README.md](../benchmarks/README.md) has each contender's settings, and why.
"""


def written(documents: dict[str, dict[str, Any]]) -> str:
    """The whole page."""
    parts = [HEAD]
    for name, document in documents.items():
        parts += _scenario(name, document)
    parts += _contenders(documents)
    return "\n".join(parts).rstrip() + "\n"


def _scenario(name: str, document: dict[str, Any]) -> list[str]:
    columns = [column["heading"] for column in document["columns"]]
    heading = ["", *columns, "rounds", *compared(document)]
    lines = ["| " + " | ".join(heading) + " |", "|---|" + "---:|" * (len(heading) - 1)]
    lines += [
        "| " + " | ".join(_bold(cells(document, line), is_ours=_stands_out(document, line))) + " |" for line in document["lines"]
    ]
    picture = ["", f"![{document['title']}](../benchmarks/results/{name}.svg)"] if document.get("picture") else []
    return [f"## {document['title']}", "", document["how"], *picture, "", *lines, "", _conditions(document["conditions"]), ""]


def _stands_out(document: dict[str, Any], line: dict[str, Any]) -> bool:
    """Whether it is ours among others."""
    return line["contender"] == "us" and not document.get("within")


def _bold(texts: list[str], *, is_ours: bool) -> list[str]:
    escaped = [text.replace("|", "\\|") for text in texts]
    return [f"**{escaped[0]}**", *escaped[1:]] if is_ours else escaped


def _conditions(conditions: dict[str, Any]) -> str:
    machine, options = conditions["machine"], conditions["options"]
    settings = ", ".join(f"{name} {value}" for name, value in conditions["postgres"].items())
    loop = f"uvloop {conditions['uvloop']}" if conditions["uvloop"] else "asyncio's loop"
    asked = ", ".join(f"{name} {value}" for name, value in options.items())
    return (
        f"*{conditions['date']}; {'ours at ' + conditions['commit'] + '; ' if conditions.get('commit') else ''}{machine['cores']} cores ({machine['cpu'] or 'unnamed'}), {machine['memory_gib']} GiB, "
        f"{machine['system']}, load {machine['load_before']} before the start; {conditions['postgres_version']}; {settings}; "
        f"Python {conditions['python']}, {loop}, asyncpg {conditions['asyncpg']}"
        f"{'; Node ' + conditions['node'] if conditions.get('node') else ''}"
        f"{'; ' + conditions['redis_version'] if conditions.get('redis_version') else ''}; asked for: {asked}.*"
    )


def _contenders(documents: dict[str, dict[str, Any]]) -> list[str]:
    seen: dict[str, dict[str, Any]] = {}
    for document in documents.values():
        for line in document["lines"]:
            seen.setdefault(line["contender"], line)
    rows = [
        f"| {line['contender_title']} | {line['settings']} | {line['durability']} | {line['measured']} |"
        for line in seen.values()
    ]
    return ["## Contenders", "", "| | settings | durability | pickup is measured with |", "|---|---|---|---|", *rows, ""]


def check(path: Path, documents: dict[str, dict[str, Any]]) -> bool:
    """Whether the page says what the JSON says."""
    return path.exists() and path.read_text() == written(documents)
