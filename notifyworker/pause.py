"""Waits that end: pauses between tries, and events with a deadline."""

import asyncio
import random


class Backoff:
    """
    Growing pauses with jitter between tries, from 50 ms on, so that a fleet does not come back in step.

    The longest leaves time to connect: 2 s after a database is back, a worker is too.
    """

    def __init__(self, *, cap_s: float = 1.5) -> None:
        self._cap_s = cap_s
        self._tries = 0

    def next_s(self) -> float:
        """Seconds to wait before the next try."""
        self._tries += 1
        return random.uniform(0.5, 1) * min(self._cap_s, 0.05 * 2.0 ** min(self._tries - 1, 16))  # noqa: S311 - jitter

    def reset(self) -> None:
        """Start from the beginning: a try was successful."""
        self._tries = 0


async def is_set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for the event, `seconds` at most; say whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return event.is_set()
    return True
