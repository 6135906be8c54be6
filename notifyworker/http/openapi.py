"""
What /openapi.json answers: the routes once more, for programs. A test holds it against the routes themselves.

Every answer that is not what was asked for is a problem (RFC 9457), whatever its status.
"""

from typing import Any

from notifyworker.http.many import MAX_BATCH
from notifyworker.http.query import CURSOR, DEFAULT_LIMIT, MAX_LIMIT
from notifyworker.journal import MAX_STEPS
from notifyworker.run import State

Json = dict[str, Any]

_TEXT: Json = {"type": "string"}
_MOMENT: Json = {"type": "string", "format": "date-time"}
_UUID: Json = {"type": "string", "format": "uuid"}
_INTEGER: Json = {"type": "integer"}
_NUMBER: Json = {"type": "number"}
_FLAG: Json = {"type": "boolean"}
_ANYTHING: Json = {"description": "JSON; as text where a reader could not hold it"}
_STATE: Json = {"type": "string", "enum": [str(state) for state in State]}
_SPAN: Json = {"type": "number", "minimum": 1e-6, "maximum": 31_536_000}
_NAME: Json = {"type": "string", "minLength": 1, "maxLength": 200, "pattern": r"^[^\x00]*$"}
_KEY: Json = {**_NAME, "maxLength": 500}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _object(properties: Json, *, optional: frozenset[str] = frozenset(), closed: bool = False) -> Json:
    schema = {"type": "object", "properties": properties, "required": [name for name in properties if name not in optional]}
    return schema | ({"additionalProperties": False} if closed else {})


_NEW_RUN: Json = {
    "kind": {**_NAME, "description": "which handler"},
    "payload": {"description": "the handler's input: any JSON, without NUL, at most 200 levels deep; {} by default"},
    "project_id": _or_null(_NAME),
    "priority": _or_null({"type": "integer", "minimum": -32768, "maximum": 32767, "description": "higher runs first"}),
    "run_at": _or_null({**_MOMENT, "description": "not before; between the years 1970 and 9999"}),
    "max_attempts": _or_null({"type": "integer", "minimum": 1, "maximum": 32767}),
    "timeout": _or_null({**_SPAN, "description": "of one attempt, in seconds"}),
    "expires_at": _or_null({**_MOMENT, "description": "not started later than this"}),
    "idempotency_key": _or_null({**_KEY, "description": "one run of this project and kind has it"}),
    "concurrency_key": _or_null({**_KEY, "description": "runs of a project with the same key never run side by side"}),
    "is_shadow": _or_null({**_FLAG, "description": "execute without effects"}),
    "headers": _or_null({"type": "object"}),
    "run_id": _or_null({**_UUID, "description": "a version 7, so that lists stay in order"}),
    "debounce": _or_null({**_SPAN, "description": "seconds: a pending run of the key takes this, and is due so long from now"}),
    "debounce_at_most": _or_null(
        {**_SPAN, "description": "seconds after it was first enqueued at which it is due at the latest"}
    ),
    "throttle": _or_null({**_SPAN, "description": "seconds from the first run on in which the key has no other"}),
}

_RUN: Json = {
    "run_id": _UUID, "project_id": _TEXT, "kind": _TEXT, "state": _STATE, "payload": _ANYTHING, "priority": _INTEGER,
    "run_at": _MOMENT, "attempt": _INTEGER, "max_attempts": _or_null(_INTEGER), "timeout": _or_null(_NUMBER),
    "expires_at": _or_null(_MOMENT), "idempotency_key": _or_null(_TEXT), "concurrency_key": _or_null(_TEXT),
    "is_shadow": _FLAG, "shadow_by": _or_null({"type": "string", "enum": ["run", "worker"]}), "headers": _ANYTHING,
    "lease_owner": _or_null(_TEXT), "lease_token": _INTEGER, "lease_expires_at": _or_null(_MOMENT), "created_at": _MOMENT,
    "started_at": _or_null(_MOMENT), "progress": _ANYTHING, "errors": _ANYTHING, "finished_at": _or_null(_MOMENT),
    "result": _ANYTHING, "effects": _ANYTHING, "error_code": _or_null(_TEXT), "settled_by": _or_null(_TEXT),
    "replay_of": _or_null(_UUID),
    "waits_for": _or_null({"type": "string", "enum": ["key", "children", "event"]}), "key_held_by": _or_null({"type": "array", "items": _UUID}),
}  # fmt: skip

