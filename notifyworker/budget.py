"""
What a worker can't do without is opened before it claims, and all of it or nothing.

Where many start at once and the server has too few connections, each would get some, and none enough to work. Whoever
gets none any more gives back what it has, and tries again after a pause that is another's for each.
"""

import asyncio
import time
from collections.abc import Sequence

import asyncpg

from notifyworker.database import Link
from notifyworker.pause import Backoff

PATIENCE_S = 5.0


async def open_together(links: Sequence[Link]) -> None:
    """Open all of these. Raises DatabaseError, of which too few connections only after PATIENCE_S seconds."""
    gives_up_at = time.monotonic() + PATIENCE_S
    backoff = Backoff()
    while True:
        try:
            for link in links:
                await link.open()
            return
        except asyncpg.TooManyConnectionsError:
            for link in links:
                link.terminate()
            if time.monotonic() >= gives_up_at:
                raise
        await asyncio.sleep(backoff.next_s())
