"""How far something long is: a bar on a terminal, elsewhere a line every few seconds; on stderr in both cases."""

import sys
import time
from types import TracebackType
from typing import Any, Self

from notifyworker.cli import output

_LINE_S = 5.0


class Progress:
    """
    `with Progress("cancelling", 1000, "runs") as progress: progress.at(10)`.

    Without a total it shows how many there were. Ends with a last line or a full bar only if it is told so.
    """

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self._what = what
        self._total = total
        self._unit = unit
        self._bar: Any = None
        self._told_at = time.monotonic()

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar = _bar(self._unit)
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=self._total)
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def at(self, done: int) -> None:
        """Show that so many are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
        elif time.monotonic() - self._told_at >= _LINE_S:
            self._told_at = time.monotonic()
            of = f" of {self._total:,}" if self._total is not None else ""
            output.say(f"{self._what}: {done:,}{of} {self._unit}")


def _bar(unit: str) -> Any:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TextColumn("{task.completed:,.0f} " + unit),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    return progress.Progress(*columns, console=Console(stderr=True))
