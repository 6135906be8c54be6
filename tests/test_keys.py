"""Idempotency keys: held by the live run, and for a while after its settle."""

import asyncio
from uuid import UUID

import asyncpg
import pytest
from servers import eventually

from notifyworker import Client, InvalidRun, Run
from notifyworker.store import Store

INSERT = "INSERT INTO notifyworker.runs (kind, idempotency_key) VALUES ('a', 'k') RETURNING run_id"
ENQUEUE = "SELECT notifyworker.enqueue('a', idempotency_key => 'k')"
LEFT = """
SELECT k.expires_at - h.finished_at FROM notifyworker.run_history AS h JOIN notifyworker.idempotency_keys AS k USING (run_id)
"""
CANCEL = "SELECT notifyworker.cancel($1)"


@pytest.fixture
async def db(any_dsn: str):
    conn = await asyncpg.connect(any_dsn)
    yield conn
    await conn.close()


async def settled_run(db: asyncpg.Connection) -> UUID:
    run_id: UUID = await db.fetchval(INSERT)
    await db.fetchval(CANCEL, run_id)
    return run_id


async def window(db: asyncpg.Connection, seconds: float) -> None:
    await db.execute(f"UPDATE notifyworker.settings SET value = '{seconds}' WHERE name = 'idempotency_window_s'")


async def test_a_key_is_refused_after_the_settle_and_the_first_run_is_named(db):
    first = await settled_run(db)

    for insert in (INSERT, INSERT.replace(" RETURNING", " ON CONFLICT DO NOTHING RETURNING")):
        with pytest.raises(asyncpg.UniqueViolationError) as refused:
            await db.fetchval(insert)
        assert str(first) in refused.value.detail
        assert refused.value.column_name == "idempotency_key"
    assert await db.fetchval(ENQUEUE) == first
    assert await db.fetchval("SELECT count(*) FROM notifyworker.runs") == 0
    for other in ("('b', 'k')", "('a', 'K')"):
        await db.execute(f"INSERT INTO notifyworker.runs (kind, idempotency_key) VALUES {other}")
    await db.execute("INSERT INTO notifyworker.runs (kind, idempotency_key, project_id) VALUES ('a', 'k', 'other')")


async def test_python_producers_get_the_first_run(any_dsn, db):
    first = await settled_run(db)

    async with Client(any_dsn) as client:
        assert await client.enqueue("a", idempotency_key="k") == first
        many = await client.enqueue_many("a", [1], idempotency_key="k")

    assert list(many) == [first]


async def test_a_worker_settles_keyed_runs_and_the_window_begins_then(make_worker, connection):
    worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    async with worker:
        first = await connection.fetchval(INSERT)
        left = await eventually(lambda: connection.fetchval(LEFT))

    assert left.total_seconds() == 86400
    assert await connection.fetchval(ENQUEUE) == first


async def test_a_key_is_free_when_its_window_is_over(db):
    await window(db, 0)
    first = await settled_run(db)

    second = await db.fetchval(INSERT)
    await db.fetchval(CANCEL, second)

    assert await db.fetchval(ENQUEUE) not in {first, second}


@pytest.fixture
async def settling(any_dsn, db):
    """A live run's id, and a transaction in which it is just being settled."""
    first = await db.fetchval(INSERT)
    conn = await asyncpg.connect(any_dsn)
    transaction = conn.transaction()
    await transaction.start()
    await conn.fetchval(CANCEL, first)
    yield first, conn, transaction
    await conn.close()


BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


async def test_who_waited_for_the_settle_is_refused_by_what_it_left(db, settling):
    """The unique index lets the waiting INSERT pass when the live row is gone."""
    first, conn, transaction = settling
    waiting = asyncio.create_task(db.fetchval(INSERT))
    await eventually(lambda: conn.fetchval(BLOCKED))

    await transaction.commit()

    with pytest.raises(asyncpg.UniqueViolationError) as refused:
        await waiting
    assert str(first) in refused.value.detail


async def test_enqueue_waits_for_no_settle(db, settling):
    first, _conn, transaction = settling

    assert await db.fetchval(ENQUEUE, timeout=5) == first

    await transaction.commit()


async def test_of_many_at_once_one_is_inserted(any_dsn, db):
    await window(db, 0)
    await settled_run(db)
    others = [await asyncpg.connect(any_dsn) for _ in range(8)]

    found = await asyncio.gather(*(conn.fetchval(ENQUEUE) for conn in others))

    assert len(set(found)) == 1
    assert await db.fetchval("SELECT count(*) FROM notifyworker.runs") == 1
    await asyncio.gather(*(conn.close() for conn in others))


async def test_a_producer_that_asks_in_an_open_transaction_holds_up_no_settle(any_dsn, db):
    first = await db.fetchval(INSERT)
    producer = await asyncpg.connect(any_dsn)
    transaction = producer.transaction()
    await transaction.start()
    assert await producer.fetchval(ENQUEUE) == first
    assert await producer.execute(INSERT.partition(" RETURNING")[0] + " ON CONFLICT DO NOTHING") == "INSERT 0 0"

    assert await db.fetchval(CANCEL, first, timeout=5) == "cancelled"

    await transaction.rollback()
    await producer.close()


async def test_a_run_that_was_deleted_by_hand_holds_no_key(db):
    await db.fetchval(INSERT)
    await db.execute("DELETE FROM notifyworker.runs")

    assert await db.fetchval(INSERT) is not None
    await db.execute("DELETE FROM notifyworker.runs")
    assert await db.fetchval(ENQUEUE) is not None


