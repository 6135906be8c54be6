"""The commands that insert, show and steer runs."""

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

from cyclopts import Group, Parameter

from notifyworker.cli import DONE, output
from notifyworker.cli.filters import NO_FILTER, Wanted
from notifyworker.cli.options import NO_DATABASE_OPTIONS, DatabaseOptions, Json
from notifyworker.errors import InvalidRun, RunConflict, RunNotFound

if TYPE_CHECKING:
    from notifyworker.cli.database import Database
    from notifyworker.store import Inserted

_HYPHEN = {"allow_leading_hyphen": True}  # refused for their values, not for their looks
_LONGEST_WAIT_S = 366 * 86400.0
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
_STEPS = (
    output.Column("step", "position", "right"),
    output.Column("name", "name"),
    output.Column("attempt", "attempt", "right", spare=2),
    output.Column("finished", "finished_at", spare=1),
    output.Column("took", "took", "right", spare=3),
    output.Column("result", "shown"),
)
_CHILDREN = (
    output.Column("child", "position", "right"),
    output.Column("run_id", "run_id"),
    output.Column("kind", "kind"),
    output.Column("state", "state"),
    output.Column("settled", "settled_at", spare=1),
    output.Column("error", "error"),
)
RunId = Annotated[str, Parameter(name="ID", help="The run's id.")]
Payload = Annotated[str | None, Parameter(help="JSON in place of its payload; - reads stdin.", **_HYPHEN)]


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
    wait: Annotated[
        bool, Parameter(negative="", help="Wait until it is settled, and print its result in place of its id.")
    ] = False,
    wait_s: Annotated[float | None, Parameter(help="Wait no longer than that, in seconds.", **_HYPHEN)] = None,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> int:
    """
    Insert one run and print its id.

    With --wait the exit code tells the outcome: 0 completed, 1 failed, 5 cancelled, 6 not settled within --wait-s. What
    its handler reports as progress is shown meanwhile. Ctrl-C ends the waiting, and not the run.
    """
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
    if wait_s is not None and not 0 < wait_s <= _LONGEST_WAIT_S:
        raise InvalidRun(field="wait_s", message=f"must be above 0 and at most {_LONGEST_WAIT_S:g}, not {wait_s:g}")
    run_id, became = await insert_run(new, database)
    if wait or wait_s is not None:
        from notifyworker.cli.wait import settled

        return await settled(database, run_id, within_s=wait_s, json=json)
    if json:
        output.document({"run_id": run_id, "existing": became == "existing", "replaced": became == "replaced"})
    else:
        output.line(str(run_id))
    return DONE


