"""The statements about copies of live runs, beside those of the store: one function a file in sql/, of the same name."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from notifyworker import payload as payloads
from notifyworker.compare import Rules, Side, Verdict, path_of, tolerance_of
from notifyworker.database import Queryable
from notifyworker.run import Desk, Run
from notifyworker.store import Row, Served, Store


@dataclass(frozen=True, slots=True)
class NewMirror:
    """What is mirrored: so many percent of a kind's live runs (of a project; None: every one) to a version."""

    kind: str
    version: str
    percent: float = 100.0
    project_id: str | None = None
    until: datetime | None = None
    per_hour: int | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """A live run and its copy, both settled."""

    live_run_id: UUID
    version: str
    kind: str
    live: Side | None
    shadow: Side | None
    shadow_s: float | None


class ShadowStore:
    """The statements of one installation."""

    def __init__(self, store: Store) -> None:
        self._sql = store.sql

    async def claim_shadow(
        self, on: Queryable, served: Served, *, limit: int, lease_owner: str, lease_s: float, desk: Desk
    ) -> list[Run]:
        """Make and lease up to `limit` copies for the versions that this worker has."""
        named = [
            (kind, version, attempts, timeout_s)
            for kind, versions in served.versions.items()
            for version, (attempts, timeout_s) in versions.items()
            if version is not None
        ]
        columns = [list(column) for column in zip(*named, strict=True)]
        rows = await on.fetch(self._sql("claim_shadow"), *columns, served.project_ids, limit, lease_owner, lease_s)
        return [_copy(row, desk) for row in rows]

    async def mirrors_load(self, on: Queryable) -> list[Row]:
        """Return what a worker has to know of the rules."""
        return await on.fetch(self._sql("mirrors_load"))

    async def mirrors_list(self, on: Queryable) -> list[Row]:
        """Return all rules, with what became of what they chose."""
        return await on.fetch(self._sql("mirrors_list"))

    async def mirror_set(self, on: Queryable, new: NewMirror) -> None:
        """Make a rule, or change it to exactly this."""
        await on.fetch(
            self._sql("mirror_set"), new.kind, new.version, float(new.percent), new.project_id, new.until, new.per_hour
        )

    async def mirror_remove(self, on: Queryable, kind: str, version: str, project_id: str | None) -> bool:
        """End exactly this rule; False if there was none."""
        return bool((await on.fetch(self._sql("mirror_remove"), kind, version, project_id))[0]["removed"])

    async def comparison_set(
        self, on: Queryable, kind: str, ignored: Sequence[str], tolerances: dict[str, Any], *, ordered: bool
    ) -> None:
        """Say how a kind is compared."""
        await on.fetch(self._sql("comparison_set"), kind, list(ignored), payloads.encode(tolerances), ordered)

    async def comparisons_load(self, on: Queryable, kinds: Sequence[str] | None = None) -> list[Row]:
        """Return how these kinds are compared, where it is said."""
        return await on.fetch(self._sql("comparisons_load"), None if kinds is None else list(kinds))

    async def pairs_take(self, on: Queryable, kinds: Sequence[str], *, limit: int) -> list[Pair]:
        """Return pairs of these kinds that are to be compared."""
        return [_pair(row) for row in await on.fetch(self._sql("pairs_take"), list(kinds), limit)]

    async def pairs_note(self, on: Queryable, found: Sequence[tuple[Pair, str, Verdict]]) -> None:
        """Write what comparing has found, and what each pair became."""
        await on.fetch(
            self._sql("pairs_note"),
            [pair.live_run_id for pair, _, _ in found], [pair.version for pair, _, _ in found],
            [became for _, became, _ in found], [payloads.encode(list(verdict.ways)) for _, _, verdict in found],
            [verdict.diff for _, _, verdict in found], [pair.shadow and pair.shadow.state for pair, _, _ in found],
            [pair.shadow_s for pair, _, _ in found],
        )  # fmt: skip

    async def pairs_forget(self, on: Queryable, *, limit: int) -> int:
        """Delete pairs that are older than the retention; return how many."""
        return len(await on.fetch(self._sql("pairs_forget"), limit))


def rules_of(row: Row) -> Rules:
    """How a kind is compared, as its row says; what was written there by hand and can't be read does not count."""
    ignored = [path for text in row["ignored"] if (path := _read(path_of, text)) is not None]
    tolerances = {}
    for text, value in payloads.decode(row["tolerances"]).items():
        path, tolerance = _read(path_of, text), _read(tolerance_of, value)
        if path is not None and tolerance is not None:
            tolerances[path] = tolerance
    return Rules(tuple(ignored), tolerances, row["ordered"])


def _read(how: Any, value: Any) -> Any:
    try:
        return how(value)
    except ValueError:
        return None


def _copy(row: Row, desk: Desk) -> Run:
    *columns, version, copy_of = row
    run = Run(*columns)
    run.sit_at(desk)
    run.version, run.copy_of = version, copy_of
    return run


def _pair(row: Row) -> Pair:
    return Pair(row["live_run_id"], row["version"], row["kind"], _side(row, "live"), _side(row, "shadow"), row["shadow_s"])


def _side(row: Row, which: str) -> Side | None:
    if row[f"{which}_state"] is None:
        return None
    effects = _decoded(row[f"{which}_effects"])
    return Side(
        row[f"{which}_state"],
        _decoded(row[f"{which}_result"]),
        effects if isinstance(effects, list) else None,
        row[f"{which}_error_code"],
        row[f"{which}_message"],
    )


def _decoded(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return payloads.decode(text)
    except ValueError:  # numbers that Python can't hold: compared as they are written
        return text