_STEP: Json = {
    "position": _INTEGER, "name": _TEXT, "attempt": _INTEGER, "is_shadow": _FLAG, "started_at": _MOMENT, "finished_at": _MOMENT,
    "error": _or_null(_TEXT), "result_bytes": _or_null(_INTEGER), "result": _ANYTHING,
}  # fmt: skip

_LOG: Json = {
    "attempt": _INTEGER, "lease_token": _INTEGER, "written_at": _MOMENT, "cut": _INTEGER, "lost_after": _or_null(_MOMENT),
    "lines": {"type": "array", "items": {"type": "object"}},
}  # fmt: skip

_CHILD: Json = {
    "position": _INTEGER, "run_id": _UUID, "kind": _TEXT, "state": _TEXT, "started_at": _MOMENT, "settled_at": _or_null(_MOMENT),
    "error_code": _or_null(_TEXT), "error": _or_null(_TEXT),
}  # fmt: skip
_FAMILY: Json = {
    "parent_id": _or_null(_UUID),
    "children": _object(
        dict.fromkeys(("live", "completed", "failed", "cancelled", "deleted"), _INTEGER)
        | {"first": {"type": "array", "items": _object(_CHILD)}}
    ),
    "event": _or_null(_object({"name": _TEXT, "key": _or_null(_TEXT), "until": _or_null(_MOMENT)})),
}
_NEW_EVENT: Json = {
    "name": {**_NAME, "maxLength": 100},
    "payload": {"description": "what the runs are given: any JSON; null by default"},
    "run_id": _or_null({**_UUID, "description": "for this run alone"}),
    "key": _or_null({"type": "string", "maxLength": 90, "description": "for all that wait for this name and key"}),
    "project_id": _or_null({**_NAME, "description": "of the key"}),
    "keep_s": _or_null({"type": "number", "minimum": 1, "maximum": 31_536_000, "description": "7 days by default"}),
}

_LEASE: Json = {
    "run_id": _UUID, "kind": _TEXT, "project_id": _TEXT, "attempt": _INTEGER, "max_attempts": _INTEGER, "is_shadow": _FLAG,
    "lease_owner": _TEXT, "lease_token": _INTEGER, "lease_expires_at": _MOMENT, "started_at": _MOMENT,
    "expires_in_s": _NUMBER,
}  # fmt: skip

_WORKER: Json = {
    "lease_owner": _TEXT, "host": _TEXT, "pid": _INTEGER, "version": _TEXT, "kinds": {"type": "array", "items": _TEXT},
    "project_ids": _or_null({"type": "array", "items": _TEXT}), "versions": {"type": "array", "items": _TEXT},
    "concurrency": _INTEGER, "running": _INTEGER, "state": _TEXT,
    "shadow": _TEXT, "presence": _FLAG, "lease_s": _NUMBER, "heartbeat_interval_s": _NUMBER, "presumed_dead_s": _NUMBER,
    "started_at": _MOMENT, "heartbeat_at": _MOMENT, "is_leader": _or_null(_FLAG), "is_present": _or_null(_FLAG),
    "drain_asked": {**_FLAG, "description": "it was asked to claim nothing more"},
}  # fmt: skip

_REAP: Json = {
    "at": _MOMENT, "run_id": _UUID, "kind": _TEXT, "project_id": _TEXT, "attempt": _INTEGER, "taken_from": _TEXT,
    "taken_by": _or_null(_TEXT), "reason": _TEXT, "became": _TEXT,
}  # fmt: skip

_REAPER: Json = {
    "leader": _or_null(_TEXT), "mode": _or_null(_TEXT), "elected_at": _or_null(_MOMENT), "last_pass_at": _or_null(_MOMENT),
    "next_pass_at": _or_null(_MOMENT), "passes": _INTEGER, "reaped_total": _INTEGER, "failed_total": _INTEGER,
    "silent_s": _or_null(_NUMBER), "interval_s": _NUMBER, "recent": {"type": "array", "items": _object(_REAP)},
}  # fmt: skip

