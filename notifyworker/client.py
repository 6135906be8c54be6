"""
For producers in Python: enqueue runs, wait for them, cancel and retry them.

Nobody needs this: `INSERT INTO notifyworker.runs (kind, payload) VALUES (...)` is all that a producer does. What it
adds is a clear error, naming the field, before anything is sent.
"""

import asyncio
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import asyncpg

from notifyworker import payload as payloads
from notifyworker.database import DatabaseError, Queryable, connect, explain
from notifyworker.errors import InvalidRun, RunConflict, RunNotFound, SettingsError, WaitTimeout
from notifyworker.pause import Backoff
from notifyworker.run import TERMINAL, State
from notifyworker.settings import Settings
from notifyworker.store import NewRun, Row, Store

_YEARS = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_COLUMNS = frozenset(NewRun.__dataclass_fields__) - {"kind", "payload"}
_JSON_COLUMNS = frozenset({"payload", "headers", "progress", "errors", "result", "effects"})
#: An id that is taken; a key that is too wide for its index, which takes 2,704 bytes.
_INDEXES = {"runs_pkey": "run_id", "runs_idempotency_key": "idempotency_key"}


def new_run(kind: str, payload: Any = None, *, max_payload_bytes: int | None = None, **columns: Any) -> NewRun:
    """Check the producer's columns and encode them. Raises InvalidRun, which names the column."""
    if unknown := sorted(set(columns) - _COLUMNS):
        raise InvalidRun(unknown[0], "there is no such column for a producer", hint=f"there are: {', '.join(sorted(_COLUMNS))}")
    given = {name: value for name, value in columns.items() if value is not None}
    _text("kind", kind, 200)
    _text("project_id", given.get("project_id", "default"), 200)
    _text("idempotency_key", given.get("idempotency_key", "-"), 500)
    _text("concurrency_key", given.get("concurrency_key", "-"), 500)
    _integer("priority", given.get("priority", 0), -32768, 32767)
    _integer("max_attempts", given.get("max_attempts", 1), 1, 32767)
    for name in ("run_at", "expires_at"):
        if name in given:
            given[name] = _moment(name, given[name])
    if "timeout" in given:
        given["timeout"] = _duration("timeout", given["timeout"])
    if not isinstance(given.get("is_shadow", False), bool):
        raise InvalidRun("is_shadow", f"must be true or false, not {given['is_shadow']!r}")
    if "run_id" in given:
        given["run_id"] = _uuid("run_id", given["run_id"])
    headers = given.get("headers", {})
    if not isinstance(headers, Mapping):
        raise InvalidRun("headers", "must be an object")
    given["headers"] = _json("headers", headers)
    text = _json("payload", {} if payload is None else payload)
    if max_payload_bytes is not None and (size := len(text.encode())) > max_payload_bytes:
        raise InvalidRun("payload", f"has {size} bytes, more than max_payload_bytes={max_payload_bytes}", too_large=True)
    return NewRun(kind=kind, payload=text, **given)


def as_dict(row: Row) -> dict[str, Any]:
    """A row of all_runs with its jsonb decoded; what can't be decoded stays text."""
    shown = dict(row)
    for name in _JSON_COLUMNS & shown.keys():
        if shown[name] is not None:
            try:
                shown[name] = payloads.decode(shown[name])
            except ValueError:
                continue  # a poison row is shown as it is, and must not hide the others
    return shown


def refused(error: asyncpg.PostgresError) -> InvalidRun:
    """What the database refused on insert, as the same error that the checks here raise."""
    constraint = error.constraint_name or "run"
    column = error.column_name or _INDEXES.get(constraint) or constraint.partition("_is_")[0].partition("_has_")[0]
    return InvalidRun(column, str(error.args[0]), hint=error.hint, too_large=error.sqlstate == "54000")


#: The database says no to a run's values.
_REFUSALS = (
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.DataError,
    asyncpg.ProgramLimitExceededError,
    asyncpg.FeatureNotSupportedError,
)


