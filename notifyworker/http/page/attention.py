"""What needs somebody, the worst first: each with what is wrong, since when, and what to do about it."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from notifyworker.http.page.frame import Frame
from notifyworker.http.page.shown import duration, plural, query_of, short

BACKLOG_S = 60.0
SKEW_S = 60.0
FEWEST = 5  # failed attempts
SHARE = 0.2  # of attempts that fail
_OWN_PROJECTS = 3
_SUSPECTS = 8
_SCHEDULES = [("See schedules", "/schedules")]


@dataclass(frozen=True, slots=True)
class Need:
    """One of them. `since` may stand in the text as a time; `links` are of pages, `pause` is a scope to pause."""

    level: str  # bad or warn
    title: str
    text: str
    since: datetime | None = None
    code: str | None = None
    links: list[tuple[str, str]] = field(default_factory=list)
    pause: dict[str, str] | None = None


def of_fleet(frame: Frame, reasons: list[str], interval_s: float) -> list[Need]:
    """What the workers and the leader tell."""
    told = " ".join(f"{reason[:1].upper()}{reason[1:]}." for reason in reasons[:3])  # of one worker: one thing
    found = [Need("bad", "This worker does not do its job", told, links=[("See the system", "/system")])] if reasons else []
    for worker in frame.silent[:5]:
        name, leases = short(worker["lease_owner"]), worker["leases"]
        if worker["heartbeat_at"] is None:
            title, text = f"{plural(leases, 'lease')} of {name} remain", "Its worker has left the fleet."
        else:
            title = f"Worker {name} is silent" + (f" and holds {plural(leases, 'lease')}" if leases else "")
            beat = worker["heartbeat_interval_s"]
            text = f"Expected every {duration(beat)}."
        if worker["first_expires_at"] is not None:
            left = (worker["first_expires_at"] - frame.now).total_seconds()
            when = f"expires in {duration(left)}" if left > 0 else "has expired"
            text += f" Its first lease {when}, then the reaper hands its runs to other workers."
        elif not leases:
            text += " It holds no lease: nothing waits for it."
        found.append(
            Need(
                "warn",
                title,
                text,
                worker["heartbeat_at"],
                links=[("See its leases", "/workers" + query_of({"worker": worker["lease_owner"]}))],
            )
        )
    if frame.alive:
        silent_s = frame.reaper["silent_s"]
        up_s = max((frame.now - worker["started_at"]).total_seconds() for worker in frame.alive)
        if up_s > 3 * interval_s and (silent_s is None or silent_s > 3 * interval_s):
            text = f"It should pass every {duration(interval_s)}. Runs of dead workers stay where they are."
            found.append(
                Need("bad", "The reaper does not pass", text, frame.reaper["last_pass_at"], links=[("See the reaper", "/reaper")])
            )
    if abs(frame.skew_s) > SKEW_S:
        side = "ahead of" if frame.skew_s > 0 else "behind"
        text = (
            f"This host is {duration(frame.skew_s)} {side} the database. Leases go by the database alone; times in logs do not."
        )
        found.append(Need("warn", "A clock is off", text, links=[("See the system", "/system")]))
    return found


def of_work(frame: Frame, kinds: list[dict[str, Any]], faults: list[dict[str, Any]]) -> list[Need]:
    """What waits, and for what."""
    found = []
    due = [kind for kind in kinds if kind["due"]]
    if due and not frame.alive:
        since = min(kind["due_since"] for kind in due)
        text = "Start one: notifyworker worker MODULE:ATTR. Nothing is lost meanwhile."
        found.append(
            Need("bad", f"No worker is here, {plural(sum(k['due'] for k in due), 'run waits', 'runs wait')}", text, since)
        )
    for kind in due if frame.alive else []:
        waits_s = (frame.now - kind["due_since"]).total_seconds()
        pause = next((p for p in frame.pauses if p["kind"] in {None, kind["kind"]} and p["project_id"] is None), None)
        links = [("See its runs", "/runs" + query_of({"kind": kind["kind"], "state": "pending"}))]
        if pause is not None:
            continue
        if not any(kind["kind"] in worker["kinds"] for worker in frame.alive):
            title = f"Nobody executes {kind['kind']}"
            text = f"{plural(kind['due'], 'run waits', 'runs wait')}, and no worker that is here has a handler of this kind."
            found.append(Need("warn", title, text, kind["due_since"], links=links))
        elif waits_s > BACKLOG_S:
            text = f"{plural(kind['due'], 'run is', 'runs are')} due. More slots, or fewer runs, would help."
            found.append(Need("warn", f"{kind['kind']} falls behind", text, kind["due_since"], links=links))
    for pause in frame.pauses[:5]:
        held = [k for k in due if pause["kind"] in {None, k["kind"]} and pause["project_id"] is None]
        if waiting := sum(kind["due"] for kind in held):
            what = pause["kind"] or "Every kind"
            until = (
                f" It ends in {duration((pause['until'] - frame.now).total_seconds())}."
                if pause["until"]
                else " It ends when somebody resumes it."
            )
            reason = f" Reason: {pause['reason'].rstrip('.')}." if pause["reason"] else ""
            title = f"{what} is paused, {plural(waiting, 'run waits', 'runs wait')}"
            found.append(
                Need(
                    "warn",
                    title,
                    f"Paused by hand or by its handler.{until}{reason}",
                    pause["paused_at"],
                    links=[("See pauses", "/pauses")],
                )
            )
    return found + [
        Need("bad", f"The schedule {fault['name']} does not fire", fault["error"], fault["changed_at"], links=_SCHEDULES)
        for fault in faults[:3]
    ]


def suspects(causes: list[dict[str, Any]]) -> list[tuple[str, str | None, list[dict[str, Any]]]]:
    """
    Kinds of which enough attempts failed to be judged, with their causes: of one project, where it is one alone.

    A kind may be here twice: for a project whose own trouble it is, and for all others.
    """
    groups: dict[tuple[str, str | None], list[dict[str, Any]]] = {}
    for cause in causes:
        project = cause["project_id"] if cause["projects"] == 1 else None
        groups.setdefault((cause["kind"], project), []).append(cause)
    for kind in {kind for kind, _ in groups}:
        mine = [key for key in groups if key[0] == kind and key[1] is not None]
        if len(mine) > _OWN_PROJECTS:  # many projects, each with trouble of its own: it is the kind's
            groups.setdefault((kind, None), []).extend(cause for key in mine for cause in groups.pop(key))
    found = [(kind, project, mine) for (kind, project), mine in groups.items() if sum(c["attempts"] for c in mine) >= FEWEST]
    found.sort(key=lambda one: -sum(cause["attempts"] for cause in one[2]))
    return found[:_SUSPECTS]


def of_failures(judged: list[tuple[str, str | None, list[dict[str, Any]], int]]) -> list[Need]:
    """Kinds of which many attempts fail now: suspects, and how many of their runs completed in the same time."""
    found = []
    for kind, project, mine, completed in judged:
        failed = sum(cause["attempts"] for cause in mine)
        if failed < SHARE * (failed + completed):
            continue
        worst = max(mine, key=lambda cause: int(cause["attempts"]))
        named = project if project != "default" else None
        title = f"{kind} fails" + (f" for {named}" if named else "")
        text = f"{failed:,} of {failed + completed:,} attempts in the last 15 minutes."
        path = "/runs" + query_of({"kind": kind, "project_id": named})
        pause = {"kind": kind} | ({"project_id": named} if named else {})
        since = min(cause["first_at"] for cause in mine)
        code = worst["message"] or worst["code"]
        found.append(Need("bad", title, text, since, code=code, links=[("See its runs", path)], pause=pause))
    return found


def sentence(needs: list[Need], *, is_idle: bool) -> str:
    """The first line of the overview."""
    words = {1: "One thing needs", 2: "Two things need", 3: "Three things need", 4: "Four things need", 5: "Five things need"}
    if needs:
        begin = words.get(len(needs), f"{len(needs)} things need")
        return f"{begin} you." + (
            "" if any(need.level == "bad" and "worker" in need.title for need in needs) else " The rest keeps up."
        )
    return "Nothing is due. Nothing is wrong." if is_idle else "All is well."
