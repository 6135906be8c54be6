"""
Whose turn it is to look: a notification reaches every worker, and one of them suffices to take what was inserted.

Were all to look at each notification, one insert would cost a fleet of fifty idle workers fifty claims. So its text
designates one of those that serve the same kinds and projects, by a hash that all of them compute alike; that one looks
at once. The others look a little later, each after a time of its own, in case the designated one is busy, or gone: one
of the fleet every LATE_S seconds on average, however many they are. Whoever finds something late looks sooner the next
time, and whoever finds nothing later. A claim that finds more than it may take hands the turn on to two others.

None of it decides anything: a turn that nobody takes, or that two take, costs a few milliseconds or one claim more.
"""

import asyncio
import random
import zlib
from collections.abc import Callable

#: Below this number all look at once: the claims of so few cost less than a late look.
HERD = 4
#: How often one of the fleet looks late, on average, while nothing is found so; and how soon the one looks who does.
LATE_S, SOON_S = 0.01, 0.005


class Turns:
    """This worker's turns. `wake` makes it look, `hand_on` sends a message to the fleet."""

    def __init__(self, wake: Callable[[], None], hand_on: Callable[[str], None]) -> None:
        self._wake = wake
        self._hand_on = hand_on
        self._size, self._position = 1, 0
        self._late_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._is_late = False
        self._has_more = False

    def joined(self, size: int, position: int) -> None:
        """Take note of how many workers serve the same, and of this one's place among them."""
        if size != self._size:
            self._late_s = size * LATE_S
        self._size, self._position = size, position

    def heard(self, text: str) -> None:
        """Something has become ready, or a turn was handed on: look, now or later."""
        turns = self._turns(text)
        if self._size < HERD or self._position in (turns if text.startswith("turn:") else turns[:1]):
            self._look()
        elif self._timer is None:
            delay_s = random.uniform(0, 2) * self._late_s  # noqa: S311 - jitter
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._look_late)

    def claimed(self, *, found: bool, has_more: bool) -> None:
        """Take note of a claim: whether it found something, and whether there was more than it was allowed to take."""
        if self._is_late:
            self._is_late = False
            self._late_s = SOON_S if found else min(self._size * LATE_S, self._late_s * 1.5)
        if has_more and not self._has_more and self._size >= HERD:
            self._hand_on(self._others_turn())
        self._has_more = has_more

    def _turns(self, text: str) -> tuple[int, int]:
        """The places that it designates: the first, and where a turn is handed on the second as well."""
        place = zlib.crc32(text.encode())
        return place % self._size, place // self._size % self._size

    def _others_turn(self) -> str:
        """A message that designates two others, or with chance against it at least somebody."""
        for _ in range(20):
            text = f"turn:{random.getrandbits(32)}"
            if len({self._position, *self._turns(text)}) == min(3, self._size):
                break
        return text

    def close(self) -> None:
        """Forget the late look that is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_late(self) -> None:
        self._is_late = True
        self._look()

    def _look(self) -> None:
        self.close()
        self._wake()
