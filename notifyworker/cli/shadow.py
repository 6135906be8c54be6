"""`notifyworker shadow`: copies of live runs by another version, what comparing them has found, and which version is live."""

import getpass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from notifyworker.cli import output
from notifyworker.cli.options import NO_DATABASE_OPTIONS, DatabaseOptions, Json
from notifyworker.errors import InvalidRun, NotifyWorkerError

if TYPE_CHECKING:
    from datetime import datetime

    from notifyworker.cli.database import Database

_HYPHEN = {"allow_leading_hyphen": True}  # refused for their values, not for their looks
_MIRRORS = (
    output.Column("kind", "kind"),
    output.Column("version", "version"),
    output.Column("project", "project_id"),
    output.Column("percent", "percent", "right"),
    output.Column("this hour", "hour", "right"),
    output.Column("waiting", "waiting", "right"),
    output.Column("too many", "capped", "right"),
    output.Column("until", "until", spare=1),
)
_VERSIONS = (
    output.Column("kind", "kind"),
    output.Column("project", "project_id"),
    output.Column("live", "version"),
    output.Column("workers", "workers", "right"),
    output.Column("since", "changed_at", spare=1),
)
_WAYS = {
    "outcome": "one failed, the other not",
    "failure": "failed otherwise",
    "result": "another result",
    "effects": "other effects",
}

Kind = Annotated[str, Parameter(name="KIND", help="Which kind.")]
Version = Annotated[str, Parameter(name="VERSION", help='As in @worker.handler(KIND, version="v2").')]
OfKind = Annotated[str | None, Parameter(help="Of this kind.")]
OfVersion = Annotated[str | None, Parameter(help="Of this version.")]
OfProject = Annotated[str | None, Parameter(help="Of this project [default: every one].")]
Since = Annotated[str | None, Parameter(help="Chosen then or later; RFC 3339, or 90s, 10min, 2h, 7d ago.", **_HYPHEN)]


