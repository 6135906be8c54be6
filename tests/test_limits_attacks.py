"""Concurrency keys and limits under attack: who waits for whom, who is forgotten, what stays taken."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from servers import eventually
from test_concurrency import Ledger, insert, ledger, nothing_is_held, settled  # noqa: F401 - a fixture
from test_roles import login

from notifyworker import Run
from notifyworker.store import Store

CLAIM = """SELECT * FROM notifyworker.claim_limited(
    $1::text[], array_fill($2::text, array[cardinality($1)]), array_fill($3::integer, array[cardinality($1)]),
    array_fill('1970-01-01Z'::timestamptz, array[cardinality($1)]), $1, array_fill(3::smallint, array[cardinality($1)]),
    array_fill(null::float8, array[cardinality($1)]), $4::integer, $5, 60, $6, array_fill($4::bigint, array[cardinality($1)]))"""
WAITS = "SELECT count(*) FROM notifyworker.runs WHERE waits_for = 'key'"
READY = "SELECT run_id FROM notifyworker.runs WHERE state = 'pending' AND waits_for IS NULL ORDER BY run_id"


async def claim(
    on: asyncpg.Connection, *kinds: str, project: str = "default", keyed: bool = True, wanted: int = 10, owner: str = "w",
    shadow: bool = False,
) -> list[UUID]:  # fmt: skip
    """Claim as a worker does, of lanes of priority 0; never for longer than twenty seconds."""
    rows = await on.fetch(CLAIM, list(kinds), project, int(keyed), wanted, owner, shadow, timeout=20)
    return [row["run_id"] for row in rows]


async def settle(on: asyncpg.Connection, *runs: UUID, owner: str = "w") -> int:
    """Settle as a worker does, and return how many were."""
    tokens = [await on.fetchval("SELECT lease_token FROM notifyworker.runs WHERE run_id = $1", run) for run in runs]
    row = await on.fetchrow(Store("notifyworker")._sql["settle"], owner, list(runs), tokens, *[[]] * 7, timeout=20)
    return row[0]


@pytest.fixture
async def other(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A second session."""
    connection = await asyncpg.connect(dsn)
    yield connection
    connection.terminate()


# Who waits for whom: nobody.


async def test_a_claim_waits_for_no_other_claim(connection, other):
    """Else two that take the same keys by way of different kinds, each in its own order, would wait for each other."""
    await insert(connection, "a", key="x")
    await insert(connection, "b", key="x")
    (free,) = await insert(connection, "b", key="y")
    async with other.transaction():
        assert len(await claim(other, "a")) == 1
        assert await claim(connection, "b") == [free]


async def test_two_claims_that_cross_do_not_deadlock(connection, other):
    for kind, key in (("a", "x"), ("b", "y"), ("c", "y"), ("d", "x")):
        await insert(connection, kind, key=key)
    async with connection.transaction(), other.transaction():
        assert len(await claim(connection, "a")) == len(await claim(other, "b")) == 1
        assert await asyncio.gather(claim(connection, "c"), claim(other, "d")) == [[], []]


async def test_to_end_a_limit_waits_for_no_settle_and_no_settle_for_it(connection, other):
    await connection.execute("SELECT notifyworker.set_limit(kind => 'a', max_running => 5)")
    first, second = await insert(connection, number=2)
    assert len(await claim(connection, "a", keyed=False)) == 2
    async with other.transaction():
        assert await settle(other, first) == 1
        assert await connection.fetchval("SELECT notifyworker.remove_limit(kind => 'a')", timeout=20)
    await connection.execute("SELECT notifyworker.set_limit(kind => 'a', max_running => 5)")
    async with other.transaction():
        assert await other.fetchval("SELECT notifyworker.remove_limit(kind => 'a')")
        assert await settle(connection, second) == 1
    assert await nothing_is_held(connection)


