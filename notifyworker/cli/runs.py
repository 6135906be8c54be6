"""The commands that insert, show and steer runs."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

from cyclopts import Group, Parameter

from notifyworker.cli import output
from notifyworker.cli.options import NO_DATABASE_OPTIONS, DatabaseOptions, Json
from notifyworker.errors import InvalidRun, RunConflict, RunNotFound

if TYPE_CHECKING:
    from notifyworker.cli.database import Database
    from notifyworker.store import Inserted

_HYPHEN = {"allow_leading_hyphen": True}  # refused for their values, not for their looks
_COLUMNS = Group("The run", sort_key=10)
_LIST = (
    output.Column("run_id", "run_id"),
    output.Column("kind", "kind"),
    output.Column("project", "project_id", spare=3),
    output.Column("state", "state"),
    output.Column("attempt", "attempts", "right", spare=2),
    output.Column("created", "created_at", spare=1),
    output.Column("started", "started_at", spare=5),
    output.Column("finished", "finished_at", spare=4),
    output.Column("error", "error_code"),
)
RunId = Annotated[str, Parameter(name="ID", help="The run's id.")]


async def enqueue(
    kind: Annotated[str, Parameter(name="KIND", help="Which handler.")],
    payload: Annotated[str, Parameter(name="JSON", help="The handler's input; - reads stdin.", **_HYPHEN)] = "{}",
    /,
    *,
    project_id: Annotated[str | None, Parameter(help="Tenant [default: default].", group=_COLUMNS)] = None,
    priority: Annotated[int | None, Parameter(help="Higher runs first [default: 0].", group=_COLUMNS, **_HYPHEN)] = None,
    run_at: Annotated[
        str | None, Parameter(help="Not before; RFC 3339, such as 2026-01-31T12:00:00Z.", group=_COLUMNS, **_HYPHEN)
    ] = None,
    max_attempts: Annotated[int | None, Parameter(help="[default: the handler's].", group=_COLUMNS, **_HYPHEN)] = None,
    timeout: Annotated[  # noqa: ASYNC109 - a column
        float | None, Parameter(help="Of one attempt, in seconds.", group=_COLUMNS, **_HYPHEN)
    ] = None,
    expires_at: Annotated[str | None, Parameter(help="Not started later than this.", group=_COLUMNS, **_HYPHEN)] = None,
    idempotency_key: Annotated[
        str | None, Parameter(help="One live run a key; the id of the run that has it is printed.", group=_COLUMNS, **_HYPHEN)
    ] = None,
    debounce: Annotated[
        float | None, Parameter(help="Seconds: a pending run of the key takes this, and is due then.", group=_COLUMNS, **_HYPHEN)
    ] = None,
    debounce_at_most: Annotated[
        float | None, Parameter(help="Seconds after its first enqueue: due at the latest.", group=_COLUMNS, **_HYPHEN)
    ] = None,
    throttle: Annotated[
        float | None, Parameter(help="Seconds from the first run of the key on: no other.", group=_COLUMNS, **_HYPHEN)
    ] = None,
    concurrency_key: Annotated[
        str | None, Parameter(help="Runs of a project with the same key never run side by side.", group=_COLUMNS, **_HYPHEN)
    ] = None,
    shadow: Annotated[bool, Parameter(help="Execute without effects.", negative="", group=_COLUMNS)] = False,
    headers: Annotated[
        str | None, Parameter(help="A JSON object: trace context and your own.", group=_COLUMNS, **_HYPHEN)
    ] = None,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """Insert one run and print its id."""
    from notifyworker.given import new_run

    new = new_run(
        kind,
        _json("payload", sys.stdin.buffer.read() if payload == "-" else payload),
        project_id=project_id,
        priority=priority,
        run_at=run_at,
        max_attempts=max_attempts,
        timeout=timeout,
        expires_at=expires_at,
        idempotency_key=idempotency_key,
        debounce=debounce,
        debounce_at_most=debounce_at_most,
        throttle=throttle,
        concurrency_key=concurrency_key,
        is_shadow=shadow,
        headers=None if headers is None else _json("headers", headers),
    )
    run_id, became = await _insert(new, database)
    if json:
        output.document({"run_id": run_id, "existing": became == "existing", "replaced": became == "replaced"})
    else:
        output.line(str(run_id))


async def runs_list(
    *,
    state: Annotated[Literal["pending", "running", "completed", "failed", "cancelled"] | None, Parameter()] = None,
    kind: str | None = None,
    project_id: str | None = None,
    limit: Annotated[int, Parameter(help="1 to 500 [default: 50].", **_HYPHEN)] = 50,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """List runs, newest first."""
    from notifyworker.cli.database import opened
    from notifyworker.given import as_dict

    if not 1 <= limit <= 500:  # noqa: PLR2004 - as over HTTP
        raise InvalidRun(field="limit", message=f"must be between 1 and 500, not {limit}")
    async with opened(database) as db:
        rows = await db.store.runs_list(db.connection, state=state, kind=kind, project_id=project_id, limit=limit)
    runs = [as_dict(row) for row in rows]
    if json:
        output.document({"runs": runs})
    else:
        output.table(_LIST, [{**run, "attempts": _attempts(run)} for run in runs], empty="no runs")


async def show(run_id: RunId, /, *, json: Json = False, database: DatabaseOptions = NO_DATABASE_OPTIONS) -> None:
    """Show one run, with its errors and progress."""
    from notifyworker.cli.database import opened
    from notifyworker.given import as_dict

    wanted = _uuid(run_id)
    async with opened(database) as db:
        row = await db.store.run_get(db.connection, wanted)
    if row is None:
        raise RunNotFound(wanted)
    run = as_dict(row)
    if json:
        output.document(run)
        return
    errors = run.pop("errors")
    output.fields({name: value for name, value in run.items() if value not in (None, [], {})})
    for error in errors if isinstance(errors, list) else [{"message": errors}]:
        output.line("")
        output.fields({f"errors.{name}": value for name, value in error.items() if name != "traceback"})
        if trace := error.get("traceback"):
            for text in str(trace).splitlines():
                output.line("  " + output.printable(text))


async def cancel(run_id: RunId, /, *, json: Json = False, database: DatabaseOptions = NO_DATABASE_OPTIONS) -> None:
    """Settle a pending or running run as cancelled."""
    from notifyworker.cli.database import opened

    wanted = _uuid(run_id)
    async with opened(database) as db:
        state = await _steered(db, wanted, "cancel")
    _steered_told(wanted, state, json=json)


async def retry(run_id: RunId, /, *, json: Json = False, database: DatabaseOptions = NO_DATABASE_OPTIONS) -> None:
    """Put a settled run back to pending."""
    from notifyworker.cli.database import opened

    wanted = _uuid(run_id)
    async with opened(database) as db:
        await _steered(db, wanted, "retry")
    _steered_told(wanted, "pending", json=json)


async def _insert(new: Any, database: DatabaseOptions) -> "Inserted":
    import asyncpg

    from notifyworker.cli.database import opened
    from notifyworker.given import refused

    async with opened(database, check=False) as db:
        try:
            return await db.store.run_insert(db.connection, new)
        except asyncpg.UniqueViolationError as error:
            raise RunConflict(str(error.args[0]), hint=error.detail) from None
        except (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError, asyncpg.ProgramLimitExceededError) as error:
            raise refused(error) from None


async def _steered(db: "Database", run_id: UUID, verb: Literal["cancel", "retry"]) -> str:
    import asyncpg

    call = db.store.run_cancel if verb == "cancel" else db.store.run_retry
    try:
        return str(await call(db.connection, run_id))
    except asyncpg.NoDataFoundError:
        raise RunNotFound(run_id) from None
    except asyncpg.ObjectNotInPrerequisiteStateError as error:
        raise RunConflict(str(error.args[0]), hint=error.hint) from None


def _steered_told(run_id: UUID, state: str, *, json: bool) -> None:
    if json:
        output.document({"run_id": run_id, "state": state})
    else:
        output.line(state)


def _attempts(run: Mapping[str, Any]) -> str:
    return f"{run['attempt']}/{run['max_attempts'] or '-'}"


def _json(name: str, text: str | bytes) -> Any:
    from notifyworker import payload as payloads

    try:
        return payloads.parse(text)
    except ValueError as error:
        raise InvalidRun(name, str(error).replace("$", name, 1)) from None


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise InvalidRun(field="run_id", message=f"must be a UUID, not {text!r:.100}") from None
