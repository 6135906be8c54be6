"""
For producers in Python: enqueue runs, wait for them, cancel and retry them.

Nobody needs this: `INSERT INTO notifyworker.runs (kind, payload) VALUES (...)` is all that a producer does. What it
adds is a clear error, naming the field, before anything is sent.
"""

import asyncio
import builtins
from typing import Any
from uuid import UUID

import asyncpg

from notifyworker.children_store import ChildrenStore
from notifyworker.database import DatabaseError, Queryable, brief, is_refusal
from notifyworker.emitting import emit
from notifyworker.errors import InvalidRun, RunNotFound, WaitTimeout
from notifyworker.given import (
    REFUSALS,
    Conflicts,
    as_dict,
    check_from_step,
    check_integer,
    check_share,
    check_text,
    limit_scope,
    new_limit,
    new_pause,
    new_payload,
    new_run,
    new_schedule,
    refused,
    schedule_as_dict,
    uuid_of,
)
from notifyworker.many import Many
from notifyworker.observe import log
from notifyworker.run import TERMINAL, State
from notifyworker.run_log_store import RunLogStore
from notifyworker.step_store import StepStore
from notifyworker.store import Inserted, NewRun
from notifyworker.trace import sending
from notifyworker.waiting import Waiting


class Client(Many):
    """
    A producer's way in. Without `dsn` it is found as a worker finds its own.

    Opens no connection until it needs one; `async with` or `close()` ends those that it opened. With `connection=` a
    call takes part in the caller's own transaction instead.
    """

    def __init__(self, dsn: str | None = None, *, schema: str | None = None) -> None:
        super().__init__(dsn, schema=schema)
        self._waiting = Waiting(self._listen_dsn, self._store, listens=self._listens)

    async def close(self) -> None:
        """Close the connections that this client opened."""
        await self._waiting.close()
        await super().close()

    async def enqueue(self, kind: str, payload: Any = None, *, connection: Queryable | None = None, **columns: Any) -> UUID:
        """
        Insert one run and return its id; with an idempotency key that another run holds, that run's id.

        With `debounce` (seconds) a pending run of the key takes what is new, and is due so long from now, at most
        `debounce_at_most` after it was enqueued; with `throttle` the key is held for so long from the first run on.
        Raises InvalidRun, naming the column.
        """
        return (await self.insert(kind, payload, connection=connection, **columns)).run_id

    async def insert(self, kind: str, payload: Any = None, *, connection: Queryable | None = None, **columns: Any) -> Inserted:
        """As `enqueue`; also says what became of it: `new`, `existing` (another run holds the key) or `replaced` (debounced)."""
        with sending(kind, columns.get("headers")) as (headers, sent):
            new = new_run(kind, payload, **columns | {"headers": headers})
            inserted = await self._insert(new, connection or await self._connected())
            sent.as_run(inserted.run_id)
            return inserted

    async def _insert(self, new: NewRun, on: Queryable) -> Inserted:
        try:
            return await self._store.run_insert(on, new)
        except REFUSALS as error:
            raise refused(error) from error

    async def get(self, run_id: UUID | str) -> dict[str, Any]:
        """Return one run, live or settled. Raises RunNotFound."""
        wanted = uuid_of("run_id", run_id)
        row = await self._store.run_get(await self._connected(), wanted)
        if row is None:
            raise RunNotFound(wanted)
        return as_dict(row)

    async def list(
        self,
        *,
        state: str | None = None,
        kind: str | None = None,
        project_id: str | None = None,
        before: UUID | None = None,
        limit: int = 50,
    ) -> list[dict[str, Any]]:
        """Runs, newest first; `before` is the last run_id of the page before. Raises InvalidRun for a filter that can't be."""
        if state is not None and state not in set(State):
            raise InvalidRun("state", f"must be one of {', '.join(State)}, not {state!r:.100}")
        for name, value in (("kind", kind), ("project_id", project_id)):
            if value is not None:
                check_text(name, value, 200)
        check_integer("limit", limit, 1, 500)
        before = None if before is None else uuid_of("before", before)
        rows = await self._store.runs_list(
            await self._connected(), state=state, kind=kind, project_id=project_id, before=before, limit=limit
        )
        return [as_dict(row) for row in rows]

    async def cancel(self, run_id: UUID | str) -> str:
        """Settle a pending or running run as cancelled. Raises RunNotFound, RunConflict."""
        wanted = uuid_of("run_id", run_id)
        with Conflicts(wanted):
            return await self._store.run_cancel(await self._connected(), wanted)

    async def retry(self, run_id: UUID | str, payload: Any = None, *, from_step: int | None = None) -> UUID:
        """
        Put a settled run back to pending, with another payload if one is given. Its steps are executed again as well, or those
        from position `from_step` on.

        Raises RunNotFound, RunConflict, InvalidRun.
        """
        wanted = uuid_of("run_id", run_id)
        check_from_step(from_step)
        with Conflicts(wanted):
            another = None if payload is None else new_payload(payload)
            return await self._store.run_retry(await self._connected(), wanted, from_step, another)

    async def steps(self, run_id: UUID | str) -> builtins.list[dict[str, Any]]:
        """
        Return the steps of a run in their order, those that raised with their `error`. Raises RunNotFound.

        A result of more than 4 kB is left out: `result_bytes` tells its size.
        """
        run = await self.get(run_id)
        rows = await StepStore(self._store).steps_list(await self._connected(), run["run_id"], run["created_at"])
        return [as_dict(row) for row in rows]

    async def log(self, run_id: UUID | str) -> builtins.list[dict[str, Any]]:
        """
        Return what a run has logged, an entry a lease with its `lines`. Raises RunNotFound.

        `cut` tells how many lines before these are not kept, `lost_after` (None: nothing) after which time its worker was gone.
        """
        run = await self.get(run_id)
        rows = await RunLogStore(self._store).run_logs_list(await self._connected(), run["run_id"], run["created_at"])
        return [as_dict(row) for row in rows]

    async def children(self, run_id: UUID | str, *, after: int = 0, limit: int = 500) -> builtins.list[dict[str, Any]]:
        """Return the children of a run in the order in which it started them, behind position `after`. Raises RunNotFound."""
        check_integer("limit", limit, 1, 500)
        run = await self.get(run_id)
        store = ChildrenStore(self._store)
        rows = await store.children_list(await self._connected(), run["run_id"], run["created_at"], after=after, limit=limit)
        return [as_dict(row) for row in rows]

    async def emit(
        self,
        name: str,
        payload: Any = None,
        *,
        run_id: UUID | str | None = None,
        key: str | None = None,
        project_id: str | None = None,
        keep_s: float | None = None,
        connection: Queryable | None = None,
    ) -> bool:
        """
        Tell runs that wait for it (`run.event`) that something has happened: one run, or all that wait for this name and key.

        True if it is the first of its name and key, or for its run; false if there is one already, which stays. It is kept for
        `keep_s` seconds (7 days). Raises InvalidRun, RunNotFound, RunConflict for a run that is settled.
        """
        on = connection or await self._connected()
        return await emit(self._store, on, name, payload, run_id=run_id, key=key, project_id=project_id, keep_s=keep_s)

    async def pause(self, kind: str | None = None, project_id: str | None = None, **until: Any) -> None:
        """
        Claim none of these runs, of every kind or project where none is named; runs that are executed go on.

        `until` a time, or for `seconds`, or else until `resume`; `reason` is shown. Raises InvalidRun, naming the field.
        """
        pause = new_pause(kind=kind, project_id=project_id, **until)
        try:
            await self._store.pause(await self._connected(), pause)
        except asyncpg.InvalidParameterValueError as error:
            raise refused(error) from error

    async def resume(self, kind: str | None = None, project_id: str | None = None) -> bool:
        """End exactly this pause; False if there was none."""
        new_pause(kind=kind, project_id=project_id)
        return await self._store.resume(await self._connected(), kind, project_id)

    async def pauses(self) -> builtins.list[dict[str, Any]]:
        """Return what is paused now; None as kind or project_id: every one."""
        return [dict(row) for row in await self._store.pauses_list(await self._connected())]

    async def set_limit(
        self,
        kind: str | None = None,
        project_id: str | None = None,
        per: str = "all",
        *,
        max_running: int | None = None,
        rate: int | None = None,
        per_s: float | None = None,
        burst: int | None = None,
    ) -> None:
        """
        Make a limit, or change it to exactly this: of a kind, a project, both or, named by neither, of all runs.

        `max_running` at once, `rate` begun in `per_s` seconds (1), `burst` of them at once after a pause (a second's worth).
        They count `all` together, or each `project`, or each concurrency `key`. Raises InvalidRun, naming the field.
        """
        new = new_limit(
            kind=kind, project_id=project_id, per=per, max_running=max_running, rate=rate, per_s=per_s, burst=burst
        )  # fmt: skip
        try:
            await self._store.limit_set(await self._connected(), new)
        except REFUSALS as error:
            raise refused(error) from error

    async def remove_limit(self, kind: str | None = None, project_id: str | None = None, per: str = "all") -> bool:
        """End exactly this limit; False if there was none."""
        limit_scope(kind=kind, project_id=project_id, per=per)
        return await self._store.limit_remove(await self._connected(), kind, project_id, per)

    async def limits(self) -> builtins.list[dict[str, Any]]:
        """Return all limits, each with how many places of it are taken (`running`); None as kind or project_id: every one."""
        return [dict(row) for row in await self._store.limits_list(await self._connected())]

    async def set_share(self, project_id: str, weight: float) -> None:
        """Give a project this part of the slots while several have something ready; 1 is what each has. Raises InvalidRun."""
        check_share(project_id, weight)
        await self._store.share_set(await self._connected(), project_id, float(weight))

    async def shares(self) -> builtins.list[dict[str, Any]]:
        """Return the projects with another weight than 1."""
        return [dict(row) for row in await self._store.shares_list(await self._connected())]

    async def put_schedule(self, name: str, cron: str, kind: str, payload: Any = None, **columns: Any) -> None:
        """
        Make a schedule, or change it to exactly this: a run of `kind` at each time of `cron` in `timezone` (UTC).

        `missed` says what becomes of times at which nobody led: skip (also those more than a minute late), once, or all.
        Raises InvalidRun, naming the column.
        """
        new = new_schedule(name, cron, kind, payload, **columns)
        try:
            await self._store.schedule_put(await self._connected(), new)
        except REFUSALS as error:
            raise refused(error) from error

    async def schedules(self, name: str | None = None) -> builtins.list[dict[str, Any]]:
        """All schedules, or the one of this name, each with the `next` times at which it fires."""
        return [schedule_as_dict(row) for row in await self._store.schedules_list(await self._connected(), name)]

    async def pause_schedule(self, name: str, *, paused: bool = True) -> bool:
        """Let a schedule fire no more, or again; what it misses meanwhile is skipped. False if there is none."""
        return await self._store.schedule_pause(await self._connected(), name, paused=paused)

    async def delete_schedule(self, name: str) -> bool:
        """Delete a schedule; False if there was none. Its runs stay."""
        return await self._store.schedule_delete(await self._connected(), name)

    async def wait(self, run_id: UUID | str, timeout: float | None = None) -> dict[str, Any]:  # noqa: ASYNC109 - the contract's name
        """
        Return the run once it is settled. `timeout` in seconds.

        Its settle tells, on a connection that this client opens for it and keeps while somebody waits; a look every 5 s makes
        sure. Raises WaitTimeout, RunNotFound.
        """
        wanted = uuid_of("run_id", run_id)
        try:
            async with asyncio.timeout(timeout):
                run = await self.get(wanted)
                if run["state"] in TERMINAL:
                    return run
                with self._waiting.of(wanted) as wait:
                    while run["state"] not in TERMINAL:
                        await wait.for_a_look()
                        try:
                            run = await self.get(wanted)
                        except DatabaseError as error:
                            if is_refusal(error):
                                raise
                            log.debug("wait_goes_on", run_id=str(wanted), error=brief(error))
                    return run
        except TimeoutError:
            message = f"run {run_id} is not settled after {timeout} s"
            raise WaitTimeout(message) from None
