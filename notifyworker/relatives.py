"""For readers: who has started a run, what it has started, and what it waits for."""

from typing import Any

from notifyworker.children_store import ChildrenStore
from notifyworker.database import Queryable
from notifyworker.given import as_dict
from notifyworker.store import Row, Store

SHOWN = 100  # children
_STATES = ("live", "completed", "failed", "cancelled", "deleted")


async def relatives_of(store: Store, on: Queryable, run: Row) -> dict[str, Any]:
    """
    Return what is shown of a run beside its own columns: `parent_id`, `children`, and the `event` that it waits for.

    `children` are counted by state, and the first hundred listed. Of an event that is for this run alone the key is None.
    """
    family = ChildrenStore(store)
    row = await family.relatives(on, run["run_id"], run["created_at"])
    counts: dict[str, Any] = {state: row[state] for state in _STATES}
    first = await family.children_list(on, run["run_id"], run["created_at"], limit=SHOWN) if any(counts.values()) else []
    event = None
    if row["event_name"] is not None:
        key = None if row["event_key"] == str(run["run_id"]) else row["event_key"]
        event = {"name": row["event_name"], "key": key, "until": row["event_until"]}
    return {"parent_id": row["parent_id"], "children": {**counts, "first": [as_dict(child) for child in first]}, "event": event}
