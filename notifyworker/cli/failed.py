"""`notifyworker failed` and `runs replay`: what failed, by what, and once more."""

from typing import Annotated

from cyclopts import Parameter

from notifyworker.cli import output
from notifyworker.cli.many import ErrorCode, FinishedAfter, FinishedBefore, Kind, Project
from notifyworker.cli.options import NO_DATABASE_OPTIONS, DatabaseOptions, Json

_GROUPS = (
    output.Column("runs", "runs", "right"),
    output.Column("kind", "kind"),
    output.Column("code", "error_code"),
    output.Column("error", "error"),
    output.Column("first", "first_at", spare=2),
    output.Column("last", "last_at", spare=1),
    output.Column("the last one", "run_id"),
)


async def failed(
    *,
    kind: Kind = None,
    project_id: Project = None,
    error_code: ErrorCode = None,
    finished_after: FinishedAfter = None,
    finished_before: FinishedBefore = None,
    newest: Annotated[
        int, Parameter(help="Look at so many failed runs at most, the newest [default: 10000].", allow_leading_hyphen=True)
    ] = 10_000,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """List failed runs by kind and error, the most frequent first. `runs show ID` shows one, `runs retry-many` retries them."""
    from notifyworker import bulk, history
    from notifyworker.cli.database import opened
    from notifyworker.given import check_integer

    check_integer("newest", newest, 1, 1_000_000)
    which = history.history_filter(
        kind=kind,
        project_id=project_id,
        error_code=error_code,
        finished_after=finished_after,
        finished_before=finished_before,
    )
    async with opened(database) as db:
        rows = [dict(row) for row in await bulk.failed_groups(db.store, db.connection, which, newest=newest)]
    if json:
        output.document({"failed": rows})
        return
    output.table(_GROUPS, rows, empty="no failed runs")
    if (seen := sum(row["runs"] for row in rows)) >= newest:
        output.say(f"these are the newest {seen:,}; --newest looks at more")
