"""
Executes up to `size` runs at once.

A slot is a task that lives longer than a run: it takes one run after the other, so that a run costs no task of its
own, and a handler that never waits does not even cost a turn of the event loop. Whatever a handler could leave behind
in its task (a context variable, a cancellation that was asked for) ends the slot, and the next run gets a new one.
"""

import asyncio
import contextvars
import sys
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import FrameType
from uuid import UUID

from notifyworker.execute import Attempt, Why, outcome_of_end, outcome_of_error
from notifyworker.observe import log, outline
from notifyworker.run import Outcome, Run
from notifyworker.settings import CANCEL_S

_SUSPECTS = 10  # that are told
_SLOW_S = 1.0
_ENDED = "has ended just now"
_TURN_S = 0.005  # after so long a slot lets others have the event loop


class Slots:
    """
    The runs that are executed here, and those that wait for a slot.

    `settle` is awaited with the outcome of an attempt that writes something together with it, and returns what is left to do.
    `on_begun` is called when an attempt begins, `on_ended` once for each attempt with its outcome (None: nothing is to
    be written), `on_over` when its handler has really ended, which may be later, `on_free` when a slot has become free,
    `on_stuck` for one whose handler ignores its end. In place of up to `replaced` such handlers others are executed; any
    more of them keep their slots.
    """

    def __init__(
        self,
        size: int,
        replaced: int,
        execute: Callable[[Attempt], Awaitable[Outcome | None]],
        *,
        worker: str,
        settle: Callable[[Attempt, Outcome], Awaitable[Outcome | None]],
        on_begun: Callable[[Attempt], None],
        on_ended: Callable[[Attempt, Outcome | None], None],
        on_over: Callable[[Attempt], None],
        on_free: Callable[[], None],
        on_stuck: Callable[[Attempt], None],
    ) -> None:
        self._size = size
        self._replaced = replaced
        self._execute = execute
        self._worker = worker
        self._settle_together = settle
        self._on_begun = on_begun
        self._on_ended = on_ended
        self._on_over = on_over
        self._on_free = on_free
        self._on_stuck = on_stuck
        self._waiting: deque[Attempt] = deque()
        self._running: dict[UUID, Attempt] = {}
        self._lingering: set[Attempt] = set()
        # Of those: they had CANCEL_S seconds to end, and have not.
        self._stuck: set[Attempt] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: list[asyncio.Future[None]] = []
        self._is_starting = False
        self._freed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        self._slow: deque[Attempt] = deque(maxlen=_SUSPECTS)

    @property
    def used(self) -> int:
        """Slots that are taken, or will be by runs that wait for one."""
        return len(self._running) + len(self._waiting) + len(self._lingering) - min(len(self._stuck), self._replaced)

    @property
    def running(self) -> int:
        """How many runs are executed now."""
        return len(self._running)

    @property
    def lingering(self) -> int:
        """Handlers whose run has ended without them."""
        return len(self._lingering)

    @property
    def stuck(self) -> int:
        """How many of them ignore their end."""
        return len(self._stuck)

    def restrictions(self) -> list[str]:
        """What was replaced. Without a stack, which the log has: everybody may read /healthz."""
        return [self._told_stuck()] if 0 < len(self._stuck) <= self._replaced else []

    def health(self) -> list[str]:
        """Why less is executed at once than should be."""
        if len(self._stuck) <= self._replaced:
            return []
        return [f"{self._told_stuck()}; replaced_slots={self._replaced} are replaced, the others keep their slots: restart it"]

    def _told_stuck(self) -> str:
        kinds = Counter(attempt.run.kind for attempt in self._stuck).most_common(5)
        told = ", ".join(f"{kind} ({count})" for kind, count in kinds)
        return f"{len(self._stuck)} handlers ignore that their runs were ended, and go on: {told}"

    def executes(self, run: Run) -> bool:
        """Whether this very attempt goes on, and its lease is not known to be lost."""
        attempt = self._running.get(run.run_id)
        return attempt is not None and attempt.run is run and not attempt.is_settled and attempt.why != "lost"

    def get(self, run_id: UUID) -> Attempt | None:
        """Return the attempt that is executed for this run, if there is one."""
        return self._running.get(run_id)

    def suspects(self, stood_still_s: float = 0.0) -> list[dict[str, str]]:
        """
        Name the runs that can be what the event loop, or the whole interpreter, has waited for: who, and where they are.

        Called from other threads. First the one that has the loop, then those in threads, which share the interpreter; and
        what has ended meanwhile, if it took as long.
        """
        task, frames, now = asyncio.current_task(self._loop), sys._current_frames(), self._loop.time()  # noqa: SLF001 - the documented way to another thread's stack
        now_there = [*self._running.values(), *self._lingering]
        on_loop = [(a, self._thread_id) for a in now_there if a.task is task and a.handler.is_async]
        in_threads = [(a, a.thread_id) for a in now_there if a.thread_id is not None]
        told = [(a, where_is(a, frames.get(thread_id))) for a, thread_id in [*on_loop, *in_threads]]
        if stood_still_s:
            told += [(a, _ENDED) for a in list(self._slow) if now - a.ended_at < stood_still_s <= a.ended_at - a.began_at]
        return [{"run_id": str(a.run.run_id), "kind": a.run.kind, "at": at} for a, at in told[:_SUSPECTS]]

    def put(self, attempts: Iterable[Attempt]) -> None:
        """Execute these as slots allow."""
        self._waiting.extend(attempts)
        self._start_another()

    def take_waiting(self) -> list[Run]:
        """Take back the runs that were not yet begun."""
        runs = [attempt.run for attempt in self._waiting]
        self._waiting.clear()
        return runs

    def take_from_waiting(self, leases: Mapping[UUID, int]) -> list[Run]:
        """Take back those that were not yet begun under these leases."""
        if not self._waiting:
            return []
        runs = [a.run for a in self._waiting if leases.get(a.run.run_id) == a.run.lease_token]
        if runs:
            self._waiting = deque(a for a in self._waiting if leases.get(a.run.run_id) != a.run.lease_token)
        return runs

    def lease_of(self, run_id: UUID) -> int | None:
        """Return the token under which this run is executed here, or waits for a slot; None if it does not."""
        attempt = self._running.get(run_id) or next((a for a in self._waiting if a.run.run_id == run_id), None)
        return None if attempt is None else attempt.run.lease_token

    async def all_ended(self) -> None:
        """Return when nothing is executed any more."""
        while self._running:
            self._freed.clear()
            await self._freed.wait()

    def end(self, attempt: Attempt, why: Why) -> None:
        """Cancel an attempt, and do without it if it does not end."""
        attempt.end(why)
        self._loop.call_later(CANCEL_S, self._abandon, attempt)

    async def end_all(self, why: Why, finished: "asyncio.Future[None]", *, grace_s: float) -> None:
        """Cancel all attempts, and do without those that have not ended after `grace_s` seconds."""
        attempts = list(self._running.values())
        for attempt in attempts:
            attempt.end(why)
        await asyncio.wait({finished}, timeout=grace_s)
        for attempt in attempts:
            self._abandon(attempt)

    async def close(self) -> None:
        """End the slots that wait for runs. Those whose handler goes on are left to it."""
        stuck = {attempt.task for attempt in self._lingering}
        ending = [task for task in self._tasks if task not in stuck]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    def _start_another(self) -> None:
        """
        Start one more slot for what waits, one at a time.

        Each slot starts the next before it executes, so that no run waits behind a handler that waits, while handlers
        that do not wait are all executed by one.
        """
        if self._is_starting or not self._may_begin():
            return
        self._is_starting = True
        if self._idle:
            self._idle.pop().set_result(None)
            return
        task = self._loop.create_task(self._slot(), name="notifyworker slot")
        self._tasks.add(task)
        task.add_done_callback(self._slot_ended)

    def _may_begin(self) -> bool:
        replaced = min(len(self._stuck), self._replaced) if self._stuck else 0
        return bool(self._waiting) and len(self._running) + len(self._lingering) - replaced < self._size

    async def _slot(self) -> None:
        self._is_starting = False
        me = asyncio.current_task()
        assert me is not None
        clean = contextvars.copy_context()
        turn_ends_at = self._loop.time() + _TURN_S
        while True:
            if not self._may_begin():
                idle = self._loop.create_future()
                self._idle.append(idle)
                await idle
                self._is_starting = False
                turn_ends_at = self._loop.time() + _TURN_S
                continue
            attempt = self._waiting.popleft()
            attempt.task = me
            self._begin(attempt)
            self._start_another()
            try:
                outcome = await self._execute(attempt)
                if attempt.writes is not None and outcome is not None and not attempt.is_settled:
                    outcome = await self._settle_together(attempt, outcome)
            except Exception as error:  # noqa: BLE001 - a mistake of ours: it costs this run its attempt, not its siblings
                log.critical("execute_failed", run_id=str(attempt.run.run_id), error=outline(error))
                outcome = outcome_of_error(attempt, error, self._worker)  # it counts: the same may happen again
            self._ended(attempt, outcome)
            if attempt.why is not None or me.cancelling() or not _is_still(clean):
                return
            if attempt.ended_at > turn_ends_at:
                await asyncio.sleep(0)
                turn_ends_at = self._loop.time() + _TURN_S

    def _slot_ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._start_another()

    def _begin(self, attempt: Attempt) -> None:
        run = attempt.run
        attempt.began_at = self._loop.time()
        if (older := self._running.get(run.run_id)) is not None:  # its lease is over, and nobody has told us yet
            self._lingering.add(older)
            self.end(older, "lost")
        self._running[run.run_id] = attempt
        self._start_timer(attempt)
        self._on_begun(attempt)

    def restart_timer(self, attempt: Attempt) -> None:
        """Count from now: it had to wait for a process."""
        if attempt.timer is not None:
            attempt.timer.cancel()
        if not attempt.ended_at and attempt.why is None:
            attempt.began_at = self._loop.time()
            self._start_timer(attempt)

    def _start_timer(self, attempt: Attempt) -> None:
        if attempt.run.timeout_s is not None:
            attempt.timer = self._loop.call_later(attempt.run.timeout_s, self.end, attempt, "timeout")

    def _ended(self, attempt: Attempt, outcome: Outcome | None) -> None:
        attempt.ended_at = self._loop.time()
        if attempt.ended_at - attempt.began_at > _SLOW_S:
            self._slow.append(attempt)
        if attempt.timer is not None:
            attempt.timer.cancel()
        self._settle(attempt, outcome)
        if self._running.get(attempt.run.run_id) is attempt:
            del self._running[attempt.run.run_id]
        if attempt.thread is not None and not attempt.thread.done():
            self._linger(attempt)
        else:
            self._over(attempt)
        self._freed.set()
        self._on_free()

    def _settle(self, attempt: Attempt, outcome: Outcome | None) -> None:
        if not attempt.is_settled:
            attempt.is_settled = True
            self._on_ended(attempt, outcome)

    def _over(self, attempt: Attempt) -> None:
        if self._lingering:
            self._lingering.discard(attempt)
            self._stuck.discard(attempt)
        self._on_over(attempt)

    def _abandon(self, attempt: Attempt) -> None:
        """A handler that ignores its cancellation goes on, and its run without it."""
        if attempt.is_settled or attempt.task is None:
            return
        self._settle(attempt, outcome_of_end(attempt, self._worker))
        if self._running.get(attempt.run.run_id) is attempt:
            del self._running[attempt.run.run_id]
        self._lingering.add(attempt)
        self._freed.set()
        self._is_stuck(attempt)

    def _linger(self, attempt: Attempt) -> None:
        """A thread can't be cancelled: it looks at `run.cancelled`, or is stuck."""
        self._lingering.add(attempt)
        late = self._loop.call_later(CANCEL_S, self._is_stuck, attempt)

        def done() -> None:
            late.cancel()
            self._over(attempt)
            self._start_another()
            self._on_free()

        def tell(_thread: object) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(done)

        assert attempt.thread is not None
        attempt.thread.add_done_callback(tell)

    def _is_stuck(self, attempt: Attempt) -> None:
        """Say where it stands, and let another be executed in its place, while that is allowed."""
        self._stuck.add(attempt)
        run = attempt.run
        log.error("handler_ignores_cancellation", run_id=str(run.run_id), kind=run.kind, why=attempt.why, at=attempt.stack())
        self._on_stuck(attempt)
        self._start_another()
        self._on_free()


def _is_still(context: contextvars.Context) -> bool:
    """Whether nothing was left in the context variables. At once where none was set, which is nearly always."""
    try:
        return contextvars.copy_context() == context
    except Exception:  # noqa: BLE001 - a value whose comparison raises was set by somebody: so, no
        return False


def where_is(attempt: Attempt, frame: FrameType | None) -> str:
    """The line of the handler's own file that a stack is at."""
    code = getattr(attempt.handler.function, "__code__", None)
    while frame is not None and code is not None and frame.f_code.co_filename != code.co_filename:
        frame = frame.f_back
    # None of it is on the stack: what was waited for is over at this moment.
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}" if frame is not None else _ENDED
