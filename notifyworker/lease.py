"""
Keep this worker's leases, from a thread of its own, and tell when they can no longer be kept.

The thread has its own event loop and its own connection: a handler that blocks the main loop, or a pool that is used
up, can't starve it. Three things are watched, each against the moment at which the last proof of it was *sent*:

- the leases, renewed in one statement; by nine tenths of a lease without a renewal they may be another's soon;
- presence: an advisory lock of this connection, by which the leader sees that this process lives. A worker that has
  lost it gives its runs up strictly before `presumed_dead_s`, when others may take them;
- the main loop: it answers a ping. A loop that does not turn is told in the log with its stack, and after
  `stall_limit_s` its leases are renewed no more, so that a hung process loses its runs.

The dead man's switch covers what a thread can't, since a thread needs the GIL: a C call that holds it, a frozen process.
"""

import asyncio
import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any
from uuid import UUID

import asyncpg

from notifyworker.database import SOON_MISSED, Connection, DatabaseError, brief, is_direct, is_of_use, reconnect
from notifyworker.deadman import DeadMansSwitch
from notifyworker.observe import Metrics, log, outline
from notifyworker.pause import Backoff, is_set_within
from notifyworker.run import Run
from notifyworker.settings import CANCEL_S, PRESENCE_DEADLINE_S, PRESENCE_RECONNECT_S, Settings
from notifyworker.store import Store

_STALL_TOLD_S = 5.0
_STILL_TOLD_S = 2.0  # a machine that is busy is late by less
_SOONEST_S = 0.2  # anybody may notify on our channel that a run was cancelled, as often as they like; each beat writes


