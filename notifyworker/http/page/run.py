"""One run: its attempts in time, its lease, and all that is known of it."""

import re
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import orjson

from notifyworker.database import Queryable
from notifyworker.errors import RunNotFound
from notifyworker.http.observed import Observed
from notifyworker.http.page import charts
from notifyworker.http.page.charts import Span
from notifyworker.http.page.frame import Frame
from notifyworker.http.page.queries import Queries
from notifyworker.http.page.shown import duration, short
from notifyworker.relatives import relatives_of
from notifyworker.run_log_store import RunLogStore
from notifyworker.settings import TRACE_ID
from notifyworker.step_store import StepStore

_JSON = ("payload", "headers", "progress", "errors", "result", "effects")
_SHOWN_ERRORS = 10
_SHOWN_STEPS = 200
_LONGEST_ERRORS = 4_000_000  # characters; beyond that the list is not read


class OneRun:
    """What the page of a run shows."""

    def __init__(self, worker: Observed, queries: Queries) -> None:
        self._worker = worker
        self._queries = queries
        self._steps = StepStore(worker.store)
        self._logs = RunLogStore(worker.store)

    async def read(self, on: Queryable, frame: Frame, run_id: UUID) -> dict[str, Any]:
        """Read it. Raises RunNotFound, DatabaseError."""
        row = await self._worker.store.run_get(on, run_id)
        if row is None:
            raise RunNotFound(run_id)
        run = dict(row)
        errors = _entries(run["errors"])
        reaps = [dict(reap) for reap in await self._queries.rows(on, "reaps", run_id, 50)]
        audits = [dict(audit) for audit in await self._queries.rows(on, "audit", str(run_id), None, 20)]
        steps = [dict(step) for step in await self._steps.steps_list(on, run_id, run["created_at"])]
        logs = [dict(lease) for lease in await self._logs.run_logs_list(on, run_id, run["created_at"])]
        twins = [dict(twin) for twin in await self._queries.rows(on, "twins", run_id)]
        family = await relatives_of(self._worker.store, on, row)
        owner = next((w for w in frame.workers if w["lease_owner"] == run["lease_owner"]), None)
        attempts = _attempts(run, errors, reaps, frame.now)
        loaded = _loaded(run["headers"])
        headers = loaded if isinstance(loaded, dict) else {}
        trace = _trace(headers.get("traceparent"))
        template = self._worker.settings.trace_url
        return {
            "run": run,
            "errors": errors[::-1][:_SHOWN_ERRORS],
            "errors_more": max(0, len(errors) - _SHOWN_ERRORS),
            "attempts": attempts,
            "axis": _axis(run, errors, frame.now),
            "reaps": reaps,
            "audits": audits,
            "owner": owner,
            "family": family,
            "steps": steps[:_SHOWN_STEPS],
            "steps_more": max(0, len(steps) - _SHOWN_STEPS),
            "logs": [{**lease, "lines": _lines(lease["lines"])} for lease in logs],
            "lease_left_s": (run["lease_expires_at"] - frame.now).total_seconds() if run["lease_expires_at"] else None,
            "lease_s": owner["lease_s"] if owner and owner["lease_s"] else self._worker.settings.lease_s,
            "sizes": {name: len(run[name].encode()) for name in _JSON if run[name] is not None},
            "effects": _effects(run["effects"]),
            "twins": [*twins, *_by_hand(run, headers, audits, {twin["run_id"] for twin in twins})],
            "trace": trace,
            "trace_url": template.replace(TRACE_ID, trace) if template and trace else None,
            "schedule": headers.get("schedule"),
            "says": _says(run, errors, frame.now),
        }


