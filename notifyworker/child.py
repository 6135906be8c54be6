"""
The process in which plain handlers are executed that compute: its own main, one run after the other.

It is started anew and not forked, and talks through one pipe: it gets runs and whether they are cancelled, and gives
progress, log lines and what became of them. It ends with its parent, however that one ends.
"""

import contextlib
import ctypes
import os
import pickle  # what passes here comes from our own parent
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection as Pipe
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import UUID

import structlog

from notifyworker import payload as payloads
from notifyworker.acting import in_the_name_of
from notifyworker.errors import InvalidRun, LeaseLost
from notifyworker.family import ChildOutcome, OnFailure, Start
from notifyworker.handlers import inspected
from notifyworker.observe import configure_logging
from notifyworker.run import Done, Run

if TYPE_CHECKING:
    from notifyworker.run import Connection

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Message:
    """
    One message of either direction.

    To the child: `run` (the function's pickle, the run), `cancelled`, and the answers: `done` (with what was asked for),
    `lost` and `failed` (progress), `refused` (the exception's pickle). From it: `begun`, `progress`, `start` (children, and a
    last one), `log`, and at the end one of `returned` (the result as JSON, or None), `raised` (the exception's pickle and its
    traceback), `unfit` and `unstorable` (what is wrong), each with the recorded effects.
    """

    what: str
    value: Any = None
    more: Any = None
    effects: str | None = None


def main(pipe: Pipe, parent: int, logging: tuple[Any, ...] | None) -> None:
    """Execute runs until the parent is gone."""
    _end_with(parent)
    if logging is not None:
        configure_logging(*logging)
    child = _Child(pipe)
    threading.Thread(target=child.listen, name="notifyworker pipe", daemon=True).start()
    while True:
        child.execute(*child.runs.get())


def _end_with(parent: int) -> None:
    """
    Be killed when the parent ends; and not by what is meant for it: Ctrl-C, or a SIGTERM to all of a unit.

    A session of its own, so that whatever a handler starts can be killed with it. Signals are taken note of and not
    ignored, which programs that a handler starts would inherit.
    """
    with contextlib.suppress(PermissionError):  # it leads one already
        os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)  # it ended before this was asked for


class _Child:
    """Both ends of the conversation: a thread listens, so that a handler that computes hears that it is cancelled."""

    def __init__(self, pipe: Pipe) -> None:
        self.runs: queue.SimpleQueue[tuple[bytes, Run]] = queue.SimpleQueue()
        self._pipe = pipe
        self._sending = threading.Lock()
        self._asking = threading.Lock()
        self._answers: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._run: Run | None = None

    def listen(self) -> None:
        """Take what the parent says."""
        while True:
            try:
                message: Message = self._pipe.recv()
            except (EOFError, OSError):
                os._exit(0)  # nobody is there any more who could take an outcome
            if message.what == "run":
                self.runs.put((message.value, message.more))
                self._run = message.more
            elif message.what == "cancelled":
                if self._run is not None:
                    self._run.cancel()
            else:
                self._answers.put(message)

    def send(self, message: Message) -> None:
        """Say something to the parent."""
        with self._sending:
            self._pipe.send(message)

    def ask(self, message: Message) -> Message:
        """Say something, and wait for the answer."""
        with self._asking:
            self.send(message)
            return self._answers.get()

    def execute(self, function: bytes, run: Run) -> None:
        """Call the handler, and tell what became of it."""
        run.sit_at(_ChildDesk(self))
        try:
            ended = self._called(function, run)
        except BaseException as error:  # noqa: BLE001 - SystemExit too, as in a thread
            below = error.__traceback__.tb_next.tb_next if error.__traceback__ and error.__traceback__.tb_next else None
            ended = Message("raised", pickled(error), _formatted(error, below))
        effects = run.recorded_effects
        self.send(Message(ended.what, ended.value, ended.more, effects))

    def _called(self, function: bytes, run: Run) -> Message:
        handler: Callable[..., Any] = pickle.loads(function)  # noqa: S301 - our own parent's
        wants_payload, convert = inspected(run.kind, handler)
        try:
            arguments = (run,) if not wants_payload else (run, convert(run.payload) if convert else run.payload)
        except ValueError as error:
            return Message("unfit", str(error))
        except Exception as error:  # noqa: BLE001 - a validator of the user's raises what it likes
            return Message("unfit", f"payload: {type(error).__name__}: {error}", _formatted(error, error.__traceback__))
        self.send(Message("begun"))
        with in_the_name_of(run) if run.records else contextlib.nullcontext():
            result = handler(*arguments)
        try:
            return Message("returned", None if result is None else payloads.encode(result))
        except payloads.Unencodable as error:
            return Message("unstorable", str(error))


