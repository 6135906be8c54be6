"""
The only door to our tables: one function per file in sql/, of the same name.

Every function takes what it is executed on, so that the caller owns connection and deadline. None of them repeats
anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias
from uuid import UUID

import asyncpg

from notifyworker.data import folder
from notifyworker.database import Queryable
from notifyworker.lanes import Batch, Lane
from notifyworker.migrate import render
from notifyworker.run import Desk, Outcome, Run, State

Row: TypeAlias = asyncpg.Record

#: From this fill of the notification queue on, nothing of ours notifies (schema/0005_wake.sql, sql/notify.sql).
QUEUE_LIMIT = 0.5


@dataclass(frozen=True, slots=True)
class Served:
    """
    What a worker claims: kinds with their max_attempts and timeouts in seconds, of these projects (None: all).

    `versions` has the kinds of which it has named versions, and both of each.
    """

    max_attempts: dict[str, int]
    timeouts_s: dict[str, float | None]
    project_ids: list[str] | None
    versions: dict[str, dict[str | None, tuple[int, float | None]]] = field(default_factory=dict)

    @property
    def kinds(self) -> list[str]:
        """The kinds that have a handler."""
        return list(self.max_attempts)

    def has(self, kind: str, version: str | None) -> bool:
        """Whether it can execute this version of a kind."""
        return version in self.versions[kind] if kind in self.versions else version is None

    def of(self, version: str | None) -> tuple[list[int], list[float | None]]:
        """max_attempts and timeouts of the kinds in their order, each of this version where it has it."""
        if not self.versions:
            return list(self.max_attempts.values()), list(self.timeouts_s.values())
        both = [
            self.versions.get(kind, {}).get(version, (attempts, self.timeouts_s[kind]))
            for kind, attempts in self.max_attempts.items()
        ]
        return [attempts for attempts, _ in both], [timeout_s for _, timeout_s in both]


@dataclass(frozen=True, slots=True)
class NewRun:
    """The producer's columns; None stands for the column's default."""

    kind: str
    payload: str = "{}"
    project_id: str = "default"
    priority: int = 0
    run_at: datetime | None = None
    max_attempts: int | None = None
    timeout: Any = None
    expires_at: datetime | None = None
    idempotency_key: str | None = None
    concurrency_key: str | None = None
    is_shadow: bool = False
    headers: str = "{}"
    run_id: UUID | None = None
    # No columns, but how enqueue deals with a run that has the same idempotency key; as time spans.
    debounce: timedelta | None = None
    debounce_at_most: timedelta | None = None
    throttle: timedelta | None = None


class Inserted(NamedTuple):
    """The run that an insert has led to, and whether it is new, was there already, or has taken what was new."""

    run_id: UUID
    became: Literal["new", "existing", "replaced"]


@dataclass(frozen=True, slots=True)
class NewSchedule:
    """What stands in a row of schedules, but for what the leader keeps there."""

    name: str
    cron: str
    kind: str
    timezone: str = "UTC"
    payload: str = "{}"
    project_id: str = "default"
    priority: int = 0
    max_attempts: int | None = None
    timeout: Any = None
    headers: str = "{}"
    paused: bool = False
    missed: str = "skip"


@dataclass(frozen=True, slots=True)
class NewPause:
    """What is not to be claimed (None: every kind or project), until when or for how long (neither: until resumed)."""

    kind: str | None = None
    project_id: str | None = None
    until: datetime | None = None
    seconds: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class NewLimit:
    """How many runs of what (None: every kind or project) at once, and how many begin in `per_s` seconds."""

    kind: str | None = None
    project_id: str | None = None
    per: str = "all"
    max_running: int | None = None
    rate: int | None = None
    per_s: float | None = None
    burst: int | None = None


class Store:
    """The statements of one installation: of one schema's name."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        # Read when a worker is made, so that a missing file fails at start and not at 3 a.m.
        self._sql = {
            file.name[:-4]: render(file.read_text(encoding="utf-8"), schema)
            for file in folder("sql").iterdir()
            if file.name.endswith(".sql")
        }

    def sql(self, name: str) -> str:
        """Return a statement, for the stores of single topics beside this one."""
        return self._sql[name]

    # The life of a run, in its order.

    async def run_insert(self, on: Queryable, new: NewRun) -> Inserted:
        """Insert; or find the run that holds the idempotency key, or let it take what is new."""
        row = (
            await on.fetch(
                self._sql["run_insert"],
                new.kind, new.payload, new.project_id, new.priority, new.run_at, new.max_attempts, new.timeout,
                new.expires_at, new.idempotency_key, new.concurrency_key, new.is_shadow, new.headers, new.run_id,
                new.debounce, new.debounce_at_most, new.throttle,
            )
        )[0]  # fmt: skip
        return Inserted(*row)

    async def runs_insert(self, on: Queryable, new: Sequence[NewRun]) -> list[tuple[UUID | None, bool]]:
        """Insert many; or name the run that holds the idempotency key (then the second value is True), None if it is one of these."""
        columns = (
            "run_id", "kind", "payload", "project_id", "priority", "run_at", "max_attempts", "timeout", "expires_at",
            "idempotency_key", "is_shadow", "headers", "concurrency_key",
        )  # fmt: skip
        rows = await on.fetch(self._sql["runs_insert"], *([getattr(n, c) for n in new] for c in columns))
        return [(row["run_id"], row["existing"]) for row in rows]

    async def lanes(self, on: Queryable, served: Served) -> list[Row]:
        """Look from the beginning: the lanes that have a pending run, and when the next run of each is due."""
        return await on.fetch(self._sql["lanes"], served.kinds, served.project_ids)

    async def claim(
        self,
        on: Queryable,
        served: Served,
        batch: Batch,
        slack: timedelta,
        *,
        limit: int,
        lease_owner: str,
        lease_s: float,
        enforce_shadow: bool,
        desk: Desk | None = None,
    ) -> list[Run]:
        """Pending -> running, for up to `limit` runs of lanes of one sort, each with a fresh lease; in no order."""
        lanes = batch.lanes
        attempts, timeouts_s = served.of(batch.version)
        rows = await on.fetch(
            self._sql["claim_limited" if batch.is_limited else "claim"],
            [lane.kind for lane in lanes], [lane.project_id for lane in lanes], [lane.rank for lane in lanes],
            [lane.read_from(slack) for lane in lanes], served.kinds, attempts, timeouts_s, limit, lease_owner, lease_s,
            enforce_shadow, batch.most, batch.version,
        )  # fmt: skip
        made = partial(Run, desk=desk)
        return [made(*row) for row in rows]

    async def heartbeat(self, on: Queryable, lease_owner: str, lease_s: float, held: dict[UUID, int]) -> set[UUID]:
        """Renew leases; return those that were renewed."""
        rows = await on.fetch(self._sql["heartbeat"], lease_owner, lease_s, list(held), list(held.values()))
        return {row["run_id"] for row in rows}

    async def held(self, on: Queryable, lease_owner: str, held: dict[UUID, int]) -> set[UUID]:
        """Which of these are still this worker's."""
        rows = await on.fetch(self._sql["held"], lease_owner, list(held), list(held.values()))
        return {row["run_id"] for row in rows}

    async def progress(self, on: Queryable, lease_owner: str, said: Sequence[tuple[Run, str]]) -> set[UUID]:
        """Write what running runs say of themselves; return those that were held, and not locked by somebody."""
        columns = [run.run_id for run, _ in said], [run.lease_token for run, _ in said], [text for _, text in said]
        return {row["run_id"] for row in await on.fetch(self._sql["progress"], lease_owner, *columns)}

    async def lock(self, on: Queryable, run: Run, lease_owner: str) -> bool:
        """Lock a run that is held under this lease; False if it is not, or locked by somebody."""
        return bool(await on.fetch(self._sql["lock"], run.run_id, run.lease_token, lease_owner))

    async def settle(self, on: Queryable, lease_owner: str, outcomes: Sequence[Outcome]) -> int:
        """Running -> completed, failed or cancelled; return how many were settled."""
        rows = await on.fetch(
            self._sql["settle"],
            lease_owner, [o.run_id for o in outcomes], [o.lease_token for o in outcomes],
            _unless_all([o.to for o in outcomes], usual=State.COMPLETED), _unless_all([o.result for o in outcomes], usual=None),
            _unless_all([o.effects for o in outcomes], usual=None), _unless_all([o.error_code for o in outcomes], usual=None),
            _unless_all([o.error for o in outcomes], usual=None), _unless_all([o.was_started for o in outcomes], usual=True),
            _unless_all([o.progress for o in outcomes], usual=None),
        )  # fmt: skip
        return int(rows[0]["count"])

    async def give_back(self, on: Queryable, lease_owner: str, outcomes: Sequence[Outcome]) -> set[UUID]:
        """Running -> pending; return those that were given back."""
        rows = await on.fetch(
            self._sql["give_back"],
            lease_owner, [o.run_id for o in outcomes], [o.lease_token for o in outcomes],
            [o.delay_s for o in outcomes], [o.counts for o in outcomes], [o.error for o in outcomes],
            [o.progress for o in outcomes],
        )  # fmt: skip
        return {row["run_id"] for row in rows}

    async def orphans(self, on: Queryable, lease_owner: str) -> list[Row]:
        """All runs that this worker holds by the database's word."""
        return await on.fetch(self._sql["orphans"], lease_owner)

    async def settled(self, on: Queryable, lease_owner: str, held: dict[UUID, int]) -> set[UUID]:
        """Which of these were settled under exactly these leases."""
        rows = await on.fetch(self._sql["settled"], lease_owner, list(held), list(held.values()))
        return {row["run_id"] for row in rows}

    async def reap(self, on: Queryable, *, limit: int, reaper: str, presumed_dead: Sequence[str]) -> list[Row]:
        """Running -> pending or failed, for expired leases and for owners that are gone; return what was taken."""
        return await on.fetch(self._sql["reap"], limit, reaper, list(presumed_dead), self.schema)

    async def expire(self, on: Queryable, *, limit: int) -> int:
        """Pending -> cancelled, for runs that may no longer be started; return how many."""
        return len(await on.fetch(self._sql["expire"], limit))

    async def keys_forget(self, on: Queryable, *, limit: int) -> int:
        """Delete idempotency keys whose time is over; return how many."""
        return len(await on.fetch(self._sql["keys_forget"], limit))

    async def debounces_forget(self, on: Queryable, *, limit: int) -> int:
        """Delete what is left of debounced runs that are settled; return how many."""
        return len(await on.fetch(self._sql["debounces_forget"], limit))

    async def expect(self, on: Queryable, run_ids: Sequence[UUID], channel: str) -> None:
        """Be told on this channel, for the next minute, when one of these runs is settled."""
        await on.fetch(self._sql["expect"], list(run_ids), channel)

    async def expect_no_more(self, on: Queryable, run_ids: Sequence[UUID], channel: str) -> None:
        """Be told of these no more."""
        await on.fetch(self._sql["expect_no_more"], list(run_ids), channel)

    async def waiters_forget(self, on: Queryable, *, limit: int) -> int:
        """Delete waiters that live no more; return how many."""
        return len(await on.fetch(self._sql["waiters_forget"], limit))

    async def run_cancel(self, on: Queryable, run_id: UUID) -> str:
        """Pending or running -> cancelled. Raises NoDataFoundError, ObjectNotInPrerequisiteStateError."""
        return str((await on.fetch(self._sql["run_cancel"], run_id))[0]["state"])

    async def run_retry(self, on: Queryable, run_id: UUID, from_step: int | None = None, payload: str | None = None) -> UUID:
        """Settled -> pending, with another payload if one is given. Raises NoDataFoundError, ObjectNotInPrerequisiteStateError, InvalidParameterValueError."""
        retried: UUID = (await on.fetch(self._sql["run_retry"], run_id, from_step, payload))[0]["run_id"]
        return retried

    async def run_replay(self, on: Queryable, run_id: UUID, payload: str | None = None) -> UUID:
        """Insert a settled run once more; return the new one's id. Raises as `run_retry` does."""
        again: UUID = (await on.fetch(self._sql["run_replay"], run_id, payload))[0]["run_id"]
        return again

    async def end_lingering(self, on: Queryable, run_id: UUID, lease_owner: str, lease_token: int) -> None:
        """Free the places of a run that was cancelled, now that its handler has ended."""
        await on.fetch(self._sql["end_lingering"], run_id, lease_owner, lease_token)

    async def mend_limits(self, on: Queryable) -> int:
        """Free places that nobody holds any more, and end waits for free keys; return how many."""
        return int((await on.fetch(self._sql["mend_limits"]))[0]["mended"])

    async def limit_set(self, on: Queryable, new: NewLimit) -> None:
        """Make a limit, or change it to exactly this."""
        await on.fetch(self._sql["limit_set"], new.kind, new.project_id, new.per, new.max_running, new.rate, new.per_s, new.burst)

    async def limit_remove(self, on: Queryable, kind: str | None, project_id: str | None, per: str) -> bool:
        """End exactly this limit; False if there was none."""
        return bool((await on.fetch(self._sql["limit_remove"], kind, project_id, per))[0]["removed"])

    async def share_set(self, on: Queryable, project_id: str, weight: float) -> None:
        """Give a project this weight."""
        await on.fetch(self._sql["share_set"], project_id, weight)

    async def shares_list(self, on: Queryable) -> list[Row]:
        """Return the weights that were given, and what those projects' runs take."""
        return await on.fetch(self._sql["shares_list"])

    async def limits_list(self, on: Queryable) -> list[Row]:
        """Return every limit, and how many places of it are taken."""
        return await on.fetch(self._sql["limits_list"])

    async def limits_seen(self, on: Queryable, *, cap: int = 10_000) -> Row:
        """Count places that are taken and runs that wait for a key; and the one that is due for the longest."""
        return (await on.fetch(self._sql["limits_seen"], cap))[0]

    async def pause(self, on: Queryable, new: NewPause) -> None:
        """Claim none of these. Raises InvalidParameterValueError for a time that is over."""
        await on.fetch(self._sql["pause"], new.kind, new.project_id, new.until, new.seconds, new.reason)

    async def resume(self, on: Queryable, kind: str | None = None, project_id: str | None = None) -> bool:
        """End exactly this pause; False if there was none."""
        return bool((await on.fetch(self._sql["resume"], kind, project_id))[0]["resumed"])

    async def pauses_list(self, on: Queryable) -> list[Row]:
        """Return what is paused now."""
        return await on.fetch(self._sql["pauses_list"])

    async def pauses_forget(self, on: Queryable) -> None:
        """Delete pauses that are over."""
        await on.fetch(self._sql["pauses_forget"])

    async def schedules_due(self, on: Queryable, *, limit: int) -> list[Row]:
        """Schedules that are due, and those of which it is not known yet when they are."""
        return await on.fetch(self._sql["schedules_due"], limit)

    async def schedules_ahead(self, on: Queryable) -> Row:
        """In how many seconds the next schedule is due, and which can't be fired."""
        return (await on.fetch(self._sql["schedules_ahead"]))[0]

    async def schedule_next(self, on: Queryable, seen: Row, next_at: datetime) -> None:
        """Write down when a new or changed schedule is due first, unless it has changed again."""
        await on.fetch(self._sql["schedule_next"], seen["name"], seen["changed_at"], next_at)

    async def schedule_fire(
        self, on: Queryable, seen: Row, last: datetime, following: datetime, fired: Sequence[datetime]
    ) -> list[UUID]:
        """Move a schedule on and insert a run for each tick in `fired`; return their ids, none if somebody else has done so."""
        rows = await on.fetch(self._sql["schedule_fire"], seen["name"], seen["next_at"], last, following, list(fired))
        return [row["run_id"] for row in rows]

    async def schedule_fault(self, on: Queryable, seen: Row, error: str) -> None:
        """Fire it no more until somebody changes it."""
        await on.fetch(self._sql["schedule_fault"], seen["name"], seen["changed_at"], error)

    async def schedules_list(self, on: Queryable, name: str | None = None) -> list[Row]:
        """All schedules, or the one of this name."""
        return await on.fetch(self._sql["schedules_list"], name)

    async def schedule_put(self, on: Queryable, new: NewSchedule) -> None:
        """Make a schedule, or change it to exactly this."""
        await on.fetch(
            self._sql["schedule_put"],
            new.name, new.cron, new.timezone, new.kind, new.payload, new.project_id, new.priority, new.max_attempts,
            new.timeout, new.headers, new.paused, new.missed,
        )  # fmt: skip

    async def schedule_pause(self, on: Queryable, name: str, *, paused: bool) -> bool:
        """Pause a schedule or let it go on; False if there is none."""
        return bool(await on.fetch(self._sql["schedule_pause"], name, paused))

    async def schedule_delete(self, on: Queryable, name: str) -> bool:
        """Delete a schedule; False if there is none."""
        return bool(await on.fetch(self._sql["schedule_delete"], name))

    # Waking and leading.

    async def ready(self, on: Queryable) -> list[Row]:
        """Look from the beginning: all lanes that have a pending run, and their heads."""
        return await on.fetch(self._sql["ready"])

    async def ready_since(self, on: Queryable, lanes: Sequence[Lane], slack: timedelta) -> list[Row]:
        """Look from the marks: the heads of those lanes that have something ready."""
        return await on.fetch(
            self._sql["ready_since"],
            [lane.kind for lane in lanes], [lane.project_id for lane in lanes], [lane.rank for lane in lanes],
            [lane.read_from(slack) for lane in lanes],
        )  # fmt: skip

    async def silent(self, on: Queryable) -> tuple[datetime, set[str]]:
        """Look for transactions that have inserted without a word and are still open; when that was, and which."""
        row = (await on.fetch(self._sql["silent"]))[0]
        return row["seen_at"], set(row["ids"])

    async def notify(self, on: Queryable, message: str = "") -> None:
        """Wake the fleet, unless the notification queue is half full."""
        await on.fetch(self._sql["notify"], message)

    async def absent(self, on: Queryable) -> Row:
        """Look at the fleet's presence, the notification queue and whether this server takes writes."""
        return (await on.fetch(self._sql["absent"], self.schema))[0]

    async def absent_holders(self, on: Queryable, owners: Sequence[str]) -> dict[str, tuple[float, datetime]]:
        """Of these owners, who holds runs; after how many seconds each may be presumed dead, and when it last beat."""
        rows = await on.fetch(self._sql["absent_holders"], list(owners))
        return {row["lease_owner"]: (row["presumed_dead_s"], row["heartbeat_at"]) for row in rows}

    async def reaper_elected(self, on: Queryable, leader: str, mode: str) -> None:
        """Write down who leads, and how."""
        await on.fetch(self._sql["reaper_elected"], leader, mode)

    async def reaper_pass(self, on: Queryable, leader: str | None, *, taken: int, failed: int, next_in_s: float) -> None:
        """Write down a pass of the reaper; `leader` is None if it was one who does not lead."""
        await on.fetch(self._sql["reaper_pass"], leader, taken, failed, next_in_s)

    async def make_partitions(self, on: Queryable) -> int:
        """Make the coming days' partitions; return how many. Raises LockNotAvailableError: try later."""
        made: int = (await on.fetch(f'SELECT "{self.schema}".make_partitions() AS made'))[0]["made"]
        return made

    async def drop_expired_partitions(self, on: Queryable) -> int:
        """Drop what is older than the retention; return how many. Raises LockNotAvailableError: try later."""
        dropped: int = (await on.fetch(f'SELECT "{self.schema}".drop_expired_partitions() AS dropped'))[0]["dropped"]
        return dropped

    async def reaper_counts(self, on: Queryable, *, taken: int, failed: int) -> None:
        """Add what a take-over between two passes took."""
        await on.fetch(self._sql["reaper_counts"], taken, failed)

    async def may_vacuum(self, on: Queryable) -> bool:
        """Whether this login may vacuum the live table."""
        return bool((await on.fetch(self._sql["may_vacuum"]))[0]["may"])

    async def vacuum(self, on: Queryable, *, timeout_s: float) -> None:
        """Vacuum the live table."""
        await on.fetch(self._sql["vacuum"], timeout=timeout_s)

    async def dead_rows(self, on: Queryable) -> int:
        """Dead rows of the live table, by the server's statistics."""
        return int((await on.fetch(self._sql["dead_rows"]))[0]["dead_rows"])

    async def workers_forget(self, on: Queryable, absent: Sequence[str]) -> list[str]:
        """Delete rows of workers that are long gone; return them."""
        return [row["lease_owner"] for row in await on.fetch(self._sql["workers_forget"], list(absent))]

    async def worker_present(self, on: Queryable, *columns: Any) -> tuple[int, int, bool]:
        """Insert or renew this worker's row; return how many serve the same as it does, its place among them, and whether to drain."""
        row = (await on.fetch(self._sql["worker_present"], *columns))[0]
        return row["size"], row["position"], row["drain_asked"]

    async def worker_drain(self, on: Queryable, lease_owner: str, *, undo: bool) -> bool:
        """Ask a worker to drain, or to go on; false if there is no such worker."""
        return bool((await on.fetch(self._sql["worker_drain"], lease_owner, undo))[0]["found"])

    async def worker_gone(self, on: Queryable, lease_owner: str) -> None:
        """Delete this worker's row."""
        await on.fetch(self._sql["worker_gone"], lease_owner)

    async def settings(self, on: Queryable) -> dict[str, float]:
        """Return the settings that hold for the whole fleet."""
        return {row["name"]: float(row["value"]) for row in await on.fetch(self._sql["settings"])}

    # Observing.

    async def run_get(self, on: Queryable, run_id: UUID) -> Row | None:
        """One run, live or settled; None if there is none."""
        rows = await on.fetch(self._sql["run_get"], run_id)
        return rows[0] if rows else None

    async def runs_list(
        self,
        on: Queryable,
        *,
        state: str | None = None,
        kind: str | None = None,
        project_id: str | None = None,
        before: UUID | None = None,
        limit: int = 50,
    ) -> list[Row]:
        """Runs, newest first."""
        return await on.fetch(self._sql["runs_list"], state, kind, project_id, before, limit)

    async def leases_list(self, on: Queryable, *, after: UUID | None = None, limit: int = 50) -> list[Row]:
        """Who holds which run, until when."""
        return await on.fetch(self._sql["leases_list"], after, limit)

    async def workers_list(self, on: Queryable) -> list[Row]:
        """List the fleet."""
        return await on.fetch(self._sql["workers_list"], self.schema)

    async def reaper_state(self, on: Queryable) -> Row:
        """Return the leader and its passes."""
        return (await on.fetch(self._sql["reaper_state"]))[0]

    async def reaps_list(self, on: Queryable, *, limit: int = 50) -> list[Row]:
        """Return the latest runs that were taken from workers."""
        return await on.fetch(self._sql["reaps_list"], limit)

    async def counts(self, on: Queryable, *, cap: int = 100_000) -> list[Row]:
        """Live runs by state."""
        return await on.fetch(self._sql["counts"], cap)

    # Examining.

    async def describe(self, on: Queryable, schema: str) -> list[Row]:
        """Describe the objects of a schema: this one's, or a copy of it."""
        return await on.fetch(self._sql["describe"], schema)

    async def server_facts(self, on: Queryable) -> Row:
        """Return what the server is, who is logged in, and settings that matter here."""
        return (await on.fetch(self._sql["server_facts"]))[0]

    async def session_facts(self, on: Queryable) -> dict[str, str]:
        """Return what a connection has been given that sets nothing itself; times in ms."""
        return {row["name"]: row["setting"] for row in await on.fetch(self._sql["session_facts"])}

    async def privileges(self, on: Queryable) -> Row | None:
        """Return what this login may do; None without the live table."""
        rows = await on.fetch(self._sql["privileges"])
        return rows[0] if rows else None

    async def triggers(self, on: Queryable) -> list[Row]:
        """Return the triggers that a run passes, the wake-up first, and how each stands."""
        return await on.fetch(self._sql["triggers"])

    async def queue_usage(self, on: Queryable) -> float:
        """Return how full the notification queue is, from 0 to 1."""
        return float((await on.fetch(self._sql["queue_usage"]))[0]["queue_usage"])

    async def clock(self, on: Queryable) -> datetime:
        """Return the database's time at this moment."""
        now: datetime = (await on.fetch(self._sql["clock"]))[0]["now"]
        return now

    async def leader_session(self, on: Queryable) -> Row | None:
        """Return the session that holds the leadership; None if nobody does."""
        rows = await on.fetch(self._sql["leader_session"])
        return rows[0] if rows else None

    async def live_table(self, on: Queryable) -> Row:
        """Return size, rows and dead rows of the live table, by the server's statistics."""
        return (await on.fetch(self._sql["live_table"]))[0]

    async def holders(self, on: Queryable) -> list[Row]:
        """Return the oldest transactions, replication slots and prepared transactions that hold something up."""
        return await on.fetch(self._sql["holders"])

    async def standbys(self, on: Queryable) -> list[Row]:
        """Return the standbys that are connected."""
        return await on.fetch(self._sql["standbys"])

    async def partitions(self, on: Queryable) -> Row:
        """Return how far ahead partitions are made, how many should be gone, and what the default one holds."""
        return (await on.fetch(self._sql["partitions"]))[0]


def _unless_all(values: list[Any], *, usual: Any) -> list[Any]:
    """Return nothing for a column that is the usual one throughout: asyncpg takes a while over each element of an array."""
    return [] if values.count(usual) == len(values) else values
