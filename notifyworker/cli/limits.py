"""`notifyworker limits`: how many runs are executed at once, and how many begin in a time."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from notifyworker.cli import output
from notifyworker.cli.options import NO_DATABASE_OPTIONS, DatabaseOptions, Json
from notifyworker.errors import NotifyWorkerError

if TYPE_CHECKING:
    from notifyworker.cli.database import Database

_HYPHEN = {"allow_leading_hyphen": True}  # refused for their values, not for their looks
_LIMITS = (
    output.Column("kind", "kind"),
    output.Column("project", "project_id"),
    output.Column("per", "per"),
    output.Column("running", "running", "right"),
    output.Column("at most", "max_running", "right"),
    output.Column("rate", "shown_rate"),
    output.Column("burst", "burst", "right", spare=1),
)

Kind = Annotated[str | None, Parameter(help="Which kind; every one where it is left out.")]
Project = Annotated[str | None, Parameter(help="Which project; every one where it is left out.")]
Per = Annotated[
    Literal["all", "project", "key"],
    Parameter(help="Counts all of these together, each project's, or each concurrency key's [default: all]."),
]


async def limits_list(*, json: Json = False, database: DatabaseOptions = NO_DATABASE_OPTIONS) -> None:
    """List limits, and how many places of each are taken now."""
    from notifyworker.cli.database import opened

    async with opened(database) as db:
        await _show(db, json=json)


async def limits_set(
    *,
    kind: Kind = None,
    project_id: Project = None,
    per: Per = "all",
    max_running: Annotated[int | None, Parameter(help="So many at once; 0: none. Of a key 1 to 1000.", **_HYPHEN)] = None,
    rate: Annotated[int | None, Parameter(help="So many begin in --per-s seconds.", **_HYPHEN)] = None,
    per_s: Annotated[float | None, Parameter(help="[default: 1].", **_HYPHEN)] = None,
    burst: Annotated[int | None, Parameter(help="So many at once after a pause [default: a second's worth].", **_HYPHEN)] = None,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """Make a limit, or change it to exactly this. What is executed goes on, and counts."""
    from notifyworker.cli.database import opened
    from notifyworker.given import REFUSALS, new_limit, refused

    new = new_limit(kind=kind, project_id=project_id, per=per, max_running=max_running, rate=rate, per_s=per_s, burst=burst)
    async with opened(database) as db:
        try:
            await db.store.limit_set(db.connection, new)
        except REFUSALS as error:
            raise refused(error) from error
        await _show(db, json=json)


async def limits_remove(
    *,
    kind: Kind = None,
    project_id: Project = None,
    per: Per = "all",
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """End a limit, named as it was made."""
    from notifyworker.cli.database import opened
    from notifyworker.given import limit_scope

    limit_scope(kind=kind, project_id=project_id, per=per)
    async with opened(database) as db:
        if not await db.store.limit_remove(db.connection, kind, project_id, per):
            message = "there is no such limit"
            raise NotifyWorkerError(message, hint="notifyworker limits list")
        await _show(db, json=json)


async def _show(db: "Database", *, json: bool) -> None:
    rows: list[dict[str, Any]] = [dict(row) for row in await db.store.limits_list(db.connection)]
    if json:
        output.document({"limits": rows})
        return
    shown = [
        {
            **row,
            "kind": row["kind"] or "every kind",
            "project_id": row["project_id"] or "every project",
            "shown_rate": None if row["rate"] is None else f"{row['rate']} in {row['per_s']:g} s",
        }
        for row in rows
    ]
    output.table(_LIMITS, shown, title="Limits")
