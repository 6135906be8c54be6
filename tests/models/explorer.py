"""
An exhaustive explorer: every state that a model can reach, breadth first, and the shortest way to a bad one.

A model says which steps are possible in a state, and which of them are *service*: what our own code, the server and
the election do by themselves, sooner or later. All others (producers, deaths, a stranger's hold) may happen or not.
Two sorts of promise are checked: what must never be, in any state; and what must come about, from every state, by
service alone. The latter is looked for backwards: a state from which no service leads to a good one is a bad one.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

S = TypeVar("S", bound=Hashable)


class Model(Protocol[S]):
    """What is explored."""

    def start(self) -> S:
        """The first state."""

    def steps(self, state: S) -> Iterable[tuple[str, bool, S]]:
        """Each step that is possible: its name, whether it is service, and the state after it."""

    def fault(self, state: S) -> str | None:
        """What must never be, if it is."""

    def is_done(self, state: S) -> bool:
        """Whether all that must come about has come about."""


@dataclass(frozen=True)
class Found:
    """The result: how many states, and the shortest way to a fault."""

    states: int
    fault: str | None = None
    way: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.fault or 'right'} ({self.states} states): {' | '.join(self.way)}"


def explore(model: Model[S]) -> Found:
    """Go through all states."""
    start = model.start()
    came_from: dict[S, tuple[S, str] | None] = {start: None}
    served_by: dict[S, list[S]] = {}
    pending = deque([start])
    while pending:
        state = pending.popleft()
        if fault := model.fault(state):
            return Found(len(came_from), fault, tuple(_way(came_from, state)))
        for name, is_service, after in model.steps(state):
            if is_service:
                served_by.setdefault(after, []).append(state)
            if after not in came_from:
                came_from[after] = (state, name)
                pending.append(after)
    good = _backwards((state for state in came_from if model.is_done(state)), lambda state: served_by.get(state, ()))
    for state in came_from:  # in the order of discovery: the shortest way comes first
        if state not in good:
            return Found(len(came_from), "nothing that happens by itself leads on from here", tuple(_way(came_from, state)))
    return Found(len(came_from))


def _backwards(states: Iterable[S], before: Callable[[S], Iterable[S]]) -> set[S]:
    found = set(states)
    pending = list(found)
    while pending:
        for state in before(pending.pop()):
            if state not in found:
                found.add(state)
                pending.append(state)
    return found


def _way(came_from: dict[S, tuple[S, str] | None], state: S) -> Iterator[str]:
    steps = []
    while (step := came_from[state]) is not None:
        state, name = step
        steps.append(name)
    return reversed(steps)
