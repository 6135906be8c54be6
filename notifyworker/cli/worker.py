"""The commands that execute runs: `worker`, and `dev`, which brings its own database."""

import asyncio
import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from cyclopts import Parameter

from notifyworker.cli import output, told
from notifyworker.cli.options import NO_WORKER_OPTIONS, WorkerOptions, log_early
from notifyworker.errors import NotifyWorkerError

if TYPE_CHECKING:
    from notifyworker import Worker
    from notifyworker.lifespan import Ending

Reference = Annotated[str, Parameter(name="MODULE:ATTR", help="A Worker, or a function that returns one: app:worker.")]


def worker(reference: Reference, /, *, settings: WorkerOptions = NO_WORKER_OPTIONS) -> int:
    """
    Run a worker until SIGTERM or Ctrl-C.

    It then lets its runs finish and gives back those that do not in time. A second signal ends it at once.
    """
    found = _configured(reference, settings)
    return _executed(found, found.run())


def dev(
    reference: Reference,
    /,
    *,
    data_dir: Annotated[Path | None, Parameter(help="Where the embedded PostgreSQL keeps its data.")] = None,
    settings: WorkerOptions = NO_WORKER_OPTIONS,
) -> int:
    """
    Run a worker with a database of its own.

    Takes the database that --dsn or the environment names, else an embedded PostgreSQL, and migrates it.
    """
    found = _configured(reference, settings)
    return _executed(found, _dev(found, settings, data_dir))


def _configured(reference: str, options: WorkerOptions) -> "Worker":
    log_early(options.log_format, options.log_level)
    from notifyworker.cli.load import load_worker
    from notifyworker.observe import configure_logging

    found = load_worker(reference)
    found.configure(options.given())
    configure_logging(found.settings.log_format, found.settings.log_level)
    return found


async def _dev(found: "Worker", options: WorkerOptions, data_dir: Path | None) -> "Ending":
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
        else:
            output.say(f"database: {describe(dsn)}")
        for applied in await migrate(admin_dsn(found.settings), found.settings.schema_name):
            output.say(f"applied {applied.version:04d} {applied.name}")
        return await found.run()


def _executed(found: "Worker", work: "Coroutine[Any, Any, Ending]") -> int:
    """Execute on uvloop where it is installed, and return the exit code."""

    async def ended() -> int:
        try:
            ending = await work
        except NotifyWorkerError as error:
            if found.lingering:
                _leave(told(error))
            raise
        if found.lingering or ending.how == "forced":
            _leave(ending.exit_code)
        return ending.exit_code

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(ended())


def _leave(code: int) -> NoReturn:
    """Exit at once: a handler that ignores its cancellation, in a thread or a task, would be waited for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        uvloop: Any = importlib.import_module("uvloop")
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