class _ChildDesk:
    """What a handler in this process may ask for."""

    def __init__(self, child: _Child) -> None:
        self._child = child

    def write_progress(self, run: Run, progress: str) -> Awaitable[None]:
        """Have the worker write it. Raises LeaseLost."""
        answer = self._child.ask(Message("progress", progress))
        if answer.what == "lost":
            raise LeaseLost(run.run_id, during="progress")
        if answer.what == "failed":
            message = f"the progress could not be written: {answer.value}"
            raise RuntimeError(message)
        return Done()

    def transaction(self, run: Run, connection: "Connection | None") -> "AbstractAsyncContextManager[Connection]":  # noqa: ARG002 - whichever
        """Refuse: the worker's connections are in another process."""
        refuse_transaction(run)

    def step(self, run: Run, name: str, call: Callable[..., Any], *, in_transaction: bool) -> Awaitable[Any]:  # noqa: ARG002 - whichever
        """Refuse: a plain handler can't wait for it."""
        refuse_step(run)

    def live_step(self, run: Run, name: str) -> Awaitable[Any]:  # noqa: ARG002 - whichever
        """Refuse, as `step`."""
        refuse_step(run)

    def start_children(self, run: Run, starts: Sequence[Start], last: Start | None) -> Any:  # noqa: ARG002 - the worker knows which
        """Have the worker note it; return the ids. Raises what that raises: LeaseLost, InvalidRun, StepError."""
        answer = self._child.ask(Message("start", [_plainly(start) for start in starts], last and _plainly(last)))
        if answer.what == "refused":
            raise pickle.loads(answer.value)  # noqa: S301 - our own parent's
        return answer.value

    def join(
        self,
        run: Run,
        children: Sequence[UUID] | None,  # noqa: ARG002 - whichever
        on_failure: OnFailure,  # noqa: ARG002 - whichever
        timeout_s: float | None,  # noqa: ARG002 - whichever
    ) -> Awaitable[list[ChildOutcome]]:
        """Refuse: a plain handler can't wait for it."""
        refuse_parking(run)

    def event(self, run: Run, name: str, key: str | None, timeout_s: float | None) -> Awaitable[Any]:  # noqa: ARG002 - whichever
        """Refuse: a plain handler can't wait for it."""
        refuse_parking(run)

    def logger(self, run: Run) -> Any:  # noqa: ARG002 - the worker binds it to the run
        """Return a logger whose lines the worker writes."""

        def forward(_logger: Any, method: str, event: Any) -> NoReturn:
            self._child.send(Message("log", method, payloads.encode_leniently(event)))
            raise structlog.DropEvent

        processors: list[Any] = [structlog.processors.format_exc_info, forward]
        bound = structlog.make_filtering_bound_logger(0)
        return structlog.wrap_logger(None, processors=processors, wrapper_class=bound)


def _plainly(start: Start) -> Start:
    """Its payload as plain JSON: the worker need not know of what class it is."""
    try:
        return replace(start, payload=None if start.payload is None else payloads.decode(payloads.encode(start.payload)))
    except payloads.Unencodable as error:
        raise InvalidRun("payload", str(error)) from error


def refuse_transaction(run: Run) -> NoReturn:
    """Raise RuntimeError: a plain handler can't wait for a transaction."""
    message = f"{run!r} is executed by a plain handler: run.transaction() is for async ones"
    raise RuntimeError(message)


def refuse_step(run: Run) -> NoReturn:
    """Raise RuntimeError: a plain handler can't wait for a step."""
    message = f"{run!r} is executed by a plain handler: steps are for async ones"
    raise RuntimeError(message)


def refuse_parking(run: Run) -> NoReturn:
    """Raise RuntimeError: a plain handler can't be ended in the middle."""
    message = f"{run!r} is executed by a plain handler: run.join() and run.event() are for async ones"
    raise RuntimeError(message)


def pickled(error: BaseException) -> bytes:
    """
    Return what gives the same exception again in the other process: for the retry's rules, and for Cancel, Fail and Snooze.

    One that can't be pickled is made without its own __init__; one whose class can't be imported becomes what it derives
    from.
    """
    try:
        whole = pickle.dumps(error)
        if type(pickle.loads(whole)) is type(error):  # noqa: S301 - made in the line above
            return whole
    except Exception:  # noqa: BLE001, S110 - code of the user's, or a class that can't be imported
        pass
    for kind in type(error).__mro__:
        with contextlib.suppress(Exception):
            facts = {name: value for name, value in vars(error).items() if _is_picklable(value)}
            return pickle.dumps(Rebuilt(kind, (_text_of(error),), facts))
    raise AssertionError  # BaseException itself can


class Rebuilt:
    """An exception that is made anew when it is unpickled."""

    def __init__(self, kind: type[Any], args: tuple[Any, ...], facts: dict[str, Any]) -> None:
        self._made_of = kind, args, facts

    def __reduce__(self) -> tuple[Any, ...]:
        """Be the exception itself on the other side."""
        return rebuild, self._made_of


def rebuild(kind: type[BaseException], args: tuple[Any, ...], facts: dict[str, Any]) -> BaseException:
    """Make an exception without calling its __init__."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


def _is_picklable(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # noqa: BLE001 - whatever it raises
        return False
    return True


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001 - an exception whose own __str__ raises
        return f"(no text: {type(broken).__name__})"


def _formatted(error: BaseException, below: Any) -> str:
    try:
        return "".join(traceback.format_exception(type(error), error, below))
    except Exception as broken:  # noqa: BLE001 - as above
        return f"{type(error).__name__}, whose text can't be had: {type(broken).__name__}"
