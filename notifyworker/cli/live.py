"""
Commands that go on until Ctrl-C: a screen that is drawn anew, or lines that are added.

A lost database ends none of them: they say so, once, and go on when it answers again. Ctrl-C and SIGTERM end them at
once, whatever they wait for, with exit code 0.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TypeVar

from notifyworker.cli import output
from notifyworker.cli.database import Database, opened
from notifyworker.cli.options import DatabaseOptions
from notifyworker.database import DatabaseError, brief, is_refusal
from notifyworker.errors import DatabaseUnavailable, SettingsError
from notifyworker.pause import Backoff, is_set_within

_T = TypeVar("_T")
_ANSWER_S = 35.0  # the server gives a statement 30
_SHORTEST_S, _LONGEST_S = 0.1, 3600.0


class Stopped(Exception):
    """Somebody wants an end."""


@contextlib.asynccontextmanager
async def until_signalled() -> AsyncIterator[asyncio.Event]:
    """Yield what SIGINT and SIGTERM set from now on."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


class Watched:
    """An installation that is asked again and again; its connection is made anew when it is lost."""

    def __init__(self, options: DatabaseOptions, stop: asyncio.Event, *, lost: Callable[[str], None] = output.say) -> None:
        """`lost` is told, once a loss, what happened."""
        self._options = options
        self._stop = stop
        self._lost = lost
        self._stack = contextlib.AsyncExitStack()
        self._database: Database | None = None
        self._has_answered = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        await self._stack.__aexit__(kind, error, at)  # which turns what the database refused into a sentence

    async def ask(self, question: Callable[[Database], Awaitable[_T]]) -> _T:
        """
        Return the answer, however long the database is away.

        Raises Stopped, and what is no matter of waiting: a refusal, or a database that never answered at all.
        """
        backoff, is_told = Backoff(), False
        while True:
            try:
                answer = await self._unless_stopped(self._asked(question))
            except (DatabaseUnavailable, *DatabaseError) as error:
                if not self._has_answered or is_refusal(error):
                    raise
                await self._stack.aclose()
                self._database = None
                if not is_told:
                    is_told = True
                    told = str(error) if isinstance(error, DatabaseUnavailable) else brief(error)
                    self._lost(f"no answer from the database: {told}; it is tried again")
                if await is_set_within(self._stop, backoff.next_s()):
                    raise Stopped from None
            else:
                self._has_answered = True
                if is_told:
                    self._lost("")
                return answer

    async def pause(self, seconds: float) -> None:
        """Wait so long. Raises Stopped."""
        if await is_set_within(self._stop, seconds):
            raise Stopped

    async def _asked(self, question: Callable[[Database], Awaitable[_T]]) -> _T:
        async with asyncio.timeout(_ANSWER_S):
            if self._database is None:
                self._database = await self._stack.enter_async_context(opened(self._options))
            return await question(self._database)

    async def _unless_stopped(self, work: Awaitable[_T]) -> _T:
        working = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise Stopped
            return await working
        finally:
            stopped.cancel()
            working.cancel()


async def shown(
    options: DatabaseOptions,
    look: Callable[[Database], Awaitable[dict[str, Any]]],
    blocks: Callable[[dict[str, Any]], Sequence[output.Block]],
    *,
    title: str,
    watch: bool,
    interval_s: float,
    json: bool,
) -> None:
    """Show a look once; or, to `watch`, again and again: as a screen on a terminal, elsewhere one below the other."""
    if not _SHORTEST_S <= interval_s <= _LONGEST_S:
        message = f"--interval-s must be between {_SHORTEST_S:g} and {_LONGEST_S:g}, not {interval_s:g}"
        raise SettingsError(message)
    if not watch:
        async with opened(options) as db:
            seen = await look(db)
        if json:
            output.document(seen)
        else:
            output.blocks(*blocks(seen))
        return
    with contextlib.suppress(Stopped):
        async with until_signalled() as stop:
            if json or not sys.stdout.isatty():
                await _printed(options, stop, look, blocks, interval_s=interval_s, json=json)
            else:
                await _drawn(options, stop, look, blocks, title=f"{title}, every {interval_s:g} s", interval_s=interval_s)


async def _printed(
    options: DatabaseOptions,
    stop: asyncio.Event,
    look: Callable[[Database], Awaitable[dict[str, Any]]],
    blocks: Callable[[dict[str, Any]], Sequence[output.Block]],
    *,
    interval_s: float,
    json: bool,
) -> None:
    async with Watched(options, stop, lost=_told) as watched:
        while True:
            seen = await watched.ask(look)
            if json:
                output.compact(seen)
            else:
                output.blocks(*blocks(seen))
                output.line("")
                sys.stdout.flush()
            await watched.pause(interval_s)


async def _drawn(
    options: DatabaseOptions,
    stop: asyncio.Event,
    look: Callable[[Database], Awaitable[dict[str, Any]]],
    blocks: Callable[[dict[str, Any]], Sequence[output.Block]],
    *,
    title: str,
    interval_s: float,
) -> None:
    """Draw in a screen of its own, which leaves the terminal as it was."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    latest: list[Sequence[output.Block]] = []

    def draw(trouble: str = "") -> None:
        head = Text(title, style="bold")
        head.append(f", {datetime.now(UTC):%H:%M:%S}Z, Ctrl-C ends it\n")
        if trouble:
            head.append(f"{output.printable(trouble)}; below is what was seen last\n", style="bold red")
        parts = [output.rendered(seen, console.width) for seen in latest]
        live.update(Group(head, *parts), refresh=True)

    async with Watched(options, stop, lost=draw) as watched:
        latest.append(blocks(await watched.ask(look)))  # an error of the first look is told on the user's own screen
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                draw()
                await watched.pause(interval_s)
                latest[:] = [blocks(await watched.ask(look))]


def _told(trouble: str) -> None:
    output.say(trouble or "the database answers again")
