"""
A backend for Django's tasks: `django.tasks` of Django 6.0, or the package `django-tasks` for Django before it.

    TASKS = {"default": {"BACKEND": "notifyworker.django.NotifyworkerBackend"}}

`enqueue` inserts a run by Django's own connection: inside of `transaction.atomic()` it is committed together with your rows,
or not at all. A run's kind is `django.` and the queue's name; `register` gives a worker the handlers for them.
"""

import json
import re
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from uuid import UUID

from django.core import checks
from django.db import close_old_connections, connections
from django.utils import timezone
from django.utils.module_loading import import_string

from notifyworker.errors import Fail
from notifyworker.lifespan import Worker
from notifyworker.run import Run

_NAME = "django.tasks" if find_spec("django.tasks") else "django_tasks"
_tasks: Any = import_module(_NAME)
_base: Any = import_module(f"{_NAME}.base")
_signals: Any = import_module(f"{_NAME}.signals")
_DoesNotExist: Any = import_module(f"{_NAME}.exceptions").TaskResultDoesNotExist
_Backend: Any = import_module(f"{_NAME}.backends.base").BaseTaskBackend

_normalized: Any = import_module("django.utils.json" if _NAME == "django.tasks" else "django_tasks.utils").normalize_json
_Status = _base.TaskResultStatus
_STATUS = {
    "pending": _Status.READY,
    "running": _Status.RUNNING,
    "completed": _Status.SUCCESSFUL,
    "failed": _Status.FAILED,
    "cancelled": _Status.FAILED,
}
_COLUMNS = "state, payload, created_at, started_at, finished_at, errors, result, lease_owner, settled_by, attempt"


@dataclass
class _Call:
    """The payload of a run: which task, and with what."""

    task: str
    backend: str
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)


class NotifyworkerBackend(_Backend):  # type: ignore[misc]  # Django has no types
    """
    Tasks become runs. OPTIONS: `database` (Django's alias, `default`), `schema` (`notifyworker`), `project_id` (`default`).

    A task's id is its run's. `priority` and `run_after` are the run's `priority` and `run_at`.
    """

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self._database = self.options.get("database", "default")
        self._schema = self.options.get("schema", "notifyworker")
        self._project_id = self.options.get("project_id", "default")

    @property
    def kinds(self) -> list[str]:
        """The kinds of runs that its queues are."""
        return [f"django.{queue}" for queue in sorted(self.queues)]

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Insert a run, in the transaction that is open on Django's connection, if there is one."""
        self.validate_task(task)
        call = {"task": task.module_path, "backend": self.alias, "args": list(args), "kwargs": kwargs}
        result = self._result(task, None, call, enqueued_at=timezone.now())  # refuses what is no JSON
        call |= {"args": result.args, "kwargs": result.kwargs}
        insert = f"""SELECT {self._quoted}.enqueue(%s, %s::jsonb, project_id => %s, priority => %s,
                            run_at => coalesce(%s::timestamptz, now()))"""
        given = [f"django.{task.queue_name}", json.dumps(call), self._project_id, task.priority, task.run_after]
        with connections[self._database].cursor() as cursor:
            cursor.execute(insert, given)
            object.__setattr__(result, "id", str(cursor.fetchone()[0]))
        _signals.task_enqueued.send(type(self), task_result=result)
        return result

    def get_result(self, result_id: str) -> Any:
        """Return the run as Django sees a task's result. Raises TaskResultDoesNotExist."""
        try:
            wanted = UUID(result_id)
        except (ValueError, AttributeError, TypeError):
            raise _DoesNotExist(result_id) from None
        with connections[self._database].cursor() as cursor:
            cursor.execute(f"SELECT {_COLUMNS} FROM {self._quoted}.all_runs WHERE run_id = %s", [wanted])  # noqa: S608 - quoted
            row = cursor.fetchone()
            names = [column[0] for column in cursor.description]
        if row is None:
            raise _DoesNotExist(result_id)
        return self._shown(result_id, dict(zip(names, row, strict=True)))

    def check(self, **_kwargs: Any) -> Iterable[Any]:
        """Refuse a database that is none of PostgreSQL's."""
        vendor = connections[self._database].vendor
        if vendor != "postgresql":
            yield checks.Error(
                f"TASKS[{self.alias!r}] needs PostgreSQL, and {self._database!r} is {vendor}", id="notifyworker.E001"
            )

    @property
    def _quoted(self) -> str:
        quoted: str = self._schema.replace('"', '""').replace("%", "%%")
        return f'"{quoted}"'

    def _shown(self, result_id: str, run: dict[str, Any]) -> Any:
        call, errors = _decoded(run["payload"]), _decoded(run["errors"]) or []
        if not isinstance(call, dict) or not isinstance(task := _named(call.get("task")), _base.Task):
            raise _DoesNotExist(result_id)  # a run of somebody else's
        result = self._result(
            task, result_id, call, status=_STATUS[run["state"]],
            enqueued_at=run["created_at"], started_at=run["started_at"], finished_at=run["finished_at"],
            last_attempted_at=run["started_at"],
            errors=[_error_of(entry) for entry in errors if isinstance(entry, dict)],
            worker_ids=_workers_of(run, errors),
        )  # fmt: skip
        object.__setattr__(result, "_return_value", _decoded(run["result"]))
        return result

    def _result(self, task: Any, result_id: str | None, call: dict[str, Any], **known: Any) -> Any:
        nothing = {"status": _Status.READY, "started_at": None, "finished_at": None, "last_attempted_at": None}
        columns = nothing | {"errors": [], "worker_ids": []} | known
        return _base.TaskResult(
            task=task, id=result_id, args=call.get("args", []), kwargs=call.get("kwargs", {}), backend=self.alias, **columns
        )


