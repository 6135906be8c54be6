"""What happened to a run, in order, out of what its row tells."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from notifyworker.cli import output

_COLUMNS = (
    output.Column("time", "at"),
    output.Column("after", "after", "right"),
    output.Column("what", "what"),
    output.Column("by", "by", spare=1),
)
_LONGEST = 200  # characters of a message; all of it stands below


def timeline(run: Mapping[str, Any], now: datetime) -> output.Table:
    """Return the time line, each event with the time that passed since the one before."""
    events = sorted(_events(run, now), key=lambda event: event[0])
    rows, before = [], None
    for at, what, by in events:
        after = "" if before is None else f"+{output.age((at - before).total_seconds())}"
        rows.append({"at": _short(at), "after": after, "what": what, "by": by or ""})
        before = at
    return output.Table(_COLUMNS, rows, title="Time line")


def _events(run: Mapping[str, Any], now: datetime) -> list[tuple[datetime, str, str | None]]:
    state, errors = run["state"], run["errors"] if isinstance(run["errors"], list) else []
    events: list[tuple[datetime, str, str | None]] = [(run["created_at"], "inserted", None)]
    # Of an attempt that failed its end is known; when it was started is known of the last one alone.
    for error in errors:
        if isinstance(at := _time(error.get("at")), datetime):
            message = str(error.get("message") or "").partition("\n")[0][:_LONGEST]
            what = f"attempt {error.get('attempt', '?')} ended: {error.get('code', '?')} {message}".rstrip()
            events.append((at, what, error.get("worker")))
    if run["started_at"] is not None:
        worker = run.get("lease_owner") or run.get("settled_by")
        events.append((run["started_at"], f"attempt {run['attempt']} of {run['max_attempts'] or '?'} started", worker))
    if state == "pending" and run["waits_for"] in {"children", "event"}:
        waited = "its children" if run["waits_for"] == "children" else "an event"
        events.append((now, f"waits for {waited}, without a slot", None))
    elif state == "pending":
        events.append((run["run_at"], _due(run["run_at"], now), None))
    elif run["run_at"] - run["created_at"] > timedelta(milliseconds=1):
        events.append((run["run_at"], "due", None))
    if state == "running":
        left = output.age(max(0.0, (run["lease_expires_at"] - now).total_seconds()))
        events.append((now, f"running; its lease ends in {left} unless it is renewed", run["lease_owner"]))
    if run["finished_at"] is not None:
        code = f", {run['error_code']}" if run["error_code"] else ""
        events.append((run["finished_at"], f"{state}{code}", run.get("settled_by") or "from outside"))
    return events


def _due(run_at: datetime, now: datetime) -> str:
    seconds = (run_at - now).total_seconds()
    return f"due in {output.age(seconds)}" if seconds > 0 else f"ready for {output.age(-seconds)}, and not claimed"


def _time(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None


def _short(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "Z")
