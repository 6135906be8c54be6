"""
What comparing copies with their live runs has found, as plain data: for the command line, HTTP and the page.

The interval of an agreement is Wilson's (E. B. Wilson, Probable inference, J. Am. Stat. Assoc. 22, 1927), which holds also near
0 and 1 and for few runs; that of the times is the normal one of the mean of their logarithms.
"""

import math
from datetime import datetime
from statistics import NormalDist
from typing import Any

from notifyworker.database import Queryable
from notifyworker.store import Row, Store

_Z = NormalDist().inv_cdf(0.975)
_FEWEST_TIMED = 30  # below, the normal interval of a mean says too much
_SHOWN = ("outcome", "failure", "result", "effects")


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
