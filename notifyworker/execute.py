"""
One handler, called under its timeout, to one Outcome.

Whatever a handler does, one of four things comes out: a result, an error with its code, a wish (Cancel, Fail, Snooze),
or nothing, when the lease is no longer ours and there is nothing left to write.
"""

import asyncio
import contextlib
import contextvars
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, Future, InvalidStateError
from types import FrameType
from typing import Any, Literal, Protocol, TypeAlias

from notifyworker import payload as payloads
from notifyworker.acting import in_the_name_of
from notifyworker.errors import Cancel, Code, Fail, PauseKind, Snooze
from notifyworker.family import Family
from notifyworker.handlers import Handler
from notifyworker.journal import Journal
from notifyworker.observe import log
from notifyworker.payload import clean_text
from notifyworker.plain import ThreadDesk
from notifyworker.processes import ElsewhereError, Processes, Unfit, Unstorable
from notifyworker.run import Outcome, Run, State

MESSAGE_BYTES = 8 * 1024
TRACEBACK_BYTES = 32 * 1024
_FRAMES = 12  # of a handler's stack that are told

#: Why an attempt was ended from outside. "lost": somebody else has settled, cancelled or taken the run.
#: "parked": it waits for something in the middle of its handler, which begins anew afterwards.
Why: TypeAlias = Literal["timeout", "lost", "stopping", "parked"]


class Attempt:
    """One attempt in this process: the run, its handler, and why it was ended, if it was."""

    __slots__ = (
        "began_at", "ended_at", "family", "handler", "is_committing", "is_in_transaction", "is_settled", "journal", "run", "task",
        "thread", "thread_id", "timer", "why", "writes",
    )  # fmt: skip

    def __init__(self, run: Run, handler: Handler) -> None:
        self.run = run
        self.handler = handler
        #: The slot that executes it.
        self.task: asyncio.Task[Any] | None = None
        #: Its steps, once it has called one.
        self.journal: Journal | None = None
        #: Its children, once it has started or joined one; and what inserts them in the transaction that settles it.
        self.family: Family | None = None
        self.writes: Callable[[Any, Attempt, Outcome], Awaitable[None]] | None = None
        #: The call in a thread: no cancellation ends it.
        self.thread: Future[Any] | None = None
        self.thread_id: int | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.began_at = self.ended_at = 0.0
        self.why: Why | None = None
        #: Its outcome is on its way, or there is none to write: what the handler still returns counts no more.
        self.is_settled = False
        #: Its own transaction is settling it: that finds out by itself whether the lease is lost.
        self.is_committing = False
        #: It is in the block of run.transaction().
        self.is_in_transaction = False

    def end(self, why: Why) -> None:
        """Cancel the handler, for the first reason that was given."""
        if self.why is None:
            self.why = why
            self.run.cancel()
            if self.task is not None:
                self.task.cancel()

    def stack(self) -> list[str]:
        """Where its handler stands, the innermost frame last."""
        if self.thread_id is not None:
            frame = sys._current_frames().get(self.thread_id)  # noqa: SLF001 - the documented way to another thread's stack
            frames = [] if frame is None else [f for f, _ in traceback.walk_stack(frame)][::-1]
        else:
            frames = [] if self.task is None else _frames(self.task.get_coro())
        return [f"{f.f_code.co_filename}:{f.f_lineno} in {f.f_code.co_name}" for f in frames[-_FRAMES:]]


async def execute(
    attempt: Attempt,
    *,
    threads: Executor,
    processes: Processes,
    worker: str,
    max_result_bytes: int,
    on_begun: Callable[[Attempt], None],
    on_pause: Callable[[str, PauseKind], Awaitable[None]],
    join: Callable[[Attempt, tuple[Any, ...]], Awaitable[Any]],
) -> Outcome | None:
    """
    Call the handler; None if there is nothing to write.

    `on_begun` is called when a process has begun it: only then does its timeout begin to count. `on_pause` is awaited when
    it asks for a pause of its kind; `join`, where it takes several runs at once.
    """
    run, handler = attempt.run, attempt.handler
    if run.expired:
        error = error_entry(run, Code.EXPIRED, "expires_at passed before it was started", None)
        return Outcome(run.run_id, run.lease_token, run.attempt, run.kind, State.CANCELLED, error=error, was_started=False)
    try:
        arguments = () if handler.in_process else handler.arguments(run)
    except Exception as error:  # noqa: BLE001 - a validator of the user's raises what it likes: the same again next time
        return _unfit(run, error, worker)
    try:
        if run.records:
            result = await _in_its_name(attempt, arguments, threads, processes, on_begun, join)
        elif handler.is_async and handler.batch_size is None:
            result = await handler.function(*arguments)
        else:
            result = await _begun(attempt, arguments, threads, processes, on_begun, join)
    except Unfit as error:
        return _failed(run, Code.BAD_PAYLOAD, str(error), error if error.__cause__ else None, worker)
    except Unstorable as error:
        return _unstorable(run, error, worker)
    except PauseKind as error:
        await _paused(run, error, on_pause)
        return outcome_of_error(attempt, error, worker)
    except BaseException as error:  # noqa: BLE001 - SystemExit too: a handler must not end the worker, nor count as success
        return outcome_of_error(attempt, error, worker)
    if attempt.why is not None:  # it swallowed the cancellation
        return outcome_of_end(attempt, worker)
    return completed(run, result, worker, max_result_bytes)


