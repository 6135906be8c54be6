"""
Insert many runs: by COPY, batch by batch, so that neither the runs nor what they are read from is held in memory.

Runs with an idempotency key go by an INSERT instead, since COPY knows no ON CONFLICT: where a key is taken, that is no
error, and the id is that of the run which holds it. So do all of them where projects are separated.
"""

import contextlib
import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID

import asyncpg

from notifyworker.database import Connection
from notifyworker.errors import InvalidRun
from notifyworker.given import REFUSALS, new_run, refused
from notifyworker.store import NewRun, Store

_BATCH_ROWS = 2000
_BATCH_CHARACTERS = 8 * 2**20
_DEADLINE_S = 60.0
_PACES = ("debounce", "debounce_at_most", "throttle")
_COLUMNS = tuple(name for name in NewRun.__dataclass_fields__ if name not in _PACES)
_LINE = re.compile(r"COPY \S+, line (\d+)")
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


@dataclass(frozen=True, slots=True)
class Enqueued:
    """How many runs were inserted, and of how many another run held the idempotency key."""

    inserted: int = 0
    existing: int = 0


async def checked(rows: Iterable[Any] | AsyncIterable[Any], make: Callable[[Any], NewRun]) -> AsyncIterator[NewRun]:
    """Make a run of each row. Raises InvalidRun, which names the row by its place, from 1, and the field."""
    places = count(1)
    async for row in _each(rows):
        place = next(places)
        try:
            run = _unpaced(make(row))
        except InvalidRun as error:
            raise error.at(place) from None
        yield run


def _unpaced(run: NewRun) -> NewRun:
    if paced := [name for name in _PACES if getattr(run, name) is not None]:
        raise InvalidRun(paced[0], "is not for many at once", hint="enqueue them singly")
    return run


def run_of(row: Any) -> NewRun:
    """Make a run of a mapping of a producer's columns, `kind` among them. Raises InvalidRun."""
    if not isinstance(row, Mapping):
        raise InvalidRun("row", f"must be an object with a kind, not {type(row).__name__}")
    if "kind" not in row:
        raise InvalidRun("kind", "is required")
    columns = {str(name): value for name, value in row.items()}
    return new_run(columns.pop("kind"), columns.pop("payload", None), **columns)


async def pour(
    store: Store,
    connection: Connection,
    runs: AsyncIterable[NewRun],
    *,
    in_batches: bool = False,
    took: Callable[[list[UUID], int], None],
) -> None:
    """
    Insert all of them in one transaction; `in_batches`: in one a batch, so that what was done stays done.

    `took` is called after each batch with the ids in order, and how many of them were there already. Raises InvalidRun,
    which names the row by its place, from 1.
    """
    async with contextlib.AsyncExitStack() as whole:
        if not in_batches:
            await whole.enter_async_context(connection.transaction())
        may_copy = (await connection.fetch(store.sql("may_copy"), timeout=_DEADLINE_S))[0]["may_copy"]
        done = 0
        async for batch in _batched(runs):
            ids, existing = await _inserted(store, connection, batch, done, may_copy=may_copy)
            done += len(batch)
            took(ids, existing)


async def _each(rows: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(rows, AsyncIterable):
        async for row in rows:
            yield row
    else:
        for row in rows:
            yield row


async def _batched(runs: AsyncIterable[NewRun]) -> AsyncIterator[list[NewRun]]:
    batch: list[NewRun] = []
    size = 0
    async for run in runs:
        batch.append(run)
        size += len(run.payload) + len(run.headers)
        if len(batch) >= _BATCH_ROWS or size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


async def _inserted(
    store: Store, connection: Connection, batch: list[NewRun], before: int, *, may_copy: bool
) -> tuple[list[UUID], int]:
    plain = [n for n, run in enumerate(batch) if run.idempotency_key is None and may_copy]
    others = [n for n, run in enumerate(batch) if run.idempotency_key is not None or not may_copy]
    ids: dict[int, UUID] = {}
    existing = 0
    # Of COPY's ids and times the default of run_at is asked for: it is that of a transaction.
    async with connection.transaction():
        if plain:
            try:
                copied = await _copy(store, connection, [batch[n] for n in plain])
            except REFUSALS as error:
                found = _LINE.search(error.context or "")
                raise _told(error, before + plain[int(found[1]) - 1] if found else None) from error
            ids.update(zip(plain, copied, strict=True))
        if others:
            given, existing = await _insert(store, connection, batch, others, before)
            ids.update(zip(others, given, strict=True))
    return [ids[n] for n in range(len(batch))], existing


async def _copy(store: Store, connection: Connection, batch: Sequence[NewRun]) -> list[UUID]:
    """As text and not as asyncpg's records: what codecs a connection of the user's has is no matter then."""
    fresh = await connection.fetch(store.sql("fresh_ids"), len(batch), timeout=_DEADLINE_S)
    ids = [run.run_id or UUID(row["run_id"]) for run, row in zip(batch, fresh, strict=True)]
    run_at = str(fresh[0]["run_at"])
    lines = "".join(_line(run, run_id, run_at) for run, run_id in zip(batch, ids, strict=True))

    async def source() -> AsyncIterator[bytes]:
        yield lines.encode()

    await connection.copy_to_table(
        "runs", schema_name=store.schema, columns=_COLUMNS, source=source(), format="text", timeout=_DEADLINE_S
    )
    return ids


def _line(run: NewRun, run_id: UUID, run_at: str) -> str:
    values = (getattr(run, name) for name in _COLUMNS[:-1])  # run_id is the last
    cells = [_cell(value) for value in values]
    if run.run_at is None:
        cells[_RUN_AT] = run_at
    return "\t".join(cells) + f"\t{run_id}\n"


_RUN_AT = _COLUMNS.index("run_at")


def _cell(value: Any) -> str:
    if value is None:
        return "\\N"
    if isinstance(value, str):
        return value.translate(_ESCAPES)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return f"{value.days} days {value.seconds} seconds {value.microseconds} microseconds"
    return str(value)


async def _insert(
    store: Store, connection: Connection, batch: Sequence[NewRun], which: Sequence[int], before: int
) -> tuple[list[UUID], int]:
    wanted = [batch[n] for n in which]
    try:
        async with connection.transaction():
            given = await store.runs_insert(connection, wanted)
    except REFUSALS as error:
        raise _told(error, before + which[await _place_of_refusal(store, connection, wanted)]) from error
    ids: list[UUID] = []
    for n, (run_id, _) in zip(which, given, strict=True):
        # None: the key's holder is another row of these, which is there by now; or the id is taken, which this will tell.
        try:
            ids.append(run_id or (await store.run_insert(connection, batch[n]))[0])
        except REFUSALS as error:
            raise _told(error, before + n) from error
    return ids, sum(existing for _, existing in given)


async def _place_of_refusal(store: Store, connection: Connection, runs: Sequence[NewRun]) -> int:
    """Find the row for which the statement was refused, by halves: an INSERT does not name it."""
    first, size = 0, len(runs)
    while size > 1:
        half = size // 2
        trial = connection.transaction()
        await trial.start()
        try:
            await store.runs_insert(connection, runs[first : first + half])
        except REFUSALS:
            size = half
        else:
            first, size = first + half, size - half
        finally:
            await trial.rollback()
    return first


def _told(error: asyncpg.PostgresError, index: int | None) -> InvalidRun:
    told = refused(error)
    return told if index is None else told.at(index + 1)
