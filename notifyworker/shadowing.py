"""What a client does with copies of live runs and with versions: see docs/shadow.md."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from notifyworker import promoting, shadow_report, versions
from notifyworker.acting import effect
from notifyworker.bulk import BATCH, Tally
from notifyworker.compare import path_of, tolerance_of
from notifyworker.database import Queryable
from notifyworker.errors import HandlerError, InvalidRun
from notifyworker.given import REFUSALS, check_integer, check_text, moment_of, refused
from notifyworker.handlers import check_version
from notifyworker.many import Many
from notifyworker.shadow_store import NewMirror, ShadowStore
from notifyworker.store import Store


def new_mirror(**given: Any) -> NewMirror:
    """Check a rule. Raises InvalidRun, which names the field."""
    if unknown := sorted(set(given) - set(NewMirror.__dataclass_fields__)):
        raise InvalidRun(unknown[0], "a rule has no such field", hint=f"there are: {', '.join(NewMirror.__dataclass_fields__)}")
    given = {name: value for name, value in given.items() if value is not None}
    check_kind_and_version(given.get("kind"), given.get("version"), given.get("project_id"))
    percent = given.get("percent", 100.0)
    if isinstance(percent, bool) or not isinstance(percent, int | float) or not 0 < percent <= 100:  # noqa: PLR2004 - percent
        raise InvalidRun("percent", f"must be above 0 and at most 100, not {percent!r:.100}")
    if "until" in given:
        given["until"] = moment_of("until", given["until"])
    if "per_hour" in given:
        check_integer("per_hour", given["per_hour"], 1, 1_000_000)
    return NewMirror(**given)


def check_kind_and_version(kind: Any, version: Any, project_id: Any = None) -> None:
    """Raise InvalidRun unless these can be a kind, a version and a project."""
    check_text("kind", kind, 200)
    check_version_name(version)
    if project_id is not None:
        check_text("project_id", project_id, 200)


def check_version_name(version: Any) -> None:
    """Raise InvalidRun unless this can be a version."""
    try:
        check_version(version)
    except HandlerError as error:
        raise InvalidRun("version", str(error).partition("version ")[2].partition(" (")[0]) from None


def check_comparison(kind: Any, ignored: Sequence[str], tolerances: Mapping[str, Any]) -> None:
    """Raise InvalidRun unless this is how results can be compared."""
    check_text("kind", kind, 200)
    try:
        for path in ignored:
            path_of(path)
    except (ValueError, AttributeError) as error:
        raise InvalidRun("ignore", str(error)) from None
    try:
        for path, value in tolerances.items():
            path_of(path)
            tolerance_of(value)
    except (ValueError, AttributeError) as error:
        raise InvalidRun("tolerances", str(error)) from None


async def replay_all(
    store: Store,
    on: Queryable,
    kind: str,
    version: str,
    *,
    project_id: str | None = None,
    after: datetime | None = None,
    before: datetime | None = None,
    at_most: int | None = None,
    told: Callable[[Tally], None] = lambda _so_far: None,
) -> Tally:
    """Choose settled runs, BATCH a transaction, the oldest first; `told` hears how far it is. Skipped: chosen before."""
    done = skipped = 0
    behind: UUID | None = None
    while at_most is None or done < at_most:
        limit = BATCH if at_most is None else min(BATCH, at_most - done)
        row = (await on.fetch(store.sql("shadow_replay"), kind, version, project_id, after, before, behind, limit))[0]
        done, skipped = done + row["done"], skipped + row["skipped"]
        told(Tally(done, skipped))
        if (behind := row["last"]) is None:
            break
    return Tally(done, skipped)


class Shadowing(Many):
    """The part of Client that deals with versions, and with copies of live runs."""

    @effect("mirror", lambda *_a, **_k: None)
    async def mirror(self, kind: str, version: str, percent: float = 100.0, **more: Any) -> None:
        """
        Execute so many percent of a kind's live runs once more by a version, without effects, and compare.

        Of `project_id`, `until` a time, `per_hour` at most. The same again changes it. Raises InvalidRun, naming the field.
        """
        new = new_mirror(kind=kind, version=version, percent=percent, **more)
        try:
            await ShadowStore(self._store).mirror_set(await self._connected(), new)
        except REFUSALS as error:
            raise refused(error) from error

    @effect("remove_mirror", lambda *_a, **_k: True)
    async def remove_mirror(self, kind: str, version: str, project_id: str | None = None) -> bool:
        """End exactly this rule; False if there was none. What it has chosen is still compared."""
        check_kind_and_version(kind, version, project_id)
        return await ShadowStore(self._store).mirror_remove(await self._connected(), kind, version, project_id)

    async def mirrors(self) -> list[dict[str, Any]]:
        """Return all rules: how many copies each made `in_hour`, how many wait, how many were too many (`capped`)."""
        return [dict(row) for row in await ShadowStore(self._store).mirrors_list(await self._connected())]

    @effect("set_comparison", lambda *_a, **_k: None)
    async def set_comparison(
        self, kind: str, *, ignore: Sequence[str] = (), tolerances: Mapping[str, Any] | None = None, ordered: bool = True
    ) -> None:
        """
        Say how a kind is compared, and compare anew: paths that don't count, tolerances by path, whether effects have an order.

        A path is `result.items.*.at` or `effects.*.kwargs.id`; a tolerance a number, or `"1%"`. Raises InvalidRun.
        """
        check_comparison(kind, ignore, tolerances or {})
        on = await self._connected()
        await ShadowStore(self._store).comparison_set(on, kind, ignore, dict(tolerances or {}), ordered=ordered)

    async def shadow_report(self, *, first: int = 10, since: Any = None, **which: Any) -> list[dict[str, Any]]:
        """Return what comparing has found, of `kind`, `version` and `project_id`, of runs chosen `since`; see shadow_report.py."""
        check_integer("first", first, 0, 1000)
        moment = None if since is None else moment_of("since", since)
        return await shadow_report.shadow_report(self._store, await self._connected(), since=moment, first=first, **which)

    @effect("promote", lambda _id, kind, version, **_k: {"kind": kind, "version": version})
    async def promote(self, kind: str, version: str, **how: Any) -> dict[str, Any]:
        """
        Make a version live for the whole fleet, if what was compared allows it.

        Raises RunConflict below `least_agreement` (0.99) of `least_runs` (100) compared, or if no worker has it; not with
        `force`. Of `project_id` alone; of runs chosen `since`; `actor` is noted in the audit.
        """
        check_kind_and_version(kind, version, how.get("project_id"))
        return await promoting.promote(self._store, await self._connected(), kind, version, **how)

    @effect("switch_back", lambda _id, kind, **_k: {"kind": kind})
    async def switch_back(
        self, kind: str, *, project_id: str | None = None, force: bool = False, actor: str | None = None
    ) -> dict[str, Any]:
        """
        Make live again what was before the last switch of exactly this kind and project.

        Raises RunConflict if there was none, or, without `force`, if no worker has the version to go back to.
        """
        check_text("kind", kind, 200)
        return await promoting.switch_back(
            self._store, await self._connected(), kind, project_id=project_id, force=force, actor=actor
        )

    async def versions(self) -> list[dict[str, Any]]:
        """Return what is live where a version has a name, and how many `workers` have it."""
        return [dict(row) for row in await versions.versions_list(self._store, await self._connected())]

    @effect("replay_in_shadow", lambda *_a, **_k: Tally())
    async def replay_in_shadow(
        self, kind: str, version: str, *, told: Callable[[Tally], None] = lambda _so_far: None, **which: Any
    ) -> Tally:
        """
        Let settled runs of the past be executed once more by a version, without effects: of `project_id`, settled `after` and
        `before`, `at_most` so many. Each once: called again it goes on, and what was chosen before is skipped.
        """
        check_kind_and_version(kind, version, which.get("project_id"))
        for name in {"after", "before"} & which.keys():
            which[name] = None if which[name] is None else moment_of(name, which[name])
        return await replay_all(self._store, await self._connected(), kind, version, told=told, **which)

    @effect("reset_shadow", lambda *_a, **_k: 0)
    async def reset_shadow(self, kind: str, version: str) -> int:
        """Forget what was compared of a version, as after a change of its code; return how many pairs there were."""
        check_kind_and_version(kind, version)
        on = await self._connected()
        return int((await on.fetch(self._store.sql("shadow_reset"), kind, version))[0]["forgotten"])
