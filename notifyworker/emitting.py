"""An event from outside, by whichever way it comes: checked here, and what the database says of it in our own words."""

from typing import Any
from uuid import UUID

import asyncpg

from notifyworker.database import Queryable
from notifyworker.event_store import EventStore
from notifyworker.given import REFUSALS, Conflicts, check_event, new_payload, refused, uuid_of
from notifyworker.store import Store

_NOBODY = UUID(int=0)


async def emit(
    store: Store,
    on: Queryable,
    name: Any,
    payload: Any,
    *,
    run_id: Any = None,
    key: Any = None,
    project_id: Any = None,
    keep_s: Any = None,
) -> bool:
    """Write down an event; False if there is one already. Raises InvalidRun, RunNotFound, RunConflict."""
    check_event(name, key, project_id, keep_s)
    wanted = None if run_id is None else uuid_of("run_id", run_id)
    text = new_payload(payload)
    with Conflicts(wanted or _NOBODY):
        try:
            return await EventStore(store).event_emit(on, name, text, wanted, key, project_id, keep_s)
        except (*REFUSALS, asyncpg.InvalidParameterValueError) as error:
            raise refused(error) from error
