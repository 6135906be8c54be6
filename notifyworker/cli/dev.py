"""
`notifyworker dev`: a worker that starts anew when its code changes, on a database of its own, and its runs as they go.

The worker is a child process, so that new code meets nothing of the old. Its end is ours: it stops when we stop, and
also when we are killed, since it then finds its standard input at an end.
"""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from notifyworker.cli import DONE, output
from notifyworker.cli.options import NO_WORKER_OPTIONS, DatabaseOptions, WorkerOptions
from notifyworker.cli.worker import Reference, configured
from notifyworker.errors import NotifyWorkerError

if TYPE_CHECKING:
    from notifyworker import Worker

_FOLLOW_S = 0.2
_RELOAD_S = 3.0  # for handlers to finish when code has changed; a second signal then gives their runs back
_KILL_S = 15.0  # beyond what a worker itself waits for


def dev(
    reference: Reference,
    /,
    *,
    reload: Annotated[
        bool, Parameter(help="Start anew when a .py file below here changes [default: yes].", negative="--no-reload")
    ] = True,
    data_dir: Annotated[Path | None, Parameter(help="Where the embedded PostgreSQL keeps its data.")] = None,
    settings: WorkerOptions = NO_WORKER_OPTIONS,
) -> int:
    """
    Run a worker with a database of its own, start it anew when its code changes, and show runs as they go.

    Takes the database that --dsn or the environment names, else an embedded PostgreSQL, and migrates it. Handlers have
    3 s to finish when code changes; runs that are not done by then go back, and start anew with the new code.
    """
    found = configured(reference, settings)
    return asyncio.run(_developed(found, reference, settings, reload=reload, data_dir=data_dir))


async def _developed(found: "Worker", reference: str, options: WorkerOptions, *, reload: bool, data_dir: Path | None) -> int:
    async with _database(found, options, data_dir) as dsn:
        given = {**options.given(), "dsn": dsn}
        supervisor = _Supervisor(reference, given, longest_s=found.settings.drain_timeout_s + _KILL_S)
        at = DatabaseOptions(dsn=dsn, schema=found.settings.schema_name)
        async with _following(at), _watching(supervisor, reload=reload):
            return await supervisor.run()


@contextlib.asynccontextmanager
async def _database(found: "Worker", options: WorkerOptions, data_dir: Path | None) -> AsyncIterator[str]:
    from notifyworker.cli.database import admin_dsn
    from notifyworker.database import describe
    from notifyworker.embedded import default_directory, embedded_postgres
    from notifyworker.migrate import migrate
    from notifyworker.settings import database_url

    async with contextlib.AsyncExitStack() as stack:
        dsn = database_url(found.settings.dsn)
        if dsn is None:
            dsn = await stack.enter_async_context(embedded_postgres(data_dir))
            found.configure({**options.given(), "dsn": dsn})
            output.say(f"database: embedded PostgreSQL, data in {data_dir or default_directory()}")
            output.say(f"          psql '{dsn}'")
            output.say("for notifyworker enqueue, status, runs list .. in another terminal:")
            output.say(f"          export NOTIFYWORKER_DSN='{dsn}'")
        else:
            output.say(f"database: {describe(dsn)}")
        for applied in await migrate(admin_dsn(found.settings), found.settings.schema_name):
            output.say(f"applied {applied.version:04d} {applied.name}")
        yield dsn


@contextlib.asynccontextmanager
async def _following(at: DatabaseOptions) -> AsyncIterator[None]:
    """Print each change of a run's state meanwhile."""
    from notifyworker.cli.filters import ALL_FOLLOWED
    from notifyworker.cli.live import Stopped, Watched
    from notifyworker.cli.tail import follow, tell_people

    stop = asyncio.Event()

    async def followed() -> None:
        try:
            async with Watched(at, stop) as watched:
                await follow(watched, ALL_FOLLOWED.plain(), tell_people, interval_s=_FOLLOW_S)
        except (Stopped, BrokenPipeError):  # the latter: nobody reads what we print
            return
        except NotifyWorkerError as error:
            output.say(f"runs are not shown: {error}")

    following = asyncio.create_task(followed())
    try:
        yield
    finally:
        stop.set()
        await following


