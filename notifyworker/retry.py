"""
When the next attempt is due. Pure: no clock, no database; the caller adds the delay to the database's time.

Exponential backoff with full jitter: a delay drawn evenly between zero and the exponential bound spreads a crowd of
runs that failed together better than any narrower draw (Marc Brooker, "Exponential Backoff And Jitter", AWS
Architecture Blog, 2015).
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

_LONGEST_S = 366 * 86400.0

#: Seconds; or the seconds after each attempt, the last of them for all that follow; or a function of the attempt's
#: number, from 1, and of what it raised.
Delay: TypeAlias = float | Sequence[float] | Callable[[int, BaseException], float]


@dataclass(frozen=True, slots=True)
class Retry:
    """
    How often a run is tried, and how long it waits in between.

    `max_attempts` counts the first one too. A row's own `max_attempts` wins over it. `base_s` and `cap_s` are
    seconds: attempt n waits between 0 and min(cap_s, base_s * 2 ** (n - 1)). `delay` is taken in place of that.

    `rules` says it for single exceptions and what derives from them, the most special first: a delay, or None: the run
    fails at once. TimeoutError is what a time-out counts as. Only exceptions in `on` are retried, and those that a rule
    has; any other fails the run at once.
    """

    max_attempts: int = 3
    base_s: float = 1.0
    cap_s: float = 3600.0
    on: tuple[type[BaseException], ...] = (Exception,)
    delay: Delay | None = None
    rules: Mapping[type[BaseException], Delay | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ValueError, naming the field, for what could never work."""
        if not 1 <= self.max_attempts <= 32767:  # noqa: PLR2004 - the column is a smallint
            message = f"Retry: max_attempts must be between 1 and 32767, not {self.max_attempts!r}"
            raise ValueError(message)
        if not (self.base_s >= 0 and 0 <= self.cap_s <= _LONGEST_S):
            message = f"Retry: base_s must be 0 or more and cap_s within a year, not {self.base_s!r} and {self.cap_s!r}"
            raise ValueError(message)
        if wrong := [name for name in self.rules if not isinstance(name, type)]:
            message = f"Retry: rules are by exception, not {wrong[0]!r}"
            raise ValueError(message)
        for where, delay in (("delay", self.delay), *((f"rules[{name.__name__}]", rule) for name, rule in self.rules.items())):
            if fault := _fault(delay):
                message = f"Retry: {where} {fault}"
                raise ValueError(message)

    def delay_s(self, attempt: int, error: BaseException, *, is_timeout: bool = False) -> float | None:
        """
        Seconds until the next attempt, after attempt number `attempt` (from 1) has ended with `error`; None: it fails now.

        Raises whatever a function that was given for it raises, and ValueError for what it returns.
        """
        rule = next((known for known in type(error).__mro__ if known in self.rules), None)
        if rule is not None and self.rules[rule] is None:
            return None
        if rule is None and not is_timeout and not isinstance(error, self.on):
            return None
        delay = self.delay if rule is None else self.rules[rule]
        return self.backoff_s(attempt) if delay is None else _seconds(delay, attempt, error)

    def backoff_s(self, attempt: int) -> float:
        """Seconds by `base_s` and `cap_s` alone."""
        bound = self.cap_s if attempt > 64 else min(self.cap_s, self.base_s * 2.0 ** (attempt - 1))  # noqa: PLR2004 - beyond it a float overflows
        return random.uniform(0, bound)  # noqa: S311 - jitter, not a secret


def _seconds(delay: Delay, attempt: int, error: BaseException) -> float:
    if callable(delay):
        seconds = delay(attempt, error)
        if not _is_usable(seconds):
            message = f"the retry's delay function must return seconds between 0 and a year, not {seconds!r:.100}"
            raise ValueError(message)
        return float(seconds)
    return float(delay[min(attempt, len(delay)) - 1] if isinstance(delay, Sequence) else delay)


def _fault(delay: Delay | None) -> str | None:
    if delay is None or callable(delay):
        return None
    given = delay if isinstance(delay, Sequence) else [delay]
    if isinstance(delay, str | bytes) or not given or not all(map(_is_usable, given)):
        return f"must be seconds between 0 and a year, one or more of them, or a function, not {delay!r:.100}"
    return None


def _is_usable(seconds: object) -> bool:
    return isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds <= _LONGEST_S