_SCOPE: Json = {
    "kind": _or_null({**_NAME, "description": "which kind; every one where it is left out"}),
    "project_id": _or_null({**_NAME, "description": "which project; every one where it is left out"}),
    "all": {"type": "boolean", "description": "must be true where neither kind nor project_id is named"},
}
_NEW_PAUSE: Json = {
    **_SCOPE,
    "until": _or_null({**_MOMENT, "description": "a time in the future; until resumed where it is left out"}),
    "seconds": _or_null({"type": "number", "exclusiveMinimum": 0, "maximum": 31_622_400, "description": "in place of until"}),
    "reason": _or_null({**_NAME, "maxLength": 1000}),
}
_PAUSE: Json = {
    "kind": _or_null(_TEXT), "project_id": _or_null(_TEXT), "until": _or_null(_MOMENT), "paused_at": _MOMENT, "reason": _or_null(_TEXT),
}  # fmt: skip

_FAILED_GROUP: Json = {
    "kind": _TEXT, "error_code": _TEXT, "error": _TEXT, "runs": _INTEGER, "first_at": _MOMENT, "last_at": _MOMENT, "run_id": _UUID,
}  # fmt: skip
_BATCH: Json = {
    "project_id": _or_null(_NAME),
    "kind": _or_null(_NAME),
    "all": {"type": "boolean", "description": "must be true where no filter is named, and only there"},
    "limit": {"type": "integer", "minimum": 1, "maximum": MAX_BATCH, "default": MAX_BATCH},
    "cursor": _or_null({"type": "string", "pattern": CURSOR, "description": "`next_cursor` of the call before"}),
    "dry_run": {"type": "boolean", "description": "only count"},
}
_CANCEL_BATCH: Json = {
    **_BATCH,
    "state": _or_null({"type": "string", "enum": ["pending", "running"]}),
    "created_after": _or_null(_MOMENT),
    "created_before": _or_null(_MOMENT),
}
_RETRY_BATCH: Json = {
    **_BATCH,
    "state": _or_null({"type": "string", "enum": ["failed", "cancelled", "completed"]}),
    "error_code": _or_null(_NAME),
    "error": _or_null({**_NAME, "description": "as /failed shows it"}),
    "finished_after": _or_null(_MOMENT),
    "finished_before": _or_null({**_MOMENT, "description": "else runs that fail again are among the next ones"}),
}
_BATCH_DONE: Json = {
    "done": _INTEGER,
    "skipped": {"type": "integer", "description": "locked by somebody, or not to be retried now"},
    "remaining": {"type": "integer", "description": "fit the filter now; counted up to 100,000"},
    "next_cursor": _or_null({"type": "string", "description": "null: this was the end"}),
}
_RETENTION: Json = {
    "retention": {
        "type": "array",
        "items": _object({"kind": _or_null(_TEXT), "project_id": _or_null(_TEXT), "days": _INTEGER, "changed_at": _MOMENT}),
    },
    "history_retention_days": _INTEGER,
}
_NEW_RETENTION: Json = {
    "days": _or_null({"type": "integer", "minimum": 1, "maximum": 36500, "description": "null: as long as all others"}),
    "kind": _or_null(_NAME),
    "project_id": _or_null(_NAME),
}
_LIMITED: Json = {
    "kind": _SCOPE["kind"],
    "project_id": _SCOPE["project_id"],
    "per": {"type": "string", "enum": ["all", "project", "key"], "description": "counts all together, each project, each key"},
}
_NEW_LIMIT: Json = {
    **_LIMITED,
    "max_running": _or_null({"type": "integer", "minimum": 0, "maximum": 100_000, "description": "at once; of a key 1 to 1000"}),
    "rate": _or_null({"type": "integer", "minimum": 1, "maximum": 1_000_000, "description": "so many begin in per_s seconds"}),
    "per_s": _or_null({"type": "number", "minimum": 0.001, "maximum": 2_678_400, "description": "1 by default"}),
    "burst": _or_null({"type": "integer", "minimum": 1, "maximum": 1_000_000, "description": "a second's worth by default"}),
}
_LIMIT: Json = {
    "kind": _or_null(_TEXT), "project_id": _or_null(_TEXT), "per": _TEXT, "max_running": _or_null(_INTEGER),
    "rate": _or_null(_INTEGER), "per_s": _or_null(_NUMBER), "burst": _or_null(_INTEGER), "changed_at": _MOMENT, "running": _INTEGER,
}  # fmt: skip

