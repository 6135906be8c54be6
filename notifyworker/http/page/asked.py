"""What is asked before something is done, and what is done then."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked before it is done. `facts` say what happens and what is not undone; `fields` are asked for."""

    title: str
    facts: list[str]
    button: str
    number: int = 1
    is_bad: bool = False
    fields: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Doing:
    """An action on something: how it is asked about, what the audit calls it, and how it is done."""

    question: Question
    action: str
    target: dict[str, Any]
    do: Callable[[], Awaitable[tuple[int, str | None]]]  # how many were changed, and what became of the others