def _unfit(run: Run, error: Exception, worker: str) -> Outcome:
    if isinstance(error, ValueError):
        return _failed(run, Code.BAD_PAYLOAD, str(error), None, worker)
    return _failed(run, Code.BAD_PAYLOAD, f"payload: {type(error).__name__}: {_text_of(error)}", error, worker)


class _HasThread(Protocol):
    thread: "Future[Any] | None"


async def in_thread(holder: _HasThread, threads: Executor, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a plain function of the user's; until it ends, which no cancellation makes it do, `holder` has it."""

    def call() -> Any:
        try:
            return function(*arguments)
        except StopIteration as error:  # no future can hold one: whoever waits for it would wait for ever
            message = "the handler raised StopIteration"
            raise RuntimeError(message) from error

    thread = threads.submit(contextvars.copy_context().run, call)
    holder.thread = thread if holder.thread is None or holder.thread.done() else _both(holder.thread, thread)
    return await asyncio.wrap_future(thread)


def _both(one: "Future[Any]", other: "Future[Any]") -> "Future[Any]":
    """Return what is done when both are. They end in threads, perhaps at the same moment."""
    both: Future[Any] = Future()

    def ended(_ended: object) -> None:
        if one.done() and other.done():
            with contextlib.suppress(InvalidStateError):
                both.set_result(None)

    one.add_done_callback(ended)
    other.add_done_callback(ended)
    return both


async def _in_its_name(attempt: Attempt, arguments: tuple[Any, ...], *means: Any) -> Any:
    """The same for a run whose effects are not to be, or are to be recorded: whatever it calls knows of it."""
    with in_the_name_of(attempt.run):
        if attempt.handler.is_async and attempt.handler.batch_size is None:
            return await attempt.handler.function(*arguments)
        return await _begun(attempt, arguments, *means)


async def _paused(run: Run, error: PauseKind, on_pause: Callable[[str, PauseKind], Awaitable[None]]) -> None:
    if not run.is_shadow:  # which must not keep live runs from being executed
        with contextlib.suppress(asyncio.CancelledError):  # the end from outside counts: in execute
            await on_pause(run.kind, error)


def _begun(  # noqa: PLR0917 - all of them are what may execute it
    attempt: Attempt,
    arguments: tuple[Any, ...],
    threads: Executor,
    processes: Processes,
    on_begun: Callable[[Attempt], None],
    join: Callable[[Attempt, tuple[Any, ...]], Awaitable[Any]],
) -> Awaitable[Any]:
    """Give it to a thread or a process, or together with others to their handler; what is returned is its result."""
    if attempt.handler.batch_size is not None:
        return join(attempt, arguments)
    if attempt.handler.in_process:
        if attempt.timer is not None:
            attempt.timer.cancel()
        return processes.call(attempt.run, attempt.handler, lambda: on_begun(attempt))
    attempt.run.sit_at(ThreadDesk(attempt.run))
    return in_thread(attempt, threads, _in_its_thread, attempt, arguments)


def _in_its_thread(attempt: Attempt, arguments: tuple[Any, ...]) -> Any:
    attempt.thread_id = threading.get_ident()
    return attempt.handler.function(*arguments)


def _frames(waits: object) -> list[FrameType]:
    """From a coroutine to what it waits for, and so on: a suspended task itself knows its outermost frame alone."""
    frames = []
    while waits is not None:
        frame = getattr(waits, "cr_frame", None) or getattr(waits, "gi_frame", None) or getattr(waits, "ag_frame", None)
        if frame is not None:
            frames.append(frame)
        waits = getattr(waits, "cr_await", None) or getattr(waits, "gi_yieldfrom", None) or getattr(waits, "ag_await", None)
    return frames


def outcome_of_end(attempt: Attempt, worker: str) -> Outcome | None:
    """What becomes of an attempt that was ended from outside."""
    run = attempt.run
    if attempt.why == "timeout":
        message = f"timed out after {run.timeout_s:g} s"
        return _retried_or_failed(attempt, Code.TIMED_OUT, message, TimeoutError(message), worker)
    if attempt.why == "stopping":
        return released(run, worker)
    return None


def released(run: Run, worker: str) -> Outcome:
    """Given back at shutdown: at once, in its old place, the attempt not used up."""
    error = error_entry(run, Code.INTERRUPTED, "the worker was stopped", None, worker)
    return Outcome(run.run_id, run.lease_token, run.attempt, run.kind, State.PENDING, error=error, counts=False)


def outcome_of_error(attempt: Attempt, error: BaseException, worker: str) -> Outcome | None:
    """What becomes of an attempt whose handler raised."""
    run = attempt.run
    if isinstance(error, asyncio.CancelledError) and attempt.why is not None:
        return outcome_of_end(attempt, worker)
    match error:
        case Cancel():
            entry = error_entry(run, "cancelled", str(error), None, worker)
            return Outcome(
                run.run_id, run.lease_token, run.attempt, run.kind, State.CANCELLED, effects=run.recorded_effects, error=entry
            )
        case PauseKind():
            return Outcome(run.run_id, run.lease_token, run.attempt, run.kind, State.PENDING, counts=False)
        case Snooze():
            return Outcome(run.run_id, run.lease_token, run.attempt, run.kind, State.PENDING, delay_s=error.seconds, counts=False)
        case Fail():
            return _failed(run, error.code, str(error), error, worker)
    if attempt.why is not None:  # it raised something else when it was cancelled
        return outcome_of_end(attempt, worker)
    message = f"{type(error).__name__}: {_text_of(error)}"
    return _retried_or_failed(attempt, Code.RAISED, message, error, worker)


def error_entry(run: Run, code: str, message: str, error: BaseException | None, worker: str | None = None) -> str:
    """One entry of `errors`, as JSON; the database adds its time."""
    return payloads.encode_leniently(
        {
            "attempt": run.attempt,
            "code": str(code),
            "message": clean_text(message, MESSAGE_BYTES),
            "traceback": _traceback(error) if error is not None else None,
            "worker": worker,
        }
    )


def refused_result(outcome: Outcome, why: str, worker: str) -> Outcome:
    """E-RUN-005 in place of an outcome that the server itself refused."""
    run = Run(run_id=outcome.run_id, kind=outcome.kind, lease_token=outcome.lease_token, attempt=outcome.attempt)
    return _failed(run, Code.BAD_RESULT, f"the database refused the outcome: {why}", None, worker)


def completed(run: Run, result: object, worker: str, max_result_bytes: int) -> Outcome:
    """What becomes of a run whose handler has done its work: E-RUN-005 if the result can't be stored."""
    if result is None and not run.records:
        return Outcome(run.run_id, run.lease_token, run.attempt, run.kind, State.COMPLETED)
    try:
        text = None if result is None else payloads.encode(result)
    except payloads.Unencodable as error:
        return _unstorable(run, error, worker)
    if text is not None and (size := len(text.encode())) > max_result_bytes:
        message = f"the result has {size} bytes, more than max_result_bytes={max_result_bytes}"
        return _failed(run, Code.BAD_RESULT, message, None, worker)
    return Outcome(run.run_id, run.lease_token, run.attempt, run.kind, State.COMPLETED, result=text, effects=run.recorded_effects)


def _unstorable(run: Run, error: Exception, worker: str) -> Outcome:
    return _failed(run, Code.BAD_RESULT, f"the result can't be stored: {error}".replace("$", "result", 1), None, worker)


def _retried_or_failed(attempt: Attempt, code: Code, message: str, error: BaseException, worker: str) -> Outcome:
    run = attempt.run
    is_timeout = code is Code.TIMED_OUT
    shown = None if is_timeout else error
    delay_s = _delay_s(attempt, error, is_timeout=is_timeout) if run.attempt < run.max_attempts else None
    if delay_s is None:
        return _failed(run, code, message, shown, worker)
    entry = error_entry(run, code, message, shown, worker)
    return Outcome(run.run_id, run.lease_token, run.attempt, run.kind, State.PENDING, delay_s=delay_s, error=entry)


def _delay_s(attempt: Attempt, error: BaseException, *, is_timeout: bool) -> float | None:
    retry = attempt.handler.retry
    try:
        return retry.delay_s(attempt.run.attempt, error, is_timeout=is_timeout)
    except Exception as broken:  # noqa: BLE001 - a function of the user's: the run must not be lost by its mistake
        log.error("retry_delay_failed", kind=attempt.run.kind, error=f"{type(broken).__name__}: {_text_of(broken)}")
        return retry.backoff_s(attempt.run.attempt)


def _failed(run: Run, code: Code, message: str, error: BaseException | None, worker: str) -> Outcome:
    entry = error_entry(run, code, message, error, worker)
    return Outcome(
        run.run_id,
        run.lease_token,
        run.attempt,
        run.kind,
        State.FAILED,
        error_code=code,
        error=entry,
        effects=run.recorded_effects,
    )


def _traceback(error: BaseException) -> str:
    if isinstance(error.__cause__, ElsewhereError):
        return clean_text(error.__cause__.traceback, TRACEBACK_BYTES)
    # Not our own frame, by which the handler was called.
    below = error.__traceback__.tb_next if error.__traceback__ is not None else None
    try:
        lines = traceback.format_exception(type(error), error, below)
    except Exception as broken:  # noqa: BLE001 - an exception whose own __str__ raises
        lines = [f"{type(error).__name__}, whose text can't be had: {type(broken).__name__}"]
    return clean_text("".join(lines), TRACEBACK_BYTES)


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001 - an exception whose own __str__ raises
        return f"(no text: {type(broken).__name__})"