_NEW_SCHEDULE: Json = {
    "cron": {**_NAME, "maxLength": 500, "description": "five fields, or six with seconds first"},
    "kind": _NAME,
    "timezone": _or_null({**_NAME, "maxLength": 100, "description": "such as Europe/Berlin; UTC by default"}),
    **{name: _NEW_RUN[name] for name in ("payload", "project_id", "priority", "max_attempts", "timeout", "headers")},
    "paused": _or_null(_FLAG),
    "missed": _or_null({"type": "string", "enum": ["skip", "once", "all"]}),
}
_SCHEDULE: Json = {
    "name": _TEXT, "cron": _TEXT, "timezone": _TEXT, "kind": _TEXT, "payload": _ANYTHING, "project_id": _TEXT, "priority": _INTEGER,
    "max_attempts": _or_null(_INTEGER), "timeout": _or_null(_NUMBER), "headers": _ANYTHING, "paused": _FLAG, "missed": _TEXT,
    "next_at": _or_null(_MOMENT), "last_tick_at": _or_null(_MOMENT), "error": _or_null(_TEXT), "changed_at": _MOMENT,
    "next": {"type": "array", "items": _MOMENT},
}  # fmt: skip

_FROM_STEP: Json = {
    "type": "integer", "minimum": 1, "maximum": MAX_STEPS + 1,
    "description": "the first step that is executed again; from the beginning where it is left out",
}  # fmt: skip
_RETRY: Json = {"from_step": _or_null(_FROM_STEP), "payload": _NEW_RUN["payload"]}
_NEW_SHARE: Json = {"project_id": _NAME, "weight": {"type": "number", "minimum": 0.001, "maximum": 1000}}
_SHARE: Json = {"project_id": _TEXT, "weight": _NUMBER, "changed_at": _MOMENT, "running": _INTEGER}

_VERSION: Json = {"type": "string", "minLength": 1, "maxLength": 100}
_NEW_MIRROR: Json = {
    "kind": _NAME,
    "version": _VERSION,
    "percent": _or_null({"type": "number", "exclusiveMinimum": 0, "maximum": 100, "description": "100 by default"}),
    "project_id": _or_null(_NAME),
    "until": _or_null(_MOMENT),
    "per_hour": _or_null({"type": "integer", "minimum": 1, "maximum": 1_000_000}),
}
_MIRROR: Json = {
    "kind": _TEXT, "version": _TEXT, "percent": _NUMBER, "project_id": _or_null(_TEXT), "until": _or_null(_MOMENT),
    "per_hour": _or_null(_INTEGER), "changed_at": _MOMENT, "in_hour": _INTEGER, "capped": _INTEGER, "waiting": _INTEGER,
}  # fmt: skip
_DIFFERING: Json = {
    "live_run_id": _UUID, "shadow_run_id": _UUID, "project_id": _TEXT, "ways": {"type": "array", "items": _TEXT},
    "diff": _or_null(_TEXT), "live_state": _TEXT, "shadow_state": _TEXT, "live_s": _or_null(_NUMBER),
    "shadow_s": _or_null(_NUMBER), "chosen_at": _MOMENT,
}  # fmt: skip
_COMPARED: Json = {
    "kind": _TEXT, "version": _TEXT, "live_version": _or_null(_TEXT),
    **dict.fromkeys(("compared", "same", "different", "waiting", "executed", "gone", "interrupted", "capped"), _INTEGER),
    "agreement": _or_null(_NUMBER), "agreement_low": _NUMBER, "agreement_high": _NUMBER,
    "ways": _object(dict.fromkeys(("outcome", "failure", "result", "effects"), _INTEGER)),
    "effects_unrecorded": _INTEGER, "live_s": _or_null(_NUMBER), "shadow_s": _or_null(_NUMBER),
    "times": _or_null(_object({"factor": _NUMBER, "low": _NUMBER, "high": _NUMBER})),
    "differing": {"type": "array", "items": _object(_DIFFERING)},
}  # fmt: skip
_AGES: Json = {"type": "string", "enum": ["1h", "24h", "7d", "30d"]}
_SINCE: Json = {"anyOf": [_MOMENT, _AGES], "description": "chosen then or later"}
_BACK: Json = {
    "kind": _NAME,
    "project_id": _or_null({**_NAME, "description": "of this project alone"}),
    "force": _or_null({**_FLAG, "description": "whatever speaks against it"}),
}
_PROMOTE: Json = {
    **_BACK,
    "version": _VERSION,
    "since": _or_null(_SINCE),
    "least_agreement": _or_null({"type": "number", "minimum": 0, "maximum": 1, "description": "0.99 by default"}),
    "least_runs": _or_null({"type": "integer", "minimum": 1, "maximum": 1_000_000_000, "description": "100 by default"}),
}
_LIVE_VERSION: Json = {
    "kind": _TEXT, "project_id": _or_null(_TEXT), "version": _TEXT, "changed_at": _MOMENT, "workers": _INTEGER,
}  # fmt: skip
_SWITCHED: Json = {
    "kind": _TEXT, "version": _or_null(_TEXT), "project_id": _or_null(_TEXT), "was": _or_null(_TEXT), "why": _or_null(_TEXT),
}  # fmt: skip
_SWITCH: Json = {**_SWITCHED, "audit_id": _INTEGER, "at": _MOMENT, "actor": _TEXT}

