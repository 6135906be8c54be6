"""A worker whose handlers' errors go to Sentry, by its ordinary SDK: with the run they belong to, and nothing of its payload."""

from collections.abc import Iterator
from contextlib import contextmanager

import sentry_sdk

from notifyworker import Cancel, PauseKind, Run, Snooze, Worker

sentry_sdk.init(include_local_variables=False)  # the payload is one of them. The DSN comes from SENTRY_DSN

worker = Worker()


@contextmanager
def reported(run: Run) -> Iterator[None]:
    """Report what is raised in the block, each attempt of it, and let it go on: what becomes of the run is the worker's affair."""
    with sentry_sdk.new_scope() as scope:
        scope.set_tags({"kind": run.kind, "run_id": str(run.run_id), "attempt": run.attempt, "project_id": run.project_id})
        try:
            yield
        except (Cancel, PauseKind, Snooze):  # meant so, and no errors
            raise
        except Exception as error:
            scope.set_tag("is_last", run.attempt >= run.max_attempts)
            sentry_sdk.capture_exception(error)
            raise


class BankError(Exception):
    """The bank does not answer."""


@worker.handler("card.charge")
async def charge(run: Run, payload: dict[str, str]) -> None:
    with reported(run):
        if payload["card"].startswith("4"):
            raise BankError
        raise Snooze(60)


@worker.handler("card.check")
def check(run: Run, payload: dict[str, str]) -> None:
    with reported(run):  # in a thread as well
        int(payload["card"][:4])
