"""Assertions on what was enqueued: committed, and not executed yet. For tests of any kind, async or not."""

from typing import Any

from notifyworker import payload as payloads
from notifyworker.errors import InvalidRun
from notifyworker.given import as_dict
from notifyworker.run import State
from notifyworker.testing.place import at_once, opened

_MOST = 10_000  # runs that are looked at
_SHOWN = 20
_WIDTH = 200


def enqueued(*, kind: str | None = None, dsn: str | None = None, **columns: Any) -> list[dict[str, Any]]:
    """Return the runs that wait to be executed, now or later, in the order of insertion; each as `Client.get` returns it."""
    return [run for run in _runs(kind, dsn) if _fits(run, kind, columns)][::-1]


def assert_enqueued(
    *, kind: str, payload: Any = None, count: int | None = None, dsn: str | None = None, **columns: Any
) -> list[dict[str, Any]]:
    """
    Return the runs that wait to be executed and are as described; AssertionError, showing what is there, if there is none.

    Of `payload` what is given must be in the run's: it may have more keys. `columns` are compared by equality:
    `priority=5`, `idempotency_key="order-7"`. With `count`, exactly so many.
    """
    given = columns | ({} if payload is None else {"payload": payload})
    runs = _runs(kind, dsn)
    found = [run for run in runs if _fits(run, kind, given)][::-1]
    if not found or (count is not None and len(found) != count):
        wanted = "a run" if count is None else f"exactly {count} runs"
        message = f"expected {wanted} of {_described(kind, given)} to be enqueued, found {len(found)}\n{_shown(runs, dsn)}"
        raise AssertionError(message)
    return found


def assert_not_enqueued(*, kind: str | None = None, payload: Any = None, dsn: str | None = None, **columns: Any) -> None:
    """AssertionError, showing them, if runs as described wait to be executed; see `assert_enqueued`."""
    given = columns | ({} if payload is None else {"payload": payload})
    found = [run for run in _runs(kind, dsn) if _fits(run, kind, given)]
    if found:
        message = f"expected no run of {_described(kind, given)} to be enqueued, found {len(found)}\n{_shown(found, dsn)}"
        raise AssertionError(message)


def _runs(kind: str | None, dsn: str | None) -> list[dict[str, Any]]:
    async def read() -> list[dict[str, Any]]:
        async with opened(dsn) as (connection, store):
            return [as_dict(row) for row in await store.newest(connection, kind, limit=_MOST)]

    return at_once(read())


def _fits(run: dict[str, Any], kind: str | None, given: dict[str, Any]) -> bool:
    if unknown := sorted(given.keys() - run.keys()):
        raise InvalidRun(unknown[0], "there is no such column", hint=f"there are: {', '.join(sorted(run))}")
    if run["state"] != State.PENDING or kind not in {None, run["kind"]}:
        return False
    return all(
        _holds(run[name], _plain(value)) if name in {"payload", "headers"} else run[name] == value
        for name, value in given.items()
    )


def _plain(value: Any) -> Any:
    """As it is stored: a model, a dataclass, a tuple becomes JSON."""
    return payloads.decode(payloads.encode(value))


def _holds(stored: Any, wanted: Any) -> bool:
    if isinstance(stored, dict) and isinstance(wanted, dict):
        return all(key in stored and _holds(stored[key], value) for key, value in wanted.items())
    return bool(stored == wanted) and isinstance(stored, bool) == isinstance(wanted, bool)


def _described(kind: str | None, given: dict[str, Any]) -> str:
    return f"kind {kind!r}" + "".join(f", {name} {value!r}" for name, value in given.items())


def _shown(runs: list[dict[str, Any]], dsn: str | None) -> str:
    """Those runs; where there is none of the kind, what else there is."""
    head = "there are:"
    if not runs:
        runs, head = _runs(None, dsn), "there is none of this kind; there are:"
    if not runs:
        return "there are no runs at all: was the producer's transaction committed, and in this database?"
    lines = [f"  {run['state']:9} {run['kind']}  {_cut(payloads.encode_leniently(run['payload']))}{_due(run)}" for run in runs]
    more = [f"  and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n".join([head, *lines[:_SHOWN], *more])


def _cut(text: str) -> str:
    return text if len(text) <= _WIDTH else text[:_WIDTH] + "…"


def _due(run: dict[str, Any]) -> str:
    return f"  run_at {run['run_at']:%Y-%m-%d %H:%M:%S}" if run["state"] == State.PENDING else ""