_SCHEMAS: Json = {
    "Promote": _object(_PROMOTE, optional=frozenset(_PROMOTE) - {"kind", "version"}, closed=True),
    "SwitchBack": _object(_BACK, optional=frozenset(_BACK) - {"kind"}, closed=True),
    "NewMirror": _object(_NEW_MIRROR, optional=frozenset(_NEW_MIRROR) - {"kind", "version"}, closed=True),
    "Retry": _object(_RETRY, optional=frozenset(_RETRY), closed=True),
    "CancelBatch": _object(_CANCEL_BATCH, optional=frozenset(_CANCEL_BATCH), closed=True),
    "RetryBatch": _object(_RETRY_BATCH, optional=frozenset(_RETRY_BATCH), closed=True),
    "BatchDone": _object(_BATCH_DONE),
    "Retention": _object(_RETENTION),
    "NewRetention": _object(_NEW_RETENTION, optional=frozenset({"kind", "project_id"}), closed=True),
    "NewPayload": _object({"payload": _NEW_RUN["payload"]}, optional=frozenset({"payload"}), closed=True),
    "NewSchedule": _object(_NEW_SCHEDULE, optional=frozenset(_NEW_SCHEDULE) - {"cron", "kind"}, closed=True),
    "Schedule": _object(_SCHEDULE),
    "NewLimit": _object(_NEW_LIMIT, optional=frozenset(_NEW_LIMIT), closed=True),
    "NewEvent": _object(_NEW_EVENT, optional=frozenset(_NEW_EVENT) - {"name"}, closed=True),
    "NewPause": _object(_NEW_PAUSE, optional=frozenset(_NEW_PAUSE), closed=True),
    "Scope": _object(_SCOPE, optional=frozenset(_SCOPE), closed=True),
    "Problem": _object(
        {"type": _TEXT, "title": _TEXT, "status": _INTEGER, "detail": _TEXT, "field": _TEXT},
        optional=frozenset({"detail", "field"}),
    ),
    "NewRun": _object(_NEW_RUN, optional=frozenset(_NEW_RUN) - {"kind"}, closed=True),
    "Run": _object(_RUN),
    "RunInFull": _object(
        {
            **_RUN,
            "steps": {"type": "array", "items": _object(_STEP)},
            "log": {"type": "array", "items": _object(_LOG)},
            **_FAMILY,
        }
    ),
    "Health": _object({"status": {"type": "string", "enum": ["ok", "failing"]}, "reasons": {"type": "array", "items": _TEXT}}),
}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _page(name: str, item: Json) -> Json:
    return _object({name: {"type": "array", "items": item}, "next_cursor": _or_null(_TEXT)})


def _parameter(name: str, schema: Json, where: str = "query") -> Json:
    return {"name": name, "in": where, "required": where == "path", "schema": schema}


