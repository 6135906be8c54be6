"""What the demo shows while it runs: on a terminal a live picture, elsewhere a line a second. All of it on stderr."""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

_STATES = ("completed", "failed", "cancelled", "running", "pending")
_MARKS = {"completed": "█", "failed": "▒", "cancelled": "▒", "running": "▓", "pending": "░"}
_STYLES = {"completed": "green", "failed": "red", "cancelled": "yellow", "running": "cyan", "pending": "dim"}
_BAR = 60
_LINE_S = 1.0


class Board:
    """Counts of runs by kind and state, and what has happened so far."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._last_line = self._began
        self._last_text = ""
        self._live: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True, highlight=False), auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._live is not None:
            self._live.stop()

    def happened(self, text: str) -> None:
        """Tell an event, with the time since the start."""
        shown = f"{time.monotonic() - self._began:6.1f} s  {text}"
        if self._live is not None:
            self._live.console.print(shown, markup=False, soft_wrap=True)
        else:
            print(shown, file=sys.stderr, flush=True)

    def show(self, rows: Sequence[tuple[str, str, int]], *, last: bool = False) -> None:
        """Show the counts: rows of kind, state, runs."""
        self._counts = Counter({(kind, state): runs for kind, state, runs in rows})
        if self._live is not None:
            self._live.update(self._picture(), refresh=True)
        elif last or time.monotonic() - self._last_line >= _LINE_S:
            self._last_line = time.monotonic()
            if self.text() != self._last_text:
                self._last_text = self.text()
                self.happened(self._last_text)

    def text(self) -> str:
        """Return the counts by state in one line."""
        by_state = self._by_state()
        return "  ".join(f"{state} {by_state[state]}" for state in _STATES if by_state[state]) or "no runs yet"

    def _by_state(self) -> Counter[str]:
        by_state: Counter[str] = Counter()
        for (_kind, state), runs in self._counts.items():
            by_state[state] += runs
        return by_state

    def _picture(self) -> "Group":
        from rich.console import Group

        return Group(self._bar(), self._table())

    def _bar(self) -> "Text":
        from rich.text import Text

        by_state, bar, filled, seen = self._by_state(), Text(), 0, 0
        total = by_state.total() or 1
        for state in _STATES:
            seen += by_state[state]
            upto = max(round(_BAR * seen / total), filled + bool(by_state[state]))  # at least one mark for what is there
            bar.append(_MARKS[state] * (upto - filled), style=_STYLES[state])
            filled = upto
        return bar.append(f"  {by_state.total()} runs")

    def _table(self) -> "Table":
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("kind")
        for state in _STATES:
            table.add_column(Text(f"{_MARKS[state]} {state}", style=_STYLES[state]), justify="right")
        for kind in sorted({kind for kind, _state in self._counts}):
            table.add_row(kind, *(str(self._counts[kind, state] or "") for state in _STATES))
        return table
