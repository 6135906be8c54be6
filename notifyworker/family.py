"""
What a run starts and waits for: the calls that a handler makes, and how far this attempt has come in them. Knows no database.

A child is known by its position, in the order in which the handler starts; so is a join. On a further execution of the same
handler they must be what they were, or an outcome would be taken for another's.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias
from uuid import UUID

from notifyworker.errors import StepError
from notifyworker.payload import find_fault

MAX_CHILDREN = 50_000  # of one run

OnFailure: TypeAlias = Literal["wait", "raise", "cancel"]
_POLICIES = ("wait", "raise", "cancel")
_MAX_EVENT_NAME = 100
_MAX_EVENT_KEY = 90
_MAX_WAIT_S = 3650 * 86400


@dataclass(frozen=True, slots=True)
class ChildOutcome:
    """
    What became of a child: its terminal `state`, with its `result`, or with `error_code` and the last error's message.

    The state is `deleted` where somebody took the child away, or all that was known of it.
    """

    run_id: UUID
    kind: str
    state: str
    result: Any = None
    error_code: str | None = None
    error: str | None = None

    @property
    def is_completed(self) -> bool:
        """Whether it has done its work."""
        return self.state == "completed"


@dataclass(frozen=True, slots=True)
class ChildGroup:
    """The runs of a group, and the one that is inserted when all of them are settled."""

    children: list[UUID]
    then: UUID


@dataclass(frozen=True, slots=True)
class Start:
    """One call of start: what is to be inserted, and when."""

    kind: str
    payload: Any
    columns: dict[str, Any] = field(default_factory=dict)
    detached: bool = False
    if_failed: bool = False


class Starting:
    """What a Run has for its children and for events. `desk`, `is_shadow` and the recording of effects are the Run's own."""

    __slots__ = ()

    def _desk_of(self) -> Any:
        raise NotImplementedError

    def _in_shadow(self) -> "dict[UUID, ChildOutcome] | None":
        raise NotImplementedError

    def _recorded(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], shadow_result: Any) -> Any:
        raise NotImplementedError

    def _noted_live(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise NotImplementedError

    def _event_of_live(self, name: str, key: str | None) -> "Awaitable[Any] | None":
        raise NotImplementedError

    def start(
        self,
        kind: str,
        payload: Any = None,
        /,
        *,
        detached: bool = False,
        if_failed: bool = False,
        shadow_result: Any = None,
        **columns: Any,
    ) -> Any:
        """
        Start a run of this project as a child of this one, and return its id: `child = await run.start("resize", {"n": 1})`.

        It is inserted in the transaction that completes this run, or parks it in `join`: if the attempt fails or the lease is
        lost, nothing is. With `if_failed` also when this run fails for good or is cancelled by its own handler. It is
        cancelled together with this run unless it is `detached`. `columns` are a producer's: priority, run_at, max_attempts,
        timeout, expires_at, concurrency_key, headers.

        A handler that is executed again after a join must start the same kinds in the same order; it gets the same ids. In a
        plain handler the id is returned without `await`. A shadow run starts nothing: it records an effect, and `join`
        returns `shadow_result`. Raises StepError, InvalidRun, LeaseLost.
        """
        if (shadow := self._in_shadow()) is not None:
            child = uuid.uuid4()
            shadow[child] = ChildOutcome(child, kind, "completed", shadow_result)
            self._recorded("start", (kind, payload), columns, None)
            return _Given(child)
        self._noted_live("start", (kind, payload), columns)
        started = self._desk_of().start_children(self, [Start(kind, payload, columns, detached, if_failed)], None)
        return started[0][0] if isinstance(started, tuple) else _first(started)

    def start_group(
        self,
        children: Iterable[tuple[str, Any]],
        /,
        *,
        then: tuple[str, Any],
        detached: bool = False,
        **columns: Any,
    ) -> Any:
        """
        Start a child for each (kind, payload), and `then`, also a kind and a payload, when all of them are settled.

        Returns a ChildGroup; to be awaited but in a plain handler. All else is as with `start`.
        """
        wanted = [(kind, payload) for kind, payload in children]
        if not wanted:
            message = "a group has at least one child"
            raise ValueError(message)
        if (shadow := self._in_shadow()) is not None:
            for kind, payload in [*wanted, then]:
                self._recorded("start", (kind, payload), columns, None)
            ids = [uuid.uuid4() for _ in wanted]
            shadow.update({i: ChildOutcome(i, kind, "completed") for i, (kind, _) in zip(ids, wanted, strict=True)})
            return _Given(ChildGroup(ids, uuid.uuid4()))
        for kind, payload in [*wanted, then]:
            self._noted_live("start", (kind, payload), columns)
        starts = [Start(kind, payload, columns, detached) for kind, payload in wanted]
        started = self._desk_of().start_children(self, starts, Start(*then))
        return ChildGroup(*started) if isinstance(started, tuple) else _group(started)

    def join(
        self, children: "Sequence[UUID] | None" = None, /, *, on_failure: OnFailure = "wait", timeout: float | None = None
    ) -> "Awaitable[list[ChildOutcome]]":
        """
        Return the outcomes of these children, or of all that were started since the last join, in their order.

        While some of them are live this run waits without a slot: the handler is cancelled here, and executed again from its
        beginning when they are settled; no attempt is used up. `on_failure`: `wait` for all of them whatever becomes of one;
        `raise` ChildFailed as soon as one is not completed, and let the others go on; or `cancel` them first. Raises
        JoinTimeout when `timeout` seconds are over, by the database's clock, before all are settled: they go on, or are
        cancelled first with `on_failure="cancel"`. Raises StepError if the handler does not start and join as it did before,
        ValueError for an id that is no child of this run.
        """
        if on_failure not in _POLICIES:
            message = f"on_failure must be one of {', '.join(_POLICIES)}, not {on_failure!r:.100}"
            raise ValueError(message)
        _check_timeout(timeout)
        if (shadow := self._in_shadow()) is not None:
            if children is None:
                joined = list(shadow.values())
                shadow.clear()
                return _Given(joined)
            return _Given([shadow.pop(child) for child in children])
        joining: Awaitable[list[ChildOutcome]] = self._desk_of().join(self, children, on_failure, timeout)
        return joining

    def event(self, name: str, /, *, key: str | None = None, timeout: float | None = None) -> "Awaitable[Any]":
        """
        Return the payload of an event that comes from outside: by `notifyworker.emit` in SQL, `client.emit`, HTTP or the command line.

        Without `key` it is one that is meant for this run; else the one of this name and key in its project, which all who
        wait for it get. The first one counts, also when it came before. Until it is there this run waits without a slot, as
        in `join`. It is recorded as a step: a handler asks for a name and key once. Raises EventTimeout when `timeout`
        seconds are over, by the database's clock, StepError, LeaseLost. A copy of a live run gets what that one got.
        """
        for what, value, longest in (("name", name, _MAX_EVENT_NAME), ("key", key, _MAX_EVENT_KEY)):
            is_text = isinstance(value, str) and len(value) <= longest and (value or what == "key") and not find_fault(value)
            if not is_text and not (what == "key" and value is None):
                message = f"the {what} of an event must be text of up to {longest} characters, not {value!r:.200}"
                raise StepError(message)
        _check_timeout(timeout)
        if (told := self._event_of_live(name, key)) is not None:
            return told
        awaited: Awaitable[Any] = self._desk_of().event(self, name, key, timeout)
        return awaited


def _check_timeout(timeout: float | None) -> None:
    if timeout is not None and not (isinstance(timeout, int | float) and 0 < timeout <= _MAX_WAIT_S):
        message = f"timeout must be above 0 and at most {_MAX_WAIT_S} s, not {timeout!r}"
        raise ValueError(message)


class _Given(Awaitable[Any]):
    """What a shadow run gets: it is there at once."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __await__(self) -> Any:
        yield from ()
        return self._value


async def _first(started: "Awaitable[tuple[list[UUID], UUID | None]]") -> UUID:
    return (await started)[0][0]


async def _group(started: "Awaitable[tuple[list[UUID], UUID]]") -> ChildGroup:
    return ChildGroup(*await started)


@dataclass(frozen=True, slots=True)
class NewChild:
    """A child that is not inserted yet. `row` is a NewRun."""

    position: int
    run_id: UUID
    row: Any
    is_detached: bool
    if_failed: bool


@dataclass(frozen=True, slots=True)
class NewGroup:
    """A group that is not recorded yet; `last`, at `last_position`, is what is inserted when all are settled."""

    number: int
    positions: str
    on_failure: OnFailure = "wait"
    last_position: int | None = None
    last_id: UUID | None = None
    last: Any = None
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class RecordedGroup:
    """A group of an earlier execution."""

    positions: str
    on_failure: str
    last_id: UUID | None
    last_kind: str | None


class Family:
    """The children of one attempt."""

    def __init__(self) -> None:
        self.recorded: dict[int, tuple[str, UUID]] = {}
        self.groups: dict[int, RecordedGroup] = {}
        self.is_loaded = False
        self.loading = asyncio.Lock()
        #: Ids for the next children.
        self.ids: list[UUID] = []
        self.new: list[NewChild] = []
        self.new_groups: list[NewGroup] = []
        self._count = 0
        self._number = 0
        self._positions: dict[UUID, int] = {}
        self._unjoined: list[int] = []

    def next_position(self, kind: str) -> tuple[int, UUID | None]:
        """Return the place of a child that the handler starts now, and its id if it is recorded. Raises StepError."""
        if self._count == MAX_CHILDREN:
            message = f"a run may start {MAX_CHILDREN} children"
            raise StepError(message, hint="let a child start others")
        self._count += 1
        recorded = self.recorded.get(self._count)
        if recorded is None:
            return self._count, None
        if recorded[0] != kind:
            message = f"child {self._count} is now of kind {kind!r:.210}, and was started as {recorded[0]!r}"
            raise StepError(message, hint="let the handler start what it started, in the same order, or retry the run")
        return self._count, recorded[1]

    def skip_position(self) -> None:
        """Leave a place for the last run of a group."""
        self._count += 1

    def started(self, position: int, child: UUID) -> None:
        """Note that it can be joined."""
        self._positions[child] = position
        self._unjoined.append(position)

    def child_at(self, position: int) -> UUID:
        """Return the child of this place, which has been started."""
        return next(child for child, place in self._positions.items() if place == position)

    def take_joined(self, children: Sequence[UUID] | None) -> list[int]:
        """Return the places of those that are joined now. Raises ValueError."""
        if children is None:
            positions, self._unjoined = self._unjoined, []
            return positions
        if strangers := [child for child in children if child not in self._positions]:
            message = f"{strangers[0]} is no child that this run has started"
            raise ValueError(message)
        positions = [self._positions[child] for child in children]
        taken = set(positions)
        self._unjoined = [position for position in self._unjoined if position not in taken]
        return positions

    def next_group(
        self, positions: Sequence[int], on_failure: OnFailure, last_kind: str | None
    ) -> tuple[int, RecordedGroup | None]:
        """Return the number of the next group, and what is recorded of it. Raises StepError if it is another one."""
        self._number += 1
        recorded = self.groups.get(self._number)
        if recorded is None:
            return self._number, None
        if (recorded.positions, recorded.on_failure, recorded.last_kind) != (ranges(positions), on_failure, last_kind):
            message = f"join or group {self._number} is now of the children {ranges(positions)}, on_failure={on_failure}, "
            message += f"and was of {recorded.positions}, on_failure={recorded.on_failure}"
            raise StepError(message, hint="let the handler start and join as it did, in the same order, or retry the run")
        return self._number, recorded


def ranges(positions: Iterable[int]) -> str:
    """Write them as PostgreSQL writes an int4multirange."""
    found: list[list[int]] = []
    for position in sorted(set(positions)):
        if found and found[-1][1] == position:
            found[-1][1] += 1
        else:
            found.append([position, position + 1])
    return "{" + ",".join(f"[{first},{end})" for first, end in found) + "}"
