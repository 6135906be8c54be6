"""Concurrency keys, limits and rates: never more at once than was said, nobody starves, and nothing is claimed in vain."""

import asyncio
import time
from collections import Counter, defaultdict
from uuid import UUID

import asyncpg
import pytest
from servers import eventually

from notifyworker import Run

INSERT = """INSERT INTO notifyworker.runs (kind, project_id, concurrency_key, priority)
            SELECT $1, $2, $3, $4 FROM generate_series(1, $5) RETURNING run_id"""


class Ledger:
    """What is executed at this moment, by whatever it has in common; and the most that ever was."""

    def __init__(self) -> None:
        self.now: Counter[object] = Counter()
        self.most: Counter[object] = Counter()
        self.order: dict[object, list[UUID]] = defaultdict(list)
        self.attempts: Counter[UUID] = Counter()
        self.go = asyncio.Event()

    async def handle(self, run: Run) -> None:
        what = [("all",), ("kind", run.kind), ("project", run.project_id)]
        if key := run.headers.get("key"):
            what.append(("key", run.project_id, key))
        for each in what:
            self.now[each] += 1
            self.most[each] = max(self.most[each], self.now[each])
            self.order[each].append(run.run_id)
        self.attempts[run.run_id] += 1
        try:
            await (self.go.wait() if run.headers.get("waits") else asyncio.sleep(0))
        finally:
            for each in what:
                self.now[each] -= 1


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
async def fleet(make_worker, ledger):
    """Three workers of the kinds a and b, forty slots each, whose poll comes too late for any of these tests."""
    workers = [make_worker(poll_interval_s=60, concurrency=40) for _ in range(3)]
    for worker in workers:
        for kind in ("a", "b"):
            worker.handler(kind)(ledger.handle)
    return workers


async def insert(connection, kind="a", project="default", *, key=None, priority=0, number=1, waits=False) -> list[UUID]:
    rows = await connection.fetch(
        """INSERT INTO notifyworker.runs (kind, project_id, concurrency_key, priority, headers)
           SELECT $1, $2, $3, $4, jsonb_strip_nulls(jsonb_build_object('key', $3::text, 'waits', nullif($6, false)))
             FROM generate_series(1, $5) RETURNING run_id""",
        kind, project, key, priority, number, waits,
    )  # fmt: skip
    return [row["run_id"] for row in rows]


async def settled(connection, number: int) -> bool:
    return await connection.fetchval("SELECT count(*) FROM notifyworker.run_history") >= number


async def nothing_is_held(connection) -> bool:
    return await connection.fetchval("SELECT count(*) FROM notifyworker.places") == 0


async def test_runs_with_one_key_never_run_side_by_side(fleet, ledger, connection):
    async with fleet[0], fleet[1], fleet[2]:
        for key in ("x", "y"):
            await insert(connection, key=key, number=40)
            await insert(connection, kind="b", key=key, number=10)
        await insert(connection, number=50)
        await eventually(lambda: settled(connection, 150))
        await eventually(lambda: nothing_is_held(connection))
    assert ledger.most["key", "default", "x"] == ledger.most["key", "default", "y"] == 1
    assert set(ledger.attempts.values()) == {1}


async def test_the_same_key_of_another_project_is_another_key(fleet, ledger, connection):
    async with fleet[0]:
        await insert(connection, project="p", key="x", waits=True)
        await insert(connection, project="q", key="x", waits=True)
        await eventually(lambda: ledger.now["all",] == 2)
        ledger.go.set()


async def test_who_waits_for_a_key_is_not_read_again_and_comes_by_priority_then_age(fleet, ledger, connection):
    async with fleet[0]:
        first = await insert(connection, key="x", waits=True)
        await eventually(lambda: ledger.now["all",] == 1)
        later = await insert(connection, key="x", number=3)
        sooner = await insert(connection, key="x", priority=5)
        waiting = "SELECT count(*) FROM notifyworker.runs WHERE waits_for = 'key' AND state = 'pending'"
        await eventually(lambda: _is(connection, waiting, 4))
        others = await insert(connection, key="y", number=1)
        await eventually(lambda: ledger.attempts[others[0]] == 1)
        ledger.go.set()
        await eventually(lambda: settled(connection, 6))
    assert ledger.order["key", "default", "x"] == first + sooner + later


async def _is(connection, query: str, value: object) -> bool:
    return await connection.fetchval(query) == value