async def test_the_net_waits_for_no_claim(connection, other):
    await connection.execute("SELECT notifyworker.set_limit(per => 'key', max_running => 2, rate => 1000)")
    await connection.execute("UPDATE notifyworker.limits SET changed_at = now() - interval '1 h'")
    await insert(connection, key="x", number=2)
    assert len(await claim(connection, "a", wanted=1)) == 1
    full = "SELECT bool_and(full_at < clock_timestamp()) FROM notifyworker.rates"
    await eventually(lambda: connection.fetchval(full))
    async with other.transaction():
        assert len(await claim(other, "a", wanted=1)) == 1
        await connection.fetchval("SELECT notifyworker.mend_limits()", timeout=20)


async def test_a_limit_that_comes_in_the_middle_of_two_claims_fails_neither(connection, other, dsn):
    for kind in ("a", "b"):
        await connection.execute("SELECT notifyworker.set_limit(kind => $1, max_running => 5)", kind)
        await insert(connection, kind)
    blocker, third = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    block, *open_claims = blocker.transaction(), other.transaction(), third.transaction()
    for transaction in (block, *open_claims):
        await transaction.start()
    await blocker.execute("SELECT FROM notifyworker.limits FOR UPDATE")
    claims = [asyncio.create_task(claim(who, kind, keyed=False)) for who, kind in ((other, "a"), (third, "b"))]
    await eventually(lambda: _waiting_for_locks(connection, 2))
    await connection.execute("SELECT notifyworker.set_limit(max_running => 1)")
    await block.rollback()
    assert [len(await each) for each in claims] == [1, 1]
    for transaction in open_claims:
        await transaction.commit()
    # Both are counted by the next claim, and no more is taken.
    await insert(connection, "a")
    assert await claim(connection, "a", keyed=False) == []
    for session in (blocker, third):
        await session.close()


async def _waiting_for_locks(connection, number: int) -> bool:
    query = "SELECT count(*) = $1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return await connection.fetchval(query, number)


# In whose way a key is: nobody's but its own runs'.


async def test_a_key_that_a_stranger_has_locked_is_in_nobody_elses_way(connection, other):
    """Its place can't be looked at: its runs can't wait, and must not be read again and again in place of all others."""
    (held,) = await insert(connection, key="x")
    assert await claim(connection, "a") == [held]
    await insert(connection, key="x", number=1500)
    (free,) = await insert(connection, key="y")
    await connection.execute("LISTEN notifyworker")
    heard: list[Any] = []
    await connection.add_listener("notifyworker", lambda *message: heard.append(message[3]))
    async with other.transaction():
        assert await other.fetchval("SELECT notifyworker.cancel($1)", held) == "cancelled"
        heard.clear()
        assert await claim(connection, "a") == [free]
        await connection.execute("SELECT")
        assert heard == []  # or every worker would look again at once, and again
    assert await claim(connection, "a") == []
    await eventually(lambda: _none_is_ready(connection))


async def _none_is_ready(connection) -> bool:
    await claim(connection, "a")
    return not await connection.fetch(READY)


async def test_the_backlog_of_a_key_that_waits_for_a_token_is_read_once(connection):
    """Not at each token, nor by claims that wake each other until there is one."""
    await connection.execute("SELECT notifyworker.set_limit(per => 'key', max_running => 1, rate => 1, per_s => 60)")
    heard: list[Any] = []
    await insert(connection, key="x")
    (first,) = await claim(connection, "a")
    assert await settle(connection, first) == 1
    await insert(connection, key="x", number=600)
    await connection.add_listener("notifyworker", lambda *message: heard.append(message[3]))
    for _ in range(10):
        assert await claim(connection, "a") == []
    await connection.execute("SELECT")
    assert len(heard) <= 1
    due = await connection.fetch("SELECT run_at > now() AS is_later FROM notifyworker.runs WHERE waits_for IS NULL")
    assert [row["is_later"] for row in due] == [True]
    # The token is there: it goes on, one after the other.
    await connection.execute(
        "UPDATE notifyworker.runs SET run_at = now() WHERE waits_for IS NULL; DELETE FROM notifyworker.rates"
    )
    (second,) = await claim(connection, "a")
    assert await settle(connection, second) == 1
    assert await connection.fetchval(WAITS) == 598


