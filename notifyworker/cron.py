"""
When a schedule is due. Pure: no clock, no database.

cronsim reads the expression, with five fields or six (seconds first), and knows what Debian's cron does when clocks change: a job
at a fixed time that is skipped runs right after the gap, and one that comes twice runs once.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

#: At most so many missed ticks are made up for at once.
MOST_MISSED = 1_000
#: A tick that is later than this was missed.
LATE_S = 60.0


def ticks(cron: str, timezone: str, after: datetime) -> Iterator[datetime]:
    """The times after `after`, in UTC. Raises ValueError that says what is wrong, also for one that never comes."""
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        message = f"there is no time zone {timezone!r:.100} on this host"
        raise ValueError(message) from None
    try:
        simulated = CronSim(cron, after.astimezone(zone))
    except CronSimError as error:
        message = f"cron {cron!r:.200} can't be read: {error}"
        raise ValueError(message) from None
    last = after
    for local in simulated:
        tick = local.astimezone(UTC)
        if tick > last:
            last = tick
            yield tick
    message = f"cron {cron!r:.200} never comes"
    raise ValueError(message)


def upcoming(cron: str, timezone: str, after: datetime, count: int = 5) -> list[datetime]:
    """The next `count` times after `after`, in UTC. Raises ValueError."""
    return list(islice(ticks(cron, timezone, after), count))


def due(cron: str, timezone: str, first: datetime, now: datetime) -> tuple[list[datetime], datetime]:
    """The ticks from `first`, which is due, up to `now`, of which at most the last MOST_MISSED; and the next. Raises ValueError."""
    found = [first]
    for tick in ticks(cron, timezone, first):
        if tick > now:
            return found, tick
        found.append(tick)
        del found[:-MOST_MISSED]
    raise AssertionError  # ticks() never ends


def to_fire(found: list[datetime], now: datetime, missed: str) -> list[datetime]:
    """Which of the ticks that are due get a run."""
    if missed == "all":
        return found
    is_on_time = (now - found[-1]).total_seconds() <= LATE_S
    return found[-1:] if missed == "once" or is_on_time else []
