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
    table.add_column(f"to {document['base']}", justify="right")
    table.add_column("us to it", justify="right")
    for line in document["lines"]:
        table.add_row(*cells(document, line))
    console.print(table)


def cells(document: dict[str, Any], line: dict[str, Any]) -> list[str]:
    """One line's texts: also those of docs/performance.md."""
    columns = document["columns"]
    if "figures" not in line:
        return [line["title"], line["error"], *[""] * (len(columns) + 2)]
    figures = line["figures"]
    first = columns[0]
    spread = figures[first["key"]]
    digits = first["digits"]
    between = f"{spread['min']:,.{digits}f}..{spread['max']:,.{digits}f}"
    values = [f"{figures[c['key']]['median']:,.{c['digits']}f}" if c["key"] in figures else "" for c in columns]
    note = f" (some rounds: {line['error']})" if "error" in line else ""
    if figures.get("trouble", {}).get("max"):
        note += f" ({figures['trouble']['max']:.0f} deadlocks or serialization failures)"
    return [line["title"] + note, *values, between, *(_ratio(line.get(base)) for base in ("to_base", "us_to_it"))]


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"