# Who gets a turn and can't use it hands it on.


async def waiting_behind(connection, first_kind: str) -> tuple[UUID, UUID, UUID]:
    """A run that holds a key, one of `first_kind` whose turn it is next, and one of the kind b behind that."""
    (held,) = await insert(connection, "h", key="x")
    assert await claim(connection, "h") == [held]
    (first,) = await insert(connection, first_kind, key="x")
    (second,) = await insert(connection, "b", key="x")
    assert await claim(connection, first_kind, "b") == []
    assert await connection.fetchval(WAITS) == 2
    return held, first, second


@pytest.mark.parametrize("why", ["paused", "limited", "nobody serves it"])
async def test_a_turn_of_a_kind_that_is_not_claimed_holds_up_no_other_kind(connection, why):
    held, _first, second = await waiting_behind(connection, "a")
    if why == "paused":
        await connection.execute("SELECT notifyworker.pause('a')")
    elif why == "limited":
        await connection.execute("SELECT notifyworker.set_limit('a', max_running => 0)")
    assert await settle(connection, held) == 1
    assert await claim(connection, *(["b"] if why == "nobody serves it" else ["a", "b"])) == [second]


@pytest.mark.parametrize("end", ["cancel", "expire"])
async def test_a_turn_that_is_never_used_goes_to_the_next(connection, end):
    held, first, second = await waiting_behind(connection, "b")
    assert await settle(connection, held) == 1
    if end == "cancel":
        await connection.execute("SELECT notifyworker.cancel($1)", first)
    else:
        await connection.execute("UPDATE notifyworker.runs SET expires_at = now() WHERE run_id = $1", first)
        assert await Store("notifyworker").expire(connection, limit=10) == 1
    assert await claim(connection, "b") == [second]


async def test_a_turn_that_a_shadow_worker_takes_goes_to_the_next_as_well(connection):
    held, first, second = await waiting_behind(connection, "b")
    assert await settle(connection, held) == 1
    assert await claim(connection, "b", wanted=1, shadow=True) == [first]
    assert await claim(connection, "b") == [second]


async def test_who_waits_unseen_by_a_settle_of_an_older_snapshot_is_found_by_the_net(connection, other):
    """At REPEATABLE READ and above, in a transaction of the handler's own, a settle can't see who has begun to wait since."""
    await insert(connection, key="x")
    (held,) = await claim(connection, "a")
    async with other.transaction(isolation="repeatable_read"):
        await other.fetch("SELECT count(*) FROM notifyworker.runs")
        (behind,) = await insert(connection, key="x")
        assert await claim(connection, "a") == []
        assert await settle(other, held) == 1
    await connection.execute("SELECT notifyworker.mend_limits()")
    assert await claim(connection, "a") == [behind]


async def test_a_limit_that_is_lifted_lets_all_go_on_who_may(connection):
    await insert(connection, "b", key="x", number=5)
    assert len(await claim(connection, "b")) == 1
    assert await connection.fetchval(WAITS) == 4
    await connection.execute("SELECT notifyworker.set_limit(per => 'key', max_running => 4)")
    assert len(await claim(connection, "b")) == 3


# What stays taken.


async def test_a_run_that_began_before_the_limit_and_is_cancelled_gives_its_place_back(make_worker, ledger, connection):  # noqa: F811
    worker = make_worker(poll_interval_s=60)
    worker.handler("a")(ledger.handle)
    async with worker:
        (run,) = await insert(connection, waits=True)
        await eventually(lambda: ledger.now["all",] == 1)
        await connection.execute("SELECT notifyworker.set_limit('a', max_running => 1)")
        assert await connection.fetchval("SELECT count(*) FROM notifyworker.places") == 1
        await connection.execute("SELECT notifyworker.cancel($1)", run)
        await insert(connection)
        await eventually(lambda: settled(connection, 2))
        await eventually(lambda: nothing_is_held(connection))


