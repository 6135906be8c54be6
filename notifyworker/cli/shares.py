"""`notifyworker shares`: what part of the slots a project gets."""

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from notifyworker.cli import output
from notifyworker.cli.options import NO_DATABASE_OPTIONS, DatabaseOptions, Json

if TYPE_CHECKING:
    from notifyworker.cli.database import Database

_SHARES = (
    output.Column("project", "project_id", spare=1),
    output.Column("weight", "weight", "right"),
    output.Column("running", "running", "right"),
)


async def shares_list(*, json: Json = False, database: DatabaseOptions = NO_DATABASE_OPTIONS) -> None:
    """List the projects with another weight than 1, which is what each has."""
    from notifyworker.cli.database import opened

    async with opened(database) as db:
        await _show(db, json=json)


async def shares_set(
    project_id: Annotated[str, Parameter(help="Which project.")],
    weight: Annotated[
        float, Parameter(help="2 gets twice as many slots as 1; 1 takes the share back.", allow_leading_hyphen=True)
    ],
    /,
    *,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """Give a project this part of the slots while several have something ready."""
    from notifyworker.cli.database import opened
    from notifyworker.given import check_share

    check_share(project_id, weight)
    async with opened(database) as db:
        await db.store.share_set(db.connection, project_id, weight)
        await _show(db, json=json)


async def _show(db: "Database", *, json: bool) -> None:
    rows = [dict(row) for row in await db.store.shares_list(db.connection)]
    if json:
        output.document({"shares": rows})
        return
    output.table(_SHARES, [{**row, "weight": f"{row['weight']:g}"} for row in rows], title="Shares")
