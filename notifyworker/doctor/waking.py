"""Whether an insert wakes a worker: its trigger, the way of a notification, and the queue that all of them share."""

import random
import time

from notifyworker.database import connect, describe
from notifyworker.doctor.finding import Finding, Patient, Verdict, duration
from notifyworker.hearing import POOLER, hears, why_deaf

_CONSEQUENCE = {
    "wake": "inserts wake nobody, runs wait for the fallback poll",
    "guard": "columns of the system and payloads of any size are taken from producers",
    "take_key": "a key is not refused after its run's settle",
    "keep_key": "a key is free again with its run's settle, or never",
}


async def triggers(patient: Patient) -> list[Finding]:
    """Whether the triggers are there and fire."""
    found = []
    for row in await patient.store.triggers(patient.on):
        if row["enabled"] in {"O", "A"}:
            continue
        name, relation = row["name"], f'"{patient.schema}".{row["relation"]}'
        if row["enabled"] is None:
            what, todo = "is not there", "See drift, which has the statement; or: notifyworker schema"
        else:
            what = "is disabled" if row["enabled"] == "D" else "fires for replication alone"
            todo = f"ALTER TABLE {relation} ENABLE TRIGGER {name};"
        seen = f"the trigger {name} of {row['relation']} {what}: {_CONSEQUENCE[name]}"
        found.append(Finding("triggers", Verdict.FAILING, seen, todo))
    return found or [Finding("triggers", Verdict.OK, "all are there and enabled")]


async def notify(patient: Patient) -> list[Finding]:
    """Send a notification over `dsn` and hear it over `listen_dsn`, on a channel of its own."""
    listener = await connect(patient.listen_dsn, schema=patient.schema, purpose="doctor")
    try:
        why = await why_deaf(patient.listen_dsn, schema=patient.schema, listener=listener)
        if why == POOLER:
            seen = f"{describe(patient.listen_dsn)} is a transaction pooler: nobody hears a notification, workers poll, and none leads"
            todo = "Set NOTIFYWORKER_LISTEN_DSN to a direct connection, or the pooler to session mode for it."
            return [Finding("notify", Verdict.WARNING, seen, todo)]
        if why is not None:
            todo = "Workers poll: lower poll_interval_s to what a run may wait, and see docs/databases.md."
            return [Finding("notify", Verdict.WARNING, f"{describe(patient.listen_dsn)}: {why}", todo)]
        sender = await connect(patient.dsn, schema=patient.schema, purpose="doctor", session={"synchronous_commit": "local"})
        try:
            began = time.monotonic()
            is_heard = await hears(listener, sender, f"{patient.schema}_{random.getrandbits(48):012x}")
            took_s = time.monotonic() - began
        finally:
            sender.terminate()
    finally:
        listener.terminate()
    if is_heard:
        return [Finding("notify", Verdict.OK, f"heard, the whole round trip took {duration(took_s)}")]
    seen = f"what {describe(patient.dsn)} notifies is not heard at {describe(patient.listen_dsn)}"
    todo = "Let dsn and listen_dsn name the same database of the same server; it may also be a full queue, see there."
    return [Finding("notify", Verdict.FAILING, seen, todo)]


async def queue(patient: Patient) -> list[Finding]:
    """How full the server's notification queue is, and who may keep it from being emptied."""
    usage = await patient.store.queue_usage(patient.on)
    seen = f"the notification queue is {usage:.1%} full"
    if usage < patient.limits.queue_filling:
        return [Finding("queue", Verdict.OK, seen)]
    rows = [row for row in await patient.store.holders(patient.on) if row["what"] == "session"]
    is_full = usage >= patient.limits.queue_full
    seen += ": inserts stay silent, and runs wait for the fallback poll" if is_full else ""
    suspects = [row for row in rows if row["listens"]] or [row for row in rows if row["age_s"] is not None or not row["is_seen"]]
    if suspects:
        first = suspects[0]
        age = f"for {duration(first['age_s'])}" if first["age_s"] is not None else "for how long is not seen"
        seen += f"; pid {first['name']} ({first['login']}, {first['application'] or '-'}) is in a transaction {age}"
        sure = "It listens" if first["listens"] else "If it listens"
        todo = f"{sure} inside a transaction, which keeps the queue: end it, or SELECT pg_terminate_backend({first['name']});"
    else:
        todo = "A session that listens inside a transaction keeps it: look for old transactions in all databases."
    return [Finding("queue", Verdict.FAILING if is_full else Verdict.WARNING, seen, todo)]
