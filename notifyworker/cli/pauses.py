"""`notifyworker pause`, `resume` and `pauses`: what is not to be claimed."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from notifyworker.cli import output
from notifyworker.cli.options import NO_DATABASE_OPTIONS, DatabaseOptions, Json
from notifyworker.errors import NotifyWorkerError, SettingsError

if TYPE_CHECKING:
    from notifyworker.cli.database import Database

_PAUSES = (
    output.Column("kind", "kind"),
    output.Column("project", "project_id"),
    output.Column("until", "until"),
    output.Column("since", "since", "right"),
    output.Column("reason", "reason", spare=1),
)

Kind = Annotated[str | None, Parameter(help="Which kind; every one where it is left out.")]
Project = Annotated[str | None, Parameter(help="Which project; every one where it is left out.")]
All = Annotated[bool, Parameter(negative="", help="Everything: neither --kind nor --project-id.")]


async def pause(
    *,
    kind: Kind = None,
    project_id: Project = None,
    all: All = False,  # noqa: A002 - the option's name
    until: Annotated[str | None, Parameter(help="RFC 3339; resumed by itself then.")] = None,
    seconds: Annotated[float | None, Parameter(help="In place of --until.", allow_leading_hyphen=True)] = None,
    reason: Annotated[str | None, Parameter(help="Shown with the pause.")] = None,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """Claim none of these runs from now on. What is executed goes on; inserts go on."""
    import asyncpg

    from notifyworker.cli.database import opened
    from notifyworker.given import new_pause, refused

    _check_scope(kind, project_id, everything=all)
    given = new_pause(kind=kind, project_id=project_id, until=until, seconds=seconds, reason=reason)
    async with opened(database) as db:
        try:
            await db.store.pause(db.connection, given)
        except asyncpg.InvalidParameterValueError as error:
            raise refused(error) from error
        await _show(db, json=json)


async def resume(
    *,
    kind: Kind = None,
    project_id: Project = None,
    all: All = False,  # noqa: A002 - the option's name
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """End a pause, named as it was begun."""
    from notifyworker.cli.database import opened
    from notifyworker.given import new_pause

    _check_scope(kind, project_id, everything=all)
    new_pause(kind=kind, project_id=project_id)
    async with opened(database) as db:
        if not await db.store.resume(db.connection, kind, project_id):
            message = "there is no such pause"
            raise NotifyWorkerError(message, hint="notifyworker pauses lists them")
        await _show(db, json=json)


async def pauses(*, json: Json = False, database: DatabaseOptions = NO_DATABASE_OPTIONS) -> None:
    """List what is paused."""
    from notifyworker.cli.database import opened

    async with opened(database) as db:
        await _show(db, json=json)


def _check_scope(kind: str | None, project_id: str | None, *, everything: bool) -> None:
    if everything == (kind is not None or project_id is not None):
        message = "what is meant: --kind, --project-id, both, or --all"
        raise SettingsError(message)


async def _show(db: "Database", *, json: bool) -> None:
    now: datetime = await db.connection.fetchval("SELECT now()")
    rows: list[dict[str, Any]] = [dict(row) for row in await db.store.pauses_list(db.connection)]
    if json:
        output.document({"pauses": rows})
        return
    shown = [
        {
            "kind": row["kind"] or "every kind",
            "project_id": row["project_id"] or "every project",
            "until": "resumed" if row["until"] is None else output.moment(row["until"]),
            "since": output.age((now - row["paused_at"]).total_seconds()),
            "reason": row["reason"] or "",
        }
        for row in rows
    ]
    output.table(_PAUSES, shown, title="Paused")
