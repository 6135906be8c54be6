"""
What people give, checked before anything is sent: each fault is told with the name of its field.

The database checks all of it again; here it is told sooner, and in the same words.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any
from uuid import UUID

import asyncpg

from notifyworker import cron as crons
from notifyworker import payload as payloads
from notifyworker.errors import InvalidRun, RunConflict, RunNotFound
from notifyworker.journal import MAX_STEPS
from notifyworker.store import NewLimit, NewPause, NewRun, NewSchedule, Row

_YEARS = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_COLUMNS = frozenset(NewRun.__dataclass_fields__) - {"kind", "payload"}
_JSON_COLUMNS = frozenset({"payload", "headers", "progress", "errors", "result", "effects", "lines"})
#: An id that is taken; a key that is too wide for its index, which takes 2,704 bytes.
_INDEXES = {"runs_pkey": "run_id", "runs_idempotency_key": "idempotency_key", "idempotency_keys_pkey": "idempotency_key"}


def new_run(kind: str, payload: Any = None, *, max_payload_bytes: int | None = None, **columns: Any) -> NewRun:
    """Check the producer's columns and encode them. Raises InvalidRun, which names the column."""
    if unknown := sorted(set(columns) - _COLUMNS):
        raise InvalidRun(unknown[0], "there is no such column for a producer", hint=f"there are: {', '.join(sorted(_COLUMNS))}")
    given = {name: value for name, value in columns.items() if value is not None}
    check_text("kind", kind, 200)
    check_text("project_id", given.get("project_id", "default"), 200)
    check_text("idempotency_key", given.get("idempotency_key", "-"), 500)
    check_text("concurrency_key", given.get("concurrency_key", "-"), 500)
    check_integer("priority", given.get("priority", 0), -32768, 32767)
    check_integer("max_attempts", given.get("max_attempts", 1), 1, 32767)
    for name in ("run_at", "expires_at"):
        if name in given:
            given[name] = moment_of(name, given[name])
    for name in ("timeout", "debounce", "debounce_at_most", "throttle"):
        if name in given:
            given[name] = duration_of(name, given[name])
    _check_pace(given)
    if not isinstance(given.get("is_shadow", False), bool):
        raise InvalidRun("is_shadow", f"must be true or false, not {given['is_shadow']!r}")
    if "run_id" in given:
        given["run_id"] = uuid_of("run_id", given["run_id"])
    headers = given.get("headers", {})
    if not isinstance(headers, Mapping):
        raise InvalidRun("headers", "must be an object")
    given["headers"] = _json("headers", headers)
    text = _json("payload", {} if payload is None else payload)
    if max_payload_bytes is not None and (size := len(text.encode())) > max_payload_bytes:
        raise InvalidRun("payload", f"has {size} bytes, more than max_payload_bytes={max_payload_bytes}", too_large=True)
    return NewRun(kind=kind, payload=text, **given)


def _check_pace(given: Mapping[str, Any]) -> None:
    """As check_pace in schema/0014_debounce.sql."""
    if not given.keys() & {"debounce", "debounce_at_most", "throttle"}:
        return
    if given.get("is_shadow"):
        message = "goes with neither debounce nor throttle: the key of a shadow run holds nothing"
        raise InvalidRun("is_shadow", message, hint="leave one of them out")
    if "idempotency_key" not in given:
        raise InvalidRun("idempotency_key", "is what debounce and throttle go by", hint="give one")
    if "debounce_at_most" in given and "debounce" not in given:
        raise InvalidRun("debounce_at_most", "is a bound of debounce", hint="give both")
    if "debounce" in given and (beside := sorted(given.keys() & {"throttle", "run_at"})):
        raise InvalidRun(beside[0], "is given beside debounce", hint="give one of them")


def new_payload(payload: Any) -> str:
    """Encode the payload that takes the place of another. Raises InvalidRun for what no handler could be given."""
    return _json("payload", payload)


def as_dict(row: Row) -> dict[str, Any]:
    """A row of all_runs with its jsonb decoded; what can't be decoded stays text."""
    shown = dict(row)
    for name in _JSON_COLUMNS & shown.keys():
        if shown[name] is not None:
            try:
                shown[name] = payloads.decode(shown[name])
            except ValueError:
                continue  # a poison row is shown as it is, and must not hide the others
    return shown


def refused(error: asyncpg.PostgresError) -> InvalidRun:
    """What the database refused on insert, as the same error that the checks here raise."""
    constraint = error.constraint_name or "run"
    column = error.column_name or _INDEXES.get(constraint) or constraint.partition("_is_")[0].partition("_has_")[0]
    return InvalidRun(column, str(error.args[0]), hint=error.hint, too_large=error.sqlstate == "54000")


#: The database says no to a run's values.
REFUSALS = (
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.DataError,
    asyncpg.ProgramLimitExceededError,
    asyncpg.FeatureNotSupportedError,
)


