"""Limits and shares from the page: what is asked, and how it is done."""

from collections.abc import Mapping
from typing import Any

from notifyworker.given import REFUSALS, check_share, limit_scope, new_limit, refused
from notifyworker.http.page.asked import Doing, Question
from notifyworker.http.pool import Pool
from notifyworker.http.problem import Problem
from notifyworker.store import NewLimit, Store

_PER = {"all": "all of them together", "project": "each project's for itself", "key": "each concurrency key's for itself"}


def _scope(limit: NewLimit) -> str:
    if limit.per == "key":
        return f"runs of one concurrency key of {limit.project_id or 'any project'}"
    return f"{limit.kind or 'all kinds'} of {limit.project_id or 'every project'}"


def _number(given: Mapping[str, str | None], name: str, kind: type[int] | type[float]) -> Any:
    text = given.get(name)
    try:
        return None if text is None else kind(text)
    except ValueError:
        raise Problem.of(name, "must be a whole number" if kind is int else "must be a number") from None


def limit(store: Store, pool: Pool, given: Mapping[str, str | None], *, is_end: bool) -> Doing:
    """Set a limit, or end it. Raises InvalidRun, Problem."""
    scope = {name: given.get(name) for name in ("kind", "project_id")} | {"per": given.get("per") or "all"}
    if is_end:
        return _limit_end(store, pool, limit_scope(**scope))
    numbers = {name: _number(given, name, int) for name in ("max_running", "rate", "burst")}
    new = new_limit(**scope, **numbers, per_s=_number(given, "per_s", float))
    told = [f"At most {new.max_running:,} at once."] if new.max_running is not None else []
    if new.rate is not None:
        told.append(f"At most {new.rate:,} begin in {new.per_s or 1:g} s.")
    facts = [
        *told,
        f"Counted: {_PER[new.per]}. A limit of the same scope is changed to exactly this.",
        "What is executed goes on, and counts. What is above the limit waits, pending, and loses no attempt.",
    ]
    if new.max_running == 0:
        facts.append("With 0 none of these is claimed until the limit is changed or ended.")

    async def do() -> tuple[int, str | None]:
        try:
            await store.limit_set(pool, new)
        except REFUSALS as error:
            raise refused(error) from error
        return 1, None

    target = {name: value for name, value in {**scope, **numbers, "per_s": new.per_s}.items() if value is not None}
    return Doing(Question(f"Limit {_scope(new)}?", facts, "Set the limit", is_bad=new.max_running == 0), "limit", target, do)


def _limit_end(store: Store, pool: Pool, which: NewLimit) -> Doing:
    async def do() -> tuple[int, str | None]:
        ended = await store.limit_remove(pool, which.kind, which.project_id, which.per)
        return int(ended), None if ended else "there is no such limit any more"

    facts = ["What waited for room is claimed as slots allow, at once."]
    target = {"kind": which.kind, "project_id": which.project_id, "per": which.per}
    return Doing(Question(f"End the limit of {_scope(which)}?", facts, "End the limit"), "end limit", target, do)


def share(store: Store, pool: Pool, given: Mapping[str, str | None]) -> Doing:
    """Give a project a part of the slots. Raises InvalidRun, Problem."""
    project, weight = given.get("project_id"), _number(given, "weight", float)
    check_share(project, weight)
    assert project is not None
    facts = [
        "1 is what every project has: it takes the share back."
        if weight == 1
        else f"It gets {weight:g} times the slots of a project of weight 1, while several have something ready.",
        "What is executed goes on. Nothing is taken from anybody.",
    ]

    async def do() -> tuple[int, str | None]:
        await store.share_set(pool, project, weight)
        return 1, None

    return Doing(
        Question(f"Give {project} the weight {weight:g}?", facts, "Set the share"),
        "share",
        {"project_id": project, "weight": weight},
        do,
    )
