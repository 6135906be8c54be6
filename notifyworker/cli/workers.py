"""`notifyworker workers`: the fleet, and who of it is to claim nothing more."""

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from notifyworker.cli import output
from notifyworker.cli.options import NO_DATABASE_OPTIONS, DatabaseOptions, Json
from notifyworker.errors import NotifyWorkerError, SettingsError

if TYPE_CHECKING:
    from notifyworker.cli.database import Database

_WORKERS = (
    output.Column("worker", "lease_owner", spare=1),
    output.Column("version", "version"),
    output.Column("state", "shown_state"),
    output.Column("slots", "slots", "right"),
)


async def workers_list(*, json: Json = False, database: DatabaseOptions = NO_DATABASE_OPTIONS) -> None:
    """List the fleet."""
    from notifyworker.cli.database import opened

    async with opened(database) as db:
        await _show(db, json=json)


async def workers_drain(
    worker: Annotated[str | None, Parameter(help="Its name, as `workers list` shows it.")] = None,
    /,
    *,
    host: Annotated[str | None, Parameter(help="In its place: all workers of a host.")] = None,
    undo: Annotated[bool, Parameter(negative="", help="Let it claim again.")] = False,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """Let a worker claim nothing more and finish what it runs. It goes on until it is stopped, or this is undone."""
    from notifyworker.cli.database import opened

    if (worker is None) == (host is None):
        message = "which worker: its name, or --host"
        raise SettingsError(message)
    async with opened(database) as db:
        there = [row for row in await db.store.workers_list(db.connection) if worker == row["lease_owner"] or host == row["host"]]
        asked = [await db.store.worker_drain(db.connection, row["lease_owner"], undo=undo) for row in there]
        if not any(asked):
            message = f"there is no worker {worker}" if host is None else f"there is no worker on {host}"
            raise NotifyWorkerError(message, hint="notifyworker workers list")
        await _show(db, json=json)


async def _show(db: "Database", *, json: bool) -> None:
    rows: list[dict[str, Any]] = [dict(row) for row in await db.store.workers_list(db.connection)]
    if json:
        output.document({"workers": rows})
        return
    shown = [{**row, "slots": f"{row['running']}/{row['concurrency']}", "shown_state": _state(row)} for row in rows]
    output.table(_WORKERS, shown, title="Workers")


def _state(row: dict[str, Any]) -> str:
    if row["drain_asked"] and row["state"] != "draining":
        return "asked to drain"
    return str(row["state"])
