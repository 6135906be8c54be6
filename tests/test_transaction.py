"""run.transaction(): the handler's writes and the settle of its run are there together, or not at all."""

import asyncio
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import structlog
from chaos.wire import Rule, statement
from servers import eventually

from notifyworker import Cancel, Fail, LeaseLost, Retry, Run, Snooze, Worker

INSERT = "INSERT INTO notifyworker.runs (kind, payload, is_shadow) VALUES ('a', '{\"n\": 1}', $1) RETURNING run_id"
BOTH = """
SELECT (SELECT count(*) FROM public.effects) AS effects, (SELECT state FROM notifyworker.all_runs WHERE run_id = $1) AS state
"""
WRITE = "INSERT INTO public.effects (run_id) VALUES ($1)"


@pytest.fixture
async def db(connection: asyncpg.Connection) -> asyncpg.Connection:
    await connection.execute("CREATE TABLE public.effects (run_id uuid NOT NULL)")
    return connection


async def insert(db: asyncpg.Connection, *, is_shadow: bool = False) -> UUID:
    return await db.fetchval(INSERT, is_shadow)


async def run_of(db: asyncpg.Connection, run_id: UUID) -> asyncpg.Record:
    return await db.fetchrow("SELECT * FROM notifyworker.all_runs WHERE run_id = $1", run_id)


async def settled(db: asyncpg.Connection, run_id: UUID) -> asyncpg.Record:
    query = "SELECT state IN ('completed', 'failed', 'cancelled') FROM notifyworker.all_runs WHERE run_id = $1"
    await eventually(lambda: db.fetchval(query, run_id))
    return await run_of(db, run_id)


async def effects(db: asyncpg.Connection) -> list[UUID]:
    return [row["run_id"] for row in await db.fetch("SELECT run_id FROM public.effects")]


async def test_both_are_there_at_the_same_moment(make_worker, db):
    worker: Worker = make_worker()
    go_on = asyncio.Event()
    inside, after = asyncio.Event(), asyncio.Event()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        async with run.transaction() as connection:
            await connection.execute(WRITE, run.run_id)
            run.result = {"n": run.payload["n"] + 1}
            inside.set()
            await go_on.wait()
        after.set()
        await asyncio.Event().wait()  # what comes after is nobody's business: the run is settled

    async with worker:
        run_id = await insert(db)
        await inside.wait()
        assert tuple(await db.fetchrow(BOTH, run_id)) == (0, "running")
        go_on.set()
        await after.wait()
        assert tuple(await db.fetchrow(BOTH, run_id)) == (1, "completed")
        run = await run_of(db, run_id)
        assert (run["result"], run["attempt"], run["errors"]) == ('{"n": 2}', 1, "[]")


@pytest.mark.parametrize(
    ("wish", "state", "told"),
    [(Cancel("no more"), "cancelled", "no more"), (Fail("refused"), "failed", "refused")],
)
async def test_a_wish_settles_together_with_what_was_written(make_worker, db, wish, state, told):
    worker: Worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        async with run.transaction() as connection:
            await connection.execute(WRITE, run.run_id)
            raise wish

    async with worker:
        run = await settled(db, await insert(db))

    assert (run["state"], run["attempt"]) == (state, 1)
    assert told in run["errors"]
    assert await effects(db) == [run["run_id"]]


async def test_snooze_keeps_what_was_written_and_uses_no_attempt(make_worker, db):
    worker: Worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        async with run.transaction() as connection:
            await connection.execute(WRITE, run.run_id)
            if await connection.fetchval("SELECT count(*) FROM effects") == 1:
                raise Snooze(0.01)

    async with worker:
        run = await settled(db, await insert(db))

    assert (run["state"], run["attempt"], run["lease_token"]) == ("completed", 1, 2)
    assert len(await effects(db)) == 2


async def test_any_other_exception_rolls_back_and_the_run_is_tried_again(make_worker, db):
    worker: Worker = make_worker()

    @worker.handler("a", retry=Retry(max_attempts=2, base_s=0.01))
    async def handle(run: Run) -> None:
        async with run.transaction() as connection:
            await connection.execute(WRITE, run.run_id)
            if run.attempt == 1:
                raise ValueError("not yet")

    async with worker:
        run = await settled(db, await insert(db))

    assert (run["state"], run["attempt"]) == ("completed", 2)
    assert await effects(db) == [run["run_id"]]


