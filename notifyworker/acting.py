"""
In whose name something is done: the run whose handler is executed, where that matters.

It is set around the handlers of shadow runs, and of live ones whose effects are recorded, and carried along by asyncio's
tasks, by asyncio.to_thread and by our own threads. A thread that a handler starts by itself knows nothing of it before
Python 3.14.
"""

import functools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar, cast
from uuid import UUID, uuid5

_Method = TypeVar("_Method", bound=Callable[..., Awaitable[Any]])

#: What is no argument of an effect but a means to it.
_MEANS = frozenset({"connection", "told"})


class Actor(Protocol):
    """A run, or several that are executed together."""

    @property
    def is_shadow(self) -> bool:
        """Whether nothing may be done in its name."""

    @property
    def run_id(self) -> UUID:
        """Its id."""

    def note_effect(self, name: str, args: Any, kwargs: dict[str, Any]) -> None:
        """Record what is, or would be, done."""


_acting: ContextVar[Actor] = ContextVar("notifyworker_acting")


@contextmanager
def in_the_name_of(actor: Actor) -> Iterator[None]:
    """What is done in this block is done in its name."""
    token = _acting.set(actor)
    try:
        yield
    finally:
        _acting.reset(token)


def effect(name: str, pretend: Callable[..., Any]) -> Callable[[_Method], _Method]:
    """
    Mark a method that changes something which others see: within a shadow run's handler it does nothing.

    There it is recorded as an effect, and what `pretend` returns, called with a made-up id and the same arguments, is
    returned. Within a live run that is compared it is recorded as well.
    """

    def marked(method: _Method) -> _Method:
        @functools.wraps(method)
        async def guarded(self: Any, /, *args: Any, **kwargs: Any) -> Any:
            actor = _acting.get(None)
            if actor is None:
                return await method(self, *args, **kwargs)
            actor.note_effect(name, args, {key: value for key, value in kwargs.items() if key not in _MEANS})
            if not actor.is_shadow:
                return await method(self, *args, **kwargs)
            return pretend(uuid5(actor.run_id, f"{name} {args!r} {sorted(kwargs)!r}"), *args, **kwargs)

        guarded.__dict__["notifyworker_effect"] = name  # what a test looks for
        return cast("_Method", guarded)

    return marked