class Client:
    """
    A producer's way in. Without `dsn` it is found as a worker finds its own.

    Opens no connection until it needs one; `async with` or `close()` ends those that it opened. With `connection=` a
    call takes part in the caller's own transaction instead.
    """

    def __init__(self, dsn: str | None = None, *, schema: str | None = None) -> None:
        settings = Settings.load(keywords={"dsn": dsn, "schema": schema})
        self._dsn = settings.require_dsn()
        self._listen_dsn = settings.listen_dsn.get_secret_value() if settings.listen_dsn else self._dsn
        self._max_payload_bytes: int | None = None
        self._store = Store(settings.schema_name)
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections that this client opened."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None

    async def enqueue(self, kind: str, payload: Any = None, *, connection: Queryable | None = None, **columns: Any) -> UUID:
        """
        Insert one run and return its id; with an idempotency key that another run holds, that run's id.

        Raises InvalidRun, naming the column.
        """
        new = new_run(kind, payload, **columns)
        return (await self.insert(new, connection=connection))[0]

    async def insert(self, new: NewRun, *, connection: Queryable | None = None) -> tuple[UUID, bool]:
        """As `enqueue`, of a run that was checked; the second value is True if the run was there already."""
        try:
            return await self._store.run_insert(connection or await self._connected(), new)
        except _REFUSALS as error:
            raise refused(error) from error

    async def enqueue_many(
        self, kind: str, payloads: Iterable[Any], *, connection: Queryable | None = None, **columns: Any
    ) -> list[UUID]:
        """Insert a run a payload, in batches of 1,000; return the ids in order. Not one transaction, unless `connection` has one."""
        on = connection or await self._connected()
        ids: list[UUID] = []
        batch: list[NewRun] = []
        for payload in payloads:
            batch.append(new_run(kind, payload, **columns))
            if len(batch) == 1000:  # noqa: PLR2004 - a few round trips, and a bounded statement
                ids += await self._insert_batch(on, batch)
                batch = []
        if batch:
            ids += await self._insert_batch(on, batch)
        return ids

    async def _insert_batch(self, on: Queryable, batch: list[NewRun]) -> list[UUID]:
        try:
            given = await self._store.runs_insert(on, batch)
        except _REFUSALS as error:
            raise refused(error) from error
        return [run_id or (await self.insert(new, connection=on))[0] for run_id, new in zip(given, batch, strict=True)]

    async def get(self, run_id: UUID | str) -> dict[str, Any]:
        """Return one run, live or settled. Raises RunNotFound."""
        wanted = _uuid("run_id", run_id)
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
                _text(name, value, 200)
        _integer("limit", limit, 1, 500)
        before = None if before is None else _uuid("before", before)
        rows = await self._store.runs_list(
            await self._connected(), state=state, kind=kind, project_id=project_id, before=before, limit=limit
        )
        return [as_dict(row) for row in rows]

    async def cancel(self, run_id: UUID | str) -> str:
        """Settle a pending or running run as cancelled. Raises RunNotFound, RunConflict."""
        wanted = _uuid("run_id", run_id)
        with _Conflicts(wanted):
            return await self._store.run_cancel(await self._connected(), wanted)

    async def retry(self, run_id: UUID | str) -> UUID:
        """Put a settled run back to pending. Raises RunNotFound, RunConflict."""
        wanted = _uuid("run_id", run_id)
        with _Conflicts(wanted):
            return await self._store.run_retry(await self._connected(), wanted)

    async def wait(self, run_id: UUID | str, timeout: float | None = None) -> dict[str, Any]:  # noqa: ASYNC109 - the contract's name
        """
        Return the run once it is settled. `timeout` in seconds.

        Looks with growing pauses, at most every second. Raises WaitTimeout, RunNotFound.
        """
        backoff = Backoff(cap_s=1.0)
        try:
            async with asyncio.timeout(timeout):
                while True:
                    run = await self.get(run_id)
                    if run["state"] in TERMINAL:
                        return run
                    await asyncio.sleep(backoff.next_s())
        except TimeoutError:
            message = f"run {run_id} is not settled after {timeout} s"
            raise WaitTimeout(message) from None

    async def _connected(self) -> "_Pool":
        async with self._opening:
            if self._pool is None:
                schema = self._store.schema
                try:
                    self._pool = await asyncpg.create_pool(
                        min_size=1,
                        max_size=4,
                        connect=lambda *_a, **_k: connect(self._dsn, schema=schema, purpose="client"),
                        reset=_keep,
                    )
                except SettingsError:
                    raise
                except DatabaseError as error:
                    raise explain(error, self._dsn) from None
        return _Pool(self._pool)


