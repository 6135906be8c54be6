"""To switch which version of a kind is live, if what comparing has found allows it; and back again."""

import math
from datetime import datetime
from typing import Any, NamedTuple

from notifyworker import versions
from notifyworker.database import Queryable
from notifyworker.errors import RunConflict
from notifyworker.shadow_report import shadow_report
from notifyworker.store import Row, Store

#: What promote wants unless told otherwise.
LEAST_AGREEMENT, LEAST_RUNS = 0.99, 100

_NOT_COMPARED: dict[str, Any] = {"compared": 0, "agreement": None}


class Objection(NamedTuple):
    """Why a switch is refused unless it is forced, and what could be done."""

    message: str
    hint: str


async def judge(
    store: Store,
    on: Queryable,
    kind: str,
    version: str,
    *,
    project_id: str | None = None,
    since: datetime | None = None,
    least_agreement: float = LEAST_AGREEMENT,
    least_runs: int = LEAST_RUNS,
) -> tuple[dict[str, Any], list[Objection]]:
    """Return the version's entry of the report, with how many `workers` have it, and what speaks against making it live."""
    report = await shadow_report(store, on, kind=kind, version=version, project_id=project_id, since=since, first=0)
    found = dict(report[0] if report else _NOT_COMPARED)
    found["workers"] = await _workers(store, on, kind, version)
    against = []
    if found["compared"] < least_runs:
        message = f"{kind} {version}: only {found['compared']:,} runs were compared, and {least_runs:,} are wanted"
        against.append(Objection(message, "wait for more, replay some, or force it"))
    if found["agreement"] is not None and found["agreement"] < least_agreement:
        message = f"{kind} {version}: {percent(found['agreement'])} of {found['compared']:,} runs agree, and {percent(least_agreement)} are wanted"
        against.append(Objection(message, "`notifyworker shadow report` shows what differs; or force it"))
    if not found["workers"]:
        against.append(_nobody(kind, version, "deploy it first, or force it"))
    return found, against


async def promote(
    store: Store, on: Queryable, kind: str, version: str, *, force: bool = False, actor: str | None = None, **how: Any
) -> dict[str, Any]:
    """
    Make a version live, if what was compared allows it; return what was live before and why it was allowed.

    `how` is as in judge. Raises RunConflict if fewer than `least_runs` were compared, if less than `least_agreement` of them
    agree, or if no worker has the version; not with `force`. Who, when and why is in the audit.
    """
    found, against = await judge(store, on, kind, version, **how)
    if against and not force:
        raise RunConflict(against[0].message, hint=against[0].hint)
    why = f"{'forced: ' if force else ''}{found['compared']:,} compared, {percent(found['agreement'])} the same"
    return await _switch(store, on, kind, version, project_id=how.get("project_id"), actor=actor, why=why)


async def switch_back(
    store: Store,
    on: Queryable,
    kind: str,
    *,
    project_id: str | None = None,
    unless_live_is_not: str | None = None,
    force: bool = False,
    actor: str | None = None,
) -> dict[str, Any]:
    """
    Make live again what was before the last switch of exactly this kind and project; whatever was compared.

    Raises RunConflict if there was none, if `unless_live_is_not` names another version than the one that is live, or, without
    `force`, if no worker has the version to go back to. Twice is there and back again.
    """
    last = await last_switch(store, on, kind, project_id)
    if last is None:
        message = f"{kind} was not switched{f' for {project_id}' if project_id else ''}, so that there is no way back"
        raise RunConflict(message, hint="`notifyworker shadow versions` shows what is live")
    if unless_live_is_not is not None and last["version"] != unless_live_is_not:
        message = f"{kind}: {last['version'] or 'the handler without a version'} is live by now, not {unless_live_is_not}"
        raise RunConflict(message, hint="look again")
    if last["was"] is not None and not force and not await _workers(store, on, kind, last["was"]):
        against = _nobody(kind, last["was"], "deploy it again, or force it")
        raise RunConflict(against.message, hint=against.hint)
    why = f"{'forced: ' if force else ''}back"
    return await _switch(store, on, kind, last["was"], project_id=project_id, actor=actor, why=why)


async def last_switch(store: Store, on: Queryable, kind: str, project_id: str | None) -> Row | None:
    """The last of a kind, of every project (None) or of one: `version` is live since, `was` before."""
    rows = await on.fetch(store.sql("switches_list"), kind, project_id or "", 1)
    return rows[0] if rows else None


async def switches_list(store: Store, on: Queryable, kind: str | None = None, *, limit: int = 20) -> list[Row]:
    """Return the last switches, the newest first: who, when, from what to what, and why."""
    return await on.fetch(store.sql("switches_list"), kind, None, limit)


async def _switch(
    store: Store, on: Queryable, kind: str, version: str | None, *, project_id: str | None, actor: str | None, why: str
) -> dict[str, Any]:
    was = await versions.version_set(store, on, kind, version, project_id, actor=actor, why=why)
    return {"kind": kind, "version": version, "project_id": project_id, "was": was, "why": why}


async def _workers(store: Store, on: Queryable, kind: str, version: str) -> int:
    workers: int = (await on.fetch(store.sql("version_workers"), kind, version))[0]["workers"]
    return workers


def _nobody(kind: str, version: str, hint: str) -> Objection:
    return Objection(f"{kind} {version}: no worker has this version, so that its runs would wait", hint)


def percent(rate: float | None) -> str:
    """A rate as text, never rounded up: 99.99 %, and 100 % only for all."""
    return "none" if rate is None else f"{math.floor(rate * 10_000) / 100:g} %"
