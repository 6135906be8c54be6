"""`notifyworker schedules`: runs that are inserted by the clock."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from notifyworker.cli import output
from notifyworker.cli.options import NO_DATABASE_OPTIONS, DatabaseOptions, Json
from notifyworker.errors import NotifyWorkerError

if TYPE_CHECKING:
    from notifyworker.cli.database import Database

_SCHEDULES = (
    output.Column("name", "name"),
    output.Column("cron", "cron"),
    output.Column("time zone", "timezone", spare=2),
    output.Column("kind", "kind"),
    output.Column("project", "project_id", spare=3),
    output.Column("next", "shown_next"),
    output.Column("state", "state", spare=1),
)


async def schedules_list(*, json: Json = False, database: DatabaseOptions = NO_DATABASE_OPTIONS) -> None:
    """List schedules, and when each fires next."""
    from notifyworker.cli.database import opened

    async with opened(database) as db:
        await _show(db, None, json=json)


async def schedules_put(
    name: str,
    cron: Annotated[str, Parameter(help="Five fields, or six with seconds first.")],
    kind: str,
    payload: str = "{}",
    /,
    *,
    timezone: Annotated[str, Parameter(help="Such as Europe/Berlin [default: UTC].")] = "UTC",
    project_id: Annotated[str | None, Parameter(help="[default: default].")] = None,
    priority: Annotated[int | None, Parameter(help="Of its runs [default: 0].", allow_leading_hyphen=True)] = None,
    max_attempts: Annotated[int | None, Parameter(help="Of its runs.", allow_leading_hyphen=True)] = None,
    timeout: Annotated[  # noqa: ASYNC109 - the column's name
        float | None, Parameter(help="Of one attempt, in seconds.", allow_leading_hyphen=True)
    ] = None,
    missed: Annotated[
        Literal["skip", "once", "all"], Parameter(help="What becomes of times at which no worker led [default: skip].")
    ] = "skip",
    paused: Annotated[bool, Parameter(negative="", help="Make it paused.")] = False,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """Make a schedule, or change it to exactly this."""
    from notifyworker import payload as payloads
    from notifyworker.cli.database import opened
    from notifyworker.errors import InvalidRun
    from notifyworker.given import REFUSALS, new_schedule, refused

    try:
        value = payloads.parse(payload)
    except ValueError as error:
        raise InvalidRun(field="payload", message=str(error).replace("$", "payload", 1)) from None
    new = new_schedule(
        name, cron, kind, value, timezone=timezone, project_id=project_id, priority=priority, max_attempts=max_attempts,
        timeout=timeout, missed=missed, paused=paused,
    )  # fmt: skip
    async with opened(database) as db:
        try:
            await db.store.schedule_put(db.connection, new)
        except REFUSALS as error:
            raise refused(error) from error
        await _show(db, name, json=json)


async def schedules_pause(name: str, /, *, json: Json = False, database: DatabaseOptions = NO_DATABASE_OPTIONS) -> None:
    """Let a schedule fire no more. What it misses meanwhile is skipped."""
    await _pause(name, database, paused=True, json=json)


async def schedules_resume(name: str, /, *, json: Json = False, database: DatabaseOptions = NO_DATABASE_OPTIONS) -> None:
    """Let a schedule fire again."""
    await _pause(name, database, paused=False, json=json)


async def schedules_delete(name: str, /, *, json: Json = False, database: DatabaseOptions = NO_DATABASE_OPTIONS) -> None:
    """Delete a schedule. Its runs stay."""
    from notifyworker.cli.database import opened

    async with opened(database) as db:
        if not await db.store.schedule_delete(db.connection, name):
            raise _unknown(name)
    if json:
        output.document({"name": name, "deleted": True})
    else:
        output.line(f"deleted the schedule {output.printable(name)}")


async def _pause(name: str, database: DatabaseOptions, *, paused: bool, json: bool) -> None:
    from notifyworker.cli.database import opened

    async with opened(database) as db:
        if not await db.store.schedule_pause(db.connection, name, paused=paused):
            raise _unknown(name)
        await _show(db, name, json=json)


def _unknown(name: str) -> NotifyWorkerError:
    return NotifyWorkerError(f"there is no schedule {name!r:.200}", hint="notifyworker schedules list")


async def _show(db: "Database", name: str | None, *, json: bool) -> None:
    from notifyworker.given import schedule_as_dict

    rows: list[dict[str, Any]] = [schedule_as_dict(row) for row in await db.store.schedules_list(db.connection, name)]
    if json:
        output.document({"schedules": rows})
        return
    shown = [{**row, "shown_next": _next(row), "state": _state(row)} for row in rows]
    output.table(_SCHEDULES, shown, title="Schedules")


def _next(row: dict[str, Any]) -> str:
    times: list[datetime] = row["next"]
    return output.moment(times[0]).replace(".000000", "") if times else "-"


def _state(row: dict[str, Any]) -> str:
    if row["error"] is not None:
        return f"does not fire: {row['error']}"
    return "paused" if row["paused"] else "on" if row["next_at"] else "not seen by a leader yet"
