"""docs/transactions.md: each recipe commits the handler's writes and its run's end together, or neither."""

import asyncio
import re
import types
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import structlog
from servers import eventually
from test_life import insert, settled

from notifyworker import Run, Worker

PAGE = Path(__file__).parents[1] / "docs" / "transactions.md"
KINDS = ["order.book", "order.book.orm", "order.book.psycopg", "order.book.plain"]
NUMBERS = "SELECT coalesce(array_agg(number ORDER BY number), '{}') FROM public.bookings"
COMPLETE = "SELECT notifyworker.complete($1, $2, $3)"


@pytest.fixture
async def page(dsn: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
    await connection.execute("CREATE TABLE public.bookings (number integer PRIMARY KEY)")
    page = types.ModuleType("transactions_page")
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), page.__dict__)
    yield page
    await page.engine.dispose()


@pytest.mark.parametrize("kind", KINDS)
async def test_both_are_committed(page, connection, kind):
    with structlog.testing.capture_logs() as logs:
        async with page.worker:
            run = await settled(connection, await insert(connection, kind, '{"number": 7}'))
    assert run["state"] == "completed"
    assert run["result"] == (None if kind == "order.book.plain" else '{"booked": 7}')
    assert await connection.fetchval(NUMBERS) == [7]
    assert not {entry["event"] for entry in logs} & {"lease_lost", "outcome_refused", "attempt_failed"}


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_written_by_one_whose_lease_is_anothers(page, connection, kind):
    """Its row is taken over in the moment before its first write."""
    held = await asyncpg.connect(page.os.environ["NOTIFYWORKER_DSN"])
    await held.execute("BEGIN; LOCK public.bookings")  # the handler waits here
    with structlog.testing.capture_logs() as logs:
        async with page.worker:
            run_id = await insert(connection, kind, '{"number": 7}')
            waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            await eventually(lambda: connection.fetchval(waits))
            take = "UPDATE notifyworker.runs SET lease_token = lease_token + 1, lease_owner = 'another' WHERE run_id = $1"
            await connection.execute(take, run_id)
            await held.execute("ROLLBACK")
            # Either it hears of it by its own settle, or its outcome is refused.
            await eventually(lambda: {entry["event"] for entry in logs} & {"lease_lost", "outcome_refused"})
            await eventually(lambda: page.worker._conductor.slots.used == 0)
    await held.close()
    assert await connection.fetchval(NUMBERS) == []
    assert await connection.fetchval("SELECT state || lease_token FROM notifyworker.runs") == "running2"


@pytest.mark.parametrize("kind", KINDS[:3])
async def test_a_shadow_run_leaves_nothing(page, connection, kind):
    async with page.worker:
        insert_shadow = (
            "INSERT INTO notifyworker.runs (kind, payload, is_shadow) VALUES ($1, '{\"number\": 7}', true) RETURNING run_id"
        )
        run = await settled(connection, await connection.fetchval(insert_shadow, kind))
    assert run["state"] == "completed"
    assert await connection.fetchval(NUMBERS) == []


async def test_producers_enqueue_in_their_own_transaction(page, connection):
    await page.order_orm(1)
    await asyncio.to_thread(page.order_psycopg, 3)
    for broken in (page.order_orm(1), asyncio.to_thread(page.order_psycopg, 3)):
        with pytest.raises(Exception, match="bookings_pkey"):
            await broken
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.runs") == 2
    async with page.worker:
        await eventually(lambda: _are(connection, [1, 2, 3, 4]))


async def _are(db: asyncpg.Connection, numbers: list[int]) -> bool:
    return await db.fetchval(NUMBERS) == numbers


async def _running(db: asyncpg.Connection, *, is_shadow: bool = False) -> UUID:
    run_id = await insert(db, "a")
    await db.execute(
        """UPDATE notifyworker.runs SET state = 'running', attempt = 1, max_attempts = 3, lease_token = 4, lease_owner = 'w',
                  lease_expires_at = now() + interval '1 minute', started_at = now(), is_shadow = $2 WHERE run_id = $1""",
        run_id,
        is_shadow,
    )
    return run_id


async def test_complete_is_fenced_and_bounded(any_dsn):
    db = await asyncpg.connect(any_dsn)
    run_id = await _running(db)
    shadow = await _running(db, is_shadow=True)
    await db.execute("UPDATE notifyworker.settings SET value = '10' WHERE name = 'max_result_bytes'")
    for wrong, token, told in (
        (run_id, 3, "not held"),
        (run_id, 5, "not held"),
        (UUID(int=1), 4, "not held"),
        (shadow, 4, "shadow"),
    ):
        with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match=told):
            await db.execute(COMPLETE, wrong, token, None)
    with pytest.raises(asyncpg.ProgramLimitExceededError):
        await db.execute(COMPLETE, run_id, 4, '"longer than ten"')
    async with db.transaction():
        await db.execute(COMPLETE, run_id, 4, "1")
        assert await db.fetchval("SHOW idle_in_transaction_session_timeout") == "5s"
    assert await db.fetchval("SHOW idle_in_transaction_session_timeout") == "0"
    run = await db.fetchrow("SELECT * FROM notifyworker.run_history")
    assert (run["state"], run["settled_by"], run["lease_token"], run["result"]) == ("completed", "w", 4, "1")
    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match="not held"):
        await db.execute(COMPLETE, run_id, 4, None)
    await db.close()


async def test_complete_frees_the_runs_concurrency_key(page, connection):
    async with page.worker:
        enqueue = """SELECT notifyworker.enqueue('order.book.psycopg', jsonb_build_object('number', $1::integer),
                                                 concurrency_key => 'one at a time')"""
        for n in (7, 8):
            await connection.fetchval(enqueue, n)
        await eventually(lambda: _are(connection, [7, 8]))
        await eventually(lambda: connection.fetchval("SELECT count(*) = 0 FROM notifyworker.places"))


async def test_a_commit_without_an_answer_is_done_once(page, connection, make_worker):
    """The handler does not know: it raises, and the worker finds its run settled."""
    worker: Worker = make_worker()

    @worker.handler("unsure")
    async def handle(run: Run) -> None:
        async with await page.psycopg.AsyncConnection.connect(page.os.environ["NOTIFYWORKER_DSN"]) as own:
            await own.execute("INSERT INTO public.bookings VALUES (7)")
            await own.execute("SELECT notifyworker.complete(%s, %s)", [run.run_id, run.lease_token])
        raise ConnectionError("the answer was lost")

    with structlog.testing.capture_logs() as logs:
        async with worker:
            run = await settled(connection, await insert(connection, "unsure"))
            await eventually(lambda: "outcome_refused" in {entry["event"] for entry in logs})
    assert (run["state"], run["attempt"]) == ("completed", 1)
    assert await connection.fetchval(NUMBERS) == [7]