@contextlib.asynccontextmanager
async def _watching(supervisor: "_Supervisor", *, reload: bool) -> AsyncIterator[None]:
    """Tell the supervisor of changed files meanwhile."""
    if not reload:
        yield
        return
    try:
        from watchfiles import PythonFilter, awatch
    except ImportError:
        output.say("changes of code are not noticed: pip install 'notifyworker[dev]'")
        yield
        return
    stop, folder = asyncio.Event(), Path.cwd()

    async def watched() -> None:
        async for changes in awatch(folder, watch_filter=PythonFilter(), stop_event=stop):
            supervisor.changed(sorted({str(Path(path).relative_to(folder)) for _, path in changes}))

    supervisor.is_watching = True
    watching = asyncio.create_task(watched())
    try:
        yield
    finally:
        stop.set()
        await watching


class _Supervisor:
    """One child after the other."""

    def __init__(self, reference: str, given: dict[str, Any], *, longest_s: float) -> None:
        self.is_watching = False
        self._reference = reference
        self._given = json.dumps({name: str(v) if isinstance(v, Path) else v for name, v in given.items()}) + "\n"
        self._longest_s = longest_s
        self._child: asyncio.subprocess.Process | None = None
        self._signals: list[signal.Signals] = []
        self._wake = asyncio.Event()
        self._changed: list[str] = []

    def changed(self, files: list[str]) -> None:
        """Start anew, since these have changed."""
        self._changed += files
        self._wake.set()

    async def run(self) -> int:
        """Return the exit code of the last child, once we are asked to end or, with nothing watched, it has ended."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled, number)
        try:
            while True:
                child = self._child = await self._started()
                await self._until(child)
                if self._signals:
                    return await self._ended(child)
                if child.returncode is not None:
                    code = child.returncode
                    if not self.is_watching:
                        return code
                    output.say(f"the worker has ended with exit code {code}; a change of a file starts it again")
                    await self._wake.wait()
                    if self._signals:
                        return code if code != DONE else DONE
                output.say(f"changed: {', '.join(self._changed[:5])}; starting anew")
                self._changed.clear()
                self._wake.clear()
                await self._replaced(child)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            if self._child is not None and self._child.returncode is None:  # something of ours has failed
                _send(self._child, signal.SIGTERM)
                await _gone(self._child, self._longest_s)

    async def _started(self) -> asyncio.subprocess.Process:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "notifyworker.cli.dev_child", self._reference),
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us, and passed on
        )
        assert child.stdin is not None
        child.stdin.write(self._given.encode())  # not as arguments, which everybody on the machine can read
        return child

    async def _until(self, child: asyncio.subprocess.Process) -> None:
        """Return when the child has ended, a file has changed, or we are asked to end."""
        ended, woken = asyncio.ensure_future(child.wait()), asyncio.ensure_future(self._wake.wait())
        await asyncio.wait({ended, woken}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        woken.cancel()

    async def _ended(self, child: asyncio.subprocess.Process) -> int:
        """Pass on what we were told, and what we are still told, until it has ended."""
        _send(child, *self._signals)
        return await _gone(child, self._longest_s)

    async def _replaced(self, child: asyncio.subprocess.Process) -> None:
        _send(child, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RELOAD_S):
                await child.wait()
                return
        _send(child, signal.SIGTERM)
        await _gone(child, _KILL_S)

    def _signalled(self, number: signal.Signals) -> None:
        self._signals.append(number)
        if len(self._signals) > 1 and self._child is not None:
            _send(self._child, number)
        self._wake.set()


def _send(child: asyncio.subprocess.Process, *numbers: signal.Signals) -> None:
    for number in numbers:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(number)


async def _gone(child: asyncio.subprocess.Process, within_s: float) -> int:
    try:
        async with asyncio.timeout(within_s):
            return await child.wait()
    except TimeoutError:
        child.kill()
        return await child.wait()
