"""
Where to look for work: the lanes that a worker knows, and from which place on each is read.

A lane is what the claim's index leads with: kind, project and rank, which is the priority and whether its runs have a
concurrency key; within it runs are in the order of `run_at`.
While any session of the server holds an old snapshot (a report, a dump, a transaction that was forgotten), nothing
that was claimed can be vacuumed, and a claim that reads a lane from its beginning walks over all of it again: this is
how queues on Postgres collapse. So a claim reads each lane from its *mark*, the place where the last one found
something. What lies below a mark all the same, since it was committed late or carries an old `run_at`, is found in
one of three ways: somebody tells how far back it lies (`lower`: a notification says it, and so does a leader that has
seen a transaction stay open); a claim now and then reads from farther back (`slack`); or a look from the beginning
finds it. Such a look costs a fraction of a millisecond as a rule and much more over many dead rows, so it is made
whenever it takes less than a twentieth of the time.

Lanes that limits or keys concern are claimed by another statement (schema/0012_limits.sql), so that nobody else pays for
it: a claim of lanes of both sorts is made in several batches, each of one sort. Lanes of runs with keys have no mark: a run
that has waited for its key comes back to its old place.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby, islice
from typing import NamedTuple, Protocol

from notifyworker.shares import Shares

#: Transactions commit in another order than they begin in: a lane is read from so far before its mark; and from so
#: much farther now and then, while looks from the beginning are rare.
SLACK, WIDE_SLACK = timedelta(milliseconds=50), timedelta(seconds=2)
_RARE_S = 0.2
#: The part of the time that looks from the beginning may take.
LOOK_SHARE = 0.05
#: How many lanes one claim reads, and how many without a run are remembered.
LANES_A_CLAIM = 256
#: Below every row.
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Key = tuple[str, str, int]


@dataclass(slots=True)
class Lane:
    """
    One lane: its key, and the place from which it is read.

    `rank`, lower first, is minus twice the priority, and one more for runs with a concurrency key (migrate.RANK).
    """

    kind: str
    project_id: str
    rank: int
    mark: datetime
    is_ready: bool = True
    is_limited: bool = False
    #: The version of the kind that is live for the project, as the last look had it; a claim makes sure of it.
    version: str | None = None
    #: The priority that counts, lower first: with ageing it falls while the head of the lane waits.
    level: int = 0
    #: The place of its head at the last look, by which it is placed among others of its level until the next.
    head: datetime = EPOCH

    def read_from(self, slack: timedelta) -> datetime:
        """The place from which it is read."""
        return EPOCH if self.rank & 1 else max(EPOCH, self.mark - slack)


class Taken(Protocol):
    """What is asked of a run that was claimed."""

    kind: str
    project_id: str
    priority: int


class Seen(NamedTuple):
    """A lane as a look finds it. `waited_s`: since when its head is due; `weight`: of its project."""

    kind: str
    project_id: str
    rank: int
    mark: datetime
    is_ready: bool
    is_limited: bool = False
    waited_s: float = 0.0
    weight: float = 1.0
    version: str | None = None


class Batch(NamedTuple):
    """Lanes of one sort, to be read by one claim, and how many runs it takes of each at most."""

    lanes: Sequence[Lane]
    most: Sequence[int]

    @property
    def is_limited(self) -> bool:
        """Whether limits or keys concern them."""
        return self.lanes[0].is_limited

    @property
    def version(self) -> str | None:
        """The version that all of them are of."""
        return self.lanes[0].version


class Lanes:
    """The lanes of one reader, whose runs gain a priority each `ageing_s` seconds, if any. `now` is time.monotonic()."""

    def __init__(self, ageing_s: float | None = None) -> None:
        self._ageing_s = ageing_s
        self._shares = Shares()
        self._lanes: dict[Key, Lane] = {}
        self._in_order: list[Lane] = []
        #: Whether limits or keys concern any of them.
        self.any_limited = False
        self._any_versions = False
        self._look_again_at = 0.0
        self._wide_again_at = 0.0
        # How far back was told of since the claim or look that is under way began: that one has not seen it.
        self._told: datetime | None = None
        self._last_look_took_s = 0.0
        #: Seconds that a look from the beginning takes: the lesser of the last two. A single one that was slow has waited
        #: for a connection, a lock or a processor, and tells nothing of the next.
        self.look_takes_s = 0.0

    def __len__(self) -> int:
        return len(self._lanes)

    def to_read(self) -> Sequence[Lane]:
        """
        Lanes in the order in which a claim reads them: higher priority first, then the project that was served least, then
        by the age of their heads. Of more lanes than one claim reads, those that are ready, in the order of the last look.
        """
        if len(self._in_order) > LANES_A_CLAIM:
            return list(islice((lane for lane in self._in_order if lane.is_ready), LANES_A_CLAIM))
        if self._shares.are_several and self._shares.have_moved:
            self._in_order.sort(key=self._place)
            self._shares.have_moved = False
        return self._in_order

    def batches(self, limit: int) -> list[Batch]:
        """
        Return the same in the pieces in which a claim of up to `limit` runs reads them, each with limits throughout or without,
        and of one version.

        Where there are both sorts, lanes in which nothing is known to be ready come last, so that as a rule they are not
        read at all.
        """
        lanes = self.to_read()
        if not lanes:
            return []
        if not self.any_limited and not self._any_versions:
            return [self._batch(lanes, limit)]
        ready = [lane for lane in lanes if lane.is_ready]
        rest = sorted((lane for lane in lanes if not lane.is_ready), key=_sort)
        pieces = (list(some) for part in (ready, rest) for _, some in groupby(part, key=_sort))
        return [self._batch(piece, limit) for piece in pieces]

    def _batch(self, lanes: Sequence[Lane], limit: int) -> Batch:
        if not self._shares.are_several:
            return Batch(lanes, [limit] * len(lanes))
        most: list[int] = []
        for _, level in groupby(lanes, key=lambda lane: lane.level):
            most += self._shares.split([(lane.project_id, lane.is_ready) for lane in level], limit)
        return Batch(lanes, most)

    def _place(self, lane: Lane) -> tuple[int, float, datetime]:
        return lane.level, self._shares.time(lane.project_id), lane.head

    def look_is_due_in_s(self, now: float) -> float:
        """Seconds until the next look from the beginning may be made; 0: now."""
        return max(0.0, self._look_again_at - now)

    def look_now(self) -> None:
        """What a look finds besides rows has changed."""
        self._look_again_at = 0.0

    def begin(self) -> None:
        """A claim or a look begins: it will see all that was told of before."""
        self._told = None

    def is_dear(self) -> bool:
        """Whether a look from the beginning takes so long that it can be made only now and then."""
        return self.look_takes_s / LOOK_SHARE > _RARE_S

    def slack(self, now: float) -> timedelta:
        """From how far before the marks to read now."""
        return WIDE_SLACK if self.is_dear() and now >= self._wide_again_at else SLACK

    def read(self, slack: timedelta, began: float, now: float) -> None:
        """Take note of how long it took to read."""
        if slack is WIDE_SLACK:
            self._wide_again_at = _again_at(now - began, now)

    def looked(self, seen: Iterable[Seen], began: float, now: float) -> bool:
        """Take note of a look from the beginning. Tell whether any lane is ready."""
        self.look_takes_s = min(now - began, self._last_look_took_s)
        self._last_look_took_s = now - began
        self._look_again_at = _again_at(self.look_takes_s, now)
        for lane in self._lanes.values():
            lane.is_ready = False
        any_ready = False
        weights: dict[str, float] = {}
        for each in seen:
            key = each.kind, each.project_id, each.rank
            mark = each.mark if self._told is None else min(each.mark, self._told)
            lane = self._lanes.setdefault(key, Lane(*key, mark))
            if each.is_ready:
                lane.mark = mark
            lane.is_ready, lane.is_limited, lane.version, lane.head = each.is_ready, each.is_limited, each.version, mark
            lane.level = (each.rank >> 1) - (0 if self._ageing_s is None else int(max(0.0, each.waited_s) / self._ageing_s))
            if each.is_ready:
                any_ready = True
                weights[each.project_id] = each.weight
        if len(self._lanes) > LANES_A_CLAIM:
            self._forget()
        self._shares.ready(weights)
        self._in_order = sorted(self._lanes.values(), key=self._place)
        self.any_limited = any(lane.is_limited for lane in self._in_order)
        self._any_versions = any(lane.version is not None for lane in self._in_order)
        return any_ready

    def have_more(self, batch: Batch, runs: Sequence[Taken], limit: int) -> bool:
        """
        Take note of what a claim of up to `limit` runs took, and tell whether there may be more.

        Where several projects share, a lane may have more because it was not to give all. What lanes with limits might have
        given is not known here: as long as they give anything, they are asked again.
        """
        if self._shares.are_several and runs:
            for project_id, number in Counter(run.project_id for run in runs).items():
                self._shares.claimed(project_id, number)
            if len(runs) < limit:
                return batch.is_limited or self._were_held_back(batch, runs) or self._are_unread()
        elif len(runs) < limit:
            self.exhausted(batch.lanes)
            return self._are_unread()
        return len(runs) == limit

    def _are_unread(self) -> bool:
        """Whether lanes are ready that one claim has no room for: the next one reads them."""
        return len(self._in_order) > LANES_A_CLAIM and any(lane.is_ready for lane in self._in_order)

    def _were_held_back(self, batch: Batch, runs: Sequence[Taken]) -> bool:
        """Whether a lane gave all that it might; those that gave less have no more."""
        of_lane = Counter((run.kind, run.project_id, run.priority) for run in runs)
        more = [
            of_lane[lane.kind, lane.project_id, -(lane.rank >> 1)] >= most
            for lane, most in zip(batch.lanes, batch.most, strict=True)
        ]
        self.exhausted(lane for lane, has_more in zip(batch.lanes, more, strict=True) if not has_more)
        return any(more)

    def found(self, key: Key, run_at: datetime) -> None:
        """Take note of what was found in a lane: the furthest `run_at`."""
        lane = self._lanes.get(key)
        if lane is not None:
            lane.mark = max(lane.mark, run_at if self._told is None else min(run_at, self._told))

    def exhausted(self, lanes: Iterable[Lane]) -> None:
        """Take note that a claim found no more in any of these."""
        for lane in lanes:
            lane.is_ready = self._told is not None and lane.mark <= self._told

    def lower(self, to: datetime) -> None:
        """Something that lies as far back as this has only now become visible."""
        self._told = to if self._told is None else min(to, self._told)
        for lane in self._lanes.values():
            if lane.mark > to:
                lane.mark = to
                lane.is_ready = True

    def _forget(self) -> None:
        """Drop the lanes without a run that were used the longest ago, beyond the number that one claim reads."""
        idle = sorted((lane.mark, key) for key, lane in self._lanes.items() if not lane.is_ready)
        for _, key in idle[: max(0, len(self._lanes) - LANES_A_CLAIM)]:
            del self._lanes[key]


def _sort(lane: Lane) -> tuple[bool, str]:
    return lane.is_limited, lane.version or ""


def _again_at(takes_s: float, now: float) -> float:
    """When that which takes so long, and is over now, may be done again, to take LOOK_SHARE of the time."""
    return now + takes_s * (1 / LOOK_SHARE - 1)
