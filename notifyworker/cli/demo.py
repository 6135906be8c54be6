"""
`notifyworker demo`: the whole of it on a fresh machine, and a check that it does what it says.

It takes nothing from the environment that could disturb it: without --dsn it has a database of its own.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from notifyworker.cli import output
from notifyworker.cli.options import Json, log_early

if TYPE_CHECKING:
    from notifyworker.cli.demo_show import Show

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SCHEMA = "notifyworker"


def demo(
    *,
    dsn: Annotated[str | None, Parameter(help="Use this database [default: an embedded PostgreSQL].")] = None,
    data_dir: Annotated[Path | None, Parameter(help="Keep the embedded database here [default: it is removed].")] = None,
    keep: Annotated[bool, Parameter(help="Stay up afterwards, until Ctrl-C.", negative="")] = False,
    json: Json = False,
) -> int:
    """
    See it work: two workers, real runs, a database of its own.

    Runs of all kinds are inserted, one worker is killed, and what comes of them is checked: exit code 0 if all is as
    it should be, else 1.
    """
    _clean_environment(keep_libpq=dsn is not None)
    log_early("auto", "warning")
    ended: list[int] = []  # by this signal
    codes: list[int] = []  # the outcome, once there is one

    async def interruptible() -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        def end(number: int) -> None:
            if not ended:  # what is being cleaned up takes a bounded time
                ended.append(number)
                task.cancel()

        for number in _SIGNALS:
            loop.add_signal_handler(number, end, number)
        async with _stage(dsn, data_dir) as show:
            codes.append(await show.play(json=json, keep=keep))
            if keep:
                output.say(f"Everything stays up: {show.url}/runs - Ctrl-C ends it.")
                await show.stay_up()

    try:
        asyncio.run(interruptible())
    except asyncio.CancelledError:
        return codes[0] if codes else 128 + ended[0]
    return codes[0]


def _clean_environment(*, keep_libpq: bool) -> None:
    """Forget what would steer a worker, before anything reads it; libpq's variables count beside a DSN of the user's."""
    foreign = ("NOTIFYWORKER_", "DATABASE_URL", *(() if keep_libpq else ("PG",)))
    for name in [name for name in os.environ if name.startswith(foreign)]:
        del os.environ[name]


@contextlib.asynccontextmanager
async def _stage(dsn: str | None, data_dir: Path | None) -> "AsyncIterator[Show]":
    """Bring up the database and what the demo needs around it; take down all of it at the end."""
    from notifyworker.cli.demo_fleet import Fleet
    from notifyworker.cli.demo_show import Show
    from notifyworker.database import describe
    from notifyworker.embedded import embedded_postgres
    from notifyworker.migrate import migrate, open_or_explain

    async with contextlib.AsyncExitStack() as stack:
        work = stack.enter_context(_workspace())
        if dsn is None:
            data = data_dir or work / "postgres"
            output.say(f"starting an embedded PostgreSQL in {data}")
            where = await stack.enter_async_context(embedded_postgres(data))
        else:
            where = dsn
            output.say(f"database: {describe(dsn)}")
        applied = await migrate(where, _SCHEMA)
        output.say(f"schema {_SCHEMA}: {f'{len(applied)} migrations applied' if applied else 'up to date'}")
        connection = await open_or_explain(where, _SCHEMA, "demo")
        stack.callback(connection.terminate)
        project = f"demo-{os.urandom(4).hex()}"
        fleet = await stack.enter_async_context(Fleet(os.environ, dsn=where, schema=_SCHEMA, project=project, work=work))
        yield Show(fleet, connection, schema=_SCHEMA, project=project, work=work)


@contextlib.contextmanager
def _workspace() -> Iterator[Path]:
    """Make a directory that is gone at the end, and that the server's account can pass through."""
    work = Path(tempfile.mkdtemp(prefix="notifyworker-demo-"))
    try:
        work.chmod(0o711 if os.geteuid() == 0 else 0o700)
        (work / "outbox").mkdir()
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
