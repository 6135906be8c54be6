"""
The conductor: claims while there are free slots, starts handlers, and drains when told. No SQL, no HTTP.

One conductor is one start of a worker, with a `lease_owner` of its own. The event `wake` is set by a notification, a
slot that freed, a reconnect, a stop; it is cleared before looking, so that none of them is lost during a look.
"""

import asyncio
import os
import secrets
import socket
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from typing import Any
from uuid import UUID

from notifyworker.database import Connection, DatabaseError, Link, brief, connect, explain, is_refusal
from notifyworker.errors import Code, LeaseLost, StartError
from notifyworker.execute import Attempt, error_entry, execute, outcome_of_end, outcome_of_error, released
from notifyworker.handlers import Handler
from notifyworker.leader import Leader
from notifyworker.lease import LeaseKeeper
from notifyworker.migrate import check, open_or_explain
from notifyworker.observe import Metrics, log
from notifyworker.pause import Backoff, is_set_within
from notifyworker.reap import Reaper
from notifyworker.run import Outcome, Run, State
from notifyworker.settings import CANCEL_S, CONNECT_S, Settings
from notifyworker.settle import Settler
from notifyworker.store import Served, Store
from notifyworker.wake import Listener

_FLUSH_S = 5.0
_FORCED_S = 1.0
_FLEET_SETTINGS = ("reaper_interval_s", "max_payload_bytes", "max_result_bytes", "idempotency_window_s", "history_retention_days")