async def runs_list(
    *,
    wanted: Wanted = NO_FILTER,
    before: Annotated[str | None, Parameter(help="The page behind this id.")] = None,
    limit: Annotated[int, Parameter(help="1 to 500 [default: 50].", **_HYPHEN)] = 50,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """List runs, newest first."""
    from notifyworker.cli.database import opened
    from notifyworker.given import as_dict
    from notifyworker.views import Views

    if not 1 <= limit <= 500:  # noqa: PLR2004 - as over HTTP
        raise InvalidRun(field="limit", message=f"must be between 1 and 500, not {limit}")
    behind = None if before is None else _uuid(before, "before")
    wanted.check()
    async with opened(database) as db:
        asked = await wanted.as_filter(db)
        rows = await Views(db.schema).runs_find(db.connection, asked, before=behind, limit=limit)
    runs = [as_dict(row) for row in rows]
    if json:
        output.document({"runs": runs})
        return
    output.table(_LIST, [{**run, "attempts": _attempts(run)} for run in runs], empty="no runs")
    if len(runs) == limit and sys.stdout.isatty():
        output.say(f"more: --before {runs[-1]['run_id']}")


async def show(run_id: RunId, /, *, json: Json = False, database: DatabaseOptions = NO_DATABASE_OPTIONS) -> None:
    """Show one run: its columns, what happened to it and when, its errors, steps, children and log."""
    from notifyworker.cli.database import opened
    from notifyworker.cli.timeline import timeline
    from notifyworker.given import as_dict
    from notifyworker.relatives import relatives_of
    from notifyworker.run_log_store import RunLogStore
    from notifyworker.step_store import StepStore

    wanted = _uuid(run_id)
    async with opened(database) as db:
        row = await db.store.run_get(db.connection, wanted)
        if row is None:
            raise RunNotFound(wanted)
        steps = [as_dict(s) for s in await StepStore(db.store).steps_list(db.connection, wanted, row["created_at"])]
        logged = [as_dict(lease) for lease in await RunLogStore(db.store).run_logs_list(db.connection, wanted, row["created_at"])]
        family = await relatives_of(db.store, db.connection, row)
        now = await db.store.clock(db.connection)
    run = as_dict(row)
    if json:
        output.document({**run, "steps": steps, "log": logged, **family})
        return
    shown = {name: value for name, value in run.items() if value not in (None, [], {}) and name != "errors"}
    children = family["children"]
    first = children.pop("first")
    shown |= {f"children.{state}": count for state, count in children.items() if count}
    shown |= {name: family[name] for name in ("parent_id", "event") if family[name]}
    output.blocks(output.Facts(shown), timeline(run, now))
    errors = run["errors"]
    for error in errors if isinstance(errors, list) else [{"message": errors}]:
        output.line("")
        output.fields({f"errors.{name}": value for name, value in error.items() if name != "traceback"})
        if trace := error.get("traceback"):
            for text in str(trace).splitlines():
                output.line("  " + output.printable(text))
    if steps:
        output.line("")
        output.table(_STEPS, [{**step, "took": _took(step), "shown": _step_result(step)} for step in steps])
    if first:
        output.line("")
        output.table(_CHILDREN, first)
    for lease in logged:
        output.line("")
        output.line(f"log of attempt {lease['attempt']}, written {output.moment(lease['written_at'])}")
        for text in _log_lines(lease):
            output.line("  " + output.printable(text))


async def cancel(run_id: RunId, /, *, json: Json = False, database: DatabaseOptions = NO_DATABASE_OPTIONS) -> None:
    """Settle a pending or running run as cancelled."""
    from notifyworker.cli.database import opened

    wanted = _uuid(run_id)
    async with opened(database) as db:
        state = await steered(db, wanted, "cancel")
    _steered_told(wanted, state, json=json)


async def retry(
    run_id: RunId,
    /,
    *,
    from_step: Annotated[
        int | None, Parameter(help="The first step that is executed again [default: all are].", **_HYPHEN)
    ] = None,
    payload: Payload = None,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """Put a settled run back to pending."""
    from notifyworker.cli.database import opened
    from notifyworker.given import check_from_step

    wanted, another = _uuid(run_id), _another(payload)
    check_from_step(from_step)
    async with opened(database) as db:
        await steered(db, wanted, "retry", another, from_step)
    _steered_told(wanted, "pending", json=json)


async def replay(
    run_id: RunId, /, *, payload: Payload = None, json: Json = False, database: DatabaseOptions = NO_DATABASE_OPTIONS
) -> None:
    """Insert a settled run once more, as a run of its own, and print its id. The settled one stays as it is."""
    from notifyworker.cli.database import opened

    wanted, another = _uuid(run_id), _another(payload)
    async with opened(database) as db:
        again = await steered(db, wanted, "replay", another)
    if json:
        output.document({"run_id": again, "replay_of": wanted})
    else:
        output.line(again)


async def insert_run(new: Any, database: DatabaseOptions) -> "Inserted":
    """Insert; what the database refuses is told by the column."""
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


async def steered(
    db: "Database",
    run_id: UUID,
    verb: Literal["cancel", "retry", "replay"],
    payload: str | None = None,
    from_step: int | None = None,
) -> str:
    """Cancel, retry or replay; return the new state, or the id of the run. Raises RunNotFound, RunConflict."""
    from notifyworker.given import Conflicts

    with Conflicts(run_id):
        if verb == "cancel":
            return await db.store.run_cancel(db.connection, run_id)
        if verb == "retry":
            return str(await db.store.run_retry(db.connection, run_id, from_step, payload))
        return str(await db.store.run_replay(db.connection, run_id, payload))


def _steered_told(run_id: UUID, state: str, *, json: bool) -> None:
    if json:
        output.document({"run_id": run_id, "state": state})
    else:
        output.line(state)


def _took(step: Mapping[str, Any]) -> str:
    return output.age((step["finished_at"] - step["started_at"]).total_seconds())


def _step_result(step: Mapping[str, Any]) -> str:
    if step["error"] is not None:
        return f"raised {step['error']}"
    is_left_out = step["result"] is None and step["result_bytes"] is not None
    return f"({step['result_bytes']} bytes)" if is_left_out else output.cell(step["result"])


def _log_lines(lease: Mapping[str, Any]) -> Iterator[str]:
    if lease["cut"]:
        yield f"({lease['cut']} lines before these are not kept)"
    for line in lease["lines"]:
        fields = " ".join(f"{name}={output.cell(value)}" for name, value in line.items() if name not in {"at", "level", "event"})
        yield f"{line['at']} {line['level']:<8} {line['event']}" + (f"  {fields}" if fields else "")
    if lease["lost_after"]:
        yield "(what it logged later is lost: its worker was gone)"


def _attempts(run: Mapping[str, Any]) -> str:
    return f"{run['attempt']}/{run['max_attempts'] or '-'}"


def _another(payload: str | None) -> str | None:
    from notifyworker.given import new_payload

    if payload is None:
        return None
    return new_payload(_json("payload", sys.stdin.buffer.read() if payload == "-" else payload))


def _json(name: str, text: str | bytes) -> Any:
    from notifyworker import payload as payloads

    try:
        return payloads.parse(text)
    except ValueError as error:
        raise InvalidRun(name, str(error).replace("$", name, 1)) from None


def _uuid(text: str, name: str = "run_id") -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise InvalidRun(field=name, message=f"must be a UUID, not {text!r:.100}") from None