_RUN_ID = _parameter("run_id", _UUID, "path")
_NAME_IN_PATH = _parameter("name", _NAME, "path")
_ACTION = _parameter(
    "name",
    {"type": "string", "enum": ["runs", "again", "pause", "resume", "schedule", "reaper", "drain", "limit", "share"]},
    "path",
)
_ASSET = _parameter("name", {"type": "string"}, "path")
_BEFORE = _parameter(
    "before", {"type": "integer", "minimum": 0, "maximum": 10**18 - 1, "description": "`next_before` of the page before"}
)
_LIST: Json = {"type": "array", "items": {"type": "object"}}
_PAGING = [
    _parameter("limit", {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT}),
    _parameter("cursor", {"type": "string", "description": "`next_cursor` of the page before", "pattern": CURSOR}),
]


def _answer(description: str, schema: Json, media_type: str = "application/json") -> Json:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _operation(
    name: str,
    summary: str,
    answers: Json,
    *,
    parameters: list[Json] | None = None,
    body: Json | None = None,
    needs_body: bool = True,
    is_open: bool = False,
) -> Json:
    """`answers` by status. Whatever else is answered is a problem. `is_open`: nobody is asked for a token."""
    operation: Json = {
        "operationId": name,
        "summary": summary,
        "responses": answers | {"default": {"$ref": "#/components/responses/Problem"}},
    }
    if parameters:
        operation["parameters"] = parameters
    if body:
        operation["requestBody"] = {"required": needs_body, "content": body}
    return operation | ({"security": []} if is_open else {})


def _steered(verb: str, summary: str, **more: Any) -> Json:
    done = _answer("done", _object({"run_id": _UUID, "state": _STATE}))
    return {"post": _operation(verb, summary, {"200": done}, parameters=[_RUN_ID], **more)}


def _asked(name: str, summary: str) -> Json:
    asked = {"200": _answer("asked", _object({"lease_owner": _TEXT, "drain_asked": _FLAG}))}
    return {"post": _operation(name, summary, asked, parameters=[_NAME_IN_PATH])}


def _of_many() -> Json:
    """The routes of many runs, and of settled ones."""
    which = [_parameter(name, _NAME) for name in ("kind", "project_id", "error_code")]
    which += [_parameter(name, _MOMENT) for name in ("finished_after", "finished_before")]
    failed = _object({"failed": {"type": "array", "items": _object(_FAILED_GROUP)}})
    again = {"201": _answer("inserted", _object({"run_id": _UUID, "replay_of": _UUID}))}
    done = {"200": _answer("done", _ref("BatchDone"))}
    kept = {"200": _answer("as it is now", _ref("Retention"))}
    payload = {"application/json": {"schema": _ref("NewPayload")}}

    def batch(name: str) -> Json:
        return {"application/json": {"schema": _ref(name)}}

    return {
        "/runs/{run_id}/retry": _steered("retry_run", "put a settled run back to pending", body=batch("Retry"), needs_body=False),
        "/runs/{run_id}/replay": {
            "post": _operation(
                "replay_run", "insert a settled run once more", again, parameters=[_RUN_ID], body=payload, needs_body=False
            )
        },
        "/failed": {"get": _shown("list_failed", "failed runs by kind and error", failed, which)},
        "/bulk/cancel": {"post": _operation("cancel_many", "cancel live runs that fit", done, body=batch("CancelBatch"))},
        "/bulk/retry": {"post": _operation("retry_many", "retry settled runs that fit", done, body=batch("RetryBatch"))},
        "/retention": {
            "get": _shown("list_retention", "how long settled runs are kept", _ref("Retention")),
            "post": _operation("set_retention", "keep those of a kind or project so long", kept, body=batch("NewRetention")),
        },
    }


def _probe(name: str, summary: str, answer: Json, *, may_fail: bool = True) -> Json:
    answers = {"200": _answer("yes", answer)} | ({"503": _answer("no", answer)} if may_fail else {})
    return {"get": _operation(name, summary, answers, is_open=True)}


def _shown(name: str, summary: str, schema: Json, parameters: list[Json] | None = None) -> Json:
    return _operation(name, summary, {"200": _answer("as asked", schema)}, parameters=parameters)