@pytest.mark.parametrize(
    ("limit", "counts"),
    [
        ("kind => 'a', max_running => 3", {("kind", "a"): 3}),
        ("project_id => 'p', max_running => 2", {("project", "p"): 2}),
        ("per => 'project', max_running => 2", {("project", "p"): 2, ("project", "q"): 2}),
        ("max_running => 5", {("all",): 5}),
        ("per => 'key', max_running => 2", {("key", "p", "x"): 2, ("key", "q", "x"): 2}),
    ],
)
async def test_never_more_at_once_than_a_limit_says(fleet, ledger, connection, limit, counts):
    await connection.execute(f"SELECT notifyworker.set_limit({limit})")
    async with fleet[0], fleet[1], fleet[2]:
        for kind in ("a", "b"):
            for project in ("p", "q"):
                await insert(connection, kind, project, number=20, waits=True)
                await insert(connection, kind, project, key="x", number=10, waits=True)
        for what, most in counts.items():
            await eventually(lambda what=what, most=most: ledger.now[what] == most)
        ledger.go.set()
        await eventually(lambda: settled(connection, 120))
        await eventually(lambda: nothing_is_held(connection))
    for what, most in counts.items():
        assert ledger.most[what] == most
    assert set(ledger.attempts.values()) == {1}


async def test_a_limit_is_changed_without_a_restart_and_counts_what_runs(fleet, ledger, connection):
    async with fleet[0], fleet[1]:
        await insert(connection, number=4, waits=True)
        await eventually(lambda: ledger.now["all",] == 4)
        await connection.execute("SELECT notifyworker.set_limit(kind => 'a', max_running => 5)")
        await insert(connection, number=20, waits=True)
        await eventually(lambda: ledger.now["all",] == 5)
        await connection.execute("SELECT notifyworker.set_limit(kind => 'a', max_running => 7)")
        await eventually(lambda: ledger.now["all",] == 7)
        assert await connection.fetchval("SELECT notifyworker.remove_limit(kind => 'a')")
        await eventually(lambda: ledger.now["all",] == 24)
        ledger.go.set()
        await eventually(lambda: settled(connection, 24))
    assert await nothing_is_held(connection)


async def test_of_two_limits_the_narrower_holds_and_others_go_on(fleet, ledger, connection):
    await connection.execute("SELECT notifyworker.set_limit(kind => 'a', max_running => 1)")
    await connection.execute("SELECT notifyworker.set_limit(max_running => 4)")
    async with fleet[0], fleet[1]:
        await insert(connection, number=10, waits=True)
        await insert(connection, kind="b", number=10, waits=True)
        await eventually(lambda: ledger.now["kind", "b"] == 3 and ledger.now["kind", "a"] == 1)
        ledger.go.set()
        await eventually(lambda: settled(connection, 20))
    assert ledger.most["all",] == 4
    assert ledger.most["kind", "a"] == 1


async def test_a_rate_lets_begin_so_many_and_sleepers_wake_when_a_token_is_due(fleet, ledger, connection):
    await connection.execute("SELECT notifyworker.set_limit(kind => 'a', rate => 10, per_s => 1, burst => 2)")
    async with fleet[0], fleet[1]:
        began = time.monotonic()
        await insert(connection, number=7)
        await eventually(lambda: settled(connection, 7))
        took = time.monotonic() - began
    assert took >= 0.5 - 0.01  # two at once, then one each tenth of a second
    assert_rate(
        await connection.fetch("SELECT started_at FROM notifyworker.run_history ORDER BY started_at"), burst=2, each_s=0.1
    )


def assert_rate(starts: list[asyncpg.Record], *, burst: int, each_s: float) -> None:
    """One token too many were a whole `each_s` too soon. A claim takes its tokens a moment after the start that it writes."""
    began = starts[0]["started_at"]
    for number, start in enumerate(starts):
        assert (start["started_at"] - began).total_seconds() >= (number + 1 - burst) * each_s - each_s / 2, number


async def test_a_rate_of_each_key(fleet, ledger, connection):
    await connection.execute("SELECT notifyworker.set_limit(per => 'key', max_running => 5, rate => 5, burst => 1)")
    async with fleet[0], fleet[1]:
        began = time.monotonic()
        for key in ("x", "y"):
            await insert(connection, key=key, number=4)
        await eventually(lambda: settled(connection, 8))
    assert time.monotonic() - began >= 0.59
    for key in ("x", "y"):
        starts = await connection.fetch(
            "SELECT started_at FROM notifyworker.run_history WHERE concurrency_key = $1 ORDER BY started_at", key
        )
        assert_rate(starts, burst=1, each_s=0.2)