def check_from_step(from_step: Any) -> None:
    """Raise InvalidRun unless it can be the position of a step, or is None: from the beginning."""
    if from_step is not None:
        check_integer("from_step", from_step, 1, MAX_STEPS + 1)


class Conflicts:
    """The database's answers to cancel and retry, as our own errors."""

    def __init__(self, run_id: UUID) -> None:
        self.run_id = run_id

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: type[BaseException] | None, error: BaseException | None, _at: TracebackType | None) -> None:
        if isinstance(error, asyncpg.NoDataFoundError):
            raise RunNotFound(self.run_id) from error
        if isinstance(error, asyncpg.ProgramLimitExceededError):  # the limit was lowered since
            raise RunConflict(str(error.args[0]), hint=error.hint) from error
        if isinstance(error, asyncpg.InvalidParameterValueError):  # from_step
            raise refused(error) from error
        # 55000 itself: below it stands, among others, a lock that could not be had in time.
        if isinstance(error, asyncpg.ObjectNotInPrerequisiteStateError) and error.sqlstate == "55000":
            raise RunConflict(str(error.args[0]), hint=error.hint) from error


def new_pause(**given: Any) -> NewPause:
    """Check a pause, or its end. Raises InvalidRun, which names the field."""
    if unknown := sorted(set(given) - set(NewPause.__dataclass_fields__)):
        raise InvalidRun(unknown[0], "a pause has no such field", hint=f"there are: {', '.join(NewPause.__dataclass_fields__)}")
    for name, longest in (("kind", 200), ("project_id", 200), ("reason", 1000)):
        if given.get(name) is not None:
            check_text(name, given[name], longest)
    if given.get("until") is not None:
        given["until"] = moment_of("until", given["until"])
    seconds = given.get("seconds")
    if seconds is not None and (
        isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= 366 * 86400
    ):
        raise InvalidRun("seconds", f"must be above 0 and at most a year, not {seconds!r:.100}")
    if seconds is not None and given.get("until") is not None:
        raise InvalidRun("seconds", "is given beside until", hint="give one of them")
    return NewPause(**given)


def check_event(name: Any, key: Any, project_id: Any, keep_s: Any) -> None:
    """Raise InvalidRun unless an event can have these."""
    check_text("name", name, 100)
    if key is not None and key != "":
        check_text("key", key, 90)
    if project_id is not None:
        check_text("project_id", project_id, 200)
    if keep_s is not None and (isinstance(keep_s, bool) or not isinstance(keep_s, int | float) or not 1 <= keep_s <= 365 * 86400):
        raise InvalidRun("keep_s", f"must be between 1 and {365 * 86400} s, not {keep_s!r:.100}")


def new_limit(**given: Any) -> NewLimit:
    """Check a limit. Raises InvalidRun, which names the field."""
    limit = limit_scope(**given)
    of_key = limit.per == "key"
    if limit.max_running is None and limit.rate is None:
        raise InvalidRun("max_running", "is missing, and so is rate", hint="give one of them, or both")
    if limit.max_running is not None:
        check_integer("max_running", limit.max_running, 1 if of_key else 0, 1000 if of_key else 100_000)
    for name in ("rate", "burst"):
        if getattr(limit, name) is not None:
            check_integer(name, getattr(limit, name), 1, 1_000_000)
    per_s = limit.per_s
    if per_s is not None and (
        isinstance(per_s, bool) or not isinstance(per_s, int | float) or not 0.001 <= per_s <= 31 * 86400  # noqa: PLR2004 - as the column
    ):
        raise InvalidRun("per_s", f"must be seconds between 0.001 and 2678400 (31 days), not {per_s!r:.100}")
    for name in ("per_s", "burst"):
        if limit.rate is None and getattr(limit, name) is not None:
            raise InvalidRun(name, "is given without a rate", hint="say by rate how many runs may begin in per_s seconds")
    return limit


def limit_scope(**given: Any) -> NewLimit:
    """Check which limit is meant, and nothing else of it. Raises InvalidRun, which names the field."""
    if unknown := sorted(set(given) - set(NewLimit.__dataclass_fields__)):
        raise InvalidRun(unknown[0], "a limit has no such field", hint=f"there are: {', '.join(NewLimit.__dataclass_fields__)}")
    for name in ("kind", "project_id"):
        if given.get(name) is not None:
            check_text(name, given[name], 200)
    limit = NewLimit(**given)
    if limit.per not in ("all", "project", "key"):
        raise InvalidRun("per", f"must be all, project or key, not {limit.per!r:.100}")
    if limit.per == "key" and limit.kind is not None:
        raise InvalidRun(
            "kind", "is given beside per='key'", hint="leave it out: a key is its project's, whatever the kind of a run"
        )
    if limit.per == "project" and limit.project_id is not None:
        raise InvalidRun("project_id", "is given beside per='project'", hint="leave one of them out")
    return limit


