"""Versions of handlers: what a worker has of them, and which is live (schema/0023_versions.sql)."""

from notifyworker.database import Queryable
from notifyworker.handlers import Roster
from notifyworker.store import Row, Served, Store


def served_by(roster: Roster, project_ids: list[str] | None) -> Served:
    """What a worker with these handlers claims."""
    first = {kind: roster[kind, roster.versions.get(kind, [None])[0]] for kind in roster.kinds}
    return Served(
        max_attempts={kind: handler.retry.max_attempts for kind, handler in first.items()},
        timeouts_s={kind: handler.timeout_s for kind, handler in first.items()},
        project_ids=project_ids,
        versions={
            kind: {version: (roster[kind, version].retry.max_attempts, roster[kind, version].timeout_s) for version in versions}
            for kind, versions in roster.versions.items()
        },
    )


def names_of(roster: Roster) -> list[str]:
    """The named versions, as `kind@version`."""
    return sorted(
        f"{kind}@{version}" for kind, versions in roster.versions.items() for version in versions if version is not None
    )


async def adopt_versions(store: Store, on: Queryable, roster: Roster) -> None:
    """Make the first version of each kind live that has no handler without one, where nobody has said what is."""
    first = {kind: versions[0] for kind, versions in roster.versions.items() if None not in versions}
    if first:
        await on.fetch(store.sql("versions_adopt"), list(first), list(first.values()))


async def version_set(
    store: Store, on: Queryable, kind: str, version: str | None, project_id: str | None, *, actor: str | None, why: str | None
) -> str | None:
    """Make a version live (None: the handler without one); return what was live before."""
    was: str | None = (await on.fetch(store.sql("version_set"), kind, version, project_id, actor, why))[0]["was"]
    return was


async def versions_list(store: Store, on: Queryable) -> list[Row]:
    """Return what is live where a version has a name, and how many workers have that version."""
    return await on.fetch(store.sql("versions_list"))