async def test_a_run_that_is_cancelled_before_it_has_a_slot_gives_its_key_back(make_worker, ledger, connection):  # noqa: F811
    worker = make_worker(poll_interval_s=60, concurrency=1, prefetch=1)
    worker.handler("a")(ledger.handle)
    async with worker:
        await insert(connection, key="x", waits=True)
        (second,) = await insert(connection, key="y", waits=True)
        await eventually(lambda: connection.fetchval("SELECT count(*) = 2 FROM notifyworker.places"))
        await connection.execute("SELECT notifyworker.cancel($1)", second)
        await eventually(lambda: connection.fetchval("SELECT count(*) = 1 FROM notifyworker.places"))
        ledger.go.set()
        await eventually(lambda: nothing_is_held(connection))


@pytest.mark.parametrize("steps", ["cancel", "cancel retry", "cancel retry cancel", "cancel retry cancel retry"])
async def test_cancel_and_retry_in_any_order_leave_one_at_a_time_and_nothing_behind(make_worker, connection, steps):
    """While the handler of the first life still goes on."""
    now = most = 0
    ending, end = asyncio.Event(), asyncio.Event()
    lives: list[int] = []
    worker = make_worker(poll_interval_s=60)

    @worker.handler("a")
    async def handle(run: Run) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        lives.append(run.lease_token)
        try:
            if len(lives) == 1:
                await asyncio.Event().wait()
        finally:
            if not end.is_set():
                ending.set()
                await end.wait()
            now -= 1

    async with worker:
        (run,) = await insert(connection, key="x")
        (behind,) = await insert(connection, key="x")
        await eventually(lambda: now == 1)
        for step in steps.split():
            await connection.execute(f"SELECT notifyworker.{step}($1)", run)
        await ending.wait()
        await eventually(lambda: _none_is_ready_but_waits(connection))
        end.set()
        await eventually(lambda: _is_settled(connection, behind))
        await eventually(lambda: nothing_is_held(connection))
        await eventually(lambda: connection.fetchval("SELECT count(*) = 0 FROM notifyworker.runs"))
    assert most == 1


async def _none_is_ready_but_waits(connection) -> bool:
    return not await connection.fetch(READY) and await connection.fetchval(WAITS) > 0


async def _is_settled(connection, run: UUID) -> bool:
    return await connection.fetchval("SELECT EXISTS (SELECT FROM notifyworker.run_history WHERE run_id = $1)", run)


async def test_a_run_that_is_given_back_and_was_cancelled_meanwhile_gives_its_key_back(make_worker, ledger, connection, other):  # noqa: F811
    """A lapse gives back what waits for a slot; the release is refused, since there is nothing to release any more."""
    worker = make_worker(poll_interval_s=60, concurrency=1, prefetch=1)
    worker.handler("a")(ledger.handle)
    async with worker:
        await insert(connection, key="x", waits=True)
        (second,) = await insert(connection, key="y", waits=True)
        await eventually(lambda: connection.fetchval("SELECT count(*) = 2 FROM notifyworker.places"))
        async with other.transaction():
            await other.execute("SELECT notifyworker.cancel($1)", second)
            worker._conductor._lost({second: 1}, "lapse")
        await eventually(lambda: connection.fetchval("SELECT count(*) = 1 FROM notifyworker.places"))
        ledger.go.set()
        await eventually(lambda: nothing_is_held(connection))