def check_share(project_id: Any, weight: Any) -> None:
    """Raise InvalidRun unless they are a project and a weight."""
    check_text("project_id", project_id, 200)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0.001 <= weight <= 1000:  # noqa: PLR2004 - as the column
        raise InvalidRun("weight", f"must be a number between 0.001 and 1000, not {weight!r:.100}")


def new_schedule(name: str, cron: str, kind: str, payload: Any = None, **columns: Any) -> NewSchedule:
    """Check a schedule and encode it. Raises InvalidRun, which names the column."""
    known = frozenset(NewSchedule.__dataclass_fields__)
    if unknown := sorted(set(columns) - known):
        raise InvalidRun(unknown[0], "a schedule has no such column", hint=f"there are: {', '.join(sorted(known))}")
    given = {column: value for column, value in columns.items() if value is not None}
    check_text("name", name, 200)
    check_text("cron", cron, 500)
    check_text("timezone", given.get("timezone", "UTC"), 100)
    try:
        crons.upcoming(cron, given.get("timezone", "UTC"), datetime.now(UTC), 1)
    except ValueError as error:
        raise InvalidRun("timezone" if "time zone" in str(error) else "cron", str(error)) from None
    if given.get("missed", "skip") not in {"skip", "once", "all"}:
        raise InvalidRun("missed", f"must be skip, once or all, not {given['missed']!r:.100}")
    if not isinstance(given.get("paused", False), bool):
        raise InvalidRun("paused", f"must be true or false, not {given['paused']!r:.100}")
    own = {column: given.pop(column) for column in ("timezone", "missed", "paused") if column in given}
    run = new_run(kind, payload, **given)
    shared = {
        column: getattr(run, column) for column in ("payload", "project_id", "priority", "max_attempts", "timeout", "headers")
    }
    return NewSchedule(name=name, cron=cron, kind=kind, **own, **shared)


def schedule_as_dict(row: Row) -> dict[str, Any]:
    """A row of schedules with its jsonb decoded, and the next five times at which it fires."""
    shown = as_dict(row)
    try:
        first = row["next_at"] if not row["paused"] and row["error"] is None else None
        shown["next"] = [] if first is None else [first, *crons.upcoming(row["cron"], row["timezone"], first, 4)]
    except ValueError:
        shown["next"] = []  # this host does not know the time zone; whoever leads says so
    return shown


def check_text(name: str, value: Any, longest: int) -> None:
    """Raise InvalidRun unless it is text of 1 to `longest` characters that JSON and PostgreSQL can hold."""
    if not isinstance(value, str):
        raise InvalidRun(name, f"must be text, not {type(value).__name__}")
    if not 1 <= len(value) <= longest:
        raise InvalidRun(name, f"must have 1 to {longest} characters, not {len(value)}")
    if fault := payloads.find_fault(value):
        raise InvalidRun(name, fault.removeprefix("$ "))


def check_integer(name: str, value: Any, lowest: int, highest: int) -> None:
    """Raise InvalidRun unless it is an integer between these two."""
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise InvalidRun(name, f"must be an integer between {lowest} and {highest}, not {value!r:.100}")


def moment_of(name: str, value: Any) -> datetime:
    """Return the time, given as such or as RFC 3339. Raises InvalidRun."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise InvalidRun(name, f"must be an RFC 3339 time such as 2026-01-31T12:00:00Z, not {value!r:.100}") from None
    if not isinstance(value, datetime):
        raise InvalidRun(name, f"must be a time, not {type(value).__name__}")
    if value.tzinfo is None:
        raise InvalidRun(name, "must name its time zone", hint="end it in Z, or give it a tzinfo")
    try:
        within = _YEARS[0] <= value <= _YEARS[1]
    except OverflowError:
        within = False
    if not within:
        raise InvalidRun(name, f"must be between the years 1970 and 9999, not {value.isoformat()}")
    return value


def duration_of(name: str, value: Any) -> timedelta:
    """Return the time span, given as such or in seconds. Raises InvalidRun."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            value = timedelta(seconds=value)
        except (OverflowError, ValueError):
            raise InvalidRun(name, f"must be above 0 and at most 365 days, not {value!r} s") from None
    if not isinstance(value, timedelta):
        raise InvalidRun(name, "must be seconds or a timedelta")
    if not timedelta(0) < value <= timedelta(days=365):
        raise InvalidRun(name, f"must be above 0 and at most 365 days, not {value.total_seconds():g} s")
    return value


def uuid_of(name: str, value: Any) -> UUID:
    """Return the id, given as such or as text. Raises InvalidRun."""
    if isinstance(value, UUID):
        return value
    try:
        return UUID(str(value))
    except ValueError:
        raise InvalidRun(name, f"must be a UUID, not {value!r:.100}") from None


def _json(name: str, value: Any) -> str:
    try:
        return payloads.encode(value)
    except payloads.Unencodable as error:
        raise InvalidRun(name, str(error).replace("$", name, 1)) from None