class _Pool:
    """A Queryable: the client's connections, which are given up where their server was made one that takes no writes."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

    async def fetch(self, query: str, *args: Any, timeout: float | None = None) -> list[asyncpg.Record]:  # noqa: ASYNC109 - asyncpg's own signature
        """Execute and return all rows."""
        try:
            return await self._pool.fetch(query, *args, timeout=timeout)
        except asyncpg.ReadOnlySQLTransactionError:
            await self._pool.expire_connections()
            raise


async def _keep(_connection: Any) -> None:
    """Nothing of ours changes a session, so that a pool has nothing to reset at each release."""


class _Conflicts:
    """The database's answers to cancel and retry, as our own errors."""

    def __init__(self, run_id: UUID) -> None:
        self.run_id = run_id

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: type[BaseException] | None, error: BaseException | None, _at: TracebackType | None) -> None:
        if isinstance(error, asyncpg.NoDataFoundError):
            raise RunNotFound(self.run_id) from error
        if isinstance(error, asyncpg.ProgramLimitExceededError):  # the limit was lowered since
            raise RunConflict(str(error.args[0]), hint=error.hint) from error
        # 55000 itself: below it stands, among others, a lock that could not be had in time.
        if isinstance(error, asyncpg.ObjectNotInPrerequisiteStateError) and error.sqlstate == "55000":
            raise RunConflict(str(error.args[0]), hint=error.hint) from error


def _text(name: str, value: Any, longest: int) -> None:
    if not isinstance(value, str):
        raise InvalidRun(name, f"must be text, not {type(value).__name__}")
    if not 1 <= len(value) <= longest:
        raise InvalidRun(name, f"must have 1 to {longest} characters, not {len(value)}")
    if fault := payloads.find_fault(value):
        raise InvalidRun(name, fault.removeprefix("$ "))


def _integer(name: str, value: Any, lowest: int, highest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise InvalidRun(name, f"must be an integer between {lowest} and {highest}, not {value!r:.100}")


def _moment(name: str, value: Any) -> datetime:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise InvalidRun(name, f"must be an RFC 3339 time such as 2026-01-31T12:00:00Z, not {value!r:.100}") from None
    if not isinstance(value, datetime):
        raise InvalidRun(name, f"must be a time, not {type(value).__name__}")
    if value.tzinfo is None:
        raise InvalidRun(name, "must name its time zone", hint="end it in Z, or give it a tzinfo")
    try:
        within = _YEARS[0] <= value <= _YEARS[1]
    except OverflowError:
        within = False
    if not within:
        raise InvalidRun(name, f"must be between the years 1970 and 9999, not {value.isoformat()}")
    return value


def _duration(name: str, value: Any) -> timedelta:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            value = timedelta(seconds=value)
        except (OverflowError, ValueError):
            raise InvalidRun(name, f"must be above 0 and at most 365 days, not {value!r} s") from None
    if not isinstance(value, timedelta):
        raise InvalidRun(name, "must be seconds or a timedelta")
    if not timedelta(0) < value <= timedelta(days=365):
        raise InvalidRun(name, f"must be above 0 and at most 365 days, not {value.total_seconds():g} s")
    return value


def _uuid(name: str, value: Any) -> UUID:
    if isinstance(value, UUID):
        return value
    try:
        return UUID(str(value))
    except ValueError:
        raise InvalidRun(name, f"must be a UUID, not {value!r:.100}") from None


def _json(name: str, value: Any) -> str:
    try:
        return payloads.encode(value)
    except payloads.Unencodable as error:
        raise InvalidRun(name, str(error).replace("$", name, 1)) from None