async def test_a_failed_attempt_frees_the_key_for_the_next_and_comes_again(make_worker, connection):
    order: list[str] = []
    worker = make_worker(poll_interval_s=60)

    @worker.handler("a")
    async def handle(run: Run) -> None:
        order.append(f"{run.headers['name']} {run.attempt}")
        if run.headers["name"] == "first" and run.attempt == 1:
            message = "once"
            raise ValueError(message)

    async with worker:
        async with connection.transaction():  # the second waits before the first comes again, however slow the machine
            for name in ("first", "second"):
                await connection.execute(
                    "INSERT INTO notifyworker.runs (kind, concurrency_key, headers)"
                    " VALUES ('a', 'x', jsonb_build_object('name', $1::text))",
                    name,
                )
        await eventually(lambda: settled(connection, 2))
    assert order == ["first 1", "second 1", "first 2"]


async def test_the_key_of_a_cancelled_run_is_free_when_its_handler_has_ended(make_worker, connection):
    began, ending, end = asyncio.Event(), asyncio.Event(), asyncio.Event()
    second = asyncio.Event()
    worker = make_worker(poll_interval_s=60)

    @worker.handler("a")
    async def handle(run: Run) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await end.wait()

    @worker.handler("b")
    async def other(run: Run) -> None:
        second.set()

    async with worker:
        (first,) = await insert(connection, key="x")
        await began.wait()
        await insert(connection, kind="b", key="x")
        assert await connection.fetchval("SELECT notifyworker.cancel($1)", first) == "cancelled"
        await ending.wait()
        await eventually(lambda: _is(connection, "SELECT count(*) FROM notifyworker.runs WHERE waits_for = 'key'", 1))
        assert not second.is_set()
        end.set()
        await asyncio.wait_for(second.wait(), 30)
        await eventually(lambda: nothing_is_held(connection))


async def test_a_shadow_run_holds_no_key_and_no_place(fleet, ledger, connection):
    await connection.execute("SELECT notifyworker.set_limit(kind => 'b', max_running => 1)")
    async with fleet[0]:
        await insert(connection, key="x", waits=True)
        await eventually(lambda: ledger.now["all",] == 1)
        for kind in ("a", "b"):
            await connection.execute(
                "INSERT INTO notifyworker.runs (kind, concurrency_key, is_shadow) VALUES ($1, 'x', true)", kind
            )
        await eventually(lambda: settled(connection, 2))
        assert await connection.fetchval("SELECT count(*) FROM notifyworker.places") == 1
        ledger.go.set()


async def test_the_key_of_a_dead_worker_is_free_when_its_runs_are_taken_over(fleet, ledger, connection):
    (held,) = await insert(connection, key="x")
    await connection.execute("UPDATE notifyworker.runs SET run_at = now() - interval '1 s'")
    dead = "SELECT * FROM notifyworker.claim_limited('{a}', '{default}', '{1}', '{-infinity}', '{a}', '{3}', '{null}', 1, 'dead', 60, false, '{1}')"
    assert (await connection.fetchrow(dead))["run_id"] == held
    await connection.execute("UPDATE notifyworker.runs SET lease_expires_at = now() - interval '1 s'")
    await insert(connection, key="x")
    async with fleet[0]:
        await eventually(lambda: settled(connection, 2))
    assert await nothing_is_held(connection)


async def test_the_net_finds_what_was_lost(fleet, ledger, connection):
    """Places without a run, places of a cancelled run whose worker is gone, and a run that waits for a free key."""
    await insert(connection, key="x")
    await connection.execute("UPDATE notifyworker.runs SET waits_for = 'key'")
    place = (
        "INSERT INTO notifyworker.places VALUES (0, 'default', $1, 0, gen_random_uuid(), 'nobody', $2, CASE WHEN $2 THEN 1 END)"
    )
    await connection.execute(place, "y", False)
    await connection.execute(place, "z", True)
    await insert(connection, key="y")
    await insert(connection, key="z")
    async with fleet[0]:
        await eventually(lambda: settled(connection, 3))
    assert await nothing_is_held(connection)


async def test_two_runs_of_one_key_can_t_hold_it_whatever_is_written(connection):
    place = "INSERT INTO notifyworker.places VALUES (0, 'default', 'x', 0, gen_random_uuid(), 'w', false)"
    await connection.execute(place)
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.execute(place)


async def test_ten_thousand_keys_and_one_that_is_hot(fleet, ledger, connection):
    """The runs that wait for the hot key are in nobody's way."""
    await connection.execute(
        "INSERT INTO notifyworker.runs (kind, concurrency_key) SELECT 'a', 'hot' FROM generate_series(1, 3000)"
    )
    (blocker,) = await insert(connection, key="hot", priority=9, waits=True)
    async with fleet[0]:
        await eventually(lambda: ledger.attempts[blocker] == 1)
        await connection.execute(
            "INSERT INTO notifyworker.runs (kind, concurrency_key) SELECT 'a', i::text FROM generate_series(1, 2000) AS i"
        )
        await eventually(lambda: settled(connection, 2000))
        assert ledger.now["all",] == 1
        ledger.go.set()
