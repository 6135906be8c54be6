"""
Leadership and the wake gate: who wakes the fleet, the inserts themselves or one worker in place of them all.

Three advisory locks, whose other half is the insert trigger (schema/0005_wake.sql): S leadership, C coalesced,
M silent. A leader is *armed* while it holds M: then every insert notifies. When notifications come too fast it takes
C, lets M go and is *coalesced*: inserts stay silent, and it looks at the table every few milliseconds instead. Coming
back, it still holds C and still ticks until it gets M, when every insert that stayed silent has committed; one look
with a fresh snapshot closes the gap. It never blocks on M, and on C only briefly: a blocked lock would hold back vacuum.

The connection that holds the locks does nothing but looks and notifications: a session's own locks never conflict, so
an insert from it would read the gate wrongly.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import asyncpg

from notifyworker.database import LOCK_CLASS, SOON_MISSED, Connection, DatabaseError, GateLocks, brief, is_direct, reconnect
from notifyworker.hearing import locks_hold
from notifyworker.lanes import EPOCH, WIDE_SLACK, Key, Lanes, Seen
from notifyworker.observe import Metrics, log
from notifyworker.pause import Backoff, is_set_within
from notifyworker.store import QUEUE_LIMIT, Store

LOOK_S = 2.5  # an idle worker may send one query a second in all: this is the largest part of it
LOOK_DEADLINE_S = 3.0
_QUIET_TICKS = 5
_SLOWEST_TICK_S = 0.02
_SILENT_LOOK_S = 0.5
_BEGIN_TO_INSERT = timedelta(seconds=1)  # who inserts later notifies: schema/0005_wake.sql
_NO_SESSION_LOCKS_S = 60.0
_STANDBY = "this server is a standby"


class Leader:
    """This worker's part in the fleet's leadership: it leads, or stands ready."""

    def __init__(self, dsn: str, store: Store, lease_owner: str, wake: asyncio.Event, metrics: Metrics, *, tick_s: float) -> None:
        self._dsn = dsn
        self._store = store
        self._lease_owner = lease_owner
        self._wake = wake
        self._metrics = metrics
        self._tick_s = tick_s
        self._locks = GateLocks.of(store.schema)
        self._gate: _Gate | None = None
        self._try_now = asyncio.Event()
        self._burst = asyncio.Event()
        self._other_coalesces = False
        self._holds_coalesced = False
        self._holds_silent = False
        self._lanes = Lanes()
        self._heads: dict[Key, tuple[UUID, datetime]] = {}
        # Transactions that insert in silence: not before when each began, and whether it was seen a second time.
        self._silent: dict[str, tuple[datetime, bool]] = {}
        self._silent_looked_at = EPOCH
        self._silent_look_at = self._fleet_look_at = 0.0
        self._clock = time.monotonic
        self.mode: Literal["follower", "arming", "armed", "coalesced"] = "follower"
        #: False behind a pooler, where a session's lock may be any client's, and where locks do not hold.
        self.may_lead = True
        self.locks_hold = True
        #: Called with each look's fill of the notification queue, from 0 to 1.
        self.on_queue_usage: Callable[[float], None] = lambda _usage: None
        #: Called before a wake-up, with the place in the table at which it lies.
        self.on_late: Callable[[datetime], None] = lambda _moment: None
        #: Called with each look's absent owners while leading, and with nothing when leadership ends.
        self.on_absent: Callable[[Sequence[str]], None] = lambda _owners: None
        #: Called with each look's number of dead rows in the live table, and with 0 when leadership ends.
        self.on_dead_rows: Callable[[int], None] = lambda _number: None
        #: Called with the mode when it has changed.
        self.on_mode: Callable[[str], None] = lambda _mode: None

    @property
    def is_leading(self) -> bool:
        """Whether this worker holds the leadership."""
        return self.mode != "follower"

    def heard(self, message: str) -> None:
        """Take note of what the present leader announces."""
        self._other_coalesces = message == "coalesced"
        if message == "farewell":
            self._try_now.set()

    def burst(self) -> None:
        """Take note that notifications come too fast."""
        self._burst.set()

    async def run(self) -> None:
        """Contend and lead until cancelled."""
        backoff = Backoff()
        while True:
            pause_s = None
            try:
                opened = await reconnect(self._dsn, schema=self._store.schema, purpose="gate", session=SOON_MISSED)
                self._gate = _Gate(opened)
                self.may_lead = await is_direct(self._gate.connection)
                if self.may_lead and not await locks_hold(self._gate.connection):
                    self._tell_locks_do_not_hold()
                if self.may_lead:
                    await self._contend(backoff)
                pause_s = _NO_SESSION_LOCKS_S
            except DatabaseError as error:
                log.warning("gate_lost", error=brief(error), was=self.mode)
                self._metrics.reconnects.labels("gate").inc()
            finally:
                self._set_mode("follower")
                self.terminate()
            await asyncio.sleep(pause_s or backoff.next_s())

    def _tell_locks_do_not_hold(self) -> None:
        self.may_lead = False
        if self.locks_hold:
            self.locks_hold = False
            log.warning("locks_do_not_hold", hint="this server grants an advisory lock and keeps none: nobody leads")

    async def _contend(self, backoff: Backoff) -> None:
        while True:
            # Advisory locks succeed on a standby too, where they exclude nobody.
            lead = "SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_try_advisory_lock($1, $2) END"
            is_elected = await self._query(lead, LOCK_CLASS, self._locks.leader)
            if is_elected is None:
                raise asyncpg.InterfaceError(_STANDBY)  # by connecting anew the one that takes writes may be found
            backoff.reset()
            if is_elected:
                await self._lead()
            self._try_now.clear()
            await is_set_within(self._try_now, LOOK_S / 2 if self._other_coalesces else LOOK_S)

    async def _lead(self) -> None:
        self._set_mode("arming")
        self._burst.clear()
        while True:
            await self._tick_until_armed()
            await self._stand_armed()
            if await self._coalesce():
                await self._tick_until_quiet()

    async def _stand_armed(self) -> None:
        """
        Look every LOOK_S seconds, until notifications come too fast.

        While the notification queue is so full that inserts stay silent, look at the table as well: nobody else can
        be woken, but this worker can.
        """
        self._set_mode("armed")
        self._burst.clear()
        while True:
            if await self._look_at_fleet() < QUEUE_LIMIT:
                if await is_set_within(self._burst, LOOK_S):
                    return
                continue
            self._heads = {}
            while self._clock() < self._fleet_look_at:
                await self._look_and_wake()
                await asyncio.sleep(_SLOWEST_TICK_S)

    async def _coalesce(self) -> bool:
        """Take C and let M go: from now on inserts stay silent. False if somebody else holds C."""
        if not await self._take(self._locks.coalesced):
            return False
        self._holds_coalesced = True
        if self._holds_silent:
            await self._look_for_silent()  # there is none yet: whatever is seen later has begun later
            await self._query("SELECT pg_advisory_unlock($1, $2)", LOCK_CLASS, self._locks.silent)
            self._holds_silent = False
        self._set_mode("coalesced")
        await self._notify("coalesced")
        return True

    async def _tick_until_quiet(self) -> None:
        quiet = 0
        while quiet < _QUIET_TICKS:
            quiet = 0 if await self._tick() else quiet + 1
            await asyncio.sleep(self._tick_s)

    async def _tick_until_armed(self) -> None:
        """
        Get M; until then go on looking, since inserts that stayed silent may be about to commit.

        Who comes to lead in the middle of a rush never gets M, which inserts hold all the time: it coalesces first.
        """
        pause_s = self._tick_s
        coalesce_at = 0.0
        # A session's locks are counted: taken twice, it would not be let go by one unlock.
        while not (
            self._holds_silent or await self._query("SELECT pg_try_advisory_lock($1, $2)", LOCK_CLASS, self._locks.silent)
        ):
            if not self._holds_coalesced and self._clock() >= coalesce_at:
                coalesce_at = self._clock() + LOOK_S
                await self._coalesce()
            if await self._tick():
                pause_s = self._tick_s
            await asyncio.sleep(pause_s)
            pause_s = min(_SLOWEST_TICK_S, pause_s * 1.5)
        self._holds_silent = True
        if self._holds_coalesced:
            await self._query("SELECT pg_advisory_unlock($1, $2)", LOCK_CLASS, self._locks.coalesced)
            self._holds_coalesced = False
        await self._look_and_wake(is_last=True)
        await self._notify("armed")

    async def _tick(self) -> bool:
        """One look of a leader that is not armed; when it is time, also at the fleet."""
        is_new = await self._look_and_wake()
        if self._clock() >= self._fleet_look_at:
            self._heads = {}  # as when arming: a locked head must not hide what is behind it for longer
            await self._look_at_fleet()
        return is_new

    async def _look_and_wake(self, *, is_last: bool = False) -> bool:
        """
        Wake the fleet if some lane has another head than at the last look; a backlog nobody takes stays quiet.

        The last look before the inserts wake by themselves must miss nothing: it looks from the beginning, or where
        that is too dear, farther back; and for it every head is a new one, since whoever waits behind a head that was
        seen before, and that somebody holds locked, stayed silent as well.
        """
        began = self._clock()
        if is_last or began >= self._silent_look_at:
            await self._look_for_silent()
        self._lanes.begin()
        if self._lanes.look_is_due_in_s(began) <= 0 or (is_last and not self._lanes.is_dear()):
            rows = await self._store.ready(self._opened())
            seen = [Seen(row["kind"], row["project_id"], row["rank"], row["mark"], row["is_ready"]) for row in rows]
            self._lanes.looked(seen, began, self._clock())
            rows = [row for row in rows if row["is_ready"]]
        else:
            slack = WIDE_SLACK if is_last else self._lanes.slack(began)
            rows = await self._store.ready_since(self._opened(), self._lanes.to_read(), slack)
            self._lanes.read(slack, began, self._clock())
        heads = {(row["kind"], row["project_id"], row["rank"]): (row["run_id"], row["mark"]) for row in rows}
        # By its place too: a run that was retried meanwhile is the same and somewhere else.
        new = [head[1] for lane, head in heads.items() if is_last or self._heads.get(lane) != head]
        for lane, (_, mark) in heads.items():
            self._lanes.found(lane, mark)
        self._heads = heads
        if new:
            await self._tell_at(min(new))
        return bool(new)

    async def _look_for_silent(self) -> None:
        """
        Tell the fleet how far back to look when a transaction that had inserted in silence has ended late.

        What was seen at one look only has lived for less than two of their periods, and lies within the wide slack. But
        of one that was there before this leader looked at all nobody knows how old it is: it may lie anywhere.
        """
        self._silent_look_at = self._clock() + _SILENT_LOOK_S
        seen_at, now_silent = await self._store.silent(self._opened())
        late = [
            began
            for name, (began, was_seen_again) in self._silent.items()
            if name not in now_silent and (was_seen_again or began == EPOCH)
        ]
        # It inserted after the look before this one, and no more than so long after it had begun.
        began = max(EPOCH, self._silent_looked_at - _BEGIN_TO_INSERT)
        self._silent_looked_at = seen_at
        self._silent = {name: (self._silent[name][0], True) if name in self._silent else (began, False) for name in now_silent}
        if late:
            self._lanes.lower(min(late))
            await self._tell_at(min(late))

    async def _tell_at(self, moment: datetime) -> None:
        """Wake the fleet, this worker first, to what lies at this place and later."""
        self.on_late(moment)
        self._wake.set()
        await self._notify(f"at:{moment.timestamp():.6f}")

    async def _look_at_fleet(self) -> float:
        """Tell of the fleet what only a leader looks after; return how full the notification queue is."""
        self._fleet_look_at = self._clock() + LOOK_S
        look = await self._store.absent(self._opened())
        usage: float = look["queue_usage"]
        self.on_queue_usage(usage)
        if look["is_standby"]:
            raise asyncpg.InterfaceError(_STANDBY)
        self.on_absent(look["absent"])
        self.on_dead_rows(look["dead_rows"])
        return usage

    async def _take(self, lock: int) -> bool:
        # For this statement alone: a NOTIFY waits for a lock too, behind all those that this lock is to put an end to.
        # Longer than what notifies in a rush takes to commit; and short, since it holds back vacuum, and who inserts
        # while somebody waits for this lock stays silent before anybody ticks.
        briefly = "SELECT set_config('lock_timeout', '200ms', true), pg_advisory_lock($1, $2)"
        try:
            await self._query(briefly, LOCK_CLASS, lock)
        except asyncpg.LockNotAvailableError:
            return False
        return True

    async def _notify(self, message: str) -> None:
        await self._store.notify(self._opened(), message)

    async def _query(self, query: str, *args: Any) -> Any:
        return await self._opened().value(query, *args)

    def _opened(self) -> "_Gate":
        if self._gate is None:
            message = "the gate's connection is closed"
            raise asyncpg.InterfaceError(message)
        return self._gate

    def _set_mode(self, mode: Literal["follower", "arming", "armed", "coalesced"]) -> None:
        if mode == self.mode:
            return
        was, self.mode = self.mode, mode
        self._metrics.leading.set(self.is_leading)
        self._metrics.coalescing.set(mode == "coalesced")
        if mode == "follower":
            self._lanes, self._heads, self._silent = Lanes(), {}, {}
            self._silent_looked_at, self._silent_look_at = EPOCH, 0.0
            self._holds_coalesced = self._holds_silent = False
            self.on_absent([])
            self.on_dead_rows(0)
        self.on_mode(mode)
        log.log(20 if "follower" in (was, mode) else 10, "wake_mode", mode=mode, was=was)

    async def farewell(self) -> None:
        """Give the leadership away, so that another worker has it within milliseconds."""
        if self._gate is None or not self.is_leading:
            return
        try:
            async with asyncio.timeout(1):
                await self._query("SELECT pg_advisory_unlock_all()")
                await self._notify("farewell")
        except DatabaseError as error:
            log.debug("farewell_unheard", error=brief(error))  # the locks go with the session all the same

    def terminate(self) -> None:
        """Drop the connection, and with it the locks."""
        if self._gate is not None:
            self._gate.connection.terminate()
            self._gate = None


class _Gate:
    """The gate's connection: one statement at a time, each with the look's deadline."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._turn = asyncio.Lock()

    async def fetch(self, query: str, *args: Any, timeout: float | None = None) -> list[asyncpg.Record]:  # noqa: ASYNC109 - asyncpg's own signature
        async with self._turn:
            return await self.connection.fetch(query, *args, timeout=timeout or LOOK_DEADLINE_S)

    async def value(self, query: str, *args: Any) -> Any:
        return (await self.fetch(query, *args))[0][0]