def _of_shadow() -> Json:
    which = [_parameter("kind", _NAME), _parameter("version", _VERSION), _parameter("project_id", _NAME)]
    more = [_parameter("since", _SINCE), _parameter("first", {"type": "integer", "minimum": 0, "maximum": 1000})]
    shown = {"shadow": _COMPARED, "mirrors": _MIRROR, "versions": _LIVE_VERSION, "switches": _SWITCH}
    report = _object({name: {"type": "array", "items": _object(one)} for name, one in shown.items()})
    switched = {"200": _answer("switched", _object(_SWITCHED))}
    return {
        "/shadow/promote": {
            "post": _operation("promote", "make a version live", switched, body={"application/json": {"schema": _ref("Promote")}})
        },
        "/shadow/back": {
            "post": _operation(
                "switch_back",
                "make live again what was before the last switch",
                switched,
                body={"application/json": {"schema": _ref("SwitchBack")}},
            )
        },
        "/shadow": {"get": _shown("shadow_report", "how far copies agree with their live runs", report, [*which, *more])},
        "/shadow/mirrors": {
            "get": _shown("list_mirrors", "what is mirrored", _object({"mirrors": {"type": "array", "items": _object(_MIRROR)}})),
            "post": _operation(
                "set_mirror",
                "mirror live runs to a version, or change the rule",
                {"201": _answer("set", _object({"set": _FLAG}))},
                body={"application/json": {"schema": _ref("NewMirror")}},
            ),
            "delete": _operation(
                "remove_mirror", "end a rule", {"200": _answer("done", _object({"removed": _FLAG}))}, parameters=which
            ),
        },
    }


