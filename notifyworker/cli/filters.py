"""The options that say which runs are meant. `runs list` and `runs tail` share them."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

if TYPE_CHECKING:
    from notifyworker.cli.database import Database
    from notifyworker.views import Filter

_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_AGO = re.compile(r"(\d{1,9})(s|min|h|d)", re.ASCII)
_WHEN = "RFC 3339, or so long ago: 90s, 10min, 2h, 7d."


@Parameter(name="*", group=Group("Which runs", sort_key=5))
@dataclass(frozen=True, slots=True)
class Followed:
    """What is known of a run while it is followed."""

    state: Annotated[Literal["pending", "running", "completed", "failed", "cancelled"] | None, Parameter(help="Only these.")] = (
        None
    )
    kind: Annotated[str | None, Parameter(help="Only of this kind.")] = None
    project_id: Annotated[str | None, Parameter(help="Only of this project.")] = None
    worker: Annotated[
        str | None, Parameter(help="Held or settled by the worker whose name begins so: a host's name finds all of its workers.")
    ] = None
    shadow: Annotated[
        bool | None, Parameter(help="Only shadow runs, or none of them [default: both].", negative="--no-shadow")
    ] = None

    def check(self) -> None:
        """Raise InvalidRun, naming what can't be."""
        from notifyworker.given import check_text

        for name in ("kind", "project_id", "worker"):
            if (value := getattr(self, name)) is not None:
                check_text(name, value, 200)

    def plain(self) -> "Filter":
        """Return what needs no clock."""
        from notifyworker.views import Filter

        return Filter(state=self.state, kind=self.kind, project_id=self.project_id, worker=self.worker, is_shadow=self.shadow)


@dataclass(frozen=True, slots=True)
class Wanted(Followed):
    """What the page filters by."""

    since: Annotated[str | None, Parameter(help=f"Inserted then or later. {_WHEN}", allow_leading_hyphen=True)] = None
    until: Annotated[str | None, Parameter(help=f"Inserted before. {_WHEN}", allow_leading_hyphen=True)] = None
    text: Annotated[
        str | None, Parameter(help="Somewhere in the payload, in any case; of the newest 100,000 that the rest leaves.")
    ] = None

    def check(self) -> None:
        """Raise InvalidRun, naming what can't be."""
        from notifyworker.given import check_text, moment_of

        Followed.check(self)
        if self.text is not None:
            check_text("text", self.text, 1000)
        for name in ("since", "until"):
            if (value := getattr(self, name)) is not None and not _AGO.fullmatch(value):
                moment_of(name, value)

    async def as_filter(self, db: "Database") -> "Filter":
        """Return what was asked for, with what lies back counted from the database's time."""
        import dataclasses

        now = await db.store.clock(db.connection)
        return dataclasses.replace(
            self.plain(), since=moment_ago("since", self.since, now), until=moment_ago("until", self.until, now), text=self.text
        )


NO_FILTER = Wanted()
ALL_FOLLOWED = Followed()


def moment_ago(name: str, given: str | None, now: datetime) -> datetime | None:
    """Return a time, given as such or as a span that lies back. Raises InvalidRun."""
    from notifyworker.given import moment_of

    if given is None:
        return None
    if ago := _AGO.fullmatch(given):
        try:
            return now - timedelta(seconds=int(ago[1]) * _UNITS[ago[2]])
        except OverflowError:
            return moment_of(name, "1970-01-01T00:00:00Z")
    return moment_of(name, given)
