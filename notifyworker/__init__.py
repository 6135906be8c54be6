"""Work that starts when a row appears in Postgres: INSERT to trigger it, LISTEN to pick it up, a lease to be sure of it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from notifyworker.client import Client
    from notifyworker.errors import (
        Cancel,
        ChildFailed,
        DatabaseUnavailable,
        EventTimeout,
        Fail,
        HandlerError,
        HandlerProcessEnded,
        InvalidRun,
        JoinTimeout,
        LeaseLost,
        NotifyWorkerError,
        PauseKind,
        RunConflict,
        RunNotFound,
        SchemaNotMigrated,
        SchemaTooNew,
        SettingsError,
        Snooze,
        StartError,
        StepError,
        WaitTimeout,
    )
    from notifyworker.family import ChildGroup, ChildOutcome
    from notifyworker.lifespan import Ending, Worker
    from notifyworker.retry import Retry
    from notifyworker.run import Run
    from notifyworker.settings import Settings

# Where each public name lives. Imported when first asked for: a command that needs no database starts in a tenth of
# the time that all of these take.
_HOMES = {
    "Cancel": "errors",
    "ChildFailed": "errors",
    "ChildGroup": "family",
    "ChildOutcome": "family",
    "Client": "client",
    "DatabaseUnavailable": "errors",
    "Ending": "lifespan",
    "EventTimeout": "errors",
    "Fail": "errors",
    "HandlerError": "errors",
    "HandlerProcessEnded": "errors",
    "InvalidRun": "errors",
    "JoinTimeout": "errors",
    "LeaseLost": "errors",
    "NotifyWorkerError": "errors",
    "Retry": "retry",
    "Run": "run",
    "RunConflict": "errors",
    "RunNotFound": "errors",
    "SchemaNotMigrated": "errors",
    "SchemaTooNew": "errors",
    "Settings": "settings",
    "SettingsError": "errors",
    "PauseKind": "errors",
    "Snooze": "errors",
    "StartError": "errors",
    "StepError": "errors",
    "WaitTimeout": "errors",
    "Worker": "lifespan",
}

__all__ = [
    "Cancel",
    "ChildFailed",
    "ChildGroup",
    "ChildOutcome",
    "Client",
    "DatabaseUnavailable",
    "Ending",
    "EventTimeout",
    "Fail",
    "HandlerError",
    "HandlerProcessEnded",
    "InvalidRun",
    "JoinTimeout",
    "LeaseLost",
    "NotifyWorkerError",
    "PauseKind",
    "Retry",
    "Run",
    "RunConflict",
    "RunNotFound",
    "SchemaNotMigrated",
    "SchemaTooNew",
    "Settings",
    "SettingsError",
    "Snooze",
    "StartError",
    "StepError",
    "WaitTimeout",
    "Worker",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