async def shadow_mirror(
    kind: Kind,
    version: Version,
    /,
    *,
    percent: Annotated[float, Parameter(help="So many of the live runs [default: 100].", **_HYPHEN)] = 100.0,
    project_id: OfProject = None,
    until: Annotated[str | None, Parameter(help="RFC 3339; until the rule is removed where it is left out.")] = None,
    per_hour: Annotated[int | None, Parameter(help="At most so many copies in each hour.", **_HYPHEN)] = None,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """Execute live runs once more by another version, without effects, and compare. The same again changes the rule."""
    from notifyworker.cli.database import opened
    from notifyworker.given import REFUSALS, refused
    from notifyworker.shadow_store import ShadowStore
    from notifyworker.shadowing import new_mirror

    new = new_mirror(kind=kind, version=version, percent=percent, project_id=project_id, until=until, per_hour=per_hour)
    async with opened(database) as db:
        try:
            await ShadowStore(db.store).mirror_set(db.connection, new)
        except REFUSALS as error:
            raise refused(error) from error
        await _show_mirrors(db, json=json)


async def shadow_unmirror(
    kind: Kind,
    version: Version,
    /,
    *,
    project_id: OfProject = None,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """End a rule, named as it was made. What it has chosen is still compared."""
    from notifyworker.cli.database import opened
    from notifyworker.shadow_store import ShadowStore
    from notifyworker.shadowing import check_kind_and_version

    check_kind_and_version(kind, version, project_id)
    async with opened(database) as db:
        if not await ShadowStore(db.store).mirror_remove(db.connection, kind, version, project_id):
            message = "there is no such rule"
            raise NotifyWorkerError(message, hint="notifyworker shadow mirrors")
        await _show_mirrors(db, json=json)


async def shadow_mirrors(*, json: Json = False, database: DatabaseOptions = NO_DATABASE_OPTIONS) -> None:
    """List the rules: how many copies were made this hour, how many wait, and how many were too many."""
    from notifyworker.cli.database import opened

    async with opened(database) as db:
        await _show_mirrors(db, json=json)


async def shadow_compare(
    kind: Kind,
    /,
    *,
    ignore: Annotated[list[str] | None, Parameter(help="A path that does not count, such as result.items.*.at.")] = None,
    tolerance: Annotated[list[str] | None, Parameter(help="How far numbers may be apart: result.price=0.01, or =1%%.")] = None,
    unordered: Annotated[bool, Parameter(help="Effects may come in any order.", negative="")] = False,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """Say how a kind is compared; what was compared already is compared again. Without options: everything counts."""
    from notifyworker.cli.database import opened
    from notifyworker.shadow_store import ShadowStore
    from notifyworker.shadowing import check_comparison

    tolerances = dict(_tolerance(text) for text in tolerance or [])
    check_comparison(kind, ignore or [], tolerances)
    async with opened(database) as db:
        await ShadowStore(db.store).comparison_set(db.connection, kind, ignore or [], tolerances, ordered=not unordered)
    told = {"kind": kind, "ignored": ignore or [], "tolerances": tolerances, "ordered": not unordered}
    if json:
        output.document(told)
    else:
        output.line(f"{kind} is compared anew")


async def shadow_report(
    *,
    kind: OfKind = None,
    version: OfVersion = None,
    project_id: OfProject = None,
    since: Since = None,
    first: Annotated[int, Parameter(help="So many of the runs that differ [default: 5].", **_HYPHEN)] = 5,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """Say how far copies agree with their live runs, in what they differ, and whether they are slower."""
    from notifyworker import shadow_report as reports
    from notifyworker.cli.database import opened
    from notifyworker.given import check_integer

    check_integer("first", first, 0, 1000)
    async with opened(database) as db:
        moment = await _ago(db, "since", since)
        report = await reports.shadow_report(
            db.store, db.connection, kind=kind, version=version, project_id=project_id, since=moment, first=first
        )
    if json:
        output.document({"shadow": report})
        return
    if not report:
        output.line("nothing was mirrored: notifyworker shadow mirror KIND VERSION")
    for entry in report:
        for line in _told(entry):
            output.line(line)


async def shadow_versions(*, json: Json = False, database: DatabaseOptions = NO_DATABASE_OPTIONS) -> None:
    """List which versions are live, and how many workers have them."""
    from notifyworker import versions
    from notifyworker.cli.database import opened

    async with opened(database) as db:
        rows: list[dict[str, Any]] = [dict(row) for row in await versions.versions_list(db.store, db.connection)]
    if json:
        output.document({"versions": rows})
        return
    shown = [
        {**row, "project_id": row["project_id"] or "every project", "changed_at": output.moment(row["changed_at"])}
        for row in rows
    ]
    output.table(_VERSIONS, shown, title="Versions")


async def shadow_promote(
    kind: Kind,
    version: Version,
    /,
    *,
    project_id: OfProject = None,
    agreement: Annotated[float, Parameter(help="At least so many percent agree [default: 99].", **_HYPHEN)] = 99.0,
    runs: Annotated[int, Parameter(help="Of at least so many that were compared [default: 100].", **_HYPHEN)] = 100,
    since: Since = None,
    force: Annotated[bool, Parameter(help="Whatever was compared: also to go back.", negative="")] = False,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """Make a version live for the whole fleet, within seconds; refused where too little was compared, or too much differs."""
    from notifyworker import promoting
    from notifyworker.cli.database import opened
    from notifyworker.given import check_integer
    from notifyworker.shadowing import check_kind_and_version

    check_kind_and_version(kind, version, project_id)
    check_integer("runs", runs, 1, 1_000_000_000)
    if not 0 <= agreement <= 100:  # noqa: PLR2004 - percent
        raise InvalidRun("agreement", f"must be between 0 and 100 percent, not {agreement!r}")
    async with opened(database) as db:
        done = await promoting.promote(
            db.store, db.connection, kind, version, project_id=project_id, since=await _ago(db, "since", since),
            least_agreement=agreement / 100, least_runs=runs, force=force, actor=getpass.getuser(),
        )  # fmt: skip
    if json:
        output.document(done)
    else:
        output.line(_switched(done))


async def shadow_back(
    kind: Kind,
    /,
    *,
    project_id: OfProject = None,
    force: Annotated[bool, Parameter(help="Also where no worker has the version of before.", negative="")] = False,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """Make live again what was before the last switch of this kind, or of its `project_id`."""
    from notifyworker import promoting
    from notifyworker.cli.database import opened
    from notifyworker.given import check_text

    check_text("kind", kind, 200)
    async with opened(database) as db:
        done = await promoting.switch_back(
            db.store, db.connection, kind, project_id=project_id, force=force, actor=getpass.getuser()
        )
    if json:
        output.document(done)
    else:
        output.line(_switched(done))


async def shadow_replay(
    *,
    kind: Annotated[str, Parameter(help="Of this kind.")],
    version: Annotated[str, Parameter(help="By this version.")],
    project_id: OfProject = None,
    since: Annotated[str | None, Parameter(help="Settled then or later; RFC 3339, or 2h, 7d ago.", **_HYPHEN)] = None,
    until: Annotated[str | None, Parameter(help="Settled before then.", **_HYPHEN)] = None,
    at_most: Annotated[int | None, Parameter(help="So many, the oldest first.", **_HYPHEN)] = None,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """Let settled runs be executed once more by a version, without effects. Stopped half-way, the same command goes on."""
    from notifyworker.cli.database import opened
    from notifyworker.cli.progress import Progress
    from notifyworker.given import check_integer
    from notifyworker.shadowing import check_kind_and_version, replay_all

    check_kind_and_version(kind, version, project_id)
    if at_most is not None:
        check_integer("at_most", at_most, 1, 1_000_000_000)
    async with opened(database) as db:
        after, before = await _ago(db, "since", since), await _ago(db, "until", until)
        counted = await db.connection.fetchval(db.store.sql("shadow_replay_count"), kind, project_id, after, before)
        with Progress("choosing", min(counted, at_most or counted), "runs") as progress:
            tally = await replay_all(
                db.store, db.connection, kind, version, project_id=project_id, after=after, before=before, at_most=at_most,
                told=lambda so_far: progress.at(so_far.done + so_far.skipped),
            )  # fmt: skip
    if json:
        output.document({"chosen": tally.done, "skipped": tally.skipped})
    else:
        already = f"; {tally.skipped:,} were before" if tally.skipped else ""
        output.line(f"{tally.done:,} runs of {kind} are chosen for {version}{already}: notifyworker shadow report")


async def shadow_reset(
    kind: Kind, version: Version, /, *, json: Json = False, database: DatabaseOptions = NO_DATABASE_OPTIONS
) -> None:
    """Forget what was compared of a version, to begin anew, as after a change of its code."""
    from notifyworker.cli.database import opened
    from notifyworker.shadowing import check_kind_and_version

    check_kind_and_version(kind, version)
    async with opened(database) as db:
        forgotten = await db.connection.fetchval(db.store.sql("shadow_reset"), kind, version)
    if json:
        output.document({"forgotten": forgotten})
    else:
        output.line(f"{forgotten:,} comparisons of {kind} {version} are forgotten")


def _tolerance(text: str) -> tuple[str, Any]:
    path, equals, value = text.partition("=")
    if not equals:
        raise InvalidRun("tolerance", f"must be PATH=NUMBER or PATH=NUMBER%, not {text!r:.100}")
    return path, value


async def _ago(db: "Database", name: str, given: str | None) -> "datetime | None":
    from notifyworker.cli.filters import moment_ago

    return moment_ago(name, given, await db.store.clock(db.connection))


async def _show_mirrors(db: "Database", *, json: bool) -> None:
    from notifyworker.shadow_store import ShadowStore

    rows: list[dict[str, Any]] = [dict(row) for row in await ShadowStore(db.store).mirrors_list(db.connection)]
    if json:
        output.document({"mirrors": rows})
        return
    shown = [
        {
            **row,
            "project_id": row["project_id"] or "every project",
            "percent": f"{row['percent']:g}",
            "hour": "" if row["per_hour"] is None else f"{row['in_hour']} of {row['per_hour']}",
            "until": "removed" if row["until"] is None else output.moment(row["until"]),
        }
        for row in rows
    ]
    output.table(_MIRRORS, shown, title="Mirrored")


def _switched(done: dict[str, Any]) -> str:
    unnamed = "the handler without a version"
    return f"{done['kind']}: {done['version'] or unnamed} is live, {done['was'] or unnamed} was; {done['why']}"


def _told(entry: dict[str, Any]) -> list[str]:
    """A report for people."""
    lines = [f"{entry['kind']} {entry['version']}, beside {entry['live_version'] or 'the handler without a version'}"]
    rate = entry["agreement"]
    if rate is None:
        lines.append("  nothing is compared yet")
    else:
        low, high = entry["agreement_low"], entry["agreement_high"]
        lines.append(f"  {rate:.2%} of {entry['compared']:,} the same (95 %: {low:.2%} to {high:.2%})")
    lines += [f"  {entry['ways'][way]:,} {text}" for way, text in _WAYS.items() if entry["ways"][way]]
    if (times := entry["times"]) is not None:
        word = "slower" if times["low"] > 1 else "faster" if times["high"] < 1 else "as fast"
        lines.append(f"  {word}: {times['factor']:.2f} times as long (95 %: {times['low']:.2f} to {times['high']:.2f})")
    left = [
        f"{entry[name]:,} {text}"
        for name, text in (
            ("waiting", "wait"), ("executed", "are executed or about to be compared"), ("capped", "were too many"), ("gone", "had no live run any more"),
            ("interrupted", "were interrupted"), ("effects_unrecorded", "without recorded effects"),
        )
        if entry[name]
    ]  # fmt: skip
    if left:
        lines.append(f"  {'; '.join(left)}")
    for pair in entry["differing"]:
        lines.append(f"  {pair['live_run_id']}: {', '.join(pair['ways'])}")
        lines += [f"    {line}" for line in (pair["diff"] or "").splitlines()]
    return lines
