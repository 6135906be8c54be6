"""
The conductor: builds the parts of a worker, hands what one of them finds to the next, and drains when told.

One conductor is one start of a worker, with a `lease_owner` of its own. No SQL, no HTTP.
"""

import asyncio
import os
import secrets
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from functools import partial
from importlib.metadata import version
from typing import Any
from uuid import UUID

from notifyworker.batch import Batches
from notifyworker.budget import open_together
from notifyworker.cancel import Cancels
from notifyworker.children import Children
from notifyworker.claim import Claims
from notifyworker.database import Connection, DatabaseError, Link, brief, explain, reconnect
from notifyworker.depth import Depth
from notifyworker.errors import Code, LeaseLost, PauseKind, StartError
from notifyworker.events import EventWaits
from notifyworker.execute import Attempt, error_entry, execute, released
from notifyworker.family import ChildOutcome, OnFailure, Start
from notifyworker.handlers import Roster
from notifyworker.hearing import POOLER, inserts_wake
from notifyworker.leader import Leader
from notifyworker.lease import LeaseKeeper
from notifyworker.migrate import check, open_or_explain
from notifyworker.mirrors import Mirrors
from notifyworker.observe import Metrics, is_debug, log, outline
from notifyworker.places import LingeringPlaces
from notifyworker.processes import Processes, processors
from notifyworker.progress import Progress
from notifyworker.reap import Reaper
from notifyworker.run import LiveStep, Outcome, Run, State
from notifyworker.run_log import RunLogs, secrets_of
from notifyworker.run_log_store import RunLogStore
from notifyworker.schedule import Scheduler
from notifyworker.settings import CANCEL_S, CONNECT_S, FLEET_SETTINGS, Settings
from notifyworker.settle import Settler
from notifyworker.shadow_store import ShadowStore
from notifyworker.slots import Slots
from notifyworker.steps import Steps
from notifyworker.store import QUEUE_LIMIT, NewPause, Row, Store
from notifyworker.trace import processing, tracer
from notifyworker.transaction import Transactions
from notifyworker.turns import Turns
from notifyworker.vacuum import LONGEST_VACUUM_S, Vacuum
from notifyworker.versions import adopt_versions, names_of, served_by
from notifyworker.wake import Listener

_FLUSH_S = 5.0
_FORCED_S = 1.0
_VERSION = version("notifyworker")  # of the code that runs, whatever is installed meanwhile


