"""
What a run's effects were called with, written down: bounded, and without what must not be read.

An entry is `name`, `args` and `kwargs`, as JSON at the moment of the call; one that is too large has `bytes` and `sha256`
in their place, by which it can still be compared.
"""

import hashlib
import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias

from notifyworker import payload as payloads
from notifyworker.mask import HIDDEN

#: Names of parameters, or a function of the call's arguments that returns what is recorded of them.
Redact: TypeAlias = Collection[str] | Callable[..., Any]

MAX_ENTRY_BYTES = 8 * 1024
MAX_ENTRIES = 1000


class Effects:
    """The effects of one attempt. Beyond MAX_ENTRIES they are only counted, in a last entry."""

    def __init__(self, entries: list[dict[str, Any]] | None = None) -> None:
        self.entries = entries or []
        self._uncounted = 0

    def add(
        self, name: str, args: Sequence[Any], kwargs: dict[str, Any], call: Callable[..., Any] | None, redact: Redact
    ) -> None:
        """Write one down."""
        if len(self.entries) >= MAX_ENTRIES:
            self._uncounted += 1
            return
        entry: dict[str, Any] = {"name": str(name)[:200], **_redacted(args, kwargs, call, redact)}
        text = payloads.encode_leniently(entry)
        raw = text.encode()
        if len(raw) > MAX_ENTRY_BYTES:
            self.entries.append({"name": entry["name"], "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()})
        else:
            self.entries.append(payloads.decode(text))

    def as_json(self) -> str:
        """All of them, as a JSON array."""
        more = [{"name": "...", "more": self._uncounted}] if self._uncounted else []
        return payloads.encode_leniently(self.entries + more)


def _redacted(args: Sequence[Any], kwargs: dict[str, Any], call: Callable[..., Any] | None, redact: Redact) -> dict[str, Any]:
    if callable(redact):
        try:
            return {"args": [redact(*args, **kwargs)], "kwargs": {}}
        except Exception as error:  # noqa: BLE001 - a function of the user's: the effect itself goes on, and nothing is told
            return {"args": [f"{HIDDEN} redact raised {type(error).__name__}"], "kwargs": {}}
    names = {redact} if isinstance(redact, str) else set(redact)
    if not names:
        return {"args": list(args), "kwargs": kwargs}
    return {
        "args": _without(args, call, names),
        "kwargs": {name: HIDDEN if name in names else value for name, value in kwargs.items()},
    }


def _without(args: Sequence[Any], call: Callable[..., Any] | None, names: set[str]) -> list[Any]:
    """Hide the positional arguments that go to these parameters; all, where nobody knows which those are."""
    try:
        assert call is not None
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError, AssertionError):
        return [HIDDEN for _ in args]
    several = next((p.name for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL), None)
    taken = [p.name for p in parameters if p.kind in {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}]
    return [HIDDEN if (taken[place] if place < len(taken) else several) in names else value for place, value in enumerate(args)]