class Conductor:
    """One start of one worker."""

    def __init__(self, settings: Settings, handlers: Mapping[str, Handler], *, standalone: bool) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.store = Store(settings.schema_name)
        self.dsn = settings.require_dsn()
        self.lease_owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.reaper_interval_s = settings.reaper_interval_s
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._handlers = handlers
        self._served = Served(
            kinds=list(handlers),
            max_attempts=[h.retry.max_attempts for h in handlers.values()],
            timeouts_s=[h.timeout_s for h in handlers.values()],
            project_ids=settings.project_ids,
        )
        self._max_result_bytes = settings.max_result_bytes
        self._wake = asyncio.Event()
        self._slot_freed = asyncio.Event()
        self._running: dict[UUID, Attempt] = {}
        self._waiting: deque[Run] = deque()
        self._lingering: set[Attempt] = set()
        self._more = True
        self._stopping = False
        self._ready = False
        self._claim_error: tuple[float, str] | None = None
        self._doubt_until = 0.0
        self._sink: Callable[[dict[str, object]], None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._threads = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="notifyworker handler")
        self._make_parts(settings, standalone=standalone)

    def _make_parts(self, settings: Settings, *, standalone: bool) -> None:
        def opener(purpose: str) -> Callable[[], Coroutine[Any, Any, Connection]]:
            return lambda: connect(self.dsn, schema=settings.schema_name, purpose=purpose)

        direct = settings.listen_dsn.get_secret_value() if settings.listen_dsn else self.dsn
        self._claim_link, self._settle_link, self._side_link = (Link(opener(p)) for p in ("claim", "settle", "side"))
        self.listener = Listener(direct, settings.schema_name, self._wake, self.metrics)
        self.leader = Leader(direct, self.store, self.lease_owner, self._wake, self.metrics, tick_s=settings.wake_tick_s)
        self.reaper = Reaper(self.store, self._side_link, self.lease_owner, self.metrics, interval_s=settings.reaper_interval_s)
        self.settler = Settler(
            self.store, self._settle_link, self.lease_owner, self.metrics, on_settled=self._settled, on_refused=self._refused
        )
        exits = (settings.on_lapse or ("exit" if standalone else "log")) == "exit"
        self.keeper = LeaseKeeper(
            settings, self.store, direct, self.lease_owner, self.metrics,
            exits_on_lapse=exits, describe=self._describe, on_lost=self._lost,
        )  # fmt: skip
        self.listener.on_message = self._heard
        self.listener.on_burst = self.leader.burst
        self.listener.burst_per_s = settings.wake_coalesce_per_s
        self.leader.on_absent = self.reaper.saw
        self.leader.on_mode = self._mode_changed
        self.metrics.slots.set(settings.concurrency)

    # Start and stop.

    async def start(self) -> None:
        """Check the database, become present, and begin to claim. Raises StartError, SettingsError."""
        connection = await open_or_explain(self.dsn, self.store.schema, "start")
        try:
            async with asyncio.timeout(CONNECT_S):
                await check(connection, self.store.schema, self.dsn)
                await self._adopt_fleet_settings(connection)
        except DatabaseError as error:
            raise explain(error, self.dsn) from None
        finally:
            connection.terminate()
        self.keeper.start()
        try:
            await self.keeper.started
        except DatabaseError as error:
            raise explain(error, self.keeper.dsn) from None
        for name, loop in (
            ("listener", self.listener.run()), ("leader", self.leader.run()), ("settler", self.settler.run()),
            ("reaper", self.reaper.run()), ("claims", self._claim_loop()),
        ):  # fmt: skip
            task = asyncio.create_task(loop, name=f"notifyworker {name}")
            task.add_done_callback(self._loop_ended)
            self._tasks.append(task)
        log.info("worker_started", lease_owner=self.lease_owner, kinds=self._served.kinds, concurrency=self.settings.concurrency)

    async def _adopt_fleet_settings(self, connection: Connection) -> None:
        """What must be one for the fleet stands in the database; a worker whose own differs says so."""
        fleet = await self.store.settings(connection)
        for name in _FLEET_SETTINGS:
            own = getattr(self.settings, name)
            if name in self.settings.model_fields_set and own != fleet[name]:
                log.warning(
                    "setting_differs", name=name, own=own, fleet=fleet[name], hint=f"notifyworker config set {name} {own:g}"
                )
        self.reaper_interval_s = self.reaper.interval_s = fleet["reaper_interval_s"]
        self._max_result_bytes = int(fleet["max_result_bytes"])

    def stop_claiming(self) -> None:
        """Take no new run from now on."""
        self._stopping = True
        self._ready = False
        self._wake.set()
        while self._waiting:
            self.settler.put(released(self._waiting.popleft(), self.lease_owner))

    async def drain(self, timeout_s: float, force: asyncio.Event) -> bool:
        """
        Let what runs finish, for `timeout_s` seconds or until `force`; then cancel it and give its leases back.

        Return whether all had finished by themselves.
        """
        self.stop_claiming()
        self.keeper.announce()
        log.info("draining", running=len(self._running), timeout_s=timeout_s)
        forced: asyncio.Future[Any] = asyncio.ensure_future(force.wait())
        claims: asyncio.Future[Any] = self._tasks[-1]
        await asyncio.wait({forced, claims}, timeout=CANCEL_S, return_when=asyncio.FIRST_COMPLETED)
        finished: asyncio.Future[Any] = asyncio.ensure_future(self._all_ended())
        await asyncio.wait({forced, finished}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        in_time = finished.done()
        if not in_time:
            await self._end_all(finished, grace_s=0.5 if force.is_set() else CANCEL_S)
        flushed: asyncio.Future[Any] = asyncio.ensure_future(self.settler.flushed())
        await asyncio.wait({forced, flushed}, timeout=_FLUSH_S, return_when=asyncio.FIRST_COMPLETED)
        if force.is_set():
            await asyncio.wait({flushed}, timeout=_FORCED_S)
        if not flushed.done():
            log.error("outcomes_not_written", count=self.settler.backlog)
            in_time = False
        for waiter in (forced, finished, flushed):
            waiter.cancel()
        return in_time

    async def _all_ended(self) -> None:
        while self._running:
            self._slot_freed.clear()
            await self._slot_freed.wait()

    async def _end_all(self, finished: "asyncio.Future[None]", *, grace_s: float) -> None:
        attempts = list(self._running.values())
        for attempt in attempts:
            attempt.end("stopping")
        await asyncio.wait({finished}, timeout=grace_s)
        for attempt in attempts:
            self._abandon(attempt)

    async def close(self) -> None:
        """End every loop, thread and connection of ours. Connections first: nothing then waits for a dead server."""
        self._stopping = True
        await self.leader.farewell()
        await self.keeper.stop()
        for part in (self.listener, self.leader):
            part.terminate()
        for link in (self._claim_link, self._settle_link, self._side_link):
            link.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown(wait=not self._lingering, cancel_futures=True)
        if not self.failed.cancel() and not self.failed.cancelled():
            self.failed.exception()  # in a host nobody else asks for it, and the log has told it
        log.info("worker_stopped", lease_owner=self.lease_owner, lingering=len(self._lingering))

    def _loop_ended(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled() or self._stopping:
            return
        error = task.exception() or StartError(f"{task.get_name()} ended by itself")
        log.critical("loop_ended", loop=task.get_name(), error=repr(error))
        if not self.failed.done():
            self.failed.set_exception(error)

    # Claiming.

    async def _claim_loop(self) -> None:
        backoff = Backoff()
        while not self._stopping:
            self._wake.clear()
            due_in_s: float | None = None
            if (free := self._free()) > 0:
                try:
                    found, due_in_s = await self._claim(free)
                except DatabaseError as error:
                    self._claim_failed(error)
                    await self._pause(backoff.next_s())
                    continue
                backoff.reset()
                self._claim_error, self._ready = None, not self._stopping
                self._more = found == free
                if self._more:
                    continue
            else:
                self._more = True
            if not await is_set_within(self._wake, self._until_next_look(due_in_s)):
                self.metrics.wakes.labels("poll" if due_in_s is None else "due").inc()

    def _until_next_look(self, due_in_s: float | None) -> float:
        if self._free() <= 0:
            return self.settings.poll_interval_s  # a freed slot sets the event
        return min(self.settings.poll_interval_s, self.settings.poll_interval_s if due_in_s is None else max(0.0, due_in_s))

    async def _claim(self, free: int) -> tuple[int, float | None]:
        loop = asyncio.get_running_loop()
        sent_at = loop.time()
        claimed = await self.store.claim(
            self._claim_link, self._served, limit=free, lease_owner=self.lease_owner, lease_s=self.settings.lease_s,
            enforce_shadow=self.settings.shadow == "enforce", desk=self,
        )  # fmt: skip
        self.metrics.claims.labels("some" if claimed.runs else "none").inc()
        if claimed.runs:
            self.keeper.take(claimed.runs, sent_at)
            for run in claimed.runs:
                self._take(run)
        if self._doubt_until > sent_at:
            await self._give_orphans_back()
        return len(claimed.runs), claimed.due_in_s

    def _claim_failed(self, error: BaseException) -> None:
        now = asyncio.get_running_loop().time()
        self._ready = False
        self.metrics.claims.labels("error").inc()
        if not is_refusal(error):  # it may have been executed all the same, even later
            self._doubt_until = now + self.settings.lease_s
        if self._claim_error is None:
            log.warning("claim_failed", error=brief(error))
        self._claim_error = (self._claim_error[0] if self._claim_error else now, brief(error))

    async def _give_orphans_back(self) -> None:
        """Runs of a claim whose answer was lost: ours by the database's word, and nobody executes them."""
        for row in await self.store.orphans(self._side_link, self.lease_owner):
            if not self.keeper.holds(row["run_id"], row["lease_token"]):
                run = Run(run_id=row["run_id"], kind=row["kind"], lease_token=row["lease_token"], attempt=row["attempt"])
                entry = error_entry(run, Code.INTERRUPTED, "the answer to its claim was lost", None, self.lease_owner)
                self.settler.put(
                    Outcome(run.run_id, run.lease_token, run.attempt, run.kind, State.PENDING, error=entry, counts=False)
                )
                log.warning("orphan_given_back", run_id=str(run.run_id))

    def _free(self) -> int:
        """Slots to claim for. Outcomes on their way count beyond one full set, so that they can't pile up."""
        used = len(self._running) + len(self._waiting) + len(self._lingering)
        unwritten = max(0, self.settler.backlog - self.settings.concurrency)
        return self.settings.concurrency + self.settings.prefetch - used - unwritten

    async def _pause(self, seconds: float) -> None:
        """A pause that a stop ends, and a notification does not."""
        ends_at = asyncio.get_running_loop().time() + seconds
        while not self._stopping and (left_s := ends_at - asyncio.get_running_loop().time()) > 0:
            self._wake.clear()
            await is_set_within(self._wake, left_s)

    # Executing.

    def _take(self, run: Run) -> None:
        self.metrics.claimed.labels(run.kind).inc()
        self.metrics.pickup.labels(run.kind).observe(max(0.0, run.waited_s))
        if self._stopping:
            self.settler.put(released(run, self.lease_owner))
        elif len(self._running) + len(self._lingering) >= self.settings.concurrency:
            self._waiting.append(run)
        else:
            self._start(run)

    def _start(self, run: Run) -> None:
        loop = asyncio.get_running_loop()
        attempt = Attempt(run, self._handlers[run.kind])
        if (older := self._running.get(run.run_id)) is not None:  # its lease is over, and nobody has told us yet
            self._lingering.add(older)
            self._end(older, "lost")
        self._running[run.run_id] = attempt
        attempt.started_at = loop.time()
        attempt.task = loop.create_task(
            execute(attempt, threads=self._threads, worker=self.lease_owner, max_result_bytes=self._max_result_bytes),
            name=f"run {run.run_id}",
        )
        attempt.task.add_done_callback(partial(self._ended, attempt))
        if run.timeout_s is not None:
            attempt.timer = loop.call_later(run.timeout_s, self._end, attempt, "timeout")
        self._publish(run.run_id, run.kind, "running")

    def _end(self, attempt: Attempt, why: Any) -> None:
        """Cancel an attempt, and do without it if it does not end."""
        attempt.end(why)
        asyncio.get_running_loop().call_later(CANCEL_S, self._abandon, attempt)

    def _abandon(self, attempt: Attempt) -> None:
        """A handler that ignores its cancellation keeps its slot until it ends, and its run goes on without it."""
        if attempt.task is None or attempt.task.done() or attempt.is_settled:
            return
        frames = [f"{f.f_code.co_filename}:{f.f_lineno} in {f.f_code.co_name}" for f in attempt.task.get_stack()]
        log.error(
            "handler_ignores_cancellation", run_id=str(attempt.run.run_id), kind=attempt.run.kind, why=attempt.why, at=frames
        )
        self._settle(attempt, outcome_of_end(attempt, self.lease_owner))
        if self._running.get(attempt.run.run_id) is attempt:
            del self._running[attempt.run.run_id]
        self._lingering.add(attempt)
        self._slot_freed.set()

    def _ended(self, attempt: Attempt, task: "asyncio.Task[Outcome | None]") -> None:
        run = attempt.run
        if attempt.timer is not None:
            attempt.timer.cancel()
        if task.cancelled():  # before it could begin
            outcome = outcome_of_end(attempt, self.lease_owner)
        elif (error := task.exception()) is not None:
            log.critical("execute_failed", run_id=str(run.run_id), error=repr(error))
            outcome = outcome_of_error(attempt, error, self.lease_owner)  # it counts: the same may happen again
        else:
            outcome = task.result()
        self._settle(attempt, outcome)
        if self._running.get(run.run_id) is attempt:
            del self._running[run.run_id]
        self._lingering.discard(attempt)
        if attempt.thread is not None and not attempt.thread.done():
            self._linger(attempt)
        else:
            self.keeper.handler_ended(run.run_id, run.lease_token)
        self.metrics.execution.labels(run.kind).observe(asyncio.get_running_loop().time() - attempt.started_at)
        self._slot_is_free()

    def _linger(self, attempt: Attempt) -> None:
        """A thread can't be cancelled: its slot is taken until it ends."""
        loop = asyncio.get_running_loop()
        self._lingering.add(attempt)
        log.warning("thread_goes_on", run_id=str(attempt.run.run_id), kind=attempt.run.kind, why=attempt.why)

        def done() -> None:
            self._lingering.discard(attempt)
            self.keeper.handler_ended(attempt.run.run_id, attempt.run.lease_token)
            self._slot_is_free()

        def tell(_thread: object) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(done)

        assert attempt.thread is not None
        attempt.thread.add_done_callback(tell)

    def _slot_is_free(self) -> None:
        self._slot_freed.set()
        while self._waiting and len(self._running) + len(self._lingering) < self.settings.concurrency:
            self._start(self._waiting.popleft())
        if self._more:
            self._wake.set()

    # Settling.

    def _settle(self, attempt: Attempt, outcome: Outcome | None) -> None:
        if attempt.is_settled:
            return
        attempt.is_settled = True
        if outcome is None:
            self.keeper.drop(attempt.run.run_id, attempt.run.lease_token)
            return
        if outcome.error is not None and outcome.to is not State.CANCELLED:
            log.warning(
                "attempt_failed", run_id=str(outcome.run_id), kind=outcome.kind, attempt=outcome.attempt, to=str(outcome.to)
            )
        self.settler.put(outcome)

    def _settled(self, outcome: Outcome) -> None:
        self.keeper.drop(outcome.run_id, outcome.lease_token)
        self.metrics.finished.labels(outcome.kind, str(outcome.to)).inc()
        log.debug("run_settled", run_id=str(outcome.run_id), kind=outcome.kind, to=str(outcome.to))
        self._publish(outcome.run_id, outcome.kind, str(outcome.to))
        if outcome.to is State.PENDING or self._more:
            self._wake.set()

    def _refused(self, outcome: Outcome) -> None:
        self.keeper.drop(outcome.run_id, outcome.lease_token)
        self.metrics.refused.inc()
        log.warning(
            "outcome_refused", run_id=str(outcome.run_id), kind=outcome.kind, to=str(outcome.to), lease_token=outcome.lease_token
        )

    def _lost(self, lost: dict[UUID, int], why: str) -> None:
        """Leases that are another's now, or may be soon: cancel what runs under them."""
        for run_id, token in lost.items():
            attempt = self._running.get(run_id)
            if attempt is not None and attempt.run.lease_token == token:
                self.metrics.lost.inc()
                log.warning("lease_lost", run_id=str(run_id), kind=attempt.run.kind, why=why, lease_token=token)
                # After a lapse nobody may have taken it yet: then the release is accepted, else it is refused.
                self._end(attempt, "stopping" if why == "lapse" else "lost")
            elif (run := next((r for r in self._waiting if (r.run_id, r.lease_token) == (run_id, token)), None)) is not None:
                self.metrics.lost.inc()
                log.warning("lease_lost", run_id=str(run_id), kind=run.kind, why=why, lease_token=token)
                self._waiting.remove(run)
                if why == "lapse":
                    self.keeper.handler_ended(run_id, token)
                    self.settler.put(released(run, self.lease_owner))
                else:
                    self.keeper.drop(run_id, token)
                self._slot_is_free()

    def _heard(self, message: str) -> None:
        what, _, argument = message.partition(":")
        if what != "cancel":
            self.leader.heard(message)
            return
        try:
            run_id = UUID(argument)
        except ValueError:
            return  # anybody may notify on our channel
        # So this proves nothing: a heartbeat now finds out whether it is true.
        if run_id in self._running or any(run.run_id == run_id for run in self._waiting):
            self.keeper.announce()

    # What a handler asks for (Desk), and what others see.

    async def write_progress(self, run: Run, progress: str) -> None:
        """Write a run's progress, fenced. Raises LeaseLost."""
        if not await self.store.progress(self._side_link, run, self.lease_owner, progress):
            if (attempt := self._running.get(run.run_id)) is not None and attempt.run is run:
                self._lost({run.run_id: run.lease_token}, "progress")
            raise LeaseLost(run.run_id, during="progress")
        self._publish(run.run_id, run.kind, "progress")

    def logger(self, run: Run) -> Any:
        """Return a logger bound to the run."""
        return log.bind(run_id=str(run.run_id), kind=run.kind, attempt=run.attempt, project_id=run.project_id)

    def publish_to(self, sink: Callable[[dict[str, object]], None] | None) -> None:
        """Call `sink` with every change of state that this worker makes."""
        self._sink = sink

    def _publish(self, run_id: UUID, kind: str, state: str) -> None:
        if self._sink is not None:
            self._sink({"run_id": str(run_id), "kind": kind, "state": state})

    def _mode_changed(self, mode: str) -> None:
        self.reaper.lead(is_leading=mode != "follower")
        if mode != "follower" and not self._stopping:
            note = asyncio.get_running_loop().create_task(self._note_mode(mode))
            note.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _note_mode(self, mode: str) -> None:
        try:
            await self.store.reaper_elected(self._side_link, self.lease_owner, mode)
        except DatabaseError as error:
            log.warning("mode_not_noted", error=brief(error))

    def _describe(self, has_presence: bool) -> tuple[Any, ...]:  # noqa: FBT001 - called back with it alone
        s = self.settings
        return (
            self.lease_owner, socket.gethostname(), os.getpid(), version("notifyworker"), self._served.kinds, s.project_ids,
            s.concurrency, len(self._running), "draining" if self._stopping else "running", s.shadow, has_presence,
            s.presumed_dead_s, s.lease_s, s.heartbeat_interval_s,
        )  # fmt: skip

    @property
    def lingering(self) -> int:
        """Handlers that ignored their end and go on."""
        return len(self._lingering)

    def is_ready(self) -> bool:
        """Whether it claims: not while starting, stopping, or without a database."""
        return self._ready and not self._stopping

    def health(self) -> list[str]:
        """Reasons why this worker does not do its job; empty if it does. From memory."""
        now = asyncio.get_running_loop().time()
        reasons = []
        if self.failed.done() and not self.failed.cancelled():
            reasons.append("a part of this worker has ended by a fault of its own: see the log, and restart it")
        if self._claim_error is not None:
            since, why = self._claim_error
            reasons.append(f"no run could be claimed for {now - since:.0f} s: {why}")
        beat_age_s = self.keeper.beat_age_s()
        if beat_age_s > 2 * self.settings.heartbeat_interval_s:
            reasons.append(f"no heartbeat was answered for {beat_age_s:.0f} s")
        stall = self.keeper.last_stall
        if stall is not None and now - stall[1] < self.settings.heartbeat_interval_s:
            reasons.append(f"the event loop stood still for {stall[0]:.0f} s: a handler blocks it")
        if not self.listener.is_hearing and not self.listener.is_deaf and now - self.listener.silent_since > CONNECT_S:
            reasons.append(
                f"no notification can be heard for {now - self.listener.silent_since:.0f} s: runs are found by polling"
            )
        if self.leader.queue_usage >= 0.5:  # noqa: PLR2004 - as in the trigger
            reasons.append(f"the notification queue is {self.leader.queue_usage:.0%} full: inserts do not wake workers")
        if self.reaper.stands_in:
            reasons.append("the leader's lock is held by somebody who does not reap: this worker stands in")
        if self.settler.failing_since is not None:
            reasons.append(f"{self.settler.backlog} outcomes could not be written for {now - self.settler.failing_since:.0f} s")
        return reasons
