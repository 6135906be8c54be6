"""The command that executes runs."""

import asyncio
import gc
import importlib
import os
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from cyclopts import Parameter

from notifyworker.cli import told
from notifyworker.cli.options import NO_WORKER_OPTIONS, WorkerOptions, log_early
from notifyworker.errors import NotifyWorkerError

if TYPE_CHECKING:
    from notifyworker import Worker
    from notifyworker.lifespan import Ending

_YOUNG_OBJECTS = 10_000

Reference = Annotated[str, Parameter(name="MODULE:ATTR", help="A Worker, or a function that returns one: app:worker.")]


def worker(reference: Reference, /, *, settings: WorkerOptions = NO_WORKER_OPTIONS) -> int:
    """
    Run a worker until SIGTERM or Ctrl-C.

    It then lets its runs finish and gives back those that do not in time. A second signal ends it at once.
    """
    found = configured(reference, settings)
    return executed(found, found.run())


def configured(reference: str, options: WorkerOptions) -> "Worker":
    """Return the worker that is named, with what stands on the command line. Raises SettingsError."""
    log_early(options.log_format, options.log_level)
    from notifyworker.cli.load import load_worker
    from notifyworker.observe import configure_logging

    found = load_worker(reference)
    found.configure(options.given())
    configure_logging(found.settings.log_format, found.settings.log_level)
    return found


def executed(found: "Worker", work: "Coroutine[Any, Any, Ending]") -> int:
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

    _collect_less()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(ended())


def _collect_less() -> None:
    """
    Let the garbage collector look less often: a twelfth of the worker's time in a drain, for objects that are no garbage.

    What was imported stays as long as the process does. And a claim makes some thousand objects that live until they are
    settled, and then end by themselves, in no cycle.
    """
    gc.collect()
    gc.freeze()
    youngest, *older = gc.get_threshold()
    gc.set_threshold(max(youngest, _YOUNG_OBJECTS), *older)


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