def register(worker: Worker, *, backend: str = "default", **handler: Any) -> None:
    """
    Give a worker a handler for each queue of a backend. `handler`: as `Worker.handler`, such as `timeout` and `retry`.

    Call it after `django.setup()`. A task is called in a thread, where Django's ORM may block; an async one on a loop of
    its own there. Raises HandlerError.
    """
    for kind in _tasks.task_backends[backend].kinds:
        worker.handler(kind, **handler)(_execute)


def _execute(run: Run, payload: _Call) -> Any:
    task, backend = _named(payload.task), _tasks.task_backends[payload.backend]
    if not isinstance(task, _base.Task):
        reason = f"{payload.task!r} is no task that this worker knows"
        raise Fail(reason)
    now = timezone.now()
    known = {"status": _Status.RUNNING, "enqueued_at": None, "started_at": now, "last_attempted_at": now}
    result = backend._result(  # noqa: SLF001 - of this module
        task.using(backend=payload.backend), str(run.run_id), vars(payload), **known, worker_ids=["notifyworker"] * run.attempt
    )
    close_old_connections()  # as Django does before a request: none that the server has dropped meanwhile
    _signals.task_started.send(type(backend), task_result=result)
    try:
        context = [_base.TaskContext(task_result=result)] if task.takes_context else []
        returned = _normalized(task.call(*context, *payload.args, **payload.kwargs))
        _ended(result, _Status.SUCCESSFUL, returned)
        return returned
    except Exception as error:
        result.errors.append(_base.TaskError(exception_class_path=_path_of(type(error)), traceback=_text_of(error)))
        _ended(result, _Status.FAILED, None)
        raise
    finally:
        _signals.task_finished.send(type(backend), task_result=result)
        close_old_connections()


def _ended(result: Any, status: Any, returned: Any) -> None:
    for name, value in (("status", status), ("finished_at", timezone.now()), ("_return_value", returned)):
        object.__setattr__(result, name, value)


def _named(path: object) -> Any:
    """Return what the path names, or None: a payload may say anything."""
    try:
        return import_string(path) if isinstance(path, str) else None
    except ImportError:
        return None


def _decoded(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value  # as Django's cursors give jsonb


def _error_of(entry: dict[str, Any]) -> Any:
    """Return an attempt's error. Its class is named by its traceback alone, in the line behind the last frame."""
    text = entry.get("traceback") or entry.get("message") or ""
    behind = re.search(r"(?:\A|^ .*\n)([A-Za-z_][\w.]*)(?::.*)?$(?!(?:.*\n)*^  File )", text, re.MULTILINE)
    name = behind[1] if behind else "Exception"
    return _base.TaskError(exception_class_path=name if "." in name else f"builtins.{name}", traceback=text)


def _workers_of(run: dict[str, Any], errors: list[Any]) -> list[str]:
    """One for each attempt: who made it, as far as it is written down."""
    known = [str(entry.get("worker")) for entry in errors if isinstance(entry, dict) and entry.get("worker")]
    known += [worker for worker in (run["lease_owner"] or run["settled_by"],) if worker and len(known) < run["attempt"]]
    return known


def _path_of(kind: type[BaseException]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _text_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))