async def test_nothing_is_written_for_a_run_that_is_anothers(make_worker, db, handlers_own):
    worker: Worker = make_worker()
    raised: list[BaseException] = []
    ended = asyncio.Event()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        try:
            async with run.transaction() as connection:
                await connection.execute(WRITE, run.run_id)
                await handlers_own.execute("UPDATE notifyworker.runs SET lease_token = lease_token + 1, lease_owner = 'another'")
        except BaseException as error:
            raised.append(error)
            raise
        finally:
            ended.set()

    async with worker:
        run_id = await insert(db)
        await ended.wait()

    assert isinstance(raised[0], LeaseLost | asyncio.CancelledError)
    assert await effects(db) == []
    run = await run_of(db, run_id)
    assert (run["state"], run["lease_owner"], run["lease_token"]) == ("running", "another", 2)


async def test_a_cancelled_run_writes_nothing(make_worker, db):
    worker: Worker = make_worker()
    inside = asyncio.Event()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        async with run.transaction() as connection:
            await connection.execute(WRITE, run.run_id)
            inside.set()
            await asyncio.Event().wait()

    async with worker:
        run_id = await insert(db)
        await inside.wait()
        assert await db.fetchval("SELECT notifyworker.cancel($1)", run_id) == "cancelled"
        await eventually(lambda: worker_is_idle(worker))
        assert await effects(db) == []


def worker_is_idle(worker: Worker) -> bool:
    conductor: Any = worker._conductor
    return conductor.slots.running == 0


async def test_a_run_locked_for_a_moment_is_waited_for(make_worker, db, dsn, handlers_own):
    worker: Worker = make_worker()
    stranger = await asyncpg.connect(dsn)

    @worker.handler("a")
    async def handle(run: Run) -> None:
        async with run.transaction() as connection:
            await connection.execute(WRITE, run.run_id)
            lock = stranger.transaction()
            await lock.start()
            await stranger.execute("SELECT FROM notifyworker.runs FOR UPDATE")
            tried = """SELECT count(*) FROM pg_stat_activity WHERE application_name = 'notifyworker handler'
                        AND query LIKE '-- Which of these runs are still%' AND datname = current_database()"""

            async def release() -> None:
                await eventually(lambda: handlers_own.fetchval(tried))
                await lock.rollback()

            releasing.append(asyncio.create_task(release()))

    releasing: list[asyncio.Task[None]] = []
    async with worker:
        run_id = await insert(db)
        await eventually(lambda: releasing)
        await releasing[0]
        run = await settled(db, run_id)

    assert (run["state"], run["attempt"]) == ("completed", 1)
    assert await effects(db) == [run_id]
    await stranger.close()


async def test_a_shadow_run_writes_nothing(make_worker, db):
    worker: Worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> dict[str, int]:
        async with run.transaction() as connection:
            await connection.execute(WRITE, run.run_id)
            return {"seen": await connection.fetchval("SELECT count(*) FROM effects")}

    async with worker:
        run = await settled(db, await insert(db, is_shadow=True))

    assert (run["state"], run["result"]) == ("completed", '{"seen": 1}')
    assert await effects(db) == []


async def test_a_result_that_cant_be_stored_fails_the_run_and_writes_nothing(make_worker, db):
    worker: Worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        async with run.transaction() as connection:
            await connection.execute(WRITE, run.run_id)
            run.result = float("nan")
        raise AssertionError("not reached")

    async with worker:
        run = await settled(db, await insert(db))

    assert (run["state"], run["error_code"], run["attempt"]) == ("failed", "E-RUN-005", 1)
    assert await effects(db) == []


async def misuse_twice(run: Run, _own: asyncpg.Connection) -> None:
    async with run.transaction():
        pass
    async with run.transaction():
        pass


async def misuse_nested(run: Run, own: asyncpg.Connection) -> None:
    async with own.transaction(), run.transaction(own):
        pass


async def misuse_commit(run: Run, own: asyncpg.Connection) -> None:
    async with run.transaction(own):
        await own.execute("COMMIT")


