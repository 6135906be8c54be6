"""What a client does with many runs at once, and with settled ones: see docs/bulk.md, docs/failed.md and docs/history.md."""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any
from uuid import UUID, uuid5

from notifyworker import bulk, history, inserting
from notifyworker.acting import effect
from notifyworker.bulk import Tally, Verb
from notifyworker.connected import Connected
from notifyworker.database import Queryable
from notifyworker.given import Conflicts, as_dict, check_integer, new_payload, new_run, uuid_of
from notifyworker.inserting import Enqueued
from notifyworker.trace import sending


def _pretend_many(made_up: UUID, kind: str, payloads: Any, **_columns: Any) -> list[UUID]:
    """An id for each payload; those that come one after the other, asynchronously, are not read."""
    return [uuid5(made_up, f"{kind} {place}") for place, _ in enumerate(payloads)] if isinstance(payloads, Iterable) else []


class Many(Connected):
    """The part of Client that deals with many runs, and with settled ones."""

    @effect("enqueue_many", _pretend_many)
    async def enqueue_many(
        self,
        kind: str,
        payloads: Iterable[Any] | AsyncIterable[Any],
        *,
        connection: Queryable | None = None,
        in_batches: bool = False,
        told: Callable[[int], None] = lambda _so_far: None,
        **columns: Any,
    ) -> list[UUID]:
        """
        Insert a run a payload, by COPY, and return the ids in order; of a run whose idempotency key is taken, its holder's.

        In one transaction, or one every 2,000 runs (`in_batches`): then what went before a refusal or an interruption
        stays. `told` is called after each with the number of runs so far. `payloads` are read as they are inserted, and
        not held. Raises InvalidRun, naming `row`, from 1, and field.
        """
        ids: list[UUID] = []

        def took(given: list[UUID], _existing: int) -> None:
            ids.extend(given)
            told(len(ids))

        with sending(kind, columns.get("headers")) as (headers, sent):
            columns |= {"headers": headers}
            runs = inserting.checked(payloads, lambda payload: new_run(kind, payload, **columns))
            async with self._one(connection) as one:
                await inserting.pour(self._store, one, runs, in_batches=in_batches, took=took)
            sent.as_batch(len(ids))
        return ids

    @effect("enqueue_rows", lambda *_a, **_k: Enqueued())
    async def enqueue_rows(
        self,
        rows: Iterable[Any] | AsyncIterable[Any],
        *,
        connection: Queryable | None = None,
        in_batches: bool = False,
        told: Callable[[Enqueued], None] = lambda _so_far: None,
    ) -> Enqueued:
        """
        Insert a run a mapping of a producer's columns, `kind` among them; as `enqueue_many`, but for the ids, which it forgets.

        So it takes as many runs as there are, in the memory of 2,000.
        """
        so_far = Enqueued()

        def took(ids: list[UUID], existing: int) -> None:
            nonlocal so_far
            so_far = Enqueued(so_far.inserted + len(ids) - existing, so_far.existing + existing)
            told(so_far)

        async with self._one(connection) as one:
            await inserting.pour(self._store, one, inserting.checked(rows, inserting.run_of), in_batches=in_batches, took=took)
        return so_far

    @effect("cancel_many", lambda *_a, **_k: Tally())
    async def cancel_many(
        self,
        *,
        everything: bool = False,
        dry_run: bool = False,
        told: Callable[[Tally], None] = lambda _so_far: None,
        **which: Any,
    ) -> Tally:
        """
        Cancel all live runs that fit: `kind`, `project_id`, `state`, `created_after`, `created_before` (now, by default).

        In batches, each a transaction: stopped half-way, the next call goes on. `dry_run` only counts: see `remaining`.
        Raises InvalidRun, naming the filter.
        """
        return await self._steer("cancel", which, everything=everything, dry_run=dry_run, told=told)

    @effect("retry_many", lambda *_a, **_k: Tally())
    async def retry_many(
        self,
        *,
        everything: bool = False,
        dry_run: bool = False,
        told: Callable[[Tally], None] = lambda _so_far: None,
        **which: Any,
    ) -> Tally:
        """
        Put all settled runs that fit back to pending: `kind`, `project_id`, `state` (failed, by default), `error_code`,
        `error` as `failed` shows it, `finished_after`, `finished_before` (now, by default). Otherwise as `cancel_many`.
        """
        return await self._steer("retry", which, everything=everything, dry_run=dry_run, told=told)

    async def _steer(
        self, verb: Verb, given: dict[str, Any], *, everything: bool, dry_run: bool, told: Callable[[Tally], None]
    ) -> Tally:
        which = bulk.new_filter(verb, given, everything=everything)
        on = await self._connected()
        if dry_run:
            return Tally(remaining=await bulk.matching(self._store, on, verb, which))
        return await bulk.steer(self._store, on, verb, which, told=told)

    async def failed(self, *, newest: int = 10_000, **which: Any) -> list[dict[str, Any]]:
        """
        Failed runs by `kind`, `error_code` and `error`, the most frequent first: how many, when first and last, and the last.

        Of the `newest` so many that fit `kind`, `project_id`, `error_code`, `finished_after` and `finished_before`.
        """
        check_integer("newest", newest, 1, 1_000_000)
        rows = await bulk.failed_groups(self._store, await self._connected(), history.history_filter(**which), newest=newest)
        return [dict(row) for row in rows]

    @effect("replay", lambda made_up, *_a, **_k: made_up)
    async def replay(self, run_id: UUID | str, payload: Any = None) -> UUID:
        """
        Insert a settled run once more, as a run of its own, whose `replay_of` names it; with another payload if one is given.

        The settled run stays as it is. The new one has no idempotency key. Raises RunNotFound, RunConflict, InvalidRun.
        """
        wanted = uuid_of("run_id", run_id)
        with Conflicts(wanted):
            another = None if payload is None else new_payload(payload)
            return await self._store.run_replay(await self._connected(), wanted, another)

    @effect("set_retention", lambda *_a, **_k: None)
    async def set_retention(self, days: int | None, *, kind: str | None = None, project_id: str | None = None) -> None:
        """Keep settled runs of a kind, a project or a kind of a project for so many days; None: as long as all others."""
        await history.retention_set(self._store, await self._connected(), days, kind, project_id)

    async def retention(self) -> list[dict[str, Any]]:
        """What kinds and projects have a retention of their own; None as kind or project_id: every one."""
        return [dict(row) for row in await history.retention_list(self._store, await self._connected())]

    async def history(self, **which: Any) -> AsyncIterator[dict[str, Any]]:
        """
        Read settled runs as they are now, the oldest days first, in flat memory.

        Those that fit `kind`, `project_id`, `state`, `error_code`, `finished_after`, `finished_before`. Leave it by
        `aclose()` if you don't read to the end: it holds a transaction.
        """
        wanted = history.history_filter(**which)
        async with self._one() as connection:
            async for rows in history.read(self._store, connection, wanted):
                for row in rows:
                    yield as_dict(row)
