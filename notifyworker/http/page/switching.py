"""What is mirrored, and which version is live, from the page: what is asked, and how it is done."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from notifyworker import promoting
from notifyworker.errors import RunConflict
from notifyworker.given import REFUSALS, check_text, refused
from notifyworker.http.page.asked import Doing, Question
from notifyworker.http.page.shown import plural, rated
from notifyworker.http.pool import Pool
from notifyworker.http.problem import Problem
from notifyworker.http.shadow import since_of
from notifyworker.promoting import percent
from notifyworker.shadow_store import ShadowStore
from notifyworker.shadowing import check_kind_and_version, new_mirror
from notifyworker.store import Store

Given = Mapping[str, str | None]
_FORCE = [("", "no: leave it as it is"), ("1", "yes: switch it all the same")]
_WAYS = {"outcome": "other states", "failure": "other failures", "result": "other results", "effects": "other effects"}
_UNNAMED = "the handler without a version"


def _whose(project_id: str | None) -> str:
    return f" for {project_id}" if project_id else ""


async def promote(store: Store, pool: Pool, given: Given, *, now: datetime, alive: int, actor: str) -> Doing:
    """Make a version live. Raises InvalidRun, DatabaseError."""
    kind, version, project_id = given["kind"], given["version"], given["project_id"]
    check_kind_and_version(kind, version, project_id)
    assert kind is not None
    assert version is not None
    since = since_of(given["since"], now)
    found, against = await promoting.judge(store, pool, kind, version, project_id=project_id, since=since)
    was = (await pool.fetch(store.sql("version_live"), kind, project_id or ""))[0]["version"]
    facts = [
        *(f"Refused unless it is forced: {one.message.partition(': ')[2]}." for one in against),
        *_compared(found, given["since"]),
        f"From the moment of the switch no run{_whose(project_id)} is claimed for {was or _UNNAMED}; runs that it executes then go on by it to their end.",
        f"{found['workers']:,} of {plural(alive, 'worker')} {'has' if found['workers'] == 1 else 'have'} {version}. A worker that lacks it leaves these runs alone.",
        "What it then does is real. Going back is one click; what it did until then is not undone.",
    ]
    fields = (
        [{"name": "force", "label": "Switch nevertheless", "kind": "choice", "choices": _FORCE, "value": ""}] if against else []
    )

    async def do() -> tuple[int, str | None]:
        done = await promoting.promote(
            store, pool, kind, version, project_id=project_id, since=since, force=given["force"] == "1", actor=actor
        )
        return 1, f"{kind} {version} is live{_whose(project_id)}, {done['was'] or _UNNAMED} was; {done['why']}"

    question = Question(
        f"Switch {kind}{_whose(project_id)} to {version}?", facts, f"Switch to {version}", is_bad=bool(against), fields=fields
    )
    target = {name: given[name] for name in ("kind", "version", "project_id", "since") if given[name]}
    return Doing(question, "promote", target, do)


def _compared(found: dict[str, Any], since: str | None) -> list[str]:
    """What comparing has found, in a sentence or two."""
    if not found["compared"]:
        return ["Nothing was compared yet."]
    low, high = found["agreement_low"], found["agreement_high"]
    ways = ", ".join(f"{found['ways'][way]:,} {text}" for way, text in _WAYS.items() if found["ways"][way])
    agreed = f"{percent(found['agreement'])} of {plural(found['compared'], 'run')} agree (95 %: {rated(low)} to {rated(high)})"
    facts = [
        f"{agreed}{f' since {since}' if since else ''}; {found['different']:,} {'differs' if found['different'] == 1 else 'differ'}{f', {ways}' if ways else ''}."
    ]
    if (times := found["times"]) is not None:
        facts.append(f"Copies took {times['factor']:.2f} times as long (95 %: {times['low']:.2f} to {times['high']:.2f}).")
    return facts


async def back(store: Store, pool: Pool, given: Given, *, actor: str) -> Doing:
    """Make live again what was before. Raises InvalidRun, RunConflict, DatabaseError."""
    kind, project_id = given["kind"], given["project_id"]
    check_text("kind", kind, 200)
    assert kind is not None
    last = await promoting.last_switch(store, pool, kind, project_id)
    if last is None:
        message = f"{kind} was not switched{_whose(project_id)}, so that there is no way back"
        raise RunConflict(message, hint="`notifyworker shadow versions` shows what is live")
    target, live = last["was"] or _UNNAMED, last["version"]
    facts = [
        f"{live or _UNNAMED} was made live by {last['actor']}; {last['why'] or 'no reason is told'}.",
        f"From the moment of the switch no run is claimed for {live or _UNNAMED}; runs that it executes then go on by it to their end.",
        f"What {live or _UNNAMED} did until then is not undone.",
    ]
    fields = []
    if last["was"] is not None:
        workers = (await pool.fetch(store.sql("version_workers"), kind, last["was"]))[0]["workers"]
        facts.insert(1, f"{plural(workers, 'worker')} {'has' if workers == 1 else 'have'} {target}.")
        if not workers:
            facts.insert(0, f"Refused unless it is forced: no worker has {target}, so that runs would wait.")
            fields = [{"name": "force", "label": "Switch nevertheless", "kind": "choice", "choices": _FORCE, "value": ""}]

    async def do() -> tuple[int, str | None]:
        done = await promoting.switch_back(
            store, pool, kind, project_id=project_id, unless_live_is_not=given["live"], force=given["force"] == "1", actor=actor
        )
        return 1, f"{done['version'] or _UNNAMED} is live{_whose(project_id)}, {done['was'] or _UNNAMED} was"

    question = Question(
        f"Go back to {target} of {kind}{_whose(project_id)}?", facts, f"Go back to {target}", is_bad=bool(fields), fields=fields
    )
    return Doing(question, "switch back", {name: given[name] for name in ("kind", "project_id") if given[name]}, do)


def mirror(store: Store, pool: Pool, given: Given, *, is_end: bool) -> Doing:
    """Make a rule, or end it. Raises InvalidRun, Problem."""
    scope = {name: given[name] for name in ("kind", "version", "project_id")}
    if is_end:
        return _mirror_end(store, pool, scope)
    new = new_mirror(**scope, percent=_number(given, "percent", float), per_hour=_number(given, "per_hour", int))
    facts = [
        f"{new.percent:g} % of the live runs{_whose(new.project_id)} are executed once more by {new.version}, without effects, and compared. A rule of the same scope is changed to exactly this.",
        f"At most {new.per_hour:,} in each hour; more are counted, and not copied." if new.per_hour else "Any number in an hour.",
        "Live runs that are chosen keep what their effects were called with. Copies take a share of the slots, behind live runs.",
        "It goes on until it is ended.",
    ]

    async def do() -> tuple[int, str | None]:
        try:
            await ShadowStore(store).mirror_set(pool, new)
        except REFUSALS as error:
            raise refused(error) from error
        return 1, None

    target = {**scope, "percent": new.percent, "per_hour": new.per_hour}
    return Doing(
        Question(f"Mirror {new.kind} to {new.version}?", facts, "Mirror"),
        "mirror",
        {name: value for name, value in target.items() if value is not None},
        do,
    )


def _mirror_end(store: Store, pool: Pool, scope: dict[str, str | None]) -> Doing:
    kind, version, project_id = scope["kind"], scope["version"], scope["project_id"]
    check_kind_and_version(kind, version, project_id)
    assert kind is not None
    assert version is not None

    async def do() -> tuple[int, str | None]:
        ended = await ShadowStore(store).mirror_remove(pool, kind, version, project_id)
        return int(ended), None if ended else "there is no such rule any more"

    facts = ["No further run is chosen. What it has chosen is still executed and compared, and what was compared stays."]
    question = Question(f"End the rule for {kind} {version}{_whose(project_id)}?", facts, "End the rule")
    return Doing(question, "end mirror", {name: value for name, value in scope.items() if value}, do)


def _number(given: Given, name: str, kind: type[int] | type[float]) -> Any:
    text = given[name]
    try:
        return None if text is None else kind(text)
    except ValueError:
        raise Problem.of(name, "must be a whole number" if kind is int else "must be a number") from None