class Conductor:
    """One start of one worker."""

    def __init__(self, settings: Settings, handlers: Roster, *, standalone: bool, metrics: Metrics | None = None) -> None:
        self.settings = settings
        self.metrics = metrics or Metrics()
        self.store = Store(settings.schema_name)
        self.dsn = settings.require_dsn()
        self.lease_owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.reaper_interval_s = settings.reaper_interval_s
        self.max_payload_bytes = settings.max_payload_bytes
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._handlers = handlers
        self._max_result_bytes = settings.max_result_bytes
        self._stopping = False
        self._busy_at = asyncio.get_running_loop().time()
        self._queue_usage = 0.0
        self._inserts_wake = True
        self._sink: Callable[[dict[str, object]], None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._notes: set[asyncio.Task[None]] = set()
        threads = settings.concurrency + settings.replaced_slots
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="notifyworker handler")
        self._tracer = tracer()
        self._processes = Processes(settings.processes or processors(), self._threads)
        self._make_parts(settings, standalone=standalone)

    def _make_parts(self, settings: Settings, *, standalone: bool) -> None:
        def link(purpose: str, dsn: str = self.dsn, **session: str) -> Link:
            return Link(lambda: reconnect(dsn, schema=settings.schema_name, purpose=purpose, session=session))

        direct = settings.listen_dsn.get_secret_value() if settings.listen_dsn else self.dsn
        self._links = {
            "claim": link("claim"),
            "settle": link("settle", synchronous_commit=settings.synchronous_commit),
            "side": link("side"),
            "shadow": link("shadow"),  # opened where a kind has versions
            "vacuum": link("vacuum", direct, statement_timeout=f"{LONGEST_VACUUM_S}s"),
        }
        self._side_link = self._links["side"]
        served = served_by(self._handlers, settings.project_ids)
        wake = asyncio.Event()
        self.turns = Turns(wake.set, self._hand_on)
        self.claims = Claims(
            settings, self.store, (self._links["claim"], self._side_link), served, self.lease_owner,
            wake=wake, metrics=self.metrics, desk=self, free=self._free, on_claimed=self._claimed,
            on_answer=self.turns.claimed, leases=self._leases, on_orphan=self._orphan,
        )  # fmt: skip
        self.mirrors = Mirrors(
            settings, ShadowStore(self.store), self._links["shadow"] if self._handlers.versions else self._side_link, served,
            self.lease_owner, metrics=self.metrics, desk=self, free=self._free, is_busy=lambda: self.claims.more, on_leased=self._leased,
            begin=self._begin, alone=lambda: self.claims.alone, in_doubt=self.claims.in_doubt,
        )  # fmt: skip
        self.slots = Slots(
            settings.concurrency, settings.replaced_slots, self._execute, worker=self.lease_owner,
            settle=self._settle_with_children,
            on_begun=self._begun, on_ended=self._ended, on_over=self._over, on_free=self._slot_is_free,
            on_stuck=lambda attempt: self.metrics.ignored.labels(attempt.run.kind).inc(),
        )  # fmt: skip
        self.batches = Batches(self._threads, lambda: self.slots.running + self.slots.lingering < settings.concurrency)
        self.batches.warn(self._handlers, settings.concurrency)
        self.metrics.stuck.set_function(lambda: self.slots.stuck)
        self.metrics.beat_age.set_function(lambda: self.keeper.beat_age_s())  # noqa: PLW0108 - made below
        self.listener = Listener(direct, settings.schema_name, wake, self.metrics)
        self.leader = Leader(direct, self.store, self.lease_owner, wake, self.metrics, tick_s=settings.wake_tick_s)
        self.reaper = Reaper(self.store, self._side_link, self.lease_owner, self.metrics, interval_s=settings.reaper_interval_s)
        self.settler = Settler(
            self.store, self._links["settle"], self.lease_owner, self.metrics, on_settled=self._settled, on_refused=self._refused
        )
        self.places = LingeringPlaces(self.store, self._side_link, self.lease_owner)
        self.logs = RunLogs(
            RunLogStore(self.store), self._links["settle"], self.lease_owner, settings.run_log_lines,
            settings.heartbeat_interval_s, secrets_of(settings),
        )  # fmt: skip
        self.settler.before = self.logs.finish
        self.transactions = Transactions(
            self.store, self.dsn, self._side_link, self.lease_owner,
            connections=settings.transaction_connections, unknown_s=settings.lease_s, max_result_bytes=lambda: self._max_result_bytes,
            progress=self._unwritten,
            before=self.logs.finish, on_settled=self._settled, on_ended=self._ended, on_lost=partial(self._lost_inside, "transaction"),
        )  # fmt: skip
        self.metrics.connections.labels("transactions").set_function(self.transactions.used)
        self.metrics.connections_allowed.labels("transactions").set(settings.transaction_connections)
        self.steps = Steps(
            self.store, self._side_link, self.lease_owner, threads=self._threads, transactions=self.transactions,
            unknown_s=settings.lease_s, max_result_bytes=lambda: self._max_result_bytes, on_lost=partial(self._lost_inside, "step"),
        )  # fmt: skip
        parking: dict[str, Any] = {"progress": self._unwritten, "on_parked": partial(self.slots.end, why="parked")}
        self.children = Children(
            self.store, self._side_link, self.lease_owner, transactions=self.transactions,
            max_payload_bytes=lambda: self.max_payload_bytes, on_lost=partial(self._lost_inside, "start"), **parking,
        )  # fmt: skip
        self.event_waits = EventWaits(
            self.store, self._side_link, self.lease_owner, steps=self.steps, unhurried=self.transactions.unhurried,
            before=self.logs.finish, on_settled=self._settled, on_lost=partial(self._lost_inside, "event"), **parking,
        )  # fmt: skip
        exits = (settings.on_lapse or ("exit" if standalone else "log")) == "exit"
        self.keeper = LeaseKeeper(
            settings, self.store, direct, self.lease_owner, self.metrics,
            exits_on_lapse=exits, describe=self._describe, on_lost=self._lost, on_fleet=self._beaten,
            suspects=self.slots.suspects,
        )  # fmt: skip
        self.progress = Progress(
            self.store, self._side_link, self.lease_owner, self.metrics, interval_s=settings.progress_interval_s,
            is_mine=self.slots.executes, on_lost=lambda run: self._lost({run.run_id: run.lease_token}, "progress"),
            on_written=lambda run, progress: self._publish(run.run_id, run.kind, "progress", progress=progress),
        )  # fmt: skip
        self.cancels = Cancels(
            self.store, self._side_link, self.lease_owner,
            lease_of=self.slots.lease_of, on_lost=self._lost, unsure=self.keeper.announce,
        )  # fmt: skip
        self.scheduler = Scheduler(self.store, self._side_link, self.metrics)
        self.depth = Depth(
            self.store,
            self._side_link,
            self.metrics,
            kinds=self._handlers.kinds,
            looks=lambda: self.reaper.is_leading or self.reaper.stands_in,
        )
        self.listener.why_deaf = None if settings.listen else "listen is off"
        self.listener.on_message = self._heard
        self.listener.on_late = self.leader.on_late = self.claims.lower
        self.listener.on_ready = self.turns.heard
        self.listener.on_connected = self._listening
        self.listener.on_burst = self.leader.burst
        self.listener.burst_per_s = settings.wake_coalesce_per_s
        self.listener.on_queue_usage = self.leader.on_queue_usage = self._queue_seen
        self.leader.on_absent = self.reaper.saw
        self.vacuum = Vacuum(self.store, self._links["vacuum"], self.metrics)
        self.leader.on_dead_rows = self.vacuum.saw
        self.reaper.may_lead = lambda: self.leader.may_lead
        self.leader.on_mode = self._mode_changed
        self.metrics.slots.set(settings.concurrency)

    # Start and stop.

    async def start(self) -> None:
        """Check the database, become present, and begin to claim. Raises StartError, SettingsError."""
        self._processes.check(list(self._handlers))
        connection = await open_or_explain(self.dsn, self.store.schema, "start")
        try:
            async with asyncio.timeout(CONNECT_S):
                await check(connection, self.store.schema, self.dsn)
                await self._adopt_fleet_settings(connection)
                await adopt_versions(self.store, connection, self._handlers)
                self._inserts_wake = await inserts_wake(connection, self.store.schema)
        except DatabaseError as error:
            raise explain(error, self.dsn) from None
        finally:
            connection.terminate()
        if not self._inserts_wake:
            log.warning("inserts_wake_nobody", hint="the trigger wake of runs is disabled, or not there: polling")
        self.keeper.start()
        try:
            await self.keeper.started
        except DatabaseError as error:
            raise explain(error, self.keeper.dsn) from None
        try:
            await open_together([self._links[purpose] for purpose in ("claim", "settle", "side")])
        except DatabaseError as error:
            raise explain(error, self.dsn) from None
        self.keeper.ended.add_done_callback(self._keeper_ended)
        for name, loop in (
            *([("listener", self.listener.run())] if self.settings.listen else []), ("leader", self.leader.run()), ("settler", self.settler.run()),
            ("reaper", self.reaper.run()), ("vacuum", self.vacuum.run()), ("scheduler", self.scheduler.run()),
            ("run logs", self.logs.run()), ("mirrors", self.mirrors.run()), ("depth", self.depth.run()),
            ("places", self.places.run()), ("cancels", self.cancels.run()), ("progress", self.progress.run()),
            ("claims", self.claims.run()),
        ):  # fmt: skip
            task = asyncio.create_task(loop, name=f"notifyworker {name}")
            task.add_done_callback(self._loop_ended)
            self._tasks.append(task)
        log.info(
            "worker_started", lease_owner=self.lease_owner, kinds=self._handlers.kinds, concurrency=self.settings.concurrency
        )

    async def _adopt_fleet_settings(self, connection: Connection) -> None:
        """What must be one for the fleet stands in the database; a worker whose own differs says so."""
        fleet = await self.store.settings(connection)
        for name in FLEET_SETTINGS:
            own = getattr(self.settings, name)
            if name in self.settings.model_fields_set and own != fleet[name]:
                log.warning(
                    "setting_differs", name=name, own=own, fleet=fleet[name], hint=f"notifyworker config set {name} {own:g}"
                )
        self.reaper_interval_s = self.reaper.interval_s = fleet["reaper_interval_s"]
        self.max_payload_bytes = int(fleet["max_payload_bytes"])
        self._max_result_bytes = int(fleet["max_result_bytes"])

    def stop_claiming(self) -> None:
        """Take no new run from now on."""
        self._stopping = True
        self.claims.stop()
        self.mirrors.stop()
        self.batches.hurry()
        for run in [*self.slots.take_waiting(), *self.mirrors.take_waiting()]:
            self._give_back(run)

    async def drain(self, timeout_s: float, force: asyncio.Event) -> bool:
        """
        Let what runs finish, for `timeout_s` seconds or until `force`; then cancel it and give its leases back.

        Return whether all had finished by themselves.
        """
        self.stop_claiming()
        self.keeper.announce()
        log.info("draining", running=self.slots.running, timeout_s=timeout_s)
        forced: asyncio.Future[Any] = asyncio.ensure_future(force.wait())
        claims: asyncio.Future[Any] = self._tasks[-1]
        await asyncio.wait({forced, claims}, timeout=CANCEL_S, return_when=asyncio.FIRST_COMPLETED)
        finished: asyncio.Future[Any] = asyncio.ensure_future(self.slots.all_ended())
        await asyncio.wait({forced, finished}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        in_time = finished.done()
        if not in_time:
            await self.slots.end_all("stopping", finished, grace_s=0.5 if force.is_set() else CANCEL_S)
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

    async def close(self) -> None:
        """End every loop, thread and connection of ours. Connections first: nothing then waits for a dead server."""
        self._stopping = True
        await self.leader.farewell()
        await self.keeper.stop()
        self.turns.close()
        for part in (self.listener, self.leader):
            part.terminate()
        self.transactions.close()
        for link in self._links.values():
            link.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.transactions.finish()
        await self.steps.close()
        await self.slots.close()
        await self.batches.close()
        self._processes.close()
        self._threads.shutdown(wait=not self.lingering, cancel_futures=True)
        if not self.failed.cancel() and not self.failed.cancelled():
            self.failed.exception()  # in a host nobody else asks for it, and the log has told it
        log.info("worker_stopped", lease_owner=self.lease_owner, lingering=self.lingering)

    def _keeper_ended(self, _ended: "asyncio.Future[None]") -> None:
        """Without its thread no lease is renewed: nothing may be claimed or go on."""
        if not self._stopping and not self.failed.done():
            self.failed.set_exception(StartError("the heartbeat thread ended by itself"))

    def _loop_ended(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled() or self._stopping:
            return
        error = task.exception() or StartError(f"{task.get_name()} ended by itself")
        log.critical("loop_ended", loop=task.get_name(), error=outline(error))
        if not self.failed.done():
            self.failed.set_exception(error)

    # From claim to outcome.

    def _free(self) -> int:
        """Runs to claim for. Outcomes on their way count beyond one full set, so that they can't pile up."""
        unwritten = max(0, self.settler.backlog - self.settings.concurrency)
        return self.settings.concurrency + self.settings.prefetch - self.slots.used - unwritten - self.mirrors.reserved

    def _claimed(self, runs: list[Run], sent_at: float) -> None:
        if self._leased(runs, sent_at):
            self._begin(runs)

    def _leased(self, runs: list[Run], sent_at: float) -> bool:
        """These are ours; whether they may begin."""
        self.keeper.take(runs, sent_at)
        if self._stopping:
            for run in runs:
                self._give_back(run)
            return False
        for kind, count in Counter(run.kind for run in runs).items():
            self.metrics.claimed.labels(kind).inc(count)
        if self.mirrors.any_rules:
            self.mirrors.mark(runs)
        observe = self.metrics.pickup.observe
        for run in runs:
            observe(run.kind, max(0.0, run.waited_s))
        return True

    def _begin(self, runs: list[Run]) -> None:
        self.slots.put([Attempt(run, self._handlers[run.kind, run.version]) for run in runs])

    def _give_back(self, run: Run) -> None:
        """A run that was claimed and not begun."""
        self._copy_is_over(run)
        self.keeper.handler_ended(run.run_id, run.lease_token)
        self.places.handler_ended(run, is_held=True)
        self.settler.put(released(run, self.lease_owner))

    def _leases(self) -> set[tuple[UUID, int]]:
        return self.keeper.leases()

    def _orphan(self, row: Row) -> None:
        """A run of a claim whose answer was lost: ours by the database's word, and nobody executes it."""
        run = Run(row["run_id"], row["lease_token"], row["kind"], attempt=row["attempt"])
        run.is_limited = row["is_limited"]
        self.places.handler_ended(run, is_held=True)
        entry = error_entry(run, Code.INTERRUPTED, "the answer to its claim was lost", None, self.lease_owner)
        self.settler.put(Outcome(run.run_id, run.lease_token, run.attempt, run.kind, State.PENDING, error=entry, counts=False))
        log.warning("orphan_given_back", run_id=str(run.run_id))

    def _execute(self, attempt: Attempt) -> Coroutine[Any, Any, Outcome | None]:
        executing = execute(
            attempt, threads=self._threads, processes=self._processes, worker=self.lease_owner,
            max_result_bytes=self._max_result_bytes, on_begun=self.slots.restart_timer, on_pause=self._pause, join=self.batches.join,
        )  # fmt: skip
        return executing if self._tracer is None else processing(self._tracer, attempt.run, executing)

    async def _pause(self, kind: str, pause: PauseKind) -> None:
        """Before the slot is free: or this kind would be claimed for it at once."""
        until = pause.until if isinstance(pause.until, datetime) else None
        seconds = None if isinstance(pause.until, datetime) else pause.until
        try:
            await self.store.pause(self._side_link, NewPause(kind, until=until, seconds=seconds, reason=str(pause)))
            log.warning("kind_paused", kind=kind, until=str(pause.until), reason=str(pause))
        except DatabaseError as error:  # such as a time that is over already: then there is nothing to wait for
            log.warning("kind_not_paused", kind=kind, error=brief(error))

    def _begun(self, attempt: Attempt) -> None:
        self._publish(attempt.run.run_id, attempt.run.kind, "running")

    def _over(self, attempt: Attempt) -> None:
        run = attempt.run
        self._copy_is_over(run)
        self.progress.forget(run)
        self.keeper.handler_ended(run.run_id, run.lease_token)
        if run.is_limited:
            self.places.handler_ended(run, is_held=self.keeper.holds(run.run_id, run.lease_token))

    def _copy_is_over(self, run: Run) -> None:
        if run.copy_of is not None:
            self.mirrors.over(run)

    def _slot_is_free(self) -> None:
        if self.claims.more:
            self.claims.wake.set()
        self.mirrors.slot_is_free()

    # Settling.

    def _ended(self, attempt: Attempt, outcome: Outcome | None) -> None:
        if attempt.ended_at:
            self.metrics.execution.observe(attempt.run.kind, attempt.ended_at - attempt.began_at)
        if outcome is None:
            self._drop(attempt.run)
            return
        outcome.progress = self.progress.ended(attempt.run)
        if outcome.error is not None and outcome.to is not State.CANCELLED:
            log.warning(
                "attempt_failed", run_id=str(outcome.run_id), kind=outcome.kind, attempt=outcome.attempt, to=str(outcome.to)
            )
        self.settler.put(outcome)

    def _settled(self, outcomes: Sequence[Outcome]) -> None:
        self._busy_at = asyncio.get_running_loop().time()
        for outcome in outcomes:
            self.keeper.drop(outcome.run_id, outcome.lease_token)
        self.places.settled(outcomes)
        self.logs.forget(outcomes)
        self.mirrors.settled(outcomes)
        for (kind, to), count in Counter((outcome.kind, outcome.to) for outcome in outcomes).items():
            self.metrics.finished.labels(kind, str(to)).inc(count)
        if is_debug():
            for outcome in outcomes:
                log.debug("run_settled", run_id=str(outcome.run_id), kind=outcome.kind, to=str(outcome.to))
        if self._sink is not None:
            for outcome in outcomes:
                self._publish(outcome.run_id, outcome.kind, str(outcome.to))
        if self.claims.more or self.claims.has_limits or any(outcome.to is State.PENDING for outcome in outcomes):
            self.claims.wake.set()

    def _drop(self, held: Outcome | Run) -> None:
        """Nothing is executed under this lease any more, and its outcome is written or lost."""
        self.keeper.drop(held.run_id, held.lease_token)
        self.logs.forget([held])

    def _refused(self, outcome: Outcome) -> None:
        self._drop(outcome)
        self.places.refused(outcome.run_id, outcome.lease_token)
        self.metrics.refused.inc()
        log.warning(
            "outcome_refused", run_id=str(outcome.run_id), kind=outcome.kind, to=str(outcome.to), lease_token=outcome.lease_token
        )

    def _lost(self, lost: dict[UUID, int], why: str) -> None:
        """Leases that are another's now, or may be soon: cancel what runs under them."""
        for run in [*self.slots.take_from_waiting(lost), *self.mirrors.take_from_waiting(lost)]:
            self._tell_lost(run, why)
            if why == "lapse":
                self._give_back(run)
            else:
                self.keeper.drop(run.run_id, run.lease_token)
                self._copy_is_over(run)
                self.places.handler_ended(run, is_held=False)
            self._slot_is_free()
        for run_id, token in lost.items():
            attempt = self.slots.get(run_id)
            if attempt is not None and attempt.run.lease_token == token and not attempt.is_committing:
                self._tell_lost(attempt.run, why)
                # After a lapse nobody may have taken it yet: then the release is accepted, else it is refused.
                self.slots.end(attempt, "stopping" if why == "lapse" else "lost")

    def _lost_inside(self, what: str, attempt: Attempt) -> None:
        attempt.is_committing = False
        self._lost({attempt.run.run_id: attempt.run.lease_token}, what)

    def _tell_lost(self, run: Run, why: str) -> None:
        self.metrics.lost.inc()
        log.warning("lease_lost", run_id=str(run.run_id), kind=run.kind, why=why, lease_token=run.lease_token)

    def _listening(self) -> None:
        self.claims.look_now()
        self.mirrors.changed()
        self.keeper.announce()  # a cancel, or a drain, may have been asked while nobody listened: the answer says so

    def _heard(self, message: str) -> None:
        what, _, argument = message.partition(":")
        if what == "schedules":
            self.scheduler.changed()
            return
        if what == "versions":
            self.claims.look_now()
            return
        if what == "mirrors":
            self.mirrors.changed()
            return
        if what == "cancel":
            self.cancels.heard(argument)
            return
        if what == "check":
            self.reaper.check()
            return
        if what == "drain":
            if argument == self.lease_owner:
                self.keeper.announce()  # the answer says what is asked
            return
        self.leader.heard(message)

    # What a handler asks for (Desk), and what others see.

    def write_progress(self, run: Run, progress: str) -> Awaitable[None]:
        """Write a run's progress, fenced. Raises LeaseLost."""
        return self.progress.put(run, progress)

    def transaction(self, run: Run, connection: "Connection | None") -> AbstractAsyncContextManager[Connection]:
        """Begin a transaction that settles the run. Raises LeaseLost."""
        return self.transactions.open(self._attempt_of(run, "transaction"), connection)

    async def step(self, run: Run, name: str, call: Callable[..., Any], *, in_transaction: bool) -> Any:
        """Return what is recorded of a step, or call and record it. Raises LeaseLost."""
        return await self.steps.execute(self._attempt_of(run, "step"), name, call, in_transaction=in_transaction)

    async def live_step(self, run: Run, name: str) -> LiveStep | None:
        """What the live run that this one is a copy of has recorded of a step."""
        return await self.steps.of_live(self._attempt_of(run, "step"), name)

    async def _settle_with_children(self, attempt: Attempt, outcome: Outcome) -> Outcome | None:
        return await self.children.settle(attempt, outcome)

    def _unwritten(self, run: Run) -> str | None:
        return self.progress.unwritten(run)

    async def start_children(self, run: Run, starts: Sequence[Start], last: Start | None) -> tuple[list[UUID], UUID | None]:
        """Note what is to be started, and what when all of that is settled; return the ids. Raises LeaseLost."""
        return await self.children.start(self._attempt_of(run, "start"), starts, last)

    async def join(
        self, run: Run, children: Sequence[UUID] | None, on_failure: OnFailure, timeout_s: float | None
    ) -> list[ChildOutcome]:
        """Return the outcomes of children, or park the run. Raises LeaseLost, JoinTimeout."""
        return await self.children.join(self._attempt_of(run, "join"), children, on_failure, timeout_s)

    async def event(self, run: Run, name: str, key: str | None, timeout_s: float | None) -> Any:
        """Return the payload of an event, or park the run. Raises LeaseLost, EventTimeout."""
        return await self.event_waits.wait(self._attempt_of(run, "event"), name, key, timeout_s)

    def _attempt_of(self, run: Run, during: str) -> Attempt:
        attempt = self.slots.get(run.run_id)
        if attempt is None or attempt.run is not run:
            raise LeaseLost(run.run_id, during=during)
        return attempt

    def logger(self, run: Run) -> Any:
        """Return a logger bound to the run."""
        bound = log.bind(run_id=str(run.run_id), kind=run.kind, attempt=run.attempt, project_id=run.project_id)
        return self.logs.keeping(run, bound)

    def publish_to(self, sink: Callable[[dict[str, object]], None] | None) -> None:
        """Call `sink` with every change of state that this worker makes."""
        self._sink = sink

    def _publish(self, run_id: UUID, kind: str, state: str, **more: str) -> None:
        if self._sink is not None:
            self._sink({"run_id": str(run_id), "kind": kind, "state": state, **more})

    def _mode_changed(self, mode: str) -> None:
        self.reaper.lead(is_leading=mode != "follower")
        self.scheduler.lead(is_leading=mode != "follower")
        if mode != "follower" and not self._stopping:
            self._in_background(self._note_mode(mode))

    def _queue_seen(self, usage: float) -> None:
        was, self._queue_usage = self._queue_usage, usage
        self.metrics.queue_usage.set(usage)
        if was < QUEUE_LIMIT <= usage:
            hint = "end the session that has listened and left a transaction open; inserts wake nobody until then"
            log.warning("notification_queue_fills", ratio=round(usage, 2), hint=hint)
        elif usage < QUEUE_LIMIT <= was:
            log.info("notification_queue_has_room", ratio=round(usage, 2))

    def _hand_on(self, message: str) -> None:
        self._in_background(self._notify(message))

    def _in_background(self, note: Coroutine[Any, Any, None]) -> None:
        """Execute one statement that nobody waits for. It is held until it ends: the loop itself only knows of it weakly."""
        task = asyncio.get_running_loop().create_task(note)
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    async def _notify(self, message: str) -> None:
        try:
            await self.store.notify(self._side_link, message)
        except DatabaseError as error:
            log.debug("turn_not_handed_on", error=brief(error))  # the others look late all the same

    async def _note_mode(self, mode: str) -> None:
        try:
            await self.store.reaper_elected(self._side_link, self.lease_owner, mode)
        except DatabaseError as error:
            if not self._stopping:
                log.warning("mode_not_noted", error=brief(error))

    def _beaten(self, size: int, position: int, drain_asked: bool) -> None:  # noqa: FBT001 - called back with them alone
        """What a heartbeat was answered."""
        self.turns.joined(size, position)
        if drain_asked is self.claims.is_held:
            return
        self.claims.hold(is_held=drain_asked)
        if drain_asked:
            log.info("drain_asked", running=self.slots.running)
            for run in self.slots.take_waiting():
                self._give_back(run)
        else:
            log.info("drain_undone", running=self.slots.running)
        self.keeper.announce()

    def _describe(self, has_presence: bool) -> tuple[Any, ...]:  # noqa: FBT001 - called back with it alone
        s = self.settings
        return (
            self.lease_owner, socket.gethostname(), os.getpid(), _VERSION, self._handlers.kinds, s.project_ids,
            s.concurrency, self.slots.running, "draining" if self._stopping or self.claims.is_held else "running", s.shadow, has_presence,
            s.presumed_dead_s, s.lease_s, s.heartbeat_interval_s, names_of(self._handlers),
        )  # fmt: skip

    @property
    def lingering(self) -> int:
        """Handlers that ignored their end and go on."""
        return self.slots.lingering

    def is_ready(self) -> bool:
        """Whether it claims: not while starting, stopping, or without a database."""
        return self.claims.is_claiming

    def is_busy(self) -> bool:
        """Whether it executes anything, or has an outcome to write."""
        return self.slots.used > 0 or self.settler.backlog > 0

    def idle_s(self) -> float:
        """For how many seconds it has had nothing to do; 0 while somebody has asked it to drain, which a sleep would end."""
        is_idle = not self.is_busy() and not self.claims.is_held
        return asyncio.get_running_loop().time() - self._busy_at if is_idle else 0.0

    def unanswered_s(self) -> float:
        """For how many seconds the database has answered no heartbeat."""
        return self.keeper.beat_age_s()

    def restrictions(self) -> list[str]:
        """What this worker does its job without."""
        reasons = []
        found = f"runs are found by polling, each {self.settings.poll_interval_s:g} s"
        if self.listener.why_deaf:
            mends = "; listen_dsn, a direct connection, gives back all of it" if self.listener.why_deaf == POOLER else ""
            reasons.append(f"{self.listener.why_deaf}: {found}{mends}")
        if not self._inserts_wake:
            reasons.append(f"the trigger that wakes is disabled, or not there: {found}")
        if not self.leader.locks_hold:
            reasons.append("advisory locks do not hold on this server: nobody leads, and runs of the dead wait for their leases")
        return reasons + self.slots.restrictions()

    def health(self) -> list[str]:
        """Reasons why this worker does not do its job; empty if it does. From memory."""
        now = asyncio.get_running_loop().time()
        reasons = []
        if self.failed.done() and not self.failed.cancelled():
            reasons.append("a part of this worker has ended by a fault of its own: see the log, and restart it")
        if self.claims.error is not None:
            since, why = self.claims.error
            reasons.append(f"no run could be claimed for {now - since:.0f} s: {why}")
        beat_age_s = self.keeper.beat_age_s()
        if beat_age_s > 2 * self.settings.heartbeat_interval_s:
            reasons.append(f"no heartbeat was answered for {beat_age_s:.0f} s")
        stall = self.keeper.last_stall
        if stall is not None and now - stall[1] < self.settings.heartbeat_interval_s:
            reasons.append(f"the event loop stood still for {stall[0]:.0f} s: a handler blocks it")
        if not self.listener.is_hearing and not self.listener.why_deaf and now - self.listener.silent_since > CONNECT_S:
            reasons.append(
                f"no notification can be heard for {now - self.listener.silent_since:.0f} s, and runs are found by polling: "
                f"{self.listener.error}"
            )
        if self._queue_usage >= QUEUE_LIMIT:
            reasons.append(
                f"the server's notification queue is {self._queue_usage:.0%} full, so that inserts wake nobody and runs are "
                "found by polling: a session has listened and left a transaction open"
            )
        if self.reaper.stands_in and self.leader.may_lead:
            reasons.append("the leader's lock is held by somebody who does not reap: this worker stands in")
        reasons += self.scheduler.health() + self.slots.health()
        if self.settler.error is not None:
            since, why = self.settler.error
            reasons.append(f"{self.settler.backlog} outcomes could not be written for {now - since:.0f} s: {why}")
        return reasons
