"""What a user holds in hands: a worker with its handlers, run on its own or inside a host's lifespan."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, Literal, Self

from notifyworker import systemd
from notifyworker.errors import SettingsError
from notifyworker.handlers import AnyHandler, Executor, Handlers
from notifyworker.http.sidecar import Sidecar
from notifyworker.observe import log
from notifyworker.processes import is_child
from notifyworker.retry import Retry
from notifyworker.settings import Settings
from notifyworker.shifts import Shifts
from notifyworker.versions import served_by
from notifyworker.worker import Conductor

_CLOSE_S = 0.5  # after a second signal
_STUCK_S = 4.0  # above all that is waited for after it


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run of a worker ended: drained in time, at the drain's deadline, or forced by a second signal."""

    how: Literal["drained", "deadline", "forced"]
    signal: int | None = None

    @property
    def exit_code(self) -> int:
        """0, 4, or 128 and the second signal's number."""
        return {"drained": 0, "deadline": 4, "forced": 128 + (self.signal or 0)}[self.how]


class _LoopWatch:
    """Ends the process after a second signal if the loop, which a handler may block, does not end it."""

    def __init__(self) -> None:
        self._count = 0
        self._timer: threading.Timer | None = None

    def signalled(self, number: int, _frame: object) -> None:
        """Be called by Python itself, between two instructions of whatever the main thread does."""
        self._count += 1
        if self._count == 2:  # noqa: PLR2004 - the second signal
            self._timer = threading.Timer(_STUCK_S, os._exit, (128 + number,))
            self._timer.daemon = True
            self._timer.name = "notifyworker second signal"
            self._timer.start()

    def cancel(self) -> None:
        """The loop turned, and the worker has ended by itself."""
        if self._timer is not None:
            self._timer.cancel()


