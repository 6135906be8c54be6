"""
What commands print: data on stdout, everything else on stderr.

On a terminal tables are rich's; elsewhere aligned text, never cut, one row a line. What comes from the database is
shown without control characters, which a terminal would obey.
"""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: its heading, and which value of a row stands in it."""

    heading: str
    key: str
    justify: Literal["left", "right"] = "left"
    spare: int = 0  # left out where a terminal is too narrow for all: the highest first, 0 never


def document(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def line(text: str) -> None:
    """Print one line of data."""
    print(text)


def say(text: str) -> None:
    """Tell something that is no data."""
    print(text, file=sys.stderr, flush=True)


def plain(value: Any) -> Any:
    """Return what JSON has: times RFC 3339 in UTC, durations in seconds, ids as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return moment(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, UUID) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return value


def moment(value: datetime) -> str:
    """Return RFC 3339 in UTC."""
    return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def age(seconds: float | None) -> str:
    """Return a duration for people."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.1f} s"
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours < 1:
        return f"{minutes} min {int(seconds % 60)} s"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"  # noqa: PLR2004 - two days


def cell(value: Any) -> str:
    """Return a value as it stands in a table."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return printable(",".join(value))
    if isinstance(value, dict | list):
        return printable(json.dumps(plain(value), ensure_ascii=False))
    return age(value.total_seconds()) if isinstance(value, timedelta) else printable(str(value))


def printable(text: str) -> str:
    """Show control characters instead of sending them to a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table(columns: Sequence[Column], rows: Iterable[Mapping[str, Any]], *, title: str | None = None, empty: str = "none") -> None:
    """Print rows under headings."""
    cells = [[cell(row[column.key]) for column in columns] for row in rows]
    if not cells:
        line(f"{title}: {empty}" if title else empty)
    elif sys.stdout.isatty():
        _rich_table(columns, cells, title)
    else:
        _text_table(columns, cells, title)


def _text_table(columns: Sequence[Column], cells: list[list[str]], title: str | None) -> None:
    if title:
        line(title)
    lines = [[column.heading for column in columns], *cells]
    widths = [max(len(row[n]) for row in lines) for n in range(len(columns))]
    for row in lines:
        shown = (
            text.rjust(width) if column.justify == "right" else text.ljust(width)
            for text, width, column in zip(row, widths, columns, strict=True)
        )
        line("  ".join(shown).rstrip())


def _rich_table(columns: Sequence[Column], cells: list[list[str]], title: str | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    shown = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    kept = _fitting(columns, cells, console.width)
    for number in kept:
        column = columns[number]
        shown.add_column(column.heading, justify=column.justify, overflow="fold", no_wrap=column.key == "run_id")
    for row in cells:
        shown.add_row(*(Text(row[number], style=_STYLES.get(row[number], "")) for number in kept))
    console.print(shown)


def _fitting(columns: Sequence[Column], cells: list[list[str]], width: int) -> list[int]:
    """Choose columns that a terminal of this width has room for."""
    widths = [max(len(row[n]) for row in [[c.heading for c in columns], *cells]) for n in range(len(columns))]
    kept = list(range(len(columns)))
    while sum(widths[n] + 3 for n in kept) > width and any(columns[n].spare for n in kept):
        kept.remove(max(kept, key=lambda n: columns[n].spare))
    return kept


_STYLES = {"completed": "green", "failed": "red", "cancelled": "yellow", "running": "cyan", "pending": "blue"}


def fields(values: Mapping[str, Any]) -> None:
    """Print names and values, one a line."""
    width = max(map(len, values))
    for name, value in values.items():
        line(f"{name.ljust(width)}  {cell(value)}")


def busy(what: str) -> AbstractContextManager[Any]:
    """Show on a terminal that something is being done."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(what)
