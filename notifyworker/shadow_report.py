"""
What comparing copies with their live runs has found, as plain data: for the command line, HTTP and the page.

The interval of an agreement is Wilson's (E. B. Wilson, Probable inference, J. Am. Stat. Assoc. 22, 1927), which holds also near
0 and 1 and for few runs; that of the times is the normal one of the mean of their logarithms.
"""

import math
from datetime import datetime
from statistics import NormalDist
from typing import Any

from notifyworker import versions
from notifyworker.database import Queryable
from notifyworker.errors import RunConflict
from notifyworker.store import Row, Store

_Z = NormalDist().inv_cdf(0.975)
_FEWEST_TIMED = 30  # below, the normal interval of a mean says too much
_SHOWN = ("outcome", "failure", "result", "effects")

#: What promote wants unless told otherwise.
LEAST_AGREEMENT, LEAST_RUNS = 0.99, 100


def wilson(same: int, of: int) -> tuple[float, float]:
    """The interval in which a rate lies with 95 %, of which `same` of `of` were seen. (0, 1) for none."""
    if of == 0:
        return 0.0, 1.0
    rate, square = same / of, _Z * _Z
    middle = (rate + square / (2 * of)) / (1 + square / of)
    reach = _Z / (1 + square / of) * math.sqrt(rate * (1 - rate) / of + square / (4 * of * of))
    return max(0.0, middle - reach), min(1.0, middle + reach)


async def shadow_report(
    store: Store,
    on: Queryable,
    *,
    kind: str | None = None,
    version: str | None = None,
    project_id: str | None = None,
    since: datetime | None = None,
    first: int = 10,
) -> list[dict[str, Any]]:
    """
    Return an entry a kind and version: how many were compared, the agreement with its interval, and the `first` that differ.

    `ways` counts the ways to differ, of which a pair may have several. `times` is how many times as long a copy takes, with
    its interval: None where fewer than 30 were timed. Copies that are `gone` or `interrupted` count for nothing.
    """
    which = kind, version, project_id, since
    rows = await on.fetch(store.sql("shadow_report"), *which)
    report = [_entry(row) for row in rows]
    for entry in report:
        differing = await on.fetch(store.sql("shadow_differing"), entry["kind"], entry["version"], project_id, since, first)
        entry["differing"] = [dict(row) for row in differing]
    return report


def _entry(row: Row) -> dict[str, Any]:
    counted = {
        name: row[name] for name in ("compared", "same", "different", "waiting", "executed", "gone", "interrupted", "capped")
    }
    low, high = wilson(row["same"], row["compared"])
    times: dict[str, float] | None = None
    if row["timed"] >= _FEWEST_TIMED:
        reach = _Z * row["times_deviation"] / math.sqrt(row["timed"])
        times = {"factor": math.exp(row["times"]), "low": math.exp(row["times"] - reach), "high": math.exp(row["times"] + reach)}
    return {
        "kind": row["kind"],
        "version": row["version"],
        "live_version": row["live_version"],
        **counted,
        "agreement": row["same"] / row["compared"] if row["compared"] else None,
        "agreement_low": low,
        "agreement_high": high,
        "ways": {way: row[way] for way in _SHOWN},
        "effects_unrecorded": row["effects_unrecorded"],
        "live_s": row["live_s"],
        "shadow_s": row["shadow_s"],
        "times": times,
    }


async def promote(
    store: Store,
    on: Queryable,
    kind: str,
    version: str,
    *,
    project_id: str | None = None,
    since: datetime | None = None,
    least_agreement: float = LEAST_AGREEMENT,
    least_runs: int = LEAST_RUNS,
    force: bool = False,
    actor: str | None = None,
) -> dict[str, Any]:
    """
    Make a version live, if what was compared allows it; return what was live before and why it was allowed.

    Raises RunConflict if fewer than `least_runs` were compared, if less than `least_agreement` of them agree, or if no worker
    has the version; not with `force`. Who, when and why is in the audit.
    """
    report = await shadow_report(store, on, kind=kind, version=version, project_id=project_id, since=since, first=0)
    found: dict[str, Any] = report[0] if report else {"compared": 0, "agreement": None}
    told = f"{found['compared']:,} compared, {_percent(found['agreement'])} the same"
    if not force:
        if found["compared"] < least_runs:
            message = f"{kind} {version}: only {found['compared']:,} runs were compared, and {least_runs:,} are wanted"
            raise RunConflict(message, hint="wait for more, replay some, or force it")
        if found["agreement"] < least_agreement:
            message = f"{kind} {version}: {_percent(found['agreement'])} of {found['compared']:,} runs agree, and {_percent(least_agreement)} are wanted"
            raise RunConflict(message, hint="`notifyworker shadow report` shows what differs; or force it")
        workers = (await on.fetch(store.sql("version_workers"), kind, version))[0]["workers"]
        if not workers:
            message = f"{kind} {version}: no worker has this version, so that its runs would wait"
            raise RunConflict(message, hint="deploy it first, or force it")
    why = f"{'forced: ' if force else ''}{told}"
    was = await versions.version_set(store, on, kind, version, project_id, actor=actor, why=why)
    return {"kind": kind, "version": version, "project_id": project_id, "was": was, "why": why}


def _percent(rate: float | None) -> str:
    return "none" if rate is None else f"{math.floor(rate * 10_000) / 100:g} %"
