"""The terminal's table."""

from typing import Any

from rich.console import Console
from rich.table import Table


def shown(document: dict[str, Any], console: Console) -> None:
    """Print one scenario's lines: medians, the spread over the rounds of the first figure, and the ratio to each line's base."""
    table = Table(title=document["title"], title_justify="left", title_style="bold")
    table.add_column("", overflow="fold")
    for column in document["columns"]:
        table.add_column(column["heading"], justify="right")
    table.add_column("rounds", justify="right", no_wrap=True)
    for heading in compared(document):
        table.add_column(heading, justify="right")
    for line in document["lines"]:
        table.add_row(*cells(document, line))
    console.print(table)


def compared(document: dict[str, Any]) -> list[str]:
    """Headings of the columns with ratios; none where each figure has its own, to another line of ours."""
    return [] if document.get("within") else [f"to {document['base']}", "us to it"]


def cells(document: dict[str, Any], line: dict[str, Any]) -> list[str]:
    """One line's texts: also those of docs/performance.md."""
    columns = document["columns"]
    title = line["variant"] if document.get("within") else line["title"]
    if "figures" not in line:
        return [title, line["error"], *[""] * (len(columns) + len(compared(document)))]
    figures = line["figures"]
    first = columns[0]
    spread = figures[first["key"]]
    digits = first["digits"]
    between = f"{spread['min']:,.{digits}f}..{spread['max']:,.{digits}f}"
    ratios = line.get("ratios", {}) if document.get("within") else {}
    values = [
        f"{figures[c['key']]['median']:,.{c['digits']}f}{_by(ratios.get(c['key']) if c.get('divided', True) else None)}"
        if c["key"] in figures
        else ""
        for c in columns
    ]
    note = f" (some rounds: {line['error']})" if "error" in line else ""
    if figures.get("trouble", {}).get("max"):
        note += f" ({figures['trouble']['max']:.0f} deadlocks or serialization failures)"
    bases = ("to_base", "us_to_it") if compared(document) else ()
    return [title + note, *values, between, *(_ratio(line.get(base)) for base in bases)]


def _by(value: float | None) -> str:
    return "" if value is None else f" ({value:.2f}x)"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"