def _paths() -> Json:
    status = _object({"status": _TEXT})
    filters = [_parameter("state", _STATE), _parameter("kind", _NAME), _parameter("project_id", _NAME)]
    inserted = {
        "201": _answer("inserted", _object({"run_id": _UUID})),
        "200": _answer(
            "another run holds the idempotency key, or has taken what is new",
            _object({"run_id": _UUID, "existing": _FLAG, "replaced": _FLAG}, optional=frozenset({"existing", "replaced"})),
        ),
    }
    page = {"200": {"description": "for people, or as JSON", "content": {"text/html": {}, "application/json": {}}}}
    metrics = {"200": _answer("Prometheus", _TEXT, "text/plain")}
    events = {"200": _answer("server-sent events", _TEXT, "text/event-stream")}
    fleet = _object({"workers": {"type": "array", "items": _object(_WORKER)}})
    known = {"200": _answer("a session, as a cookie", status), "303": {"description": "the same, after a form"}}
    token = {"schema": _object({"token": _TEXT})}
    tokens = {"application/json": token, "application/x-www-form-urlencoded": token}
    html = {"description": "a page", "content": {"text/html": {}}}
    form = {"200": html, "303": {"description": "done; the way back"}}
    any_form = {"application/x-www-form-urlencoded": {"schema": {"type": "object"}}}
    new_run = {"application/json": {"schema": _ref("NewRun")}}
    pause = {"application/json": {"schema": _ref("NewPause")}}
    scope = {"application/json": {"schema": _ref("Scope")}}
    limit = {"application/json": {"schema": _ref("NewLimit")}}
    which = [_parameter("kind", _NAME), _parameter("project_id", _NAME), _parameter("per", _LIMITED["per"])]
    return {
        "/": {"get": _operation("home", "how this worker is", page)},
        "/healthz": _probe("healthz", "whether the worker does its job", _ref("Health")),
        "/readyz": _probe("readyz", "whether it claims", status),
        "/livez": _probe("livez", "whether its event loop turns", status, may_fail=False),
        "/runs": {
            "get": _shown("list_runs", "runs, newest first", _page("runs", _ref("Run")), [*filters, *_PAGING]),
            "post": _operation("insert_run", "insert one run", inserted, body=new_run),
        },
        "/runs/{run_id}": {"get": _shown("get_run", "one run", _ref("RunInFull"), [_RUN_ID])},
        "/runs/{run_id}/cancel": _steered("cancel_run", "settle a pending or running run as cancelled"),
        **_of_many(),
        "/leases": {"get": _shown("list_leases", "who holds what", _page("leases", _object(_LEASE)), _PAGING)},
        "/reaper": {"get": _shown("show_reaper", "the leader, and what it took from whom", _object(_REAPER))},
        "/workers": {"get": _shown("list_workers", "the fleet", fleet)},
        "/workers/{name}/drain": _asked("drain_worker", "let a worker claim nothing more"),
        "/workers/{name}/undrain": _asked("undrain_worker", "let it claim again"),
        "/pauses": {
            "get": _shown("list_pauses", "what is paused", _object({"pauses": {"type": "array", "items": _object(_PAUSE)}})),
            "post": _operation(
                "pause", "claim none of these", {"201": _answer("paused", _object({"paused": _FLAG}))}, body=pause
            ),
        },
        "/pauses/resume": {
            "post": _operation("resume", "end a pause", {"200": _answer("done", _object({"resumed": _FLAG}))}, body=scope)
        },
        "/limits": {
            "get": _shown("list_limits", "limits", _object({"limits": {"type": "array", "items": _object(_LIMIT)}})),
            "post": _operation(
                "set_limit", "make or change a limit", {"201": _answer("set", _object({"set": _FLAG}))}, body=limit
            ),
            "delete": _operation(
                "remove_limit",
                "end a limit",
                {"200": _answer("done", _object({"removed": _FLAG}))},
                parameters=which,
            ),
        },
        **_of_shadow(),
        "/schedules": {
            "get": _shown(
                "list_schedules", "runs by the clock", _object({"schedules": {"type": "array", "items": _ref("Schedule")}})
            )
        },
        "/schedules/{name}": {
            "get": _shown("get_schedule", "one schedule", _ref("Schedule"), [_NAME_IN_PATH]),
            "put": _operation(
                "put_schedule",
                "make or change it",
                {"200": _answer("as it is now", _ref("Schedule"))},
                parameters=[_NAME_IN_PATH],
                body={"application/json": {"schema": _ref("NewSchedule")}},
            ),
            "delete": _operation(
                "delete_schedule",
                "delete it",
                {"200": _answer("deleted", _object({"name": _TEXT, "deleted": _FLAG}))},
                parameters=[_NAME_IN_PATH],
            ),
        },
        "/shares": {
            "get": _shown(
                "list_shares",
                "projects with another weight than 1",
                _object({"shares": {"type": "array", "items": _object(_SHARE)}}),
            ),
            "post": _operation(
                "set_share",
                "give a project a part of the slots",
                {"200": _answer("as it is now", _object({name: _NEW_SHARE[name] for name in _NEW_SHARE}))},
                body={"application/json": {"schema": {**_object(_NEW_SHARE), "additionalProperties": False}}},
            ),
        },
        "/metrics": {"get": _operation("metrics", "metrics of this worker", metrics, is_open=True)},
        "/events": {
            "get": _operation("events", "state changes and progress, of runs that this worker executes", events),
            "post": _operation(
                "emit",
                "tell runs that wait for it what has happened",
                {
                    "201": _answer("emitted", _object({"emitted": _FLAG})),
                    "200": _answer("there is one already", _object({"emitted": _FLAG})),
                },
                body={"application/json": {"schema": _ref("NewEvent")}},
            ),
        },
        "/openapi.json": {"get": _shown("openapi", "this document", {"type": "object"})},
        "/live": {"get": _operation("live", "a pulse for pages: there is something new", events)},
        "/system": {"get": _shown("show_system", "what the doctor finds, tables, settings", {"type": "object"})},
        "/audit": {
            "get": _shown(
                "list_audit", "what was done by hand", _object({"actions": _LIST, "next_before": _or_null(_INTEGER)}), [_BEFORE]
            )
        },
        "/actions/{name}": {
            "post": _operation("act", "for the page: asks, then does", form, parameters=[_ACTION], body=any_form)
        },
        "/assets/{name}": {
            "get": _operation(
                "asset", "what the page is drawn with", {"200": {"description": "a file"}}, parameters=[_ASSET], is_open=True
            )
        },
        "/logout": {"post": _operation("logout", "end the session of this browser", {"303": {"description": "to the way in"}})},
        "/login": {
            "get": _operation("login_page", "the way in", {"200": html, "303": {"description": "none is wanted"}}, is_open=True),
            "post": _operation("login", "the token for a session", known, body=tokens, is_open=True),
        },
    }


def document(version: str) -> Json:
    """Make the OpenAPI document of this version."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "notifyworker", "version": version, "summary": "one worker and its fleet"},
        "paths": _paths(),
        "components": {
            "schemas": _SCHEMAS,
            "responses": {"Problem": _answer("a problem (RFC 9457)", _ref("Problem"), "application/problem+json")},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"bearer": []}, {}],  # without a token in the settings, none is wanted
    }
