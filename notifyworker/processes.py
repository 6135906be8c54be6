"""
Plain handlers that compute, in processes of their own: at most so many, kept for the runs to come, each killable.

The standard library's pool can't kill one worker, and pebble's looks ten times a second whether it has to; so this is
made of multiprocessing's own parts: a process is spawned, never forked from one that has threads, and has a pipe to us. A
thread of the worker's talks with it for as long as it executes a run: heartbeats and event loop have no part in that.
"""

import asyncio
import atexit
import contextlib
import contextvars
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor, Future
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import orjson

from notifyworker import child
from notifyworker.child import Message
from notifyworker.errors import HandlerProcessEnded, LeaseLost
from notifyworker.handlers import Handler, by_name
from notifyworker.observe import configured, log
from notifyworker.payload import decode
from notifyworker.run import Run

_CONTEXT = multiprocessing.get_context("spawn")
_NAME = "notifyworker handler"
_READY_S = 60.0  # to start an interpreter and to import the handler
_GRACE_S = 1.0  # to end by itself when cancelled; then it is killed. Below CANCEL_S, after which a slot gives it up
_LOOK_S = 0.05  # how often memory is looked at
_WRITE_S = 30.0  # above every deadline of a progress
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_LEVELS = frozenset({"debug", "info", "warning", "error", "critical"})


class ElsewhereError(Exception):
    """Cause of an exception that was raised in another process: its traceback there."""

    def __init__(self, traceback: str) -> None:
        super().__init__(traceback)
        self.traceback = traceback


class Unfit(Exception):
    """The payload did not fit. What it was raised from, if anything, has the traceback."""


class Unstorable(Exception):
    """What the handler returned is no JSON."""


def is_child() -> bool:
    """Whether this process was started to execute handlers: its program may be imported here, and must not begin anew."""
    return multiprocessing.current_process().name == _NAME


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Processes:
    """Up to `size` processes, begun when needed. `threads` lend one thread a run that is executed."""

    def __init__(self, size: int, threads: Executor) -> None:
        self._threads = threads
        self._room = asyncio.Semaphore(size)
        self._loop = asyncio.get_running_loop()
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._closed = False
        atexit.register(self._kill_all)  # before multiprocessing's own, which would wait for them

    def check(self, handlers: Sequence[Handler]) -> None:
        """Raise HandlerError for a handler that another process would not find."""
        for handler in handlers:
            if handler.in_process:
                by_name(handler)

    async def call(self, run: Run, handler: Handler, on_begun: Callable[[], None]) -> Any:
        """
        Have the handler executed; return its result, as JSON that orjson takes, or raise what it raised.

        `on_begun` is called when it begins, which may be later: then there was no free process, or a new one had to
        import the handler. When this is cancelled, the handler is told, and its process killed if it has not ended after
        a second. Raises HandlerProcessEnded if it ends by itself, MemoryError if it was killed for what it took.
        """
        async with self._room:
            process = self._idle.pop() if self._idle else _Process()
            self._all.add(process)
            process.unwatch(self._loop)

            def begun() -> None:
                self._loop.call_soon_threadsafe(on_begun)

            def converse() -> Any:
                return process.execute(run, handler, begun, self._loop)

            talk = asyncio.wrap_future(self._threads.submit(contextvars.copy_context().run, converse))
            talk.add_done_callback(_heard)
            try:
                await asyncio.wait({talk})
                return talk.result()
            except asyncio.CancelledError:
                process.cancel()
                await asyncio.wait({talk}, timeout=_GRACE_S)
                raise
            finally:
                if not talk.done():
                    process.kill()
                    await asyncio.wait({talk}, timeout=_GRACE_S)
                self._put_back(process, talk)

    def _put_back(self, process: "_Process", talk: "asyncio.Future[Any]") -> None:
        """Keep it for the next run, unless it is gone, half way, or has grown."""
        if talk.done() and process.is_usable and not self._closed:
            self._idle.append(process)
            process.watch(self._loop, self._gone)
            return
        process.kill()
        if talk.done():
            process.end()
            self._all.discard(process)

    def _gone(self, process: "_Process") -> None:
        """One that was idle has ended: killed by somebody, most probably for memory."""
        process.unwatch(self._loop)
        if process in self._idle:
            self._idle.remove(process)
        self._all.discard(process)
        process.end()
        log.warning("idle_process_ended", pid=process.pid, how=process.how)

    def close(self) -> None:
        """Kill all of them. Whatever they still execute was given back before."""
        self._closed = True
        for process in self._idle:
            process.unwatch(self._loop)
        self._idle.clear()
        self._kill_all()
        atexit.unregister(self._kill_all)

    def _kill_all(self) -> None:
        for process in self._all:
            process.kill()
        for process in self._all:
            process.end()
        self._all.clear()