class LeaseKeeper:
    """The heartbeat thread of one worker. Its public methods are called from the main loop's thread."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        dsn: str,
        lease_owner: str,
        metrics: Metrics,
        *,
        exits_on_lapse: bool,
        describe: Callable[[bool], Iterable[Any]],
        on_lost: Callable[[dict[UUID, int], str], None],
        on_fleet: Callable[[int, int, bool], None],
        suspects: Callable[[float], list[dict[str, str]]],
    ) -> None:
        self._suspects = suspects
        self._settings = settings
        self._store = store
        self.dsn = dsn
        self._lease_owner = lease_owner
        self._metrics = metrics
        self._exits_on_lapse = exits_on_lapse
        self._describe = describe
        self._on_lost = on_lost
        self._on_fleet = on_fleet
        self._main_loop = asyncio.get_running_loop()
        self._main_thread = threading.get_ident()
        # run_id -> (lease_token, when its claim was sent). Written by the main loop alone, copied by the thread.
        self._held: dict[UUID, tuple[int, float]] = {}
        self._renewed: dict[UUID, float] = {}
        # Of those held: nothing is executed under them any more, only the outcome is still to be written.
        self._over: set[UUID] = set()
        self._holding_since = 0.0
        self._present_at = 0.0
        self._beat_at = time.monotonic()
        self._beat_now = False
        self._pinged_at: float | None = None
        self._stalled_since: float | None = None
        self._gave_up = False
        self._stopping = False
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._thread_main, name="notifyworker heartbeat", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed: asyncio.Event | None = None
        #: Done when the thread has started, and when it has ended.
        self.started: asyncio.Future[None] = self._main_loop.create_future()
        self.ended: asyncio.Future[None] = self._main_loop.create_future()
        #: Whether this session holds the advisory lock that others see it by. Behind a pooler it can't: the lock would be
        #: on a connection that outlives this process, or that ends before it.
        self.has_presence = False
        self._is_direct = False
        self._had_presence = False
        #: How long the main loop last stood still, and when that was noticed.
        self.last_stall: tuple[float, float] | None = None

    # For the main loop.

    def start(self) -> None:
        """Start the thread; `started` is done when the worker is present, or has the error that prevented it."""
        self._thread.start()

    def take(self, runs: Iterable[Run], claim_sent_at: float) -> None:
        """Keep these leases from now on. `claim_sent_at` in time.monotonic()."""
        was_idle = not self._held
        for run in runs:
            self._over.discard(run.run_id)
            self._held[run.run_id] = (run.lease_token, claim_sent_at)
        if was_idle and self._held:
            self._holding_since = claim_sent_at
            self._gave_up = False
        if self._held and self._exits_on_lapse and not DeadMansSwitch.is_armed(self):
            # Now and not at the next tick: the first thing that a handler does may be to hold the GIL for ever.
            self._set_switch()

    def drop(self, run_id: UUID, lease_token: int) -> None:
        """Keep this lease no longer: its run is settled, given back or lost. A later lease of it is another."""
        if self.holds(run_id, lease_token):
            del self._held[run_id]
            self._over.discard(run_id)

    def handler_ended(self, run_id: UUID, lease_token: int) -> None:
        """
        Go on renewing until its outcome is written, but do not end a process for it: nothing runs that could do harm.

        Unless it has run beyond its lease, as in a process that was frozen and has just been woken.
        """
        if not self.holds(run_id, lease_token):
            return
        if self._exits_on_lapse and time.monotonic() > self._renewed_at(run_id, self._held[run_id][1]) + self._settings.lapse_s:
            self._exit("a handler ended after its lease")
        self._over.add(run_id)

    def holds(self, run_id: UUID, lease_token: int) -> bool:
        """Whether this very lease is kept."""
        held = self._held.get(run_id)
        return held is not None and held[0] == lease_token

    def leases(self) -> set[tuple[UUID, int]]:
        """All that are kept, by run_id and lease_token."""
        return {(run_id, token) for run_id, (token, _) in self._held.items()}

    def beat_age_s(self) -> float:
        """Seconds since the last heartbeat that the database answered."""
        return time.monotonic() - self._beat_at

    def announce(self) -> None:
        """Beat at once: the worker's row has changed, or somebody says that a run was taken from it."""
        self._beat_now = True
        self._wake_thread()

    async def stop(self) -> None:
        """End the thread. What is still held is left to presence and the reaper."""
        self._stopping = True
        self._wake_thread()
        if self._thread.is_alive():
            await asyncio.wait({self.ended}, timeout=3 * PRESENCE_DEADLINE_S)
            self._thread.join(0.1)
        DeadMansSwitch.arm(self, None)

    def _wake_thread(self) -> None:
        if self._loop is not None and self._changed is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)

    # In the thread.

    def _thread_main(self) -> None:
        try:
            asyncio.run(self._live())
        except Exception as error:  # noqa: BLE001 - the thread's end is the end of the leases: it must be heard of
            log.error("heartbeat_thread_ended", error=outline(error))
        finally:
            self._tell(self._set_ended)

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        try:
            await self._connect()
            await self._beat()
        except Exception as error:  # noqa: BLE001 - told to the one who started us, who judges
            self._tell(self._set_started, error)
            self._disconnect()
            return
        self._tell(self._set_started, None)
        watch = asyncio.create_task(self._watch())
        try:
            await self._keep()
        finally:
            watch.cancel()
            self._disconnect()

    async def _keep(self) -> None:
        backoff = Backoff(cap_s=1.0)
        next_beat = time.monotonic() + self._settings.heartbeat_interval_s
        while not self._stopping:
            if self._beat_now:
                self._beat_now = False
                next_beat = min(next_beat, self._beat_at + _SOONEST_S)
            try:
                if self._connection is None or self._connection.is_closed():
                    await self._connect()
                    next_beat = 0.0  # whatever happened meanwhile, ask whose the runs are
                if self._ping_is_due(time.monotonic()):
                    await self._ping()  # before a beat, which may have to wait for a lock
                if time.monotonic() >= next_beat:
                    is_whole = await self._beat()
                    next_beat = time.monotonic() + (self._settings.heartbeat_interval_s if is_whole else 1.0)
                backoff.reset()
                pause_s = next_beat - time.monotonic()
            except DatabaseError as error:
                log.warning("heartbeat_failed", error=brief(error), running=len(self._held))
                self._metrics.heartbeats.labels("failed").inc()
                # Refused, as by a lock on the table, it is as present as before: without its session it would be absent.
                if not is_of_use(error):
                    self._disconnect()
                pause_s = backoff.next_s()
            assert self._changed is not None
            if not self._stopping:
                await is_set_within(self._changed, max(0.0, pause_s))
            self._changed.clear()
        await self._say_goodbye()

    def _ping_is_due(self, now: float) -> bool:
        """Presence is proved only while it matters: an idle worker has nothing that could be taken from it."""
        return self._is_direct and bool(self._held) and now - self._present_at >= self._settings.presence_ping_s

    async def _connect(self) -> None:
        sent_at = time.monotonic()
        async with asyncio.timeout(PRESENCE_DEADLINE_S + PRESENCE_RECONNECT_S):
            connection = await reconnect(self.dsn, schema=self._store.schema, purpose="heartbeat", session=SOON_MISSED)
        self._connection = connection
        connection.add_termination_listener(self._ended_by_others)
        self._is_direct = await is_direct(connection, timeout_s=PRESENCE_DEADLINE_S)
        if self._is_direct:
            await self._be_present(connection, sent_at)

    def _ended_by_others(self, connection: Any) -> None:
        """Connect anew at once; what we ended ourselves is tried again only after a pause."""
        if connection is self._connection and self._changed is not None:
            self._changed.set()

    async def _be_present(self, connection: Connection, sent_at: float) -> None:
        lock = "SELECT pg_try_advisory_lock(hashtextextended($1 || $2, 0))"
        # An older session of ours may still hold it, on a server that has not noticed its end: present all the same.
        self.has_presence = await connection.fetchval(lock, self._store.schema, self._lease_owner, timeout=PRESENCE_DEADLINE_S)
        self._had_presence = True
        self._present_at = sent_at

    async def _ping(self) -> None:
        assert self._connection is not None
        sent_at = time.monotonic()
        if self.has_presence:
            await self._connection.fetchval("SELECT 1", timeout=PRESENCE_DEADLINE_S)
            self._present_at = sent_at
        else:
            await self._be_present(self._connection, sent_at)

    async def _beat(self) -> bool:
        """Renew all leases in one statement, and this worker's row. False: some were locked, so beat again soon."""
        assert self._connection is not None
        sent_at = time.monotonic()
        deadline_s = self._settings.heartbeat_deadline_s
        on = _Deadline(self._connection, deadline_s)
        held = {run_id: token for run_id, (token, _) in self._held.copy().items()}
        skipped: set[UUID] = set()
        limit_s = self._settings.stall_limit_s
        if self._stalled_since is not None and limit_s is not None and sent_at - self._stalled_since > limit_s:
            log.error("renewals_stopped", stalled_s=round(sent_at - self._stalled_since, 1), running=len(held))
        elif held:
            renewed = await self._store.heartbeat(on, self._lease_owner, self._settings.lease_s, held)
            kept = {run_id: at for run_id, at in self._renewed.items() if run_id in held}
            self._renewed = kept | dict.fromkeys(renewed, sent_at)
            missed = {run_id: held[run_id] for run_id in held.keys() - renewed if run_id in self._held}
            if missed:
                skipped = await self._store.held(on, self._lease_owner, missed)
                self._lost({r: t for r, t in missed.items() if r not in skipped and r in self._held}, "heartbeat")
        try:
            self._tell(self._on_fleet, *await self._store.worker_present(on, *self._describe(self.has_presence)))
        except asyncpg.LockNotAvailableError as error:  # a stranger holds this worker's row: nobody's lease depends on it
            log.warning("presence_not_noted", error=brief(error))
        self._gave_up = False  # what comes after an outage may lapse again
        if time.monotonic() - self._beat_at > 2 * self._settings.heartbeat_interval_s:
            self._metrics.late.inc()
        self._beat_at = time.monotonic()
        if self.has_presence:
            self._present_at = sent_at
        self._metrics.heartbeats.labels("sent").inc()
        return not skipped

    async def _watch(self) -> None:
        """Compare the clocks, doing no I/O: a statement that hangs must not hide that time has run out."""
        assert self._changed is not None
        fine_s = min(1.0, self._settings.lease_s / 30, (self._settings.stall_limit_s or 30.0) / 4)
        while True:
            slept_at = time.monotonic()
            await asyncio.sleep(fine_s)
            now = time.monotonic()
            if (still_s := now - slept_at - fine_s) > _STILL_TOLD_S and self._held:
                hint = "a call held the GIL, where no thread of this process runs: executor='process'; or the process was frozen"
                log.error("interpreter_stood_still", still_s=round(still_s, 1), handlers=self._suspects(still_s), hint=hint)
            self._watch_main_loop(now)
            self._set_switch()
            if self._ping_is_due(now):
                self._changed.set()
            if self._executing() and not self._gave_up and (what := self._lapsed(now)):
                self._give_up(what)

    def _lapsed(self, now: float) -> str | None:
        if self._lease_deadline() <= now:
            return f"no lease could be renewed for {self._settings.lapse_s:g} s"
        seen_at = max(self._present_at, self._holding_since)
        limit_s = self._settings.presence_ping_s + PRESENCE_DEADLINE_S + PRESENCE_RECONNECT_S
        if self._had_presence and now - seen_at > limit_s:
            return f"the database has not answered for {limit_s:g} s"
        return None

    def _executing(self) -> dict[UUID, tuple[int, float]]:
        over = self._over.copy()
        return {run_id: lease for run_id, lease in self._held.copy().items() if run_id not in over}

    def _renewed_at(self, run_id: UUID, claimed_at: float) -> float:
        """The later of the two: a renewal may be of an earlier lease of the same run, however long ago."""
        return max(self._renewed.get(run_id, 0.0), claimed_at)

    def _lease_deadline(self) -> float:
        """When the oldest lease is so old that it may be another's soon."""
        held = self._executing().items()
        oldest = min((self._renewed_at(run_id, claimed_at) for run_id, (_, claimed_at) in held), default=None)
        return float("inf") if oldest is None else oldest + self._settings.lapse_s

    def _give_up(self, why: str) -> None:
        """Cancel what is executed. What has not ended soon after ends with the process, if it may."""
        self._gave_up = True
        log.error("leases_lapsed", why=why, running=len(self._executing()), exits=self._exits_on_lapse)
        if self._exits_on_lapse and self._lease_deadline() <= time.monotonic():
            self._exit(why)
        self._lost({run_id: token for run_id, (token, _) in self._executing().items()}, "lapse")
        if self._exits_on_lapse and self._loop is not None:
            self._loop.call_later(CANCEL_S, self._exit_if_holding, why)

    def _exit_if_holding(self, why: str) -> None:
        if self._executing() and self._gave_up:
            self._exit(why)

    def _exit(self, why: str) -> None:
        log.critical("worker_ends_itself", why=why, running=len(self._held))
        faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr, all_threads=True)
        os._exit(1)

    def _set_switch(self) -> None:
        if self._exits_on_lapse:
            deadline = self._lease_deadline()
            DeadMansSwitch.arm(self, deadline if deadline < float("inf") else None)

    def _watch_main_loop(self, now: float) -> None:
        if not self._held and self._stalled_since is None:
            self._pinged_at = None
            return
        if self._pinged_at is None:
            self._pinged_at = now
            self._tell(self._pong)
            return
        told_s = min(_STALL_TOLD_S, self._settings.stall_limit_s or _STALL_TOLD_S)
        if now - self._pinged_at > told_s and self._stalled_since is None:
            self._stalled_since = self._pinged_at
            self._metrics.stalls.inc()
            frame = sys._current_frames().get(self._main_thread)  # noqa: SLF001 - the documented way to another thread's stack
            stack = "".join(traceback.format_stack(frame)[-12:]) if frame else ""
            log.error("event_loop_stalled", stalled_s=round(now - self._pinged_at, 1), handlers=self._suspects(0.0), stack=stack)

    def _pong(self) -> None:
        """In the main loop: it turns."""
        if self._stalled_since is not None:
            stalled_s = time.monotonic() - self._stalled_since
            self.last_stall = (stalled_s, time.monotonic())
            self._stalled_since = None
            log.warning("event_loop_turns_again", stalled_s=round(stalled_s, 1))
            self._wake_thread()
        self._pinged_at = None

    def _lost(self, lost: dict[UUID, int], why: str) -> None:
        if lost:
            self._tell(self._on_lost, lost, why)

    def _tell(self, what: Callable[..., None], *args: Any) -> None:
        if not self._main_loop.is_closed():
            self._main_loop.call_soon_threadsafe(what, *args)

    def _set_started(self, error: Exception | None) -> None:
        if self.started.done():
            return
        if error is None:
            self.started.set_result(None)
        else:
            self.started.set_exception(error)

    def _set_ended(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    async def _say_goodbye(self) -> None:
        if self._connection is None:
            return
        try:
            await self._store.worker_gone(_Deadline(self._connection, PRESENCE_DEADLINE_S), self._lease_owner)
        except DatabaseError as error:
            log.debug("goodbye_unheard", error=brief(error))  # the leader forgets the row by itself

    def _disconnect(self) -> None:
        self.has_presence = False
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()


class _Deadline:
    """A connection whose statements all have this deadline."""

    def __init__(self, connection: Connection, deadline_s: float) -> None:
        self._connection = connection
        self._deadline_s = deadline_s

    async def fetch(self, query: str, *args: Any, timeout: float | None = None) -> list[Any]:  # noqa: ASYNC109 - asyncpg's own signature
        return await self._connection.fetch(query, *args, timeout=timeout or self._deadline_s)
