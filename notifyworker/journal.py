"""
What is recorded of a run's steps, and how far this attempt has come in calling them. Knows no database.

A step is known by its name and by its position, in the order in which the handler calls: both must be what they were, or a
result would be taken for another's.
"""

import asyncio
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass

from notifyworker.errors import StepError
from notifyworker.payload import find_fault

MAX_STEPS = 1000  # as the table's constraint

#: The step that is executed in this context: what it calls can't be another one, nor settle the run.
inside: ContextVar[str] = ContextVar("notifyworker_step")

_MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class Recorded:
    """A step that is not executed again. `result` is JSON (None: it returned None), if it `is_here` already."""

    position: int
    name: str
    is_here: bool
    result: str | None


class Journal:
    """The steps of one attempt."""

    __slots__ = ("_by_name", "_by_position", "_called", "is_loaded", "loading")

    def __init__(self) -> None:
        self._by_position: dict[int, Recorded] = {}
        self._by_name: dict[str, int] = {}
        self._called: set[str] = set()
        self.is_loaded = False
        self.loading = asyncio.Lock()

    def load(self, recorded: Iterable[Recorded]) -> None:
        """Take what earlier attempts have recorded."""
        self._by_position = {step.position: step for step in recorded}
        self._by_name = {step.name: step.position for step in self._by_position.values()}
        self.is_loaded = True

    def call(self, name: str) -> int:
        """Note that the handler calls this step; return its position. Raises StepError for a name that can't be its."""
        if not isinstance(name, str) or not 1 <= len(name) <= _MAX_NAME or find_fault(name):
            message = f"the name of a step must be text of 1 to {_MAX_NAME} characters, not {name!r:.100}"
            raise StepError(message)
        if name in self._called:
            message = f"step {name!r} is called twice in one run"
            raise StepError(message, hint='put into its name what tells them apart: f"charge:{number}"')
        if len(self._called) == MAX_STEPS:
            message = f"step {name!r} is one more than the {MAX_STEPS} that a run may have"
            raise StepError(message, hint="let one step do several things, or insert runs")
        self._called.add(name)
        return len(self._called)

    def find(self, position: int, name: str) -> Recorded | None:
        """Return this step if it is recorded. Raises StepError if name or order are not those of the record."""
        recorded = self._by_position.get(position)
        if recorded is not None and recorded.name == name:
            return recorded
        was_at = self._by_name.get(name)
        if recorded is None and was_at is None:
            return None
        message = f"step {position} is now {name!r}"
        if recorded is not None:
            message += f", and is recorded as {recorded.name!r}"
        if was_at is not None:
            message += f"; {name!r} is recorded as step {was_at}"
        hint = f"let the handler call the steps that it called, or retry the run from_step={position if recorded else was_at}"
        raise StepError(message, hint=hint)
