"""
Handlers that take several runs at once.

Each run of a batch keeps its own slot, lease, timeout and outcome: its slot joins the batch that is gathering for its kind and
waits there for what the handler says of it. So a cancel, a timeout or a lost lease ends one of them, and the others go on.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from notifyworker.acting import in_the_name_of
from notifyworker.execute import Attempt, in_thread
from notifyworker.handlers import Handler
from notifyworker.observe import log
from notifyworker.plain import ThreadDesk
from notifyworker.run import Run


@dataclass(frozen=True, slots=True)
class _Raised:
    """What is raised for a run. One exception may be raised for many, each time with its own traceback alone."""

    error: BaseException
    traceback: TracebackType | None


class _Batch:
    """Runs that are handed to their handler together: of one kind and version, and all of them shadow runs or none."""

    def __init__(self, key: tuple[str, str | None, bool], loop: asyncio.AbstractEventLoop) -> None:
        self.key = key
        self.has_begun = False
        #: What each waits for, and its payload where the handler wants one.
        self.members: dict[Run, tuple[asyncio.Future[Any], tuple[Any, ...]]] = {}
        self.is_full = loop.create_future()
        #: Done when the handler has really ended: until then a run that was ended alone keeps its slot.
        self.ended: Future[None] = Future()
        #: The call in a thread, of a plain handler.
        self.thread: Future[Any] | None = None
        self.task: asyncio.Task[None] | None = None

    def tell(self, read: Callable[[Run], Any]) -> None:
        """Tell each that still waits what became of it."""
        if self.thread is None or self.thread.done():
            self.ended.set_result(None)
        else:  # all were ended from outside, and a thread goes on
            self.thread.add_done_callback(lambda _thread: self.ended.set_result(None))
        told = [(future, read(run)) for run, (future, _) in self.members.items() if not future.done()]
        for future, result in told:
            future.set_result(result)


class _Crowd:
    """In whose name a batch's handler acts."""

    def __init__(self, first: Run) -> None:
        self.is_shadow = first.is_shadow
        self.run_id = first.run_id

    def note_effect(self, name: str, args: Any, kwargs: dict[str, Any]) -> None:
        """Nobody knows for which of them."""


class Batches:
    """The batches of one worker. `is_room`: whether a slot is free, so that another run may yet come."""

    def __init__(self, threads: Executor, is_room: Callable[[], bool]) -> None:
        self._threads = threads
        self._is_room = is_room
        self._gathering: dict[tuple[str, str | None, bool], _Batch] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopping = False
        self._loop = asyncio.get_running_loop()

    @staticmethod
    def warn(handlers: Iterable[Handler], concurrency: int) -> None:
        """Say of which kinds no batch can be full."""
        for handler in handlers:
            if handler.batch_size is not None and handler.batch_size > concurrency:
                log.warning("batches_stay_small", kind=handler.kind, batch_size=handler.batch_size, concurrency=concurrency)

    def hurry(self) -> None:
        """Wait for no more runs: none is claimed from now on."""
        self._is_stopping = True
        for batch in list(self._gathering.values()):
            self._start(batch)

    async def close(self) -> None:
        """Cancel what has outlived its runs."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=0.1)

    async def join(self, attempt: Attempt, arguments: tuple[Any, ...]) -> Any:
        """Take part in the next batch; return what its handler returned for this run, or raise it."""
        run, size = attempt.run, attempt.handler.batch_size
        key = run.kind, run.version, run.is_shadow
        batch = self._gathering.get(key)
        if batch is None:
            batch = self._gathering[key] = _Batch(key, self._loop)
            batch.task = self._loop.create_task(self._execute(batch, attempt.handler), name=f"notifyworker batch {run.kind}")
            self._tasks.add(batch.task)
            batch.task.add_done_callback(self._tasks.discard)
        told = self._loop.create_future()
        batch.members[attempt.run] = told, arguments[1:]
        attempt.thread = batch.ended
        if len(batch.members) == size or self._is_stopping or not self._is_room():
            self._start(batch)
        try:
            result = await told
        except asyncio.CancelledError:
            self._leave(batch, attempt)
            raise
        if isinstance(result, _Raised):
            raise result.error.with_traceback(result.traceback)
        return result

    def _start(self, batch: _Batch) -> None:
        if self._gathering.get(batch.key) is batch:
            del self._gathering[batch.key]
        if not batch.is_full.done():
            batch.is_full.set_result(None)

    def _leave(self, batch: _Batch, attempt: Attempt) -> None:
        """Its run was ended alone. Where the handler has not begun it never hears of it; with the last one it is cancelled."""
        if not batch.has_begun:
            del batch.members[attempt.run]
            attempt.thread = None
        elif all(told.done() for told, _ in batch.members.values()) and batch.task is not None:
            batch.task.cancel()

    async def _execute(self, batch: _Batch, handler: Handler) -> None:
        try:
            await self._gathered(batch, handler.batch_wait_s)
            batch.has_begun = True
            returned = await self._call(batch, handler) if batch.members else None
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is each run's own
            below = error.__traceback__.tb_next if error.__traceback__ is not None else None
            raised = _Raised(error, below)
            batch.tell(lambda _run: raised)
        else:
            batch.tell(_reader(returned))

    async def _gathered(self, batch: _Batch, wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                await batch.is_full
        except TimeoutError:
            self._start(batch)

    async def _call(self, batch: _Batch, handler: Handler) -> Any:
        with self._named(batch):
            return await self._called(batch, handler)

    @staticmethod
    def _named(batch: _Batch) -> AbstractContextManager[None]:
        """What such a handler does by itself is done for all of them: recorded for none, and not done in shadow."""
        if not any(run.records for run in batch.members):
            return nullcontext()
        return in_the_name_of(_Crowd(next(iter(batch.members))))

    async def _called(self, batch: _Batch, handler: Handler) -> Any:
        lists: tuple[Any, ...] = (list(batch.members),)
        if handler.wants_payload:
            lists = (*lists, [payload for _, (payload,) in batch.members.values()])
        if handler.is_async:
            return await handler.function(*lists)
        for run in batch.members:
            run.sit_at(ThreadDesk(run))
        return await in_thread(batch, self._threads, handler.function, *lists)


def _reader(returned: Any) -> Callable[[Run], Any]:
    """How to read what a batch handler returned, run by run. An exception is what the run's own handler would have raised."""

    def read(run: Run) -> Any:
        if returned is None:
            return None
        if not isinstance(returned, Mapping):
            message = f"a batch handler returns None, or a mapping from its runs, not {type(returned).__name__}"
            return _Raised(TypeError(message), None)
        if run not in returned:
            return _Raised(LookupError("the batch handler returned nothing for this run"), None)
        value = returned[run]
        return _Raised(value, value.__traceback__) if isinstance(value, BaseException) else value

    return read
