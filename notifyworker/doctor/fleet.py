"""The fleet: who leads, who works, what nobody works on."""

from datetime import UTC, datetime
from typing import Any

from notifyworker.doctor.finding import Finding, Patient, Verdict, duration, some
from notifyworker.settings import FLEET_SETTINGS
from notifyworker.store import Row


async def clock(patient: Patient) -> list[Finding]:
    """How far apart the clocks of this host and of the database are. No lease depends on it, but people's eyes do."""
    samples = []
    for _ in range(3):
        before = patient.clock()
        theirs = (await patient.store.clock(patient.on)).timestamp()
        after = patient.clock()
        samples.append((after - before, theirs - (before + after) / 2))
    took_s, skew_s = min(samples)
    off_s = abs(skew_s)
    seen = f"the database is {duration(off_s)} {'ahead of' if skew_s > 0 else 'behind'} this host"
    if off_s <= patient.limits.skew_noted_s + took_s / 2:
        return [Finding("clock", Verdict.OK, seen)]
    verdict = Verdict.NOTE if off_s <= patient.limits.skew_s else Verdict.WARNING
    todo = (
        "Let both take their time from NTP. Leases go by the database's clock alone; a run_at that a producer computes does not."
    )
    return [Finding("clock", verdict, seen, todo)]


async def leader(patient: Patient) -> list[Finding]:
    """Whether somebody leads, and whether the reaper's last pass is not overdue."""
    alive, _ = await _fleet(patient)
    state = await patient.store.reaper_state(patient.on)
    if not alive:
        return [Finding("leader", Verdict.NOTE, "nobody works, so nobody leads", "notifyworker worker MODULE:ATTR")]
    interval_s = (await patient.store.settings(patient.on)).get("reaper_interval_s", patient.settings.reaper_interval_s)
    silent_s, found = state["silent_s"], []
    has_worked_s = max(worker["age_s"] for worker in alive)
    if (silent_s is None or silent_s > 3 * interval_s) and has_worked_s > 3 * interval_s:
        last = (
            "has never passed" if silent_s is None else f"passed {duration(silent_s)} ago, it should each {duration(interval_s)}"
        )
        seen = f"the reaper {last}: runs of dead workers stay where they are"
        found.append(Finding("leader", Verdict.FAILING, seen, "See the workers' logs: reap_failed, gate_lost, loop_ended."))
    session = await patient.store.leader_session(patient.on)
    if session is None:
        if any(worker["presence"] for worker in alive):
            seen = "nobody leads: no worker is woken in a rush, nobody vacuums, a killed worker's runs wait for their leases"
            found.append(
                Finding("leader", Verdict.WARNING, seen, "One is elected within seconds; else see gate_lost in the logs.")
            )
        else:
            seen = "nobody can lead: all workers are behind a pooler"
            found.append(Finding("leader", Verdict.NOTE, seen, "Set NOTIFYWORKER_LISTEN_DSN to a direct connection."))
    if found:
        return found
    last = "has not passed yet" if silent_s is None else f"passed {duration(silent_s)} ago"
    return [
        Finding(
            "leader",
            Verdict.OK,
            f"{state['leader'] or 'there is one'}, pid {session['pid'] if session else '-'}; the reaper {last}",
        )
    ]


async def workers(patient: Patient) -> list[Finding]:
    """Whether those who are said to work still do."""
    alive, silent = await _fleet(patient)
    found = []
    for worker in [*silent, *(w for w in alive if w["is_present"] is False)][:10]:
        what = (
            f"its last heartbeat is {duration(worker['silent_s'])} old" if worker in silent else "its heartbeat session is gone"
        )
        seen = f"{worker['lease_owner']} (pid {worker['pid']} on {worker['host']}): {what}"
        todo = "If it is dead, its runs are taken over by themselves; if it lives, see heartbeat_failed in its log."
        found.append(Finding("workers", Verdict.WARNING, seen, todo))
    if found:
        return found
    if not alive:
        return [Finding("workers", Verdict.NOTE, "there is none", "notifyworker worker MODULE:ATTR")]
    slots, running = sum(w["concurrency"] for w in alive), sum(w["running"] for w in alive)
    return [Finding("workers", Verdict.OK, f"{len(alive)}, with {running} of {slots} slots taken")]