@pytest.mark.parametrize("where", ["kind", "project_id", "concurrency_key"])
async def test_a_key_that_no_index_takes_is_refused_when_it_is_inserted(connection, where):
    """And not by each claim that would take it, in the way of all others."""
    longest = {"kind": 200, "project_id": 200, "concurrency_key": 500}
    row = {name: "".join(chr(0x10000 + (i * 7919 + len(name)) % 65000) for i in range(n)) for name, n in longest.items()}
    columns = f"INSERT INTO notifyworker.runs ({', '.join(row)}) VALUES ($1, $2, $3)"
    with pytest.raises(asyncpg.CheckViolationError, match="concurrency_key_has_at_most_2600_bytes"):
        await connection.execute(columns, *row.values())
    # Exactly as much as may be is claimed, waits and gets its turn.
    row = {name: value if name == where else "x" for name, value in row.items()}
    row["concurrency_key" if where != "concurrency_key" else "kind"] += "y" * 30
    for _ in range(2):
        await connection.execute(columns, *row.values())
    (first,) = await claim(connection, row["kind"], project=row["project_id"])
    assert await connection.fetchval(WAITS) == 1
    assert await settle(connection, first) == 1
    assert len(await claim(connection, row["kind"], project=row["project_id"])) == 1


async def test_a_worker_of_the_role_alone_with_projects_separated(any_dsn):
    """On both versions: takes keys and places, hands turns on, sets limits, mends."""
    owner = await asyncpg.connect(any_dsn)
    if owner.get_server_version()[0] >= 15:
        await owner.execute("SELECT notifyworker.separate_projects()")
    async with login(any_dsn, "notifyworker_worker") as (_, worker):
        await worker.execute("SELECT notifyworker.set_limit('a', max_running => 3, rate => 100, burst => 100)")
        await worker.execute("SELECT notifyworker.set_limit(per => 'key', max_running => 1, rate => 100, burst => 100)")
        await insert(owner, key="x", number=3)
        await insert(owner, project="p", number=5)
        (first,) = await claim(worker, "a")
        assert await worker.fetchval(WAITS) == 2
        assert len(await claim(worker, "a", project="p", keyed=False)) == 2
        assert await settle(worker, first) == 1
        (second,) = await claim(worker, "a")
        await worker.execute("SELECT notifyworker.cancel($1)", second)
        await worker.execute("SELECT notifyworker.end_lingering($1, 'w', 1)", second)
        await worker.execute("UPDATE notifyworker.runs SET expires_at = now() WHERE waits_for IS NULL AND concurrency_key = 'x'")
        assert await Store("notifyworker").expire(worker, limit=10) == 1
        assert await Store("notifyworker").mend_limits(worker) == 0
        assert (await Store("notifyworker").limits_seen(worker))["places"] == 2
        assert await worker.fetchval("SELECT notifyworker.remove_limit('a')")
        assert len(await claim(worker, "a", project="p", keyed=False)) == 3
    await owner.close()


async def test_a_handler_that_has_ended_frees_no_place_of_a_later_one_of_its_run(connection):
    """Cancelled, retried and cancelled again while both handlers go on: each place is free with the end of its own."""
    await connection.execute("SELECT notifyworker.set_limit('a', max_running => 2)")
    await insert(connection, number=3)
    for lease_token in (1, 2):
        (run,) = await claim(connection, "a", keyed=False, wanted=1)
        await connection.execute("SELECT notifyworker.cancel($1)", run)
        if lease_token == 1:
            first = run
            await connection.execute("SELECT notifyworker.retry($1)", first)
            await connection.execute("UPDATE notifyworker.runs SET run_at = '2020-01-01' WHERE run_id = $1", first)
    assert run == first
    assert await claim(connection, "a", keyed=False) == []  # two handlers still run
    await connection.execute("SELECT notifyworker.end_lingering($1, 'w', 1)", first)
    assert len(await claim(connection, "a", keyed=False)) == 1
    await connection.execute("SELECT notifyworker.end_lingering($1, 'w', 2)", first)
    assert len(await claim(connection, "a", keyed=False)) == 1
