"""`notifyworker status`: the fleet and its work, at one glance. It shows, and judges nothing."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

from notifyworker.cli import output
from notifyworker.cli.options import INTERVAL_S, NO_DATABASE_OPTIONS, DatabaseOptions, Interval, Json, Watch

if TYPE_CHECKING:
    from notifyworker.cli.database import Database

_CAP = 100_000  # live runs that are counted: a look must stay cheap
_WORKERS = (
    output.Column("worker", "lease_owner"),
    output.Column("host", "host", spare=3),
    output.Column("pid", "pid", "right", spare=2),
    output.Column("version", "version", spare=4),
    output.Column("state", "shown_state"),
    output.Column("slots", "slots", "right"),
    output.Column("heartbeat", "heartbeat_age", "right"),
    output.Column("kinds", "kinds", spare=1),
)


async def status(
    *,
    watch: Watch = False,
    interval_s: Interval = INTERVAL_S,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """Show the leader, the workers, the live runs and the reaper."""
    from notifyworker.cli.live import shown

    await shown(database, look, _blocks, title="notifyworker status", watch=watch, interval_s=interval_s, json=json)


async def look(db: "Database") -> dict[str, Any]:
    """Return the leader, the workers, the live runs and the reaper."""
    from notifyworker.database import describe
    from notifyworker.migrate import applied_version

    now: datetime = await db.connection.fetchval("SELECT now()")
    workers = [dict(row) for row in await db.store.workers_list(db.connection)]
    for worker in workers:
        worker["heartbeat_age_s"] = (now - worker["heartbeat_at"]).total_seconds()
    live = {state: {"runs": 0, "oldest_s": None} for state in ("pending", "running")}
    for row in await db.store.counts(db.connection, cap=_CAP):
        live[row["state"]] = {"runs": row["runs"], "oldest_s": row["oldest_s"]}
    return {
        "database": describe(db.dsn),
        "schema": db.schema,
        "version": await applied_version(db.connection, db.schema),
        "now": now,
        "workers": workers,
        "live": live,
        "live_is_capped": sum(int(state["runs"] or 0) for state in live.values()) >= _CAP,
        "reaper": dict(await db.store.reaper_state(db.connection)),
    }


def _blocks(seen: dict[str, Any]) -> list[output.Block]:
    reaper, live, now = seen["reaper"], seen["live"], seen["now"]
    pending, least = live["pending"], "at least " if seen["live_is_capped"] else ""
    waiting = f", oldest ready for {output.age(pending['oldest_s'])}" if pending["oldest_s"] is not None else ""
    ago = {name: output.age((now - at).total_seconds()) for name, at in reaper.items() if isinstance(at, datetime)}
    passes = f"last pass {ago['last_pass_at']} ago, " if "last_pass_at" in ago else ""
    leads = any(worker["is_leader"] for worker in seen["workers"])
    leader = f"{reaper['leader']}, {reaper['mode']}, for {ago.get('elected_at', '-')}" if leads else "none"
    facts = {
        "database": seen["database"],
        "schema": f"{seen['schema']}, version {seen['version']}",
        "leader": leader,
        "pending": f"{least}{pending['runs']}{waiting}",
        "running": f"{least}{live['running']['runs']}",
        "reaper": f"{passes}{reaper['reaped_total']} taken over, {reaper['failed_total']} of them failed",
    }
    rows = [
        {
            **worker,
            "slots": f"{worker['running']}/{worker['concurrency']}",
            "heartbeat_age": output.age(worker["heartbeat_age_s"]) + " ago",
            "shown_state": _state(worker),
        }
        for worker in seen["workers"]
    ]
    return [output.Facts(facts), output.Table(_WORKERS, rows, title="Workers")]


def _state(worker: dict[str, Any]) -> str:
    notes = [str(worker["state"])]
    notes += ["leader"] if worker["is_leader"] else []
    notes += ["absent"] if worker["is_present"] is False else []
    notes += ["shadow"] if worker["shadow"] == "enforce" else []
    return ", ".join(notes)