async def kinds(patient: Patient) -> list[Finding]:
    """Whether somebody executes what is ready."""
    alive, _ = await _fleet(patient)
    now = await patient.store.clock(patient.on)
    unserved: dict[str, tuple[datetime, set[str]]] = {}
    ready = [row for row in await patient.store.ready(patient.on) if row["is_ready"]]
    for row in ready:
        if not any(_serves(worker, row) for worker in alive):
            oldest, projects = unserved.get(row["kind"], (datetime.max.replace(tzinfo=UTC), set()))
            unserved[row["kind"]] = min(oldest, row["mark"]), projects | {row["project_id"]}
    found = []
    for kind, (oldest, projects) in sorted(unserved.items(), key=lambda item: item[1][0])[:10]:
        waits = duration((now - oldest).total_seconds())
        seen = f"{kind!r} of project {some(sorted(projects))} is ready, the oldest for {waits}, and no worker serves it"
        todo = "Start a worker with a handler of this kind; see kinds and project_ids of those that run."
        found.append(Finding("kinds", Verdict.WARNING, seen, todo))
    if len(unserved) > len(found):
        found.append(Finding("kinds", Verdict.WARNING, f"{len(unserved) - len(found)} more kinds are served by nobody"))
    for pause in (await patient.store.pauses_list(patient.on))[:10]:
        what = f"{repr(pause['kind']) if pause['kind'] else 'every kind'} of {'project ' + pause['project_id'] if pause['project_id'] else 'every project'}"
        seen = f"{what} is paused {'until ' + format(pause['until'], '%Y-%m-%d %H:%M %Z') if pause['until'] else 'until it is resumed'}"
        found.append(Finding("kinds", Verdict.NOTE, seen, "notifyworker resume ends it; notifyworker pauses has all of them."))
    return found or [Finding("kinds", Verdict.OK, "all that is ready is served" if ready else "nothing is ready")]


async def limits(patient: Patient) -> list[Finding]:
    """What may not be executed at all, and who waits for a key for long."""
    found = []
    every = await patient.store.limits_list(patient.on)
    for limit in [limit for limit in every if limit["max_running"] == 0][:10]:
        what = f"{repr(limit['kind']) if limit['kind'] else 'every kind'} of {'project ' + limit['project_id'] if limit['project_id'] else 'every project'}"
        todo = "notifyworker limits set or remove; notifyworker limits list has all of them."
        found.append(Finding("limits", Verdict.NOTE, f"{what} is limited to 0 at once: none is executed", todo))
    seen = await patient.store.limits_seen(patient.on)
    if seen["waiting"] and seen["waits_s"] > patient.limits.key_wait_s:
        who = f"run {seen['run_id']} of project {seen['project_id']} has waited for its concurrency key for {duration(seen['waits_s'])}"
        if seen["held_by"] is None:
            todo = "The leader's next pass sees to it; see leader."
            found.append(Finding("limits", Verdict.WARNING, f"{who}, which nobody holds", todo))
        elif seen["lingers"]:
            todo = "The handler ignores its cancellation: see handler_ignores_cancellation in that worker's log, and restart it."
            held = f"run {seen['held_by']} was cancelled, and its handler on {seen['lease_owner']} still goes on"
            found.append(Finding("limits", Verdict.WARNING, f"{who}: {held}", todo))
        else:
            todo = "Runs with one key go one after the other; the handler's timeout is what ends one that hangs."
            found.append(Finding("limits", Verdict.NOTE, f"{who}; run {seen['held_by']} holds it", todo))
    return found or [Finding("limits", Verdict.OK, f"{len(every)}; {seen['places']} places taken, {seen['waiting']} runs wait")]


async def settings(patient: Patient) -> list[Finding]:
    """Whether what this process was told is what holds for the fleet."""
    fleet = await patient.store.settings(patient.on)
    found = []
    for name in FLEET_SETTINGS:
        own = float(getattr(patient.settings, name))
        if name in patient.settings.model_fields_set and name in fleet and own != fleet[name]:
            seen = f"{name} is {own:.15g} here, but {fleet[name]:.15g} for the fleet, which holds"
            todo = f"Unset NOTIFYWORKER_{name.upper()}, or: notifyworker config set {name} {own:.15g}"
            found.append(Finding("settings", Verdict.WARNING, seen, todo))
    return found or [Finding("settings", Verdict.OK, "nothing here differs from the fleet's")]


async def _fleet(patient: Patient) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return who works, and who has been silent for too long."""
    now = await patient.store.clock(patient.on)
    alive: list[dict[str, Any]] = []
    silent: list[dict[str, Any]] = []
    for row in await patient.store.workers_list(patient.on):
        silent_s, age_s = (now - row["heartbeat_at"]).total_seconds(), (now - row["started_at"]).total_seconds()
        is_old = silent_s > patient.limits.missed_beats * row["heartbeat_interval_s"]
        (silent if is_old else alive).append({**row, "silent_s": silent_s, "age_s": age_s})
    return alive, silent


def _serves(worker: dict[str, Any], row: Row) -> bool:
    is_its_project = worker["project_ids"] is None or row["project_id"] in worker["project_ids"]
    return worker["state"] == "running" and row["kind"] in worker["kinds"] and is_its_project