def _trace(given: Any) -> str | None:
    """The id in a traceparent of W3C's form."""
    found = re.fullmatch(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?", given) if isinstance(given, str) else None
    return found[1] if found and found[1].strip("0") else None


def _by_hand(
    run: dict[str, Any], headers: dict[str, Any], audits: list[dict[str, Any]], known: set[UUID]
) -> list[dict[str, Any]]:
    """Twins that somebody made from this page: the copy names the run in its headers, and the audit names the copy."""
    told = [(headers.get("shadow_of"), False)] if run["is_shadow"] else []
    told += [(one["outcome"].removeprefix("made run "), True) for one in audits if one["action"] == "shadow" and one["outcome"]]
    found = []
    for text, is_copy in told:
        try:
            twin = UUID(text)
        except (ValueError, TypeError, AttributeError):
            continue
        if twin not in known:
            found.append({"run_id": twin, "is_copy": is_copy, "version": None, "became": None})
    return found


def _loaded(text: str | None) -> Any:
    if text is None or len(text) > _LONGEST_ERRORS:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _entries(text: str | None) -> list[dict[str, Any]]:
    """The errors of a run, as far as they are in the form that is ours."""
    loaded = _loaded(text)
    found = []
    for entry in loaded if isinstance(loaded, list) else []:
        if not isinstance(entry, dict):
            continue
        at = _moment(entry.get("at"))
        texts = {
            name: entry[name] if isinstance(entry.get(name), str) else "" for name in ("code", "message", "traceback", "worker")
        }
        attempt = entry.get("attempt")
        found.append(
            {
                **texts,
                "at": at,
                "started_at": _moment(entry.get("started_at")),
                "attempt": attempt if isinstance(attempt, int) else 0,
            }
        )
    return found


def _moment(text: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else None


def _lines(text: str) -> list[dict[str, Any]]:
    """The lines of one lease's log: when, how bad, what, and with which values."""
    loaded = _loaded(text)
    found = []
    for line in loaded if isinstance(loaded, list) else []:
        if not isinstance(line, dict):
            continue
        more = ((name, value) for name, value in line.items() if name not in {"at", "level", "event"})
        told = "  ".join(f"{name}={value if isinstance(value, str) else orjson.dumps(value).decode()}" for name, value in more)
        level, event = str(line.get("level") or ""), str(line.get("event") or "")
        found.append({"at": _moment(line.get("at")), "level": level, "event": event, "with": told[:2000]})
    return found


def _effects(text: str | None) -> list[dict[str, Any]]:
    loaded = _loaded(text)
    found = [entry for entry in loaded if isinstance(entry, dict)] if isinstance(loaded, list) else []
    return [
        {"name": str(entry.get("name", "")), "with": orjson.dumps({k: v for k, v in entry.items() if k != "name"}).decode()}
        for entry in found[:200]
    ]


def _window(run: dict[str, Any], errors: list[dict[str, Any]], now: datetime) -> tuple[datetime, datetime]:
    moments = [run["created_at"], run["started_at"], run["finished_at"], run["lease_expires_at"]]
    if run["state"] == "running":
        moments.append(now)
    if run["state"] == "pending":
        moments += [run["run_at"], now] if errors or run["run_at"] > now else [now]
    moments += [entry["at"] for entry in errors] + [entry["started_at"] for entry in errors]
    known = [moment for moment in moments if moment is not None]
    begin, end = min(known), max(known)
    room = max((end - begin) * 0.02, timedelta(milliseconds=5))
    return begin, end + room


def _axis(run: dict[str, Any], errors: list[dict[str, Any]], now: datetime) -> list[tuple[float, datetime, str]]:
    begin, end = _window(run, errors, now)
    form = "ms" if (end - begin).total_seconds() < 5 else "s"  # noqa: PLR2004 - below that, seconds tell nothing
    return [(share, begin + (end - begin) * share, form) for share in (0.02, 0.34, 0.66, 0.98)]


def _attempts(
    run: dict[str, Any], errors: list[dict[str, Any]], reaps: list[dict[str, Any]], now: datetime
) -> list[dict[str, Any]]:
    """The attempts that are known of, the newest first; what happened in each, in order."""
    begin, end = _window(run, errors, now)
    found: list[dict[str, Any]] = []
    ready = max(run["created_at"], min(run["run_at"], run["started_at"] or run["run_at"])) if not errors else run["created_at"]
    for index, entry in enumerate(errors):
        found.append(_ended(entry, ready, (begin, end), reaps, now=now, index=index))
        ready = entry["at"] or ready
    if run["started_at"] is not None and (run["state"] in {"running", "completed", "cancelled"} or not errors):
        found.append(_last(run, ready, (begin, end), now))
    if run["state"] == "pending":
        spans = [Span("c-wait", max(ready, begin), max(now, run["run_at"]))]
        waits = (
            f"waits for its time, {duration((run['run_at'] - now).total_seconds())} from now"
            if run["run_at"] > now
            else "is due, and waits for a slot"
        )
        path = [("due", run["run_at"], None)]
        label = f"Attempt {run['attempt'] + 1} {waits}"
        found.append(
            {"number": run["attempt"] + 1, "state": "pending", "word": "pending", "who": "", "path": path, "note": waits,
             "svg": charts.track(begin, end, spans, now=now, label=label)}
        )  # fmt: skip
    return found[::-1]


def _ended(
    entry: dict[str, Any],
    ready: datetime,
    window: tuple[datetime, datetime],
    reaps: list[dict[str, Any]],
    *,
    now: datetime,
    index: int,
) -> dict[str, Any]:
    at, start = entry["at"] or ready, entry["started_at"]
    is_taken, is_given = entry["code"] == "E-RUN-002", entry["code"] == "interrupted"
    spans = [Span("c-wait", ready, start or at)]
    path: list[tuple[str, datetime | None, str | None]] = []
    if start is not None:
        spans.append(Span("c-bar", start, at))
        path = [(f"waited {duration((start - ready).total_seconds())}", None, None), ("claimed", start, None)]
    word = "taken over" if is_taken else "given back" if is_given else "failed"
    reap = next(
        (
            r
            for r in reaps
            if r["attempt"] == entry["attempt"] and entry["at"] and abs((r["at"] - entry["at"]).total_seconds()) < 1
        ),
        None,
    )
    path.append((word, entry["at"], None))
    if reap is not None:
        path.append(("by the reaper on", None, short(reap["taken_by"])))
    ran = f", ran {duration((at - start).total_seconds())}" if start else ""
    label = f"Attempt {entry['attempt']}: waited{ran}, {word}"
    css = "c-warn" if is_taken or is_given else "c-bad"
    return {
        "number": entry["attempt"], "state": "warn" if is_taken or is_given else "failed", "word": word, "who": short(entry["worker"]),
        "path": path, "note": entry["message"].strip().partition("\n")[0][:200] or entry["code"], "error": index,
        "svg": charts.track(*window, spans, now=now, label=label, stop=at, stop_css=css),
    }  # fmt: skip


def _last(run: dict[str, Any], ready: datetime, window: tuple[datetime, datetime], now: datetime) -> dict[str, Any]:
    start, state = run["started_at"], run["state"]
    stop = run["finished_at"] or now
    spans = [Span("c-wait", min(ready, start), start), Span("c-run" if state == "running" else "c-bar", start, stop)]
    path: list[tuple[str, datetime | None, str | None]] = [
        (f"waited {duration((start - ready).total_seconds())}", None, None), ("claimed", start, None),
    ]  # fmt: skip
    if state == "running":
        spans.append(Span("c-lease", now, run["lease_expires_at"]))
        path.append(("lease ends", run["lease_expires_at"], None))
        label = f"Attempt {run['attempt']}: runs for {duration((now - start).total_seconds())}"
    else:
        path.append((state, run["finished_at"], None))
        label = f"Attempt {run['attempt']}: ran {duration((stop - start).total_seconds())}, {state}"
    return {
        "number": run["attempt"], "state": state, "word": state, "who": short(run["lease_owner"] or run["settled_by"] or ""),
        "path": path, "note": "", "svg": charts.track(*window, spans, now=now, label=label),
    }  # fmt: skip


def _says(run: dict[str, Any], errors: list[dict[str, Any]], now: datetime) -> str:
    """What is to be said of it first, behind its state."""
    of = f" of {run['max_attempts']}" if run["max_attempts"] else ""
    endings = {re.sub(r"\d+", "#", ending): ending for ending in map(_ending, errors[-3:])}  # what differs in numbers is one
    earlier = f" Earlier attempts: {', '.join(endings.values())}." if errors and run["state"] != "failed" else ""
    if run["state"] == "running":
        return f"for {duration((now - run['started_at']).total_seconds())}, attempt {run['attempt']}{of}.{earlier}"
    if run["state"] == "pending":
        late = (now - run["run_at"]).total_seconds()
        return (f"and due for {duration(late)}." if late >= 0 else f"and due in {duration(late)}.") + earlier
    took = f" It took {duration((run['finished_at'] - run['started_at']).total_seconds())}." if run["started_at"] else ""
    if run["state"] == "failed":
        return f"on attempt {run['attempt']}{of}, {run['error_code']}."
    if run["state"] == "cancelled":
        return "by its handler." if run["settled_by"] else "from outside, or by its deadline."
    return f"on attempt {run['attempt']}{of}.{took}{earlier}"


def _ending(entry: dict[str, Any]) -> str:
    return {"E-RUN-002": "taken over from a worker that was gone", "interrupted": "given back at a shutdown"}.get(
        str(entry["code"]), (str(entry["message"]).strip().partition("\n")[0] or str(entry["code"]))[:80]
    )