def _heard(talk: "asyncio.Future[Any]") -> None:
    """What a handler that was cancelled would have become is nobody's business."""
    if not talk.cancelled():
        talk.exception()


class _Process:
    """One process, and our end of the pipe. Started when it is first given a run, by the thread that talks with it."""

    def __init__(self) -> None:
        self._started: multiprocessing.process.BaseProcess | None = None
        self._ending = threading.RLock()
        self._sending = threading.Lock()
        self._is_talking = self._is_killed = self._is_cancelled = self._has_begun = False
        self._death: int = -1
        self._asking: Future[Any] | None = None
        self.pid: int | None = None
        self.is_usable = False

    @property
    def how(self) -> str:
        """How it ended."""
        code = self._started.exitcode if self._started is not None else None
        if code is None:
            return "has not ended"
        if code >= 0:
            return f"ended with exit code {code}"
        by = signal.Signals(-code).name
        return f"was killed by {by}{': out of memory?' if -code == signal.SIGKILL else ''}"

    # In the thread that talks with it.

    def execute(self, run: Run, handler: Handler, on_begun: Callable[[], None], loop: asyncio.AbstractEventLoop) -> Any:
        """Have one run executed, and return or raise what became of it."""
        self._is_talking, self.is_usable, self._has_begun = True, False, False
        limit_bytes = handler.memory_limit_bytes
        begins_until = time.monotonic() + _READY_S
        try:
            if self._started is None:
                self._start()
            self._send(Message("run", by_name(handler), run))
            while True:
                message = self._next(limit_bytes, None if self._has_begun else begins_until)
                match message.what:
                    case "begun":
                        self._has_begun = True
                        on_begun()
                        if self._is_cancelled:
                            self._send(Message("cancelled"))
                    case "progress":
                        self._send(self._written(run, message.value, loop))
                    case "start":
                        self._send(self._started_by(run, message, loop))
                    case "log":
                        _log(run, message)
                    case _:
                        # One that has grown so much would be over the limit soon, by no fault of the next run.
                        self.is_usable = limit_bytes is None or self._memory_bytes() <= limit_bytes / 2
                        return _result(run, message)
        except (EOFError, OSError) as error:
            self._end()
            text = f"the handler's process {self.how}"
            raise HandlerProcessEnded(text) from error
        finally:
            self._is_talking = False
            if not self.is_usable:
                self._end()

    def _start(self) -> None:
        ours, theirs = _CONTEXT.Pipe()
        self._pipe = ours
        # An argument, not a member: it must not be pickled with us.
        process = _CONTEXT.Process(target=child.main, args=(theirs, os.getpid(), configured()), name=_NAME)
        with self._ending:
            if self._is_killed:
                raise EOFError
            # Ctrl-C would be heard by an interpreter that is only just starting. It lets go of them again.
            resource_tracker.ensure_running()  # multiprocessing's own helper: its start would let go of them too
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
            try:
                process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                theirs.close()
            self._started, self.pid = process, process.pid
            self._death = _death_of(process)

    def _next(self, limit_bytes: int | None, begins_until: float | None) -> Message:
        """Return what it says next. Raises EOFError when it has ended."""
        while True:
            looks_s = _LOOK_S if limit_bytes is not None else 1.0 if begins_until is not None else None
            ready = wait([self._pipe, self._death], timeout=looks_s)
            if self._pipe in ready:
                message: Message = self._pipe.recv()
                return message
            if ready:
                raise EOFError
            if limit_bytes is not None and (bytes_ := self._memory_bytes()) > limit_bytes:
                self._end()
                text = f"the handler's process was killed: it took {bytes_} bytes, memory_limit_bytes is {limit_bytes}"
                raise MemoryError(text)
            if begins_until is not None and time.monotonic() > begins_until:
                self._end()
                text = f"the handler's process did not begin within {_READY_S:g} s: what does its module do when imported?"
                raise HandlerProcessEnded(text)

    def _written(self, run: Run, progress: str, loop: asyncio.AbstractEventLoop) -> Message:
        async def write() -> None:
            await run.desk.write_progress(run, progress)

        try:
            return Message("done", self._done(write(), loop))
        except LeaseLost:
            return Message("lost")
        except Exception as error:  # noqa: BLE001 - to be raised where the handler is
            return Message("failed", f"{type(error).__name__}: {error}")

    def _started_by(self, run: Run, message: Message, loop: asyncio.AbstractEventLoop) -> Message:
        async def start() -> Any:
            started = run.desk.start_children(run, message.value, message.more)
            return started if isinstance(started, tuple) else await started

        try:
            return Message("done", self._done(start(), loop))
        except Exception as error:  # noqa: BLE001 - as above
            return Message("refused", child.pickled(error))

    def _done(self, work: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> Any:
        """What the event loop does for the handler; not for ever, and not once the process is killed."""
        self._asking = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return self._asking.result(_WRITE_S)
        finally:
            self._asking.cancel()  # it does nothing any more of which the handler does not hear
            self._asking = None

    def _memory_bytes(self) -> int:
        """What it has for itself: without libraries and files that others may have in memory as well."""
        try:
            _, resident, shared, *_ = Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()
        except (OSError, ValueError):
            return 0  # it has just ended, which is noticed elsewhere
        return (int(resident) - int(shared)) * _PAGE_BYTES

    def _send(self, message: Message) -> None:
        with self._sending:
            self._pipe.send(message)

    # From anywhere.

    def cancel(self) -> None:
        """Set the run's `cancelled` over there."""
        self._is_cancelled = True
        if self._has_begun:
            with contextlib.suppress(OSError):  # it has ended
                self._send(Message("cancelled"))

    def kill(self) -> None:
        """End it now, with all that it has started."""
        if (asking := self._asking) is not None:
            asking.cancel()  # or the thread would wait for an event loop that may be waiting for it
        with self._ending:
            self._is_killed = True
            if self._started is None or self._started.pid is None or self._started.exitcode is not None:
                return
            with contextlib.suppress(ProcessLookupError):  # it has no group of its own yet
                os.killpg(self._started.pid, signal.SIGKILL)
            self._started.kill()

    def end(self) -> None:
        """Kill it and leave no trace; while a thread talks with it, that one does the rest."""
        self.kill()
        if not self._is_talking:
            self._end()

    def _end(self) -> None:
        self.kill()
        with self._ending:
            if self._started is not None and self._death >= 0:
                self._started.join()
                self._pipe.close()
                if self._death != self._started.sentinel:
                    os.close(self._death)
                self._death = -1

    def watch(self, loop: asyncio.AbstractEventLoop, gone: Callable[["_Process"], None]) -> None:
        """Hear of its end while nobody talks with it."""
        loop.add_reader(self._death, gone, self)

    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hear of it no more."""
        if self._death >= 0 and not loop.is_closed():
            loop.remove_reader(self._death)


def _death_of(process: Any) -> int:
    """Return a descriptor that is readable once it has ended, whatever it has forked."""
    try:
        return os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        return int(process.sentinel)


def _log(run: Run, message: Message) -> None:
    if message.value in _LEVELS:
        facts = decode(message.more)
        getattr(run.log, message.value)(facts.pop("event", ""), **facts)


def _result(run: Run, message: Message) -> Any:
    if message.effects is not None:
        run.record(decode(message.effects))
    match message.what:
        case "returned":
            return None if message.value is None else orjson.Fragment(message.value)
        case "unfit":
            raise Unfit(message.value) from (ElsewhereError(message.more) if message.more else None)
        case "unstorable":
            raise Unstorable(message.value)
    raise _exception(message) from ElsewhereError(message.more)


def _exception(message: Message) -> BaseException:
    try:
        error = pickle.loads(message.value)  # noqa: S301 - our own child's
    except Exception as broken:  # noqa: BLE001 - code of the user's
        return RuntimeError(f"an exception that can't be had in another process: {type(broken).__name__}: {broken}")
    return error if isinstance(error, BaseException) else RuntimeError(repr(error))
