"""
What commands print: data on stdout, everything else on stderr.

On a terminal tables are rich's; elsewhere aligned text, never cut, one row a line. What comes from the database is
shown without control characters, which a terminal would obey.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from uuid import UUID

if TYPE_CHECKING:
    from rich.console import RenderableType

_LINE_EVERY_S = 5.0


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


def compact(value: Any) -> None:
    """Print one JSON document a line, of a command that prints many."""
    print(json.dumps(plain(value), ensure_ascii=False, allow_nan=False), flush=True)


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


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings."""

    columns: Sequence[Column]
    rows: Iterable[Mapping[str, Any]]
    title: str | None = None
    empty: str = "none"

    def cells(self) -> list[list[str]]:
        """Return all of it as text, but for the headings."""
        return [[cell(row[column.key]) for column in self.columns] for row in self.rows]

    def nothing(self) -> str:
        """Return what stands in place of no rows."""
        return f"{self.title}: {self.empty}" if self.title else self.empty


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values, one a line."""

    values: Mapping[str, Any]

    def lines(self) -> list[str]:
        """Return them aligned."""
        width = max(map(len, self.values))
        return [f"{name.ljust(width)}  {cell(value)}" for name, value in self.values.items()]


Block: TypeAlias = Table | Facts


def blocks(*shown: Block) -> None:
    """Print one below the other."""
    for number, block in enumerate(shown):
        if number:
            line("")
        if isinstance(block, Facts):
            for text in block.lines():
                line(text)
        else:
            table(block.columns, block.rows, title=block.title, empty=block.empty)


def table(columns: Sequence[Column], rows: Iterable[Mapping[str, Any]], *, title: str | None = None, empty: str = "none") -> None:
    """Print rows under headings."""
    shown = Table(columns, rows, title, empty)
    cells = shown.cells()
    if not cells:
        line(shown.nothing())
    elif sys.stdout.isatty():
        from rich.console import Console

        console = Console(highlight=False)
        console.print(_rich_table(columns, cells, title, console.width))
    else:
        _text_table(columns, cells, title)


def rendered(shown: Sequence[Block], width: int) -> "RenderableType":
    """Return what rich shows in a screen of this width."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for block in shown:
        if isinstance(block, Facts):
            parts.append(Text("\n".join(block.lines()) + "\n"))
        elif cells := block.cells():
            parts.append(_rich_table(block.columns, cells, block.title, width))
        else:
            parts.append(Text(block.nothing() + "\n"))
    return Group(*parts)


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


def _rich_table(columns: Sequence[Column], cells: list[list[str]], title: str | None, width: int) -> "RenderableType":
    from rich import box, table
    from rich.text import Text

    shown = table.Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    kept = _fitting(columns, cells, width)
    for number in kept:
        column = columns[number]
        shown.add_column(column.heading, justify=column.justify, overflow="fold", no_wrap=column.key == "run_id")
    for row in cells:
        shown.add_row(*(Text(row[number], style=STYLES.get(row[number], "")) for number in kept))
    return shown


def _fitting(columns: Sequence[Column], cells: list[list[str]], width: int) -> list[int]:
    """Choose columns that a terminal of this width has room for."""
    widths = [max(len(row[n]) for row in [[c.heading for c in columns], *cells]) for n in range(len(columns))]
    kept = list(range(len(columns)))
    while sum(widths[n] + 3 for n in kept) > width and any(columns[n].spare for n in kept):
        kept.remove(max(kept, key=lambda n: columns[n].spare))
    return kept


#: Colours of the terminal's own palette, so that they fit a dark and a light one.
STYLES = {"completed": "green", "failed": "red", "cancelled": "yellow", "running": "cyan", "pending": "blue"}


def fields(values: Mapping[str, Any]) -> None:
    """Print names and values, one a line."""
    blocks(Facts(values))


Told: TypeAlias = Callable[[str], None]


def busy(what: str) -> AbstractContextManager[Any]:
    """Show on a terminal that something is being done."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(what)


@contextmanager
def progress(what: str) -> Iterator[Told]:
    """Show how something without a known end goes on: on a terminal as it is told, elsewhere a line every 5 s."""
    if not sys.stderr.isatty():
        yield _now_and_then(what)
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(what)) as status:
        yield lambda text: status.update(Text(printable(f"{what}: {text}")))


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how much of something is done: on a terminal as a bar, elsewhere a line every 5 s."""
    if not sys.stderr.isatty():
        told = _now_and_then(what)
        yield lambda done: told(f"{done:,} of {total:,}")
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4) as shown:
        task = shown.add_task(what, total=total)
        yield lambda done: shown.update(task, completed=done)


def _now_and_then(what: str) -> Told:
    latest = time.monotonic()

    def told(text: str) -> None:
        nonlocal latest
        if time.monotonic() - latest >= _LINE_EVERY_S:
            latest = time.monotonic()
            say(printable(f"{what}: {text}"))

    return told
