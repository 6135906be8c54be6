"""
Time that passes in the database: nothing of ours compares with any other clock.

There is no way to move a server's clock, so that the rows are moved instead: every time that stands in a row is moved
back by as much as passes. What lay an hour ahead is due, a lease that had a minute left is over, what was paused until
then goes on.
"""

from datetime import timedelta

from notifyworker import cron
from notifyworker.database import Connection
from notifyworker.errors import SettingsError
from notifyworker.testing.place import KitStore, opened

_BATCH = 200
_FARTHEST = timedelta(days=10_000)  # a run's times are after 1970


async def travel(
    *,
    days: float = 0,
    hours: float = 0,
    minutes: float = 0,
    seconds: float = 0,
    dsn: str | None = None,
    schema: str | None = None,
) -> None:
    """
    Let so much time pass: scheduled runs, retries, leases, pauses, idempotency windows become due or end.

    A schedule that would have fired meanwhile is due now, once, however often it would have been. Settled runs stay where
    they are. Workers that are running are woken. Raises SettingsError for no time, for time that runs back, and for more
    than 10,000 days.
    """
    passes = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    if not timedelta(0) < passes <= _FARTHEST:
        message = f"travel() goes forward in time, by {_FARTHEST.days} days at most, not by {passes.total_seconds():g} s"
        raise SettingsError(message, hint="await travel(hours=2)")
    async with opened(dsn, schema) as (connection, store), connection.transaction():
        for row in await store.times(connection):
            moved = ", ".join(f'"{column}" = "{column}" - $1::interval' for column in row["columns"])
            await connection.execute(f'UPDATE "{store.schema}"."{row["table_name"]}" SET {moved}', passes)  # noqa: S608 - names of our own schema
        await _see_schedules(connection, store)
        await store.move_schedules(connection, passes.total_seconds())
        await store.wake(connection)


async def _see_schedules(connection: Connection, store: KitStore) -> None:
    """Find out when those are due first that no leader has seen yet."""
    for row in await store.schedules_due(connection, limit=_BATCH):
        if row["next_at"] is None:
            await store.schedule_next(connection, row, cron.upcoming(row["cron"], row["timezone"], row["now"], 1)[0])