@pytest.mark.parametrize(
    ("misuse", "ends"),
    [
        (misuse_twice, ("completed", "is settled already")),
        (misuse_nested, ("failed", "begins and ends its own")),
        (misuse_commit, ("failed", "ended inside of its block")),
    ],
)
async def test_misuse_is_told(make_worker, db, dsn, misuse, ends):
    worker: Worker = make_worker()
    raised: list[str] = []

    @worker.handler("a", retry=Retry(max_attempts=1))
    async def handle(run: Run) -> None:
        own = await asyncpg.connect(dsn)
        try:
            await misuse(run, own)
        except RuntimeError as error:
            raised.append(str(error))
            raise
        finally:
            await own.close()

    async with worker:
        run = await settled(db, await insert(db))
        await eventually(lambda: raised)

    state, told = ends
    assert run["state"] == state
    assert told in raised[0]


async def test_an_own_connection_and_the_databases_own_settings(make_worker, db, dsn):
    worker: Worker = make_worker()
    seen: list[tuple[Any, ...]] = []

    @worker.handler("a")
    async def handle(run: Run) -> None:
        own = await asyncpg.connect(dsn)
        async with run.transaction(own if run.payload == {"n": 1} else None) as connection:
            await connection.execute(WRITE, run.run_id)
            settings = await connection.fetchrow(
                "SELECT current_setting('search_path'), current_setting('enable_seqscan'), current_setting('statement_timeout')"
            )
            seen.append(tuple(settings))
        assert (await own.fetchval("SHOW search_path")) == '"$user", public'
        await own.close()

    async with worker:
        await settled(db, await insert(db))
        other = await db.fetchval("INSERT INTO notifyworker.runs (kind) VALUES ('a') RETURNING run_id")
        await settled(db, other)

    assert seen == [('"$user", public', "on", "0")] * 2
    assert len(await effects(db)) == 2


async def test_more_handlers_than_connections_take_turns(make_worker, db):
    worker: Worker = make_worker(concurrency=20, transaction_connections=2)
    open_now = most = 0

    @worker.handler("a")
    async def handle(run: Run) -> None:
        nonlocal open_now, most
        async with run.transaction() as connection:
            open_now += 1
            most = max(most, open_now)
            await connection.execute(WRITE, run.run_id)
            open_now -= 1

    async with worker:
        runs = [await insert(db) for _ in range(40)]
        await eventually(lambda: db.fetchval("SELECT count(*) = 40 FROM notifyworker.run_history"))

    assert most == 2
    assert sorted(await effects(db)) == sorted(runs)


async def test_a_handler_that_goes_on_after_its_commit_is_not_told_that_its_run_is_lost(make_worker, db, handlers_own):
    worker: Worker = make_worker(lease_s=4.5, heartbeat_interval_s=0.3)
    ended = asyncio.Event()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        async with run.transaction() as connection:
            await connection.execute(WRITE, run.run_id)
        beat = await handlers_own.fetchval("SELECT max(heartbeat_at) FROM notifyworker.workers")
        later = "SELECT max(heartbeat_at) > $1::timestamptz + interval '0.5 s' FROM notifyworker.workers"
        await eventually(lambda: handlers_own.fetchval(later, beat))
        assert not run.cancelled
        ended.set()

    with structlog.testing.capture_logs() as logs:
        async with worker:
            await insert(db)
            await asyncio.wait_for(ended.wait(), 30)

    assert [entry for entry in logs if entry["event"] == "lease_lost"] == []


async def test_a_timeout_inside_rolls_back(make_worker, db):
    worker: Worker = make_worker()

    @worker.handler("a", timeout=0.3, retry=Retry(max_attempts=1))
    async def handle(run: Run) -> None:
        async with run.transaction() as connection:
            await connection.execute(WRITE, run.run_id)
            await connection.execute("SELECT pg_sleep(60)")

    async with worker:
        run = await settled(db, await insert(db))

    assert (run["state"], run["error_code"]) == ("failed", "E-RUN-003")
    assert await effects(db) == []


# Cut before and after every statement of it


COMMIT = "COMMIT;"  # BEGIN has READ COMMITTED
STATEMENTS = ("BEGIN", WRITE, "SET LOCAL", statement("settle"), COMMIT)


