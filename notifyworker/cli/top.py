"""`notifyworker top`: kind by kind, what waits, what runs, and how it went lately."""

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from notifyworker.cli import output
from notifyworker.cli.options import INTERVAL_S, NO_DATABASE_OPTIONS, DatabaseOptions, Interval, Json
from notifyworker.errors import SettingsError

if TYPE_CHECKING:
    from notifyworker.cli.database import Database

_KINDS = (
    output.Column("kind", "kind"),
    output.Column("ready", "ready", "right"),
    output.Column("oldest", "oldest", "right", spare=1),
    output.Column("later", "later", "right", spare=3),
    output.Column("running", "running", "right"),
    output.Column("done/s", "per_s", "right"),
    output.Column("completed", "completed", "right", spare=6),
    output.Column("failed", "failed", "right"),
    output.Column("cancelled", "cancelled", "right", spare=7),
    output.Column("wait p95", "wait", "right", spare=2),
    output.Column("took p50", "took_p50", "right", spare=5),
    output.Column("took p95", "took_p95", "right", spare=4),
)


async def top(
    *,
    once: Annotated[bool, Parameter(negative="", help="Look once, and end.")] = False,
    window_s: Annotated[float, Parameter(help="Seconds that what was settled is counted over [default: 60].")] = 60.0,
    interval_s: Interval = INTERVAL_S,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """
    Show kinds as they go, until Ctrl-C: what waits and runs, and what was settled in the last minute.

    The wait is from when a run was due until its last attempt was started. With --json one document a line, or with
    --once one document.
    """
    from notifyworker.cli.live import shown

    if not 1 <= window_s <= 86400:  # noqa: PLR2004 - a day
        message = f"--window-s must be between 1 and 86400, not {window_s:g}"
        raise SettingsError(message)

    async def look(db: "Database") -> dict[str, Any]:
        from notifyworker.views import SEARCHED, Views

        rows = [dict(row) for row in await Views(db.schema).kinds_list(db.connection, window_s=window_s)]
        live = sum(row["ready"] + row["later"] + row["running"] for row in rows)
        settled = sum(row["completed"] + row["failed"] + row["cancelled"] for row in rows)
        return {
            "now": await db.connection.fetchval("SELECT now()"),
            "window_s": window_s,
            "kinds": rows,
            "is_capped": live >= SEARCHED or settled >= SEARCHED,
        }

    await shown(database, look, _blocks, title="notifyworker top", watch=not once, interval_s=interval_s, json=json)


def _blocks(seen: dict[str, Any]) -> list[output.Block]:
    kinds = [
        {
            **row,
            "oldest": output.age(row["oldest_s"]),
            "per_s": f"{(row['completed'] + row['failed'] + row['cancelled']) / seen['window_s']:.3g}",
            "wait": output.age(row["wait_p95_s"]),
            "took_p50": output.age(row["took_p50_s"]),
            "took_p95": output.age(row["took_p95_s"]),
        }
        for row in seen["kinds"]
    ]
    most = " (counted up to 100,000 live and settled runs)" if seen["is_capped"] else ""
    title = f"Kinds; settled in the last {output.age(seen['window_s'])}{most}"
    return [output.Table(_KINDS, kinds, title=title, empty="nothing waits, runs or was settled")]
