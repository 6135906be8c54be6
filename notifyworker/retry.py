"""
When the next attempt is due. Pure: no clock, no database; the caller adds the delay to the database's time.

Exponential backoff with full jitter: a delay drawn evenly between zero and the exponential bound spreads a crowd of
runs that failed together better than any narrower draw (Marc Brooker, "Exponential Backoff And Jitter", AWS
Architecture Blog, 2015).
"""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Retry:
    """
    How often a run is tried, and how long it waits in between.

    `max_attempts` counts the first one too. A row's own `max_attempts` wins over it. `base_s` and `cap_s` are
    seconds: attempt n waits between 0 and min(cap_s, base_s * 2 ** (n - 1)). Only exceptions in `on` are retried;
    any other fails the run at once.
    """

    max_attempts: int = 3
    base_s: float = 1.0
    cap_s: float = 3600.0
    on: tuple[type[BaseException], ...] = (Exception,)

    def __post_init__(self) -> None:
        """Raise ValueError, naming the field, for what could never work."""
        if not 1 <= self.max_attempts <= 32767:  # noqa: PLR2004 - the column is a smallint
            message = f"Retry: max_attempts must be between 1 and 32767, not {self.max_attempts!r}"
            raise ValueError(message)
        if not (self.base_s >= 0 and 0 <= self.cap_s <= 366 * 86400):
            message = f"Retry: base_s must be 0 or more and cap_s within a year, not {self.base_s!r} and {self.cap_s!r}"
            raise ValueError(message)

    def delay_s(self, attempt: int) -> float:
        """Seconds until the next attempt, after attempt number `attempt` (from 1) has failed."""
        bound = self.cap_s if attempt > 64 else min(self.cap_s, self.base_s * 2.0 ** (attempt - 1))  # noqa: PLR2004 - beyond it a float overflows
        return random.uniform(0, bound)  # noqa: S311 - jitter, not a secret