async def test_an_insert_that_was_rolled_back_holds_no_key(db):
    transaction = db.transaction()
    await transaction.start()
    await db.fetchval(INSERT)
    await transaction.rollback()

    assert await db.fetchval(INSERT) is not None


async def test_retry_takes_its_own_key_and_no_other(db):
    first = await settled_run(db)
    assert await db.fetchval("SELECT notifyworker.retry($1)", first) == first
    with pytest.raises(asyncpg.UniqueViolationError):
        await db.fetchval(INSERT)
    await window(db, 0)
    await db.fetchval(CANCEL, first)
    await window(db, 60)
    await settled_run(db)

    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match="idempotency key"):
        await db.fetchval("SELECT notifyworker.retry($1)", first)

    assert await db.fetchval("SELECT count(*) FROM notifyworker.run_history WHERE run_id = $1", first) == 1


async def test_forget_forgets_the_key(db):
    first = await settled_run(db)

    await db.execute("SELECT notifyworker.forget($1)", first)

    assert await db.fetchval("SELECT count(*) FROM notifyworker.idempotency_keys") == 0
    assert await db.fetchval(INSERT) is not None


async def test_the_leader_clears_away_keys_whose_time_is_over(make_worker, connection):
    await window(connection, 0)
    await settled_run(connection)
    live = await connection.fetchval(INSERT.replace("'k'", "'live'"))
    worker = make_worker(reaper_interval_s=0.2)

    @worker.handler("another")
    async def handle(run: Run) -> None: ...

    async with worker:
        await eventually(lambda: connection.fetchval("SELECT count(*) = 1 FROM notifyworker.idempotency_keys"))

    assert await connection.fetchval("SELECT run_id FROM notifyworker.idempotency_keys") == live


async def test_a_locked_key_is_left_for_the_next_pass(any_dsn, db):
    await window(db, 0)
    await settled_run(db)
    other = await asyncpg.connect(any_dsn)
    transaction = other.transaction()
    await transaction.start()
    await other.execute("SELECT FROM notifyworker.idempotency_keys FOR UPDATE")

    assert await Store("notifyworker").keys_forget(db, limit=10) == 0

    await transaction.rollback()
    assert await Store("notifyworker").keys_forget(db, limit=10) == 1
    await other.close()


SHADOW = "SELECT notifyworker.enqueue('a', idempotency_key => 'k', is_shadow => true)"


async def test_a_shadow_runs_key_blocks_nobody_and_nobody_blocks_it(db, any_dsn):
    plain = INSERT.replace("(kind, idempotency_key)", "(kind, idempotency_key, is_shadow)").replace("'k')", "'k', true)")
    shadows = [await db.fetchval(SHADOW), await db.fetchval(plain)]
    async with Client(any_dsn) as client:
        shadows += [await client.enqueue("a", idempotency_key="k", is_shadow=True)]
        shadows += await client.enqueue_many("a", [1, 2], idempotency_key="k", is_shadow=True)
        live = await db.fetchval(INSERT)
        assert [await db.fetchval(ENQUEUE), await client.enqueue("a", idempotency_key="k")] == [live, live]
        shadows += [await db.fetchval(SHADOW)]  # also while the key is held
        assert len({*shadows, live}) == 7
        for shadow in shadows[:2]:  # settled, and retried, it holds nothing either
            await db.fetchval(CANCEL, shadow)
            await client.retry(shadow)
        await db.fetchval(CANCEL, shadows[2])
        assert (await client.retry_many(kind="a", state="cancelled")).done == 1
        await db.fetchval(CANCEL, live)
        assert await db.fetchval(ENQUEUE) == live  # its window is as long as ever
        await db.fetchval(SHADOW)
        await client.retry(live)
    assert await db.fetchval("SELECT count(*) FROM notifyworker.idempotency_keys WHERE run_id <> $1", live) == 0


async def test_a_run_that_a_worker_makes_shadow_keeps_its_key(make_worker, connection):
    worker = make_worker(shadow="enforce")
    entered, leave = asyncio.Event(), asyncio.Event()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        entered.set()
        await leave.wait()

    async with worker:
        live = await connection.fetchval(INSERT)
        await asyncio.wait_for(entered.wait(), 20)
        assert await connection.fetchval("SELECT is_shadow FROM notifyworker.runs")
        assert await connection.fetchval(ENQUEUE) == live
        assert await connection.fetchval(INSERT.replace(" RETURNING", " ON CONFLICT DO NOTHING RETURNING")) is None
        leave.set()


@pytest.mark.parametrize("name", ["debounce", "throttle"])
async def test_a_shadow_run_has_no_pace(db, any_dsn, name):
    with pytest.raises(asyncpg.InvalidParameterValueError, match="is_shadow") as refused:
        await db.fetchval(SHADOW.replace("true)", f"true, {name} => '1 s')"))
    assert refused.value.column_name == "is_shadow"
    async with Client(any_dsn) as client:
        with pytest.raises(InvalidRun, match=r"^is_shadow: "):
            await client.enqueue("a", idempotency_key="k", is_shadow=True, **{name: 1})


async def test_debounce_passes_over_the_shadow_runs_of_its_key(db):
    call = "SELECT notifyworker.enqueue('a', idempotency_key => 'k', debounce => '1 h')"
    shadow = await db.fetchval(SHADOW)
    first = await db.fetchval(call)
    assert first != shadow
    assert await db.fetchval(call) == first
    assert await db.fetchval("SELECT is_shadow FROM notifyworker.runs WHERE run_id = $1", shadow)