@pytest.mark.parametrize("at", ["request", "answer"])
@pytest.mark.parametrize("text", STATEMENTS, ids=["begin", "write", "set", "settle", "commit"])
async def test_a_cut_connection_loses_nothing_and_repeats_nothing(make_proxied, db, proxy, text, at):
    """Where the COMMIT was executed and only its answer is lost, the handler is not called again."""
    worker: Worker = make_proxied()
    called: list[int] = []
    passed: list[int] = []

    @worker.handler("a", retry=Retry(max_attempts=3, base_s=0.01))
    async def handle(run: Run) -> None:
        called.append(run.attempt)
        async with run.transaction() as connection:
            await connection.execute(WRITE, run.run_id)
            run.result = run.attempt
        passed.append(run.attempt)

    rule = await proxy.arm(Rule(text, at, "cut", purpose="handler"))
    async with worker:
        run = await settled(db, await insert(db))

    assert rule.fired.is_set()
    expected = 1 if (text, at) == (COMMIT, "answer") else 2
    assert called == [1, 2][:expected]
    await eventually(lambda: passed)
    assert passed == [expected]  # a handler whose COMMIT was executed is not told that it failed
    assert (run["state"], run["attempt"], run["result"]) == ("completed", expected, str(expected))
    assert await effects(db) == [run["run_id"]]
    assert await db.fetchval("SELECT count(*) FROM notifyworker.run_history") == 1


@pytest.mark.parametrize(("wish", "state"), [(Cancel("no"), "cancelled"), (Fail("no"), "failed"), (Snooze(0.01), "completed")])
async def test_a_wish_whose_commit_had_no_answer_is_found_out(make_proxied, db, proxy, wish, state):
    worker: Worker = make_proxied()

    @worker.handler("a", retry=Retry(max_attempts=1))
    async def handle(run: Run) -> None:
        async with run.transaction() as connection:
            await connection.execute(WRITE, run.run_id)
            if run.lease_token == 1:
                raise wish

    rule = await proxy.arm(Rule(COMMIT, "answer", "cut", purpose="handler"))
    async with worker:
        run = await settled(db, await insert(db))

    assert rule.fired.is_set()
    assert (run["state"], run["attempt"]) == (state, 1)
    assert len(await effects(db)) == run["lease_token"] == (2 if isinstance(wish, Snooze) else 1)


async def test_a_commit_that_goes_on_after_its_connection_is_waited_for(make_proxied, db, proxy):
    """It is neither done nor undone yet: the run's row is locked, and so the handler must not be called again."""
    await db.execute(
        """CREATE FUNCTION public.slowly() RETURNS trigger LANGUAGE plpgsql AS $$
           BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$;
           CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON public.effects DEFERRABLE INITIALLY DEFERRED
           FOR EACH ROW EXECUTE FUNCTION public.slowly();
           SELECT pg_advisory_lock(1)"""
    )
    worker: Worker = make_proxied()
    called: list[int] = []

    @worker.handler("a")
    async def handle(run: Run) -> None:
        called.append(run.attempt)
        async with run.transaction() as connection:
            await connection.execute("SET client_connection_check_interval = 0")  # or the server would see that it was cut
            await connection.execute(WRITE, run.run_id)

    blocked = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = 1"
    with structlog.testing.capture_logs() as logs:
        async with worker:
            run_id = await insert(db)
            await eventually(lambda: db.fetchval(blocked))
            await proxy.cut("handler")
            await eventually(lambda: [entry for entry in logs if entry["event"] == "commit_unknown"])
            await db.execute("SELECT pg_advisory_unlock(1)")
            run = await settled(db, run_id)

    assert called == [1]
    assert (run["state"], run["attempt"]) == ("completed", 1)
    assert await effects(db) == [run_id]


async def test_a_worker_frozen_before_its_settle_keeps_its_run_from_nobody(make_proxied, db, proxy):
    """asyncpg asks for types before it can send the settle: of a statement half sent the server waits for the rest for ever."""
    worker: Worker = make_proxied()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        async with run.transaction() as connection:
            await connection.execute(WRITE, run.run_id)

    rule = await proxy.arm(Rule("typeinfo_tree", "request", "hold", purpose="handler"))
    async with worker:
        run_id = await insert(db)
        await eventually(rule.fired.is_set)
        lockable = "SELECT run_id FROM notifyworker.runs WHERE run_id = $1 FOR UPDATE SKIP LOCKED"
        assert await db.fetchval(lockable, run_id) == run_id
        await proxy.heal()
        assert (await settled(db, run_id))["state"] == "completed"
