"""Each action of the page: what is asked, in words that name its number and what is not undone, and how it is done."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import asyncpg

from notifyworker import bulk
from notifyworker import payload as payloads
from notifyworker.errors import InvalidRun, RunConflict, RunNotFound
from notifyworker.given import REFUSALS, Conflicts, new_pause, refused
from notifyworker.http.many import COUNTED
from notifyworker.http.observed import Observed
from notifyworker.http.page.asked import Doing, Question
from notifyworker.http.page.shown import plural
from notifyworker.http.pool import Pool
from notifyworker.http.problem import Problem
from notifyworker.store import NewRun, Store

_LONGEST_S = 50.0  # for one action on many runs: then it stops, and says how far it came
_FOR = [("900", "15 minutes"), ("3600", "1 hour"), ("14400", "4 hours"), ("86400", "1 day"), ("", "until somebody resumes it")]
_BATCH = 200  # runs at once: a pass of the reaper, and one step of many
_PASSES = 50


def on_runs(store: Store, pool: Pool, what: str, rows: Sequence[Any], target: dict[str, Any], *, is_all: bool) -> Doing:
    """Cancel or retry runs."""
    number = len(rows)
    facts = _cancel_facts(rows) if what == "cancel" else _RETRY_FACTS
    if not is_all:
        facts = [*facts, f"More fit than are done at once: these are the newest {number:,}. Do it again for the next."]
    if not number:
        facts = ["No run that fits can be cancelled." if what == "cancel" else "No run that fits can be retried."]
    button = f"{what.capitalize()} {plural(number, 'run')}"

    async def do() -> tuple[int, str | None]:
        ends_at = time.monotonic() + _LONGEST_S
        changed, others = 0, Counter[str]()
        for index, row in enumerate(rows):
            if time.monotonic() > ends_at:
                others["not tried, it took too long"] = number - index
                break
            try:
                with Conflicts(row["run_id"]):
                    await (store.run_cancel(pool, row["run_id"]) if what == "cancel" else store.run_retry(pool, row["run_id"]))
                changed += 1
            except RunConflict:
                others["changed by others meanwhile"] += 1
            except RunNotFound:
                others["not there any more"] += 1
            except asyncpg.LockNotAvailableError:
                others["held by another transaction"] += 1
        return changed, ", ".join(f"{count:,} {why}" for why, count in others.items()) or None

    return Doing(Question(f"{button}?", facts, button, number, is_bad=what == "cancel"), what, target, do)


def on_filter(store: Store, pool: Pool, verb: bulk.Verb, which: bulk.Filter, *, number: int, given: dict[str, str]) -> Doing:
    """Cancel or retry all runs that fit a filter, in batches that are committed one by one."""
    is_open = number >= COUNTED
    counted = f"{number:,} or more runs" if is_open else plural(number, "run")
    if verb == "cancel":
        facts = [
            "Pending ones will not be executed. Running ones are settled as cancelled at once and their handlers stopped; what they did outside stays done.",
            "This is not undone. A cancelled run can be retried, and starts again at its first attempt.",
        ]
    else:
        facts = list(_RETRY_FACTS)
    told = ", ".join(f"{name} {value}" for name, value in given.items()) or "none: all of them"
    facts = [f"Filter: {told}. Runs of after this question are not meant.", *facts]
    if not number:
        facts = ["No run that fits can be cancelled." if verb == "cancel" else "No run that fits can be retried."]

    async def do() -> tuple[int, str | None]:
        ends_at = time.monotonic() + _LONGEST_S
        done, skipped, behind, others = 0, 0, None, []
        while True:
            row = await bulk.step(store, pool, verb, which, behind=behind, limit=_BATCH)
            done, skipped = done + row["done"], skipped + row["skipped"]
            if (behind := row["last"]) is None:
                break
            if time.monotonic() > ends_at:
                left = await bulk.matching(store, pool, verb, which, cap=COUNTED)
                others.append(f"stopped after {_LONGEST_S:.0f} s, {left:,} still fit: do it again")
                break
        if skipped:
            others.append(f"{skipped:,} passed over: held by others, or their key or id is taken")
        return done, ", ".join(others) or None

    button = f"{verb.capitalize()} {counted}"
    return Doing(Question(f"{button}?", facts, button, number, is_bad=verb == "cancel"), verb, dict(given), do)


_RETRY_FACTS = [
    "Each goes back to pending under its own id, at its first attempt. Its result is deleted, its errors are kept.",
    "What an earlier attempt did outside is not undone, and may be done again.",
]


def _cancel_facts(rows: Sequence[Any]) -> list[str]:
    states = Counter(row["state"] for row in rows)
    kinds = Counter(row["kind"] for row in rows)
    listed = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(4))
    facts = [f"{listed}{' and others' if len(kinds) > 4 else ''}."]  # noqa: PLR2004 - as many as are listed
    if states["running"]:
        told = "settled as cancelled at once, their handlers are stopped. What they did outside stays done."
        facts.append(f"{plural(states['running'], 'running run')}: {told}")
    if states["pending"]:
        facts.append(f"{plural(states['pending'], 'pending run')} will not be executed.")
    facts.append("This is not undone. A cancelled run can be retried, and starts again at its first attempt.")
    return facts


def again(store: Store, pool: Pool, row: Any, how: str, edited: str | None) -> Doing:
    """Once more: as a run of its own, in shadow, or under its own id with another payload."""
    run_id, is_shadow = row["run_id"], how == "shadow"
    fields = []
    if how == "edit":
        fields = [{"name": "payload", "label": "Payload, as JSON", "value": edited or row["payload"], "kind": "text"}]
    title = {"replay": "Replay this run?", "shadow": "Run it in shadow?", "edit": "Retry it with another payload?"}[how]
    if how == "edit":
        facts = [
            "It goes back to pending under its own id, at its first attempt, with the payload below. The one that it had is lost.",
            "Its result is deleted, its errors are kept. What it did outside is not undone, and may be done again.",
        ]
    else:
        facts = [f"A new run of {row['kind']} is inserted, with an id of its own and the same payload. This one stays as it is."]
    if how == "edit":
        pass
    elif is_shadow:
        facts.append("It executes without effects: run.effect records them and calls nothing.")
    else:
        facts.append("What this run did outside is not undone, and may be done again: the new run has no idempotency key.")

    async def do() -> tuple[int, str | None]:
        if how == "edit":
            try:
                payload = payloads.encode(payloads.parse((edited or "").encode()))
            except ValueError as error:
                raise Problem.of("payload", str(error).removeprefix("$ ")) from None
            with Conflicts(run_id):
                await store.run_retry(pool, run_id, None, payload)
            return 1, None
        if how == "replay":
            with Conflicts(run_id):
                return 1, f"made run {await store.run_replay(pool, run_id)}"
        new = NewRun(
            row["kind"], row["payload"], row["project_id"], row["priority"], max_attempts=row["max_attempts"], timeout=row["timeout"],
            is_shadow=True, concurrency_key=row["concurrency_key"],
            headers=payloads.encode(payloads.parse(row["headers"].encode()) | {"shadow_of": str(run_id)}),
        )  # fmt: skip
        try:
            made = (await store.run_insert(pool, new)).run_id
        except REFUSALS as error:
            raise refused(error) from error
        return 1, f"made run {made}"

    target = {"run_id": str(run_id), "how": how}
    return Doing(
        Question(title, facts, {"replay": "Replay", "shadow": "Run in shadow", "edit": "Retry"}[how], 1, fields=fields),
        how,
        target,
        do,
    )


def _scope(scope: dict[str, str]) -> str:
    kind = scope.get("kind")
    project = scope.get("project_id")
    return f"{kind} for {project}" if kind and project else kind or (f"all of {project}" if project else "everything")


def pause(
    store: Store, pool: Pool, scope: dict[str, str], *, seconds: str | None, until: str | None, reason: str | None
) -> Doing:
    """Claim none of these."""
    try:
        new = new_pause(**scope, seconds=float(seconds) if seconds and not until else None, until=until, reason=reason)
    except (ValueError, InvalidRun) as error:
        if isinstance(error, InvalidRun):
            raise
        raise Problem.of("seconds", "must be a number") from None
    fields: list[dict[str, Any]] = [
        {"name": "seconds", "label": "For", "kind": "choice", "choices": _FOR, "value": seconds or ""},
        {"name": "until", "label": "Or until, such as 2031-12-24T18:00Z", "kind": "line", "value": until or ""},
        {"name": "reason", "label": "Reason, for those who find it", "kind": "line", "value": reason or ""},
    ]
    facts = [
        "Runs that wait stay pending and lose no attempt.",
        "Runs that are executed go on until they settle.",
        "New rows are still accepted. Nothing else is touched."
        if scope
        else "New rows are still accepted. No worker claims anything.",
    ]
    name = _scope(scope)

    async def do() -> tuple[int, str | None]:
        try:
            await store.pause(pool, new)
        except asyncpg.InvalidParameterValueError as error:  # the time is over
            raise refused(error) from error
        return 1, None

    return Doing(
        Question(f"Pause {name}?", facts, "Pause", 1, fields=fields),
        "pause",
        {**scope, "seconds": seconds, "until": until, "reason": reason},
        do,
    )


def resume(store: Store, pool: Pool, scope: dict[str, str]) -> Doing:
    """End a pause."""
    name = _scope(scope)

    async def do() -> tuple[int, str | None]:
        ended = await store.resume(pool, scope.get("kind"), scope.get("project_id"))
        return int(ended), None if ended else "it was not paused any more"

    facts = ["What has waited is claimed at once, the highest priority and the oldest first."]
    return Doing(Question(f"Resume {name}?", facts, "Resume"), "resume", scope, do)


def schedule(store: Store, pool: Pool, name: str, *, is_paused: bool) -> Doing:
    """Switch a schedule off or on."""

    async def do() -> tuple[int, str | None]:
        found = await store.schedule_pause(pool, name, paused=is_paused)
        return int(found), None if found else "there is no such schedule any more"

    if is_paused:
        question = Question(
            f"Pause the schedule {name}?",
            ["Its ticks are skipped from now on, and not made up for.", "Runs that it has inserted go on."],
            "Pause",
        )
    else:
        question = Question(
            f"Resume the schedule {name}?", ["It fires at its next tick. Ticks that were skipped are not made up for."], "Resume"
        )
    return Doing(question, "pause schedule" if is_paused else "resume schedule", {"schedule": name}, do)


def drain(store: Store, pool: Pool, worker: dict[str, Any], alive: int, *, undo: bool) -> Doing:
    """Let a worker claim nothing more, or again."""
    name = worker["lease_owner"]

    async def do() -> tuple[int, str | None]:
        found = await store.worker_drain(pool, name, undo=undo)
        return int(found), None if found else "it is gone"

    if undo:
        question = Question(f"Let {name} claim again?", ["It takes runs from its next look on."], "Undo the drain")
    else:
        facts = [
            f"It claims nothing more. {plural(worker['running'], 'run')} that it executes {'goes' if worker['running'] == 1 else 'go'} on until settled.",
            "Its process does not end by this: stop it once it runs nothing. It can be undone until then.",
        ]
        if alive <= 1:
            facts.append("It is the only worker that answers: what is inserted waits for another.")
        question = Question(f"Drain {name}?", facts, "Drain")
    return Doing(question, "undo drain" if undo else "drain", {"worker": name}, do)


def reap(worker: Observed, pool: Pool, expired: int) -> Doing:
    """Make the reaper's pass now: the same statement, with the same conditions, whoever leads."""

    async def do() -> tuple[int, str | None]:
        taken: list[Any] = []
        for _ in range(_PASSES):
            rows = await worker.store.reap(pool, limit=_BATCH, reaper=worker.lease_owner, presumed_dead=[])
            taken += rows
            if len(rows) < _BATCH:
                break
        failed = sum(row["became"] == "failed" for row in taken)
        if taken:
            await worker.store.reaper_counts(pool, taken=len(taken), failed=failed)
        return (
            len(taken),
            f"{len(taken) - failed:,} handed out again, {failed:,} failed on their last attempt"
            if taken
            else "no lease had expired",
        )

    facts = [
        f"{plural(expired, 'lease')} have expired now."
        if expired
        else "No lease has expired that is known of: most likely nothing happens.",
        "Runs whose lease has expired go back to pending, or fail on their last attempt. A lease that is renewed is never taken.",
    ]
    return Doing(Question("Run a pass of the reaper now?", facts, "Run a pass", expired), "reaper pass", {}, do)
