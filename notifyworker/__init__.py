"""Work that starts when a row appears in Postgres: INSERT to trigger it, LISTEN to pick it up, a lease to be sure of it."""

from notifyworker.client import Client
from notifyworker.errors import (
    Cancel,
    DatabaseUnavailable,
    Fail,
    HandlerError,
    InvalidRun,
    LeaseLost,
    NotifyWorkerError,
    RunConflict,
    RunNotFound,
    SchemaNotMigrated,
    SchemaTooNew,
    SettingsError,
    Snooze,
    StartError,
    WaitTimeout,
)
from notifyworker.lifespan import Ending, Worker
from notifyworker.retry import Retry
from notifyworker.run import Run
from notifyworker.settings import Settings

__all__ = [
    "Cancel",
    "Client",
    "DatabaseUnavailable",
    "Ending",
    "Fail",
    "HandlerError",
    "InvalidRun",
    "LeaseLost",
    "NotifyWorkerError",
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
    "WaitTimeout",
    "Worker",
]