class Worker:
    """
    Handlers, and how they are run.

        worker = Worker()

        @worker.handler("email.send", timeout=30, retry=Retry(max_attempts=5))
        async def send_email(run: Run, payload: Email) -> dict: ...

        await worker.run()            # until SIGTERM, SIGINT or stop()
        async with worker: ...        # inside a host's lifespan; leaving it drains

    Every setting is a keyword; what the environment says wins over it. Raises SettingsError.
    """

    def __init__(self, dsn: str | None = None, **settings: Any) -> None:
        self._keywords = {"dsn": dsn, **settings}
        self.settings = Settings.load(keywords=self._keywords)
        self._handlers = Handlers()
        self._conductor: Conductor | None = None
        self._shifts: Shifts | None = None
        self._sidecar: Sidecar | None = None
        self._stop = asyncio.Event()
        self._force = asyncio.Event()
        self._signal: int | None = None

    def configure(self, command_line: Mapping[str, Any]) -> None:
        """Let settings of the command line win over all others. Raises SettingsError."""
        self.settings = Settings.load(command_line, self._keywords)

    @property
    def keywords(self) -> dict[str, Any]:
        """The settings that were given as keywords, before command line and environment."""
        return {name: value for name, value in self._keywords.items() if value is not None}

    def handler(
        self,
        kind: str,
        *,
        timeout: float | timedelta | None = None,
        retry: Retry | None = None,
        batch_size: int | None = None,
        batch_wait_s: float | None = None,
        executor: Executor | None = None,
        memory_limit_bytes: int | None = None,
        version: str | None = None,
    ) -> Callable[[AnyHandler], AnyHandler]:
        """
        Register a function, async or plain, as the handler of a kind.

        `timeout` is of one attempt, in seconds. The payload comes as the annotation of the second parameter asks:
        pydantic model, dataclass, TypedDict or dict. A plain one is executed in a thread, or with `executor="process"` in
        a process of its own, which is killed when it takes longer than `timeout`, or more memory than
        `memory_limit_bytes`. Raises HandlerError.

        A kind may have several handlers that differ in `version`: which one is executed for real is a row in the database
        (docs/shadow.md), and a worker that lacks it leaves the kind's runs alone.

        With `batch_size` it takes `(runs, payloads)`, lists of up to so many runs, or of those that came within
        `batch_wait_s` (0.05) seconds of the first. It returns None, or what each run returned as a mapping from the runs; an
        exception in it counts as raised for that run, and one that the handler raises as raised for each.
        """

        def register(function: AnyHandler) -> AnyHandler:
            self._handlers.add(
                kind,
                function,
                timeout=timeout,
                retry=retry or Retry(),
                batch_size=batch_size,
                batch_wait_s=batch_wait_s,
                executor=executor,
                memory_limit_bytes=memory_limit_bytes,
                version=version,
            )
            return function

        return register

    def conduct(self, settings: Mapping[str, Any], *, standalone: bool = False) -> Conductor:
        """Return one start of this worker, not begun, in which these settings win over all others. Raises SettingsError."""
        loaded = Settings.load(settings, self._keywords)
        return Conductor(loaded, self._handlers.of(loaded.kinds), standalone=standalone)

    @property
    def kinds(self) -> list[str]:
        """The kinds that have a handler."""
        return self._handlers.kinds()

    @property
    def url(self) -> str | None:
        """Where the sidecar listens, once started."""
        return self._sidecar.url if self._sidecar is not None else None

    @property
    def lingering(self) -> int:
        """Handlers that ignored their cancellation and still go on, in threads or tasks."""
        return self._conductor.lingering if self._conductor is not None else 0

    async def run(self) -> Ending:
        """
        Work until SIGTERM, SIGINT or `stop()`, then drain. A second signal ends it at once.

        Raises SettingsError or StartError if it could not start.
        """
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)
        self._refuse_twice()
        self._force = asyncio.Event()
        if not self._stop.is_set():
            self._stop = asyncio.Event()
        watch = _LoopWatch()
        for number in signals:
            loop.add_signal_handler(number, self._signalled, number)
            # In place of asyncio's own, which does nothing: the loop is woken by a file descriptor all the same.
            signal.signal(number, watch.signalled)
        try:
            if not await self._unless_stopped(self._start(standalone=True)):
                return Ending("forced", self._signal) if self._force.is_set() else Ending("drained")
            assert self._conductor is not None
            async with systemd.told(self._stop):
                error = await self._ended(self._shifts.failed if self._shifts is not None else self._conductor.failed)
                in_time = await self._drained()
            if error is not None:
                raise error
            if self._force.is_set():
                return Ending("forced", self._signal)
            return Ending("drained" if in_time else "deadline")
        finally:
            for number in signals:
                loop.remove_signal_handler(number)
            watch.cancel()
            self._stop = asyncio.Event()  # a later run is not ended by what ended this one

    async def _ended(self, failed: "asyncio.Future[None]") -> BaseException | None:
        """Wait until somebody wants an end, or something of ours has failed; return what."""
        stopped = asyncio.ensure_future(self._stop.wait())
        waiters: set[asyncio.Future[Any]] = {stopped, failed}
        await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        return failed.exception() if failed.done() else None

    async def _unless_stopped(self, start: Coroutine[Any, Any, None]) -> bool:
        """Start; a signal or `stop()` ends that at once, whatever it waits for. Return whether it has started."""
        starting = asyncio.ensure_future(start)
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
                return True
        finally:
            stopped.cancel()
            starting.cancel()
        await self._unless_forced(starting)
        return False

    async def _drained(self) -> bool:
        """Drain and close. A second signal waits for neither."""
        try:
            return await self._at_rest()
        finally:
            await self._unless_forced(asyncio.ensure_future(self._close()))

    async def _at_rest(self) -> bool:
        """Let what runs finish; where the worker sleeps nothing does. Return whether all had finished by themselves."""
        if self._shifts is not None and not await self._shifts.end():
            return True
        assert self._conductor is not None
        return await self._conductor.drain(self.settings.drain_timeout_s, self._force)

    async def _unless_forced(self, ending: "asyncio.Future[None]") -> None:
        forced: asyncio.Future[Any] = asyncio.ensure_future(self._force.wait())
        await asyncio.wait({ending, forced}, return_when=asyncio.FIRST_COMPLETED)
        forced.cancel()
        await asyncio.wait({ending}, timeout=_CLOSE_S)
        if not ending.done():
            log.warning("left_open", hint="connections end with the process")
        elif not ending.cancelled():
            ending.result()

    def stop(self) -> None:
        """Ask for a drain. Safe to call twice, early, or from a signal handler of the host's."""
        self._stop.set()

    async def __aenter__(self) -> Self:
        """Start working beside the host. Raises SettingsError or StartError."""
        self._refuse_twice()
        # New ones, since an event belongs to the loop that has waited for it, and a worker may outlive a loop.
        self._stop, self._force = asyncio.Event(), asyncio.Event()
        await self._start(standalone=False)
        return self

    async def __aexit__(self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None) -> None:
        await self._drain()

    def _refuse_twice(self) -> None:
        if self._conductor is not None:
            message = "this worker is started already"
            raise SettingsError(message)

    async def _start(self, *, standalone: bool) -> None:
        if is_child():
            message = "a worker is started where this program is only imported, to execute a handler in a process"
            raise SettingsError(message, hint='put `if __name__ == "__main__":` before what starts it')
        if not self.kinds:
            message = "this worker has no handler"
            raise SettingsError(message, hint='@worker.handler("email.send")')
        wants_sidecar = standalone if self.settings.sidecar is None else self.settings.sidecar
        handlers = self._handlers.of(self.settings.kinds)
        self._conductor = conductor = Conductor(self.settings, handlers, standalone=standalone)
        if self.settings.idle_sleep_s is not None:
            self._shifts = Shifts(
                conductor,
                served_by(handlers, self.settings.project_ids),
                lambda metrics: Conductor(self.settings, handlers, standalone=standalone, metrics=metrics),
                self._on_shift,
            )
        try:
            if wants_sidecar:
                self._sidecar = Sidecar(self._shifts or conductor)
                await self._sidecar.start()
            await conductor.start()
            if self._shifts is not None:
                self._shifts.begin()
        except BaseException:
            await self._close()
            raise

    def _on_shift(self, conductor: Conductor) -> None:
        self._conductor = conductor

    async def _drain(self) -> bool:
        try:
            return await self._at_rest()
        finally:
            await self._close()

    async def _close(self) -> None:
        if self._sidecar is not None:
            await self._sidecar.stop()
            self._sidecar = None
        is_there = self._shifts is None or await self._shifts.end()
        self._shifts = None
        if self._conductor is not None:
            if is_there:
                await self._conductor.close()
            if not self._conductor.lingering:
                self._conductor = None

    def _signalled(self, number: int) -> None:
        if self._stop.is_set():
            self._signal = number
            self._force.set()
            log.warning("forced_to_stop", signal=signal.Signals(number).name)
            return
        self._stop.set()
        log.info("stopping", signal=signal.Signals(number).name, hint="a second signal ends it at once")
